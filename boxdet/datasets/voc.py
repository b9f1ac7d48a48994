"""XMLDataset and VOCDataset: one XML file an image, as Pascal VOC has them.

::

    VOC2007/ImageSets/Main/trainval.txt     one image a line: the file name without its ending
    VOC2007/Annotations/000005.xml          <size>, and an <object> with <name>, <difficult>, <bndbox> for each
    VOC2007/JPEGImages/000005.jpg

Every file is read once, when the data set is opened, and kept as flat arrays, which workers share. The rules for odd
content (docs/broken_input.md lists them with the messages):

* Coordinates are VOC's: whole numbers that count pixels from 1. As in mmdetection 2.x fractions are cut off and 1 is
  subtracted. ``zero_based=True`` leaves both out, for files of tools that count from 0.
* ``<difficult>1`` moves an object to ``bboxes_ignore``: it is neither learned nor counted.
* Names that are not among the classes are left out. When one resembles a class that no file has, that is an error.
* A missing or zero ``<size>`` is read from the header of the image.
* An object without name or box, or with a coordinate that is no finite number, is an error that names file and object.
  A box less than a pixel wide or high is left out and counted.

Letters: A objects of all images, N objects of an image, M ignored ones.
"""
from __future__ import annotations

import difflib
import os
import warnings
import xml.etree.ElementTree as ElementTree
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from boxdet.datasets.class_names import VOC_CLASSES
from boxdet.datasets.custom import CustomDataset
from boxdet.datasets.files import image_size, read_bytes, read_names
from boxdet.errors import ConfigError, DataError
from boxdet.registry import DATASETS

_CORNERS = ('xmin', 'ymin', 'xmax', 'ymax')
_ENDINGS = ('.jpg', '.jpeg', '.png', '.bmp', '.tif', '.tiff', '.webp')
_RULES = {2007: '11points', 2012: 'area'}


class VOCFile(NamedTuple):
    """What an annotation file says.

    Args:
        size: (width, height), None where the file does not tell.
        names: N. boxes: (N, 4) float64 xyxy as written. difficult: (N,) bool.
        folder: that of the image, as the file names it; '' where it does not.
    """
    size: tuple[int, int] | None
    names: list[str]
    boxes: np.ndarray
    difficult: np.ndarray
    folder: str = ''


class _PlainTree(ElementTree.TreeBuilder):
    """Refuses document types, and with them entities that grow or lead to other files; no annotation has one."""

    def doctype(self, name: str, public: str | None, system: str | None) -> None:
        raise DataError('it declares a document type (<!DOCTYPE …>), which annotation files need not and may not')


def read_voc_file(path: str) -> VOCFile:
    """Parse an annotation file.

    Raises:
        DataError: missing, empty, no XML, or an object that cannot be right; names file and object.
    """
    content = read_bytes(path).tobytes()
    try:
        root = ElementTree.fromstring(content, ElementTree.XMLParser(target=_PlainTree()))
    except DataError as error:
        raise DataError(f'{path}: {error}') from None
    except (ElementTree.ParseError, ValueError, LookupError) as error:
        raise DataError(f'{path}: not valid XML ({error}){_encoding_hint(content)}') from None
    if root.tag != 'annotation':
        raise DataError(f'{path}: the outermost element is <{root.tag}>, not <annotation>')
    objects = root.findall('object')
    names, boxes, difficult = [], np.zeros((len(objects), 4)), np.zeros(len(objects), dtype=bool)
    for k, entry in enumerate(objects):
        where = f'{path}: object {k + 1}'
        names.append((entry.findtext('name') or '').strip())
        if not names[-1]:
            raise DataError(f'{where} has no <name>')
        boxes[k] = _box(entry, f'{where} ({names[-1]})')
        difficult[k] = _number(entry.findtext('difficult') or '0', f'{where} ({names[-1]})', 'difficult') != 0
    return VOCFile(_size(root, path), names, boxes, difficult, (root.findtext('folder') or '').strip())


def _encoding_hint(content: bytes) -> str:
    try:
        content.decode('utf-8')
    except UnicodeDecodeError:
        if b'encoding' not in content[:100]:
            return '; it is not UTF-8: save it so, or declare its encoding (<?xml version="1.0" encoding="latin-1"?>)'
    return ''


