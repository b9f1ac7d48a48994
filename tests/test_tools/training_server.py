"""Starts trainings without the seconds that importing torch takes: imports once, then forks for each.

Says 'ready', reads a JSON dict a line (arguments of tools/train.py, more environment, the file that what it prints goes
to), answers 'pid N', and when that process has ended 'status N' (negative: the signal).
"""
import functools
import importlib.util
import json
import os
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('train_tool', ROOT / 'tools' / 'train.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

# What a training imports on its way; nothing of it starts a thread, so that forking is safe.
import boxdet.apis.train  # noqa: E402
import boxdet.datasets  # noqa: E402
import boxdet.models  # noqa: E402, F401
from boxdet.errors import run_command  # noqa: E402
from boxdet.registry import DATASETS, HOOKS, MODELS, PIPELINES, RUNNERS  # noqa: E402

for registry in (DATASETS, HOOKS, MODELS, PIPELINES, RUNNERS):
    registry.names()
torch.optim.AdamW([torch.zeros(1, requires_grad=True)])  # torch imports its compiler for the first optimizer
torch.set_num_threads(1)
print('ready', flush=True)

for line in sys.stdin:
    request = json.loads(line)
    pid = os.fork()
    if pid == 0:
        os.environ.update(request['environment'])
        file = os.open(request['output'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        try:
            run_command(functools.partial(tool.main, request['arguments']))
        except SystemExit as end:  # taking torch apart in a forked process lasts seconds
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(end.code or 0)
    print('pid', pid, flush=True)
    print('status', os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
