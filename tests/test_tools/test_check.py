"""tools/check.py: what a training is told before its first step, without a training."""
import subprocess
import sys


def test_the_schedule_is_checked_too(repo_root, shapes_dir, tmp_path):
    done = subprocess.run(
        [sys.executable, repo_root / 'tools/check.py', 'configs/shapes/faster_rcnn_r18_fpn_shapes.py', '--data',
         shapes_dir / 'annotations/instances_train.json', shapes_dir / 'annotations/instances_val.json', '--images',
         shapes_dir / 'train', shapes_dir / 'val', '--cfg-options', 'lr_config.warmup_iters=5000',
         'evaluation.interval=99'], cwd=repo_root, capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.endswith('a training can begin (12 images, 6 to evaluate on)\n'), done
    told = done.stdout + done.stderr
    assert 'lr_config.warmup_iters = 5000 iterations: the training ends after' in told
    assert 'evaluation begins after 99 epochs' in told and told.count('[config.idle-schedule]') == 2
