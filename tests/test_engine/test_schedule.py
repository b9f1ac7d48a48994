"""Optimizers with paramwise_cfg, and the update step: clipping, accumulation, precision."""
import math

import pytest
import torch
from torch import nn

from boxdet.engine.schedule import build_optimizer, build_update_step, freeze
from boxdet.errors import ConfigError

# --- optimizer ---

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.backbone = nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.BatchNorm2d(4))
        self.head = nn.Linear(4, 2)
        self.frozen = nn.Linear(2, 2).requires_grad_(False)


def settings(optimizer, model):
    by_id = {id(p): (g['lr'], g['weight_decay']) for g in optimizer.param_groups for p in g['params']}
    return {name: by_id[id(p)] for name, p in model.named_parameters()}


@pytest.mark.parametrize('name', ['Adadelta', 'Adagrad', 'Adamax', 'NAdam', 'RAdam', 'RMSprop', 'Rprop'])
def test_optimizers_of_torch_by_their_names(name):
    optimizer = build_optimizer(Net(), dict(type=name, lr=0.5))
    assert type(optimizer) is getattr(torch.optim, name) and optimizer.param_groups[0]['lr'] == 0.5


def test_plain_optimizer_has_one_group():
    cfg = dict(type='SGD', lr=0.02, momentum=0.9, weight_decay=1e-4)
    optimizer = build_optimizer(Net(), cfg)
    assert isinstance(optimizer, torch.optim.SGD) and len(optimizer.param_groups) == 1
    assert optimizer.param_groups[0]['momentum'] == 0.9 and cfg == dict(type='SGD', lr=0.02, momentum=0.9,
                                                                       weight_decay=1e-4)


def test_paramwise_multipliers():
    model = Net()
    optimizer = build_optimizer(model, dict(type='SGD', lr=1., weight_decay=1., paramwise_cfg=dict(
        bias_lr_mult=2., bias_decay_mult=0., norm_decay_mult=0.5, dwconv_decay_mult=0.25)))
    assert settings(optimizer, model) == {
        'backbone.0.weight': (1., 0.25), 'backbone.0.bias': (2., 0.25), 'backbone.1.weight': (1., 0.5),
        'backbone.1.bias': (1., 0.5), 'head.weight': (1., 1.), 'head.bias': (2., 0.), 'frozen.weight': (1., 1.),
        'frozen.bias': (1., 1.)}
    assert len(optimizer.param_groups) == 5  # one for each pair of numbers, not one a parameter


def test_custom_keys_longest_wins():
    model = Net()
    optimizer = build_optimizer(model, dict(type='AdamW', lr=1., weight_decay=1., paramwise_cfg=dict(
        norm_decay_mult=0., custom_keys={'backbone': dict(lr_mult=0.1), 'backbone.1': dict(decay_mult=0.5)})))
    found = settings(optimizer, model)
    assert found['backbone.0.weight'] == (0.1, 1.) and found['backbone.1.weight'] == (1., 0.5)
    assert found['head.weight'] == (1., 1.) and isinstance(optimizer, torch.optim.AdamW)


def test_shared_parameters():
    model = nn.ModuleDict(dict(a=nn.Linear(2, 2)))
    model['b'] = model['a']
    with pytest.raises(ConfigError, match="'b.weight' appears twice"):
        build_optimizer(model, dict(type='SGD', lr=1., paramwise_cfg=dict(bias_lr_mult=2.)))
    optimizer = build_optimizer(model, dict(type='SGD', lr=1., paramwise_cfg=dict(bias_lr_mult=2.,
                                                                                 bypass_duplicate=True)))
    assert sum(len(g['params']) for g in optimizer.param_groups) == 2


@pytest.mark.parametrize('cfg, message', [
    (dict(lr=1.), "optimizer needs a 'type'"), (dict(type='SDG', lr=1.), "did you mean 'SGD'"),
    (dict(type='SGD', lr=1., momentun=0.9), "optimizer.momentun.*did you mean 'momentum'"),
    (dict(type='SGD', lr=1., paramwise_cfg=dict(bias_mult=2.)), "takes no 'bias_mult'"),
    (dict(type='SGD', lr=1., paramwise_cfg=dict(norm_decay_mult=0.)), 'needs optimizer.weight_decay'),
    (dict(type='SGD', lr=1., paramwise_cfg=dict(custom_keys={'a': dict(lr_mul=2.)})), "did you mean 'lr_mult'"),
    (dict(type='SGD', lr=1., constructor='Layerwise'), "constructor 'Layerwise' is unknown")])
