"""The init_cfg dialect, on small modules whose values are then looked at."""
import logging
import math
import re
import subprocess
import sys

import pytest
import torch
import torchvision
from torch import nn

from boxdet.errors import CheckpointError, ConfigError
from boxdet.models.initialization import (
    bias_from_prob,
    init_cfg_keywords,
    initialize,
    load_backbone_weights,
)


class Net(nn.Module):
    def __init__(self, init_cfg=None):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(64, 128, 3), nn.BatchNorm2d(128)
        self.fc, self.reg = nn.Linear(128, 64), nn.Linear(128, 4)
        self.init_cfg = init_cfg

    def init_weights(self):
        initialize(self)


@pytest.fixture
def net():
    torch.manual_seed(0)
    return Net()


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """``saved(content)`` writes the checkpoint 'x.pth'."""
    monkeypatch.chdir(tmp_path)
    return lambda content: torch.save(content, 'x.pth')


def test_constant(net):
    initialize(net, dict(type='Constant', val=2, bias=3, layer='Linear'))
    assert (net.fc.weight == 2).all() and (net.reg.bias == 3).all() and net.conv.weight.std() > 0


def test_bias_from_probability(net):
    initialize(net, dict(type='Normal', std=0.01, bias_prob=0.01, layer=['Linear']))
    assert net.fc.bias[0].item() == pytest.approx(-math.log(99)) == bias_from_prob(0.01)


def test_normal_uniform_and_truncated(net):
    initialize(net, dict(type='Normal', mean=1, std=0.1, layer='Conv2d'))
    assert net.conv.weight.mean().item() == pytest.approx(1, abs=0.002)
    assert net.conv.weight.std().item() == pytest.approx(0.1, rel=0.02) and not net.conv.bias.any()
    initialize(net, dict(type='Uniform', a=-3, b=-1, layer='Conv2d'))
    assert -3 <= net.conv.weight.min() < -2.99 and -1.01 < net.conv.weight.max() <= -1
    initialize(net, dict(type='TruncNormal', std=1, a=-0.5, b=0.5, layer='Conv2d'))
    assert 0.49 < net.conv.weight.abs().max() <= 0.5


@pytest.mark.parametrize('cfg, std', [
    (dict(type='Xavier'), math.sqrt(2 / (192 * 9))),
    (dict(type='Xavier', gain=2), 2 * math.sqrt(2 / (192 * 9))),
    (dict(type='Kaiming'), math.sqrt(2 / (128 * 9))),
    (dict(type='Kaiming', mode='fan_in'), math.sqrt(2 / (64 * 9))),
    (dict(type='Kaiming', a=1, nonlinearity='leaky_relu'), math.sqrt(1 / (128 * 9)))])
@pytest.mark.parametrize('distribution', ['normal', 'uniform'])
def test_fans(net, cfg, std, distribution):
    initialize(net, dict(layer='Conv2d', distribution=distribution, **cfg))
    assert net.conv.weight.std().item() == pytest.approx(std, rel=0.02)
    assert (net.conv.weight.abs().max() < 2 * std) == (distribution == 'uniform')  # sqrt(3) std


def test_caffe2_xavier_is_uniform_with_variance_of_one_over_fan_in(net):
    initialize(net, dict(type='Caffe2Xavier', layer='Conv2d'))
    bound = math.sqrt(3 / (64 * 9))
    assert 0.99 * bound < net.conv.weight.abs().max() <= bound


def test_layers_are_found_by_their_base_class(net):
    initialize(net, dict(type='Constant', val=0.5, layer=['_BatchNorm', 'GroupNorm']))
    assert (net.norm.weight == 0.5).all()


def test_a_list_is_applied_in_order(net):
    initialize(net, [dict(type='Constant', val=1, layer=['Conv2d', 'Linear']),
                     dict(type='Constant', val=2, layer='Linear')])
    assert (net.conv.weight == 1).all() and (net.fc.weight == 2).all()


def test_overrides(net):
    initialize(net, dict(type='Constant', val=1, layer=['Conv2d', 'Linear'], override=[
        dict(type='Constant', name='reg', val=2, bias=3), dict(name='norm')]))
    assert (net.fc.weight == 1).all() and (net.reg.weight == 2).all() and (net.reg.bias == 3).all()
    assert (net.norm.weight == 1).all()


def test_override_alone_leaves_the_rest(net):
    before = net.fc.weight.clone()
    initialize(net, dict(type='Constant', val=5, override=dict(name='reg')))
    assert (net.reg.weight == 5).all() and torch.equal(net.fc.weight, before)


