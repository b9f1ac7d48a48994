"""detectron2's and tensorpack's cascade: averaged probabilities, one mask head."""
import torch

from boxdet.models.families.single_mask_cascade import SingleMaskCascadeRoIHead
from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks


def head(**more):
    extractor = dict(type='SingleRoIExtractor', out_channels=4, featmap_strides=[4],
                     roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=2))
    stage = dict(type='Shared2FCBBoxHead', in_channels=4, fc_out_channels=8, num_classes=3, reg_class_agnostic=True)
    matching = [dict(
        assigner=dict(type='MaxIoUAssigner', pos_iou_thr=iou, neg_iou_thr=iou, min_pos_iou=iou,
                      match_low_quality=False),
        sampler=dict(type='RandomSampler', num=32, pos_fraction=0.25) if iou == 0.5 else dict(type='PseudoSampler'),
        mask_size=28) for iou in (0.5, 0.6, 0.7)]
    return SingleMaskCascadeRoIHead(
        num_stages=3, stage_loss_weights=[1, 1, 1], bbox_roi_extractor=extractor, bbox_head=[stage] * 3,
        mask_roi_extractor=dict(extractor, roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=2)),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=4, conv_out_channels=4, num_classes=3),
        train_cfg=matching, **more,
        test_cfg=dict(score_thr=0.0, nms=dict(type='nms', iou_threshold=0.5), max_per_img=10))


def inputs():
    torch.manual_seed(0)
    feats = [torch.randn(1, 4, 16, 16)]
    boxes = torch.tensor([[4., 4., 30., 30.], [20., 10., 60., 50.], [1., 1., 20., 60.]])
    meta = ImageMeta(filename='a.jpg', ori_shape=(64, 64, 3), img_shape=(64, 64, 3), pad_shape=(64, 64, 3),
                     scale_factor=(1.0, 1.0, 1.0, 1.0))
    return feats, boxes, [meta]


def test_probabilities_are_averaged():
    roi_head = head().eval()
    feats, boxes, metas = inputs()
    seen, logits, _ = roi_head.classify(feats, [boxes], metas)
    probabilities, own = [], [boxes]
    for stage in range(3):
        rois = torch.cat([torch.zeros(3, 1), own[0]], dim=1)
        scores, deltas = roi_head.bbox_head[stage](roi_head.bbox_roi_extractor[stage](feats, rois))
        probabilities.append(scores.softmax(dim=1))
        if stage < 2:
            own = [roi_head.bbox_head[stage].decode(own[0], deltas, (64, 64))]
    assert torch.allclose(logits.softmax(dim=1), sum(probabilities) / 3, atol=1e-6)
    assert torch.allclose(seen[0], own[0], atol=1e-4)


def test_it_learns_and_has_one_mask_head():
    roi_head = head()
    assert not any(name.startswith('mask_head.0.') for name in roi_head.state_dict())
    feats, boxes, metas = inputs()
    masks = torch.zeros(1, 64, 64, dtype=torch.uint8)
    masks[0, 4:30, 4:30] = 1
    gt = [Instances((64, 64), bboxes=boxes[:1], labels=torch.tensor([1]), masks=BitmapMasks(masks.numpy(), 64, 64))]
    losses = roi_head.loss(feats, [Instances((64, 64), bboxes=boxes, scores=torch.ones(3))], gt, None, metas)
    assert {'s0.loss_cls', 's2.loss_bbox', 'loss_mask'} <= losses.keys()
    sum(v for name, v in losses.items() if 'loss' in name).backward()
    assert roi_head.mask_head.conv_logits.weight.grad.abs().sum() > 0
    results = roi_head.eval().predict(feats, [Instances((64, 64), bboxes=boxes, scores=torch.ones(3))], metas)
    assert results[0].mask_probs.shape[1:] == (28, 28)
