"""Evaluation of ConcatDataset: part by part, or as one; equal to what the parts, or one file of all, would give."""
import json

import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation.evaluate import evaluate, format_results, metric_names
from boxdet.structures.instances import Instances
from tests.voc_folder import draw


def coco_file(path, images, category_ids, seed):
    draw_from = np.random.default_rng(seed)
    annotations = []
    for i in images:
        for _ in range(4):
            x, y, w, h = draw_from.integers(2, 60, 4).tolist()
            annotations.append(dict(id=len(annotations) + 1, image_id=i, bbox=[x, y, w, h], area=w * h, iscrowd=0,
                                    category_id=category_ids[int(draw_from.integers(0, 2))]))
    data = dict(images=[dict(id=i, file_name=f'{i}.jpg', width=130, height=130) for i in images],
                annotations=annotations,
                categories=[dict(id=c, name=n) for c, n in sorted(zip(category_ids, ('cat', 'dog')))])
    path.write_text(json.dumps(data))
    return data


def found_near(dataset, seed=0):
    """Detections near the objects, with a few wrong ones."""
    torch.manual_seed(seed)
    results = []
    for i in range(len(dataset)):
        info = dataset.get_ann_info(i)
        boxes, labels = torch.tensor(info['bboxes']), torch.tensor(info['labels'])
        boxes = torch.cat([boxes + torch.randn(boxes.shape) * 3, torch.tensor([[5., 5., 50., 50.]])])
        boxes[:, 2:] = torch.maximum(boxes[:, 2:], boxes[:, :2] + 1)
        results.append(Instances(num_classes=2, bboxes=boxes, scores=torch.rand(len(boxes)),
                                 labels=torch.cat([labels, torch.tensor([0])])))
    return results


@pytest.fixture
def coco_parts(tmp_path):
    """Two files with the same image and annotation ids, and other category ids."""
    coco_file(tmp_path / 'a.json', [1, 2, 3], (1, 2), 0)
    coco_file(tmp_path / 'b.json', [1, 2], (9, 4), 1)
    return dict(type='CocoDataset', ann_file=[str(tmp_path / 'a.json'), str(tmp_path / 'b.json')], pipeline=[],
                classes=('cat', 'dog'), test_mode=True)


def test_coco_part_by_part(coco_parts, capsys):
    dataset = build_dataset(coco_parts)
    results = found_near(dataset)
    values = evaluate(dataset, results, 'bbox')
    assert 'data set 1: 2 images of' in capsys.readouterr().out
    for i, mine in enumerate((results[:3], results[3:])):
        for key, value in evaluate(dataset.datasets[i], mine, 'bbox', 'silent').items():
            assert values[f'{i}_{key}'] == value
    assert metric_names(dataset, 'bbox') == [k for k in values if 'copypaste' not in k]


def test_coco_as_one(coco_parts, tmp_path):
    dataset = build_dataset({**coco_parts, 'separate_eval': False})
    results = found_near(dataset)
    values = evaluate(dataset, results, ['bbox', 'proposal_fast'], 'silent', classwise=True)
    # one file that holds both, made by hand
    first, second = (json.loads((tmp_path / name).read_text()) for name in ('a.json', 'b.json'))
    ids = {9: 1, 4: 2}
    merged = dict(
        images=first['images'] + [{**i, 'id': i['id'] + 10} for i in second['images']], categories=first['categories'],
        annotations=first['annotations'] + [{**a, 'id': a['id'] + 100, 'image_id': a['image_id'] + 10,
                                             'category_id': ids[a['category_id']]} for a in second['annotations']])
    (tmp_path / 'merged.json').write_text(json.dumps(merged))
    whole = build_dataset({**coco_parts, 'ann_file': str(tmp_path / 'merged.json')})
    assert values == evaluate(whole, results, ['bbox', 'proposal_fast'], 'silent', classwise=True)
    assert 0 < values['bbox_mAP'] < 1
    assert metric_names(dataset, 'bbox') == metric_names(whole, 'bbox')


def test_files_of_each_part(coco_parts, tmp_path):
    dataset = build_dataset(coco_parts)
    results = found_near(dataset)
    files = format_results(dataset, results, jsonfile_prefix=str(tmp_path / 'out'))
    assert files['0_bbox'].endswith('out_0.bbox.json') and files['1_bbox'].endswith('out_1.bbox.json')
    rows = json.loads((tmp_path / 'out_1.bbox.json').read_text())
    assert {row['category_id'] for row in rows} == {4, 9} and {row['image_id'] for row in rows} == {1, 2}
    evaluate(dataset, results, 'bbox', 'silent', jsonfile_prefix=str(tmp_path / 'more'))
    assert (tmp_path / 'more_1.bbox.json').exists()


