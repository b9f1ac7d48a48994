"""The parts of boxdet/runtime.py against the detector's; the whole of it is in tests/test_docs/test_export.py."""
from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from boxdet.export import graph
from boxdet.geometry.masks import paste_to_rle

pytest.importorskip('onnxruntime')
from boxdet import runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(('before', 'after'), [((96, 128), (120, 160)), ((120, 160), (60, 80)), ((100, 75), (37, 28)),
                                               ((31, 47), (200, 303)), ((50, 50), (50, 50)), ((50, 50), (25, 30))])
def test_images_are_resized_as_opencv_does(before, after):
    image = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    assert np.array_equal(runtime.resize(image, after), cv2.resize(image, after[::-1]))


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_masks_are_encoded_as_pycocotools_does(share):
    mask = np.random.default_rng(0).random((37, 53)) < share
    expected = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert runtime.encode(mask) == dict(size=[37, 53], counts=expected['counts'].decode())


# Within the image, over its edges, thin, without extent along one axis or both, of half a pixel, beyond the image.
BOXES = [[10.3, 5.1, 60.7, 40.2], [-8.0, -3.0, 30.0, 90.0], [4.0, 4.0, 4.0, 9.0], [70.25, 20.5, 79.9, 20.5],
         [33.0, 33.0, 33.0, 33.0], [0.0, 10.0, 0.0, 40.0], [12.2, 7.1, 12.7, 30.0], [90.0, 5.0, 99.0, 9.0]]


@pytest.mark.parametrize('whole_pixels', [False, True])
@pytest.mark.parametrize('by', ['runtime', 'graph'])
def test_masks_are_pasted_as_the_detector_does(by, whole_pixels):
    probs = np.random.default_rng(0).random((len(BOXES), 7, 7)).astype(np.float32)
    probs, boxes = np.stack([cv2.resize(one, (28, 28)) for one in probs]), np.float32(BOXES)
    if by == 'runtime':
        masks = [runtime.paste(*row, (64, 80), 0.5, whole_pixels) for row in zip(probs, boxes)]
    else:
        masks = graph.paste(torch.from_numpy(probs)[None], torch.from_numpy(boxes)[None], (64, 80), 0.5,
                            whole_pixels)[0].numpy()
    codes = paste_to_rle(probs, boxes, (64, 80), 0.5, whole_pixels)
    for box, code, mask in zip(BOXES, codes, masks):
        assert np.array_equal(mask_api.decode(code), mask), box
    assert sum(mask.any() for mask in masks) >= 5


def test_a_missing_file_is_one_line(tmp_path):
    done = subprocess.run([sys.executable, ROOT / 'boxdet/runtime.py', 'a.onnx', 'a.jpg'], cwd=tmp_path,
                          capture_output=True, text=True, timeout=120)
    assert done.returncode == 1 and done.stderr.endswith('error: a.onnx: no such file\n'), done.stderr
    assert 'Traceback' not in done.stderr


@pytest.mark.parametrize(('about', 'wanted'), [
    (dict(scale=[160, 96], keep_ratio=True), (96, 144)), (dict(scale=[160, 96], keep_ratio=False), (96, 160)),
    (dict(scale=None), (200, 300))])
def test_images_get_the_size_that_the_config_says(about, wanted):
    found = runtime.Detector.__new__(runtime.Detector)
    found.about = about
    assert found._resized(200, 300) == wanted
    found.about = dict(scale='unknown')
    with pytest.raises(ValueError, match='in a way that the file does not tell'):
        found._resized(200, 300)


def test_it_imports_nothing_but_numpy_and_onnxruntime(tmp_path):
    (tmp_path / 'runtime.py').write_bytes((ROOT / 'boxdet/runtime.py').read_bytes())
    code = ('import sys; sys.modules.update(torch=None, boxdet=None, cv2=None, mmengine=None, torchvision=None)\n'
            'import runtime; print(runtime.Detector.__name__)')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)
    assert done.stdout.strip() == 'Detector', done.stderr
