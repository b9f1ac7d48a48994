"""No code of a file runs: malicious checkpoints and pickles are refused, honest old ones are read."""
import collections
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint
from boxdet.checkpoints.unpickling import read_pickle
from boxdet.errors import CheckpointError


class Calls:
    """Pickles as a call of ``function(*args)``."""

    def __init__(self, function, *args):
        self.call = function, args

    def __reduce__(self):
        return self.call


def malicious(marker):
    import builtins
    import os
    import subprocess
    return dict(
        system=Calls(os.system, f'touch {marker}'),
        evaluate=Calls(builtins.eval, f"open({str(marker)!r}, 'w')"),
        execute=Calls(builtins.exec, f"open({str(marker)!r}, 'w')"),
        opened=Calls(builtins.open, str(marker), 'w'),
        popen=Calls(subprocess.Popen, ['touch', str(marker)]),
        attribute=Calls(getattr, 'text', 'format'),
        imported=Calls(__import__, 'os'),
        nested_load=Calls(torch.load, str(marker)),
        objects=np.array([Calls(os.system, f'touch {marker}')], dtype=object),
        plain_objects=np.array([1, 'a', None], dtype=object),
        dates=np.array(['2020-01-01'], dtype='datetime64[D]'),
        records=np.zeros(2, dtype=[('a', 'f4')]))


@pytest.mark.parametrize('name', sorted(malicious('x')))
@pytest.mark.parametrize('legacy', [False, True])
def test_malicious_checkpoints_are_refused(tmp_path, name, legacy):
    marker = tmp_path / 'pwned'
    content = dict(state_dict=dict(w=torch.ones(1)), extra=malicious(marker)[name])
    torch.save(content, tmp_path / 'x.pth', _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r'x\.pth is (refused|damaged)'):
        load_checkpoint(tmp_path / 'x.pth')
    assert not marker.exists()


@pytest.mark.parametrize('name', sorted(malicious('x')))
@pytest.mark.parametrize('protocol', [2, 4])
def test_malicious_pickles_are_refused(tmp_path, name, protocol):
    marker = tmp_path / 'pwned'
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(dict(model=malicious(marker)[name]), protocol))
    with pytest.raises(CheckpointError, match=r'x\.pkl is refused'):
        read_pickle(tmp_path / 'x.pkl')
    assert not marker.exists()


def test_a_pickled_storage_cannot_hide_code(tmp_path):
    # torch's own pickles of tensors nest a whole torch.save file in bytes.
    import io
    import os
    buffer = io.BytesIO()
    torch.save(Calls(os.system, f"touch {tmp_path / 'pwned'}"), buffer)
    hidden = Calls(torch.storage._load_from_bytes, buffer.getvalue())
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(hidden))
    with pytest.raises(CheckpointError, match='refused'):
        read_pickle(tmp_path / 'x.pkl')
    assert not (tmp_path / 'pwned').exists()


@pytest.mark.parametrize('inside', ['zip', 'pickle'])
def test_archives_in_archives_are_refused(tmp_path, inside):
    """A hand-made archive: its data.pkl is a whole malicious checkpoint again, or a plain malicious pickle."""
    marker = tmp_path / 'pwned'
    bad = Calls(os.system, f'touch {marker}')
    content = pickle.dumps(dict(state_dict=dict(w=1), extra=bad), 2)
    if inside == 'zip':
        torch.save(dict(state_dict={}, extra=bad), tmp_path / 'inner.pth')
        content = (tmp_path / 'inner.pth').read_bytes()
    with zipfile.ZipFile(tmp_path / 'x.pth', 'w') as archive:
        archive.writestr('x/data.pkl', content)
        archive.writestr('x/version', '3')
        archive.writestr('x/byteorder', 'little')
    with pytest.raises(CheckpointError, match=r'x\.pth is (refused|damaged)'):
        load_checkpoint(tmp_path / 'x.pth')
    assert not marker.exists()


@pytest.mark.filterwarnings('ignore')  # torch's, that its format is old
def test_torchscript_is_refused(tmp_path):
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), tmp_path / 'x.pth')
    with pytest.raises(CheckpointError, match=r'x\.pth is (refused|damaged)'):
        load_checkpoint(tmp_path / 'x.pth')


@pytest.mark.parametrize('protocol', [2, 4])
def test_detectron_pickles_are_read(tmp_path, protocol):
    content = dict(blobs=collections.OrderedDict(conv1_w=np.arange(6, dtype=np.float32).reshape(2, 3)), cfg='MODEL: x')
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, protocol))
    loaded = read_pickle(tmp_path / 'x.pkl')
    np.testing.assert_array_equal(loaded['blobs']['conv1_w'], content['blobs']['conv1_w'])
    assert loaded['cfg'] == 'MODEL: x'


def test_detectron2_pickle_is_a_checkpoint(tmp_path):
    content = {'model': {'backbone.w': np.ones((2, 2), np.float32)}, '__author__': 'Detectron2 Model Zoo',
               'matching_heuristics': True}
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content))
    assert list(load_checkpoint(tmp_path / 'x.pkl')['state_dict']) == ['backbone.w']


def test_results_of_2x_and_tensors_are_read(tmp_path):
    results = [[np.zeros((0, 5), np.float32), np.ones((1, 5), np.float32)], torch.arange(3)]
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(results))
    loaded = read_pickle(tmp_path / 'x.pkl')
    assert loaded[0][0].shape == (0, 5) and torch.equal(loaded[1], torch.arange(3))


def test_missing_pickle(tmp_path):
    with pytest.raises(CheckpointError, match='cannot read .*No such file'):
        read_pickle(tmp_path / 'none.pkl')
