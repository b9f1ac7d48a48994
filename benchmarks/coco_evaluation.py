#!/usr/bin/env python
"""Time COCO's and LVIS's evaluation against the reference evaluators and faster-coco-eval, and compare every number.

    python benchmarks/coco_evaluation.py [--kind masks] [--images 5000] [--detections 100] [--rounds 1]

The images of coco_mini val2017 are repeated under new ids until there are --images; each has --detections detections,
which are its objects moved, doubled, mislabelled and scored at random. --kind masks evaluates boxes and masks; in
keypoints all objects are people, whose 17 keypoints are drawn inside their boxes; in lvis there are 1,203 classes, few
of them frequent, and each image lists the classes that were searched for in it (300 detections by default).

Every side runs in a process of its own, one after the other in every round, and reads the annotation file and its
results file (the others COCO's JSON; boxdet results.pkl, as tools/test.py --out writes it): pycocotools, of lvis the
package lvis; boxdet in one process (nproc=1); boxdet as it comes, with the machine's processes; faster-coco-eval, where
it can be imported (its IoUs of masks run in threads). Seconds are wall time from the start of reading to the last
number, without imports, and of the evaluation alone, once the files are read, as it is behind a test or in a training.
CPU seconds count all processes. Memory is the peak of the whole process, PyTorch's own included on our side, and of
several processes the peak of what they hold together, looked at in a run that is not timed. Ends with status 1 when a
number of boxdet differs from the reference by more than 1e-9.
"""
import argparse
import contextlib
import importlib.util
import io
import json
import os
import re
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
KINDS = dict(masks=('bbox', 'segm'), keypoints=('keypoints',), lvis=('bbox', 'segm'))
LVIS_CLASSES = 1203


# --- the data ---

def build(source: Path, folder: Path, kind: str, images: int, detections: int, seed: int = 0) -> None:
    """Write ``ann.json``, ``results.pkl`` and the results of each kind as COCO's JSON into ``folder``."""
    from boxdet.evaluation import format_results, save_results
    from boxdet.evaluation.stored_results import StoredResults

    rng = np.random.default_rng(seed)
    data = json.loads((source / 'annotations/instances_val2017.json').read_text())
    if kind == 'keypoints':
        make_people(data, rng)
    by_image = {image['id']: [] for image in data['images']}
    for annotation in data['annotations']:
        by_image[annotation['image_id']].append(annotation)
    if kind == 'lvis':
        make_federated(data, by_image, rng)
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
    format_results(open_dataset(folder, kind), results, folder / 'coco')


def make_federated(data: dict, by_image: dict[int, list[dict]], rng: np.random.Generator) -> None:
    """Give the objects classes of LVIS's number, by its long tail, and each image its lists of classes."""
    share = 1 / np.arange(1, LVIS_CLASSES + 1)
    data['categories'] = [dict(id=k + 1, name=f'class {k}', frequency='f' if k < 400 else 'c' if k < 850 else 'r')
                          for k in range(LVIS_CLASSES)]
    for image in data['images']:
        own = by_image[image['id']]
        for annotation in own:
            annotation.update(category_id=int(rng.choice(LVIS_CLASSES, p=share / share.sum())) + 1, iscrowd=0)
        shown = {annotation['category_id'] for annotation in own}
        image['neg_category_ids'] = [int(c) for c in rng.permutation(LVIS_CLASSES)[:30] + 1 if c not in shown]
        image['not_exhaustive_category_ids'] = [c for c in shown if rng.random() < 0.1]


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


def open_dataset(folder: Path, kind: str):
    from boxdet.datasets import CocoDataset, CocoKeypointDataset
    from boxdet.datasets.lvis import LVISV1Dataset
    cls = dict(masks=CocoDataset, keypoints=CocoKeypointDataset, lvis=LVISV1Dataset)[kind]
    return cls(str(folder / 'ann.json'), [], test_mode=True)


# --- the sides, each in a process of its own ---

_BOXES = ['mAP', 'mAP_50', 'mAP_75', 'mAP_s', 'mAP_m', 'mAP_l']
ITEMS = dict(
    masks=[*_BOXES, 'AR@1', 'AR@10', 'AR@100', 'AR_s@100', 'AR_m@100', 'AR_l@100'],
    keypoints=['mAP', 'mAP_50', 'mAP_75', 'mAP_m', 'mAP_l', 'AR', 'AR_50', 'AR_75', 'AR_m', 'AR_l'],
    lvis=['AP', 'AP50', 'AP75', 'APs', 'APm', 'APl', 'APr', 'APc', 'APf'])


