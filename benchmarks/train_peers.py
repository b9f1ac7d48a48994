#!/usr/bin/env python
"""One training step of Mask R-CNN R50-FPN in boxdet and in its peers: time by part, memory, losses.

    python benchmarks/train_peers.py [--rounds 7] [--threads 1] [--batch 2] [--size 480 640] [--json out.json]
    python benchmarks/train_peers.py --detectron2 PATH --mmdetection PATH      # folders of their packages
    python benchmarks/train_peers.py --profile torchvision boxdet              # where the time of a step goes

All sides start from the same weights and see the same drawn images, boxes and masks, one step each in every round. The
stem and the first stage are frozen, all batch norms are; 256 anchors and 512 rois an image enter the losses. Random
weights propose nothing that fits: every side is given the same rois around the objects besides its own proposals, so
that a quarter of the rois is positive, as in a training that has got going. The losses are printed: they differ by what
is drawn at random.

boxdet is prepared as tools/train.py prepares it, torchvision as its reference script does (SGD with momentum, planar
memory). Times are medians over the rounds, of the wall clock and of the processor (which other programs disturb less).
Memory is the peak of a process of its own for each side, less what its imports took: the median of three.
"""
from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks.inference import drawn_weights  # noqa: E402 - the line above finds it

PARTS = ('data', 'forward', 'backward', 'update')
PEERS = ('torchvision', 'boxdet', 'detectron2', 'mmdetection')
GAINS = dict(gains=dict.fromkeys(('cls', 'bbox_pred', 'mask_fcn_logits'), 0.1), otherwise=1.2)
OBJECTS, CANDIDATES, CLASSES = 8, 30, 90  # an image; rois around each object


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--rounds', type=int, default=7, help='steps of each side that count (default: %(default)s)')
    parser.add_argument('--quick', action='store_true', help='one round, no memory')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads (default: %(default)s)')
    parser.add_argument('--device', default='cpu', help='cpu, cuda, ... (default: %(default)s)')
    parser.add_argument('--batch', type=int, default=2, help='images (default: %(default)s)')
    parser.add_argument('--size', type=int, nargs=2, default=[480, 640], metavar=('H', 'W'))
    parser.add_argument('--detectron2', metavar='PATH', help="folder that holds detectron2's package")
    parser.add_argument('--mmdetection', metavar='PATH',
                        help="folder that holds mmdetection 2.x's package (mmcv installed)")
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE', help="change boxdet's config")
    parser.add_argument('--profile', nargs='+', choices=PEERS, metavar='SIDE',
                        help='print where the time of a step of these sides goes, and end')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    parser.add_argument('--memory-of', choices=PEERS, help=argparse.SUPPRESS)
    return parser.parse_args(argv)


# --- what all sides see ---

