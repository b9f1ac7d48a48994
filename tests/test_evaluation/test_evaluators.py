"""Evaluators as objects: boxdet's own image by image, and one that a user registers and names in a config."""
import json

import pytest
import torch

from boxdet.datasets import CocoDataset, build_dataset
from boxdet.engine.config import Config, check_config
from boxdet.errors import ConfigError
from boxdet.evaluation import EVALUATORS, Evaluator, build_evaluator, evaluate
from boxdet.evaluation.evaluate import configured_options, metric_names, option_names
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances


class CountError(Evaluator):
    """How many objects too many or too few an image gets."""

    def __init__(self, tolerance=0, **kwargs):
        super().__init__(**kwargs)
        self.tolerance = tolerance

    def reset(self, dataset, logger=None):
        self.dataset, self.errors = dataset, {}

    def process(self, indices, results):
        for index, result in zip(indices, results):
            difference = abs(len(result) - len(self.dataset.get_ann_info(index)['labels']))
            self.errors[index] = max(difference - self.tolerance, 0)

    def metric_names(self):
        return ['count_error']

    def evaluate(self):
        return dict(count_error=sum(self.errors.values()) / len(self.errors))


class Counted(CocoDataset):
    EVALUATORS = ('CocoEvaluator', 'CountError')


@pytest.fixture(autouse=True)
def registered(monkeypatch):
    monkeypatch.setitem(EVALUATORS.module_dict, 'CountError', CountError)


@pytest.fixture
def config(tmp_path):
    boxes = {1: [[5, 5, 20, 20], [30, 10, 40, 40]], 2: [[10, 10, 50, 40]]}
    annotations = [dict(image_id=i, category_id=3 + 6 * (k % 2), bbox=box, area=box[2] * box[3], iscrowd=0)
                   for i, own in boxes.items() for k, box in enumerate(own)]
    (tmp_path / 'a.json').write_text(json.dumps(dict(
        images=[dict(id=i, width=100, height=80, file_name=f'{i}.jpg') for i in boxes],
        annotations=[dict(a, id=k) for k, a in enumerate(annotations, 1)],
        categories=[dict(id=3, name='cat'), dict(id=9, name='dog')])))
    return dict(type='CocoDataset', ann_file=str(tmp_path / 'a.json'), classes=('cat', 'dog'), pipeline=[],
                test_mode=True)


def results():
    found = [([[5, 5, 25, 25]], [.9], [0]), ([[10, 10, 62, 50], [0, 0, 9, 9], [0, 0, 5, 5]], [.7, .6, .5], [0, 0, 1])]
    return [Instances(num_classes=2, bboxes=torch.tensor(b, dtype=torch.float32), scores=torch.tensor(s),
                      labels=torch.tensor(labels)) for b, s, labels in found]


@pytest.mark.parametrize('metric', ['bbox', 'proposal', ['bbox', 'proposal_fast'], ['bbox', 'CountError']])
@pytest.mark.parametrize('given', [list, StoredResults.of])
def test_image_by_image_as_all_at_once(config, metric, given):
    dataset, all_of_them = build_dataset(config), given(results())
    evaluator = build_evaluator(dataset, metric)
    evaluator.check(dataset)
    expected = evaluate(dataset, all_of_them, metric, 'silent')
    for order in ([0, 1], [1, 0], [0, 1]):  # the object serves again
        evaluator.reset(dataset, 'silent')
        for index in order:
            evaluator.process([index], all_of_them[index:index + 1])
        assert evaluator.evaluate() == expected


def test_named_by_its_type_or_with_settings(config):
    dataset = build_dataset(config)
    values = evaluate(dataset, results(), ['bbox', 'CountError'], 'silent')
    assert values['count_error'] == 1.5
    assert values['bbox_mAP'] == evaluate(dataset, results(), logger='silent')['bbox_mAP']
    assert evaluate(dataset, results(), dict(type='CountError', tolerance=1), 'silent') == dict(count_error=.5)
    assert evaluate(dataset, results(), 'CountError', 'silent', tolerance=2) == dict(count_error=0)
    twice = evaluate(dataset, results(), ['CountError', dict(type='CountError', tolerance=1)], 'silent')
    assert twice == dict(count_error=1.5, CountError_count_error=.5)
    assert dataset.evaluate(results(), ['CountError'], 'silent') == dict(count_error=1.5)
    assert metric_names(dataset, ['CountError', dict(type='CountError')]) == ['count_error', 'CountError_count_error']


def test_a_data_set_offers_it(config):
    dataset = Counted(**{key: value for key, value in config.items() if key != 'type'})
    assert evaluate(dataset, results(), logger='silent')['count_error'] == 1.5
    assert evaluate(dataset, results(), 'bbox', 'silent', tolerance=1, classwise=True)['count_error'] == .5
    assert 'tolerance' in option_names(Counted) and 'tolerance' not in option_names(CocoDataset)
    assert 'tolerance' in option_names(CocoDataset, metric=['bbox', 'CountError'])


