"""Start the processes of dist_train.sh and dist_test.sh on this machine with torchrun, and say why they ended.

    python tools/torchrun.py GPUS TOOL [its arguments]
    python tools/torchrun.py --check TOOL [its arguments]      only look at the arguments (slurm_train.sh)

GPUS processes run the program TOOL. NNODES, NODE_RANK, MASTER_ADDR and PORT of the environment say which of how many
machines this is and where they meet; a single machine needs none of them: torchrun then listens on a port that the
system gives it, and tells its processes. LOGLEVEL=INFO shows torchrun's own log.
"""
from __future__ import annotations

import importlib.util
import json
import logging
import os
import signal
import sys
import tempfile
import uuid
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # the checkout also works when it is not installed

from boxdet.errors import EXIT_NOTES, ConfigError, nearest, run_command

# Passed on to the processes, which save a checkpoint and leave; torchrun waits 30 s for them before it kills.
SIGNALS = 'SIGTERM,SIGINT,SIGHUP,SIGQUIT,SIGUSR1'
DEFAULT_PORT = 29500  # torchrun's


def number(name: str, text: str, least: int) -> int:
    """The number that ``text`` is.

    Raises:
        ConfigError: it is none, or below ``least``.
    """
    if not text.isdigit() or int(text) < least:
        raise ConfigError(f"{name} is '{text}'; it must be a whole number, {least} or more")
    return int(text)


def torchrun_options(gpus: str, environment: Any) -> list[str]:
    """Torchrun's own options for ``gpus`` processes here and the machines that ``environment`` names."""
    count = number('GPUS, the number of processes on this machine,', gpus, 1)
    nodes = number('NNODES', environment.get('NNODES') or '1', 1)
    rank = number('NODE_RANK', environment.get('NODE_RANK') or '0', 0)
    if rank >= nodes:
        raise ConfigError(f'NODE_RANK={rank}: {nodes} nodes are numbered from 0 to {nodes - 1} (NNODES={nodes})')
    options = [f'--nnodes={nodes}', f'--nproc-per-node={count}']
    if nodes == 1 and not environment.get('PORT'):
        return [*options, '--rdzv-backend=c10d', '--rdzv-endpoint=127.0.0.1:0', f'--rdzv-id={uuid.uuid4()}',
                '--local-addr=127.0.0.1']
    if nodes > 1 and not environment.get('MASTER_ADDR'):
        raise ConfigError(f'NNODES={nodes} needs MASTER_ADDR, the name or address of the machine with NODE_RANK=0')
    port = number('PORT', environment.get('PORT') or str(DEFAULT_PORT), 1)
    return [*options, f'--node-rank={rank}', f"--master-addr={environment.get('MASTER_ADDR') or '127.0.0.1'}",
            f'--master-port={port}']


def check_arguments(tool: str, arguments: list[str]) -> None:
    """Let one of our own tools judge its arguments here, at once: its processes would all say the same.

    Raises:
        UserError: they contradict each other, or there is no such config.
        SystemExit: they cannot be parsed, or are ``--help``.
    """
    if Path(tool).resolve().parent != Path(__file__).resolve().parent:
        return
    spec = importlib.util.spec_from_file_location('tool', tool)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    sys.argv[0] = Path(tool).name  # which the usage names
    args = module.parse_args(arguments)
    module.check_args(args)
    config = Path(args.config)
    if config.suffix and '::' not in args.config and not config.is_file():  # no name of a config, nor a package's
        beside = [path.name for path in config.parent.glob('*.py')]
        raise ConfigError(f'{args.config}: no such config file{nearest(config.name, beside)}')


