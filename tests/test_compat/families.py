"""RoI heads of families whose 2.x methods a plug-in overrides, beside the plain ones. Its own process; asserts."""
import copy
import sys

import numpy as np
import torch
from spied_models import batch, called, spying

from boxdet.engine.config import load_config
from boxdet.errors import ConfigError
from boxdet.idle_overrides import idle_overrides
from boxdet.models import build_detector

GRID = dict(type='SingleRoIExtractor', out_channels=8, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0))
# By family: what its RoI head and train_cfg.rcnn have beside Mask R-CNN's.
FAMILIES = dict(
    DoubleHeadRoIHead=(dict(reg_roi_scale_factor=1.3, bbox_head=dict(
        type='DoubleConvFCBBoxHead', num_convs=1, num_fcs=1, conv_out_channels=16)), {}),
    DynamicRoIHead=(dict(bbox_head=dict(loss_bbox=dict(type='SmoothL1Loss', beta=1.0))), dict(dynamic_rcnn=dict(
        iou_topk=5, beta_topk=2, update_iter_interval=2, initial_iou=0.3, initial_beta=1.0))),
    PISARoIHead=({}, dict(sampler=dict(type='ScoreHLRSampler', k=0.5, bias=0.), isr=dict(k=2, bias=0),
                          carl=dict(k=1, bias=0.2))),
    GridRoIHead=(dict(grid_roi_extractor=GRID, grid_head=dict(
        type='GridHead', num_convs=1, in_channels=8, point_feat_channels=4, norm_cfg=dict(type='GN', num_groups=4))),
        dict(pos_radius=1, max_num_grid=192)),
    MaskScoringRoIHead=(dict(mask_iou_head=dict(type='MaskIoUHead', num_convs=1, num_fcs=1, in_channels=8,
                                                conv_out_channels=8, fc_out_channels=16, num_classes=2)),
                        dict(mask_thr_binary=0.5)),
    PointRendRoIHead=(dict(
        mask_roi_extractor=dict(type='GenericRoIExtractor', aggregation='concat', out_channels=8, featmap_strides=[4],
                                roi_layer=dict(type='SimpleRoIAlign', output_size=14)),
        point_head=dict(type='MaskPointHead', num_fcs=1, in_channels=8, fc_channels=8, num_classes=2)),
        dict(mask_size=28, num_points=49, oversample_ratio=3, importance_sample_ratio=0.75)),
    StandardRoIHead=({}, {}))


def config(kind):
    cfg = load_config(f'{sys.argv[1]}/configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py').model.to_dict()
    cfg['backbone'].update(depth=18, init_cfg=None)
    cfg['neck'].update(in_channels=[64, 128, 256, 512], out_channels=8)
    cfg['rpn_head'].update(in_channels=8, feat_channels=8)
    head, training = cfg['roi_head'], cfg['train_cfg']['rcnn']
    more, settings = copy.deepcopy(FAMILIES[kind])
    head['bbox_roi_extractor']['out_channels'] = head['mask_roi_extractor']['out_channels'] = 8
    head['bbox_head'].update(in_channels=8, fc_out_channels=16, num_classes=2)
    head['mask_head'].update(in_channels=8, conv_out_channels=8, num_classes=2)
    head['bbox_head'].update(more.pop('bbox_head', {}))
    head.update(more, type=kind)
    training['sampler'].update(num=32, **settings.pop('sampler', {}))
    training.update(settings)
    if kind == 'PointRendRoIHead':
        cfg['test_cfg']['rcnn'].update(subdivision_steps=2, subdivision_num_points=49, scale_factor=2)
    return cfg


torch.manual_seed(0)
plain = {kind: build_detector(config(kind)) for kind in FAMILIES}

import boxdet.compat  # noqa: E402

boxdet.compat.install()

from mmdet.datasets.pipelines import MixUp, RandomAffine  # noqa: E402
from mmdet.models import roi_heads  # noqa: E402
from mmdet.models.builder import HEADS  # noqa: E402
from mmdet.models.dense_heads import RPNHead  # noqa: E402
from mmdet.models.roi_heads.bbox_heads import Shared2FCBBoxHead  # noqa: E402
from mmdet.models.roi_heads.mask_heads import FCNMaskHead  # noqa: E402


def outcome(model):
    """Losses of two steps, and results."""
    data, losses = batch(), []
    torch.manual_seed(1)
    np.random.seed(1)
    for _ in range(2):
        found = model.train().loss(data)
        losses.append({key: float(sum(v) if isinstance(v, list) else v) for key, v in found.items()})
    data.gt = None
    return losses, model.eval().predict(data)


