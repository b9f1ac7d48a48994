"""Data sets made of data sets, and ``build_dataset``."""
from __future__ import annotations

import bisect
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from boxdet.datasets.evaluated import Evaluated
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.pipelines.formatting import replace_ImageToTensor
from boxdet.datasets.samplers import images_of_labels
from boxdet.datasets.samples import take
from boxdet.errors import ConfigError, DataError
from boxdet.registry import DATASETS


def build_dataset(cfg: Any, default_args: Mapping[str, Any] | None = None) -> Any:
    """Build a data set from its config; a list of configs, or of ``ann_file``s in one, is joined by ConcatDataset.

    Args:
        cfg: a config, a list of them, or a data set, which is returned as it is. It is not changed.
        default_args: keywords for those data sets that leave them out, e.g. ``dict(test_mode=True)``.

    Raises:
        ConfigError: unknown type or keyword. DataError: annotations that cannot be used.
    """
    if isinstance(cfg, (list, tuple)):
        return ConcatDataset([build_dataset(c, default_args) for c in cfg])
    if not isinstance(cfg, Mapping):
        return cfg
    cfg = dict(cfg)
    kind = cfg.get('type')
    if kind in ('RepeatDataset', 'ClassBalancedDataset', 'MultiImageMixDataset', 'ConcatDataset'):
        key = 'datasets' if kind == 'ConcatDataset' else 'dataset'
        if key not in cfg:
            raise ConfigError(f"{kind} needs '{key}'")
        inner = cfg[key]
        cfg[key] = ([build_dataset(c, default_args) for c in inner] if kind == 'ConcatDataset'
                    else build_dataset(inner, default_args))
        return DATASETS.build(cfg)
    if isinstance(cfg.get('ann_file'), (list, tuple)):
        separate = cfg.pop('separate_eval', True)
        return ConcatDataset([build_dataset(part, default_args) for part in _parts(cfg)], separate)
    return DATASETS.build(cfg, **(default_args or {}))


def inference_settings(cfg: Any, samples_per_gpu: int | None = None) -> tuple[Any, int]:
    """``data.val`` or ``data.test`` as ``build_dataset`` takes it, and how many images at a time are asked for.

    2.x writes the loader's ``samples_per_gpu`` into it. For batches of several images ImageToTensor is replaced in the
    pipelines, as the guide says; also in those of the data sets inside a ConcatDataset or another wrapper.

    Args:
        cfg: a config, or a list of them; it is not changed.
        samples_per_gpu: takes the place of what the config says.
    """
    found: list[int] = []
    settings = _mapped(cfg, lambda one: found.append(one.pop('samples_per_gpu', 1)))
    size = samples_per_gpu or max(found, default=1)
    return (_mapped(settings, _for_batches) if size > 1 else settings), size


def loss_settings(val: Any, train: Any) -> Any:
    """``data.val`` as the validation of ``workflow`` reads it, for losses: with the training's pipeline.

    Args:
        val: a config, or a list of them; not changed.
        train: likewise. Of data sets inside wrappers, the first's pipeline is taken.

    Raises:
        ConfigError: the training mixes images, so that no pipeline of one image leads to what the model reads.
    """
    inner = train
    while isinstance(inner, (list, tuple)) or 'pipeline' not in inner and ('dataset' in inner or 'datasets' in inner):
        inner = inner[0] if isinstance(inner, (list, tuple)) else inner.get('dataset') or inner['datasets']
    if 'pipeline' not in inner or 'dataset' in inner:
        raise ConfigError(f"workflow ('val', n): data.train, a {inner.get('type')}, has no pipeline for one image "
                          'that the losses of validation could be computed by')

    def change(cfg: dict) -> None:
        cfg.pop('samples_per_gpu', None)
        if 'pipeline' in cfg:
            cfg['pipeline'] = inner['pipeline']
    return _mapped(val, change)


def _mapped(cfg: Any, change: Callable[[dict], Any]) -> Any:
    """A copy of a data set's config in which ``change`` was made to it, and to all configs of data sets inside."""
    if isinstance(cfg, (list, tuple)):
        return [_mapped(one, change) for one in cfg]
    if not isinstance(cfg, Mapping):
        return cfg
    cfg = {key: _mapped(value, change) if key in ('dataset', 'datasets') else value for key, value in cfg.items()}
    change(cfg)
    return cfg


def _for_batches(cfg: dict) -> None:
    if 'pipeline' in cfg:
        cfg['pipeline'] = replace_ImageToTensor(cfg['pipeline'])


def _parts(cfg: dict) -> list[dict]:
    """One config for each entry of ``ann_file``; other lists of the same keys are dealt along."""
    count = len(cfg['ann_file'])
    parts = []
    for i in range(count):
        part = dict(cfg)
        for key in ('ann_file', 'img_prefix', 'seg_prefix', 'proposal_file'):
            if isinstance(cfg.get(key), (list, tuple)):
                if len(cfg[key]) != count:
                    raise ConfigError(f"'{key}' lists {len(cfg[key])} paths, 'ann_file' {count}")
                part[key] = cfg[key][i]
        parts.append(part)
    return parts


