"""tools/demo.py end to end on a tiny data set: what it writes, and that a rerun leaves nothing stale."""
import json
import subprocess
import sys

import cv2
import pytest


def run_demo(repo_root, data, work_dir, *options):
    command = [sys.executable, str(repo_root / 'tools/demo.py'), '--data', str(data), '--work-dir', str(work_dir),
               *options]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.slow
def test_demo_trains_evaluates_and_draws_and_a_rerun_starts_afresh(repo_root, shapes_dir, tmp_path):
    work_dir = tmp_path / 'demo'
    work_dir.mkdir()
    (work_dir / 'epoch_9.pth').write_bytes(b'of an earlier run')
    (work_dir / 'notes.txt').write_text('not ours')
    done = run_demo(repo_root, shapes_dir, work_dir, '--cfg-options', 'runner.max_epochs=1', 'log_config.interval=1')
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'eta:' in done.stdout and 'loss:' in done.stdout and 'lr:' in done.stdout
    metrics = json.loads((work_dir / 'metrics.json').read_text())
    assert set(metrics) == {'bbox_mAP', 'segm_mAP'} and all(0 <= value <= 1 for value in metrics.values())
    assert not (work_dir / 'epoch_9.pth').exists() and (work_dir / 'epoch_1.pth').exists()
    assert (work_dir / 'notes.txt').read_text() == 'not ours'
    for name in ('predictions.png', 'curves.png'):
        assert cv2.imread(str(work_dir / name)).std() > 10 and name in done.stdout
    log = next(work_dir.glob('*.log'))
    rows = [json.loads(line) for line in log.with_suffix('.log.json').read_text().splitlines()]
    assert [row['bbox_mAP'] for row in rows if row.get('mode') == 'val'] == [metrics['bbox_mAP']]
    for printed in (log, work_dir / 'latest.pth', work_dir / 'metrics.json'):
        assert str(printed) in done.stdout and printed.exists()


def test_demo_tells_a_wrong_option_in_one_line(repo_root, shapes_dir, tmp_path):
    done = run_demo(repo_root, shapes_dir, tmp_path / 'demo', '--cfg-options', 'model.test_cfg.rcnn.score_thresh=0.1')
    assert done.returncode == 2 and 'score_thr' in done.stderr and 'Traceback' not in done.stderr
    assert not (tmp_path / 'demo').exists()