def compare(kind, cfg, names):
    called.clear()
    model = build_detector(cfg)
    model.load_state_dict(plain[kind].state_dict())
    (losses, results), (own_losses, own) = outcome(copy.deepcopy(plain[kind])), outcome(model)
    assert called == set(names), (kind, set(names) - called)
    for a, b in zip(losses, own_losses):
        assert set(a) == set(b), (kind, set(a) ^ set(b))
        np.testing.assert_allclose([b[key] for key in a], list(a.values()), rtol=1e-4, err_msg=f'{kind}: {list(a)}')
    for a, b in zip(results, own):
        assert len(a) == len(b) > 0, (kind, len(a), len(b))
        torch.testing.assert_close(b.scores.sort().values, a.scores.sort().values, rtol=1e-4, atol=1e-5)
        first, second = (int(one.masks_bitmaps().sum()) for one in (a, b))
        assert abs(first - second) <= 0.01 * first, (kind, first, second)


TRAINING = ('_bbox_forward', '_bbox_forward_train', '_mask_forward_train', 'forward_train')
for kind in FAMILIES:
    base = getattr(roi_heads, kind)
    assert issubclass(base, roi_heads.StandardRoIHead)
    of_masks = () if kind in ('MaskScoringRoIHead', 'PointRendRoIHead') else ('_mask_forward',)
    for names in ((*TRAINING, *of_masks, 'simple_test'), (*TRAINING, *of_masks)):
        cfg = config(kind)
        cfg['roi_head']['type'] = spying(HEADS, base, *names)
        compare(kind, cfg, names)
print('families equal')

# ---------------------------------------------------------------- RPN and mask head by their parts
cfg = config('StandardRoIHead')
cfg['rpn_head']['type'] = spying(HEADS, RPNHead, 'loss_single', '_get_bboxes_single')
cfg['roi_head']['mask_head']['type'] = spying(HEADS, FCNMaskHead, 'forward')
compare('StandardRoIHead', cfg, ('loss_single', '_get_bboxes_single', 'forward'))
cfg = config('StandardRoIHead')
cfg['roi_head']['mask_head']['type'] = spying(HEADS, FCNMaskHead, 'get_seg_masks')
compare('StandardRoIHead', cfg, ('get_seg_masks',))

# ---------------------------------------------------------------- what is left of boxes that were moved
def sample(seed):
    boxes = np.float32([[5, 5, 60, 60], [50, 2, 63, 9]])
    return dict(img=np.full((64, 64, 3), seed, np.uint8), gt_bboxes=boxes, gt_labels=np.arange(2), img_fields=['img'],
                bbox_fields=['gt_bboxes'], ori_filename='a')


kept = {}
for base, name in ((RandomAffine, 'filter_gt_bboxes'), (MixUp, '_filter_box_candidates')):
    mine = type(f'My{base.__name__}', (base,), {name: lambda self, a, b, own=(base, name): kept.setdefault(
        own[0], getattr(super(type(self), self), own[1])(a, b))})
    assert not idle_overrides(mine)
    found = []
    for kind in (base, mine):
        np.random.seed(3)
        found.append(kind(skip_filter=False)(dict(sample(1), mix_results=[sample(2)])))
    np.testing.assert_array_equal(found[0]['gt_bboxes'], found[1]['gt_bboxes'])
    assert kept[base].shape == (2,) and kept[base].dtype == bool
print('parts equal')


# ---------------------------------------------------------------- what would be left out is told
def told(kind, text, part=None, base=None, name='loss'):
    cfg = config(kind)
    if part is None:
        cfg['roi_head']['type'] = spying(HEADS, getattr(roi_heads, kind), name)
    else:
        cfg['roi_head'][part]['type'] = spying(HEADS, base, name)
    try:
        build_detector(cfg)
    except ConfigError as error:
        assert text in str(error) and '\n' not in str(error), error
    else:
        raise AssertionError(f'{kind}: {name} is not told')


told('PISARoIHead', 'override its bbox_losses', 'bbox_head', Shared2FCBBoxHead)
told('MaskScoringRoIHead', 'override its mask_losses', 'mask_head', FCNMaskHead, 'get_targets')
told('MaskScoringRoIHead', 'overrides what boxdet never calls: _mask_forward', name='_mask_forward')
told('PointRendRoIHead', 'overrides what boxdet never calls: _mask_forward', name='_mask_forward')
told('GridRoIHead', 'overrides what boxdet never calls: simple_test_bboxes', name='simple_test_bboxes')
print('all told')
