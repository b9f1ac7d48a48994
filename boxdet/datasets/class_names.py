"""Class names of well-known data sets, in the order of their labels."""
from __future__ import annotations

from boxdet.errors import ConfigError, nearest

COCO_CLASSES = (
    'person', 'bicycle', 'car', 'motorcycle', 'airplane', 'bus', 'train', 'truck', 'boat', 'traffic light',
    'fire hydrant', 'stop sign', 'parking meter', 'bench', 'bird', 'cat', 'dog', 'horse', 'sheep', 'cow', 'elephant',
    'bear', 'zebra', 'giraffe', 'backpack', 'umbrella', 'handbag', 'tie', 'suitcase', 'frisbee', 'skis', 'snowboard',
    'sports ball', 'kite', 'baseball bat', 'baseball glove', 'skateboard', 'surfboard', 'tennis racket', 'bottle',
    'wine glass', 'cup', 'fork', 'knife', 'spoon', 'bowl', 'banana', 'apple', 'sandwich', 'orange', 'broccoli',
    'carrot', 'hot dog', 'pizza', 'donut', 'cake', 'chair', 'couch', 'potted plant', 'bed', 'dining table', 'toilet',
    'tv', 'laptop', 'mouse', 'remote', 'keyboard', 'cell phone', 'microwave', 'oven', 'toaster', 'sink',
    'refrigerator', 'book', 'clock', 'vase', 'scissors', 'teddy bear', 'hair drier', 'toothbrush')

# COCO's category ids leave these out: eleven of its first 91 categories were never annotated (91 is the last of them).
_COCO_UNUSED = {12: 'street sign', 26: 'hat', 29: 'shoe', 30: 'eye glasses', 45: 'plate', 66: 'mirror', 68: 'window',
                69: 'desk', 71: 'door', 83: 'blender'}
COCO_CATEGORY_IDS = tuple(i for i in range(1, 91) if i not in _COCO_UNUSED)

# Label k is category id k + 1: the order of torchvision's detectors, which have outputs for the unused ones, too.
COCO_CLASSES_BY_ID = tuple(_COCO_UNUSED.get(i) or COCO_CLASSES[COCO_CATEGORY_IDS.index(i)] for i in range(1, 91))

VOC_CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
               'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')

CITYSCAPES_CLASSES = ('person', 'rider', 'car', 'truck', 'bus', 'train', 'motorcycle', 'bicycle')

_BY_NAME = {'coco': COCO_CLASSES, 'mscoco': COCO_CLASSES, 'ms_coco': COCO_CLASSES, 'voc': VOC_CLASSES,
            'pascal_voc': VOC_CLASSES, 'voc07': VOC_CLASSES, 'voc12': VOC_CLASSES, 'cityscapes': CITYSCAPES_CLASSES}


def get_classes(dataset: str) -> list[str]:
    """Class names of the data set called ``dataset``: 'coco', 'voc', 'cityscapes', ...

    Raises:
        ConfigError: an unknown data set.
    """
    if dataset not in _BY_NAME:
        raise ConfigError(f"no class names are known for '{dataset}'{nearest(dataset, _BY_NAME)}")
    return list(_BY_NAME[dataset])