def test_the_config_of_a_data_set_offers_it(config):
    own = dict(config, evaluators=['CocoEvaluator', dict(type='CountError', tolerance=1)])
    values = evaluate(build_dataset(own), results(), 'bbox', 'silent')
    assert values['count_error'] == .5 and 'bbox_mAP' in values
    both = evaluate(build_dataset([own, config]), results() * 2, 'bbox', 'silent')
    assert both['0_count_error'] == .5 and '1_count_error' not in both


@pytest.mark.parametrize('metric, message', [
    ('CountErorr', "unknown metric 'CountErorr'.*a registered evaluator is named by its type"),
    ('bboxx', "unknown metric 'bboxx'; did you mean 'bbox'"),
    (dict(type='CountErr'), "unknown evaluator type 'CountErr'; did you mean 'CountError'"),
    (dict(tolerance=1), "needs a 'type'"), (dict(type='CountError', tol=1), "takes no 'tol'"),
    (dict(type='Plain'),
     'Plain is registered as an evaluator and is none: derive it from boxdet.evaluation.Evaluator')])
def test_slips(config, metric, message, monkeypatch):
    monkeypatch.setitem(EVALUATORS.module_dict, 'Plain', type('Plain', (), {}))
    with pytest.raises(ConfigError, match=message):
        build_evaluator(build_dataset(config), metric)


def test_its_settings_in_a_config(config):
    dataset = build_dataset(config)
    section = dict(interval=1, metric=['bbox', 'CountError'], tolerance=1)
    options = configured_options(dataset, section['metric'], section, {})
    assert evaluate(dataset, results(), logger='silent', **options)['count_error'] == .5
    with pytest.raises(ConfigError, match="evaluation.tolerance: evaluation takes no 'tolerance'"):
        configured_options(dataset, 'bbox', section, {})
    check_config(Config(dict(data=dict(val=config), evaluation=dict(section, save_best='count_error', rule='less'))))
    check_config(Config(dict(data=dict(val=dict(config, evaluators=['CocoEvaluator', 'CountError'])),
                             evaluation=dict(metric='bbox', tolerance=1, save_best='count_error', rule='less'))))
    for wrong, message in ((dict(section, save_best='count_eror'), "'count_eror' is no metric"),
                           (dict(metric='bbox', tolerance=1), 'evaluation.tolerance: there is no such key'),
                           (dict(metric='CountEror'), "unknown metric 'CountEror'")):
        with pytest.raises(ConfigError, match=message):
            check_config(Config(dict(data=dict(val=config), evaluation=wrong)))


def test_an_evaluator_that_says_nothing(config):
    class Empty(Evaluator):
        pass
    with pytest.raises(TypeError, match=r'Empty does not say what it measures: it needs an evaluate\(\)'):
        Empty().run(build_dataset(config), results())
    with pytest.raises(ConfigError, match="unknown metric 'x'.*Empty has none to choose from"):
        Empty(metric='x')


# --- ranges of size ---

def test_own_ranges_of_area(config):
    dataset = build_dataset(config)
    usual = evaluate(dataset, results(), 'bbox', 'silent')
    own = evaluate(dataset, results(), ['bbox', 'proposal'], 'silent', classwise=True,
                   area_ranges=dict(little=(0, 32 ** 2), middling=(32 ** 2, 96 ** 2)))
    assert own['bbox_mAP_little'] == usual['bbox_mAP_s'] > .99 and own['bbox_mAP_middling'] == usual['bbox_mAP_m']
    assert own['AR_little@1000'] == pytest.approx(1) and own['bbox_mAP'] == usual['bbox_mAP']
    assert 'bbox_mAP_s' not in own
    # 400, 1600 and 2000 square pixels: only the second is missed
    other = evaluate(dataset, results(), 'bbox', 'silent',
                     area_ranges=dict(a=(0, 1000), b=(1000, 1700), c=(1700, 1e10)))
    assert (other['bbox_mAP_a'], other['bbox_mAP_b']) == (pytest.approx(1), 0) and .5 < other['bbox_mAP_c'] < 1
    assert [k for k in other if 'copypaste' not in k] == metric_names(
        dataset, 'bbox', area_ranges=dict(a=(0, 1), b=(1, 2), c=(2, 3)))


@pytest.mark.parametrize('ranges', [
    dict(a=(5, 1)), dict(a=3), dict(all=(0, 1)), [(0, 1)], {'50': (0, 1)}, dict(a=('x', 1))])
def test_ranges_that_are_none(config, ranges):
    with pytest.raises(ConfigError, match='area_ranges: a name and its smallest and largest area'):
        evaluate(build_dataset(config), results(), 'bbox', 'silent', area_ranges=ranges)
