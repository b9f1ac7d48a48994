"""The import hook, in processes of its own: the names it brings stay with the process."""
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(code: str, *words: str, cwd=None) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, '-W', 'ignore', *(words or ('-c', code))], capture_output=True, text=True,
                          cwd=cwd, env={**os.environ, 'PYTHONPATH': str(ROOT)})


NAMES = """
from mmdet.core import (multi_apply, bbox2roi, bbox2result, bbox_overlaps, build_assigner, build_sampler, EvalHook,
    DistEvalHook, bbox_xyxy_to_cxcywh, reduce_mean, eval_map, encode_mask_results, get_classes, AssignResult,
    SamplingResult, BitmapMasks, PolygonMasks, multiclass_nms, imshow_det_bboxes)
from mmdet.core.bbox.builder import BBOX_ASSIGNERS
from mmdet.core.bbox.samplers.random_sampler import RandomSampler
from mmdet.models import TwoStageDetector, BaseDetector, DETECTORS, HEADS, build_detector
from mmdet.models.roi_heads import StandardRoIHead, CascadeRoIHead, BaseRoIHead
from mmdet.models.roi_heads.bbox_heads.convfc_bbox_head import ConvFCBBoxHead, Shared2FCBBoxHead
from mmdet.models.losses.utils import weight_reduce_loss, weighted_loss
from mmdet.models.builder import BACKBONES
from mmdet.datasets.api_wrappers import COCO
from mmdet.datasets.pipelines import Resize, LoadAnnotations, Compose
from mmdet.datasets.builder import PIPELINES, build_dataset, build_dataloader
from mmdet.utils import collect_env, get_root_logger
from mmdet.apis import init_detector, inference_detector, train_detector, single_gpu_test
from mmcv import Config, ConfigDict, DictAction, imread, imresize, ProgressBar
from mmcv.runner import (load_checkpoint, save_checkpoint, get_dist_info, BaseModule, ModuleList, force_fp32, auto_fp16,
    EvalHook, Hook, HOOKS)
from mmcv.parallel import DataContainer, collate, scatter, MMDataParallel
from mmcv.cnn import ConvModule, build_norm_layer, normal_init, bias_init_with_prob
from mmcv.ops import RoIAlign, nms, batched_nms
from mmcv.utils import print_log, build_from_cfg, Registry
import mmdet, mmcv, mmdet.core, mmcv.parallel.collate, mmdet.models.losses.accuracy
from mmdet.models.losses import accuracy
from mmcv.parallel import collate as same
star = {}
exec('from mmdet.core import *', star)
assert star['build_assigner'] is build_assigner and star['bbox_rescale'] and 'build_runner' not in star
assert same is collate and all(callable(f) for f in (collate, scatter, nms, accuracy))
assert mmdet.__version__ == '2.28.2' and mmcv.Config is Config
assert issubclass(Shared2FCBBoxHead, ConvFCBBoxHead) and HEADS.get('StandardRoIHead') is StandardRoIHead
assert Config(dict(a=dict(b=1))).a.b == 1
"""


def test_the_names_that_plug_ins_import_most():
    done = run('import boxdet.compat\nassert boxdet.compat.install() and boxdet.compat.install()\n' + NAMES)
    assert done.returncode == 0, done.stderr


def test_a_script_runs_as_it_is(tmp_path):
    (tmp_path / 'beside.py').write_text('value = 7\n')
    (tmp_path / 'script.py').write_text(NAMES + 'import sys, beside\nprint(__name__, sys.argv[1:], beside.value)\n')
    done = run('', '-m', 'boxdet.compat', str(tmp_path / 'script.py'), '--config', 'a.py', '-h', cwd=tmp_path)
    assert done.stdout.strip() == "__main__ ['--config', 'a.py', '-h'] 7", done.stderr
    missing = run('', '-m', 'boxdet.compat', 'no.py')
    assert missing.returncode == 2 and missing.stderr.strip() == 'error: no.py: there is no such script'


@pytest.mark.parametrize('line, said', [
    ('from mmdet.core import bbox_overlapz', "did you mean 'bbox_overlaps'"),
    ('from mmdet.models import SingleStageDetector', 'use boxdet.models.detectors.TwoStageDetector or RPN'),
    ('import mmdet.models.rpn_heads', 'nor in mmdetection 2.28'),
    ('from mmdet.core.export import DeployModel', 'use boxdet.export')])
def test_a_name_that_is_not_there_says_what_is(line, said):
    done = run(f'import boxdet.compat; boxdet.compat.install()\n{line}')
    last = done.stderr.strip().splitlines()[-1]
    assert said in last and 'Error: ' in last


ERRORS = """
import numpy as np, torch
from mmdet.core import BitmapMasks, build_assigner
from mmdet.models import build_loss
from mmcv.runner import auto_fp16

def raised(function, *args, **kwargs):
    try:
        function(*args, **kwargs)
    except Exception as error:
        kinds = isinstance(error, AssertionError) and isinstance(error, ValueError), isinstance(error, KeyError)
        return *kinds, str(error)

unknown = raised(build_loss, dict(type='FocalLos'))
assert unknown == (True, True, "unknown model type 'FocalLos'; did you mean 'FocalLoss'?"), unknown
loss = build_loss(dict(type='L1Loss'))
assert raised(loss, torch.zeros(2), None, reduction_override='men')[0]
assert raised(BitmapMasks, [np.zeros((2, 2))], 3, 3)[:2] == (True, False)

class Plain:
    @auto_fp16()
    def run(self, x):
        return x

try:
    Plain().run(1)
except TypeError as error:
    assert 'run of a Plain' in str(error)
else:
    raise SystemExit('no TypeError')
"""


def test_what_code_for_2x_catches_is_raised():
    done = run('import boxdet.compat\nboxdet.compat.install()\n' + ERRORS)
    assert done.returncode == 0, done.stderr


def test_a_real_mmdet_wins_when_asked_for(tmp_path):
    (tmp_path / 'mmdet.py').write_text("__version__ = '9'\n")
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r})\nimport boxdet.compat\n"
    done = run(code + "assert not boxdet.compat.install(prefer_installed=True)\nimport mmdet; print(mmdet.__version__)")
    assert done.stdout.strip() == '9', done.stderr
    done = run(code + "assert boxdet.compat.install()\nimport mmdet; print(mmdet.__version__)")
    assert done.stdout.strip() == '2.28.2', done.stderr
    done = run(code + 'import mmdet\nboxdet.compat.install()')
    assert 'comes before the first import of mmdet' in done.stderr.splitlines()[-1]


def test_boxdet_does_not_know_it():
    code = ('import sys, boxdet, boxdet.apis, boxdet.models, boxdet.datasets, boxdet.engine.config\n'
            "assert not [name for name in sys.modules if name.startswith(('boxdet.compat', 'mmdet'))]")
    assert run(code).returncode == 0
