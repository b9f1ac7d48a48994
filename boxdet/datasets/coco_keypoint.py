"""CocoKeypointDataset: objects with keypoints, from a COCO keypoint file, or one of a user's own with any other ones.

Letters: A annotations of the file, N objects of an image, J keypoints.
"""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from boxdet.datasets.coco import CocoDataset
from boxdet.errors import ConfigError, DataError
from boxdet.geometry.keypoints import HALF_PIXEL, flip_order
from boxdet.registry import DATASETS
from boxdet.structures import coco_person

Pairs = Sequence[Sequence[int]]


@DATASETS.register_module()
class CocoKeypointDataset(CocoDataset):
    """Boxes, masks and keypoints of a COCO keypoint file (``person_keypoints_*.json``).

    What the keypoints are is said by the keywords below, else by the file (``keypoints`` and ``skeleton`` of the
    category), else by the class, whose attributes are COCO's 17 keypoints of a person. Without ``flip_pairs`` the names
    tell them: 'left_hand' and 'right_hand'. Keypoints that the class does not know have no ``SIGMAS``; only the
    evaluation needs them.

    Args:
        *args, **kwargs: as CocoDataset.
        keypoint_names: names of the J keypoints.
        flip_pairs: keypoints, counted from 0, that a mirror swaps.
        skeleton: keypoints, counted from 0, that drawings connect.
        sigmas: (J,) spread of each keypoint in COCO's keypoint evaluation.
        min_keypoints: images with fewer labelled keypoints than this are left out of training, with
            ``filter_empty_gt``.
        keypoint_offset: pixels from the file's coordinates to ours; COCO's file counts pixels, whose centres lie half a
            pixel on. 0 for files of continuous coordinates.

    Attributes:
        KEYPOINT_NAMES, FLIP_PAIRS, SKELETON, SIGMAS: tuples; SIGMAS is None where nobody said.

    Raises:
        DataError: no annotation with keypoints, or one whose keypoints cannot be right, naming file and id.
        ConfigError: keywords that disagree with the number of keypoints.
    """
    CLASSES = ('person',)
    KEYPOINT_NAMES: tuple[str, ...] = coco_person.NAMES
    FLIP_PAIRS: tuple[tuple[int, int], ...] = coco_person.FLIP_PAIRS
    SKELETON: tuple[tuple[int, int], ...] = coco_person.SKELETON
    SIGMAS: tuple[float, ...] | None = coco_person.SIGMAS

    def __init__(self, *args: Any, keypoint_names: Sequence[str] | None = None, flip_pairs: Pairs | None = None,
                 skeleton: Pairs | None = None, sigmas: Sequence[float] | None = None, min_keypoints: int = 1,
                 keypoint_offset: float = HALF_PIXEL, **kwargs: Any):
        self._given: dict[str, Any] = dict(
            KEYPOINT_NAMES=keypoint_names, FLIP_PAIRS=flip_pairs, SKELETON=skeleton, SIGMAS=sigmas)
        self.min_keypoints = min_keypoints
        self.keypoint_offset = keypoint_offset
        super().__init__(*args, **kwargs)

    @property
    def metainfo(self) -> dict[str, Any]:
        """CLASSES and PALETTE, and what the keypoints are."""
        return dict(super().metainfo, KEYPOINT_NAMES=self.KEYPOINT_NAMES, FLIP_PAIRS=self.FLIP_PAIRS,
                    SKELETON=self.SKELETON, SIGMAS=self.SIGMAS)

    # -- what the keypoints are

    def _set_categories(self, categories: list[dict] | None) -> None:
        super()._set_categories(categories)
        names, bones = self._declared([c for c in categories or () if c['id'] in self._label_of])
        usual, given = type(self), self._given
        wanted = given['KEYPOINT_NAMES'] or names or usual.KEYPOINT_NAMES
        if names and len(names) != len(wanted):
            raise ConfigError(f'keypoint_names are {len(wanted)}, the categories of {self.ann_file} have {len(names)}')
        self.KEYPOINT_NAMES = tuple(wanted)
        known = self.KEYPOINT_NAMES == usual.KEYPOINT_NAMES
        self.FLIP_PAIRS = self._pairs(
            'flip_pairs', given['FLIP_PAIRS'], usual.FLIP_PAIRS if known else coco_person.named_pairs(wanted))
        self.SKELETON = self._pairs('skeleton', given['SKELETON'], bones or (usual.SKELETON if known else ()))
        sigmas = given['SIGMAS'] if given['SIGMAS'] is not None else usual.SIGMAS if known else None
        if sigmas is not None and (len(sigmas) != len(wanted) or not min(sigmas) > 0):
            raise ConfigError(f'sigmas: one positive number for each of the {len(wanted)} keypoints of '
                              f'{self.ann_file}, not {list(sigmas)}')
        self.SIGMAS = None if sigmas is None else tuple(float(sigma) for sigma in sigmas)

    def _declared(self, categories: list[dict]) -> tuple[list[str], list[tuple[int, int]]]:
        """The file's names and bones (from 0) of keypoints; all categories that have some must have the same."""
        with_keypoints = [c for c in categories if c.get('keypoints')]
        for other in with_keypoints[1:]:
            if other['keypoints'] != with_keypoints[0]['keypoints']:
                raise DataError(f"{self.ann_file}: the categories '{with_keypoints[0]['name']}' and '{other['name']}' "
                                'have different keypoints; one keypoint head cannot learn both')
        if not with_keypoints:
            return [], []
        first = with_keypoints[0]
        bones = [(start - 1, end - 1) for start, end in first.get('skeleton') or ()]  # the file counts from 1
        if not all(0 <= keypoint < len(first['keypoints']) for bone in bones for keypoint in bone):
            raise DataError(f"{self.ann_file}: the skeleton of category '{first['name']}' names keypoints beyond its "
                            f"{len(first['keypoints'])} (they count from 1)")
        return list(first['keypoints']), bones

    def _pairs(self, keyword: str, given: Pairs | None, usual: Pairs) -> tuple[tuple[int, int], ...]:
        count = len(self.KEYPOINT_NAMES)
        try:
            pairs = tuple((int(one), int(other)) for one, other in (usual if given is None else given))
            if keyword == 'flip_pairs':
                flip_order(count, pairs)
            if not all(0 <= keypoint < count for pair in pairs for keypoint in pair):
                raise ValueError(f'a keypoint beyond 0 to {count - 1}')
        except (TypeError, ValueError) as error:
            raise ConfigError(f'{keyword} is a list of pairs of the {count} keypoints of {self.ann_file}, counted from '
                              f'0: {error}') from None
        return pairs

    # -- annotations

    def _set_annotations(self, annotations: list[dict]) -> None:
        super()._set_annotations(annotations)
        place = {annotation['id']: i for i, annotation in enumerate(annotations)}
        self._keypoints = self._keypoints_of([annotations[place[i]] for i in self._ann_ids.tolist()])
        if not self.test_mode and annotations and not any('keypoints' in a for a in annotations):
            raise DataError(f"{self.ann_file}: no annotation has 'keypoints' (COCO's are in person_keypoints_*.json)")

    @property
    def annotation_keypoints(self) -> np.ndarray:
        """(A, J, 3) float32 x, y, visibility of the annotations of ``annotation_facts``, as they stand in the file."""
        return self._keypoints - np.array([self.keypoint_offset, self.keypoint_offset, 0], np.float32)

    def _keypoints_of(self, annotations: list[dict]) -> np.ndarray:
        """(A, J, 3) float32, all 0 where an annotation has none."""
        count, wanted = len(self.KEYPOINT_NAMES), set(self._label_of)
        keypoints = np.zeros((len(annotations), count, 3))
        for row, annotation in zip(keypoints, annotations):
            flat = annotation.get('keypoints')
            if not flat or annotation['category_id'] not in wanted:
                continue
            if len(flat) != 3 * count:
                raise DataError(f"{self.ann_file}: annotation {annotation['id']} has {len(flat)} numbers under "
                                f"'keypoints', and {count} keypoints ({', '.join(self.KEYPOINT_NAMES[:3])}, ...) have "
                                f'{3 * count}')
            try:
                row[:] = np.asarray(flat, dtype=np.float64).reshape(count, 3)
            except (TypeError, ValueError):
                row[:] = np.nan
        odd = ~np.isfinite(keypoints).all(axis=(1, 2)) | ~np.isin(keypoints[..., 2], (0, 1, 2)).all(axis=1)
        if odd.any():
            raise DataError(f"{self.ann_file}: annotation {annotations[int(odd.argmax())]['id']}: 'keypoints' are x, "
                            'y, visibility (0, 1 or 2) of each keypoint, in finite numbers')
        keypoints[..., :2] += self.keypoint_offset
        keypoints[keypoints[..., 2] == 0] = 0
        return keypoints.astype(np.float32)

    def get_ann_info(self, index: int) -> dict:
        """As CocoDataset, and 'keypoints' (N, J, 3) float32: x, y in pixels, visibility 0, 1 or 2."""
        span = self._span(index)
        objects = np.flatnonzero(self._usable[span] & ~self._crowd[span])
        return dict(super().get_ann_info(index), keypoints=self._keypoints[span][objects])

    def pre_pipeline(self, results: dict) -> None:
        """Add what transforms need beside the annotations."""
        super().pre_pipeline(results)
        results['flip_pairs'] = list(self.FLIP_PAIRS)

    def _without_object(self) -> dict[str, np.ndarray]:
        reasons = super()._without_object()
        labelled = (self._keypoints[..., 2] > 0).sum(axis=1) * (self._usable & ~self._crowd)  # (A,)
        few = self._per_image(labelled) < self.min_keypoints
        return dict(reasons, few_keypoints=few & ~np.any(list(reasons.values()), axis=0))
