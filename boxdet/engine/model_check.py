"""Do the parts of a detector fit one another? Told when the model is built, by the names of the two config keys.

An image of no memory (the meta device) passes the network once, part after part. What a part gives is compared with
what the next one is set up for: channels, levels, strides, sizes of RoIs and masks. Parts of a user's own that cannot
run so are not judged, nor is what comes behind them.

Letters: B images, L levels, R rois, C channels, h, w height and width.
"""
from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from boxdet.abilities import ability
from boxdet.engine.findings import Finding
from boxdet.errors import UserError

_SIDE, _BATCH = 512, 2  # of the image; two, because batch norms in training refuse single values
# What torch says when shapes do not fit; anything else (data that a module wants to see, mixed devices) is no finding.
_DOES_NOT_FIT = re.compile(r'shapes cannot be multiplied|same reduction dim|to have \d+ channels|size of tensor|'
                           r'Sizes of tensors|must match|normalized_shape|size mismatch|running_mean should contain|'
                           r"divisible|shape '.*' is invalid")


class _Unknown(Exception):
    """A part cannot run without numbers: nothing can be said."""


class _Misfit(Exception):
    """A part does not take what it is given; ``args[0]`` says why."""


def model_findings(model: nn.Module) -> Iterator[Finding]:
    """What does not fit in a built detector."""
    yield from _loss_forms(model)
    backbone = getattr(model, 'backbone', None)
    if not isinstance(backbone, nn.Module):
        return
    try:
        levels = _levels(_run(backbone, _image(backbone)))
        yield from _through_the_neck(model, levels)
    except (_Unknown, _Misfit):  # a backbone that refuses this image may take others
        return


def image_channels(model: nn.Module) -> int | None:
    """The channels of the images that the backbone reads; None where that is not known."""
    return _reads(getattr(model, 'backbone', None))


# ------------------------------------------------------------------------------------------ backbone and neck


def _through_the_neck(model: nn.Module, levels: list[torch.Tensor]) -> Iterator[Finding]:
    given, by = levels, 'model.backbone'
    neck = getattr(model, 'neck', None)
    if isinstance(neck, nn.Module):
        wanted = getattr(neck, 'in_channels', None)
        channels = [level.shape[1] for level in levels[int(ability(neck, 'reads_images')):]]
        if isinstance(wanted, (list, tuple)) and len(wanted) != len(channels):
            yield Finding('model.levels', (
                f'model.neck.in_channels has {len(wanted)} levels, {list(wanted)}, and '
                f'model.backbone gives {len(channels)} (out_indices), {channels}: set the one '
                'to the other'))
            return
        if isinstance(wanted, (list, tuple)) and list(wanted) != channels:
            yield Finding('model.channels', (
                f'model.neck.in_channels = {list(wanted)}, and model.backbone gives {channels}: '
                f'set model.neck.in_channels={channels}, or take another backbone (depth)'))
            return
        try:
            given, by = _levels(_run(neck, levels)), 'model.neck'
        except _Misfit as error:
            yield Finding('model.channels', (
                f'model.neck does not take what model.backbone gives, {_shapes(levels)}: {error}'))
            return
    yield from _rpn(getattr(model, 'rpn_head', None), given, by)
    yield from _roi_head(model, given, by)


def _rpn(head: Any, levels: list[torch.Tensor], by: str) -> Iterator[Finding]:
    if not isinstance(head, nn.Module):
        return
    channels = [level.shape[1] for level in levels]
    wanted = _reads(head)
    if wanted is not None and set(channels) != {wanted}:
        yield Finding('model.channels', f'model.rpn_head.in_channels = {wanted}, and {by} gives {_one(channels)} '
                                        f'channels ({_channels_key(by)}): set the one to the other')
    strides = getattr(getattr(head, 'anchor_generator', None), 'strides', None)
    if strides is None:
        return
    if len(strides) != len(levels):
        yield Finding('model.levels', (
            f'model.rpn_head.anchor_generator.strides has {len(strides)} levels, and {by} gives '
            f'{len(levels)} ({_levels_key(by)}), with strides {_strides(levels)}: set the one to '
            'the other'))
    elif not _same_strides(strides, levels):
        yield Finding('model.strides', (
            f'model.rpn_head.anchor_generator.strides = {[_plain(s) for s in strides]}, and the '
            f'levels of {by} have strides {_strides(levels)}: anchors would lie elsewhere; set '
            f'strides={_strides(levels)}'))


