"""The 17 keypoints of COCO's persons, and what left and right mean in a list of names.

Data sets, models and drawings that do not say otherwise take objects with 17 keypoints for these. Keypoints
count from 0.
"""
from __future__ import annotations

from collections.abc import Sequence

NAMES = ('nose', 'left_eye', 'right_eye', 'left_ear', 'right_ear', 'left_shoulder', 'right_shoulder', 'left_elbow',
         'right_elbow', 'left_wrist', 'right_wrist', 'left_hip', 'right_hip', 'left_knee', 'right_knee', 'left_ankle',
         'right_ankle')
FLIP_PAIRS = ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
SKELETON = ((15, 13), (13, 11), (16, 14), (14, 12), (11, 12), (5, 11), (6, 12), (5, 6), (5, 7), (6, 8), (7, 9), (8, 10),
            (1, 2), (0, 1), (0, 2), (1, 3), (2, 4), (3, 5), (4, 6))
# How far apart two annotators set each keypoint, as a share of the object's size (COCO's keypoint evaluation).
# Tenths, as pycocotools has them: 0.26 / 10 is not 0.026 in its last bit.
SIGMAS = tuple(tenth / 10 for tenth in (0.26, 0.25, 0.25, 0.35, 0.35, 0.79, 0.79, 0.72, 0.72, 0.62, 0.62, 1.07, 1.07,
                                        0.87, 0.87, 0.89, 0.89))


def named_pairs(names: Sequence[str]) -> tuple[tuple[int, int], ...]:
    """The keypoints that a mirror swaps, found by their names: 'left_hand' and 'right_hand'.

    >>> named_pairs(('nose', 'left_eye', 'right_eye', 'tail'))
    ((1, 2),)
    """
    place = {name.lower(): i for i, name in enumerate(names)}
    mirrored = ((i, place.get(name.replace('left', 'right'))) for name, i in place.items() if 'left' in name)
    return tuple((left, right) for left, right in mirrored if right is not None)