def test_wrong_optimizers(cfg, message):
    with pytest.raises(ConfigError, match=message):
        build_optimizer(Net(), cfg)


def test_lr_scale():
    model = Net()
    optimizer = build_optimizer(model, dict(type='SGD', lr=0.02, paramwise_cfg=dict(bias_lr_mult=2.)), lr_scale=0.5)
    assert sorted({g['lr'] for g in optimizer.param_groups}) == [0.01, 0.02]


# --- update step ---

def test_gradients_are_clipped_and_the_norm_is_kept():
    model = nn.Linear(3, 1, bias=False)
    step = build_update_step(torch.optim.SGD(model.parameters(), lr=1.), dict(grad_clip=dict(max_norm=1., norm_type=2)))
    before = model.weight.clone()
    step.update_params(model(torch.full((1, 3), 10.)).sum())
    assert float(step.grad_norm) == pytest.approx(math.sqrt(300))
    assert float(torch.linalg.norm(before - model.weight).detach()) == pytest.approx(1., rel=1e-3)
    assert model.weight.grad is None


def test_bfloat16_on_the_cpu():
    model = nn.Linear(3, 1)
    for fp16 in (dict(loss_scale=512.), dict(dtype='bf16'), dict(dtype=torch.bfloat16)):
        step = build_update_step(torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9), None, fp16, 'cpu')
        with step.optim_context(model):
            out = model(torch.ones(1, 3))
        assert out.dtype is torch.bfloat16 and step.scaler is None
        step.update_params(out.float().sum())
        # The masters, and what the optimizer remembers, are float32.
        assert model.weight.dtype is torch.float32
        assert all(state['momentum_buffer'].dtype is torch.float32 for state in step.optimizer.state.values())


@pytest.mark.parametrize('slow', [True, False])
def test_a_training_that_a_processor_is_slow_in_is_told(slow, monkeypatch, caplog):
    monkeypatch.setattr('boxdet.engine.schedule.slow_in', lambda dtype, device: slow and device == 'cpu')
    optimizer = torch.optim.SGD(nn.Linear(3, 1).parameters(), lr=0.1)
    with caplog.at_level('WARNING', 'boxdet'):
        assert build_update_step(optimizer, None, dict(dtype='bf16'), 'cpu').amp_dtype is torch.bfloat16
        build_update_step(optimizer, None, None, 'cpu')
    assert [r.getMessage().startswith('fp16: this processor has no instructions for bfloat16') for r in caplog.records
            ] == [True] * slow


@pytest.mark.parametrize('loss_scale, scale, after_overflow', [
    (512., 512., 512.), ('dynamic', 65536., 32768.), (dict(init_scale=64., growth_interval=100), 64., 32.)])
def test_float16_with_a_loss_scale(loss_scale, scale, after_overflow):
    torch.manual_seed(0)
    model, x = nn.Linear(3, 1), torch.randn(4, 3) * 0.1
    plain = nn.Linear(3, 1)
    plain.load_state_dict(model.state_dict())
    step = build_update_step(torch.optim.SGD(model.parameters(), lr=0.1), dict(grad_clip=dict(max_norm=0.5)),
                             dict(loss_scale=loss_scale, dtype='float16'), 'cpu')
    with step.optim_context(model):
        out = model(x)
    assert out.dtype is torch.float16 and float(step.scaler.get_scale()) == scale
    step.update_params(out.float().square().mean())
    assert float(step.grad_norm) < 10  # clipped by its own size, not by the scaled one
    reference = build_update_step(torch.optim.SGD(plain.parameters(), lr=0.1), dict(grad_clip=dict(max_norm=0.5)))
    reference.update_params(plain(x).square().mean())
    torch.testing.assert_close(model.state_dict(), plain.state_dict(), rtol=2e-3, atol=2e-3)
    before = model.weight.clone()
    step.update_params(model(x).sum() * float('inf'))
    assert torch.equal(model.weight, before)  # an overflow is no update
    assert float(step.scaler.get_scale()) == after_overflow


