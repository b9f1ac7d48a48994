"""structures.masks against OpenCV, torchvision's roi_align and pycocotools on whole bitmaps."""
import json
import pickle

import cv2
import mmcv
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask
from torchvision.ops import roi_align

from boxdet.errors import DataError
from boxdet.structures.masks import BitmapMasks, PolygonMasks, RleMasks


def random_polygons(rng, count, height, width):
    objects = []
    for _ in range(count):
        centre, spread = rng.uniform(0, [width, height]), rng.uniform(4, 30)
        objects.append([(centre + rng.normal(0, spread, (6, 2))).round(2).ravel() for _ in range(rng.integers(1, 3))])
    return objects


def bitmaps_of(objects, height, width):
    return np.stack([coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects([list(p) for p in o], height, width)))
                     for o in objects])


def random_boxes(rng, count, height, width):
    corner = rng.uniform(-3, [width - 4, height - 4], (count, 2))
    return np.concatenate([corner, corner + rng.uniform(0, 90, (count, 2))], axis=1).astype(np.float32)


def train_targets(bitmaps, boxes, index, size):
    """Mmdetection's mask targets: clip, RoIAlign of the whole bitmaps, threshold."""
    height, width = bitmaps.shape[1:]
    boxes = torch.from_numpy(boxes).clamp(min=0).minimum(torch.tensor([width, height, width, height]).float())
    rois = torch.cat([torch.arange(len(boxes))[:, None].float(), boxes], dim=1)
    return roi_align(torch.from_numpy(bitmaps).float()[index][:, None], rois, size, 1.0, 0, True)[:, 0]


@pytest.mark.parametrize('seed', range(8))
def test_pending_geometry_equals_geometry_of_bitmaps(seed):
    rng = np.random.default_rng(seed)
    objects = random_polygons(rng, 5, 60, 90)
    expected = bitmaps_of(objects, 60, 90)
    masks = BitmapMasks.from_coco(objects, 60, 90).resize((97, 131))
    expected = np.stack([cv2.resize(m, (131, 97), interpolation=cv2.INTER_NEAREST) for m in expected])
    masks, expected = masks.flip('horizontal'), expected[:, :, ::-1]
    masks, expected = masks.crop([10, 5, 121, 90]), expected[:, 5:90, 10:121]
    masks, expected = masks.pad((100, 128)), np.pad(expected, ((0, 0), (0, 15), (0, 17)))
    masks = masks.resize((50, 70)).flip('diagonal').flip('vertical')
    expected = np.stack([cv2.resize(m, (70, 50), interpolation=cv2.INTER_NEAREST) for m in expected])[:, :, ::-1]
    assert np.array_equal(masks.to_bitmaps(), expected)
    assert np.array_equal(masks.masks, expected) and np.array_equal(np.stack(list(masks)), expected)
    assert masks.areas.tolist() == expected.sum((1, 2)).tolist()
    assert list(masks.to_rle()) == coco_mask.encode(np.asfortranarray(expected.transpose(1, 2, 0)))
    copy = pickle.loads(pickle.dumps(masks))
    assert np.array_equal(copy.to_bitmaps(), expected)
    assert np.array_equal(masks[[3, 1]].to_bitmaps(), expected[[3, 1]])
    assert np.array_equal(masks[torch.tensor([True, False, True, False, False])].to_bitmaps(), expected[[0, 2]])


def test_expand_translate_and_cat():
    bitmap = np.arange(12, dtype=np.uint8).reshape(1, 3, 4) % 2
    masks = BitmapMasks(bitmap, 3, 4)
    assert np.array_equal(masks.expand(6, 9, 2, 1).to_bitmaps(), np.pad(bitmap, ((0, 0), (2, 1), (1, 4))))
    assert np.array_equal(masks.translate((3, 4), -1).to_bitmaps()[0, :, :3], bitmap[0, :, 1:])
    assert np.array_equal(masks.translate((3, 4), 2, 'vertical').to_bitmaps()[0, 2:], bitmap[0, :1])
    both = BitmapMasks.cat([masks, masks.flip('vertical')])
    assert np.array_equal(both.to_bitmaps(), np.concatenate([bitmap, bitmap[:, ::-1]]))
    assert np.array_equal(both.flip('horizontal').to_bitmaps()[1], bitmap[0, ::-1, ::-1])
    with pytest.raises(ValueError):
        BitmapMasks.cat([masks, masks.resize((5, 5))])
    with pytest.raises(ValueError):
        BitmapMasks(bitmap, 4, 4)
    with pytest.raises(ValueError, match='sideways'):
        masks.flip('sideways')


