"""configs/detectron by Detectron's rules: its anchors, deltas, clipping and pooled boxes, all of which count "+1"."""
import numpy as np
import pytest
import torch
from torchvision.ops import roi_align

from boxdet.engine.config import load_config
from boxdet.registry import ANCHOR_GENERATORS, BBOX_CODERS, LAYERS

PLUS_ONE = torch.tensor([0., 0., 1., 1.])  # from where its last pixel is to where a box ends
# What Detectron's generate_anchors(stride, sizes) returns.
FPN = [[[-22, -10, 25, 13], [-14, -14, 17, 17], [-10, -22, 13, 25]],
       [[-40, -20, 47, 27], [-28, -28, 35, 35], [-20, -44, 27, 51]],
       [[-84, -40, 99, 55], [-56, -56, 71, 71], [-36, -80, 51, 95]],
       [[-164, -72, 195, 103], [-112, -112, 143, 143], [-76, -168, 107, 199]],
       [[-332, -152, 395, 215], [-224, -224, 287, 287], [-148, -328, 211, 391]]]
C4 = [[[-15, -4, 30, 19], [-38, -16, 53, 31], [-84, -40, 99, 55], [-176, -88, 191, 103], [-360, -184, 375, 199],
       [-8, -8, 23, 23], [-24, -24, 39, 39], [-56, -56, 71, 71], [-120, -120, 135, 135], [-248, -248, 263, 263],
       [-3, -14, 18, 29], [-14, -36, 29, 51], [-36, -80, 51, 95], [-80, -168, 95, 183], [-168, -344, 183, 359]]]


@pytest.mark.parametrize('name, expected', [
    ('faster_rcnn_R_50_FPN', FPN), ('mask_rcnn_R_50_FPN', FPN), ('keypoint_rcnn_R_50_FPN', FPN),
    ('faster_rcnn_R_50_C4', C4), ('mask_rcnn_R_50_C4', C4)])
def test_anchors_are_its_numbers(repo_root, name, expected):
    model = load_config(repo_root / f'configs/detectron/{name}.py').model
    anchors = ANCHOR_GENERATORS.build(model.rpn_head.anchor_generator)
    assert [(level - PLUS_ONE).tolist() for level in anchors.base_anchors] == expected
    second = anchors.grid_priors([(2, 3)] * len(expected), device='cpu')[0][len(expected[0]):]
    stride = anchors.strides[0][0]
    assert torch.equal(second[0] - PLUS_ONE, torch.tensor(expected[0][0]) + torch.tensor([stride, 0., stride, 0.]))


def test_order_and_centres_are_those_of_the_anchor_generator():
    common = dict(strides=[16], ratios=[1., 4.], scales=[2., 3.])
    for more in (dict(scale_major=False), dict(centers=[(3., 5.)])):
        ours, plain = (ANCHOR_GENERATORS.build(dict(type=kind, **common, **more)).base_anchors[0]
                       for kind in ('DetectronAnchorGenerator', 'AnchorGenerator'))
        assert torch.equal(ours, plain)  # of these ratios the sides are whole


WEIGHTS = (10., 10., 5., 5.)


def its_targets(boxes, gt):
    """Detectron's regression targets: sizes with "+1", the centre half a size from the first corner."""
    (x, y, x1, y1), (gx, gy, gx1, gy1) = boxes.T, gt.T
    w, h, gw, gh = x1 - x + 1, y1 - y + 1, gx1 - gx + 1, gy1 - gy + 1
    return np.stack([WEIGHTS[0] * (gx + gw / 2 - x - w / 2) / w, WEIGHTS[1] * (gy + gh / 2 - y - h / 2) / h,
                     WEIGHTS[2] * np.log(gw / w), WEIGHTS[3] * np.log(gh / h)], 1)


def its_boxes(boxes, deltas, height, width):
    """Detectron's boxes from deltas: growth limited from above, 1 off the last corner, clipped to the last pixel."""
    (x, y, x1, y1), (dx, dy, dw, dh) = boxes.T, (deltas / WEIGHTS).T
    w, h, limit = x1 - x + 1, y1 - y + 1, np.log(1000 / 16)
    cx, cy = x + w / 2 + dx * w, y + h / 2 + dy * h
    pw, ph = w * np.exp(np.minimum(dw, limit)), h * np.exp(np.minimum(dh, limit))
    moved = np.stack([cx - pw / 2, cy - ph / 2, cx + pw / 2 - 1, cy + ph / 2 - 1], 1)
    return np.clip(moved, 0, [width - 1, height - 1, width - 1, height - 1])


@pytest.fixture
def some():
    """100 boxes as Detectron counts them, and as many others."""
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 300, (2, 100, 2))
    return [np.concatenate([c, c + rng.uniform(0, 200, (100, 2))], 1) for c in corners]


def test_deltas_are_its_numbers(repo_root, some):
    head = load_config(repo_root / 'configs/detectron/mask_rcnn_R_50_FPN.py').model.roi_head.bbox_head
    coder, plus = BBOX_CODERS.build(head.bbox_coder), PLUS_ONE.double()
    boxes, gt = map(torch.from_numpy, some)
    torch.testing.assert_close(coder.encode(boxes + plus, gt + plus), torch.from_numpy(its_targets(*some)))
    deltas = np.random.default_rng(1).normal(0, 10, (100, 4))  # some beyond the limit, some far below any
    assert (deltas[:, 2:] / 5 > np.log(1000 / 16)).any() and (deltas[:, 2:] / 5 < -np.log(1000 / 16)).any()
    found = coder.decode(boxes + plus, torch.from_numpy(deltas), (400, 420)).numpy()
    expected = its_boxes(some[0], deltas, 400, 420)
    # A box that is wholly outside has no pixel here, and there it is the last one; so it is with those below a pixel.
    inside = (found[:, 2:] - found[:, :2] > 1).all(1)
    assert 50 < inside.sum() < 100
    np.testing.assert_allclose(found[inside], expected[inside] + PLUS_ONE.numpy(), atol=1e-9)


@pytest.mark.parametrize('name', ['mask_rcnn_R_50_FPN', 'keypoint_rcnn_R_50_FPN', 'faster_rcnn_R_50_C4'])
def test_boxes_are_pooled_up_to_their_last_pixel(repo_root, some, name):
    head = load_config(repo_root / f'configs/detectron/{name}.py').model.roi_head
    for part in ('bbox', 'mask', 'keypoint'):
        extractor = head.get(f'{part}_roi_extractor')
        if extractor is None:
            continue
        layer = LAYERS.build(extractor.roi_layer, spatial_scale=1 / 16)
        features, boxes = torch.rand(1, 4, 30, 30), torch.from_numpy(some[0]).float()
        rois = torch.cat([torch.zeros(100, 1), boxes + PLUS_ONE], 1)
        expected = roi_align(features, [boxes], extractor.roi_layer.output_size, 1 / 16,
                             extractor.roi_layer.sampling_ratio, aligned=False)
        torch.testing.assert_close(layer(features, rois), expected)
