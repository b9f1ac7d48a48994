"""Protocol 'lvis': against the package lvis, the reference evaluator, on small federated sets; and by hand."""

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxdet.datasets import ConcatDataset
from boxdet.datasets.lvis import LVISV1Dataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate, format_results
from boxdet.evaluation.evaluate import metric_names, require_annotations
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks

ITEMS = ('AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf')
HEIGHT, WIDTH = 160, 220


def federated(seed=0, images=12, classes=15):
    """A set whose ids do not rise with the place in the file; objects of all sizes, some without area or ignored."""
    rng = np.random.default_rng(seed)
    category_ids = rng.permutation(np.arange(1, classes + 1) * 3)
    categories = [dict(id=int(i), name=f'kind_{i}', frequency='rcf'[k % 3]) for k, i in enumerate(category_ids)]
    entries, annotations = [], []
    for number in rng.permutation(images) + 5:
        shown = rng.choice(category_ids, 4, replace=False)
        others = [int(c) for c in category_ids if c not in shown]
        entries.append(dict(id=int(number), width=WIDTH, height=HEIGHT,
                            coco_url=f'http://images.cocodataset.org/val2017/{number:012d}.jpg',
                            neg_category_ids=others[:4],
                            not_exhaustive_category_ids=[int(shown[0]), others[5], others[6]]))
        for category in np.repeat(shown, rng.integers(1, 4, 4)):
            w, h = (rng.choice([12, 40, 110], 2) * rng.uniform(0.8, 1.2, 2)).round(2)
            x, y = round(rng.uniform(0, WIDTH - w), 2), round(rng.uniform(0, HEIGHT - h), 2)
            annotations.append(dict(
                id=len(annotations) + 1, image_id=int(number), category_id=int(category), bbox=[x, y, w, h],
                area=0. if rng.random() < 0.05 else round(w * h * 0.9, 2), ignore=int(rng.random() < 0.05),
                segmentation=[[x, y, x + w, y, x + w, y + h * 0.8, x + w / 2, y + h, x, y + h * 0.7]]))
    return dict(images=entries, annotations=annotations, categories=categories)


def detections(data, dataset, seed=0, others=25):
    """For each image its objects moved, doubled and of wrong classes, much of nothing, equal scores, empty boxes."""
    rng, results = np.random.default_rng(seed), []
    for image_id in dataset.img_ids:
        boxes, labels = [], []
        for a in (a for a in data['annotations'] if a['image_id'] == image_id):
            for _ in range(rng.integers(0, 4)):
                boxes.append(np.array(a['bbox']) + rng.normal(0, 0.06, 4) * np.tile(a['bbox'][2:], 2))
                labels.append(dataset.cat2label[a['category_id']] if rng.random() < 0.8
                              else rng.integers(len(dataset.CLASSES)))
        for _ in range(others):
            boxes.append(np.array([rng.uniform(0, 100), rng.uniform(0, 100), *rng.uniform(0, 90, 2)]))
            labels.append(rng.integers(len(dataset.CLASSES)))
        boxes[-1][2:] = 0
        boxes = np.array(boxes, dtype=np.float32)
        boxes[:, 2:] = boxes[:, :2] + np.abs(boxes[:, 2:])
        rles = []
        for x1, y1, x2, y2 in boxes.round().astype(int):
            bitmap = np.zeros((HEIGHT, WIDTH), np.uint8, order='F')
            bitmap[max(y1, 0):max(y2, 0), max(x1, 0):max(x2, 0)] = 1
            rles.append(coco_mask.encode(bitmap))
        results.append(Instances((HEIGHT, WIDTH), len(dataset.CLASSES), bboxes=torch.from_numpy(boxes),
                                 labels=torch.tensor(np.array(labels, dtype=np.int64)),
                                 scores=torch.from_numpy(rng.random(len(boxes)).round(2).astype(np.float32)),
                                 masks=RleMasks(rles, HEIGHT, WIDTH)))
    return results


def open_dataset(folder, data, **more):
    path = folder / 'lvis.json'
    path.write_text(json.dumps(data))
    return LVISV1Dataset(str(path), [], test_mode=True, **more)