@pytest.mark.parametrize('seed', range(8))
def test_crop_and_resize_is_roi_align_of_the_resized_bitmap(seed):
    rng = np.random.default_rng(seed)
    objects = random_polygons(rng, 4, 60, 90)
    masks = BitmapMasks.from_coco(objects, 60, 90).resize((130, 195)).flip('horizontal').pad((160, 224))
    boxes, index = random_boxes(rng, 30, 160, 224), rng.integers(0, 4, 30)
    expected = train_targets(masks.to_bitmaps(), boxes, index, (28, 28))
    found = masks.roi_targets(torch.from_numpy(boxes), (28, 28), torch.from_numpy(index))
    assert found.dtype == torch.float32 and found.shape == (30, 28, 28)
    differs = found != (expected >= 0.5).float()
    assert (expected[differs] - 0.5).abs().max().item() < 1e-5 if differs.any() else True
    assert differs.float().mean() < 1e-3


def test_crop_and_resize_of_coco_and_of_no_rois(shared_data):
    data = json.loads((shared_data / 'coco_mini/annotations/instances_val2017.json').read_text())
    crowds = {a['image_id'] for a in data['annotations'] if a['iscrowd']}
    image = next(i for i in data['images'] if i['id'] in crowds)
    annotations = [a for a in data['annotations'] if a['image_id'] == image['id']]
    masks = BitmapMasks.from_coco([a['segmentation'] for a in annotations], image['height'], image['width'])
    assert any(isinstance(a['segmentation'], dict) for a in annotations)
    out_hw = image['height'] * 2 - 7, image['width'] * 2 - 3
    masks = masks.resize(out_hw)
    boxes = np.array([a['bbox'] for a in annotations], dtype=np.float32)
    boxes[:, 2:] += boxes[:, :2]
    boxes *= 2
    index = np.arange(len(annotations))
    expected = train_targets(masks.to_bitmaps(), boxes, index, (28, 28))
    found = masks.roi_targets(boxes, (28, 28), index)
    differs = found != (expected >= 0.5).float()
    assert (expected[differs] - 0.5).abs().max().item() < 1e-5 if differs.any() else True
    assert masks.roi_targets(np.zeros((0, 4)), (28, 28), np.zeros(0)).shape == (0, 28, 28)
    boxes = masks.bboxes()
    assert np.array_equal(boxes, masks.to_rle().bboxes())


def test_targets_are_float32_under_autocast():
    rng = np.random.default_rng(0)
    masks = BitmapMasks((rng.random((3, 40, 50)) > 0.5).astype(np.uint8), 40, 50)
    corner, index = rng.uniform(0, 25, (20, 2)), rng.integers(0, 3, 20)
    boxes = np.concatenate([corner, corner + rng.uniform(5, 25, (20, 2))], axis=1).astype(np.float32)
    expected = masks.roi_targets(boxes, (14, 14), index)
    with torch.autocast('cpu', torch.bfloat16):
        assert torch.equal(masks.roi_targets(boxes, (14, 14), index), expected)


