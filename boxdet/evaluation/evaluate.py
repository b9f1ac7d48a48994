"""The door of evaluation: from a data set and results to numbers or files, by the evaluators that it names.

A data set class (or its config's ``evaluators``) names evaluators in ``EVALUATORS``; they are found in the registry of
that name. A ``metric`` is one of their ``METRICS``, or the type of any registered evaluator, or a config of one; an
evaluator without ``METRICS`` that the data set names is always asked::

    evaluate(dataset, results, 'bbox')
    evaluate(dataset, results, ['bbox', 'CountError', dict(type='CountError', tolerance=2)])
"""
from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, TypeVar, cast

from boxdet.datasets.contracts import Dataset
from boxdet.datasets.evaluated import own_method
from boxdet.datasets.wrappers import ConcatDataset
from boxdet.errors import ConfigError, nearest
from boxdet.evaluation import concat
from boxdet.evaluation.evaluator import Evaluator, Logger, Metrics, aligned, labelled
from boxdet.evaluation.predictions import Result
from boxdet.evaluation.stored_results import labels_of
from boxdet.registry import EVALUATORS, Cfg, accepted_keywords
from boxdet.structures.instances import Instances

# Keys of config.evaluation that steer the evaluation during training; the others are options of evaluate().
_TRAINING_ONLY = ('interval', 'start', 'by_epoch', 'save_best', 'rule', 'out_dir', 'tmpdir', 'gpu_collect', 'type',
                  'dynamic_intervals', 'progress', 'priority', 'greater_keys', 'less_keys', 'broadcast_bn_buffer')
# What the caller and the dispatcher hand over; the other keywords are options.
_GIVEN = {'self', 'dataset', 'results', 'metric', 'logger', 'proposals'}

T = TypeVar('T')
_Folder = tempfile.TemporaryDirectory
Metric = None | str | Cfg | Sequence[str | Cfg]
Offered = Sequence[str | Cfg] | None  # types or configs of evaluators; None: those of the data set
Settings = dict[str, Any]  # of an evaluator's constructor
AnyDataset = Dataset | type[Dataset]


def evaluate(dataset: Dataset, results: Iterable[Result], metric: Metric = None, logger: Logger = None,
             **options: Any) -> Metrics:
    """Evaluate ``results``, one for each image of ``dataset`` in its order.

    Args:
        dataset: one that brings its own ``evaluate(results, metric=..., logger=..., **options)``, as mmdetection 2.x's
            do, is asked itself, and gets 2.x's results by class (see ``as_2x``).
        results: Instances, or mmdetection 2.x's lists.
        metric: one or several, see the top of this file; None is the first of the data set's metrics.
        logger: where the tables go: None prints them, 'silent' drops them.
        **options: settings of the evaluators: ``classwise``, ``iou_thrs``, ...

    Returns:
        numbers (and a few texts) by mmdetection 2.x's keys.

    Raises:
        ConfigError: unknown metric or option. DataError: no annotations, or results that do not fit the data set.
    """
    return build_evaluator(dataset, metric, **options).run(dataset, results, logger)


def build_evaluator(dataset: AnyDataset, metric: Metric = None, offered: Offered = None,
                    **options: Any) -> Evaluator:
    """The evaluator of ``dataset``, or of a data set's class, for these metrics.

    Args:
        dataset: a data set, or a class of data sets.
        metric: see the top of this file.
        offered: in place of the ``EVALUATORS`` of the data set.
        **options: settings of the evaluators.

    Raises:
        ConfigError: unknown metric or option, or a data set that cannot be evaluated.
    """
    if own_method(dataset, 'evaluate'):
        return OwnEvaluator(dataset, metric, options)
    kind = EVALUATORS.get(getattr(dataset, 'EVALUATION', 'EvaluatorGroup'))
    return kind(dataset, metric, options) if offered is None else kind(dataset, metric, options, offered)