@pytest.fixture
def reference(monkeypatch):
    """``reference(annotation file, COCO results, 'bbox' or 'segm', most)``: what the package lvis finds."""
    lvis = pytest.importorskip('lvis', reason='the package lvis is the reference evaluator')
    monkeypatch.setattr(np, 'float', float, raising=False)  # which numpy 1.24 no longer has

    def judge(ann_file, rows, kind, most=300):
        truth = lvis.LVIS(ann_file)
        judged = lvis.LVISEval(truth, lvis.LVISResults(truth, copy.deepcopy(rows), max_dets=most), kind)
        judged.run()
        return judged
    return judge


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
@pytest.mark.parametrize('seed', range(3))
def test_numbers_are_the_reference_evaluators(tmp_path, reference, seed, kind):
    data = federated(seed)
    dataset = open_dataset(tmp_path, data)
    results = detections(data, dataset, seed)
    files = format_results(dataset, results, jsonfile_prefix=str(tmp_path / 'r'))
    ours = evaluate(dataset, results, metric=kind, classwise=True, logger='silent')
    judged = reference(dataset.ann_file, json.loads(Path(files[kind]).read_text()), kind)
    theirs = judged.get_results()
    assert {item: ours[f'{kind}_{item}'] for item in ITEMS} == {item: theirs[item] for item in ITEMS}
    assert 0.05 < ours[f'{kind}_AP'] < 0.9 and len({ours[f'{kind}_AP{g}'] for g in 'rcf'}) == 3
    for k, category in enumerate(judged.params.cat_ids):
        precision = judged.eval['precision'][:, :, k, 0]
        expected = np.mean(precision[precision > -1]) if (precision > -1).any() else -1
        assert ours[f'{kind}_kind_{category}_precision'] == pytest.approx(expected, abs=1e-12)


def test_the_best_detections_of_an_image_count_whatever_their_classes(tmp_path, reference):
    data = federated(4)
    dataset = open_dataset(tmp_path, data)
    results = detections(data, dataset, 4, others=400)
    rows = json.loads(Path(format_results(dataset, results, jsonfile_prefix=str(tmp_path / 'r'))['bbox']).read_text())
    assert min(map(len, results)) > 300
    found = {most: evaluate(dataset, results, metric='bbox', logger='silent',
                            **({} if most == 300 else dict(max_dets=most))) for most in (20, 300, 1000)}
    for most, ours in found.items():
        theirs = reference(dataset.ann_file, rows, 'bbox', most).get_results()
        assert {item: ours[f'bbox_{item}'] for item in ITEMS} == {item: theirs[item] for item in ITEMS}
    assert len({ours['bbox_AP'] for ours in found.values()}) == 3


def test_own_area_ranges_take_the_place_of_the_usual(tmp_path):
    data = federated(4)
    dataset = open_dataset(tmp_path, data)
    results = detections(data, dataset, 4)
    usual = evaluate(dataset, results, metric='bbox', logger='silent')
    own = evaluate(dataset, results, metric='bbox', logger='silent', area_ranges=dict(
        low=(0, 32 ** 2), rest=(32 ** 2, 1e10), high=(96 ** 2, 1e10)))
    assert [own[f'bbox_AP_{name}'] for name in ('low', 'high')] == [usual['bbox_APs'], usual['bbox_APl']]
    assert own['bbox_AP'] == usual['bbox_AP'] and 'bbox_APs' not in own and own['bbox_APr'] == usual['bbox_APr']
    assert set(own) - {'bbox_mAP_copypaste'} == set(metric_names(LVISV1Dataset, 'bbox', area_ranges=dict(
        low=(0, 1), rest=(1, 2), high=(2, 3))))
    with pytest.raises(ConfigError, match='area_ranges: a name and its smallest and largest area'):
        evaluate(dataset, results, metric='bbox', area_ranges=[(0, 32)])


def box_results(dataset, *images):
    """Results from ``[(class, box xyxy, score), ...]`` for each image."""
    return [Instances((100, 100), 3, bboxes=torch.tensor([box for _, box, _ in rows]).float().reshape(-1, 4),
                      labels=torch.tensor([label for label, _, _ in rows], dtype=torch.long),
                      scores=torch.tensor([score for *_, score in rows])) for rows in images]


def test_the_federated_rules_by_hand(tmp_path):
    """One object of class a; b is known to be absent, c was not looked for, and not every a is marked."""
    image = dict(id=1, width=100, height=100, coco_url='http://x/1.jpg', neg_category_ids=[2],
                 not_exhaustive_category_ids=[])
    data = dict(images=[image, dict(image, id=2, neg_category_ids=[], coco_url='http://x/2.jpg')],
                categories=[dict(id=1 + k, name='abc'[k], frequency='rcf'[k]) for k in range(3)],
                annotations=[dict(id=1, image_id=1, category_id=1, bbox=[10, 10, 40, 40], area=1600),
                             dict(id=2, image_id=2, category_id=2, bbox=[10, 10, 40, 40], area=1600)])
    dataset = open_dataset(tmp_path, data)
    there, elsewhere = [10, 10, 50, 50], [60, 60, 90, 90]

    def values(*images):
        return evaluate(dataset, box_results(dataset, *images), metric='bbox', logger='silent')

    second = [(1, there, 0.5)]
    assert values([(0, there, 0.9)], second)['bbox_AP'] == pytest.approx(1)
    # Before the right one: a detection of c (not looked for) costs nothing, one of b (known to be absent) does.
    assert values([(0, there, 0.5), (2, elsewhere, 0.9)], second)['bbox_AP'] == pytest.approx(1)
    assert values([(0, there, 0.5), (1, elsewhere, 0.9)], second)['bbox_APc'] == pytest.approx(0.5)
    assert values([(0, there, 0.5), (0, elsewhere, 0.9)], second)['bbox_APr'] == pytest.approx(0.5)
    data['images'][0]['not_exhaustive_category_ids'] = [1]
    dataset = open_dataset(tmp_path, data)
    found = values([(0, there, 0.5), (0, elsewhere, 0.9)], second)
    assert found['bbox_APr'] == pytest.approx(1) and found['bbox_APf'] == -1
    assert values([], [])['bbox_AP'] == 0


