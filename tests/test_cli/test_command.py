"""The command `boxdet`: its programs are the files of tools/ and demo/, and nothing heavy comes before their work."""
import json
import os
import subprocess
import sys

import pytest

from boxdet.cli.command import as_commands, summary
from boxdet.cli.programs import PROGRAMS
from boxdet.engine.config import load_config, named_config
from boxdet.errors import EXTRAS, ConfigError

# What takes long to import.
# make_shapes, which is drawing from end to end, is 0.2 s of OpenCV.
HEAVY = ('torch', 'numpy', 'mmengine', 'mmcv', 'cv2', 'matplotlib', 'pycocotools')


def boxdet(*arguments, **options):
    return subprocess.run([sys.executable, '-m', 'boxdet', *map(str, arguments)], capture_output=True, text=True,
                          **options)


def test_every_tool_is_a_command(repo_root):
    inner = {'tools/torchrun.py', 'tools/srun.sh', 'tools/analysis_tools/model_zoo.py', 'demo/draw_media.py'}
    files = {path.relative_to(repo_root).as_posix() for folder in ('tools', 'demo')
             for ending in ('py', 'sh') for path in (repo_root / folder).rglob(f'*.{ending}')}
    assert set(PROGRAMS.values()) == files - inner
    assert all(len(summary(repo_root / path)) > 15 for path in PROGRAMS.values())


