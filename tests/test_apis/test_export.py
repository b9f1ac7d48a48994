"""boxdet.apis.export: what it reads from a detector's config and checkpoint, and what it refuses."""
from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
from mmengine import Config

from boxdet.apis.export import category_ids, export_program, input_format
from boxdet.datasets.class_names import COCO_CATEGORY_IDS, COCO_CLASSES
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from tests.test_models import tiny_models as tiny

NORM = dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6], to_rgb=False)


def with_pipeline(resize: dict | None = None, views: dict | None = None):
    """What input_format reads of a model; ``resize`` and ``views`` change the steps."""
    steps = ([] if resize is None else [dict(type='Resize', **resize)]) + [
        NORM, dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])]
    pipeline = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', transforms=steps, **views) if views
                else steps[0], *([] if views else steps[1:])]
    return SimpleNamespace(cfg=Config(dict(data=dict(test=dict(pipeline=pipeline)))))


@pytest.mark.parametrize(('resize', 'views', 'scale', 'keep_ratio'), [
    (dict(keep_ratio=True), dict(img_scale=(800, 1333)), (1333, 800), True),
    (dict(keep_ratio=False), dict(img_scale=[(300, 400)]), (300, 400), False),
    (dict(img_scale=(640, 480)), None, (640, 480), True),
    (None, None, None, True),
    (dict(interpolation='bicubic'), dict(img_scale=(640, 480)), 'unknown', True),
    (dict(), dict(scale_factor=0.5), 'unknown', True)])
def test_how_images_are_resized(resize, views, scale, keep_ratio):
    found = input_format(with_pipeline(resize, views))
    assert (found.scale, found.keep_ratio) == (scale, keep_ratio)
    assert (found.mean, found.std, found.rgb, found.divisor) == ((1, 2, 3), (4, 5, 6), False, 32)


@pytest.mark.parametrize('views', [dict(img_scale=(640, 480), flip=True), dict(img_scale=[(640, 480), (800, 600)]),
                                   dict(scale_factor=[1.0, 2.0])])
def test_several_views_are_refused(views):
    with pytest.raises(ConfigError, match='makes several views of an image .* flip=False and one img_scale'):
        input_format(with_pipeline(dict(), views))


def test_category_ids_come_from_the_file_else_the_checkpoint_else_coco(tmp_path):
    file = tmp_path / 'ann.json'
    file.write_text(json.dumps(dict(categories=[dict(id=9, name='b'), dict(id=4, name='a'), dict(id=6, name='c')])))
    model = SimpleNamespace(CLASSES=('a', 'b'), category_ids=[11, 13],
                            cfg=dict(data=dict(test=dict(data_root=str(tmp_path), ann_file='ann.json'))))
    assert category_ids(model) == [4, 9]
    model.CLASSES = ('a', 'other')
    assert category_ids(model) == [11, 13]
    model.cfg = None
    assert category_ids(model) == [11, 13]
    model.category_ids = None
    assert category_ids(model) == []
    model.CLASSES = COCO_CLASSES
    assert category_ids(model) == list(COCO_CATEGORY_IDS)


def test_a_missing_compiler_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setenv('CXX', 'no-such-compiler')
    model = build_detector(tiny.faster_rcnn())
    model.cfg = with_pipeline(dict(), dict(img_scale=(160, 96))).cfg
    with pytest.raises(ConfigError, match="AOTInductor needs a C.. compiler, and 'no-such-compiler' is not found"):
        export_program(model, tmp_path / 'a.pt2', compiled=True)
