"""Two gloo processes: one model, results in order, files written once; launchers' environments."""
import datetime
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from toy_training import ToyDetector, toy_loader

from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine import distributed
from boxdet.engine.distributed import first_host, init_dist
from boxdet.engine.evaluation_loop import run_inference
from boxdet.errors import ConfigError


def free_port():
    with socket.socket() as probe:
        probe.bind(('127.0.0.1', 0))
        return probe.getsockname()[1]


def start(rank, out, port):
    place = dict(MASTER_ADDR='127.0.0.1', MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE='2', LOCAL_RANK=str(rank))
    return subprocess.Popen([sys.executable, str(Path(__file__).with_name('two_ranks.py')), str(out), 'pytorch'],
                            env={**os.environ, **place, 'OMP_NUM_THREADS': '1'}, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_two_processes(tmp_path):
    port = free_port()
    processes = [start(rank, tmp_path, port) for rank in range(2)]
    for process in processes:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
    facts = [json.loads((tmp_path / f'facts_{rank}.json').read_text()) for rank in range(2)]
    states = [torch.load(tmp_path / f'weights_{rank}.pth', weights_only=True) for rank in range(2)]
    assert [f['rank'] for f in facts] == [0, 1] and all(f['world'] == 2 and f['iterations'] == 8 for f in facts)
    for name, value in states[0].items():
        assert torch.equal(value, states[1][name]), name
    # 5 images on 2 ranks: rank 0 evaluates all of them, and every rank learns the metrics.
    assert facts[0]['evaluated'] == [5, 5] and facts[1]['evaluated'] == []
    assert facts[0]['metrics'] == facts[1]['metrics'] and len(facts[0]['metrics']) == 2
    assert list((tmp_path / 'exchange').iterdir()) == []  # the results came through it, and are gone
    assert facts[0]['gathered'] == facts[1]['gathered'] == [0, 10] and facts[1]['broadcast'] == 'from 0'
    assert facts[1]['mean'] == dict(a=0.5, b=2.) and facts[1]['scores'] is None
    # The results of two ranks are those of one.
    model = ToyDetector()
    model.load_state_dict(states[0])
    alone = run_inference(model, toy_loader(5, 1, shuffle=False), 'cpu', progress=False)
    assert torch.cat([r.scores for r in alone]).tolist() == pytest.approx(facts[0]['scores'], abs=1e-6)
    checkpoint = load_checkpoint(tmp_path / 'run' / 'epoch_2.pth')
    assert len(checkpoint['random']) == 2 and checkpoint['meta']['world_size'] == 2
    assert not any(name.startswith('module.') for name in checkpoint['state_dict'])
    assert len(list((tmp_path / 'run').glob('*.log.json'))) == 1


def test_one_process_needs_no_group():
    init_dist('none')
    assert distributed.get_dist_info() == (0, 1) and distributed.is_main()
    assert distributed.all_gather_objects(3) == [3] and list(distributed.from_other_ranks([3])) == []
    assert distributed.broadcast_object('x') == 'x' and distributed.mean_over_ranks(dict(a=1.)) == dict(a=1.)
    model = ToyDetector()
    assert distributed.wrap_distributed(model, torch.device('cpu')) is model is distributed.unwrap(model)
    distributed.broadcast_buffers(model)
    distributed.barrier()
    distributed.shut_down()


@pytest.mark.parametrize('nodes, host', [('gpu03', 'gpu03'), ('gpu[03-05,09],login1', 'gpu03'), ('a1,a2', 'a1'),
                                         ('node-[1,3]', 'node-1'), ('r[1-2]n[07,09]-ib,x', 'r1n07-ib')])
def test_first_host_of_a_slurm_list(nodes, host):
    assert first_host(nodes) == host


@pytest.mark.parametrize('launcher, message', [
    ('torch', "--launcher 'torch'"), ('pytorch', 'start with torchrun'), ('slurm', 'start with srun'),
    ('mpi', 'start with mpirun')])
def test_launchers_without_their_environment(monkeypatch, launcher, message):
    for name in list(os.environ):
        if name.startswith(('SLURM_', 'OMPI_')) or name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT'):
            monkeypatch.delenv(name)
    with pytest.raises(ConfigError, match=message):
        init_dist(launcher)


@pytest.mark.parametrize('launcher, given, port', [
    ('slurm', dict(SLURM_PROCID='3', SLURM_NTASKS='8', SLURM_LOCALID='1', SLURM_NODELIST='n[07-08]',
                   SLURM_JOB_ID='12345'), '20345'),
    ('mpi', dict(OMPI_COMM_WORLD_RANK='3', OMPI_COMM_WORLD_SIZE='8', OMPI_COMM_WORLD_LOCAL_RANK='1'), '29500')])
@pytest.mark.parametrize('chosen', [None, 31000])
def test_launchers_environments_are_translated(monkeypatch, launcher, given, port, chosen):
    for name in ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'MASTER_PORT', 'MASTER_ADDR'):
        monkeypatch.setenv(name, 'unset')  # so that what init_dist sets is taken away again
        monkeypatch.delenv(name)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    asked = []
    monkeypatch.setattr(distributed.dist, 'init_process_group', lambda *args, **kwargs: asked.append((*args, kwargs)))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: False)
    monkeypatch.setattr(distributed, '_watch_peers', lambda: None)
    monkeypatch.setenv('GLOO_SOCKET_IFNAME', 'lo')
    init_dist(launcher, dict(backend='nccl', port=chosen, timeout=60))
    assert (os.environ['RANK'], os.environ['WORLD_SIZE'], os.environ['LOCAL_RANK']) == ('3', '8', '1')
    assert os.environ['MASTER_ADDR'] == ('n07' if launcher == 'slurm' else '127.0.0.1')
    assert os.environ['MASTER_PORT'] == (port if chosen is None else str(chosen))
    assert asked == [('gloo', dict(timeout=datetime.timedelta(seconds=60)))]


