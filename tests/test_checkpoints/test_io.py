"""Checkpoints: what is read, what is refused, and that a write is all or nothing."""
import argparse
import collections
import datetime
import errno
import os
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import nn

from boxdet.checkpoints import backbones, io
from boxdet.checkpoints.io import (
    find_checkpoint,
    is_readable,
    load_checkpoint,
    load_state,
    newest_checkpoint,
    save_checkpoint,
)
from boxdet.checkpoints.loading import classes_of, compare_classes, describe, load_weights, state_dict_of
from boxdet.errors import CheckpointError


def small():
    return dict(meta=dict(epoch=3, iter=30, CLASSES=('a', 'b')), state_dict=dict(w=torch.arange(4.)),
                optimizer=dict(state={0: dict(momentum_buffer=torch.ones(2))}, param_groups=[dict(lr=0.1, params=[0])]))


def test_saved_is_loaded(tmp_path):
    save_checkpoint(small(), tmp_path / 'a' / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'a' / 'x.pth')
    assert loaded['meta'] == dict(epoch=3, iter=30, CLASSES=('a', 'b'))
    assert torch.equal(loaded['state_dict']['w'], torch.arange(4.))
    assert torch.equal(loaded['optimizer']['state'][0]['momentum_buffer'], torch.ones(2))
    assert os.listdir(tmp_path / 'a') == ['x.pth']


def test_safetensors(tmp_path):
    path, other = tmp_path / 'x.safetensors', tmp_path / 'theirs.safetensors'
    meta = dict(CLASSES=('a', 'b'), epoch=np.int64(3), config='a = 1', PALETTE=[(1, 2, 3)])
    save_checkpoint(dict(meta=meta, state_dict={'module.w': torch.arange(4.)}), path)
    loaded = load_checkpoint(path)
    assert loaded['meta'] == dict(format='pt', CLASSES=['a', 'b'], epoch=3, config='a = 1', PALETTE=[[1, 2, 3]])
    assert torch.equal(loaded['state_dict']['w'], torch.arange(4.)) and classes_of(loaded) == ('a', 'b')
    assert load_checkpoint(path, 'meta')['state_dict']['w'].is_meta
    safetensors.torch.save_file({'w': torch.ones(2)}, other, dict(format='pt', note='no JSON'))
    assert load_checkpoint(other)['meta'] == dict(format='pt', note='no JSON')
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match="no place for 'optimizer'"):
        save_checkpoint(small(), path)
    with pytest.raises(CheckpointError, match='cannot write .*object has no JSON form'):
        save_checkpoint(dict(meta=dict(a=object()), state_dict=dict(w=torch.ones(1))), path)
    assert path.read_bytes() == before and sorted(os.listdir(tmp_path)) == ['theirs.safetensors', 'x.safetensors']
    path.write_bytes(before[:-1])
    with pytest.raises(CheckpointError, match='x.safetensors is damaged or no safetensors file: its tensors end at'):
        load_checkpoint(path)


@pytest.mark.parametrize('content', [
    dict(w=torch.ones(2)), dict(state_dict=dict(w=torch.ones(2))), dict(model=dict(w=torch.ones(2)), epoch=1),
    dict(state_dict={'module.w': torch.ones(2)}), dict(state_dict={'_orig_mod.w': torch.ones(2)}),
    dict(state_dict={'module._orig_mod.w': torch.ones(2)}), dict(blobs=dict(w=np.ones(2, np.float32)), cfg='A: 1')])
def test_state_is_found_in_every_layout(tmp_path, content):
    torch.save(content, tmp_path / 'x.pth')
    state = load_state(tmp_path / 'x.pth')
    assert list(state) == ['w'] and torch.equal(state['w'], torch.ones(2))


def test_numpy_values_of_2x_checkpoints_are_read(tmp_path):
    meta = dict(best_score=np.float64(0.375), count=np.int64(7), rows=np.arange(6, dtype=np.float32).reshape(2, 3),
                columns=np.asfortranarray(np.arange(6).reshape(2, 3)), swapped=np.arange(3, dtype='>i4'))
    torch.save(dict(meta=meta, state_dict=dict(w=torch.ones(1))), tmp_path / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'x.pth')['meta']
    assert loaded['best_score'] == 0.375 and loaded['count'] == 7
    np.testing.assert_array_equal(loaded['rows'], meta['rows'])
    np.testing.assert_array_equal(loaded['columns'], meta['columns'])
    np.testing.assert_array_equal(loaded['swapped'], meta['swapped'])


