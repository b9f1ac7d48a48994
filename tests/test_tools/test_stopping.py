"""Trainings stopped in every way (kill -9, SIGTERM, SIGUSR1, a full disk): --auto-resume ends as if they were not."""
import contextlib
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from tiny_training import write

from boxdet.checkpoints.io import load_checkpoint

LAST = 'iter_18.pth'  # 3 epochs of 12 images, 2 of them for an update


class Server:
    """Real processes that run tools/train.py, started within milliseconds (training_server.py)."""

    def __init__(self, config, log):
        self.config, self.log = config, log
        log.touch()
        self.process = subprocess.Popen([sys.executable, str(Path(__file__).parent / 'training_server.py')], text=True,
                                        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=config.parent)
        assert self.process.stdout.readline() == 'ready\n'

    def _answer(self, kind):
        said = self.process.stdout.readline().split()
        assert said[0] == kind, said
        return int(said[1])

    def start(self, work_dir, *options, config=None, environment=()):
        """Begin a training; returns its process id."""
        arguments = [str(config or self.config), '--work-dir', str(work_dir), '--seed', '3', '--device', 'cpu']
        request = dict(output=str(self.log), arguments=[*arguments, *map(str, options)], environment=dict(environment))
        self.process.stdin.write(json.dumps(request) + '\n')
        self.process.stdin.flush()
        return self._answer('pid')

    def status(self):
        """Wait for its end."""
        return self._answer('status')

    def run(self, work_dir, *options, **kwargs):
        self.start(work_dir, *options, **kwargs)
        return self.status()

    def close(self):
        self.process.stdin.close()
        assert self.process.wait(60) == 0

    def output(self):
        """What was printed since the last time."""
        text = self.log.read_text()
        self.log.write_text('')
        return text


@pytest.fixture(scope='module')
def server(tmp_path_factory, shapes_dir):
    folder = tmp_path_factory.mktemp('server')
    server = Server(write(folder, shapes_dir), folder / 'output.txt')
    yield server
    server.close()


@pytest.fixture(autouse=True)
def _own_output(server):
    """What the test before this one, whichever it was, left unread is not this one's."""
    server.output()


@pytest.fixture(scope='module')
def whole(server, tmp_path_factory):
    """The folder of a training that nothing stopped."""
    work_dir = tmp_path_factory.mktemp('whole')
    assert server.run(work_dir) == 0, server.output()
    return work_dir


def wait_for(condition, seconds=60):
    """Look every millisecond until it holds."""
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.001)


def entries(work_dir):
    """How many entries the JSON log has: the first, 18 of iterations, 3 of evaluations."""
    return sum(path.read_bytes().count(b'\n') for path in work_dir.glob('*.log.json'))


def state(value):
    """A checkpoint without what differs between two equal trainings."""
    if isinstance(value, dict):
        return {k: state(v) for k, v in value.items() if k not in ('time', 'config', 'best_ckpt', 'env_info')}
    return [state(v) for v in value] if isinstance(value, (list, tuple)) else value


def assert_same(one, other, path=''):
    assert type(one) is type(other), path
    if isinstance(one, dict):
        assert one.keys() == other.keys(), path
        for key in one:
            assert_same(one[key], other[key], f'{path}.{key}')
    elif isinstance(one, list):
        assert len(one) == len(other), path
        for i, (a, b) in enumerate(zip(one, other)):
            assert_same(a, b, f'{path}.{i}')
    else:
        assert torch.equal(one, other) if isinstance(one, torch.Tensor) else one == other, (path, one, other)


def assert_ends_as(work_dir, whole):
    """Weights, averaged weights, optimizer, random states, counters and the best score: all bit for bit."""
    assert_same(*(state(load_checkpoint(folder / LAST)) for folder in (work_dir, whole)))
    best = [sorted(p.name for p in folder.glob('best_*')) for folder in (work_dir, whole)]
    assert best[0] == best[1] and len(best[0]) == 1
    assert_same(*(state(load_checkpoint(folder / best[0][0])['state_dict']) for folder in (work_dir, whole)))
    assert sorted(p.name for p in work_dir.glob('iter_*.pth')) == ['iter_16.pth', LAST]
    assert (work_dir / 'latest.pth').resolve().name == LAST


