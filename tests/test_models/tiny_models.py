"""Detectors and batches small enough for tests: a narrow ResNet-18-FPN on images of 96 x 128."""
from __future__ import annotations

import copy

import numpy as np
import torch

from boxdet.structures.batch import Batch, ImageMeta
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks

CLASSES = 3
LOSS_CLS = dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0)
CODER = dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[0.1, 0.1, 0.2, 0.2])


def draw_everything(cfg: dict) -> dict:
    """train_cfg with samplers that take every box, so that nothing is drawn at random."""
    if isinstance(cfg, (list, tuple)):
        return [draw_everything(c) for c in cfg]
    if not isinstance(cfg, dict):
        return cfg
    return {k: {**v, 'num': 10 ** 7, 'pos_fraction': 1.0} if k in ('sampler', 'ga_sampler') else draw_everything(v)
            for k, v in cfg.items()}


def rpn_head(**changes) -> dict:
    return dict(type='RPNHead', in_channels=16, feat_channels=16, anchor_generator=dict(
                    type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
                bbox_coder=dict(type='DeltaXYWHBBoxCoder',
                                target_means=[.0, .0, .0, .0],
                                target_stds=[1.0, 1.0, 1.0, 1.0]),
                loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
                loss_bbox=dict(type='L1Loss', loss_weight=1.0)) | changes


def bbox_head(**changes) -> dict:
    return dict(type='Shared2FCBBoxHead', in_channels=16, fc_out_channels=32, roi_feat_size=7,
                num_classes=CLASSES, bbox_coder=CODER, reg_class_agnostic=False, loss_cls=LOSS_CLS,
                loss_bbox=dict(type='L1Loss', loss_weight=1.0)) | changes


def mask_head(**changes) -> dict:
    return dict(type='FCNMaskHead', num_convs=1, in_channels=16, conv_out_channels=16, num_classes=CLASSES,
                loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)) | changes


def keypoint_head(**changes) -> dict:
    return dict(type='KeypointRCNNHead', num_convs=2, in_channels=16, conv_out_channels=16, num_keypoints=5,
                flip_pairs=[(1, 2), (3, 4)], skeleton=[(0, 1), (0, 2), (1, 3), (2, 4)]) | changes


def extractor(size: int, strides=(4, 8, 16, 32), channels: int = 16) -> dict:
    return dict(type='SingleRoIExtractor',
                roi_layer=dict(type='RoIAlign', output_size=size, sampling_ratio=0), out_channels=channels,
                featmap_strides=list(strides))


def rcnn_train(iou: float = 0.5, **sampler) -> dict:
    return dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou,
                      match_low_quality=False, ignore_iof_thr=0.5),
        sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=True)
        | sampler,
        mask_size=28,
        pos_weight=-1,
        debug=False)


def train_cfg(rcnn=None) -> dict:
    return dict(rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3,
                                       min_pos_iou=0.3, match_low_quality=True, ignore_iof_thr=0.5),
                         sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, neg_pos_ub=-1,
                                      add_gt_as_proposals=False),
                         allowed_border=-1,
                         pos_weight=-1,
                         debug=False),
                rpn_proposal=dict(nms_pre=200, max_per_img=100, nms=dict(type='nms', iou_threshold=0.7),
                                  min_bbox_size=0),
                rcnn=rcnn or rcnn_train())


def test_cfg(score_thr: float = 0.05) -> dict:
    return dict(rpn=dict(nms_pre=100, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7),
                         min_bbox_size=0),
                rcnn=dict(score_thr=score_thr, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20,
                          mask_thr_binary=0.5))


test_cfg.__test__ = False  # a config, and no test


def body() -> dict:
    return dict(
        backbone=dict(type='ResNet', depth=18, base_channels=8, num_stages=4, out_indices=(0, 1, 2, 3),
                      norm_cfg=dict(type='BN', requires_grad=True), norm_eval=False, style='pytorch'),
        neck=dict(type='FPN', in_channels=[8, 16, 32, 64], out_channels=16, num_outs=5))


def faster_rcnn(**changes) -> dict:
    return body() | dict(
        type='FasterRCNN', rpn_head=rpn_head(),
        roi_head=dict(type='StandardRoIHead', bbox_roi_extractor=extractor(7), bbox_head=bbox_head()),
        train_cfg=train_cfg(), test_cfg=test_cfg()) | changes


def mask_rcnn(**changes) -> dict:
    cfg = faster_rcnn(type='MaskRCNN')
    cfg['roi_head'] |= dict(mask_roi_extractor=extractor(14), mask_head=mask_head())
    return cfg | changes


