"""CocoDataset: objects from a COCO annotation file.

The file is read once, checked as a whole in numpy, and kept as flat arrays (boxes, labels, flags of every annotation,
sorted by image) and ``Records`` (image entries, masks), which workers share without copying.

Letters: A annotations of the file, N objects of an image, M crowd regions of an image.
"""
from __future__ import annotations

import contextlib
import io
import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from boxdet.datasets.annotation_facts import NO_MASK, AnnotationFacts, mask_kinds
from boxdet.datasets.class_names import COCO_CATEGORY_IDS, COCO_CLASSES, COCO_CLASSES_BY_ID
from boxdet.datasets.coco_values import settle_values
from boxdet.datasets.custom import CustomDataset
from boxdet.datasets.files import Records
from boxdet.errors import DataError, nearest
from boxdet.files.json_text import read_json
from boxdet.registry import DATASETS


@DATASETS.register_module()
class CocoDataset(CustomDataset):
    """Boxes, crowd regions, polygon and RLE masks of a COCO annotation file; arguments as CustomDataset.

    Label k stands for ``CLASSES[k]``, whatever the order of the file's categories. As in 2.x, objects narrower or lower
    than one pixel, without area, outside the image or marked ``ignore`` are left out (counted in ``filter_report``),
    and crowd regions become boxes to be ignored. A file without annotations can be opened in ``test_mode``.

    Raises:
        DataError: what cannot be right, naming file and id: JSON syntax, no 'images', duplicate ids, an annotation of
            an unknown category or without a box, a box that is not finite, classes that the file does not know.
    """
    CLASSES: tuple[str, ...] | None = COCO_CLASSES
    EVALUATORS = ('CocoEvaluator',)

    _coco: Any = None                    # pycocotools' COCO, see ``coco``
    _parsed: dict | None = None          # the file until ``coco`` takes it over
    _coco_is_given = False               # a subclass made ``self.coco``
    _listed: Records | None = None       # what our ``load_annotations`` returned
    _starts: np.ndarray | None = None    # of each image among the annotations; None until they are indexed
    cat_ids: list[int] | None = None
    annotation_facts: AnnotationFacts    # of the preflight; not copied to the loader's processes
    cat2label: dict[int, int] | None = None

    def load_annotations(self, ann_file: str) -> Records:
        """Read and check ``ann_file``; returns the image entries, each with 'filename'."""
        data = self._read(ann_file)
        if not isinstance(data, dict) or not isinstance(data.get('images'), list):
            raise DataError(f"{ann_file}: no 'images' list; this is not a COCO annotation file{_other_form(data)}")
        if 'annotations' not in data and not self.test_mode:
            raise DataError(f"{ann_file}: no 'annotations' list; without it the file serves in test_mode only"
                            f"{nearest('annotations', data)}")
        # A file that is evaluated against is parsed once only; ``coco`` takes it over.
        self._parsed = data if self.test_mode and data.get('annotations') else None
        self.cat_ids = self.cat2label = None
        self._index(data)
        self._listed = Records({**image, 'filename': self._file_name(image)} for image in data['images'])
        return self._listed

    def _index(self, data: dict) -> None:
        """Check what a COCO file holds and keep it as arrays by image."""
        self._rows = np.arange(len(data['images']))  # place in the arrays of each image that is kept
        self.img_ids = [self._image_id(image, i) for i, image in enumerate(data['images'])]
        check_unique(self.img_ids, f'{self.ann_file}: image id')
        self._sizes = np.array([self._image_size(i) for i in data['images']], dtype=np.float64).reshape(-1, 2)
        self._set_categories(data.get('categories'))
        self._set_annotations(data.get('annotations') or [])
        self._labelled_by = dict(self._label_of)

    def _match_annotations(self) -> None:
        """As 2.x's subclasses expect: ``self.coco``, ``self.cat2label`` and the returned list are what counts.

        Raises:
            DataError: an entry of a list of a subclass's own without 'id'.
        """
        if self._starts is None and not self._coco_is_given:
            return  # a subclass with files of another kind; it brings get_ann_info, get_cat_ids and _filter_imgs
        relabelled = not self._coco_is_given and self.cat2label != self._labelled_by
        if self.data_infos is self._listed and not (self._coco_is_given or relabelled):
            return
        for place, info in enumerate(self.data_infos):
            if 'id' not in info or 'filename' not in info:
                raise DataError(f'{self.ann_file}: entry {place} of what {type(self).__name__}.load_annotations '
                                "returned needs an 'id' and a 'filename'")
        ids = [info['id'] for info in self.data_infos]
        if self._coco_is_given or relabelled:
            content = self._coco.dataset if self._coco_is_given else self._read(self.ann_file)
            self._index({**content, 'images': list({info['id']: info for info in self.data_infos}.values())})
            self.annotation_facts = replace(self.annotation_facts, strays=())  # of images that the subclass left out
        place_of = {image_id: row for row, image_id in enumerate(self.img_ids)}
        unknown = next((i for i in ids if i not in place_of), None)
        if unknown is not None:
            raise DataError(f'{self.ann_file}: {type(self).__name__}.load_annotations returned image {unknown!r}, '
                            'which is not in the file')
        self._rows, self.img_ids = np.array([place_of[i] for i in ids], dtype=np.int64), ids

    def _read(self, ann_file: str) -> Any:
        """The parsed file; in ``test_mode``, which keeps it for ``coco``, polygons are float64 arrays."""
        try:
            data = read_json(ann_file, _with_packed_polygons if self.test_mode else None)
        except DataError as error:
            if 'not valid JSON' in str(error) and not str(ann_file).endswith('.json'):
                raise DataError(f"{error}; labels in another form than COCO's are converted by "
                                'tools/dataset_converters/to_coco.py') from None
            raise
        if isinstance(data, dict) and isinstance(data.get('images'), list):
            settle_values(data, ann_file)
        return data

    def _file_name(self, image: dict) -> str | None:
        """Where the file of an image entry lies under ``img_prefix``; None where the entry does not say."""
        return image.get('file_name')

    def _image_id(self, image: Any, place: int) -> Any:
        if not isinstance(image, dict) or 'id' not in image or not (image.get('filename') or self._file_name(image)):
            raise DataError(f"{self.ann_file}: images[{place}] needs an 'id' and a 'file_name'"
                            + (f"; it has {', '.join(map(str, image))}" if isinstance(image, dict) else ''))
        if not self.test_mode and not (image.get('width') and image.get('height')):
            raise DataError(f"{self.ann_file}: image {image['id']} has no 'width' and 'height'")
        return image['id']

    def _image_size(self, image: dict) -> tuple[float, float]:
        """(width, height), infinite where the entry does not say."""
        size = image.get('width') or math.inf, image.get('height') or math.inf
        if not all(isinstance(side, (int, float)) and side > 0 for side in size):
            raise DataError(f"{self.ann_file}: image {image['id']} has width {image.get('width')!r} and height "
                            f"{image.get('height')!r}; they are numbers of pixels")
        return size

    # -- categories

    @property
    def tells_categories(self) -> bool:
        """Whether the file has 'categories', so that ``cat_ids`` are its own."""
        return bool(self._file_categories)

    def set_category_ids(self, ids: Sequence[int]) -> None:
        """Take the category id of each class from elsewhere, for a file that does not tell them."""
        self.cat_ids = list(ids)
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}

    def _set_categories(self, categories: list[dict] | None) -> None:
        """``cat_ids``: the category id of each label; ``cat2label``: the way back, which a subclass may have set."""
        if self.cat2label is not None:
            self._file_categories = self._names_by_id(categories or [])
            self.cat_ids = list(self.cat2label) if self.cat_ids is None else self.cat_ids
            return
        if not categories:
            if not self.test_mode:
                raise DataError(f"{self.ann_file}: no 'categories'")
            self._file_categories = {}
            known = self.CLASSES == COCO_CLASSES
            self.cat_ids = list(COCO_CATEGORY_IDS if known else range(1, len(self._known_classes()) + 1))
        else:
            self._file_categories = self._names_by_id(categories)
            check_unique([c['id'] for c in categories], f'{self.ann_file}: category id')
            ids = {name: i for i, name in reversed(self._file_categories.items())}
            classes = self._known_classes()
            absent = [name for name in classes if name not in ids]
            if absent and (self.classes_given or len(absent) == len(classes)):
                raise DataError(self._absent_classes(absent, list(self._file_categories.values())))
            self.filter_report['missing_classes'] = absent
            # Unused numbers for names that the file lacks keep label and CLASSES in step.
            unused = iter(range(max(self._file_categories) + 1, max(self._file_categories) + 1 + len(absent)))
            self.cat_ids = [ids[name] if name in ids else next(unused) for name in classes]
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}

    @property
    def _label_of(self) -> dict[int, int]:
        """The label of each category id: ``cat2label`` of annotations that were indexed."""
        assert self.cat2label is not None  # ``_set_categories`` has run
        return self.cat2label

    def _names_by_id(self, categories: list[dict]) -> dict[int, str]:
        for place, category in enumerate(categories):
            known = category if isinstance(category, dict) else {}
            if 'name' not in known or not isinstance(known.get('id'), (int, float)):
                raise DataError(f"{self.ann_file}: categories[{place}] needs a 'name', and an 'id' that is a number: "
                                f'{category}')
        by_name: dict[str, int] = {}
        for category in categories:
            other = by_name.setdefault(category['name'], category['id'])
            if other != category['id'] and category['name'] in self._known_classes():
                raise DataError(f"{self.ann_file}: categories {other} and {category['id']} are both called "
                                f"'{category['name']}'")
        return {category['id']: category['name'] for category in categories}

    def _absent_classes(self, absent: list[str], known: list[str]) -> str:
        listed = ', '.join(known[:20]) + (', ...' if len(known) > 20 else '')
        if not self.classes_given:
            return (f'{self.ann_file} has none of the {len(self._known_classes())} classes of {type(self).__name__}; '
                    f'its categories are {listed}: give them as classes=(...)')
        return (f"class '{absent[0]}' is not among the categories of {self.ann_file} ({listed})"
                f'{nearest(absent[0], known)}')

    # -- annotations

    def _set_annotations(self, annotations: list[dict]) -> None:
        """Check all of them at once, then keep those that can be trained on as arrays sorted by image."""
        place = {image_id: row for row, image_id in enumerate(self.img_ids)}
        try:
            self._ann_ids = np.array([a['id'] for a in annotations])
            rows = np.array([place.get(a['image_id'], -1) for a in annotations], dtype=np.int64)
            categories = [a['category_id'] for a in annotations]
        except (KeyError, TypeError):
            self._raise_incomplete(annotations)
        check_unique(self._ann_ids.tolist(), f'{self.ann_file}: annotation id')
        self._check_categories(annotations, categories)
        boxes = self._boxes_of(annotations)
        areas = self._areas_of(annotations)  # NaN where there is none
        crowd = np.array([bool(a.get('iscrowd')) for a in annotations], dtype=bool)
        ignored = np.array([bool(a.get('ignore')) for a in annotations], dtype=bool)
        labels = np.array([self._label_of.get(c, -1) for c in categories], dtype=np.int64)
        degenerate = self._degenerate(boxes, areas, rows)

        if len(rows) and rows.max() < 0:
            listed = ', '.join(map(repr, self.img_ids[:3])) + (', …' if len(self.img_ids) > 3 else '')
            raise DataError(f"{self.ann_file}: none of the {len(rows)} annotations is of a listed image (annotation "
                            f"{annotations[0]['id']} is of image {annotations[0]['image_id']!r}; the images are "
                            f'{listed})')
        order = np.argsort(rows, kind='stable')
        self.filter_report['without_image'] = int((rows < 0).sum())
        strays = self._ann_ids[rows < 0].tolist()
        order = order[self.filter_report['without_image']:]
        self._starts = np.searchsorted(rows[order], np.arange(len(self.img_ids) + 1))
        self._ann_ids, self._crowd, self._labels = self._ann_ids[order], crowd[order], labels[order]
        self._categories = np.array(categories)[order]
        self._boxes = np.concatenate([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], axis=1)[order].astype(np.float32)
        self._usable = (~degenerate & ~ignored)[order] & (self._labels >= 0)
        self.filter_report['degenerate_boxes'] = self._ann_ids[degenerate[order]].tolist()
        self._order = order
        masks = mask_kinds(annotations, self._sizes[rows])
        self.annotation_facts = AnnotationFacts(
            self._ann_ids, rows[order], boxes[order], areas[order], self._crowd, ignored[order], degenerate[order],
            self._labels, self._categories, self._file_categories, masks[order], self._sizes, strays)
        # Training reads masks all the time, in many workers; evaluation has them in ``coco``.
        kept = self._usable & ~self._crowd & (masks[order] != NO_MASK)
        self._masks = None if self.test_mode else Records(
            [annotations[i].get('segmentation') if kept[k] else None
             for k, i in enumerate(order[start:end], start)] for start, end in zip(self._starts, self._starts[1:]))

    def _raise_incomplete(self, annotations: list[dict]) -> None:
        for i, annotation in enumerate(annotations):
            absent = [key for key in ('id', 'image_id', 'category_id')
                      if not isinstance(annotation, dict) or key not in annotation]
            if absent:
                name = f"annotation {annotation['id']}" if 'id' in annotation else f'annotations[{i}]'
                raise DataError(f"{self.ann_file}: {name} has no '{absent[0]}'")

    def _check_categories(self, annotations: list[dict], categories: list[Any]) -> None:
        known = self._file_categories
        if annotations and not known:
            raise DataError(f"{self.ann_file}: annotations, but no 'categories'")
        for annotation, category in zip(annotations, categories):
            if category not in known:
                listed = ', '.join(map(str, sorted(known)[:20]))
                raise DataError(f"{self.ann_file}: annotation {annotation['id']} is of category {category}, which is "
                                f"not among the file's categories ({listed})")

    def _boxes_of(self, annotations: list[dict]) -> np.ndarray:
        """(A, 4) float64 x, y, width, height, all finite."""
        if not annotations:
            return np.zeros((0, 4))
        try:
            boxes = np.array([a['bbox'] for a in annotations], dtype=np.float64)
            if boxes.shape != (len(annotations), 4):
                raise ValueError
        except (KeyError, TypeError, ValueError):
            for a in annotations:
                if not _is_box(a.get('bbox')):
                    raise DataError(f"{self.ann_file}: annotation {a['id']} has no 'bbox' of four numbers "
                                    f"(x, y, width, height): {a.get('bbox')}") from None
            raise
        wrong = np.flatnonzero(~np.isfinite(boxes).all(axis=1))
        if len(wrong):
            raise DataError(f'{self.ann_file}: annotation {self._ann_ids[wrong[0]]} has a box that is not finite: '
                            f'{boxes[wrong[0]].tolist()}' + (f' (and {len(wrong) - 1} more)' if wrong[1:].size else ''))
        return boxes

    def _areas_of(self, annotations: list[dict]) -> np.ndarray:
        """(A,) float64; NaN where an annotation does not tell."""
        areas = [a.get('area') for a in annotations]
        try:
            return np.array(areas, dtype=np.float64)
        except (TypeError, ValueError):
            for annotation, area in zip(annotations, areas):
                if not isinstance(area, (int, float, type(None))):
                    raise DataError(f"{self.ann_file}: annotation {annotation['id']} has 'area' {area!r}, which is no "
                                    'number') from None
            raise

    def _degenerate(self, boxes: np.ndarray, areas: np.ndarray, rows: np.ndarray) -> np.ndarray:
        """(A,) bool by 2.x's rule: less than a pixel wide or high, no area, or outside its image."""
        sizes = self._sizes[rows]
        inside = np.minimum(boxes[:, :2] + boxes[:, 2:], sizes) - np.maximum(boxes[:, :2], 0)
        return (boxes[:, 2:] < 1).any(axis=1) | (areas <= 0) | (inside <= 0).any(axis=1)

    def _span(self, index: int) -> slice:
        """Where the annotations of image ``index`` lie."""
        starts, row = self._image_starts('get_ann_info or get_cat_ids'), self._rows[index]
        return slice(starts[row], starts[row + 1])

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image.

        Returns:
            'bboxes' (N, 4) float32, 'labels' (N,) int64, 'bboxes_ignore' (M, 4) float32, 'masks' N COCO segmentations
            (None for an object without one),
            'seg_map' the name of the class map, 'names' N texts that tell errors the annotation.
        """
        span = self._span(index)
        objects = np.flatnonzero(self._usable[span] & ~self._crowd[span])
        return dict(bboxes=self._boxes[span][objects], labels=self._labels[span][objects],
                    bboxes_ignore=self._boxes[span][self._usable[span] & self._crowd[span]],
                    masks=self._segmentations(index, objects),
                    seg_map=self.data_infos[index]['filename'].rsplit('.', 1)[0] + self.seg_suffix,
                    names=[f'{self.ann_file}: annotation {i}' for i in self._ann_ids[span][objects]])

    def _segmentations(self, index: int, objects: np.ndarray) -> list[Any]:
        """COCO segmentations of some of an image's annotations, numbered ``objects`` (N,)."""
        if self._masks is not None:
            masks = self._masks[self._rows[index]]
            return [masks[i] for i in objects]
        annotations, known = self.coco.dataset['annotations'], self.annotation_facts.masks[self._span(index)] != NO_MASK
        masks = [annotations[i].get('segmentation') if has else None
                 for i, has in zip(self._order[self._span(index)][objects], known[objects])]
        return [[p.tolist() if isinstance(p, np.ndarray) else p for p in mask] if isinstance(mask, list) else mask
                for mask in masks]

    def segmentations_of(self, places: Sequence[int]) -> Iterator[Any]:
        """The COCO segmentations of single annotations, by their places in ``annotation_facts``, in rising order."""
        if self._masks is None:
            annotations = (self._parsed or self.coco.dataset)['annotations']
            yield from (annotations[self._order[place]].get('segmentation') for place in places)
            return
        starts = self._image_starts('segmentations_of')
        for place in places:
            row = int(self.annotation_facts.rows[place])
            yield self._masks[row][place - starts[row]]

    def get_cat_ids(self, index: int) -> list[int]:
        """Category ids of all annotations of an image."""
        return self._categories[self._span(index)].tolist()

    def labels_of(self, index: int) -> list[int]:
        """Labels of an image's annotations, among ``CLASSES``."""
        labels = self._label_of
        return [labels[category] for category in self.get_cat_ids(index) if category in labels]

    def _filter_imgs(self, min_size: int = 32) -> list[int]:
        """Numbers of the images to train on: large enough and, by ``filter_empty_gt``, with a wanted object."""
        self._image_starts('_filter_imgs')  # an error where there are none
        small = (self._sizes.min(axis=1) < min_size)[self._rows]
        reasons = {why: left_out[self._rows] for why, left_out in self._without_object().items()}
        left_out = small | (np.any(list(reasons.values()), axis=0) if self.filter_empty_gt else False)
        self.filter_report.update(too_small=int(small.sum()), **{why: int(of.sum()) for why, of in reasons.items()})
        return np.flatnonzero(~left_out).tolist()

    def _keep(self, numbers: Sequence[int]) -> None:
        super()._keep(numbers)
        if self._starts is not None:
            self._rows = self._rows[np.asarray(numbers, dtype=np.int64)]
            self.img_ids = [info['id'] for info in self.data_infos]

    def _image_starts(self, method: str) -> np.ndarray:
        """Where the annotations of each image begin, for ``method``."""
        if self._starts is None:
            raise DataError(f'{type(self).__name__}.load_annotations neither called super() nor set self.coco: then '
                            f"{method} must be the class's own too, or it derives from CustomDataset")
        return self._starts

    def _without_object(self) -> dict[str, np.ndarray]:
        """Which images ``filter_empty_gt`` leaves out, one bool each, by the reason; an image has one at most."""
        counts, wanted = np.diff(self._image_starts('_filter_imgs')), self._per_image(self._labels >= 0)
        return dict(empty=counts == 0, without_wanted_class=(counts > 0) & (wanted == 0))

    def _per_image(self, chosen: np.ndarray) -> np.ndarray:
        """How many of each image's annotations are ``chosen`` (A,) bool."""
        total = np.concatenate([[0], np.cumsum(chosen)])
        starts = self._image_starts('_filter_imgs')
        return total[starts[1:]] - total[starts[:-1]]

    @property
    def coco(self) -> Any:
        """The file as pycocotools' COCO, which evaluation asks for; made at the first use, or what a subclass set.

        In ``test_mode`` polygons are arrays.
        """
        if self._coco is None:
            from boxdet.datasets.api_wrappers import COCO  # pycocotools.coco brings matplotlib along
            self._coco = COCO()
            self._coco.dataset, self._parsed = self._parsed or self._read(self.ann_file), None
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco.createIndex()
        return self._coco

    @coco.setter
    def coco(self, coco: Any) -> None:
        self._coco, self._coco_is_given = coco, True

    def __getstate__(self) -> dict:
        # Workers that are spawned get no copy of what only evaluation reads and what can be read again.
        state = {**self.__dict__, '_parsed': None, '_coco': self._coco if self._coco_is_given else None}
        return state if self.test_mode else {**state, 'annotation_facts': None}