@EVALUATORS.register_module()
class EvaluatorGroup(Evaluator):
    """The evaluators that some metrics ask for, as one.

    A key that two of them give is the first one's; the other's gets its type in front, as ``CountError_mAP``.

    Args:
        dataset: a data set, or a class of data sets.
        metric: see the top of this file.
        options: settings; each evaluator gets those that it takes.
        offered: in place of the ``EVALUATORS`` of the data set.

    Raises:
        ConfigError: unknown metric or option, or a data set that offers none.
    """

    def __init__(self, dataset: AnyDataset, metric: Metric = None, options: Cfg | None = None,
                 offered: Offered = None):
        chosen = _chosen(dataset, metric, offered)
        _check_names(options or {}, _option_names([cls for cls, _ in chosen], dataset, offered))
        self.evaluators: list[Evaluator] = []
        for cls, settings in chosen:
            names = accepted_keywords(cls)[0]
            mine = {key: value for key, value in (options or {}).items() if key in names}
            self.evaluators.append(EVALUATORS.build({**mine, **settings, 'type': cls}))
        self._detections = 0

    def metric_names(self) -> list[str] | None:
        """The keys that ``evaluate`` will give; None where an evaluator does not tell."""
        names = _all_known(evaluator.metric_names() for evaluator in self.evaluators)
        return None if names is None else list(self._joined([dict.fromkeys(own) for own in names]))

    def needs(self) -> dict[str, str]:
        """The fields that the results must have, by the metric that needs them."""
        return {name: field for evaluator in self.evaluators for name, field in evaluator.needs().items()}

    def check(self, dataset: Dataset) -> None:
        """Raise UserError before the hours of inference where an evaluator would raise it after them."""
        for evaluator in self.evaluators:
            evaluator.check(dataset)

    def reset(self, dataset: Dataset, logger: Logger = None) -> None:
        """Begin with ``dataset``; forget what was processed before."""
        super().reset(dataset, logger)
        self._detections = 0
        for evaluator in self.evaluators:
            evaluator.reset(dataset, logger)

    def process(self, indices: Sequence[int], results: Sequence[Instances]) -> None:
        """Hand some results to each evaluator."""
        self._detections += sum(len(labels) for labels in labels_of(results))
        for evaluator in self.evaluators:
            evaluator.process(indices, results)

    def evaluate(self) -> Metrics:
        """What the evaluators give, in their order."""
        if not self._detections:
            self.say(f'the results of all {len(self.dataset)} images are empty: every metric is 0', logging.WARNING)
        return self._joined([evaluator.evaluate() for evaluator in self.evaluators])

    def _joined(self, parts: Sequence[Mapping[str, T]]) -> dict[str, T]:
        values: dict[str, T] = {}
        for evaluator, found in zip(self.evaluators, parts):
            for key, value in found.items():
                values[f'{type(evaluator).__name__}_{key}' if key in values else key] = value
        return values

    def write(self, dataset: Dataset, results: Iterable[Result], *args: str,
              **options: Any) -> tuple[dict[str, str], _Folder | None]:
        """``format_results``, into a temporary folder where no prefix is given; returns that too."""
        return _write_somewhere(dataset, results, *args, **options)


