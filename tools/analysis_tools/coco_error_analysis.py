"""Why average precision is lost: curves with one kind of error after the other excused, for all classes and each.

    python tools/test.py CONFIG CHECKPOINT --format-only --eval-options jsonfile_prefix=./results
    python tools/analysis_tools/coco_error_analysis.py results.bbox.json out --ann instances_val2017.json
    python tools/analysis_tools/coco_error_analysis.py r.bbox.json r.segm.json out --ann ANN --types bbox segm

C75, C50: precision at IoU 0.75, 0.50. Loc: at 0.10, so that bad places do not count. Sim: confusions within a
supercategory do not count either. Oth: nor do confusions with any class. BG: nor do false positives on the
background. FN: nor do misses. The area between two curves is what that kind of error costs. out/TYPE/ holds
allclass.png, one image for each class that has objects, and error_analysis.json with the areas below the curves.
"""
from __future__ import annotations

import argparse
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from boxdet.errors import CommandParser, ConfigError, DataError, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(description='Break COCO precision down by the kinds of errors.',
                           epilog=__doc__.partition('\n\n')[2],
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('result', nargs='+', help='COCO result files (json), one for each of --types, or results.pkl')
    parser.add_argument('out_dir', help='folder for the images')
    parser.add_argument('--ann', default='data/coco/annotations/instances_val2017.json', metavar='FILE',
                        help='the annotation file (default: %(default)s)')
    parser.add_argument('--types', nargs='+', default=['bbox'], choices=['bbox', 'segm'], help='default: bbox')
    parser.add_argument('--extraplots', action='store_true', help='also bars by size, and how large the objects are')
    parser.add_argument('--areas', type=float, nargs=3, default=[1024, 9216, 1e10], metavar=('SMALL', 'MEDIUM', 'ALL'),
                        help='areas in pixels where small, medium and all objects end (default: 1024 9216 1e10)')
    args = parser.parse_args(argv)
    if len(args.result) not in (1, len(args.types)):
        raise ConfigError(f'{len(args.result)} result files for {len(args.types)} --types: give one for each')
    if not 0 < args.areas[0] < args.areas[1] < args.areas[2]:
        raise ConfigError(f"--areas {' '.join(f'{a:g}' for a in args.areas)}: each is larger than the one before")
    return args


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.evaluation.error_analysis import CAUSES, error_curves
    from boxdet.files.writing import write_json
    from boxdet.visualization.charts import area_histogram, bar_figure, error_figure

    dataset = open_annotations(args.ann)
    small, medium, every = args.areas
    sizes = dict(all=(0, every), small=(0, small), medium=(small, medium), large=(medium, every))
    files = args.result * len(args.types) if len(args.result) == 1 else args.result
    for kind, file in zip(args.types, files):
        curves = error_curves(dataset, read_results(file, dataset, kind), kind, sizes)
        folder, areas = Path(args.out_dir) / kind, {}
        named = {'allclass': (curves.mean(), curves.objects.sum(axis=1))}
        named.update({name: (curves.of(k), curves.objects[:, k]) for k, name in enumerate(curves.labels)
                      if curves.objects[0, k]})
        for name, (curve, objects) in named.items():
            safe, title = name.replace('/', '_'), f"{kind}: {'all classes' if name == 'allclass' else name}"
            error_figure(curve, CAUSES, curves.sizes, objects, folder / f'{safe}.png', title)
            areas[name] = {size: dict(zip(CAUSES, curve[:, :, a].mean(axis=1).tolist()))
                           for a, size in enumerate(curves.sizes)}
            if args.extraplots:
                bar_figure(curve.mean(axis=1), CAUSES, curves.sizes, folder / f'{safe}-bars.png', title)
        if args.extraplots:
            area_histogram(curves.areas, folder / 'object-sizes.png', f'{len(curves.areas)} objects')
        write_json(folder / 'error_analysis.json', areas)
        print(f'{kind}, all classes: '
              + ', '.join(f'{cause} {area:.3f}' for cause, area in areas['allclass']['all'].items()))
        print(f'images: {folder}/ ({len(named)})')


def open_annotations(path: str):
    """A CocoDataset of every class of the file."""
    from boxdet.datasets import CocoDataset
    from boxdet.files.json_text import read_json

    categories = (read_json(path) or {}).get('categories') or []
    if not categories:
        raise DataError(f"{path}: no 'categories'; this is no COCO annotation file")
    return CocoDataset(path, [], classes=[category['name'] for category in categories], test_mode=True)


def read_results(path: str, dataset, kind: str):
    """The results of each image, from COCO's result list or from what tools/test.py --out saved."""
    from boxdet.evaluation.evaluate import aligned
    from boxdet.evaluation.predictions import from_coco_predictions, load_results

    if Path(path).suffix == '.json':
        results = from_coco_predictions(path, dataset.img_ids, dataset.cat_ids)
    else:
        results = load_results(path)
    results = aligned(dataset, results)
    if kind == 'segm' and not any('masks' in result for result in results):
        raise DataError(f"{path} holds no masks; --types segm needs the file PREFIX.segm.json")
    return results


if __name__ == '__main__':
    run_command(main)
