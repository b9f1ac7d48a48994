"""OpenImagesDataset and OpenImagesChallengeDataset: Open Images (Kuznetsova et al. 2020), its CSV files and hierarchy.

Boxes are relative to their image, so ``LoadAnnotations(denorm_bbox=True)`` belongs into the pipeline. An image was
searched for the classes that its image-level labels name; evaluation goes by them (boxdet/evaluation/open_images.py).

Letters: A objects of all images, N objects of an image, I images, K classes.
"""
from __future__ import annotations

import csv
import io
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from boxdet.datasets.custom import CustomDataset
from boxdet.datasets.files import Records, image_size, read_bytes, read_data
from boxdet.errors import ConfigError, DataError
from boxdet.files.json_text import read_json
from boxdet.registry import DATASETS

_FLAGS = dict(is_occludeds='IsOccluded', is_truncateds='IsTruncated', gt_is_group_ofs='IsGroupOf',
              is_depictions='IsDepiction', is_insides='IsInside')
_CORNERS = ('XMin', 'YMin', 'XMax', 'YMax')


@DATASETS.register_module()
class OpenImagesDataset(CustomDataset):
    """Boxes of Open Images v4 to v7.

    Args:
        ann_file: the boxes, a CSV file with ImageID, LabelName, XMin, XMax, YMin, YMax, IsOccluded, ….
        pipeline: transform configs.
        label_file: CSV of the classes, a code such as /m/011k07 and a name in each line; it gives ``CLASSES``.
        image_level_ann_file: CSV with ImageID and LabelName of what each image was searched for; for evaluation.
        get_supercategory: an object, and a detection, counts for the classes above its own, too; in evaluation.
        hierarchy_file: JSON tree of the classes' codes.
        get_metas, load_from_file: 2.x's; sizes come from ``meta_file``, or else from the headers of the images.
        meta_file: a list of dicts with 'filename' and 'ori_shape', one an image, as .pkl or .json.
        filter_labels: detections of classes that an image was not searched for are left out of the evaluation.
        load_image_level_labels: count the labels of ``image_level_ann_file`` among those.
        **options: of CustomDataset. No image is left out in training.

    Raises:
        ConfigError: no ``label_file``; ``classes``; ``get_supercategory`` without ``hierarchy_file``. DataError: a file
            that cannot be read as described; the message names file and line.
    """
    EVALUATORS = ('OpenImagesEvaluator',)

    def __init__(self, ann_file: str, pipeline: Sequence[Any], label_file: str = '', image_level_ann_file: str = '',
                 get_supercategory: bool = True, hierarchy_file: str | None = None, get_metas: bool = True,
                 load_from_file: bool = True, meta_file: str = '', filter_labels: bool = True,
                 load_image_level_labels: bool = True, **options: Any):
        kind = type(self).__name__
        if not label_file or options.get('classes') is not None:
            raise ConfigError(f'{kind} takes its classes from label_file: give that, and no classes')
        if get_supercategory and not hierarchy_file:
            raise ConfigError(f'{kind}: get_supercategory=True needs hierarchy_file, the tree of the classes')
        self.data_root = options.get('data_root')
        self.label_file = self._under_root(label_file)
        self.image_level_ann_file, self.hierarchy_file, self.meta_file = (
            self._under_root(path or None) for path in (image_level_ann_file, hierarchy_file, meta_file))
        if not load_from_file:
            self.meta_file = None
        self.get_supercategory, self.filter_labels = get_supercategory, filter_labels
        self.load_image_level_labels = load_image_level_labels
        super().__init__(ann_file, pipeline, **options)

    # -- classes

    def _read_classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        """The label of each code, and the names."""
        rows = [row for _, row in csv_rows(self.label_file, 2) if row[0] != 'LabelName']
        return {code: label for label, (code, *_) in enumerate(rows)}, tuple(row[1] for row in rows)

    def class_tree(self) -> np.ndarray:
        """(K, K) bool, [k, p]: class p is k, or above it."""
        tree, hierarchy_file = np.eye(len(self._known_classes()), dtype=np.bool_), self._hierarchy()

        def descend(node: Mapping[str, Any], above: list[int]) -> None:
            for child in node.get('Subcategory', ()):
                label = self._label(child.get('LabelName'), hierarchy_file)
                tree[label, above] = True
                descend(child, [*above, label])

        descend(read_json(hierarchy_file), [])
        return tree

    def _hierarchy(self) -> str:
        if self.hierarchy_file is None:
            raise ConfigError(f'{type(self).__name__} was opened without hierarchy_file, the tree of the classes')
        return self.hierarchy_file

    def _label(self, code: Any, where: str) -> int:
        if code not in self.labels_by_code:
            count = len(self._known_classes())
            raise DataError(f"{where}: class '{code}' is not among the {count} of {self.label_file}")
        return self.labels_by_code[code]

    # -- annotations

    def load_annotations(self, ann_file: str) -> Records:
        """Read the classes and the boxes; one dict an image, with 'img_id' and 'filename'."""
        self.labels_by_code, self.CLASSES = self._read_classes()
        names, self._annotations = self._read_boxes(ann_file)
        return Records(names)

    def _read_boxes(self, ann_file: str) -> tuple[list[dict], Records]:
        places: dict[str, int] = {}
        objects: list[list[tuple[float, ...]]] = []
        rows = csv_rows(ann_file, 13)
        columns = {name: i for i, name in enumerate(next(rows)[1])}
        absent = [name for name in ('ImageID', 'LabelName', *_CORNERS, *_FLAGS.values()) if name not in columns]
        if absent:
            raise DataError(f"{ann_file}: its first line names no column '{absent[0]}'")
        image, label = columns['ImageID'], columns['LabelName']
        numbers = [columns[name] for name in (*_CORNERS, *_FLAGS.values())]
        for line, row in rows:
            place = places.setdefault(row[image], len(places))
            if place == len(objects):
                objects.append([])
            try:
                objects[place].append((self._label(row[label], f'{ann_file}:{line}'),
                                       *(float(row[i]) for i in numbers)))
            except ValueError:
                raise DataError(f'{ann_file}:{line}: a corner or a flag is no number') from None
        return ([dict(img_id=name, filename=f'{name}.jpg') for name in places],
                Records(np.array(of, dtype=np.float64) for of in objects))

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image.

        Returns:
            'bboxes' (N, 4) float32 xyxy from 0 to 1, 'labels' (N,) int64, 'bboxes_ignore' (0, 4), and (N,) bool each:
            'gt_is_group_ofs', 'is_occludeds', 'is_truncateds', 'is_depictions', 'is_insides'.
        """
        rows = self._annotations[self._rows[index]]
        flags = {key: rows[:, 5 + i] == 1 for i, key in enumerate(_FLAGS)}
        return dict(bboxes=rows[:, 1:5].astype(np.float32), labels=rows[:, 0].astype(np.int64),
                    bboxes_ignore=np.zeros((0, 4), dtype=np.float32), **flags)

    has_annotations = True

    def _match_annotations(self) -> None:
        self._rows = np.arange(len(self.data_infos))

    def _keep(self, numbers: Sequence[int]) -> None:
        super()._keep(numbers)
        self._rows = self._rows[np.asarray(numbers, dtype=np.int64)]

    def _filter_imgs(self, min_size: int = 32) -> list[int]:
        return list(range(len(self.data_infos)))

    def _set_group_flag(self) -> None:
        self.flag = np.zeros(len(self), dtype=np.uint8)  # the files tell no sizes

    # -- for evaluation

    def image_sizes(self) -> np.ndarray:
        """(I, 2) float64 width, height of the images, from ``meta_file`` or their headers.

        Raises:
            DataError: ``meta_file`` lacks an image; an image cannot be read.
        """
        names = [self.img_info(i)['filename'] for i in range(len(self))]
        if self.meta_file is None:
            return np.array([image_size(os.path.join(self.img_prefix or '', name)) for name in names], dtype=np.float64)
        known = {os.path.basename(meta['filename']): meta['ori_shape'] for meta in read_data(self.meta_file)}
        absent = [name for name in names if os.path.basename(name) not in known]
        if absent:
            raise DataError(f"{self.meta_file} has no size of {absent[0]} (and of {len(absent) - 1} more)")
        return np.array([known[os.path.basename(name)][1::-1] for name in names], dtype=np.float64)

    def image_labels(self) -> list[np.ndarray]:
        """The labels (L,) int64 that each image was searched for beside those of its boxes; empty without the file."""
        searched: dict[str, set[int]] = {}
        if self.load_image_level_labels and self.image_level_ann_file:
            rows = csv_rows(self.image_level_ann_file, 3)
            column = next(rows)[1].index('LabelName')
            for _, row in rows:
                if row[column] in self.labels_by_code:  # images have labels that no box is drawn for
                    searched.setdefault(row[0], set()).add(self.labels_by_code[row[column]])
        ids = [os.path.splitext(os.path.basename(self.img_info(i)['filename']))[0] for i in range(len(self))]
        return [np.array(sorted(searched.get(name, ())), dtype=np.int64) for name in ids]


@DATASETS.register_module()
class OpenImagesChallengeDataset(OpenImagesDataset):
    """Boxes of the Open Images Challenge 2019.

    Args:
        ann_file: text; of each image its path, a line that is not read, the number N of its boxes, and N lines "label
            x1 y1 x2 y2 group", labels counting from 1.
        label_file: CSV with code, name and label of each class.
        hierarchy_file: an array (K + 1, K + 1) as numpy saves it, row and column 0 not being used.
        **options: as OpenImagesDataset.

    Raises: as OpenImagesDataset.
    """

    def _read_classes(self) -> tuple[dict[str, int], tuple[str, ...]]:
        rows = sorted(((int(row[2]), row[0], row[1]) for _, row in csv_rows(self.label_file, 3)))
        return {code: label - 1 for label, code, _ in rows}, tuple(name for _, _, name in rows)

    def class_tree(self) -> np.ndarray:
        """(K, K) bool, [k, p]: class p is k, or above it."""
        hierarchy_file = self._hierarchy()
        try:
            tree = np.load(hierarchy_file, allow_pickle=False)
        except (OSError, ValueError) as error:
            raise DataError(f'{hierarchy_file}: no array of numbers that numpy saved ({error})') from error
        return tree[1:, 1:] > 0

    def _read_boxes(self, ann_file: str) -> tuple[list[dict], Records]:
        lines = read_bytes(ann_file).tobytes().decode('utf-8').splitlines()
        images, objects, at = [], [], 0
        while at < len(lines):
            try:
                count = int(lines[at + 2])
                texts = [line.split() for line in lines[at + 3:at + 3 + count]]
                rows = np.array(texts, dtype=np.float64).reshape(-1, 6)
                if len(rows) < count:
                    raise ValueError
            except (IndexError, ValueError):
                raise DataError(f"{ann_file}:{at + 1}: '{lines[at][:60]}' is not followed by a line, the number of "
                                "boxes, and for each 'label x1 y1 x2 y2 group'") from None
            images.append(dict(filename=lines[at].strip()))
            flags = np.zeros((count, len(_FLAGS)))
            flags[:, 2] = rows[:, 5]
            objects.append(np.concatenate([rows[:, :1] - 1, rows[:, 1:5], flags], axis=1))
            at += 3 + count
        return images, Records(objects)


def csv_rows(path: str, columns: int) -> Iterator[tuple[int, list[str]]]:
    """(line, values) of each line of a CSV file.

    Raises:
        DataError: missing, not UTF-8, or a line of fewer values than ``columns``.
    """
    with io.TextIOWrapper(io.BytesIO(read_bytes(path).tobytes()), encoding='utf-8-sig', newline='') as file:
        try:
            for line, row in enumerate(csv.reader(file), 1):
                if len(row) < columns:
                    raise DataError(f'{path}:{line}: {len(row)} values, and {columns} are needed')
                yield line, row
        except UnicodeDecodeError as error:
            raise DataError(f'{path}: not UTF-8 text ({error.reason} at byte {error.start})') from error
