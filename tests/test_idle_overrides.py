"""A method of mmdetection 2.x that nothing calls is told before its class is built."""
import warnings
from pathlib import Path

import pytest

from boxdet import idle_overrides, registry
from boxdet.datasets.coco import CocoDataset
from boxdet.datasets.pipelines import LoadAnnotations, Resize
from boxdet.engine.config import load_config
from boxdet.engine.config_check import check
from boxdet.errors import ConfigError
from boxdet.models.bbox_head import Shared2FCBBoxHead
from boxdet.models.detectors import FasterRCNN
from boxdet.models.families.grid_rcnn import GridRoIHead
from boxdet.models.families.point_rend import PointRendRoIHead
from boxdet.models.families.sabl import SABLHead
from boxdet.models.rpn_head import RPNHead
from boxdet.models.standard_roi_head import StandardRoIHead


@pytest.fixture(autouse=True)
def as_it_was():
    yield
    idle_overrides.allow(False)


def sub(base, *methods):
    return type('Mine', (base,), {name: lambda self, *args, **kwargs: None for name in methods})


@pytest.mark.parametrize('base, method, ours', [
    (FasterRCNN, 'forward_train', 'BaseDetector.*loss'), (FasterRCNN, 'simple_test', 'BaseDetector.*predict'),
    (StandardRoIHead, '_bbox_forward', 'StandardRoIHead.*box_forward'),
    (StandardRoIHead, 'simple_test_bboxes', 'BBoxTestMixin.*classify'),
    (Shared2FCBBoxHead, 'get_targets', 'BBoxHead.*targets'), (Shared2FCBBoxHead, 'get_bboxes', 'BBoxHead.*predict'),
    (PointRendRoIHead, '_mask_point_forward_train', 'PointRendRoIHead.*mask_losses'),
    (GridRoIHead, '_random_jitter', 'GridRoIHead.*grid_features'), (SABLHead, 'reg_forward', 'SABLHead.*loss'),
    (RPNHead, 'loss_single', 'AnchorHead.*loss'), (RPNHead, '_get_bboxes_single', 'RPNHead.*predict')])
def test_an_idle_method_of_a_model_is_an_error(base, method, ours):
    with pytest.raises(ConfigError, match=rf"Mine overrides .*{method} \(mmdetection 2\.x's {ours}") as caught:
        registry.MODELS.build(dict(type=sub(base, method)))
    assert '\n' not in str(caught.value) and 'allow_idle_overrides=True' in str(caught.value)


@pytest.mark.parametrize('base, method, kwargs', [
    (Resize, '_resize_img', dict(img_scale=(64, 64))), (LoadAnnotations, '_load_bboxes', {})])
def test_of_a_transform_it_is_a_warning_once(base, method, kwargs):
    kind = sub(base, method)
    with pytest.warns(UserWarning, match=f'Mine overrides what boxdet never calls: {method}'):
        registry.PIPELINES.build(dict(type=kind, **kwargs))
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        registry.PIPELINES.build(dict(type=kind, **kwargs))


def test_what_a_method_of_ones_own_calls_is_not_told():
    class Mine(StandardRoIHead):
        def bbox_losses(self, *args):
            return self.simple_test_bboxes(*args)

        def simple_test_bboxes(self, *args):
            return args

        def aug_test_mask(self):
            return self.aug_test_bboxes()

        def aug_test_bboxes(self):
            return []

    assert set(idle_overrides.idle_overrides(Mine)) == {'aug_test_mask', 'aug_test_bboxes'}


def test_what_is_called_is_not_told():
    called = {FasterRCNN: 'loss', StandardRoIHead: 'box_forward', Shared2FCBBoxHead: 'targets', RPNHead: 'forward',
              CocoDataset: 'get_ann_info', Resize: '__call__'}
    assert [idle_overrides.idle_overrides(sub(base, method)) for base, method in called.items()] == [{}] * 6
    assert idle_overrides.idle_overrides(FasterRCNN) == {} == idle_overrides.idle_overrides(len)


def test_every_row_names_a_class_of_ours():
    names = {base.__name__ for one in (registry.MODELS, registry.MATCHING, registry.DATASETS, registry.PIPELINES,
                                                    registry.HOOKS)
             for name in one.names() for base in getattr(one.get(name), '__mro__', ())}
    assert {*idle_overrides.TABLE, *idle_overrides._FURTHER} <= names
    assert all(rows for rows in idle_overrides.TABLE.values())


def test_a_config_may_allow_it(tmp_path):
    (tmp_path / 'idle_part.py').write_text(
        'from boxdet.models import HEADS\nfrom boxdet.models.standard_roi_head import StandardRoIHead\n'
        '@HEADS.register_module(force=True)\nclass IdleHead(StandardRoIHead):\n    def forward_train(self): pass\n')
    config = tmp_path / 'c.py'
    text = ("_base_ = '{}'\ncustom_imports = dict(imports=['idle_part'])\n"
            "model = dict(roi_head=dict(type='IdleHead'))\n")
    base = (Path(__file__).parents[1] / 'configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py')
    config.write_text(text.format(base))
    pytest.MonkeyPatch().syspath_prepend(str(tmp_path))
    with pytest.raises(ConfigError, match=r'model\.roi_head\.type .*c\.py.*IdleHead overrides .*forward_train'):
        check(load_config(config))
    cfg = load_config(config, ['allow_idle_overrides=True'])
    with pytest.warns(UserWarning, match='IdleHead overrides'):
        check(cfg)
    registry.DETECTORS.build(cfg.model)
