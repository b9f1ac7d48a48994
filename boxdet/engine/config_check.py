"""Find what cannot be right in a config before anything is built from it: wrong keys, unknown types, idle variables.

Every dict with a ``type`` is compared with the signature of the class that the registries hold under that name, every
section with the keys that are read from it, ``train_cfg``/``test_cfg`` with what the
model's parts declare. The first fault is a
ConfigError: the full path, the file and line that set it, and the nearest valid name.
"""
from __future__ import annotations

import difflib
import inspect
import re
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from boxdet import idle_overrides, registry
from boxdet.abilities import ability
from boxdet.datasets.loader import build_dataloader
from boxdet.engine.config_sections import HABITS, SECTIONS
from boxdet.engine.config_source import ConfigWarning
from boxdet.engine.dialects import mmdet3
from boxdet.engine.dialects.mmdet1 import form_of_2x, type_of_2x
from boxdet.engine.findings import Finding, ignored_codes, refuse
from boxdet.engine.learning_rate import LrSchedule
from boxdet.engine.momentum import MomentumSchedule
from boxdet.errors import ConfigError, nearest
from boxdet.evaluation.evaluate import metric_names, option_names
from boxdet.models.initialization import init_cfg_keywords
from boxdet.models.settings import declared_by, parse_section
from boxdet.registry import Registry, accepted_keywords, boxdet_keywords, plain_keywords

_MATCHING = ('anchor_generator', 'prior_generator', 'bbox_coder', 'assigner', 'sampler', 'pos_sampler', 'neg_sampler',
             'iou_calculator')
# Built from dicts wherever they stand in ``model``; None leaves one out.
_COMPONENTS = (*_MATCHING, 'backbone', 'neck', 'rpn_head', 'roi_head', 'bbox_head', 'mask_head', 'keypoint_head',
               'shared_head', 'bbox_roi_extractor', 'mask_roi_extractor', 'keypoint_roi_extractor', 'roi_layer',
               'loss_cls', 'loss_bbox', 'loss_mask', 'loss_keypoint')
_LAYERS = ('norm_cfg', 'conv_cfg', 'act_cfg', 'upsample_cfg', 'roi_layer', 'dcn')
_DATA = ('dataset', 'datasets', 'pipeline')
# Kept equal to what engine/schedule.py takes, by a test.
OPTIMIZER_CONFIG_KEYS = ('type', 'grad_clip', 'cumulative_iters', 'loss_scale')
FP16_KEYS = ('loss_scale', 'dtype')
PARAMWISE_KEYS = ('custom_keys', 'bias_lr_mult', 'bias_decay_mult', 'norm_decay_mult', 'dwconv_decay_mult',
                  'dcn_offset_lr_mult', 'bypass_duplicate')
LAYER_KEYS = ('decay_rate', 'decay_type', 'num_layers')  # of LearningRateDecayOptimizerConstructor
_LEVELS = ('DEBUG', 'INFO', 'WARNING', 'ERROR', 'CRITICAL')
_LOGGERS_ELSEWHERE = ('PaviLoggerHook', 'NeptuneLoggerHook', 'DvcliveLoggerHook', 'ClearMLLoggerHook',
                      'SegmindLoggerHook')
_BESIDE_KEYWORDS = {'norm_cfg': ('requires_grad',), 'dcn': ('fallback_on_stride',)}


def check(cfg: Any, needed: Iterable[str] = ()) -> None:
    """``config.check_config``."""
    require(cfg, *needed)
    ignored = ignored_codes(cfg)
    checker = _Checker(cfg)
    for name in ('model', 'train_cfg', 'test_cfg', 'data', 'optimizer', 'optimizer_config', 'fp16', 'lr_config',
                 'runner', 'checkpoint_config', 'evaluation', 'log_config', 'custom_hooks', 'dist_params',
                 'auto_scale_lr', 'momentum_config', 'total_epochs', 'log_level'):
        if cfg.get(name) is not None:
            getattr(checker, name)(cfg[name], name)
    refuse(_contradictions(cfg), ignored)
    written = getattr(cfg, 'as_written', None)  # of a config of mmdetection 3.x
    idle = _idle_variables(cfg, SECTIONS) if written is None else _idle_variables(written, mmdet3.SECTIONS)
    for message in [*checker.told, *_misspelt_variables(cfg), *idle]:
        warnings.warn(message, ConfigWarning, stacklevel=3)


