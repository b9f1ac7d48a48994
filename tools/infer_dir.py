"""Detect on every image of a folder, and write COCO JSON that is a training set.

    python tools/infer_dir.py images CONFIG CHECKPOINT
    python tools/infer_dir.py images CONFIG CHECKPOINT --out predictions.json
    python tools/infer_dir.py images CONFIG CHECKPOINT --out predictions.json --show-dir drawn --format pdf
    python tools/infer_dir.py images CONFIG CHECKPOINT --show-dir drawn --image-ext .jpg .jpeg

The JSON holds images, annotations (with their score) and categories: correct it in a labelling tool, or train on it as
it is, with DIR as img_prefix. Images in folders within DIR are taken too. With --show-dir alone they are drawn only;
with neither, the JSON is infer/DIR.json and the drawn images are in infer/DIR, beside the checkpoint.

A run that was interrupted goes on where it was when the same command is given again: until the end the results are in
OUT.part (without --out in .infer_dir.part, where the drawn images are). Files that cannot be read are named at the
end and left out, and the exit status is then 1 (0 when all is well, 2 when nothing could be done); the same command
tries them again, so mend or remove them.
"""
from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

# Everything heavier is imported in main.
from boxdet.errors import CommandParser, ConfigError, DataError, nearest, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    summary, _, details = __doc__.partition('\n\n')
    parser = CommandParser(description=summary, epilog=details,
                           formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('dir', help='folder of the images')
    parser.add_argument('config', help='config file')
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'zoo' for the published weights")
    parser.add_argument('--out', metavar='FILE', help='the JSON file to write')
    parser.add_argument('--score-thr', type=float, default=0.3, metavar='SCORE',
                        help='leave out, and do not draw, what scores less (default: %(default)s)')
    parser.add_argument('--show-dir', metavar='DIR', help='write the images with the detections drawn')
    parser.add_argument('--format', choices=('png', 'jpg', 'pdf'), default='png',
                        help='of the drawn images; pdf has lines and text that stay sharp (default: %(default)s)')
    parser.add_argument('--image-ext', nargs='+', metavar='.EXT', help='take only files with these endings')
    parser.add_argument('--batch-size', type=int, metavar='N',
                        help='images at a time (default: 1 on the CPU, 8 on a GPU, where it is not measured)')
    parser.add_argument('--restart', action='store_true', help='discard what an interrupted run has left')
    parser.add_argument('--device', help='cpu, cuda:0, ... (default: a GPU if there is one, else the CPU)')
    parser.add_argument('--cfg-options', nargs='+', metavar='KEY=VALUE', help='change the config: a.b.c=value')
    args = parser.parse_args(argv)
    if args.batch_size is not None and args.batch_size < 1:
        parser.error(f'--batch-size {args.batch_size}: it is 1 at least')
    return args


def main(argv: list[str] | None = None) -> int:
    args = parse_args(argv)
    if not args.out and not args.show_dir:
        # beside the checkpoint, named for the folder that was looked at
        beside = os.path.dirname(args.checkpoint) if '://' not in args.checkpoint else ''
        args.show_dir = os.path.join(beside, 'infer', os.path.basename(os.path.abspath(args.dir)) or 'root')
        args.out = f'{args.show_dir}.json'
    if args.out and os.path.splitext(args.out)[1].lower() != '.json':
        raise ConfigError(f"--out {args.out}: the predictions are written to a '.json' file")
    from boxdet.apis.folder import Journal, made_by, predict_folder, write_annotations
    from boxdet.apis.inference import init_detector
    from boxdet.engine.config import load_config
    from boxdet.engine.environment import choose_device
    from boxdet.engine.evaluation_loop import Progress
    from boxdet.visualization.draw import check_score_thr

    check_score_thr(args.score_thr)
    names = images_of(args.dir, args.image_ext)
    cfg = load_config(args.config, args.cfg_options)
    part = Path(f'{args.out}.part' if args.out else os.path.join(args.show_dir, '.infer_dir.part'))
    if args.restart:
        part.unlink(missing_ok=True)
    origin = made_by(cfg.pretty_text, args.checkpoint, score_thr=args.score_thr, dir=os.path.abspath(args.dir),
                     show_dir=args.show_dir and os.path.abspath(args.show_dir), format=args.format)
    device = choose_device(args.device)
    model = init_detector(cfg, args.checkpoint, device=device)
    journal = Journal(part, origin)
    if journal.done:
        print(f'{part}: {len(journal.done)} images are done, going on')
    progress = Progress(len(names))
    unreadable = predict_folder(model, args.dir, names, journal, args.score_thr,
                                args.batch_size or (1 if device.type == 'cpu' else 8),
                                drawer(model, args) if args.show_dir else None, progress.advance)
    progress.close()
    told = f'{len(names) - len(unreadable)} images'
    if args.out:
        info = dict(description=f'predictions of {args.checkpoint}', config=args.config, score_thr=args.score_thr)
        told += f', {write_annotations(args.out, names, journal, model.CLASSES or (), info)} objects'
    journal.remove()
    print(f"{' and '.join(filter(None, (args.out, args.show_dir)))}: {told}")
    for line in unreadable:
        print(f'left out: {line}', file=sys.stderr)
    return 1 if unreadable else 0


def images_of(folder: str, endings: list[str] | None) -> list[str]:
    """The images in ``folder``, by their path within; those with one of ``endings`` only.

    Raises:
        ConfigError: an ending that no image has. DataError: there is none.
    """
    from boxdet.apis.images import IMAGE_ENDINGS, list_images

    wanted = tuple(f".{ending.lower().lstrip('.')}" for ending in endings or ())
    for ending in wanted:
        if ending not in IMAGE_ENDINGS:
            raise ConfigError(f"--image-ext {ending}: images end in {', '.join(IMAGE_ENDINGS)}"
                              f'{nearest(ending, IMAGE_ENDINGS)}')
    names = list_images(folder)
    chosen = [name for name in names if not wanted or name.lower().endswith(wanted)]
    if not chosen:
        raise DataError(f"{folder}: none of the {len(names)} images in it ends in {' or '.join(wanted)}")
    return chosen


def drawer(model: object, args: argparse.Namespace):
    """A function of an image's name and result that writes the drawn image under ``--show-dir``."""

    def draw(name: str, result: object) -> None:
        model.show_result(os.path.join(args.dir, name), result, score_thr=args.score_thr,
                          out_file=os.path.join(args.show_dir, f'{name}.{args.format}'))  # a.jpg and a.png do not meet
    return draw


if __name__ == '__main__':
    run_command(main, interrupted='interrupted: give the same command again to go on')
