"""Curves of a JSON log, and sheets of images."""

import json

import cv2
import numpy as np
import pytest

from boxdet.errors import DataError
from boxdet.visualization.figures import curves, image_grid, read_log, training_curves


def write_log(path, rows, tail=''):
    lines = [json.dumps(row) for row in [dict(env_info='x', seed=1), *rows]]
    path.write_text('\n'.join(lines) + '\n' + tail)
    return path


@pytest.fixture
def rows():
    found = []
    for epoch in (1, 2, 3):
        for i in (10, 20):
            found.append(
                dict(mode='train', epoch=epoch, iter=i, lr=0.01 * i, loss=4 / epoch, loss_cls=3 / epoch,
                     loss_bbox=1 / epoch, acc=90.0))
        found.append(
            dict(mode='val', epoch=epoch, iter=5, lr=0.01, bbox_mAP=0.2 * epoch, bbox_mAP_50=0.3 * epoch,
                 bbox_mAP_copypaste='0.1 0.2'))
    return found


def test_rows_of_a_log_with_a_line_cut_short(tmp_path, rows):
    train, val = read_log(write_log(tmp_path / 'log.json', rows, tail='{"mode": "train", "ep'))
    assert (len(train), len(val)) == (6, 3)
    found = curves(train, epoch_length=20)
    assert found['loss_cls'] == ([0.5, 1, 1.5, 2, 2.5, 3], [3, 3, 1.5, 1.5, 1, 1])
    assert curves(val, epoch_length=20)['bbox_mAP'][0] == [1, 2, 3] and 'bbox_mAP_copypaste' not in curves(
        val, 20)
    assert curves(train)['lr'][0] == [10, 20] * 3


def test_figure_is_written_with_its_parts(tmp_path, rows):
    path = training_curves(write_log(tmp_path / 'log.json', rows), tmp_path / 'new/curves.png', 'title')
    three = cv2.imread(str(path))
    assert three is not None and (three < 200).any()
    without = [row for row in rows if row['mode'] == 'train']
    two = cv2.imread(str(training_curves(write_log(tmp_path / 'log.json', without), tmp_path / 'two.png')))
    assert two.shape[1] < three.shape[1]
    assert training_curves(write_log(tmp_path / 'log.json', rows),
                           tmp_path / 'c.pdf').read_bytes()[:4] == b'%PDF'


def test_iterations_that_run_on_are_the_axis(tmp_path):
    rows = [dict(mode='train', epoch=1 + i // 30, iter=i, lr=0.1, loss=1.0) for i in range(10, 60, 10)]
    path = training_curves(write_log(tmp_path / 'log.json', rows), tmp_path / 'c.svg')
    assert path.exists()
    from boxdet.visualization.figures import epoch_length
    assert epoch_length(rows, []) is None and epoch_length(rows[:2], []) == 20


def test_logs_without_anything(tmp_path):
    with pytest.raises(DataError, match='nothing.json: No such file'):
        read_log(tmp_path / 'nothing.json')
    with pytest.raises(DataError, match="log.json: no training or validation rows"):
        training_curves(write_log(tmp_path / 'log.json', []), tmp_path / 'c.png')


def test_sheet_keeps_every_image_whole():
    wide, tall = np.full((50, 200, 3), 10, np.uint8), np.full((300, 100, 3), 20, np.uint8)
    sheet = image_grid([wide, tall, wide], columns=2, tile=100, gap=4)
    assert sheet.shape == (100 + 25 + 3 * 4, 2 * 104 + 4, 3)
    assert (sheet == 10).all(axis=2).sum() == 2 * 100 * 25 and (sheet == 20).all(axis=2).sum() == 33 * 100
    assert image_grid([wide] * 12, tile=40).shape[1] == 5 * 48 + 8
    titled = image_grid([wide], tile=100, titles=['name'])
    assert (titled[-24:] < 128).any() and titled.shape[0] == 25 + 16 + 26
    with pytest.raises(DataError):
        image_grid([])
