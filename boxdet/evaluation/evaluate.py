"""The door of evaluation: from a data set and results to numbers or files, by the data set's own protocol.

A data set names its protocol in the class attribute ``PROTOCOL`` ('coco' where it has none). Each protocol is one
module of this folder, imported when it is first asked for, that offers

* ``METRICS``: the names that ``metric`` may hold; the first is the default.
* ``evaluate(dataset, results, metric, say, **options) -> dict``: ``results`` is a sequence of Instances, one an image,
  already checked against the data set; ``metric`` a list of names, already checked against ``METRICS``;
  ``say(text, level=logging.INFO)`` tells the user.
* ``metric_names(metric, **options) -> list``: the keys that ``evaluate`` will give, known before any result is.
* ``format_results(dataset, results, **options) -> dict`` of paths, where a server takes files. An option whose name
  ends in ``_prefix`` says where they go.
* ``require_annotations(dataset)``, where a data set without ground truth can be opened: raises DataError.
"""
from __future__ import annotations

import importlib
import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from types import ModuleType
from typing import Any, Union

import torch

from boxdet.datasets.evaluated import EVALUATION, own_method
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation import concat
from boxdet.evaluation.predictions import from_legacy
from boxdet.evaluation.stored_results import StoredResults, labels_of
from boxdet.registry import accepted_keywords
from boxdet.structures.instances import Instances

PROTOCOLS = dict(
    coco='boxdet.evaluation.coco_metrics',
    voc='boxdet.evaluation.voc',
    custom='boxdet.evaluation.voc',
    cityscapes='boxdet.evaluation.cityscapes',
    lvis='boxdet.evaluation.lvis',
)
# Keys of config.evaluation that steer the evaluation during training; the others are options of evaluate().
_TRAINING_ONLY = ('interval', 'start', 'by_epoch', 'save_best', 'rule', 'out_dir', 'tmpdir', 'gpu_collect', 'type',
                  'dynamic_intervals', 'progress', 'priority', 'greater_keys', 'less_keys', 'broadcast_bn_buffer')
# What the caller and the dispatcher hand over; the other keywords are a protocol's options.
_GIVEN = {'dataset', 'results', 'metric', 'say', 'logger', 'proposals'}

Logger = Union[None, str, logging.Logger]


def evaluate(dataset: Any, results: Iterable[Any], metric: str | Sequence[str] | None = None, logger: Logger = None,
             **options: Any) -> dict[str, Any]:
    """Evaluate ``results``, one for each image of ``dataset`` in its order.

    Args:
        dataset: of any protocol; one that brings its own ``evaluate(results, metric=..., logger=..., **options)``, as
            mmdetection 2.x's do, is asked itself, and gets 2.x's results by class (see ``as_2x``).
        results: Instances, or mmdetection 2.x's lists.
        metric: one or several names; None is the first of the data set's metrics.
        logger: where the tables go: None prints them, 'silent' drops them.
        **options: of the protocol: see ``evaluate`` of its module.

    Returns:
        numbers (and a few texts) by mmdetection 2.x's keys.

    Raises:
        ConfigError: unknown metric or option. DataError: no annotations, or results that do not fit the data set.
    """
    own = own_method(dataset, 'evaluate')
    if own is None:
        return measure(dataset, results, metric, logger, **options)
    return own(as_2x(dataset, results), **({} if metric is None else dict(metric=metric)), logger=logger, **options)


@EVALUATION.register_module()
def measure(dataset: Any, results: Iterable[Any], metric: str | Sequence[str] | None = None, logger: Logger = None,
            **options: Any) -> dict[str, Any]:
    """``evaluate`` by the protocol, whatever the data set brings: what an ``evaluate`` of its own calls by super()."""
    if hasattr(dataset, 'datasets'):
        return _evaluate_parts(dataset, list(results), metric, logger, options)
    module = protocol_module(dataset)
    metrics = _checked_metrics(module, metric)
    _check_names(options, _names_of(module.evaluate))
    _check_annotations(dataset, module)
    results = aligned(dataset, results)
    say = speaker(logger)
    if not any(len(labels) for labels in labels_of(results)):
        say(f'the results of all {len(results)} images are empty: every metric is 0', logging.WARNING)
    return module.evaluate(dataset, results, metrics, say, **options)


