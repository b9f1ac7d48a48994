"""A ConcatDataset for evaluation: its parts with their results, or all of them as one data set.

Images and categories have other ids in each file, so that one data set of several COCO files is numbered anew.
"""
from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from boxdet.datasets.contracts import Dataset
from boxdet.datasets.wrappers import ConcatDataset
from boxdet.errors import ConfigError
from boxdet.registry import Cfg

if TYPE_CHECKING:
    from pycocotools.coco import COCO

T = TypeVar('T')


def split(dataset: ConcatDataset, results: Sequence[T]) -> Iterator[tuple[Dataset, list[T]]]:
    """Each part with the results of its images."""
    start = 0
    for part in dataset.datasets:
        yield part, [results[i] for i in range(start, start + len(part))]
        start += len(part)


def numbered(options: Cfg, index: int) -> Cfg:
    """The options of part ``index``: what it writes gets a name of its own, PREFIX_0, PREFIX_1."""
    return {key: f'{value}_{index}' if key.endswith('_prefix') and value is not None else value
            for key, value in options.items()}


class Joined:
    """All parts as one data set; what is not asked of the whole is asked of the first part.

    Args:
        dataset: a ConcatDataset whose parts are evaluated in one way.

    Raises:
        ConfigError: parts of VOC that are measured by several rules.
    """

    def __init__(self, dataset: ConcatDataset):
        self._dataset, parts = dataset, dataset.datasets
        if len({getattr(part, 'ap_rule', 'area') for part in parts}) > 1:
            raise ConfigError('separate_eval=False: VOC 2007 and 2012 compute mAP by other rules; give year=2007 or '
                              'year=2012 for both, or separate_eval=True')
        self.CLASSES = dataset.CLASSES
        self.ann_file = ' + '.join(str(getattr(part, 'ann_file', '?')) for part in parts)

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        return getattr(self._dataset.datasets[0], name)

    def __len__(self) -> int:
        return len(self._dataset)

    def img_info(self, index: int) -> dict:
        """'filename', 'width', 'height', ... of an image."""
        return self._dataset.img_info(index)

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image."""
        return self._dataset.get_ann_info(index)

    @property
    def has_annotations(self) -> bool:
        """Whether every part has something to evaluate against."""
        return all(part.has_annotations for part in self._dataset.datasets)


class JoinedCoco(Joined):
    """As Joined, of COCO files: images and categories of all of them with running numbers."""

    def __init__(self, dataset: ConcatDataset):
        super().__init__(dataset)
        self.img_ids = list(range(1, len(dataset) + 1))
        self.cat_ids = list(range(1, len(self.CLASSES) + 1))
        self.cat2label = {category: label for label, category in enumerate(self.cat_ids)}
        self._coco: COCO | None = None

    @property
    def coco(self) -> COCO:
        """Images and annotations of all parts as pycocotools' COCO, with running numbers."""
        if self._coco is None:
            from pycocotools.coco import COCO
            self._coco = COCO()
            self._coco.dataset = self._merged()
            with contextlib.redirect_stdout(io.StringIO()):
                self._coco.createIndex()
        return self._coco

    def _merged(self) -> dict[str, list[dict]]:
        images: list[dict] = []
        annotations: list[dict] = []
        for part in self._dataset.datasets:
            for image_id in part.img_ids:
                number = self.img_ids[len(images)]
                images.append({**part.coco.imgs[image_id], 'id': number})
                annotations += [{**a, 'image_id': number, 'category_id': self.cat_ids[part.cat2label[a['category_id']]]}
                                for a in part.coco.imgToAnns.get(image_id, ()) if a['category_id'] in part.cat2label]
        annotations = [{**a, 'id': i} for i, a in enumerate(annotations, 1)]
        categories = [dict(id=category, name=name) for category, name in zip(self.cat_ids, self.CLASSES)]
        return dict(images=images, annotations=annotations, categories=categories)