def _contradictions(cfg: Any) -> Iterator[Finding]:
    """Pairs of keys that say two things."""
    origin = getattr(cfg, 'origin', lambda key: '')
    runner, epochs = cfg.get('runner') or {}, cfg.get('total_epochs')
    for key in ('max_epochs', 'max_iters'):
        if epochs is not None and key in runner and (key, runner[key]) != ('max_epochs', epochs):
            yield Finding('config.contradiction', f'total_epochs = {epochs}{_at(origin("total_epochs"))} and '
                                                  f'runner.{key} = '
                                                  f'{runner[key]}{_at(origin(f"runner.{key}"))} both say how long to '
                                                  f'train: '
                                                  'take one of them out, or set both to one number')
    model = cfg.get('model') or {}
    backbone = model.get('backbone') or {}
    pretrained = model.get('pretrained')
    if pretrained and isinstance(backbone, Mapping) and 'init_cfg' in backbone:
        init, key = backbone['init_cfg'], 'model.backbone.init_cfg'
        if isinstance(init, Mapping) and 'checkpoint' in init:
            init, key = init['checkpoint'], f'{key}.checkpoint'
        if init != pretrained:
            yield Finding('config.contradiction', (
                f"model.pretrained = '{pretrained}'{_at(origin('model.pretrained'))} and {key} = {init!r}"
                f"{_at(origin(key))} both say which weights the backbone begins with: take one of them out"))


def _at(place: str) -> str:
    return f' ({place})' if place else ''


def require(cfg: Any, *paths: str) -> None:
    """Raise ConfigError when the config has no, or an empty, section under one of the dotted ``paths``."""
    for path in paths:
        section = cfg
        for key in path.split('.'):
            section = section.get(key) if hasattr(section, 'get') else None
        if not section:
            # Detectron's sections: MODEL, TRAIN, ...
            foreign = any(isinstance(key, str) and key.isupper() and isinstance(cfg[key], Mapping) for key in cfg)
            raise ConfigError(f"{getattr(cfg, 'filename', None) or 'the config'} has no {path}" + (
                '; it looks like a config of Detectron, and boxdet reads those of mmdetection 2.x' if foreign else ''))


