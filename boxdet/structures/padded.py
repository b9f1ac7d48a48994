"""Instances of a batch in tensors of one size, as long as only the device knows how many there are.

And what works on such tensors as it does on lists of one tensor an image.

Letters: B images, n rows of each image.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch.nn import functional as F

from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances


@dataclass(frozen=True)
class PaddedInstances:
    """Instances of B images in tensors of one size, so that a GPU can go on without the host asking for their number.

    Args:
        fields: tensors (B, n, ...) by name, ``bboxes`` among them.
        valid: (B, n) bool: the rows that are instances; the others hold numbers without meaning.
        settled: () bool: False if what made them was not done in the steps it was given, so that they may be wrong.
    """
    fields: Mapping[str, torch.Tensor]
    valid: torch.Tensor
    settled: torch.Tensor

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

    def to_host(self) -> PaddedInstances:
        """Copy everything to the CPU: the one time that the host waits for the device."""
        device = self.valid.device
        host = PaddedInstances({name: _copy(value) for name, value in self.fields.items()}, _copy(self.valid),
                               _copy(self.settled))
        if device.type == 'cuda':
            wait_for(device)
        return host

    def instances(self, image_sizes: Sequence[tuple[int, int]], num_classes: int | None = None) -> list[Instances]:
        """B Instances of the valid rows; on a GPU this waits, so ``to_host`` comes first where it can."""
        rows = [valid.nonzero().squeeze(1) for valid in self.valid]
        return [Instances(tuple(size), num_classes, **{name: value[i, here] for name, value in self.fields.items()})
                for i, (size, here) in enumerate(zip(image_sizes, rows))]


def image_sizes(metas: Sequence[ImageMeta] | torch.Tensor) -> list[tuple[int, int]] | torch.Tensor:
    """(height, width) of B images, from their metas.

    A tensor (B, 2) of them stays one: where a graph is made of a model, the number of images need not be known.
    """
    return metas if isinstance(metas, torch.Tensor) else [tuple(meta.img_shape[:2]) for meta in metas]


def image_rows(sizes: Sequence[tuple[int, int]] | torch.Tensor,
               *values: Sequence[torch.Tensor] | torch.Tensor | None) -> list[tuple]:
    """The rows (n, ...) of each image with its size, for a function that works on one image.

    Args:
        sizes: of B images, as ``image_sizes`` gives them.
        *values: B tensors (n, ...), or one (B, n, ...), or None, which is handed on.

    Returns:
        B of (*rows, size). Where ``sizes`` is a tensor, one of (*rows of all images, sizes (B * n, 2)).
    """
    if isinstance(sizes, torch.Tensor):
        size = sizes[:, None].expand(-1, values[0].shape[1], -1).flatten(0, 1)
        return [(*(v if v is None else v.flatten(0, 1) for v in values), size)]
    return [(*(v if v is None else v[i] for v in values), size) for i, size in enumerate(sizes)]


def of_images(results: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]] | torch.Tensor,
              values: Sequence[torch.Tensor] | torch.Tensor) -> Sequence[torch.Tensor] | torch.Tensor:
    """What was made of ``image_rows(sizes, values, ...)``: B tensors, or one (B, n, ...) where ``values`` are."""
    if isinstance(sizes, torch.Tensor):
        return results[0].unflatten(0, values.shape[:2])
    return torch.stack(results) if isinstance(values, torch.Tensor) else results


def joined(values: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """The rows of all images after one another, from B tensors (n, ...) or one (B, n, ...)."""
    return values.flatten(0, 1) if isinstance(values, torch.Tensor) else torch.cat(list(values))


def split_like(rows: torch.Tensor,
               values: Sequence[torch.Tensor] | torch.Tensor) -> Sequence[torch.Tensor] | torch.Tensor:
    """The other way: rows (R, ...) of all images as B tensors, or one, as ``values`` are."""
    if isinstance(values, torch.Tensor):
        return rows.unflatten(0, values.shape[:2])
    return rows.split([len(value) for value in values])


def wait_for(device: torch.device) -> None:
    """Wait until the work of this thread's stream is done, and no other's."""
    torch.cuda.current_stream(device).synchronize()


def _copy(value: torch.Tensor) -> torch.Tensor:
    return value.to('cpu', non_blocking=True)  # into page-locked memory; there after ``wait_for`` only


def _filled(value: torch.Tensor, count: int) -> torch.Tensor:
    return F.pad(value, [0, 0] * (value.dim() - 1) + [0, count - len(value)])
