"""CustomDataset: what every data set offers, read from mmdetection 2.x's middle format.

The middle format is a list, one entry an image::

    {'filename': 'a.jpg', 'width': 1280, 'height': 720,
     'ann': {'bboxes': (N, 4) xyxy, 'labels': (N,) from 0, 'bboxes_ignore': (M, 4)}}

in a ``.json`` file, or a ``.pkl`` file that holds nothing but data. A subclass overrides ``load_annotations`` and
``get_ann_info``. Letters: N objects of an image, M ignored boxes, P proposals.
"""
from __future__ import annotations

import os.path
from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from boxdet.datasets.evaluated import Evaluated
from boxdet.datasets.files import Records, check_file_client, read_data, read_names
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.samplers import images_of_labels
from boxdet.errors import ConfigError, DataError
from boxdet.registry import DATASETS
from boxdet.visualization.palette import class_colors

_MOST_REDRAWS = 1000


@DATASETS.register_module()
class CustomDataset(Evaluated):
    """Images with boxes.

    Args:
        ann_file: the annotations.
        pipeline: transform configs.
        classes: names to use, as a list or tuple or the path of a file with one name a line; ``CLASSES`` when None.
        data_root: what relative paths of the other arguments are relative to.
        img_prefix, seg_prefix: folders of the images and semantic maps.
        seg_suffix: ending of class map files.
        proposal_file: a list of (P, 5) proposals, one an image, as .pkl or .json.
        test_mode: load no annotations, leave no image out.
        filter_empty_gt: leave out images without objects in training.
        file_client_args: ``dict(backend='disk')``.
        min_size: leave out images with a side shorter than this in training.
        on_error: what an image (or annotation) that cannot be read does to a training: 'raise' ends it, 'skip' has the
            loader take another image, and say so. In testing it is always an error.
        max_errors: with 'skip', so many different ones may be skipped before the training ends.
        max_images: use so many images, evenly spread over the file: for a quick look. The log says so.
        evaluators: types or configs of evaluators in place of the class's ``EVALUATORS`` (see
            boxdet/evaluation/evaluator.py).

    Attributes:
        flag: (len,) uint8, 1 for images wider than high; batches are made of one kind.
        filter_report: number of images by what became of them, and what else was left out.

    Raises:
        DataError: annotations that cannot be used; the message names the file and the entry.
    """
    CLASSES: tuple[str, ...] | None = None
    PALETTE: Any = None
    EVALUATORS = ('MeanAPEvaluator',)
    gives_compact = True
    holder: type[Records] | type[list] = Records  # of ``data_infos``: one that workers share

    def __init__(self, ann_file: str, pipeline: Sequence[Any], classes: str | Sequence[str] | None = None,
                 data_root: str | None = None, img_prefix: str = '', seg_prefix: str | None = None,
                 seg_suffix: str = '.png', proposal_file: str | None = None, test_mode: bool = False,
                 filter_empty_gt: bool = True, file_client_args: dict | None = None, min_size: int = 32,
                 on_error: str = 'raise', max_errors: int = 100, max_images: int | None = None,
                 evaluators: Sequence[Any] | None = None):
        if evaluators is not None:
            self.EVALUATORS = tuple(evaluators)
        self.data_root = data_root
        self.ann_file, self.img_prefix = self._under_root(ann_file), self._under_root(img_prefix)
        self.seg_prefix, self.proposal_file = self._under_root(seg_prefix), self._under_root(proposal_file)
        self.seg_suffix = seg_suffix
        self.test_mode = test_mode
        self.filter_empty_gt = filter_empty_gt
        self.min_size = min_size
        if on_error not in ('raise', 'skip'):
            raise ConfigError(f"{type(self).__name__}.on_error is '{on_error}': it is 'raise' or 'skip'")
        self.on_error, self.max_errors = on_error, max_errors
        if max_images is not None and (not isinstance(max_images, int) or max_images < 1):
            raise ConfigError(f'{type(self).__name__}.max_images is a whole number, 1 at least, not {max_images!r}')
        self.max_images = max_images
        self.backend = check_file_client(file_client_args)
        self.classes_given = classes is not None
        self.CLASSES = self.get_classes(classes)
        self.filter_report: dict[str, Any] = {}

        self.data_infos = self.load_annotations(self.ann_file)
        self._match_annotations()
        self.proposals = self.load_proposals(self.proposal_file) if self.proposal_file else None
        self._leave_out_images()
        if not isinstance(self.data_infos, self.holder):
            self.data_infos = self.holder(self.data_infos)
        self._set_group_flag()
        self.pipeline = Compose(pipeline)

    @overload
    def _under_root(self, path: str) -> str: ...

    @overload
    def _under_root(self, path: str | None) -> str | None: ...

    def _under_root(self, path: str | None) -> str | None:
        if self.data_root is None or path is None or os.path.isabs(path) or '://' in path:
            return path
        return os.path.join(self.data_root, path)

    @classmethod
    def get_classes(cls, classes: str | Sequence[str] | None = None) -> tuple[str, ...] | None:
        """Names from a list, a tuple or a file; the class's own ``CLASSES`` when None.

        Raises:
            ConfigError: a string that is no file, or something else.
        """
        if classes is None:
            return cls.CLASSES
        if isinstance(classes, str):
            if not os.path.isfile(classes):
                raise ConfigError(f"classes='{classes}' is taken for the path of a file with one class name a line, "
                                  f"and there is no such file; for a single class write classes=('{classes}',)")
            return read_names(classes)
        if not isinstance(classes, Sequence) or not all(isinstance(name, str) for name in classes):
            raise ConfigError(f'classes is a list of names or the path of a file, not {classes!r}')
        if len(set(classes)) < len(classes):
            twice = sorted({name for name in classes if list(classes).count(name) > 1})
            raise ConfigError(f"classes names {', '.join(map(repr, twice))} more than once")
        return tuple(classes)

    # -- what a subclass overrides

    def load_annotations(self, ann_file: str) -> Sequence[dict]:
        """One dict an image, with 'filename', 'width' and 'height' at least."""
        infos = read_data(ann_file)
        if not isinstance(infos, list) or not all(isinstance(info, dict) and 'filename' in info for info in infos):
            raise DataError(f"{ann_file}: expected a list of dicts with 'filename', 'width', 'height' and 'ann'")
        return infos

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image: 'bboxes' (N, 4) float32, 'labels' (N,) int64, 'bboxes_ignore' (M, 4) float32, ..."""
        if 'ann' not in self.data_infos[index]:
            raise DataError(f"{self.ann_file}: {self.img_info(index)['filename']} has no 'ann'")
        annotations = dict(self.data_infos[index]['ann'])
        for key, dtype, width in (('bboxes', np.float32, 4), ('labels', np.int64, 0), ('bboxes_ignore', np.float32, 4)):
            if key != 'bboxes_ignore' or key in annotations:
                annotations[key] = self._array(index, key, annotations.get(key, ()), dtype, width)
        name, boxes, labels = self.img_info(index)['filename'], annotations['bboxes'], annotations['labels']
        if len(boxes) != len(labels):
            raise DataError(f'{self.ann_file}: {name} has {len(boxes)} boxes and {len(labels)} labels')
        if not np.isfinite(boxes).all():
            raise DataError(f'{self.ann_file}: {name} has a box that is not finite')
        backwards = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
        if len(backwards):
            raise DataError(f'{self.ann_file}: {name} has a box that ends before it begins, '
                            f'{boxes[backwards[0]].tolist()}: boxes are x1, y1, x2, y2')
        if len(labels) and self.CLASSES is not None and not 0 <= labels.min() <= labels.max() < len(self.CLASSES):
            wrong = labels.min() if labels.min() < 0 else labels.max()
            raise DataError(f'{self.ann_file}: {name} has label {wrong}, and the {len(self.CLASSES)} classes count '
                            'from 0')
        return annotations

    def _array(self, index: int, key: str, value: Any, dtype: Any, width: int) -> np.ndarray:
        """``value`` as (N, width), or (N,) without ``width``."""
        try:
            array = np.asarray(value, dtype=dtype)
            return array.reshape(-1, width) if width else array.reshape(-1)
        except (TypeError, ValueError):
            shape = f'rows of {width} numbers' if width else 'whole numbers'
            raise DataError(f"{self.ann_file}: '{key}' of {self.img_info(index)['filename']} are not {shape}") from None

    def get_cat_ids(self, index: int) -> list[int]:
        """Labels of an image's objects."""
        return self.get_ann_info(index)['labels'].tolist()

    def labels_of(self, index: int) -> list[int]:
        """Labels of an image's annotations, among ``CLASSES``."""
        return self.get_cat_ids(index)

    def get_cat2imgs(self) -> dict[int, list[int]]:
        """Numbers of the images of each label, for ``ClassAwareSampler``."""
        return images_of_labels(self)

    def _filter_imgs(self, min_size: int = 32) -> list[int]:
        """Numbers of the images to train on; counts the others in ``filter_report``."""
        keep, empty, small = [], 0, 0
        for i, info in enumerate(self.data_infos):
            if min(info['width'], info['height']) < min_size:
                small += 1
            elif self.filter_empty_gt and 'ann' in info and len(info['ann'].get('bboxes', ())) == 0:
                empty += 1
            else:
                keep.append(i)
        self.filter_report.update(empty=empty, too_small=small)
        return keep

    # -- opening

    def _match_annotations(self) -> None:
        """Bring annotations that are kept apart from ``data_infos`` into step with what ``load_annotations`` returned.

        A subclass may have read the file itself, or have changed the list that ``super()`` gave.
        """

    def load_proposals(self, proposal_file: str) -> Sequence[np.ndarray]:
        """Proposals of every image, in the order of ``load_annotations``."""
        proposals = read_data(proposal_file)
        if not isinstance(proposals, (list, tuple)) or len(proposals) != len(self.data_infos):
            count = len(proposals) if isinstance(proposals, (list, tuple)) else 'no list'
            raise DataError(f'{proposal_file}: proposals of {count} images, {self.ann_file} has {len(self.data_infos)}')
        return Records([np.asarray(p, dtype=np.float32) for p in proposals])

    def _leave_out_images(self) -> None:
        total = len(self.data_infos)
        if not self.test_mode:
            self._keep(self._filter_imgs(self.min_size))
        there = len(self.data_infos)
        if self.max_images is not None and self.max_images < there:
            self._keep([i * there // self.max_images for i in range(self.max_images)])
            self.filter_report['beyond_max_images'] = there - self.max_images
        self.filter_report = {'images': total, 'kept': len(self.data_infos), **self.filter_report}

    def _keep(self, numbers: Sequence[int]) -> None:
        """Leave out all images but those ``numbers``, in their order."""
        self.data_infos = [self.data_infos[i] for i in numbers]
        if self.proposals is not None:
            self.proposals = Records([self.proposals[i] for i in numbers])

    def _set_group_flag(self) -> None:
        if self.test_mode:
            self.flag = np.zeros(len(self), dtype=np.uint8)
            return
        self.flag = np.array([info['width'] > info['height'] for info in self.data_infos], dtype=np.uint8)

    # -- what others use

    @property
    def has_annotations(self) -> bool:
        """Whether there is something to evaluate against."""
        return len(self) > 0 and 'ann' in self.data_infos[0]

    @property
    def metainfo(self) -> dict[str, Any]:
        """CLASSES and PALETTE."""
        return dict(CLASSES=self.CLASSES, PALETTE=self.get_palette())

    def _known_classes(self) -> tuple[str, ...]:
        """``CLASSES`` of a data set that cannot do without.

        Raises:
            ConfigError: there are none.
        """
        if self.CLASSES is None:
            raise ConfigError(f"{type(self).__name__} has no class names of its own: give classes=('…', …)")
        return self.CLASSES

    def get_palette(self) -> list[tuple[int, int, int]]:
        """One RGB colour a class."""
        return class_colors(self.PALETTE, len(self.CLASSES or ()))

    def img_info(self, index: int) -> dict:
        """'filename', 'width', 'height', ... of an image."""
        return self.data_infos[index]

    def __len__(self) -> int:
        return len(self.data_infos)

    def __getitem__(self, index: int) -> dict:
        """The sample after the pipeline, its image normalised."""
        return self.sample(index)

    def sample(self, index: int, compact: bool = False) -> dict:
        """The sample after the pipeline; another image's when the pipeline drops it in training.

        Args:
            index: number of the image.
            compact: for ``datasets.collate``: the image may stay uint8 (see ``pipelines.compose``).

        Raises:
            DataError: the pipeline drops whatever it is given.
        """
        prepare = self.prepare_test_img if self.test_mode else self.prepare_train_img
        # A subclass written for 2.x overrides these without 'compact'.
        ours = CustomDataset.prepare_test_img, CustomDataset.prepare_train_img
        # A bound method has it.
        options = dict(compact=True) if compact and prepare.__func__ in ours else {}  # type: ignore[attr-defined]
        if self.test_mode:
            return self.prepare_test_img(index, **options)
        for _ in range(_MOST_REDRAWS):
            sample = self.prepare_train_img(index, **options)
            if sample is not None:
                return sample
            index = self._rand_another(index)
        raise DataError(f'{self.ann_file}: the pipeline dropped {_MOST_REDRAWS} images one after the other')

    def _rand_another(self, index: int) -> int:
        """Another image of the same group."""
        return int(np.random.choice(np.flatnonzero(self.flag == self.flag[index])))

    def prepare_train_img(self, index: int, compact: bool = False) -> dict | None:
        """The sample with annotations, or None when the pipeline drops it."""
        results = dict(img_info=self.img_info(index), ann_info=self.get_ann_info(index))
        return self._run_pipeline(results, index, compact)

    def prepare_test_img(self, index: int, compact: bool = False) -> dict:
        """The sample without annotations.

        Raises:
            DataError: the pipeline drops it.
        """
        info = self.img_info(index)
        sample = self._run_pipeline(dict(img_info=info), index, compact)
        if sample is None:
            raise DataError(f"{self.ann_file}: the test pipeline drops image {index} ('{info.get('filename')}')")
        return sample

    def _run_pipeline(self, results: dict, index: int, compact: bool) -> dict | None:
        if self.proposals is not None:
            results['proposals'] = self.proposals[index]
        self.pre_pipeline(results)
        return self.pipeline(results, compact=compact)

    def pre_pipeline(self, results: dict) -> None:
        """Add what transforms need beside the annotations."""
        results.update(img_prefix=self.img_prefix, seg_prefix=self.seg_prefix, proposal_file=self.proposal_file,
                       bbox_fields=[], mask_fields=[], seg_fields=[])

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self)} images of '{self.ann_file}', {len(self.CLASSES or ())} classes)"
