"""The safetensors format beside its own library, and files that are none."""
import json

import pytest
import safetensors
import safetensors.torch
import torch

from boxdet.files.safetensors import read, write

TENSORS = {
    'flag': torch.tensor([True, False, True]), 'weight': torch.arange(12.).reshape(3, 4).t(), 'steps': torch.tensor(7),
    'half': torch.tensor([0.5, -2], dtype=torch.float16), 'brain': torch.tensor([[1.5]], dtype=torch.bfloat16),
    'none': torch.empty(0, 5), 'double': torch.tensor([1e-300], dtype=torch.float64),
    'small': torch.tensor([1, 255], dtype=torch.uint8), 'eighth': torch.tensor([0.5]).to(torch.float8_e4m3fn)}


def same(found, expected=TENSORS):
    return found.keys() == expected.keys() and all(
        found[name].dtype == value.dtype and found[name].shape == value.shape
        and torch.equal(found[name].float(), value.float()) for name, value in expected.items())


def test_the_library_reads_what_is_written_and_the_other_way_round(tmp_path):
    for _ in range(2):
        with open(tmp_path / 'ours.safetensors', 'wb') as file:
            write(file, TENSORS, {'format': 'pt', 'b': 'ü', 'a': '"'})
    assert same(safetensors.torch.load_file(tmp_path / 'ours.safetensors'))
    with safetensors.safe_open(tmp_path / 'ours.safetensors', 'pt') as file:
        assert file.metadata() == {'format': 'pt', 'b': 'ü', 'a': '"'}
    again = {name: value.contiguous() for name, value in TENSORS.items()}
    safetensors.torch.save_file(again, tmp_path / 'theirs.safetensors', {'format': 'pt'})
    found, metadata = read(tmp_path / 'theirs.safetensors')
    assert same(found) and metadata == {'format': 'pt'} and same(read(tmp_path / 'ours.safetensors')[0])


def test_tensors_that_are_one_are_written_as_two(tmp_path):
    one = torch.ones(3)
    with open(tmp_path / 'a.safetensors', 'wb') as file:
        write(file, dict(a=one, b=one), {})
    assert same(read(tmp_path / 'a.safetensors')[0], dict(a=one, b=one))
    with open(tmp_path / 'b.safetensors', 'wb') as file, pytest.raises(ValueError, match='q is of the type'):
        write(file, dict(q=torch.ones(1, dtype=torch.complex128)), {})


def entry(begin=0, end=4, dtype='F32', shape=(1,)):
    return dict(dtype=dtype, shape=list(shape), data_offsets=[begin, end])


@pytest.mark.parametrize('header, data, told', [
    (dict(a=entry()), b'123', 'tensors end at byte .*, and the file at'),
    (dict(a=entry()), b'12345', 'tensors end at byte'),
    (dict(a=entry(4, 8)), b'12345678', 'a begins at byte 4, and what is before it ends at 0'),
    (dict(a=entry(), b=entry()), b'1234', 'b begins at byte 0, and what is before it ends at 4'),
    (dict(a=entry(shape=[2])), b'1234', r'a has 4 bytes for the shape \(2,\) of F32'),
    (dict(a=entry(shape=[-1])), b'1234', r'a has the shape \[-1\]'),
    (dict(a=entry(shape=['1'])), b'1234', 'a has the shape'),
    (dict(a=entry(dtype='F31')), b'1234', 'a is of the unknown type F31'),
    (dict(a=[1]), b'', 'a has no dtype, shape and data_offsets'),
    (dict(__metadata__=dict(a=1)), b'', '__metadata__ does not map texts to texts'),
    (b'{"a": ', b'', 'its header is no JSON'), (b'[' * 100000, b'', 'its header is no JSON'), (b'[]', b'', 'is a list'),
    (b'{"a":1,"a":2}', b'', 'a name stands twice'), (b'\xff\xff', b'', 'its header is no JSON')])
def test_what_is_wrong_is_told(tmp_path, header, data, told):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    (tmp_path / 'x.safetensors').write_bytes(len(raw).to_bytes(8, 'little') + raw + data)
    with pytest.raises(ValueError, match=told):
        read(tmp_path / 'x.safetensors')


@pytest.mark.parametrize('raw', [b'', b'1234', b'\xff' * 20, bytes(8), b'\x09' + bytes(7) + b'{}'])
def test_no_room_for_a_header(tmp_path, raw):
    (tmp_path / 'x.safetensors').write_bytes(raw)
    with pytest.raises(ValueError, match='a header of'):
        read(tmp_path / 'x.safetensors')
