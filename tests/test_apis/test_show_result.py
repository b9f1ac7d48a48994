"""show_result and show_result_pyplot take what inference_detector takes, and results of both forms."""

import cv2
import numpy as np
import pytest
from PIL import Image

from boxdet.apis import inference_detector, init_detector, show_result_pyplot
from boxdet.errors import DataError


@pytest.fixture(scope='module')
def model(tiny_detector):
    return init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')


@pytest.fixture(params=['show_result', 'show_result_pyplot'])
def draw(request, model, tmp_path, monkeypatch):
    """The drawn image (H, W, 3) BGR of either function."""
    import matplotlib.pyplot as plt
    monkeypatch.setattr(plt, 'show', lambda **_: None)

    def call(image, result):
        out = tmp_path / 'drawn.png'
        if request.param == 'show_result':
            model.show_result(image, result, score_thr=0.1, out_file=str(out))
        else:
            show_result_pyplot(model, image, result, score_thr=0.1, out_file=str(out))
        return cv2.imread(str(out))
    yield call
    plt.close('all')


def test_every_form_of_image(draw, model, tiny_detector):
    path = tiny_detector.images[0]
    result = inference_detector(model, path)
    expected = draw(cv2.imread(str(path)), result)
    for form in (str(path), path, path.read_bytes(), Image.open(path)):
        assert np.array_equal(draw(form, result), expected)


def test_results_by_class(draw, model, tiny_detector):
    path = tiny_detector.images[0]
    result = inference_detector(model, path)
    by_class = result.per_class()
    assert isinstance(by_class, tuple) and len(result) and 'masks' in result
    assert np.array_equal(draw(path, by_class), draw(path, result))
    bitmaps = by_class[0], [list(result[result.labels == k].masks_bitmaps()) for k in range(len(model.CLASSES))]
    assert np.array_equal(draw(path, bitmaps), draw(path, result))
    assert np.array_equal(draw(path, by_class[0]), draw(path, result.without('masks')))


@pytest.mark.parametrize('upright', [True, False])
def test_a_turned_image_is_drawn_as_it_was_read(draw, model, tiny_detector, tmp_path, upright):
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = tmp_path / 'turned.png'
    Image.open(tiny_detector.images[0]).convert('RGB').save(turned, exif=exif)
    result = inference_detector(model, turned, exif_orientation=upright)
    assert len(result)
    stored = cv2.imread(str(tiny_detector.images[0]))
    read = np.ascontiguousarray(np.rot90(stored, -1)) if upright else stored
    assert np.array_equal(draw(turned, result), draw(read, result))


def test_an_image_of_another_size_is_one_line(draw, model, tiny_detector):
    result = inference_detector(model, np.zeros((50, 60, 3), np.uint8))
    with pytest.raises(DataError, match=r'a\.png: the result is of an image of 60x50 pixels, this one has 128x96'):
        draw(tiny_detector.images[0], result)