class _Checker:
    """Walks a config; ``path`` is always the dotted path of ``value``."""

    def __init__(self, cfg: Any):
        self._origin = getattr(type(cfg), 'origin', lambda cfg, path: '')
        self._cfg = cfg
        self.told: list[str] = []  # what is no fault, and changes nothing

    def fail(self, path: str, message: str) -> None:
        place = self._origin(self._cfg, path)
        raise ConfigError(f'{path}{f" ({place})" if place else ""}: {message}')

    def read(self, parse: Callable[[], Any], path: str) -> Any:
        """Let the reader of a section judge it; the path that begins its message gets the file that set it."""
        try:
            return parse()
        except ConfigError as error:
            found = re.match(re.escape(path) + r'[\w.]*', str(error))
            where = found.group(0) if found else path
            self.fail(where, str(error).removeprefix(where).lstrip(': ') + form_of_2x(where))

    def keys(self, value: Any, path: str, names: Iterable[str], reader: str = '') -> None:
        """Every key of the dict ``value`` must be one of ``names``."""
        if not isinstance(value, Mapping):
            self.fail(path, f'must be a dict, not {value!r}')
        for key in value:
            if key not in names:
                said = f"{reader} takes no '{key}'" if reader else 'there is no such key'
                self.fail(f'{path}.{key}', said + (form_of_2x(f'{path}.{key}') or nearest(key, names)))

    def whole_number(self, value: Any, path: str, least: int) -> None:
        if not isinstance(value, int) or value < least:
            self.fail(path, f'must be a whole number, {least} at least, not {value!r}')

    def typed(self, value: Mapping, path: str, wanted: Registry, beside: tuple[str, ...] = ()) -> Any:
        """Check ``type`` and keywords of one dict, then what is inside it; return its class.

        ``beside`` are keys that another reader takes out before the constructor is called.
        """
        if 'type' not in value:
            self.fail(path, f"a {wanted.name} needs a 'type'")
        cls = self._class_of(value['type'], path, wanted)
        names, open_ended = accepted_keywords(cls)
        if not open_ended:
            self.keys(value, path, {*names, *beside, 'type'}, reader=getattr(cls, '__name__', str(value['type'])))
        self.plain_values(value, path, cls)
        self.read(lambda: idle_overrides.check(cls, is_error=wanted is registry.MODELS), f'{path}.type')
        ours = boxdet_keywords(cls)
        own_types = ability(cls, 'own_types')
        for key, item in _items(value):
            if key in own_types:
                continue
            if ours is None or key in ours or key == 'init_cfg':
                self.inside({key: item}, path, wanted)
            elif key in (*_COMPONENTS, *_LAYERS, *_DATA):
                self.inside({key: item}, path, wanted, strict=False)
            # Any other keyword of a user's class may hold types of the user's own.
        return cls

    def plain_values(self, value: Mapping, path: str, cls: Any) -> None:
        """A text is no number, and no yes or no: what ``cls`` says that it takes, where that is one plain type."""
        kinds = plain_keywords(cls)
        for key, item in value.items():
            wanted = kinds.get(key)
            if wanted == 'int' and (not isinstance(item, int) or isinstance(item, bool)):
                self.fail(f'{path}.{key}', f'must be a whole number, not {item!r}')
            elif wanted == 'float' and (not isinstance(item, (int, float)) or isinstance(item, bool)):
                self.fail(f'{path}.{key}', f'must be a number, not {item!r}')
            elif wanted == 'bool' and item not in (True, False):
                self.fail(f'{path}.{key}', f'must be True or False, not {item!r}')

    def inside(self, value: Any, path: str, around: Registry, strict: bool = True) -> None:
        """Check every typed dict in ``value``; a key's name tells the registry, or else that of the dict around it.

        Args:
            value: a dict or list.
            path: where it stands.
            around: the registry of the class that takes it.
            strict: a type that boxdet does not know is an error; it is left alone otherwise.
        """
        for key, item in _items(value):
            here, wanted = f'{path}.{key}', _registry_for(key, around)
            if key == 'init_cfg':
                self.init_cfg(item, here)
            elif isinstance(item, Mapping) and item.get('type') is not None and key != 'nms':
                if strict or self._find(item['type'], wanted) is not None:
                    self.typed(item, here, wanted, _BESIDE_KEYWORDS.get(key, ()))
            elif isinstance(item, (Mapping, list, tuple)):
                self.inside(item, here, wanted, strict)
            elif strict and key in _COMPONENTS and isinstance(item, (str, int, float)):
                self.fail(here, f"must be a dict with a 'type', not {item!r}")

    def _class_of(self, kind: Any, path: str, wanted: Registry) -> Any:
        found = self._find(kind, wanted)
        if found is not None:
            return found
        if wanted is registry.HOOKS and kind in _LOGGERS_ELSEWHERE:
            self.fail(f'{path}.type', f"'{kind}' needs a service that boxdet does not talk to: take TextLoggerHook, "
                                      'TensorboardLoggerHook, WandbLoggerHook or MlflowLoggerHook, or register a hook '
                                      'of that name')
        if not isinstance(kind, str):
            self.fail(f'{path}.type', f'must be the name of a {wanted.name}, not {kind!r}')
        by_lower = {name.lower(): name for name in wanted.names()}
        close = [by_lower[name] for name in difflib.get_close_matches(kind.lower(), by_lower, n=5, cutoff=0.5)]
        near = f"; near it: {', '.join(close)}" if close else f"; known: {', '.join(wanted.names())}"
        return self.fail(f'{path}.type', f"unknown {wanted.name} type '{kind}'{type_of_2x(kind) or near}")

    @staticmethod
    def _find(kind: Any, wanted: Registry) -> Any:
        """The class that a ``type`` names, or is; None for none."""
        if not isinstance(kind, str):
            return kind
        of_models = (registry.MODELS, registry.LAYERS, registry.MATCHING)
        for one in (wanted, *of_models) if wanted in of_models else (wanted,):
            if kind.rpartition('.')[2] in one:
                return one.get(kind)
        return None

    # ------------------------------------------------------------------------------ model

    def model(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            self.fail(path, f'must be a dict, not {value!r}')
        self.typed(value, path, registry.MODELS)
        self.train_cfg(value.get('train_cfg'), f'{path}.train_cfg')
        self.test_cfg(value.get('test_cfg'), f'{path}.test_cfg')

    def train_cfg(self, value: Any, path: str) -> None:
        self._settings('train_settings', value, path)

    def test_cfg(self, value: Any, path: str) -> None:
        self._settings('test_settings', value, path)

    def _settings(self, declared: str, value: Any, path: str) -> None:
        """Judge ``train_cfg`` or ``test_cfg``, in ``model`` or beside it, by what the classes of the model declare."""
        model = self._cfg.get('model') or {}
        settings = declared_by(model, declared)
        if settings is None:  # of a user's own detector
            return
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')  # the detector says it again when it is built
            self.read(lambda: parse_section(settings, value, path, model), path)

    def init_cfg(self, value: Any, path: str) -> None:
        known = init_cfg_keywords()
        several = isinstance(value, (list, tuple))
        for i, one in enumerate(value if several else [value]):
            here = f'{path}.{i}' if several else path
            if not isinstance(one, Mapping):
                continue
            kind: Any = one.get('type')
            if kind not in known:
                self.fail(f'{here}.type', f"unknown initialisation '{kind}'{nearest(str(kind), known)}")
            self.keys(one, here, {*known[kind], 'type', 'layer', 'override'}, reader=kind)

    # ------------------------------------------------------------------------------ data

    def data(self, value: Any, path: str) -> None:
        loader = _loader_keywords()
        splits = ('train', 'val', 'test')
        self.keys(value, path, {*splits, *(f'{split}_dataloader' for split in splits), *loader})
        for key, least in (('samples_per_gpu', 1), ('workers_per_gpu', 0)):
            self.whole_number(value.get(key, least), f'{path}.{key}', least)
        for split in splits:
            item = value.get(split)
            for here, one in _each(item, f'{path}.{split}'):
                beside = ('samples_per_gpu',) if split != 'train' else ()
                # a list of files becomes a ConcatDataset, which takes this
                several = isinstance(one, Mapping) and isinstance(one.get('ann_file'), (list, tuple))
                self.typed(one, here, registry.DATASETS, beside=(*beside, 'separate_eval') if several else beside)
            if value.get(f'{split}_dataloader') is not None:
                aware = value[f'{split}_dataloader'].get('class_aware_sampler')
                if aware is not None:
                    self.keys(aware, f'{path}.{split}_dataloader.class_aware_sampler', {'num_sample_class'})
                self.keys(value[f'{split}_dataloader'], f'{path}.{split}_dataloader', loader)

    # ------------------------------------------------------------------------------ training

    def optimizer(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping) or 'type' not in value:
            self.fail(path, "must be a dict with a 'type', such as dict(type='SGD', lr=0.02)")
        self.typed(value, path, registry.OPTIMIZERS, beside=('paramwise_cfg', 'constructor'))
        for key in ('lr', 'weight_decay', 'momentum'):
            given = value.get(key, 0.)
            if not isinstance(given, (int, float)) or given < 0:
                self.fail(f'{path}.{key}', f'must be a number, 0 at least, not {given!r}')
        if value.get('paramwise_cfg'):
            layered = value.get('constructor') == 'LearningRateDecayOptimizerConstructor'
            self.keys(value['paramwise_cfg'], f'{path}.paramwise_cfg', LAYER_KEYS if layered else PARAMWISE_KEYS)

    def optimizer_config(self, value: Any, path: str) -> None:
        self.keys(value, path, OPTIMIZER_CONFIG_KEYS)
        if value.get('grad_clip') is not None:
            if not isinstance(value['grad_clip'], Mapping):
                self.fail(f'{path}.grad_clip', f'must be a dict such as dict(max_norm=35), not {value["grad_clip"]!r}')
            known = _explicit(torch.nn.utils.clip_grad_norm_) - {'parameters'}
            self.keys(value['grad_clip'], f'{path}.grad_clip', known)
            norm = value['grad_clip'].get('max_norm', 1)
            if not isinstance(norm, (int, float)) or norm <= 0:
                self.fail(f'{path}.grad_clip.max_norm', f'must be a number above 0, not {norm!r}')

    def fp16(self, value: Any, path: str) -> None:
        self.keys(value, path, FP16_KEYS)

    def lr_config(self, value: Any, path: str, schedule: type[LrSchedule] = LrSchedule) -> None:
        if not isinstance(value, Mapping):
            self.fail(path, f"must be a dict such as dict(policy='step', step=[8, 11]), not {value!r}")
        own = f"{value.get('policy')}{schedule.hook}"
        if own in registry.HOOKS:  # a user's policy
            self.typed({**value, 'type': own}, path, registry.HOOKS, beside=('policy',))
        else:
            self.read(lambda: schedule(**value), path)

    def runner(self, value: Any, path: str) -> None:
        if not isinstance(value, Mapping):
            self.fail(path, f"must be a dict such as dict(type='EpochBasedRunner', max_epochs=12), not {value!r}")
        cls = self._class_of(value.get('type', 'EpochBasedRunner'), path, registry.RUNNERS)
        self.keys(value, path, _explicit(cls.__init__) | {'type'}, reader=cls.__name__)
        for key in ('max_epochs', 'max_iters'):
            self.whole_number(value.get(key, 1), f'{path}.{key}', 1)

    def total_epochs(self, value: Any, path: str) -> None:
        self.whole_number(value, path, 1)

    def log_level(self, value: Any, path: str) -> None:
        if not isinstance(value, int) and value not in _LEVELS:
            self.fail(path, f"'{value}' is none of {', '.join(_LEVELS)}{nearest(str(value), _LEVELS)}")

    def checkpoint_config(self, value: Any, path: str) -> None:
        self.keys(value, path, _explicit(registry.HOOKS.get('CheckpointHook')) | {'type'})
        interval = value.get('interval', 1)
        if interval is not None and (not isinstance(interval, int) or interval == 0):
            self.fail(f'{path}.interval', f'must be a whole number, 1 at least, or -1 for never, not {interval!r}')

    def evaluation(self, value: Any, path: str) -> None:
        dataset, parts, offered = self._validation_class()
        options = self.read(lambda: option_names(dataset, metric=value.get('metric'), offered=offered), path)
        if options is None:
            return
        known = _explicit(registry.HOOKS.get('EvaluationHook')) | {*options, 'metric', 'type'}
        self.keys(value, path, known - {'dataloader', 'evaluate', 'dataset', 'results', 'logger'})
        given = {k: value[k] for k in (*options, 'metric') if k in value}
        names = self.read(lambda: metric_names(dataset, offered=offered, **given), path)
        if names is not None and parts:
            names = [f'{i}_{name}' for i in range(parts) for name in names]
        told = {key: value[key] for key in ('greater_keys', 'less_keys') if value.get(key)}
        wanted = [str(one) for keys in told.values() for one in ([keys] if isinstance(keys, str) else keys)]
        if wanted and names is not None and not any(one.lower() in name.lower() for one in wanted for name in names):
            self.told.append(f"{path}.{', '.join(told)}: '{wanted[0]}' is part of no metric's name and changes nothing"
                             f'{nearest(wanted[0], names)}')
        best = value.get('save_best')
        if names is None or best in (None, 'auto') or str(best).endswith('_precision'):  # those are of single classes
            return
        if best not in names:
            self.fail(f'{path}.save_best', f"'{best}' is no metric of this evaluation{nearest(str(best), names)}; it "
                                           f"gives {', '.join(names)}")

    def _validation_class(self) -> tuple[Any, int, Any]:
        """What is evaluated.

        Returns:
            the class of ``data.val`` (else ``data.test``, else COCO's), or of its first part; how many parts are
            evaluated one by one, 0 for none; the ``evaluators`` that its config names, if any.
        """
        data = self._cfg.get('data') or {}
        val, parts = data.get('val') or data.get('test') or {}, 0
        if isinstance(val, Mapping) and val.get('type') == 'ConcatDataset':
            parts = len(val.get('datasets') or ()) if val.get('separate_eval', True) else 0
            val = val.get('datasets') or ()
        elif isinstance(val, (list, tuple)):
            parts = len(val)
        elif isinstance(val, Mapping) and isinstance(val.get('ann_file'), (list, tuple)):
            parts = len(val['ann_file']) if val.get('separate_eval', True) else 0
        if isinstance(val, (list, tuple)):
            val = next((one for one in val if isinstance(one, Mapping)), {})
        return registry.DATASETS.get(val.get('type') or 'CocoDataset'), parts, val.get('evaluators')

    def log_config(self, value: Any, path: str) -> None:
        self.keys(value, path, ('interval', 'hooks'))
        self.custom_hooks(value.get('hooks') or [], f'{path}.hooks')

    def custom_hooks(self, value: Any, path: str) -> None:
        for i, one in enumerate(value):
            if isinstance(one, (str, int, float)):
                self.fail(f'{path}.{i}', f"must be a dict with a 'type', not {one!r}")
        for here, one in _each(value, path):
            self.typed(one, here, registry.HOOKS, beside=('priority',))

    def dist_params(self, value: Any, path: str) -> None:
        self.keys(value, path, ('backend', 'port', 'init_method', 'timeout'))

    def momentum_config(self, value: Any, path: str) -> None:
        if value is not None:  # as 2.x's own schedules write it
            self.lr_config(value, path, MomentumSchedule)

    def auto_scale_lr(self, value: Any, path: str) -> None:
        self.keys(value, path, ('enable', 'base_batch_size', 'scale_steps'))


# ------------------------------------------------------------------------------ what is read where


def _explicit(function: Any) -> set[str]:
    """The keywords that a function or class spells out."""
    parameters = inspect.signature(function).parameters.values()
    return {p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)} - {'self'}


