"""Protocol 'cityscapes': against cityscapesscripts' own evaluator, which reads the files that format_results writes."""

import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxdet.datasets.cityscapes import LABEL_IDS, CityscapesDataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate, format_results
from boxdet.evaluation.evaluate import metric_names
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks

SPLIT = 'instancesonly_filtered_gtFine_{}.json'


def open_split(folder, split='val', **more):
    return CityscapesDataset(str(folder / 'annotations' / SPLIT.format(split)), [], test_mode=True,
                             img_prefix=str(folder / f'leftImg8bit/{split}/'), **more)


def instances(bitmaps, labels, scores, size=(128, 256)):
    rles = [coco_mask.encode(np.asfortranarray(bitmap, dtype=np.uint8)) for bitmap in bitmaps]
    boxes = torch.tensor([coco_mask.toBbox(rle).tolist() for rle in rles]).reshape(-1, 4)
    boxes[:, 2:] += boxes[:, :2]
    return Instances(size, 8, bboxes=boxes, scores=torch.tensor(scores, dtype=torch.float32),
                     labels=torch.tensor(labels, dtype=torch.long), masks=RleMasks(rles, *size))


def perturbed(folder, dataset, seed=0):
    """Detections near the truth: moved, doubled, of a wrong class, on groups and void, empty, with equal scores."""
    rng, numbers, results = np.random.default_rng(seed), list(LABEL_IDS.values()), []
    for index in range(len(dataset)):
        stem = dataset.img_info(index)['filename'].removesuffix('_leftImg8bit.png')
        ids = cv2.imread(str(folder / f'gtFine/val/{stem}_gtFine_instanceIds.png'), cv2.IMREAD_UNCHANGED)
        bitmaps, labels = [np.zeros(ids.shape, bool), ids < 5], [2, 2]
        for number in np.unique(ids[ids >= 24]).tolist():
            label = number // 1000 if number >= 1000 else number
            if label not in numbers or rng.random() < 0.2:
                continue
            for _ in range(int(rng.integers(1, 4))):
                moved = np.roll(ids == number, rng.integers(-3, 4, 2), axis=(0, 1))
                moved[rng.integers(0, 128):] &= rng.random() < 0.7
                bitmaps.append(moved)
                labels.append(numbers.index(label) if rng.random() < 0.9 else int(rng.integers(0, 8)))
        results.append(instances(bitmaps, labels, np.round(rng.random(len(labels)), 1) if index else
                                 rng.random(len(labels))))
    return results


@pytest.fixture
def scripts(monkeypatch):
    """Cityscapesscripts' evaluator, made to run with numpy 2.4, which broke its matching and its JSON files."""
    module = pytest.importorskip('cityscapesscripts.evaluation.evalInstanceLevelSemanticLabeling')
    monkeypatch.setattr(np, 'in1d', np.isin, raising=False)
    monkeypatch.setattr(module, 'writeDict2JSON', lambda values, path: None)
    for name, value in dict(JSONOutput=False, quiet=True, predictionWalk=None, distanceAvailable=False).items():
        monkeypatch.setattr(module.args, name, value)
    return module


def judged(scripts, folder, written):
    """The averages that cityscapesscripts finds for the files in ``written``."""
    scripts.args.predictionPath, scripts.args.predictionWalk = str(written), None
    scripts.args.gtInstancesFile = str(written / 'gtInstances.json')
    truths = sorted(map(str, (folder / 'gtFine/val').rglob('*_instanceIds.png')))
    found = [scripts.getPrediction(path, scripts.args) for path in truths]
    return scripts.evaluateImgLists(found, truths, scripts.args)['averages']


@pytest.mark.parametrize('seed', range(3))
def test_numbers_are_cityscapesscripts_own(cityscapes_dir, tmp_path, scripts, seed):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset, seed)
    files = format_results(dataset, results, txtfile_prefix=str(tmp_path / 'files'))
    assert files == {'cityscapes': str(tmp_path / 'files')}
    ours = evaluate(dataset, results, metric='cityscapes', classwise=True, logger='silent')
    theirs = judged(scripts, cityscapes_dir, tmp_path / 'files')
    assert ours['mAP'] == theirs['allAp'] and ours['AP@50'] == theirs['allAp50%'] and 0.1 < ours['mAP'] < 0.9
    for name, of in theirs['classes'].items():
        assert ours[f'cityscapes_{name}_precision'] == (-1 if np.isnan(of['ap']) else of['ap'])