@pytest.mark.slow
def test_kill_9_at_twenty_random_moments(server, whole, tmp_path):
    rng = random.Random(0)
    killed, reached = 0, set()
    for attempt in range(20):
        work_dir = tmp_path / str(attempt)
        pid = server.start(work_dir)
        # Anywhere from before the first iteration to the end; every other time within the writing of a checkpoint.
        moment, writing = rng.randint(0, 20), attempt % 2
        wait_for(lambda work_dir=work_dir, moment=moment: entries(work_dir) >= moment)
        wait_for(lambda work_dir=work_dir, moment=moment, writing=writing: not writing or entries(work_dir) > moment
                 or any(work_dir.glob('.*.partial')))
        with contextlib.suppress(ProcessLookupError):  # it was quicker
            os.kill(pid, signal.SIGKILL)
        status = server.status()
        assert status in (-signal.SIGKILL, 0)
        killed += status != 0
        reached.add(max((int(p.stem[5:]) for p in work_dir.glob('iter_*.pth')), default=0))
        assert server.run(work_dir, '--auto-resume') == 0, server.output()
        assert_ends_as(work_dir, whole)
        assert not list(work_dir.glob('.*.partial'))
    assert killed >= 15 and len(reached) >= 5  # early and late


@pytest.mark.parametrize('name', ['SIGTERM', 'SIGUSR1'])
def test_signals_save_and_end_with_75(server, whole, tmp_path, name):
    pid = server.start(tmp_path)
    wait_for(lambda: list(tmp_path.glob('iter_*.pth')))
    os.kill(pid, getattr(signal, name))
    assert server.status() == 75
    text = server.output()
    newest = max(tmp_path.glob('iter_*.pth'), key=lambda p: p.stat().st_mtime_ns)
    assert f'stopped by {name} at iteration {newest.stem[5:]}, saved {newest}; --auto-resume goes on' in text
    assert 'Traceback' not in text and (tmp_path / 'latest.pth').resolve() == newest
    assert f'stopped by {name}' in next(tmp_path.glob('*.log')).read_text()
    assert server.run(tmp_path, '--auto-resume') == 0, server.output()
    assert_ends_as(tmp_path, whole)


def test_a_damaged_newest_checkpoint_is_passed_over(server, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    newest = tmp_path / 'run' / LAST
    content = bytearray(newest.read_bytes())
    weights = load_checkpoint(newest)['state_dict']['conv.weight']
    content[content.index(bytes(weights.untyped_storage())) + 40] ^= 255  # as they lie in memory
    newest.write_bytes(content)
    assert server.run(tmp_path / 'run', '--auto-resume') == 0, server.output()
    assert f'{newest} is damaged; trying the checkpoint before it' in server.output()
    assert_ends_as(tmp_path / 'run', whole)


def test_the_config_s_difference_is_told(server, whole, tmp_path):
    shutil.copytree(whole, tmp_path / 'run')
    changes = 'runner.max_epochs=4', 'optimizer.lr=0.01'
    assert server.run(tmp_path / 'run', '--auto-resume', '--cfg-options', *changes) == 0
    text = server.output()
    assert 'the config differs from that of' in text and '  runner.max_epochs: 3 -> 4' in text
    assert '  optimizer.lr: 0.05 -> 0.01' in text and 'resume_from:' not in text
    assert 'the learning rate goes on from the 0.05' in text


@pytest.mark.parametrize('workers', [1, 3])
def test_any_number_of_workers_gives_the_same_weights(server, whole, tmp_path, workers):
    status = server.run(tmp_path, '--deterministic', '--cfg-options', f'data.workers_per_gpu={workers}')
    assert status == 0, server.output()
    assert_ends_as(tmp_path, whole)


def variant(server, name, text):
    """The config with more lines, in the working directory."""
    path = server.config.with_name(f'{name}.py')
    path.write_text(f"_base_ = './{server.config.name}'\n{text}")
    return path


def test_features_by_iteration(server, tmp_path):
    config = variant(server, 'by_iteration', """
runner = dict(_delete_=True, type='IterBasedRunner', max_iters=4)
lr_config = dict(_delete_=True, policy='step', step=[2, 3], by_epoch=False)
evaluation = dict(interval=8)
auto_scale_lr = dict(enable=True, base_batch_size=4, scale_steps=True)
frozen_modules = ['conv', 'bn']
fp16 = dict(dtype='bfloat16')
""")
    assert server.run(tmp_path, config=config) == 0, server.output()
    text = server.output()
    assert ('1 process x 1 images x 2 accumulated = effective batch 2; base batch 4; learning rate 0.05 x 0.5 = 0.025'
            in text) and 'frozen_modules: 2 modules stand still' in text
    entries = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()][1:]
    rates = [entry['lr'] for entry in entries if entry['mode'] == 'train']
    assert rates == pytest.approx([.025] * 4 + [.0025] * 2 + [.00025] * 2)  # twice as long as the config says
    # The interval of checkpoints is scaled, too.
    first, last = (load_checkpoint(tmp_path / f'iter_{n}.pth')['online_state_dict'] for n in (4, 8))
    assert {k for k in last if not torch.equal(first[k], last[k])} == {'box.weight', 'box.bias'}