def test_configs_are_not_changed(net):
    cfg = dict(type='Constant', val=1, layer='Linear', override=dict(type='Constant', name='reg', val=2))
    initialize(net, cfg)
    assert cfg == dict(type='Constant', val=1, layer='Linear',
                       override=dict(type='Constant', name='reg', val=2))


@pytest.mark.parametrize('cfg, message', [
    (dict(type='Kaimin', layer='Conv2d'), "'Kaimin'; did you mean 'Kaiming'"),
    (dict(layer='Conv2d'), "needs a 'type'"),
    ('Normal', 'a dict or a list'),
    (dict(type='Normal', sdt=0.1, layer='Conv2d'), "Normal takes no 'sdt'; did you mean 'std'"),
    (dict(type='Normal', std=0.1), "needs 'layer'"),
    (dict(type='Constant', layer='Conv2d'), "needs 'val'"),
    (dict(type='Xavier', distribution='gauss', layer='Conv2d'), "distribution is 'gauss'"),
    (dict(type='Constant', val=1, override=dict(name='rag')), "'rag'.*did you mean 'reg'"),
    (dict(type='Constant', val=1, override=dict(type='Constant', val=1)), 'override.name is None'),
    (dict(type='Constant', val=1, override=dict(name='reg', val=2)), "needs a 'type' of its own"),
    (dict(type='Pretrained'), "needs 'checkpoint'"),
    (dict(type='Pretrained', checkpoints='x'), "did you mean 'checkpoint'")])
def test_wrong_configs_are_named(net, cfg, message):
    with pytest.raises(ConfigError, match=message):
        initialize(net, cfg)


def test_keywords_of_every_type():
    keywords = init_cfg_keywords()
    assert keywords['Pretrained'] == ('checkpoint', 'prefix', 'map_location')
    assert keywords['TruncNormal'] == ('mean', 'std', 'a', 'b', 'bias', 'bias_prob')
    assert set(keywords) == {'Constant', 'Normal', 'TruncNormal', 'Uniform', 'Xavier', 'Kaiming',
                             'Caffe2Xavier', 'Pretrained'}


def test_parts_initialise_themselves_after_the_whole():
    class Own(nn.Module):  # a user's module with init_weights alone
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

        def init_weights(self):
            nn.init.constant_(self.fc.weight, 7)

    class Declared(nn.Module):
        init_cfg = dict(type='Constant', val=8, layer='Linear')

        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(2, 2)

    whole = Net(dict(type='Constant', val=1, layer=['Linear', 'Conv2d']))
    whole.parts = nn.ModuleList([nn.Sequential(Own()), Declared()])
    whole.init_weights()
    assert (whole.fc.weight == 1).all() and (whole.parts[0][0].fc.weight == 7).all()
    assert (whole.parts[1].fc.weight == 8).all()


def test_same_seed_same_weights():
    weights = []
    for _ in range(2):
        module = Net(dict(type='Xavier', layer=['Conv2d', 'Linear']))
        torch.manual_seed(5)
        module.init_weights()
        weights.append(module.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(*(w.values() for w in weights)))


# --- pretrained ---

_SCRIPT = '''
import sys
from boxdet.models import build_backbone, build_detector
assert not [name for name in sys.modules if name.startswith(('boxdet.apis', 'boxdet.engine', 'boxdet.datasets'))]
init_cfg = dict(type='Pretrained', checkpoint='x.pth')
backbone = build_backbone(dict(type='ResNet', depth=18, init_cfg=init_cfg))
backbone.init_weights()
print(float(backbone.conv1.weight.mean()))
'''


def test_a_script_that_imports_nothing_else(saved, repo_root):
    state = torchvision.models.resnet18().state_dict()
    saved({name: torch.full_like(value, 2) for name, value in state.items()})
    done = subprocess.run([sys.executable, '-c', _SCRIPT], capture_output=True, text=True)
    assert done.stdout == '2.0\n', done.stderr


def test_pretrained_without_a_file(net, saved):
    with pytest.raises(CheckpointError, match='no checkpoint file x.pth'):
        initialize(net, dict(type='Pretrained', checkpoint='x.pth'))


