"""Instances: what is known of the objects of one image, one row an object.

Fields in use: ``bboxes`` (N, 4) xyxy in pixels, ``scores`` (N,), ``labels`` (N,) from 0, ``masks`` (a container of
``structures.masks``), ``keypoints`` (N, J, 3) as x, y, score or visibility. Any further field travels by its name.

``PaddedInstances`` are those of a batch in tensors of one size, as long as only the device knows how many there are;
below it is what works on such tensors as it does on lists of one tensor an image.

Letters: B images, N objects of an image, n rows of each image where all have as many, K classes, J keypoints.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence, Sized
from dataclasses import dataclass, replace
from typing import Any, NoReturn, TypeVar, cast

import numpy as np
import torch
from torch.nn import functional as F

from boxdet.errors import DataError, UserError
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.geometry.masks import encode_window
from boxdet.structures.masks import Index, RleMasks

Fields = dict[str, Any]  # tensors, arrays, masks, or a type of the user's
Mask = dict | np.ndarray  # an RLE dict or a bitmap (H, W)
PerClass = Sequence[np.ndarray] | tuple[Sequence[np.ndarray], Sequence[Sequence[Mask]]]  # of mmdetection 2.x
_NOT_BY_CLASS = ("Instances {}: mmdetection 2.x's lists by class are result.per_class() (with its bool masks "
                 "result.per_class(masks='bitmap')); object i is result[i:i + 1], a field result.bboxes")


class Instances:
    """Fields of equal length; one index filters all of them.

    Args:
        image_size: (height, width) of the image that the coordinates refer to, where it is known.
        num_classes: K, where it is known; ``per_class`` needs it.
        **fields: tensors, arrays, lists or mask containers, all of length N.

    Raises:
        ValueError: fields of different lengths.

    >>> found = Instances(bboxes=torch.zeros(3, 4), scores=torch.tensor([.9, .2, .8]))
    >>> len(found[found.scores > 0.5])
    2
    """

    def __init__(self, image_size: tuple[int, int] | None = None, num_classes: int | None = None, **fields: Any):
        lengths = {name: len(value) for name, value in fields.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f'fields of different lengths: {lengths}')
        self.image_size = image_size
        self.num_classes = num_classes
        self._fields = fields

    @property
    def fields(self) -> Fields:
        """The fields by name (a copy of the mapping, not of the data)."""
        return dict(self._fields)

    def __getattr__(self, name: str) -> Any:
        # Reached only for what is no ordinary attribute; '_fields' itself is absent while unpickling.
        if name != '_fields' and name in self.__dict__.get('_fields', ()):
            return self._fields[name]
        known = ', '.join(self.__dict__.get('_fields', ())) or 'no fields'
        raise AttributeError(f"Instances has no field '{name}' (it holds {known})")

    def __contains__(self, name: str) -> bool:
        return name in self._fields

    def __len__(self) -> int:
        return len(next(iter(self._fields.values()))) if self._fields else 0

    # Code for mmdetection 2.x unpacks a result, walks over it by class, and indexes it by class. Any of these would
    # give something here, and something else: they are refused.

    def __iter__(self) -> NoReturn:
        """Refused, and with it unpacking.

        Raises:
            UserError: always; it names ``per_class`` and the index form.
        """
        raise UserError(_NOT_BY_CLASS.format('is not iterated over or unpacked'))

    def __array__(self, *_: object, **__: object) -> NoReturn:
        """Refused.

        Raises:
            UserError: always; it names ``per_class`` and the index form.
        """
        raise UserError(_NOT_BY_CLASS.format('is no array'))

    def __getitem__(self, index: Index) -> Instances:
        """Select rows by a slice, or a boolean or integer tensor, array or list of one dimension.

        Raises:
            TypeError: what chooses no rows, such as a field's name. IndexError: a row beyond the ends.
            UserError: an int, which in mmdetection 2.x's results is a class.
        """
        rows = _rows(index, len(self))
        return self._with({name: _select(value, rows) for name, value in self._fields.items()})

    def replace(self, **fields: Any) -> Instances:
        """A new object with ``fields`` added or put in the place of those of the same name."""
        return self._with({**self._fields, **fields})

    def without(self, *names: str) -> Instances:
        """A new object that lacks the fields ``names``."""
        return self._with({k: v for k, v in self._fields.items() if k not in names})

    def _with(self, fields: Fields) -> Instances:
        return Instances(self.image_size, self.num_classes, **fields)

    def to(self, device: torch.device | str, non_blocking: bool = False) -> Instances:
        """Move the tensors; masks stay on the CPU, where they are cropped. A copy to the CPU always waits."""
        non_blocking = non_blocking and torch.device(device).type != 'cpu'
        moved = {name: value.to(device, non_blocking=non_blocking) for name, value in self._fields.items()
                 if isinstance(value, torch.Tensor)}
        return self.replace(**moved)

    def numpy(self) -> Fields:
        """The fields as numpy arrays by name; mask containers and lists as they are."""
        return {name: value.detach().cpu().numpy() if isinstance(value, torch.Tensor) else value
                for name, value in self._fields.items()}

    @staticmethod
    def cat(parts: Sequence[Instances]) -> Instances:
        """Join parts that hold the same fields, in order.

        Raises:
            ValueError: no parts, or parts with different fields.
        """
        if not parts:
            raise ValueError('nothing to join')
        first = parts[0]
        if any(set(p._fields) != set(first._fields) for p in parts):
            raise ValueError(f'parts hold different fields: {[sorted(p._fields) for p in parts]}')
        return first._with({name: _join([p._fields[name] for p in parts]) for name in first._fields})

    def per_class(self, num_classes: int | None = None, masks: str = 'rle') -> PerClass:
        """Mmdetection 2.x's result of one image; ``from_per_class`` reads it.

        Args:
            num_classes: K, where the result does not know it.
            masks: 'rle' for COCO RLE dicts, as 2.x's files of results hold them; 'bitmap' for (H, W) bool arrays, as
                2.x's ``inference_detector`` gives them, one byte a pixel each.

        Returns:
            a list of K float32 arrays (n, 5) as x1, y1, x2, y2, score; with masks a tuple of that and a list of K
            lists of masks.

        Raises:
            ValueError: K is neither given nor known, or another form of masks.
        """
        if masks not in ('rle', 'bitmap'):
            raise ValueError(f"masks is {masks!r}; it is 'rle' or 'bitmap'")
        num_classes = self.num_classes if num_classes is None else num_classes
        if num_classes is None:
            raise ValueError('per_class() needs num_classes')
        arrays = self.numpy()
        rows = np.concatenate([arrays['bboxes'], arrays['scores'][:, None]], axis=1).astype(np.float32)
        members = [np.flatnonzero(arrays['labels'] == k) for k in range(num_classes)]
        boxes = [rows[index] for index in members]
        if 'masks' not in self:
            return boxes
        own = list(self.masks_bitmaps().astype(bool)) if masks == 'bitmap' else list(self.masks)
        return boxes, [[own[i] for i in index] for index in members]

    @classmethod
    def from_per_class(cls, result: PerClass | np.ndarray, image_size: tuple[int, int] | None = None) -> Instances:
        """The Instances of mmdetection 2.x's result of one image, sorted by class: what ``per_class`` gives, read back.

        Args:
            result: K arrays (n, 5) as x1, y1, x2, y2, score; or a tuple of that and K lists, of a mask for each box:
                an RLE dict or a bitmap (H, W); or of a Mask Scoring R-CNN a tuple of these lists and K arrays (n,),
                the masks' own scores, which become the field ``mask_scores``.
            image_size: (height, width) of the image; that of the masks where it is left out and there are any.

        Raises:
            DataError: something else, or masks that do not belong to the boxes or to an image of that size.
        """
        boxes, masks = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
        if not isinstance(boxes, (list, tuple)) or not all(np.ndim(b) == 2 and np.shape(b)[1] == 5 for b in boxes):
            raise DataError(f'a result by class is a list of (n, 5) arrays, one a class; not {type(result).__name__}')
        rows = torch.from_numpy(np.concatenate([np.zeros((0, 5)), *boxes]).astype(np.float32))
        labels = torch.from_numpy(np.repeat(np.arange(len(boxes)), [len(b) for b in boxes]))
        fields: Fields = dict(bboxes=rows[:, :4], scores=rows[:, 4], labels=labels)
        scored: Any = masks  # with the masks' own scores behind them (Mask Scoring R-CNN)
        if isinstance(scored, tuple) and len(scored) == 2 and all(np.ndim(own) == 1 for own in scored[1]) and (
                len(scored[0]) == len(scored[1]) == len(boxes)):
            masks, own_scores = scored
            fields['mask_scores'] = torch.from_numpy(np.concatenate([np.zeros(0), *own_scores]).astype(np.float32))
        if masks is not None:
            if not isinstance(masks, (list, tuple)):
                raise DataError(f'the masks of a result by class are a list of lists, not {type(masks).__name__}')
            counts = [len(b) for b in boxes], [len(m) if isinstance(m, Sized) else m for m in masks]
            if counts[0] != counts[1]:
                raise DataError(f'a result by class of {counts[0]} boxes and {counts[1]} masks')
            fields['masks'] = _rle_masks([mask for of_class in masks for mask in of_class], image_size)
            if len(labels):
                image_size = fields['masks'].height, fields['masks'].width
        return cls(image_size, len(boxes), **fields)

    def to_coco(self, image_id: int, category_ids: Sequence[int],
                keypoint_offset: float = HALF_PIXEL) -> list[dict]:
        """COCO result dicts.

        ``bbox`` is x, y, width, height; ``segmentation`` an RLE with text counts; ``keypoints`` x, y, score of each
        keypoint in a row.

        Args:
            image_id: the image's id in the annotation file.
            category_ids: the category id of each label.
            keypoint_offset: pixels from the file's keypoints to ours: COCO's count pixels (see ``geometry.keypoints``).

        Raises:
            DataError: a label that has no category id.
        """
        arrays = self.numpy()
        for label in arrays['labels'].tolist():
            if not 0 <= label < len(category_ids):
                raise DataError(f'label {label} has no category id: there are {len(category_ids)} of them, for labels '
                                'from 0')
        boxes = arrays['bboxes'].astype(np.float64)
        xywh = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()
        rows = [dict(image_id=image_id, bbox=box, score=score, category_id=category_ids[label])
                for box, score, label in zip(xywh, arrays['scores'].tolist(), arrays['labels'].tolist())]
        for row, mask in zip(rows, self._fields.get('masks', ())):
            counts = mask['counts']
            row['segmentation'] = dict(size=list(mask['size']),
                                       counts=counts.decode('ascii') if isinstance(counts, bytes) else counts)
        for row, keypoints in zip(rows, arrays.get('keypoints', ())):
            keypoints = np.asarray(keypoints, dtype=np.float64) - (keypoint_offset, keypoint_offset, 0)
            row['keypoints'] = keypoints.ravel().tolist()
        return rows

    def to_supervision(self, class_names: Sequence[str] | None = None, masks: bool = True) -> Any:
        """``supervision.Detections`` of that package, which has to be installed.

        Args:
            class_names: name of each label, for supervision's annotators.
            masks: decode the masks too, one byte a pixel each.

        Raises:
            UserError: supervision is not installed.
        """
        try:
            from supervision import Detections
        except ImportError as error:
            raise UserError('to_supervision() needs the package supervision: pip install supervision') from error
        arrays = self.numpy()
        data: dict[str, np.ndarray | list] = {}
        if class_names is not None:
            data['class_name'] = np.array([class_names[k] for k in arrays['labels']], dtype=str)
        if 'keypoints' in arrays:
            data['keypoints'] = arrays['keypoints']
        bitmaps = self.masks_bitmaps().astype(bool) if masks and 'masks' in self else None
        return Detections(xyxy=arrays['bboxes'], confidence=arrays['scores'], class_id=arrays['labels'], data=data,
                          mask=bitmaps)

    def masks_bitmaps(self) -> np.ndarray:
        """The masks as (N, H, W) uint8 bitmaps; one byte a pixel, so decode what you need only."""
        return self.masks.to_bitmaps()

    def __getstate__(self) -> dict:
        # A pickled view would take the whole tensor that it is a part of along.
        own = {name: value.clone() if isinstance(value, torch.Tensor) and _is_part(value) else value
               for name, value in self._fields.items()}
        return {**self.__dict__, '_fields': own}

    def __repr__(self) -> str:
        parts = ', '.join(f'{name}={tuple(value.shape)}' if hasattr(value, 'shape') else f'{name}=<{len(value)}>'
                          for name, value in self._fields.items())
        return f'Instances({len(self)}: {parts})'


def _is_part(value: torch.Tensor) -> bool:
    return value.untyped_storage().nbytes() > value.numel() * value.element_size()


def _rows(index: Index, length: int) -> slice | torch.Tensor:
    """An index in any form as a slice that goes forward, or a tensor of bools (N,) or whole numbers (n,)."""
    if isinstance(index, slice):
        forward = index.step is None or index.step > 0
        return index if forward else torch.tensor(range(*index.indices(length)), dtype=torch.long)
    if isinstance(index, (str, bytes)):
        raise TypeError(f'Instances are indexed by rows, not {index!r}; a field is an attribute: result.bboxes')
    rows = index if isinstance(index, torch.Tensor) else _as_tensor(index)
    if rows.ndim == 0 and rows.dtype in _WHOLE:
        raise UserError(_NOT_BY_CLASS.format(f'[{int(rows)}] is no class and no row'))
    if rows.ndim != 1 or rows.dtype not in (torch.bool, *_WHOLE):
        raise TypeError('Instances are indexed by a slice, or bools or ints in one dimension, '
                        f'not by {type(index).__name__} ({rows.dtype}, shape {tuple(rows.shape)})')
    return rows


_WHOLE = (torch.int64, torch.int32, torch.int16, torch.int8)  # to torch, uint8 is an older kind of bool


def _as_tensor(index: Index) -> torch.Tensor:
    array = np.asarray(index)
    if array.dtype.kind not in 'biuf':
        raise TypeError(f'Instances are indexed by rows, not by {type(index).__name__}')
    if array.dtype.kind in 'iu' or array.shape == (0,):
        array = array.astype(np.int64)
    return torch.from_numpy(np.array(array))  # a copy: torch takes no array that goes backwards


def _select(value: Any, rows: slice | torch.Tensor) -> Any:
    if isinstance(value, torch.Tensor):
        return value[rows if isinstance(rows, slice) else rows.to(value.device)]
    if isinstance(rows, slice):
        return value[rows]
    positions = rows.cpu().numpy()
    if isinstance(value, list):
        return [value[i] for i in (np.flatnonzero(positions) if positions.dtype == bool else positions)]
    return value[positions]


def _rle_masks(masks: Sequence[Mask], image_size: tuple[int, int] | None) -> RleMasks:
    """Masks in COCO RLE of RLE dicts or bitmaps (H, W), all of one size.

    Raises:
        DataError: another kind of mask, or other sizes than ``image_size`` or than that of the first mask.
    """
    if not all('size' in mask and 'counts' in mask if isinstance(mask, dict) else np.ndim(mask) == 2 for mask in masks):
        raise DataError('the masks of a result by class are RLE dicts or bitmaps (H, W)')
    try:
        rles = RleMasks([mask if isinstance(mask, dict) else _encoded(mask) for mask in masks], *(image_size or ()))
    except (TypeError, ValueError) as error:
        raise DataError(f'a mask of a result by class: {error}') from error
    for rle in rles:
        if rle['size'] != [rles.height, rles.width]:
            raise DataError(f"a mask of {rle['size'][0]} x {rle['size'][1]} pixels (height x width) in a result of "
                            f'{rles.height} x {rles.width}')
    return rles


def _encoded(bitmap: np.ndarray) -> dict:
    bitmap = np.asarray(bitmap).astype(bool)
    return encode_window((0, 0, bitmap.astype(np.uint8)), bitmap.shape)


def _join(values: list[Any]) -> Any:
    first = values[0]
    if isinstance(first, torch.Tensor):
        return torch.cat(values)
    if isinstance(first, np.ndarray):
        return np.concatenate(values)
    if isinstance(first, list):
        return [item for value in values for item in value]
    return type(first).cat(values)


def empty_result(image_size: tuple[int, int] | None = None, num_classes: int | None = None, masks: bool = False,
                 keypoints: int = 0) -> Instances:
    """A result without objects: the same type and fields as one with objects.

    Args:
        image_size: (height, width) of the image.
        num_classes: K.
        masks: also an empty ``masks`` field.
        keypoints: J of an empty ``keypoints`` field, 0 for none.
    """
    fields: Fields = dict(bboxes=torch.zeros(0, 4), scores=torch.zeros(0),
                                  labels=torch.zeros(0, dtype=torch.int64))
    if masks:
        fields['masks'] = RleMasks([], *(image_size or (0, 0)))
    if keypoints:
        fields['keypoints'] = torch.zeros(0, keypoints, 3)
    return Instances(image_size, num_classes, **fields)


# ---------------------------------------------------------------------------------------------- one size for all


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
        return [Instances((size[0], size[1]), num_classes,
                          **{name: value[i, here] for name, value in self.fields.items()})
                for i, (size, here) in enumerate(zip(image_sizes, rows))]


# Values of B images: B tensors (n, ...), or one (B, n, ...).
OfImages = TypeVar('OfImages', bound=Sequence[torch.Tensor] | torch.Tensor)


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
        tensors = cast('tuple[torch.Tensor | None, ...]', values)
        first = cast(torch.Tensor, tensors[0])
        size = sizes[:, None].expand(-1, first.shape[1], -1).flatten(0, 1)
        return [(*(v if v is None else v.flatten(0, 1) for v in tensors), size)]
    return [(*(v if v is None else v[i] for v in values), size) for i, size in enumerate(sizes)]


def of_images(results: Sequence[torch.Tensor], sizes: Sequence[tuple[int, int]] | torch.Tensor,
              values: OfImages) -> OfImages:
    """What was made of ``image_rows(sizes, values, ...)``: B tensors, or one (B, n, ...) where ``values`` are."""
    if isinstance(sizes, torch.Tensor):
        return cast(OfImages, results[0].unflatten(0, cast(torch.Tensor, values).shape[:2]))
    return cast(OfImages, torch.stack(list(results)) if isinstance(values, torch.Tensor) else results)


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
