#!/usr/bin/env python
"""Train the smallest member of every model family on the shapes data set and write the table of docs/results.md.

    python tools/demo.py                                        first: its Mask R-CNN gives the bodies
    python benchmarks/family_table.py                           all of it; a rerun goes on where it stopped
    python benchmarks/family_table.py --only faster cascade     some of them, and those they build on
    python benchmarks/family_table.py --table                   train nothing, write the table anew
    python benchmarks/family_table.py --table --out A B         one table a recipe

Every member is trained by tools/train.py with one recipe, that of its config in configs/shapes/, and judged by
tools/test.py: processes of their own, so that time and memory are theirs. Members with a ResNet-18 of batch norms and
a pyramid have them as thin as the demo's Mask R-CNN, and start from its, as COCO models start from ImageNet; their RPN
and heads are new. The others start from nothing and get more epochs. Soft-NMS and test-time augmentation are evaluated
with the weights of the member that they belong to; Fast R-CNN is trained on the proposals of the RPN. What is in DIR
already, DIR/NAME/result.json, is not done again.
"""
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from boxdet.errors import ConfigError, DataError, UserError, nearest, run_command  # noqa: E402

START, END = '<!-- family table: start -->', '<!-- family table: end -->'


@dataclass(frozen=True)
class Member:
    """One row of the table.

    Args:
        title: what the table calls it.
        config: its file in configs/shapes/, without the ending.
        metrics: of tools/test.py.
        body: it starts from the demo's backbone and pyramid; otherwise from nothing.
        new_neck: its neck has no weight of the demo's pyramid, and learns as long as what starts from nothing.
        weights: the member whose weights it is evaluated with; empty: it is trained.
        proposals: the member whose proposals it is trained on.
    """
    title: str
    config: str
    metrics: tuple[str, ...] = ('bbox',)
    body: bool = True
    new_neck: bool = False
    weights: str = ''
    proposals: str = ''

    @property
    def needs(self) -> str:
        """The member that has to be there first; empty for none."""
        return self.weights or self.proposals


