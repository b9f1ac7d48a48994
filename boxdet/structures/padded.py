"""Instances as long as only the device knows how many there are.

Letters: B images, n rows of each image.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from boxdet.structures.instances import Instances


@dataclass(frozen=True)
class PaddedInstances:
    """Instances of B images in tensors of a fixed size, so that a GPU can go on without the host asking for their number.

    Args:
        fields: tensors (B, n, ...) by name, ``bboxes`` among them.
        valid: (B, n) bool: the rows that are instances; the others hold numbers without meaning.
        certain: () bool: False if what made them was not done in the steps it was given, so that they may be wrong.
    """
    fields: Mapping[str, torch.Tensor]
    valid: torch.Tensor
    certain: torch.Tensor

    @classmethod
    def of(cls, parts: Sequence[Instances]) -> PaddedInstances:
        """Fill the tensors of B Instances with zeros up to the largest number."""
        most = max(len(part) for part in parts)
        names = [name for name, value in parts[0].fields.items() if isinstance(value, torch.Tensor)]
        fields = {name: torch.stack([_filled(part.fields[name], most) for part in parts]) for name in names}
        here = fields['bboxes']
        valid = torch.stack([_filled(here.new_ones(len(part), dtype=torch.bool), most) for part in parts])
        return cls(fields, valid, valid.new_ones(()))

    @property
    def bboxes(self) -> torch.Tensor:
        """(B, n, 4)."""
        return self.fields['bboxes']

    def replace(self, **fields: torch.Tensor) -> PaddedInstances:
        """With ``fields`` added or put in the place of those of the same name."""
        return replace(self, fields={**self.fields, **fields})

    def given(self, certain: torch.Tensor) -> PaddedInstances:
        """Certain only if what they were made from was."""
        return replace(self, certain=self.certain & certain)

    def to_host(self) -> PaddedInstances:
        """Copy everything to the CPU: the one time that the host waits for the device."""
        device = self.valid.device
        host = PaddedInstances({name: _copy(value) for name, value in self.fields.items()}, _copy(self.valid),
                               _copy(self.certain))
        if device.type == 'cuda':
            wait_for(device)
        return host

    def instances(self, image_sizes: Sequence[tuple[int, int]], num_classes: int | None = None) -> list[Instances]:
        """B Instances of the valid rows; on a GPU this waits, so ``to_host`` comes first."""
        return [Instances(tuple(size), num_classes, **{name: value[i][valid] for name, value in self.fields.items()})
                for i, (size, valid) in enumerate(zip(image_sizes, self.valid))]


def wait_for(device: torch.device) -> None:
    """Wait until the work of this thread's stream is done, and no other's."""
    torch.cuda.current_stream(device).synchronize()


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.to('cpu', non_blocking=True)  # into page-locked memory; there after ``wait_for`` only


def _filled(value: torch.Tensor, count: int) -> torch.Tensor:
    return F.pad(value, [0, 0] * (value.dim() - 1) + [0, count - len(value)])