@EVALUATORS.register_module()
class ConcatEvaluator(Evaluator[ConcatDataset]):
    """A ConcatDataset: each part under '0_bbox_mAP', '1_bbox_mAP', …, or without ``separate_eval`` all as one."""

    def __init__(self, dataset: ConcatDataset, metric: Metric = None, options: Cfg | None = None):
        self.whole = None if dataset.separate_eval else joined(dataset)
        options = options or {}
        self.parts = [build_evaluator(self.whole, metric, **options)] if self.whole is not None else [
            build_evaluator(part, metric, **concat.numbered(options, i)) for i, part in enumerate(dataset.datasets)]

    def metric_names(self) -> list[str] | None:
        """The keys that ``evaluate`` will give; None where a part does not tell."""
        names = _all_known(part.metric_names() for part in self.parts)
        if names is None:
            return None
        return names[0] if self.whole is not None else [f'{i}_{n}' for i, ours in enumerate(names) for n in ours]

    def needs(self) -> dict[str, str]:
        """The fields that the results must have, by the metric that needs them."""
        return {name: field for part in self.parts for name, field in part.needs().items()}

    def check(self, dataset: ConcatDataset) -> None:
        """Raise UserError before the hours of inference where a part would raise it after them."""
        # Also where all are measured as one, each part must have annotations.
        for evaluator, part in zip(self.parts * (len(dataset.datasets) if self.whole is not None else 1),
                                   dataset.datasets):
            evaluator.check(part)

    def evaluate(self) -> Metrics:
        """What the parts give."""
        if self.whole is not None:
            return self.parts[0].run(self.whole, self.results, self.logger)
        values = {}
        for i, (evaluator, (part, mine)) in enumerate(zip(self.parts, concat.split(self.dataset, self.results))):
            self.say(f"data set {i}: {len(part)} images of {getattr(part, 'ann_file', type(part).__name__)}")
            values.update({f'{i}_{key}': value for key, value in evaluator.run(part, mine, self.logger).items()})
        return values

    def write(self, dataset: ConcatDataset, results: Iterable[Result], *args: str,
              **options: Any) -> tuple[dict[str, str], _Folder | None]:
        """``format_results``, into a temporary folder where no prefix is given; returns that too."""
        return _write_somewhere(dataset, results, *args, **options)


def _all_known(names: Iterable[list[str] | None]) -> list[list[str]] | None:
    """``names`` as a list; None where one of them is."""
    found = list(names)
    known = [own for own in found if own is not None]
    return known if len(known) == len(found) else None


class OwnEvaluator(Evaluator):
    """A data set that brings an ``evaluate`` of its own, as mmdetection 2.x's do: it is asked, with 2.x's results."""

    def __init__(self, dataset: AnyDataset, metric: Metric = None, options: Cfg | None = None):
        self.options = {**({} if metric is None else dict(metric=metric)), **(options or {})}

    def run(self, dataset: Dataset, results: Iterable[Result], logger: Logger = None) -> Metrics:
        """What the data set's ``evaluate`` returns."""
        own = own_method(dataset, 'evaluate')
        assert own is not None  # else it would have another evaluator
        return own(as_2x(dataset, results), logger=logger, **self.options)

    def evaluate(self) -> Metrics:
        """As ``run``, of what was processed."""
        return self.run(self.dataset, self.results, self.logger)


def joined(dataset: ConcatDataset) -> concat.Joined:
    """The parts of a ConcatDataset as one data set.

    Raises:
        ConfigError: parts that are evaluated in several ways, in one that cannot put them together, or by themselves.
    """
    parts = dataset.datasets
    ways = {tuple(map(str, getattr(part, 'EVALUATORS', ()))) for part in parts}
    makers = [cls.joined for cls, _ in _offered(parts[0], None)] if len(ways) == 1 and ways != {()} else [None]
    maker = None if None in makers else makers[0]
    if maker is None or any(own_method(part, 'evaluate') for part in parts):
        kinds = ', '.join(dict.fromkeys(type(part).__name__ for part in parts))
        raise ConfigError(f'separate_eval=False: {kinds} cannot be evaluated as one; use separate_eval=True')
    return maker(dataset)


# --- which evaluators ---

def _offered(dataset: AnyDataset, offered: Offered) -> list[tuple[type[Evaluator], Settings]]:
    """The evaluators that a data set, or its class, offers, with settings of their own."""
    named = getattr(dataset, 'EVALUATORS', ('CocoEvaluator',)) if offered is None else offered
    if not named:
        name = dataset.__name__ if isinstance(dataset, type) else type(dataset).__name__
        raise ConfigError(f'a {name} is no data set to evaluate: evaluate its data sets one at a time')
    return [_evaluator(one) for one in ([named] if isinstance(named, (str, Mapping)) else named)]