def format_results(dataset: Any, results: Iterable[Any], *args: Any, proposals: bool | None = None,
                   **options: Any) -> dict[str, str]:
    """Write the predictions as the files that the data set's server takes; needs no annotations.

    Args:
        results: as in ``evaluate``.
        proposals: whether an RPN made the results; None: found from them. Only COCO's files differ.
        **options: of the protocol: ``jsonfile_prefix`` for COCO, see ``format_results`` of its module.

    Returns:
        the paths by what they hold.

    Raises:
        ConfigError: the protocol has no files, or not this option. DataError: results that do not fit the data set, or
            a folder that cannot be written.
    """
    own = own_method(dataset, 'format_results')
    if own is None:
        return _write(dataset, results, *args, proposals=proposals, **options)
    found = own(as_2x(dataset, results), *args, **options)
    found = found[0] if isinstance(found, tuple) else found  # 2.x: the files, and the folder that is to be cleaned up
    if isinstance(found, Mapping):
        return dict(found)
    return {str(i): path for i, path in enumerate([found] if isinstance(found, str) else found or ())}


@EVALUATION.register_module()
def write_files(dataset: Any, results: Iterable[Any], *args: Any, **options: Any) -> tuple[dict[str, str], Any]:
    """``format_results`` by the protocol, into a temporary folder where no prefix is given; returns that too."""
    options = {name: value for name, value in options.items() if value is not None}
    folder = None
    if not args and not any(name.endswith('_prefix') for name in options):
        folder = tempfile.TemporaryDirectory(prefix='boxdet-results-')
        options = {**_prefixes(dataset, folder.name), **options}
    return _write(dataset, results, *args, **options), folder


def _write(dataset: Any, results: Iterable[Any], *args: Any, proposals: bool | None = None,
           **options: Any) -> dict[str, str]:
    if hasattr(dataset, 'datasets'):
        parts = enumerate(concat.split(dataset, aligned(dataset, results)))
        return {f'{i}_{kind}': path for i, (part, mine) in parts for kind, path in format_results(
            part, mine, *args, proposals=proposals, **concat.numbered(options, i)).items()}
    writer = _writer(dataset)
    _check_names(options, _names_of(writer), writing=True)
    if 'proposals' in accepted_keywords(writer)[0]:
        options['proposals'] = proposals
    return writer(dataset, aligned(dataset, results), *args, **options)


def metric_names(dataset: Any, metric: str | Sequence[str] | None = None, **options: Any) -> list[str] | None:
    """The keys that ``evaluate`` gives with these options, but those of single classes and texts.

    None: not known, for the data set (or class) brings an ``evaluate`` of its own. Options that do not change the names
    are left alone.

    Raises:
        ConfigError: unknown metric or item.
    """
    if own_method(dataset, 'evaluate'):
        return None
    if hasattr(dataset, 'datasets'):
        if not dataset.separate_eval:
            return metric_names(concat.Joined(dataset), metric, **options)
        names = [metric_names(part, metric, **options) for part in dataset.datasets]
        return None if None in names else [f'{i}_{name}' for i, ours in enumerate(names) for name in ours]
    module = protocol_module(dataset)
    known = accepted_keywords(module.metric_names)[0]
    return module.metric_names(_checked_metrics(module, metric), **{k: v for k, v in options.items() if k in known})


def protocol_of(dataset: Any) -> str:
    """The protocol of a data set, or of a data set's class.

    Raises:
        ConfigError: it names none, and is no COCO data set either (a wrapper, say).
    """
    named = getattr(dataset, 'PROTOCOL', None)
    # Asking for ``coco`` itself would read the annotation file.
    if named is None and not (isinstance(dataset, type) or hasattr(type(dataset), 'coco') or 'coco' in vars(dataset)):
        raise ConfigError(f'a {type(dataset).__name__} is no data set to evaluate: evaluate its data sets one at a '
                          'time')
    return named or 'coco'


