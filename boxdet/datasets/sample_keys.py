"""The one table of what a sample holds on its way through a pipeline.

A sample is a flat dict with mmdetection 2.x's key names, because people bring transforms that read and write them.
Letters: H, W height and width of the image at that moment, N objects, M ignored boxes, P proposals.
"""
from __future__ import annotations

from typing import NamedTuple


class SampleKey(NamedTuple):
    """One key: what is stored under it, in which unit, who writes it and who reads it."""
    key: str
    type: str
    shape: str
    unit: str
    writer: str
    readers: str


SAMPLE_KEYS: tuple[SampleKey, ...] = (
    SampleKey('img_info', 'dict', '', 'file_name, filename, height, width, id, ...', 'dataset', 'LoadImageFromFile'),
    SampleKey('ann_info', 'dict', '', 'bboxes, labels, bboxes_ignore, masks, keypoints, seg_map', 'dataset',
              'LoadAnnotations'),
    SampleKey('img_prefix', 'str | None', '', 'folder', 'dataset', 'LoadImageFromFile'),
    SampleKey('seg_prefix', 'str | None', '', 'folder', 'dataset', 'LoadAnnotations'),
    SampleKey('proposal_file', 'str | None', '', 'path', 'dataset', 'LoadProposals'),
    SampleKey('img_fields', 'list[str]', '', 'keys that hold images', 'LoadImageFromFile', 'every image transform'),
    SampleKey('bbox_fields', 'list[str]', '', 'keys that hold boxes', 'LoadAnnotations, LoadProposals',
              'every geometric transform'),
    SampleKey('mask_fields', 'list[str]', '', 'keys that hold masks', 'LoadAnnotations', 'every geometric transform'),
    SampleKey('seg_fields', 'list[str]', '', 'keys that hold semantic maps', 'LoadAnnotations',
              'every geometric transform'),
    SampleKey('keypoint_fields', 'list[str]', '', 'keys that hold keypoints', 'LoadAnnotations',
              'every geometric transform'),
    SampleKey('object_fields', 'list[str]', '', 'keys whose rows belong to the boxes, and lie nowhere',
              "users' data sets", 'transforms that drop objects'),
    SampleKey('flip_pairs', 'list[tuple]', '', 'keypoints (from 0) that a mirror swaps', 'CocoKeypointDataset',
              'RandomFlip'),
    SampleKey('filename', 'str', '', 'path', 'LoadImageFromFile', 'Collect'),
    SampleKey('ori_filename', 'str', '', 'path within img_prefix', 'LoadImageFromFile', 'Collect'),
    SampleKey('img', 'uint8 or float32 array, then tensor', '(H, W, 3), then (3, H, W)', '0..255 BGR, then normalised',
              'LoadImageFromFile', 'all'),
    SampleKey('ori_shape', 'tuple', '(3,)', 'pixels: H, W, channels as loaded', 'LoadImageFromFile', 'results'),
    SampleKey('img_shape', 'tuple', '(3,)', 'pixels: H, W, channels without padding', 'Load, Resize, the crops',
              'box clipping'),
    SampleKey('pad_shape', 'tuple', '(3,)', 'pixels: H, W, channels with padding', 'Resize, Pad', 'anchors'),
    SampleKey('scale', 'tuple | float', '(2,)', 'pixels: longest and shortest side, or a factor',
              'Resize, MultiScaleFlipAug', 'Resize'),
    SampleKey('scale_idx', 'int | None', '', 'place of the drawn scale in img_scale', 'Resize', ''),
    SampleKey('scale_factor', 'float32 array', '(4,)', 'new / old size: x, y, x, y', 'Resize', 'results'),
    SampleKey('keep_ratio', 'bool', '', '', 'Resize', ''),
    SampleKey('flip', 'bool', '', '', 'RandomFlip, MultiScaleFlipAug', 'results'),
    SampleKey('flip_direction', 'str | None', '', 'horizontal, vertical, diagonal', 'RandomFlip, MultiScaleFlipAug',
              'results'),
    SampleKey('img_norm_cfg', 'dict', '', 'mean (3,), std (3,), to_rgb', 'Normalize', 'Batch.to, drawing'),
    SampleKey('pad_fixed_size', 'tuple | None', '(2,)', 'pixels', 'Pad', ''),
    SampleKey('pad_size_divisor', 'int | None', '', 'pixels', 'Pad', ''),
    SampleKey('gt_bboxes', 'float32', '(N, 4)', 'pixels xyxy', 'LoadAnnotations', 'RPN and RoI heads'),
    SampleKey('gt_labels', 'int64', '(N,)', 'class from 0', 'LoadAnnotations', 'RoI heads'),
    SampleKey('gt_bboxes_ignore', 'float32', '(M, 4)', 'pixels xyxy', 'LoadAnnotations', 'assigners'),
    SampleKey('gt_masks', 'BitmapMasks | PolygonMasks', 'N of (H, W)', '0 or 1', 'LoadAnnotations', 'mask head'),
    SampleKey('gt_keypoints', 'float32', '(N, J, 3)', 'x, y in pixels; visibility 0 (not labelled), 1 (hidden), 2',
              'LoadAnnotations', 'keypoint head'),
    SampleKey('gt_semantic_seg', 'uint8, then tensor', '(H, W), then (1, h, w)', 'class, 255 for unknown',
              'LoadAnnotations', 'SegRescale, semantic heads'),
    SampleKey('seg_pad_val', 'int', '', 'class of the padding', 'DefaultFormatBundle', 'collate'),
    SampleKey('proposals', 'float32', '(P, 4) or (P, 5)', 'pixels xyxy[, score]', 'LoadProposals', 'Fast R-CNN'),
    SampleKey('mix_results', 'list[dict]', '', 'samples of other images', 'MultiImageMixDataset', 'CopyPaste'),
    SampleKey('img_metas', 'dict', '', 'the meta_keys', 'Collect', 'collate'),
)
