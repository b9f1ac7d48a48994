#!/usr/bin/env python
"""Time COCO evaluation of boxes and masks, or of keypoints, against pycocotools, and compare every number.

    python benchmarks/coco_evaluation.py --data ../shared/data/coco_mini [--images 5000] [--detections 100] [--rounds 1]
        [--keypoints]

The images of coco_mini val2017 are repeated under new ids until there are --images; each has --detections detections,
which are its objects moved, doubled, mislabelled and scored at random, as boxes and as masks; with --keypoints all
objects are people, whose 17 keypoints are drawn inside their boxes. Every side runs in a process of its own, one after
the other in every round, and reads the annotation file and its results file (pycocotools: COCO's JSON, by loadRes;
boxdet: results.pkl, as tools/test.py --out writes it). Seconds are wall time from the start of reading to the last
number, without imports (CPU seconds tell more on a machine that does other things); memory is the peak of the whole
process, PyTorch's own included on our side. faster-coco-eval, where it is installed, is a third side, for comparison.
Ends with status 1 when a number differs by more than 1e-9.
"""
import argparse
import contextlib
import io
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

VARIANTS = 4  # different detections of the same image
GOALS = dict(time=8, memory=3)


# --- the data ---

def build(source: Path, folder: Path, images: int, detections: int, keypoints: bool = False, seed: int = 0) -> None:
    """Write ``ann.json``, ``results.pkl`` and the results of each kind as COCO's JSON into ``folder``."""
    from boxdet.evaluation import format_results, save_results
    from boxdet.evaluation.stored_results import StoredResults

    rng = np.random.default_rng(seed)
    data = json.loads((source / 'annotations/instances_val2017.json').read_text())
    if keypoints:
        make_people(data, rng)
    by_image = {image['id']: [] for image in data['images']}
    for annotation in data['annotations']:
        by_image[annotation['image_id']].append(annotation)
    category_ids = sorted(c['id'] for c in data['categories'])
    variants = [[perturbed(image, by_image[image['id']], category_ids, detections, rng) for _ in range(VARIANTS)]
                for image in data['images']]
    entries, annotations, results = [], [], StoredResults(images)
    for index in range(images):
        image = data['images'][index % len(data['images'])]
        entries.append({**image, 'id': index + 1})
        annotations += [{**a, 'id': len(annotations) + k + 1, 'image_id': index + 1}
                        for k, a in enumerate(by_image[image['id']])]
        results.put(index, rescored(variants[index % len(variants)][rng.integers(VARIANTS)], rng))
    (folder / 'ann.json').write_text(json.dumps({**data, 'images': entries, 'annotations': annotations}))
    save_results(results, folder / 'results.pkl')
    format_results(open_dataset(folder, keypoints), results, folder / 'coco')


def make_people(data: dict, rng: np.random.Generator) -> None:
    """Give every object the class person and 17 keypoints, two thirds of them visible."""
    from boxdet.datasets import CocoKeypointDataset
    data['categories'] = [dict(id=1, name='person', keypoints=list(CocoKeypointDataset.KEYPOINT_NAMES), skeleton=[])]
    for annotation in data['annotations']:
        x, y, w, h = annotation['bbox']
        points = np.concatenate([rng.random((17, 2)) * (w, h) + (x, y), rng.integers(0, 3, (17, 1))], axis=1)
        points[points[:, 2] == 0] = 0
        annotation.update(category_id=1, keypoints=points.ravel().tolist(), num_keypoints=int((points[:, 2] > 0).sum()))


def perturbed(image: dict, annotations: list[dict], category_ids: list[int], count: int, rng: np.random.Generator):
    """``count`` detections made of the objects of one image."""
    import torch
    from pycocotools import mask as coco_masks

    from boxdet.structures.instances import Instances
    from boxdet.structures.masks import BitmapMasks, RleMasks

    size = image['height'], image['width']
    bitmaps = BitmapMasks.from_coco([a['segmentation'] for a in annotations], *size).to_bitmaps()
    boxes, labels, rles, points = np.zeros((count, 4)), np.zeros(count, np.int64), [], []
    for k in range(count):
        annotation = annotations[k % len(annotations)]
        x, y, w, h = annotation['bbox']
        # The first of each object are near it, the others far off, as of a detector.
        spread = 0.05 * 2 ** min(k // len(annotations), 4)
        noise = rng.normal(0, spread, 4) * (w, h, w, h)
        boxes[k] = np.clip(np.array([x, y, x + w, y + h]) + noise, 0, [*size[::-1]] * 2)
        wrong = rng.random() < 0.2
        labels[k] = rng.integers(len(category_ids)) if wrong else category_ids.index(annotation['category_id'])
        if 'keypoints' in annotation:
            own = np.reshape(annotation['keypoints'], (17, 3)) + 0.5  # pixels to coordinates
            own[:, :2] += rng.normal(0, spread / 2, (17, 2)) * (w, h)
            points.append(own)
        shift = np.rint(noise[[1, 0]]).astype(int)
        rles.append(coco_masks.encode(np.asfortranarray(np.roll(bitmaps[k % len(annotations)], shift, axis=(0, 1)))))
    more = dict(keypoints=torch.tensor(np.array(points), dtype=torch.float32)) if points else dict(
        masks=RleMasks(rles, *size))
    return Instances(size, len(category_ids), bboxes=torch.tensor(boxes, dtype=torch.float32),
                     scores=torch.rand(count), labels=torch.from_numpy(labels), **more)


def rescored(result, rng: np.random.Generator):
    """The same detections with other scores, best first, as a detector gives them."""
    import torch
    scores = torch.from_numpy(np.sort(rng.random(len(result)))[::-1].astype(np.float32))
    return result[torch.from_numpy(rng.permutation(len(result)))].replace(scores=scores)


def open_dataset(folder: Path, keypoints: bool):
    from boxdet.datasets import CocoDataset, CocoKeypointDataset
    kind = CocoKeypointDataset if keypoints else CocoDataset
    return kind(str(folder / 'ann.json'), [], test_mode=True)


def kinds_of(folder: Path) -> tuple[str, ...]:
    """What is evaluated there."""
    return ('keypoints',) if (folder / 'coco.keypoints.json').exists() else ('bbox', 'segm')


# --- the sides, each in a process of its own ---

ITEMS = dict(keypoints=['mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l'])
for _kind in ('bbox', 'segm'):
    ITEMS[_kind] = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l', 'AR@1', 'AR@10', 'AR@100', 'AR_s@100',
                    'AR_m@100', 'AR_l@100']