def protocol_module(dataset: Any) -> ModuleType:
    """The module that evaluates ``dataset``."""
    return _module(protocol_of(dataset))


def option_names(dataset: Any, writing: bool = False) -> list[str] | None:
    """The options of ``evaluate`` for a data set or its class; ``writing``: those of ``format_results``.

    None: any, for the data set brings a method of its own that takes ``**kwargs``.
    """
    own = own_method(dataset, 'format_results' if writing else 'evaluate')
    if own is None and hasattr(dataset, 'datasets'):
        return option_names(dataset.datasets[0], writing)
    return _names_of(own or (_writer(dataset) if writing else protocol_module(dataset).evaluate))


def _names_of(function: Callable) -> list[str] | None:
    names, open_ended = accepted_keywords(function)
    return None if open_ended else sorted(names - _GIVEN)


def check_options(dataset: Any, options: Mapping[str, Any], where: str = '', writing: bool = False) -> None:
    """Raise ConfigError when the evaluation of ``dataset`` takes no such option.

    Args:
        where: what to call their place: 'evaluation', '--eval-options'.
        writing: they are for ``format_results``.
    """
    _check_names(options, option_names(dataset, writing), where, writing)


def _check_names(options: Mapping[str, Any], names: Sequence[str] | None, where: str = '',
                 writing: bool = False) -> None:
    for key in options if names is not None else ():
        if key not in names:
            what = 'writing result files' if writing else 'evaluation'
            raise ConfigError(f"{f'{where}.' if where else ''}{key}: {what} takes no '{key}' on this data set"
                              f"{nearest(key, names)} (it takes {', '.join(names)})")


def configured_options(dataset: Any, metric: str | Sequence[str], configured: Mapping[str, Any] | None,
                       given: Mapping[str, Any], where: str = '') -> dict[str, Any]:
    """The keywords for ``evaluate``: those of a config's ``evaluation`` section, then the ``given`` ones.

    Args:
        where: what to call the place of the given ones.

    Raises:
        ConfigError: an option or a metric that this data set does not take.
    """
    configured = {k: v for k, v in (configured or {}).items() if k not in (*_TRAINING_ONLY, 'metric')}
    check_options(dataset, configured, 'evaluation')
    check_options(dataset, given, where)
    options = {**configured, **given, 'metric': metric}
    metric_names(dataset, **options)
    return options


def writing_options(dataset: Any, given: Mapping[str, Any], folder: str, where: str = '') -> dict[str, Any]:
    """The keywords for ``format_results``: prefixes that are not given lead to ``folder``/results."""
    check_options(dataset, given, where, writing=True)
    return {**_prefixes(dataset, folder), **given}


def _prefixes(dataset: Any, folder: str) -> dict[str, str]:
    """The options that say where files go, each leading to ``folder``/results."""
    while hasattr(dataset, 'datasets'):
        dataset = dataset.datasets[0]
    names = option_names(dataset, writing=True)
    names = _names_of(_writer(dataset)) if names is None else names
    return {name: os.path.join(folder, 'results') for name in names if name.endswith('_prefix')}


def require_annotations(dataset: Any) -> None:
    """Raise DataError when ``dataset`` holds nothing to evaluate against, ConfigError when it cannot be evaluated."""
    if own_method(dataset, 'evaluate'):
        return
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            require_annotations(part)
        return
    _check_annotations(dataset, protocol_module(dataset))


def _check_annotations(dataset: Any, module: ModuleType) -> None:
    check = getattr(module, 'require_annotations', None)
    if check is not None:
        check(dataset)


def as_2x(dataset: Any, results: Iterable[Any]) -> list[Any]:
    """The results as mmdetection 2.x handed them to a data set: ``Instances.per_class`` of each image, of an RPN (N, 5).

    Those with keypoints, for which 2.x had no form, stay Instances.
    """
    return [_one_as_2x(result, len(dataset.CLASSES)) if isinstance(result, Instances) else result for result in results]