def test_mmengine_log_buffers_are_dropped_and_the_weights_kept(tmp_path):
    from mmengine.logging import HistoryBuffer
    hub = dict(log_scalars={'train/loss': HistoryBuffer([1., 2.], [1, 1])})
    torch.save(dict(meta={}, state_dict=dict(w=torch.ones(1)), message_hub=hub), tmp_path / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'x.pth')
    assert loaded['message_hub'] == dict(log_scalars={'train/loss': None})
    assert torch.equal(loaded['state_dict']['w'], torch.ones(1))


def test_the_allow_list_of_torch_is_left_as_it_was(tmp_path):
    before = set(torch.serialization.get_safe_globals())
    save_checkpoint(small(), tmp_path / 'x.pth')
    load_checkpoint(tmp_path / 'x.pth')
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize('cut', [0, 10, 400, -1])
def test_damaged_files_say_so(tmp_path, cut):
    save_checkpoint(small(), tmp_path / 'x.pth')
    whole = (tmp_path / 'x.pth').read_bytes()
    (tmp_path / 'x.pth').write_bytes(whole[:cut])
    with pytest.raises(CheckpointError, match=r'x\.pth is damaged') as caught:
        load_checkpoint(tmp_path / 'x.pth')
    assert '\n' not in str(caught.value)


def test_other_files_say_what_they_are(tmp_path):
    torch.save([1, 2], tmp_path / 'list.pth')
    with pytest.raises(CheckpointError, match='holds a list'):
        load_checkpoint(tmp_path / 'list.pth')
    (tmp_path / 'page.pth').write_text('<html>404</html>')
    with pytest.raises(CheckpointError, match='damaged or no checkpoint'):
        load_checkpoint(tmp_path / 'page.pth')


def test_prefixes_of_compiled_parts_are_taken_away():
    state = {'module.backbone._orig_mod.conv1.weight': torch.ones(1), 'neck.module.weight': torch.ones(1)}
    assert list(state_dict_of(state)) == ['backbone.conv1.weight', 'neck.module.weight']


@pytest.mark.parametrize('content, message', [
    (dict(w=torch.ones(1), note='text'), r'x\.pth: note is of type str, and weights are arrays'),
    (dict(model=dict(w=dict(a=1))), r'x\.pth: w is of type dict'),
    ({0: torch.ones(1)}, r'x\.pth holds no weights: 0 is not the name')])
def test_what_holds_no_weights_says_so(tmp_path, content, message):
    torch.save(content, tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=message):
        load_state(tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=message):
        load_weights(nn.Linear(1, 1), load_checkpoint(tmp_path / 'x.pth'), 'x.pth')


# --- addresses ---

def test_missing_file_names_a_near_one(tmp_path):
    save_checkpoint(small(), tmp_path / 'epoch_12.pth')
    with pytest.raises(CheckpointError, match=r"no checkpoint file .*epoch_21\.pth; did you mean 'epoch_12\.pth'"):
        find_checkpoint(tmp_path / 'epoch_21.pth')
    with pytest.raises(CheckpointError, match='is a folder'):
        find_checkpoint(tmp_path)
    (tmp_path / 'latest.pth').symlink_to('epoch_24.pth')
    with pytest.raises(CheckpointError, match=r'latest\.pth is a link to epoch_24\.pth, which is not there'):
        find_checkpoint(tmp_path / 'latest.pth')


@pytest.mark.parametrize('address, message', [
    ('torchvision://resnet5', "did you mean 'resnet50'"),
    ('open-mmlab://detectron2/resnet50_cafe', "did you mean 'detectron2/resnet50_caffe'"),
    ('mmcls://resnet5', "mmcls://resnet5: no model of that name is known; did you mean 'resnet"),
    ('s3://bucket/x.pth', "'s3://' is not understood")])
def test_unknown_addresses(address, message):
    with pytest.raises(CheckpointError, match=message):
        find_checkpoint(address)


@pytest.mark.parametrize('address, name', [
    ('torchvision://resnet50', 'resnet50-0676ba61.pth'),
    ('open-mmlab://detectron2/resnet50_caffe', 'resnet50_msra-5891d200.pth'),
    ('open-mmlab://regnetx_3.2gf', 'regnetx_3.2gf-c2599b0f.pth'),
    ('mmcls://resnet50', 'resnet50_batch256_imagenet_20200708-cfb998bf.pth')])
def test_names_lead_to_addresses(tmp_path, monkeypatch, address, name):
    (tmp_path / 'checkpoints').mkdir()
    save_checkpoint(small(), tmp_path / 'checkpoints' / name)
    monkeypatch.setattr(torch.hub, 'get_dir', lambda: str(tmp_path))
    assert find_checkpoint(address) == tmp_path / 'checkpoints' / name
    assert torch.equal(load_state(address)['w'], torch.arange(4.))


