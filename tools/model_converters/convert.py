#!/usr/bin/env python3
"""Convert weights: of other projects to boxdet's names, or boxdet's to theirs."""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))  # the checkout also works when it is not installed

from boxdet.checkpoints.convert import format_named, formats, recognise
from boxdet.errors import CheckpointError, CommandParser, run_command

EXAMPLES = """
examples:
  a file of torchvision, detectron2, Detectron, Detectron.pytorch, maskrcnn-benchmark or tensorpack, recognised by the
  names of its entries
    python tools/model_converters/convert.py fasterrcnn_resnet50_fpn_coco-258fb6c6.pth fasterrcnn.pth
    python tools/model_converters/convert.py model_final_f10217.pkl mask_rcnn.pth
    python tools/model_converters/convert.py COCO-MaskRCNN-R50FPN2x.npz mask_rcnn.pth
  a model trained here for torchvision's maskrcnn_resnet50_fpn
    python tools/model_converters/convert.py work_dirs/maskrcnn/latest.pth theirs.pth --to torchvision

Conversion is automatic in init_detector, load_from, init_cfg=dict(type='Pretrained', ...) and tools/test.py;
configs/torchvision, detectron2, detectron (also for maskrcnn-benchmark and Detectron.pytorch) and tensorpack hold the
models. The file that is written is a checkpoint of boxdet's; with --to it is a bare state dict, for Detectron a .pkl of
blobs, for tensorpack a .npz.
"""


def parse_args(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description=__doc__, epilog=EXAMPLES,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('source', metavar='SRC',
                        help="the file to convert: .pth, detectron2's or Detectron's .pkl, tensorpack's .npz; or its "
                             "address")
    parser.add_argument('target', metavar='DST', help='the file to write')
    parser.add_argument('--to', metavar='PROJECT', help=f'write the weights for this project: {", ".join(formats())}')
    return parser.parse_args(arguments)


def main() -> None:
    args = parse_args()
    target = format_named(args.to) if args.to else None
    from boxdet.checkpoints.io import load_checkpoint, read_as_written, save_checkpoint
    from boxdet.checkpoints.loading import state_dict_of

    if target is None:
        converted = load_checkpoint(args.source)
        origin = (converted.get('meta') or {}).get('converted_from')
        if origin is None:
            raise CheckpointError(f'{args.source} is not of a project that can be converted ({", ".join(formats())})')
        save_checkpoint(dict(meta=converted['meta'], state_dict=converted['state_dict']), args.target)
        print(f"{args.target}: {len(converted['state_dict'])} entries from {origin}")
        return
    state = state_dict_of(read_as_written(args.source), args.source)
    if recognise(state) is not None or not any(name.startswith('roi_head.') for name in state):
        raise CheckpointError(f'{args.source} is not a two-stage detector of boxdet: --to starts from one')
    try:
        theirs = target.from_boxdet(state)
    except CheckpointError as error:
        raise CheckpointError(f'{args.source}: {error}') from None
    _write(theirs, target, args.target)
    print(f'{args.target}: {len(theirs)} entries for {target.NAME}')


def _write(state: dict, target: ModuleType, path: str) -> None:
    from boxdet.checkpoints.io import save_arrays, save_checkpoint, save_pickle
    ending = {'Detectron': '.pkl', 'tensorpack': '.npz'}.get(target.NAME, '')
    if not path.endswith(ending):
        raise CheckpointError(f'{path}: {target.NAME} reads {ending} files; give the file such a name')
    if ending == '.pkl':
        save_pickle(target.pickled(state), path)
    elif ending == '.npz':
        save_arrays(target.arrays(state), path)
    else:
        save_checkpoint(state, path)


if __name__ == '__main__':
    run_command(main)
