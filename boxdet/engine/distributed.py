"""Several processes training one model: start under a launcher, wrap the model, exchange small objects.

Launchers are 2.x's: ``pytorch`` (torchrun), ``slurm`` (srun), ``mpi`` (Open MPI). NCCL joins the GPUs; on a machine
without them the same commands run gloo processes. Without a launcher every function here works as for one rank.
"""
from __future__ import annotations

import contextlib
import datetime
import inspect
import itertools
import os
import re
import socket
import struct
import sys
import warnings
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, cast

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxdet import errors
from boxdet.engine.peer_watch import PeerWatch
from boxdet.errors import ConfigError, nearest

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
DEFAULT_PORT = 29500
_SIOCGIFADDR = 0x8915  # Linux: the IPv4 address of an interface


# --- start ---

def init_dist(launcher: str, dist_params: Mapping[str, Any] | None = None, device: str | None = None) -> None:
    """Join the processes that ``launcher`` started; 'none' does nothing. From then on a rank that dies ends the others.

    Args:
        launcher: one of ``LAUNCHERS``.
        dist_params: the config's: ``backend`` ('nccl' becomes 'gloo' where there is no GPU), ``port`` (slurm, mpi),
            ``timeout`` in seconds of every collective of the training.
        device: where the models go, when that is decided; 'cpu' needs gloo.

    Raises:
        ConfigError: an unknown launcher or key, the launcher's environment variables are missing, or fewer GPUs than
            processes.
    """
    if launcher not in LAUNCHERS:
        raise ConfigError(f"--launcher '{launcher}'{nearest(launcher, LAUNCHERS)}")
    if launcher == 'none' or is_distributed():
        return
    options = dict(dist_params or {})
    for key in options:
        if key not in ('backend', 'port', 'timeout'):
            raise ConfigError(f"dist_params takes no '{key}'{nearest(key, ['backend', 'port', 'timeout'])}")
    {'pytorch': _check_torchrun, 'slurm': _from_slurm, 'mpi': _from_mpi}[launcher](options.get('port'))
    backend = options.get('backend') or 'nccl'
    if not torch.cuda.is_available() or str(device) == 'cpu':
        backend = 'gloo'
    else:
        _choose_gpu(backend)
    _choose_interface()
    kwargs: dict[str, Any] = {}
    if options.get('timeout'):
        kwargs['timeout'] = datetime.timedelta(seconds=float(options['timeout']))
    try:
        dist.init_process_group(backend, **kwargs)
    except dist.DistNetworkError as error:
        raise ConfigError(_no_meeting(launcher, error)) from error
    errors.leave = errors.exit_at_once
    _watch_peers()


def _check_torchrun(port: int | None) -> None:
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise ConfigError(f"--launcher pytorch needs {', '.join(missing)} in the environment: start with torchrun or "
                          'tools/dist_train.sh')


def _from_slurm(port: int | None) -> None:
    # A step may use fewer tasks and nodes than its job has; srun tells of both.
    world = os.environ.get('SLURM_STEP_NUM_TASKS') or os.environ.get('SLURM_NTASKS')
    nodes = os.environ.get('SLURM_STEP_NODELIST') or os.environ.get('SLURM_NODELIST')
    rank = _of_slurm('SLURM_PROCID', os.environ.get('SLURM_PROCID'))
    world, nodes = _of_slurm('SLURM_NTASKS', world), _of_slurm('SLURM_NODELIST', nodes)
    os.environ.setdefault('MASTER_ADDR', first_host(nodes))
    _set_environment(rank, world, os.environ.get('SLURM_LOCALID', rank), port or slurm_port())


def _of_slurm(name: str, value: str | None) -> str:
    if not value:
        raise ConfigError(f'--launcher slurm needs {name} in the environment: start with srun')
    return value


def slurm_port() -> int:
    """A port that follows from the numbers of job and step, as jobs that share a node must not meet on one.

    It lies below 32768, where Linux begins to give ports to outgoing connections.
    """
    job, step = (int(re.sub(r'\D', '', os.environ.get(f'SLURM_{name}_ID', '')) or 0) for name in ('JOB', 'STEP'))
    return 20000 + (job + 1000 * step) % 12000


