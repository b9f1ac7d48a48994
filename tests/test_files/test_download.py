"""Downloads: once, checked, resumed; a real server, and real processes that want one file at once."""
import hashlib
import os
import random
import re
import subprocess
import sys

import pytest

from boxdet.errors import CheckpointError, DataError
from boxdet.files import download
from boxdet.files.download import fetch, hash_in_name

CONTENT = random.Random(0).randbytes(3000)  # the same in every process: names of tests follow from it
NAME = f'net-{hashlib.sha256(CONTENT).hexdigest()[:8]}.pth'


def test_it_is_downloaded_once(server, tmp_path):
    server.files[NAME] = CONTENT
    for _ in range(2):
        path = fetch(server.url + NAME + '?x=1', tmp_path / 'cache')
        assert path == tmp_path / 'cache' / NAME and path.read_bytes() == CONTENT
    assert len(server.asked) == 1 and os.listdir(tmp_path / 'cache') == [NAME]


def test_files_of_one_name_at_two_addresses_are_two(server, tmp_path):
    server.files.update({'a/model_final.pth': b'a', 'b/model_final.pth': b'b'})
    found = [fetch(f'{server.url}{place}/model_final.pth', tmp_path).read_bytes() for place in 'abab']
    assert found == [b'a', b'b', b'a', b'b'] and len(server.asked) == 2
    assert all(name.startswith('model_final.') and name.endswith('.pth') for name in os.listdir(tmp_path))


def test_a_wrong_hash_is_refused(server, tmp_path):
    server.files[NAME] = b'something else'
    with pytest.raises(CheckpointError, match=r'its SHA-256 begins with \w{8}, and its name says \w{8}.*put it at'):
        fetch(server.url + NAME, tmp_path, CheckpointError)
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize('name', [NAME, 'plain.pth'])
@pytest.mark.parametrize('ranges', [True, False])
def test_a_part_is_never_the_whole_and_is_gone_on_with(server, tmp_path, name, ranges):
    server.files[name], server.breaks_off, server.ranges = CONTENT, 1000, ranges
    with pytest.raises(DataError, match=r'cannot download .*it broke off after 1000 of 3000 bytes; fetch it elsewhere'):
        fetch(server.url + name, tmp_path)
    assert not list(tmp_path.glob('[!.]*'))
    server.breaks_off = 0
    assert fetch(server.url + name, tmp_path).read_bytes() == CONTENT
    # Without a hash nobody knows whether the rest would be of the same file.
    assert server.asked[-1][1] == ('bytes=1000-' if name == NAME else None)
    assert len(os.listdir(tmp_path)) == 1


@pytest.mark.parametrize('part, answers', [(b'of another file', 2), (CONTENT, 1), (CONTENT + b'x', 2)])
def test_what_was_left_by_others_is_checked(server, tmp_path, part, answers):
    server.files[NAME] = CONTENT
    (tmp_path / f'.{NAME}.download').write_bytes(part)
    assert fetch(server.url + NAME, tmp_path).read_bytes() == CONTENT and len(server.asked) == answers
    assert os.listdir(tmp_path) == [NAME]


def test_no_such_file_and_no_such_server(server, tmp_path):
    with pytest.raises(DataError, match=r'cannot download .*none.pth: HTTP Error 404: Not Found; fetch it elsewhere'):
        fetch(server.url + 'none.pth', tmp_path)
    with pytest.raises(DataError, match=r'cannot download .*: Connection refused; fetch it elsewhere, put it at .*x\.'):
        fetch('http://127.0.0.1:9/x.pth', tmp_path)
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot download .*: (File exists|Not a directory)'):
        fetch(server.url + 'none.pth', tmp_path / 'file')


def test_advice_works(tmp_path):
    with pytest.raises(DataError) as caught:
        fetch('http://127.0.0.1:9/x.pth', tmp_path)
    place = re.search(r'put it at (\S+) and', str(caught.value)).group(1)
    with open(place, 'wb') as file:
        file.write(b'x')
    assert fetch('http://127.0.0.1:9/x.pth', tmp_path).read_bytes() == b'x'