def share_cores(gpus: int) -> None:
    """Processes on the CPU share its cores; torchrun would give each a single thread."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    os.environ.setdefault('OMP_NUM_THREADS', str(max(cores // gpus, 1)))


def cause(notes: dict[int, dict[str, Any]], failures: dict[int, Any]) -> tuple[int, str]:
    """(exit status, line to print) that explain why the processes ended.

    A signal from outside explains more than an error, an error more than what it did to the other ranks.

    Args:
        notes: what each rank left (``boxdet.errors``).
        failures: torchrun's ProcessFailure by rank.
    """
    for rank, failure in sorted(failures.items()):
        if failure.exitcode < 0 and rank not in notes:
            name, hint = failure.signal_name(), ''
            if name == 'SIGKILL':
                hint = '; if nobody did, the machine ran out of memory (dmesg tells)'
            return 128 - failure.exitcode, f'error: rank {rank} (process {failure.pid}) was killed by {name}{hint}'
    for kind in ('error', 'crash', 'exit', 'lost'):
        for rank, note in sorted(notes.items()):
            if note['kind'] == kind:
                crashed = f"error: rank {rank} failed: {note['text']} (its traceback stands above)"
                return note['status'], crashed if kind == 'crash' else note['text']
    rank, failure = min(failures.items())
    return failure.exitcode, f'error: rank {rank} (process {failure.pid}) ended with status {failure.exitcode}'


def start(options: list[str], tool: str, arguments: list[str], folder: Path) -> int:
    """Run the processes to their end; returns the exit status."""
    os.environ['TORCH_CPP_LOG_LEVEL'] = 'ERROR'  # of this process: its sockets' warnings come again as exceptions
    from torch.distributed import DistNetworkError, DistStoreError
    from torch.distributed import run as torchrun
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import elastic_launch
    del os.environ['TORCH_CPP_LOG_LEVEL']
    if 'LOGLEVEL' not in os.environ:
        logging.disable(logging.CRITICAL)  # torchrun tells of every failed process at length; cause() does it here
    args = torchrun.parse_args([*options, tool, *arguments])
    config, command, command_args = torchrun.config_from_args(args)
    config.signals_to_handle = SIGNALS
    failures, stopped_by = {}, 0
    try:
        elastic_launch(config, command)(*command_args)
        return 0
    except ChildFailedError as error:
        failures = error.failures
    except SignalException as error:
        stopped_by = int(error.sigval)
    except (DistNetworkError, DistStoreError) as error:
        raise ConfigError(no_meeting(args, str(error))) from error
    notes = {int(path.stem): json.loads(path.read_text(encoding='utf-8')) for path in folder.glob('*.json')}
    if stopped_by and not notes:
        status, line = 128 + stopped_by, f'stopped by {signal.Signals(stopped_by).name}'
    else:
        status, line = cause(notes, failures)
    if line:
        print(line, file=sys.stderr)
    return status


def no_meeting(args: Any, error: str) -> str:
    """Why the machines did not come together."""
    place = f'{args.master_addr}:{args.master_port}'
    if 'EADDRINUSE' in error:
        return f'PORT {args.master_port} of this machine is taken, perhaps by another training: choose another'
    if args.node_rank:
        return (f'node 0 did not answer at {place}: has it been started, with the same MASTER_ADDR and PORT, and do '
                'firewalls let them through?')
    return f'not all of the {args.nnodes} machines came to {place}: {" ".join(error.split())[:200]}'


def main() -> int | None:
    if len(sys.argv) < 3:
        raise ConfigError('usage: python tools/torchrun.py GPUS TOOL [its arguments]')
    gpus, tool, *arguments = sys.argv[1:]
    if gpus == '--check':
        return check_arguments(tool, arguments)
    options = torchrun_options(gpus, os.environ)
    check_arguments(tool, arguments)
    share_cores(int(gpus))
    with tempfile.TemporaryDirectory(prefix='boxdet_') as folder:
        os.environ[EXIT_NOTES] = folder
        try:
            return start(options, tool, arguments, Path(folder))
        finally:
            del os.environ[EXIT_NOTES]  # what this process itself has to say is printed


if __name__ == '__main__':
    run_command(main)