MASKS = ('bbox', 'segm')
MEMBERS = {
    'faster': Member('Faster R-CNN', 'faster_rcnn_r18_fpn_shapes'),
    'cascade': Member('Cascade R-CNN', 'cascade_rcnn_r18_fpn_shapes'),
    'mask': Member('Mask R-CNN', 'mask_rcnn_r18_fpn_shapes', metrics=MASKS),
    'rpn': Member('RPN alone', 'rpn_r18_fpn_shapes', metrics=('proposal_fast',)),
    'fast': Member("Fast R-CNN on that RPN's proposals", 'fast_rcnn_r18_fpn_shapes', proposals='rpn'),
    'soft_nms': Member('Faster R-CNN with soft-NMS', 'faster_rcnn_r18_fpn_soft_nms_shapes', weights='faster'),
    'tta': Member('Mask R-CNN, test-time augmentation', 'mask_rcnn_r18_fpn_tta_shapes', metrics=MASKS, weights='mask'),
    'cascade_mask': Member('Cascade Mask R-CNN', 'cascade_mask_rcnn_r18_fpn_shapes', metrics=MASKS),
    'keypoint': Member('Keypoint R-CNN', 'keypoint_rcnn_r18_fpn_shapes', metrics=('bbox', 'keypoints')),
    'ohem': Member('OHEM', 'faster_rcnn_r18_fpn_ohem_shapes'),
    'giou': Member('GIoU loss', 'faster_rcnn_r18_fpn_giou_shapes'),
    'roi_pool': Member('RoIPool', 'faster_rcnn_r18_fpn_roi_pool_shapes'),
    'roi_crop': Member('RoICrop (grid sample)', 'faster_rcnn_r18_fpn_roi_crop_shapes'),
    'dpool': Member('deformable RoI pooling', 'faster_rcnn_r18_fpn_dpool_shapes'),
    'mdpool': Member('modulated deformable RoI pooling', 'faster_rcnn_r18_fpn_mdpool_shapes'),
    'gn': Member('GN, Shared4Conv1FC head', 'faster_rcnn_r18_fpn_gn_shapes', body=False),
    'gn_ws': Member('GN + weight standardisation', 'faster_rcnn_r18_fpn_gn_ws_shapes', body=False),
    'dcn': Member('DCN v1, thin R50', 'faster_rcnn_r50_fpn_dconv_shapes', body=False),
    'dcnv2': Member('DCN v2, thin R50', 'faster_rcnn_r50_fpn_mdconv_shapes', body=False),
    'resnext': Member('ResNeXt, thin X50', 'faster_rcnn_x50_fpn_shapes', body=False),
    'dc5': Member('R18-DC5', 'faster_rcnn_r18_dc5_shapes', body=False),
    'c4': Member('R18-C4', 'faster_rcnn_r18_c4_shapes', body=False),
    'vgg': Member('VGG-16', 'faster_rcnn_vgg16_shapes', body=False),
    'double_heads': Member('Double Heads', 'double_heads_r18_fpn_shapes'),
    'mask_scoring': Member('Mask Scoring R-CNN', 'ms_rcnn_r18_fpn_shapes', metrics=MASKS),
    'point_rend': Member('PointRend', 'point_rend_r18_fpn_shapes', metrics=MASKS),
    'htc': Member('HTC without semantic branch', 'htc_r18_fpn_shapes', metrics=MASKS),
    'scnet': Member('SCNet without semantic branch', 'scnet_r18_fpn_shapes', metrics=MASKS),
    'dynamic': Member('Dynamic R-CNN', 'dynamic_rcnn_r18_fpn_shapes'),
    'grid': Member('Grid R-CNN', 'grid_rcnn_r18_fpn_shapes'),
    'pisa': Member('PISA', 'pisa_faster_rcnn_r18_fpn_shapes'),
    'sabl': Member('SABL', 'sabl_faster_rcnn_r18_fpn_shapes'),
    'seesaw': Member('Seesaw loss', 'mask_rcnn_r18_fpn_seesaw_shapes', metrics=MASKS),
    'ghm': Member('GHM in the RPN', 'faster_rcnn_r18_fpn_ghm_shapes'),
    'libra': Member('Libra R-CNN', 'libra_faster_rcnn_r18_fpn_shapes'),
    'groie': Member('GRoIE', 'faster_rcnn_r18_fpn_groie_shapes'),
    'guided': Member('Guided anchoring', 'ga_faster_rcnn_r18_fpn_shapes'),
    'cascade_rpn': Member('Cascade RPN', 'crpn_faster_rcnn_r18_fpn_shapes'),
    'trident': Member('TridentNet, thin R50-C4', 'tridentnet_r50_c4_shapes', body=False),
    'pafpn': Member('PAFPN', 'faster_rcnn_r18_pafpn_shapes'),
    'channel_mapper': Member('ChannelMapper', 'faster_rcnn_r18_channel_mapper_shapes', new_neck=True),
    'carafe': Member('CARAFE', 'faster_rcnn_r18_fpn_carafe_shapes'),
    'nas_fpn': Member('NAS-FPN', 'faster_rcnn_r18_nasfpn_shapes', new_neck=True),
    'fpg': Member('FPG', 'faster_rcnn_r18_fpg_shapes', new_neck=True),
    'gcnet': Member('GCNet, thin R50', 'faster_rcnn_r50_fpn_gcb_shapes', body=False),
    'res2net': Member('Res2Net, thin R50', 'faster_rcnn_r2_50_fpn_shapes', body=False),
    'resnest': Member('ResNeSt, thin S50', 'faster_rcnn_s50_fpn_shapes', body=False),
    'regnet': Member('RegNetX-400MF', 'faster_rcnn_regnetx_fpn_shapes', body=False),
    'hrnet': Member('HRNet of 8 channels', 'faster_rcnn_hrnet_w8_shapes', body=False),
    'swin': Member('Swin of 24 channels', 'faster_rcnn_swin_fpn_shapes', body=False),
    'convnext': Member('ConvNeXt of 24 channels', 'faster_rcnn_convnext_fpn_shapes', body=False),
    'pvt': Member('PVT of 16 channels', 'faster_rcnn_pvt_fpn_shapes', body=False),
    'pvt_v2': Member('PVTv2-B0', 'faster_rcnn_pvt_v2_fpn_shapes', body=False),
    'mobilenet_v2': Member('MobileNetV2, half width', 'faster_rcnn_mobilenet_v2_fpn_shapes', body=False),
    'detectors': Member('DetectoRS, thin R50', 'detectors_r50_shapes', body=False),
    'cascade_keypoint': Member('Cascade with keypoints', 'cascade_keypoint_rcnn_r18_fpn_shapes',
                               metrics=('bbox', 'keypoints')),
}
# keys of tools/test.py's metrics by column of the table
COLUMNS = {'AR': 'AR@100', 'box': 'bbox_mAP', 'box AP75': 'bbox_mAP_75', 'mask': 'segm_mAP', 'mask AP75': 'segm_mAP_75',
           'keypoint': 'keypoints_mAP', 'keypoint AP75': 'keypoints_mAP_75'}
