"""COCO metrics against pycocotools itself, on perturbed ground truth and random cases: the difference is 0.0."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate
from boxdet.evaluation.coco import OksSettings, coco_scores
from boxdet.evaluation.predictions import coco_predictions
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks


class Dataset:
    """What evaluate() asks of a data set."""

    def __init__(self, coco: COCO, category_ids=None):
        self.coco = coco
        self.img_ids = coco.getImgIds()
        self.cat_ids = list(category_ids or coco.getCatIds())
        self.CLASSES = tuple(coco.loadCats([c])[0]['name'] for c in self.cat_ids)

    def __len__(self):
        return len(self.img_ids)


@pytest.fixture(scope='module')
def dataset(shared_data) -> Dataset:
    with contextlib.redirect_stdout(io.StringIO()):
        return Dataset(COCO(str(shared_data / 'coco_mini/annotations/instances_val2017.json')))


@pytest.fixture(scope='module')
def results(dataset) -> list[Instances]:
    return perturbed(dataset)


def perturbed(dataset: Dataset, seed: int = 0) -> list[Instances]:
    """Results made of the ground truth: moved, some missing, doubled or of a wrong class, with random scores."""
    rng = np.random.default_rng(seed)
    results = []
    for image_id in dataset.img_ids:
        image, boxes, labels, rles = dataset.coco.imgs[image_id], [], [], []
        height, width = image['height'], image['width']
        for annotation in dataset.coco.imgToAnns.get(image_id, ()):
            for _ in range(rng.integers(0, 3)):
                x, y, w, h = annotation['bbox']
                noise = rng.normal(0, 0.06, 4) * (w, h, w, h)
                boxes.append(np.array([x, y, x + w, y + h]) + noise)
                wrong = rng.random() < 0.15
                labels.append(rng.integers(len(dataset.cat_ids)) if wrong
                              else dataset.cat_ids.index(annotation['category_id']))
                bitmap = np.roll(dataset.coco.annToMask(annotation), rng.integers(-3, 4, 2), axis=(0, 1))
                rles.append(coco_masks.encode(np.asfortranarray(bitmap)))
        results.append(Instances(
            (height, width), len(dataset.cat_ids),
            bboxes=torch.tensor(np.array(boxes).reshape(-1, 4), dtype=torch.float32),
            scores=torch.tensor(rng.random(len(boxes)), dtype=torch.float32),
            labels=torch.tensor(np.array(labels, dtype=np.int64)), masks=RleMasks(rles, height, width)))
    return results


def pycocotools_stats(dataset: Dataset, results, kind: str, agnostic: bool = False,
                      limits=None) -> np.ndarray:
    """Pycocotools' own twelve numbers, by its loadRes and summarize."""
    rows = []
    for image_id, result in zip(dataset.img_ids, results):
        for i in range(len(result)):
            x0, y0, x1, y1 = result.bboxes[i].tolist()
            row = dict(image_id=image_id, score=float(result.scores[i]),
                       category_id=dataset.cat_ids[int(result.labels[i])])
            row.update(bbox=[x0, y0, x1 - x0, y1 - y0]) if kind == 'bbox' else row.update(
                segmentation=result.masks[i])
            rows.append(row)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(dataset.coco.dataset, info={},
                             annotations=[dict(a) for a in dataset.coco.dataset['annotations']])
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        evaluation.params.catIds = dataset.cat_ids
        if limits:
            evaluation.params.maxDets = list(limits)
        evaluation.params.useCats = int(not agnostic)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return evaluation.stats


NAMES = ('mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l')


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_average_precision_is_pycocotools_own(dataset, results, kind):
    expected = pycocotools_stats(dataset, results, kind)
    assert 0.2 < expected[0] < 0.9  # the case tells something
    values = evaluate(dataset, results, kind, logger='silent')
    assert [values[f'{kind}_{name}'] for name in NAMES] == list(expected[:6])
    assert values[f'{kind}_mAP_copypaste'] == ' '.join(f'{v:.3f}' for v in expected[:6])


