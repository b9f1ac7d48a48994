#!/usr/bin/env python
"""One image through boxdet and through torchvision, with the same weights: time, memory, results.

    python benchmarks/inference.py [--models fasterrcnn maskrcnn] [--rounds 5] [--quick] [--device cuda] [--json FILE]

torchvision's fasterrcnn_resnet50_fpn and maskrcnn_resnet50_fpn are given drawn weights, which boxdet converts. Both
get one uint8 image of 800x1216 pixels and give boxes, scores, labels and masks of its size: torchvision from the float
tensor that it wants, made of the image, in inference mode and in both memory formats, of which the faster one counts;
boxdet by inference_detector, in float32, bfloat16 and int8 (calibrated on that image) as far as the processor has
them; and what boxdet exports by onnxruntime and OpenVINO, where they are installed. Whole calls are timed, one after
the other in every round; the medians are printed. Results are compared by the rule of the reference numbers (label,
0.05 pixel, 5e-4, mask IoU 0.995). Memory is the peak of a process of its own for each, less what it held before the
model was made: the median of three, as the C library keeps more or less of what is freed, by chance.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')

PEERS = ('torchvision', 'torchvision, NHWC')
VARIANTS = (*PEERS, 'fp32', 'bf16', 'int8', 'onnxruntime', 'openvino')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--models', nargs='+', default=['fasterrcnn', 'maskrcnn'], choices=['fasterrcnn', 'maskrcnn'])
    parser.add_argument('--rounds', type=int, default=5)
    parser.add_argument('--quick', action='store_true', help='one round')
    parser.add_argument('--threads', type=int, default=2, help='CPU threads')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--image', help='an image in place of a drawn one')
    parser.add_argument('--json', help='write the numbers there, too')
    parser.add_argument('--memory-of', choices=VARIANTS, help=argparse.SUPPRESS)
    return parser.parse_args()


def read_or_draw(path: str | None):
    """(800, 1216, 3) uint8 BGR."""
    import cv2
    import numpy as np
    image = cv2.imread(path) if path else np.random.default_rng(0).integers(0, 255, (25, 38, 3), dtype=np.uint8)
    return cv2.resize(image, (1216, 800), interpolation=cv2.INTER_CUBIC)


GAINS = {'cls': 0.5, 'bbox_pred': 0.15, 'fcn_logits': 2.0}  # about a hundred results


def drawn_weights(state: dict, gains: Mapping[str, float] = GAINS, otherwise: float = 1.4) -> dict:
    """Weights that keep the size of activations from layer to layer.

    Args:
        state: what to draw them for.
        gains: of weights by a part of their name, the first that fits.
        otherwise: the gain of the others.
    """
    import torch
    generator, drawn = torch.Generator().manual_seed(0), {}
    for name, value in state.items():
        noise = torch.randn(value.shape, generator=generator)
        if name.endswith('num_batches_tracked'):
            drawn[name] = value
        elif name.endswith('running_var'):
            drawn[name] = torch.rand(value.shape, generator=generator) + 0.5
        elif name.endswith(('running_mean', 'bias')):
            drawn[name] = noise * 0.05
        elif value.dim() == 1:
            drawn[name] = torch.rand(value.shape, generator=generator) * 0.5 + 0.4
        else:
            gain = next((gain for part, gain in gains.items() if part in name), otherwise)
            drawn[name] = noise * gain / value[0].numel() ** 0.5
    return drawn


def runner(variant: str, model: str, image, device: str) -> Callable[[], object]:
    """A function that takes the image to its results with ``variant``."""
    import numpy as np
    import torch
    import torchvision
    theirs = torchvision.models.detection.__dict__[f'{model}_resnet50_fpn'](weights=None, weights_backbone=None)
    weights = drawn_weights(theirs.state_dict())
    if variant in PEERS:
        layout = torch.channels_last if variant == PEERS[1] else torch.contiguous_format
        theirs.load_state_dict(weights)
        theirs.eval().to(device, memory_format=layout)

        def run():
            with torch.inference_mode():
                pixels = torch.from_numpy(np.ascontiguousarray(image[:, :, ::-1])).to(device)
                pixels = pixels.permute(2, 0, 1).float() / 255
                if variant == PEERS[0]:
                    pixels = pixels.contiguous()
                found = theirs([pixels])[0]
                return {name: value.cpu() for name, value in found.items()}
        return run
    from boxdet.apis import inference_detector, init_detector
    theirs = None  # its memory is not to count
    with tempfile.TemporaryDirectory() as folder:
        torch.save(weights, f'{folder}/theirs.pth')
        del weights
        own = init_detector(str(ROOT / f'configs/torchvision/{model}_resnet50_fpn.py'), f'{folder}/theirs.pth',
                            device=device, precision=variant if variant in ('bf16', 'int8') else 'fp32',
                            calibration=[image])
        if variant in ('onnxruntime', 'openvino'):
            return exported(own, variant, f'{folder}/detector.onnx', image)
    return lambda: inference_detector(own, image)


def exported(model, variant: str, path: str, image) -> Callable[[], object]:
    """A function that takes the image to its results by ``boxdet.runtime``, on one of two engines."""
    import numpy as np
    import torch

    from boxdet.apis import export_onnx
    from boxdet.runtime import Detector
    from boxdet.structures.instances import Instances
    from boxdet.structures.masks import RleMasks
    detector, size = Detector(export_onnx(model, path, image.shape[:2], 1)), image.shape[:2]
    if variant == 'openvino':
        import openvino
        compiled = openvino.Core().compile_model(path, 'CPU', {'INFERENCE_PRECISION_HINT': 'f32'})

        class Session:
            def run(self, _, feeds):
                return list(compiled(feeds).values())
        detector.session = Session()

    def run():
        found = detector(np.ascontiguousarray(image[:, :, ::-1]))
        masks = dict(masks=RleMasks(found['masks'], *size)) if 'masks' in found else {}
        boxes, scores, labels = (torch.as_tensor(found[key]) for key in ('boxes', 'scores', 'labels'))
        return Instances(size, len(model.CLASSES), bboxes=boxes, scores=scores, labels=labels.long(), **masks)
    return run


def usable(device: str) -> list[str]:
    """The variants that run here; those that do not are told of."""
    import importlib.util

    import torch

    from boxdet.engine.environment import slow_in
    from boxdet.models.quantization import fast_in_int8
    missing = {'bf16': slow_in(torch.bfloat16, device) and 'this processor has no instructions for it',
               'int8': not fast_in_int8(device) and 'this device has no instructions for it',
               **{name: not importlib.util.find_spec(name) and f'not installed (pip install {name})'
                  for name in ('onnxruntime', 'openvino')}}
    for name, why in missing.items():
        if why:
            print(f'{name}: {why}')
    return [name for name in VARIANTS if not missing.get(name)]


def processor(device: str) -> str:
    """Its name, and which instructions decide how fast it is here."""
    import torch
    if device.startswith('cuda'):
        return torch.cuda.get_device_name(device)
    known = torch.cpu.get_capabilities()
    names = ('avx2', 'avx512_f', 'avx512_vnni', 'avx512_bf16', 'avx_vnni', 'amx_bf16', 'amx_int8')
    return f"{known.get('cpu_name', 'processor')} ({' '.join(name for name in names if known.get(name))})"


def compare(theirs: dict, ours) -> tuple[int, int, int]:
    """Results of theirs, of ours, and pairs that agree."""
    import numpy as np
    import torch
    free, pairs = torch.ones(len(ours), dtype=torch.bool), 0
    for i in range(len(theirs['boxes'])):
        off = (ours.bboxes - theirs['boxes'][i]).abs().amax(dim=1) if len(ours) else torch.zeros(0)
        alike = free & (ours.labels == theirs['labels'][i] - 1) & ((ours.scores - theirs['scores'][i]).abs() <= 5e-4)
        near = (alike & (off <= 0.05)).nonzero().flatten()
        if not len(near):
            continue
        best = int(near[off[near].argmin()])
        free[best] = False
        if 'masks' in theirs:
            one, other = theirs['masks'][i, 0].numpy() >= 0.5, ours[best:best + 1].masks_bitmaps()[0] > 0
            union = np.count_nonzero(one | other)
            if union and np.count_nonzero(one & other) / union < 0.995:
                continue
        pairs += 1
    return len(theirs['boxes']), len(ours), pairs


def timed(function: Callable, device: str) -> float:
    import torch
    start = time.perf_counter()
    function()
    if device.startswith('cuda'):
        torch.cuda.synchronize()
    return time.perf_counter() - start


def peak(variant: str, model: str, args: argparse.Namespace) -> float:
    """MB that a process of its own needs for ``variant`` beyond its imports; of the GPU's memory on a GPU."""
    command = [sys.executable, __file__, '--memory-of', variant, '--models', model, '--device', args.device,
               '--threads', str(args.threads)] + (['--image', args.image] if args.image else [])
    runs = [subprocess.run(command, capture_output=True, text=True, check=True) for _ in range(1 if args.quick else 3)]
    return statistics.median(float(done.stdout.split()[-1]) for done in runs)