@pytest.mark.parametrize('config, fp16, message', [
    (dict(cumulative_iters=0), None, 'cumulative_iters must be a whole number, 1 at least, not 0'),
    (dict(grad_clp=None), None, "did you mean 'grad_clip'"), (dict(type='OptimHook'), None, "did you mean 'Optimizer"),
    (None, dict(loss_scal=1), "did you mean 'loss_scale'"), (None, dict(dtype='float8'), "fp16.dtype 'float8'")])
def test_wrong_update_steps(config, fp16, message):
    with pytest.raises(ConfigError, match=message):
        build_update_step(torch.optim.SGD(nn.Linear(1, 1).parameters(), lr=0.1), config, fp16)


# --- frozen parts ---

def test_modules_are_frozen_by_pattern():
    model = Net()
    frozen = freeze(model, ['backbone.[1]', '*.bias'])
    assert frozen == [model.backbone[1]]
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {'backbone.0.weight', 'head.weight'}
    assert freeze(Net(), 'backbone')[0].__class__ is nn.Sequential
    with pytest.raises(ConfigError, match="frozen_modules: 'bakcbone' fits no module .*did you mean 'backbone'"):
        freeze(model, 'bakcbone')
    with pytest.raises(ConfigError, match='no weight is left'):
        freeze(model, '*')


@pytest.mark.parametrize('cfg', [dict(type='SGD', lr=0.1, momentum=0.9, weight_decay=1e-2), dict(type='AdamW', lr=0.1)])
def test_steps_are_fused_unless_the_config_says_otherwise(cfg):
    models = [torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 1)) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    fused, plain = (build_optimizer(model, dict(cfg, **more)) for model, more in zip(models, ({}, dict(foreach=False))))
    assert fused.defaults['fused'] is True and not plain.defaults['fused']
    x = torch.randn(8, 3)
    for _ in range(3):
        for model, optimizer in zip(models, (fused, plain)):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    for one, other in zip(models[0].parameters(), models[1].parameters()):
        torch.testing.assert_close(one, other)
    half = torch.nn.Linear(2, 2).half()
    assert not build_optimizer(half, cfg).defaults['fused'] and not build_optimizer(models[0], dict(
        type='Rprop', lr=0.1)).defaults.get('fused')


@pytest.mark.parametrize('kind', ['layer_wise', 'stage_wise'])
def test_rates_fall_from_the_head_to_the_stem(kind):
    """The rates of ConvNeXt's layers: lr * decay_rate ** (layers above); vectors do not decay."""
    body = nn.Module()
    body.downsample_layers = nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(4))
    body.stages = nn.ModuleList(nn.ModuleList(nn.Conv2d(2, 2, 1) for _ in range(4)) for _ in range(4))
    model = nn.Module()
    model.backbone, model.neck = body, nn.Conv2d(2, 2, 1)
    cfg = dict(type='AdamW', lr=1.0, weight_decay=0.05, constructor='LearningRateDecayOptimizerConstructor',
               paramwise_cfg=dict(decay_rate=0.5, decay_type=kind, num_layers=6))
    rate = {id(p): (group['lr'], group['weight_decay']) for group in build_optimizer(model, cfg).param_groups
            for p in group['params']}
    layers = dict(layer_wise=dict(stem=0, third=2, first=1, late=4, last=6, head=7),
                  stage_wise=dict(stem=0, third=0, first=1, late=3, last=4, head=7))[kind]
    parts = dict(stem=body.downsample_layers[0], third=body.downsample_layers[1], first=body.stages[0][1],
                 late=body.stages[2][3], last=body.stages[3][0], head=model.neck)
    for name, layer in layers.items():
        assert rate[id(parts[name].weight)] == (0.5 ** (7 - layer), 0.05)
        assert rate[id(parts[name].bias)] == (0.5 ** (7 - layer), 0.0)
    with pytest.raises(ConfigError, match="needs 'decay_rate'"):
        build_optimizer(model, dict(cfg, paramwise_cfg=dict(num_layers=6)))
    del body.stages
    with pytest.raises(ConfigError, match='knows the layers of ConvNeXt only'):
        build_optimizer(model, cfg)
