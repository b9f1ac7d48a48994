"""``LearningRateDecayOptimizerConstructor`` of ``mmdet.core``, called as mmcv 1.x's constructors of optimizers are."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn
from torch.optim import Optimizer

from boxdet.compat.mmcv1 import bare
from boxdet.engine import schedule

_TOKENS = ('backbone.cls_token', 'backbone.mask_token', 'backbone.pos_embed')


class LearningRateDecayOptimizerConstructor:
    """Makes an optimizer whose rate falls from the head down to the stem of a ConvNeXt.

    Each group notes its share of the rate as ``lr_scale``. Tokens and embeddings of positions belong to the stem.

    Args:
        optimizer_cfg: of the config: ``type``, ``lr``, ``weight_decay``, ...
        paramwise_cfg: ``decay_rate``, ``decay_type`` ('layer_wise', 'stage_wise') and ``num_layers``.
    """

    def __init__(self, optimizer_cfg: Mapping[str, Any], paramwise_cfg: Mapping[str, Any] | None = None):
        self.optimizer_cfg, self.paramwise_cfg = dict(optimizer_cfg), dict(paramwise_cfg or {})

    def __call__(self, model: nn.Module) -> Optimizer:
        """The optimizer of ``model``.

        Raises:
            ConfigError: a key that is missing or unknown, or a backbone of another kind.
        """
        detector = getattr(bare(model), 'module', bare(model))  # inside a wrapper of a script's own
        cfg = dict(self.optimizer_cfg, constructor=type(self).__name__, paramwise_cfg=self.paramwise_cfg)
        optimizer = schedule.build_optimizer(detector, cfg)
        for group in optimizer.param_groups:
            group['lr_scale'] = group['lr'] / self.optimizer_cfg['lr']
        self._move_tokens(detector, optimizer)
        return optimizer

    def _move_tokens(self, detector: nn.Module, optimizer: Optimizer) -> None:
        tokens = [one for name, one in detector.named_parameters() if name.startswith(_TOKENS) and one.requires_grad]
        if not tokens:
            return
        depth, groups = int(self.paramwise_cfg['num_layers']) + 2, optimizer.param_groups
        scale, known = float(self.paramwise_cfg['decay_rate']) ** (depth - 1), {id(one) for one in tokens}
        for group in groups:
            group['params'] = [one for one in group['params'] if id(one) not in known]
            if group['lr_scale'] == scale and group['weight_decay'] == 0:
                tokens, group['params'] = tokens + group['params'], []
        groups[:] = [group for group in groups if group['params']]
        optimizer.add_param_group(dict(params=tokens, lr=self.optimizer_cfg['lr'] * scale, lr_scale=scale,
                                       weight_decay=0.))
        groups.insert(0, groups.pop())
