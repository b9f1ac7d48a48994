"""single_gpu_test: results in the data set's order, images on the way."""

import copy
import json
import threading

import cv2
import numpy as np
import pytest
from PIL import Image

from boxdet.abilities import declaring_class
from boxdet.apis import inference_detector, init_detector, multi_gpu_test, single_gpu_test
from boxdet.apis.saved_results import image_of
from boxdet.datasets import build_dataloader, build_dataset
from boxdet.errors import UserError


@pytest.fixture(scope='module')
def model(tiny_detector):
    return init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')


@pytest.fixture
def loader(model):
    dataset = build_dataset(model.cfg.data.test, dict(test_mode=True))
    return build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=0, shuffle=False)


def test_results_are_those_of_the_single_images(model, loader, tiny_detector):
    results = single_gpu_test(model, loader, progress=False)
    assert len(results) == 4
    for result, path in zip(results, tiny_detector.images):
        alone = inference_detector(model, str(path))
        assert np.array_equal(result.bboxes, alone.bboxes) and np.array_equal(result.scores, alone.scores)


def test_images_keep_their_names_and_folders(model, loader, tiny_detector, tmp_path):
    single_gpu_test(model, loader, out_dir=tmp_path / 'out', show_score_thr=0.0, progress=False)
    written = sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.*'))
    assert written == ['a.png', 'c.jpg', 'd.png', 'deep/b.png']
    drawn, original = cv2.imread(str(tmp_path / 'out/deep/b.png')), cv2.imread(str(tiny_detector.images[1]))
    assert drawn.shape == original.shape and not np.array_equal(drawn, original)


def test_drawings_of_a_class_of_ones_own_stay_in_the_main_thread(model, loader, monkeypatch, tmp_path):
    places = {}

    def single(owner):
        def show_result(self, img, result, **options):
            places.setdefault(owner, set()).add(threading.current_thread())
        return show_result
    monkeypatch.setattr(declaring_class(type(model), 'show_result'), 'show_result', single('boxdet'))
    single_gpu_test(model, loader, out_dir=tmp_path, progress=False)
    own = copy.copy(model)
    own.__class__ = type('OwnDetector', (type(model),), dict(show_result=single('own')))  # draws with pyplot, say
    single_gpu_test(own, loader, out_dir=tmp_path, progress=False)
    assert threading.current_thread() not in places['boxdet'] and places['own'] == {threading.current_thread()}


@pytest.mark.parametrize('color_type', ['color', 'color_ignore_orientation'])
def test_turned_images_are_drawn_as_they_were_read(model, tiny_detector, tmp_path, color_type):
    stored, exif = Image.open(tiny_detector.images[0]).convert('RGB'), Image.Exif()
    exif[0x0112] = 6
    stored.save(tmp_path / 'a.png', exif=exif)
    upright = color_type == 'color'
    size = dict(width=96, height=128) if upright else dict(width=128, height=96)
    (tmp_path / 'ann.json').write_text(json.dumps(dict(
        images=[dict(id=1, file_name='a.png', **size)], annotations=[],
        categories=[dict(id=i, name=name) for i, name in enumerate(model.CLASSES)])))
    cfg = copy.deepcopy(model.cfg.data.test)
    cfg.update(ann_file=str(tmp_path / 'ann.json'), img_prefix=str(tmp_path))
    cfg.pipeline[0].color_type = color_type
    dataset = build_dataset(cfg, dict(test_mode=True))
    loader = build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=0, shuffle=False)
    result, = single_gpu_test(model, loader, out_dir=tmp_path / 'out', show_score_thr=1.0, progress=False)
    drawn, pixels = cv2.imread(str(tmp_path / 'out/a.png')), np.asarray(stored)[:, :, ::-1]
    assert np.array_equal(drawn, np.rot90(pixels, -1) if upright else pixels)
    assert image_of(dataset, 0, result.image_size)[1].shape[:2] == result.image_size == drawn.shape[:2]


def test_a_high_threshold_draws_nothing(model, loader, tiny_detector, tmp_path):
    single_gpu_test(model, loader, out_dir=tmp_path, show_score_thr=1.0, progress=False)
    assert np.array_equal(cv2.imread(str(tmp_path / 'a.png')), cv2.imread(str(tiny_detector.images[0])))


def test_show_without_a_display_says_so(model, loader, monkeypatch):
    monkeypatch.setattr('sys.platform', 'linux')
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(UserError, match='DISPLAY'):
        single_gpu_test(model, loader, show=True, progress=False)


def test_one_process_of_many_is_all_of_them(model, loader):
    with pytest.warns(UserWarning, match='gpu_collect has no effect'):
        assert len(multi_gpu_test(model, loader, gpu_collect=True)) == 4
