"""tools/train.py: arguments, errors in one line, and a Mask R-CNN that trains, resumes and is evaluated on shapes."""
import importlib.util
import json
import resource
import subprocess
import sys

import pytest
import torch

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import Config
from boxdet.errors import CheckpointError, ConfigError, DataError, UserError

CONFIG = 'configs/shapes/mask_rcnn_r18_fpn_shapes.py'


@pytest.fixture(scope='module')
def tool(repo_root):
    """tools/train.py as a module."""
    spec = importlib.util.spec_from_file_location('train_tool', repo_root / 'tools' / 'train.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def options(shapes_dir, *more):
    """The config's data from ``shapes_dir`` and a training of a few small iterations."""
    data = [f'data.{split}.{key}={shapes_dir}/{value}' for split, folder in (('train', 'train'), ('val', 'val'))
            for key, value in (('ann_file', f'annotations/instances_{folder}.json'), ('img_prefix', f'{folder}/'))]
    return ['--cfg-options', *data, 'data.samples_per_gpu=4', 'data.workers_per_gpu=0', 'runner.max_epochs=1',
            'log_config.interval=1', *more]


@pytest.fixture
def run(tool, repo_root):
    return lambda *args: tool.main([str(repo_root / CONFIG), '--seed', '0', '--device', 'cpu', *map(str, args)])


# --- arguments ---

def test_help_teaches_and_imports_nothing_heavy(repo_root):
    done = subprocess.run([sys.executable, str(repo_root / 'tools/train.py'), '--help'], capture_output=True, text=True)
    assert done.returncode == 0 and '--auto-resume' in done.stdout and 'python tools/train.py CONFIG' in done.stdout
    probe = ('import runpy, sys; sys.argv = ["t", "--help"]\n'
             f'try: runpy.run_path({str(repo_root / "tools/train.py")!r}, run_name="__main__")\n'
             'except SystemExit: assert not {"torch", "mmengine", "cv2"} & set(sys.modules)')
    assert subprocess.run([sys.executable, '-c', probe], capture_output=True).returncode == 0


@pytest.mark.parametrize('args, message', [
    (['--options', 'a=1', '--cfg-options', 'b=1'], '--options is the old name'),
    (['--resume-from', 'a', '--auto-resume'], 'exclude each other'),
    (['--gpu-ids', '0', '1'], 'start tools/dist_train.sh CONFIG 2'),
    (['--gpus', '2'], 'start tools/dist_train.sh CONFIG 2'),
    (['--gpus', '0'], 'start it with --device cpu for none'),
    (['--device', 'cpu', '--gpu-id', '0'], 'give one of them')])
def test_contradicting_arguments(tool, args, message):
    with pytest.raises(ConfigError, match=message):
        tool.main(['config.py', *args])


def test_tensorboard_joins_the_loggers(tool):
    for before, after in (([dict(type='TextLoggerHook')], ['TextLoggerHook', 'TensorboardLoggerHook']),
                          ([dict(type='TensorboardLoggerHook')], ['TensorboardLoggerHook']),
                          (None, ['TextLoggerHook', 'TensorboardLoggerHook'])):
        cfg = Config(dict(log_config=dict(interval=7, hooks=before)) if before else {})
        tool.merge_args(tool.parse_args(['config.py', '--tensorboard']), cfg)
        assert [hook['type'] for hook in cfg.log_config['hooks']] == after
        assert cfg.log_config.get('interval') == (7 if before else None)


def test_errors_are_one_line_and_status_2(repo_root, tmp_path):
    done = subprocess.run([sys.executable, str(repo_root / 'tools/train.py'), str(repo_root / CONFIG), '--work-dir',
                           str(tmp_path / 'wd'), '--cfg-options', 'model.test_cfg.rcnn.score_thresh=0.1'],
                          capture_output=True, text=True)
    assert done.returncode == 2, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith('warning: ')]
    assert len(lines) == 1 and lines[0].startswith('error: model.test_cfg.rcnn.score_thresh')
    assert 'score_thr' in lines[0] and not (tmp_path / 'wd').exists()


