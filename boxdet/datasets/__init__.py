"""From annotation files to batches: data sets, pipelines, samplers and the loader.

The names are imported when they are asked for, so that a command line can start without OpenCV.
"""
from __future__ import annotations

import importlib
from typing import Any

_WHERE = {
    'build_dataset': 'boxdet.datasets.wrappers', 'inference_settings': 'boxdet.datasets.wrappers',
    'loss_settings': 'boxdet.datasets.wrappers',
    'build_dataloader': 'boxdet.datasets.loader',
    'DATASETS': 'boxdet.registry', 'PIPELINES': 'boxdet.registry',
    'CustomDataset': 'boxdet.datasets.custom', 'CocoDataset': 'boxdet.datasets.coco',
    'CocoKeypointDataset': 'boxdet.datasets.coco_keypoint',
    'XMLDataset': 'boxdet.datasets.voc', 'VOCDataset': 'boxdet.datasets.voc',
    'CityscapesDataset': 'boxdet.datasets.cityscapes', 'LVISDataset': 'boxdet.datasets.lvis',
    'LVISV05Dataset': 'boxdet.datasets.lvis', 'LVISV1Dataset': 'boxdet.datasets.lvis',
    'DeepFashionDataset': 'boxdet.datasets.deepfashion', 'WIDERFaceDataset': 'boxdet.datasets.wider_face',
    'Objects365V1Dataset': 'boxdet.datasets.objects365', 'Objects365V2Dataset': 'boxdet.datasets.objects365',
    'OpenImagesDataset': 'boxdet.datasets.open_images', 'OpenImagesChallengeDataset': 'boxdet.datasets.open_images',
    'ConcatDataset': 'boxdet.datasets.wrappers', 'RepeatDataset': 'boxdet.datasets.wrappers',
    'ClassBalancedDataset': 'boxdet.datasets.wrappers', 'MultiImageMixDataset': 'boxdet.datasets.wrappers',
    'GroupSampler': 'boxdet.datasets.samplers', 'DistributedGroupSampler': 'boxdet.datasets.samplers',
    'DistributedSampler': 'boxdet.datasets.samplers',
    'get_classes': 'boxdet.datasets.class_names',
    'replace_ImageToTensor': 'boxdet.datasets.pipelines.formatting',
    'Compose': 'boxdet.datasets.pipelines.compose', 'register_field_kind': 'boxdet.datasets.warps',
}
__all__ = sorted(_WHERE)


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'boxdet.datasets' has no attribute '{name}'")
    return getattr(importlib.import_module(_WHERE[name]), name)
