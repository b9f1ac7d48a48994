"""A folder of images as one stream."""

import shutil

import pytest

from boxdet.apis import init_detector
from boxdet.apis.folder import Journal, predict_folder
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
