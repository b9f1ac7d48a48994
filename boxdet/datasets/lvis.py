"""LVISV05Dataset and LVISV1Dataset: LVIS (Gupta et al. 2019), 1,230 and 1,203 classes over COCO's images.

LVIS is federated: an image was searched for some classes only. Its entry names classes that are known to be absent
(``neg_category_ids``) and classes of which not every object is marked (``not_exhaustive_category_ids``); evaluation
goes by them (boxdet/evaluation/lvis.py). Training sees objects as in COCO.
"""
from __future__ import annotations

from urllib.parse import urlsplit

from boxdet.datasets.coco import CocoDataset, check_unique
from boxdet.errors import DataError
from boxdet.registry import DATASETS

_NAME_LENGTH = len('000000391895.jpg')


@DATASETS.register_module()
class LVISV05Dataset(CocoDataset):
    """LVIS v0.5; arguments and errors as CocoDataset.

    Without ``classes``, ``CLASSES`` are the categories of the annotation file in its order, as 2.x takes their labels:
    the file is where the names come from, so one of fewer classes can be used too. ``img_prefix`` is the folder of the
    images. ``COCO_val2014_000000391895.jpg``, as v0.5 names some, is 000000391895.jpg of COCO 2017.
    """
    CLASSES = None
    EVALUATORS = ('LVISEvaluator',)

    def _set_categories(self, categories: list[dict] | None) -> None:
        if self.CLASSES is None:
            if not categories:
                raise DataError(f"{self.ann_file}: no 'categories', from which {type(self).__name__} takes its "
                                'classes; give classes=(...)')
            self.CLASSES = tuple(category['name'] for category in categories)
            check_unique(self.CLASSES, f'{self.ann_file}: category name')
        super()._set_categories(categories)

    def _file_name(self, image: dict) -> str | None:
        name = image.get('file_name')
        return name[-_NAME_LENGTH:] if name is not None and name.startswith('COCO') else name


LVISDataset = LVISV05Dataset
DATASETS.register_module(name='LVISDataset', module=LVISDataset)


@DATASETS.register_module()
class LVISV1Dataset(LVISV05Dataset):
    """LVIS v1; as LVISV05Dataset, but an image lies where its ``coco_url`` says.

    http://images.cocodataset.org/train2017/000000391895.jpg is train2017/000000391895.jpg under ``img_prefix``, for v1
    deals COCO's images out anew among its splits. An image without a ``coco_url`` goes by its ``file_name``.
    """

    def _file_name(self, image: dict) -> str | None:
        url = image.get('coco_url')
        return urlsplit(url).path.lstrip('/') if url else super()._file_name(image)
