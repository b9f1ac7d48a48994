"""The process around the training: seeds, log files, device, and what the machine is."""
from __future__ import annotations

import contextlib
import ctypes
import logging
import os
import platform
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from boxdet.engine.distributed import broadcast_object, get_dist_info, is_main
from boxdet.errors import ConfigError
from boxdet.models.folding import fold_batch_norms, lay_out, use_fast_convolutions
from boxdet.version import __version__

# --- seeds ---

def choose_seed(seed: int | None) -> int:
    """Return ``seed``, or one drawn by rank 0 and shared with every rank."""
    if seed is not None:
        return int(seed)
    return broadcast_object(int.from_bytes(os.urandom(4), 'little') % 2 ** 31)


def set_random_seed(seed: int, deterministic: bool = False) -> None:
    """Seed python, numpy and torch.

    Args:
        seed: any whole number.
        deterministic: also choose deterministic algorithms on the GPU (no GPU was at hand: not measured). Without it
            no ``torch.backends`` setting is touched.
    """
    random.seed(seed)
    np.random.seed(seed % 2 ** 32)
    torch.manual_seed(seed)
    if deterministic:
        os.environ.setdefault('CUBLAS_WORKSPACE_CONFIG', ':4096:8')  # cuBLAS is deterministic only with it
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        torch.use_deterministic_algorithms(True, warn_only=True)


def random_states() -> dict[str, Any]:
    """The states of this process's generators, of types that a checkpoint may hold."""
    kind, keys, position, has_gauss, cached = np.random.get_state()
    states = dict(python=random.getstate(), torch=torch.get_rng_state(),
                  # An array of this generator.
                  numpy=(kind, torch.from_numpy(keys.astype(np.int64)), position, has_gauss, cached))  # type: ignore[attr-defined]
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states['cuda'] = torch.cuda.get_rng_state()
    return states


