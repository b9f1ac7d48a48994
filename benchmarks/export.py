#!/usr/bin/env python
"""Exported detectors beside the detector itself: time and parity of torch, onnxruntime, OpenVINO and .pt2 in one run.

    python benchmarks/export.py images/                                  six small models, drawn weights
    python benchmarks/export.py images/ --models mask c4 --batch 1       some of them
    python benchmarks/export.py images/ --config CONFIG --checkpoint CHECKPOINT --size 1333 800

Each model is exported for images of any size and number. All images are prepared as the config's test pipeline does it,
and every program gets the same batches; a batch of images of different sizes is filled up to the largest. The medians
of whole calls are printed, and how many of the detector's results each program has (label; box 0.05 pixel, score 5e-4,
mask IoU 0.995, keypoints 0.05 pixel; in fp16 1 pixel, 0.02, 0.95). torch's time holds the pasting of masks, which the
exported files leave to the caller. What is not installed is left out, and said.
"""
from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.inference import drawn_weights  # noqa: E402 - the line above finds it

warnings.filterwarnings('ignore')

MODELS = dict(faster='faster_rcnn_r18_fpn', mask='mask_rcnn_r18_fpn', cascade='cascade_mask_rcnn_r18_fpn',
              keypoint='keypoint_rcnn_r18_fpn', c4='faster_rcnn_r18_c4', c4_mask='faster_rcnn_r18_c4')
# What makes the C4 detector a Mask R-CNN: its masks come from the features that its boxes come from.
C4_MASK = {'model.type': 'MaskRCNN', 'model.roi_head.mask_roi_extractor': None, 'model.roi_head.mask_head': dict(
    type='FCNMaskHead', num_convs=0, in_channels=512, conv_out_channels=64, num_classes=6,
    loss_mask=dict(type='CrossEntropyLoss', use_mask=True, loss_weight=1.0)),
    'model.train_cfg.rcnn.mask_size': 8, 'model.test_cfg.rcnn.mask_thr_binary': 0.5}
GAINS = dict(gains={'_cls': 0.5, '_reg': 0.15, 'logits': 2.0})  # results apart from one another
WAYS = ('onnxruntime', 'openvino', 'pt2', 'aot')
Run = Callable[..., list]  # (images, sizes) arrays to the outputs of a graph


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('images', help='folder of images')
    parser.add_argument('--models', nargs='+', default=list(MODELS), choices=MODELS, help='of configs/shapes')
    parser.add_argument('--config', help='another model in their place')
    parser.add_argument('--checkpoint', help='its weights, in the place of drawn ones')
    parser.add_argument('--size', type=int, nargs=2, default=(667, 400), metavar=('LONG', 'SHORT'),
                        help='images are resized to fit in it (default: 667 400)')
    parser.add_argument('--count', type=int, help='so many images at most')
    parser.add_argument('--batch', type=int, nargs='+', default=[1, 4], help='images at a time (default: 1 4)')
    parser.add_argument('--ways', nargs='+', default=list(WAYS[:3]), choices=WAYS,
                        help="aot is the .pt2 compiled by AOTInductor (default: all but that)")
    parser.add_argument('--precision', choices=('fp32', 'fp16'), default='fp32')
    parser.add_argument('--masks', choices=('logits', 'paste'), default='logits')
    parser.add_argument('--exact', action='store_true')
    parser.add_argument('--float-input', action='store_true')
    parser.add_argument('--tolerance', type=float, nargs=3, metavar=('BOX', 'SCORE', 'IOU'),
                        help="of equal detections (default: the precision's of --verify)")
    parser.add_argument('--threads', type=int, default=1, help='CPU threads (default: 1)')
    return parser.parse_args()


def detector(config: str, args: argparse.Namespace, options: dict | None = None):
    """The model, with weights of its checkpoint or drawn ones."""
    from boxdet.apis.inference import init_detector
    from boxdet.engine.config import load_config
    cfg = load_config(config, options)
    for step in cfg.data.test.pipeline:
        if step.type == 'MultiScaleFlipAug':
            step.img_scale = tuple(args.size)
    model = init_detector(cfg, args.checkpoint, device='cpu')
    if args.checkpoint is None:
        model.load_state_dict(drawn_weights(model.state_dict(), **GAINS))
    return model