def test_port_of_a_slurm_job(monkeypatch):
    ports = set()
    for job, step in ((12345, 0), (12345, 1), (12346, 0), (4294967295, 7)):
        monkeypatch.setenv('SLURM_JOB_ID', str(job))
        monkeypatch.setenv('SLURM_STEP_ID', str(step))
        ports.add(distributed.slurm_port())
    assert len(ports) == 4 and all(20000 <= port < 32000 for port in ports)


@pytest.mark.parametrize('params, device, backend', [
    (dict(backend='nccl'), 'cpu', 'gloo'), (dict(backend='gloo'), None, 'gloo'), ({}, None, 'nccl')])
def test_backend_on_a_machine_with_gpus(monkeypatch, params, device, backend):
    for name, value in dict(RANK='0', WORLD_SIZE='2', LOCAL_RANK='1', LOCAL_WORLD_SIZE='2', MASTER_ADDR='127.0.0.1',
                            MASTER_PORT='1', GLOO_SOCKET_IFNAME='lo').items():
        monkeypatch.setenv(name, value)
    asked, gpus = [], []
    monkeypatch.setattr(distributed.dist, 'init_process_group', lambda name, **_: asked.append(name))
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', gpus.append)
    monkeypatch.setattr(distributed, '_watch_peers', lambda: None)
    init_dist('pytorch', params, device)
    assert asked == [backend] and gpus == ([] if device == 'cpu' else [1])
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '3')
    if backend == 'nccl':
        with pytest.raises(ConfigError, match='3 processes on a machine with 2 GPUs'):
            init_dist('pytorch', params, device)


def test_interface_towards_a_host():
    assert distributed._interface_towards('127.0.0.1') == 'lo'
    assert distributed._interface_towards('no.such.host.invalid') is None


def test_unknown_dist_params():
    with pytest.raises(ConfigError, match="dist_params takes no 'prot'; did you mean 'port'"):
        init_dist('pytorch', dict(prot=29500))
