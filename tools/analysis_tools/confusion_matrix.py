"""The confusion matrix of saved results: what the objects of each class were taken for.

    python tools/test.py CONFIG CHECKPOINT --out results.pkl
    python tools/analysis_tools/confusion_matrix.py CONFIG results.pkl out --score-thr 0.3

Detections and objects of one class are matched first, as for average precision; what is left is matched whatever the
class. The last row holds detections where nothing is, the last column objects that were missed.
out/confusion_matrix.png shows each row in percent, out/confusion_matrix.json holds the counts.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Draw the confusion matrix of saved results.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its data.test is what the results are of')
    parser.add_argument('prediction_path', help='results file of tools/test.py --out')
    parser.add_argument('save_dir', help='folder for confusion_matrix.png and .json')
    parser.add_argument('--show', action='store_true', help='also show it in a window')
    parser.add_argument('--color-theme', default='plasma', metavar='NAME', help="matplotlib's (default: %(default)s)")
    parser.add_argument('--score-thr', type=float, default=0.3, help='detections that score less do not count '
                        '(default: %(default)s)')
    parser.add_argument('--tp-iou-thr', type=float, default=0.5,
                        help='overlap from which on a detection is on an object '
                        '(default: %(default)s)')
    parser.add_argument('--nms-iou-thr', type=float,
                        help='suppress detections of a class that overlap a better one by more')
    parser.add_argument('--metric', choices=['bbox', 'segm'], default='bbox',
                        help='match boxes or masks (default: bbox)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    for name in ('score_thr', 'tp_iou_thr', 'nms_iou_thr'):
        value = getattr(args, name)
        if value is not None and not 0 <= value <= 1:
            raise ConfigError(f"--{name.replace('_', '-')} {value}: it is between 0 and 1")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis.saved_results import open_results
    from boxdet.evaluation.operating_points import confusion_matrix
    from boxdet.files.writing import write_json
    from boxdet.visualization.charts import confusion_figure

    _, dataset, results = open_results(args.config, args.prediction_path, args.cfg_options)
    if args.nms_iou_thr is not None:
        results = [suppressed(result, args.nms_iou_thr) for result in results]
    matrix = confusion_matrix(dataset, results, args.score_thr, args.tp_iou_thr, args.metric)
    folder = Path(args.save_dir)
    title = f'score {args.score_thr:g}, IoU {args.tp_iou_thr:g}'
    path = confusion_figure(matrix, dataset.CLASSES, folder / 'confusion_matrix.png', title, args.color_theme)
    write_json(folder / 'confusion_matrix.json', dict(classes=[*dataset.CLASSES, 'background'], matrix=matrix.tolist(),
                                                      score_thr=args.score_thr, iou_thr=args.tp_iou_thr))
    objects = matrix[:-1].sum()
    print(f'{objects} objects: {matrix.trace()} found, {matrix[:-1, -1].sum()} missed, '
          f'{matrix[:-1, :-1].sum() - matrix.trace()} taken for another class; '
          f'{matrix[-1].sum()} detections of nothing')
    print(f'confusion matrix: {path}')
    if args.show:
        confusion_figure(matrix, dataset.CLASSES, None, title, args.color_theme)


def suppressed(result, iou_thr: float):
    """``result`` after one more non-maximum suppression within each class."""
    from boxdet.geometry.nms import batched_nms
    _, keep = batched_nms(result.bboxes, result.scores, result.labels, dict(type='nms', iou_threshold=iou_thr))
    return result[keep]


if __name__ == '__main__':
    run_command(main)
