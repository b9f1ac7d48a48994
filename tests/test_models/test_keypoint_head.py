"""The keypoint head: names and shapes, targets by hand, the loss against torchvision's and detectron2's, results."""
from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from torchvision.models.detection import roi_heads

from boxdet.errors import ConfigError
from boxdet.models import build_detector, build_head
from boxdet.models.keypoint_head import KeypointRCNNHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.structures.batch import Batch, SampledRois
from boxdet.structures.instances import Instances
from tests.test_models import tiny_models

PAIRS = [(1, 2), (3, 4)]


def tiny_head(**changes) -> KeypointRCNNHead:
    torch.manual_seed(0)
    head = build_head(dict(type='KeypointRCNNHead', num_convs=2, in_channels=16, conv_out_channels=24,
                           num_keypoints=5, flip_pairs=PAIRS) | changes)
    head.init_weights()
    return head


def drawn(boxes, gt_index) -> SampledRois:
    boxes, index = torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4), torch.tensor(gt_index, dtype=torch.long)
    none = torch.zeros(0, dtype=torch.long)
    return SampledRois(boxes, torch.zeros(3, 4), torch.arange(len(boxes)), none, index, boxes, torch.zeros_like(index),
                       torch.zeros(len(boxes), dtype=torch.bool))


def test_names_and_shapes_are_detectrons():
    with torch.device('meta'):
        head = KeypointRCNNHead()
    shapes = {name: list(value.shape) for name, value in head.state_dict().items()}
    expected = {f'convs.{i}.conv.{part}': size for i in range(8)
                for part, size in (('weight', [512, 256 if i == 0 else 512, 3, 3]), ('bias', [512]))}
    assert shapes == expected | {'upsample.weight': [512, 17, 4, 4], 'upsample.bias': [17]}
    assert head(torch.zeros(3, 256, 14, 14, device='meta')).shape == (3, 17, 56, 56)
    assert tiny_head()(torch.zeros(0, 16, 14, 14)).shape == (0, 5, 56, 56)
    assert tiny_head(up_scale=1, roi_feat_size=7).heatmap_size == (14, 14)


