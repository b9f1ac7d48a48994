r"""Detect on images and show or save them.

    python demo/image_demo.py street.jpg configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py mask_rcnn.pth \
        --device cpu --out-file result.jpg
    python demo/image_demo.py 'images/*.jpg' CONFIG CHECKPOINT --out-dir drawn
    python demo/image_demo.py a.jpg b.jpg demo/demo.jpg CONFIG CHECKPOINT

Images that cannot be read are named and left out, and the exit status is then 1 (2 when there is no other).
tools/infer_dir.py writes the detections themselves, too.
"""
from __future__ import annotations

import argparse
import asyncio
import glob
import os
import sys
import time
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.errors import CommandParser, ConfigError, DataError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Detect on images and show or save them.',
                           epilog='In the window, a key shows the next image; q, Esc or closing it ends.')
    parser.add_argument('img', nargs='+', help="image files, folders, or patterns in quotes ('images/*.jpg')")
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'zoo' for the published weights")
    out = parser.add_mutually_exclusive_group()
    out.add_argument('--out-file', help='write the image here: .jpg, .png, ..., or .pdf, with lines and '
                     'text that stay sharp; without it a window opens')
    out.add_argument('--out-dir', metavar='DIR', help='write the images here, under their names')
    parser.add_argument('--device', default='cuda:0', help='cpu or cuda:0, ... (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='draw objects above this score (default: %(default)s)')
    parser.add_argument(
        '--palette', default='vivid',
        help="colours of the classes: vivid, coco, voc, random, or one colour ('#rrggbb', 'green') for "
        'all (default: %(default)s)')
    parser.add_argument('--async-test', action='store_true',
                        help='detect through async_inference_detector, as a service with many requests does')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    from boxdet.datasets.files import read_bytes
    from boxdet.visualization.draw import check_out_file, check_score_thr
    from boxdet.visualization.palette import class_colors

    # Whatever can be wrong without the model is told before it is loaded.
    check_score_thr(args.score_thr)
    class_colors('vivid' if args.palette == 'coco' else args.palette, 1)
    outputs = output_files(args)
    for img, out in outputs.items():
        if out is not None:
            check_out_file(out, endings=('.pdf',))
            if os.path.exists(out) and os.path.samefile(img, out):
                raise ConfigError(f'{out} is the image itself, which would be replaced; give another name')
    if len(outputs) == 1:
        read_bytes(*outputs)
    from boxdet.apis import init_detector

    model = init_detector(args.config, args.checkpoint, device=args.device)
    if args.palette == 'coco':
        from boxdet.datasets.coco import CocoDataset
        model.PALETTE = CocoDataset.PALETTE
    else:
        model.PALETTE = class_colors(args.palette, len(model.CLASSES or ()) or 1)
    unreadable = []
    for img, out in outputs.items():
        try:
            if not draw(model, img, out, args):
                break
        except DataError as error:
            if len(outputs) == 1:
                raise
            unreadable.append(f'left out: {error}')
    for line in unreadable:
        print(line, file=sys.stderr)
    if len(unreadable) == len(outputs):
        return 2
    return 1 if unreadable else 0


def output_files(args: argparse.Namespace) -> dict[str, Path | None]:
    """The images that IMG names, each with the file that its drawing goes to; None for a window.

    Raises:
        DataError: there are none. ConfigError: several, and one file to write.
    """
    found = [images_of(img) for img in args.img]
    images = list(dict.fromkeys(path for paths, _ in found for path in paths))
    roots = [root for _, root in found]
    root = roots[0] if len(roots) == 1 else os.path.commonpath([os.path.abspath(one) for one in roots])
    if args.out_file and len(images) > 1:
        raise ConfigError(f'--out-file {args.out_file}: there are {len(images)} images; give --out-dir DIR')
    if args.out_dir:
        return {path: Path(args.out_dir, os.path.relpath(path, root or '.')) for path in images}
    return {path: Path(args.out_file) if args.out_file else None for path in images}


def images_of(img: str) -> tuple[list[str], str]:
    """The files of a name, a folder or a pattern, and the folder that their names are told from.

    Raises:
        DataError: a pattern that fits nothing.
    """
    if os.path.isdir(img):
        from boxdet.apis.images import list_images
        return [os.path.join(img, name) for name in list_images(img)], img
    if os.path.exists(img) or not glob.has_magic(img):
        return [img], os.path.dirname(img)
    images = sorted(path for path in glob.glob(img, recursive=True) if os.path.isfile(path))
    if not images:
        raise DataError(f'{img}: no file matches this pattern')
    return images, os.path.commonpath([os.path.dirname(path) for path in images])


def draw(model, img: str, out: Path | None, args: argparse.Namespace) -> bool:
    """Detect on one image and write or show it; whether to go on."""
    from boxdet.apis import inference_detector
    from boxdet.visualization.draw import END, show

    start = time.perf_counter()
    result = asyncio.run(detect_async(model, img)) if args.async_test else inference_detector(model, img)
    seconds = time.perf_counter() - start
    print(f'{int((result.scores > args.score_thr).sum())} objects above {args.score_thr:g} in {seconds:.2f} s')
    image = model.show_result(img, result, score_thr=args.score_thr, out_file=out)
    if out is None:
        return show(image, img) not in END
    print(f'image: {out}')
    return True


async def detect_async(model, img: str):
    """One request of a service, on a stream of its own where the model is on a GPU."""
    import torch

    from boxdet.apis import async_inference_detector, concurrent

    device = next(model.parameters()).device
    streams = asyncio.Queue()
    streams.put_nowait(torch.cuda.Stream(device) if device.type == 'cuda' else None)
    async with concurrent(streams):
        return await async_inference_detector(model, img)


if __name__ == '__main__':
    run_command(main)