def test_every_name_in_the_configs_leads_somewhere(repo_root):
    texts = ''.join(path.read_text() for path in (repo_root / 'configs').rglob('*.py'))
    named = set(re.findall(r"['\"]([\w-]+)://([^'\"]+)['\"]", texts))
    assert len(named) > 20 and {scheme for scheme, _ in named} <= {*backbones.SCHEMES, 'https', 'http', 'zoo'}
    for scheme, name in named:
        if scheme in backbones.SCHEMES:
            assert backbones.url(scheme, name).startswith('https://')


def test_a_file_address(tmp_path):
    save_checkpoint(small(), tmp_path / 'a b.pth')
    assert torch.equal(load_state((tmp_path / 'a b.pth').as_uri())['w'], torch.arange(4.))


# --- into a model ---

def test_load_report(tmp_path):
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    state = {'module.0.weight': torch.ones(4, 3, 1, 1), '0.bias': torch.ones(5), '1.weigth': torch.ones(4)}
    report = load_weights(model, dict(state_dict=state), 'x.pth')
    assert report.loaded == ['0.weight'] and torch.equal(model[0].weight, torch.ones(4, 3, 1, 1))
    assert report.missing == ['1.weight', '1.bias', '1.running_mean', '1.running_var']
    assert report.unexpected == ['1.weigth']
    assert report.mismatched == ['0.bias: checkpoint (5,), model (4,)']
    text = describe(report)
    assert "unused: 1.weigth; did you mean '1.weight'?" in text
    assert text.startswith('x.pth: 1 entries loaded, 4 missing, 1 unused, 1 of another shape')


def test_another_architecture_is_an_error():
    with pytest.raises(CheckpointError, match=r'x\.pth is a checkpoint of another architecture: none of its 1 entries'):
        load_weights(nn.Linear(2, 2), dict(state_dict={'backbone.conv1.weight': torch.ones(1)}), 'x.pth')


@pytest.mark.parametrize('meta, expected', [
    (dict(CLASSES=('a', 'b')), ''), ({}, ''),
    (dict(CLASSES=('b', 'a')), 'same 2 classes in another order'),
    (dict(CLASSES=('a', 'c', 'd')), 'trained on 3 classes, the config names 2; only in the checkpoint: c, d; only in '
                                    'the config: b'),
    (dict(dataset_meta=dict(classes=['a', 'z'])), 'only in the checkpoint: z')])
def test_classes_are_compared(meta, expected):
    note = compare_classes(dict(meta=meta), ('a', 'b'), 'x.pth')
    assert expected in note and bool(note) == bool(expected)


# --- all or nothing ---

_FILL_DISK = '''
import resource, signal, sys, torch
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
from boxdet.checkpoints.io import save_checkpoint
from boxdet.errors import CheckpointError
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))  # the disk takes no more than this
try:
    save_checkpoint(dict(state_dict=dict(w=torch.ones(500_000))), sys.argv[1])
except CheckpointError as error:
    print(error)
    sys.exit(2)
'''


