"""Evaluate saved results again, with other metrics or options, or write them for a server; no model runs.

python tools/test.py CONFIG CHECKPOINT --out results.pkl
python tools/analysis_tools/eval_metric.py CONFIG results.pkl --eval bbox segm --eval-options classwise=True
python tools/analysis_tools/eval_metric.py CONFIG results.pkl --format-only --eval-options jsonfile_prefix=./submission
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description='Evaluate saved results again.', epilog=__doc__.partition('\n\n')[2],
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its data.test is what the results are of')
    parser.add_argument('pkl_results',
                        help='results file of tools/test.py --out (.pkl or .json), or of mmdetection 2.x')
    parser.add_argument('--eval', nargs='+', metavar='METRIC', help="metrics, e.g. bbox segm; mAP for VOC")
    parser.add_argument('--format-only', action='store_true', help='only write the files that a server takes')
    parser.add_argument('--out', metavar='FILE', help='also write the metrics to this JSON file')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    parser.add_argument('--eval-options', nargs='+', metavar='KEY=VALUE',
                        help='options of the evaluation: classwise=True, iou_thrs=[0.5], metric_items=[mAP_50]; or of '
                        '--format-only: jsonfile_prefix=PREFIX')
    args = parser.parse_args(argv)
    if bool(args.eval) == args.format_only:
        raise ConfigError('say what to do: either --eval METRIC... or --format-only')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis.saved_results import open_results
    from boxdet.engine.config import parse_options
    from boxdet.evaluation import evaluate, format_results
    from boxdet.evaluation.evaluate import configured_options, writing_options
    from boxdet.files.writing import write_json

    cfg, dataset, results = open_results(args.config, args.pkl_results, args.cfg_options)
    given = parse_options(args.eval_options or [])
    if args.format_only:
        options = writing_options(dataset, given, '.', '--eval-options')
        for path in dict.fromkeys(format_results(dataset, results, **options).values()):
            print(f'predictions: {path}')
        return
    options = configured_options(dataset, args.eval, cfg.get('evaluation'), given, '--eval-options')
    metrics = evaluate(dataset, results, **options)
    # The values of single classes stand in the table of classwise=True.
    print(', '.join(f'{k}: {v:.4f}' if isinstance(v, float) else f'{k}: {v}' for k, v in metrics.items()
                    if not k.endswith('_precision')))
    if args.out:
        write_json(args.out, dict(config=args.config, results=args.pkl_results, metric=metrics))
        print(f'metrics: {args.out}')


if __name__ == '__main__':
    run_command(main)