def test_voc(tmp_path):
    roots = [draw(tmp_path / 'VOC2007', ['a', 'b', 'c']), draw(tmp_path / 'VOC2012', ['d', 'e'], seed=1)]
    config = dict(type='VOCDataset', ann_file=[str(r / 'ImageSets/Main/trainval.txt') for r in roots],
                  img_prefix=[str(r) for r in roots], pipeline=[], classes=('cat', 'dog'), test_mode=True)
    dataset = build_dataset(config)
    results = found_near(dataset)
    values = evaluate(dataset, results, 'mAP', 'silent')
    assert values['0_mAP'] == evaluate(dataset.datasets[0], results[:3], logger='silent')['mAP']
    assert set(values) == {'0_mAP', '0_AP50', '1_mAP', '1_AP50'}
    with pytest.raises(ConfigError, match='2007 and 2012.*year=2007'):
        evaluate(build_dataset({**config, 'separate_eval': False}), results)
    joined = evaluate(build_dataset({**config, 'separate_eval': False, 'year': 2012}), results, 'mAP', 'silent')
    for name in ('d', 'e'):  # the same as one folder
        for folder, ending in (('JPEGImages', 'jpg'), ('Annotations', 'xml')):
            (roots[1] / folder / f'{name}.{ending}').rename(roots[0] / folder / f'{name}.{ending}')
    with open(roots[0] / 'ImageSets/Main/trainval.txt', 'a') as file:
        file.write('d\ne\n')
    first = dict(ann_file=config['ann_file'][0], img_prefix=config['img_prefix'][0], year=2012)
    one = build_dataset({**config, **first})
    assert joined == evaluate(one, results, 'mAP', 'silent')


def test_middle_format(tmp_path):
    entries = [dict(filename=f'{i}.jpg', width=100, height=100,
                    ann=dict(bboxes=[[5, 5, 40, 50], [50, 50, 90, 80 + i]], labels=[0, 1])) for i in range(4)]
    for name, part in (('a', entries[:2]), ('b', entries[2:]), ('all', entries)):
        (tmp_path / f'{name}.json').write_text(json.dumps(part))
    config = dict(type='CustomDataset', pipeline=[], classes=('cat', 'dog'), test_mode=True, separate_eval=False,
                  ann_file=[str(tmp_path / 'a.json'), str(tmp_path / 'b.json')])
    parts = build_dataset(config)
    results = found_near(parts)
    config.pop('separate_eval')
    whole = build_dataset({**config, 'ann_file': str(tmp_path / 'all.json')})
    both = ['mAP', 'recall']
    assert evaluate(parts, results, both, 'silent') == evaluate(whole, results, both, 'silent')
    bare = [{k: v for k, v in entry.items() if k != 'ann'} for entry in entries]
    (tmp_path / 'b.json').write_text(json.dumps(bare))
    with pytest.raises(DataError, match='b.json holds no annotations'):
        evaluate(build_dataset(config), [results[0]] * 6)


def test_refused(coco_parts, tmp_path):
    root = draw(tmp_path / 'VOC2007', ['a'])
    voc = dict(type='VOCDataset', ann_file=str(root / 'ImageSets/Main/trainval.txt'), img_prefix=str(root), pipeline=[],
               classes=('cat', 'dog'), test_mode=True)
    parts = [{**coco_parts, 'ann_file': coco_parts['ann_file'][0]}, voc]
    mixed = build_dataset(dict(type='ConcatDataset', datasets=parts, separate_eval=False))
    results = found_near(mixed)
    with pytest.raises(ConfigError, match='CocoDataset, VOCDataset cannot be evaluated as one; use separate_eval=True'):
        evaluate(mixed, results)
    with pytest.raises(ConfigError, match='RepeatDataset is no data set to evaluate'):
        evaluate(build_dataset([dict(type='RepeatDataset', times=1, dataset=voc)]), results[:1])
    with pytest.raises(DataError, match='1 results for a data set of 5 images'):
        evaluate(build_dataset(coco_parts), results[:1])
    with pytest.raises(ConfigError, match="takes no 'iou_thrss'.*did you mean 'iou_thrs'"):
        evaluate(build_dataset(coco_parts), results[:1] * 5, iou_thrss=0.5)
