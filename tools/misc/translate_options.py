"""A YAML of Detectron, Detectron.pytorch or maskrcnn-benchmark as a boxdet config, by a table of keys.

python tools/misc/translate_options.py e2e_mask_rcnn_R-50-FPN_1x.yaml --out configs/mine/mask_rcnn.py
python tools/misc/translate_options.py FILE.yaml --base configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py

The config starts from the file of configs/ that has the same architecture and sets what the YAML says. Keys that the
table does not have are listed as comments at its end and on the screen; docs/migrating.md prints the table.
"""
from __future__ import annotations

import argparse
import ast
import contextlib
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

# The checkout also works when it is not installed.
ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT))

from boxdet.errors import CommandParser, ConfigError, run_command  # noqa: E402

# Key of Detectron and Detectron.pytorch: key of boxdet. Rates and lengths go over as they are.
DETECTRON = {
    'SOLVER.BASE_LR': 'optimizer.lr', 'SOLVER.WEIGHT_DECAY': 'optimizer.weight_decay',
    'SOLVER.MOMENTUM': 'optimizer.momentum',
    'SOLVER.GAMMA': 'lr_config.gamma', 'SOLVER.WARM_UP_ITERS': 'lr_config.warmup_iters',
    'SOLVER.WARM_UP_FACTOR': 'lr_config.warmup_ratio', 'SOLVER.MAX_ITER': 'runner.max_iters',
    'SOLVER.STEPS': 'lr_config.step',
    'TRAIN.IMS_PER_BATCH': 'data.samples_per_gpu', 'TRAIN.SNAPSHOT_ITERS': 'checkpoint_config.interval',
    'TRAIN.BATCH_SIZE_PER_IM': 'model.train_cfg.rcnn.sampler.num',
    'TRAIN.FG_FRACTION': 'model.train_cfg.rcnn.sampler.pos_fraction',
    'TRAIN.FG_THRESH': 'model.train_cfg.rcnn.assigner.pos_iou_thr',
    'TRAIN.BG_THRESH_HI': 'model.train_cfg.rcnn.assigner.neg_iou_thr',
    'TRAIN.RPN_BATCH_SIZE_PER_IM': 'model.train_cfg.rpn.sampler.num',
    'TRAIN.RPN_FG_FRACTION': 'model.train_cfg.rpn.sampler.pos_fraction',
    'TRAIN.RPN_POSITIVE_OVERLAP': 'model.train_cfg.rpn.assigner.pos_iou_thr',
    'TRAIN.RPN_NEGATIVE_OVERLAP': 'model.train_cfg.rpn.assigner.neg_iou_thr',
    'TRAIN.RPN_STRADDLE_THRESH': 'model.train_cfg.rpn.allowed_border',
    'TRAIN.RPN_PRE_NMS_TOP_N': 'model.train_cfg.rpn_proposal.nms_pre',
    'TRAIN.RPN_POST_NMS_TOP_N': 'model.train_cfg.rpn_proposal.max_per_img',
    'TRAIN.RPN_NMS_THRESH': 'model.train_cfg.rpn_proposal.nms.iou_threshold',
    'TRAIN.RPN_MIN_SIZE': 'model.train_cfg.rpn_proposal.min_bbox_size',
    'TEST.RPN_PRE_NMS_TOP_N': 'model.test_cfg.rpn.nms_pre', 'TEST.RPN_POST_NMS_TOP_N': 'model.test_cfg.rpn.max_per_img',
    'TEST.RPN_NMS_THRESH': 'model.test_cfg.rpn.nms.iou_threshold',
    'TEST.RPN_MIN_SIZE': 'model.test_cfg.rpn.min_bbox_size',
    'TEST.SCORE_THRESH': 'model.test_cfg.rcnn.score_thr', 'TEST.NMS': 'model.test_cfg.rcnn.nms.iou_threshold',
    'TEST.DETECTIONS_PER_IM': 'model.test_cfg.rcnn.max_per_img', 'FPN.DIM': 'model.neck.out_channels',
    'FAST_RCNN.MLP_HEAD_DIM': 'model.roi_head.bbox_head.fc_out_channels',
    'FAST_RCNN.ROI_XFORM_RESOLUTION': 'model.roi_head.bbox_roi_extractor.roi_layer.output_size',
    'FAST_RCNN.ROI_XFORM_SAMPLING_RATIO': 'model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio',
    'MRCNN.ROI_XFORM_RESOLUTION': 'model.roi_head.mask_roi_extractor.roi_layer.output_size',
    'MRCNN.ROI_XFORM_SAMPLING_RATIO': 'model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio',
    'MRCNN.RESOLUTION': 'model.train_cfg.rcnn.mask_size',
    'MRCNN.DIM_REDUCED': 'model.roi_head.mask_head.conv_out_channels',
    'MRCNN.THRESH_BINARIZE': 'model.test_cfg.rcnn.mask_thr_binary', 'RNG_SEED': 'seed', 'OUTPUT_DIR': 'work_dir',
    'DATA_LOADER.NUM_THREADS': 'data.workers_per_gpu'}
