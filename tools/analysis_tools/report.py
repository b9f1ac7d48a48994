"""One self-contained HTML page on saved results: curves, classes, confusion, the worst errors with their images.

python tools/test.py CONFIG CHECKPOINT --out results.pkl
python tools/analysis_tools/report.py CONFIG results.pkl report
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description='Write one HTML page on saved results: curves, classes, confusion, the worst errors.',
        epilog=__doc__.partition('\n\n')[2], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('config', help='config file; its data.test is what the results are of')
    parser.add_argument('results', help='results file of tools/test.py --out (.pkl or .json)')
    parser.add_argument('out', help='folder for index.html')
    parser.add_argument('--eval', nargs='+', metavar='METRIC', help="metrics (default: the config's)")
    parser.add_argument('--title', help="headline (default: the config's name)")
    parser.add_argument('--errors', type=int, default=60, metavar='N',
                        help='errors shown with their image (default: %(default)s)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if args.errors < 0:
        raise ConfigError(f'--errors {args.errors}: it is 0 at least')
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis.saved_results import open_results
    from boxdet.evaluation import evaluate
    from boxdet.evaluation.evaluate import configured_options
    from boxdet.evaluation.report import check_reportable, default_metrics, write_report

    cfg, dataset, results = open_results(args.config, args.results, args.cfg_options)
    check_reportable(dataset)
    metric = args.eval or default_metrics(cfg, dataset)
    metrics = evaluate(dataset, results, **configured_options(dataset, metric, cfg.get('evaluation'), {}))
    meta = [args.config, args.results, dataset.ann_file, time.strftime('%Y-%m-%d %H:%M')]
    page = write_report(args.out, dataset, results, metrics, args.title or Path(args.config).stem, meta, args.errors)
    print(f'report: {page}')


if __name__ == '__main__':
    run_command(main)