def test_local_addresses(tmp_path):
    path = tmp_path / 'a b' / NAME
    path.parent.mkdir()
    path.write_bytes(CONTENT)
    assert fetch(path.as_uri(), tmp_path / 'cache') == path and not (tmp_path / 'cache').exists()
    with pytest.raises(DataError, match=f"no such file; did you mean '{NAME}'"):
        fetch(path.as_uri().replace('net-', 'met-'), tmp_path)
    with pytest.raises(DataError, match=r"file://sub/a\.pth: no such file; .* write 'sub/a\.pth' without file://"):
        fetch('file://sub/a.pth', tmp_path)
    path.write_bytes(b'damaged')
    with pytest.raises(DataError, match='its name says'):
        fetch(path.as_uri(), tmp_path)


@pytest.mark.parametrize('name, digest', [
    ('resnet50-0676ba61.pth', '0676ba61'), ('a_20200130-047c8118.pth', '047c8118'), ('a-20200130.pth', ''),
    ('a-20209999.pth', '20209999'), ('model_final.pth', ''), ('a-0676BA61.pth', ''), ('a-b.pth', '')])
def test_hash_in_name(name, digest):
    assert hash_in_name(name) == digest


_PROCESS = '''
import sys
from boxdet.files import download
lock = download._lock
download._lock = lambda file: (print('at the lock', flush=True), lock(file))
print(download.fetch(sys.argv[1], sys.argv[2]).stat().st_size, flush=True)
'''


def test_processes_of_one_machine_download_once(server, tmp_path):
    """The first one is held within its download until the others have come to its lock."""
    server.files[NAME] = CONTENT
    server.may_go_on.clear()
    processes = [subprocess.Popen([sys.executable, '-c', _PROCESS, server.url + NAME, str(tmp_path)], text=True,
                                  stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) for _ in range(3)]
    for process in processes:
        assert process.stdout.readline() == 'at the lock\n'
    server.may_go_on.set()
    # Who had waited finds by now that the name it locked is another file's, and looks again.
    assert [process.communicate(timeout=120)[0].splitlines()[-1] for process in processes] == ['3000'] * 3
    assert len(server.asked) == 1 and os.listdir(tmp_path) == [NAME]


_RANK = '''
import sys
import torch.distributed as dist
from boxdet.errors import UserError
from boxdet.files.download import fetch
rank, init, url, shared = int(sys.argv[1]), sys.argv[2], sys.argv[3], sys.argv[4]
dist.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
folder = sys.argv[4] if shared.endswith('shared') else f'{sys.argv[4]}{rank}'
for name in sys.argv[5:]:
    try:
        print(fetch(url + name, folder).stat().st_size)
    except UserError as error:
        print(str(error).partition(';')[0])
dist.destroy_process_group()
'''


@pytest.mark.parametrize('folder', ['shared', 'own'])
def test_ranks(server, tmp_path, folder):
    """Rank 0 downloads for both, also what fails; a rank on a disk of its own gets a copy."""
    server.files[NAME] = CONTENT
    ranks = [subprocess.Popen([sys.executable, '-c', _RANK, str(rank), (tmp_path / 'meet').as_uri(), server.url,
                               str(tmp_path / folder), NAME, 'none.pth', NAME], text=True, stdout=subprocess.PIPE)
             for rank in range(2)]
    said = [rank.communicate(timeout=300)[0].splitlines() for rank in ranks]
    assert said[0] == said[1] == ['3000', f'cannot download {server.url}none.pth: HTTP Error 404: Not Found', '3000']
    assert [path for path, _ in server.asked].count('/none.pth') == 1
    assert [path for path, _ in server.asked].count('/' + NAME) == (1 if folder == 'shared' else 2)


def test_a_crash_within_a_download_leaves_a_part(server, tmp_path, monkeypatch):
    server.files[NAME] = CONTENT

    def crash(*_):
        raise KeyboardInterrupt
    monkeypatch.setattr(download, '_give_name', crash)
    with pytest.raises(KeyboardInterrupt):
        fetch(server.url + NAME, tmp_path)
    monkeypatch.undo()
    assert os.listdir(tmp_path) == [f'.{NAME}.download']
    assert fetch(server.url + NAME, tmp_path).read_bytes() == CONTENT
