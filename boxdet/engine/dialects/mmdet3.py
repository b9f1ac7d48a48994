"""mmdetection 3.x's configs (also those of its fork onedl-mmdetection 3.5) as mmdetection 2.x's.

``SECTIONS`` is the table of what 3.x has at the top of a config; the tables of what is in them are beside the functions
that read them: ``mmdet3_data`` (loaders, data sets, evaluators), ``mmdet3_pipeline`` (transforms, data preprocessor),
``mmdet3_training`` (loops, optimizer, schedulers, hooks, logs). docs/migrating_3x.md shows all of them to a user.
"""
from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from boxdet.engine.dialects import mmdet3_data, mmdet3_training
from boxdet.engine.dialects.mmdet3_pipeline import Preprocessing, test_pipeline
from boxdet.engine.dialects.piece import Context, Idle, Key, Only, Piece, Section, Table, same
from boxdet.engine.dialects.pure_python import OPENMMLAB
from boxdet.errors import ConfigError, nearest

NAME = 'mmdetection 3.x'

# 3.x's sections -> where they stand in 2.x.
SECTIONS: Mapping[str, str] = {
    'model': 'model', 'data_preprocessor': 'Normalize and Pad of the pipelines', 'train_dataloader': 'data.train, data',
    'val_dataloader': 'data.val', 'test_dataloader': 'data.test', 'train_cfg': 'runner, evaluation.interval',
    'val_cfg': '', 'test_cfg': '', 'optim_wrapper': 'optimizer, optimizer_config, fp16', 'param_scheduler': 'lr_config',
    'default_hooks': 'checkpoint_config, log_config, evaluation.save_best', 'custom_hooks': 'custom_hooks',
    'val_evaluator': 'evaluation', 'test_evaluator': 'test_evaluation', 'visualizer': 'log_config.hooks',
    'log_processor': '', 'env_cfg': 'dist_params, mp_start_method, opencv_num_threads, cudnn_benchmark',
    'auto_scale_lr': 'auto_scale_lr', 'resume': 'auto_resume, resume_from', 'load_from': 'load_from',
    'randomness': 'seed, deterministic', 'custom_imports': 'custom_imports', 'model_wrapper_cfg':
    'find_unused_parameters', 'tta_model': 'tta_model', 'tta_pipeline': 'tta_pipeline', 'default_scope': '',
    'launcher': '', 'experiment_name': '', 'log_level': 'log_level', 'work_dir': 'work_dir', 'sync_bn':
    'refused: norm_cfg says it', 'compile': 'refused: init_detector(compile=True) is for inference'}
# Only 3.x has these: a config with one of them is one of 3.x.
_SIGNS = ('train_dataloader', 'val_dataloader', 'test_dataloader', 'optim_wrapper', 'param_scheduler', 'default_hooks',
          'val_evaluator', 'test_evaluator', 'env_cfg', 'visualizer', 'default_scope', 'data_preprocessor')
# 2.x's sections that 3.x has not, and what it has in their place.
OF_2X: Mapping[str, str] = {
    'data': 'train_dataloader', 'optimizer': 'optim_wrapper', 'optimizer_config': 'optim_wrapper',
    'lr_config': 'param_scheduler', 'momentum_config': 'param_scheduler', 'runner': 'train_cfg',
    'total_epochs': 'train_cfg', 'checkpoint_config': 'default_hooks.checkpoint', 'log_config': 'default_hooks.logger',
    'evaluation': 'val_evaluator', 'resume_from': 'resume', 'auto_resume': 'resume', 'dist_params': 'env_cfg.dist_cfg',
    'fp16': 'optim_wrapper', 'seed': 'randomness', 'deterministic': 'randomness', 'opencv_num_threads':
    'env_cfg.mp_cfg', 'mp_start_method': 'env_cfg.mp_cfg', 'cudnn_benchmark': 'env_cfg', 'workflow': 'train_cfg',
    'gpu_ids': 'nothing'}
# boxdet's own, in configs of either kind.
_BOTH = ('device', 'channels_last', 'frozen_modules', 'find_unused_parameters', 'preflight', 'requeue')


@dataclass(frozen=True)
class Translation:
    """A config in 2.x's sections.

    Attributes:
        value: the config.
        origins: pairs (key in it, key of 3.x's config), the whole before its parts.
        notes: what the user is told.
    """
    value: dict[str, Any]
    origins: tuple[tuple[Key, Key], ...]
    notes: list[str]


