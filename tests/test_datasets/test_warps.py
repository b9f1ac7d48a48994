"""Warps: pixels, points, boxes and masks go to the same place, whatever a data set registers as a field with them."""
import cv2
import numpy as np
import pytest

from boxdet.datasets import warps as W
from boxdet.datasets.pipelines.geometric import (
    AspectCrop,
    Expand,
    MinIoURandomCrop,
    Pad,
    RandomCrop,
    RandomFlip,
    Resize,
)
from boxdet.datasets.warps import FIELD_KINDS, Affine, Crop, Flip, Place, Scale, Shift, register_field_kind
from boxdet.geometry.masks import rotation_matrix, shear_matrix
from boxdet.structures.masks import BitmapMasks, PolygonMasks

HW = 60, 80
SPOTS = np.array([[[20.5, 12.5], [60.5, 40.5]], [[31.5, 33.5], [44.5, 50.5]]], dtype=np.float32)  # (N, 2, 2)
WARPS = {
    'scale': Scale(out_hw=(90, 160), in_hw=HW), 'shrink': Scale(out_hw=(45, 40), in_hw=HW),
    'horizontal': Flip(out_hw=HW, direction='horizontal'), 'vertical': Flip(out_hw=HW, direction='vertical'),
    'diagonal': Flip(out_hw=HW, direction='diagonal'), 'crop': Crop(out_hw=(56, 70), left=5, top=2),
    'place': Place(out_hw=(100, 120), left=13, top=29, img_fill=(9, 8, 7), seg_fill=6),
    'pad': Place(out_hw=(64, 96)),
    'rotate': Affine(out_hw=HW, matrix=rotation_matrix(25, (39.5, 29.5)), img_fill=3, seg_fill=4),
    'shear': Affine(out_hw=(70, 100), matrix=shear_matrix(0.2)),
}


@pytest.fixture(params=sorted(WARPS))
def warp(request):
    return WARPS[request.param]


def spots_on(spots):
    """A grey image with a blurred spot about each point (x, y)."""
    rows, columns = np.mgrid[:HW[0], :HW[1]] + 0.5
    image = sum(200 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 8) for x, y in spots)
    return np.repeat(image.astype(np.uint8)[..., None], 3, axis=2)


def test_points_go_where_the_pixels_go(warp):
    for spot in SPOTS.reshape(-1, 2):
        moved = warp.image(spots_on([spot]))[..., 0].astype(np.float64)
        moved[moved < 20] = 0
        rows, columns = np.mgrid[:moved.shape[0], :moved.shape[1]] + 0.5
        centre = np.array([(columns * moved).sum(), (rows * moved).sum()]) / moved.sum()
        assert moved.shape == warp.out_hw
        np.testing.assert_allclose(centre, warp.points(spot), atol=0.2)


def test_keypoints_and_boxes_go_with_the_points(warp):
    keypoints = np.concatenate([SPOTS, np.full((2, 2, 1), 2, np.float32)], axis=2)
    moved = warp.keypoints(keypoints, [])
    assert moved.dtype == np.float32
    np.testing.assert_allclose(moved[..., :2], warp.points(SPOTS), rtol=1e-6)
    corners = np.sort(SPOTS, axis=1)
    boxes = corners.reshape(2, 4)
    around = np.stack([boxes[:, [0, 1]], boxes[:, [2, 1]], boxes[:, [0, 3]], boxes[:, [2, 3]]], axis=1)
    expected = warp.points(around)
    found = warp.boxes(boxes)
    # 2.x maps the corners of boxes by OpenCV's matrix, half a pixel off.
    tolerance = 0.6 if isinstance(warp, Affine) else 1e-5
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, np.concatenate([expected.min(axis=1), expected.max(axis=1)], 1), atol=tolerance)


def test_masks_and_maps_show_the_same(warp):
    polygons = [[np.array([20., 12, 60, 12, 60, 40, 25, 44])], [np.array([31., 33, 44, 33, 44, 50])]]
    drawn = PolygonMasks(polygons, *HW)
    classes = np.zeros(HW, np.uint8)
    for k, bitmap in enumerate(drawn.to_bitmaps()):
        classes[bitmap > 0] = 10 + k
    moved = warp.seg(classes)
    assert moved.dtype == np.uint8 and moved.shape == warp.out_hw
    assert set(np.unique(moved)) <= {0, 10, 11, getattr(warp, 'seg_fill', 0)}
    for wide in (np.int64, np.int32):
        assert np.array_equal(warp.seg(classes.astype(wide)), moved) and warp.seg(classes.astype(wide)).dtype == wide
    for masks in (drawn, drawn.to_bitmap()):
        found = warp.masks(masks)
        assert type(found) is type(masks) and (found.height, found.width) == warp.out_hw
        last = found.to_bitmaps()[1] > 0
        assert (moved[last] == 11).mean() > 0.88 and (moved[~last] == 11).mean() < 0.01
    colour = warp.image(np.repeat(classes[..., None], 3, axis=2))
    assert colour.shape == (*warp.out_hw, 3)


