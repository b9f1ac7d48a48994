"""From the samples of a batch to a Batch.

Letters: B images, H, W height and width of the batch, h, w of its semantic maps, N objects of an image, M ignored
boxes.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
import torch

from boxdet.datasets.pipelines.compose import finish_image
from boxdet.datasets.pipelines.formatting import UNKNOWN_CLASS
from boxdet.errors import ConfigError
from boxdet.structures.batch import Batch, ImageMeta
from boxdet.structures.instances import Instances

_NOT_OBJECTS = {'gt_bboxes_ignore', 'gt_semantic_seg', 'gt_labels_ignore', 'gt_masks_ignore'}


def collate(samples: Sequence[dict]) -> Batch | list[Batch]:
    """Put what ``Collect`` gave of several images together; images are filled up with zeros to the largest.

    Samples of MultiScaleFlipAug become one Batch a view; a single view is one Batch.

    Raises:
        ConfigError: the pipeline does not collect 'img', or images have different numbers of views.
    """
    if 'img' not in samples[0] or 'img_metas' not in samples[0]:
        raise ConfigError(f"the pipeline must end in Collect with 'img' among its keys; it gave {sorted(samples[0])}")
    if not isinstance(samples[0]['img'], (list, tuple)):
        return _batch(samples)
    views = len(samples[0]['img'])
    if any(len(sample['img']) != views for sample in samples):
        raise ConfigError('images of one batch have different numbers of views')
    batches = [_batch([{key: value[view] for key, value in sample.items()} for sample in samples])
               for view in range(views)]
    return batches[0] if views == 1 else batches


def _batch(samples: Sequence[dict]) -> Batch:
    if len({isinstance(sample['img'], torch.Tensor) for sample in samples}) > 1:
        # Data sets of several kinds in one ConcatDataset: what one has finished the others must finish too.
        samples = [s if isinstance(s['img'], torch.Tensor) else finish_image(s) for s in samples]
    metas = [_meta(sample) for sample in samples]
    gt = ignored = proposals = None
    if 'gt_bboxes' in samples[0]:
        gt = [_objects(sample, meta) for sample, meta in zip(samples, metas)]
        ignored = [_boxes(sample.get('gt_bboxes_ignore')) for sample in samples]
    if 'proposals' in samples[0]:
        proposals = [_proposals(sample['proposals']) for sample in samples]
    return Batch(_images([sample['img'] for sample in samples], metas), metas, gt, ignored, proposals, _maps(samples))


def _maps(samples: Sequence[dict]) -> torch.Tensor | None:
    """(B, 1, h, w): the semantic maps (1, h, w) of all images, filled up below and on the right to the largest."""
    if 'gt_semantic_seg' not in samples[0]:
        return None
    maps = [torch.as_tensor(sample['gt_semantic_seg']) for sample in samples]
    for one, sample in zip(maps, samples):
        if one.dim() != 3 or one.shape[0] != 1:
            raise ConfigError(f"'gt_semantic_seg' of {sample['img_metas'].get('filename')} has shape "
                              f'{tuple(one.shape)}; DefaultFormatBundle makes (1, h, w) of a map (h, w)')
    height, width = (max(one.shape[axis] for one in maps) for axis in (1, 2))
    batch = torch.empty(len(maps), 1, height, width, dtype=maps[0].dtype)
    for slot, one, sample in zip(batch, maps, samples):
        slot.fill_(sample['img_metas'].get('seg_pad_val', UNKNOWN_CLASS))
        slot[:, :one.shape[1], :one.shape[2]] = one
    return batch


def _meta(sample: dict) -> ImageMeta:
    """What is neither image nor object nor map travels with the facts about the image."""
    rest = {key: value for key, value in sample.items()
            if key not in ('img', 'img_metas', 'proposals', 'gt_bboxes_ignore', 'gt_semantic_seg')
            and not _is_object_field(key)}
    return ImageMeta.from_dict({**sample['img_metas'], **rest})


def _is_object_field(key: str) -> bool:
    return key.startswith('gt_') and key not in _NOT_OBJECTS


def _objects(sample: dict, meta: ImageMeta) -> Instances:
    """``gt_bboxes`` as ``bboxes``, and so on: new supervision travels by its name."""
    fields: dict[str, Any] = {
        key.removeprefix('gt_'): torch.from_numpy(value) if isinstance(value, np.ndarray) else value
        for key, value in sample.items() if _is_object_field(key)}
    return Instances(None if meta.img_shape is None else meta.input_size, **fields)


def _boxes(boxes: Any) -> torch.Tensor:
    return torch.zeros(0, 4) if boxes is None else torch.as_tensor(boxes, dtype=torch.float32).reshape(-1, 4)


def _proposals(boxes: Any) -> Instances:
    """(P, 4) boxes, or (P, 5) with scores; boxes without scores all have score 1."""
    boxes = torch.as_tensor(boxes, dtype=torch.float32)
    scores = boxes[:, 4] if boxes.shape[1] == 5 else torch.ones(len(boxes))
    return Instances(bboxes=boxes[:, :4], scores=scores)


def _images(images: Sequence[Any], metas: Sequence[ImageMeta]) -> torch.Tensor:
    """(B, 3, H, W), in memory channels last: uint8 when every image still is (H, W, 3) uint8, else floats."""
    if not isinstance(images[0], torch.Tensor) and images[0].dtype != np.uint8:
        images = [torch.from_numpy(image).permute(2, 0, 1) for image in images]  # DefaultFormatBundle would have
    if isinstance(images[0], torch.Tensor):
        height, width = (max(image.shape[axis] for image in images) for axis in (1, 2))
        batch = torch.zeros(len(images), height, width, images[0].shape[0], dtype=images[0].dtype).permute(0, 3, 1, 2)
        for slot, image in zip(batch, images):
            slot[:, :image.shape[1], :image.shape[2]] = image
        return batch
    height, width = (max(sides) for sides in zip(*(meta.padded_size for meta in metas)))
    batch = torch.empty(len(images), height, width, 3, dtype=torch.uint8)
    for slot, image, meta in zip(batch.numpy(), images, metas):
        if meta.img_norm_cfg is None:
            raise ConfigError(f'image {meta.filename}: the pipeline has no Normalize: put it before Collect')
        rows, columns = image.shape[:2]
        slot[rows:], slot[:rows, columns:] = 0, 0
        if meta.img_norm_cfg['to_rgb']:
            cv2.cvtColor(image, cv2.COLOR_BGR2RGB, slot[:rows, :columns])
        else:
            slot[:rows, :columns] = image
    return batch.permute(0, 3, 1, 2)