def is_mmdet3(values: Mapping[str, Any]) -> bool:
    """Whether a config is one of mmdetection 3.x."""
    model, train = values.get('model'), values.get('train_cfg')
    return any(name in values for name in _SIGNS) or isinstance(model, Mapping) and 'data_preprocessor' in model or \
        isinstance(train, Mapping) and ('max_epochs' in train or 'max_iters' in train)


def is_ours_alone(option: str) -> bool:
    """Whether the key of an option, ``data.samples_per_gpu``, is 2.x's and not 3.x's."""
    return option.partition('.')[0] in OF_2X


def translate(values: Mapping[str, Any], place_of: Callable[[Key], str] = lambda key: '',
              used: Collection[str] = ()) -> Translation:
    """Translate a whole config, or any part of one.

    Args:
        values: plain dicts.
        place_of: key -> ``file:line``, for messages.
        used: variables that the config's files use in their own expressions.

    Raises:
        ConfigError: a key that cannot be translated: its path, its place, the nearest name.
    """
    context = Context(NAME, place_of)
    found = _Translator(values, context).sections()
    found.update(_variables(values, context, used, found))
    whole = Piece.mapping(found)
    return Translation(whole.value, whole.origins, context.notes)


class _Translator:
    """The sections of one config; ``values`` are 3.x's."""

    def __init__(self, values: Mapping[str, Any], context: Context):
        self.values, self.context = values, context
        self.preprocessing = Preprocessing(self._preprocessor(), self._semantic_head())
        self.datasets = mmdet3_data.Datasets(context, self.preprocessing)
        wrapper = self._section('optim_wrapper')
        self.batches = mmdet3_training.batches_of(wrapper)

    def _section(self, name: str) -> Section | None:
        value = self.values.get(name)
        return None if value is None else Section(value, (name,), self.context)

    def _preprocessor(self) -> Section | None:
        model = self._section('model')
        if model is not None and model.get('data_preprocessor') is not None:
            return model.inside('data_preprocessor')
        return self._section('data_preprocessor')

    def _semantic_head(self) -> Section | None:
        roi_head = (self.values.get('model') or {}).get('roi_head')
        if not isinstance(roi_head, Mapping) or not isinstance(roi_head.get('semantic_head'), Mapping):
            return None
        return Section(roi_head['semantic_head'], ('model', 'roi_head', 'semantic_head'), self.context)

    def sections(self) -> dict[str, Piece]:
        """Every section in 2.x's form, by its 2.x name."""
        found: dict[str, Piece] = {}
        model = self._section('model')
        if model is not None:
            found['model'] = _in_2x_form(Section(_with_sampling(model.value), model.key, self.context))
        data = mmdet3_data.data(self.values, self.context, self.datasets)
        if data is not None:
            found['data'] = data
        found.update(self._training(found.get('data')))
        for read in (self._environment, self._start, self._views):
            found.update(read())
        for name in ('log_level', 'work_dir', 'auto_scale_lr'):
            if name in self.values:
                found[name] = Piece(self.values[name], (((), (name,)),))
        return found

    def _training(self, data: Piece | None) -> dict[str, Piece]:
        """Loops, optimizer, schedule, hooks, logs and evaluation."""
        found: dict[str, Piece] = {}
        evaluation: dict[str, Piece] = {}
        train, wrapper = self._section('train_cfg'), self._section('optim_wrapper')
        if train is not None:
            found['runner'], evaluation = mmdet3_training.loop(train, self.batches)
        by_epoch = 'runner' not in found or found['runner'].value['type'] == 'EpochBasedRunner'
        if wrapper is not None:
            found.update(mmdet3_training.optimizer(wrapper))
        if self.values.get('param_scheduler') is not None:
            schedule = mmdet3_training.schedule(self.values, self.context, by_epoch, self.batches)
            if schedule is not None:
                found['lr_config'] = schedule
        hooks = self._hooks(by_epoch)
        if hooks.checkpoint is not None:
            found['checkpoint_config'] = hooks.checkpoint
        if hooks.custom:
            found['custom_hooks'] = Piece.sequence(hooks.custom, ('custom_hooks',))
        log = mmdet3_training.logs(self.values, self.context, hooks.log)
        if log is not None:
            found['log_config'] = log
        found.update(self._evaluation(data, {**evaluation, **hooks.evaluation}))
        return found

    def _hooks(self, by_epoch: bool) -> mmdet3_training.Hooks:
        hooks = mmdet3_training.Hooks(by_epoch, self.batches)
        defaults = self._section('default_hooks')
        if defaults is not None:
            for name, value in defaults.value.items():
                if value is not None:
                    hooks.take(defaults.inside(name))
        for one in Section(self.values, (), self.context).sections('custom_hooks'):
            hooks.take(one)
        return hooks

    def _evaluation(self, data: Piece | None, found: dict[str, Piece]) -> dict[str, Piece]:
        """``evaluation``, and ``test_evaluation`` where 3.x's test_evaluator says something else."""
        metrics = {}
        for split in ('val', 'test'):
            name = f'{split}_evaluator'
            if self.values.get(name) is not None:
                dataset = data.value.get(split) if data is not None else None
                metrics[split] = mmdet3_data.evaluation(name, self.values, self.context,
                                                        Piece(dataset) if dataset else None)
        sections: dict[str, Piece] = {}
        ours = {key: part for key, part in metrics.get('val', {}).items() if key != 'format_only'}
        if ours or found:
            sections['evaluation'] = Piece.mapping({**found, **ours}, ('val_evaluator',) if ours else ())
        if 'test' in metrics and _values(metrics['test']) != _values(ours):
            sections['test_evaluation'] = Piece.mapping(metrics['test'], ('test_evaluator',))
        return sections

    def _environment(self) -> dict[str, Piece]:
        """Processes, random numbers, and what boxdet does in its own way."""
        found: dict[str, Piece] = {}
        tables: dict[str, Table] = {
            'env_cfg': ENVIRONMENT, 'randomness': RANDOMNESS, 'log_processor': LOG_PROCESSOR,
            'model_wrapper_cfg': MODEL_WRAPPER, 'val_cfg': LOOP, 'test_cfg': LOOP}
        for name, table in tables.items():
            section = self._section(name)
            if section is not None:
                found.update(section.read(table))
        for name in ('sync_bn', 'compile'):
            if self.values.get(name):
                self.context.fail((name,), ONE_BY_ONE[name])
        imports = _imports(self.values.get('custom_imports'))
        if imports is not None:
            found['custom_imports'] = Piece(imports, (((), ('custom_imports',)),))
        return found

    def _start(self) -> dict[str, Piece]:
        """What the training starts from."""
        resume, weights = self.values.get('resume'), self.values.get('load_from')
        found: dict[str, Piece] = {}
        if 'load_from' in self.values:
            found['load_from'] = Piece(None if resume else weights, (((), ('load_from',)),))
        if 'resume' not in self.values:
            return found
        origin = (((), ('resume',)),)
        if isinstance(resume, str) or resume and weights:
            found['resume_from'] = Piece(resume if isinstance(resume, str) else weights, origin)
        else:
            found['resume_from'] = Piece(None, origin)
            if resume:
                found['auto_resume'] = Piece(True, origin)
        return found

    def _views(self) -> dict[str, Piece]:
        """Test-time augmentation: ``tools/test.py --tta`` puts it in the place of the test pipeline."""
        found = {}
        if self.values.get('tta_pipeline') is not None:
            found['tta_pipeline'] = test_pipeline(self.values['tta_pipeline'], ('tta_pipeline',), self.context,
                                                  self.preprocessing)
        model = self._section('tta_model')
        if model is not None:
            options = model.inside('tta_cfg').read(same('nms', 'max_per_img')) if model.get('tta_cfg') else {}
            model.read(dict(tta_cfg=Idle('read above'), type=Idle('')), leave=())
            found['tta_model'] = Piece.mapping(options, model.key)
        return found