def peak_so_far() -> float:
    """MB that this process held at most (getrusage counts the process that started it, too)."""
    return next(int(line.split()[1]) / 1024 for line in open('/proc/self/status') if line.startswith('VmHWM'))


def measure_memory(args: argparse.Namespace) -> None:
    import torch
    import torchvision  # noqa: F401

    import boxdet.apis.inference  # noqa: F401
    image = read_or_draw(args.image)
    torch.set_num_threads(args.threads)
    before = peak_so_far()
    run = runner(args.memory_of, args.models[0], image, args.device)
    run(), run()
    if args.device.startswith('cuda'):
        print(torch.cuda.max_memory_allocated() / 2 ** 20)
    else:
        print(peak_so_far() - before)


def main() -> None:
    args = parse_args()
    if args.memory_of:
        return measure_memory(args)
    import torch
    torch.set_num_threads(args.threads)
    image, numbers, variants = read_or_draw(args.image), {}, usable(args.device)
    for model in args.models:
        runs = {variant: runner(variant, model, image, args.device) for variant in variants}
        results = {variant: run() for variant, run in runs.items()}  # the first call is not timed
        counts = {v: compare(results[PEERS[0]], results[v]) for v in variants if v not in PEERS}
        times = {variant: [] for variant in variants}
        for _ in range(1 if args.quick else args.rounds):
            for variant, run in runs.items():
                times[variant].append(timed(run, args.device))
        seconds = {variant: statistics.median(values) for variant, values in times.items()}
        del runs, results
        memory = {variant: peak(variant, model, args) for variant in variants}
        best = min(PEERS, key=seconds.__getitem__)  # of torchvision's two memory formats
        print(f'\n{model}_resnet50_fpn, 800x1216, {args.device}, {args.threads} threads, torch {torch.__version__}, '
              f'{os.cpu_count()} cores, {processor(args.device)}')
        print('                       ms   ratio      MB   ratio   results that agree')
        for v in variants:
            agree = f'{counts[v][2]} of {counts[v][0]}, {counts[v][1]} given' if v in counts else ''
            print(f'{v:18s} {1e3 * seconds[v]:7.0f} {seconds[v] / seconds[best]:7.2f} {memory[v]:7.0f} '
                  f'{memory[v] / memory[best]:7.2f}   {agree}')
        numbers[model] = dict(seconds=seconds, megabytes=memory, agree=counts)
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1))


if __name__ == '__main__':
    main()
