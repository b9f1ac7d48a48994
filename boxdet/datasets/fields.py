"""Which keys of a sample a warp is applied to.

A sample lists its keys by kind, as in 2.x: ``results['bbox_fields'] == ['gt_bboxes', 'gt_bboxes_ignore']``. Each kind
says how a value of it is warped. A data set with annotations of another sort registers a kind for them::

    register_field_kind('quad_fields', lambda quads, warp, sample: warp.points(quads), per_object=True)

and its ``pre_pipeline`` writes ``results['quad_fields'] = ['gt_quads']``: every geometric transform then moves the
quadrangles, and drops those whose boxes it drops.

Letters: N objects of an image.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from boxdet.datasets.warps import Warp, clip_boxes


class FieldKind(NamedTuple):
    """A kind of values in a sample.

    Args:
        fields: the key of the sample under which the keys of this kind are listed.
        move: ``move(value, warp, sample)`` gives the value on the new image.
        per_object: row i belongs to box i, and goes when the box goes.
        default: the keys of a sample that lists none.
    """
    fields: str
    move: Callable[[Any, Warp, Mapping[str, Any]], Any]
    per_object: bool = False
    default: tuple[str, ...] = ()

    def keys(self, sample: Mapping[str, Any]) -> list[str]:
        """The keys of this kind that the sample has a value for."""
        return [key for key in sample.get(self.fields, self.default) if sample.get(key) is not None]


FIELD_KINDS: dict[str, FieldKind] = {}


def register_field_kind(fields: str, move: Callable[[Any, Warp, Mapping[str, Any]], Any], per_object: bool = False,
                        default: tuple[str, ...] = ()) -> None:
    """Have geometric transforms move what a sample lists under ``fields``; arguments as FieldKind.

    Raises:
        ValueError: a kind of that name is registered, with another function.
    """
    known = FIELD_KINDS.get(fields)
    if known is not None and known.move is not move:
        raise ValueError(f"the field kind '{fields}' is registered already")
    FIELD_KINDS[fields] = FieldKind(fields, move, per_object, default)


def _move_boxes(boxes: np.ndarray, warp: Warp, sample: Mapping[str, Any]) -> np.ndarray:
    moved = warp.boxes(boxes)
    return clip_boxes(moved, warp.out_hw) if warp.clip else moved


IMAGES, BOXES = 'img_fields', 'bbox_fields'
register_field_kind(IMAGES, lambda image, warp, sample: warp.image(image), default=('img',))
register_field_kind(BOXES, _move_boxes)
register_field_kind('keypoint_fields', lambda keypoints, warp, sample: warp.keypoints(
    keypoints, sample.get('flip_pairs')), per_object=True)
register_field_kind('mask_fields', lambda masks, warp, sample: warp.masks(masks), per_object=True)
register_field_kind('seg_fields', lambda classes, warp, sample: warp.seg(classes))
# What belongs to objects and lies nowhere, such as a number of a track.
register_field_kind('object_fields', lambda values, warp, sample: values, per_object=True)

# What goes with boxes even where the sample does not list it.
_COMPANIONS = dict(gt_bboxes=('gt_labels', 'gt_masks', 'gt_keypoints'),
                   gt_bboxes_ignore=('gt_labels_ignore', 'gt_masks_ignore'))


def move_fields(sample: dict, warp: Warp, kinds: Iterable[str] | None = None) -> None:
    """Apply ``warp`` to all fields of a sample, in place; only to those of some ``kinds`` where they are given."""
    for kind in FIELD_KINDS.values() if kinds is None else [FIELD_KINDS[name] for name in kinds]:
        for key in kind.keys(sample):
            sample[key] = kind.move(sample[key], warp, sample)


def companions(sample: Mapping[str, Any], boxes_key: str) -> list[str]:
    """The keys whose rows belong to the boxes under ``boxes_key``; of ignored boxes those that end in '_ignore'."""
    if boxes_key not in _COMPANIONS:
        return []
    ignored = boxes_key.endswith('_ignore')
    listed = [key for kind in FIELD_KINDS.values() if kind.per_object for key in kind.keys(sample)
              if key.endswith('_ignore') == ignored]
    return list(dict.fromkeys([*(key for key in _COMPANIONS[boxes_key] if sample.get(key) is not None), *listed]))


def keep_objects(sample: dict, boxes_key: str, keep: np.ndarray) -> None:
    """Leave of the boxes under ``boxes_key``, and of what belongs to them, the rows ``keep`` (N,) bool, in place."""
    if keep.all():
        return
    rows = np.flatnonzero(keep)
    for key in [boxes_key, *companions(sample, boxes_key)]:
        sample[key] = sample[key][rows]