TEXT = """\
`benchmarks/family_table.py` trains the smallest member of each family on {images} images of `tools/make_shapes.py` with
one recipe (AdamW, batch 4, cosine, seed 0) and judges it on 120 others. Members whose body is *demo* start from the
backbone and the pyramid that {body} holds, with a new RPN and new heads, and get {epochs}; the others start from
nothing and get {scratch}, as do those with a new neck. One run each: differences of two or three points are noise.
*Minutes* are CPU time of the training, without the evaluation; *MB* is the largest resident memory of that process (of
the test's where nothing was trained), of which the libraries alone take about 450."""


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.partition('\n\n')[0], epilog=__doc__.partition('\n\n')[2],
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default=['work_dirs/families'], nargs='+', metavar='DIR',
                        help='results (default: %(default)s); with more than one each makes a table, and the last '
                             'one is added to')
    parser.add_argument('--data', default='data/shapes', metavar='DIR',
                        help="the demo's data set, drawn when it is not there (default: %(default)s)")
    parser.add_argument('--body', default='work_dirs/demo/latest.pth', metavar='FILE',
                        help="checkpoint of the demo's model, for the bodies (default: %(default)s)")
    parser.add_argument('--epochs', type=int, default=1, metavar='N',
                        help='for members that start from that body (default: %(default)s)')
    parser.add_argument('--scratch-epochs', type=int, default=4, metavar='N',
                        help='for the others (default: %(default)s)')
    parser.add_argument('--only', nargs='+', metavar='NAME', help=f'members to train: {", ".join(MEMBERS)}')
    parser.add_argument('--table', action='store_true', help='train nothing, write the table of what is there')
    parser.add_argument('--results', default=str(ROOT / 'docs/results.md'), metavar='FILE',
                        help='where the table goes, between its markers (default: docs/results.md)')
    args = parser.parse_args(argv)
    args.shown = [Path(out) for out in args.out]
    args.out, args.data, args.body = args.shown[-1], Path(args.data), Path(args.body)
    for name in args.only or ():
        if name not in MEMBERS:
            raise ConfigError(f"--only {name}: there is no such member{nearest(name, MEMBERS)} (see --help)")
    return args


# ---------------------------------------------------------------------------------------------- one member


@dataclass(frozen=True)
class Cost:
    """What a process took: CPU seconds, and the most memory in MB."""
    seconds: float
    megabytes: float


def run(command: list[str], log: Path) -> Cost:
    """Run a command of this checkout to its end; what it says goes to ``log``.

    Raises:
        UserError: it failed; with the last lines that it wrote.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with open(log, 'w') as file:
        process = subprocess.Popen([sys.executable, *command], cwd=ROOT, stdout=file, stderr=subprocess.STDOUT)
        try:
            _, status, usage = os.wait4(process.pid, 0)  # unlike wait(), it tells time and memory of this child alone
        except BaseException:
            process.kill()
            raise
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        tail = '\n'.join(log.read_text(errors='replace').splitlines()[-8:])
        raise UserError(f'{" ".join(command[:2])} ended with status {process.returncode}; {log} ends with:\n{tail}')
    return Cost(usage.ru_utime + usage.ru_stime, usage.ru_maxrss / (2 ** 20 if sys.platform == 'darwin' else 2 ** 10))


def options_of(name: str, args: argparse.Namespace, split: str = 'val') -> list[str]:
    """The --cfg-options of a member: epochs and data; ``split``: what is tested."""
    member, data = MEMBERS[name], args.data.resolve()
    epochs = epochs_of(member, args)
    options = [f'runner.max_epochs={epochs}', f'checkpoint_config.interval={epochs}']
    if member.body:
        options += demo_body(name)
    for part, folder in (('train', 'train'), ('val', 'val'), ('test', split)):
        options += [f'data.{part}.ann_file={data}/annotations/instances_{folder}.json',
                    f'data.{part}.img_prefix={data}/{folder}/']
        if member.proposals:
            saved = (args.out / member.proposals / f'proposals_{folder}.pkl').resolve()
            options.append(f'data.{part}.proposal_file={saved}')
    return options


def demo_body(name: str) -> list[str]:
    """The --cfg-options that give a member the body of `make demo`, which is thinner than that of its config."""
    from boxdet.engine.config import Config

    demo = Config.fromfile(ROOT / 'configs/shapes/mask_rcnn_r18w32_fpn_shapes.py').model
    keys = ('base_channels', 'num_stages', 'strides', 'dilations', 'out_indices')
    return [*(f'model.backbone.{key}={_option(demo.backbone[key])}' for key in keys),
            f'model.{_pyramid(name)}.in_channels={_option(demo.neck.in_channels)}']


def _pyramid(name: str) -> str:
    """Where a member has its pyramid: Libra R-CNN's is the first of two necks."""
    from boxdet.engine.config import Config

    return 'neck.0' if isinstance(Config.fromfile(config_of(name)).model.neck, list) else 'neck'