MASKRCNN_BENCHMARK = {
    'SOLVER.BASE_LR': 'optimizer.lr', 'SOLVER.WEIGHT_DECAY': 'optimizer.weight_decay',
    'SOLVER.MOMENTUM': 'optimizer.momentum',
    'SOLVER.GAMMA': 'lr_config.gamma', 'SOLVER.WARMUP_ITERS': 'lr_config.warmup_iters',
    'SOLVER.WARMUP_FACTOR': 'lr_config.warmup_ratio', 'SOLVER.MAX_ITER': 'runner.max_iters',
    'SOLVER.STEPS': 'lr_config.step', 'SOLVER.CHECKPOINT_PERIOD': 'checkpoint_config.interval',
    'MODEL.RPN.FG_IOU_THRESHOLD': 'model.train_cfg.rpn.assigner.pos_iou_thr',
    'MODEL.RPN.BG_IOU_THRESHOLD': 'model.train_cfg.rpn.assigner.neg_iou_thr',
    'MODEL.RPN.BATCH_SIZE_PER_IMAGE': 'model.train_cfg.rpn.sampler.num',
    'MODEL.RPN.POSITIVE_FRACTION': 'model.train_cfg.rpn.sampler.pos_fraction',
    'MODEL.RPN.STRADDLE_THRESH': 'model.train_cfg.rpn.allowed_border',
    'MODEL.RPN.PRE_NMS_TOP_N_TRAIN': 'model.train_cfg.rpn_proposal.nms_pre',
    'MODEL.RPN.POST_NMS_TOP_N_TRAIN': 'model.train_cfg.rpn_proposal.max_per_img',
    'MODEL.RPN.PRE_NMS_TOP_N_TEST': 'model.test_cfg.rpn.nms_pre',
    'MODEL.RPN.POST_NMS_TOP_N_TEST': 'model.test_cfg.rpn.max_per_img',
    'MODEL.RPN.NMS_THRESH': 'model.test_cfg.rpn.nms.iou_threshold',
    'MODEL.RPN.MIN_SIZE': 'model.test_cfg.rpn.min_bbox_size',
    'MODEL.RPN.ASPECT_RATIOS': 'model.rpn_head.anchor_generator.ratios',
    'MODEL.RPN.ANCHOR_STRIDE': 'model.rpn_head.anchor_generator.strides',
    'MODEL.ROI_HEADS.FG_IOU_THRESHOLD': 'model.train_cfg.rcnn.assigner.pos_iou_thr',
    'MODEL.ROI_HEADS.BG_IOU_THRESHOLD': 'model.train_cfg.rcnn.assigner.neg_iou_thr',
    'MODEL.ROI_HEADS.BATCH_SIZE_PER_IMAGE': 'model.train_cfg.rcnn.sampler.num',
    'MODEL.ROI_HEADS.POSITIVE_FRACTION': 'model.train_cfg.rcnn.sampler.pos_fraction',
    'MODEL.ROI_HEADS.SCORE_THRESH': 'model.test_cfg.rcnn.score_thr',
    'MODEL.ROI_HEADS.NMS': 'model.test_cfg.rcnn.nms.iou_threshold',
    'MODEL.ROI_HEADS.DETECTIONS_PER_IMG': 'model.test_cfg.rcnn.max_per_img',
    'MODEL.ROI_BOX_HEAD.POOLER_RESOLUTION': 'model.roi_head.bbox_roi_extractor.roi_layer.output_size',
    'MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO': 'model.roi_head.bbox_roi_extractor.roi_layer.sampling_ratio',
    'MODEL.ROI_BOX_HEAD.MLP_HEAD_DIM': 'model.roi_head.bbox_head.fc_out_channels',
    'MODEL.ROI_MASK_HEAD.POOLER_RESOLUTION': 'model.roi_head.mask_roi_extractor.roi_layer.output_size',
    'MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO': 'model.roi_head.mask_roi_extractor.roi_layer.sampling_ratio',
    'MODEL.ROI_MASK_HEAD.RESOLUTION': 'model.train_cfg.rcnn.mask_size',
    'DATALOADER.NUM_WORKERS': 'data.workers_per_gpu',
    'OUTPUT_DIR': 'work_dir'}