ENVIRONMENT: Table = {
    'cudnn_benchmark': 'cudnn_benchmark', 'resource_limit': Idle('files are opened one by one'),
    'mp_cfg': lambda section, key: section.inside(key).read(same('mp_start_method', 'opencv_num_threads')),
    'dist_cfg': lambda section, key: {'dist_params': Piece.mapping(section.inside(key).read(
        same('backend', 'timeout', 'init_method', 'port')), (*section.key, key))}}
RANDOMNESS: Table = {**same('seed', 'deterministic'),
                     'diff_rank_seed': Only(False, advice='tools/train.py --diff-seed gives each process its own')}
LOG_PROCESSOR: Table = {
    **dict.fromkeys(('window_size', 'by_epoch', 'num_digits', 'log_with_hierarchy', 'mean_pattern'),
                    Idle('the log has its form, with means over its interval')),
    'custom_cfg': Only(None, [], advice='the log shows every loss and metric')}
MODEL_WRAPPER: Table = {'find_unused_parameters': 'find_unused_parameters', 'broadcast_buffers': Idle(''),
                        'detect_anomalous_params': Only(False), 'static_graph': Only(False)}
LOOP: Table = {'fp16': Only(False, advice="init_detector(precision='fp16') computes so")}
ONE_BY_ONE = dict(sync_bn="norm_cfg=dict(type='SyncBN') in the model says it", compile='init_detector(compile=True) is '
                  'for inference; a training is not compiled')


