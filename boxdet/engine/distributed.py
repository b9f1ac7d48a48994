"""Several processes training one model: start under a launcher, wrap the model, exchange small objects.

Launchers are 2.x's: ``pytorch`` (torchrun), ``slurm`` (srun), ``mpi`` (Open MPI). NCCL joins the GPUs; on a machine
without them the same commands run gloo processes. Without a launcher every function here works as for one rank.
"""
from __future__ import annotations

import datetime
import inspect
import os
import re
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from boxdet.errors import ConfigError, nearest

LAUNCHERS = ('none', 'pytorch', 'slurm', 'mpi')
DEFAULT_PORT = 29500


# --- start ---

def init_dist(launcher: str, dist_params: Mapping[str, Any] | None = None) -> None:
    """Join the processes that ``launcher`` started; 'none' does nothing.

    Args:
        dist_params: the config's: ``backend`` ('nccl' becomes 'gloo' where there is no GPU), ``port`` (slurm, mpi),
            ``timeout`` in seconds.

    Raises:
        ConfigError: an unknown launcher or key, or the launcher's environment variables are missing.
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
    if not torch.cuda.is_available():
        backend = 'gloo'
    else:
        torch.cuda.set_device(int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count())
    kwargs = {}
    if options.get('timeout'):
        kwargs['timeout'] = datetime.timedelta(seconds=float(options['timeout']))
    dist.init_process_group(backend, **kwargs)


def _check_torchrun(port: int | None) -> None:
    missing = [name for name in ('RANK', 'WORLD_SIZE', 'MASTER_ADDR', 'MASTER_PORT') if name not in os.environ]
    if missing:
        raise ConfigError(f"--launcher pytorch needs {', '.join(missing)} in the environment: start with torchrun or "
                          'tools/dist_train.sh')


def _from_slurm(port: int | None) -> None:
    try:
        rank, world, nodes = (os.environ[n] for n in ('SLURM_PROCID', 'SLURM_NTASKS', 'SLURM_NODELIST'))
    except KeyError as error:
        raise ConfigError(f'--launcher slurm needs {error.args[0]} in the environment: start with srun') from error
    if 'MASTER_ADDR' not in os.environ:
        os.environ['MASTER_ADDR'] = first_host(nodes)
    # Jobs that share a node must not meet on one port, so it follows from the job's number.
    job = int(re.sub(r'\D', '', os.environ.get('SLURM_JOB_ID', '')) or 0)
    _set_environment(rank, world, os.environ.get('SLURM_LOCALID', rank), port or 20000 + job % 20000)


def first_host(node_list: str) -> str:
    """The first host of Slurm's compressed list: ``gpu[03-05,09],login1`` -> ``gpu03``."""
    match = re.match(r'([^\[,]+)(?:\[(\w+))?', node_list)
    return match.group(1) + (match.group(2) or '')


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


def shut_down() -> None:
    """Leave the group, so that the process ends without a warning."""
    if is_distributed():
        dist.destroy_process_group()


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
    return DistributedDataParallel(model, device_ids=ids, find_unused_parameters=find_unused_parameters,
                                   **{per_forward: False})


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
    """A gloo group: pickled objects travel between CPUs and need no GPU memory. Every rank asks at the same point."""
    global _object_group
    if dist.get_backend() == 'gloo':
        return dist.group.WORLD
    if _object_group is None:
        _object_group = dist.new_group(backend='gloo')
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


def gather_objects(value: Any) -> list[Any] | None:
    """The ``value`` of every rank, by rank, on rank 0; None elsewhere."""
    if not is_distributed():
        return [value]
    values: list[Any] | None = [None] * dist.get_world_size() if is_main() else None
    dist.gather_object(value, values, dst=0, group=_group_for_objects())
    return values


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


def in_order(parts: Sequence[Sequence[tuple[int, Any]]], total: int) -> list[Any]:
    """Lay the ranks' (index, item) pairs out by index; the copies that padded a short rank fall on their original.

    Raises:
        RuntimeError: an index that no rank delivered.
    """
    items = {index: item for part in parts for index, item in part}
    absent = [i for i in range(total) if i not in items]
    if absent:
        raise RuntimeError(f'no rank delivered the results {absent[:5]} of {total}')
    return [items[i] for i in range(total)]