_reading = []  # seconds


@contextlib.contextmanager
def read():
    """Counts as reading, not as evaluation."""
    begin = time.perf_counter()
    yield
    _reading.append(time.perf_counter() - begin)


def side_boxdet(folder: Path, kind: str, nproc: int | None = None) -> dict[str, list[float]]:
    from boxdet.evaluation import evaluate, load_results
    options = dict(masks=dict(proposal_nums=(1, 10, 100), metric_items=ITEMS[kind]),
                   keypoints=dict(metric_items=ITEMS[kind]), lvis={})[kind]
    with read():
        data = open_dataset(folder, kind)
        results = load_results(folder / 'results.pkl', nproc)
    values = evaluate(data, results, KINDS[kind], logger='silent', nproc=nproc, **options)
    return {metric: [values[f'{metric}_{item}'] for item in ITEMS[kind]] for metric in KINDS[kind]}


def side_one_process(folder: Path, kind: str) -> dict[str, list[float]]:
    return side_boxdet(folder, kind, nproc=1)


def side_reference(folder: Path, kind: str) -> dict[str, list[float]]:
    if kind == 'lvis':
        return with_lvis(folder)
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval
    return with_coco_classes(folder, kind, COCO, COCOeval)


def side_faster_coco_eval(folder: Path, kind: str) -> dict[str, list[float]]:
    from faster_coco_eval import COCO, COCOeval_faster
    return with_coco_classes(folder, kind, COCO, COCOeval_faster, **(dict(lvis_style=True) if kind == 'lvis' else {}))


def with_lvis(folder: Path) -> dict[str, list[float]]:
    from lvis import LVIS, LVISEval, LVISResults
    np.float = float  # a name of old numpy, by which lvis still calls it
    stats = {}
    with read():
        truth = LVIS(str(folder / 'ann.json'))
    for metric in KINDS['lvis']:
        with read():
            results = LVISResults(truth, str(folder / f'coco.{metric}.json'))
        evaluation = LVISEval(truth, results, metric)
        evaluation.run()
        stats[metric] = [float(evaluation.get_results()[item]) for item in ITEMS['lvis']]
    return stats


def with_coco_classes(folder: Path, kind: str, coco_class: type, evaluator: type, **options) -> dict[str, list[float]]:
    stats = {}
    with read():
        truth = coco_class(str(folder / 'ann.json'))
    for metric in KINDS[kind]:
        with read():
            results = truth.loadRes(str(folder / f'coco.{metric}.json'))
        evaluation = evaluator(truth, results, metric, **options)
        if kind == 'lvis':
            evaluation.params.maxDets = [300]
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
        values = list(evaluation.stats[:len(ITEMS[kind])])
        if kind == 'lvis':
            values[6:] = list(evaluation.all_stats[-3:])
        stats[metric] = [float(value) for value in values]
    return stats


REFERENCE = 'pycocotools'  # for COCO's metrics; of LVIS's it is lvis
# What each side imports, which is not timed.
IMPORTS = {REFERENCE: ['pycocotools.cocoeval', 'lvis'], 'faster-coco-eval': ['faster_coco_eval'], 'boxdet': [
    'boxdet.datasets', 'boxdet.datasets.lvis', 'boxdet.evaluation', 'boxdet.evaluation.coco_metrics',
    'boxdet.evaluation.lvis']}
IMPORTS['boxdet, one process'] = IMPORTS['boxdet']
SIDES = {REFERENCE: side_reference, 'boxdet, one process': side_one_process, 'boxdet': side_boxdet,
         'faster-coco-eval': side_faster_coco_eval}


def measured(name: str, folder: Path, kind: str) -> dict:
    """The numbers of a side, in this process, with its time and memory."""
    for module in IMPORTS[name]:
        with contextlib.suppress(ModuleNotFoundError):  # lvis, where COCO's metrics are compared
            importlib.import_module(module)
    begin, cpu = time.perf_counter(), sum(os.times()[:4])
    with contextlib.redirect_stdout(io.StringIO()):
        found = SIDES[name](folder, kind)
    seconds = time.perf_counter() - begin
    return dict(found, seconds=seconds, evaluation=seconds - sum(_reading), cpu=sum(os.times()[:4]) - cpu,
                megabytes=peak_megabytes())


