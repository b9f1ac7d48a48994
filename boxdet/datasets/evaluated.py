"""mmdetection 2.x's ``dataset.evaluate`` and ``dataset.format_results``, for the scripts and subclasses that call them.

How results are measured is the business of the floor above. Its functions join ``EVALUATION``, and are found there as
the types of a config are: by name, in a registry that imports their module on the first lookup.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from boxdet.registry import Registry

EVALUATION = Registry('evaluation', ('boxdet.evaluation.evaluate',))


class Evaluated:
    """What a data set of any kind offers for results of it.

    A subclass overrides a method as it did in 2.x: it is then asked by the training, by ``tools/test.py`` and by
    ``boxdet.evaluation``, with 2.x's results by class, and ``super()`` measures as without it.
    """

    def evaluate(self, results: Iterable[Any], metric: str | Sequence[str] | None = None, logger: Any = None,
                 **options: Any) -> dict[str, Any]:
        """Numbers by 2.x's keys: see ``boxdet.evaluation.evaluate``.

        Args:
            results: one an image, Instances or 2.x's lists.
            metric: one or several names; None for the first that the data set has.
            logger: where the tables go: None prints them, 'silent' drops them.
            **options: of the protocol: ``classwise``, ``iou_thrs``, ...

        Raises:
            ConfigError: unknown metric or option. DataError: no annotations, or results that do not fit the data set.
        """
        return EVALUATION.get('measure')(self, results, metric, logger, **options)

    def format_results(self, results: Iterable[Any], *args: Any, **options: Any) -> tuple[dict[str, str], Any]:
        """Write the predictions as files that a server takes: see ``boxdet.evaluation.format_results``.

        Args:
            results: as in ``evaluate``.
            *args, **options: ``jsonfile_prefix`` of COCO and LVIS, ``txtfile_prefix`` of Cityscapes.

        Returns:
            the paths by what they hold; the TemporaryDirectory that they are in where no prefix is given, else None.

        Raises:
            ConfigError: the protocol has no files, or not this option. DataError: results that do not fit the data set.
        """
        return EVALUATION.get('write_files')(self, results, *args, **options)


def own_method(dataset: Any, name: str) -> Callable | None:
    """The ``evaluate`` or ``format_results`` that a data set, or its class, brings itself; None for none."""
    method = getattr(dataset, name, None)
    return None if getattr(method, '__func__', method) is vars(Evaluated)[name] else method