def check_unique(ids: Sequence[Any], what: str) -> None:
    """Raise DataError, naming the first, when one of ``ids``, called ``what``, is there twice."""
    if len(set(ids)) < len(ids):
        seen: set[Any] = set()
        twice = next(i for i in ids if i in seen or seen.add(i))  # type: ignore[func-returns-value]  # None is no
        raise DataError(f'{what} {twice} is used more than once')


def _other_form(data: Any) -> str:
    """What else the content of a JSON file looks like, and what to do with it; '' for what nobody knows."""
    entry = data[0] if isinstance(data, list) and data and isinstance(data[0], dict) else {}
    keys = set(data) if isinstance(data, dict) else set()
    form = 'labelme' if 'shapes' in keys else 'Label Studio' if _is_label_studio(set(entry)) else (
        'VIA' if '_via_img_metadata' in keys or any(
            isinstance(one, dict) and 'regions' in one for one in (data.values() if keys else ())) else '')
    if form:
        return f' but one of {form}: tools/dataset_converters/to_coco.py converts it'
    if {'image_id', 'category_id'} <= set(entry):
        return (' but a list of results' if 'score' in entry else ' but a list of annotations') + (
            ": they belong under 'annotations', beside 'images' and 'categories'")
    if {'filename', 'ann'} <= set(entry):
        return " but mmdetection's middle format, which type='CustomDataset' reads"
    return (' but GeoJSON, whose shapes are of a map and not of images: convert them to pixels of the images'
            if 'features' in keys else '')


def _is_label_studio(keys: set[str]) -> bool:
    """Whether a task with ``keys`` is one of its JSON or JSON-MIN."""
    return 'data' in keys and bool({'annotations', 'predictions'} & keys) or {'annotator', 'annotation_id'} <= keys


def _with_packed_polygons(entry: dict) -> dict:
    """``entry`` of a COCO file; lists of coordinates become float64 arrays, a fourth of their size in memory."""
    polygons = entry.get('segmentation')
    if isinstance(polygons, list):
        # What is no list of numbers stays as it is, for others to complain about.
        with contextlib.suppress(TypeError, OverflowError):
            entry['segmentation'] = [np.array(array('d', polygon)) for polygon in polygons]
    return entry


def _is_box(box: Any) -> bool:
    return isinstance(box, (list, tuple)) and len(box) == 4 and all(isinstance(v, (int, float)) for v in box)


@DATASETS.register_module()
class CocoByIdDataset(CocoDataset):
    """COCO for models whose label k is category id k + 1, ids that nothing was annotated with included (torchvision's).

    Arguments as CocoDataset.
    """
    CLASSES = COCO_CLASSES_BY_ID