@pytest.mark.parametrize('without, message', [
    ('optimizer', 'has no optimizer'), ('data', 'has no data.train'), ('model', 'has no model'),
    ('data.val', 'has no data.val')])
def test_a_missing_section_is_told_before_anything_is_written(tool, repo_root, tmp_path, without, message):
    from boxdet.engine.config import load_config
    cfg = load_config(repo_root / CONFIG)
    outer, _, inner = without.rpartition('.')
    (cfg.data if outer else cfg).pop(inner)
    cfg.workflow = [('train', 1), ('val', 1)]
    cfg.dump(str(tmp_path / 'short.py'))
    with pytest.raises(ConfigError, match=f'short.py {message}$'):
        tool.main([str(tmp_path / 'short.py'), '--work-dir', str(tmp_path / 'wd')])
    assert not (tmp_path / 'wd').exists()


def test_train_detector_names_what_its_config_lacks(tmp_path):
    from boxdet.apis import train_detector
    from boxdet.engine.config import Config
    with pytest.raises(ConfigError, match='^the config has no optimizer$'):
        train_detector(torch.nn.Linear(1, 1), [], Config(dict(data=dict(samples_per_gpu=1))))


def test_command_line_overrides_the_config(tool):
    from boxdet.engine.config import Config
    args = tool.parse_args(['a/faster.py', '--gpu-ids', '1', '--auto-scale-lr', '--load-from', 'x.pth'])
    cfg = Config(dict(auto_scale_lr=dict(enable=False, base_batch_size=16), resume_from='old.pth'))
    tool.merge_args(args, cfg)
    assert (cfg.work_dir, cfg.device, cfg.load_from, cfg.resume_from) == ('work_dirs/faster', 'cuda:1', 'x.pth', None)
    assert cfg.auto_scale_lr.enable
    with pytest.raises(ConfigError, match='has no auto_scale_lr.base_batch_size'):
        tool.merge_args(args, Config(dict()))


# --- training ---

@pytest.mark.slow
def test_trains_evaluates_and_resumes(run, shapes_dir, tmp_path):
    whole, parts = tmp_path / 'whole', tmp_path / 'parts'
    two = 'runner.max_epochs=2'
    run('--work-dir', whole, *options(shapes_dir, two, 'evaluation.save_best=auto', 'evaluation.interval=2'))
    names = {p.name for p in whole.iterdir()}
    assert {'mask_rcnn_r18_fpn_shapes.py', 'epoch_2.pth', 'latest.pth', 'best_bbox_mAP_epoch_2.pth'} <= names
    entries = [json.loads(line) for line in next(whole.glob('*.log.json')).read_text().splitlines()][1:]
    assert entries[0]['mode'] == 'train' and {'loss_rpn_cls', 'loss_mask', 'loss', 'lr', 'time'} <= set(entries[0])
    assert entries[-1]['mode'] == 'val' and {'bbox_mAP', 'segm_mAP_50'} <= set(entries[-1])
    meta = load_checkpoint(whole / 'epoch_2.pth')['meta']
    assert meta['CLASSES'][0] == 'circle' and 'MaskRCNN' in meta['config'] and (meta['epoch'], meta['seed']) == (2, 0)

    # The same in parts: stopped within the first epoch, then --auto-resume, without the evaluation.
    # The rates follow from the config's length, so the first part is cut short by its files, not by max_epochs.
    every = ('checkpoint_config.by_epoch=False', 'checkpoint_config.interval=1', 'checkpoint_config.max_keep_ckpts=-1')
    run('--work-dir', parts, '--no-validate', *options(shapes_dir, two, *every))
    for path in parts.glob('*.pth'):
        if path.name != 'iter_2.pth':
            path.unlink()
    run('--work-dir', parts, '--no-validate', '--auto-resume', *options(shapes_dir, two))
    ours, theirs = (load_checkpoint(folder / 'epoch_2.pth') for folder in (parts, whole))
    assert all(torch.equal(ours['state_dict'][k], v) for k, v in theirs['state_dict'].items())


