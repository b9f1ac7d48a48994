"""No code of a file runs: malicious checkpoints and pickles are refused, honest old ones are read."""
import argparse
import codecs
import collections
import contextlib
import datetime
import os
import pathlib
import pickle
import zipfile

import numpy as np
import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint
from boxdet.errors import CheckpointError, DataError
from boxdet.files import pickles
from boxdet.files.pickles import CHECKPOINT, DATA


def read_pickle(path, allowed=CHECKPOINT, error=CheckpointError):
    return pickles.read_pickle(path, allowed, error)


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
        mapped=Calls(__import__('functools').reduce, os.path.join, ['a', 'b']),
        path_of=Calls(pathlib.Path.cwd),
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


def test_text_is_encoded_as_bytes_only(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(Calls(codecs.encode, 'text', 'rot13')))
    with pytest.raises(CheckpointError, match="with the encoding 'rot13' are not allowed"):
        read_pickle(tmp_path / 'x.pkl')


# --- what mmcv 1.x and mmengine wrote ---

def middle_format():
    boxes = np.array([[1, 2, 30, 40]], np.float32)
    return [dict(filename='ä.jpg', width=99, height=np.int64(50), ann=dict(
        bboxes=boxes, bboxes_ignore=np.zeros((0, 4), np.float32), labels=np.array([0]), flag=np.array([True]),
        names=np.array(['a', 'bc']), raw=b'\x00\xff', empty=b'', kinds={1, 2}))] * 2


@pytest.mark.parametrize('protocol', range(6))
def test_data_of_every_protocol(tmp_path, protocol):
    """mmcv.dump writes protocol 2, whose bytes are calls and whose names are Python 2's."""
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(middle_format(), protocol))
    found, expected = read_pickle(tmp_path / 'x.pkl', DATA, DataError), middle_format()
    assert len(found) == 2 and found[0] is found[1]  # named twice, held once
    assert found[0]['filename'] == 'ä.jpg' and found[0]['height'] == 50
    for name, value in expected[0]['ann'].items():
        assert type(found[0]['ann'][name]) is type(value), name
        assert np.array_equal(found[0]['ann'][name], value), name
        assert getattr(found[0]['ann'][name], 'dtype', None) == getattr(value, 'dtype', None), name


@pytest.mark.parametrize('core', ['core', '_core'])
def test_numpy_1_and_2(tmp_path, core):
    raw = pickle.dumps([np.arange(3.), np.float32(2)], 2).replace(b'numpy._core', b'numpy.' + core.encode())
    assert b'numpy.' + core.encode() + b'.multiarray' in raw
    (tmp_path / 'x.pkl').write_bytes(raw)
    found = read_pickle(tmp_path / 'x.pkl', DATA, DataError)
    assert found[0].tolist() == [0, 1, 2] and found[1] == 2


def test_arrays_of_objects_are_data(tmp_path):
    """Polygons of different lengths; in a checkpoint nothing of the kind is asked for."""
    ragged = np.array([np.arange(6.), np.arange(8.)], object)
    single = np.empty((1, 1), object)
    single[0, 0] = [np.arange(2), 'text']
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps([ragged, single]))
    found = read_pickle(tmp_path / 'x.pkl', DATA, DataError)
    assert [part.tolist() for part in found[0]] == [part.tolist() for part in ragged]
    assert found[1].shape == (1, 1) and found[1][0, 0][0].tolist() == [0, 1] and found[1][0, 0][1] == 'text'
    with pytest.raises(CheckpointError, match="numpy data of type 'O8' is not allowed"):
        read_pickle(tmp_path / 'x.pkl')


def test_data_holds_no_tensors(tmp_path):
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(torch.ones(2)))
    with pytest.raises(DataError, match=r'x\.pkl is refused: it asks for torch\.'):
        read_pickle(tmp_path / 'x.pkl', DATA, DataError)


def test_configs_and_namespaces(tmp_path):
    from mmengine.config import ConfigDict
    content = dict(cfg=ConfigDict(a=dict(b=[1, dict(c=2)])), args=argparse.Namespace(lr=.1, rows=np.arange(2)),
                   many=collections.defaultdict(list, a=[np.float64(1)]), counts=collections.Counter('aab'),
                   path=pathlib.PurePosixPath('/a/b'), when=datetime.date(2020, 1, 2))
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(content, 2))
    found = read_pickle(tmp_path / 'x.pkl')
    assert found['cfg'] == dict(a=dict(b=[1, dict(c=2)])) and type(found['cfg']['a']) is dict
    assert found['args'].lr == .1 and found['args'].rows.tolist() == [0, 1]
    assert found['many'] == dict(a=[1.]) and type(found['many']) is dict and found['counts'] == dict(a=2, b=1)
    assert found['path'] == '/a/b' and found['when'] == datetime.date(2020, 1, 2)


def test_lists_that_hold_themselves(tmp_path):
    loop = [1]
    loop.append(loop)
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps(loop))
    found = read_pickle(tmp_path / 'x.pkl')
    assert found[0] == 1 and found[1] is found


@pytest.mark.parametrize('raw', [
    b'ccollections\nCounter\n(N}S"most_common"\nI5\nstb.',
    b'ctorch._utils\n_rebuild_tensor_v2\n(N}S"__doc__"\nI5\nstb.',
    b'cargparse\nNamespace\n(N}S"__init__"\nI5\nstb.', b'cdatetime\ndatetime\n(N}S"now"\nI5\nstb.',
    b'ccollections\nOrderedDict\n(N}S"keys"\nI5\nstb.', b'cbuiltins\nset\n(N}S"add"\nI5\nstb.'])
def test_nothing_outside_is_changed(tmp_path, raw):
    """The opcode BUILD sets attributes, also on a class or function that was only named."""
    watched = [(collections.Counter, 'most_common'), (torch._utils._rebuild_tensor_v2, '__doc__'),
               (argparse.Namespace, '__init__'), (collections.OrderedDict, 'keys'), (set, 'add')]
    before = [getattr(owner, name) for owner, name in watched]
    (tmp_path / 'x.pkl').write_bytes(raw)
    with contextlib.suppress(CheckpointError):
        read_pickle(tmp_path / 'x.pkl')
    assert [getattr(owner, name) for owner, name in watched] == before and datetime.datetime.now()
    (tmp_path / 'x.pkl').write_bytes(pickle.dumps([argparse.Namespace(a=1), torch.ones(1), collections.Counter('a')]))
    found = read_pickle(tmp_path / 'x.pkl')
    assert found[0] == argparse.Namespace(a=1) and found[1] == 1 and found[2] == dict(a=1)


def test_no_name_reaches_further_than_itself(tmp_path):
    """Dotted names of protocol 4 and instances of stand-ins give no way to anything else."""
    for raw in (b'\x80\x04\x8c\x08builtins\x8c\x10dict.__class__.x\x93.', b'cbuiltins\neval\n(S"1"\ntR.',
                b'c__builtin__\neval\n(S"1"\ntR.', b'cos\nsystem\n(S"true"\ntR.', b'cnumpy\nload\n.'):
        (tmp_path / 'x.pkl').write_bytes(raw)
        for allowed in (DATA, CHECKPOINT):
            with pytest.raises(CheckpointError, match=r'x\.pkl is refused: it asks for'):
                read_pickle(tmp_path / 'x.pkl', allowed)