def set_random_states(states: Mapping[str, Any]) -> None:
    """Put back what ``random_states`` returned."""
    version, keys, gauss = states['python']
    random.setstate((version, tuple(keys), gauss))
    kind, words, position, has_gauss, cached = states['numpy']
    np.random.set_state((kind, words.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(states['torch'].cpu())
    if 'cuda' in states and torch.cuda.is_available():
        torch.cuda.set_rng_state(states['cuda'].cpu())


# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


# --- device ---

def choose_device(device: str | torch.device | None = None) -> torch.device:
    """Return the device to train on: the given one, else this rank's GPU, else the CPU.

    Args:
        device: 'cuda' without a number is the current GPU; before any was chosen, this rank's.

    Raises:
        ConfigError: a device that this machine or this torch does not have.
    """
    if device is None:
        if not torch.cuda.is_available():
            return torch.device('cpu')
        device = f'cuda:{_rank_gpu()}'
    try:
        device = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ConfigError(f"device '{device}' is not understood: write cpu, cuda or cuda:0") from error
    if device.type == 'cuda':
        count = torch.cuda.device_count()
        if not torch.cuda.is_available() or (device.index or 0) >= count:
            raise ConfigError(f"device '{device}' is not there: torch {torch.__version__} sees {count} GPUs "
                              '(--device cpu works without)')
        if device.index is None:
            device = torch.device('cuda', torch.cuda.current_device() if torch.cuda.is_initialized() else _rank_gpu())
        torch.cuda.set_device(device)
    elif not _computes(device):
        raise ConfigError(f"device '{device}' is not there: torch {torch.__version__} cannot compute on it here "
                          '(--device cpu works everywhere)')
    return device


def _rank_gpu() -> int:
    """The number of this rank's GPU on its machine."""
    return int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()


def _computes(device: torch.device) -> bool:
    try:
        return torch.ones(1, device=device).item() == 1
    except Exception:  # each kind of device has its own for not being there; 'meta' holds no numbers
        return False


def slow_in(dtype: torch.dtype, device: torch.device | str) -> bool:
    """Whether ``device`` is a processor for which torch has no fast convolutions in this half precision.

    They take many times as long there as in float32: bfloat16 asks for AVX-512 on x86, float16 for AVX-512-FP16 or AMX.
    """
    names = {torch.bfloat16: '_is_mkldnn_bf16_supported', torch.float16: '_is_mkldnn_fp16_supported'}
    if torch.device(device).type != 'cpu' or dtype not in names:
        return False
    return not (torch.backends.mkldnn.is_available() and getattr(torch.ops.mkldnn, names[dtype])())


def memory_format(device: torch.device | str, dtype: torch.dtype = torch.float32) -> torch.memory_format:
    """The memory format in which convolutions of ``dtype`` are fastest on ``device``.

    Processors (measured, docs/performance.md): channels last, where RoIAlign and Winograd's convolution read it. GPUs
    (not measured): channels last where tensor cores multiply, which is in half precision, and from Ampere on in float32
    too; before that cuDNN would turn every map back and forth.
    """
    device = torch.device(device)
    if device.type == 'cuda' and dtype == torch.float32 and torch.cuda.get_device_capability(device) < (8, 0):
        return torch.contiguous_format
    return torch.channels_last


def place_for_training(model: nn.Module, device: torch.device, cfg: Mapping[str, Any]) -> nn.Module:
    """Move the model in the form that trains fastest: norms that stand still folded, and a memory format.

    On the CPU 3x3 convolutions go Winograd's way where it pays. ``channels_last`` in the config says which format: True
    or False; without it the one that was fastest where it was measured (``memory_format``). The state dict stays as it
    is.
    """
    wanted, dtype = cfg.get('channels_last'), torch.float32 if cfg.get('fp16') is None else torch.bfloat16
    if device.type == 'cpu':
        keep_memory()
    chosen = memory_format(device, dtype)
    if wanted is not None:
        chosen = torch.channels_last if wanted else torch.contiguous_format
    logging.getLogger('boxdet').info(
        'memory format: %s (%s)', 'channels last' if chosen is torch.channels_last else 'planar',
        'as channels_last says' if wanted is not None else f'chosen for {device}; channels_last=True or False sets it')
    fold_batch_norms(model)
    if device.type == 'cpu':
        use_fast_convolutions(model)
    return lay_out(model, chosen).to(device)


def keep_memory() -> None:
    """Let glibc keep what is freed for the next step of a training; with another C library nothing happens.

    By default large tensors are mapped anew each time, page by page, zeros written: 5 % of a step on the CPU.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1)


def give_back_memory() -> None:
    """Hand the system what was freed and glibc keeps for later; with another C library nothing happens."""
    with contextlib.suppress(AttributeError, OSError, TypeError):
        ctypes.CDLL(None).malloc_trim(0)


def setup_processes(cfg: Mapping[str, Any]) -> None:
    """Apply the config's ``cudnn_benchmark``, ``opencv_num_threads`` and ``mp_start_method``, each only when given."""
    if cfg.get('cudnn_benchmark'):
        torch.backends.cudnn.benchmark = True
    if cfg.get('mp_start_method'):
        torch.multiprocessing.set_start_method(cfg['mp_start_method'], force=True)
    if cfg.get('opencv_num_threads') is not None:
        import cv2
        cv2.setNumThreads(int(cfg['opencv_num_threads']))


# --- log ---

class _LogFile(logging.FileHandler):
    """A log file that a full disk makes fall silent behind one warning, not a traceback for every line."""
    _told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._told:
            self._told = True
            print(f'warning: cannot write {self.baseFilename}: {error.strerror}', file=sys.stderr)


def setup_logger(log_file: str | Path | None = None, level: int | str = 'INFO') -> logging.Logger:
    """The logger 'boxdet': to the console, and to ``log_file`` on rank 0. Other ranks report errors only.

    Calling it again replaces the handlers of the call before, so that a second training does not log twice.
    """
    logger = logging.getLogger('boxdet')
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stdout)]
    if log_file is not None and is_main():
        Path(log_file).parent.mkdir(parents=True, exist_ok=True)
        handlers.append(_LogFile(log_file, encoding='utf-8'))
    level = level if is_main() else logging.ERROR
    for handler in handlers:
        handler.setFormatter(logging.Formatter('%(asctime)s - %(name)s - %(levelname)s - %(message)s'))
        handler.setLevel(level)
        logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    return logger


# --- what machine is this ---

def collect_env() -> dict[str, str]:
    """Versions of what the numbers depend on, and the devices."""
    import cv2
    import mmengine
    import torchvision
    facts = {'sys.platform': sys.platform, 'Python': sys.version.replace('\n', ''), 'machine': platform.machine(),
             'CPU cores': str(_usable_cores()), 'torch threads': str(torch.get_num_threads()),
             'CUDA available': str(torch.cuda.is_available())}
    if torch.cuda.is_available():
        facts['GPUs'], facts['CUDA'] = str(torch.cuda.device_count()), str(torch.version.cuda)
    if torch.cuda.is_initialized():  # a process that works on the CPU occupies no GPU to learn its name
        facts.update({f'GPU {index}': torch.cuda.get_device_name(index) for index in range(torch.cuda.device_count())})
        facts['cuDNN'] = str(torch.backends.cudnn.version())
    facts.update({'PyTorch': torch.__version__, 'torchvision': torchvision.__version__, 'OpenCV': cv2.__version__,
                  'MMEngine': mmengine.__version__, 'numpy': np.__version__, 'boxdet': __version__ + _git_revision(),
                  'world size': str(get_dist_info()[1])})
    return facts


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def _git_revision() -> str:
    folder = Path(__file__).resolve().parents[2]
    if not (folder / '.git').exists():
        return ''
    try:
        command = ['git', '-C', str(folder), 'rev-parse', '--short', 'HEAD']
        done = subprocess.run(command, capture_output=True, text=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ''
    return '+' + done.stdout.strip() if done.returncode == 0 else ''


def env_text() -> str:
    """``collect_env`` as lines for the log."""
    return '\n'.join(f'{name}: {value}' for name, value in collect_env().items())
