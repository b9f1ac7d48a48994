"""geometry.masks against pycocotools, OpenCV, torchvision's roi_align and a full-image paste."""
import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from pycocotools import mask as coco_mask
from torchvision.ops import roi_align

from boxdet.geometry import masks as M
from boxdet.geometry.masks import (
    compress_rle,
    encode_runs,
    encode_window,
    nearest_index,
    paste_to_rle,
    polygon_area,
    rasterize_polygons,
    rescaled_hw,
    roi_align_axis,
    window_changes,
)


def full_bitmap(window, height, width):
    y0, x0, bitmap = window
    result = np.zeros((height, width), dtype=np.uint8)
    result[y0:y0 + bitmap.shape[0], x0:x0 + bitmap.shape[1]] = bitmap
    return result


def drawn_by_pycocotools(polygons, height, width):
    return coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in polygons], height, width)))


@pytest.mark.parametrize('seed', range(40))
def test_window_raster_equals_the_whole_raster(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(5, 90, 2))
    polygons = []
    for _ in range(rng.integers(1, 4)):
        centre = rng.uniform(-15, [width + 15, height + 15])
        corners = centre + rng.normal(0, rng.uniform(1, 30), (int(rng.integers(3, 12)), 2))
        polygons.append(np.round(corners, int(rng.integers(0, 3))).ravel())
    window = rasterize_polygons(polygons, (height, width))
    assert np.array_equal(full_bitmap(window, height, width), drawn_by_pycocotools(polygons, height, width))


def test_window_raster_of_values_on_a_rounding_edge():
    # 5 * 12.7 + 0.5 is 64 exactly; the shifted 5 * 0.7 + 0.5 would be 3.99...
    polygons = [np.array([x / 10, y / 10, x / 10 + 7.3, y / 10 + 0.1, x / 10 + 5.9, y / 10 + 8.7])
                for x in range(103, 140, 3) for y in range(101, 120, 4)]
    for polygon in polygons:
        window = rasterize_polygons([polygon], (40, 40))
        assert np.array_equal(full_bitmap(window, 40, 40), drawn_by_pycocotools([polygon], 40, 40))


def test_window_raster_of_coco(shared_data):
    import json
    data = json.loads((shared_data / 'coco_mini/annotations/instances_val2017.json').read_text())
    sizes = {i['id']: (i['height'], i['width']) for i in data['images']}
    for annotation in data['annotations']:
        if isinstance(annotation['segmentation'], list):
            size = sizes[annotation['image_id']]
            window = rasterize_polygons([np.array(p) for p in annotation['segmentation']], size)
            assert np.array_equal(full_bitmap(window, *size), drawn_by_pycocotools(annotation['segmentation'], *size))
            assert window[2].size <= size[0] * size[1]


def test_degenerate_polygons_are_empty():
    assert rasterize_polygons([], (10, 10))[2].size == 0
    assert rasterize_polygons([np.array([1., 1, 4, 4])], (10, 10))[2].size == 0
    assert polygon_area(np.array([0., 0, 4, 0, 4, 3, 0, 3])) == 12


def test_nearest_index_is_opencv():
    rng = np.random.default_rng(0)
    for _ in range(300):
        (h, w), (out_h, out_w) = rng.integers(1, 300, (2, 2)).tolist()
        image = rng.integers(0, 255, (h, w)).astype(np.uint8)
        expected = cv2.resize(image, (out_w, out_h), interpolation=cv2.INTER_NEAREST)
        assert np.array_equal(image[nearest_index(h, out_h)][:, nearest_index(w, out_w)], expected)


def test_rescaled_hw():
    assert rescaled_hw((480, 640), (1333, 800)) == (800, 1067)
    assert rescaled_hw((640, 427), (800, 1333)) == (1199, 800)
    assert rescaled_hw((10, 11), 0.5) == (5, 6)
    assert rescaled_hw((1, 3000), (1333, 800)) == (1, 1333)  # a line keeps a pixel
    with pytest.raises(ValueError):
        rescaled_hw((10, 11), 0)


