"""What every test may ask for: the data and golden numbers beside the checkout, and a tiny shapes set.

The shared folder is looked for in $BOXDET_SHARED, next to the checkout and inside it; tests that need it are skipped
where it is absent.
"""

import os

os.environ.setdefault('OMP_NUM_THREADS', '1')  # before torch is imported: tests run side by side on few cores
os.environ.setdefault('MPLBACKEND', 'Agg')

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
# Tools that a test starts are to import this checkout, whatever is installed.
os.environ['PYTHONPATH'] = os.pathsep.join(filter(None, [str(ROOT), os.environ.get('PYTHONPATH')]))


def _shared(name: str) -> Path:
    candidates = [ROOT.parent / 'shared', ROOT / 'shared']
    if os.environ.get('BOXDET_SHARED'):
        candidates.insert(0, Path(os.environ['BOXDET_SHARED']))
    for folder in candidates:
        if (folder / name).is_dir():
            return folder / name
    pytest.skip(f"no shared/{name} beside the checkout (set BOXDET_SHARED to the folder that holds '{name}')")


@pytest.fixture(scope='session')
def need():
    """``need('ip', package='iproute2', root=True)``: go on only where these programs are installed.

    Else the test is skipped; with BOXDET_CI=1, where everything is installed (.ci/run), it fails.
    """
    def check(*programs: str, package: str, root: bool = False) -> None:
        where = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
        missing = [name for name in programs if shutil.which(name, path=where) is None]
        problem = 'needs root' if root and os.geteuid() else missing and (
            f"no {', '.join(missing)} here: apt-get install {package}")
        if problem and os.environ.get('BOXDET_CI') == '1':
            pytest.fail(f'{problem} (BOXDET_CI=1 allows no skip)')
        if problem:
            pytest.skip(problem)
    return check


@pytest.fixture(scope='session')
def repo_root() -> Path:
    """The checkout, where configs/ and tools/ are."""
    return ROOT


@pytest.fixture(scope='session')
def shared_data() -> Path:
    """Real images with annotations: coco_mini, bccd, fruits_nuts."""
    return _shared('data')


@pytest.fixture(scope='session')
def reference() -> Path:
    """Golden numbers of the peers: mmdet/*.npz, state_dict_keys.json, fill.py, ..."""
    return _shared('reference')


@pytest.fixture(scope='session')
def shapes_dir(tmp_path_factory) -> Path:
    """A tiny COCO-format shapes set (train and val splits) that tools/make_shapes.py draws in about a second."""
    out = tmp_path_factory.mktemp('shapes') / 'shapes'
    command = [sys.executable, str(ROOT / 'tools/make_shapes.py'), '--out', str(out), '--train', '12', '--val', '6']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f'{" ".join(command)}\n{done.stdout}{done.stderr}'
    return out


_TINY_CONFIG = '''
norm = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
model = dict(
    type='MaskRCNN',
    backbone=dict(type='ResNet', depth=18, num_stages=4, out_indices=(0, 1, 2, 3), frozen_stages=1,
                  norm_cfg=dict(type='BN', requires_grad=True), norm_eval=True, style='pytorch',
                  init_cfg=dict(type='Pretrained', checkpoint='torchvision://resnet18')),
    neck=dict(type='FPN', in_channels=[64, 128, 256, 512], out_channels=32, num_outs=5),
    rpn_head=dict(
        type='RPNHead', in_channels=32, feat_channels=32,
        anchor_generator=dict(type='AnchorGenerator', scales=[4], ratios=[0.5, 1.0, 2.0], strides=[4, 8, 16, 32, 64]),
        bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[1., 1., 1., 1.]),
        loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
    roi_head=dict(
        type='StandardRoIHead',
        bbox_roi_extractor=dict(type='SingleRoIExtractor', out_channels=32, featmap_strides=[4, 8, 16, 32],
                                roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=0)),
        bbox_head=dict(
            type='Shared2FCBBoxHead', in_channels=32, fc_out_channels=64, roi_feat_size=7, num_classes=3,
            bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=[0., 0., 0., 0.], target_stds=[.1, .1, .2, .2]),
            reg_class_agnostic=False,
            loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=False, loss_weight=1.0),
            loss_bbox=dict(type='L1Loss', loss_weight=1.0)),
        mask_roi_extractor=dict(type='SingleRoIExtractor', out_channels=32, featmap_strides=[4, 8, 16, 32],
                                roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
        mask_head=dict(type='FCNMaskHead', num_convs=1, in_channels=32, conv_out_channels=32, num_classes=3,
                       loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0))),
    test_cfg=dict(
        rpn=dict(nms_pre=200, max_per_img=50, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.05, nms=dict(type='nms', iou_threshold=0.5), max_per_img=12, mask_thr_binary=0.5)))
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='MultiScaleFlipAug', img_scale=(160, 128), flip=False, transforms=[
        dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='Normalize', **norm),
        dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img'])])]
data = dict(samples_per_gpu=2, workers_per_gpu=0, test=dict(
    type='CocoDataset', ann_file='FOLDER/ann.json', img_prefix='FOLDER/images/', classes=('disc', 'bar', 'cross'),
    pipeline=test_pipeline))
evaluation = dict(interval=1, metric=['bbox'])
'''