def default_metric(dataset: AnyDataset) -> str:
    """The metric that is measured when none is named, or the type of an evaluator that has only one."""
    cls = _offered(dataset, None)[0][0]
    return cls.METRICS[0] if cls.METRICS else cls.__name__


def _evaluator(one: str | Cfg) -> tuple[type[Evaluator], Settings]:
    """The class and the settings of a type or a config."""
    if isinstance(one, Mapping) and 'type' not in one:
        raise ConfigError(f"a metric that is a dict is the config of an evaluator and needs a 'type': {dict(one)}")
    settings = dict(one) if isinstance(one, Mapping) else dict(type=one)
    cls = EVALUATORS.get(settings.pop('type'))
    if not issubclass(cls, Evaluator):
        raise ConfigError(f'{cls.__name__} is registered as an evaluator and is none: derive it from '
                          'boxdet.evaluation.Evaluator')
    return cls, settings


def _chosen(dataset: AnyDataset, metric: Metric, offered: Offered) -> list[tuple[type, Settings]]:
    """The evaluators that the metrics ask for, in their order, with their settings."""
    ours = _offered(dataset, offered)
    if metric is None:
        chosen = ours[:1]
        return chosen + [(cls, settings) for cls, settings in ours[1:] if not cls.METRICS]
    chosen = []
    for one in [metric] if isinstance(metric, (str, Mapping)) else metric:
        at = next(((cls, own) for cls, own in ours if not isinstance(one, Mapping) and one in cls.METRICS), None)
        if at is None:
            if not isinstance(one, Mapping) and one not in EVALUATORS:
                known = list(dict.fromkeys(name for cls, _ in ours for name in cls.METRICS))
                raise ConfigError(f"unknown metric '{one}'{nearest(one, known)} (this data set has "
                                  f"{', '.join(known)}; a registered evaluator is named by its type)")
            chosen.append(_evaluator(one))
            continue
        cls, settings = at
        if len(cls.METRICS) == 1:
            chosen.append((cls, settings))
            continue
        # Metrics of one evaluator are measured by one object.
        group = next((own for other, own in chosen if other is cls and own.get('metric')), None)
        if group is None:
            chosen.append((cls, {**settings, 'metric': [one]}))
        else:
            group['metric'].append(one)
    # Evaluators without METRICS that the data set offers are always asked.
    return chosen + [(cls, settings) for cls, settings in ours if not cls.METRICS and cls not in dict(chosen)]


def _option_names(chosen: Sequence[type], dataset: AnyDataset, offered: Offered) -> list[str] | None:
    names: set[str] = set()
    for cls in {**dict.fromkeys(chosen), **dict.fromkeys(cls for cls, _ in _offered(dataset, offered))}:
        own, open_ended = accepted_keywords(cls)
        if open_ended:
            return None
        names |= own
    return sorted(names - _GIVEN)


def metric_names(dataset: AnyDataset, metric: Metric = None, offered: Offered = None,
                 **options: Any) -> list[str] | None:
    """The keys that ``evaluate`` gives with these options, but those of single classes and texts.

    Args:
        dataset: a data set, or a class of data sets.
        metric: see the top of this file.
        offered: in place of its ``EVALUATORS``.
        **options: settings of the evaluators.

    Returns:
        None: not known, for the data set brings an ``evaluate`` of its own, or an evaluator does not tell.

    Raises:
        ConfigError: unknown metric, option or item.
    """
    return build_evaluator(dataset, metric, offered, **options).metric_names()


def option_names(dataset: AnyDataset, writing: bool = False, metric: Metric = None,
                 offered: Offered = None) -> list[str] | None:
    """The options of ``evaluate`` for a data set or its class.

    Args:
        dataset: a data set, or a class of data sets.
        writing: those of ``format_results``.
        metric: whose evaluators count besides those that the data set offers.
        offered: in place of its ``EVALUATORS``.

    Returns:
        None: any, for a method of its own, or an evaluator, takes ``**kwargs``.
    """
    own = own_method(dataset, 'format_results' if writing else 'evaluate')
    if own is not None:
        return _names_of(own)
    if hasattr(dataset, 'datasets'):
        return option_names(dataset.datasets[0], writing, metric, offered)
    if writing:
        return _names_of(_writer(dataset).format_results)
    return _option_names([cls for cls, _ in _chosen(dataset, metric, offered)], dataset, offered)