def run_side(name: str, folder: Path, kind: str, watch: bool = False) -> dict:
    """What ``measured`` gives, from a new process; with the memory of all of its processes where they are watched."""
    command = [sys.executable, __file__, '--side', name, '--folder', str(folder), '--kind', kind]
    with tempfile.TemporaryFile('w+') as said, tempfile.TemporaryFile('w+') as errors:
        process = subprocess.Popen(command, stdout=said, stderr=errors, env={**os.environ, 'OMP_NUM_THREADS': '1'},
                                   start_new_session=True)
        most = 0.
        while watch and process.poll() is None:
            most = max(most, session_megabytes(process.pid))
            time.sleep(0.05)
        process.wait()
        for file in (said, errors):
            file.seek(0)
        if process.returncode:
            sys.exit(f'{name} failed:\n{errors.read()}')
        found = json.loads(said.read().splitlines()[-1])
    return dict(found, megabytes=most) if watch else found


def session_megabytes(session: int) -> float:
    """What the processes of a session hold now: pages that several share count once, those of files as of one."""
    own, of_files = 0, 0
    for entry in Path('/proc').glob('[0-9]*'):
        with contextlib.suppress(OSError):  # it has ended
            if os.getsid(int(entry.name)) == session:
                rows = dict(re.findall(r'^(\w+): +(\d+) kB', (entry / 'smaps_rollup').read_text(), re.MULTILINE))
                own += int(rows['Pss_Anon']) + int(rows['Pss_Shmem'])
                of_files = max(of_files, int(rows['Rss']) - int(rows['Anonymous']))
    return (own + of_files) / 1024


def peak_megabytes() -> float:
    """The most memory that this program had; the kernel's ru_maxrss would count what started it, too."""
    status = Path('/proc/self/status').read_text()
    return int(status.partition('VmHWM:')[2].split()[0]) / 1024


# --- the comparison ---

def compare(folder: Path, kind: str, rounds: int) -> bool:
    """Print the table; returns whether all numbers of boxdet are the reference's."""
    sides = [side for side in SIDES if side != 'faster-coco-eval' or importlib.util.find_spec('faster_coco_eval')]
    runs = {side: [] for side in sides}
    for _ in range(rounds):
        for side in sides:
            runs[side].append(run_side(side, folder, kind))
    columns = dict(seconds='seconds', evaluation='alone, s', cpu='CPU s', megabytes='peak MB')
    medians = {side: {key: statistics.median(run[key] for run in runs[side]) for key in columns} for side in sides}
    medians['boxdet']['megabytes'] = run_side('boxdet', folder, kind, watch=True)['megabytes']
    print(f"{kind:20}" + ''.join(f'{name:>9}{"times less":>12}' for name in columns.values()) + f"{'difference':>12}")
    base, equal = runs[REFERENCE][0], True
    for side in sides:
        difference = max(abs(a - b) for metric in KINDS[kind] for a, b in zip(runs[side][0][metric], base[metric]))
        own, slowest = medians[side], medians[REFERENCE]
        name = 'lvis' if side == REFERENCE and kind == 'lvis' else side
        print(f'{name:20}' + ''.join(f'{own[key]:9.2f}{slowest[key] / max(own[key], 0.01):12.2f}' for key in columns)
              + f'{difference:12.1g}')
        equal &= difference <= 1e-9 or not side.startswith('boxdet')
    for metric in KINDS[kind]:
        print(f"{metric}: AP {base[metric][0]:.4f}, AP50 {base[metric][1]:.4f}")
    return equal


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--data', type=Path, default=ROOT.parent / 'shared/data/coco_mini', help='folder of coco_mini')
    parser.add_argument('--kind', choices=KINDS, default='masks', help='what is evaluated (default: %(default)s)')
    parser.add_argument('--images', type=int, default=5000, help='default: %(default)s; 500 for a quick look')
    parser.add_argument('--detections', type=int, help='of each image (default: 100, of lvis 300)')
    parser.add_argument('--rounds', type=int, default=1, help='of all sides (default: %(default)s)')
    parser.add_argument('--folder', type=Path, help='keep the files there, and use those that are there')
    parser.add_argument('--side', choices=SIDES, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.side:
        print(json.dumps(measured(args.side, args.folder, args.kind)))
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / 'results.pkl').exists():
            detections = args.detections or (300 if args.kind == 'lvis' else 100)
            build(args.data, folder, args.kind, args.images, detections)
        equal = compare(folder, args.kind, args.rounds)
    sys.exit(0 if equal else 1)


if __name__ == '__main__':
    main()
