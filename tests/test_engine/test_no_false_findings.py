"""The data sets beside the checkout and the shipped configs bring no finding that is not true."""
import json

import pytest
import torch

from boxdet.datasets import build_dataset
from boxdet.engine.config import load_config
from boxdet.engine.data_check import annotation_findings
from boxdet.engine.model_check import model_findings
from boxdet.models import build_detector


def codes(path, **options):
    names = tuple(category['name'] for category in json.loads(path.read_text())['categories'])
    dataset = build_dataset(dict(dict(type='CocoDataset', ann_file=str(path), pipeline=[], classes=names), **options))
    return [str(one) for one in annotation_findings(dataset, 'data.train', wants_masks=True)]


def test_fruits_and_nuts(shared_data):
    assert codes(shared_data / 'fruits_nuts/trainval.json') == []


def test_coco(shared_data):
    for path in (shared_data / 'coco_mini/annotations').glob('instances_*.json'):
        found = codes(path)
        # Few images of a set of 80 classes: that some have no object is so.
        assert [one for one in found if not one.endswith('[data.empty-class]')] == [], path


def test_bccd(shared_data):
    root = shared_data / 'bccd'
    dataset = build_dataset(dict(type='VOCDataset', ann_file=str(root / 'ImageSets/Main/trainval.txt'), year=2012,
                                 img_prefix=str(root), pipeline=[], classes=('RBC', 'WBC', 'Platelets')))
    assert [str(one) for one in annotation_findings(dataset, 'data.train')
            if 'data.degenerate-boxes' not in str(one)] == []


@pytest.mark.slow
def test_models_of_the_shipped_configs(repo_root):
    seen, wrong = set(), []
    for path in sorted((repo_root / 'configs').rglob('*.py')):
        if path.relative_to(repo_root / 'configs').parts[0] in ('_base_', 'common'):
            continue
        cfg = load_config(path)
        if repr(cfg.model) in seen:
            continue
        seen.add(repr(cfg.model))
        with torch.device('meta'):
            model = build_detector(cfg.model)
        wrong += [f'{path}: {one}' for one in model_findings(model)]
    assert not wrong and len(seen) > 100
