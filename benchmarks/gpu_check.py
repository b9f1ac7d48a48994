#!/usr/bin/env python
"""Everything that boxdet claims of a GPU, in one run of under eight minutes on a rented machine with a bare PyTorch.

    bash benchmarks/gpu_wheels.sh wheels                    # beforehand, where there is an index
    python benchmarks/gpu_check.py --prepare gpu_inputs.pt  # beforehand, with OpenCV: the golden cases' images
    pip install --no-index --no-deps wheels/*               # there
    python benchmarks/gpu_check.py --inputs gpu_inputs.pt   # there
    python benchmarks/gpu_check.py --dry                    # anywhere: the same path on the CPU, tiny sizes

Writes gpu_check.json after every part, and gpu_check.md, a table, at the end. Started again it goes on with the parts
that are missing or failed (--again runs all anew). A part that fails is told and the next one runs; the exit status is
then 1. Nothing of it has run on a GPU yet.
--device mps leaves out what that device has not, float64 first, with a line each.
"""
from __future__ import annotations

import argparse
import contextlib
import copy
import functools
import json
import os
import statistics
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # --deterministic asks for it before CUDA starts
os.environ.setdefault('PYTORCH_ENABLE_MPS_FALLBACK', '1')    # what Apple's lack, the CPU computes: a line each
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

SHARED = Path(os.environ.get('BOXDET_SHARED', ROOT.parent / 'shared'))
PARTS: dict[str, Callable[[Any], dict[str, Any]]] = {}


class Skipped(Exception):
    """This part cannot run here; the reason is written in its place."""