def _option(value: object) -> str:
    return str(value).replace(' ', '')


def config_of(name: str) -> Path:
    """The config file of a member."""
    return ROOT / f'configs/shapes/{MEMBERS[name].config}.py'


def epochs_of(member: Member, args: argparse.Namespace) -> int:
    """How long a member is trained."""
    return args.epochs if member.body and not member.new_neck else args.scratch_epochs


def body_for(name: str, args: argparse.Namespace) -> list[str]:
    """tools/train.py's options that give a member its body; the file with that body is made when it is not there.

    Raises:
        UserError: there is no demo to take it from.
    """
    if not MEMBERS[name].body:
        return []
    from boxdet.checkpoints.io import load_state, save_checkpoint

    parts = dict(backbone='backbone', neck=_pyramid(name))
    path = args.out / f'body_{"_".join(parts.values())}.pth'
    if not path.exists():
        if not args.body.exists():
            raise UserError(f'{args.body} is not there: run `python tools/demo.py`, or name its checkpoint with --body')
        found = ((key.split('.', 1), value) for key, value in load_state(args.body).items())
        weights = {f'{parts[part]}.{rest}': value for (part, rest), value in found if part in parts}
        save_checkpoint(dict(meta={}, state_dict=weights), path)
    return ['--load-from', str(path.resolve())]


def command_of(tool: str, name: str, args: argparse.Namespace, *more: str, split: str = 'val') -> list[str]:
    """A command line of tools/train.py or tools/test.py for a member."""
    return [str(ROOT / 'tools' / tool), str(config_of(name)), *more, '--cfg-options', *options_of(name, args, split)]


def test(name: str, args: argparse.Namespace) -> tuple[dict[str, float], Cost]:
    """Evaluate a member; its metrics, and what that took."""
    member, folder = MEMBERS[name], args.out / name
    for old in folder.glob('eval_*.json'):
        old.unlink()
    weights = (args.out / (member.weights or name) / 'latest.pth').resolve()
    cost = run(command_of('test.py', name, args, str(weights), '--eval', *member.metrics, '--work-dir',
                          str(folder.resolve())), folder / 'test.txt')
    return json.loads(next(folder.glob('eval_*.json')).read_text())['metric'], cost


def save_proposals(name: str, args: argparse.Namespace) -> None:
    """Have tools/test.py save the proposals of both splits, as for any Fast R-CNN."""
    for split in ('train', 'val'):
        folder = (args.out / name).resolve()
        out = folder / f'proposals_{split}.pkl'
        if not out.exists():
            run(command_of('test.py', name, args, str(folder / 'latest.pth'), '--out', str(out), split=split),
                folder / f'proposals_{split}.txt')


def measure(name: str, args: argparse.Namespace) -> dict:
    """Train and evaluate a member; the result that is saved."""
    member, began = MEMBERS[name], time.monotonic()
    folder = (args.out / name).resolve()
    if member.proposals:
        save_proposals(member.proposals, args)
    cost = None
    if not member.weights:
        cost = run(command_of('train.py', name, args, '--work-dir', str(folder), '--seed', '0', '--no-validate',
                              *body_for(name, args)), folder / 'train.txt')
    metrics, test_cost = test(name, args)
    images = json.loads((args.data / 'annotations/instances_train.json').read_text())['images']
    return dict(metrics=metrics, images=len(images), epochs=args.epochs, scratch_epochs=args.scratch_epochs,
                body=args.body.name, minutes=cost.seconds / 60 if cost else None,
                megabytes=(cost or test_cost).megabytes,
                wall_minutes=(time.monotonic() - began) / 60)


