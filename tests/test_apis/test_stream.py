"""inference_stream, the forms of an image, precision, and the steadiness of memory."""

import io
import itertools
import json
import subprocess
import sys
import threading

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from boxdet.apis import inference_detector, inference_stream, init_detector
from boxdet.errors import ConfigError, DataError


@pytest.fixture(scope='module')
def model(tiny_detector):
    return init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu')


def same(one, other, tolerance: float = 1e-5) -> bool:
    return (len(one) == len(other) and torch.equal(one.labels, other.labels)
            and torch.allclose(one.bboxes, other.bboxes, rtol=0, atol=100 * tolerance)
            and torch.allclose(one.scores, other.scores, rtol=0, atol=tolerance))


def threads_of_ours() -> list[str]:
    return [t.name for t in threading.enumerate() if t.name.startswith(('boxdet-read', 'boxdet-prepare'))]


@pytest.mark.parametrize('batch_size, prefetch', [(1, 0), (1, None), (2, 3), (3, 0), (8, None)])
def test_images_come_back_in_order_with_their_results(model, tiny_detector, batch_size, prefetch):
    paths = [str(tiny_detector.images[k]) for k in (0, 1, 2, 3, 0, 0, 1, 3, 2)]
    pairs = list(inference_stream(model, iter(paths), batch_size, prefetch))
    assert [image for image, _ in pairs] == paths
    singles = {path: inference_detector(model, path) for path in set(paths)}
    assert all(same(result, singles[path]) for path, result in pairs)
    assert not threads_of_ours()


def test_an_endless_stream_is_read_a_few_images_ahead(model, tiny_detector):
    image, read = cv2.imread(str(tiny_detector.images[0])), []

    def camera():
        for number in itertools.count():
            read.append(number)
            yield image
    stream = inference_stream(model, camera(), batch_size=2, prefetch=3)
    for _ in range(5):
        assert next(stream)[0] is image
    assert len(read) <= 5 + 4 * 2 + 3 + 1
    stream.close()
    assert not threads_of_ours()  # which is to say that nobody reads on


def test_a_rare_size_does_not_hold_up_the_rest(model, tiny_detector):
    wide, tall = (cv2.imread(str(tiny_detector.images[k])) for k in (0, 1))
    read = []

    def frames():
        for number in range(40):
            read.append(number)
            yield tall if number == 0 else wide
    stream = inference_stream(model, frames(), batch_size=2, prefetch=0)
    next(stream)
    assert len(read) <= 10
    assert sum(1 for _ in stream) == 39


def test_errors_come_at_their_turn(model, tiny_detector):
    def broken():
        yield str(tiny_detector.images[0])
        raise OSError('the camera was unplugged')
    stream = inference_stream(model, broken())
    assert len(next(stream)[1])
    with pytest.raises(OSError, match='unplugged'):
        next(stream)
    with pytest.raises(DataError, match='missing.jpg'):
        list(inference_stream(model, [str(tiny_detector.images[0]), 'missing.jpg']))
    with pytest.raises(ConfigError, match='batch_size is 0'):
        inference_stream(model, [], batch_size=0)
    for one in (str(tiny_detector.images[0]), tiny_detector.images[0], io.BytesIO(), np.zeros((9, 9, 3), np.uint8), 3):
        with pytest.raises(DataError, match=f'a stream is a list.*not one {type(one).__name__}'):
            inference_stream(model, one)
    assert len(list(inference_stream(model, np.zeros((3, 32, 32, 3), np.uint8)))) == 3
    assert not threads_of_ours()


@pytest.mark.parametrize('batch_size, prefetch', [(1, None), (2, 0), (4, None), (8, 3)])
def test_what_is_finished_comes_before_an_error(model, tiny_detector, batch_size, prefetch):
    paths = [str(tiny_detector.images[k]) for k in (0, 1, 0)]

    def raising():
        yield from paths
        raise OSError('the camera was unplugged')
    for images, error in (([*paths, 'nope.jpg', paths[0]], DataError), (raising(), OSError)):
        found = []
        with pytest.raises(error, match='nope.jpg|unplugged'):
            for pair in inference_stream(model, images, batch_size, prefetch):
                found.append(pair)
        assert [image for image, _ in found] == paths
        assert all(same(result, inference_detector(model, image)) for image, result in found)


