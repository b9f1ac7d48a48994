#!/usr/bin/env python
"""What half precision or eight bits change: results that stay, on images of a folder, and AP on the config's test data.

    python benchmarks/precision.py CONFIG CHECKPOINT [--folder ../shared/data/coco_mini/val2017] [--precision bf16]
        [--calibration photos/] [--score-thr 0.05] [--quick] [--device cuda] [--cfg-options KEY=VALUE ...]
        [--json out.json]

A result of float32 stays when the other precision has one of its label with an IoU of 0.9 or more; each is the
counterpart of one only, the best first. AP is that of boxdet.evaluation on the same data for both.
"""
import argparse
import json
import sys
import warnings
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
warnings.filterwarnings('ignore')


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config')
    parser.add_argument('checkpoint')
    parser.add_argument('--folder', type=Path, help='images to compare results on')
    parser.add_argument('--precision', default='bf16', choices=['bf16', 'fp16', 'int8'])
    parser.add_argument('--calibration', type=Path, help="for int8: images like the test data's, and not those")
    parser.add_argument('--score-thr', type=float, default=0.05)
    parser.add_argument('--quick', action='store_true', help='20 images of each')
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--cfg-options', nargs='+', default=[], metavar='KEY=VALUE')
    parser.add_argument('--json')
    return parser.parse_args()


def kept(plain, half) -> int:
    """Results of ``plain`` that have a counterpart in ``half``."""
    from torchvision.ops import box_iou
    if not len(plain) or not len(half):
        return 0
    overlap = box_iou(plain.bboxes, half.bboxes) * (plain.labels[:, None] == half.labels)
    count = 0
    for row in range(len(plain)):
        best = int(overlap[row].argmax())
        if overlap[row, best] >= 0.9:
            overlap[:, best] = 0
            count += 1
    return count


def main() -> None:
    args = parse_args()
    from boxdet.apis import inference_detector, init_detector
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import load_config
    from boxdet.engine.environment import slow_in
    from boxdet.evaluation.evaluate import evaluate
    from boxdet.models.folding import PRECISIONS

    if args.precision == 'int8' and args.calibration is None:
        sys.exit('int8 needs --calibration FOLDER')
    if args.precision != 'int8' and slow_in(PRECISIONS[args.precision], args.device):
        sys.exit(f'{args.precision}: this processor has no instructions for it; init_detector would take float32')
    cfg = load_config(args.config, args.cfg_options)
    models = {name: init_detector(cfg, args.checkpoint, device=args.device, precision=name,
                                  calibration=args.calibration)
              for name in ('fp32', args.precision)}
    numbers = {}
    if args.folder:
        files = sorted(str(p) for p in args.folder.iterdir() if p.suffix.lower() in ('.jpg', '.jpeg', '.png'))
        plain, half = (inference_detector(model, files[:20] if args.quick else files) for model in models.values())
        plain = [r[r.scores > args.score_thr] for r in plain]
        total, same = sum(map(len, plain)), sum(map(kept, plain, half))
        numbers['matched'] = same / max(total, 1)
        print(f'{args.folder}: {same} of {total} results stay ({100 * numbers["matched"]:.1f} %)')
    data = build_dataset({**cfg.data.test, 'test_mode': True})
    metric = ['bbox', 'segm'] if next(iter(models.values())).with_mask else ['bbox']
    for name, model in models.items():
        files = [str(Path(data.img_prefix or '') / data.img_info(i)['filename']) for i in range(len(data))]
        numbers[name] = evaluate(data, inference_detector(model, files), metric=metric)
    for key in (f'{m}_mAP' for m in metric):
        plain, half = numbers['fp32'][key], numbers[args.precision][key]
        print(f'{key}: fp32 {100 * plain:.2f}, {args.precision} {100 * half:.2f}, '
              f'difference {100 * (half - plain):+.2f} points')
    if args.json:
        Path(args.json).write_text(json.dumps(numbers, indent=1, default=str))


if __name__ == '__main__':
    main()