def drawn_batch(count: int, height: int, width: int) -> list[dict[str, Any]]:
    """Samples: image (H, W, 3) uint8, boxes (N, 4), labels (N,) from 0, polygons of 40 corners, rois around them."""
    import numpy as np
    rng, samples = np.random.default_rng(0), []
    for _ in range(count):
        image = rng.integers(0, 255, (height // 16, width // 16, 3), dtype=np.uint8)
        image = image.repeat(16, axis=0).repeat(16, axis=1)  # no OpenCV: a rented machine has none
        image = np.pad(image, ((0, height - len(image)), (0, width - image.shape[1]), (0, 0)), mode='edge')
        size = np.exp(rng.uniform(np.log(24), np.log(height * 0.7), (OBJECTS, 1)))
        size = size * rng.uniform(0.7, 1.4, (OBJECTS, 2))
        size = np.minimum(size, [width - 8, height - 8])
        corner = rng.uniform(0, 1, (OBJECTS, 2)) * ([width, height] - size)
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        outline = np.stack([np.cos(angles), np.sin(angles)], axis=1)[None] * rng.uniform(0.7, 1, (OBJECTS, 40, 1))
        polygons = corner[:, None] + (outline + 1) / 2 * size[:, None]
        boxes = np.concatenate([polygons.min(axis=1), polygons.max(axis=1)], axis=1)
        around = np.repeat(boxes, CANDIDATES, axis=0)
        sides = np.tile(around[:, 2:] - around[:, :2], 2)
        around = np.clip(around + rng.normal(0, 0.1, around.shape) * sides, 0, [width, height, width, height])
        around[:, 2:] = np.maximum(around[:, 2:], around[:, :2] + 2)
        samples.append(dict(image=image, boxes=boxes.astype(np.float32), polygons=polygons.reshape(OBJECTS, 80),
                            labels=rng.integers(0, CLASSES, OBJECTS), rois=around.astype(np.float32)))
    return samples


def bitmaps(sample: dict[str, Any]) -> Any:
    """Masks (N, H, W) uint8 of a sample."""
    import numpy as np

    from boxdet.geometry.masks import rasterize_polygons
    height, width = sample['image'].shape[:2]
    masks = np.zeros((len(sample['polygons']), height, width), dtype=np.uint8)
    for mask, polygon in zip(masks, sample['polygons']):
        y, x, window = rasterize_polygons([polygon], (height, width))
        mask[y:y + window.shape[0], x:x + window.shape[1]] = window
    return masks


class Side:
    """A detector in training, step by step.

    Args:
        model: the detector.
        data: () -> what ``forward`` takes, on the device.
        forward: data -> losses by name.
        optimizer: of the weights that are trained.
    """

    def __init__(self, model: Any, data: Callable[[], Any], forward: Callable[[Any], dict[str, Any]], optimizer: Any):
        self.model, self.data, self.forward, self.optimizer = model, data, forward, optimizer
        self.losses: dict[str, float] = {}

    def step(self, wait: Callable[[], None]) -> list[tuple[float, float]]:
        """Seconds of the wall clock and of the processor of each of PARTS."""
        times = [(time.perf_counter(), time.process_time())]

        def mark() -> None:
            wait()
            times.append((time.perf_counter(), time.process_time()))
        batch = self.data()
        mark()
        losses = self.forward(batch)
        total = sum(losses.values())
        mark()
        total.backward()
        mark()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)  # here, the next forward pass has their memory
        mark()
        self.losses = {name: float(value.detach()) for name, value in losses.items()}
        return [(b[0] - a[0], b[1] - a[1]) for a, b in zip(times, times[1:])]


# --- the sides ---

def torchvision_model() -> Any:
    """maskrcnn_resnet50_fpn with frozen batch norms, and layers 2 to 4 of the body to be trained."""
    import torch
    from torchvision.models import resnet50
    from torchvision.models.detection import MaskRCNN
    from torchvision.models.detection.backbone_utils import _resnet_fpn_extractor
    from torchvision.ops import FrozenBatchNorm2d
    body = _resnet_fpn_extractor(resnet50(weights=None, norm_layer=FrozenBatchNorm2d), 3)
    model = MaskRCNN(body, num_classes=CLASSES + 1, min_size=1, max_size=10 ** 6)
    model.transform.resize = lambda image, target=None: (image, target)  # all sides see the images in their size
    model.load_state_dict(drawn_weights(model.state_dict(), **GAINS))
    assert sum(not p.requires_grad for p in model.parameters()) and isinstance(body, torch.nn.Module)
    return model


def torchvision_side(args: argparse.Namespace, samples: list[dict[str, Any]]) -> Side:
    import numpy as np
    import torch
    model = torchvision_model().to(args.device).train()
    propose = model.rpn.filter_proposals
    rois = [torch.from_numpy(sample['rois']).to(args.device) for sample in samples]

    def with_candidates(*inputs: Any) -> Any:
        boxes, scores = propose(*inputs)
        return [torch.cat([own, more]) for own, more in zip(boxes, rois)], scores
    model.rpn.filter_proposals = with_candidates
    targets = [dict(boxes=torch.from_numpy(s['boxes']), labels=torch.from_numpy(s['labels']) + 1,
                    masks=torch.from_numpy(bitmaps(s))) for s in samples]
    images = [torch.from_numpy(np.ascontiguousarray(s['image'].transpose(2, 0, 1))) for s in samples]

    def data() -> Any:
        return ([image.to(args.device).float() / 255 for image in images],
                [{name: value.to(args.device) for name, value in target.items()} for target in targets])
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4)
    return Side(model, data, lambda batch: model(*batch), optimizer)


