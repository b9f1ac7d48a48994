"""TridentNet (Li et al. 2019): branches that share their weights and differ in dilation see objects of different sizes.

While training every branch is an image of its own to the heads: the batch they see is n * B images, all those of the
first branch, then all those of the second, ... Tested is either one branch, or all of them, whose results are joined.

B images, n branches, C channels.
"""
from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.nms import Suppression, batched_nms
from boxdet.models.backbones.resnet import BasicBlock, Bottleneck, ResNet, make_res_layer
from boxdet.models.detectors import TwoStageDetector
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.registry import BACKBONES, DETECTORS, HEADS, Cfg
from boxdet.structures.batch import Batch, ImageMeta
from boxdet.structures.instances import Instances, PaddedInstances

ALL_BRANCHES = -1  # as ``test_branch_idx``


class TridentConv(nn.Conv2d):
    """A 3x3 convolution that is told its dilation."""

    def forward(self, x: Tensor, dilation: int) -> Tensor:  # type: ignore[override]
        """Map (B, C, h, w) to (B, C, h / stride, w / stride)."""
        return F.conv2d(x, self.weight, self.bias, self.stride, padding=dilation, dilation=dilation)


class TridentBottleneck(Bottleneck):
    """A bottleneck whose 3x3 convolution is told its dilation: ``block(x, dilation)``."""

    def _add_middle(self, width: int, stride: int, dilation: int, groups: int, conv_cfg: Cfg | None,
                    norm_cfg: Cfg) -> None:
        if conv_cfg is not None:
            raise ConfigError(f'TridentResNet: the 3x3 convolutions of the last stage are its own: neither dcn nor '
                              f'conv_cfg can set them to {dict(conv_cfg)}')
        self.conv2 = TridentConv(width, width, 3, stride=stride, bias=False)
        self._add_norm(2, norm_cfg, width)


