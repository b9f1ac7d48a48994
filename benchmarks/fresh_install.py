"""The wheel in empty environments: train on the demo's data, export, and run the file without torch.

    python benchmarks/fresh_install.py FOLDER [--epochs 2] [--keep]

It builds wheel and sdist, has twine check them, and makes two environments in FOLDER from the machine's package
index: one of `boxdet[export]` (some 6 GB), which draws the data, trains, exports and detects; and one of numpy,
onnxruntime and Pillow, in which runtime.py detects on the same images. The exit status is 1 where less than 99 of 100
detections are equal (docs/export.md#parity). The environments are removed at the end, unless --keep says otherwise.
"""
from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
CONFIG = 'mask_rcnn_r18w32_fpn_shapes'  # the demo's
BOX, SCORE, MASK_IOU, WANTED = 0.05, 5e-4, 0.995, 0.99


def run(*command: str | Path, folder: Path, quiet: bool = False) -> float:
    """Run a command in ``folder`` with nothing of this environment's Python; returns its seconds."""
    environment = {key: value for key, value in os.environ.items() if not key.startswith('PYTHON')}
    began = time.monotonic()
    print('$', *command, flush=True)
    subprocess.run(list(map(str, command)), cwd=folder, check=True, env=environment,
                   stdout=subprocess.DEVNULL if quiet else None)
    return time.monotonic() - began


def environment(folder: Path, *packages: str) -> Path:
    """The bin folder of a new environment with ``packages``."""
    venv.create(folder, with_pip=True, clear=True)
    seconds = run(folder / 'bin/python', '-m', 'pip', 'install', '--quiet', '--disable-pip-version-check',
                  '--no-cache-dir', *packages, folder=folder)
    print(f'{folder.name}: installed in {seconds:.0f} s')
    return folder / 'bin'


def build(folder: Path) -> Path:
    """The wheel, built from the sdist; twine checks both."""
    run(sys.executable, '-m', 'build', '--outdir', folder, ROOT, folder=ROOT, quiet=True)
    run(sys.executable, '-m', 'twine', 'check', '--strict', *sorted(folder.iterdir()), folder=ROOT)
    return next(folder.glob('*.whl'))


# Runs in the first environment, for pycocotools: prints how many detections have a counterpart, and of how many.
COMPARE = """
import json, sys
from pycocotools.mask import iou
box, score, mask_iou = map(float, sys.argv[3:])
ours = json.load(open(sys.argv[1]))
other = json.load(open(sys.argv[2]))
names = {image['id']: image['file_name'] for image in ours['images']}
order = {name: place + 1 for place, name in enumerate(sorted(names.values()))}
free = {}
for row in other:
    free.setdefault(row['image_id'], []).append(row)
equal, threshold = 0, ours['info']['score_thr']
for row in ours['annotations']:
    for found in free.get(order[names[row['image_id']]], []):
        if (found['category_id'] == row['category_id'] and abs(found['score'] - row['score']) <= score
                and max(abs(a - b) for a, b in zip(found['bbox'], row['bbox'])) <= box
                and iou([found['segmentation']], [row['segmentation']], [0])[0, 0] >= mask_iou):
            free[order[names[row['image_id']]]].remove(found)
            equal += 1
            break
found = sum(row['score'] >= threshold for row in other)
print(json.dumps(dict(equal=equal, boxdet=len(ours['annotations']), runtime=found)))
"""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0])
    parser.add_argument('folder', type=Path, help='a folder that is not there yet')
    parser.add_argument('--epochs', type=int, default=2, help='of the training (default: %(default)s)')
    parser.add_argument('--keep', action='store_true', help='keep the environments')
    args = parser.parse_args()
    folder = args.folder.resolve()
    work = folder / 'work'
    work.mkdir(parents=True)
    wheel = build(folder / 'dist')
    try:
        bin_ = environment(folder / 'full', f'{wheel}[export]')
        boxdet = bin_ / 'boxdet'
        run(bin_ / 'python', '-c', 'import sys, torch, torchvision, boxdet; print(sys.version.split()[0], '
            'torch.__version__, torchvision.__version__, boxdet.__file__)', folder=work)
        run(boxdet, 'make_shapes', folder=work, quiet=True)
        data = [f'data/shapes/annotations/instances_{split}.json' for split in ('train', 'val')]
        run(boxdet, 'check', CONFIG, '--data', *data, folder=work)
        seconds = run(boxdet, 'train', CONFIG, '--data', *data, '--seed', '0', '--device', 'cpu', '--cfg-options',
                      f'runner.max_epochs={args.epochs}', f'evaluation.interval={args.epochs}', folder=work, quiet=True)
        results = work / 'work_dirs' / CONFIG
        last = json.loads(next(results.glob('*.log.json')).read_text().splitlines()[-1])
        print(f"trained {args.epochs} epochs in {seconds:.0f} s: box mAP {last['bbox_mAP']:.3f}, mask mAP "
              f"{last['segm_mAP']:.3f}")
        model = [results / f'{CONFIG}.py', results / 'latest.pth']
        images = sorted((work / 'data/shapes/val').iterdir())
        seconds = run(boxdet, 'export', *model, 'detector.onnx', '--batch', '1', '--with-runtime', folder=work)
        print(f'exported in {seconds:.0f} s')
        run(boxdet, 'infer', 'data/shapes/val', *model, '--device', 'cpu', '--score-thr', '0.05', '--out', 'found.json',
            folder=work, quiet=True)
        small = environment(folder / 'small', 'numpy', 'onnxruntime', 'pillow')
        run(small / 'python', '-c', 'import importlib.util as u; assert not u.find_spec("torch") and not '
            'u.find_spec("boxdet")', folder=work)
        run(small / 'python', 'runtime.py', 'detector.onnx', *images, '--out', 'predictions.json', folder=work)
        compared = subprocess.run(
            [bin_ / 'python', '-c', COMPARE, 'found.json', 'predictions.json', str(BOX), str(SCORE), str(MASK_IOU)],
            cwd=work, check=True, capture_output=True, text=True).stdout
    finally:
        for name in () if args.keep else ('full', 'small'):
            shutil.rmtree(folder / name, ignore_errors=True)
    counts = json.loads(compared)
    share = counts['equal'] / max(counts['boxdet'], counts['runtime'], 1)
    print(f'{len(images)} images: {counts["equal"]} of {counts["boxdet"]} detections equal without torch (there '
          f'{counts["runtime"]}; {share:.2%})')
    return 0 if share >= WANTED and counts['boxdet'] else 1


if __name__ == '__main__':
    sys.exit(main())
