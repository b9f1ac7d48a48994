"""Draw demo.jpg and demo.mp4, the image and the video that the other demos are tried with.

    python demo/draw_media.py [FOLDER]

They show the shapes of tools/make_shapes.py, so that nobody's images are handed on; the video moves over a larger
one.
"""
from __future__ import annotations

import sys
from pathlib import Path

# The checkout also works when it is not installed.
ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))
sys.path.insert(1, str(ROOT / 'tools'))

from boxdet.errors import CommandParser, run_command  # noqa: E402 - after the path is set

IMAGE, PANORAMA, VIEW = (320, 400), (240, 640), (192, 240)  # height, width in pixels
FRAMES, RATE, SEED = 48, 12, 5


def main(argv: list[str] | None = None) -> None:
    parser = CommandParser(description=__doc__.partition('\n')[0])
    parser.add_argument('folder', nargs='?', default=str(Path(__file__).parent), help='default: %(default)s')
    folder = Path(parser.parse_args(argv).folder)
    import numpy as np
    from make_shapes import compose, paint, write_jpeg

    from boxdet.apis.video import VideoWriter
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    write_jpeg(folder / 'demo.jpg', paint(compose(IMAGE, rng), IMAGE, rng))
    panorama = paint(compose(PANORAMA, rng), PANORAMA, rng)
    with VideoWriter(str(folder / 'demo.mp4'), RATE) as video:
        for frame in range(FRAMES):
            share = frame / (FRAMES - 1)
            top, left = (round(share * (whole - part)) for whole, part in zip(PANORAMA, VIEW))
            video.write(np.ascontiguousarray(panorama[top:top + VIEW[0], left:left + VIEW[1]]))
    print(f'{folder / "demo.jpg"}, {folder / "demo.mp4"}')


if __name__ == '__main__':
    run_command(main)