def test_proposal_recall_is_pycocotools_own(dataset, results):
    expected = pycocotools_stats(dataset, results, 'bbox', agnostic=True, limits=(100, 300, 1000))
    values = evaluate(dataset, results, 'proposal', logger='silent')
    assert list(values) == ['AR@100', 'AR@300', 'AR@1000', 'AR_s@1000', 'AR_m@1000', 'AR_l@1000']
    assert list(values.values()) == list(expected[6:])


def test_the_projects_own_data_set(shared_data, dataset, results):
    from boxdet.datasets import CocoDataset
    own = CocoDataset(str(shared_data / 'coco_mini/annotations/instances_val2017.json'), [], test_mode=True)
    assert own.img_ids == dataset.img_ids and own.cat_ids == dataset.cat_ids
    assert evaluate(own, results, ['bbox', 'segm'], logger='silent') == evaluate(
        dataset, results, ['bbox', 'segm'], logger='silent')


def test_a_subset_of_classes_in_another_order(dataset):
    category_ids = [
        c for c in dataset.cat_ids if any(a['category_id'] == c for a in dataset.coco.anns.values())][:5]
    subset = Dataset(dataset.coco, reversed(category_ids))
    results = _only(perturbed(dataset), dataset, subset)
    values = evaluate(subset, results, 'bbox', logger='silent', classwise=True)
    assert values['bbox_mAP'] == pycocotools_stats(subset, results, 'bbox')[0]
    for category, name in zip(subset.cat_ids, subset.CLASSES):
        alone = Dataset(dataset.coco, [category])
        assert values[f'bbox_{name}_precision'] == pycocotools_stats(
            alone, _only(results, subset, alone), 'bbox')[0]


def _only(results, source: Dataset, target: Dataset) -> list[Instances]:
    """The results of the target's classes, relabelled."""
    kept = []
    for result in results:
        names = [source.cat_ids[k] for k in result.labels.tolist()]
        keep = torch.tensor([n in target.cat_ids for n in names], dtype=torch.bool)
        labels = torch.tensor([target.cat_ids.index(n) for n in names if n in target.cat_ids],
                              dtype=torch.long)
        kept.append(result[keep].replace(labels=labels))
    return kept


def test_the_ground_truth_stays_as_it_is(dataset, results):
    annotation = next(a for a in dataset.coco.dataset['annotations'] if not a['iscrowd'])
    before = dict(annotation)
    coco_scores(dataset.coco, results, 'segm', dataset.img_ids, dataset.cat_ids)
    assert annotation == before


def tiny(annotations, **image) -> Dataset:
    coco = COCO()
    coco.dataset = dict(images=[dict(id=7, height=100, width=200, file_name='a.jpg', **image)],
                        annotations=annotations, categories=[dict(id=3, name='cat'), dict(id=9, name='dog')])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    return Dataset(coco)


def found(boxes, scores, labels, **fields) -> Instances:
    return Instances((100, 200), 2, bboxes=torch.tensor(boxes, dtype=torch.float32).reshape(-1, 4),
                     scores=torch.tensor(scores), labels=torch.tensor(labels, dtype=torch.long), **fields)


def test_annotations_without_area_and_iscrowd():
    dataset = tiny([dict(id=1, image_id=7, category_id=3, bbox=[10, 10, 50, 40])])
    values = evaluate(dataset, [found([[10, 10, 60, 50]], [0.5], [0])], logger='silent')
    assert values['bbox_mAP'] == pytest.approx(1.0)
    assert values['bbox_mAP_m'] == pytest.approx(
        1.0) and values['bbox_mAP_s'] == -1  # 2000 pixels: a medium object


def test_masks_missing_in_the_annotations_name_the_annotation():
    dataset = tiny([dict(id=41, image_id=7, category_id=3, bbox=[10, 10, 50, 40])])
    masks = RleMasks([coco_masks.encode(np.ones((100, 200), np.uint8, order='F'))], 100, 200)
    with pytest.raises(DataError, match=r"annotation 41 of image 7 \(a.jpg\) has no 'segmentation'"):
        evaluate(dataset, [found([[10, 10, 60, 50]], [0.5], [0], masks=masks)], 'segm', logger='silent')


