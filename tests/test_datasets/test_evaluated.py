"""dataset.evaluate and dataset.format_results, as scripts and subclasses of mmdetection 2.x call them."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from boxdet import evaluation
from boxdet.datasets import CocoDataset, build_dataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation.evaluate import metric_names, option_names, require_annotations, writing_options
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import Instances


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


def results(**more):
    found = [([[5, 5, 25, 25], [31, 11, 70, 48]], [.9, .8], [0, 1]), ([[10, 10, 62, 50]], [.7], [0])]
    return [Instances(num_classes=2, bboxes=torch.tensor(b, dtype=torch.float32), scores=torch.tensor(s),
                      labels=torch.tensor(labels)) for b, s, labels in found]


def legacy():
    return [result.per_class() for result in results()]


@pytest.mark.parametrize('given', [results, legacy, lambda: StoredResults.of(results())])
def test_a_data_set_evaluates(config, given, capsys):
    dataset = build_dataset(config)
    values = dataset.evaluate(given(), metric=['bbox'], classwise=True)
    assert 'Average Precision' in capsys.readouterr().out
    assert values == evaluation.evaluate(dataset, results(), 'bbox', 'silent', classwise=True)
    assert dataset.evaluate(given(), logger='silent')['bbox_mAP'] == values['bbox_mAP'] > .5
    assert not capsys.readouterr().out
    with pytest.raises(ConfigError, match="takes no 'class_wise'.*'classwise'"):
        dataset.evaluate(given(), class_wise=True)
    with pytest.raises(DataError, match='1 results for a data set of 2 images'):
        dataset.evaluate(results()[:1])


def test_a_script_that_imports_the_data_sets_only(config):
    code = ('import sys, numpy as np\nfrom boxdet.datasets import build_dataset\n'
            f'dataset = build_dataset({config!r})\n'
            'assert not any(name.startswith("boxdet.evaluation") for name in sys.modules)\n'
            'row = np.array([[10., 10, 60, 50, .9]])\n'
            'none = np.zeros((0, 5))\n'
            'print(dataset.evaluate([[none, none], [row, none]], metric="bbox", logger="silent")["bbox_mAP_50"])')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert 0 < float(done.stdout) < 1


def test_several_data_sets(config):
    dataset = build_dataset(dict(type='ConcatDataset', datasets=[config, config]))
    values = dataset.evaluate(results() * 2, metric='bbox', logger='silent')
    assert values['0_bbox_mAP'] == values['1_bbox_mAP'] > .5
    with pytest.raises(ConfigError, match='RepeatDataset is no data set to evaluate'):
        build_dataset(dict(type='RepeatDataset', times=1, dataset=config)).evaluate(results())


def test_files(config, tmp_path):
    dataset = build_dataset(config)
    files, folder = dataset.format_results(legacy(), str(tmp_path / 'out'))
    assert files['bbox'] == f'{tmp_path}/out.bbox.json' and folder is None
    same, folder = dataset.format_results(results(), jsonfile_prefix=None)
    assert Path(same['bbox']).read_text() == Path(files['bbox']).read_text()
    folder.cleanup()
    assert not Path(same['bbox']).exists()


# --- a data set's own ---

class Own(CocoDataset):
    """As people write it: something of their own, and the rest from super()."""
    seen = None

    def evaluate(self, results, metric='bbox', logger=None, bonus=0.):
        assert isinstance(results, list)
        type(self).seen = results
        values = super().evaluate(results, metric, logger, classwise=True)
        return {**values, 'mine': sum(len(boxes) for image in results for boxes in image) + bonus}

    def format_results(self, results, jsonfile_prefix=None, **kwargs):
        assert isinstance(results, list) and isinstance(results[0][0], np.ndarray)
        files, folder = super().format_results(results, jsonfile_prefix, **kwargs)
        return {**files, 'mine': 'mine.txt'}, folder


@pytest.fixture
def own(config):
    return Own(**{key: value for key, value in config.items() if key != 'type'})


def test_its_own_evaluation_is_asked_and_gets_lists_by_class(own, config):
    values = evaluation.evaluate(own, StoredResults.of(results()), 'bbox', 'silent', bonus=.5)
    assert values['mine'] == 3.5
    plain = evaluation.evaluate(build_dataset(config), results(), 'bbox', 'silent', classwise=True)
    assert {k: v for k, v in values.items() if k != 'mine'} == plain
    for image, expected in zip(own.seen, legacy()):
        assert all(np.array_equal(a, b) for a, b in zip(image, expected, strict=True))
    evaluation.evaluate(own, legacy(), logger='silent')
    assert np.array_equal(own.seen[0][1], legacy()[0][1])
    for dataset in (own, Own):
        assert option_names(dataset) == ['bonus'] and metric_names(dataset) is None
    require_annotations(own)
    assert option_names(CocoDataset) == option_names(build_dataset(config)) != option_names(Own)
    both = evaluation.evaluate(build_dataset([own, config]), results() * 2, logger='silent')
    assert both['0_mine'] == 3 and both['0_bbox_mAP'] == both['1_bbox_mAP']


def test_its_own_files(own, tmp_path):
    options = writing_options(own, {}, str(tmp_path))
    files = evaluation.format_results(own, StoredResults.of(results()), **options)
    assert files['bbox'] == str(tmp_path / 'results.bbox.json') and files['mine'] == 'mine.txt'
    assert (tmp_path / 'results.bbox.json').exists()


@pytest.mark.parametrize('returned, files', [
    (None, {}), ('a.txt', {'0': 'a.txt'}), (['a.txt', 'b.txt'], {'0': 'a.txt', '1': 'b.txt'}),
    ((dict(x='a.txt'), None), dict(x='a.txt'))])
def test_whatever_its_own_files_come_as(own, monkeypatch, returned, files):
    monkeypatch.setattr(Own, 'format_results', lambda self, results, jsonfile_prefix: returned)
    assert evaluation.format_results(own, results(), jsonfile_prefix='p') == files


def test_proposals_and_keypoints(own, monkeypatch):
    monkeypatch.setattr(Own, 'evaluate', lambda self, results, logger: dict(results=results))
    proposals = [result.without('labels') for result in results()]
    first = evaluation.evaluate(own, proposals)['results'][0]
    assert first.shape == (2, 5) and first[:, 4].tolist() == pytest.approx([.9, .8])
    with_keypoints = [result.replace(keypoints=torch.zeros(len(result), 3, 3)) for result in results()]
    assert evaluation.evaluate(own, with_keypoints)['results'] == with_keypoints