def _names_of(function: Callable) -> list[str] | None:
    names, open_ended = accepted_keywords(function)
    return None if open_ended else sorted(names - _GIVEN)


def check_options(dataset: AnyDataset, options: Cfg, where: str = '', writing: bool = False,
                  metric: Metric = None) -> None:
    """Raise ConfigError when the evaluation of ``dataset`` takes no such option.

    Args:
        dataset: a data set, or a class of data sets.
        options: those that were given.
        where: what to call their place: 'evaluation', '--eval-options'.
        writing: they are for ``format_results``.
        metric: see ``option_names``.
    """
    _check_names(options, option_names(dataset, writing, metric), where, writing)


def _check_names(options: Cfg, names: Sequence[str] | None, where: str = '',
                 writing: bool = False) -> None:
    if names is None:
        return
    for key in options:
        if key not in names:
            what = 'writing result files' if writing else 'evaluation'
            raise ConfigError(f"{f'{where}.' if where else ''}{key}: {what} takes no '{key}' on this data set"
                              f"{nearest(key, names)} (it takes {', '.join(names)})")


def configured_options(dataset: AnyDataset, metric: Metric, configured: Cfg | None,
                       given: Cfg, where: str = '') -> Settings:
    """The keywords for ``evaluate``: those of a config's ``evaluation`` section, then the ``given`` ones.

    Args:
        dataset: data.test.
        metric: see the top of this file.
        configured: the section.
        given: on the command line.
        where: what to call the place of the given ones.

    Raises:
        ConfigError: an option or a metric that this data set does not take.
    """
    configured = {k: v for k, v in (configured or {}).items() if k not in (*_TRAINING_ONLY, 'metric')}
    check_options(dataset, configured, 'evaluation', metric=metric)
    check_options(dataset, given, where, metric=metric)
    options = {**configured, **given, 'metric': metric}
    metric_names(dataset, **options)
    return options


def needs_of(dataset: AnyDataset, metric: Metric = None, writing: bool = False) -> dict[str, str]:
    """The field of the results ('labels', 'masks', 'keypoints') that each metric needs, where it needs one.

    Args:
        dataset: a data set, its class, or None for COCO's metrics.
        metric: see the top of this file.
        writing: of the result files, by 'files'.
    """
    if not writing:
        return build_evaluator(dataset, metric).needs()
    if own_method(dataset, 'format_results') or hasattr(dataset, 'datasets'):
        return {}
    need = _writer(dataset).FILES_NEED
    return {} if need is None else dict(files=need)


def require_annotations(dataset: AnyDataset, metric: Metric = None) -> None:
    """Raise DataError when ``dataset`` holds nothing to evaluate against, ConfigError when it cannot be evaluated."""
    build_evaluator(dataset, metric).check(dataset)


# --- result files ---

def format_results(dataset: Dataset, results: Iterable[Result], *args: str, proposals: bool | None = None,
                   **options: Any) -> dict[str, str]:
    """Write the predictions as the files that the data set's server takes; needs no annotations.

    Args:
        dataset: as in ``evaluate``.
        results: as in ``evaluate``.
        *args: the prefix.
        proposals: whether an RPN made the results; None: found from them. Only COCO's files differ.
        **options: of the data set's evaluator: ``jsonfile_prefix`` for COCO, ``txtfile_prefix`` for Cityscapes.

    Returns:
        the paths by what they hold.

    Raises:
        ConfigError: its evaluators write no files, or take no such option. DataError: results that do not fit the data
            set, or a folder that cannot be written.
    """
    own = own_method(dataset, 'format_results')
    if own is None:
        return _write(dataset, results, *args, proposals=proposals, **options)
    found = own(as_2x(dataset, results), *args, **options)
    found = found[0] if isinstance(found, tuple) else found  # 2.x: the files, and the folder that is to be cleaned up
    if isinstance(found, Mapping):
        return dict(found)
    return {str(i): path for i, path in enumerate([found] if isinstance(found, str) else found or ())}