def part(function: Callable) -> Callable:
    """Register a part under its name, in the order of this file."""
    PARTS[function.__name__] = function
    return function


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = argparse.ArgumentParser(description=summary, epilog=details,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cuda', help='cuda, cuda:1, mps or cpu (default: %(default)s)')
    parser.add_argument('--dry', action='store_true', help='on the CPU, with tiny sizes: is the script itself sound?')
    parser.add_argument('--parts', nargs='+', metavar='PART', help='run these only')
    parser.add_argument('--again', action='store_true', help='run parts that gpu_check.json already has, too')
    parser.add_argument('--out', type=Path, default=Path('.'), metavar='DIR',
                        help='where the results go (default: here)')
    parser.add_argument('--inputs', type=Path, metavar='FILE', help='images of the golden cases, made by --prepare')
    parser.add_argument('--prepare', type=Path, metavar='FILE', help='write the images of the golden cases, and end')
    parser.add_argument('--limit', type=float, default=480, metavar='S',
                        help='no further part starts after so many seconds (default: %(default)s)')
    parser.add_argument('--detectron2', metavar='PATH', help='its source, to train beside it')
    parser.add_argument('--mmdetection', metavar='PATH', help="mmdetection 2.x's source, to train beside it")
    args = parser.parse_args(argv)
    if args.dry:
        args.device = 'cpu'
    for name in args.parts or ():
        if name not in PARTS:
            parser.error(f"--parts: there is no '{name}'; there are {', '.join(PARTS)}")
    return args


# --- tools ---

def kind(args: argparse.Namespace) -> str:
    """'cuda', 'mps' or 'cpu'."""
    return str(args.device).partition(':')[0]


def wait(args: argparse.Namespace) -> None:
    """Until the device has done its work."""
    import torch
    if kind(args) == 'cuda':
        torch.cuda.synchronize(args.device)
    elif kind(args) == 'mps':
        torch.mps.synchronize()


def seconds(function: Callable, args: argparse.Namespace, rounds: int) -> float:
    """Median of several calls, after one that does not count; in a dry run there is one call."""
    if not args.dry:
        function()
        wait(args)
    found = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        wait(args)
        found.append(time.perf_counter() - start)
    return statistics.median(found)


def tiny_families() -> dict[str, Callable[[], dict]]:
    """The families of the test suite, by name."""
    from tests.test_models.test_families import FAMILIES
    return FAMILIES


def on_device(batch: Any, args: argparse.Namespace, dtype: Any = None) -> Any:
    """A batch on the device, its floating numbers in ``dtype``."""
    from boxdet.structures.instances import Instances

    batch = batch.to(args.device)
    if dtype is None:
        return batch

    def cast(value: Any) -> Any:
        return value.to(dtype) if hasattr(value, 'is_floating_point') and value.is_floating_point() else value

    def objects(parts: Any) -> Any:
        return parts and [Instances(p.image_size, p.num_classes, **{k: cast(v) for k, v in p.fields.items()})
                          for p in parts]
    return replace(batch, images=batch.images.to(dtype), gt=objects(batch.gt), proposals=objects(batch.proposals),
                   ignored=batch.ignored and [cast(boxes) for boxes in batch.ignored])


@contextlib.contextmanager
def same_draws() -> Iterator[None]:
    """Random numbers come from the host's generator, seeded, so that every device is given the same ones."""
    import torch

    kept = {name: getattr(torch, name) for name in ('rand', 'randn', 'randperm', 'randint')}

    def on_host(name: str) -> Callable[..., Any]:
        return lambda *args, device=None, **more: kept[name](*args, **more).to(device or 'cpu')
    for name in kept:
        setattr(torch, name, on_host(name))
    kept['rand_like'], torch.rand_like = torch.rand_like, lambda x: torch.rand(x.shape, dtype=x.dtype, device=x.device)
    torch.manual_seed(0)
    try:
        yield
    finally:
        for name, function in kept.items():
            setattr(torch, name, function)


@contextlib.contextmanager
def golden_fill() -> Iterator[Any]:
    """The reference's fill.py."""
    import importlib.util

    path = SHARED / 'reference' / 'fill.py'
    if not path.is_file():
        raise Skipped('no golden numbers beside the checkout (BOXDET_SHARED names the folder that holds reference/)')
    spec = importlib.util.spec_from_file_location('reference_fill', path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module


# --- the golden cases' images ---

def golden_cases() -> dict[str, dict[str, Any]]:
    """The cases whose config is here: 'float64/NAME' and 'float32/NAME' to what the manifests say of them."""
    shipped = {path.stem: path for path in (ROOT / 'configs').rglob('*.py') if '_base_' not in path.parts}
    found = {}
    for label, manifest in (('float64', 'float64/manifest.json'), ('float32', 'manifest.json')):
        path = SHARED / 'reference' / manifest
        if not path.is_file():
            continue
        for name, case in json.loads(path.read_text()).items():
            project, _, short = name.rpartition('/')
            if project in ('', 'mmdet') and short in shipped:
                found[f'{label}/{short}'] = dict(case, config=str(shipped[short].relative_to(ROOT)))
    return found


def make_inputs(cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """The network's input of each golden case: plain arrays, so that the rented machine needs no OpenCV."""
    from boxdet.datasets.collate import collate
    from boxdet.datasets.pipelines.compose import Compose
    from boxdet.engine.config import load_config

    inputs: dict[str, dict[str, Any]] = {}
    drawn: dict[tuple[Any, bytes], Any] = {}
    for name, case in cases.items():
        pipeline = load_config(ROOT / case['config']).data.test.pipeline
        if 'scale' in case:
            scale = tuple(case['scale'])
            pipeline = [{**step, 'img_scale': scale} if 'img_scale' in step else step for step in pipeline]
        sample = Compose(pipeline)(dict(img_info=dict(filename=str(SHARED / case['image'])), img_prefix=None))
        batch = collate([sample])
        meta = batch.metas[0]
        pixels = batch.images.contiguous()
        inputs[name] = dict(
            # Most cases see one image in one size: it is written once.
            images=drawn.setdefault((tuple(pixels.shape), pixels.numpy().tobytes()), pixels),
            img_shape=list(meta.img_shape), ori_shape=list(meta.ori_shape),
            scale_factor=[float(v) for v in meta.scale_factor],
            mean=[float(v) for v in meta.img_norm_cfg['mean']], std=[float(v) for v in meta.img_norm_cfg['std']])
    return inputs


def inputs_of(args: argparse.Namespace, cases: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Prepared inputs, or made here where OpenCV is installed."""
    import torch

    if args.inputs is not None:
        return torch.load(args.inputs, weights_only=True)
    try:
        import cv2  # noqa: F401  (datasets read images with it)
    except ImportError:
        raise Skipped('no --inputs, and no OpenCV here to make them') from None
    return make_inputs(cases)


def batch_of(entry: dict[str, Any]) -> Any:
    """A Batch of prepared arrays."""
    import numpy as np

    from boxdet.structures.batch import Batch, ImageMeta
    meta = ImageMeta(img_shape=tuple(entry['img_shape']), ori_shape=tuple(entry['ori_shape']),
                     pad_shape=(*entry['images'].shape[-2:], 3),
                     scale_factor=np.array(entry['scale_factor'], dtype=np.float32),
                     img_norm_cfg=dict(mean=np.array(entry['mean']), std=np.array(entry['std'])))
    return Batch(entry['images'], [meta])


def agreement(found: Any, ref: dict[str, Any], box: float, score: float) -> float:
    """The share of the reference's detections that have a counterpart among those found."""
    import numpy as np
    from pycocotools import mask as coco_mask

    boxes, scores, labels = found.bboxes.double().numpy(), found.scores.double().numpy(), found.labels.numpy()
    free, count = np.ones(len(boxes), dtype=bool), 0
    for i, wanted in enumerate(ref['bboxes']):
        off = np.abs(boxes - wanted).max(axis=1) if len(boxes) else np.zeros(0)
        near = free & (labels == ref['labels'][i]) & (off <= box)
        near &= np.abs(scores - ref['scores'][i]) <= score * max(abs(float(ref['scores'][i])), 1)
        if not near.any():
            continue
        best = int(np.where(near, off, np.inf).argmin())
        free[best] = False
        same = True
        if 'mask_counts' in ref:
            own = found.masks[best]
            other = dict(size=own['size'], counts=str(ref['mask_counts'][i]).encode('ascii'))
            both_empty = not coco_mask.area(own) and not coco_mask.area(other)
            same = both_empty or coco_mask.iou([own], [other], [0])[0, 0] >= 0.995
        count += same
    return count / max(len(ref['bboxes']), 1)


def golden(args: argparse.Namespace, precision: str, box: float, score: float, least: float) -> dict[str, Any]:
    """Every golden case of a precision on the device."""
    import numpy as np
    import torch

    from boxdet.engine.config import load_config
    from boxdet.models import build_detector

    cases = {name: case for name, case in golden_cases().items() if name.startswith(precision)}
    if not cases:
        raise Skipped('no golden cases beside the checkout')
    if args.dry:
        smallest = next((name for name in cases if name.endswith('/faster_rcnn_r50_fpn_1x_coco')), min(cases))
        cases = {smallest: cases[smallest]}
    inputs, shares = inputs_of(args, cases), {}
    with golden_fill() as filling:
        for name, case in cases.items():
            short = name.partition('/')[2]
            folder = 'float64' if precision == 'float64' else 'mmdet'
            file = SHARED / 'reference' / folder / f'{short}.npz'
            if name not in inputs or not file.is_file():
                continue
            model = build_detector(load_config(ROOT / case['config']).model).eval()
            model.load_state_dict(filling.fill_state_dict(model.state_dict(), case['salt'], case['cls_gain']))
            dtype = torch.float64 if precision == 'float64' else torch.float32
            model = model.to(args.device, dtype)
            found = model.predict(on_device(batch_of(inputs[name]), args, dtype))[0]
            shares[short] = agreement(found, dict(np.load(file)), box, score)
            del model
    wrong = {name: share for name, share in shares.items() if share < least}
    return dict(cases=len(shares), worst=min(shares.values()), wrong=wrong, ok=not wrong)


# --- parts: what it is, whether it is right ---

@part
def machine(args: argparse.Namespace) -> dict[str, Any]:
    """Device, versions, memory."""
    import torch
    import torchvision

    import boxdet
    found = dict(device=str(args.device), torch=torch.__version__, torchvision=torchvision.__version__,
                 boxdet=boxdet.__version__, python=sys.version.split()[0], cores=os.cpu_count())
    if kind(args) == 'cuda':
        if not torch.cuda.is_available():
            raise RuntimeError('no CUDA device here; --dry runs on the CPU')
        properties = torch.cuda.get_device_properties(args.device)
        found.update(name=properties.name, capability=f'{properties.major}.{properties.minor}',
                     memory_gib=round(properties.total_memory / 2 ** 30, 1), cuda=torch.version.cuda,
                     cudnn=torch.backends.cudnn.version())
    return dict(found, ok=True)


@part
def golden_float64(args: argparse.Namespace) -> dict[str, Any]:
    """99 of 100 detections within 0.01 pixel and 1e-5 of the score."""
    if kind(args) == 'mps':
        raise Skipped('this device has no float64')
    return golden(args, 'float64', 0.01, 1e-5, 0.99)


@part
def golden_float32(args: argparse.Namespace) -> dict[str, Any]:
    """97 of 100 within 0.05 pixel and 5e-4, without TF32."""
    import torch
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    try:
        return golden(args, 'float32', 0.05, 5e-4, 0.97)
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


@part
def gradients(args: argparse.Namespace) -> dict[str, Any]:
    """Losses and gradients of one step of every family beside the CPU's."""
    import torch

    from boxdet.models import build_detector
    from tests.test_models.test_families import mixed_batch
    from tests.test_models.tiny_models import draw_everything, total

    dtype = torch.float32 if kind(args) == 'mps' else torch.float64
    limit = 1e-3 if dtype == torch.float32 else 1e-6
    families, wrong = tiny_families(), {}
    names = ['faster'] if args.dry and 'faster' in families else sorted(families)
    for name in names:
        cfg = families[name]()
        cfg['train_cfg'] = draw_everything(cfg['train_cfg'])
        torch.manual_seed(0)
        model = build_detector(cfg).to(dtype)
        batch, sides = mixed_batch((0, 2, 8), (0, 3, 2), cfg), []
        for device in ('cpu', args.device):
            side = copy.deepcopy(model).to(device).train()
            for module in side.modules():
                if type(module).__name__ in ('Dropout', 'StochasticDepth'):
                    module.eval()
            with same_draws():
                loss = total(side.loss(on_device(batch, argparse.Namespace(device=device), dtype)))
            loss.backward()
            sides.append([loss.detach().cpu(), *(p.grad.cpu() for p in side.parameters() if p.grad is not None)])
        worst = max(float((a - b).abs().max() / (a.abs().max() + 1e-12)) for a, b in zip(*sides))
        if len(sides[0]) != len(sides[1]) or not worst <= limit:
            wrong[name] = worst
    return dict(families=len(names), wrong=wrong, ok=not wrong)


@part
def without_waiting(args: argparse.Namespace) -> dict[str, Any]:
    """Prediction in tensors of a fixed size asks the device nothing (CUDA's synchronisation check)."""
    import torch

    from boxdet.geometry.nms_rounds import IN_ROUNDS
    from boxdet.models import build_detector
    from tests.test_models import tiny_models

    model = build_detector(tiny_models.mask_rcnn()).to(args.device).eval()
    batch = on_device(tiny_models.batch((2, 1)), args)
    with torch.no_grad():
        model.detect_padded(model.extract_feat(batch.images), batch, IN_ROUNDS)
        wait(args)
        if kind(args) == 'cuda':
            torch.cuda.set_sync_debug_mode('error')
        try:
            model.detect_padded(model.extract_feat(batch.images), batch, IN_ROUNDS)
        finally:
            if kind(args) == 'cuda':
                torch.cuda.set_sync_debug_mode('default')
    return dict(checked=kind(args) == 'cuda', ok=True)


@part
def mixed_precision(args: argparse.Namespace) -> dict[str, Any]:
    """Thirty steps under autocast, fp16 with a gradient scaler and bf16: no loss is NaN, and it falls."""
    import torch

    from boxdet.models import build_detector
    from tests.test_models import tiny_models

    steps, found = 3 if args.dry else 30, {}
    dtypes = {'bf16': torch.bfloat16} if kind(args) == 'cpu' else {'fp16': torch.float16, 'bf16': torch.bfloat16}
    for name, dtype in dtypes.items():
        torch.manual_seed(0)
        model = build_detector(tiny_models.mask_rcnn()).to(args.device).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.005, momentum=0.9)
        scaler = torch.amp.GradScaler(kind(args), enabled=dtype == torch.float16)
        batch, losses = on_device(tiny_models.batch((2, 1)), args), []
        for _ in range(steps):
            with torch.autocast(kind(args), dtype=dtype):
                loss = tiny_models.total(model.loss(batch))
            optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            torch.nn.utils.clip_grad_norm_(model.parameters(), 10.0)
            scaler.step(optimizer)
            scaler.update()
            losses.append(float(loss.detach()))
        finite = all(value == value and abs(value) < float('inf') for value in losses)
        found[name] = dict(first=losses[0], last=losses[-1], ok=finite and (args.dry or losses[-1] < losses[0]))
    return dict(found, ok=all(value['ok'] for value in found.values()))


@part
def deterministic(args: argparse.Namespace) -> dict[str, Any]:
    """Two trainings of the same seed with --deterministic end in the same weights, and without NaN."""
    import warnings

    import torch

    from boxdet.engine.environment import set_random_seed
    from boxdet.models import build_detector
    from tests.test_models import tiny_models

    ends, told = [], []
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    try:
        for _ in range(2):
            set_random_seed(0, deterministic=True)
            model = build_detector(tiny_models.mask_rcnn()).to(args.device).train()
            optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
            batch = on_device(tiny_models.batch((2, 1)), args)
            with warnings.catch_warnings(record=True) as said:
                for _ in range(2 if args.dry else 5):
                    optimizer.zero_grad(set_to_none=True)
                    tiny_models.total(model.loss(batch)).backward()
                    optimizer.step()
            told += [str(one.message).partition(' ')[0] for one in said if 'determinis' in str(one.message)]
            ends.append(torch.cat([p.detach().cpu().flatten() for p in model.parameters()]))
    finally:
        torch.use_deterministic_algorithms(False)
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
    equal, finite = torch.equal(*ends), bool(torch.isfinite(ends[0]).all())
    return dict(equal=equal, finite=finite, without_a_deterministic_way=sorted(set(told)), ok=equal and finite)


@part
def streams_and_threads(args: argparse.Namespace) -> dict[str, Any]:
    """One model in eight threads, on two streams: all find what one thread alone finds."""
    import torch

    from boxdet.models import build_detector
    from tests.test_models import tiny_models

    torch.manual_seed(0)
    model = build_detector(tiny_models.mask_rcnn(test_cfg=tiny_models.test_cfg(0.0))).to(args.device).eval()
    batches = [on_device(tiny_models.batch((1,), seed=i, size=(96, 128 + 32 * (i % 2))), args) for i in range(4)]
    alone = [model.predict(batch)[0].bboxes for batch in batches]
    streams = [torch.cuda.Stream(args.device) for _ in range(2)] if kind(args) == 'cuda' else [None, None]
    wait(args)
    wrong, failures = [], []

    def work(thread: int) -> None:
        try:
            for turn in range(1 if args.dry else 10):
                i = (thread + turn) % len(batches)
                with torch.cuda.stream(streams[thread % 2]) if streams[0] else contextlib.nullcontext():
                    found = model.predict(batches[i])[0].bboxes
                if not torch.allclose(found, alone[i], atol=1e-3):
                    wrong.append((thread, i))
        except Exception as error:  # told below: a thread's traceback alone would be lost
            failures.append(f'{type(error).__name__}: {error}')
    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return dict(wrong=len(wrong), failures=failures[:3], ok=not wrong and not failures)


@part
def distributed(args: argparse.Namespace) -> dict[str, Any]:
    """A step of DistributedDataParallel with one rank: NCCL on CUDA, gloo elsewhere."""
    import tempfile

    import torch
    from torch import distributed as dist
    from torch.nn.parallel import DistributedDataParallel

    from boxdet.models import build_detector
    from tests.test_models import tiny_models

    backend = 'nccl' if kind(args) == 'cuda' else 'gloo'
    if kind(args) == 'mps':
        raise Skipped('no collectives on this device')
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group(backend, init_method=f'file://{folder}/rendezvous', rank=0, world_size=1)
        try:
            model = build_detector(tiny_models.mask_rcnn()).to(args.device).train()
            wrapped = DistributedDataParallel(model, device_ids=[args.device] if kind(args) == 'cuda' else None)
            loss = tiny_models.total(wrapped(on_device(tiny_models.batch((2, 1)), args)))
            loss.backward()
            finite = all(bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.grad is not None)
        finally:
            dist.destroy_process_group()
    return dict(backend=backend, ok=finite)


# --- parts: how fast, beside torchvision in the same process ---

def detector(args: argparse.Namespace, precision: str = 'fp32', fixed_size: bool = False) -> Any:
    """Mask R-CNN R50-FPN with drawn weights of torchvision's, ready for inference."""
    import torch
    import torchvision

    from benchmarks.inference import drawn_weights
    from boxdet.checkpoints.convert import format_named
    from boxdet.engine.config import load_config
    from boxdet.models import build_detector
    from boxdet.models.folding import ready_for_inference

    # In a dry run torchvision must not enlarge the tiny image to 800 pixels, and both have few proposals.
    few = dict(nms_pre=20, max_per_img=20)
    sizes = dict(min_size=96, max_size=128, rpn_pre_nms_top_n_test=20, rpn_post_nms_top_n_test=20) if args.dry else {}
    theirs = torchvision.models.detection.maskrcnn_resnet50_fpn(weights=None, weights_backbone=None, **sizes)
    theirs.load_state_dict(drawn_weights(theirs.state_dict()))
    cfg = load_config(ROOT / 'configs/torchvision/maskrcnn_resnet50_fpn.py')
    cfg.model.test_cfg.fixed_size = fixed_size
    cfg.model.test_cfg.rpn.update(few if args.dry else {})
    ours = build_detector(cfg.model).eval()
    ours.load_state_dict(format_named('torchvision').to_boxdet(theirs.state_dict()), strict=False)
    layout = torch.contiguous_format if precision.endswith('planar') else torch.channels_last
    ours = ready_for_inference(ours.to(args.device), precision.partition('_')[0], layout)
    return theirs.eval().to(args.device), ours


def images(args: argparse.Namespace, count: int) -> Any:
    """Drawn uint8 images (B, 3, H, W) with structure on several scales, and their batch."""
    import numpy as np
    import torch

    from boxdet.structures.batch import Batch, ImageMeta
    height, width = (96, 128) if args.dry else (800, 1216)
    coarse = torch.rand(count, 3, height // 32, width // 32, generator=torch.Generator().manual_seed(0))
    pixels = (torch.nn.functional.interpolate(coarse, (height, width), mode='bicubic').clamp(0, 1) * 255).byte()
    norm = dict(mean=np.array([123.675, 116.28, 103.53]), std=np.array([58.395, 57.12, 57.375]))
    metas = [ImageMeta(img_shape=(height, width, 3), ori_shape=(height, width, 3), pad_shape=(height, width, 3),
                       img_norm_cfg=norm) for _ in range(count)]
    return pixels, Batch(pixels, metas)


@part
def inference(args: argparse.Namespace) -> dict[str, Any]:
    """Mask R-CNN R50-FPN, 800x1216, batch 1 and 8: images a second, beside torchvision in fp32 and under autocast."""
    import torch

    rounds, found = 1 if args.dry else 5, {}
    precisions = ['fp32', 'fp32_planar', 'tf32', 'fp16', 'fp16_planar', 'bf16', 'bf16_planar']
    if kind(args) != 'cuda':
        precisions = ['fp32'] if args.dry else ['fp32', 'fp32_planar']
    for precision in precisions:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == 'tf32'
        theirs, ours = detector(args, 'fp32' if precision == 'tf32' else precision)
        dtype = dict(fp16=torch.float16, bf16=torch.bfloat16).get(precision.partition('_')[0])
        for count in (1, 2) if args.dry else (1, 8):
            pixels, batch = images(args, count)

            def peer(pixels: Any = pixels, theirs: Any = theirs, dtype: Any = dtype) -> None:
                on = torch.autocast(kind(args), dtype=dtype) if dtype else contextlib.nullcontext()
                with torch.inference_mode(), on:
                    theirs(list((pixels.to(args.device).float() / 255).unbind()))
            own = count / seconds(lambda batch=batch, ours=ours: ours.predict(batch), args, rounds)
            other = count / seconds(peer, args, rounds)
            found[f'{precision}, batch {count}'] = dict(boxdet=round(own, 2), torchvision=round(other, 2),
                                                        ratio=round(own / other, 2))
        del theirs, ours
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    return dict(found, ok=True)


@part
def fixed_size(args: argparse.Namespace) -> dict[str, Any]:
    """The plain way against tensors of a fixed size (model.test_cfg.fixed_size): which should be the default."""
    times = {}
    for name, fixed in (('plain', False), ('fixed_size', True)):
        _, ours = detector(args, fixed_size=fixed)
        _, batch = images(args, 1)
        times[name] = seconds(lambda batch=batch, ours=ours: ours.predict(batch), args, 1 if args.dry else 10)
        del ours
    return dict(milliseconds={name: round(1e3 * value, 2) for name, value in times.items()},
                faster=min(times, key=times.get), ok=True)


@part
def memory(args: argparse.Namespace) -> dict[str, Any]:
    """Peak memory of a detection, beside torchvision's."""
    import torch

    if kind(args) != 'cuda':
        raise Skipped("PyTorch counts CUDA's memory only")
    theirs, ours = detector(args)
    pixels, batch = images(args, 1)
    found = {}
    for name, call in (('boxdet', lambda: ours.predict(batch)),
                       ('torchvision', lambda: theirs([pixels[0].to(args.device).float() / 255]))):
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(args.device)
        before = torch.cuda.memory_allocated(args.device)
        with torch.no_grad():
            call()
        found[name] = round((torch.cuda.max_memory_allocated(args.device) - before) / 2 ** 20, 1)
    return dict(mib=found, ratio=round(found['boxdet'] / found['torchvision'], 2), ok=True)


@part
def training(args: argparse.Namespace) -> dict[str, Any]:
    """Mask R-CNN R50-FPN, images a second, batch 2, 8, 16, beside torchvision (and sources given by a path)."""
    from benchmarks import train_peers

    found: dict[str, Any] = {}
    for count in (1,) if args.dry else (2, 8, 16):
        own = train_peers.parse_args(['--device', str(args.device), '--batch', str(count), '--size',
                                      *(('96', '128') if args.dry else ('800', '1216'))]
                                     + (['--detectron2', args.detectron2] if args.detectron2 else [])
                                     + (['--mmdetection', args.mmdetection] if args.mmdetection else []))
        peers = ['torchvision', 'boxdet', *(p for p in ('detectron2', 'mmdetection') if getattr(args, p))]
        sides = {peer: train_peers.build(peer, own) for peer in peers}
        rates = {}
        for peer, side in sides.items():
            step = functools.partial(side.step, train_peers.waiter(str(args.device)))
            rates[peer] = round(count / seconds(step, args, 1 if args.dry else 5), 2)
        found[f'batch {count}'] = dict(rates, ratio=round(rates['boxdet'] / rates['torchvision'], 2))
        del sides
    return dict(found, ok=True)


@part
def data(args: argparse.Namespace) -> dict[str, Any]:
    """The data pipeline with as many workers as there are cores (16 at most): images a second from drawn files."""
    try:
        import cv2
    except ImportError:
        raise Skipped('no OpenCV here (gpu_wheels.sh --with-opencv brings it)') from None
    import tempfile

    import numpy as np

    from boxdet.datasets import build_dataloader, build_dataset
    with tempfile.TemporaryDirectory() as folder:
        count, (height, width) = (8, (60, 80)) if args.dry else (128, (480, 640))
        names = [f'{i}.jpg' for i in range(count)]
        rng = np.random.default_rng(0)
        for name in names:
            coarse = rng.integers(0, 255, (height // 20, width // 20, 3), dtype=np.uint8)
            cv2.imwrite(f'{folder}/{name}', cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC))
        boxes = [[5, 5, 30, 30], [20, 10, 35, 40]]
        content = dict(
            images=[dict(id=i, file_name=name, width=width, height=height) for i, name in enumerate(names)],
            annotations=[dict(id=2 * i + k, image_id=i, category_id=1, bbox=box, area=900, iscrowd=0,
                              segmentation=[[box[0], box[1], box[0] + 20, box[1], box[0] + 20, box[1] + 20]])
                         for i in range(count) for k, box in enumerate(boxes)],
            categories=[dict(id=1, name='thing')])
        Path(folder, 'labels.json').write_text(json.dumps(content))
        size = (133, 80) if args.dry else (1333, 800)
        dataset = build_dataset(dict(
            type='CocoDataset', classes=('thing',), ann_file=f'{folder}/labels.json', img_prefix=folder, pipeline=[
                dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                dict(type='Resize', img_scale=size, keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5),
                dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True),
                dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
                dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]))
        workers = 1 if args.dry else min(16, os.cpu_count() or 1)
        loader = build_dataloader(dataset, samples_per_gpu=2, workers_per_gpu=workers, dist=False, seed=0)
        start, seen = time.perf_counter(), 0
        for batch in loader:
            seen += len(batch)
        return dict(workers=workers, images_a_second=round(seen / (time.perf_counter() - start), 1), ok=seen >= count)


@part
def compiled(args: argparse.Namespace) -> dict[str, Any]:
    """torch.compile of the backbone, and CUDA graphs of it, in fp32 and fp16: what they gain, what compiling takes."""
    import torch

    if kind(args) == 'mps':
        raise Skipped('on CUDA only')
    found: dict[str, Any] = {}
    # The second way records CUDA graphs; without a compiler's work the path is the same, in a dry run.
    ways = dict(eager=dict(backend='eager')) if args.dry else {mode: dict(mode=mode) for mode in (
        'default', 'reduce-overhead')}
    for precision in ('fp32',) if args.dry else ('fp32', 'fp16'):
        _, ours = detector(args, precision)
        _, batch = images(args, 1)
        plain = seconds(lambda batch=batch, ours=ours: ours.predict(batch), args, 1 if args.dry else 5)
        found[precision] = dict(plain_ms=round(1e3 * plain, 2))
        whole = ours.backbone
        for name, options in ways.items():
            start = time.perf_counter()
            ours.backbone = torch.compile(whole, **options)
            ours.predict(batch)
            wait(args)
            took = time.perf_counter() - start
            time_of = seconds(lambda batch=batch, ours=ours: ours.predict(batch), args, 1 if args.dry else 5)
            found[precision][name] = dict(milliseconds=round(1e3 * time_of, 2), compile_s=round(took, 1))
        del ours
    return dict(found, ok=True)


# --- the run ---

def table(results: dict[str, Any]) -> str:
    """A Markdown table of the results."""
    lines = ['# boxdet on a GPU', '', '| part | result | seconds | |', '|---|---|---|---|']
    for name, found in results.items():
        details = {key: value for key, value in found.items() if key not in ('ok', 'seconds', 'skipped', 'error')}
        state = 'skipped' if 'skipped' in found else 'ok' if found.get('ok') else '**FAILED**'
        text = found.get('skipped') or found.get('error') or '; '.join(f'{k}: {v}' for k, v in details.items())
        lines.append(f"| {name} | {state} | {found.get('seconds', 0):.1f} | {str(text).replace('|', '/')} |")
    return '\n'.join([*lines, ''])


def run_part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """One part: what it found, why it was skipped, or how it failed."""
    start = time.perf_counter()
    try:
        found = PARTS[name](args)
    except Skipped as reason:
        found = dict(skipped=str(reason))
    except Exception as error:  # the next parts are to run all the same
        traceback.print_exc()
        found = dict(ok=False, error=f'{type(error).__name__}: {" ".join(str(error).split())}')
    return dict(found, seconds=round(time.perf_counter() - start, 2))


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    import torch

    if args.prepare is not None:
        torch.save(make_inputs(golden_cases()), args.prepare)
        print(f'{args.prepare}: {args.prepare.stat().st_size / 2 ** 20:.1f} MiB')
        return 0
    args.out.mkdir(parents=True, exist_ok=True)
    journal = args.out / 'gpu_check.json'
    results = json.loads(journal.read_text()) if journal.is_file() and not args.again else {}
    start = time.perf_counter()
    for name in args.parts or PARTS:
        if name in results and (results[name].get('ok') or 'skipped' in results[name]):
            print(f'{name}: done before')
            continue
        if time.perf_counter() - start > args.limit:
            print(f'{name}: no time left within --limit {args.limit:.0f}; start again to go on')
            continue
        print(f'{name} ...', flush=True)
        results[name] = run_part(name, args)
        part_file = journal.with_suffix('.part')
        part_file.write_text(json.dumps(results, indent=1))
        os.replace(part_file, journal)
        found = results[name]
        print(f"{name}: {found.get('skipped') or found.get('error') or found}", flush=True)
    (args.out / 'gpu_check.md').write_text(table(results))
    failed = [name for name, found in results.items() if not found.get('ok') and 'skipped' not in found]
    print(f'{args.out / "gpu_check.md"}: {len(results)} parts, failed: {", ".join(failed) or "none"}')
    return 1 if failed else 0


if __name__ == '__main__':
    sys.exit(main())
