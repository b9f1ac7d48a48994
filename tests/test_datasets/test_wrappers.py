"""build_dataset and the wrappers."""
import json
import pickle
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from boxdet.datasets import build_dataloader, build_dataset, inference_settings, loss_settings
from boxdet.datasets.custom import CustomDataset
from boxdet.datasets.wrappers import ClassBalancedDataset, ConcatDataset, MultiImageMixDataset, RepeatDataset
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError, DataError
from boxdet.registry import PIPELINES


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


def test_settings_of_a_test_reach_into_wrappers():
    own = [dict(type='LoadImageFromFile'), dict(type='ImageToTensor', keys=['img'])]
    cfg = dict(type='ConcatDataset', samples_per_gpu=2, datasets=[
        dict(type='CocoDataset', pipeline=own), dict(type='RepeatDataset', times=2, dataset=dict(pipeline=own))])
    settings, size = inference_settings(cfg)
    assert size == 2 and 'samples_per_gpu' not in settings and 'pipeline' not in settings
    inner = settings['datasets'][0], settings['datasets'][1]['dataset']
    assert [[step['type'] for step in one['pipeline']] for one in inner] == [
        ['LoadImageFromFile', 'DefaultFormatBundle']] * 2
    assert cfg['samples_per_gpu'] == 2 and own[1]['type'] == 'ImageToTensor'
    assert inference_settings(cfg, 1) == ({k: v for k, v in cfg.items() if k != 'samples_per_gpu'}, 1)
    several = [dict(samples_per_gpu=4, pipeline=own), dict(pipeline=own)]
    assert inference_settings(several)[1] == 4 and inference_settings([dict(pipeline=own)]) == ([dict(pipeline=own)], 1)


def test_losses_of_validation_are_computed_by_the_training_s_pipeline():
    own, others = [dict(type='LoadImageFromFile'), dict(type='Collect')], [dict(type='LoadAnnotations')]
    one = dict(type='CocoDataset', ann_file='train.json', pipeline=own)
    repeated = dict(type='RepeatDataset', times=2,
                    dataset=dict(type='ConcatDataset', datasets=[one, dict(one, pipeline=others)]))
    val = dict(type='CocoDataset', ann_file='val.json', samples_per_gpu=4, pipeline=others)
    expected = dict(type='CocoDataset', ann_file='val.json', pipeline=own)
    for train in (one, repeated, [one, val], dict(type='ClassBalancedDataset', dataset=one)):
        assert loss_settings(val, train) == expected and loss_settings([val, val], train) == [expected] * 2
    assert loss_settings(dict(type='RepeatDataset', dataset=val), one)['dataset'] == expected
    assert val['pipeline'] is others and val['samples_per_gpu'] == 4
    mixed = dict(type='MultiImageMixDataset', dataset=one, pipeline=[dict(type='CopyPaste')])
    for train in (mixed, dict(type='RepeatDataset', dataset=mixed), dict(type='OwnDataset')):
        with pytest.raises(ConfigError, match=r"workflow \('val', n\): data.train, a (MultiImageMix|Own)Dataset, has "
                                              r"no pipeline"):
            loss_settings(val, train)


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


class Marked(CustomDataset):
    """A data set with methods of its own."""

    def __getitem__(self, index):
        return dict(super().__getitem__(index), marked=index)

    def get_cat_ids(self, index):
        return [7]


class Plain:
    """A data set that is none of boxdet's."""
    CLASSES = ('a', 'b', 'c')

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return dict(marked=index)


def test_a_wrapped_data_set_is_asked_by_its_own_methods(config):
    cfg = config([[0], [1], [2], [0]], min_size=1)
    data = Marked(**{key: value for key, value in cfg.items() if key != 'type'})
    mixed = dict(type='MultiImageMixDataset', dataset=data, pipeline=[dict(type='LoadAnnotations')])
    wrapped = {'RepeatDataset': RepeatDataset(data, 2), 'ConcatDataset': ConcatDataset([build_dataset(cfg), data]),
               'ClassBalancedDataset': ClassBalancedDataset(data, 0.1), 'MultiImageMixDataset': build_dataset(mixed),
               'twice': RepeatDataset(ConcatDataset([build_dataset(cfg), data]), 2), 'other': RepeatDataset(Plain(), 2)}
    for name, dataset in wrapped.items():
        last = len(dataset) - 1
        for sample in (dataset[last], dataset.sample(last, compact=True)):
            assert sample.get('marked') == (1 if name == 'other' else 3), name
    assert 'marked' not in wrapped['ConcatDataset'][0]  # the plain one of the two
    assert wrapped['ConcatDataset'].get_cat_ids(0) == [0] and wrapped['ConcatDataset'].get_cat_ids(4) == [7]

    class MarkedWrapper(RepeatDataset):
        def __getitem__(self, index):
            return dict(super().__getitem__(index), outer=True)

    assert ConcatDataset([MarkedWrapper(data, 2)])[5].items() >= dict(outer=True, marked=1).items()