def first_host(node_list: str) -> str:
    """The first host of Slurm's compressed list: ``gpu[03-05,09]-ib,login1`` -> ``gpu03-ib``."""
    first = re.findall(r'(?:[^\[,]|\[[^\]]*\])*', node_list)[0]  # up to the first comma outside of brackets
    return re.sub(r'\[(\w+)[^\]]*\]', r'\1', first)


def _from_mpi(port: int | None) -> None:
    try:
        rank, world, local = (os.environ[f'OMPI_COMM_WORLD_{n}'] for n in ('RANK', 'SIZE', 'LOCAL_RANK'))
    except KeyError as error:
        raise ConfigError(f'--launcher mpi needs {error.args[0]} in the environment: start with mpirun') from error
    os.environ.setdefault('MASTER_ADDR', '127.0.0.1')
    _set_environment(rank, world, local, port or DEFAULT_PORT)


def _set_environment(rank: str, world: str, local_rank: str, port: int) -> None:
    os.environ.update(RANK=rank, WORLD_SIZE=world, LOCAL_RANK=local_rank)
    os.environ.setdefault('MASTER_PORT', str(port))


def _choose_gpu(backend: str) -> None:
    gpus, here = torch.cuda.device_count(), int(os.environ.get('LOCAL_WORLD_SIZE', 1))
    if backend == 'nccl' and here > gpus:
        raise ConfigError(f'{here} processes on a machine with {gpus} GPUs: NCCL wants one for each (start fewer, or '
                          "with --cfg-options dist_params.backend=gloo, or with CUDA_VISIBLE_DEVICES= on the CPU)")
    torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)) % gpus)


def _choose_interface() -> None:
    """Let gloo talk over the network that leads to MASTER_ADDR.

    Left alone it takes the address that the machine's name has, which is a loopback or of another network on many.
    """
    if 'GLOO_SOCKET_IFNAME' in os.environ:
        return
    name = _interface_towards(os.environ['MASTER_ADDR'])
    # Rank 0's machine reaches itself over the loopback, where no other machine finds it.
    if name and (name != 'lo' or os.environ.get('LOCAL_WORLD_SIZE') == os.environ['WORLD_SIZE']):
        os.environ['GLOO_SOCKET_IFNAME'] = name


def _interface_towards(host: str) -> str | None:
    """The name of the network interface whose IPv4 address a packet to ``host`` would carry; None if not found."""
    try:
        import fcntl
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((host, 9))  # sends nothing
            address = socket.inet_aton(probe.getsockname()[0])
            if address[0] == 127:
                return 'lo'
            for _, name in socket.if_nameindex():
                with contextlib.suppress(OSError):  # an interface without an address
                    if fcntl.ioctl(probe.fileno(), _SIOCGIFADDR, struct.pack('256s', name.encode()))[20:24] == address:
                        return name
    except (OSError, ImportError):
        pass
    return None


def _no_meeting(launcher: str, error: Exception) -> str:
    place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
    how = 'PORT=N tools/dist_train.sh' if launcher == 'pytorch' else '--cfg-options dist_params.port=N'
    if 'EADDRINUSE' in str(error):
        return f'port {place} is taken, perhaps by another training: choose another with {how}'
    return f"rank {os.environ['RANK']} did not meet the others at {place}: {' '.join(str(error).split())[:200]}"


_watch: PeerWatch | None = None


def _watch_peers() -> None:
    global _watch
    rank, world = get_dist_info()
    if world > 1:
        _watch = PeerWatch(rank, world, int(os.environ.get('LOCAL_RANK', rank)), os.environ['MASTER_ADDR'],
                           broadcast_object)


def shut_down() -> None:
    """Leave the group, so that the process ends without a warning and the other ranks without alarm."""
    global _watch, _object_group
    if _watch is not None:
        _watch.close()
    _watch = _object_group = None
    if is_distributed():
        dist.destroy_process_group()
    errors.leave = sys.exit


# --- who am I ---

def is_distributed() -> bool:
    """Whether ``init_dist`` joined a group."""
    return dist.is_available() and dist.is_initialized()


def get_dist_info() -> tuple[int, int]:
    """(rank, world size); (0, 1) without a group."""
    return (dist.get_rank(), dist.get_world_size()) if is_distributed() else (0, 1)


