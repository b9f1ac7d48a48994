"""Three plug-ins of the forms found in public, trained two steps, and the same in boxdet's own form.

A process of its own: ``install()`` stays with it. The plain classes are built before, so that they are boxdet's own.
"""
import copy
import sys

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from boxdet.models import BACKBONES, HEADS, build_detector
from boxdet.models.bbox_head import Shared2FCBBoxHead as OurBBoxHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead as OurRoIHead
from boxdet.models.standard_roi_head import draw_samples
from boxdet.structures.batch import Batch, ImageMeta
from boxdet.structures.instances import Instances

RCNN = dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
            sampler=dict(type='RandomSampler', num=64, pos_fraction=0.25), pos_weight=-1)
RPN = dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
           sampler=dict(type='RandomSampler', num=64, pos_fraction=0.5, add_gt_as_proposals=False), allowed_border=-1)
PROPOSALS = dict(nms_pre=200, max_per_img=100, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0)


def config(detector='FasterRCNN', backbone=None, bbox_head=None, roi_head='StandardRoIHead', **more):
    return dict(
        type=detector, backbone=backbone or dict(type='ResNet', depth=18, norm_eval=True),
        neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=16, num_outs=5),
        rpn_head=dict(type='RPNHead', in_channels=16, feat_channels=16,
                      anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[1.0],
                                            strides=[4, 8, 16, 32, 64])),
        roi_head=dict(type=roi_head, bbox_roi_extractor=dict(
            type='SingleRoIExtractor', roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0),
            out_channels=16, featmap_strides=[4, 8, 16, 32]), bbox_head=dict(
                type=bbox_head or 'Shared2FCBBoxHead', in_channels=16, fc_out_channels=32, num_classes=3), **more),
        train_cfg=dict(rpn=RPN, rpn_proposal=PROPOSALS, rcnn=RCNN),
        test_cfg=dict(rpn=PROPOSALS, rcnn=dict(
            score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=20)))


def batch():
    generator = torch.Generator().manual_seed(5)
    corner = torch.rand(2, 4, 2, generator=generator) * 60
    boxes = torch.cat([corner, corner + 16 + torch.rand(2, 4, 2, generator=generator) * 40], dim=2)
    meta = ImageMeta(img_shape=(128, 128, 3), ori_shape=(64, 64, 3), pad_shape=(128, 128, 3),
                     scale_factor=np.full(4, 2, np.float32))
    gt = [Instances(bboxes=own, labels=torch.tensor([0, 1, 2, 1])) for own in boxes]
    return Batch(torch.rand(2, 3, 128, 128, generator=generator), [meta, meta], gt, [torch.zeros(0, 4)] * 2)


# ------------------------------------------------------------------------------------------ plain


class Pyramid(nn.Module):
    """A pyramid of transformer stages, small: patches, attention over a reduced grid."""

    def __init__(self, widths=(64, 128, 256, 512)):
        super().__init__()
        sizes = (3, *widths)
        self.patches = nn.ModuleList(nn.Conv2d(i, o, 4 if k == 0 else 2, 4 if k == 0 else 2)
                                     for k, (i, o) in enumerate(zip(sizes, sizes[1:])))
        self.attention = nn.ModuleList(nn.MultiheadAttention(w, 2, batch_first=True) for w in widths)

    def forward(self, x):
        levels = []
        for patch, attention in zip(self.patches, self.attention):
            x = patch(x)
            tokens, reduced = x.flatten(2).transpose(1, 2), F.adaptive_avg_pool2d(x, 4).flatten(2).transpose(1, 2)
            x = x + attention(tokens, reduced, reduced, need_weights=False)[0].transpose(1, 2).reshape(x.shape)
            levels.append(x)
        return tuple(levels)


@BACKBONES.register_module()
class PlainPyramid(Pyramid):
    pass


@HEADS.register_module()
class PlainCosine(OurBBoxHead):
    def forward(self, x):
        for fc in self.shared_fcs:
            x = F.relu(fc(x.flatten(1)))
        return 20 * F.normalize(x) @ F.normalize(self.fc_cls.weight).t(), self.fc_reg(x)


def contrast(features, labels):
    """The mean similarity of features of unlike labels, above that of like ones."""
    near = F.normalize(features) @ F.normalize(features).t()
    same = (labels[:, None] == labels[None]).to(near.dtype)
    return (near * (1 - same)).mean() - (near * same).mean() + 1


@HEADS.register_module()
class PlainContrast(OurRoIHead):
    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)
        self.weight, self.project = weight, nn.Linear(16, 8)

    def loss(self, feats, proposals, gt, ignored, metas):
        samples = draw_samples(self.assigner, self.sampler, [p.bboxes for p in proposals], gt, ignored)
        scores, deltas, pooled = self.box_forward(feats, boxes_to_rois([s.boxes for s in samples]))
        targets = self.bbox_head.targets(samples, self.train_cfg)
        losses = self.bbox_head.loss(scores, deltas, targets)
        return {**losses, 'loss_contrast': self.weight * contrast(self.project(pooled.mean((2, 3))), targets.labels)}


PLAIN = dict(backbone=config(backbone=dict(type='PlainPyramid')), cosine=config(bbox_head='PlainCosine'),
             contrast=config(roi_head='PlainContrast', weight=0.5))
torch.manual_seed(0)
plain = {name: build_detector(cfg) for name, cfg in PLAIN.items()}

# ------------------------------------------------------------------------------------------ as plug-ins

import boxdet.compat  # noqa: E402

boxdet.compat.install()

from mmcv.runner import BaseModule, auto_fp16, force_fp32  # noqa: E402
from mmdet.core import bbox2roi  # noqa: E402
from mmdet.models.builder import BACKBONES, DETECTORS, HEADS, build_detector  # noqa: E402
from mmdet.models.detectors import TwoStageDetector  # noqa: E402
from mmdet.models.roi_heads import StandardRoIHead  # noqa: E402
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead  # noqa: E402