def draw_data_set(args: argparse.Namespace) -> None:
    """Have tools/make_shapes.py draw the demo's data set where there is none yet, whatever its settings."""
    if not all((args.data / f'annotations/instances_{split}.json').is_file() for split in ('train', 'val')):
        run([str(ROOT / 'tools/make_shapes.py'), '--out', str(args.data.resolve())], args.out / 'make_shapes.txt')


# ---------------------------------------------------------------------------------------------- the table


def read_results(out: Path) -> dict[str, dict]:
    """The saved results by member, in the table's order."""
    paths = {name: out / name / 'result.json' for name in MEMBERS}
    return {name: json.loads(path.read_text()) for name, path in paths.items() if path.exists()}


def table_of(results: dict[str, dict]) -> str:
    """The markdown table with the sentence that says how it was made.

    Raises:
        DataError: the members were not trained alike.
    """
    recipes = {tuple(r[key] for key in ('images', 'epochs', 'scratch_epochs', 'body')) for r in results.values()}
    if len(recipes) != 1:
        raise DataError(f'the results were made by {len(recipes)} recipes; one table needs one (images, epochs, '
                        f'scratch epochs, body: {sorted(recipes)})')
    images, epochs, scratch, body = recipes.pop()
    text = TEXT.format(images=f'{images:,}', body=f"the demo's `{body}`", epochs=_epochs(epochs),
                       scratch=_epochs(scratch))
    lines = [text, '', '| member | body | ' + ' | '.join(COLUMNS) + ' | minutes | MB |',
             '|---|---|' + '---|' * (len(COLUMNS) + 2)]
    for name, result in results.items():
        cells = [f'{result["metrics"][key]:.3f}' if key in result['metrics'] else '' for key in COLUMNS.values()]
        minutes = '' if result['minutes'] is None else f'{result["minutes"]:.1f}'
        member = MEMBERS[name]
        head = [member.title, 'demo, new neck' if member.new_neck else 'demo' if member.body else 'new']
        lines.append(f'| {" | ".join([*head, *cells, minutes, format(result["megabytes"], ".0f")])} |')
    return '\n'.join(lines)


def _epochs(count: int) -> str:
    return 'one epoch' if count == 1 else f'{count} epochs'


def write_tables(runs: list[dict[str, dict]], path: Path) -> None:
    """Put a table of each run between the markers in ``path``, and which members none of them trained.

    Raises:
        DataError: the file or the markers are missing.
    """
    try:
        text = path.read_text()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    before, start, rest = text.partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise DataError(f'{path}: the markers {START} and {END} are not there')
    left = [member.title for name, member in MEMBERS.items() if not any(name in results for results in runs)]
    parts = [*map(table_of, runs), *([f'Not trained: {", ".join(left)}.'] if left else [])]
    text = '\n\n'.join(parts)
    path.write_text(f'{before}{START}\n{text}\n{END}{after}')


def in_order(only: list[str] | None) -> list[str]:
    """The members to do: those asked for, and what they build on, each after it."""
    wanted = set(only or MEMBERS)
    wanted |= {MEMBERS[name].needs for name in wanted if MEMBERS[name].needs}
    return [name for name in MEMBERS if name in wanted]


def do_members(args: argparse.Namespace) -> list[str]:
    """Train and evaluate what is asked for and not there yet; returns the members that failed."""
    failed: list[str] = []
    for name in in_order(args.only):
        saved = args.out / name / 'result.json'
        try:
            if MEMBERS[name].needs in failed:
                raise UserError(f'it needs {MEMBERS[name].needs}')
            if not saved.exists():
                result = measure(name, args)
                saved.write_text(json.dumps(result, indent=1) + '\n')
        except UserError as error:
            failed.append(name)
            print(f'{name} failed: {error}', file=sys.stderr, flush=True)
            continue
        print(name, {key: round(value, 4) for key, value in json.loads(saved.read_text())['metrics'].items()
                     if key in COLUMNS.values()}, flush=True)
    return failed


def main(argv: list[str] | None = None) -> None:
    args, failed = parse_args(argv), []
    if not args.table:
        draw_data_set(args)
        failed = do_members(args)
    runs = [read_results(out) for out in args.shown]
    for out, results in zip(args.shown, runs):
        if not results:
            raise DataError(f'{out}: no results in it')
    write_tables(runs, Path(args.results))
    print(f'table: {args.results}')
    if failed:
        raise UserError(f'without {", ".join(failed)}: they failed')


if __name__ == '__main__':
    run_command(main, 'interrupted; a rerun goes on with the member that was being trained')
