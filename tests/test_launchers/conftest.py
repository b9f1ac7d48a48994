"""What the launchers' tests share: a training so small that starting Python is most of it, and a real one-node Slurm.

What needs root or a Debian package asks for it by the fixture ``need``.
"""
from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

sys.path.insert(0, str(Path(__file__).parent))

_CONFIG = '''
_base_ = ['ROOT/configs/shapes/mask_rcnn_r18_fpn_shapes.py']
model = dict(
    backbone=dict(base_channels=8),
    neck=dict(in_channels=[8, 16, 32, 64], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(bbox_roi_extractor=dict(out_channels=16),
                  bbox_head=dict(in_channels=16, fc_out_channels=32),
                  mask_roi_extractor=dict(out_channels=16),
                  mask_head=dict(num_convs=1, in_channels=16, conv_out_channels=16)),
    test_cfg=dict(rpn=dict(nms_pre=50, max_per_img=20), rcnn=dict(max_per_img=10)))
data = dict(
    samples_per_gpu=1, workers_per_gpu=0,
    train=dict(ann_file='DATA/annotations/instances_train.json', img_prefix='DATA/train/'),
    val=dict(ann_file='DATA/annotations/instances_val.json', img_prefix='DATA/val/'),
    test=dict(ann_file='DATA/annotations/instances_val.json', img_prefix='DATA/val/'))
optimizer = dict(_delete_=True, type='SGD', lr=0.01, momentum=0.9)
lr_config = dict(_delete_=True, policy='fixed')
runner = dict(max_epochs=1)
log_config = dict(interval=1)
custom_imports = dict(imports=['mishaps'], allow_failed_imports=False)
'''


@pytest.fixture(scope='session')
def toy_config(shapes_dir, repo_root, tmp_path_factory) -> Path:
    """The config of a very small Mask R-CNN on 12 images of shapes, tested on 5."""
    import json
    annotations = shapes_dir / 'annotations'
    content = json.loads((annotations / 'instances_val.json').read_text())
    content['images'] = content['images'][:5]
    kept = {image['id'] for image in content['images']}
    content['annotations'] = [one for one in content['annotations'] if one['image_id'] in kept]
    folder = tmp_path_factory.mktemp('toy')
    (folder / 'val.json').write_text(json.dumps(content))
    text = _CONFIG.replace('ROOT', str(repo_root)).replace('DATA/annotations/instances_val.json', f'{folder}/val.json')
    (folder / 'toy.py').write_text(text.replace('DATA', str(shapes_dir)))
    return folder / 'toy.py'


@pytest.fixture
def start(repo_root):
    """``start(tool, *arguments, **environment)`` begins tools/<tool> and returns its Popen, output to be read."""
    started = []

    def begin(tool: str, *arguments, before=(), **environment) -> subprocess.Popen:
        given = {'OMP_NUM_THREADS': '1', 'PYTHON': sys.executable, **environment}
        paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get('PYTHONPATH', '')])  # for mishaps.py
        process = subprocess.Popen([*before, 'bash', str(repo_root / 'tools' / tool), *map(str, arguments)],
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                   env={**os.environ, 'PYTHONPATH': paths, **given})
        started.append(process)
        return process
    yield begin
    for process in started:
        if process.poll() is None:
            process.terminate()
            process.wait(60)


@pytest.fixture
def run(start):
    """As ``start``, but waits; returns (exit status, stdout, the lines of stderr that are no warnings)."""
    def to_the_end(*arguments, **options) -> SimpleNamespace:
        process = start(*arguments, **options)
        out, err = process.communicate(timeout=180)
        said = [line for line in err.splitlines() if not line.startswith('warning: ')]
        return SimpleNamespace(status=process.returncode, out=out, said=said, err=err)
    return to_the_end


# --- a Slurm of one node ---

_SLURM_CONF = '''
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd.pid
SlurmctldLogFile={root}/slurmctld.log
SlurmdLogFile={root}/slurmd.log
ProctrackType=proctrack/pgid
TaskPlugin=task/none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
MinJobAge=2
KillWait=20
GresTypes=gpu
NodeName={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=4 Gres=gpu:2 State=UNKNOWN
PartitionName=dev Nodes=ALL Default=YES MaxTime=INFINITE State=UP
'''


@pytest.fixture(scope='module')
def slurm(need, tmp_path_factory):
    """A real Slurm of one node with four cores and two GPUs by name, on ports of its own; partition 'dev'.

    Yields the environment in which srun, sbatch, squeue and scontrol talk to it: ``dict(SLURM_CONF=…)``.
    """
    need('slurmctld', 'slurmd', 'srun', 'munged', package='slurm-wlm munge', root=True)
    _start_munge()
    root = tmp_path_factory.mktemp('slurm')
    host = socket.gethostname()
    for name in ('state', 'spool'):
        (root / name).mkdir()
    gpus = [root / f'gpu{i}' for i in range(2)]
    for gpu in gpus:
        gpu.touch()
    (root / 'gres.conf').write_text(f'Name=gpu File={root}/gpu[0-1]\n')
    with socket.create_server(('', 0)) as a, socket.create_server(('', 0)) as b:
        ports = [a.getsockname()[1], b.getsockname()[1]]
    (root / 'slurm.conf').write_text(_SLURM_CONF.format(host=host, root=root, ports=ports))
    environment = dict(SLURM_CONF=str(root / 'slurm.conf'))
    everything = {**os.environ, **environment, 'PATH': f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    try:
        for daemon in ('slurmctld', 'slurmd'):
            subprocess.run([daemon], env=everything, check=True, capture_output=True, timeout=60)
        _wait(lambda: 'idle' in subprocess.run(['sinfo', '-h', '-o', '%t'], env=everything, capture_output=True,
                                               text=True).stdout, 60, root)
        yield environment
    finally:
        for pid_file in (root / 'slurmd.pid', root / 'slurmctld.pid'):
            if pid_file.exists():
                os.kill(int(pid_file.read_text()), signal.SIGTERM)


def _start_munge() -> None:
    """munged, which proves to Slurm's daemons who is asking, for the whole machine; it stays."""
    if subprocess.run(['munge', '-n'], capture_output=True).returncode == 0:
        return
    folder = Path('/run/munge')
    folder.mkdir(exist_ok=True)
    shutil.chown(folder, 'munge')
    subprocess.run(['su', '-s', '/bin/bash', 'munge', '-c', '/usr/sbin/munged --force'], capture_output=True)
    _wait(lambda: subprocess.run(['munge', '-n'], capture_output=True).returncode == 0, 20)


def _wait(condition, seconds: float, root: Path | None = None) -> None:
    until = time.monotonic() + seconds
    while not condition():
        logs = '\n'.join(path.read_text()[-1500:] for path in root.glob('*.log')) if root else 'munged did not start'
        assert time.monotonic() < until, logs
        time.sleep(0.2)