def is_main() -> bool:
    """Whether this is the rank that writes files and the log."""
    return get_dist_info()[0] == 0


# --- the model ---

class _DataParallel(DistributedDataParallel):
    """torch's, which refuses models on the CPU that hold a SyncBatchNorm; ours (models/layers.py) works there."""

    def _passing_sync_batchnorm_handle(self, module: nn.Module) -> None:
        if next(module.parameters()).device.type != 'cpu':
            super()._passing_sync_batchnorm_handle(module)


def wrap_distributed(model: nn.Module, device: torch.device, find_unused_parameters: bool = False) -> nn.Module:
    """Wrap ``model`` (already on ``device``) so that gradients are averaged over the ranks; as it is for one rank.

    BN statistics stay each rank's own between evaluations, as in 2.x.
    """
    if not is_distributed():
        return model
    ids = [device.index if device.index is not None else torch.cuda.current_device()] if device.type == 'cuda' else None
    names = inspect.signature(DistributedDataParallel).parameters
    per_forward = 'forward_sync_buffers' if 'forward_sync_buffers' in names else 'broadcast_buffers'  # torch renamed it
    # Said of every 1x1 convolution, whose two memory layouts are the same bytes.
    warnings.filterwarnings('ignore', message='Grad strides do not match bucket view strides')
    return _DataParallel(model, device_ids=ids, find_unused_parameters=find_unused_parameters,
                         **cast(dict[str, Any], {per_forward: False}))


def unwrap(model: nn.Module) -> nn.Module:
    """The detector inside a DistributedDataParallel or DataParallel wrapper."""
    return model.module if isinstance(model, (DistributedDataParallel, nn.DataParallel)) else model


def broadcast_buffers(model: nn.Module) -> None:
    """Give every rank rank 0's BN statistics, which are the ones a checkpoint holds: all evaluate one model."""
    if is_distributed():
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


# --- small objects ---

_object_group: Any = None


def _group_for_objects() -> Any:
    """A gloo group: pickled objects travel between CPUs and need no GPU memory. Every rank asks at the same point.

    Here ranks wait while rank 0 evaluates a large data set, so that its time limit is none; PeerWatch has an eye on
    who is alive.
    """
    global _object_group
    if _object_group is None:
        _object_group = dist.new_group(backend='gloo', timeout=datetime.timedelta(days=7))
    return _object_group


def broadcast_object(value: Any) -> Any:
    """Rank 0's ``value``, on every rank."""
    if not is_distributed():
        return value
    box = [value]
    dist.broadcast_object_list(box, src=0, group=_group_for_objects())
    return box[0]


def all_gather_objects(value: Any) -> list[Any]:
    """The ``value`` of every rank, by rank."""
    if not is_distributed():
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value, group=_group_for_objects())
    return values


def from_other_ranks(items: Iterable[Any], piece: int = 32) -> Iterator[Any]:
    """On rank 0 every other rank's ``items``, by rank, as they come; on the others nothing, once theirs are sent.

    They travel ``piece`` at a time: no process ever holds more than one piece of them beside its own.
    """
    rank, world = get_dist_info()
    if rank == 0:
        for source in range(1, world):
            while (box := _receive(source)) is not None:
                yield from box
    else:
        waiting = iter(items)
        while part := list(itertools.islice(waiting, piece)):
            dist.send_object_list([part], dst=0, group=_group_for_objects())
        dist.send_object_list([None], dst=0, group=_group_for_objects())


def _receive(source: int) -> Any:
    box = [None]
    dist.recv_object_list(box, src=source, group=_group_for_objects())
    return box[0]


def mean_over_ranks(values: Mapping[str, float]) -> dict[str, float]:
    """The mean over all ranks of each number; ranks give the same keys in the same order."""
    if not is_distributed() or not values:
        return dict(values)
    device = 'cuda' if dist.get_backend() == 'nccl' else 'cpu'
    packed = torch.tensor(list(values.values()), dtype=torch.float64, device=device)
    dist.all_reduce(packed)
    return dict(zip(values, (packed / dist.get_world_size()).tolist()))


def barrier() -> None:
    """Wait until every rank is here."""
    if is_distributed():
        dist.barrier()