@pytest.mark.slow
def test_finetuning_says_what_was_loaded(run, shapes_dir, tmp_path, capsys):
    run('--work-dir', tmp_path / 'a', '--no-validate', *options(shapes_dir))
    capsys.readouterr()
    run('--work-dir', tmp_path / 'b', '--no-validate', '--load-from', tmp_path / 'a' / 'epoch_1.pth',
        *options(shapes_dir, 'model.roi_head.bbox_head.reg_class_agnostic=False'))
    text = capsys.readouterr().out
    assert '2 of another shape' in text
    assert 'roi_head.bbox_head.fc_reg.weight: checkpoint (4, 256), model (24, 256)' in text


# --- bad input ---

@pytest.mark.parametrize('change, kind, message', [
    (['model.roi_head.bbox_head.num_classes=80'], ConfigError, 'bbox_head.num_classes = 80: the training'),
    (["data.train.classes=('circle','sqare')"], DataError, "did you mean 'square'"),
    (["data.train.classes='circle'"], ConfigError, r"write classes=\('circle',\)"),
    (['data.train.img_prefix=nowhere/'], DataError, 'image files are missing: nowhere/'),
    (['data.train.min_size=1000'], DataError, 'no image is left'),
    (['load_from=nowhere.pth'], CheckpointError, 'no checkpoint file nowhere.pth'),
    (['checkpoint_config.max_keep=1'], ConfigError, 'max_keep'),
    (['evaluation.metrics=bbox'], ConfigError, "did you mean 'metric'"),
    (['lr_config.policy=cosin'], ConfigError, 'cosin')])
def test_bad_input_is_named_before_the_first_step(run, shapes_dir, tmp_path, change, kind, message):
    with pytest.raises(kind, match=message) as caught:
        run('--work-dir', tmp_path, *options(shapes_dir, *change))
    assert '\n' not in str(caught.value) and not list(tmp_path.glob('*.pth'))


def test_a_checkpoint_of_another_architecture(run, shapes_dir, tmp_path):
    torch.save(dict(state_dict={'encoder.weight': torch.ones(1)}), tmp_path / 'other.pth')
    with pytest.raises(CheckpointError, match='other.pth is a checkpoint of another architecture'):
        run('--work-dir', tmp_path, '--load-from', tmp_path / 'other.pth', *options(shapes_dir))


@pytest.mark.slow
def test_a_truncated_image_is_named(run, shapes_dir, tmp_path):
    import shutil
    shutil.copytree(shapes_dir, tmp_path / 'shapes')
    victim = sorted((tmp_path / 'shapes/train').iterdir())[3]
    victim.write_bytes(victim.read_bytes()[:200])
    with pytest.raises(DataError, match=victim.name):
        run('--work-dir', tmp_path / 'wd', *options(tmp_path / 'shapes'))


@pytest.mark.slow
def test_nan_stops_with_one_line(run, shapes_dir, tmp_path):
    message = r'the loss is not finite at iteration \d+: loss_rpn_cls .*images: .*\.jpg'
    with pytest.raises(UserError, match=message) as caught:
        run('--work-dir', tmp_path, *options(shapes_dir, 'optimizer.lr=1e30', 'runner.max_epochs=4'))
    assert '\n' not in str(caught.value)


def edited(shapes_dir, tmp_path, **change):
    """The training annotations with their fourth one changed, and an option that names the new file."""
    content = json.loads((shapes_dir / 'annotations/instances_train.json').read_text())
    content['annotations'][3].update(change)
    (tmp_path / 'edited.json').write_text(json.dumps(content))
    return content['annotations'][3]['id'], f'data.train.ann_file={tmp_path}/edited.json'


def test_a_category_outside_the_categories(run, shapes_dir, tmp_path):
    number, option = edited(shapes_dir, tmp_path, category_id=77)
    with pytest.raises(DataError, match=rf'edited.json: annotation {number} is of category 77, which is not among'):
        run('--work-dir', tmp_path / 'wd', *options(shapes_dir, option))