def keypoint_rcnn(**changes) -> dict:
    cfg = faster_rcnn(type='KeypointRCNN')
    cfg['roi_head'] |= dict(keypoint_roi_extractor=extractor(14), keypoint_head=keypoint_head())
    return cfg | changes


def cascade_mask_rcnn(**changes) -> dict:
    heads = [
        bbox_head(reg_class_agnostic=True,
                  bbox_coder=CODER | dict(target_stds=[0.1 / s, 0.1 / s, 0.2 / s, 0.2 / s]))
        for s in (1, 2, 3)
    ]
    roi_head = dict(type='CascadeRoIHead', num_stages=3, stage_loss_weights=[1, 0.5, 0.25],
                    bbox_roi_extractor=extractor(7), bbox_head=heads, mask_roi_extractor=extractor(14),
                    mask_head=mask_head())
    return faster_rcnn(type='CascadeRCNN', roi_head=roi_head,
                       train_cfg=train_cfg([rcnn_train(iou) for iou in (0.5, 0.6, 0.7)])) | changes


def c4_mask_rcnn(**changes) -> dict:
    """Shared last stage, one level, one extractor for both heads."""
    norm = dict(type='BN', requires_grad=False)
    cfg = faster_rcnn(type='MaskRCNN',
                      neck=None,
                      backbone=dict(type='ResNet', depth=18, num_stages=3, strides=(1, 2, 2),
                                    dilations=(1, 1, 1), out_indices=(2,), norm_cfg=norm, norm_eval=True,
                                    style='caffe'),
                      rpn_head=rpn_head(in_channels=256,
                                        anchor_generator=dict(type='AnchorGenerator', scales=[2, 4, 8],
                                                              ratios=[0.5, 1.0, 2.0], strides=[16])),
                      roi_head=dict(type='StandardRoIHead',
                                    shared_head=dict(type='ResLayer', depth=18, stage=3, stride=2, dilation=1,
                                                     style='caffe', norm_cfg=norm, norm_eval=True),
                                    bbox_roi_extractor=extractor(14, [16], 256),
                                    bbox_head=bbox_head(type='BBoxHead', with_avg_pool=True, in_channels=512),
                                    mask_roi_extractor=None,
                                    mask_head=mask_head(num_convs=0, in_channels=512)),
                      train_cfg=train_cfg(rcnn_train() | dict(mask_size=14)))
    cfg['roi_head']['bbox_head'].pop('fc_out_channels')
    return cfg | changes


def meta(height: int = 96, width: int = 128, scale: float = 1.0, **changes) -> ImageMeta:
    values = dict(filename='a.jpg', ori_shape=(round(height / scale), round(width / scale), 3),
                  img_shape=(height, width, 3), pad_shape=(height, width, 3),
                  scale_factor=np.full(4, scale, dtype=np.float32), image_id=1) | changes
    return ImageMeta(**values)


def batch(counts=(2, 1), crowds=(0, 0), masks: bool = True, seed: int = 0, size=(96, 128), keypoints: int = 0) -> Batch:
    """Random images with ``counts`` objects, of ``keypoints`` visible keypoints, and ``crowds`` ignored boxes each."""
    rng = np.random.default_rng(seed)
    height, width = size
    images = torch.from_numpy(rng.standard_normal((len(counts), 3, height, width)).astype(np.float32))
    gt, ignored = [], []
    for count, crowd in zip(counts, crowds):
        boxes = _boxes(rng, count, height, width)
        fields = dict(bboxes=boxes, labels=torch.from_numpy(rng.integers(0, CLASSES, count)))
        if masks:
            bitmaps = np.zeros((count, height, width), dtype=np.uint8)
            for bitmap, (x0, y0, x1, y1) in zip(bitmaps, boxes.int().tolist()):
                bitmap[y0:y1, x0:(x0 + x1) // 2] = 1
            fields['masks'] = BitmapMasks(bitmaps, height, width)
        if keypoints:
            place = boxes[:, None, :2] + torch.rand(count, keypoints, 2) * (boxes[:, 2:] - boxes[:, :2])[:, None]
            fields['keypoints'] = torch.cat([place, torch.full((count, keypoints, 1), 2.)], dim=2)
        gt.append(Instances((height, width), CLASSES, **fields))
        ignored.append(_boxes(rng, crowd, height, width))
    return Batch(images, [meta(height, width) for _ in counts], gt, ignored)


def _boxes(rng, count: int, height: int, width: int) -> torch.Tensor:
    corner = rng.uniform(0, (width - 60, height - 60), (count, 2))
    return torch.from_numpy(np.concatenate([corner, corner + rng.uniform(20, 60, (count, 2))], axis=1)
                            .astype(np.float32))


def total(losses: dict) -> torch.Tensor:
    return sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)


def copied(cfg: dict) -> dict:
    return copy.deepcopy(cfg)