def _size(root: Any, path: str) -> tuple[int, int] | None:
    size = root.find('size')
    if size is None:
        return None
    width, height = (_number(size.findtext(key) or '0', path, f'size/{key}') for key in ('width', 'height'))
    return (int(width), int(height)) if width >= 1 and height >= 1 else None


def _box(entry: Any, where: str) -> list[float]:
    box = entry.find('bndbox')
    if box is None:
        raise DataError(f'{where} has no <bndbox>')
    texts = [box.findtext(key) for key in _CORNERS]
    for key, text in zip(_CORNERS, texts):
        if not text or not text.strip():
            raise DataError(f'{where} has no <{key}>')
    return [_number(text, where, key) for key, text in zip(_CORNERS, texts)]


def _number(text: str, where: str, key: str) -> float:
    try:
        value = float(text)
    except ValueError:
        raise DataError(f"{where}: <{key}> is '{text.strip()}', no number") from None
    if not np.isfinite(value):
        raise DataError(f'{where}: <{key}> is {text.strip()}, which is not finite')
    return value


@DATASETS.register_module()
class XMLDataset(CustomDataset):
    """Boxes from XML files in VOC's form, for classes of one's own.

    Args:
        ann_file: a text file with one image a line, without folder and ending.
        img_prefix: the folder that holds ``img_subdir`` and ``ann_subdir``.
        min_size: objects narrower or lower than so many pixels are ignored; for training only.
        img_subdir, ann_subdir: folders of images and of annotations.
        zero_based: the files count pixels from 0 and may have fractions: take coordinates as they are.
        **options: CustomDataset's others; images with a side below 32 pixels are left out in training.

    In ``test_mode`` the annotations' folder may be missing: the images can be predicted, but not evaluated.

    Raises:
        ConfigError: no classes, or ``min_size`` in ``test_mode``. DataError: see the top of this file.
    """

    _listed: list[dict] | None = None  # what our ``load_annotations`` returned

    def __init__(self, ann_file: str, pipeline: Sequence[Any], min_size: int | None = None,
                 img_subdir: str = 'JPEGImages', ann_subdir: str = 'Annotations', zero_based: bool = False,
                 **options: Any):
        if min_size and options.get('test_mode'):
            raise ConfigError(f'{type(self).__name__}.min_size is for training; test_mode counts every object')
        self.smallest_object = min_size or 0
        self.img_subdir, self.ann_subdir, self.zero_based = img_subdir, ann_subdir, zero_based
        super().__init__(ann_file, pipeline, **options)

    def load_annotations(self, ann_file: str) -> list[dict]:
        """Read the list and every annotation file; one dict an image: 'id', 'filename', 'width', 'height'."""
        self._known_classes()  # an error where there are none
        self.img_ids = list(read_names(ann_file))
        if not self.img_ids:
            raise DataError(f'{ann_file}: lists no image')
        twice = [name for name, count in Counter(self.img_ids).items() if count > 1]
        if twice:
            raise DataError(f"{ann_file}: image '{twice[0]}' is listed more than once")
        self._listed = self._image_entries([file.size for file in self._index()])
        return self._listed

    def _index(self) -> list[VOCFile]:
        """Read the annotation file of each of ``img_ids`` and keep the objects as arrays by image."""
        self._rows = np.arange(len(self.img_ids))
        files = self._read_files()
        self._set_objects(files)
        return files

    def _match_annotations(self) -> None:
        """As 2.x's subclasses expect: the 'id' of an entry of ``data_infos`` names the annotation file.

        Raises:
            DataError: an entry of a list of a subclass's own without 'id'.
        """
        if self.data_infos is self._listed:
            return
        without = next((place for place, info in enumerate(self.data_infos) if 'id' not in info), None)
        if without is not None:
            raise DataError(f"{self.ann_file}: entry {without} of what {type(self).__name__}.load_annotations returned "
                            "needs an 'id', the name of its annotation file without .xml")
        self.img_ids = [info['id'] for info in self.data_infos]
        self._index()

    # -- files

    def _read_files(self) -> list[VOCFile]:
        folder = os.path.join(self.img_prefix, self.ann_subdir)
        self._annotated = not self.test_mode or os.path.isdir(folder)
        if not self._annotated:
            return [VOCFile(None, [], np.zeros((0, 4)), np.zeros(0, dtype=bool))] * len(self.img_ids)
        return [self._read(name, os.path.join(folder, f'{name}.xml')) for name in self.img_ids]

    def _read(self, name: str, path: str) -> VOCFile:
        try:
            return read_voc_file(path)
        except DataError as error:
            if name.split()[-1] in ('-1', '0', '1') and len(name.split()) > 1 and not os.path.exists(path):
                raise DataError(f"{self.ann_file}: '{name}' is a line of one class's list (image and a mark); "
                                'use the list of all images, train.txt or the like') from None
            raise error

    def _image_entries(self, sizes: Iterable[tuple[int, int] | None]) -> list[dict]:
        there = _by_stem(os.path.join(self.img_prefix, self.img_subdir))
        entries = []
        for name, size in zip(self.img_ids, sizes):
            filename = '/'.join(filter(None, (self.img_subdir, there.get(name, f'{name}.jpg'))))
            width, height = size or image_size(os.path.join(self.img_prefix, filename))
            entries.append(dict(id=name, filename=filename, width=width, height=height))
        return entries

    # -- objects

    def _set_objects(self, files: Sequence[VOCFile]) -> None:
        """Keep the objects of wanted classes as arrays, in the order of the images."""
        counts = [len(file.names) for file in files]
        owners = np.repeat(np.arange(len(files)), counts)
        names = [name for file in files for name in file.names]
        self._check_names(names)
        label_of = {name: label for label, name in enumerate(self._known_classes())}
        labels = np.array([label_of.get(name, -1) for name in names], dtype=np.int64)
        boxes = np.concatenate([file.boxes for file in files]).reshape(-1, 4)
        if not self.zero_based:
            self._warn_of_zeros(boxes, owners)
            boxes = np.trunc(boxes) - 1
        sides = boxes[:, 2:] - boxes[:, :2]
        degenerate = (sides < 1).any(axis=1)
        places = np.arange(len(names)) - np.repeat(np.cumsum([0] + counts[:-1]), counts)
        self.filter_report['degenerate_boxes'] = [f'{self.img_ids[owners[i]]}.xml object {places[i] + 1}'
                                                  for i in np.flatnonzero(degenerate & (labels >= 0))]
        self._objects_in_file = np.array(counts, dtype=np.int64)
        kept = (labels >= 0) & ~degenerate
        difficult = np.concatenate([file.difficult for file in files])
        self._boxes, self._labels = boxes[kept].astype(np.float32), labels[kept]
        self._ignored = (difficult | (sides < self.smallest_object).any(axis=1))[kept]
        self._starts = np.searchsorted(owners[kept], np.arange(len(files) + 1))

    def _check_names(self, names: Sequence[str]) -> None:
        """Classes that no file has, and names that are no class: wrong when the one seems to mean the other."""
        found, classes = Counter(names), self._known_classes()
        others = {name: count for name, count in found.items() if name not in classes}
        absent = [name for name in classes if name not in found]
        self.filter_report.update(objects_of_other_classes=sum(others.values()), missing_classes=absent)
        if not others:
            return
        listed = ', '.join(list(others)[:20]) + (', …' if len(others) > 20 else '')
        if len(absent) == len(classes):
            raise DataError(f'{self.ann_file}: no object is of any of the {len(classes)} classes; the names are '
                            f'{listed}: give them as classes=(…)')
        by_lower = {other.lower(): other for other in others}
        for name in absent:
            # A cat is no misspelt car: only names that differ in a letter or two.
            meant = difflib.get_close_matches(name.lower(), by_lower, n=1, cutoff=0.8)
            if meant:
                raise DataError(f"{self.ann_file}: no object is of class '{name}'; did you mean "
                                f"'{by_lower[meant[0]]}'?")
        if not self.classes_given:
            warnings.warn(f'{self.ann_file}: {sum(others.values())} objects have names that are no class of '
                          f'{type(self).__name__} and are left out: {listed}', stacklevel=2)

    def _warn_of_zeros(self, boxes: np.ndarray, owners: np.ndarray) -> None:
        low = np.flatnonzero((boxes[:, :2] < 1).any(axis=1))
        if len(low):
            warnings.warn(f'{self.ann_file}: {len(low)} boxes begin at 0, though VOC counts pixels from 1 '
                          f"({self.img_ids[owners[low[0]]]}.xml is the first); 1 is subtracted all the same: give "
                          'zero_based=True for files that count from 0', stacklevel=2)

    @property
    def has_annotations(self) -> bool:
        """Whether there are annotation files."""
        return self._annotated

    def _span(self, index: int) -> slice:
        row = self._rows[index]
        return slice(self._starts[row], self._starts[row + 1])

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image.

        Returns:
            'bboxes' (N, 4) float32, 'labels' (N,) int64, 'bboxes_ignore' (M, 4) float32, 'labels_ignore' (M,) int64.
        """
        span = self._span(index)
        boxes, labels, ignored = self._boxes[span], self._labels[span], self._ignored[span]
        return dict(bboxes=boxes[~ignored], labels=labels[~ignored],
                    bboxes_ignore=boxes[ignored], labels_ignore=labels[ignored])

    def get_cat_ids(self, index: int) -> list[int]:
        """Labels of all objects of an image."""
        return self._labels[self._span(index)].tolist()

    def _filter_imgs(self, min_size: int = 32) -> list[int]:
        """Numbers of the images to train on: large enough and, by ``filter_empty_gt``, with an object of a class."""
        wanted = np.diff(self._starts) > 0
        empty, other = self._objects_in_file == 0, (self._objects_in_file > 0) & ~wanted
        small = np.array([min(info['width'], info['height']) < min_size for info in self.data_infos], dtype=bool)
        self.filter_report.update(too_small=int(small.sum()), empty=int(empty.sum()),
                                  without_wanted_class=int(other.sum()))
        return np.flatnonzero(~(small | (~wanted if self.filter_empty_gt else False))).tolist()

    def _keep(self, numbers: Sequence[int]) -> None:
        super()._keep(numbers)
        self._rows = self._rows[np.asarray(numbers, dtype=np.int64)]
        self.img_ids = [self.img_ids[i] for i in numbers]


def _by_stem(folder: str) -> dict[str, str]:
    """The image files of a folder by their names without ending; .jpg goes first where there are several."""
    found: dict[str, str] = {}
    if not os.path.isdir(folder):
        return found
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        stem, ending = os.path.splitext(entry.name)
        if ending == '.jpg' or ending.lower() in _ENDINGS and stem not in found:
            found[stem] = entry.name
    return found


@DATASETS.register_module()
class VOCDataset(XMLDataset):
    """Pascal VOC's 20 classes, or others given as ``classes``, evaluated by VOC's rules.

    Several years are joined by lists: ``ann_file=['…/VOC2007/…', '…/VOC2012/…'], img_prefix=[…]``.

    Args:
        ann_file, pipeline, **options: as XMLDataset.
        year: 2007 evaluates with 11 points of the curve, 2012 with the area under it; None finds it in the paths, which
            then have 'VOC2007' or 'VOC2012' in them.

    Raises:
        ConfigError: no year in the paths, or another one. Otherwise as XMLDataset.
    """
    CLASSES = VOC_CLASSES
    PALETTE = 'voc'
    EVALUATORS = ('VOCEvaluator',)

    def __init__(self, ann_file: str, pipeline: Sequence[Any], year: int | None = None, **options: Any):
        super().__init__(ann_file, pipeline, **options)
        paths = f'{self.img_prefix} {self.ann_file}'
        year_of = year or next((y for y in _RULES if f'VOC{y}' in paths), None)
        if year_of not in _RULES:
            asked = f'year={year}' if year else f"neither 'VOC2007' nor 'VOC2012' is in '{self.img_prefix}'"
            raise ConfigError(f'VOCDataset: {asked}: give year=2007 (mAP by 11 points) or year=2012 (mAP by the area)')
        self.year = year_of

    @property
    def ap_rule(self) -> str:
        """How ``boxdet.evaluation.voc`` computes average precision: '11points' or 'area'."""
        return _RULES[self.year]