def boxdet_side(args: argparse.Namespace, samples: list[dict[str, Any]]) -> Side:
    import numpy as np
    import torch

    from boxdet.checkpoints.convert.torchvision import to_boxdet
    from boxdet.engine.config import load_config
    from boxdet.engine.environment import choose_device, place_for_training
    from boxdet.engine.loss_watch import total_loss
    from boxdet.engine.schedule import build_optimizer
    from boxdet.models import build_detector
    from boxdet.structures.batch import Batch, ImageMeta
    from boxdet.structures.instances import Instances
    from boxdet.structures.masks import BitmapMasks
    cfg = load_config(str(ROOT / 'configs/torchvision/maskrcnn_resnet50_fpn.py'), args.cfg_options)
    device = choose_device(args.device)
    model = build_detector(cfg.model)
    model.load_state_dict(to_boxdet(torchvision_model().state_dict()), strict=False)
    model = place_for_training(model.train(), device, cfg)
    propose = model.rpn_head.predict
    rois = [torch.from_numpy(sample['rois']).to(device) for sample in samples]

    def with_candidates(*inputs: Any, **options: Any) -> Any:
        return [Instances(bboxes=torch.cat([own.bboxes, more]),
                          scores=torch.cat([own.scores, more.new_zeros(len(more))]))
                for own, more in zip(propose(*inputs, **options), rois)]
    model.rpn_head.predict = with_candidates
    norm = dict(mean=np.array([123.675, 116.28, 103.53]), std=np.array([58.395, 57.12, 57.375]), to_rgb=True)
    shape = samples[0]['image'].shape
    batch = Batch(
        torch.from_numpy(np.stack([s['image'] for s in samples])).permute(0, 3, 1, 2),
        [ImageMeta(img_shape=shape, ori_shape=shape, pad_shape=shape, img_norm_cfg=norm) for _ in samples],
        gt=[Instances(bboxes=torch.from_numpy(s['boxes']), labels=torch.from_numpy(s['labels']),
                      masks=BitmapMasks.from_coco([[list(p)] for p in s['polygons']], *shape[:2])) for s in samples],
        ignored=[torch.zeros(0, 4) for _ in samples])

    def forward(moved: Batch) -> dict[str, Any]:
        losses = model(moved, mode='loss')
        return {name: total_loss({name: value})[0] for name, value in losses.items() if 'loss' in name}
    optimizer = build_optimizer(model, dict(type='SGD', lr=1e-4, momentum=0.9, weight_decay=1e-4))
    return Side(model, lambda: batch.to(device), forward, optimizer)


def detectron2_side(args: argparse.Namespace, samples: list[dict[str, Any]]) -> Side:
    import numpy as np
    import torch
    sys.path.insert(0, args.detectron2)
    from detectron2 import model_zoo
    from detectron2.modeling import build_model
    from detectron2.structures import Boxes, Instances, PolygonMasks
    from detectron2.utils.events import EventStorage

    from boxdet.checkpoints.convert.detectron2 import from_boxdet
    from boxdet.checkpoints.convert.torchvision import to_boxdet
    cfg = model_zoo.get_config('COCO-InstanceSegmentation/mask_rcnn_R_50_FPN_1x.yaml')
    cfg.MODEL.DEVICE, cfg.MODEL.WEIGHTS, cfg.MODEL.ROI_HEADS.NUM_CLASSES = args.device, '', CLASSES
    # As torchvision's model is: where blocks stride, what images are divided by, points of RoIAlign, proposals.
    cfg.MODEL.RESNETS.STRIDE_IN_1X1 = False
    cfg.MODEL.PIXEL_MEAN, cfg.MODEL.PIXEL_STD = [123.675, 116.28, 103.53], [58.395, 57.12, 57.375]
    cfg.MODEL.ROI_BOX_HEAD.POOLER_SAMPLING_RATIO = cfg.MODEL.ROI_MASK_HEAD.POOLER_SAMPLING_RATIO = 2
    cfg.MODEL.RPN.POST_NMS_TOPK_TRAIN = 2000
    model = build_model(cfg).train()
    model.load_state_dict(from_boxdet(to_boxdet(torchvision_model().state_dict())))
    propose = model.proposal_generator.predict_proposals

    def with_candidates(*inputs: Any, **options: Any) -> Any:
        found = propose(*inputs, **options)
        more = [Instances(p.image_size, proposal_boxes=Boxes(torch.from_numpy(s['rois']).to(args.device)),
                          objectness_logits=torch.zeros(len(s['rois']), device=args.device))
                for p, s in zip(found, samples)]
        return [Instances.cat([own, extra]) for own, extra in zip(found, more)]
    model.proposal_generator.predict_proposals = with_candidates
    size = samples[0]['image'].shape[:2]
    inputs = [dict(image=torch.from_numpy(np.ascontiguousarray(s['image'].transpose(2, 0, 1))), height=size[0],
                   width=size[1],
                   instances=Instances(size, gt_boxes=Boxes(torch.from_numpy(s['boxes'])),
                                       gt_classes=torch.from_numpy(s['labels']),
                                       gt_masks=PolygonMasks([[p] for p in s['polygons']]))) for s in samples]

    def forward(batch: list[dict[str, Any]]) -> dict[str, Any]:
        with EventStorage():  # where its heads note what they have drawn
            return model(batch)
    trained = [p for p in model.parameters() if p.requires_grad]
    return Side(model, lambda: inputs, forward, torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4))