def test_polygon_masks():
    rng = np.random.default_rng(1)
    objects = random_polygons(rng, 3, 60, 90)
    masks = PolygonMasks(objects, 60, 90)
    assert np.array_equal(masks.to_bitmaps(), bitmaps_of(objects, 60, 90))
    assert np.array_equal(masks.to_rle().to_bitmaps(), masks.to_bitmaps())
    resized = masks.resize((120, 270))
    assert np.allclose(resized.masks[0][0][0::2], objects[0][0][0::2] * 3) and resized.width == 270
    flipped = masks.flip('diagonal')
    assert np.allclose(flipped.masks[1][0][0::2], 90 - objects[1][0][0::2])
    assert np.allclose(flipped.masks[1][0][1::2], 60 - objects[1][0][1::2])
    cropped = masks.crop([10, 20, 50, 55])
    assert (cropped.height, cropped.width) == (35, 40)
    moved = [[p - np.tile([10, 20], len(p) // 2) for p in polygons] for polygons in objects]
    assert np.array_equal(cropped.to_bitmaps(), bitmaps_of(moved, 35, 40))
    assert masks.pad((70, 100)).to_bitmaps()[:, :60, :90].sum() >= masks.to_bitmaps().sum()
    assert np.allclose(PolygonMasks([[np.array([0, 0, 4, 0, 4, 3.])]], 9, 9).areas, [6])
    assert len(PolygonMasks.cat([masks, masks[[0]]])) == 4
    assert len(pickle.loads(pickle.dumps(masks))) == 3


def test_polygon_targets_are_drawn_in_the_roi():
    objects = [[np.array([10., 10, 40, 10, 40, 30, 10, 30])]]
    masks = PolygonMasks(objects, 60, 90)
    boxes, index = np.array([[10, 10, 40, 30], [25, 10, 55, 30], [5, 5, 5.2, 5.2]], dtype=np.float32), np.zeros(3)
    found = masks.roi_targets(boxes, (28, 28), index)
    assert found[0].mean() == 1
    assert found[1, :, :14].mean() == 1 and found[1, :, 14:].sum() == 0
    assert found[2].sum() == 0
    for box, target in zip(boxes[:2].astype(np.float64), found):
        scale = 28 / (box[2:] - box[:2])
        moved = ((objects[0][0].reshape(-1, 2) - box[:2]) * scale).ravel()
        assert np.array_equal(target, coco_mask.decode(coco_mask.frPyObjects([list(moved)], 28, 28))[:, :, 0])


def test_rle_masks_are_a_sequence():
    bitmaps = (np.random.default_rng(0).uniform(size=(3, 7, 9)) > 0.5).astype(np.uint8)
    masks = BitmapMasks(bitmaps, 7, 9).to_rle()
    assert isinstance(masks[0], dict) and masks[-1] == list(masks)[2]
    assert np.array_equal(masks[np.array([True, False, True])].to_bitmaps(), bitmaps[[0, 2]])
    assert np.array_equal(masks[1:].to_bitmaps(), bitmaps[1:])
    assert np.array_equal(masks.flip('vertical').to_bitmaps(), bitmaps[:, ::-1])
    assert np.array_equal(masks.crop([1, 2, 6, 7]).to_bitmaps(), bitmaps[:, 2:7, 1:6])
    assert np.array_equal(masks.pad((8, 10)).to_bitmaps(), np.pad(bitmaps, ((0, 0), (0, 1), (0, 1))))
    assert masks.areas.tolist() == bitmaps.sum((1, 2)).tolist()
    assert RleMasks.cat([masks, masks[:0]]).bboxes().shape == (3, 4)
    empty = masks[np.zeros(0, dtype=np.int64)]
    assert empty.to_bitmaps().shape == (0, 7, 9) and empty.bboxes().shape == (0, 4) and len(empty.areas) == 0


def test_wrong_rle_is_named():
    with pytest.raises(DataError, match='annotation 5.*size'):
        BitmapMasks.from_coco([dict(size=[3, 3], counts=[9])], 4, 4, ['a.json: annotation 5'])
    masks = BitmapMasks.from_coco([dict(size=[4, 4], counts=[9])], 4, 4, ['a.json: annotation 5'])
    with pytest.raises(DataError, match='annotation 5.*add up'):
        masks.to_bitmaps()


def test_source_is_drawn_once_and_only_where_asked():
    masks = BitmapMasks.from_coco([[np.array([1., 1, 5, 1, 5, 5])], [['never drawn'] * 6]], 9, 9)
    assert masks.resize((18, 18))[0].areas[0] == 4 * masks[0].areas[0]


def test_what_lies_in_front():
    rng = np.random.default_rng(3)
    objects = random_polygons(rng, 5, 60, 90)
    masks = BitmapMasks.from_coco(objects, 60, 90).flip('horizontal').resize((50, 70)).pad((64, 96))
    bitmaps = masks.to_bitmaps()
    assert np.array_equal(masks.union(), bitmaps.any(axis=0)) and masks.union().dtype == np.uint8
    front = masks[:2].union()
    left = masks.without(front)
    assert np.array_equal(left.to_bitmaps(), bitmaps * (1 - front)) and not left[:2].areas.any()
    assert np.array_equal(masks.to_bitmaps(), bitmaps)
    joined = BitmapMasks.cat([left[2:], masks[:2]])
    assert np.array_equal(joined.to_bitmaps(), np.concatenate([left.to_bitmaps()[2:], bitmaps[:2]]))
    assert not masks[[]].union().any() and len(masks[[]].without(front)) == 0
    with pytest.raises(ValueError, match='region of shape'):
        masks.without(front[:-1])


def test_boxes_as_masks():
    masks = BitmapMasks.from_boxes(np.array([[1.9, 2, 5.5, 4], [-3, -3, 2, 2], [8, 1, 30, 30], [4, 4, 4, 6]]), 10, 12)
    assert masks.bboxes().tolist() == [[1, 2, 5, 4], [0, 0, 2, 2], [8, 1, 12, 10], [0, 0, 0, 0]]
    assert masks.areas.tolist() == [8, 4, 36, 0]


def of_every_mask(function, bitmaps, *args, **options):
    return np.stack([function(bitmap, *args, **options) for bitmap in bitmaps])


@pytest.mark.parametrize('seed', range(3))
def test_warped_bitmaps_are_mmcv_s(seed):
    rng = np.random.default_rng(seed)
    masks = BitmapMasks.from_coco(random_polygons(rng, 6, 60, 90), 60, 90).flip('horizontal')
    bitmaps = masks.to_bitmaps()
    angle, magnitude = float(rng.uniform(-40, 40)), float(rng.uniform(-.4, .4))
    cases = [(masks.rotate((60, 90), angle), mmcv.imrotate, (angle,), {}),
             (masks.rotate((60, 90), angle, (10.3, 20.7), 1.3, 1), mmcv.imrotate, (angle, (10.3, 20.7), 1.3, 1), {}),
             (masks.shear((60, 90), magnitude), mmcv.imshear, (magnitude,), {}),
             (masks.shear((60, 90), magnitude, 'vertical', 1, 'nearest'), mmcv.imshear,
              (magnitude, 'vertical', 1, 'nearest'), {}),
             (masks.translate((60, 90), 7), mmcv.imtranslate, (7,), {}),
             (masks.translate((60, 90), -7.4, 'vertical', 1), mmcv.imtranslate, (-7.4, 'vertical', 1), {}),
             (masks.resize((91, 77), 'bilinear'), mmcv.imresize, ((77, 91),), dict(interpolation='bilinear')),
             (masks.rescale((200, 100), interpolation='area'), mmcv.imrescale, ((200, 100),),
              dict(interpolation='area')),
             (masks.pad((70, 99), pad_val=1), mmcv.impad, (), dict(shape=(70, 99), pad_val=1))]
    for found, function, args, options in cases:
        expected = of_every_mask(function, bitmaps, *args, **options)
        assert found.masks.dtype == np.uint8 and np.array_equal(found.masks, expected), (function, args, options)
        assert found.to_ndarray().shape[1:] == (found.height, found.width)
    assert masks[[]].rotate((60, 90), 5).masks.shape == (0, 60, 90)
    with pytest.raises(ValueError, match="'sideways' is neither"):
        masks.shear((60, 90), 0.1, 'sideways')
    with pytest.raises(ValueError, match="interpolation 'linear' is none of nearest"):
        masks.resize((60, 80), 'linear')


def test_warped_polygons_and_their_bitmaps():
    """As in mmdetection, corners are mapped and brought to the edge."""
    corners = np.array([10., 10, 40, 10, 40, 30, 10, 30, -5, 20])
    masks = PolygonMasks([[corners]], 60, 90)
    x, y = corners[0::2], corners[1::2]

    def found(moved):
        return moved.masks[0][0][0::2], moved.masks[0][0][1::2]

    for moved, expected in ((masks.translate((60, 90), 60.5), (np.clip(x + 60.5, 0, 90), y)),
                            (masks.translate((60, 90), -15, 'vertical', None), (x, np.clip(y - 15, 0, 60))),
                            (masks.shear((60, 90), 0.25), (np.clip(x + y / 4, 0, 90), y)),
                            (masks.shear((60, 90), 0.5, 'vertical'), (np.clip(x, 0, 90), np.clip(y + x / 2, 0, 60)))):
        assert np.allclose(np.stack(found(moved)), np.stack(expected), rtol=0, atol=1e-12)
    matrix = cv2.getRotationMatrix2D((44.5, 29.5), -30, 1.25)
    expected = np.clip(matrix[:, :2] @ np.stack([x, y]) + matrix[:, 2:], 0, [[90], [60]])
    assert np.allclose(np.stack(found(masks.rotate((60, 90), 30, scale=1.25))), expected, rtol=0, atol=1e-10)
    assert isinstance(masks.to_bitmap(), BitmapMasks) and np.array_equal(masks.to_bitmap().masks, masks.to_ndarray())
    with pytest.raises(ValueError, match='to_bitmap'):
        masks.translate((60, 90), 3, fill_val=1)
    with pytest.raises(ValueError, match='to_bitmap'):
        masks.crop_and_resize(np.zeros((1, 4)), (4, 4), [0], binarize=False)


def test_targets_in_2x_s_form():
    rng = np.random.default_rng(4)
    polygons = PolygonMasks(random_polygons(rng, 3, 60, 90), 60, 90)
    bitmaps = polygons.to_bitmap()
    boxes, index = random_boxes(rng, 9, 60, 90), rng.integers(0, 3, 9)
    for masks in (bitmaps, polygons):
        found = masks.crop_and_resize(boxes, (14, 12), index, device='cpu')
        assert type(found) is type(masks) and (len(found), found.height, found.width) == (9, 14, 12)
        assert np.array_equal(found.to_ndarray(), masks.roi_targets(boxes, (14, 12), index).numpy())
        again = masks.crop_and_resize(torch.from_numpy(boxes), out_shape=(14, 12), inds=torch.from_numpy(index))
        assert np.array_equal(again.to_ndarray(), found.to_ndarray())
    soft = bitmaps.crop_and_resize(boxes, (14, 12), index, binarize=False)
    assert soft.masks.dtype == np.float32 and np.array_equal(soft.masks >= 0.5, found_bits(bitmaps, boxes, index))
    assert 0 < soft.masks[(soft.masks > 0) & (soft.masks < 1)].mean() < 1
    assert np.array_equal(pickle.loads(pickle.dumps(soft)).masks, soft.masks)


def found_bits(masks, boxes, index):
    return masks.crop_and_resize(boxes, (14, 12), index).masks.astype(bool)


def test_random_masks():
    bitmaps = BitmapMasks.random(4, 20, 30, rng=np.random.RandomState(0))
    assert bitmaps.masks.shape == (4, 20, 30) and np.allclose(bitmaps.areas, 540, atol=60)
    assert np.array_equal(BitmapMasks.random(4, 20, 30, rng=0).masks, bitmaps.masks) and len(BitmapMasks.random()) == 3
    polygons = PolygonMasks.random(20, 20, 30, rng=1)
    corners = np.concatenate([p.reshape(-1, 2) for polygons in polygons.masks for p in polygons])
    assert (polygons.areas > 0).all() and len(corners) == 100
    assert (corners >= 0).all() and (corners <= (30, 20)).all()


def test_bitmaps_of_other_types():
    whole = np.array([[[0, 300], [-1, 0]]])
    for given in (whole, whole.astype(bool), whole.astype(np.uint8) * 0 + (whole != 0)):
        assert BitmapMasks(given, 2, 2).masks.tolist() == [[[0, 1], [1, 0]]]
