"""Backbones of timm (Wightman, "PyTorch Image Models"), where it is installed."""
from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from boxdet.errors import ConfigError, nearest
from boxdet.models.initialization import InitCfg, initialize
from boxdet.registry import BACKBONES, LAYERS


@BACKBONES.register_module()
class TIMMBackbone(nn.Module):
    """A model of timm with ``features_only=True``; keys as in mmcls, ``timm_model.``.

    Args:
        model_name: of ``timm.list_models()``.
        features_only: must be True: a detector reads maps, not the scores of a classifier.
        pretrained: start from timm's weights, which are downloaded.
        checkpoint_path: a file of weights that are loaded while the model is built.
        in_channels: of the image.
        init_cfg: initial weights in the place of timm's own.
        kwargs: further keywords of ``timm.create_model``: ``out_indices=(1, 2, 3, 4)``, ``norm_layer='BN'``, ...

    Raises:
        ConfigError: timm is not installed, or there is no such model.
    """

    def __init__(self, model_name: str, features_only: bool = False, pretrained: bool = False,
                 checkpoint_path: str = '', in_channels: int = 3, init_cfg: InitCfg = None, **kwargs: Any):
        super().__init__()
        if not features_only:
            raise ConfigError('TIMMBackbone: features_only=True is needed: a detector reads maps')
        if pretrained and (checkpoint_path or init_cfg):
            raise ConfigError("TIMMBackbone: 'pretrained' loads timm's weights; leave out checkpoint_path and init_cfg")
        try:
            import timm
        except ImportError:
            raise ConfigError(f"TIMMBackbone: '{model_name}' needs timm: pip install timm") from None
        if not timm.is_model(model_name.partition('.')[0].removeprefix('hf_hub:')) and ':' not in model_name:
            raise ConfigError(f"TIMMBackbone: timm {timm.__version__} has no model '{model_name}'"
                              f'{nearest(model_name, timm.list_models())}')
        if isinstance(kwargs.get('norm_layer'), str):
            kwargs['norm_layer'] = LAYERS.get(kwargs['norm_layer'])
        self.timm_model = timm.create_model(model_name, pretrained=pretrained, in_chans=in_channels,
                                            checkpoint_path=checkpoint_path, features_only=True, **kwargs)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Run ``init_cfg``; without one timm's own initial or pretrained weights stay."""
        if self.init_cfg is not None:
            initialize(self)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, in_channels, H, W) to levels (B, C, h, w), finest first."""
        return tuple(self.timm_model(x))