class _Wrapper(Evaluated):
    """What any data set offers, asked of ``self._at(index)``: a data set and the place in it.

    A method that a subclass of a data set overrides is the one that is called, inside a wrapper as alone.
    """
    gives_compact = True

    def _at(self, index: int) -> tuple[Any, int]:
        raise TypeError(f'{type(self).__name__} does not say where image {index} is')

    def sample(self, index: int, compact: bool = False) -> dict:
        """The sample after the pipeline (see ``CustomDataset.sample``)."""
        dataset, place = self._at(index)
        return take(dataset, place, compact)

    def __getitem__(self, index: int) -> dict:
        return self.sample(index)

    def get_ann_info(self, index: int) -> dict:
        """Annotations of an image (see ``CustomDataset.get_ann_info``)."""
        dataset, place = self._at(index)
        return dataset.get_ann_info(place)

    def get_cat_ids(self, index: int) -> list[int]:
        """Categories of an image's annotations."""
        dataset, place = self._at(index)
        return dataset.get_cat_ids(place)

    def labels_of(self, index: int) -> list[int]:
        """Labels of an image's annotations."""
        dataset, place = self._at(index)
        return dataset.labels_of(place)

    def get_cat2imgs(self) -> dict[int, list[int]]:
        """Numbers of the images of each label, for ``ClassAwareSampler``."""
        return images_of_labels(self)

    def img_info(self, index: int) -> dict:
        """'filename', 'width', 'height', ... of an image."""
        dataset, place = self._at(index)
        return dataset.img_info(place)


class _OneDataset(_Wrapper):
    """A wrapper around ``self.dataset``, whose names and categories are its own."""

    def __init__(self, dataset: Any):
        self.dataset = build_dataset(dataset)
        self.CLASSES = self.dataset.CLASSES
        self.PALETTE = getattr(self.dataset, 'PALETTE', None)

    @property
    def test_mode(self) -> bool:
        """Whether annotations are left out."""
        return getattr(self.dataset, 'test_mode', False)

    @property
    def metainfo(self) -> dict[str, Any]:
        """CLASSES and PALETTE."""
        return self.dataset.metainfo

    @property
    def filter_report(self) -> dict[str, Any]:
        """What the wrapped data set left out."""
        return self.dataset.filter_report


@DATASETS.register_module()
class RepeatDataset(_OneDataset):
    """A data set ``times`` times over: a long epoch for a small set, so that workers seldom start anew.

    Args:
        dataset: config or data set.
        times: how often.
    """

    def __init__(self, dataset: Any, times: int):
        super().__init__(dataset)
        self.times = times
        if hasattr(self.dataset, 'flag'):
            self.flag = np.tile(self.dataset.flag, times)

    def _at(self, index: int) -> tuple[Any, int]:
        return self.dataset, index % len(self.dataset)

    def __len__(self) -> int:
        return self.times * len(self.dataset)


@DATASETS.register_module()
class ClassBalancedDataset(_OneDataset):
    """Images of rare classes repeated (LVIS, Gupta et al. 2019, appendix B.2, where the threshold is called t).

    An image is repeated ``ceil(max over its classes of max(1, sqrt(oversample_thr / f(class))))`` times, f being the
    share of images that show the class.

    Args:
        dataset: config or data set with ``get_cat_ids``.
        oversample_thr: classes on a smaller share of images than this are repeated.
        filter_empty_gt: images without objects count as one more class; False leaves them as they are.
    """

    def __init__(self, dataset: Any, oversample_thr: float, filter_empty_gt: bool = True):
        super().__init__(dataset)
        self.oversample_thr = oversample_thr
        self.filter_empty_gt = filter_empty_gt
        repeats = self._repeats()
        self.repeat_indices = np.repeat(np.arange(len(self.dataset)), repeats)
        if hasattr(self.dataset, 'flag'):
            self.flag = self.dataset.flag[self.repeat_indices]

    def _repeats(self) -> np.ndarray:
        classes = [set(self.dataset.get_cat_ids(i)) for i in range(len(self.dataset))]
        if not self.filter_empty_gt:
            classes = [found or {len(self.CLASSES)} for found in classes]
        images_with: dict[int, int] = defaultdict(int)
        for found in classes:
            for category in found:
                images_with[category] += 1
        factor = {category: max(1.0, math.sqrt(self.oversample_thr * len(classes) / count))
                  for category, count in images_with.items()}
        return np.array([math.ceil(max((factor[c] for c in found), default=1.0)) for found in classes], dtype=np.int64)

    def _at(self, index: int) -> tuple[Any, int]:
        return self.dataset, int(self.repeat_indices[index])

    def __len__(self) -> int:
        return len(self.repeat_indices)