def test_help_imports_nothing_heavy():
    code = f'''
import io, sys, contextlib
from boxdet.cli.command import PROGRAMS, help_text, run_program
help_text()
for name, path in PROGRAMS.items():
    if path.endswith('.py') and name != 'make_shapes':
        said = io.StringIO()
        with contextlib.redirect_stdout(said):
            try:
                run_program(name, ['--help'])
            except SystemExit as end:
                assert end.code in (0, None), (name, end.code)
        assert 'usage: boxdet ' + name in said.getvalue(), said.getvalue()
        print(name, sorted(set({HEAVY!r}) & set(sys.modules)))
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [f'{name} []' for name, path in PROGRAMS.items()
                                        if path.endswith('.py') and name != 'make_shapes']


def test_list_and_version():
    listed = boxdet('--help').stdout
    assert all(f'\n  {name} ' in listed for name in PROGRAMS) and boxdet().stdout == listed
    assert boxdet('--version').stdout.startswith('boxdet 0.')


@pytest.mark.parametrize('wrong, told', [
    (['trian'], "error: there is no command 'trian'; did you mean 'train'? (boxdet --help lists all)\n"),
    (['train', 'x.py', '--work_dri', 'y'], "error: unrecognized arguments: --work_dri y; did you mean '--work-dir'?\n"),
    (['train', 'x.py', '--gpus', '8'], 'error: --gpus 8: one process uses one GPU; start boxdet dist_train CONFIG 8\n'),
    (['completion', 'fisch'], "error: boxdet completion takes the name of a shell, bash, zsh, fish, not 'fisch'; did "
                              "you mean 'fish'?\n")])
def test_a_wrong_word_is_one_line(wrong, told):
    done = boxdet(*wrong)
    assert (done.returncode, done.stderr, done.stdout) == (2, told, '')


def test_it_is_the_same_code(repo_root, tmp_path):
    config = repo_root / 'configs/shapes/faster_rcnn_r18_fpn_shapes.py'
    arguments = [config, '--explain', 'model.roi_head.bbox_head.num_classes']
    tool = subprocess.run([sys.executable, repo_root / 'tools/misc/print_config.py', *arguments], capture_output=True,
                          text=True, cwd=tmp_path)
    command = boxdet('config', *arguments, cwd=tmp_path)
    assert tool.stdout == command.stdout and 'num_classes = 6' in command.stdout and command.returncode == 0


def test_a_shell_script_runs_with_this_python(tmp_path):
    done = boxdet('dist-train', 'faster_rcnn_r18_fpn_shapes', '1', '--work-dir', 'x', '--resume', '--load-from', 'y',
                  cwd=tmp_path, env={**os.environ, 'PATH': '/usr/bin:/bin'})
    assert done.returncode == 2 and done.stderr.startswith('error: --resume-from, --auto-resume, --resume and ')


def test_texts_name_commands():
    text = 'start tools/dist_train.sh C 8, or python tools/train.py C; tools/torchrun.py and my/tools.py stay'
    assert as_commands(text) == 'start boxdet dist_train C 8, or boxdet train C; tools/torchrun.py and my/tools.py stay'


def test_a_config_by_name(repo_root, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = 'faster_rcnn_r50_fpn_1x_coco'
    assert named_config(name) == repo_root / f'configs/faster_rcnn/{name}.py'
    (tmp_path / 'configs/mine').mkdir(parents=True)
    (tmp_path / f'configs/mine/{name}.py').write_text('lr = 3\n')
    (tmp_path / 'configs/other.py').write_text('lr = 4\n')
    assert load_config(name).lr == 3 and load_config('other').lr == 4  # ./configs comes first
    with pytest.raises(ConfigError, match="^no config is called 'faster_rcnn_r50_fpn_1x_cocoo'; near it are "
                                          'faster_rcnn_r50_fpn_1x_coco, [a-z0-9_]+, [a-z0-9_]+$'):
        load_config(name + 'o')
    with pytest.raises(ConfigError, match="no config is called 'coco_detection'"):  # a part of configs, and none itself
        load_config('coco_detection')


# A sitecustomize that hides what no extra installed; mmengine brings matplotlib along, which is hidden as well.
HIDE = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec
PathFinder.find_spec = lambda name, *more: None if name.partition('.')[0] in {hidden!r} else found(name, *more)
"""


@pytest.mark.slow
def test_a_minimal_install_trains_on_data_of_ones_own_and_detects(repo_root, shapes_dir, tmp_path):
    hidden = {'lvis', 'wandb', 'mlflow', 'albumentations', 'imagecorruptions', 'instaboostfast', *EXTRAS}
    (tmp_path / 'sitecustomize.py').write_text(HIDE.format(hidden=hidden))
    where = dict(cwd=tmp_path, env={**os.environ, 'PYTHONPATH': f'{tmp_path}:{repo_root}'})
    content = json.loads((shapes_dir / 'annotations/instances_train.json').read_text())
    content['categories'] = content['categories'][:3]
    known = {category['id'] for category in content['categories']}
    content['annotations'] = [one for one in content['annotations'] if one['category_id'] in known]
    (tmp_path / 'my.json').write_text(json.dumps(content))
    done = boxdet('train', 'faster_rcnn_r18_fpn_shapes', '--data', 'my.json', '--images', shapes_dir / 'train',
                  '--device', 'cpu', '--cfg-options', 'runner.max_epochs=1', 'data.workers_per_gpu=0',
                  'model.train_cfg.rpn_proposal.max_per_img=50', **where)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / 'work_dirs/faster_rcnn_r18_fpn_shapes'
    log = next(folder.glob('*.log')).read_text()
    assert '--data: num_classes is 3 in model.roi_head.bbox_head' in log
    assert 'the model is evaluated on images that it learns from' in log and 'bbox_mAP' in log
    config, weights = folder / 'faster_rcnn_r18_fpn_shapes.py', folder / 'latest.pth'
    cfg = load_config(config)
    assert cfg.data.val.ann_file == str(tmp_path / 'my.json') and len(cfg.data.train.classes) == 3
    done = boxdet('infer', shapes_dir / 'val', config, weights, '--device', 'cpu', '--out', 'found.json', **where)
    assert done.returncode == 0 and len(json.loads((tmp_path / 'found.json').read_text())['images']) == 6, done.stderr
    done = boxdet('check', config, **where)
    assert done.stdout.endswith('a training can begin (12 images, 12 to evaluate on)\n'), done.stderr
    # What a feature lacks is a line that names its extra.
    for arguments, extra in [(('export', config, weights, 'out.onnx'), 'export'),
                             (('video', 'x.mp4', config, weights, '--out', 'y.mp4'), 'video')]:
        done = boxdet(*arguments, **where)
        assert done.returncode == 2 and f'boxdet[{extra}]' in done.stderr.splitlines()[-1], done.stderr
