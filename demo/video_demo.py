r"""Detect on every frame of a video; write the video with the objects drawn in, or watch it.

    python demo/video_demo.py street.mp4 configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py mask_rcnn.pth \
        --device cpu --out result.mp4

The next frames are read and the last ones drawn and written while the network is at work.
"""
from __future__ import annotations

import argparse
import os
import sys
import time
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.errors import CommandParser, ConfigError, run_command

_IN_WORK = 4  # frames drawn ahead of the one that is shown


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description='Detect on every frame of a video; write it with the objects drawn in, or watch it.',
        epilog='In the window, q or Esc ends, as closing it does; what was written until then is kept.')
    parser.add_argument('video', help='video file')
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'zoo' for the published weights")
    parser.add_argument('--out', help='write the video here: .mp4, .mov, .mkv (H.264), .webm (VP9) or .avi')
    parser.add_argument('--show', action='store_true', help='show the frames in a window')
    parser.add_argument('--wait-time', type=float, default=0.,
                        help='seconds that a frame is shown at least; 0 is as fast as it goes (default: %(default)s)')
    parser.add_argument('--device', default='cuda:0', help='cpu or cuda:0, ... (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.3,
                        help='draw objects above this score (default: %(default)s)')
    parser.add_argument('--batch-size', type=int,
                        help='frames that go through the network together (default: 1 on a CPU, 8 on a GPU, not '
                             'measured there)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    if not args.out and not args.show:
        raise ConfigError('say what to do with the result: --out FILE, --show, or both')
    from boxdet.apis import inference_stream, init_detector
    from boxdet.apis.video import VideoFile, VideoWriter
    from boxdet.engine.evaluation_loop import Progress
    from boxdet.visualization.draw import END, check_score_thr, show

    check_score_thr(args.score_thr)
    video = VideoFile(args.video)
    if args.out and os.path.exists(args.out) and os.path.samefile(args.video, args.out):
        raise ConfigError(f'--out {args.out}: this is the video itself, which would be replaced; give another name')
    with VideoWriter(args.out, video.rate) if args.out else nullcontext() as writer:
        model = init_detector(args.config, args.checkpoint, device=args.device)

        def finish(frame, result):
            image = model.show_result(frame, result, score_thr=args.score_thr)
            if writer is not None:
                writer.write(image)
            return image

        def watch(done: Future) -> bool:
            """Take a finished frame; whether to go on."""
            image = done.result()
            progress.advance(1)
            return not args.show or show(image, args.video, max(args.wait_time, 1e-3)) not in END

        progress, began, in_work, go_on = Progress(len(video), unit='frames'), time.perf_counter(), deque(), True
        # One thread: frames are written in their order.
        with ThreadPoolExecutor(1) as drawing:
            for frame, result in inference_stream(model, video, args.batch_size):
                in_work.append(drawing.submit(finish, frame, result))
                if len(in_work) > _IN_WORK and not (go_on := watch(in_work.popleft())):
                    break
            while in_work and go_on:
                go_on = watch(in_work.popleft())
        progress.close()
    # Frames that were being drawn when the window ended are in the video, too.
    print(f'{progress.done if writer is None else writer.frames} frames in {time.perf_counter() - began:.1f} s')
    if args.out:
        print(f'video: {args.out}')


if __name__ == '__main__':
    run_command(main)
