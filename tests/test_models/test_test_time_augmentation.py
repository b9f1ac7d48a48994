"""Views of an image merged, against the same written out plainly."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torchvision.ops import nms

from boxdet.geometry.boxes import flip_boxes
from boxdet.geometry.nms import multiclass_nms
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.structures.batch import Batch, boxes_to_input, boxes_to_original, flip_masks, to_input, to_original
from boxdet.structures.instances import Instances
from tests.test_models import tiny_models
from tests.test_models.test_detectors import build, fast_rcnn, rpn

DIRECTIONS = ['horizontal', 'vertical', 'diagonal']
FLIPS = {'horizontal': (-1,), 'vertical': (-2,), 'diagonal': (-2, -1)}


def views(count: int = 1) -> list[Batch]:
    """The image as it is, flipped, and enlarged and flipped the other way."""
    images = tiny_models.batch((1,) * count, (0,) * count).images
    large = torch.nn.functional.interpolate(images, (192, 256), mode='bilinear').flip(-2)
    sized = dict(ori_shape=(96, 128, 3), scale_factor=np.full(4, 2, dtype=np.float32))
    return [Batch(images, [tiny_models.meta()] * count),
            Batch(images.flip(-1), [tiny_models.meta(flip=True, flip_direction='horizontal')] * count),
            Batch(large, [tiny_models.meta(192, 256, flip=True, flip_direction='vertical', **sized)] * count)]


@pytest.mark.parametrize('direction', DIRECTIONS)
def test_frames_are_inverse(direction):
    meta = tiny_models.meta(ori_shape=(48, 256, 3),
                            scale_factor=np.array([0.5, 2, 0.5, 2], dtype=np.float32),
                            flip=True,
                            flip_direction=direction)
    boxes = torch.tensor([[10., 5, 100, 30]])
    there = boxes_to_input(boxes, meta)
    torch.testing.assert_close(there, flip_boxes(boxes * torch.tensor([0.5, 2, 0.5, 2]), (96, 128),
                                                 direction))
    torch.testing.assert_close(boxes_to_original(there, meta), boxes)
    several = torch.cat([there, there + 3], dim=1)
    torch.testing.assert_close(boxes_to_original(several, meta)[:, :4], boxes)
    masks = torch.rand(2, 3, 4)
    assert torch.equal(flip_masks(masks, meta), masks.flip(FLIPS[direction]))
    result = Instances((48, 256), 3, bboxes=boxes, mask_probs=masks[:1])
    back = to_original(to_input(result, meta), meta)
    torch.testing.assert_close(back.bboxes, boxes)
    assert torch.equal(back.mask_probs, masks[:1]) and back.image_size == (48, 256)
    assert to_input(result, meta).image_size == (96, 128)


def plainly(model, batches: list[Batch]):
    """One image, view by view, as mmdetection's aug_test has it: boxes, scores, labels and mask probabilities."""
    feats = [model.extract_feat(b.images) for b in batches]
    metas = [b.metas[0] for b in batches]
    rows = []
    for levels, meta in zip(feats, metas):
        found = model.rpn_head.predict(*model.rpn_head(levels), [meta])[0]
        boxes = flip_boxes(found.bboxes, meta.img_shape, meta.flip_direction) if meta.flip else found.bboxes
        rows.append(torch.cat([boxes / torch.from_numpy(meta.scale_factor), found.scores[:, None]], dim=1))
    rows = torch.cat(rows)
    proposals = rows[nms(rows[:, :4].double(), rows[:, 4].double(), 0.7)[:model.test_cfg.rpn.max_per_img], :4]
    boxes, scores, head = [], [], model.roi_head.bbox_head
    for levels, meta in zip(feats, metas):
        own = proposals * torch.from_numpy(meta.scale_factor)
        own = flip_boxes(own, meta.img_shape, meta.flip_direction) if meta.flip else own
        logits, deltas = head(model.roi_head.bbox_roi_extractor(levels, boxes_to_rois([own])))
        moved = head.bbox_coder.decode(own, deltas, max_shape=meta.img_shape)
        moved = flip_boxes(moved, meta.img_shape, meta.flip_direction) if meta.flip else moved
        boxes.append((moved.view(-1, 3, 4) / torch.from_numpy(meta.scale_factor)).flatten(1))
        scores.append(logits.softmax(1))
    dets, labels = multiclass_nms(sum(boxes) / 3, sum(scores) / 3, model.test_cfg.rcnn.score_thr,
                                  model.test_cfg.rcnn.nms, model.test_cfg.rcnn.max_per_img)
    masks = []
    for levels, meta in zip(feats, metas):
        own = dets[:, :4] * torch.from_numpy(meta.scale_factor)
        own = flip_boxes(own, meta.img_shape, meta.flip_direction) if meta.flip else own
        logits = model.roi_head.mask_head(model.roi_head.mask_roi_extractor(levels, boxes_to_rois([own])))
        probs = logits[torch.arange(len(own)), labels].sigmoid()
        masks.append(probs.flip(FLIPS[meta.flip_direction]) if meta.flip else probs)
    return dets, labels, sum(masks) / 3