@pytest.mark.parametrize('seed', range(10))
def test_roi_align_by_axis_is_torchvision(seed):
    rng = np.random.default_rng(seed)
    height, width, bins = 57, 83, int(rng.choice([7, 14, 28]))
    mask = rng.integers(0, 2, (height, width)).astype(np.float32)
    corner = rng.uniform(-5, [width, height], (20, 2))
    rois = np.concatenate([corner, corner + rng.uniform(0, 70, (20, 2))], axis=1).astype(np.float32)
    rois[0, 2:] = rois[0, :2]
    expected = roi_align(torch.from_numpy(mask)[None, None], [torch.from_numpy(rois)], bins, 1.0, 0, True)[:, 0]
    over_y = roi_align_axis(rois[:, 1], rois[:, 3], bins, height)[0].reshape(20, bins, height)
    over_x = roi_align_axis(rois[:, 0], rois[:, 2], bins, width)[0].reshape(20, bins, width)
    assert np.abs(over_y @ mask @ over_x.transpose(0, 2, 1) - expected.numpy()).max() < 1e-5


@pytest.mark.parametrize('seed', range(20))
def test_encode_window_is_pycocotools(seed):
    rng = np.random.default_rng(seed)
    height, width = (int(v) for v in rng.integers(1, 30, 2))
    y1, x1 = int(rng.integers(1, height + 1)), int(rng.integers(1, width + 1))
    y0, x0 = int(rng.integers(0, y1)), int(rng.integers(0, x1))
    if seed % 3 == 0:
        y0, y1 = 0, height  # runs that go on in the next column
    window = y0, x0, (rng.uniform(size=(y1 - y0, x1 - x0)) < rng.choice([0, 0.3, 0.8, 1])).astype(np.uint8)
    expected = coco_mask.encode(np.asfortranarray(full_bitmap(window, height, width)))
    assert encode_window(window, (height, width)) == expected


def test_compress_rle_checks_the_sum():
    assert compress_rle(dict(size=[2, 3], counts=[1, 2, 3])) == encode_runs(np.array([1, 3]), (2, 3))
    assert compress_rle(dict(size=[2, 3], counts='123'))['counts'] == b'123'
    with pytest.raises(ValueError, match='add up to 7'):
        compress_rle(dict(size=[2, 3], counts=[1, 2, 4]))
    with pytest.raises(ValueError):
        compress_rle(dict(size=[2, 3], counts=[8, -2]))


def full_paste(probs, boxes, height, width):
    """Each mask over the whole image: (N, H, W) float32."""
    y, x = torch.arange(height) + 0.5, torch.arange(width) + 0.5
    gy = (y - boxes[:, 1:2]) / (boxes[:, 3:4] - boxes[:, 1:2]) * 2 - 1
    gx = (x - boxes[:, 0:1]) / (boxes[:, 2:3] - boxes[:, 0:1]) * 2 - 1
    grid = torch.stack([gx[:, None, :].expand(-1, height, width), gy[:, :, None].expand(-1, height, width)], dim=3)
    return F.grid_sample(probs[:, None], grid, align_corners=False)[:, 0]