def mmdetection_side(args: argparse.Namespace, samples: list[dict[str, Any]]) -> Side:
    import numpy as np
    import torch
    sys.path.insert(0, args.mmdetection)
    from mmcv import Config
    from mmdet.core import BitmapMasks
    from mmdet.models import build_detector

    from boxdet.checkpoints.convert.torchvision import to_boxdet
    cfg = Config.fromfile(str(ROOT / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'))
    cfg.model.backbone.update(init_cfg=None, norm_cfg=dict(type='BN', requires_grad=False))
    for part in ('bbox', 'mask'):
        cfg.model.roi_head[f'{part}_head'].num_classes = CLASSES
        cfg.model.roi_head[f'{part}_roi_extractor'].roi_layer.sampling_ratio = 2  # as torchvision's, and its proposals
    cfg.model.train_cfg.rpn_proposal.max_per_img = 2000
    model = build_detector(cfg.model)
    model.load_state_dict(to_boxdet(torchvision_model().state_dict()), strict=False)  # the same names
    model = model.to(args.device).train()
    propose = model.rpn_head.get_bboxes

    def with_candidates(*inputs: Any, **options: Any) -> Any:
        return [torch.cat([own, torch.from_numpy(np.pad(s['rois'], ((0, 0), (0, 1)))).to(own)])
                for own, s in zip(propose(*inputs, **options), samples)]
    model.rpn_head.get_bboxes = with_candidates
    shape = samples[0]['image'].shape
    mean, std = np.array([123.675, 116.28, 103.53]), np.array([58.395, 57.12, 57.375])
    pixels = np.stack([((s['image'] - mean) / std).transpose(2, 0, 1) for s in samples]).astype(np.float32)
    metas = [dict(img_shape=shape, ori_shape=shape, pad_shape=shape, scale_factor=1.0, flip=False) for _ in samples]

    def data() -> dict[str, Any]:
        return dict(img=torch.from_numpy(pixels).to(args.device), img_metas=metas,
                    gt_bboxes=[torch.from_numpy(s['boxes']).to(args.device) for s in samples],
                    gt_labels=[torch.from_numpy(s['labels']).to(args.device) for s in samples],
                    gt_masks=[BitmapMasks(bitmaps(s), *shape[:2]) for s in samples])

    def forward(batch: dict[str, Any]) -> dict[str, Any]:
        losses = model.forward_train(**batch)
        return {name: sum(value) if isinstance(value, list) else value
                for name, value in losses.items() if 'loss' in name}
    trained = [p for p in model.parameters() if p.requires_grad]
    return Side(model, data, forward, torch.optim.SGD(trained, lr=1e-4, momentum=0.9, weight_decay=1e-4))


def build(name: str, args: argparse.Namespace) -> Side:
    import torch
    torch.manual_seed(0)
    make = dict(torchvision=torchvision_side, boxdet=boxdet_side, detectron2=detectron2_side,
                mmdetection=mmdetection_side)
    return make[name](args, drawn_batch(args.batch, *args.size))


# --- measuring ---

def waiter(device: str) -> Callable[[], None]:
    """What waits until the device is done."""
    import torch
    return torch.cuda.synchronize if device.startswith('cuda') else lambda: None


def peak_so_far() -> float:
    """MB that this process held at most (getrusage counts the process that started it, too)."""
    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))


def print_peak(args: argparse.Namespace) -> None:
    """The memory that a side takes for three steps beyond its imports."""
    import torch
    import torchvision  # noqa: F401

    import boxdet.apis.train  # noqa: F401
    before, side = peak_so_far(), build(args.memory_of, args)
    for _ in range(3):
        side.step(waiter(args.device))
    on_gpu = args.device.startswith('cuda')
    print(torch.cuda.max_memory_allocated() / 2 ** 20 if on_gpu else peak_so_far() - before)


def memory(name: str, args: argparse.Namespace) -> float:
    own = [sys.executable, str(Path(__file__).resolve()), '--memory-of', name, '--threads', str(args.threads)]
    own += ['--device', args.device, '--batch', str(args.batch), '--size', *map(str, args.size)]
    for peer in ('detectron2', 'mmdetection'):
        own += [f'--{peer}', getattr(args, peer)] if getattr(args, peer) else []
    own += ['--cfg-options', *args.cfg_options] if args.cfg_options else []
    runs = [subprocess.run(own, capture_output=True, text=True, check=True) for _ in range(3)]
    return statistics.median(float(done.stdout.split()[-1]) for done in runs)


