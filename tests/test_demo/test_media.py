"""demo/demo.jpg and demo/demo.mp4: there, readable, small, and drawn by demo/draw_media.py."""
import subprocess
import sys

import cv2
import numpy as np

from boxdet.apis.video import VideoFile


def test_image_and_video_are_there(repo_root):
    image, video = repo_root / 'demo/demo.jpg', repo_root / 'demo/demo.mp4'
    assert cv2.imread(str(image)).shape == (320, 400, 3)
    frames = list(VideoFile(str(video)))
    assert len(frames) == 48 and frames[0].shape == (192, 240, 3)
    assert image.stat().st_size + video.stat().st_size < 200_000


def test_they_are_drawn_anew(repo_root, tmp_path):
    done = subprocess.run([sys.executable, str(repo_root / "demo/draw_media.py"), str(tmp_path)], capture_output=True,
                          text=True)
    assert done.returncode == 0, done.stderr
    ours, anew = (cv2.imread(str(folder / 'demo.jpg')).astype(int) for folder in (repo_root / 'demo', tmp_path))
    assert np.abs(ours - anew).mean() < 2  # libraries of other versions round otherwise
    assert len(list(VideoFile(str(tmp_path / 'demo.mp4')))) == 48