def side_boxdet(folder: Path) -> dict[str, list[float]]:
    from boxdet.evaluation import evaluate, load_results
    begin, cpu = time.perf_counter(), time.process_time()
    kinds = kinds_of(folder)
    numbers = {} if kinds == ('keypoints',) else dict(proposal_nums=(1, 10, 100))
    data = open_dataset(folder, 'keypoints' in kinds)
    values = evaluate(data, load_results(folder / 'results.pkl'), kinds, logger='silent', metric_items=ITEMS[kinds[0]],
                      **numbers)
    stats = {kind: [values[f'{kind}_{item}'] for item in ITEMS[kind]] for kind in kinds}
    return dict(stats, seconds=time.perf_counter() - begin, cpu=time.process_time() - cpu)


def side_pycocotools(folder: Path) -> dict[str, list[float]]:
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    return with_coco_classes(folder, COCO, COCOeval)


def side_faster_coco_eval(folder: Path) -> dict[str, list[float]]:
    from faster_coco_eval import COCO, COCOeval_faster
    return with_coco_classes(folder, COCO, COCOeval_faster)


def with_coco_classes(folder: Path, coco_class: type, evaluator: type) -> dict[str, list[float]]:
    begin, cpu, stats = time.perf_counter(), time.process_time(), {}
    with contextlib.redirect_stdout(io.StringIO()):
        truth = coco_class(str(folder / 'ann.json'))
        for kind in kinds_of(folder):
            evaluation = evaluator(truth, truth.loadRes(str(folder / f'coco.{kind}.json')), kind)
            evaluation.evaluate()
            evaluation.accumulate()
            evaluation.summarize()
            stats[kind] = [float(value) for value in evaluation.stats[:len(ITEMS[kind])]]
    return dict(stats, seconds=time.perf_counter() - begin, cpu=time.process_time() - cpu)


SIDES = {'pycocotools': side_pycocotools, 'boxdet': side_boxdet, 'faster-coco-eval': side_faster_coco_eval}


def run_side(name: str, folder: Path) -> dict:
    """What ``--side name`` prints, from a new process."""
    environment = {**os.environ, 'OMP_NUM_THREADS': '1'}
    command = [sys.executable, __file__, '--side', name, '--folder', str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        sys.exit(f'{name} failed:\n{done.stderr}')
    return json.loads(done.stdout.splitlines()[-1])


def peak_megabytes() -> float:
    """The most memory that this program had; the kernel's ru_maxrss would count what started it, too."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 1024


# --- the comparison ---

def compare(folder: Path, rounds: int) -> bool:
    """Print the table; returns whether all numbers are equal."""
    sides = ['pycocotools', 'boxdet']
    with contextlib.suppress(ImportError):
        import faster_coco_eval  # noqa: F401
        sides.append('faster-coco-eval')
    runs = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side].append(run_side(side, folder))
    columns = dict(seconds='seconds', cpu='CPU s', megabytes='peak MB')
    medians = {side: {key: statistics.median(run[key] for run in runs[side]) for key in columns} for side in sides}
    print(f"{'':18}" + ''.join(f'{name:>9}{"times less":>12}' for name in columns.values()) + f"{'difference':>12}")
    base, kinds = runs['pycocotools'][0], kinds_of(folder)
    for side in sides:
        difference = max(abs(a - b) for kind in kinds for a, b in zip(runs[side][0][kind], base[kind]))
        own, slowest = medians[side], medians['pycocotools']
        print(f'{side:18}' + ''.join(f'{own[key]:9.1f}{slowest[key] / own[key]:12.1f}' for key in columns)
              + f'{difference:12.1g}')
        if side == 'boxdet':
            equal = difference <= 1e-9
    for kind in kinds:
        print(f"{kind}: AP {runs['boxdet'][0][kind][0]:.4f}, AP50 {runs['boxdet'][0][kind][1]:.4f}")
    print(f"goals: {GOALS['time']} times less time, {GOALS['memory']} times less memory, difference 1e-9 at most")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data/coco_mini', help='folder of coco_mini')
    parser.add_argument('--images', type=int, default=5000, help='default: %(default)s; 500 for a quick look')
    parser.add_argument('--detections', type=int, default=100, help='of each image (default: %(default)s)')
    parser.add_argument('--rounds', type=int, default=1, help='of all sides (default: %(default)s)')
    parser.add_argument('--keypoints', action='store_true', help='evaluate keypoints, and not boxes and masks')
    parser.add_argument('--folder', type=Path, help='keep the files there, and use those that are there')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        found = SIDES[args.side](args.folder)
        print(json.dumps(dict(found, megabytes=peak_megabytes())))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / 'results.pkl').exists():
            build(args.data, folder, args.images, args.detections, args.keypoints)
        equal = compare(folder, args.rounds)
    sys.exit(0 if equal else 1)


if __name__ == '__main__':
    main()
