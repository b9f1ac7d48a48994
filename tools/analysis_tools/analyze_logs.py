"""Curves of losses and metrics from the JSON logs of trainings, and how long their iterations took.

python tools/analysis_tools/analyze_logs.py plot_curve log.json --keys loss_cls loss_bbox --out losses.png
python tools/analysis_tools/analyze_logs.py plot_curve a.json b.json --keys bbox_mAP --legend run1 run2 --out map.png
python tools/analysis_tools/analyze_logs.py cal_train_time log.json [--include-outliers]
"""
from __future__ import annotations

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, DataError, nearest, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Analyze the JSON logs of trainings.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    tasks = parser.add_subparsers(dest='task', required=True, metavar='{plot_curve,cal_train_time}')
    plot = tasks.add_parser('plot_curve', help='draw values of the logs', description='Draw values of the logs.')
    plot.add_argument('json_logs', nargs='+', help='WORK_DIR/TIME.log.json of one or several trainings')
    plot.add_argument('--keys', nargs='+', default=['bbox_mAP'], help='losses, lr, metrics, ... (default: bbox_mAP)')
    plot.add_argument('--start-epoch', type=int, default=1, help='leave out what was before (default: %(default)s)')
    plot.add_argument('--title', default='', help='headline')
    plot.add_argument('--legend', nargs='+', help='one name for each log and key (default: folder and key)')
    plot.add_argument('--style', choices=['light', 'dark'], default='light',
                      help='of the background (default: %(default)s)')
    plot.add_argument('--out', metavar='FILE', help='.png, .pdf or .svg (default: a window)')
    times = tasks.add_parser('cal_train_time', help='seconds an iteration',
                             description='Seconds an iteration, by epoch.')
    times.add_argument('json_logs', nargs='+', help='WORK_DIR/TIME.log.json of one or several trainings')
    times.add_argument('--include-outliers', action='store_true',
                       help='count the first entry of each epoch too, in which the loader starts')
    args = parser.parse_args(argv)
    if args.task == 'plot_curve' and args.legend and len(args.legend) != len(args.json_logs) * len(args.keys):
        raise ConfigError(f'--legend has {len(args.legend)} names; {len(args.json_logs)} logs with {len(args.keys)} '
                          f'keys need {len(args.json_logs) * len(args.keys)}')
    return args


def plot_curve(args: argparse.Namespace) -> None:
    from boxdet.visualization.charts import log_curves
    from boxdet.visualization.figures import curves as curves_of
    from boxdet.visualization.figures import epoch_length, read_log

    lines = {}
    names = iter(args.legend or ())
    for log in args.json_logs:
        train, val = read_log(log)
        length = epoch_length(train, val)
        note_unfinished(log, train)
        rows = [row for row in train + val if row.get('epoch', 1) >= args.start_epoch]
        found = {**curves_of([r for r in rows if r['mode'] == 'train'], length),
                 **{k: v for k, v in curves_of([r for r in rows if r['mode'] == 'val'], length).items() if k != 'lr'}}
        folders = {Path(path).resolve().parent for path in args.json_logs}
        run = Path(log).resolve().parent.name if len(folders) > 1 else Path(log).stem
        for key in args.keys:
            if key not in found:
                raise DataError(f"{log}: no '{key}' in it from epoch {args.start_epoch} on{nearest(key, found)} "
                                f"(it has {', '.join(found)})")
            own = key if len(args.json_logs) == 1 else f'{run} {key}'
            lines[next(names, own)] = found[key]
    path = log_curves(lines, args.out, args.title, 'iteration' if length is None else 'epoch',
                      dark=args.style == 'dark')
    if path is not None:
        print(f'curves: {path}')


def note_unfinished(log: str, train: list[dict]) -> dict[int, str]:
    """Say that the last epoch of a log is not whole; what to put behind its number."""
    from boxdet.visualization.figures import unfinished_epoch

    found = unfinished_epoch(train)
    if found is None:
        return {}
    epoch, done, whole = found
    print(f'{log}: epoch {epoch} is unfinished, the log ends at {done} of {whole} iterations')
    return {epoch: ' (unfinished)'}


def cal_train_time(args: argparse.Namespace) -> None:
    from boxdet.visualization.figures import read_log

    for log in args.json_logs:
        epochs: dict[int, list[float]] = defaultdict(list)
        train = read_log(log)[0]
        marks = note_unfinished(log, train)
        for row in train:
            if isinstance(row.get('time'), (int, float)):
                epochs[row.get('epoch', 1)].append(row['time'])
        if not args.include_outliers:
            epochs = {epoch: times[1:] for epoch, times in epochs.items()}
        means = {epoch: statistics.fmean(times) for epoch, times in epochs.items() if times}
        if not means:
            raise DataError(f'{log}: no epoch with two entries of its time; count the first ones too with '
                            '--include-outliers or log more often (log_config.interval)')
        slowest, fastest = max(means, key=means.get), min(means, key=means.get)
        print(f'-----Analyze train time of {log}-----')
        print(f'slowest epoch {slowest}{marks.get(slowest, "")}, average time is {means[slowest]:.4f} s/iter')
        print(f'fastest epoch {fastest}{marks.get(fastest, "")}, average time is {means[fastest]:.4f} s/iter')
        print(f'time std over epochs is {statistics.pstdev(means.values()):.4f}')
        print(f'average iter time: {statistics.fmean(t for times in epochs.values() for t in times):.4f} s/iter\n')


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    {'plot_curve': plot_curve, 'cal_train_time': cal_train_time}[args.task](args)


if __name__ == '__main__':
    run_command(main)