# Parts of the step: whose method is counted as what.
LABELS: dict[str, dict[str, str]] = {
    'torchvision': {
        'backbone.body.forward': 'ResNet-50', 'backbone.fpn.forward': 'pyramid', 'rpn.head.forward': 'RPN head',
        'rpn.forward': 'anchors: proposals, matching, losses', 'roi_heads.box_roi_pool.forward': 'RoI features',
        'roi_heads.mask_roi_pool.forward': 'RoI features', 'roi_heads.box_head.forward': 'box head',
        'roi_heads.box_predictor.forward': 'box head', 'roi_heads.mask_head.forward': 'mask head',
        'roi_heads.mask_predictor.forward': 'mask head', 'roi_heads.forward': 'rois: matching, targets, losses',
        'transform.forward': 'images'},
    'boxdet': {
        'backbone.forward': 'ResNet-50', 'neck.forward': 'pyramid', 'rpn_head.forward': 'RPN head',
        'rpn_head.predict': 'anchors: proposals, matching, losses',
        'rpn_head.loss': 'anchors: proposals, matching, losses',
        'roi_head.bbox_roi_extractor.forward': 'RoI features', 'roi_head.mask_roi_extractor.forward': 'RoI features',
        'roi_head.bbox_head.forward': 'box head', 'roi_head.mask_head.forward_labels': 'mask head',
        'roi_head.loss': 'rois: matching, targets, losses'}}


def print_profile(args: argparse.Namespace) -> None:
    """Where the time of a step goes: a column a side."""
    import torch

    from benchmarks import step_profile
    columns = {}
    for name in args.profile:
        side, wait = build(name, args), waiter(args.device)
        side.step(wait)
        for path, part in LABELS.get(name, {}).items():
            owner, _, method = path.rpartition('.')
            step_profile.label(side.model.get_submodule(owner), method, part)
        step_profile.label(side.optimizer, 'step', 'update')
        torch.manual_seed(0)
        columns[name] = step_profile.times(lambda side=side, wait=wait: side.step(wait))  # type: ignore[misc]
    parts = [*dict.fromkeys(part for labels in LABELS.values() for part in labels.values()), 'update']
    order = [f'{part}, {way}' for part in parts for way in ('forward', 'backward')]
    print(step_profile.table(columns, lambda place: f'{place[0]}, {place[1]}', order), end='\n\n')
    print(step_profile.table(columns, lambda place: place[2], [*step_profile.KINDS, step_profile.REST]))


def report(figures: dict[str, Any]) -> None:
    """Print the tables."""
    base = figures['torchvision']
    print('\n| ms | ' + ' | '.join(PARTS) + ' | step | ratio | processor | ratio | MB | ratio |')
    print('|---' * 12 + '|')
    for name, one in figures.items():
        step, processor = sum(one['wall']), sum(one['processor'])
        cells = [f'{1e3 * value:.0f}' for value in one['wall']] + [f'{1e3 * step:.0f}',
                                                                   f"**{step / sum(base['wall']):.2f}**"]
        cells += [f'{1e3 * processor:.0f}', f"{processor / sum(base['processor']):.2f}"]
        cells += [f"{one['memory']:.0f}", f"**{one['memory'] / base['memory']:.2f}**"] if 'memory' in one else ['', '']
        print(f'| {name} | ' + ' | '.join(cells) + ' |')
    print()
    for name, one in figures.items():
        print(f'{name}: ' + ', '.join(f'{loss} {value:.4f}' for loss, value in one['losses'].items()))


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import torch
    torch.set_num_threads(args.threads)
    if args.memory_of:
        return print_peak(args)
    if args.profile:
        return print_profile(args)
    names = [name for name in PEERS if name in ('torchvision', 'boxdet') or getattr(args, name)]
    sides, wait = {name: build(name, args) for name in names}, waiter(args.device)
    times: dict[str, list[Any]] = {name: [] for name in names}
    for round_ in range((1 if args.quick else args.rounds) + 1):
        for name, side in sides.items():
            torch.manual_seed(round_)
            seconds = side.step(wait)
            if round_:  # the first one makes what stays
                times[name].append(seconds)
    figures: dict[str, Any] = {}
    for name, found in times.items():
        wall, processor = ([statistics.median(step[part][kind] for step in found) for part in range(len(PARTS))]
                           for kind in (0, 1))
        figures[name] = dict(wall=wall, processor=processor, losses=sides[name].losses)
    del sides
    if not args.quick:
        for name in names:
            figures[name]['memory'] = memory(name, args)
    print(f'Mask R-CNN R50-FPN, batch {args.batch}, {args.size[0]}x{args.size[1]}, {args.device}, {args.threads} '
          f'threads, '
          f'torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {os.cpu_count()} cores')
    report(figures)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main()
