#!/usr/bin/env python
"""Where the time goes in a folder of 5,000 images, step by step, beside what the network takes for one image.

    python benchmarks/folder_profile.py --data ../shared/data/coco_mini [--images 5000] [--parts network infer_dir ...]
        [--folder DIR] [--network-seconds 0.02] [--json out.json]

The images are those of coco_mini val2017 under as many names, the results those of coco_evaluation.py: objects moved,
doubled, mislabelled and scored at random, 60 an image, some 9 of them above 0.3. The commands are run as they are, each
in a process of its own, but for the network of infer_dir.py and test.py, which gives the image's results at once, or
after --network-seconds of waiting, as for a GPU. What the network itself takes (Mask R-CNN R50-FPN, 800 x 1333) is
measured on 20 images. Seconds of a step are processor time of its thread, so that other programs disturb little; `wall`
is the whole command, start included. Memory is what the process holds at a fifth and at the end of its images.
"""
from __future__ import annotations

import argparse
import contextlib
import functools
import importlib.util
import io
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

CONFIG = str(ROOT / 'configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py')
DETECTIONS, NETWORK_IMAGES = 60, 20


# --- the data ---

def build(source: Path, folder: Path, images: int) -> None:
    """Write images/, ann.json, results.pkl and detector.pth into ``folder``."""
    import torch

    from benchmarks import coco_evaluation
    from boxdet.datasets.coco import CocoDataset
    from boxdet.engine.config import load_config
    from boxdet.models import build_detector

    plain = coco_evaluation.rescored

    def rescored(result: Any, rng: Any) -> Any:
        found = plain(result, rng)
        return found.replace(scores=found.scores ** 6)  # a detector is sure of few
    coco_evaluation.rescored = rescored
    coco_evaluation.build(source, folder, 'masks', images, DETECTIONS)
    truth = json.loads((folder / 'ann.json').read_text())
    (folder / 'images').mkdir()
    for image in truth['images']:
        own = f"{image['id']:06d}.jpg"
        (folder / 'images' / own).symlink_to((source / 'val2017' / image['file_name']).resolve())
        image['file_name'] = own
    (folder / 'ann.json').write_text(json.dumps(truth))
    cfg = load_config(CONFIG)
    cfg.model.backbone.init_cfg = None
    model = build_detector(cfg.model)
    model.init_weights()
    torch.save(dict(state_dict=model.state_dict(), meta=dict(CLASSES=CocoDataset.CLASSES)), folder / 'detector.pth')


# --- measuring, in the process of a part ---

