"""Write a detector as an ONNX file that runs without boxdet, from the image to boxes, scores, labels and masks.

    python tools/export.py CONFIG CHECKPOINT OUT.onnx
    python tools/export.py CONFIG CHECKPOINT OUT.onnx --shape 800 1344 --batch 1
    python tools/export.py CONFIG CHECKPOINT OUT.onnx --verify images/*.jpg
    python tools/export.py CONFIG CHECKPOINT OUT.pt2

Without --shape and --batch images of any size and number are taken. --verify runs the file with onnxruntime and
compares it with the detector: the exit status is 1 where less than 99 of 100 detections are equal (box and keypoints
0.05 pixel, score 5e-4, mask IoU 0.995; in fp16 1 pixel, 0.02, 0.95). An OUT that ends in .pt2 is for torch.export.load.
See docs/export.md.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Everything heavier is imported in main.
import boxdet
from boxdet.errors import CommandParser, ConfigError, DataError, run_command

WANTED = 0.99


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('out', help='the .onnx or .pt2 file to write')
    size = parser.add_mutually_exclusive_group()
    size.add_argument('--shape', type=int, nargs=2, metavar=('HEIGHT', 'WIDTH'), help='one size of the images')
    size.add_argument('--dynamic', dest='shape', action='store_const', const=None, help='any size (the default)')
    parser.add_argument('--batch', type=int, metavar='N', help='one number of images (default: any)')
    parser.add_argument('--precision', choices=('fp32', 'fp16'), default='fp32',
                        help='of weights and features; boxes and scores are float32 (default: %(default)s)')
    parser.add_argument('--masks', choices=('logits', 'paste'), default='logits',
                        help="each box's small mask, or masks of the whole image (default: %(default)s)")
    parser.add_argument('--exact', action='store_true',
                        help='results of all images one after the other, and not filled up to one number')
    parser.add_argument('--float-input', action='store_true', help='images are float32 in [0, 255], and not uint8')
    parser.add_argument('--compile', action='store_true',
                        help='compile a .pt2 with AOTInductor for this processor: needs a C++ compiler')
    parser.add_argument('--with-runtime', action='store_true',
                        help='copy runtime.py beside the file: it detects with numpy and onnxruntime alone')
    parser.add_argument('--verify', nargs='+', metavar='IMAGE', help='compare with the detector on these')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if args.batch is not None and args.batch < 1:
        parser.error(f'--batch {args.batch}: it is 1 at least')
    if args.shape and min(args.shape) < 1:
        parser.error(f'--shape {args.shape[0]} {args.shape[1]}: sides are 1 at least')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    ending = Path(args.out).suffix
    if ending not in ('.onnx', '.pt2'):
        raise ConfigError(f"{args.out} ends in neither '.onnx' nor '.pt2'")
    if (args.verify or args.with_runtime) and ending != '.onnx':
        raise ConfigError(f"{'--verify' if args.verify else '--with-runtime'} is for .onnx files only")
    for image in args.verify or ():  # the export takes minutes
        if not Path(image).is_file():
            raise DataError(f'--verify: no file {image}')
    if args.compile and ending != '.pt2':
        raise ConfigError('--compile is for .pt2 files only')
    from boxdet.apis.export import category_ids, export_onnx, export_program, verify_onnx
    from boxdet.apis.inference import init_detector
    from boxdet.export.parity import TOLERANCES, Parity
    from boxdet.files.writing import write_whole
    model = init_detector(args.config, args.checkpoint, device='cpu', cfg_options=args.cfg_options)
    print(f'exporting to {args.out} (some minutes for a large detector)', flush=True)
    options = dict(shape=args.shape and tuple(args.shape), batch=args.batch, precision=args.precision,
                   masks=args.masks, exact=args.exact, float_input=args.float_input)
    if ending == '.pt2':
        export_program(model, args.out, compiled=args.compile, **options)
    else:
        export_onnx(model, args.out, **options)
        if not category_ids(model):
            print(f'category ids in predictions: 1 to {len(model.CLASSES or ())}; neither config nor checkpoint tells '
                  'others')
    print(f'wrote {args.out} ({Path(args.out).stat().st_size / 1e6:.1f} MB)')
    if args.with_runtime:
        beside = Path(args.out).with_name('runtime.py')
        write_whole(beside, (Path(boxdet.__file__).parent / 'runtime.py').read_bytes())
        print(f'wrote {beside}: python {beside} {args.out} IMAGE ...')
    if not args.verify:
        return 0
    box, score, mask_iou = tolerance = TOLERANCES[args.precision]
    parity = verify_onnx(model, args.out, args.verify, parity=Parity(*tolerance))
    print(f'{parity}; box {box:g} pixel, score {score:g}, mask IoU {mask_iou:g}')
    return 0 if parity.share >= WANTED else 1


if __name__ == '__main__':
    run_command(main)