def _one_as_2x(result: Instances, num_classes: int) -> Any:
    if 'keypoints' in result:
        return result
    if 'labels' in result:
        return result.per_class(result.num_classes or num_classes)
    return _labelled(result).per_class(1)[0]


def aligned(dataset: Any, results: Iterable[Any]) -> Sequence[Instances]:
    """The results as Instances with labels, one for each image of ``dataset``.

    What comes one after the other (a generator, results that are stored already) is not held in memory as a whole.

    Raises:
        DataError: another number of results, or a class that the data set does not have, naming the image.
    """
    if isinstance(results, (list, tuple)):
        results = [_labelled(from_legacy(result)) for result in results]
    elif not isinstance(results, StoredResults) or any(labels is None for labels in labels_of(results)):
        results = StoredResults.of(_labelled(from_legacy(result)) for result in results)
    if len(results) != len(dataset):
        raise DataError(f'{len(results)} results for a data set of {len(dataset)} images: they belong to another '
                        'data set, or a run that did not end')
    classes = len(dataset.CLASSES)
    for index, labels in enumerate(labels_of(results)):
        largest = labels.max(initial=-1)
        if largest >= classes:
            name = dataset.img_ids[index] if hasattr(dataset, 'img_ids') else index
            raise DataError(f'image {name}: a detection of class {largest}, but the data set has {classes} classes '
                            f'(0 to {classes - 1}): the model was made for others')
    return results


def _labelled(result: Instances) -> Instances:
    return result if 'labels' in result else result.replace(labels=torch.zeros(len(result), dtype=torch.long))


def speaker(logger: Logger) -> Callable[..., None]:
    """``say(text, level=logging.INFO)``: to the logger, or printed, or ('silent') dropped."""
    def say(text: str, level: int = logging.INFO) -> None:
        if isinstance(logger, logging.Logger):
            logger.log(level, text)
        elif logger != 'silent':
            print(text)
    return say


def _evaluate_parts(dataset: Any, results: list[Any], metric: Any, logger: Logger,
                    options: Mapping[str, Any]) -> dict[str, Any]:
    """A ConcatDataset: each part under '0_bbox_mAP', '1_bbox_mAP', …, or without ``separate_eval`` all as one."""
    if not dataset.separate_eval:
        return evaluate(concat.Joined(dataset), results, metric, logger, **options)
    results, say, values = aligned(dataset, results), speaker(logger), {}
    for i, (part, mine) in enumerate(concat.split(dataset, results)):
        say(f"data set {i}: {len(part)} images of {getattr(part, 'ann_file', type(part).__name__)}")
        found = evaluate(part, mine, metric, logger, **concat.numbered(options, i))
        values.update({f'{i}_{key}': value for key, value in found.items()})
    return values


def _module(protocol: str) -> ModuleType:
    if protocol not in PROTOCOLS:
        raise ConfigError(f"unknown evaluation protocol '{protocol}'{nearest(protocol, PROTOCOLS)} "
                          f"(there are {', '.join(PROTOCOLS)})")
    return importlib.import_module(PROTOCOLS[protocol])


def _checked_metrics(module: ModuleType, metric: str | Sequence[str] | None) -> list[str]:
    """The names as a list without repetitions, all known to ``module``."""
    wanted = module.METRICS[0] if metric is None else metric
    metrics = [wanted] if isinstance(wanted, str) else list(dict.fromkeys(wanted))
    for name in metrics:
        if name not in module.METRICS:
            raise ConfigError(f"unknown metric '{name}'{nearest(name, module.METRICS)} (this data set has "
                              f"{', '.join(module.METRICS)})")
    return metrics


def _writer(dataset: Any) -> Callable[..., dict[str, str]]:
    writer = getattr(protocol_module(dataset), 'format_results', None)
    if writer is None:
        raise ConfigError(f"result files of protocol '{protocol_of(dataset)}' are not known: save them with --out")
    return writer
