"""Detect on one image and show or save the picture.

    python demo/image_demo.py street.jpg configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py mask_rcnn.pth \\
        --device cpu --out-file result.jpg
"""
from __future__ import annotations

import argparse
import asyncio
import sys
import time
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.errors import run_command  # noqa: E402


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description='Detect on one image and show or save the picture.')
    parser.add_argument('img', help='image file')
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help='checkpoint file or address')
    parser.add_argument('--out-file', help='write the picture here; without it a window opens')
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


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis import inference_detector, init_detector
    from boxdet.datasets.files import decode_image, read_bytes
    from boxdet.visualization.palette import class_colors

    image = decode_image(read_bytes(args.img), args.img)  # says what is wrong with a file, as training does
    model = init_detector(args.config, args.checkpoint, device=args.device)
    if args.palette == 'coco':
        from boxdet.datasets.coco import CocoDataset
        model.PALETTE = CocoDataset.PALETTE
    else:
        model.PALETTE = class_colors(args.palette, len(model.CLASSES or ()) or 1)
    start = time.perf_counter()
    result = asyncio.run(detect_async(model, image)) if args.async_test else inference_detector(model, image)
    seconds = time.perf_counter() - start
    shown = result[result.scores > args.score_thr]
    print(f'{len(shown)} objects above {args.score_thr:g} in {seconds:.2f} s')
    model.show_result(image, shown, score_thr=args.score_thr, show=args.out_file is None, win_name=args.img,
                      out_file=args.out_file)
    if args.out_file:
        print(f'picture: {args.out_file}')


async def detect_async(model, image):
    """One request of a service, on a stream of its own where the model is on a GPU."""
    import torch

    from boxdet.apis import async_inference_detector, concurrent

    device = next(model.parameters()).device
    streams = asyncio.Queue()
    streams.put_nowait(torch.cuda.Stream(device) if device.type == 'cuda' else None)
    async with concurrent(streams):
        return await async_inference_detector(model, image)


if __name__ == '__main__':
    run_command(main)