def test_validation_losses_and_early_stopping(server, tmp_path):
    config = variant(server, 'early', """
runner = dict(max_epochs=9)
workflow = [('train', 1), ('val', 1)]
custom_hooks = [dict(type='EarlyStoppingHook', monitor='loss_box', patience=2, min_delta=100.)]
evaluation = dict(interval=3)
""")
    assert server.run(tmp_path, config=config) == 0, server.output()
    assert 'early stopping after epoch 3: loss_box was not better than' in server.output()
    entries = [json.loads(line) for line in next(tmp_path.glob('*.log.json')).read_text().splitlines()][1:]
    losses = [entry for entry in entries if entry['mode'] == 'val' and 'loss_box' in entry]
    assert [(entry['epoch'], entry['iter']) for entry in losses] == [(1, 6), (2, 6), (3, 6)]
    assert load_checkpoint(tmp_path / 'latest.pth')['meta']['iter'] == 18


def test_an_unreadable_image_in_the_third_epoch(server, shapes_dir, tmp_path):
    shutil.copytree(shapes_dir, tmp_path / 'shapes')
    config = write(tmp_path / 'config', tmp_path / 'shapes')
    breaks = '''
from mmengine.hooks import Hook
from boxdet.registry import HOOKS

@HOOKS.register_module()
class BreakImage(Hook):
    def before_train_epoch(self, runner):
        if runner.epoch == 2:
            open(PATH, 'r+b').truncate(200)
'''
    victim = sorted((tmp_path / 'shapes/train').iterdir())[4]
    detector = server.config.parent / 'tiny_breaking_detector.py'  # in the working directory
    detector.write_text((config.parent / 'tiny_detector.py').read_text() + breaks.replace('PATH', repr(str(victim))))
    text = config.read_text().replace("'tiny_detector'", "'tiny_breaking_detector'")
    config.write_text(text + "custom_hooks.append(dict(type='BreakImage'))\n")
    whole_image = victim.read_bytes()

    def train(name, *more):
        victim.write_bytes(whole_image)
        server.output()
        status = server.run(tmp_path / name, '--cfg-options', 'data.workers_per_gpu=1', *more, config=config)
        return status, server.output()
    status, text = train('raise')
    errors = [line for line in text.splitlines() if line.startswith('error: ')]
    assert status == 2 and len(errors) == 1 and victim.name in errors[0] and 'truncated' in errors[0], text
    log = next((tmp_path / 'raise').glob('*.log')).read_text()
    assert errors[0] in log  # what ended it is also in the log file
    assert max(int(path.stem[5:]) for path in (tmp_path / 'raise').glob('iter_*.pth')) >= 12
    status, text = train('skip', 'data.train.on_error=skip')
    assert status == 0 and "on_error='skip': image 1 of at most 100 is skipped: " in text and victim.name in text, text
    status, text = train('limit', 'data.train.on_error=skip', 'data.train.max_errors=0')
    assert status == 2 and '1 images could not be read, more than max_errors=0' in text, text


@pytest.mark.slow
def test_all_ranks_stop_at_one_iteration(server, tmp_path):
    """The signal comes to one of two processes; both end with 75 behind one checkpoint, and go on as if not."""
    other = Server(server.config, tmp_path / 'output.txt')
    server.output()

    def start(*options, work_dir=tmp_path / 'run'):
        with socket.create_server(('127.0.0.1', 0)) as probe:
            place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(probe.getsockname()[1]), WORLD_SIZE='2',
                         LOCAL_WORLD_SIZE='2')
        return [one.start(work_dir, '--launcher', 'pytorch', *options,
                          environment=dict(place, RANK=str(rank), LOCAL_RANK=str(rank)))
                for rank, one in enumerate((server, other))]
    start(work_dir=tmp_path / 'whole')
    assert [server.status(), other.status()] == [0, 0], server.output()
    pids = start()
    wait_for(lambda: list((tmp_path / 'run').glob('iter_*.pth')))
    for number in (signal.SIGSTOP, signal.SIGTERM, signal.SIGCONT):  # it is to come before the end
        os.kill(pids[1], number)
    assert [server.status(), other.status()] == [75, 75], server.output()
    path = (tmp_path / 'run' / 'latest.pth').resolve()
    assert f'stopped by SIGTERM at iteration {path.stem[5:]}, saved {path}' in server.output()
    checkpoint = load_checkpoint(path)
    assert len(checkpoint['random']) == checkpoint['meta']['world_size'] == 2
    start('--auto-resume')
    assert [server.status(), other.status()] == [0, 0] and f'resumed from {path}' in server.output()
    # Half as many iterations as with one process.
    assert_same(*(state(load_checkpoint(tmp_path / name / 'iter_9.pth')) for name in ('run', 'whole')))
    other.close()


