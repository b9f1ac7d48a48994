"""The ways through the package, followed while they run: few files, and no two that call each other.

One goes from the annotation file to the loss, the other from an image to its result.
"""

import sys
from pathlib import Path

import torch

from boxdet.apis import inference_detector, init_detector
from boxdet.datasets import build_dataloader, build_dataset
from boxdet.engine.config import load_config
from boxdet.engine.loss_watch import total_loss
from boxdet.models import build_detector

PACKAGE = str(Path(__file__).resolve().parent.parent / 'boxdet') + '/'
# HOUSE: about 30 files; what the peers need for the walk of a training is 39 to 73.
MOST_FILES, MOST_FILES_OF_A_RESULT = 34, 29  # the last one is winograd.py, which the mask head takes


class Walk:
    """Which files of boxdet are entered, and from which file of boxdet each call came."""

    def __init__(self):
        self.files, self.calls = set(), set()

    def __call__(self, frame, event, _):
        here = frame.f_code.co_filename
        if event != 'call' or not here.startswith(PACKAGE):
            return
        self.files.add(here.removeprefix(PACKAGE))
        caller = frame.f_back
        while caller is not None and not caller.f_code.co_filename.startswith(PACKAGE):
            caller = caller.f_back
        if caller is not None and caller.f_code.co_filename != here:
            self.calls.add((caller.f_code.co_filename.removeprefix(PACKAGE), here.removeprefix(PACKAGE)))


def followed(work) -> Walk:
    """The walk of ``work()``."""
    walk, before = Walk(), sys.getprofile()
    sys.setprofile(walk)
    try:
        work()
    finally:
        sys.setprofile(before)
    return walk


def pairs(walk: Walk) -> list[tuple[str, ...]]:
    """The pairs of files that call each other."""
    return sorted({tuple(sorted(call)) for call in walk.calls if call[::-1] in walk.calls})


def test_mask_rcnn_training_walks_one_way(repo_root, shapes_dir):
    cfg = load_config(repo_root / 'configs/shapes/mask_rcnn_r18_fpn_shapes.py', {
        'data.train.ann_file': str(shapes_dir / 'annotations/instances_train.json'),
        'data.train.img_prefix': str(shapes_dir / 'train')})
    torch.manual_seed(0)
    model = build_detector(cfg.model).train()
    batches = iter(build_dataloader(build_dataset(cfg.data.train), 2, 0, seed=0))
    walk = followed(lambda: total_loss(model(next(batches).to('cpu'), mode='loss'))[0].backward())
    # It saw both ends of the way.
    assert {'datasets/coco.py', 'datasets/collate.py', 'structures/masks.py', 'models/mask_head.py'} <= walk.files
    assert pairs(walk) == []
    assert len(walk.files) <= MOST_FILES, sorted(walk.files)


def test_an_image_walks_one_way_to_its_result(repo_root, shapes_dir):
    options = {'model.backbone.init_cfg': None, 'model.test_cfg.rcnn.score_thr': 0.0}
    model = init_detector(repo_root / 'configs/shapes/mask_rcnn_r18_fpn_shapes.py', cfg_options=options, device='cpu')
    image, results = min((shapes_dir / 'val').iterdir()), []
    walk = followed(lambda: results.append(inference_detector(model, str(image))))
    assert len(results[0]) and results[0].masks_bitmaps().any()
    assert {'apis/inference.py', 'models/mask_head.py', 'geometry/masks.py'} <= walk.files
    assert pairs(walk) == []
    assert len(walk.files) <= MOST_FILES_OF_A_RESULT, sorted(walk.files)
