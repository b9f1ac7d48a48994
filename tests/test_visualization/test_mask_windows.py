"""Windows of masks against pycocotools' full decoding."""

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.structures.masks import BitmapMasks, PolygonMasks, RleMasks
from boxdet.visualization.mask_windows import mask_outlines, mask_windows, rle_window, run_lengths


def placed(window, height, width):
    full = np.zeros((height, width), np.uint8)
    if window is not None:
        left, top, mask = window
        full[top:top + mask.shape[0], left:left + mask.shape[1]] = mask
    return full


def random_bitmap(seed):
    """Blobs and noise, touching the borders, so that runs go on from one column to the next."""
    rng = np.random.default_rng(seed)
    bitmap = np.zeros((37, 53), np.uint8)
    for _ in range(rng.integers(1, 5)):
        y, x = rng.integers(0, 37), rng.integers(0, 53)
        bitmap[y:y + rng.integers(1, 40), x:x + rng.integers(1, 30)] = 1
    return bitmap & (rng.random((37, 53)) > (0.4 if seed % 2 else -1))


@pytest.mark.parametrize('seed', range(20))
def test_rle_windows_equal_the_full_decoding(seed):
    bitmap = random_bitmap(seed)
    rle = coco_masks.encode(np.asfortranarray(bitmap))
    window = rle_window(rle)
    assert np.array_equal(placed(window, 37, 53), bitmap)
    if window is not None:  # tight
        assert window[2].any(axis=0)[[0, -1]].all() and window[2].any(axis=1)[[0, -1]].all()


def test_big_masks_and_long_runs():
    bitmap = np.zeros((3000, 2000), np.uint8, order='F')
    bitmap[:, 100:1900] = 1
    bitmap[1500:, 700] = 0
    rle = coco_masks.encode(bitmap)
    assert np.array_equal(placed(rle_window(rle), 3000, 2000), bitmap)


def test_text_and_uncompressed_counts():
    rle = coco_masks.encode(np.asfortranarray(random_bitmap(4)))
    assert np.array_equal(run_lengths(rle['counts']), run_lengths(rle['counts'].decode()))
    listed = dict(size=rle['size'], counts=run_lengths(rle['counts']).tolist())
    assert np.array_equal(rle_window(listed)[2], rle_window(rle)[2])
    assert sum(listed['counts']) == 37 * 53


def test_empty_masks():
    assert rle_window(coco_masks.encode(np.zeros((5, 6), np.uint8, order='F'))) is None
    assert rle_window(dict(size=[5, 6], counts='')) is None
    assert list(mask_windows(np.zeros((2, 5, 6)))) == [None, None]


def test_every_form_of_masks_gives_the_same_windows():
    bitmap = np.zeros((1, 20, 30), np.uint8)
    bitmap[0, 4:9, 10:25] = 1
    polygon = [[np.array([10, 4, 25, 4, 25, 9, 10, 9], dtype=float)]]
    rle = coco_masks.encode(np.asfortranarray(bitmap[0]))
    for masks in (bitmap, torch.from_numpy(bitmap), BitmapMasks(bitmap, 20, 30), PolygonMasks(
            polygon, 20, 30), RleMasks([rle], 20, 30), [rle]):
        left, top, mask = next(mask_windows(masks))
        assert (left, top, mask.shape, int(mask.sum())) == (10, 4, (5, 15), 75)


def filled(outlines, height, width):
    """What the outlines enclose."""
    return cv2.drawContours(np.zeros((height, width), np.uint8), outlines, -1, 1, cv2.FILLED)


@pytest.mark.parametrize('side', [60, 900])
def test_outlines_enclose_the_mask(side):
    """Its edge is met within two pixels, also that of a large mask, of which every second pixel is looked at."""
    bitmap = np.zeros((1000, 1000), np.uint8)
    cv2.ellipse(bitmap, (500, 480), (side // 2, side // 3), 20, 0, 360, 1, cv2.FILLED)
    cv2.ellipse(bitmap, (510, 480), (side // 6, side // 8), 70, 0, 360, 0, cv2.FILLED)
    bitmap[5:12, 7:14] = 1  # a second part
    (x0, y0, x1, y1), rings = next(mask_outlines([coco_masks.encode(np.asfortranarray(bitmap))]))
    rows, columns = np.flatnonzero(bitmap.any(axis=1)), np.flatnonzero(bitmap.any(axis=0))
    assert (x0, y0, x1, y1) == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
    assert len(rings) == 3 and all(ring.dtype == np.int32 and ring.shape[1:] == (1, 2) for ring in rings)
    kernel = np.ones((5, 5), np.uint8)
    drawn = filled(rings, 1000, 1000)
    assert (drawn <= cv2.dilate(bitmap, kernel)).all() and (drawn >= cv2.erode(bitmap, kernel)).all()


def test_outlines_of_what_lies_between_the_samples():
    """A frame one pixel wide, on odd columns and rows, as large as the image."""
    bitmap = np.zeros((801, 801), np.uint8)
    cv2.rectangle(bitmap, (1, 1), (799, 799), 1)
    extent, rings = next(mask_outlines([coco_masks.encode(np.asfortranarray(bitmap))]))
    assert extent == (1, 1, 800, 800) and rings
    assert list(mask_outlines([coco_masks.encode(np.zeros((5, 6), np.uint8, order='F'))])) == [None]


def test_every_form_of_masks_gives_the_same_outlines():
    bitmap = np.zeros((1, 20, 30), np.uint8)
    bitmap[0, 4:9, 10:25] = 1
    rle = coco_masks.encode(np.asfortranarray(bitmap[0]))
    for masks in (bitmap, torch.from_numpy(bitmap), BitmapMasks(bitmap, 20, 30), RleMasks([rle], 20, 30), [rle]):
        extent, rings = next(mask_outlines(masks))
        assert extent == (10, 4, 25, 9) and len(rings) == 1
        assert sorted(rings[0][:, 0].tolist()) == [[10, 4], [10, 8], [24, 4], [24, 8]]
