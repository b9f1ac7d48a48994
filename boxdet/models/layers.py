"""The layers that configs name: convolution, norm, activation, upsampling; ConvModule chains the first three.

Each is registered in LAYERS under mmdetection 2.x's config type, and a user's own class joins by
``@LAYERS.register_module()``: a convolution takes ``nn.Conv2d``'s keywords, a norm the number of channels
first. Attribute names are state-dict keys: ``x.conv.weight``, ``x.bn.weight``, ``x.gn.weight``,
``x.conv_offset.weight``.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from boxdet.errors import ConfigError
from boxdet.models import winograd
from boxdet.models.initialization import constant_init, kaiming_init
from boxdet.registry import LAYERS, Cfg, accepted_keywords, check_keywords

# --- convolutions ---

@LAYERS.register_module(name='ConvWS')
class ConvWS2d(nn.Conv2d):
    """Convolution with standardised weights (Qiao et al. 2019, "Weight Standardization").

    Every output filter is shifted to mean 0 and divided by its standard deviation (of n - 1, plus ``eps``)
    before use.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 eps: float = 1e-5, **kwargs: Any):
        super().__init__(in_channels, out_channels, kernel_size, **kwargs)
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, h, w) to (B, C_out, h', w')."""
        std, mean = torch.std_mean(self.weight, dim=(1, 2, 3), keepdim=True)
        return self._conv_forward(x, (self.weight - mean) / (std + self.eps), self.bias)


class _DeformConv2d(nn.Module):
    """A convolution whose taps move by offsets that ``conv_offset`` predicts from the same input."""

    values_per_tap = 2  # dy, dx

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, deform_groups: int = 1,
                 bias: bool = False):
        super().__init__()
        if in_channels % groups or out_channels % groups or in_channels % deform_groups:
            raise ConfigError(f'a deformable convolution of {in_channels} to {out_channels} channels: groups='
                              f'{groups} and deform_groups={deform_groups} must divide them')
        kernel = (kernel_size, kernel_size) if isinstance(kernel_size, int) else (kernel_size[0], kernel_size[1])
        self.stride, self.padding, self.dilation = stride, padding, dilation
        self.groups, self.deform_groups = groups, deform_groups
        self.taps = deform_groups * kernel[0] * kernel[1]
        self.weight = nn.Parameter(torch.empty(out_channels, in_channels // groups, *kernel))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.conv_offset = nn.Conv2d(in_channels, self.taps * self.values_per_tap, kernel, stride=stride,
                                     padding=padding, dilation=dilation)
        nn.init.kaiming_uniform_(self.weight, nonlinearity='relu')
        self.init_weights()

    def init_weights(self) -> None:
        """Start with offsets 0, as the papers do, whatever was done to every Conv2d before."""
        constant_init(self.conv_offset, 0)

    def _deform(self, x: Tensor, offset: Tensor, mask: Tensor | None) -> Tensor:
        from torchvision.ops import deform_conv2d  # two seconds, which who imports the API need not wait for

        return deform_conv2d(x, offset, self.weight, self.bias, stride=self.stride,
                             padding=self.padding, dilation=self.dilation, mask=mask)


@LAYERS.register_module(name='DCN')
class DeformConv2d(_DeformConv2d):
    """Deformable convolution (Dai et al. 2017): each tap of the kernel moves by an offset in pixels."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, h, w) to (B, C_out, h', w')."""
        return self._deform(x, self.conv_offset(x), None)


@LAYERS.register_module(name='DCNv2')
class ModulatedDeformConv2d(_DeformConv2d):
    """Deformable convolution v2 (Zhu et al. 2019): each tap also has a weight in (0, 1)."""

    values_per_tap = 3  # dy, dx, weight

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 bias: bool = True, **kwargs: Any):
        super().__init__(in_channels, out_channels, kernel_size, bias=bias, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C_in, h, w) to (B, C_out, h', w')."""
        out = self.conv_offset(x)  # (B, 3 * taps, h, w): two thirds offsets, one third weights
        offset, mask = out.split([2 * self.taps, self.taps], dim=1)
        return self._deform(x, offset, mask.sigmoid())


def build_conv_layer(cfg: Mapping | None, *args: Any, **kwargs: Any) -> nn.Module:
    """Build the convolution of ``cfg`` (None: ``nn.Conv2d``) with ``nn.Conv2d``'s arguments.

    Raises:
        ConfigError: unknown type, or a keyword that it does not take.
    """
    if cfg is None:
        return nn.Conv2d(*args, **kwargs)
    cls, options = _class_and_options(cfg, 'conv_cfg')
    return cls(*args, **kwargs, **options)


# --- norms ---

class _SumOverRanks(torch.autograd.Function):
    """The sum of every rank's tensor, on every rank; its gradient is the sum of theirs."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group = group
        total = x.clone()
        dist.all_reduce(total, group=group)
        return total

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        total = grad.clone()
        dist.all_reduce(total, group=ctx.group)
        return total, None


