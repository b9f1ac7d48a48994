"""A backbone with ``**kwargs`` and a nested dict with a ``type`` that means something to it alone."""
from torch import nn

from boxdet.models import BACKBONES


@BACKBONES.register_module()
class PatchNet(nn.Module):
    def __init__(self, stem, **widths):
        super().__init__()
        if stem['type'] != 'ResNet':  # the name of a backbone of boxdet's, and here that of a stem
            raise ValueError(stem)
        channels, steps = stem['channels'], []
        self.stem = nn.Conv2d(3, channels, stem['patch'], stride=stem['patch'])
        for width in widths.values():
            steps.append(nn.Sequential(nn.Conv2d(channels, width, 3, stride=2 if steps else 1, padding=1), nn.ReLU()))
            channels = width
        self.steps = nn.ModuleList(steps)

    def forward(self, x):
        x, levels = self.stem(x), []
        for step in self.steps:
            x = step(x)
            levels.append(x)
        return levels