def test_three_views_are_merged_as_mmdetection_does():
    model = build(tiny_models.mask_rcnn())
    with torch.no_grad():
        dets, labels, probs = plainly(model, views())
    found = model.predict(views())[0]
    assert len(found) > 3
    torch.testing.assert_close(found.bboxes, dets[:, :4], rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(found.scores, dets[:, 4])
    assert torch.equal(found.labels, labels) and found.image_size == (96, 128)
    seen = []
    model._with_masks = lambda result: seen.append(result) or result
    model.predict(views())
    torch.testing.assert_close(seen[0].mask_probs, probs, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize('family', [tiny_models.faster_rcnn, tiny_models.cascade_mask_rcnn])
def test_the_order_of_the_views_does_not_matter(family):
    model = build(family())
    one, other = model.predict(views())[0], model.predict(views()[::-1])[0]
    torch.testing.assert_close(one.bboxes, other.bboxes, rtol=1e-4, atol=1e-3)
    assert ('masks' in one) == model.with_mask and len(one)
    if model.with_mask:
        assert one.masks.areas.tolist() == pytest.approx(other.masks.areas.tolist(), abs=3)


def test_a_batch_of_images_and_the_frame_of_the_first_view():
    model = build(tiny_models.mask_rcnn())
    single, pair = model.predict(views()[::-1])[0], model.predict(views(2)[::-1])
    assert len(pair) == 2 and len(single)
    large = model.predict(views()[::-1], rescale=False)[0]
    assert large.image_size == (192, 256)
    torch.testing.assert_close(large.bboxes, flip_boxes(single.bboxes * 2, (192, 256), 'vertical'))
    assert large.masks.to_bitmaps().shape[1:] == (192, 256)


def test_proposals_of_several_views():
    model = build(rpn())
    found = model.predict(views())[0]
    assert len(found) == 50 and found.image_size == (96, 128) and (found.scores.diff() <= 0).all()
    assert (found.bboxes[:, 2] <= 128).all()
    large = model.predict(views()[::-1], rescale=False)[0]
    torch.testing.assert_close(large.bboxes,
                               flip_boxes(model.predict(views()[::-1])[0].bboxes * 2, (192, 256), 'vertical'))


def test_views_with_proposals_of_their_own():
    model = build(fast_rcnn())
    boxes = torch.tensor([[10., 10, 60, 70], [30, 5, 100, 90]])
    batches = [
        Batch(v.images,
              v.metas,
              proposals=[Instances(bboxes=boxes_to_input(boxes, v.metas[0]), scores=torch.ones(2))])
        for v in views()
    ]
    found = model.predict(batches)[0]
    expected = model.predict([batches[0], batches[0]])[0]
    assert len(found) and len(expected)
    alone = model.predict(batches[:1])[0]
    torch.testing.assert_close(expected.scores, alone.scores)