@pytest.mark.parametrize('threshold', [0.5, 0.1, 0.9])
def test_paste_equals_the_full_image_paste(threshold):
    rng = torch.Generator().manual_seed(3)
    height, width = 61, 97
    centre = torch.rand(60, 2, generator=rng) * torch.tensor([width, height])
    half = torch.rand(60, 2, generator=rng) * torch.tensor([60., 40.])
    boxes = torch.cat([centre - half, centre + half], dim=1)
    boxes[:20] = boxes[:20].clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    boxes[-1] = torch.tensor([0., 0, width, height])
    probs = F.interpolate(torch.rand(60, 1, 5, 5, generator=rng), (28, 28), mode='bilinear')[:, 0]
    probs[-1] = 1
    values = full_paste(probs, boxes, height, width)
    found = coco_mask.decode(paste_to_rle(probs, boxes, (height, width), threshold))
    differs = torch.from_numpy(found).permute(2, 0, 1).bool() != (values >= threshold)
    # Only a value within rounding of the threshold may fall on the other side of it.
    assert (values[differs] - threshold).abs().max().item() < 1e-6 if differs.any() else True
    assert differs.sum() <= 3
    same = ~differs.flatten(1).any(1)
    for mask, rle in zip((values >= threshold)[same].numpy(), np.array(paste_to_rle(probs, boxes, (height, width),
                                                                                 threshold))[same.numpy()]):
        assert rle == coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def test_paste_odd_boxes_are_empty():
    boxes = torch.tensor([[7., 7, 3, 3], [-50, -50, -40, -40], [float('nan'), 0, 1, 1], [100, 0, 120, 9]])
    rles = paste_to_rle(torch.ones(4, 28, 28), boxes, (20, 30))
    assert coco_mask.area(rles).tolist() == [0] * 4
    assert all(rle['size'] == [20, 30] for rle in rles)
    assert paste_to_rle(torch.ones(0, 28, 28), torch.zeros(0, 4), (20, 30)) == []
    with pytest.raises(ValueError, match='threshold'):
        paste_to_rle(torch.ones(1, 28, 28), boxes[:1], (20, 30), 0)


@pytest.mark.parametrize(('box', 'rows', 'columns'), [
    ([30., 4, 30, 16], (4, 16), (29, 30)), ([0., 4, 0, 16], (4, 16), (0, 1)), ([5.5, 4, 5.5, 16], (4, 16), (4, 7)),
    ([4., 20, 16, 20], (19, 20), (4, 16)), ([30., 20, 30, 20], (19, 20), (29, 30))])
def test_a_box_without_extent_is_a_line(box, rows, columns):
    """As mmdetection's CPU way has it: the pixels around take the middle of the mask along that axis."""
    probs = torch.zeros(1, 28, 28)
    probs[0, :, 13:15] = 1  # the middle columns of the mask
    if box[0] != box[2]:
        probs = probs.transpose(1, 2)
    expected = np.zeros((20, 30), dtype=np.uint8)
    expected[slice(*rows), slice(*columns)] = 1
    assert (coco_mask.decode(paste_to_rle(probs, torch.tensor([box]), (20, 30))[0]) == expected).all()


def test_paste_is_float32_under_autocast():
    rng = np.random.default_rng(0)
    probs, corner = rng.random((4, 28, 28), dtype=np.float32), rng.uniform(0, 60, (4, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(20, 80, (4, 2))], axis=1).astype(np.float32)
    expected = paste_to_rle(probs, boxes, (100, 120))
    with torch.autocast('cpu', torch.bfloat16):
        assert paste_to_rle(probs, boxes, (100, 120)) == expected