# --- folders and disks ---

@pytest.mark.parametrize('change, message', [
    ([], 'work_dir {} cannot be written: '),
    (['--cfg-options', 'checkpoint_config.out_dir={}'], 'checkpoint_config.out_dir {}')])
def test_a_folder_that_cannot_be_written_is_noticed_first(server, tmp_path, change, message):
    (tmp_path / 'file').write_text('no folder')
    place = tmp_path / 'file' / 'run'
    work_dir = place if not change else tmp_path / 'run'
    assert server.run(work_dir, *(c.format(place) for c in change)) == 2
    text = server.output()
    assert message.format(place) in text and 'Not a directory' in text
    assert 'Epoch [' not in text and 'Traceback' not in text


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 300 kB."""
    folder = tmp_path / 'disk'
    folder.mkdir()
    if os.geteuid() != 0 or subprocess.run(['mount', '-t', 'tmpfs', '-o', 'size=300k', 'tmpfs', str(folder)],
                                           capture_output=True).returncode:
        pytest.skip('mounting a tmpfs needs root')
    yield folder
    subprocess.run(['umount', str(folder)], check=True)


@pytest.mark.parametrize('what', ['checkpoint', 'log'])
def test_a_full_disk_ends_in_one_line_and_is_gone_on_from(server, whole, small_disk, what):
    work_dir = small_disk / 'run'
    stone = small_disk / 'stone'
    pid = server.start(work_dir)
    wait_for((work_dir / 'iter_2.pth').exists)
    os.kill(pid, signal.SIGSTOP)
    free = os.statvfs(small_disk).f_bavail * os.statvfs(small_disk).f_frsize
    stone.write_bytes(b'x' * max(free - (8192 if what == 'checkpoint' else 0), 0))
    os.kill(pid, signal.SIGCONT)
    assert server.status() == 2, server.output()
    text = server.output()
    errors = [line for line in text.splitlines() if line.startswith('error: ')]
    assert len(errors) == 1 and 'Traceback' not in text, text
    assert 'cannot write' in errors[0] and 'No space left on device' in errors[0]
    stone.unlink()
    for path in work_dir.glob('best_*'):
        path.unlink()
    status = server.run(work_dir, '--auto-resume', '--cfg-options', 'checkpoint_config.max_keep_ckpts=1')
    assert status == 0, server.output()
    assert_same(*(state(load_checkpoint(folder / LAST))['state_dict'] for folder in (work_dir, whole)))


# --- Slurm ---

def test_requeue_asks_slurm(tmp_path, monkeypatch, caplog):
    import logging

    from boxdet.engine.interruption import request_requeue
    tool = tmp_path / 'scontrol'
    tool.write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n'
                    'test "$2" = 7 || { echo Invalid job id >&2; exit 1; }\n')
    tool.chmod(0o755)
    monkeypatch.setenv('PATH', f'{tmp_path}:{os.environ["PATH"]}')
    logging.getLogger('boxdet').propagate = True
    monkeypatch.delenv('SLURM_JOB_ID', raising=False)
    request_requeue(signal.SIGUSR1)
    monkeypatch.setenv('SLURM_JOB_ID', '7')
    request_requeue(signal.SIGTERM)  # a job that was cancelled, or one that Slurm starts again itself
    assert not (tmp_path / 'asked').exists()
    request_requeue(signal.SIGUSR1)
    monkeypatch.setenv('SLURM_JOB_ID', '8')
    request_requeue(signal.SIGUSR1)
    assert (tmp_path / 'asked').read_text() == 'requeue 7\nrequeue 8\n'
    assert 'Invalid job id; submit the job again' in caplog.text