def test_masks_of_another_size_are_an_error_and_no_silent_zero():
    polygon = [[10, 10, 60, 10, 60, 50, 10, 50]]
    dataset = tiny([dict(id=1, image_id=7, category_id=3, bbox=[10, 10, 50, 40], segmentation=polygon)])
    masks = RleMasks([coco_masks.encode(np.ones((50, 100), np.uint8, order='F'))], 50, 100)
    with pytest.raises(DataError, match='image 7.*mask is 100x50.*says 200x100'):
        evaluate(dataset, [found([[10, 10, 60, 50]], [0.5], [0], masks=masks)], 'segm', logger='silent')


def test_masks_with_scores_of_their_own_are_ranked_by_these():
    polygon = [[10, 10, 60, 10, 60, 50, 10, 50]]
    dataset = tiny([dict(id=1, image_id=7, category_id=3, bbox=[10, 10, 50, 40], area=2000, iscrowd=0,
                         segmentation=polygon)])
    drawn = np.zeros((2, 100, 200), np.uint8)
    drawn[0, 10:50, 10:60] = drawn[1, 60:90, 100:150] = 1
    masks = RleMasks([coco_masks.encode(np.asfortranarray(one)) for one in drawn], 100, 200)
    result = found([[10, 10, 60, 50], [100, 60, 150, 90]], [0.5, 0.9], [0, 0], masks=masks,
                   mask_scores=torch.tensor([0.9, 0.5]))
    values = evaluate(dataset, [result], ['bbox', 'segm'], logger='silent')
    assert values['bbox_mAP_50'] == pytest.approx(0.5, abs=1e-3) and values['segm_mAP_50'] == pytest.approx(1)


def test_iou_of_chosen_thresholds():
    dataset = tiny([dict(id=1, image_id=7, category_id=3, bbox=[0, 0, 100, 100], area=10000, iscrowd=0)])
    results = [found([[0, 0, 80, 100]], [0.9], [0])]  # IoU 0.8
    assert evaluate(dataset, results, iou_thrs=[0.75], logger='silent')['bbox_mAP'] == pytest.approx(1.0)
    assert evaluate(dataset, results, iou_thrs=0.85, logger='silent')['bbox_mAP'] == 0
    assert evaluate(dataset, results, iou_thrs=[0.75],
                    logger='silent')['bbox_mAP_50'] == -1  # 0.5 was not asked for


# --- random cases: crowds, equal scores and overlaps, ids in any order, keypoints ---

def pycocotools_arrays(dataset: Dataset, results, kind: str, limits, agnostic=False, thrs=None):
    """Pycocotools' whole precision and recall, from the rows that a server gets."""
    rows = [row for image_id, result in zip(dataset.img_ids, results)
            for row in coco_predictions(result, image_id, dataset.cat_ids, kind, 0.5)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = dict(dataset.coco.dataset, annotations=[dict(a) for a in dataset.coco.dataset['annotations']])
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(rows), kind)
        params = evaluation.params
        params.imgIds, params.catIds, params.maxDets = dataset.img_ids, dataset.cat_ids, list(limits)
        params.useCats = int(not agnostic)
        params.iouThrs = params.iouThrs if thrs is None else np.array(thrs)
        if kind == 'keypoints':
            params.kpt_oks_sigmas = np.array(dataset.SIGMAS)
        evaluation.evaluate()
        evaluation.accumulate()
    return evaluation.eval['precision'], evaluation.eval['recall']


@pytest.mark.parametrize('seed', range(3))
@pytest.mark.parametrize('kind, options', [
    ('bbox', {}), ('segm', {}), ('keypoints', dict(limits=[20])), ('bbox', dict(limits=[1, 3, 100])),
    ('bbox', dict(agnostic=True)), ('segm', dict(thrs=[0.1, 1.0], limits=[5]))], ids=str)
