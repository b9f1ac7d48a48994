"""A file is replaced whole, or left as it was."""
import json
import os
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch

from boxdet.errors import CheckpointError, DataError
from boxdet.files.writing import Replacement, remove_partial_files, write_json, write_json_list, write_whole


@pytest.mark.parametrize('content, expected', [
    ('ä', 'ä'.encode()), (b'\x00\xff', b'\x00\xff'), (lambda file: file.write(b'abc'), b'abc')])
def test_text_bytes_and_functions(tmp_path, content, expected):
    path = tmp_path / 'new' / 'x.bin'
    for _ in range(2):
        assert write_whole(path, content) == path
    assert path.read_bytes() == expected and os.listdir(path.parent) == ['x.bin']
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask


def test_tensors(tmp_path):
    write_whole(tmp_path / 'x.pt', lambda file: torch.save(torch.arange(3), file))
    assert torch.equal(torch.load(tmp_path / 'x.pt'), torch.arange(3))


class Full:
    """A disk that takes the first bytes."""

    def __call__(self, file):
        file.write(b'half')
        raise OSError(28, 'No space left on device')


@pytest.mark.parametrize('old', [None, 'old'])
def test_a_full_disk(tmp_path, old):
    path = tmp_path / 'r.json'
    if old:
        path.write_text(old)
    with pytest.raises(CheckpointError, match='^cannot write .*r.json: No space left on device') as caught:
        write_whole(path, Full(), error=CheckpointError)
    assert str(caught.value).endswith('an older file of that name is untouched') == bool(old)
    assert os.listdir(tmp_path) == (['r.json'] if old else [])


def test_an_error_of_the_writer_is_its_own(tmp_path):
    def write(file):
        raise RuntimeError('a fault of the program')
    with pytest.raises(RuntimeError, match='^a fault of the program$'):
        write_whole(tmp_path / 'x', write)
    assert os.listdir(tmp_path) == []


def test_what_a_check_refuses_does_not_replace(tmp_path):
    (tmp_path / 'x').write_text('old')

    def check(path):
        assert path.read_text() == 'new'
        raise OSError('it is no good')
    with pytest.raises(DataError, match='cannot write .*x: it is no good; an older'):
        write_whole(tmp_path / 'x', 'new', check)
    assert (tmp_path / 'x').read_text() == 'old' and os.listdir(tmp_path) == ['x']


def test_a_folder_in_the_way(tmp_path):
    (tmp_path / 'x').mkdir()
    with pytest.raises(DataError, match='cannot write .*x: Is a directory'):
        write_whole(tmp_path / 'x', 'new')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write .*y: '):
        write_whole(tmp_path / 'file' / 'y', 'new')
    assert sorted(os.listdir(tmp_path)) == ['file', 'x']


def test_pipes_and_devices_are_written_to(tmp_path):
    os.mkfifo(tmp_path / 'pipe')
    read = []
    reader = threading.Thread(target=lambda: read.append((tmp_path / 'pipe').read_text()))
    reader.start()
    write_whole(tmp_path / 'pipe', 'text')
    reader.join()
    assert read == ['text'] and (tmp_path / 'pipe').is_fifo() and os.listdir(tmp_path) == ['pipe']
    code = "from boxdet.files.writing import write_json; write_json('/dev/stdout', [1])"
    with open(tmp_path / 'out', 'w') as file:
        subprocess.run([sys.executable, '-c', code], stdout=file, check=True)
    assert (tmp_path / 'out').read_text() == '[1]'


def test_two_threads_write_one_path(tmp_path):
    both_write = threading.Barrier(2)

    def write(letter):
        def content(file):
            file.write(letter)
            both_write.wait(timeout=60)
            file.write(letter)
        write_whole(tmp_path / 'x', content)
    threads = [threading.Thread(target=write, args=(letter,)) for letter in (b'a', b'b')]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (tmp_path / 'x').read_bytes() in (b'aa', b'bb') and os.listdir(tmp_path) == ['x']


def test_a_part_keeps_the_ending_and_can_be_dropped(tmp_path):
    new = Replacement(tmp_path / 'x.mp4')
    new.part.write_text('half')
    assert new.part.suffix == '.mp4'
    new.discard()
    assert os.listdir(tmp_path) == []


def test_partial_files_are_removed(tmp_path):
    (tmp_path / '.epoch_1.pth.123.partial').write_bytes(b'x')
    Replacement(tmp_path / 'epoch_1.pth').part.write_bytes(b'x')
    (tmp_path / 'epoch_1.pth').write_bytes(b'x')
    remove_partial_files(tmp_path)
    assert os.listdir(tmp_path) == ['epoch_1.pth']


def test_json(tmp_path):
    write_json(tmp_path / 'a.json', dict(a=np.float32(0.5), b=np.arange(2), c=b'text'))
    assert json.loads((tmp_path / 'a.json').read_text()) == dict(a=0.5, b=[0, 1], c='text')
    write_json_list(tmp_path / 'b.json', ({'row': i} for i in range(2)))
    assert (tmp_path / 'b.json').read_text() == '[\n{"row": 0},\n{"row": 1}\n]\n'
    write_json_list(tmp_path / 'b.json', [])
    assert json.loads((tmp_path / 'b.json').read_text()) == []
    with pytest.raises(TypeError, match='object has no JSON form'):
        write_json(tmp_path / 'a.json', object())