def test_channel_order_is_said_and_not_guessed(model, tiny_detector):
    image = cv2.imread(str(tiny_detector.images[0]))
    rgb = np.ascontiguousarray(image[:, :, ::-1])
    expected = inference_detector(model, image)
    assert same(inference_detector(model, rgb, channel_order='rgb'), expected)
    assert same(inference_detector(model, [rgb, image], channel_order='rgb')[0], expected)
    assert not same(inference_detector(model, rgb), expected)
    with pytest.raises(ConfigError, match="'gbr' is neither"):
        inference_detector(model, image, channel_order='gbr')


def test_exif_orientation(model, tiny_detector, tmp_path):
    """The same pixels lying on their side with a note to turn them."""
    upright = Image.open(tiny_detector.images[0])
    lying, exif = upright.transpose(Image.Transpose.ROTATE_90), Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise to see it
    lying.save(tmp_path / 'lying.png', exif=exif)
    turned, plain = inference_detector(model, upright), inference_detector(model, np.asarray(lying)[:, :, ::-1].copy())
    forms = [str(tmp_path / 'lying.png'), (tmp_path / 'lying.png').read_bytes(), Image.open(tmp_path / 'lying.png')]
    assert same(inference_detector(model, forms[-1]), turned) and not same(turned, plain)
    for form in forms:
        assert same(inference_detector(model, form, exif_orientation=False), plain)
    jpg = io.BytesIO()
    lying.save(jpg, 'JPEG', exif=exif, quality=95)
    (tmp_path / 'lying.jpg').write_bytes(jpg.getvalue())
    for form in (jpg.getvalue(), Image.open(io.BytesIO(jpg.getvalue())), str(tmp_path / 'lying.jpg')):
        assert inference_detector(model, form).image_size == (96, 128)
        assert inference_detector(model, form, exif_orientation=True).image_size == (96, 128)
        assert inference_detector(model, form, exif_orientation=False).image_size == (128, 96)


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_half_precision_finds_the_same(tiny_detector, model, precision, monkeypatch):
    monkeypatch.setattr('boxdet.apis.inference.slow_in', lambda *_: False)
    half = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', precision=precision)
    assert next(half.parameters()).dtype in (torch.bfloat16, torch.float16)
    found, expected = (inference_detector(m, str(tiny_detector.images[0])) for m in (half, model))
    assert found.bboxes.dtype == found.scores.dtype == torch.float32 and found.masks_bitmaps().shape[0] == len(found)
    assert abs(float(found.scores[0]) - float(expected.scores[0])) < 0.02
    with pytest.raises(ConfigError, match="precision 'int4' is none of fp32, bf16, fp16, int8; did you mean 'int8'"):
        init_detector(tiny_detector.config, device='cpu', precision='int4')


@pytest.mark.parametrize('precision', ['bf16', 'fp16'])
def test_a_processor_that_is_slow_in_half_precision_takes_float32(tiny_detector, model, precision, monkeypatch):
    monkeypatch.setattr('boxdet.apis.inference.slow_in', lambda dtype, device: dtype != torch.float32)
    with pytest.warns(UserWarning, match=f"precision='{precision}': this processor has no instructions for it"):
        plain = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', precision=precision)
    image = str(tiny_detector.images[0])
    assert same(inference_detector(plain, image), inference_detector(model, image))


def test_compile_hands_backbone_and_neck_to_torch(tiny_detector, model):
    compiled = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', compile='eager')
    assert hasattr(compiled.extract_feat, '_torchdynamo_orig_callable')
    image = str(tiny_detector.images[0])
    assert same(inference_detector(compiled, image), inference_detector(model, image))
    with pytest.raises(ConfigError, match="compile='eagr': torch.compile has no such backend; did you mean 'eager'"):
        init_detector(tiny_detector.config, device='cpu', compile='eagr')


_MANY = '''
import sys, os, json
import numpy as np, psutil, torch
from boxdet.apis import inference_detector, init_detector
torch.set_num_threads(1)
model = init_detector(sys.argv[1], sys.argv[2], device='cpu')
rng, held = np.random.default_rng(0), []
for number in range(1000):
    height, width = rng.integers(32, 200, 2)
    inference_detector(model, rng.integers(0, 255, (height, width, 3), dtype=np.uint8))
    if number in (199, 999):
        held.append(psutil.Process().memory_info().rss / 2 ** 20)
print(json.dumps(held))
'''


@pytest.mark.slow
def test_a_thousand_images_do_not_fill_the_memory(tiny_detector):
    done = subprocess.run([sys.executable, '-W', 'ignore', '-c', _MANY, str(tiny_detector.config),
                           str(tiny_detector.checkpoint)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    early, late = json.loads(done.stdout.splitlines()[-1])
    assert late - early < 50, f'{early:.0f} MB after 200 images, {late:.0f} after 1000'
