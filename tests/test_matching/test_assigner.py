import subprocess
import sys

import pytest
import torch
from torchvision.ops import box_iou

from boxdet.errors import ConfigError
from boxdet.matching import assigner as module
from boxdet.matching.assigner import BACKGROUND, IGNORED, MaxIoUAssigner
from boxdet.registry import BBOX_ASSIGNERS

RPN = dict(pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3)


def random_boxes(n, seed, grid=None):
    g = torch.Generator().manual_seed(seed)
    corner, size = torch.rand(n, 2, generator=g) * 60, torch.rand(n, 2, generator=g) * 40 + 2
    boxes = torch.cat([corner, corner + size], 1)
    return (boxes / grid).round() * grid if grid else boxes      # on a grid, so that overlaps tie


def slow_iof(a, b):
    inter = max(min(a[2], b[2]) - max(a[0], b[0]), 0) * max(min(a[3], b[3]) - max(a[1], b[1]), 0)
    return inter / max((a[2] - a[0]) * (a[3] - a[1]), 1e-6)


def slow_assign(a, boxes, gts, ignored, overlaps):
    """The sequential rule of mmdetection, box by box and ground truth by ground truth."""
    overlaps = overlaps.clone()
    if a.ignore_iof_thr > 0 and len(ignored):
        for n, box in enumerate(boxes.tolist()):
            parts = [slow_iof(box, r) if a.ignore_wrt_candidates else slow_iof(r, box) for r in ignored.tolist()]
            if max(parts) > a.ignore_iof_thr:
                overlaps[:, n] = -1
    best = overlaps.max(dim=0)
    low, high = a.neg_iou_thr if isinstance(a.neg_iou_thr, (tuple, list)) else (0, a.neg_iou_thr)
    result = []
    for value, index in zip(best.values.tolist(), best.indices.tolist()):
        is_negative = value == 0 if high == 0 else torch.tensor(low).item() <= value < torch.tensor(high).item()
        result.append(index + 1 if value >= torch.tensor(a.pos_iou_thr).item() else 0 if is_negative else -1)
    if a.match_low_quality:
        for i in range(len(gts)):
            highest, where = overlaps[i].max(dim=0)
            if highest >= a.min_pos_iou:
                takes = (overlaps[i] == highest).nonzero().flatten().tolist() if a.gt_max_assign_all else [int(where)]
                for n in takes:
                    result[n] = i + 1
    return result


OPTIONS = [
    RPN, dict(pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5, match_low_quality=False),
    dict(pos_iou_thr=0.6, neg_iou_thr=(0.1, 0.5)), dict(RPN, gt_max_assign_all=False), dict(RPN, ignore_iof_thr=0.5),
    dict(RPN, ignore_iof_thr=0.3, ignore_wrt_candidates=False), dict(RPN, neg_iou_thr=0), dict(RPN, min_pos_iou=0.0)]


@pytest.mark.parametrize('options', OPTIONS)
@pytest.mark.parametrize('chunk', [1 << 24, 64, 1])
def test_equals_the_sequential_rule(options, chunk, monkeypatch):
    monkeypatch.setattr(module, '_CHUNK_CPU', chunk)
    monkeypatch.setattr(module, '_LEAST_STEP', 1)
    assigner = BBOX_ASSIGNERS.build(dict(type='MaxIoUAssigner', **options))
    for seed in range(4):
        grid = 8 if seed % 2 else None
        boxes, gts, ignored = (random_boxes(n, 10 * seed + i, grid) for i, n in enumerate((150, 7, 3)))
        labels = torch.arange(7) + 10
        result = assigner.assign(boxes, gts, ignored, labels)
        overlaps = assigner.iou_calculator(gts, boxes)
        assert torch.allclose(overlaps, box_iou(gts, boxes).nan_to_num(0), atol=1e-6)
        expected = slow_assign(assigner, boxes, gts, ignored, overlaps)
        assert result.gt_inds.tolist() == expected
        assert result.labels.tolist() == [i - 1 + 10 if i > 0 else -1 for i in expected]
        seen = result.max_overlaps >= 0
        assert torch.equal(result.max_overlaps[seen], overlaps.amax(0)[seen])
        assert (result.max_overlaps[~seen] == -1).all()


def test_by_hand():
    boxes = torch.tensor([[0., 0, 10, 10], [10, 10, 20, 20], [5, 5, 15, 15], [32, 32, 38, 42]])
    gts = torch.tensor([[0., 0, 10, 9], [0, 10, 10, 19]])
    result = MaxIoUAssigner(0.5, 0.5).assign(boxes, gts)
    assert result.gt_inds.tolist() == [1, 0, 2, 0] and result.labels is None
    assert result.max_overlaps[0].item() == pytest.approx(0.9)


def test_last_ground_truth_wins():
    same = torch.tensor([[0., 0, 10, 10]] * 3)
    result = MaxIoUAssigner(**RPN).assign(same[:1], same, gt_labels=torch.tensor([4, 5, 6]))
    assert result.gt_inds.tolist() == [3] and result.labels.tolist() == [6]
    assert MaxIoUAssigner(**RPN, gt_max_assign_all=False).assign(same[:1], same).gt_inds.tolist() == [3]


