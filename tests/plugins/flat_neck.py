"""A neck as 2.x has it: no ``keep``, no declaration."""
from torch import nn
from torch.nn import functional as F

from boxdet.models import NECKS


@NECKS.register_module()
class FlatNeck(nn.Module):
    def __init__(self, in_channels, out_channels):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(channels, out_channels, 1) for channels in in_channels)

    def forward(self, inputs):
        levels = [conv(x) for conv, x in zip(self.convs, inputs)]
        return (*levels, F.max_pool2d(levels[-1], 1, stride=2))