@LAYERS.register_module(name=['SyncBN', 'MMSyncBN'])
class SyncBatchNorm2d(nn.SyncBatchNorm):
    """Batch norm over all processes, also on the CPU, where torch's own refuses; alone it is plain BN."""

    def forward(self, x: Tensor) -> Tensor:
        """Normalise (B, C, h, w)."""
        if x.device.type != 'cpu':
            return super().forward(x)
        together = self.training and dist.is_available() and dist.is_initialized()
        if together and dist.get_world_size(self.process_group) > 1:
            return self._forward_over_cpus(x)
        return _BatchNorm.forward(self, x)

    def _forward_over_cpus(self, x: Tensor) -> Tensor:
        c, group = x.shape[1], self.process_group or dist.group.WORLD
        wide = x.to(torch.promote_types(x.dtype, torch.float32))
        count = wide.new_tensor([x.numel() // c])
        total, count = _SumOverRanks.apply(torch.cat([wide.sum((0, 2, 3)), count]), group).split([c, 1])
        mean = total / count
        centred = wide - mean.view(1, c, 1, 1)
        var = _SumOverRanks.apply(centred.square().sum((0, 2, 3)), group) / count
        if self.track_running_stats:
            self._follow(mean.detach(), var.detach() * count / (count - 1).clamp(min=1))
        scale = (var + self.eps).rsqrt()
        scale = scale * self.weight if self.affine else scale
        out = centred * scale.view(1, c, 1, 1)
        return (out + self.bias.view(1, c, 1, 1) if self.affine else out).to(x.dtype)

    @torch.no_grad()
    def _follow(self, mean: Tensor, unbiased_var: Tensor) -> None:
        if self.num_batches_tracked is not None:  # it is None while with_cp repeats a forward pass
            self.num_batches_tracked.add_(1)
        assert self.running_mean is not None and self.running_var is not None  # there is something to follow with
        step = 1 / float(cast(Tensor, self.num_batches_tracked)) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean, step)
        self.running_var.lerp_(unbiased_var, step)


def norm_abbreviation(cls: type) -> str:
    """Return the attribute name of norms of class ``cls``: 'bn', 'gn', ..., or its own ``_abbr_``."""
    if hasattr(cls, '_abbr_'):
        return cls._abbr_
    bases = ((_InstanceNorm, 'in'), (_BatchNorm, 'bn'), (nn.GroupNorm, 'gn'), (nn.LayerNorm, 'ln'))
    words = (('batch', 'bn'), ('group', 'gn'), ('layer', 'ln'), ('instance', 'in'))
    by_base = [short for base, short in bases if issubclass(cls, base)]
    by_word = [short for word, short in words if word in cls.__name__.lower()]
    return (by_base + by_word + ['norm_layer'])[0]


def build_norm_layer(cfg: Mapping, num_features: int, postfix: int | str = '') -> tuple[str, nn.Module]:
    """Build the norm of ``cfg`` for ``num_features`` channels.

    ``requires_grad`` in ``cfg`` says whether its weights are trained (True by default).

    Returns:
        (name, layer): name is 'bn', 'gn', ... followed by ``postfix``.

    Raises:
        ConfigError: unknown type, a keyword that it does not take, or channels that the groups do not divide.
    """
    cls, options = _class_and_options(cfg, 'norm_cfg', extra=('requires_grad',))
    requires_grad = options.pop('requires_grad', True)
    if isinstance(cls, type) and issubclass(cls, nn.GroupNorm):
        groups = options.pop('num_groups', None)
        if not groups or num_features % groups:
            raise ConfigError(f'norm_cfg: {cfg["type"]} on {num_features} channels: num_groups={groups} must '
                              'be given and divide them')
        layer = cls(groups, num_features, **options)
    else:
        layer = cls(num_features, **options)
    for parameter in layer.parameters():
        parameter.requires_grad_(requires_grad)
    return norm_abbreviation(type(layer)) + str(postfix), layer


# --- activations ---

def build_activation_layer(cfg: Mapping, inplace: bool = True) -> nn.Module:
    """Build the activation of ``cfg``; ``inplace`` is for those that know it and whose config leaves it open.

    Raises:
        ConfigError: unknown type, or a keyword that it does not take.
    """
    cls, options = _class_and_options(cfg, 'act_cfg')
    if 'inplace' in accepted_keywords(cls)[0]:
        options.setdefault('inplace', inplace)
    return cls(**options)


# --- upsampling ---

@LAYERS.register_module(name='nearest')
def nearest_upsample(scale_factor: float) -> nn.Upsample:
    """Repeat the nearest pixel."""
    return nn.Upsample(scale_factor=scale_factor, mode='nearest')


@LAYERS.register_module(name='bilinear')
def bilinear_upsample(scale_factor: float, align_corners: bool | None = None) -> nn.Upsample:
    """Interpolate between the four nearest pixels."""
    return nn.Upsample(scale_factor=scale_factor, mode='bilinear', align_corners=align_corners)


def build_upsample_layer(cfg: Mapping, **defaults: Any) -> nn.Module:
    """Build the upsampling of ``cfg``.

    Args:
        cfg: type 'nearest' or 'bilinear' with ``scale_factor``, 'deconv' with ConvTranspose2d's keywords, or one of
            'carafe' and 'pixel_shuffle' (``families.carafe``).
        defaults: keywords for what ``cfg`` leaves out.

    Raises:
        ConfigError: unknown type, or a keyword that it does not take.
    """
    cls, options = _class_and_options({**defaults, **cfg}, 'upsample_cfg')
    return cls(**options)


def _register_torch_layers() -> None:
    layers = {
        'Conv': nn.Conv2d, 'Conv1d': nn.Conv1d, 'Conv2d': nn.Conv2d, 'Linear': nn.Linear, 'deconv': nn.ConvTranspose2d,
        'BN': nn.BatchNorm2d, 'BN2d': nn.BatchNorm2d, 'GN': nn.GroupNorm, 'IN': nn.InstanceNorm2d, 'LN': nn.LayerNorm,
        'Swish': nn.SiLU, 'HSwish': nn.Hardswish, 'HSigmoid': nn.Hardsigmoid,
        **{cls.__name__: cls for cls in (nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.RReLU, nn.ReLU6, nn.ELU,
                                         nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU)}}
    for name, cls in layers.items():
        LAYERS.register_module(name=name, module=cls)


_register_torch_layers()


def _class_and_options(cfg: Mapping, key: str, extra: Sequence[str] = ()) -> tuple[Any, dict]:
    """Split a layer config into its class and its keywords, checked; ``extra`` are the caller's."""
    if not isinstance(cfg, Mapping) or 'type' not in cfg:
        raise ConfigError(f"{key} is a dict with a 'type', not {cfg!r}")
    options = dict(cfg)
    cls = LAYERS.get(options.pop('type'))
    check_keywords(cls, {k: v for k, v in options.items() if k not in extra}, where=key)
    return cls, options


# --- the three in a row ---

_RELU = {'type': 'ReLU'}


@LAYERS.register_module()
class ConvModule(nn.Module):
    """Convolution, norm and activation in one module; names as in 2.x (``conv``, ``bn``, ``activate``).

    Args:
        in_channels: of the convolution.
        out_channels: of the convolution.
        kernel_size: of the convolution.
        stride: of the convolution.
        padding: of the convolution.
        dilation: of the convolution.
        groups: of the convolution.
        bias: 'auto' gives the convolution a bias when there is no norm after it.
        conv_cfg: layer config; None means nn.Conv2d.
        norm_cfg: layer config; None means no norm.
        act_cfg: layer config; None means no activation.
        inplace: let the activation overwrite its input.
        with_spectral_norm: divide the weight by its largest singular value (Miyato et al. 2018).
        padding_mode: of the convolution.
        order: the three in their order.

    The convolution starts from He's initialisation, as it stands before a ReLU.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int | tuple[int, int],
                 stride: int | tuple[int, int] = 1, padding: int | tuple[int, int] = 0,
                 dilation: int | tuple[int, int] = 1, groups: int = 1, bias: bool | str = 'auto',
                 conv_cfg: Cfg | None = None, norm_cfg: Cfg | None = None,
                 act_cfg: Cfg | None = _RELU, inplace: bool = True,
                 with_spectral_norm: bool = False, padding_mode: str = 'zeros',
                 order: Sequence[str] = ('conv', 'norm', 'act')):
        super().__init__()
        if sorted(order) != ['act', 'conv', 'norm']:
            raise ConfigError(f"ConvModule: order holds 'conv', 'norm' and 'act' once each, not {order}")
        self.with_norm, self.with_activation = norm_cfg is not None, act_cfg is not None
        self.with_bias = not self.with_norm if bias == 'auto' else bool(bias)
        self.in_channels, self.out_channels, self.order = in_channels, out_channels, tuple(order)
        # Layers such as DCN know no padding mode: it is passed only when it is not the usual one.
        mode = {} if padding_mode == 'zeros' else {'padding_mode': padding_mode}
        self.conv = build_conv_layer(conv_cfg, in_channels, out_channels, kernel_size, stride=stride,
                                     padding=padding, dilation=dilation, groups=groups, bias=self.with_bias,
                                     **mode)
        # A user's layer may keep its weights inside; then they stay as it made them.
        if isinstance(getattr(self.conv, 'weight', None), Tensor):
            if act_cfg is not None and act_cfg['type'] == 'LeakyReLU':
                kaiming_init(self.conv, a=act_cfg.get('negative_slope', 0.01), nonlinearity='leaky_relu')
            else:
                kaiming_init(self.conv, a=0, nonlinearity='relu')
        if with_spectral_norm:
            self.conv = nn.utils.spectral_norm(self.conv)
        self.norm_name = None
        if norm_cfg is not None:
            channels = out_channels if order.index('norm') > order.index('conv') else in_channels
            self.norm_name, norm = build_norm_layer(norm_cfg, channels)
            self.add_module(self.norm_name, norm)
        if act_cfg is not None:
            self.activate = build_activation_layer(act_cfg, inplace)

    @property
    def norm(self) -> nn.Module | None:
        """The norm layer, None without one."""
        return getattr(self, self.norm_name) if self.norm_name else None

    @property
    def norm_follows_conv(self) -> bool:
        """Whether the norm reads what the convolution puts out, and may be folded into it (``models.folding``)."""
        return self.order.index('norm') == self.order.index('conv') + 1

    def forward(self, x: Tensor, activate: bool = True, norm: bool = True) -> Tensor:
        """Map (B, in_channels, h, w) to (B, out_channels, h', w'); False leaves out that step."""
        for step in self.order:
            if step == 'conv':
                # Left out, a norm that was folded into the convolution is left out there.
                x = self.conv(x) if norm else getattr(self.conv, 'without_norm', self.conv)(x)
            elif step == 'norm' and norm and self.with_norm:
                x = cast(nn.Module, self.norm)(x)
            elif step == 'act' and activate and self.with_activation:
                x = self.activate(x)
        return x


# ------------------------------------------------------------------------------------------ fast convolutions


class FastConv2d(nn.Conv2d):
    """A convolution that may carry out the norm after it, and may go Winograd's way.

    Attributes:
        norm_after: (norm,), carried out while it is in eval mode, or (). In a tuple: it is no child of the convolution.
        fast: go Winograd's way where that pays.
    """

    norm_after: tuple[nn.BatchNorm2d, ...] = ()
    fast = False

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to (B, O, H', W')."""
        if not self.norm_after or self.norm_after[0].training:
            return self.without_norm(x)
        norm, = self.norm_after
        mean, var = cast(Tensor, norm.running_mean), cast(Tensor, norm.running_var)
        scale = (var + norm.eps).rsqrt()
        scale = scale if norm.weight is None else scale * norm.weight
        shift = -mean if self.bias is None else self.bias - mean
        shift = shift * scale if norm.bias is None else torch.addcmul(norm.bias, shift, scale)
        return self._conv_forward(x, self.weight * scale[:, None, None, None], shift)

    def without_norm(self, x: Tensor) -> Tensor:
        """The convolution alone."""
        return self._conv_forward(x, self.weight, self.bias)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.fast and winograd.pays(input, weight):
            return winograd.conv3x3(input, weight, bias)
        return super()._conv_forward(input, weight, bias)


class CarriedBatchNorm2d(nn.BatchNorm2d):
    """A norm that the convolution before it carries out: in eval mode it hands on what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        """Map (B, C, H, W) to the same shape."""
        return super().forward(x) if self.training else x