@pytest.mark.parametrize('labels', [None, torch.zeros(0, dtype=torch.long)])
def test_empty(labels):
    assigner = MaxIoUAssigner(**RPN, ignore_iof_thr=0.5)
    none = assigner.assign(random_boxes(5, 0), torch.zeros(0, 4), random_boxes(2, 1), labels)
    assert none.gt_inds.tolist() == [BACKGROUND] * 5 and none.max_overlaps.tolist() == [0] * 5 and none.num_gts == 0
    assert (none.labels is None) == (labels is None) and (labels is None or none.labels.tolist() == [-1] * 5)
    nothing = assigner.assign(torch.zeros(0, 4), random_boxes(2, 1), None, torch.tensor([1, 2]))
    assert len(nothing.gt_inds) == len(nothing.labels) == len(nothing.max_overlaps) == 0 and nothing.num_gts == 2
    assert len(assigner.assign(torch.zeros(0, 4), torch.zeros(0, 4)).gt_inds) == 0
    assert (assigner.assign(random_boxes(5, 0), random_boxes(2, 1), torch.zeros(0, 4)).gt_inds >= IGNORED).all()


def test_neg_iou_thr_of_zero_means_touching_nothing():
    boxes = torch.tensor([[0., 0, 10, 10], [50, 50, 60, 60], [9, 9, 19, 19]])
    result = MaxIoUAssigner(0.5, 0, match_low_quality=False).assign(boxes, torch.tensor([[0., 0, 10, 10]]))
    assert result.gt_inds.tolist() == [1, BACKGROUND, IGNORED]


def test_a_score_column_and_half_precision():
    boxes, gts = random_boxes(20, 0), random_boxes(3, 1)
    plain = MaxIoUAssigner(**RPN).assign(boxes, gts).gt_inds
    assert torch.equal(MaxIoUAssigner(**RPN).assign(torch.cat([boxes, boxes[:, :1]], 1), gts).gt_inds, plain)
    coarse = boxes.bfloat16(), gts.bfloat16()
    half, full = (MaxIoUAssigner(**RPN).assign(*(t.to(d) for t in coarse)) for d in (torch.bfloat16, torch.float32))
    assert torch.equal(half.gt_inds, full.gt_inds)


@pytest.mark.parametrize('options', [dict(pos_iou_thr=7, neg_iou_thr=.3), dict(pos_iou_thr=.7, neg_iou_thr=(.5, .3)),
                                     dict(pos_iou_thr=.7, neg_iou_thr=(.1, .2, .3)),
                                     dict(pos_iou_thr=.7, neg_iou_thr=-1),
                                     dict(pos_iou_thr=.7, neg_iou_thr=.3, min_pos_iou=2)])
def test_wrong_options(options):
    with pytest.raises(ConfigError, match='MaxIoUAssigner'):
        MaxIoUAssigner(**options)


def test_with_gt():
    result = MaxIoUAssigner(**RPN).assign(random_boxes(5, 0), random_boxes(2, 1), None, torch.tensor([3, 4]))
    joined = result.with_gt(torch.tensor([3, 4]))
    assert joined.gt_inds[:2].tolist() == [1, 2] and torch.equal(joined.gt_inds[2:], result.gt_inds)
    assert joined.labels[:2].tolist() == [3, 4] and joined.max_overlaps[:2].tolist() == [1, 1]
    assert len(result.gt_inds) == 5


LARGE = """
import torch
from boxdet.matching.assigner import MaxIoUAssigner
torch.set_num_threads(1)
g = torch.Generator().manual_seed(0)
def boxes(n):
    c, s = torch.rand(n, 2, generator=g) * 1000, torch.rand(n, 2, generator=g) * 120 + 8
    return torch.cat([c, c + s], 1)
anchors, gts, ignored = boxes(250_000), boxes(2_000), boxes(500)
assigner = MaxIoUAssigner(0.7, 0.3, 0.3, ignore_iof_thr=0.5)
def peak():  # of this process alone; getrusage counts the parent's pages from before the exec too
    return next(int(line.split()[1]) // 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))
before = peak()
assigner.assign(anchors, gts, ignored)
print(peak(), before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith('linux'), reason='peak memory is read from /proc')
def test_two_thousand_boxes_on_a_quarter_million_anchors_stay_under_2_gb():
    done = subprocess.run([sys.executable, '-c', LARGE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    peak, before = map(int, done.stdout.split())
    assert peak < 2048 and peak - before < 300


@pytest.mark.slow
def test_two_thousand_boxes_give_the_identical_assignment(monkeypatch):
    """Chunked as shipped, and with the whole matrix at once, on as many boxes as that leaves memory for."""
    boxes, gts, ignored = random_boxes(20_000, 0, 2), random_boxes(2_000, 1, 2), random_boxes(5, 2)
    assigner = MaxIoUAssigner(**RPN, ignore_iof_thr=0.5)
    chunked = assigner.assign(boxes, gts, ignored)
    assert len(assigner._chunks(len(boxes), len(gts), False)) == 20
    monkeypatch.setattr(module, '_CHUNK_CPU', 1 << 40)
    whole = assigner.assign(boxes, gts, ignored)
    assert torch.equal(chunked.gt_inds, whole.gt_inds) and torch.equal(chunked.max_overlaps, whole.max_overlaps)
