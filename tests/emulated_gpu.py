"""A GPU without one: fake CUDA tensors, which have a device and no numbers, and what the host does with them."""
from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

_aten = torch.ops.aten


@dataclass
class Copies:
    """Copies between devices, as 'cpu->cuda:0', that the host waits for, and those that it does not."""

    waited: list[str] = field(default_factory=list)
    beside: list[str] = field(default_factory=list)


class _Watch(TorchDispatchMode):
    """Writes down every copy between devices; an index on the CPU into a tensor on the GPU is one, too."""

    def __init__(self, copies: Copies):
        super().__init__()
        self.copies = copies

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        pair, beside = None, False
        if function is _aten._to_copy.default:
            pair, beside = (args[0].device, result.device), bool((kwargs or {}).get('non_blocking'))
        elif function is _aten.copy_.default:
            pair, beside = (args[1].device, args[0].device), len(args) > 2 and bool(args[2])
        elif function in (_aten.index.Tensor, _aten.index_put_.default, _aten.index_put.default):
            on_host = [i for i in args[1] if i is not None and i.device.type == 'cpu']
            pair = (on_host[0].device, args[0].device) if on_host else None
        if pair is not None and pair[0] != pair[1]:
            (self.copies.beside if beside else self.copies.waited).append(f'{pair[0]}->{pair[1]}')
        return result


@contextlib.contextmanager
def emulated_gpu() -> Iterator[FakeTensorMode]:
    """Tensors made inside have no numbers, and may be on 'cuda'."""
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        yield mode


@contextlib.contextmanager
def watched_copies() -> Iterator[Copies]:
    """What was copied between devices inside."""
    copies = Copies()
    with _Watch(copies):
        yield copies
