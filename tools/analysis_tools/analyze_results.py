"""The images on which saved results are best and worst, drawn beside their ground truth.

    python tools/test.py CONFIG CHECKPOINT --out results.pkl
    python tools/analysis_tools/analyze_results.py CONFIG results.pkl out --topk 20 --show-score-thr 0.3

out/good and out/bad hold one file an image, its name ending in the image's own average precision (the mean over IoU
0.50 to 0.95 and the classes that it shows); out/scores.json lists all. Images without objects have none and are left
out.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, DataError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Draw the best and the worst images of saved results.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its data.test is what the results are of')
    parser.add_argument('prediction_path', help='results file of tools/test.py --out')
    parser.add_argument('show_dir', help='folder for the images')
    parser.add_argument('--show', action='store_true', help='also show them in windows')
    parser.add_argument('--wait-time', type=float, default=0,
                        help='seconds that each is shown; 0: until a key (default)')
    parser.add_argument('--topk', type=int, default=20, help='images of each kind (default: %(default)s)')
    parser.add_argument('--show-score-thr', type=float, default=0, help='draw detections above this score '
                        '(default: %(default)s)')
    parser.add_argument('--metric', choices=['bbox', 'segm'], default='bbox',
                        help='judge boxes or masks (default: bbox)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if args.topk < 1:
        raise ConfigError(f'--topk {args.topk}: it is 1 at least')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    import numpy as np

    from boxdet.apis.output_names import image_names
    from boxdet.apis.saved_results import open_results
    from boxdet.evaluation.operating_points import image_scores
    from boxdet.files.writing import write_json

    _, dataset, results = open_results(args.config, args.prediction_path, args.cfg_options)
    scores = image_scores(dataset, results, args.metric)
    judged = np.flatnonzero(scores >= 0)
    if not len(judged):
        raise DataError('no image of data.test has an object: there is nothing to judge')
    order = judged[np.argsort(-scores[judged], kind='stable')]
    count = min(args.topk, len(order) // 2 or 1)
    if count < args.topk:
        print(f'{len(order)} images have objects: {count} of each kind are drawn')
    folder = Path(args.show_dir)
    names = image_names(dataset, endings=False)
    for kind, chosen in (('good', order[:count]), ('bad', order[::-1][:count])):
        for index in chosen.tolist():
            path = folder / kind / f"{names[index].replace('/', '_')}_{scores[index]:.3f}.jpg"
            draw(dataset, results[index], index, float(scores[index]), path, args)
        print(f'{kind}: {folder / kind}/, average precision {scores[chosen].min():.3f} to {scores[chosen].max():.3f}')
    full = image_names(dataset)
    write_json(folder / 'scores.json', {full[index]: float(scores[index]) for index in order.tolist()})


def draw(dataset: Any, result: Any, index: int, score: float, path: Path, args: argparse.Namespace) -> None:
    """The ground truth and the detections of one image, side by side."""
    from boxdet.apis.saved_results import ground_truth, image_of
    from boxdet.visualization.draw import draw_instances, show, write_image
    from boxdet.visualization.figures import image_grid

    name, image = image_of(dataset, index, result.image_size)
    truth = ground_truth(dataset, index)
    options = dict(palette=getattr(dataset, 'PALETTE', None), skeleton=getattr(dataset, 'SKELETON', ()))
    shown = result[result.scores > args.show_score_thr]
    sheet = image_grid(
        [draw_instances(image, truth, dataset.CLASSES, **options),
         draw_instances(image, shown, dataset.CLASSES, score_thr=args.show_score_thr, **options)], columns=2,
        tile=max(480, min(960, max(image.shape[:2]))),
        titles=[f'ground truth: {len(truth)} objects', f'{len(shown)} detections, AP {score:.3f}'])
    write_image(sheet, path)
    if args.show:
        show(sheet, name, args.wait_time)


if __name__ == '__main__':
    run_command(main)
