"""Watch a detector at work on a camera.

    python demo/webcam_demo.py configs/faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py faster_rcnn.pth --camera-id 0

Each image is the newest that the camera has: a slow model shows fewer of them, not older ones. q, Esc or closing the
window ends.
"""
from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

# The checkout also works when it is not installed.
sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from boxdet.errors import CommandParser, run_command


def parse_args(argv: list[str] | None = None) -> argparse.Namespace:
    parser = CommandParser(
        description='Watch a detector at work on a camera: each image is the newest that the camera has.',
        epilog='In the window, q or Esc ends; so does closing it.')
    parser.add_argument('config', help='config file of the model')
    parser.add_argument('checkpoint', help="checkpoint file or address, or 'zoo' for the published weights")
    parser.add_argument('--device', default='cuda:0', help='cpu or cuda:0, ... (default: %(default)s)')
    parser.add_argument('--camera-id', default='0',
                        help='number of the camera, its device (/dev/video0), the address of a stream '
                        '(rtsp://..., http://...) or a video file, which plays at its own pace (default: %(default)s)')
    parser.add_argument('--score-thr', type=float, default=0.5,
                        help='draw objects above this score (default: %(default)s)')
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    from boxdet.apis import inference_detector, init_detector
    from boxdet.apis.video import Camera
    from boxdet.visualization.draw import END, check_score_thr, show

    check_score_thr(args.score_thr)
    # The model first: a camera that is open and not read from fills its queue.
    model = init_detector(args.config, args.checkpoint, device=args.device)
    print('q or Esc ends')
    shown, began = 0, time.perf_counter()
    with Camera(args.camera_id) as camera:
        for frame in camera:
            image = model.show_result(frame, inference_detector(model, frame), score_thr=args.score_thr)
            shown += 1
            if show(image, f'camera {args.camera_id}', 1e-3) in END:
                break
    seconds = time.perf_counter() - began
    print(f'{shown} of {camera.frames} frames shown, {shown / seconds:.1f} a second')


if __name__ == '__main__':
    run_command(main)
