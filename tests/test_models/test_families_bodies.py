"""Further backbones and necks: what they are given, what comes out, and other projects' weights under their names."""
from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from boxdet.errors import ConfigError
from boxdet.models.families.carafe import reassemble
from boxdet.models.families.detectors import ConvAWS2d, SwitchableAtrousConv2d
from boxdet.models.families.swin import PatchMerging, SwinTransformer
from boxdet.models.initialization import initialize
from boxdet.models.patches import to_tokens
from boxdet.registry import BACKBONES, LAYERS, NECKS

HR_STAGES = {f'stage{i}': dict(num_modules=1, num_branches=i, block='BASIC' if i > 1 else 'BOTTLENECK',
                               num_blocks=(1,) * i, num_channels=(8, 16, 24, 32)[:i]) for i in range(1, 5)}
# Each with the channels of its levels.
BACKBONES_AND_CHANNELS = [
    (dict(type='SwinTransformer', embed_dims=12, depths=(1, 2, 1, 1), num_heads=(1, 2, 4, 8)), (12, 24, 48, 96)),
    (dict(type='mmcls.ConvNeXt', arch=dict(depths=(1, 1, 1, 1), channels=(8, 16, 24, 32)), out_indices=[0, 1, 2, 3],
          gap_before_final_norm=False), (8, 16, 24, 32)),
    (dict(type='RegNet', arch='regnetx_400mf'), (32, 64, 160, 384)),
    (dict(type='HRNet', extra=HR_STAGES), (8, 16, 24, 32)),
    (dict(type='Res2Net', depth=50, base_channels=8), (32, 64, 128, 256)),
    (dict(type='ResNeSt', depth=50, base_channels=8), (32, 64, 128, 256)),
    (dict(type='PyramidVisionTransformer', embed_dims=8, num_layers=(1, 1, 1, 1)), (8, 16, 40, 64)),
    (dict(type='PyramidVisionTransformerV2', embed_dims=8, num_layers=(1, 1, 1, 1)), (8, 16, 40, 64)),
    (dict(type='MobileNetV2', widen_factor=0.5, out_indices=(1, 2, 4, 7)), (16, 16, 48, 1280)),
    (dict(type='DetectoRS_ResNet', depth=50, base_channels=8, conv_cfg=dict(type='ConvAWS'),
          sac=dict(type='SAC', use_deform=True), stage_with_sac=(False, True, True, True)), (32, 64, 128, 256)),
    (dict(type='DetectoRS_ResNeXt', depth=50, base_channels=8, groups=2, base_width=4), (32, 64, 128, 256)),
]


@pytest.mark.parametrize('cfg, channels', BACKBONES_AND_CHANNELS,
                         ids=lambda value: value['type'] if isinstance(value, dict) else '')
