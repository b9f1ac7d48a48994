"""tools/model_converters/publish_model.py: only weights and their description, and a name that tells the content."""
import hashlib
import importlib.util
import json
import subprocess
import sys

import pytest
import safetensors
import torch

from boxdet.apis import init_detector
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.errors import CheckpointError

TOOL = 'tools/model_converters/publish_model.py'


@pytest.fixture
def publish(repo_root, capsys):
    spec = importlib.util.spec_from_file_location('publish_model', repo_root / TOOL)
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        tool.main([str(a) for a in arguments])
        return capsys.readouterr().out
    return call


@pytest.fixture
def trained(tiny_detector, tmp_path):
    """A checkpoint as a training leaves it."""
    state = load_checkpoint(tiny_detector.checkpoint)['state_dict']
    meta = dict(CLASSES=tiny_detector.classes, epoch=3, config='a = 1\n', hook_msgs=dict(best_ckpt='/home/me/best.pth'))
    more = dict(optimizer=dict(state={0: torch.ones(3)}), random=[dict(torch=torch.ones(2))], sampler=dict(consumed=3),
                loss_scaler=dict(scale=2.), online_state_dict=state)
    save_checkpoint(dict(meta=meta, state_dict=state, **more), tmp_path / 'latest.pth')
    return tmp_path / 'latest.pth'


def test_weights_and_their_description(publish, trained, tiny_detector, tmp_path):
    before = trained.read_bytes()
    out = publish(trained, tmp_path / 'new/model.pth')
    written, = (tmp_path / 'new').iterdir()
    assert written.name == f'model-{hashlib.sha256(written.read_bytes()).hexdigest()[:8]}.pth' and str(written) in out
    content = torch.load(written, weights_only=True)
    assert set(content) == {'meta', 'state_dict'} and trained.read_bytes() == before
    assert content['meta'] == dict(CLASSES=tiny_detector.classes, epoch=3, config='a = 1\n')
    state = load_checkpoint(trained)['state_dict']
    assert content['state_dict'].keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in content['state_dict'].items())
    assert tiny_detector.classes == init_detector(tiny_detector.config, written, device='cpu').CLASSES


@pytest.mark.parametrize('arguments', [('model.safetensors',), ('model', '--format', 'safetensors')])
def test_safetensors_with_classes_and_config(publish, trained, tiny_detector, tmp_path, arguments):
    """The library reads it, its metadata say what it is of, and the same content has the same name."""
    for _ in range(2):
        publish(trained, tmp_path / 'new' / arguments[0], *arguments[1:])
    written, = (tmp_path / 'new').iterdir()
    assert written.name == f'model-{hashlib.sha256(written.read_bytes()).hexdigest()[:8]}.safetensors'
    with safetensors.safe_open(written, 'pt') as file:
        metadata = file.metadata()
    assert metadata['format'] == 'pt' and json.loads(metadata['config']) == 'a = 1\n'
    assert json.loads(metadata['CLASSES']) == ['disc', 'bar', 'cross']
    state, found = load_checkpoint(trained)['state_dict'], load_checkpoint(written)
    assert found['state_dict'].keys() == state.keys() and found['meta']['epoch'] == 3
    assert all(torch.equal(value, state[name]) for name, value in found['state_dict'].items())
    assert tiny_detector.classes == init_detector(tiny_detector.config, written, device='cpu').CLASSES


def test_the_source_may_be_the_target(publish, trained):
    publish(trained, trained)
    publish(trained, trained)  # the same content, the same name
    names = sorted(p.name for p in trained.parent.iterdir())
    assert len(names) == 2 and names[1] == 'latest.pth' and names[0].startswith('latest-')


def test_what_cannot_be_published(publish, trained, tmp_path, repo_root):
    with pytest.raises(CheckpointError, match='its ending says another format than --format pth'):
        publish(trained, tmp_path / 'a.safetensors', '--format', 'pth')
    with pytest.raises(CheckpointError, match='is a folder: name the file'):
        publish(trained, tmp_path)
    done = subprocess.run([sys.executable, str(repo_root / TOOL), 'missing.pth', 'a.pth'], capture_output=True,
                          text=True,
                          cwd=tmp_path)
    assert done.returncode == 2 and done.stderr.startswith('error: ') and 'missing.pth' in done.stderr
    assert len(done.stderr.splitlines()) == 1