@pytest.mark.parametrize('prefix', ['backbone.', 'module.encoder.net.', ''])
@pytest.mark.parametrize('given', [{}, dict(prefix='fc')])
def test_weights_that_load_little_of_their_part_are_an_error(net, saved, prefix, given):
    """The names of some entries may fit by chance; what counts is the share of the module that is filled."""
    before = {k: v.clone() for k, v in net.state_dict().items()}
    state = {prefix + k: torch.ones_like(v) for k, v in before.items()}
    chance = {'fc.weight': torch.zeros(64, 128), 'fc.fc.weight': torch.zeros(64, 128)}
    saved({**(state if prefix else dict(list(state.items())[:2])), **chance})
    with pytest.raises(CheckpointError, match=r'x\.pth: only [13] of the 10 entries of Net are in it') as caught:
        initialize(net, dict(type='Pretrained', checkpoint='x.pth', **given))
    assert all(torch.equal(value, before[k]) for k, value in net.state_dict().items())
    if not prefix:
        assert 'of another architecture' in str(caught.value)
    elif not given:  # the advice, followed
        advised = re.search(r'write init_cfg=(dict\(.*\))', str(caught.value)).group(1)
        initialize(net, eval(advised))
        assert (net.conv.weight == 1).all()


def test_report_says_what_loaded_and_what_did_not(net, saved, caplog):
    state = {k: torch.ones_like(v) for k, v in net.state_dict().items()
             if k != 'fc.bias' and 'num_batches' not in k}
    state['reg.weight'] = torch.ones(8, 128)
    saved({'state_dict': {**state, 'other.weight': torch.ones(1)}, 'meta': {}})
    kept = net.reg.weight.clone()
    with caplog.at_level(logging.INFO, 'boxdet'):
        report = load_backbone_weights(net, 'x.pth')
    assert report.missing == ['fc.bias'] and report.unexpected == ['other.weight']
    assert report.mismatched == ['reg.weight: checkpoint (8, 128), model (4, 128)']
    assert set(report.loaded) == set(state) - {'reg.weight'}
    assert (net.conv.weight == 1).all() and torch.equal(net.reg.weight, kept)
    assert caplog.records[0].levelname == 'WARNING' and 'reg.weight: checkpoint (8, 128)' in caplog.text


@pytest.mark.parametrize('extra, level', [('fc.1.weight', 'WARNING'), ('other.weight', 'INFO')])
def test_weights_of_a_deeper_model_are_told(net, saved, caplog, extra, level):
    saved({**net.state_dict(), extra: torch.ones(1)})
    with caplog.at_level(logging.INFO, 'boxdet'):
        load_backbone_weights(net, 'x.pth')
    assert [record.levelname for record in caplog.records] == [level]


def test_prefix_and_map_location(net, saved):
    state = {'backbone.' + k: torch.zeros_like(v) for k, v in net.state_dict().items()}
    saved({**state, 'fc.bias': torch.ones(64)})
    initialize(net, dict(type='Pretrained', checkpoint='x.pth', prefix='backbone', map_location='cpu'))
    assert not net.conv.weight.any() and not net.fc.bias.any()
    with pytest.raises(CheckpointError, match="no entry begins with the prefix 'backbon'; did you mean 'backbone'"):
        load_backbone_weights(net, 'x.pth', prefix='backbon')
    with pytest.raises(CheckpointError, match='no entry fits Linear; it holds backbone.conv.weight'):
        load_backbone_weights(net.reg, 'x.pth')


def test_pretrained_parts_are_left_alone(saved):
    whole = Net(dict(type='Pretrained', checkpoint='x.pth'))
    whole.part = Net(dict(type='Constant', val=8, layer='Linear'))
    saved({k: torch.zeros_like(v) for k, v in whole.state_dict().items()})
    whole.init_weights()
    assert not whole.part.fc.weight.any()


def test_pretrained_override_of_one_part(net, saved):
    saved({'weight': torch.full((4, 128), 9.)})
    initialize(net, dict(type='Constant', val=1, layer='Linear',
                         override=dict(type='Pretrained', name='reg', checkpoint='x.pth')))
    assert (net.reg.weight == 9).all() and (net.fc.weight == 1).all()


def test_a_checkpoint_alone_is_pretrained(tmp_path):
    """As mmdetection 2.x's RF-Next configs give it."""
    part = nn.Linear(2, 2)
    torch.save({'weight': torch.full((2, 2), 3.0), 'bias': torch.zeros(2)}, tmp_path / 'x.pth')
    part.init_cfg = dict(checkpoint=str(tmp_path / 'x.pth'))
    initialize(part)
    assert (part.weight == 3).all()