def _loader_keywords() -> set[str]:
    given_by_the_runner = {'dataset', 'num_gpus', 'dist', 'rank', 'world_size', 'runner_type'}
    of_torch = {'pin_memory', 'prefetch_factor', 'drop_last', 'timeout', 'worker_init_fn', 'multiprocessing_context'}
    return _explicit(build_dataloader) - given_by_the_runner | of_torch


def _registry_for(key: Any, around: Registry) -> Registry:
    if around in (registry.DATASETS, registry.PIPELINES):
        return registry.DATASETS if key in ('dataset', 'datasets') else \
            registry.PIPELINES if isinstance(key, str) else around
    if key in _MATCHING:
        return registry.MATCHING
    return registry.LAYERS if key in _LAYERS else registry.MODELS if isinstance(key, str) else around


def _items(value: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    return list(enumerate(value)) if isinstance(value, (list, tuple)) else []


def _each(value: Any, path: str) -> Iterator[tuple[str, Mapping]]:
    """The dicts of a dict or a list of dicts, with their paths."""
    if isinstance(value, Mapping):
        yield path, value
    for i, one in enumerate(value if isinstance(value, (list, tuple)) else []):
        if isinstance(one, Mapping):
            yield f'{path}.{i}', one


# ------------------------------------------------------------------------------ variables


def _misspelt_variables(cfg: Any) -> Iterator[str]:
    """Top-level variables that no file uses and that resemble a key: ``optimiser``, ``total_epoch``."""
    used = {name for file in getattr(cfg, 'files', ()) for name in file.names_read()}
    place = getattr(cfg, 'origin', lambda key: '')
    for name in cfg:
        if name in SECTIONS or name in HABITS or name in used:
            continue
        near = difflib.get_close_matches(name.lower(), SECTIONS, n=1, cutoff=0.8)
        if near:
            where = place(name)
            yield f"{name}{f' ({where})' if where else ''}: nothing reads this variable; did you mean '{near[0]}'?"


def _idle_variables(cfg: Any, sections: Iterable[str]) -> Iterator[str]:
    """Variables that were given a new value while the config still holds the old one.

    ``train_pipeline`` in a leaf config, or ``--cfg-options data_root=...``, changes nothing by itself: the base's
    ``data`` was made from the old value.
    """
    if not hasattr(cfg, 'explain'):
        return
    used = [cfg[name] for name in sections if cfg.get(name) is not None]
    parts = [part for section in used for part in _parts(section)]
    for name in cfg:
        if name in sections or not isinstance(cfg[name], (Mapping, list, tuple, str)) or not cfg[name]:
            continue
        versions = _versions(cfg.explain(name))
        old = [value for value, _ in versions[:-1] if value and value != versions[-1][0]]
        if old and not _occurs(versions[-1][0], parts) and any(_occurs(value, parts) for value in old):
            yield (f"{name} ({versions[-1][1]}): the new value reaches nothing; what was made from the old one has to "
                   f"be set too{_user_of(old, cfg)}")


def _versions(settings: list) -> list[tuple[Any, str]]:
    """The values that a variable had after each file, with the place that set it."""
    versions: list[tuple[Any, str]] = []
    for setting in settings:
        inside = setting.key[1:]
        if not inside:
            versions.append((setting.value, setting.place))
        else:
            before = versions[-1][0] if versions and isinstance(versions[-1][0], Mapping) else {}
            value = {**before, inside[0]: setting.value} if len(inside) == 1 else before
            if versions and versions[-1][1].partition(':')[0] == str(setting.source):
                versions.pop()
            versions.append((value, setting.place))
    return versions


def _parts(value: Any) -> Iterator[Any]:
    yield value
    for _, item in _items(value):
        yield from _parts(item)


def _occurs(value: Any, parts: list) -> bool:
    if isinstance(value, str):
        return any(isinstance(part, str) and value in part for part in parts)
    if isinstance(value, Mapping):  # **img_norm_cfg gives its keys to a larger dict
        return any(isinstance(part, Mapping) and all(part.get(k) == v for k, v in value.items()) for part in parts)
    return any(type(part) is type(value) and part == value for part in parts)


def _user_of(old: list, cfg: Any) -> str:
    users = [name for name in ('data', 'train_dataloader', 'model') if cfg.get(name) is not None
             and any(_occurs(value, list(_parts(cfg[name]))) for value in old)]
    return f" (see '{users[0]}')" if users else ''
