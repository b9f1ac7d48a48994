"""Loading transforms: 2.x's keys; clear errors."""
import pickle
import warnings

import cv2
import numpy as np
import pytest
from PIL import Image

from boxdet.datasets.pipelines.loading import (
    FilterAnnotations,
    LoadAnnotations,
    LoadImageFromFile,
    LoadImageFromWebcam,
    LoadMultiChannelImageFromFiles,
    LoadProposals,
)
from boxdet.errors import ConfigError, DataError
from boxdet.registry import PIPELINES
from boxdet.structures.masks import BitmapMasks, PolygonMasks

POLYGONS = [[1.0, 1, 9, 1, 9, 9]], [[2.0, 2, 12, 2, 12, 12, 2, 12], [20, 2, 22, 2, 22, 4]]


def results(masks=POLYGONS, **more):
    return dict(img_info=dict(filename='a.jpg', height=20, width=30), bbox_fields=[], mask_fields=[], seg_fields=[],
                ann_info=dict(bboxes=np.ones((2, 4), dtype=np.float32), labels=np.array([3, 4]), masks=list(masks),
                              bboxes_ignore=np.zeros((1, 4), dtype=np.float32), seg_map='seg.png'), **more)


def test_image_from_file(tmp_path):
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    cv2.imwrite(str(tmp_path / 'a.png'), image)
    given = dict(img_info=dict(filename='a.png'), img_prefix=str(tmp_path))
    found = LoadImageFromFile()(dict(given))
    assert np.array_equal(found['img'], image) and found['filename'] == str(tmp_path / 'a.png')
    assert found['ori_filename'] == 'a.png' and found['img_shape'] == found['ori_shape'] == (20, 30, 3)
    assert found['img_fields'] == ['img']
    assert LoadImageFromFile(to_float32=True)(dict(given))['img'].dtype == np.float32
    assert np.array_equal(LoadImageFromFile(channel_order='rgb')(dict(given))['img'], image[..., ::-1])
    plain = LoadImageFromFile()(dict(img_info=dict(filename=str(tmp_path / 'a.png')), img_prefix=None))
    assert plain['img'].shape == (20, 30, 3)
    assert LoadImageFromWebcam()(dict(img=image))['filename'] is None
    assert PIPELINES.get('LoadImage') is PIPELINES.get('LoadImageFromWebcam') is LoadImageFromWebcam
    with pytest.raises(ConfigError, match='channel_order'):
        LoadImageFromFile(channel_order='gbr')


def test_annotations_are_copies():
    given = results()
    found = LoadAnnotations(with_mask=True)(given)
    assert found['bbox_fields'] == ['gt_bboxes', 'gt_bboxes_ignore'] and found['mask_fields'] == ['gt_masks']
    assert isinstance(found['gt_masks'], BitmapMasks) and found['gt_masks'].masks.shape == (2, 20, 30)
    found['gt_bboxes'][:] = 5
    assert (given['ann_info']['bboxes'] == 1).all()
    polygons = LoadAnnotations(with_mask=True, poly2mask=False)(results())['gt_masks']
    assert isinstance(polygons, PolygonMasks) and [len(p) for p in polygons.masks] == [1, 2]
    assert np.array_equal(polygons.to_bitmaps(), found['gt_masks'].to_bitmaps())
    assert 'gt_masks' not in LoadAnnotations()(results())
    assert 'gt_labels' not in LoadAnnotations(with_label=False)(results())
    relative = LoadAnnotations(denorm_bbox=True)(results(img_shape=(20, 30, 3)))
    assert relative['gt_bboxes'][0].tolist() == [30, 20, 30, 20]


def test_boxes_of_a_turned_image_are_a_warning_once():
    load = LoadAnnotations()
    with pytest.warns(UserWarning, match="a.jpg: the image has 30 x 20 .* say 20 x 30.*color_ignore_orientation"):
        load(results(img_shape=(30, 20, 3)))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        load(results(img_shape=(30, 20, 3)))
        LoadAnnotations()(results(img_shape=(20, 30, 3)))
        LoadAnnotations(denorm_bbox=True)(results(img_shape=(30, 20, 3)))  # these boxes know no size


def test_class_map(tmp_path):
    plane = np.arange(600, dtype=np.uint8).reshape(20, 30)
    cv2.imwrite(str(tmp_path / 'seg.png'), plane)
    found = LoadAnnotations(with_seg=True)(results(seg_prefix=str(tmp_path)))
    assert np.array_equal(found['gt_semantic_seg'], plane) and found['seg_fields'] == ['gt_semantic_seg']
    indexed = Image.fromarray(plane % 7, 'L').convert('P')
    indexed.putpalette([value for k in range(7) for value in (k * 30, 255 - k, 9)])
    indexed.save(tmp_path / 'seg.png')
    found = LoadAnnotations(with_seg=True)(results(seg_prefix=str(tmp_path)))
    assert np.array_equal(found['gt_semantic_seg'], plane % 7)


def test_semantic_maps_that_are_none(tmp_path):
    load = LoadAnnotations(with_bbox=False, with_seg=True)
    cv2.imwrite(str(tmp_path / 'seg.png'), np.zeros((20, 30), np.uint8))
    with pytest.raises(DataError, match=r'seg.png: the semantic map has 20 x 30 pixels .*, its image 30 x 20'):
        load(results(seg_prefix=str(tmp_path), img_shape=(30, 20, 3)))
    cv2.imwrite(str(tmp_path / 'seg.png'), np.arange(1800, dtype=np.uint8).reshape(20, 30, 3))
    with pytest.raises(DataError, match=r'seg.png: a colour image and no semantic map'):
        load(results(seg_prefix=str(tmp_path)))
    with pytest.raises(DataError, match=r'seg.png: no such file; the data set was given no seg_prefix'):
        load(results())


