"""What Windows and macOS lack is asked for: everything is imported, and a training runs, where it is taken away.

No machine of those systems takes part; this keeps the imports and calls that would fail there behind a check.
"""
import os
import subprocess
import sys
from pathlib import Path

import pytest

_WITHOUT = '''
import os, signal, sys
import cv2, matplotlib, mmengine, numpy, pycocotools.mask, torch, torch.distributed, torchvision
for name in ('resource', 'fcntl', 'termios', 'pwd', 'grp', 'syslog'):
    sys.modules[name] = None
for name in ('SIGUSR1', 'SIGUSR2', 'SIGHUP', 'SIGQUIT', 'SIGKILL', 'SIGALRM'):
    delattr(signal, name)
for name in ('pread', 'register_at_fork', 'sched_getaffinity', 'fork', 'statvfs', 'geteuid', 'mkfifo'):
    delattr(os, name)
signal.Signals = type('Signals', (), dict(__new__=lambda cls, number: type('One', (), dict(name='SIGTERM'))))
'''
_IMPORTS = _WITHOUT + '''
import importlib, pkgutil
import boxdet.apis
for name in boxdet.apis.__all__:
    getattr(boxdet.apis, name)
names = [module.name for module in pkgutil.walk_packages(boxdet.__path__, 'boxdet.')]
for name in names:
    importlib.import_module(name)
print(len(names))
'''
_TRAINING = _WITHOUT + '''
from toy_training import ToyDataset, toy_loader, toy_runner
from boxdet.engine.hooks import CheckpointHook, EvaluationHook
from boxdet.engine.interruption import request_requeue
from boxdet.engine.loggers import TextLoggerHook
from boxdet.evaluation.stored_results import StoredResults

def evaluate(dataset, results, **_):
    on_disk = StoredResults.of(results, memory_limit=0)
    assert on_disk.on_disk and [one.labels.tolist() for one in on_disk] == [one.labels.tolist() for one in results]
    return dict(bbox_mAP=.5)
evaluation = EvaluationHook(ToyDataset(2), toy_loader(2, shuffle=False), evaluate, progress=False)
runner = toy_runner(sys.argv[1], 1, hooks=[CheckpointHook(interval=1), TextLoggerHook(2), evaluation])
runner.train()
again = toy_runner(sys.argv[1], 2)
again.resume(sys.argv[1] + '/latest.pth')
again.train()
request_requeue(signal.SIGTERM)
print(again.iter)
'''


def run(code, *arguments):
    here = Path(__file__).parent
    path = os.pathsep.join([str(here), str(here.parent.parent)])
    done = subprocess.run([sys.executable, '-c', code, *map(str, arguments)], capture_output=True, text=True,
                          env={**os.environ, 'PYTHONPATH': path})
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_everything_is_imported():
    assert int(run(_IMPORTS)) > 100


@pytest.mark.slow
def test_a_training(tmp_path):
    assert run(_TRAINING, tmp_path).splitlines()[-1] == '8'
    assert '"bbox_mAP": 0.5' in (tmp_path / '20200101_000000.log.json').read_text()
