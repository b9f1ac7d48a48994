"""A random COCO data set with results that has all that makes matching difficult."""

import contextlib
import io

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks


class SimpleDataset:
    """What evaluation asks of a data set."""
    SIGMAS, keypoint_offset = (0.3, 0.4, 0.5, 0.6, 0.7), 0.5

    def __init__(self, coco: COCO, image_ids: list[int], category_ids: list[int]):
        self.coco, self.img_ids, self.cat_ids = coco, image_ids, category_ids
        self.CLASSES = tuple(f'c{c}' for c in category_ids)

    def __len__(self):
        return len(self.img_ids)


def make_random_data_set(seed: int, images: int = 14) -> tuple[SimpleDataset, list[Instances]]:
    """Boxes on a coarse grid with scores of one digit, so that overlaps and scores are often equal.

    Image and category ids are in no order; there are crowds, objects of all sizes, and keypoints, some not labelled.
    """
    rng = np.random.default_rng(seed)
    coco, annotations = COCO(), []
    image_ids, category_ids = rng.permutation(50)[:images].tolist(), [9, 2, 5]
    for image_id in image_ids:
        for _ in range(rng.integers(0, 9)):
            x, y, w, h = (rng.integers(0, 5, 2) * 25).tolist() + (rng.integers(1, 6, 2) * 25).tolist()
            keypoints = np.concatenate([rng.uniform(0, 200, (5, 2)).round(1), rng.integers(0, 3, (5, 1))], axis=1)
            keypoints *= rng.random() < 0.85
            annotations.append(dict(
                id=len(annotations) + 1, image_id=image_id, category_id=int(rng.choice(category_ids)),
                bbox=[x, y, w, h],
                area=w * h * float(rng.choice([0.2, 0.6, 1])), iscrowd=int(rng.random() < 0.15),
                segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]], keypoints=keypoints.ravel().tolist(),
                num_keypoints=int((keypoints[:, 2] > 0).sum())))
    coco.dataset = dict(info={}, images=[dict(id=i, height=250, width=250, file_name=f'{i}.jpg') for i in image_ids],
                        annotations=annotations, categories=[dict(id=c, name=f'c{c}') for c in category_ids])
    with contextlib.redirect_stdout(io.StringIO()):
        coco.createIndex()
    dataset = SimpleDataset(coco, image_ids, category_ids)
    return dataset, [random_result(coco.imgToAnns[i], category_ids, rng) for i in image_ids]


def random_result(annotations: list[dict], category_ids: list[int], rng: np.random.Generator) -> Instances:
    boxes, labels, keypoints, rles = [], [], [], []
    for _ in range(rng.integers(0, 40)):
        near = annotations and rng.random() < 0.7
        one = annotations[rng.integers(len(annotations))] if near else dict(
            bbox=(rng.integers(0, 5, 4) * 25 + 5).tolist(), category_id=9, keypoints=rng.uniform(0, 200, 15))
        x, y, w, h = np.array(one['bbox']) + rng.integers(-1, 2, 4) * 5
        boxes.append([x, y, x + w, y + h])
        labels.append(rng.integers(3) if rng.random() < 0.2 else category_ids.index(one['category_id']))
        keypoints.append(np.reshape(one['keypoints'], (5, 3)) + rng.integers(-1, 2, (5, 3)) * 8)
        bitmap = np.zeros((250, 250), np.uint8, order='F')
        bitmap[max(y, 0):y + h, max(x, 0):x + w] = 1
        rles.append(coco_masks.encode(bitmap))
    return Instances((250, 250), 3, bboxes=torch.tensor(np.reshape(boxes, (-1, 4)), dtype=torch.float32),
                     scores=torch.tensor(np.round(rng.random(len(boxes)), 1), dtype=torch.float32),
                     labels=torch.tensor(np.array(labels, dtype=np.int64)), masks=RleMasks(rles, 250, 250),
                     keypoints=torch.tensor(np.reshape(keypoints, (-1, 5, 3)), dtype=torch.float64))


@pytest.fixture
def random_data_set():
    """``random_data_set(seed, images=14)``: a data set and its results."""
    return make_random_data_set