def sample(seed=0):
    rng = np.random.default_rng(seed)
    corner = rng.integers(2, 30, (5, 2))
    boxes = np.concatenate([corner, corner + rng.integers(8, 25, (5, 2))], axis=1).astype(np.float32)
    image = np.full((*HW, 3), 50, np.uint8)
    bitmaps = np.zeros((5, *HW), np.uint8)
    for bitmap, (x1, y1, x2, y2) in zip(bitmaps, boxes.astype(int)):
        bitmap[y1:y2, x1:x2] = 1
        image[y1:y2, x1:x2] = 200
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    return dict(img=image, depth=image[..., 0].copy(), img_shape=image.shape, img_fields=['img', 'depth'],
                gt_bboxes=boxes, gt_labels=np.arange(5), gt_masks=BitmapMasks(bitmaps, *HW), gt_centres=centres,
                pad_shape=image.shape,
                gt_tracks=np.arange(5) + 70, gt_semantic_seg=(image[..., 0] > 100).astype(np.uint8),
                bbox_fields=['gt_bboxes'], mask_fields=['gt_masks'], seg_fields=['gt_semantic_seg'],
                centre_fields=['gt_centres'], object_fields=['gt_tracks'])


@pytest.fixture
def centre_fields():
    register_field_kind('centre_fields', move_centres, per_object=True)
    yield
    del FIELD_KINDS['centre_fields']


def move_centres(centres, warp, sample):
    return warp.points(centres)


TRANSFORMS = [Resize((120, 100)), RandomFlip(1.0, 'diagonal'), Pad(size_divisor=32),
              RandomCrop((35, 45), recompute_bbox=True), RandomCrop((35, 45)), MinIoURandomCrop(min_crop_size=0.5),
              Expand(prob=1.0), AspectCrop(0.3, 0.5)]


@pytest.mark.parametrize('transform', TRANSFORMS, ids=lambda transform: type(transform).__name__)
def test_what_a_data_set_registers_moves_with_the_boxes(centre_fields, transform):
    dropped = 0
    for seed in range(12):
        np.random.seed(seed)
        results = transform(sample(seed))
        if results is None:
            continue
        boxes, centres = results['gt_bboxes'], results['gt_centres']
        assert len(boxes) == len(centres) == len(results['gt_labels']) == len(results['gt_masks'])
        assert (results['gt_tracks'] == results['gt_labels'] + 70).all()
        dropped += 5 - len(boxes)
        size = np.array(results['img'].shape[1::-1])
        whole = ((boxes[:, :2] > 0.01) & (boxes[:, 2:] < size - 0.01)).all(axis=1)
        np.testing.assert_allclose(centres[whole], ((boxes[:, :2] + boxes[:, 2:]) / 2)[whole], atol=0.01)
        if not isinstance(transform, (Pad, RandomFlip)):
            assert results['img_shape'] == results['pad_shape'] == results['img'].shape
        inside = results['img'][..., 0]
        assert np.array_equal(results['depth'], inside) or isinstance(transform, Expand)
        assert results['gt_semantic_seg'].shape == results['depth'].shape == inside.shape
        assert ((results['gt_semantic_seg'] == 1) == (inside > 125)).mean() > 0.97
    assert dropped or not isinstance(transform, (RandomCrop, MinIoURandomCrop))


def test_a_kind_is_registered_once(centre_fields):
    register_field_kind('centre_fields', move_centres, per_object=True)  # a module that is imported twice
    with pytest.raises(ValueError, match="'bbox_fields' is registered already"):
        register_field_kind('bbox_fields', move_centres)


def test_a_subclass_is_heard_by_kind_of_field():
    class Unmoved(Resize):
        """Boxes stay as they are."""
        seen = []

        def move_kind(self, kind, results, warp):
            self.seen.append((kind, warp.out_hw, results['scale_factor'].tolist()))
            if kind != 'bbox_fields':
                super().move_kind(kind, results, warp)

    results = Unmoved((160, 120))(sample())
    assert np.array_equal(results['gt_bboxes'], sample()['gt_bboxes']) and results['img'].shape == (120, 160, 3)
    assert [kind for kind, *_ in Unmoved.seen] == list(FIELD_KINDS)
    assert list(FIELD_KINDS)[:2] == ['img_fields', 'bbox_fields']
    assert all(rest == [(120, 160), [2, 2, 2, 2]] for rest in (list(seen[1:]) for seen in Unmoved.seen))


def test_interpolation_of_maps_is_opencv_s():
    classes = np.random.default_rng(0).integers(0, 9, (37, 53))
    found = Scale(out_hw=(91, 64), in_hw=(37, 53)).seg(classes)
    assert np.array_equal(found, cv2.resize(classes.astype(np.uint8), (64, 91), interpolation=cv2.INTER_NEAREST))