def test_wrong_masks():
    rle = dict(size=[20, 30], counts=[600])
    assert LoadAnnotations(with_mask=True)(results([rle, rle]))['gt_masks'].areas.tolist() == [0, 0]
    with pytest.raises(DataError, match='mask 1 is an RLE'):
        LoadAnnotations(with_mask=True, poly2mask=False)(results([POLYGONS[0], rle]))
    with pytest.raises(DataError, match='size'):
        LoadAnnotations(with_mask=True)(results([dict(size=[3, 3], counts=[9]), rle]))
    with pytest.raises(DataError, match='a.jpg.*30 x 20.*20 x 30'):
        LoadAnnotations(with_mask=True)(results(img_shape=(30, 20, 3)))


@pytest.mark.parametrize('poly2mask', [True, False])
def test_objects_that_nobody_drew_stay_marked(poly2mask):
    masks = LoadAnnotations(with_mask=True, poly2mask=poly2mask)(results([None, POLYGONS[0]]))['gt_masks']
    changed = pickle.loads(pickle.dumps(masks.resize((40, 60)).flip().crop((2, 2, 60, 40))))
    for one in (masks, changed, type(masks).cat([masks[[0]], masks[[1]]])):
        assert one.absent.tolist() == [True, False] and one[[1, 0]].absent.tolist() == [False, True]
        assert one.areas[0] == 0 < one.areas[1]


def test_proposals():
    given = results(proposals=np.arange(30).reshape(6, 5), proposal_file='p.pkl')
    found = LoadProposals(4)(given)
    assert found['proposals'].shape == (4, 4) and found['proposals'].dtype == np.float32
    assert found['bbox_fields'] == ['proposals']
    assert LoadProposals()(results(proposals=np.zeros((0, 5))))['proposals'].tolist() == [[0, 0, 0, 0]]
    with pytest.raises(DataError, match=r'p.pkl.*a.jpg.*\(6, 3\)'):
        LoadProposals()(results(proposals=np.zeros((6, 3)), proposal_file='p.pkl'))


def annotated(boxes):
    boxes = np.array(boxes, dtype=np.float32).reshape(-1, 4)
    masks = BitmapMasks.from_boxes(boxes, 20, 30)
    return dict(gt_bboxes=boxes, gt_labels=np.arange(len(boxes)), gt_masks=masks, gt_bboxes_ignore=np.ones((1, 4)),
                gt_keypoints=np.ones((len(boxes), 17, 3)))


@pytest.mark.parametrize('options, left', [
    (dict(), [0, 2, 3]), (dict(min_gt_bbox_wh=(4, 1)), [0, 3]), (dict(min_gt_bbox_wh=(1, 4)), [0, 2]),
    (dict(by_box=False, by_mask=True, min_gt_mask_area=15), [0, 2]),
    (dict(by_mask=True, min_gt_mask_area=15, min_gt_bbox_wh=(4, 1)), [0])])
def test_small_objects_are_dropped(options, left):
    boxes = [[0, 0, 9, 9], [5, 5, 6, 9], [1, 1, 4, 6], [2, 2, 7, 4]]  # 9 x 9, 1 x 4, 3 x 5, 5 x 2
    found = FilterAnnotations(**options)(annotated(boxes))
    assert found['gt_labels'].tolist() == left and found['gt_bboxes'].tolist() == [boxes[i] for i in left]
    assert found['gt_masks'].areas.tolist() == [[81, 4, 15, 10][i] for i in left]
    assert len(found['gt_bboxes_ignore']) == 1 and len(found['gt_keypoints']) == len(left)


def test_filtering_to_nothing():
    small = [[1, 1, 2, 2]]
    assert FilterAnnotations()(annotated(small)) is None  # 2.x calls this keep_empty
    found = FilterAnnotations(keep_empty=False)(annotated(small))
    assert found['gt_bboxes'].shape == (0, 4) and len(found['gt_masks']) == len(found['gt_labels']) == 0
    assert FilterAnnotations()(annotated([]))['gt_bboxes'].shape == (0, 4)  # it was empty before
    assert 'gt_masks' not in FilterAnnotations()(dict(gt_bboxes=np.array([[0, 0, 9, 9.]])))
    with pytest.raises(ConfigError, match='by_box=True or by_mask=True'):
        FilterAnnotations(by_box=False)
    with pytest.raises(ConfigError, match="no 'gt_masks'"):
        FilterAnnotations(by_mask=True)(dict(gt_bboxes=np.ones((1, 4))))
    with pytest.raises(ConfigError, match=r'is \(w, h\), not 3'):
        FilterAnnotations(min_gt_bbox_wh=3)


def test_channels_from_files_of_their_own(tmp_path):
    for name, shade, size in (('a.png', 3, 4), ('b.png', 9, 4), ('c.png', 9, 5)):
        cv2.imwrite(str(tmp_path / name), np.full((size, 6), shade, np.uint8))
    load = LoadMultiChannelImageFromFiles(to_float32=True)
    found = load(dict(img_prefix=str(tmp_path), img_info=dict(filename=['a.png', 'b.png'])))
    assert found['img'].dtype == np.float32 and np.array_equal(found['img'], np.broadcast_to([3., 9.], (4, 6, 2)))
    assert found['ori_filename'] == ['a.png', 'b.png'] and found['filename'][1] == str(tmp_path / 'b.png')
    assert found['img_shape'] == found['pad_shape'] == (4, 6, 2) and found['scale_factor'] == 1.0
    with pytest.raises(DataError, match=r'c\.png is an image of shape \(5, 6\), and .*a\.png one of \(4, 6\)'):
        load(dict(img_prefix=str(tmp_path), img_info=dict(filename=['a.png', 'c.png'])))