# ------------------------------------------------------------------------------------------ second stage


def _roi_head(model: nn.Module, levels: list[torch.Tensor], by: str) -> Iterator[Finding]:
    roi_head = getattr(model, 'roi_head', None)
    if not isinstance(roi_head, nn.Module):
        return
    bbox_extractors = _named(roi_head, 'bbox_roi_extractor')
    settings: Any = getattr(roi_head, 'train_cfg', None)
    for kind in ('bbox', 'mask', 'keypoint'):
        extractors = _named(roi_head, f'{kind}_roi_extractor')
        shared = not extractors
        for i, (name, head) in enumerate(_named(roi_head, f'{kind}_head')):
            of = extractors or bbox_extractors
            if not of:
                continue
            where, extractor = of[min(i, len(of) - 1)]
            if not (shared and kind != 'bbox'):
                found = list(_extractor(where, extractor, levels, by))
                yield from found
                if found:
                    continue
            several = isinstance(settings, (list, tuple)) and len(settings) > 0
            stage = settings[min(i, len(settings) - 1)] if several else settings
            yield from _head(roi_head, kind, name, head, where, extractor, levels, stage)


def _extractor(where: str, extractor: nn.Module, levels: list[torch.Tensor], by: str) -> Iterator[Finding]:
    strides = getattr(extractor, 'featmap_strides', None)
    if strides is None:
        return
    if len(strides) > len(levels):
        yield Finding('model.levels', (
            f'{where}.featmap_strides has {len(strides)} levels, and {by} gives {len(levels)} '
            f'({_levels_key(by)}): take out what is too much'))
        return
    used = levels[:len(strides)]
    if not _same_strides(strides, used):
        yield Finding('model.strides', (
            f'{where}.featmap_strides = {list(strides)}, and the levels of {by} have strides '
            f'{_strides(levels)}: RoIs would be read elsewhere; set featmap_strides='
            f'{_strides(used)}'))
    channels, wanted = [level.shape[1] for level in used], getattr(extractor, 'out_channels', None)
    if isinstance(wanted, int) and set(channels) != {wanted}:
        yield Finding('model.channels', f'{where}.out_channels = {wanted}, and {by} gives {_one(channels)} channels '
                                        f'({_channels_key(by)}): set the one to the other')


def _head(roi_head: nn.Module, kind: str, name: str, head: nn.Module, where: str, extractor: nn.Module,
          levels: list[torch.Tensor], settings: Any) -> Iterator[Finding]:
    """Whether ``head`` takes what ``extractor`` and a shared head make of the levels, and its masks their size."""
    try:
        pooled = _run(extractor, levels[:getattr(extractor, 'num_inputs', len(levels))], _rois())
        source = f'{where} gives'
        shared = getattr(roi_head, 'shared_head', None)
        if isinstance(shared, nn.Module) and getattr(head, 'res_layer', None) is None:
            try:
                if _reads(shared) not in (None, pooled.shape[1]):  # convolutions without memory do not ask
                    raise _Misfit(f'it reads {_reads(shared)} channels')
                pooled, source = _run(shared, pooled), f'model.roi_head.shared_head makes of what {where} gives'
            except _Misfit as error:
                yield Finding('model.channels', (
                    f'model.roi_head.shared_head does not take {_shape(pooled)}, which {where} '
                    f'gives: {error}'))
                return
    except (_Unknown, _Misfit):
        return
    if not isinstance(pooled, torch.Tensor) or pooled.dim() != 4:
        return
    channels, size = pooled.shape[1], tuple(pooled.shape[2:])
    wanted = getattr(head, 'in_channels', None)
    if getattr(head, 'res_layer', None) is None and isinstance(wanted, int) and wanted != channels:
        yield Finding('model.channels', (
            f'{name}.in_channels = {wanted}, and {source} {channels}: set the one to the other'))
        return
    expected = getattr(head, 'roi_feat_size', None)
    try:
        out = _run(head, pooled)
    except _Unknown:
        return
    except _Misfit as error:
        if expected is not None and tuple(expected) != size:
            yield _roi_size(name, expected, size, where, shared)
        else:
            yield Finding('model.head-reads', f'{name} does not take {_shape(pooled)}, which {source}: {error}')
        return
    if kind == 'keypoint' and expected is not None and tuple(expected) != size:
        yield _roi_size(name, expected, size, where, shared)
    if kind == 'mask':
        yield from _mask_size(name, out, settings)


