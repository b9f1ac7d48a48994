"""Fast R-CNN the whole way: an RPN's proposals saved by one command line, used by the next two."""

import importlib.util
import json
import pickle
import warnings

import numpy as np
import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import DataError
from boxdet.evaluation import load_results
from boxdet.models import build_detector


@pytest.fixture(scope='module')
def tool(repo_root):
    """``tool('test')`` runs tools/test.py in this process, ``tool('train')`` tools/train.py."""
    def load(name):
        spec = importlib.util.spec_from_file_location(f'boxdet_tools_{name}', repo_root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)

        def run(*arguments):
            with warnings.catch_warnings():
                warnings.simplefilter('ignore')
                module.main([*map(str, arguments), '--device', 'cpu'])
        return run
    return load


def small(transforms):
    """The pipeline for images of 96 pixels."""
    return [{**t, **({'img_scale': (96, 96)} if 'img_scale' in t else {}),
             **({'transforms': small(t['transforms'])} if 'transforms' in t else {})} for t in transforms]


@pytest.fixture(scope='module')
def config(repo_root, shapes_dir, tmp_path_factory):
    """``config(name)`` writes a shipped config, with a small backbone and the tiny shapes set, to a file."""
    folder = tmp_path_factory.mktemp('fast_rcnn')

    def write(name, **options):
        cfg = load_config(repo_root / 'configs' / name, {
            'model.backbone.depth': 18, 'model.backbone.base_channels': 8, 'model.backbone.init_cfg': None,
            'model.neck.in_channels': [8, 16, 32, 64], 'model.neck.out_channels': 16,
            'data.samples_per_gpu': 4, 'data.workers_per_gpu': 0, 'runner.max_epochs': 1, **options})
        for split, images in (('train', 'train'), ('val', 'val'), ('test', 'val')):
            part = cfg.data[split]
            part.update(pipeline=small(part.pipeline), classes=class_names(shapes_dir),
                        ann_file=str(shapes_dir / f'annotations/instances_{images}.json'),
                        img_prefix=str(shapes_dir / images))
            if 'proposal_file' in part:
                part.proposal_file = str(folder / f'rpn_{images}.pkl')
        path = folder / name.replace('/', '_')
        path.write_text(cfg.pretty_text)
        return path
    return write


def class_names(shapes_dir):
    """What the annotation file calls its categories."""
    content = json.loads((shapes_dir / 'annotations/instances_val.json').read_text())
    return tuple(category['name'] for category in content['categories'])


def test_rpn_to_fast_rcnn(tool, config, shapes_dir, tmp_path):
    test = tool('test')
    rpn = config('rpn/rpn_r50_fpn_1x_coco.py', **{
        'model.rpn_head.in_channels': 16, 'model.rpn_head.feat_channels': 16,
        'model.test_cfg.rpn.max_per_img': 40})
    folder = rpn.parent
    torch.manual_seed(0)
    weights = build_detector(load_config(rpn).model).state_dict()
    save_checkpoint(dict(meta={}, state_dict=weights), tmp_path / 'rpn.pth')
    for split in ('train', 'val'):
        test(rpn, tmp_path / 'rpn.pth', '--out', folder / f'rpn_{split}.pkl', '--cfg-options',
             f'data.test.ann_file={shapes_dir}/annotations/instances_{split}.json',
             f'data.test.img_prefix={shapes_dir}/{split}')
    saved = pickle.loads((folder / 'rpn_val.pkl').read_bytes())
    assert len(saved) == 6 and all(0 < len(p) <= 40 and p.shape[1] == 5 and p.dtype == np.float32 for p in saved)

    fast = config('fast_rcnn/fast_rcnn_r50_fpn_1x_coco.py', **{
        'model.roi_head.bbox_roi_extractor.out_channels': 16, 'model.roi_head.bbox_head.in_channels': 16,
        'model.roi_head.bbox_head.fc_out_channels': 32,
        'model.roi_head.bbox_head.num_classes': len(class_names(shapes_dir)),
        'model.train_cfg.rcnn.sampler.num': 32, 'model.test_cfg.rcnn.score_thr': 0.0})
    tool('train')(fast, '--work-dir', tmp_path / 'work', '--seed', '0')
    trained = tmp_path / 'work/epoch_1.pth'
    weights = load_checkpoint(trained)['state_dict']
    assert not any(key.startswith('rpn_head') for key in weights)
    assert all(torch.isfinite(value).all() for value in weights.values())

    test(fast, trained, '--out', tmp_path / 'r.pkl', '--eval', 'bbox', '--work-dir', tmp_path / 'eval')
    results = load_results(tmp_path / 'r.pkl')
    written, = (tmp_path / 'eval').glob('eval_*.json')
    assert len(results) == 6 and all(len(r) for r in results)
    assert 'bbox_mAP' in json.loads(written.read_text())['metric']

    (folder / 'rpn_val.pkl').write_bytes(pickle.dumps(saved[:-1]))
    with pytest.raises(DataError, match='rpn_val.pkl: proposals of 5 images.* has 6'):
        test(fast, trained, '--eval', 'bbox')