def runners(model, folder: Path, args: argparse.Namespace) -> dict[str, Run]:
    """A function for each way that there is here."""
    import torch

    from boxdet.apis.export import export_onnx, export_program
    masks = args.masks if model.with_mask else 'logits'
    options = dict(precision=args.precision, masks=masks, exact=args.exact, float_input=args.float_input)
    runs: dict[str, Run] = {}
    if {'onnxruntime', 'openvino'} & set(args.ways):
        path = export_onnx(model, folder / 'detector.onnx', **options)
    if 'onnxruntime' in args.ways:
        import onnxruntime
        threads = onnxruntime.SessionOptions()
        threads.intra_op_num_threads, threads.log_severity_level = args.threads, 3
        session = onnxruntime.InferenceSession(str(path), threads, providers=['CPUExecutionProvider'])
        runs['onnxruntime'] = lambda images, sizes: session.run(None, dict(images=images, sizes=sizes))
    if 'openvino' in args.ways and find_spec('openvino') is None:
        print('openvino: not installed (pip install boxdet[openvino])')
    elif 'openvino' in args.ways:
        import openvino
        compiled = openvino.Core().compile_model(str(path), 'CPU', {'INFERENCE_NUM_THREADS': args.threads,
                                                                    'INFERENCE_PRECISION_HINT': 'f32'})
        runs['openvino'] = lambda images, sizes: list(compiled([images, sizes]).values())
    if 'pt2' in args.ways:
        program = torch.export.load(export_program(model, folder / 'detector.pt2', **options)).module()
        runs['pt2'] = lambda images, sizes: _arrays(program(torch.from_numpy(images), torch.from_numpy(sizes)))
    if 'aot' in args.ways and shutil.which('g++') is None:
        print('aot: no C++ compiler here (g++)')
    elif 'aot' in args.ways:
        path = export_program(model, folder / 'aot.pt2', compiled=True, **options)
        package = torch._inductor.aoti_load_package(str(path))
        runs['aot'] = lambda images, sizes: _arrays(package(torch.from_numpy(images), torch.from_numpy(sizes)))
    return runs


def _arrays(outputs) -> list:
    return [value.numpy() for value in outputs]


def measure(name: str, model, files: list[str], args: argparse.Namespace) -> None:
    """Print a line for torch and each way, for each size of batch."""
    import numpy as np
    import torch

    from boxdet.apis.export import add_batch, as_rgb, batches
    from boxdet.export.graph import DetectionGraph, InputFormat
    from boxdet.export.parity import TOLERANCES, Parity
    masks = args.masks if model.with_mask else 'logits'
    names = DetectionGraph(model, InputFormat((0,) * 3, (1,) * 3), masks=masks).output_names
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = runners(model, Path(folder), args)
        for batch_size in args.batch:
            parities = {way: Parity(*(args.tolerance or TOLERANCES[args.precision])) for way in runs}
            times: dict[str, list[float]] = {way: [] for way in ('torch', *runs)}
            for batch in batches(model, files, batch_size):
                begin = time.perf_counter()
                expected = model.predict(batch, rescale=False)
                times['torch'].append(time.perf_counter() - begin)
                images, sizes = as_rgb(batch)
                images = images.astype(np.float32) if args.float_input else images
                for way, run in runs.items():
                    begin = time.perf_counter()
                    outputs = run(images, sizes)
                    times[way].append(time.perf_counter() - begin)
                    add_batch(parities[way], expected, dict(zip(names, outputs)), model)
            for way, seconds in times.items():
                parity = f'{parities[way].equal} of {parities[way].detections}, {parities[way].share:.2%}' \
                    if way in parities else ''
                print(f'| {name} | {way} | {batch_size} | {1e3 * statistics.median(seconds) / batch_size:.0f} | '
                      f'{parity} |', flush=True)


def main() -> None:
    args = parse_args()
    import torch
    torch.set_num_threads(args.threads)
    files = sorted(str(path) for path in Path(args.images).iterdir() if path.suffix.lower() in ('.jpg', '.png'))
    files = files[:args.count]
    print(f'{len(files)} images, fitted in {args.size[0]} x {args.size[1]}; {args.precision}; {args.threads} threads; '
          f'torch {torch.__version__}, {time.strftime("%Y-%m-%d")}')
    print('| model | program | batch | ms an image | equal detections |\n|---|---|---|---|---|')
    configs = {name: str(ROOT / f'configs/shapes/{MODELS[name]}_shapes.py') for name in args.models}
    for name, config in ({Path(args.config).stem: args.config} if args.config else configs).items():
        measure(name, detector(config, args, C4_MASK if name == 'c4_mask' else None), files, args)


if __name__ == '__main__':
    main()
