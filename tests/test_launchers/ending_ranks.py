"""Ranks that compute together until something happens to one of them: ``ending_ranks.py WHAT [VICTIM]``."""
import atexit
import itertools
import os
import signal
import sys

import torch
import torch.distributed as dist

from boxdet.engine.distributed import get_dist_info, init_dist, shut_down
from boxdet.errors import ConfigError, DataError, UserError, run_command


class Agreed(UserError):
    """An end that all ranks have agreed on, such as a checkpoint behind a signal."""
    status, heading = 75, ''


class AtInterpretersEnd:
    """Speaks when the interpreter takes its modules apart: a failing rank must not, threads of gloo may still run."""

    def __del__(self, write=os.write):
        write(2, b"the interpreter's own end\n")


def main() -> None:
    what, victim = sys.argv[1], int((sys.argv[2:] or ['1'])[0])
    if what == 'config':
        raise ConfigError('model.tpye is unknown')
    stopped = []
    signal.signal(signal.SIGUSR1, lambda *_: stopped.append(1))
    init_dist('pytorch', dict(backend='gloo'))
    sys.modules['at the end'] = AtInterpretersEnd()
    atexit.register(print, 'this was registered for the end')
    rank = get_dist_info()[0]
    print(f'rank {rank} is process {os.getpid()}', flush=True)
    for step in range(3) if what == 'nothing' else itertools.count():  # until something happens
        dist.all_reduce(torch.ones(3))
        if step == 2:
            happen(what, rank, victim)
        flag = torch.tensor([len(stopped)])
        dist.all_reduce(flag)
        if flag:
            raise Agreed('saved iter_3.pth')
    shut_down()


def happen(what: str, rank: int, victim: int) -> None:
    if what == 'everyone':
        raise DataError('train.json: no such file')
    if rank != victim:
        if what == 'busy':  # no collective will tell it
            while True:
                sum(range(100_000))
        return
    if what in ('killed', 'busy'):
        os.kill(os.getpid(), signal.SIGKILL)
    if what == 'crash':
        raise ValueError('a mistake\nof ours')
    if what == 'error':
        raise DataError('b.jpg: empty file')


if __name__ == '__main__':
    run_command(main)
