"""VGG (Simonyan and Zisserman 2015), the body of the first Fast and Faster R-CNN."""
from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from boxdet.errors import ConfigError
from boxdet.models.initialization import InitCfg, initialize, pretrained_or_default
from boxdet.registry import MODELS

# depth -> convolutions of each stage; stage i has 64, 128, 256, 512, 512 channels
_DEPTHS = {11: (1, 1, 2, 2, 2), 13: (2, 2, 2, 2, 2), 16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


@MODELS.register_module()
class VGG(nn.Module):
    """VGG-11, 13, 16 or 19 without its classifier; keys ``features.N`` are torchvision's.

    Args:
        depth: 11, 13, 16 or 19.
        with_bn: batch norm after every convolution.
        num_stages: stages built.
        dilations: of each stage.
        out_indices: stages put out, from 0, each after its pooling.
        frozen_stages: the first so many stages get no gradients and stay in evaluation mode. -1: none.
        bn_eval: batch norms stay in evaluation mode while training.
        bn_frozen: they do, and get no gradients.
        ceil_mode: round sizes up when pooling.
        with_last_pool: False leaves out the last stage's pooling: Faster R-CNN's stride 16.
        pretrained: as in ResNet.
        init_cfg: as in ResNet.

    Raises:
        ConfigError: values that do not fit one another.
    """

    def __init__(self, depth: int, with_bn: bool = False, num_stages: int = 5,
                 dilations: Sequence[int] = (1,) * 5, out_indices: Sequence[int] = (0, 1, 2, 3, 4),
                 frozen_stages: int = -1, bn_eval: bool = True, bn_frozen: bool = False,
                 ceil_mode: bool = False, with_last_pool: bool = True, pretrained: str | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        if depth not in _DEPTHS:
            raise ConfigError(f'VGG: depth={depth}; there are {sorted(_DEPTHS)}')
        stages = {*range(num_stages)}
        if not 1 <= num_stages <= 5 or len(dilations) != num_stages or not {*out_indices} <= stages:
            raise ConfigError(f'VGG: num_stages={num_stages}, dilations={dilations} and out_indices='
                              f'{out_indices} do not fit one another')
        self.out_indices, self.frozen_stages = tuple(out_indices), frozen_stages
        self.bn_eval, self.bn_frozen = bn_eval, bn_frozen
        self.init_cfg = pretrained_or_default(init_cfg, pretrained, [
            dict(type='Kaiming', layer='Conv2d'), dict(type='Constant', val=1, layer='_BatchNorm')])
        layers: list[nn.Module] = []
        self.stage_ends: list[int] = []
        channels = 3
        for stage, count in enumerate(_DEPTHS[depth][:num_stages]):
            width = 64 * 2 ** min(stage, 3)
            for _ in range(count):
                gap = dilations[stage]
                layers.append(nn.Conv2d(channels, width, 3, padding=gap, dilation=gap))
                layers += [nn.BatchNorm2d(width)] if with_bn else []
                layers.append(nn.ReLU(inplace=True))
                channels = width
            if with_last_pool or stage < num_stages - 1:
                layers.append(nn.MaxPool2d(2, stride=2, ceil_mode=ceil_mode))
            self.stage_ends.append(len(layers))
        self.features = nn.Sequential(*layers)
        self.train()

    def init_weights(self) -> None:
        """Start from ``init_cfg``: pretrained weights, or random ones."""
        initialize(self)

    def train(self, mode: bool = True) -> VGG:
        """As usual, but frozen stages and, with ``bn_eval``, batch norms stay in evaluation mode."""
        super().train(mode)
        for module in self.features if mode else ():
            if isinstance(module, _BatchNorm) and self.bn_eval:
                module.eval()
            if isinstance(module, _BatchNorm) and self.bn_frozen:
                module.requires_grad_(False)
        if self.frozen_stages > 0:
            self.features[:self.stage_ends[self.frozen_stages - 1]].eval().requires_grad_(False)
        return self

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        """Map images (B, 3, H, W) to stages i of ``out_indices``: (B, C_i, H / 2**(i+1), W / 2**(i+1))."""
        outs, start = [], 0
        for stage, end in enumerate(self.stage_ends):
            x = self.features[start:end](x)
            start = end
            if stage in self.out_indices:
                outs.append(x)
        return tuple(outs)