# ---------------------------------------------------------------------------------------------- by hand


def test_boxes_and_keypoints_at_the_edges():
    assert W.clip_boxes(np.float32([[-1, -2, 90, 70], [3, 4, 5, 6]]), HW).tolist() == [[0, 0, 80, 60], [3, 4, 5, 6]]
    joints = np.float32([[[0, 0, 2], [80, 60, 1], [80.1, 5, 2], [5, 60.1, 2], [-0.1, 5, 2], [5, -0.1, 2], [7, 8, 0]]])
    expected = np.zeros_like(joints)
    expected[0, :2] = joints[0, :2]
    assert np.array_equal(W.visible_keypoints(joints, HW), expected)


@pytest.mark.parametrize('direction, expected', [
    ('horizontal', [70, 2, 79, 30]), ('vertical', [1, 30, 10, 58]), ('diagonal', [70, 30, 79, 58])])
def test_flipped_boxes(direction, expected):
    boxes = np.float32([[1, 2, 10, 30]])
    assert W.flip_boxes(boxes, HW, direction).tolist() == [expected]
    assert Flip(out_hw=HW, direction=direction).boxes(boxes).tolist() == [expected]
    point = Flip(out_hw=HW, direction=direction).points(np.float32([[1, 2]]))
    x, y = (79 if direction != 'vertical' else 1), (58 if direction != 'horizontal' else 2)
    assert point.tolist() == [[x, y]]


@pytest.mark.parametrize('shift, new, old', [(3, (3, 10), (0, 7)), (-3, (0, 7), (3, 10)), (0, (0, 10), (0, 10)),
                                             (12, (12, 12), (0, 0))])
def test_what_a_shifted_axis_has_in_common_with_the_old_one(shift, new, old):
    assert W._overlap(10, shift) == (slice(*new), slice(*old))


@pytest.mark.parametrize('x, y', [(5, 3), (-5, 3), (5, -3), (-5, -3)])
def test_a_shift_moves_pixels_maps_masks_points_and_boxes(x, y):
    rng = np.random.default_rng(0)
    image, classes = rng.integers(1, 255, (*HW, 3), dtype=np.uint8), rng.integers(1, 9, HW).astype(np.uint8)
    warp = Shift(out_hw=HW, x=x, y=y)
    rows, columns = np.mgrid[:HW[0], :HW[1]]
    known = (rows - y >= 0) & (rows - y < HW[0]) & (columns - x >= 0) & (columns - x < HW[1])
    for moved, before, outside in ((warp.image(image), image, 0), (warp.seg(classes), classes, 255)):
        assert np.array_equal(moved[known], before[(rows - y)[known], (columns - x)[known]])
        assert (moved[~known] == outside).all()
    assert warp.points(np.float32([[20, 30]])).tolist() == [[20 + x, 30 + y]]
    assert warp.boxes(np.float32([[20, 30, 25, 40]])).tolist() == [[20 + x, 30 + y, 25 + x, 40 + y]]
    bitmap = np.zeros((1, *HW), np.uint8)
    bitmap[0, 20:40, 30:50] = 1
    assert warp.masks(BitmapMasks(bitmap, *HW)).bboxes().tolist() == [[30 + x, 20 + y, 50 + x, 40 + y]]


def test_points_of_an_affine_map_are_where_the_pixels_go():
    warp = Affine(out_hw=HW, matrix=np.array([[2., 0, 3], [0, 1, -5]]))
    assert warp.points(np.float32([[10.5, 20.5]])).tolist() == [[23.5, 15.5]]
    assert warp.boxes(np.float32([[10, 20, 12, 30]])).tolist() == [[23, 15, 27, 25]]
    assert (warp.seg(np.ones(HW, np.uint8))[-5:] == 255).all() and Affine.seg_fill == 255 and Affine.img_fill == 0


def test_a_map_of_any_type_is_resized_alike():
    classes = np.random.default_rng(0).integers(0, 200, (37, 53))
    for kind in (np.uint8, np.int32, np.int64):
        found = W.resize_map(classes.astype(kind), (20, 91))
        assert found.dtype == kind and np.array_equal(found, cv2.resize(classes.astype(np.uint8), (91, 20),
                                                                        interpolation=cv2.INTER_NEAREST))


def test_keypoints_under_any_name_go_with_their_object():
    np.random.seed(0)
    image = np.zeros((40, 40, 3), np.uint8)
    corners = np.float32([[0, 0], [20, 20], [30, 2]])
    results = RandomCrop((12, 12))(dict(
        img=image, img_fields=['img'], bbox_fields=['gt_bboxes'], keypoint_fields=['marks'], gt_labels=np.arange(3),
        gt_bboxes=np.concatenate([corners, corners + 8], axis=1),
        marks=np.concatenate([corners + 1, np.full((3, 1), 2, np.float32)], axis=1)[:, None]))
    assert 0 < len(results['marks']) == len(results['gt_labels']) < 3