def test_a_batch_of_finished_and_of_compact_images(tmp_path):
    """One data set overrides ``__getitem__`` and gets finished images, its neighbour's wait: the same numbers."""
    steps = [dict(type='LoadImageFromFile'), dict(type='Resize', img_scale=(96, 64)),
             dict(type='Normalize', mean=[100, 110, 120], std=[50, 60, 70]), dict(type='Pad', size_divisor=32),
             dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])]
    infos = [dict(filename=f'{i}.png', width=90 - 30 * i, height=60 + 20 * i) for i in range(2)]
    path = tmp_path / 'two.json'
    path.write_text(json.dumps(infos))
    for i, info in enumerate(infos):
        pixels = np.random.default_rng(i).integers(0, 256, (info['height'], info['width'], 3)).astype(np.uint8)
        cv2.imwrite(str(tmp_path / info['filename']), pixels)
    plain, marked = (cls(str(path), steps, classes=('a',), img_prefix=str(tmp_path), test_mode=True)
                     for cls in (CustomDataset, Marked))
    for pair in ([plain, marked], [marked, plain]):
        batch = next(iter(build_dataloader(ConcatDataset(pair), 4, 0, shuffle=False)))
        expected = next(iter(build_dataloader(ConcatDataset([plain, plain]), 4, 0, shuffle=False)))
        assert batch.images.dtype == torch.float32 and expected.images.dtype == torch.uint8
        assert torch.equal(batch.to('cpu').images, expected.to('cpu').images)


class Joined:
    """Labels of this image and of the two after it."""

    def __init__(self, drop=0):
        self.drop = drop

    def get_indexes(self, dataset):
        return [1, 2]

    def __call__(self, results):
        if self.drop:
            self.drop -= 1
            results['bbox_fields'].append('spoilt')
            return None
        results['joined'] = [r['gt_labels'].tolist() for r in (results, *results['mix_results'])]
        return results


class Image:
    """A white one."""

    def __call__(self, results):
        results['img'] = np.ones((4, 4, 3), dtype=np.uint8)
        return results


def test_images_are_mixed(config):
    for module in (Joined, Image):
        PIPELINES.register_module(module=module, force=True)
    norm = dict(type='Normalize', mean=[0, 0, 0], std=[2, 2, 2])
    cfg = dict(type='MultiImageMixDataset', dataset=config([[0], [1, 1], [2]]), pipeline=[dict(type='Joined')])
    mixed = build_dataset(cfg)
    assert isinstance(mixed, MultiImageMixDataset) and len(mixed) == 3 and mixed.flag.tolist() == [1, 0, 1]
    assert mixed[0]['joined'] == [[0], [1, 1], [2]] and mixed[1]['joined'][0] == [1, 1]
    assert 'mix_results' not in mixed[0]
    assert mixed.CLASSES == ('a', 'b', 'c') and mixed.get_cat_ids(1) == [1, 1] and mixed.filter_report['kept'] == 3
    late = build_dataset({**cfg, 'pipeline': [dict(type='Image'), norm, dict(type='Joined'), norm]})[0]
    assert late['joined'] == [[0], [1, 1], [2]] and late['img'].max() == 0.25
    assert 'joined' not in build_dataset({**cfg, 'skip_type_keys': ['Joined']})[0]
    patient = build_dataset({**cfg, 'pipeline': [dict(type='Joined', drop=2)]})[0]
    assert patient['joined'] and patient['bbox_fields'] == ['gt_bboxes']  # each try begins with the same sample
    with pytest.raises(DataError, match='Joined dropped .* 3 times'):
        build_dataset({**cfg, 'max_refetch': 3, 'pipeline': [dict(type='Joined', drop=4)]})[0]
    with pytest.raises(ConfigError, match='holds configs with a type'):
        build_dataset({**cfg, 'pipeline': [Joined()]})
    with pytest.raises(ConfigError, match="needs 'dataset'"):
        build_dataset(dict(type='MultiImageMixDataset', pipeline=[]))


@pytest.mark.parametrize('recipe', ['lsj_100e', 'ssj_270k', 'ssj_scp_270k'])
def test_jitter_and_copy_paste_recipes(recipe, repo_root, shapes_dir):
    """The shipped pipelines on small images: a batch whose masks, boxes and images fit together."""
    cfg = load_config(repo_root / f'configs/common/{recipe}_coco_instance.py').data.train
    inner = cfg.dataset if 'dataset' in cfg else cfg
    for pipeline in (inner.pipeline, cfg.pipeline if 'dataset' in cfg and 'pipeline' in cfg else []):
        for transform in pipeline:
            transform.update({key: (96, 96) for key in ('img_scale', 'crop_size', 'size') if key in transform})
    inner.update(ann_file=str(shapes_dir / 'annotations/instances_train.json'), img_prefix=str(shapes_dir / 'train'))
    inner.classes = [category['name'] for category in json.loads(Path(inner.ann_file).read_text())['categories']]
    dataset = build_dataset(cfg)
    count = 0
    for batch in build_dataloader(dataset, 4, 0, seed=1):
        assert batch.images.shape == (4, 3, 96, 96)
        for gt in batch.gt:
            count += len(gt)
            assert (gt.masks.height, gt.masks.width) == (96, 96) and len(gt.masks) == len(gt.labels)
            assert ((gt.bboxes[:, 2:] - gt.bboxes[:, :2]) > 1e-2).all()
            assert np.abs(gt.masks.bboxes() - gt.bboxes.numpy()).max(initial=0) <= 1
        images = batch.to('cpu').images
        assert images.dtype == torch.float32 and torch.isfinite(images).all()
    if 'scp' in recipe:
        np.random.seed(0)
        plain = build_dataset(cfg.dataset)
        assert count > sum(len(plain[i]['gt_labels']) for i in range(12))


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