CLASSES = {'MODEL.NUM_CLASSES': None, 'MODEL.ROI_BOX_HEAD.NUM_CLASSES': None}
# Read when the base config is chosen.
ARCHITECTURE = ('MODEL.TYPE', 'MODEL.CONV_BODY', 'MODEL.FASTER_RCNN', 'MODEL.MASK_ON', 'MODEL.META_ARCHITECTURE',
                'MODEL.BACKBONE.CONV_BODY', 'MODEL.RPN.USE_FPN', 'FPN.FPN_ON', 'FPN.MULTILEVEL_ROIS',
                'FPN.MULTILEVEL_RPN',
                'MODEL.RESNETS.BACKBONE_OUT_CHANNELS')


def main() -> None:
    """Write the config of a YAML."""
    parser = CommandParser(description=__doc__.partition('\n\n')[0], epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('file', help='the YAML')
    parser.add_argument('--base', help='the config to start from (default: of the same architecture)')
    parser.add_argument('--out', help='write the config there (default: print it)')
    args = parser.parse_args()
    text, left = translate(args.file, args.base, Path(args.out).parent if args.out else Path())
    if args.out:
        from boxdet.files.writing import write_whole
        write_whole(args.out, text)
        print(f'{args.out}: written')
    else:
        print(text)
    if left:
        print(f'{len(left)} of the options have no key here: {", ".join(left)}', file=sys.stderr)


def translate(path: str, base: str | None = None, folder: Path | None = None) -> tuple[str, list[str]]:
    """The text of a config, and the options that could not be turned.

    Args:
        path: a YAML file.
        base: the config to start from; None for that of the same architecture.
        folder: where the config will lie; its ``_base_`` is relative to it. None: an absolute path.

    Raises:
        ConfigError: no YAML, or no config of that architecture.
    """
    options = dict(flat(read(path)))
    ours = 'MODEL.META_ARCHITECTURE' in options or 'MODEL.BACKBONE.CONV_BODY' in options
    table = MASKRCNN_BENCHMARK if ours else DETECTRON
    base = base or base_of(options)
    base = base if folder is None else os.path.relpath(base, folder)
    values, left = {}, []
    for key, value in options.items():
        if key in table:
            values[table[key]] = value
        elif key in CLASSES:
            values['model.roi_head.bbox_head.num_classes'] = int(value) - 1  # theirs count the background
            if options.get('MODEL.MASK_ON'):
                values['model.roi_head.mask_head.num_classes'] = int(value) - 1
        elif key not in ARCHITECTURE:
            left.append(key)
    steps = values.get('lr_config.step')
    if isinstance(steps, (list, tuple)):
        values['lr_config.step'] = [int(step) for step in steps if int(step) > 0]  # Detectron's begin with 0
    if 'runner.max_iters' in values:
        values.update({'runner.type': 'IterBasedRunner', 'runner._delete_': True, 'checkpoint_config.by_epoch': False})
        values.setdefault('checkpoint_config.interval', 5000)
        values['evaluation.interval'] = values['checkpoint_config.interval']
    if 'model.train_cfg.rcnn.assigner.pos_iou_thr' in values:
        values['model.train_cfg.rcnn.assigner.min_pos_iou'] = values['model.train_cfg.rcnn.assigner.pos_iou_thr']
    lines = [f'# {Path(path).name}, by tools/misc/translate_options.py', f'_base_ = {base!r}']
    lines += [f'{key} = {literal(value)}' for key, value in nested(values).items()]
    lines += [f'# not turned: {key} = {options[key]!r}' for key in left]
    return '\n'.join(lines) + '\n', left


def read(path: str) -> Any:
    """The content of a YAML.

    Raises:
        ConfigError: a file that is not there or no YAML of sections.
    """
    import yaml
    try:
        content = yaml.safe_load(Path(path).read_text(encoding='utf-8'))
    except OSError as error:
        raise ConfigError(f'{path}: {error.strerror}') from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f'{path}: no YAML: {" ".join(str(error).split())}') from error
    if not isinstance(content, Mapping) or not any(str(key).isupper() for key in content):
        raise ConfigError(f'{path}: no options of Detectron, Detectron.pytorch or maskrcnn-benchmark')
    return content