def _roi_size(name: str, expected: Sequence[int], size: tuple[int, ...], where: str, shared: Any) -> Finding:
    through = ', behind the shared_head,' if isinstance(shared, nn.Module) else ''
    return Finding('model.roi-size', f'{name}.roi_feat_size is {_side(expected)}, and {where}{through} gives RoIs of '
                                     f'{_side(size)} (roi_layer.output_size): set the one to the other')


def _mask_size(name: str, out: Any, settings: Any) -> Iterator[Finding]:
    wanted = getattr(settings, 'mask_size', None)
    if wanted is None or not isinstance(out, torch.Tensor) or out.dim() != 4:
        return
    wanted = (wanted, wanted) if isinstance(wanted, int) else tuple(wanted)
    if tuple(out.shape[2:]) != wanted:
        given = _side(out.shape[2:])
        yield Finding('model.mask-size', (
            f'model.train_cfg.rcnn.mask_size is {_side(wanted)}, and {name} gives masks of '
            f'{given}: set mask_size={out.shape[2] if out.shape[2] == out.shape[3] else given}'))


# ------------------------------------------------------------------------------------------ losses


def _loss_forms(model: nn.Module) -> Iterator[Finding]:
    """IoU losses on deltas, differences on boxes in pixels, masks learned by a loss of exclusive classes."""
    for name, head in model.named_modules():
        decoded, needs_boxes = getattr(head, 'reg_decoded_bbox', None), getattr(
            getattr(head, 'loss_bbox', None), 'needs_boxes', None)
        if isinstance(decoded, bool) and isinstance(needs_boxes, bool) and decoded != needs_boxes:
            kind, key = type(head.loss_bbox).__name__, f'model.{name}.reg_decoded_bbox'
            yield Finding('model.loss-form', (
                f'model.{name}.loss_bbox is {kind}, a loss of boxes, and gets deltas: set {key}=True' if needs_boxes
                else f'{key}=True gives boxes in pixels to {kind}, a loss of deltas: take it out, or use an IoU loss'))
        wrong = list(_losses_of_another_kind(name, head))
        yield from wrong or _loss_of_classes(name, head)
        if not wrong and getattr(getattr(head, 'loss_mask', None), 'exclusive_classes', False):
            yield Finding('model.loss-form', (
                f'model.{name}.loss_mask is of exclusive classes, and a mask has one: nothing '
                'would be learned; set loss_mask.use_mask=True'))


# What a loss of ours has that is of this kind, and what to take instead of one that has it not.
_KINDS = dict(loss_cls=('use_sigmoid', "of classes: set it to dict(type='CrossEntropyLoss', …)"),
              loss_bbox=('needs_boxes', "of boxes: set it to dict(type='L1Loss', loss_weight=1.0)"),
              loss_mask=('use_mask', "of masks: set it to dict(type='CrossEntropyLoss', use_mask=True)"))


def _losses_of_another_kind(name: str, head: nn.Module) -> Iterator[Finding]:
    """A loss of numbers where classes are learned, and the like; other people's losses are not judged."""
    for key, (sign, remedy) in _KINDS.items():
        loss: Any = getattr(head, key, None)
        ours = isinstance(loss, nn.Module) and type(loss).__module__.startswith('boxdet.')
        masks = ours and getattr(loss, 'use_mask', False)
        if ours and (not hasattr(loss, sign) or masks and key != 'loss_mask'
                     or key == 'loss_mask' and not masks and not loss.exclusive_classes):
            yield Finding('model.loss-form', f'model.{name}.{key} is {type(loss).__name__}'
                                             f"{' with use_mask=True' if masks else ''}, which is no loss {remedy}")


