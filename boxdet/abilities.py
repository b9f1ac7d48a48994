"""What a part can do beyond what every part of its kind must: the table of it, and the one way to ask.

A part declares an ability as an attribute of its class, or of itself; one that declares nothing has the default. What
every part must do is in ``models/contracts.py``.

An ability speaks for methods of the class that declares it. A subclass that overrides one of them has the default again
until it declares the ability itself, so that a method of a user's own is always the one that is called.
"""
from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from boxdet.errors import nearest


@dataclass(frozen=True)
class Ability:
    """One row of the table.

    Args:
        default: of parts that declare nothing.
        meaning: which part declares it, and what it promises.
        methods: what it speaks for; a subclass that overrides one of them has the default.
        inherited: whether subclasses have it at all without declaring it.
    """
    default: Any
    meaning: str
    methods: tuple[str, ...] = ()
    inherited: bool = True


ABILITIES: Mapping[str, Ability] = MappingProxyType(dict(
    # Models
    fixed_size_prediction=Ability(
        False, 'RPN, RoI head, box head, keypoint head: predict_padded gives what predict does, in tensors of a fixed '
               'size and without waiting for the device', methods=('predict',)),
    frees_levels=Ability(
        False, 'neck: forward(levels, keep=False) empties the list while it reads it', methods=('forward',)),
    wants_semantic_seg=Ability(
        False, "RoI head: loss takes semantic_seg=, the batch's semantic maps (B, 1, h, w)"),
    own_types=Ability((), 'any class: keywords whose dicts have types of its own, which no registry knows'),
    reads_images=Ability(False, 'neck: the first of the levels that it reads is the images (RFP)'),
    with_keypoint=Ability(False, 'RoI head: it has a keypoint_head, and predicts keypoints'),
    flip_pairs=Ability(None, 'keypoint head: pairs of keypoints, counted from 0, that a mirror swaps'),
    skeleton=Ability((), 'keypoint head: pairs of keypoints, counted from 0, that drawings connect'),
    res_layer=Ability(None, "mask head: layers of its own in the place of the RoI head's shared_head"),
    use_sigmoid=Ability(False, 'classification loss: it reads a logit for each class, and none for the background'),
    custom_cls_channels=Ability(
        False, 'classification loss: get_cls_channels(K) says how many scores a box head gives, in the place of K + 1'),
    custom_activation=Ability(
        False, 'classification loss: get_activation(scores) gives probabilities (R, K + 1), in the place of softmax'),
    custom_accuracy=Ability(
        False, 'classification loss: get_accuracy(scores, labels) gives what is logged in the place of acc'),
    draws_in_threads=Ability(
        False, 'detector: show_result may draw several images at once, each in a thread', methods=('show_result',)),
    runs_on_images=Ability(
        False, 'RPN: run(outs, metas) works out what forward returns, once the images are known (CascadeRPNHead)'),
    reads_levels=Ability(
        False, 'assigner of an RPN: assign_levels matches the anchors of each level by themselves (RegionAssigner)'),
    ranks_by_loss=Ability(
        False, 'sampler: sample takes rank_losses=, which gives the losses of boxes (OHEM)'),
    ranks_by_prediction=Ability(
        False, 'sampler: sample takes predictions=, which gives what the box head makes of boxes (PISARoIHead)'),
    # Data
    gives_compact=Ability(
        False, 'data set: sample(index, compact=True) gives dataset[index] with the image left as it was read',
        methods=('__getitem__',)),
    on_error=Ability('raise', "data set: what an image that cannot be read does to a training, 'raise' or 'skip'"),
    flag=Ability(None, 'data set: (images,) the aspect group of each image; a batch is of one group'),
    takes_compact=Ability(
        False, 'transform: transform(sample, compact=True) leaves the image as it was read', methods=('__call__',)),
    can_defer=Ability(
        False, 'transform: it may run after a Normalize that is left to the device', inherited=False),
    defer=Ability(None, 'transform that can_defer: called in its place where Normalize is left to the device'),
    # Training
    needs_scores=Ability(False, 'hook: it reads the results of evaluations, also of one before the first iteration'),
))


def ability(part: Any, name: str) -> Any:
    """What ``part`` (or a class of parts) declares under ``name``, or the default of the table.

    Raises:
        ValueError: there is no such ability.
    """
    known = ABILITIES.get(name)
    if known is None:
        raise ValueError(f"there is no ability '{name}'{nearest(name, ABILITIES)}")
    declared = getattr(part, name, known.default)
    if name in getattr(part, '__dict__', ()):  # of the object itself
        return declared
    kind = part if isinstance(part, type) else type(part)
    if not known.inherited and name not in vars(kind):
        return known.default
    owner = declaring_class(kind, name)
    if owner is not None and any(overrides(part, method, owner) for method in known.methods):
        return known.default
    return declared


def declaring_class(kind: type, name: str) -> type | None:
    """The class that ``kind`` has the attribute ``name`` from, which may be itself."""
    return next((cls for cls in kind.__mro__ if name in vars(cls)), None)


def overrides(part: Any, method: str, *bases: type) -> bool:
    """Whether ``part`` brings a ``method`` that is not that of one of ``bases``."""
    found = getattr(part, method, None)
    function = getattr(found, '__func__', found)
    return found is not None and all(function is not getattr(base, method, None) for base in bases)