def flat(value: Mapping[str, Any], path: str = '') -> Iterator[tuple[str, Any]]:
    """Every option with its dotted key; texts such as '(7, 14)' as what they mean."""
    for key, item in value.items():
        here = f'{path}.{key}' if path else str(key)
        if isinstance(item, Mapping):
            yield from flat(item, here)
            continue
        if isinstance(item, str):
            with contextlib.suppress(ValueError, SyntaxError):
                item = ast.literal_eval(item)
        yield here, item


def base_of(options: Mapping[str, Any]) -> str:
    """The config with the architecture that the options name.

    Raises:
        ConfigError: there is none.
    """
    body = str(options.get('MODEL.BACKBONE.CONV_BODY') or options.get('MODEL.CONV_BODY') or '')
    body = body.upper().replace('_', '-')
    depth = next((depth for depth in ('152', '101', '50') if depth in body), None)
    if depth is None or 'FPN' not in body:
        raise ConfigError(f"no config has the body '{body}': choose one of configs/ with --base")
    kind = 'mask_rcnn' if options.get('MODEL.MASK_ON') else 'faster_rcnn'
    found = ROOT / 'configs' / kind / f'{kind}_r{depth}_fpn_1x_coco.py'
    if not found.exists():
        raise ConfigError(f'there is no {found.relative_to(ROOT)}: choose one of configs/ with --base')
    return str(found)


def nested(values: Mapping[str, Any]) -> dict[str, Any]:
    """Dotted keys as dicts."""
    whole: dict[str, Any] = {}
    for key, value in values.items():
        *parents, last = key.split('.')
        place = whole
        for name in parents:
            place = place.setdefault(name, {})
        place[last] = list(value) if isinstance(value, tuple) else value
    return whole


def literal(value: Any) -> str:
    """Python for a value of a config."""
    if isinstance(value, Mapping):
        return f"dict({', '.join(f'{key}={literal(item)}' for key, item in value.items())})"
    return repr(value)


if __name__ == '__main__':
    run_command(main)
