"""build_dataset and the wrappers."""
import json
import pickle

import numpy as np
import pytest

from boxdet.datasets import build_dataset
from boxdet.datasets.custom import CustomDataset
from boxdet.datasets.wrappers import ClassBalancedDataset, ConcatDataset, RepeatDataset
from boxdet.errors import ConfigError, DataError


def entries(labels_of_images):
    return [dict(filename=f'{i}.jpg', width=100 - 60 * (i % 2), height=50,
                 ann=dict(bboxes=[[1, 2, 30, 40]] * len(labels), labels=labels))
            for i, labels in enumerate(labels_of_images)]


@pytest.fixture
def config(tmp_path):
    def make(labels_of_images, name='a.json', **more):
        (tmp_path / name).write_text(json.dumps(entries(labels_of_images)))
        return dict(type='CustomDataset', ann_file=str(tmp_path / name), pipeline=[dict(type='LoadAnnotations')],
                    classes=('a', 'b', 'c'), **more)
    return make


def test_middle_format(config, tmp_path):
    dataset = build_dataset(config([[0, 1], [], [2]]))
    assert len(dataset) == 2 and dataset.filter_report['empty'] == 1
    assert dataset[0]['gt_bboxes'].tolist() == [[1, 2, 30, 40]] * 2 and dataset[0]['gt_bboxes'].dtype == np.float32
    assert dataset.get_cat_ids(0) == [0, 1] and dataset.flag.tolist() == [1, 1]
    values = entries([[0]])
    values[0]['ann'] = {k: np.array(v) for k, v in values[0]['ann'].items()}
    (tmp_path / 'a.pkl').write_bytes(pickle.dumps(values))
    assert len(CustomDataset(str(tmp_path / 'a.pkl'), [])) == 1
    for ann, message in ((dict(bboxes=[[1, 2, 3, 4]], labels=[]), '1 boxes and 0 labels'),
                         (dict(bboxes=[[1, 2, float('nan'), 4]], labels=[1]), 'not finite')):
        values[0]['ann'] = ann
        (tmp_path / 'b.json').write_text(json.dumps(values))
        with pytest.raises(DataError, match=f'b.json: 0.jpg has .*{message}'):
            CustomDataset(str(tmp_path / 'b.json'), []).get_ann_info(0)
    (tmp_path / 'b.json').write_text('{}')
    with pytest.raises(DataError, match='list of dicts'):
        CustomDataset(str(tmp_path / 'b.json'), [])


def test_a_subclass_written_for_2x(config, tmp_path):
    class Mine(CustomDataset):
        CLASSES = ('x',)

        def load_annotations(self, ann_file):
            return [dict(filename=line, width=64, height=64, ann=dict(bboxes=np.ones((1, 4), np.float32),
                                                                      labels=np.zeros(1, np.int64)))
                    for line in open(ann_file).read().split()]

        def get_ann_info(self, idx):
            return self.data_infos[idx]['ann']

        def prepare_train_img(self, idx):
            results = dict(img_info=self.data_infos[idx], ann_info=self.get_ann_info(idx))
            self.pre_pipeline(results)
            return self.pipeline(results)

    (tmp_path / 'list.txt').write_text('a.jpg b.jpg')
    dataset = Mine(str(tmp_path / 'list.txt'), [dict(type='LoadAnnotations')])
    assert len(dataset) == 2 and dataset.sample(1, compact=True)['img_info']['filename'] == 'b.jpg'


def test_a_dropped_sample_is_redrawn(config):
    calls = []

    def picky(results):
        calls.append(results['img_info']['filename'])
        return None if results['gt_labels'][0] != 2 else results

    cfg = config([[0], [1], [2], [0]])
    dataset = build_dataset({**cfg, 'pipeline': [*cfg['pipeline'], picky], 'min_size': 1})
    np.random.seed(0)
    assert dataset[0]['img_info']['filename'] == '2.jpg' and calls[0] == '0.jpg'
    with pytest.raises(DataError, match='dropped 1000 images'):
        dataset[1]  # the only other image of its group is the dropped 3.jpg


def test_proposal_files(config, tmp_path):
    path = tmp_path / 'proposals.pkl'
    path.write_bytes(pickle.dumps([np.full((2, 5), i, dtype=np.float32) for i in range(3)]))
    cfg = config([[0], [], [1]], proposal_file=str(path))
    cfg['pipeline'] = [dict(type='LoadProposals')]
    dataset = build_dataset(cfg)
    assert dataset[1]['proposals'].tolist() == [[2] * 4] * 2  # its own, though the empty image is left out
    path.write_bytes(pickle.dumps([1]))
    with pytest.raises(DataError, match='proposals of 1 images.*3'):
        build_dataset(cfg)


def test_repeat_and_concat(config):
    cfg = config([[0], [1]])
    repeated = build_dataset(dict(type='RepeatDataset', times=3, dataset=cfg))
    assert isinstance(repeated, RepeatDataset) and len(repeated) == 6 and repeated.flag.tolist() == [1, 0] * 3
    assert repeated[5]['img_info']['filename'] == '1.jpg' and repeated.CLASSES == ('a', 'b', 'c')
    other = config([[2], [2], [2]], 'b.json')
    joined = build_dataset([cfg, other])
    assert isinstance(joined, ConcatDataset) and len(joined) == 5
    assert joined.get_cat_ids(1) == [1] and joined.get_cat_ids(2) == [2] and joined.img_info(-1)['filename'] == '2.jpg'
    assert joined.filter_report['images'] == 5 and joined.metainfo['CLASSES'] == ('a', 'b', 'c')
    with pytest.raises(IndexError):
        joined[5]
    listed = build_dataset({**cfg, 'ann_file': [cfg['ann_file'], other['ann_file']], 'img_prefix': ['x', 'y'],
                            'separate_eval': False})
    assert len(listed) == 5 and listed.datasets[1].img_prefix == 'y' and listed.separate_eval is False
    with pytest.raises(ConfigError, match="'img_prefix' lists 1"):
        build_dataset({**cfg, 'ann_file': [cfg['ann_file']] * 2, 'img_prefix': ['x']})
    with pytest.raises(ConfigError, match='different classes'):
        build_dataset([cfg, {**other, 'classes': ('z',)}])


def test_class_balanced(config):
    dataset = build_dataset(dict(type='ClassBalancedDataset', oversample_thr=0.5,
                                 dataset=config([[0], [0], [0], [0, 1], [0], [0], [0], [0]], min_size=1)))
    assert isinstance(dataset, ClassBalancedDataset)
    assert dataset.repeat_indices.tolist() == [0, 1, 2, 3, 3, 4, 5, 6, 7]  # ceil(sqrt(0.5 / (1 / 8))) = 2
    assert dataset.img_info(4)['filename'] == '3.jpg' and len(dataset.flag) == 9


def test_config_is_not_changed_and_checked(config):
    cfg = dict(type='RepeatDataset', times=2, dataset=config([[0], [], [1]]))
    before = json.dumps(cfg)
    assert len(build_dataset(cfg, dict(test_mode=True))) == 6
    assert json.dumps(cfg) == before
    built = build_dataset(cfg)
    assert build_dataset(built) is built
    with pytest.raises(ConfigError, match="did you mean 'CustomDataset'"):
        build_dataset(dict(type='CustomDatset'))
    with pytest.raises(ConfigError, match="did you mean 'pipeline'"):
        build_dataset({**config([[0]]), 'pipelin': []})
    with pytest.raises(ConfigError, match="needs 'dataset'"):
        build_dataset(dict(type='RepeatDataset', times=2))