class TridentStage(nn.Sequential):
    """The blocks of a stage, run once for each branch with its dilation.

    Args:
        *blocks: TridentBottleneck.
        dilations: of each of the n branches.
        test_branch_idx: the only branch outside of training, or ``ALL_BRANCHES``.
    """

    def __init__(self, *blocks: nn.Module, dilations: Sequence[int], test_branch_idx: int):
        super().__init__(*blocks)
        self.dilations, self.test_branch_idx = tuple(dilations), test_branch_idx

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, h, w) to (n * B, C', h', w'), or (B, C', h', w') where one branch is tested."""
        every = self.training or self.test_branch_idx == ALL_BRANCHES
        return torch.cat(list(self._branches(x, self.dilations if every else [self.dilations[self.test_branch_idx]])))

    def _branches(self, x: Tensor, dilations: Sequence[int]) -> Iterator[Tensor]:
        for dilation in dilations:
            out = x
            for block in self:
                out = block(out, dilation)
            yield out


@BACKBONES.register_module()
class TridentResNet(ResNet):
    """ResNet-50, 101 or 152 of three stages, the last of which has branches.

    Args:
        depth: 50, 101 or 152.
        num_branch: n.
        test_branch_idx: the branch that is tested, from 0; -1 for all.
        trident_dilations: of the branches.
        kwargs: those of ResNet; ``num_stages`` is 3.

    Raises:
        ConfigError: values that do not fit one another.
    """

    arch_settings: Mapping[int, tuple[type[Bottleneck], tuple[int, ...]]] = {
        # mypy does not see what issubclass says of an item.
        depth: setting for depth, setting in ResNet.arch_settings.items() if issubclass(setting[0], Bottleneck)}  # type: ignore[misc]

    def __init__(self, depth: int, num_branch: int, test_branch_idx: int, trident_dilations: Sequence[int],
                 **kwargs: Any):
        if num_branch != len(trident_dilations):
            raise ConfigError(f'TridentResNet: num_branch={num_branch}, but trident_dilations={trident_dilations}')
        if not ALL_BRANCHES <= test_branch_idx < num_branch:
            raise ConfigError(f'TridentResNet: test_branch_idx={test_branch_idx}; it is -1 (all) to {num_branch - 1}')
        if kwargs.get('num_stages', 4) != 3:
            raise ConfigError(f"TridentResNet: num_stages={kwargs.get('num_stages', 4)}; it has 3")
        self.num_branch, self.test_branch_idx = num_branch, test_branch_idx
        self.trident_dilations = tuple(trident_dilations)
        super().__init__(depth=depth, **kwargs)

    def _make_layer(self, block: type[BasicBlock] | type[Bottleneck], in_channels: int, channels: int,
                    num_blocks: int, **options: Any) -> nn.Sequential:
        if channels != self._stage_channels(2):
            return make_res_layer(block, in_channels, channels, num_blocks, **options)
        blocks = make_res_layer(TridentBottleneck, in_channels, channels, num_blocks, **options)
        return TridentStage(*blocks, dilations=self.trident_dilations, test_branch_idx=self.test_branch_idx)


@HEADS.register_module()
class TridentRoIHead(StandardRoIHead):
    """A RoI head that merges the detections of several branches.

    Args:
        num_branch: n, as the backbone's.
        test_branch_idx: as the backbone's.
        kwargs: those of ``StandardRoIHead``.
    """

    def __init__(self, num_branch: int, test_branch_idx: int, **kwargs: Any):
        super().__init__(**kwargs)
        self.num_branch, self.test_branch_idx = num_branch, test_branch_idx

    def merge_branches(self, results: Sequence[Instances]) -> Instances:
        """Results of one image from those of its branches: suppressed once more, best first."""
        found = Instances.cat(results)
        dets, keep = batched_nms(found.bboxes, found.scores, found.labels, self.test_cfg.nms)
        most = self.test_cfg.max_per_img if self.test_cfg.max_per_img > 0 else len(keep)
        return found[keep[:most]].replace(scores=dets[:most, 4])  # soft_nms lowers the scores


@DETECTORS.register_module()
class TridentFasterRCNN(TwoStageDetector):
    """Faster R-CNN on a TridentResNet; arguments as in ``TwoStageDetector``.

    Raises:
        ConfigError: backbone and roi_head name different branches.
    """

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        for name in ('num_branch', 'test_branch_idx'):
            own, other = getattr(self.backbone, name), getattr(self.roi_head, name)
            if own != other:
                raise ConfigError(f'TridentFasterRCNN: {name} is {own} in model.backbone and {other} in model.roi_head')

    @property
    def tests_all_branches(self) -> bool:
        """Whether results are those of all branches."""
        return self.backbone.test_branch_idx == ALL_BRANCHES

    def loss(self, batch: Batch) -> dict[str, Tensor | list[Tensor]]:
        """As ``TwoStageDetector.loss``: every branch learns from all objects."""
        return super().loss(_repeated(batch, self.backbone.num_branch))

    def _detect(self, feats: Sequence[Tensor], batch: Batch) -> list[Instances]:
        if not self.tests_all_branches:
            return super()._detect(feats, batch)
        count = len(batch.metas)
        repeated = _repeated(batch, self.backbone.num_branch)
        found = self.roi_head.predict(feats, self._propose(feats, repeated), repeated.metas)
        return [self.roi_head.merge_branches(found[i::count]).to('cpu') for i in range(count)]

    def detect_padded(self, feats: Sequence[Tensor], batch: Batch, suppression: Suppression) -> PaddedInstances:
        """See ``TwoStageDetector``; of one branch only."""
        self._refuse_all_branches('an export')
        return super().detect_padded(feats, batch, suppression)

    def _merge_views(self, feats: Sequence[Sequence[Tensor]], proposals: Sequence[Sequence[Instances]],
                     metas: Sequence[Sequence[ImageMeta]]) -> list[Instances]:
        self._refuse_all_branches('test-time augmentation')
        return super()._merge_views(feats, proposals, metas)

    def _refuse_all_branches(self, wanted: str) -> None:
        if self.tests_all_branches:
            raise ConfigError(f'TridentFasterRCNN: {wanted} needs one branch: test_branch_idx=0, 1, ... and not -1, in '
                              'model.backbone and in model.roi_head')


def _repeated(batch: Batch, branches: int) -> Batch:
    """The batch, with everything but its images repeated for each branch."""
    def times(values: list | None) -> list | None:
        return values and list(values) * branches

    return replace(batch, metas=list(batch.metas) * branches, gt=times(batch.gt), ignored=times(batch.ignored),
                   proposals=times(batch.proposals))