def _write_somewhere(dataset: Dataset, results: Iterable[Result], *args: str,
                     **options: Any) -> tuple[dict[str, str], _Folder | None]:
    options = {name: value for name, value in options.items() if value is not None}
    folder = None
    if not args and not any(name.endswith('_prefix') for name in options):
        folder = tempfile.TemporaryDirectory(prefix='boxdet-results-')
        options = {**_prefixes(dataset, folder.name), **options}
    return _write(dataset, results, *args, **options), folder


def _write(dataset: Dataset, results: Iterable[Result], *args: str, proposals: bool | None = None,
           **options: Any) -> dict[str, str]:
    if hasattr(dataset, 'datasets'):
        parts = enumerate(concat.split(cast(ConcatDataset, dataset), aligned(dataset, results)))
        return {f'{i}_{kind}': path for i, (part, mine) in parts for kind, path in format_results(
            part, mine, *args, proposals=proposals, **concat.numbered(options, i)).items()}
    writer = _writer(dataset)
    _check_names(options, _names_of(writer.format_results), writing=True)
    if 'proposals' in accepted_keywords(writer.format_results)[0]:
        options['proposals'] = proposals
    return EVALUATORS.build(dict(type=writer)).format_results(dataset, aligned(dataset, results), *args, **options)


def _writer(dataset: AnyDataset) -> type[Evaluator]:
    """The first of the data set's evaluators that writes files."""
    offered = [cls for cls, _ in _offered(dataset, None)]
    for cls in offered:
        if cls.FILES is not None:
            return cls
    names = ' and '.join(cls.__name__ for cls in offered)
    raise ConfigError(f'result files of {names} are not known: save the results with --out')


def check_files(dataset: AnyDataset) -> None:
    """Raise UserError where ``format_results`` would raise it after the hours of inference."""
    if own_method(dataset, 'format_results'):
        return
    for part in getattr(dataset, 'datasets', [dataset]):
        if part is not dataset:
            check_files(part)
        else:
            EVALUATORS.build(dict(type=_writer(part))).check_files(part)


def writing_options(dataset: AnyDataset, given: Cfg, folder: str, where: str = '') -> Settings:
    """The keywords for ``format_results``: prefixes that are not given lead to ``folder``/results."""
    check_options(dataset, given, where, writing=True)
    check_files(dataset)
    return {**_prefixes(dataset, folder), **given}


def _prefixes(dataset: AnyDataset, folder: str) -> dict[str, str]:
    """The options that say where files go, each leading to ``folder``/results."""
    while hasattr(dataset, 'datasets'):
        dataset = dataset.datasets[0]
    names = option_names(dataset, writing=True)
    if names is None or not own_method(dataset, 'format_results'):
        files = _writer(dataset).FILES
        assert files is not None  # it is what makes it a writer
        return {files: os.path.join(folder, 'results')}
    return {name: os.path.join(folder, 'results') for name in names if name.endswith('_prefix')}


# --- mmdetection 2.x's form ---

def as_2x(dataset: Dataset, results: Iterable[Result]) -> list[Result]:
    """The results as mmdetection 2.x handed them over: ``Instances.per_class`` of each image, of an RPN (N, 5).

    Those with keypoints, for which 2.x had no form, stay Instances.
    """
    return [_one_as_2x(result, len(dataset.CLASSES)) if isinstance(result, Instances) else result for result in results]


def _one_as_2x(result: Instances, num_classes: int) -> Result:
    if 'keypoints' in result:
        return result
    if 'labels' in result:
        return result.per_class(result.num_classes or num_classes)
    return labelled(result).per_class(1)[0]
