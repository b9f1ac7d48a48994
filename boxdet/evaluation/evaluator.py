"""What an evaluator is: it takes the results of a data set, image by image, and gives numbers.

One is written by anybody, registered by name, and named in a config::

    @EVALUATORS.register_module()
    class CountError(Evaluator):
        def __init__(self, tolerance=0, **kwargs):
            super().__init__(**kwargs)
            self.tolerance = tolerance

        def reset(self, dataset, logger=None):
            self.dataset, self.errors = dataset, []

        def process(self, indices, results):
            for index, result in zip(indices, results):
                difference = abs(len(result) - len(self.dataset.get_ann_info(index)['labels']))
                self.errors.append(max(difference - self.tolerance, 0))

        def evaluate(self):
            return dict(count_error=sum(self.errors) / len(self.errors))

    evaluation = dict(metric=['bbox', 'CountError'])                        # with its usual settings
    evaluation = dict(metric=['bbox', dict(type='CountError', tolerance=2)])
    data = dict(test=dict(type='CocoDataset', evaluators=['CocoEvaluator', 'CountError'], ...))

A data set class names the evaluators that it offers in ``EVALUATORS``; boxdet.evaluation.evaluate finds them.
"""
from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from boxdet.datasets.contracts import Dataset
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation.predictions import Result, from_legacy
from boxdet.evaluation.stored_results import StoredResults, labels_of
from boxdet.structures.instances import Instances

if TYPE_CHECKING:
    from boxdet.datasets.wrappers import ConcatDataset
    from boxdet.evaluation.concat import Joined

Logger = None | str | logging.Logger
Say = Callable[..., None]  # say(text, level=logging.INFO)
Metrics = dict[str, float | str]  # by mmdetection 2.x's keys; a few are texts
D = TypeVar('D', bound=Dataset)


class Evaluator(Generic[D]):
    """Keeps the results of all images, packed; a subclass measures them in ``evaluate``, or overrides all three.

    The constructor takes settings only, so that a config can be checked before there is a data set. One object may
    evaluate many times: ``reset``, ``process`` as often as results come, ``evaluate``.

    Args:
        metric: which of ``METRICS`` to measure; None is the first. Only given to a class that has several.

    Attributes:
        METRICS: names that a config's ``metric`` may hold for this evaluator; an evaluator that measures one thing
            needs none, it is asked for by its type.
        NEEDS: the field of the results ('labels', 'masks' or 'keypoints') that each metric is about, where it is not
            the boxes alone. A model without it is refused before it predicts anything.
        FILES: the option of ``format_results`` that says where the files go; None where it writes none.
        FILES_NEED: as ``NEEDS``, of the files.
        joined: makes one data set of a ConcatDataset, for ``separate_eval=False``; None where that is not possible.

    Raises:
        ConfigError: unknown metric, or a setting out of range.
    """
    METRICS: tuple[str, ...] = ()
    metrics: Sequence[str] = ()  # also of a subclass with a constructor of its own
    NEEDS: Mapping[str, str] = {}
    FILES: str | None = None
    FILES_NEED: str | None = None
    joined: Callable[[ConcatDataset], Joined] | None = None

    def __init__(self, metric: str | Sequence[str] | None = None):
        wanted = self.METRICS[:1] if metric is None else metric
        self.metrics = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
        for name in self.metrics:
            if name not in self.METRICS:
                raise ConfigError(f"unknown metric '{name}'{nearest(name, self.METRICS)} ({type(self).__name__} has "
                                  f"{', '.join(self.METRICS) or 'none to choose from'})")

    def metric_names(self) -> list[str] | None:
        """The keys that ``evaluate`` will give, but those of single classes and texts; None where that is not known."""
        return None

    def needs(self) -> dict[str, str]:
        """The fields that the results must have, by the metric that needs them."""
        return {name: self.NEEDS[name] for name in self.metrics if name in self.NEEDS}

    def check(self, dataset: D) -> None:
        """Raise UserError before the hours of inference where ``evaluate`` would raise it after them."""

    def run(self, dataset: D, results: Iterable[Result], logger: Logger = None) -> Metrics:
        """Evaluate results that are complete: ``check``, ``reset``, ``process``, ``evaluate``.

        Args:
            dataset: what they are of.
            results: one an image of ``dataset``, in its order; Instances or mmdetection 2.x's lists.
            logger: where the tables go: None prints them, 'silent' drops them.
        """
        self.check(dataset)
        results = aligned(dataset, results)
        self.reset(dataset, logger)
        self.process(range(len(results)), results)
        return self.evaluate()

    def check_files(self, dataset: D) -> None:
        """Raise UserError before the hours of inference where ``format_results`` would raise it after them."""

    def reset(self, dataset: D, logger: Logger = None) -> None:
        """Begin with ``dataset``; forget what was processed before."""
        self.dataset, self.logger, self.say = dataset, logger, speaker(logger)
        self.results: Sequence[Instances] = StoredResults(len(dataset))

    def process(self, indices: Sequence[int], results: Sequence[Instances]) -> None:
        """Take some results, in the pixels of the original images, on the CPU.

        Args:
            indices: places in the data set.
            results: one Instances for each of them; may lie on disk, and are read one at a time.
        """
        if len(results) == len(self.results) and isinstance(results, (StoredResults, list)) \
                and list(indices) == list(range(len(results))):
            self.results = results  # all of them: no need to pack them again
            return
        if not isinstance(self.results, StoredResults):
            self.results = StoredResults.of(self.results)
        for index, result in zip(indices, results):
            self.results.put(index, result)

    def evaluate(self) -> Metrics:
        """The numbers (and a few texts) of what was processed, by their keys."""
        raise TypeError(f'{type(self).__name__} does not say what it measures: it needs an evaluate() of its own')

    def format_results(self, dataset: D, results: Sequence[Instances]) -> dict[str, str]:
        """Write files that a server takes; the paths by what they hold. Called where ``FILES`` names its option."""
        raise ConfigError(f'{type(self).__name__} writes no result files: save the results with --out')