class Steps:
    """Processor seconds of functions, added up over all threads."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._lock = threading.Lock()

    def watch(self, owner: Any, name: str, step: str) -> None:
        """Have the time in ``owner.name`` added to ``step``."""
        function = getattr(owner, name)

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            began = time.thread_time()
            try:
                return function(*arguments, **options)
            finally:
                with self._lock:
                    self.seconds[step] += time.thread_time() - began
        setattr(owner, name, timed)


def resident() -> float:
    """MB that this process holds."""
    return int(Path('/proc/self/status').read_text().partition('VmRSS:')[2].split()[0]) / 1024


def watch_memory(total: int) -> list[float]:
    """MB at a fifth and at the end of ``total`` images, as their progress is told."""
    from boxdet.engine.evaluation_loop import Progress
    found: list[float] = []
    advance, through = Progress.advance, [0]

    def advanced(self: Any, count: int) -> None:
        for mark in (total // 5, total):
            if through[0] < mark <= through[0] + count:
                found.append(resident())
        through[0] += count
        advance(self, count)
    Progress.advance = advanced
    return found


def replay(model: Any, folder: Path, seconds: float) -> Any:
    """Have ``model`` give the results of the file, after ``seconds`` a batch."""
    from boxdet.evaluation import load_results
    results = load_results(folder / 'results.pkl')

    def forward(batch: Any, mode: str, rescale: bool) -> list[Any]:
        time.sleep(seconds)
        return [results[int(Path(meta.filename).stem) - 1] for meta in batch.metas]
    model.forward = forward
    return model


def tool(path: str) -> Callable[[list[str]], Any]:
    """``main`` of a command."""
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


# --- the parts ---

def network(folder: Path, args: argparse.Namespace, steps: Steps) -> None:
    """Seconds an image of the detector, by precision."""
    import torch

    from boxdet.apis import inference_detector, init_detector
    from boxdet.engine.environment import slow_in
    from boxdet.models.quantization import fast_in_int8
    files = sorted(map(str, (folder / 'images').iterdir()))[:NETWORK_IMAGES]
    precisions = ['fp32'] + ['bf16'] * (not slow_in(torch.bfloat16, 'cpu')) + [
        'int8'] * fast_in_int8(torch.device('cpu'))
    for precision in precisions:
        more = dict(calibration=files[:4]) if precision == 'int8' else {}
        model = init_detector(CONFIG, str(folder / 'detector.pth'), device='cpu', precision=precision, **more)
        inference_detector(model, files[0])
        began = time.perf_counter()
        inference_detector(model, files, prefetch=0)
        # as many images as the others, so that both are told by image
        steps.seconds[precision] = (time.perf_counter() - began) / len(files) * args.images


def watch_drawing(steps: Steps) -> None:
    from boxdet.visualization import draw, pdf
    for owner, name, step in ((draw, 'read_image', 'read again'), (draw, 'draw_instances', 'draw'),
                              (draw, 'write_image', 'encode and write'), (pdf, 'write_pdf', 'page')):
        steps.watch(owner, name, step)


def infer_dir(folder: Path, args: argparse.Namespace, steps: Steps, ending: str = 'png') -> None:
    from boxdet.apis import folder as of_folders
    from boxdet.apis import images, inference
    watch_drawing(steps)
    steps.watch(images.Preparation, '__call__', 'read and prepare')
    steps.watch(inference, 'collate', 'collate')
    steps.watch(of_folders, '_row', 'result to JSON')
    steps.watch(of_folders.Journal, 'add', 'journal')
    steps.watch(of_folders, 'write_annotations', 'the JSON file')
    init = inference.init_detector
    inference.init_detector = lambda *given, **more: replay(init(*given, **more), folder, args.network_seconds)
    tool('tools/infer_dir.py')([str(folder / 'images'), CONFIG, str(folder / 'detector.pth'), '--device', 'cpu',
                                '--out', str(folder / f'out_{ending}.json'), '--format', ending,
                                '--show-dir', str(folder / f'drawn_{ending}')])


def test(folder: Path, args: argparse.Namespace, steps: Steps) -> None:
    from boxdet.apis import inference
    watch_drawing(steps)
    place = inference.place_for_inference
    inference.place_for_inference = lambda *given, **more: replay(place(*given, **more), folder, args.network_seconds)
    tool('tools/test.py')([CONFIG, str(folder / 'detector.pth'), '--device', 'cpu', '--show-dir',
                           str(folder / 'drawn_test'), '--cfg-options', *data_options(folder)])


def report(folder: Path, args: argparse.Namespace, steps: Steps) -> None:
    import boxdet.apis.saved_results as saved
    import boxdet.evaluation as evaluation
    import boxdet.evaluation.report as of_reports
    steps.watch(saved, 'open_results', 'read annotations and results')
    steps.watch(evaluation, 'evaluate', 'evaluate')
    for name, step in (('match_at', 'match at ten IoUs'), ('operating_points', 'curves'),
                       ('confusion_matrix', 'confusion'), ('_errors', 'errors and their images')):
        steps.watch(of_reports, name, step)
    tool('tools/analysis_tools/report.py')([CONFIG, str(folder / 'results.pkl'), str(folder / 'report'),
                                            '--cfg-options', *data_options(folder)])


def analyze_results(folder: Path, args: argparse.Namespace, steps: Steps) -> None:
    import boxdet.apis.saved_results as saved
    import boxdet.evaluation.operating_points as points
    watch_drawing(steps)
    steps.watch(saved, 'open_results', 'read annotations and results')
    steps.watch(points, 'image_scores', 'score each image')
    tool('tools/analysis_tools/analyze_results.py')([CONFIG, str(folder / 'results.pkl'), str(folder / 'analyzed'),
                                                     '--cfg-options', *data_options(folder)])


def browse_dataset(folder: Path, args: argparse.Namespace, steps: Steps) -> None:
    from boxdet.datasets.coco import CocoDataset
    watch_drawing(steps)
    steps.watch(CocoDataset, '__getitem__', 'read, resize, flip')
    tool('tools/misc/browse_dataset.py')([CONFIG, '--not-show', '--output-dir', str(folder / 'browsed'),
                                          '--cfg-options', *data_options(folder)])


def data_options(folder: Path) -> list[str]:
    return [f'data.{split}.{key}={value}' for split in ('train', 'val', 'test') for key, value in (
        ('ann_file', folder / 'ann.json'), ('img_prefix', f'{folder}/images/'))]


PARTS = {'network': network, 'infer_dir': infer_dir, 'infer_dir jpg': functools.partial(infer_dir, ending='jpg'),
         'infer_dir pdf': functools.partial(infer_dir, ending='pdf'), 'test': test, 'report': report,
         'analyze_results': analyze_results, 'browse_dataset': browse_dataset}


def run_part(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """What one part took, in this process; its output is not shown."""
    steps, memory = Steps(), watch_memory(args.images)
    wall, worked = time.perf_counter(), time.process_time()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        PARTS[name](args.folder, args, steps)
    return dict(steps=dict(steps.seconds), wall=time.perf_counter() - wall, processor=time.process_time() - worked,
                memory=[*memory, resident()])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data/coco_mini', help='folder of coco_mini')
    parser.add_argument('--images', type=int, default=5000, help='default: %(default)s')
    parser.add_argument('--parts', nargs='+', choices=PARTS, default=list(PARTS), metavar='PART',
                        help=f"of {', '.join(PARTS)} (default: all)")
    parser.add_argument('--network-seconds', type=float, default=0., metavar='S',
                        help='what the network of infer_dir.py and test.py waits (default: %(default)s)')
    parser.add_argument('--folder', type=Path, help='keep the files there, and use those that are there')
    parser.add_argument('--json', type=Path, help='also write the figures there')
    parser.add_argument('--part', choices=PARTS, help=argparse.SUPPRESS)  # of the processes that it starts itself
    args = parser.parse_args()
    if args.part:
        print(json.dumps(run_part(args.part, args)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / 'detector.pth').exists():
            build(args.data, folder, args.images)
        figures = {}
        for name in args.parts:
            command = [sys.executable, __file__, '--part', name, '--folder', str(folder), '--images', str(args.images),
                       '--network-seconds', str(args.network_seconds)]
            done = subprocess.run(command, capture_output=True, text=True, env=dict(os.environ))
            if done.returncode:
                sys.exit(f'{name} failed:\n{done.stderr}')
            one = figures[name] = json.loads(done.stdout.splitlines()[-1])
            print(f"{name}: {one['wall']:.1f} s, {1e3 * one['wall'] / args.images:.2f} ms an image; processor "
                  f"{one['processor']:.1f} s; MB {', '.join(f'{value:.0f}' for value in one['memory'])}", flush=True)
            for step, seconds in one['steps'].items():
                print(f'    {step:30s} {1e3 * seconds / args.images:9.2f} ms an image', flush=True)
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == '__main__':
    main()
