"""Hooks that a test's training runs into, by ``custom_hooks=[dict(type='Mishap', …)]``."""
import os
import signal

from boxdet.engine.distributed import get_dist_info
from boxdet.engine.hooks import Hook
from boxdet.errors import DataError
from boxdet.registry import HOOKS


@HOOKS.register_module()
class Mishap(Hook):
    """What ``what`` says happens to ``rank`` in iteration ``at``."""

    def __init__(self, what: str, rank: int = 1, at: int = 1):
        self.what, self.rank, self.at = what, rank, at

    def before_train_iter(self, runner, **_):
        if get_dist_info()[0] != self.rank or runner.iter != self.at:
            return
        if self.what == 'killed':
            os.kill(os.getpid(), signal.SIGKILL)
        if self.what == 'crash':
            raise ValueError('a mistake of ours')
        if self.what == 'user error':
            raise DataError('b.jpg: empty file')