def test_backbones_give_four_levels_and_learn(cfg, channels):
    body = BACKBONES.build(cfg)
    body.init_weights()
    images = torch.rand(2, 3, 96, 128)
    levels = body.train()(images)
    if cfg['type'] == 'MobileNetV2':
        assert [x.shape[1] for x in levels] == list(channels)
    else:
        assert [tuple(x.shape) for x in levels] == [
            (2, c, 96 // s, 128 // s) for c, s in zip(channels, (4, 8, 16, 32))]
    sum(x.square().mean() for x in levels).backward()
    trained = [p for p in body.parameters() if p.requires_grad]
    assert all(p.grad is None or p.grad.isfinite().all() for p in trained) and any(
        p.grad is not None and p.grad.any() for p in trained)


NECK_CHANNELS = [8, 16, 32, 64]
FPG_CONV = dict(type='conv', kernel_size=1, norm_cfg=dict(type='BN'), inplace=False, order=('act', 'conv', 'norm'))
FIVE_NECKS = [
    dict(type='PAFPN', in_channels=NECK_CHANNELS, out_channels=12, num_outs=5),
    dict(type='HRFPN', in_channels=NECK_CHANNELS, out_channels=12),
    dict(type='ChannelMapper', in_channels=NECK_CHANNELS, out_channels=12, num_outs=5),
    dict(type='NASFPN', in_channels=NECK_CHANNELS, out_channels=12, num_outs=5, stack_times=2),
    dict(type='FPN_CARAFE', in_channels=NECK_CHANNELS, out_channels=12, num_outs=5),
    dict(type='FPG', in_channels=NECK_CHANNELS, out_channels=12, num_outs=5, stack_times=2, paths=['bu', 'td'],
         across_lateral_trans=FPG_CONV, across_skip_trans=FPG_CONV,
         across_down_trans=dict(type='interpolation_conv', inplace=False), skip_inds=[(0,), (), (), (), ()]),
]


@pytest.mark.parametrize('cfg', FIVE_NECKS, ids=lambda cfg: cfg['type'])
def test_necks_give_five_levels(cfg):
    neck = NECKS.build(cfg)
    neck.init_weights()
    levels = neck([torch.rand(1, c, 64 // 2 ** i, 96 // 2 ** i) for i, c in enumerate(NECK_CHANNELS)])
    assert [tuple(x.shape) for x in levels] == [(1, 12, 64 // 2 ** i, 96 // 2 ** i) for i in range(5)]
    sum(x.sum() for x in levels).backward()


def test_reassemble_is_the_sum_over_the_window():
    x, window, factor = torch.rand(1, 4, 3, 4, dtype=torch.float64), 3, 2
    weights = torch.rand(1, 2 * window ** 2, 6, 8, dtype=torch.float64)
    padded, expected = F.pad(x, (1, 1, 1, 1)), torch.zeros(1, 4, 6, 8, dtype=torch.float64)
    for channel in range(4):
        for row in range(6):
            for column in range(8):
                part = padded[0, channel, row // 2:row // 2 + 3, column // 2:column // 2 + 3].flatten()
                group = channel // 2 * window ** 2
                expected[0, channel, row, column] = part @ weights[0, group:group + window ** 2, row, column]
    assert torch.allclose(reassemble(x, weights, window, 2, factor), expected)


def test_standardised_convolutions_start_as_the_plain_ones_whose_weights_they_load():
    plain, x = nn.Conv2d(4, 6, 3, padding=1, bias=False).double(), torch.rand(1, 4, 9, 9, dtype=torch.float64)
    state = plain.state_dict()
    aws = ConvAWS2d(4, 6, 3, padding=1, bias=False).double()
    aws.load_state_dict(state)
    assert list(state) == ['weight'] and torch.allclose(aws(x), plain(x))
    again = ConvAWS2d(4, 6, 3, padding=1, bias=False).double()
    again.load_state_dict(aws.state_dict())
    assert torch.equal(again.weight_gamma, aws.weight_gamma)
    sac = SwitchableAtrousConv2d(4, 6, 3, padding=1, bias=False, use_deform=True).double()
    sac.load_state_dict(state, strict=False)
    assert torch.allclose(sac(x), plain(x))


def official_swin_names(state: dict) -> dict:
    """What Microsoft's repository calls these weights, in its order of the four tokens that become one."""
    renamed = {}
    for name, value in state.items():
        for new, old in (('stages.', 'layers.'), ('.attn.w_msa.', '.attn.'), ('.ffn.layers.0.0.', '.mlp.fc1.'),
                         ('.ffn.layers.1.', '.mlp.fc2.'), ('patch_embed.projection.', 'patch_embed.proj.')):
            name = name.replace(new, old)
        if '.downsample.' in name:
            value = value.unflatten(-1, (-1, 4)).transpose(-1, -2)[..., [0, 2, 1, 3], :].flatten(-2)
        renamed[name] = value
    return renamed


def test_official_swin_weights_are_converted(tmp_path):
    small = dict(embed_dims=12, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1))
    source = SwinTransformer(**small)
    for value in source.state_dict().values():
        if value.is_floating_point():
            nn.init.normal_(value)
    state = official_swin_names(source.state_dict())
    torch.save(dict(model={**state, 'head.weight': torch.zeros(5, 24), 'norm.weight': torch.zeros(24)}),
               tmp_path / 'swin.pth')
    body = SwinTransformer(**small, convert_weights=True,
                           init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    body.init_weights()
    assert all(torch.equal(value, body.state_dict()[name]) for name, value in source.state_dict().items())
    wider = SwinTransformer(**small, window_size=9, convert_weights=True,
                            init_cfg=dict(type='Pretrained', checkpoint=str(tmp_path / 'swin.pth')))
    wider.init_weights()
    name = 'stages.0.blocks.0.attn.w_msa.relative_position_bias_table'
    grid = source.state_dict()[name].T.reshape(1, 1, 13, 13)
    assert torch.equal(wider.state_dict()[name].T.reshape(1, 1, 17, 17),
                       F.interpolate(grid, size=(17, 17), mode='bicubic'))


def test_merged_patches_are_those_of_the_official_order():
    merge = PatchMerging(3, 6, 2, dict(type='LN')).double()
    x = torch.rand(1, 4, 6, 3, dtype=torch.float64)                                       # (B, h, w, C)
    four = torch.cat([x[:, 0::2, 0::2], x[:, 1::2, 0::2], x[:, 0::2, 1::2], x[:, 1::2, 1::2]], dim=-1)
    nn.init.normal_(merge.norm.weight)
    official = {f'layers.0.downsample.{k}': v for k, v in merge.state_dict().items()}
    own = SwinTransformer(embed_dims=3, depths=(1, 1), num_heads=(1, 1), strides=(4, 2), out_indices=(0, 1),
                          convert_weights=True).adapt_pretrained(official)
    expected = F.linear(F.layer_norm(four, (12,), merge.norm.weight, merge.norm.bias), merge.reduction.weight)
    merge.load_state_dict({k.removeprefix('stages.0.downsample.'): v for k, v in own.items()})
    found, size = merge(to_tokens(x.permute(0, 3, 1, 2)), (4, 6))
    assert size == (2, 3) and torch.allclose(found.view(1, 2, 3, 6), expected)


def test_frozen_stages_stay_as_they_are():
    body = SwinTransformer(embed_dims=12, depths=(1, 1), num_heads=(1, 2), strides=(4, 2), out_indices=(0, 1),
                           frozen_stages=1).train()
    trained = {name.split('.')[0] + name.split('.')[1] for name, p in body.named_parameters() if p.requires_grad}
    assert trained == {'stages1', 'norm1weight', 'norm1bias'} and not body.stages[0].training


@pytest.mark.parametrize('cfg, words', [
    (dict(type='ConvNeXt', arch='tinny', gap_before_final_norm=False), "no arch 'tinny'; did you mean 'tiny'"),
    (dict(type='ConvNeXt', out_indices=[0]), 'gap_before_final_norm=False is needed'),
    (dict(type='SwinTransformer', num_heads=(3, 6)), 'depths has 4 stages, num_heads 2'),
    (dict(type='RegNet', arch='regnetx_3.2GF'), "no arch 'regnetx_3.2GF'"),
    (dict(type='RegNet', arch='regnetx_400mf', deep_stem=True), 'deep_stem has no meaning'),
    (dict(type='Res2Net', depth=50, style='caffe'), "only style='pytorch'"),
    (dict(type='HRNet', extra=dict(stage1=HR_STAGES['stage1'])), "extra needs 'stage2'"),
    (dict(type='PyramidVisionTransformer', num_layers=(1, 1)), 'one number a stage'),
])
def test_what_does_not_fit_is_named(cfg, words):
    with pytest.raises(ConfigError, match=words):
        BACKBONES.build(cfg)


def test_a_backbone_of_timm():
    cfg = dict(type='mmcls.TIMMBackbone', model_name='resnet18', features_only=True, out_indices=(1, 2, 3, 4))
    try:
        import timm  # noqa: F401
    except ImportError:
        with pytest.raises(ConfigError, match='needs timm: pip install timm'):
            BACKBONES.build(cfg)
        return
    levels = BACKBONES.build(cfg)(torch.rand(1, 3, 64, 64))
    assert [x.shape[1:] for x in levels] == [(64, 16, 16), (128, 8, 8), (256, 4, 4), (512, 2, 2)]


@pytest.mark.parametrize('plugin', [
    dict(type='ContextBlock', ratio=1 / 4), dict(type='ContextBlock', ratio=1 / 4, pooling_type='avg'),
    dict(type='NonLocal2d'), dict(type='GeneralizedAttention', num_heads=4),
    dict(type='GeneralizedAttention', num_heads=4, attention_type='0010')], ids=lambda cfg: cfg['type'])
def test_plugins_start_without_effect(plugin):
    body = BACKBONES.build(dict(type='ResNet', depth=50, base_channels=4, num_stages=2, strides=(1, 2),
                                dilations=(1, 1), out_indices=(1,),
                                plugins=[dict(cfg=plugin, stages=(False, True), position='after_conv3')]))
    initialize(body)
    layer = LAYERS.build(plugin, in_channels=16)
    x = torch.rand(1, 16, 6, 8)
    assert torch.equal(layer(x), x) and body(torch.rand(1, 3, 32, 32))[0].shape == (1, 32, 4, 4)
