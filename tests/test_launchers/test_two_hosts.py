"""Two machines, as two network namespaces that a cable joins: they train together, and both end when it is cut."""
import json
import os
import subprocess

import pytest

from boxdet.checkpoints.io import load_checkpoint
from tests.test_docs.examples import launched, runs

PORT = '29500'


class Hosts:
    """Namespaces a and b, at 10.77.0.1 and 10.77.0.2."""

    def __init__(self):
        self.names = [f'boxdet-{side}-{os.getpid()}' for side in 'ab']
        a, b = self.names
        _ip('netns', 'add', a)
        _ip('netns', 'add', b)
        _ip('link', 'add', 'va', 'netns', a, 'type', 'veth', 'peer', 'name', 'vb', 'netns', b)
        for name, link, number in ((a, 'va', 1), (b, 'vb', 2)):
            _ip('-n', name, 'addr', 'add', f'10.77.0.{number}/24', 'dev', link)
            for device in ('lo', link):
                _ip('-n', name, 'link', 'set', device, 'up')

    def on(self, index):
        """What a command on this host begins with."""
        return ['ip', 'netns', 'exec', self.names[index]]

    def cut(self):
        """Pull the cable: packets vanish, and nobody is told."""
        _ip('-n', self.names[1], 'link', 'set', 'vb', 'down')

    def remove(self):
        for name in self.names:
            subprocess.run(['ip', 'netns', 'del', name], capture_output=True)


def _ip(*arguments):
    done = subprocess.run(['ip', *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def hosts(need):
    need('ip', package='iproute2', root=True)
    found = Hosts()
    yield found
    found.remove()


def begin(start, hosts, config, work_dir, *more):
    """One process a host; the processes by host."""
    place = dict(NNODES='2', MASTER_ADDR='10.77.0.1', PORT=PORT)
    return [start('dist_train.sh', config, '1', '--work-dir', work_dir, '--seed', '0', *more,
                  before=hosts.on(index), NODE_RANK=str(index), **place) for index in range(2)]


@pytest.mark.slow
@runs('docs/distributed.md: NNODES=2')
def test_two_hosts_train_together(examples, hosts, start, toy_config, tmp_path):
    processes = []
    for index, example in enumerate(examples):
        script, arguments, variables = launched(example.filled, {'config.py': toy_config})
        assert variables == dict(NNODES='2', NODE_RANK=str(index), MASTER_ADDR='10.77.0.1', PORT=PORT)
        processes.append(start(script, *arguments, '--work-dir', tmp_path, '--no-validate', before=hosts.on(index),
                               **variables))
    for process in processes:
        _, err = process.communicate(timeout=180)
        assert process.returncode == 0, err
    meta = load_checkpoint(tmp_path / 'epoch_1.pth')['meta']
    assert (meta['world_size'], meta['iter']) == (2, 6)


@pytest.mark.slow
def test_a_cut_cable_ends_both(hosts, start, toy_config, tmp_path):
    config = tmp_path / 'long.py'
    config.write_text(f"_base_ = ['{toy_config}']\nrunner = dict(max_epochs=100000)\n"
                      'checkpoint_config = dict(interval=100000)\n')
    processes = begin(start, hosts, config, tmp_path / 'work', '--no-validate')
    assert any('loss: ' in line for line in processes[0].stdout), processes[0].communicate()  # the training has begun
    hosts.cut()
    for process, other in zip(processes, (1, 0)):
        _, err = process.communicate(timeout=90)
        last = err.strip().splitlines()[-1]
        assert process.returncode == 1 and 'Traceback' not in err, err
        assert last.startswith(f'error: rank {other} (') and 'its machine or the network between is gone' in last
    entries = [json.loads(line) for line in next((tmp_path / 'work').glob('*.log.json')).read_text().splitlines()]
    assert len(entries) > 1