def _values(parts: Mapping[str, Piece]) -> dict[str, Any]:
    return {name: part.value for name, part in parts.items()}


# Keys of parts of a model that 2.x has not, with the only values that mean what boxdet does; the first two are read
# elsewhere.
MODEL: Table = {'data_preprocessor': Idle('see Preprocessing'), 'seg_scale_factor': Idle('see Preprocessing'),
                'use_box_type': Only(False, advice='boxes are horizontal'),
                'predict_box_type': Only('hbox', advice='boxes are horizontal'),
                'box_type': Only('hbox', advice='boxes are horizontal')}


def _with_sampling(model: Mapping[str, Any]) -> Mapping[str, Any]:
    """The model with ``sampling`` in the stages of CascadeRPNHead, which in 3.x follows from the stage's train_cfg."""
    head = model.get('rpn_head')
    if not isinstance(head, Mapping) or str(head.get('type')).rpartition('.')[2] != 'CascadeRPNHead':
        return model
    settings = (model.get('train_cfg') or {}).get('rpn') or []
    stages = [{'sampling': 'sampler' in one, **stage} for stage, one in zip(head.get('stages') or [], settings)]
    return {**model, 'rpn_head': {**head, 'stages': stages or head.get('stages')}}


def _in_2x_form(section: Section) -> Piece:
    """A part of the model: keys of ``MODEL`` taken out, and 'mmdet.ResNet' as 'ResNet', as boxdet has one registry."""
    return _walked(section.value, section.key, section.context)


def _walked(value: Any, key: Key, context: Context) -> Piece:
    if not _needs_change(value):
        return Piece(value, (((), key),))
    if isinstance(value, Mapping):
        Section({name: item for name, item in value.items() if name in MODEL}, key, context).read(MODEL)
        parts = {name: Piece(item.removeprefix('mmdet.'), (((), (*key, name)),)) if name == 'type'
                 and isinstance(item, str) else _walked(item, (*key, name), context)
                 for name, item in value.items() if name not in MODEL}
        return Piece.mapping(parts, key)
    return Piece.sequence([_walked(item, (*key, i), context) for i, item in enumerate(value)], key)


def _needs_change(value: Any) -> bool:
    if isinstance(value, Mapping):
        return str(value.get('type')).startswith('mmdet.') or any(
            name in MODEL or _needs_change(item) for name, item in value.items())
    return isinstance(value, (list, tuple)) and any(_needs_change(item) for item in value)


def _imports(wanted: Any) -> Any:
    """``custom_imports`` without the packages whose classes boxdet has itself."""
    if wanted is None:
        return None
    options = dict(wanted) if isinstance(wanted, Mapping) else dict(imports=wanted)
    names = options.get('imports') or []
    names = [names] if isinstance(names, str) else list(names)
    left = [name for name in names if name.partition('.')[0] not in OPENMMLAB]
    return {**options, 'imports': left} if left else None


def _variables(values: Mapping[str, Any], context: Context, used: Collection[str],
               found: Mapping[str, Piece]) -> dict[str, Piece]:
    """What is no section: a user's own variables stay, unless they hold configs, whose place is in the sections."""
    kept = {}
    for name, value in values.items():
        if name in SECTIONS:
            continue
        if name in OF_2X or name in found:
            if name not in used:
                context.note((name,), f'{NAME} has no such section, so that it has no effect; its place is '
                                      f'{OF_2X.get(name)}')
            continue
        near = '' if name in used or name in _BOTH else nearest(name, SECTIONS)
        if near and context.place_of((name,)).startswith('--'):
            raise ConfigError(f'{context.where((name,))}: nothing reads this variable{near}')
        if not _holds_configs(value):
            kept[name] = Piece(value, (((), (name,)),))
    return kept


def _holds_configs(value: Any) -> bool:
    if isinstance(value, Mapping):
        return 'type' in value or any(_holds_configs(item) for item in value.values())
    return isinstance(value, (list, tuple)) and any(_holds_configs(item) for item in value)
