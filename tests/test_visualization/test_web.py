"""Images and outlines for a web page."""

import base64

import cv2
import numpy as np
import pytest
from pycocotools import mask as coco_masks

from boxdet.visualization.web import embedded_jpeg, outline_path


@pytest.mark.parametrize('shape, size, scale',
                         [((300, 600), (200, 100), 1 / 3), ((50, 40), (40, 50), 1), ((2000, 3), (1, 200), .1)])
def test_embedded_image_is_no_larger_than_asked(shape, size, scale):
    image = np.full((*shape, 3), (10, 120, 240), np.uint8)
    address, found, by = embedded_jpeg(image, 200)
    assert found == size and by == pytest.approx(scale)
    data = base64.b64decode(address.removeprefix('data:image/jpeg;base64,'))
    back = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    assert back.shape[1::-1] == size and np.abs(back.astype(int) - image[0, 0]).max() < 5


def rle(bitmap):
    return coco_masks.encode(np.asfortranarray(bitmap))


def test_outline_of_a_square_with_a_hole():
    bitmap = np.zeros((60, 80), np.uint8)
    bitmap[10:41, 20:51] = 1
    assert outline_path(rle(bitmap)) == 'M20 10L20 40L50 40L50 10Z'
    assert outline_path(rle(bitmap), 0.5) == 'M10 5L10 20L25 20L25 5Z'
    bitmap[20:31, 30:41] = 0
    assert outline_path(rle(bitmap)).count('M') == 2


def test_nothing_to_outline():
    bitmap = np.zeros((60, 80), np.uint8)
    assert outline_path(rle(bitmap)) == ''
    bitmap[5, 5] = 1
    assert outline_path(rle(bitmap)) == '', 'a single pixel has no outline'
