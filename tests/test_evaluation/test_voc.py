"""VOC's mAP and recall against an implementation by the book: one detection after the other, no arrays."""
import numpy as np
import pytest
import torch

from boxdet.errors import ConfigError, DataError
from boxdet.evaluation.evaluate import evaluate, format_results, metric_names
from boxdet.evaluation.voc import average_precision
from boxdet.structures.instances import Instances


class Made:
    """A data set of given annotations."""
    CLASSES = ('a', 'b', 'c')
    ann_file = 'made'
    has_annotations = True

    def __init__(self, truths, evaluator='VOCEvaluator', ap_rule='area'):
        self.truths, self.EVALUATORS, self.ap_rule = truths, (evaluator,), ap_rule

    def get_ann_info(self, index):
        return self.truths[index]

    def __len__(self):
        return len(self.truths)


def truth(boxes=(), labels=(), ignored=(), ignored_labels=()):
    return dict(bboxes=np.array(boxes, np.float32).reshape(-1, 4), labels=np.array(labels, np.int64),
                bboxes_ignore=np.array(ignored, np.float32).reshape(-1, 4),
                labels_ignore=np.array(ignored_labels, np.int64))


def result(boxes=(), scores=(), labels=()):
    return Instances(num_classes=3, bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                     scores=torch.tensor(scores, dtype=torch.float32), labels=torch.tensor(labels, dtype=torch.long))


def random_case(seed, images=25):
    draw = np.random.default_rng(seed)
    truths, results = [], []
    for _ in range(images):
        n = draw.integers(0, 9)
        corner, side = draw.integers(0, 150, (n, 2)), draw.integers(5, 120, (n, 2))
        boxes, labels, ignored = np.concatenate([corner, corner + side], 1), draw.integers(0, 3, n), draw.random(n) < .2
        truths.append(truth(boxes[~ignored], labels[~ignored], boxes[ignored], labels[ignored]))
        found = np.concatenate([boxes, boxes, np.array([[3, 3, 60, 60]])]) if n else np.zeros((1, 4))
        found = found + draw.normal(0, 9, found.shape)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2] + 1)
        kinds = np.where(draw.random(len(found)) < .2, draw.integers(0, 3, len(found)),
                         np.concatenate([labels, labels, [0]]) if n else 0)
        results.append(result(found.tolist(), draw.random(len(found)).tolist(), kinds.tolist()))
    return truths, results


def plain_iou(a, b, border):
    width = min(a[2], b[2]) - max(a[0], b[0]) + border
    height = min(a[3], b[3]) - max(a[1], b[1]) + border
    if width <= 0 or height <= 0:
        return 0.
    shared = width * height
    return shared / (plain_area(a, border) + plain_area(b, border) - shared)


def plain_area(box, border):
    return (box[2] - box[0] + border) * (box[3] - box[1] + border)


def plain_ap(truths, results, label, thr, border, rule, sizes=None):
    """Everingham's evaluation of one class; None where there is nothing to find."""
    def counts(box):
        return sizes is None or sizes[0] ** 2 <= plain_area(box, border) < sizes[1] ** 2

    detections = [(float(s), i, b) for i, r in enumerate(results) for b, s, k in
                  zip(r.bboxes.tolist(), r.scores.tolist(), r.labels.tolist()) if k == label]
    objects = []
    for t in truths:
        mine = [(b, False) for b, k in zip(t['bboxes'].tolist(), t['labels']) if k == label]
        mine += [(b, True) for b, k in zip(t['bboxes_ignore'].tolist(), t['labels_ignore']) if k == label]
        objects.append(mine)
    total = sum(not difficult and counts(b) for mine in objects for b, difficult in mine)
    taken, curve, hits, misses = set(), [], 0, 0
    for _, image, box in sorted(detections, key=lambda d: -d[0]):
        best, which = -1., None
        for k, (other, _) in enumerate(objects[image]):
            if plain_iou(box, other, border) > best:
                best, which = plain_iou(box, other, border), k
        if best >= thr:
            other, difficult = objects[image][which]
            if not difficult and counts(other):
                if (image, which) in taken:
                    misses += 1
                else:
                    taken.add((image, which))
                    hits += 1
        else:
            misses += counts(box)
        curve.append((hits / max(total, 1), hits / max(hits + misses, 1)))
    if not total:
        return None
    if rule == '11points':
        return sum(max([p for r, p in curve if r >= i * 0.1], default=0.) for i in range(11)) / 11
    area, last = 0., 0.
    for k, (recall, _) in enumerate(curve):
        area += (recall - last) * max(p for _, p in curve[k:])
        last = recall
    return area


def plain_map(truths, results, *args, **more):
    values = [plain_ap(truths, results, label, *args, **more) for label in range(3)]
    values = [v for v in values if v is not None]
    return sum(values) / len(values) if values else 0.


@pytest.mark.parametrize('rule', ['area', '11points'])
@pytest.mark.parametrize('evaluator, border', [('VOCEvaluator', 1.), ('MeanAPEvaluator', 0.)])
def test_map_is_the_plain_one(rule, evaluator, border):
    for seed in range(6):
        truths, results = random_case(seed)
        thrs, ranges = [0.3, 0.5, 0.75], [(0, 50), (50, 1000)]
        values = evaluate(Made(truths, evaluator, rule), results, 'mAP', 'silent', iou_thr=thrs, scale_ranges=ranges)
        for suffix, sizes in (('', None), ('_0_50', ranges[0]), ('_50_1000', ranges[1])):
            expected = [plain_map(truths, results, thr, border, rule, sizes=sizes) for thr in thrs]
            found = [values[f'AP{name}{suffix}'] for name in (30, 50, 75)]
            assert found == pytest.approx(expected, abs=1e-9) and 0 < found[1] < 1
            assert values[f'mAP{suffix}'] == pytest.approx(np.mean(expected), abs=1e-9)
        assert list(values) == metric_names(Made(truths), 'mAP', iou_thr=thrs, scale_ranges=ranges)