def test_paste_of_a_large_image_needs_little_memory():
    import tracemalloc
    boxes = torch.tensor([[100., 100, 3900, 2900]])
    tracemalloc.start()
    rle = paste_to_rle(torch.full((1, 28, 28), 0.9), boxes, (3000, 4000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6
    assert abs(coco_mask.area(rle)[0] / (3800 * 2800) - 1) < 0.02


def test_window_changes_of_a_full_column_join():
    changes = window_changes(np.ones((3, 4), dtype=bool), 0, 2, 4)
    assert encode_runs(changes, (4, 6)) == compress_rle(dict(size=[4, 6], counts=[8, 12, 4]))


def test_whole_pixel_paste_is_torchvisions():
    """Boxes of any size, also over the image's edge, pasted by torchvision and encoded as full bitmaps."""
    from torchvision.models.detection.roi_heads import paste_masks_in_image
    generator = torch.Generator().manual_seed(0)
    probs = torch.nn.functional.interpolate(torch.rand(60, 1, 5, 5, generator=generator), size=28, mode='bicubic')
    corner = torch.rand(60, 2, generator=generator) * torch.tensor([130., 90.]) - 10
    boxes = torch.cat([corner, corner + torch.rand(60, 2, generator=generator) ** 2 * 120 + 12], dim=1)
    bitmaps = paste_masks_in_image(probs, boxes, (90, 130))[:, 0].numpy() >= 0.5
    found = paste_to_rle(probs[:, 0], boxes, (90, 130), whole_pixels=True)
    assert bitmaps.any(axis=(1, 2)).sum() > 30
    for rle, bitmap in zip(found, bitmaps):
        # A value of exactly one half may be rounded the other way.
        assert np.count_nonzero((coco_mask.decode(rle) > 0) != bitmap) <= 1
    outside = paste_to_rle(probs[:1, 0], torch.tensor([[-90., -90., -50., -50.]]), (90, 130), whole_pixels=True)
    assert coco_mask.area(outside[0]) == 0


# ---------------------------------------------------------------------------------------------- by hand


@pytest.mark.parametrize('polygon, place', [
    ([], (0, 0, (0, 0))), ([1, 1, 2, 2], (0, 0, (0, 0))), ([9, 1, 12, 1, 12, 3], (1, 5, (3, 1))),
    ([1, 9, 3, 9, 3, 12], (4, 1, (1, 3))), ([-9, 1, -8, 1, -8, 3], (1, 0, (3, 1))),
    ([1, 1, 3, 1, 3, 2.5, 1, 2.5], (1, 1, (2, 3)))])
def test_the_window_of_a_polygon_lies_in_the_image(polygon, place):
    y, x, window = M.rasterize_polygons([np.array(polygon, dtype=np.float64)], (5, 6))
    assert (y, x, window.shape) == place


def test_the_window_of_no_image_is_empty():
    square = np.array([1., 1, 3, 1, 3, 3])
    for hw in ((0, 5), (5, 0)):
        assert M.rasterize_polygons([square], hw)[2].shape == (0, 0)


def test_the_nearest_source_is_never_beyond_the_last():
    for source in range(1, 60):
        for target in range(1, 120):
            assert M.nearest_index(source, target)[-1] < source


def test_runs_and_boxes_of_codes():
    assert M.encode_runs(np.zeros(0, dtype=np.int64), (0, 5))['counts'] == b'0'
    assert M.encode_runs(np.array([2, 6]), (2, 3))['counts'] == b'24'  # nothing stands behind the last run
    bitmap = np.zeros((9, 12), np.uint8)
    bitmap[3:8, 2:6] = 1
    code = M.encode_runs(np.array([s + 9 * c for c in range(2, 6) for s in (3, 8)]), (9, 12))
    assert np.array_equal(coco_mask.decode(code), bitmap) and M.box_around(code) == (2, 3, 6, 8)
    assert M.box_around([[1, 2, 5, 2, 5, 9], [0, 4, 1, 4, 1, 5]]) == (0, 2, 5, 9) and M.box_around(None) is None


def test_positions_of_pixels_on_a_mask():
    none = M._source_positions(np.float32('nan'), np.float32(3), 4, 10)
    assert none[0] == 0 and len(none[1]) == len(none[2]) == 0
    first, low, fraction = M._source_positions(np.float32(5), np.float32(5), 28, 20)
    assert (first, low.tolist(), fraction.tolist()) == (4, [14, 14], [.5, .5])  # the middle of the cells, bordered
    first, low, fraction = M._source_positions(np.float32(2), np.float32(6), 4, 10)  # a cell a pixel
    assert (first, low.tolist(), fraction.tolist()) == (2, [1, 2, 3, 4], [0, 0, 0, 0])
    first, low, fraction = M._whole_pixel_positions(np.float32(30), np.float32(48), 2, 90)
    assert low.min() == 0 and low.max() == 2 and fraction[0] == 0 and fraction.max() <= 1