def _loss_of_classes(name: str, head: nn.Module) -> Iterator[Finding]:
    """Yes and no for each class in a box head, whose scores are one softmax over classes and background."""
    loss = getattr(head, 'loss_cls', None)
    if not hasattr(head, 'fc_cls') or hasattr(head, 'use_sigmoid') or not isinstance(loss, nn.Module):
        return
    if getattr(loss, 'use_sigmoid', False) and not ability(loss, 'custom_activation'):
        yield Finding('model.loss-form', (
            f'model.{name}.loss_cls is {type(loss).__name__}, which learns a yes or no for each class, and the scores '
            f"are a softmax over classes and background: set model.{name}.loss_cls to dict(type='CrossEntropyLoss', "
            'use_sigmoid=False)'))


# ------------------------------------------------------------------------------------------ running on nothing


def _image(backbone: nn.Module) -> torch.Tensor:
    return torch.empty(_BATCH, _reads(backbone) or 3, _SIDE, _SIDE, device='meta')


def _rois() -> torch.Tensor:
    return torch.empty(_BATCH, 5, device='meta')


def _run(module: nn.Module, *inputs: Any) -> Any:
    """``module(*inputs)`` with its weights on the meta device; the module is left as it is."""
    state = {name: value.detach().to('meta') for name, value in
             (*module.named_parameters(), *module.named_buffers()) if value is not None}
    try:
        with torch.no_grad():
            return torch.func.functional_call(module, state, inputs)
    except UserError as error:
        raise _Misfit(str(error)) from error
    except Exception as error:
        first = (str(error).strip().splitlines() or [''])[0]
        if isinstance(error, (RuntimeError, ValueError, AssertionError)) and _DOES_NOT_FIT.search(first):
            raise _Misfit(first) from error
        raise _Unknown from error


def _levels(given: Any) -> list[torch.Tensor]:
    levels = [given] if isinstance(given, torch.Tensor) else given
    if not isinstance(levels, (list, tuple)) or not levels or not all(
            isinstance(level, torch.Tensor) and level.dim() == 4 for level in levels):
        raise _Unknown
    return list(levels)


def _reads(module: Any) -> int | None:
    """The channels that a part reads: ``in_channels``, or those of its first convolution."""
    if not isinstance(module, nn.Module):
        return None
    if isinstance(getattr(module, 'in_channels', None), int):
        return module.in_channels
    first = next((m for m in module.modules() if isinstance(m, nn.Conv2d)), None)
    return None if first is None else first.in_channels


def _named(roi_head: nn.Module, key: str) -> list[tuple[str, nn.Module]]:
    """The part ``key`` of a RoI head with its config path, or the parts of its stages."""
    part = getattr(roi_head, key, None)
    if isinstance(part, nn.ModuleList):
        return [(f'model.roi_head.{key}.{i}', one) for i, one in enumerate(part)]
    return [(f'model.roi_head.{key}', part)] if isinstance(part, nn.Module) else []


def _same_strides(strides: Sequence[Any], levels: Sequence[torch.Tensor]) -> bool:
    """Whether each level is as large as its stride says; the last pixel may be left out or padded."""
    return all(abs(side - _SIDE / own) <= 1 for stride, level in zip(strides, levels)
               for own, side in zip(reversed(stride) if isinstance(stride, (list, tuple)) else (stride, stride),
                                    level.shape[2:]))


def _strides(levels: Sequence[torch.Tensor]) -> list[int]:
    return [round(_SIDE / level.shape[2]) for level in levels]


def _plain(stride: Any) -> Any:
    return stride[0] if isinstance(stride, tuple) and len(set(stride)) == 1 else stride


def _one(numbers: Sequence[int]) -> Any:
    return numbers[0] if len(set(numbers)) == 1 else list(numbers)


def _side(size: Sequence[int]) -> str:
    return f'{size[0]}x{size[1]}'


def _shape(tensor: torch.Tensor) -> str:
    return f'features ({tensor.shape[1]}, {tensor.shape[2]}, {tensor.shape[3]})'


def _shapes(levels: Sequence[torch.Tensor]) -> str:
    return f'levels of {[level.shape[1] for level in levels]} channels'


def _channels_key(by: str) -> str:
    return 'out_channels' if by == 'model.neck' else 'depth, out_indices'


def _levels_key(by: str) -> str:
    return 'num_outs' if by == 'model.neck' else 'out_indices'