def test_difficult_objects_and_second_detections():
    box, other = [10, 10, 50, 50], [100, 100, 150, 150]
    dataset = Made([truth([box], [0], [other], [0])])
    both = result([other, box, box], [.9, .8, .7], [0, 0, 0])
    # the difficult object is neither right nor wrong; the second detection of the other is wrong, after recall 1
    assert evaluate(dataset, [both], logger='silent') == dict(mAP=1., AP50=1.)
    first_wrong = result([[200, 200, 220, 220], box], [.9, .8], [0, 0])
    assert evaluate(dataset, [first_wrong], logger='silent')['mAP'] == 0.5
    # a class without objects is not in the mean, whatever was found of it
    assert evaluate(dataset, [result([box, box], [.9, .8], [0, 2])], logger='silent')['mAP'] == 1.
    without_labels = {k: v for k, v in dataset.truths[0].items() if k != 'labels_ignore'}
    assert evaluate(Made([without_labels], 'MeanAPEvaluator'), [both], logger='silent')['mAP'] == 0.5


def test_the_last_pixel_belongs_to_voc_boxes():
    # 10 of 20 pixels with it, 9 of 19 without
    case = [truth([[0, 0, 19, 0.5]], [0])], [result([[0, 0, 9, 0.5]], [.9], [0])]
    assert evaluate(Made(case[0]), case[1], logger='silent')['mAP'] == 1.
    assert evaluate(Made(case[0], 'MeanAPEvaluator'), case[1], logger='silent')['mAP'] == 0.


def test_average_precision_by_hand():
    recall, precision = np.array([.25, .25, .5, .75]), np.array([1., .5, 2 / 3, .75])
    assert average_precision(recall, precision) == pytest.approx(.25 * 1 + .5 * .75)
    assert average_precision(recall, precision, '11points') == pytest.approx((3 * 1 + 5 * .75) / 11)
    assert average_precision(np.zeros(0), np.zeros(0)) == average_precision(np.zeros(0), np.zeros(0), '11points') == 0.


def plain_recall(truths, results, num, thr, border):
    found = total = 0
    for t, r in zip(truths, results):
        best = sorted(zip(r.scores.tolist(), r.bboxes.tolist()), key=lambda d: -d[0])[:num]
        pairs = sorted(((plain_iou(g, b, border), i, k) for i, g in enumerate(t['bboxes'].tolist())
                        for k, (_, b) in enumerate(best)), reverse=True)
        rows, columns = set(), set()
        for iou, i, k in pairs:
            if i not in rows and k not in columns:
                rows.add(i)
                columns.add(k)
                found += iou >= thr
        total += len(t['bboxes'])
    return found / total


def test_recall():
    truths, results = random_case(3)
    values = evaluate(Made(truths), results, 'recall', 'silent', iou_thr=[0.5, 0.7], proposal_nums=(2, 100))
    for num in (2, 100):
        expected = [plain_recall(truths, results, num, thr, 1.) for thr in (0.5, 0.7)]
        assert [values[f'recall@{num}@0.5'], values[f'recall@{num}@0.7']] == pytest.approx(expected)
        assert values[f'AR@{num}'] == pytest.approx(np.mean(expected))
    assert list(values) == metric_names(Made(truths), 'recall', iou_thr=[0.5, 0.7], proposal_nums=(2, 100))
    assert 'AR@2' not in evaluate(Made(truths), results, 'recall', 'silent', proposal_nums=(2, 100))


def test_what_is_told(capsys):
    truths, results = random_case(1)
    values = evaluate(Made(truths, ap_rule='11points'), results, ['mAP', 'recall'])
    shown = capsys.readouterr().out
    assert 'IoU 0.5 (11 points)' in shown and '| class' in shown and f"{values['mAP']:.3f}" in shown
    assert set(values) == {'mAP', 'AP50', 'recall@100@0.5', 'recall@300@0.5', 'recall@1000@0.5'}


def test_empty_and_wrong():
    nothing = evaluate(Made([truth(), truth([[1, 1, 9, 9]], [1])]), [result(), result()], ['mAP', 'recall'], 'silent')
    assert set(nothing.values()) == {0.}
    assert evaluate(Made([truth()]), [result([[1, 1, 9, 9]], [.5], [0])], logger='silent')['mAP'] == 0.
    dataset = Made([truth([[1, 1, 9, 9]], [1])])
    for options, message in ((dict(metric='bbox'), "'bbox'.*mAP, recall"), (dict(iou_thr=1.5), 'iou_thr=1.5'),
                             (dict(proposal_nums=0), 'proposal_nums'), (dict(scale_ranges=[3]), 'scale_ranges'),
                             (dict(iou_thrs=0.5), "'iou_thrs'.*did you mean 'iou_thr'")):
        with pytest.raises(ConfigError, match=message):
            evaluate(dataset, [result()], **options)
    with pytest.raises(DataError, match='labels 7 to 7 of 3'):
        evaluate(Made([truth([[1, 1, 9, 9]], [7])]), [result()])
    with pytest.raises(ConfigError, match='VOCEvaluator are not known.*--out'):
        format_results(dataset, [result()])
    dataset.has_annotations = False
    with pytest.raises(DataError, match='made holds no annotations'):
        evaluate(dataset, [result()])
