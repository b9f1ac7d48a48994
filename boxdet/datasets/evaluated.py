"""mmdetection 2.x's ``dataset.evaluate`` and ``dataset.format_results``, for the scripts and subclasses that call them.

How results are measured is the business of evaluators. A data set names those that it offers, and builds them as it
builds its transforms: by their type, from a registry.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from boxdet.abilities import overrides
from boxdet.registry import EVALUATORS


class Evaluated:
    """What a data set of any kind offers for results of it.

    A subclass overrides a method as it did in 2.x: it is then asked by the training, by ``tools/test.py`` and by
    ``boxdet.evaluation``, with 2.x's results by class, and ``super()`` measures as without it.

    Attributes:
        EVALUATORS: the evaluators that measure it, by their registered types or as configs; the first one's first
            metric is the default. Empty: its data sets are evaluated one at a time.
        EVALUATION: the type of the evaluator that brings them together.
    """
    EVALUATORS: Sequence[str | Mapping[str, Any]] = ()
    EVALUATION = 'EvaluatorGroup'

    def evaluate(self, results: Iterable[Any], metric: Any = None, logger: Any = None,
                 **options: Any) -> dict[str, Any]:
        """Numbers by 2.x's keys: see ``boxdet.evaluation.evaluate``.

        Args:
            results: one an image, Instances or 2.x's lists.
            metric: one or several metrics, or types or configs of evaluators; None for the first that the data set has.
            logger: where the tables go: None prints them, 'silent' drops them.
            **options: settings of the evaluators: ``classwise``, ``iou_thrs``, ...

        Raises:
            ConfigError: unknown metric or option. DataError: no annotations, or results that do not fit the data set.
        """
        evaluator = EVALUATORS.build(dict(type=self.EVALUATION), dataset=self, metric=metric, options=options)
        return evaluator.run(self, results, logger)

    def format_results(self, results: Iterable[Any], *args: Any, **options: Any) -> tuple[dict[str, str], Any]:
        """Write the predictions as files that a server takes: see ``boxdet.evaluation.format_results``.

        Args:
            results: as in ``evaluate``.
            *args: the prefix.
            **options: ``jsonfile_prefix`` of COCO and LVIS, ``txtfile_prefix`` of Cityscapes.

        Returns:
            the paths by what they hold; the TemporaryDirectory that they are in where no prefix is given, else None.

        Raises:
            ConfigError: its evaluators write no files, or take no such option. DataError: results that do not fit the
                data set.
        """
        evaluator = EVALUATORS.build(dict(type=self.EVALUATION), dataset=self)
        return evaluator.write(self, results, *args, **options)


def own_method(dataset: Any, name: str) -> Callable | None:
    """The ``evaluate`` or ``format_results`` that a data set, or its class, brings itself; None for none."""
    return getattr(dataset, name) if overrides(dataset, name, Evaluated) else None