def speaker(logger: Logger) -> Say:
    """``say(text, level=logging.INFO)``: to the logger, or printed (None), or dropped ('silent')."""
    def say(text: str, level: int = logging.INFO) -> None:
        if isinstance(logger, logging.Logger):
            logger.log(level, text)
        elif logger != 'silent':
            print(text)
    return say


def aligned(dataset: Dataset, results: Iterable[Result]) -> Sequence[Instances]:
    """The results as Instances with labels, one for each image of ``dataset``.

    What comes one after the other (a generator, results that are stored already) is not held in memory as a whole.

    Raises:
        DataError: another number of results, or a class that the data set does not have, naming the image.
    """
    instances: Sequence[Instances]
    if isinstance(results, (list, tuple)):
        instances = [labelled(from_legacy(result)) for result in results]
    elif isinstance(results, StoredResults) and all(labels is not None for labels in results.labels()):
        instances = results
    else:
        instances = StoredResults.of(labelled(from_legacy(result)) for result in results)
    if len(instances) != len(dataset):
        raise DataError(f'{len(instances)} results for a data set of {len(dataset)} images: they belong to another '
                        'data set, or a run that did not end')
    classes = len(dataset.CLASSES)
    for index, labels in enumerate(labels_of(instances)):
        largest = labels.max(initial=-1)
        if largest >= classes:
            name = dataset.img_ids[index] if hasattr(dataset, 'img_ids') else index
            raise DataError(f'image {name}: a detection of class {largest}, but the data set has {classes} classes '
                            f'(0 to {classes - 1}): the model was made for others')
    return instances


def labelled(result: Instances) -> Instances:
    """``result`` with labels: all 0 where it has none, as those of an RPN."""
    return result if 'labels' in result else result.replace(labels=torch.zeros(len(result), dtype=torch.long))