@BACKBONES.register_module()
class pyramid_b0(Pyramid, BaseModule):
    def __init__(self, **kwargs):
        Pyramid.__init__(self)


@HEADS.register_module()
class CosineBBoxHead(Shared2FCBBoxHead):
    @auto_fp16()
    def forward(self, x):
        if self.num_shared_fcs > 0:
            x = x.flatten(1)
            for fc in self.shared_fcs:
                x = self.relu(fc(x))
        return 20 * F.normalize(x) @ F.normalize(self.fc_cls.weight).t(), self.fc_reg(x)

    @force_fp32(apply_to=('cls_score', 'bbox_pred'))
    def loss(self, cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights,
             reduction_override=None):
        called.add('box loss')
        return super().loss(cls_score, bbox_pred, rois, labels, label_weights, bbox_targets, bbox_weights,
                            reduction_override)

    def get_bboxes(self, rois, cls_score, bbox_pred, img_shape, scale_factor, rescale=False, cfg=None):
        called.add('get_bboxes')
        return super().get_bboxes(rois, cls_score, bbox_pred, img_shape, scale_factor, rescale, cfg)


@HEADS.register_module()
class ContrastRoIHead(StandardRoIHead):
    def __init__(self, weight, **kwargs):
        super().__init__(**kwargs)
        self.weight, self.project = weight, nn.Linear(16, 8)

    def forward_train(self, x, img_metas, proposal_list, gt_bboxes, gt_labels, gt_bboxes_ignore=None, gt_masks=None):
        called.add('forward_train')
        sampling_results = []
        for i in range(len(img_metas)):
            assigned = self.bbox_assigner.assign(proposal_list[i], gt_bboxes[i], gt_bboxes_ignore[i], gt_labels[i])
            sampling_results.append(self.bbox_sampler.sample(
                assigned, proposal_list[i], gt_bboxes[i], gt_labels[i], feats=[level[i][None] for level in x]))
        found = self._bbox_forward_train(x, sampling_results, gt_bboxes, gt_labels, img_metas)
        return dict(found['loss_bbox'])

    def _bbox_forward_train(self, x, sampling_results, gt_bboxes, gt_labels, img_metas):
        rois = bbox2roi([res.bboxes for res in sampling_results])
        found = self._bbox_forward(x, rois)
        targets = self.bbox_head.get_targets(sampling_results, gt_bboxes, gt_labels, self.train_cfg)
        losses = self.bbox_head.loss(found['cls_score'], found['bbox_pred'], rois, *targets)
        losses['loss_contrast'] = self.weight * contrast(self.project(found['bbox_feats'].mean((2, 3))), targets[0])
        found.update(loss_bbox=losses)
        return found


@DETECTORS.register_module()
class MyDetector(TwoStageDetector):
    def forward_train(self, img, img_metas, gt_bboxes, gt_labels, gt_bboxes_ignore=None, gt_masks=None, proposals=None):
        called.add('detector')
        x = self.extract_feat(img)
        losses, proposals = self.rpn_head.forward_train(
            x, img_metas, gt_bboxes, gt_labels=None, gt_bboxes_ignore=gt_bboxes_ignore,
            proposal_cfg=self.train_cfg.get('rpn_proposal', self.test_cfg.rpn))
        losses.update(self.roi_head.forward_train(x, img_metas, proposals, gt_bboxes, gt_labels, gt_bboxes_ignore))
        return losses

    def simple_test(self, img, img_metas, proposals=None, rescale=False):
        called.add('simple_test')
        x = self.extract_feat(img)
        proposals = self.rpn_head.simple_test_rpn(x, img_metas)
        return self.roi_head.simple_test(x, proposals, img_metas, rescale=rescale)


PLUG_INS = dict(backbone=config(backbone=dict(type='pyramid_b0', style='pytorch')),
                cosine=config(bbox_head='CosineBBoxHead'),
                contrast=config('MyDetector', roi_head='ContrastRoIHead', weight=0.5))
EXPECTED = dict(backbone=set(), cosine={'box loss', 'get_bboxes'},
                contrast={'detector', 'forward_train', 'simple_test'})


def train(model):
    """Losses of two steps, the parameters after them, and results."""
    torch.manual_seed(1)
    np.random.seed(1)
    optimizer, history = torch.optim.SGD(model.parameters(), lr=0.01), []
    model.train()
    for _ in range(2):
        losses = model.loss(batch())
        total = sum(sum(v) if isinstance(v, list) else v for k, v in losses.items() if 'loss' in k)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        history.append(float(total.detach()))
    data = batch()
    data.gt = None
    found = model.eval().predict(data)
    return history, {k: v.clone() for k, v in model.state_dict().items()}, found


for name, cfg in PLUG_INS.items():
    called = set()
    model = build_detector(cfg)
    model.load_state_dict(plain[name].state_dict())
    ours, theirs = train(copy.deepcopy(plain[name]).double().float()), train(model)
    np.testing.assert_allclose(ours[0], theirs[0], rtol=1e-5)
    for key, value in ours[1].items():
        torch.testing.assert_close(theirs[1][key], value, rtol=1e-4, atol=1e-6,
                                   msg=lambda text, key=key: f'{key}: {text}')
    for a, b in zip(ours[2], theirs[2]):
        assert len(a) == len(b), (name, len(a), len(b))
        torch.testing.assert_close(a.scores, b.scores, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(a.bboxes, b.bboxes, rtol=1e-4, atol=1e-2)
    assert called == EXPECTED[name], (name, called)
    print(name, 'equal')
sys.exit(0)