@DATASETS.register_module()
class MultiImageMixDataset(_OneDataset):
    """Samples of a data set mixed with others of it (CopyPaste), then the rest of the pipeline.

    A transform that mixes has ``get_indexes(dataset)``: the number of the image or images to mix in. It finds their
    samples, after the inner data set's own pipeline, under ``mix_results``.

    Args:
        dataset: config or data set, whose pipeline loads and augments one image and does not end in Collect.
        pipeline: transform configs, applied to what ``dataset`` gives.
        skip_type_keys: types of ``pipeline`` to leave out.
        max_refetch: how often a transform that returns None is tried anew, other images being drawn.

    Raises:
        ConfigError: a transform of ``pipeline`` is no config. DataError: ``max_refetch`` was not enough.
    """

    def __init__(self, dataset: Any, pipeline: Sequence[Mapping[str, Any]],
                 skip_type_keys: Sequence[str] | None = None, max_refetch: int = 15):
        super().__init__(dataset)
        for transform in pipeline:
            if not isinstance(transform, Mapping):
                raise ConfigError(f'MultiImageMixDataset.pipeline holds configs with a type, not {transform!r}')
        self.max_refetch = max_refetch
        kept = Compose([t for t in pipeline if t.get('type') not in (skip_type_keys or ())]).transforms
        # From Normalize on it may be the device that finishes the image: that part stays together. What mixes
        # stands alone.
        names = [type(transform).__name__ for transform in kept]
        mixed = max((i + 1 for i, transform in enumerate(kept) if hasattr(transform, 'get_indexes')), default=0)
        cut = max(names.index('Normalize') if 'Normalize' in names else len(kept), mixed)
        self.steps = [*kept[:cut], Compose(kept[cut:])]
        if hasattr(self.dataset, 'flag'):
            self.flag = self.dataset.flag

    def _at(self, index: int) -> tuple[Any, int]:
        return self.dataset, index

    def __len__(self) -> int:
        return len(self.dataset)

    def sample(self, index: int, compact: bool = False) -> dict:
        """The mixed sample after the pipeline (see ``CustomDataset.sample``)."""
        results = self._plain(index)
        for step in self.steps:
            results = self._try(step, results, dict(compact=compact) if isinstance(step, Compose) else {})
        return results

    def _plain(self, index: int) -> dict:
        """A sample of its own of the inner data set."""
        return _copied(super().sample(index))

    def _try(self, step: Any, results: dict, options: dict[str, Any]) -> dict:
        for _ in range(self.max_refetch):
            given = _copied(results)
            if hasattr(step, 'get_indexes'):
                drawn = step.get_indexes(self.dataset)
                drawn = drawn if isinstance(drawn, Sequence) else [drawn]
                given['mix_results'] = [self._plain(i) for i in drawn]
            found = step(given, **options)
            if found is not None:
                found.pop('mix_results', None)
                return found
        raise DataError(f'MultiImageMixDataset: {type(step).__name__} dropped '
                        f"{results.get('ori_filename')} {self.max_refetch} times")


def _copied(sample: dict) -> dict:
    """The sample and its lists of keys; arrays are shared, transforms replace them."""
    return {key: list(value) if isinstance(value, list) else value for key, value in sample.items()}


@DATASETS.register_module()
class ConcatDataset(_Wrapper):
    """Several data sets of the same classes, one after the other.

    Args:
        datasets: configs or data sets.
        separate_eval: evaluate them one by one.

    Raises:
        ConfigError: none given, or data sets of different classes.
    """
    EVALUATION = 'ConcatEvaluator'

    def __init__(self, datasets: Sequence[Any], separate_eval: bool = True):
        self.datasets = [build_dataset(d) for d in datasets]
        if not self.datasets:
            raise ConfigError('ConcatDataset: no data sets given')
        self.separate_eval = separate_eval
        self.CLASSES = self.datasets[0].CLASSES
        self.PALETTE = getattr(self.datasets[0], 'PALETTE', None)
        for other in self.datasets[1:]:
            if other.CLASSES != self.CLASSES:
                raise ConfigError(f'ConcatDataset: data sets of different classes, {self.CLASSES} and {other.CLASSES}')
        self.cumulative_sizes = np.cumsum([len(d) for d in self.datasets]).tolist()
        if all(hasattr(d, 'flag') for d in self.datasets):
            self.flag = np.concatenate([d.flag for d in self.datasets])

    def _at(self, index: int) -> tuple[Any, int]:
        if not -len(self) <= index < len(self):
            raise IndexError(f'image {index} of {len(self)}')
        index %= len(self)
        which = bisect.bisect_right(self.cumulative_sizes, index)
        return self.datasets[which], index - (self.cumulative_sizes[which - 1] if which else 0)

    def __len__(self) -> int:
        return self.cumulative_sizes[-1]

    @property
    def test_mode(self) -> bool:
        """Whether annotations are left out."""
        return getattr(self.datasets[0], 'test_mode', False)

    @property
    def metainfo(self) -> dict[str, Any]:
        """CLASSES and PALETTE."""
        return self.datasets[0].metainfo

    @property
    def filter_report(self) -> dict[str, Any]:
        """What the data sets left out, counts and lists added up."""
        total: dict[str, Any] = {}
        for dataset in self.datasets:
            for key, value in dataset.filter_report.items():
                total[key] = total[key] + value if key in total else value
        return total