def test_perfect_and_empty_results(cityscapes_dir, tmp_path):
    dataset = open_split(cityscapes_dir)
    perfect = []
    for image in dataset.img_ids:
        rows = [a for a in dataset.coco.imgToAnns[image] if not a['iscrowd']]
        perfect.append(instances([coco_mask.decode(a['segmentation']) for a in rows],
                                 [dataset.cat2label[a['category_id']] for a in rows], [0.9] * len(rows)))
    values = evaluate(dataset, perfect, metric=['cityscapes', 'segm'], logger='silent')
    assert values['mAP'] == values['AP@50'] == 1 and values['segm_mAP'] == pytest.approx(1)
    nothing = [empty_result((128, 256), 8, masks=bool(i % 2)) for i in range(len(dataset))]
    assert evaluate(dataset, nothing, metric='cityscapes', logger='silent')['mAP'] == 0
    format_results(dataset, nothing, txtfile_prefix=str(tmp_path))
    assert sorted(p.stat().st_size for p in tmp_path.iterdir()) == [0] * len(dataset)


def test_files_hold_masks_labels_and_scores(cityscapes_dir, tmp_path):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset)
    format_results(dataset, results, txtfile_prefix=str(tmp_path / 'a/b'))
    assert len(list((tmp_path / 'a/b').glob('*_pred.txt'))) == len(dataset)
    for index, result in enumerate(results):
        stem = dataset.img_info(index)['filename'].split('/')[1].removesuffix('.png')
        lines = [line.split(' ') for line in (tmp_path / f'a/b/{stem}_pred.txt').read_text().splitlines()]
        assert len(lines) == len(result)
        for (file, label, score), rle, k, value in zip(lines, result.masks, result.labels.tolist(), result.scores):
            assert int(label) == list(LABEL_IDS.values())[k] and np.float32(score) == value.item()
            mask = cv2.imread(str(tmp_path / 'a/b' / file), cv2.IMREAD_UNCHANGED)
            assert mask.dtype == np.uint8 and np.array_equal(mask, 255 * coco_mask.decode(rle))


def test_coco_metrics_and_files_beside_it(cityscapes_dir, tmp_path, capsys):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset)
    values = evaluate(dataset, results, metric=['bbox', 'cityscapes', 'segm', 'proposal_fast'],
                      outfile_prefix=str(tmp_path / 'out'), proposal_nums=(10,))
    assert set(metric_names(dataset, ['bbox', 'cityscapes', 'segm', 'proposal_fast'], proposal_nums=(10,))) == {
        key for key in values if not key.endswith('copypaste')}
    assert len(list((tmp_path / 'out').glob('*_pred.txt'))) == len(dataset)
    rows = json.loads((tmp_path / 'out.segm.json').read_text())
    assert {row['category_id'] for row in rows} <= set(LABEL_IDS.values())
    printed = capsys.readouterr().out
    assert 'AP_50%' in printed and 'average' in printed and 'Average Precision' in printed


def test_results_on_disk_give_the_same_numbers_and_files(cityscapes_dir, tmp_path):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset)
    stored = StoredResults.of(results, memory_limit=1000)
    assert stored.on_disk > 0
    values = [evaluate(dataset, given, metric=['cityscapes', 'segm'], outfile_prefix=str(tmp_path / name),
                       logger='silent') for name, given in (('memory', results), ('disk', stored))]
    assert values[0] == values[1]
    written = [{p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ('memory', 'disk')]
    assert written[0] == written[1] and len(written[0]) > 20


def test_classes_narrow_the_mean(cityscapes_dir):
    every, results = open_split(cityscapes_dir), None
    results = perturbed(cityscapes_dir, every)
    full = evaluate(every, results, metric='cityscapes', classwise=True, logger='silent')
    two = open_split(cityscapes_dir, classes=('car', 'person'))
    kept = [r[(r.labels == 2) | (r.labels == 0)] for r in results]
    kept = [r.replace(labels=(r.labels == 0).long()) for r in kept]
    narrowed = evaluate(two, kept, metric='cityscapes', classwise=True, logger='silent')
    of = [full['cityscapes_car_precision'], full['cityscapes_person_precision']]
    assert narrowed['mAP'] == pytest.approx(np.mean(of), abs=1e-12)


def test_the_ground_truth_may_lie_elsewhere(cityscapes_dir, tmp_path):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset)
    expected = evaluate(dataset, results, metric='cityscapes', logger='silent')
    shutil.copytree(cityscapes_dir / 'gtFine/val', tmp_path / 'truth')
    moved = CityscapesDataset(dataset.ann_file, [], test_mode=True, img_prefix='images/',
                              seg_prefix=str(tmp_path / 'truth'))
    assert evaluate(moved, results, metric='cityscapes', logger='silent') == expected
    lost = CityscapesDataset(dataset.ann_file, [], test_mode=True, img_prefix='images/')
    with pytest.raises(ConfigError, match="'images/' has no folder leftImg8bit.*seg_prefix names"):
        evaluate(lost, results, metric='cityscapes', logger='silent')


