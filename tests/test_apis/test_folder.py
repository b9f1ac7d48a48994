"""A folder of images as one stream."""

import json
import shutil
import threading

import pytest

from boxdet.apis import init_detector
from boxdet.apis.folder import Journal, predict_folder, write_annotations
from boxdet.apis.images import list_images


@pytest.mark.parametrize('batch_size', [1, 4])
def test_unreadable_images_cost_the_others_nothing(tiny_detector, tmp_path, monkeypatch, batch_size):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    folder = tmp_path / 'images'
    shutil.copytree(tiny_detector.folder / 'images', folder)
    (folder / 'b.png').write_bytes(b'no image')
    (folder / 'z.png').write_bytes(b'')
    predicted, forward, steps = [], type(model).predict, []
    monkeypatch.setattr(type(model), 'predict', lambda self, batch, **options: (
        predicted.extend(meta.filename for meta in batch.metas), forward(self, batch, **options))[1])
    journal, names = Journal(tmp_path / 'out.part', {}), list_images(folder)
    unreadable = predict_folder(model, folder, names, journal, 0.1, batch_size, advance=steps.append)
    assert len(unreadable) == 2 and 'b.png' in unreadable[0] and 'z.png' in unreadable[1]
    assert sorted(predicted) == sorted(str(path).replace(str(tiny_detector.folder / 'images'), str(folder))
                                       for path in tiny_detector.images)  # each once
    assert list(journal.done) == ['a.png', 'c.jpg', 'd.png', 'deep/b.png'] and sum(steps) == len(names)


def test_images_are_drawn_behind_the_network_and_noted_afterwards(tiny_detector, tmp_path):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    folder = tiny_detector.folder / 'images'
    journal, names, drawn = Journal(tmp_path / 'out.part', {}), list_images(folder), {}

    def draw(name, result):
        assert name not in journal.done
        drawn[name] = threading.current_thread()
    assert predict_folder(model, folder, names, journal, 0.1, on_result=draw) == []
    assert sorted(drawn) == sorted(journal.done) == names and threading.current_thread() not in drawn.values()


def test_the_journal_keeps_no_result_in_memory(tmp_path):
    rows = {f'{k}.png': dict(width=k + 1, height=9, annotations=[dict(bbox=[0, 0, k, 1], area=k)] * k)
            for k in range(4)}
    journal = Journal(tmp_path / 'out.part', dict(run=1))
    for name in ('3.png', '1.png'):
        journal.add(name, rows[name])
    journal = Journal(tmp_path / 'out.part', dict(run=1))  # a new run goes on
    journal.add('0.png', rows['0.png'])
    assert all(isinstance(place, int) for place in journal.done.values())
    assert {name: journal[name]['annotations'] for name in journal.done} == {
        name: rows[name]['annotations'] for name in ('3.png', '1.png', '0.png')}
    assert write_annotations(tmp_path / 'out.json', sorted(rows), journal, ['a', 'b'], dict(config='c.py')) == 4
    assert json.loads((tmp_path / 'out.json').read_text()) == dict(
        info=dict(config='c.py'),
        images=[dict(id=1, file_name='0.png', width=1, height=9), dict(id=2, file_name='1.png', width=2, height=9),
                dict(id=3, file_name='3.png', width=4, height=9)],
        annotations=[dict(id=1, image_id=2, bbox=[0, 0, 1, 1], area=1)] + [
            dict(id=k, image_id=3, bbox=[0, 0, 3, 1], area=3) for k in (2, 3, 4)],
        categories=[dict(id=1, name='a'), dict(id=2, name='b')])
