"""Records, best thresholds and confusion against plain loops, and against average precision."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO

from boxdet.errors import DataError
from boxdet.evaluation import evaluate
from boxdet.evaluation.operating_points import confusion_matrix, match_at, match_records, operating_points
from boxdet.structures.instances import Instances

CLASSES = ('a', 'b', 'c')


class Boxes:
    """A data set that gives boxes only, as a VOC one does."""
    CLASSES = CLASSES

    def __init__(self, infos):
        self.infos = infos

    def __len__(self):
        return len(self.infos)

    def get_ann_info(self, index):
        return self.infos[index]


def random_case(seed: int, images: int = 12):
    """Objects on a coarse grid and detections near them, so that there are doubles, confusions and equal scores."""
    rng = np.random.default_rng(seed)
    infos, results = [], []
    for _ in range(images):
        count = rng.integers(0, 6)
        corner = rng.integers(0, 4, (count, 2)) * 20
        infos.append(dict(bboxes=np.concatenate([corner, corner + 20], axis=1).astype(np.float32).reshape(-1, 4),
                          labels=rng.integers(0, 3, count)))
        found = rng.integers(0, 9)
        near = rng.integers(0, 4, (found, 2)) * 20 + rng.integers(-6, 7, (found, 2))
        results.append(Instances((100, 100), 3, bboxes=torch.tensor(
            np.concatenate([near, near + 20], axis=1).reshape(-1, 4), dtype=torch.float32),
            scores=torch.tensor(np.round(rng.random(found), 1), dtype=torch.float32),
            labels=torch.tensor(rng.integers(0, 3, found))))
    return Boxes(infos), results


def iou(box, other) -> float:
    width, height = (min(box[i + 2], other[i + 2]) - max(box[i], other[i]) for i in (0, 1))
    if width <= 0 or height <= 0:
        return 0.
    area, other_area = ((b[2] - b[0]) * (b[3] - b[1]) for b in (box, other))
    return width * height / (area + other_area - width * height)


def plain_confusion(dataset, results, score_thr, iou_thr):
    """First within a class, then whatever the class; best score first; of equal overlaps the later object."""
    matrix = np.zeros((4, 4), int)
    for index, result in enumerate(results):
        info, free, left = dataset.get_ann_info(index), set(range(len(dataset.infos[index]['labels']))), []
        label, score, boxes = result.labels.tolist(), result.scores.tolist(), result.bboxes.tolist()
        truth = info['labels'].tolist()

        def best(row, among, truth=truth, boxes=boxes, info=info):
            order = sorted(among, key=lambda g: (truth[g], g))
            overlaps = [(iou(boxes[row], info['bboxes'][g].tolist()), place, g) for place, g in enumerate(order)]
            overlaps = [o for o in overlaps if o[0] >= iou_thr]
            return max(overlaps)[2] if overlaps else None
        rows = [r for r in np.argsort(-np.array(score), kind='stable') if score[r] >= np.float32(score_thr)]
        for row in rows:
            hit = best(row, [g for g in free if truth[g] == label[row]])
            if hit is None:
                left.append(row)
            else:
                free.discard(hit)
                matrix[label[row], label[row]] += 1
        # Of equal scores, detections of the lower class choose first.
        for row in sorted(left, key=lambda r: (-score[r], label[r], r)):
            hit = best(row, free)
            matrix[3 if hit is None else truth[hit], label[row]] += 1
            free.discard(hit)
        for g in free:
            matrix[truth[g], 3] += 1
    return matrix


@pytest.mark.parametrize('seed', range(8))
def test_confusion_equals_plain_loops_and_adds_up(seed):
    dataset, results = random_case(seed)
    matrix = confusion_matrix(dataset, results, 0.3, 0.5)
    assert np.array_equal(matrix, plain_confusion(dataset, results, 0.3, 0.5))
    objects = np.concatenate([info['labels'] for info in dataset.infos])
    labels = torch.cat([r.labels[r.scores >= 0.3] for r in results]).numpy()
    assert np.array_equal(matrix.sum(axis=1)[:3], np.bincount(objects, minlength=3))
    assert np.array_equal(matrix.sum(axis=0)[:3], np.bincount(labels, minlength=3)) and matrix[3, 3] == 0
    assert np.array_equal(matrix, confusion_matrix(dataset, results, 0.3, records=match_records(dataset, results)))


@pytest.mark.parametrize('seed', range(4))
def test_the_best_threshold_is_the_best_of_all(seed):
    dataset, results = random_case(seed)
    records = match_records(dataset, results, 0.5)
    points, found = operating_points(records), records.detections
    for label, point in enumerate(points.classes):
        objects = (records.truths.label == label).sum()
        best = 0.
        for threshold in np.unique(found.score):
            chosen = (found.label == label) & (found.score >= threshold)
            hits = (found.truth[chosen] >= 0).sum()
            f1 = 2 * hits / (chosen.sum() + objects)
            best = max(best, f1)
            if chosen.any():
                assert point.at(threshold) == pytest.approx((hits / chosen.sum(), hits / objects, f1))
        assert point.f1 == pytest.approx(best) and point.objects == objects
        if best:
            assert point.at(point.threshold) == pytest.approx((point.precision, point.recall, point.f1))


def test_records_tell_who_found_what():
    dataset = Boxes([dict(bboxes=np.array([[0, 0, 10, 10], [50, 50, 60, 60]]), labels=np.array([0, 2]),
                          bboxes_ignore=np.array([[80, 80, 90, 90]]), labels_ignore=np.array([2]))])
    result = Instances((100, 100), 3, scores=torch.tensor([0.3, 0.9, 0.8, 0.7]), labels=torch.tensor([0, 0, 2, 2]),
                       bboxes=torch.tensor([[0., 0, 10, 10], [0, 0, 10, 9], [80, 80, 90, 90], [50, 50, 60, 54]]))
    records = match_records(dataset, [result])
    found, truths = records.detections, records.truths
    assert found.row.tolist() == [1, 0, 2, 3] and found.label.tolist() == [0, 0, 2, 2]
    assert found.truth.tolist() == [0, -1, 2, -1] and found.ignored.tolist() == [False, False, True, False]
    assert found.iou == pytest.approx([0.9, 1.0, 1.0, 0.4])  # also of those that found nothing
    assert truths.detection.tolist() == [0, -1, 2] and truths.ignored.tolist() == [False, False, True]
    assert truths.box[1].tolist() == [50, 50, 60, 60]
    points = operating_points(records)
    assert (points.classes[0].precision, points.classes[0].recall, points.classes[0].threshold) == (
        1, 1, pytest.approx(0.9))
    assert points.classes[1].interpolated is None and points.classes[1].ap == -1 and points.classes[2].f1 == 0
    assert points.overall.objects == 2 and points.overall.f1 == pytest.approx(2 / 3)


def test_a_region_of_no_class_ignores_every_class():
    dataset = Boxes([dict(bboxes=np.zeros((0, 4)), labels=np.zeros(0, int), bboxes_ignore=np.array([[0, 0, 50, 50]]))])
    result = Instances((100, 100), 3, scores=torch.tensor([0.9, 0.8, 0.7]), labels=torch.tensor([0, 1, 1]),
                       bboxes=torch.tensor([[0., 0, 10, 10], [5, 5, 20, 20], [60, 60, 70, 70]]))
    assert match_records(dataset, [result]).detections.ignored.tolist() == [True, True, False]
    assert confusion_matrix(dataset, [result], 0.1)[3].tolist() == [0, 1, 0, 0]


def test_nothing_found_and_nothing_there():
    empty = Instances((10, 10), 3, bboxes=torch.zeros(0, 4), scores=torch.zeros(0),
                      labels=torch.zeros(0, dtype=torch.long))
    nowhere = Boxes([dict(bboxes=np.zeros((0, 4)), labels=np.zeros(0, int))])
    overall = operating_points(match_records(nowhere, [empty])).overall
    assert (overall.f1, overall.threshold, overall.ap) == (0, 1, -1)
    assert not confusion_matrix(nowhere, [empty]).any()
    dataset, _ = random_case(0)
    points = operating_points(match_records(dataset, [empty] * len(dataset)))
    assert points.overall.ap == 0 and points.overall.at(0.) == (0, 0, 0)


def test_masks_need_coco_annotations():
    dataset, results = random_case(0)
    with pytest.raises(DataError, match='masks of a Boxes are not matched'):
        match_records(dataset, results, metric='segm')


def as_coco(boxes: Boxes) -> Boxes:
    """The same data set with ``coco``, as CocoDataset gives it."""
    coco = COCO()
    rows = [(k, box, label) for k, info in enumerate(boxes.infos) for box, label in zip(info['bboxes'], info['labels'])]
    coco.dataset = dict(
        images=[dict(id=k, width=100, height=100, file_name=f'{k}.jpg') for k in range(len(boxes))],
        categories=[dict(id=c, name=name) for c, name in enumerate(CLASSES)],
        annotations=[dict(id=i, image_id=k, category_id=int(label), iscrowd=0, area=400., bbox=[
            *box[:2].tolist(), 20., 20.]) for i, (k, box, label) in enumerate(rows)])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    result = Boxes(boxes.infos)
    result.coco, result.img_ids, result.cat_ids = coco, list(range(len(boxes))), [0, 1, 2]
    return result


@pytest.mark.parametrize('seed', range(3))
def test_average_precision_is_that_of_evaluate(seed):
    """Annotation ids from 0 included: the object with id 0 counts as found."""
    boxes, results = random_case(seed, images=40)
    dataset = as_coco(boxes)
    values = evaluate(dataset, results, classwise=True, logger='silent', iou_thrs=[0.5, 0.75])
    for data in (dataset, boxes):
        half, strict = (operating_points(r) for r in match_at(data, results, [0.5, 0.75]))
        assert half.overall.ap == pytest.approx(values['bbox_mAP_50'], abs=1e-12)
        assert strict.overall.ap == pytest.approx(values['bbox_mAP_75'], abs=1e-12)
    assert half.classes[1].ap + strict.classes[1].ap == pytest.approx(2 * values['bbox_b_precision'], abs=1e-12)