def test_full_disk_leaves_the_old_checkpoint(tmp_path, repo_root):
    path = tmp_path / 'x.pth'
    save_checkpoint(small(), path)
    before = path.read_bytes()
    done = subprocess.run([sys.executable, '-c', _FILL_DISK, str(path)], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': str(repo_root)})
    assert done.returncode == 2, done.stderr
    assert done.stdout.startswith(f'cannot write {path}: File too large') and done.stdout.count('\n') == 1
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['x.pth']


def test_no_space_at_the_sync_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / 'x.pth'
    save_checkpoint(small(), path)
    before = path.read_bytes()

    def no_space(_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(os, 'fsync', no_space)
    with pytest.raises(CheckpointError, match=r'x\.pth: No space left on device; an older file of that name'):
        save_checkpoint(small(), path)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ['x.pth']


def test_a_short_write_is_noticed(tmp_path, monkeypatch):
    real = torch.save

    def short(content, file):
        real(content, file)
        file.truncate(file.tell() // 2)
    monkeypatch.setattr(io.torch, 'save', short)
    with pytest.raises(CheckpointError, match='cannot write .*x.pth: '):
        save_checkpoint(small(), tmp_path / 'x.pth')
    assert os.listdir(tmp_path) == []


def test_newest_readable_checkpoint(tmp_path):
    assert newest_checkpoint(tmp_path) is None
    for epoch in (2, 9, 10):
        save_checkpoint(small(), tmp_path / f'epoch_{epoch}.pth')
        os.utime(tmp_path / f'epoch_{epoch}.pth', (epoch, epoch))
    save_checkpoint(small(), tmp_path / 'best_bbox_mAP_epoch_2.pth')
    assert newest_checkpoint(tmp_path).name == 'epoch_10.pth'
    damage = bytearray((tmp_path / 'epoch_10.pth').read_bytes())
    # Inside the tensor's bytes: the archive's directory is whole, the entry's checksum no longer fits.
    damage[damage.index(torch.arange(4.).numpy().tobytes()) + 6] ^= 255
    (tmp_path / 'epoch_10.pth').write_bytes(damage)
    warnings = []
    os.utime(tmp_path / 'epoch_10.pth', (10, 10))
    assert not is_readable(tmp_path / 'epoch_10.pth')
    assert newest_checkpoint(tmp_path, warnings.append).name == 'epoch_9.pth'
    assert len(warnings) == 1 and 'epoch_10.pth is damaged' in warnings[0]


def two_parts(depth, classes=3):
    model = torch.nn.Module()
    model.backbone = torch.nn.Sequential(*(torch.nn.Linear(4, 4) for _ in range(depth)))
    model.head = torch.nn.Linear(4, classes)
    return model


@pytest.mark.parametrize('given, wanted', [(2, 4), (4, 2)])
def test_a_backbone_of_another_depth_is_another_architecture(given, wanted):
    """ResNet-101 weights in a ResNet-50 fill every entry, and still mean nothing."""
    message = f'a.pth is a checkpoint of another architecture: its backbone has {2 * given} '
    with pytest.raises(CheckpointError, match=message):
        load_weights(two_parts(wanted), dict(state_dict=two_parts(given).state_dict()), 'a.pth')


def test_other_classes_or_a_few_more_layers_are_not():
    report = load_weights(two_parts(4, classes=5), dict(state_dict=two_parts(4).state_dict()), 'a.pth')
    assert sorted(str(name).split(':')[0] for name in report.mismatched) == ['head.bias', 'head.weight']
    assert len(load_weights(two_parts(4), dict(state_dict=two_parts(3).state_dict()), 'a.pth').missing) == 2


def test_weights_of_a_backbone_alone_find_its_place_in_a_detector():
    """load_from with ImageNet's weights; of C4's stages the last one is in the head."""
    def module(**parts):
        made = nn.Module()
        for name, part in parts.items():
            made.add_module(name, part)
        return made

    weights = {f'layer{i}.weight': torch.full((2, 2), float(i)) for i in (3, 4)} | {'fc.weight': torch.ones(9, 2)}
    model = module(backbone=module(layer3=nn.Linear(2, 2, bias=False)),
                   roi_head=module(shared_head=module(layer4=nn.Linear(2, 2, bias=False)), fc=nn.Linear(2, 2)))
    report = load_weights(model, weights)
    assert (model.backbone.layer3.weight == 3).all() and (model.roi_head.shared_head.layer4.weight == 4).all()
    assert report.unexpected == ['fc.weight'] and report.missing == ['roi_head.fc.weight', 'roi_head.fc.bias']


def test_arguments_of_a_reference_training_are_plain_data(tmp_path):
    """What torchvision's references, DETR and others keep beside the weights."""
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    scheduler = torch.optim.lr_scheduler.MultiStepLR(optimizer, [16, 22])
    args = argparse.Namespace(lr=0.02, output=pathlib.Path('a') / 'b', when=datetime.datetime(2020, 1, 2),
                              more=collections.defaultdict(list, a=[np.float64(1)]),
                              inner=argparse.Namespace(x=(1, 2)))
    torch.save(dict(model=model.state_dict(), optimizer=optimizer.state_dict(), lr_scheduler=scheduler.state_dict(),
                    epoch=3, args=args), tmp_path / 'x.pth')
    loaded = load_checkpoint(tmp_path / 'x.pth')
    assert torch.equal(loaded['state_dict']['weight'], model.weight)
    found = loaded['args']
    assert (found.lr, found.output, found.when) == (0.02, 'a/b', datetime.datetime(2020, 1, 2))
    assert found.more == dict(a=[1.]) and type(found.more) is dict and found.inner.x == (1, 2)


def test_a_namespace_holds_plain_data_only(tmp_path):
    class Calls:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'pwned'}",)
    torch.save(dict(model={}, args=argparse.Namespace(x=Calls())), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth is refused: it asks to run posix.system'):
        load_checkpoint(tmp_path / 'x.pth')
    assert not (tmp_path / 'pwned').exists()