@pytest.fixture(scope='session')
def tiny_detector(tmp_path_factory):
    """A small Mask R-CNN R18-FPN with random weights and four annotated images for it.

    Attributes: ``folder, config, checkpoint, ann_file, images`` (paths) and ``classes``. Tests must not write there.
    """
    import json
    from types import SimpleNamespace

    import cv2
    import numpy as np
    import torch

    folder = tmp_path_factory.mktemp('tiny_detector')
    (folder / 'images/deep').mkdir(parents=True)
    rng, images, annotations, paths = np.random.default_rng(0), [], [], []
    for k, (name, (height, width)) in enumerate(
            [('a.png', (96, 128)), ('deep/b.png', (128, 96)), ('c.jpg', (96, 128)), ('d.png', (60, 100))]):
        image = rng.integers(0, 255, (height // 8, width // 8, 3), dtype=np.uint8)
        image = cv2.resize(image, (width, height), interpolation=cv2.INTER_CUBIC)
        for j in range(2):
            x, y = int(rng.integers(0, width - 40)), int(rng.integers(0, height - 30))
            cv2.rectangle(image, (x, y), (x + 40, y + 30), rng.integers(0, 255, 3).tolist(), -1)
            annotations.append(dict(id=len(annotations) + 1, image_id=10 + k, category_id=(5, 7, 9)[(k + j) % 3],
                                    bbox=[x, y, 40, 30], area=1200, iscrowd=0,
                                    segmentation=[[x, y, x + 40, y, x + 40, y + 30, x, y + 30]]))
        cv2.imwrite(str(folder / 'images' / name), image)
        images.append(dict(id=10 + k, file_name=name, height=height, width=width))
        paths.append(folder / 'images' / name)
    categories = [dict(id=i, name=n) for i, n in zip((5, 7, 9), ('disc', 'bar', 'cross'))]
    (folder / 'ann.json').write_text(json.dumps(dict(images=images, annotations=annotations, categories=categories)))
    (folder / 'config.py').write_text(_TINY_CONFIG.replace('FOLDER', str(folder)))

    from boxdet.apis import init_detector
    from boxdet.checkpoints.io import save_checkpoint

    torch.manual_seed(0)
    model = init_detector(folder / 'config.py', device='cpu')
    save_checkpoint(dict(meta=dict(CLASSES=('disc', 'bar', 'cross')), state_dict=model.state_dict()),
                    folder / 'tiny.pth')
    return SimpleNamespace(folder=folder, config=folder / 'config.py', checkpoint=folder / 'tiny.pth', images=paths,
                           ann_file=folder / 'ann.json', classes=('disc', 'bar', 'cross'))


@pytest.fixture
def server():
    """Serves files from the loopback, see tests/file_server.py."""
    import threading

    from tests.file_server import Server
    made = Server()
    threading.Thread(target=made.serve_forever, daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture(scope='session')
def cityscapes_dir(tmp_path_factory) -> Path:
    """A small folder in Cityscapes' shape, drawn and converted: leftImg8bit, gtFine, annotations. Read only."""
    from tests import cityscapes_folder
    return cityscapes_folder.draw_and_convert(tmp_path_factory.mktemp('cityscapes'))
