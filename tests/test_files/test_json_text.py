"""Errors in JSON files name the line and the entry."""
import gc
import json

import pytest

from boxdet.errors import ConfigError, DataError
from boxdet.files.json_text import read_json

BOXES = [dict(id=10 + i, image_id=1, bbox=[1, 2, 3, 4], area=12) for i in range(4)]
COCO = json.dumps(dict(images=[dict(id=1, file_name='a.jpg')], categories=[], annotations=BOXES), indent=1)


@pytest.mark.parametrize('broken, place', [
    (COCO.replace('"id": 12,', '"id": 12', 1),
     r':34: not valid JSON .*: column 4\) in annotations\[2\] \(id 12\)\.id$'),
    (COCO.replace('"area": 12', '"area": 1 2', 1), r':19: .* in annotations\[0\] \(id 10\)\.area'),
    (COCO[:COCO.index('"area"')] + COCO[COCO.index('"area"') + 6:], r' in annotations\[0\] \(id 10\)\.bbox$'),
    (COCO.replace('"bbox": [', '"bbox": [x', 2), r' in annotations\[0\] \(id 10\)\.bbox\[0\]$'),
    (COCO[:len(COCO) // 2], r' in annotations\[1\]'),
    (COCO + ',', r':\d+: not valid JSON \(Extra data'),
    (COCO.replace('"id": 1,', "'id': 1,", 1), r':4: .* in images\[0\]'),
    ('[1, 2,, 3]', r'a.json:1: not valid JSON .* in \[2\]$'),
    ('hello', r'a.json:1: not valid JSON'), ('{', 'a.json:1: '),
    ('[' * 100000, 'lists inside lists')])
def test_place(tmp_path, broken, place):
    (tmp_path / 'a.json').write_text(broken)
    with pytest.raises(DataError, match=place) as caught:
        read_json(tmp_path / 'a.json')
    assert '\n' not in str(caught.value)


def test_what_is_no_json_file(tmp_path):
    (tmp_path / 'train.json').write_text(' \n')
    with pytest.raises(DataError, match=r'train\.json: empty file'):
        read_json(tmp_path / 'train.json')
    with pytest.raises(ConfigError, match=r"trian\.json: no such file; did you mean 'train\.json'\?"):
        read_json(tmp_path / 'trian.json', error=ConfigError)
    with pytest.raises(DataError, match=r"nor the folder"):
        read_json(tmp_path / 'no' / 'a.json')
    with pytest.raises(DataError, match='cannot be read .Is a directory'):
        read_json(tmp_path)
    (tmp_path / 'a.json').write_bytes(b'{"a": "\xe4"}')
    with pytest.raises(DataError, match=r'a\.json: not valid JSON \(not utf-8 text: .* at byte 7'):
        read_json(tmp_path / 'a.json')


@pytest.mark.parametrize('encoding', ['utf-8', 'utf-8-sig', 'utf-16'])
def test_encodings(tmp_path, encoding):
    (tmp_path / 'a.json').write_text('{"a": "ä"}', encoding=encoding)
    assert read_json(tmp_path / 'a.json') == dict(a='ä')
    assert read_json(tmp_path / 'a.json', object_hook=lambda one: [*one]) == ['a']


def test_the_garbage_search_is_left_as_it_was(tmp_path):
    (tmp_path / 'good.json').write_text('{}')
    (tmp_path / 'bad.json').write_text('{')
    seen = []
    read_json(tmp_path / 'good.json', object_hook=lambda _: seen.append(gc.isenabled()))
    with pytest.raises(DataError):
        read_json(tmp_path / 'bad.json')
    assert seen == [False] and gc.isenabled()