def test_classes_narrow_and_proposals_are_cocos(tmp_path, capsys):
    data = federated(1)
    every = open_dataset(tmp_path, data)
    results = detections(data, every, 1)
    full = evaluate(every, results, metric=['bbox', 'proposal', 'proposal_fast'], classwise=True)
    assert {'bbox_APr', 'AR@100', 'AR_s@1000', 'proposal_fast_AR@300'} <= set(full)
    assert set(metric_names(every, ['bbox', 'proposal', 'proposal_fast'])) == {
        key for key in full if not key.endswith(('precision', 'copypaste'))}
    printed = capsys.readouterr().out
    assert 'maxDets= 300 | classes=    rare' in printed and 'kind_3' in printed and full['bbox_mAP_copypaste'] in \
        ' '.join(f'{item}:{full[f"bbox_{item}"]:.4f}' for item in ITEMS)
    names = every.CLASSES[4:7][::-1]
    narrow = open_dataset(tmp_path, data, classes=names)
    kept = [r[np.isin(r.labels.numpy(), (4, 5, 6))] for r in results]
    kept = [r.replace(labels=6 - r.labels) for r in kept]
    found = evaluate(narrow, kept, metric='bbox', classwise=True, logger='silent')
    assert {key: full[key] for key in found if key.endswith('precision')} == {
        key: value for key, value in found.items() if key.endswith('precision')}
    assert len([key for key in found if key.endswith('precision')]) == 3


def test_what_the_rules_need_is_asked_for(tmp_path):
    def refuses(data, text):
        with pytest.raises(DataError, match=text):
            require_annotations(open_dataset(tmp_path, data))

    data = federated()
    del data['images'][3]['neg_category_ids']
    refuses(data, f"image {data['images'][3]['id']} has no list 'neg_category_ids'")
    data = federated()
    data['images'][2]['not_exhaustive_category_ids'] = None
    refuses(data, "no list 'not_exhaustive_category_ids'.*CocoDataset evaluates")
    data = federated()
    data['categories'][1]['frequency'] = 'often'
    refuses(data, r"category \d+ \(kind_\d+\) needs a 'frequency' \(r, c, f\), not 'often'")
    data = federated()
    del data['annotations']
    refuses(data, 'holds no annotations')
    dataset = open_dataset(tmp_path, federated())
    nothing = [empty_result((HEIGHT, WIDTH), 15)] * 12
    with pytest.raises(DataError, match='hold no masks'):
        evaluate(dataset, nothing, metric='segm', logger='silent')
    with pytest.raises(ConfigError, match='metric_items'):
        evaluate(dataset, nothing, metric='bbox', metric_items='mAP', logger='silent')
    values = evaluate(dataset, nothing, metric='bbox', logger='silent')
    assert values['bbox_AP'] == values['bbox_APr'] == 0


def test_joined_sets_are_evaluated_one_by_one(tmp_path):
    parts, results = [], []
    for seed in (0, 1):
        (tmp_path / str(seed)).mkdir()
        data = federated(seed)
        data['categories'] = federated(0)['categories']
        parts.append(open_dataset(tmp_path / str(seed), data))
        results.append(detections(data, parts[-1], seed))
    both = ConcatDataset(parts)
    values = evaluate(both, results[0] + results[1], metric='bbox', logger='silent')
    for index, (part, own) in enumerate(zip(parts, results)):
        alone = evaluate(part, own, metric='bbox', logger='silent')
        assert {key: values[f'{index}_{key}'] for key in alone} == alone
    with pytest.raises(ConfigError, match='LVISV1Dataset cannot be evaluated as one; use separate_eval=True'):
        evaluate(ConcatDataset(parts, separate_eval=False), results[0] + results[1], metric='bbox', logger='silent')


def test_results_on_disk_give_the_same(tmp_path):
    data = federated(2)
    dataset = open_dataset(tmp_path, data)
    results = detections(data, dataset, 2)
    stored = StoredResults.of(results, memory_limit=1000)
    assert stored.on_disk > 0
    for kind in ('bbox', 'segm'):
        assert evaluate(dataset, stored, metric=kind, logger='silent') == evaluate(dataset, results, metric=kind,
                                                                                   logger='silent')