def test_what_cannot_be_evaluated_is_said(cityscapes_dir, tmp_path, monkeypatch):
    dataset = open_split(cityscapes_dir)
    results = perturbed(cityscapes_dir, dataset)
    boxes = [r.without('masks') for r in results]
    for call in (lambda: evaluate(dataset, boxes, metric='cityscapes', logger='silent'),
                 lambda: format_results(dataset, boxes, txtfile_prefix=str(tmp_path / 'a'))):
        with pytest.raises(DataError, match='frankfurt_000000_000019_leftImg8bit.png: the results hold no masks'):
            call()
    small = [r.replace(masks=instances([np.ones((64, 64))] * len(r), [0] * len(r), [0.5] * len(r)).masks)
             for r in results]
    with pytest.raises(DataError, match='a predicted mask is 64x64, the annotation file says 256x128'):
        evaluate(dataset, small, metric='cityscapes', logger='silent')
    with pytest.raises(ConfigError, match="'cityscape'; did you mean 'cityscapes'"):
        evaluate(dataset, results, metric='cityscape', logger='silent')
    with pytest.raises(DataError, match='no annotations'):
        evaluate(open_split(cityscapes_dir, 'test'), results[:2], metric='cityscapes', logger='silent')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write'):
        format_results(dataset, results, txtfile_prefix=str(tmp_path / 'file/folder'))
    monkeypatch.setitem(__import__('sys').modules, 'cityscapesscripts.evaluation', None)
    with pytest.raises(ConfigError, match='pip install cityscapesscripts'):
        evaluate(dataset, results, metric='cityscapes', logger='silent')


def test_broken_ground_truth_is_named(cityscapes_dir, tmp_path):
    shutil.copytree(cityscapes_dir, tmp_path / 'cs')
    dataset = open_split(tmp_path / 'cs')
    results = perturbed(cityscapes_dir, dataset)
    path = tmp_path / 'cs/gtFine/val/lindau/lindau_000001_000019_gtFine_instanceIds.png'
    cv2.imwrite(str(path), np.zeros((128, 256, 3), np.uint8))
    with pytest.raises(DataError, match=f'{path.name}: an image of instance ids has one channel'):
        evaluate(dataset, results, metric='cityscapes', logger='silent')
    cv2.imwrite(str(path), np.zeros((64, 256), np.uint16))
    with pytest.raises(DataError, match=f'{path.name}: 256x64 pixels, a predicted mask .* 256x128'):
        evaluate(dataset, results, metric='cityscapes', logger='silent')
    path.rename(path.with_name('moved.png'))
    with pytest.raises(DataError, match=f'1 of 4 files of instance ids are missing, the first is .*{path.name}'):
        evaluate(dataset, results, metric='cityscapes', logger='silent')
    path.with_name('moved.png').rename(path)
    for path in (tmp_path / 'cs/gtFine/val').rglob('*_instanceIds.png'):
        cv2.imwrite(str(path), np.full((128, 256), 26, np.uint16))  # one group of cars
    with pytest.raises(DataError, match='show no instance of person.*nothing to evaluate against'):
        evaluate(dataset, results, metric='cityscapes', logger='silent')


def test_names_that_result_files_cannot_hold(cityscapes_dir, tmp_path):
    data = json.loads((cityscapes_dir / 'annotations' / SPLIT.format('val')).read_text())
    data['images'][0]['file_name'] = 'frankfurt/a b.png'
    (tmp_path / 'ann.json').write_text(json.dumps(data))
    nothing = [empty_result((128, 256), 8, masks=True)] * 4
    with pytest.raises(DataError, match="image 'a b': .*no name may hold one"):
        format_results(CityscapesDataset(str(tmp_path / 'ann.json'), [], test_mode=True), nothing,
                       txtfile_prefix=str(tmp_path / 'out'))
    data['images'][0]['file_name'] = 'elsewhere/' + data['images'][1]['file_name'].split('/')[1]
    (tmp_path / 'ann.json').write_text(json.dumps(data))
    with pytest.raises(DataError, match='two images are called frankfurt_000001'):
        format_results(CityscapesDataset(str(tmp_path / 'ann.json'), [], test_mode=True), nothing,
                       txtfile_prefix=str(tmp_path / 'out'))
    data['categories'].append(dict(id=40, name='tram'))
    (tmp_path / 'ann.json').write_text(json.dumps(data))
    with pytest.raises(ConfigError, match="class 'tram' is none of Cityscapes' classes.*did you mean 'train'"):
        format_results(CityscapesDataset(str(tmp_path / 'ann.json'), [], classes=('car', 'tram'), test_mode=True),
                       nothing, txtfile_prefix=str(tmp_path / 'out'))
