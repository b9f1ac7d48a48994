"""Being asked to stop: SIGTERM and SIGUSR1 end a training behind a checkpoint, with a status of its own.

Slurm sends SIGTERM before it takes a node away, and what ``#SBATCH --signal`` names some time before the time limit.
"""
from __future__ import annotations

import logging
import os
import signal
import subprocess
import threading
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist

from boxdet.engine.distributed import is_distributed
from boxdet.errors import UserError

logger = logging.getLogger('boxdet')

EX_TEMPFAIL = 75  # sysexits.h: try again later. Slurm's RequeueExit may name it.
SIGNALS = tuple(getattr(signal, name) for name in ('SIGTERM', 'SIGUSR1') if hasattr(signal, name))  # Windows has one


class Interrupted(UserError):
    """A training that was asked to stop, and whose checkpoint is written."""
    status = EX_TEMPFAIL
    heading = ''

    def __init__(self, message: str, number: int):
        super().__init__(message)
        self.number = number


class StopSignals:
    """While entered, SIGTERM and SIGUSR1 are noted instead of ending the process.

    The ranks agree beside the computation: what one of them noted in an iteration, all know at the end of the next.
    """

    def __init__(self) -> None:
        self._noted = 0
        self._before: dict[int, Any] = {}
        self._group: Any = None
        self._asked: tuple[Any, torch.Tensor] | None = None

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # Python takes signals nowhere else
            self._before = {number: signal.signal(number, self._note) for number in SIGNALS}
        if is_distributed():
            self._group = dist.new_group(backend='gloo')
        return self

    def __exit__(self, kind: Any, *_: Any) -> None:
        for number, handler in self._before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        if kind is None:
            self._answer()

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted = number

    def agreed(self) -> int:
        """The number of the signal that all ranks are to stop for, or 0. Every rank asks after every iteration."""
        if self._group is None:
            return self._noted
        answer = self._answer()
        flag = torch.tensor([self._noted])
        self._asked = dist.all_reduce(flag, dist.ReduceOp.MAX, group=self._group, async_op=True), flag
        if answer:
            self._answer()  # leaves nothing on its way
        return answer

    def _answer(self) -> int:
        if self._asked is None:
            return 0
        work, flag = self._asked
        self._asked = None
        work.wait()
        return int(flag)


def request_requeue(number: int) -> None:
    """Ask Slurm to start this job again, when SIGUSR1 announced the end of its time.

    After SIGTERM nothing is asked: Slurm itself starts a preempted job again, and one that was cancelled must not be.
    """
    job = os.environ.get('SLURM_JOB_ID')
    if job is None or signal.Signals(number).name != 'SIGUSR1':
        return
    try:
        done = subprocess.run(['scontrol', 'requeue', job], capture_output=True, text=True, timeout=60)
        reason = done.stderr.strip() if done.returncode else ''
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    if reason:
        logger.error('scontrol requeue %s: %s; submit the job again, --auto-resume goes on', job, reason)
    else:
        logger.info('Slurm was asked to start job %s again', job)