@pytest.mark.slow
def test_a_box_without_area_is_named_and_left_out(run, shapes_dir, tmp_path, capsys):
    number, option = edited(shapes_dir, tmp_path, bbox=[5, 5, 0, 10])
    run('--work-dir', tmp_path / 'wd', '--no-validate', *options(shapes_dir, option))
    assert f'1 boxes have no area, or lie outside their image, and are not used (annotation {number})' \
        in capsys.readouterr().out
    assert (tmp_path / 'wd/epoch_1.pth').exists()


@pytest.mark.slow
def test_a_full_disk_leaves_the_old_checkpoint_to_go_on_from(run, shapes_dir, tmp_path, monkeypatch):
    from boxdet.engine.hooks import CheckpointHook
    limits, save = resource.getrlimit(resource.RLIMIT_FSIZE), CheckpointHook.after_train_epoch

    def save_while_there_is_room(hook, runner):
        if runner.epoch == 1:  # files of a megabyte: the logs fit, a checkpoint does not
            resource.setrlimit(resource.RLIMIT_FSIZE, (2 ** 20, limits[1]))
        save(hook, runner)

    arguments = ['--work-dir', tmp_path, '--no-validate', *options(shapes_dir, 'runner.max_epochs=2')]
    with monkeypatch.context() as patch:
        patch.setattr(CheckpointHook, 'after_train_epoch', save_while_there_is_room)
        try:
            with pytest.raises(CheckpointError, match='cannot write .*epoch_2.pth: '):
                run(*arguments)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {p.name for p in tmp_path.glob('*.pth')} == {'epoch_1.pth', 'latest.pth'}
    assert not list(tmp_path.glob('.*.partial')) and load_checkpoint(tmp_path / 'latest.pth')['meta']['epoch'] == 1
    run(*arguments, '--auto-resume')
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['epoch'] == 2


# --- the user's own code ---

OWN_CODE = '''
from mmengine.hooks import Hook
from torch import nn
from boxdet.datasets import PIPELINES
from boxdet.models import BACKBONES
from boxdet.registry import HOOKS

@BACKBONES.register_module()
class FourConvs(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(width if i else 3, width, 3, 2 if i else 4, 1) for i in range(4))

    def forward(self, x):
        levels = []
        for conv in self.convs:
            x = conv(x).relu()
            levels.append(x)
        return tuple(levels)

@PIPELINES.register_module()
class Darker:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, results):
        assert results['gt_bboxes'].shape[1] == 4 and len(results['gt_masks']) == len(results['gt_labels'])
        results['img'] = (results['img'] * self.factor).astype('uint8')
        return results

@HOOKS.register_module()
class Shout(Hook):
    def after_train_epoch(self, runner):
        runner.logger.info('SHOUT %d', runner.iter)
'''
OWN_CONFIG = '''
_base_ = '{base}'
custom_imports = dict(imports='my_detector')
model = dict(backbone=dict(_delete_=True, type='FourConvs', width=8), neck=dict(in_channels=[8, 8, 8, 8]))
custom_hooks = [dict(type='Shout', priority='LOW')]
train_pipeline = {{{{_base_.train_pipeline}}}}
train_pipeline.insert(2, dict(type='Darker', factor=0.9))
data = dict(train=dict(pipeline=train_pipeline))
'''


@pytest.mark.slow
def test_backbone_transform_and_hook_of_a_users_own_file(repo_root, shapes_dir, tmp_path):
    (tmp_path / 'my_detector.py').write_text(OWN_CODE)
    (tmp_path / 'mine.py').write_text(OWN_CONFIG.format(base=repo_root / CONFIG))
    done = subprocess.run([sys.executable, str(repo_root / 'tools/train.py'), 'mine.py', '--no-validate', '--device',
                           'cpu', *options(shapes_dir)], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == '', done.stderr
    assert 'SHOUT 3' in done.stdout  # 12 images, 4 at a time
    state = load_checkpoint(tmp_path / 'work_dirs/mine/epoch_1.pth')['state_dict']
    assert state['backbone.convs.3.weight'].shape == (8, 8, 3, 3)
