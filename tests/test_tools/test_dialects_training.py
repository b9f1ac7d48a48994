"""A training from a config of mmdetection 3.x is, number for number, that from the same config of 2.x."""
import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from boxdet.apis import DetInferencer, inference_detector, init_detector
from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError
from tests.mmdet3_forms import FASTER, WHOLE, as_2x, write_bases


@pytest.fixture(scope='module')
def tools(repo_root):
    """tools/train.py and tools/test.py as modules."""
    found = []
    for name in ('train', 'test'):
        spec = importlib.util.spec_from_file_location(f'dialect_{name}', repo_root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        found.append(module)
    return found


@pytest.fixture(scope='module')
def folder(tmp_path_factory, shapes_dir):
    folder = write_bases(tmp_path_factory.mktemp('mmdet3'), shapes_dir)
    for name, text, masks in (('mask', WHOLE, True), ('faster', FASTER, False)):
        (folder / f'{name}3.py').write_text(text)
        (folder / f'{name}2.py').write_text(as_2x(masks, shapes_dir))
    return folder


def states_equal(one, other):
    one, other = (load_checkpoint(path)['state_dict'] for path in (one, other))
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def metrics_of(work_dir):
    lines = [json.loads(line) for path in sorted(work_dir.glob('*.log.json')) for line in path.read_text().splitlines()]
    return [{key: value for key, value in line.items() if 'time' not in key and key != 'memory'}
            for line in lines if line.get('mode') in ('train', 'val')]


@pytest.mark.slow
@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
@pytest.mark.parametrize('name', ['faster', 'mask'])
def test_the_same_numbers_as_from_the_2x_file(tools, folder, name, capsys):
    train, test = tools
    runs = {}
    for dialect in '23':
        work = runs[dialect] = folder / f'{name}{dialect}'
        config = str(folder / f'{name}{dialect}.py')
        train.main([config, '--seed', '0', '--device', 'cpu', '--work-dir', str(work)])
        assert (work / 'epoch_2.pth').is_file()
    assert metrics_of(runs['2']) == metrics_of(runs['3']) and len(metrics_of(runs['3'])) == 8
    assert states_equal(runs['2'] / 'epoch_2.pth', runs['3'] / 'epoch_2.pth')

    # Stopped after its first epoch and resumed by 3.x's word: the same weights.
    (runs['3'] / 'epoch_2.pth').unlink()
    train.main([str(folder / f'{name}3.py'), '--device', 'cpu', '--work-dir', str(runs['3']), '--resume'])
    assert states_equal(runs['2'] / 'epoch_2.pth', runs['3'] / 'epoch_2.pth')

    # Tested as the config says, without another word.
    capsys.readouterr()
    checkpoint = str(runs['3'] / 'epoch_2.pth')
    metrics = ['bbox', 'segm'] if name == 'mask' else ['bbox']
    printed = []
    by_itself = [str(folder / f'{name}3.py'), checkpoint]
    asked = [str(folder / f'{name}2.py'), checkpoint, '--eval', *metrics]
    for arguments in (by_itself, asked):
        test.main([*arguments, '--device', 'cpu'])
        printed.append([line for line in capsys.readouterr().out.splitlines() if line.startswith('bbox_mAP')])
    assert printed[0] == printed[1] and len(printed[0]) == 1

    # And asked through 3.x's own class.
    images = sorted(map(str, Path(load_config(folder / 'mask3.py').data.val.img_prefix).glob('*')))
    model = init_detector(folder / f'{name}2.py', checkpoint, device='cpu')
    expected = [inference_detector(model, path) for path in images]
    found = DetInferencer(str(folder / f'{name}3.py'), checkpoint, device='cpu', show_progress=False)(images)
    for prediction, result in zip(found['predictions'], expected):
        assert prediction['labels'] == result.labels.tolist()
        np.testing.assert_array_equal(np.float32(prediction['scores']), result.scores.numpy())
        np.testing.assert_array_equal(np.float32(prediction['bboxes']).reshape(-1, 4), result.bboxes.numpy())
        assert ('masks' in prediction) == (name == 'mask')


# ---------------------------------------------------------------------------------- the words of 3.x's command lines


def settled(train, *arguments):
    args = train.parse_args(['config.py', *arguments])
    train.check_args(args)
    return args


def test_resume_with_and_without_a_file(tools):
    train = tools[0]
    assert settled(train, '--resume').auto_resume and settled(train, '--resume', 'auto').auto_resume
    args = settled(train, '--resume', 'epoch_3.pth')
    assert args.resume_from == 'epoch_3.pth' and not args.auto_resume
    with pytest.raises(ConfigError, match='--resume and --load-from exclude each other'):
        settled(train, '--resume', '--load-from', 'x.pth')


def test_amp_and_auto_scale_lr(tools, folder):
    train = tools[0]
    cfg = load_config(folder / 'mask3.py')
    train.merge_args(settled(train, '--amp', '--auto-scale-lr'), cfg)
    assert cfg.fp16 == dict(loss_scale='dynamic') and cfg.auto_scale_lr.enable is True


TTA = '''
tta_model = dict(type='DetTTAModel', tta_cfg=dict(nms=dict(type='nms', iou_threshold=0.6), max_per_img=7))
tta_pipeline = [dict(type='LoadImageFromFile'), dict(type='TestTimeAug', transforms=[
    [dict(type='Resize', scale=(160, 96), keep_ratio=True), dict(type='Resize', scale=(160, 128), keep_ratio=True)],
    [dict(type='RandomFlip', prob=1.), dict(type='RandomFlip', prob=0.)], [dict(type='PackDetInputs')]])]
'''


def test_tta(tools, folder):
    test = tools[1]
    (folder / 'tta.py').write_text(WHOLE + TTA)
    for name, scales in (('tta', [(160, 96), (160, 128)]), ('mask3', (160, 128)), ('mask2', (160, 128))):
        cfg = load_config(folder / f'{name}.py')
        args = test.parse_args([f'{name}.py', 'x.pth', '--tta', '--eval', 'bbox'])
        test.settle_actions(args, cfg)
        views = cfg.data.test.pipeline[1]
        assert views.flip is True and views.img_scale == scales
        assert cfg.model.test_cfg.rcnn.max_per_img == (7 if name == 'tta' else 20)


def test_what_a_test_does_by_itself(tools, folder):
    test = tools[1]
    (folder / 'server.py').write_text(WHOLE + "test_evaluator = dict(format_only=True, outfile_prefix='w/t')\n")
    cases = dict(mask3=(['bbox', 'segm'], False), faster3=(['bbox'], False), server=(None, True))
    for name, expected in cases.items():
        args = test.parse_args(['c.py', 'x.pth'])
        test.settle_actions(args, load_config(folder / f'{name}.py'))
        assert (args.eval, args.format_only) == expected
    with pytest.raises(ConfigError, match='nothing to do'):
        test.settle_actions(test.parse_args(['c.py', 'x.pth']), load_config(folder / 'mask2.py'))