def test_every_number_of_random_cases(random_data_set, seed, kind, options):
    dataset, results = random_data_set(seed)
    options = dict(dict(limits=[100, 300, 1000]), **options)
    precision, recall = pycocotools_arrays(dataset, results, kind, **options)
    scores = coco_scores(dataset.coco, StoredResults.of(results), kind, dataset.img_ids, dataset.cat_ids,
                         options['limits'], options.get('thrs'), options.get('agnostic', False),
                         OksSettings(dataset.SIGMAS, 0.5))
    assert (precision > 0).any() and (precision == 0).any()
    assert np.array_equal(scores.precision, precision) and np.array_equal(scores.recall, recall)


def test_blocks_are_matched_as_one(random_data_set, monkeypatch):
    dataset, results = random_data_set(5)
    whole = coco_scores(dataset.coco, results, 'segm', dataset.img_ids, dataset.cat_ids)
    monkeypatch.setattr('boxdet.evaluation.coco._BLOCK', 30)
    parts = coco_scores(dataset.coco, results, 'segm', dataset.img_ids, dataset.cat_ids)
    assert np.array_equal(whole.precision, parts.precision) and np.array_equal(whole.recall, parts.recall)


def test_more_masks_than_pycocotools_takes_at_once():
    """Its areas of more than 255 masks at once are an error with numpy 2."""
    dataset = tiny([dict(id=1, image_id=7, category_id=3, bbox=[0, 0, 10, 10], area=100, iscrowd=0,
                         segmentation=[[0, 0, 10, 0, 10, 10, 0, 10]])])
    bitmap = np.zeros((100, 200), np.uint8, order='F')
    bitmap[:10, :10] = 1
    masks = RleMasks([coco_masks.encode(bitmap)] * 300, 100, 200)
    many = found([[0, 0, 10, 10]] * 300, [0.5] * 300, [0] * 300, masks=masks)
    assert evaluate(dataset, [many], 'segm', logger='silent')['segm_mAP'] == pytest.approx(1.0)


def test_keypoints_by_name(random_data_set, capsys):
    dataset, results = random_data_set(1)
    values = evaluate(dataset, results, ['bbox', 'keypoints'], classwise=True)
    precision, recall = pycocotools_arrays(dataset, results, 'keypoints', [20])
    assert values['keypoints_mAP'] == precision[..., 0, 0][precision[..., 0, 0] > -1].mean()
    assert [key for key in values if key.startswith('keypoints')] == [
        f'keypoints_{end}' for end in ('mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'mAP_copypaste', 'c9_precision',
                                       'c2_precision', 'c5_precision')]
    assert ' Average Recall    (AR) @[ IoU=0.75      | area=   all | maxDets=  20 ]' in capsys.readouterr().out
    items = evaluate(dataset, results, ['bbox', 'keypoints'], logger='silent', metric_items=['mAP_s', 'AR_50', 'mAP'])
    assert list(items) == ['bbox_mAP_s', 'bbox_mAP', 'bbox_mAP_copypaste', 'keypoints_AR_50', 'keypoints_mAP',
                           'keypoints_mAP_copypaste']
    assert items['keypoints_AR_50'] == recall[0, :, 0, 0].mean()


def test_keypoints_need_keypoints_and_sigmas(random_data_set):
    dataset, results = random_data_set(1)
    with pytest.raises(DataError, match="hold no keypoints: metric 'keypoints' needs a model with a keypoint head"):
        evaluate(dataset, [r.without('keypoints') for r in results], 'keypoints', logger='silent')
    dataset.SIGMAS, dataset.KEYPOINT_NAMES, dataset.ann_file = None, ('a', 'b'), 'ann.json'
    with pytest.raises(ConfigError, match=r'needs sigmas=\[...\] of the 2 keypoints of ann.json'):
        evaluate(dataset, results, 'keypoints', logger='silent')
    plain = Dataset(dataset.coco, dataset.cat_ids)
    with pytest.raises(ConfigError, match='needs a CocoKeypointDataset'):
        evaluate(plain, results, 'keypoints', logger='silent')