def test_forward_is_torchvisions():
    from torchvision.models.detection.keypoint_rcnn import KeypointRCNNHeads, KeypointRCNNPredictor
    head, convs, last = tiny_head(), KeypointRCNNHeads(16, [24, 24]), KeypointRCNNPredictor(24, 5)
    own = head.state_dict()
    convs.load_state_dict({f'{2 * i}.{part}': own[f'convs.{i}.conv.{part}'] for i in range(2)
                           for part in ('weight', 'bias')})
    last.load_state_dict({f'kps_score_lowres.{part}': own[f'upsample.{part}'] for part in ('weight', 'bias')})
    x = torch.randn(3, 16, 14, 14, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(head(x), last(convs(x)))


def test_targets_by_hand():
    """Rois of 56 x 112 pixels: a cell is 1 x 2 pixels."""
    head = tiny_head(num_keypoints=3, flip_pairs=[])
    keypoints = torch.tensor([[[10.5, 20.5, 2], [65.9, 131.9, 1], [30, 30, 0]],       # the last one is not labelled
                              [[9.9, 50, 2], [40, 132.5, 2], [200, 200, 0]],          # all outside, or not labelled
                              [[66, 132, 2], [10, 20, 1], [38, 76, 2]]])              # corners belong to the roi
    gt = [Instances(bboxes=torch.zeros(3, 4), keypoints=keypoints), Instances(bboxes=torch.zeros(0, 4),
                                                                              keypoints=torch.zeros(0, 3, 3))]
    roi = [10, 20, 66, 132]
    targets = head.targets([drawn([roi] * 4, [0, 2, 1, 0]), drawn([], [])], gt)
    first, third = [0, 55 * 56 + 55, 0], [55 * 56 + 55, 0, 28 * 56 + 28]
    assert targets.cells.tolist() == [first, third, [0, 0, 0], first]
    assert targets.valid.tolist() == [[True, True, False], [True, True, True], [False] * 3, [True, True, False]]
    assert targets.rois.tolist() == [True, True, False, True]


def test_loss_is_torchvisions_and_detectron2s():
    """A mean over the visible keypoints within their rois: what both write out."""
    head, g = tiny_head(), torch.Generator().manual_seed(1)
    corner = torch.rand(6, 2, generator=g) * 40
    boxes = torch.cat([corner, corner + 30 + torch.rand(6, 2, generator=g) * 40], dim=1)
    keypoints = torch.cat([torch.rand(4, 5, 2, generator=g) * 60 + 10, torch.randint(3, (4, 5, 1), generator=g)], dim=2)
    index = torch.tensor([0, 3, 1, 1, 2, 0])
    logits = torch.randn(6, 5, 56, 56, generator=g)
    targets = head.targets([drawn(boxes.tolist(), index.tolist())], [Instances(keypoints=keypoints)])
    ours = head.loss(logits, targets, full_sample=80)['loss_keypoint']
    theirs = roi_heads.keypointrcnn_loss(logits, [boxes], [keypoints], [index])
    assert 3 < targets.valid.sum() < 30
    torch.testing.assert_close(ours, theirs)
    picked = targets[targets.rois]
    torch.testing.assert_close(head.loss(logits[targets.rois], picked, 80)['loss_keypoint'], theirs)
    static = tiny_head(normalize_by_visible_keypoints=False).loss(logits, targets, 80)['loss_keypoint']
    torch.testing.assert_close(static, theirs * targets.valid.sum() / 80)
    twice = tiny_head(loss_keypoint=dict(type='CrossEntropyLoss', loss_weight=2.0)).loss(logits, targets, 80)
    torch.testing.assert_close(twice['loss_keypoint'], 2 * theirs)


def test_loss_without_a_visible_keypoint_is_a_zero_in_the_graph():
    head = tiny_head()
    keypoints = torch.zeros(1, 5, 3)
    targets = head.targets([drawn([[0, 0, 20, 20]] * 2, [0, 0])], [Instances(keypoints=keypoints)])
    assert not targets.rois.any()
    for rows in (2, 0):
        head.zero_grad()
        loss = head.loss(head(torch.randn(rows, 16, 14, 14)), targets[torch.zeros(2, dtype=torch.bool)]
                         if rows == 0 else targets, 1)
        assert set(loss) == {'loss_keypoint'} and loss['loss_keypoint'] == 0
        loss['loss_keypoint'].backward()
        assert all(p.grad is not None and not p.grad.any() for p in head.parameters())


def test_scores_are_probabilities_or_logits():
    heatmaps = torch.randn(2, 5, 56, 56, generator=torch.Generator().manual_seed(0)) * 4
    boxes = torch.tensor([[3., 4, 40, 90], [10, 10, 10.5, 60]])
    logits = tiny_head(score_type='logit').predict(heatmaps, boxes)
    peer, peer_scores = roi_heads.keypointrcnn_inference(heatmaps, [boxes])
    assert torch.equal(logits[..., :2], peer[0][..., :2]) and torch.equal(logits[..., 2], peer_scores[0])
    found = tiny_head().predict(heatmaps, boxes)
    assert torch.equal(found[..., :2], logits[..., :2])
    # detectron2's keypoint_head.heatmaps_to_keypoints, of one roi and keypoint at a time
    for r in range(2):
        width, height = (boxes[r, 2:] - boxes[r, :2]).clamp(min=1).ceil().int().tolist()
        large = F.interpolate(heatmaps[r:r + 1], size=(height, width), mode='bicubic', align_corners=False)[0]
        for j in range(5):
            peak = large[j].max()
            expected = 1 / (heatmaps[r, j] - peak).exp().sum()
            torch.testing.assert_close(found[r, j, 2], expected)


@pytest.mark.parametrize('changes, words', [
    (dict(score_type='propability'), "did you mean 'probability'"),
    (dict(flip_pairs=[(1, 5)]), 'do not pair 5 keypoints'), (dict(flip_pairs=[(1, 2, 3)]), 'lists of pairs'),
    (dict(skeleton=[(0, 5)]), 'count from 0 to 4'), (dict(upsample_kernel_size=3), 'even'),
    (dict(keypoints=3), 'num_keypoints')])
def test_wrong_settings_are_told(changes, words):
    with pytest.raises(ConfigError, match=words):
        tiny_head(**changes)


def test_persons_of_17_keypoints_are_cocos():
    with torch.device('meta'):
        head, other = KeypointRCNNHead(), KeypointRCNNHead(num_keypoints=16)
    assert (1, 2) in head.flip_pairs and (15, 13) in head.skeleton
    assert other.flip_pairs is None and other.skeleton == ()


# ------------------------------------------------------------------------------------------ in a detector


def test_a_batch_without_keypoints_is_told():
    model = build_detector(tiny_models.keypoint_rcnn()).train()
    with pytest.raises(ConfigError, match='no gt_keypoints.*with_keypoint=True'):
        model.loss(tiny_models.batch((1,), (0,)))
    batch = tiny_models.batch((1,), (0,), keypoints=4)
    with pytest.raises(ConfigError, match='num_keypoints is 5, the data has 4'):
        model.loss(batch)


def test_only_rois_with_a_visible_keypoint_are_pooled_and_masks_go_along():
    cfg = tiny_models.keypoint_rcnn()
    cfg['roi_head'] |= dict(mask_roi_extractor=tiny_models.extractor(14), mask_head=tiny_models.mask_head())
    torch.manual_seed(0)
    model = build_detector(cfg).train()
    batch = tiny_models.batch((2, 3), (0, 0), keypoints=5)
    batch.gt[0].keypoints[:, :, 2] = 0
    seen = []
    model.roi_head.keypoint_head.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    losses = model.loss(batch)
    assert {'loss_mask', 'loss_keypoint'} <= set(losses) and losses['loss_keypoint'] > 0
    assert 0 < seen[0] <= 16                                                             # none of the first image
    model.eval()
    found = model.predict(batch)[0]
    assert found.keypoints.shape == (len(found), 5, 3) and len(found.masks) == len(found)


def test_a_training_step_lowers_the_loss():
    torch.manual_seed(0)
    model = build_detector(tiny_models.keypoint_rcnn()).train()
    model.init_weights()
    batch = tiny_models.batch((2, 1), (0, 0), keypoints=5)
    rois = [Instances(bboxes=gt.bboxes, scores=torch.ones(len(gt))) for gt in batch.gt]
    optimizer = torch.optim.Adam(model.roi_head.keypoint_head.parameters(), lr=0.003)
    history = []
    for _ in range(12):
        with torch.no_grad():
            feats = model.extract_feat(batch.images)
        loss = model.roi_head.loss(feats, rois, batch.gt, batch.ignored, batch.metas)['loss_keypoint']
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        history.append(loss.item())
    assert history[0] > 6 and history[-1] < history[0] - 1                               # log(56 * 56) is 8.05


@pytest.mark.parametrize('dtype', [torch.bfloat16])
def test_half_precision_has_a_float_loss(dtype):
    torch.manual_seed(0)
    model = build_detector(tiny_models.keypoint_rcnn()).train()
    batch = tiny_models.batch((2, 1), (0, 0), keypoints=5)
    with torch.autocast('cpu', dtype):
        losses = model.loss(batch)
    assert losses['loss_keypoint'].dtype == torch.float32 and losses['loss_keypoint'].isfinite()
    with torch.autocast('cpu', dtype):
        found = model.eval().predict(batch)[0]
    assert found.keypoints.dtype == torch.float32 and found.keypoints.isfinite().all()


def test_the_full_sample_is_the_samplers(monkeypatch):
    cfg = tiny_models.keypoint_rcnn()
    cfg['roi_head']['keypoint_head']['normalize_by_visible_keypoints'] = False
    batch, losses, given, loss = tiny_models.batch((2, 1), (0, 0), keypoints=5), [], [], KeypointRCNNHead.loss
    monkeypatch.setattr(KeypointRCNNHead, 'loss', lambda self, *args: given.append(args[-1]) or loss(self, *args))
    for num in (32, 64):                                                                 # more than there are
        cfg['train_cfg']['rcnn']['sampler'] = dict(type='RandomSampler', num=num, pos_fraction=0.5)
        torch.manual_seed(0)
        losses.append(build_detector(cfg).train().loss(batch)['loss_keypoint'])
    torch.testing.assert_close(losses[0], 2 * losses[1])
    assert given == [2 * 16 * 5, 2 * 32 * 5]  # images, positives of each, keypoints of each
    cfg['train_cfg']['rcnn']['sampler'] = dict(type='PseudoSampler')
    with pytest.raises(ConfigError, match='needs num and pos_fraction'):
        build_detector(cfg).train().loss(batch)


def plain_keypoints(model, batch: Batch) -> list[torch.Tensor]:
    """The keypoints of each result, roi by roi in the network's input."""
    feats = model.extract_feat(batch.images)
    proposals = model.rpn_head.predict(*model.rpn_head(feats), batch.metas, model.test_cfg.rpn)
    keypoints = []
    for i, found in enumerate(model.roi_head.predict(feats, proposals, batch.metas)):
        rows = []
        for box in found.bboxes:
            roi = boxes_to_rois([box.new_zeros(0, 4)] * i + [box[None]])
            heatmaps = model.roi_head.keypoint_head(model.roi_head.keypoint_roi_extractor(feats, roi))
            rows.append(roi_heads.heatmaps_to_keypoints(heatmaps, box[None])[0][0, :, :2])
        keypoints.append(torch.stack(rows) if rows else torch.zeros(0, 5, 2))
    return keypoints


@torch.no_grad()
def test_results_are_in_original_pixels():
    torch.manual_seed(0)
    model = build_detector(tiny_models.keypoint_rcnn()).eval()
    images = tiny_models.batch((1, 1), (0, 0)).images
    metas = [tiny_models.meta(ori_shape=(48, 256, 3), scale_factor=np.array([0.5, 2, 0.5, 2], dtype=np.float32)),
             tiny_models.meta(flip=True, flip_direction='horizontal')]
    batch = Batch(images, metas)
    expected = plain_keypoints(model, batch)
    found = model.predict(batch)
    assert len(found[0]) and len(found[1])
    torch.testing.assert_close(found[0].keypoints[..., :2], expected[0] / torch.tensor([0.5, 2]))
    swapped = expected[1][:, [0, 2, 1, 4, 3]]
    torch.testing.assert_close(found[1].keypoints[..., 0], 128 - swapped[..., 0])
    torch.testing.assert_close(found[1].keypoints[..., 1], swapped[..., 1])
    own = model.predict(batch, rescale=False)
    torch.testing.assert_close(own[0].keypoints[..., :2], expected[0])
    torch.testing.assert_close(own[1].keypoints[..., :2], expected[1])


# ------------------------------------------------------------------------------------------ nothing to learn from


@pytest.mark.parametrize('counts, crowds', [((2, 0), (0, 0)), ((0, 0), (0, 0)), ((0, 0), (1, 2)), ((0, 9), (1, 3))])
@pytest.mark.parametrize('visible', [True, False])
def test_every_loss_is_there_finite_and_in_the_graph(counts, crowds, visible):
    torch.manual_seed(0)
    model = build_detector(tiny_models.keypoint_rcnn()).train()
    batch = tiny_models.batch(counts, crowds, keypoints=5)
    for objects in batch.gt:
        objects.keypoints[..., 2] *= visible
    losses = model.loss(batch)
    assert set(losses) == {'loss_rpn_cls', 'loss_rpn_bbox', 'loss_cls', 'acc', 'loss_bbox', 'loss_keypoint'}
    assert (losses['loss_keypoint'] > 0) == (visible and any(counts))
    total = tiny_models.total(losses)
    assert total.isfinite()
    total.backward()
    assert not [n for n, p in model.named_parameters() if p.requires_grad and p.grad is None]
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize('views', [1, 2])
def test_a_result_without_objects_has_keypoints_of_the_same_shape(views):
    cfg = tiny_models.keypoint_rcnn()
    cfg['test_cfg']['rcnn']['score_thr'] = 1.0
    model = build_detector(cfg).eval()
    batch = tiny_models.batch((1, 1), keypoints=5)
    for result in model.predict([batch] * views if views > 1 else batch):
        assert len(result) == 0 and result.keypoints.shape == (0, 5, 3)


# ------------------------------------------------------------------------------------------ views


def views_of(images: torch.Tensor) -> list[Batch]:
    """The image as it is, mirrored, and enlarged and upside down."""
    large = F.interpolate(images, (192, 256), mode='bilinear').flip(-2)
    sized = dict(ori_shape=(96, 128, 3), scale_factor=np.full(4, 2, dtype=np.float32))
    return [Batch(images, [tiny_models.meta()]),
            Batch(images.flip(-1), [tiny_models.meta(flip=True, flip_direction='horizontal')]),
            Batch(large, [tiny_models.meta(192, 256, flip=True, flip_direction='vertical', **sized)])]


@torch.no_grad()
def test_views_average_their_heatmaps():
    """Against the same written out: box to view, heatmap, back, mean, keypoint in the original image."""
    torch.manual_seed(0)
    model = build_detector(tiny_models.keypoint_rcnn()).eval()
    batches = views_of(tiny_models.batch((1,), (0,)).images)
    found = model.predict(batches)[0]
    assert len(found) > 3
    feats = [model.extract_feat(b.images) for b in batches]
    for row in (found[i:i + 1] for i in range(len(found))):
        x0, y0, x1, y1 = row.bboxes[0].tolist()
        boxes = [[x0, y0, x1, y1], [128 - x1, y0, 128 - x0, y1], [2 * x0, 192 - 2 * y1, 2 * x1, 192 - 2 * y0]]
        maps = []
        for levels, box in zip(feats, boxes):
            roi = torch.tensor([[0, *box]], dtype=torch.float32)
            maps.append(model.roi_head.keypoint_head(model.roi_head.keypoint_roi_extractor(levels, roi))[0])
        swap = [0, 2, 1, 4, 3]
        mean = (maps[0] + maps[1][swap].flip(-1) + maps[2][swap].flip(-2)) / 3
        keypoints, _ = roi_heads.heatmaps_to_keypoints(mean[None], row.bboxes)
        torch.testing.assert_close(row.keypoints[..., :2], keypoints[..., :2])
    own = model.predict(batches[::-1], rescale=False)[0]                                # in the large view's frame
    keypoints = model.predict(batches[::-1])[0].keypoints
    torch.testing.assert_close(own.keypoints[..., 0], 2 * keypoints[:, swap, 0])
    torch.testing.assert_close(own.keypoints[..., 1], 192 - 2 * keypoints[:, swap, 1])


def test_a_mirrored_view_needs_the_pairs():
    cfg = tiny_models.keypoint_rcnn()
    cfg['roi_head']['keypoint_head'].pop('flip_pairs')
    model = build_detector(cfg).eval()
    batches = views_of(tiny_models.batch((1,), (0,)).images)
    assert len(model.predict(batches[0])) == 1
    for views in (batches[:2], batches[1]):
        with pytest.raises(ConfigError, match='keypoint_head.flip_pairs'):
            model.predict(views)


def test_initial_weights_of_the_last_layer_are_hes():
    head = KeypointRCNNHead(num_convs=0, in_channels=64, num_keypoints=33)
    head.init_weights()
    weight = head.upsample.weight  # (64, 33, 4, 4); its outputs are counted, as the convolutions' are
    assert weight.std().item() == pytest.approx((2 / (64 * 16)) ** 0.5, rel=0.1) and not head.upsample.bias.any()
    own = KeypointRCNNHead(num_convs=0, in_channels=64, num_keypoints=33, init_cfg=dict(
        type='Constant', layer='ConvTranspose2d', val=3))
    own.init_weights()
    assert (own.upsample.weight == 3).all()
