"""The registries: from the ``type`` of a config to a class.

Each registry lists the modules that hold its classes and imports them on the first lookup, so that importing boxdet,
or asking a command line for ``--help``, does not execute the whole package. A detector family beyond the core (one file
in ``models/families``) is imported when one of its names is asked for: ``FAMILIES`` is the table of them. A user's own
class joins with ``@HEADS.register_module()``; mmdetection 2.x's several names for one registry are kept as aliases.
"""
from __future__ import annotations

import importlib
import inspect
import re
import warnings
from collections.abc import Mapping
from typing import Any

from mmengine.registry import Registry as _MMEngineRegistry

from boxdet import idle_overrides
from boxdet.errors import ConfigError, nearest

Cfg = Mapping[str, Any]  # what ``Registry.build`` takes: a dict with a ``type``; or a part of a config


class Registry(_MMEngineRegistry):
    """mmengine's Registry with near names in its errors, keyword checks, and configs that stay as they are.

    Args:
        name: what the registry holds, in a word; used in errors.
        modules: imported on the first lookup, so that their classes register themselves.
        on_demand: names of classes by the module that is imported when one of them is asked for.
        idle_is_error: a class with a method that nothing calls (``boxdet.idle_overrides``) is not built; with a
            warning it is, otherwise.
    """

    def __init__(self, name: str, modules: tuple[str, ...] = (),
                 on_demand: Mapping[str, tuple[str, ...]] | None = None, idle_is_error: bool = False):
        super().__init__(name, scope='boxdet')
        self._idle_is_error = idle_is_error
        self._modules = modules
        self._pending = bool(modules)
        self._on_demand = {key: module for module, keys in (on_demand or {}).items() for key in keys}

    def _import_modules(self) -> None:
        # The flag falls first: a module that registers while it is imported must not start over.
        if self._pending:
            self._pending = False
            for module in self._modules:
                importlib.import_module(module)

    def _find(self, key: str) -> type | None:
        self._import_modules()
        if key not in self.module_dict and key in self._on_demand:
            importlib.import_module(self._on_demand[key])
        return self.module_dict.get(key)

    def _register_module(self, module: Any, module_name: str | list[str] | None = None, force: bool = False) -> None:
        """As mmengine's, but a user's class takes the place of ours of that name, whichever comes first."""
        names = [module_name] if isinstance(module_name, str) else module_name or [module.__name__]
        for name in names:
            old = self.module_dict.get(name)
            if old is None or force or self._is_ours(old) == self._is_ours(module):
                super()._register_module(module, name, force)
                continue
            if not self._is_ours(module):
                super()._register_module(module, name, force=True)
            users = self.module_dict[name].__module__
            warnings.warn(f"{self.name} '{name}' is that of {users}, in the place of boxdet's", stacklevel=3)

    def _is_ours(self, module: Any) -> bool:
        home = getattr(module, '__module__', '')
        return home.startswith('boxdet.') or home in self._on_demand.values()

    def names(self) -> list[str]:
        """All registered type names, sorted; imports every module that holds one."""
        self._import_modules()
        for module in sorted(set(self._on_demand.values())):
            importlib.import_module(module)
        return sorted(self.module_dict)

    def get(self, key: str | type) -> type:
        """Return the class registered as ``key``; a class is returned as it is.

        Raises:
            ConfigError: nothing is registered under that name.
        """
        if isinstance(key, type):
            return key
        # People write 'mmdet.ResNet' to choose a package's registry; there is one here.
        found = self._find(key.rpartition('.')[2] if isinstance(key, str) else key)
        if found is None:
            raise ConfigError(f"unknown {self.name} type '{key}'{nearest(key, self.names())}")
        return found

    def __contains__(self, key: str) -> bool:
        return self._find(key) is not None

    def build(self, cfg: Cfg | object, **defaults: Any) -> Any:
        """Build the object that ``cfg`` describes; ``defaults`` fill keywords that it leaves out.

        An object that is already built is returned as it is, so that constructors take either. ``cfg`` is not
        changed.

        Raises:
            ConfigError: ``cfg`` has no ``type``, an unknown one, or a keyword that the constructor does not take; or a
            model's class overrides a method of mmdetection 2.x that nothing calls (``boxdet.idle_overrides``).
        """
        if not isinstance(cfg, Mapping):
            return cfg
        if 'type' not in cfg:
            raise ConfigError(f"a {self.name} config needs a 'type': {dict(cfg)}")
        kwargs = {**defaults, **cfg}
        cls = self.get(kwargs.pop('type'))
        idle_overrides.check(cls, is_error=self._idle_is_error)
        check_keywords(cls, kwargs)
        try:
            return cls(**kwargs)
        except TypeError as error:
            missing = _missing_keywords(cls, kwargs)
            if missing:
                raise ConfigError(f"{cls.__name__} needs {', '.join(missing)}") from error
            refused = re.search(r"unexpected keyword argument '(\w+)'", str(error))
            if refused and refused.group(1) in kwargs:  # a **kwargs that was handed on
                near = nearest(refused.group(1), accepted_keywords(cls)[0])
                raise ConfigError(f"{refused.group(1)}: {cls.__name__} takes no '{refused.group(1)}'{near}") from error
            raise


def accepted_keywords(cls: Any) -> tuple[set[str], bool]:
    """Return the keywords that ``cls(...)`` takes, and whether it takes any others too.

    ``**kwargs`` is followed to the next class in line that spells its keywords out: a ``Shared2FCBBoxHead(**kwargs)``
    takes what ``ConvFCBBoxHead`` and ``BBoxHead`` take. Where that class is not boxdet's, nobody knows what becomes of
    the rest: such a class takes any keyword.
    """
    names: set[str] = set()
    followed = False
    owners = inspect.getmro(cls) if inspect.isclass(cls) else (cls,)
    for owner in owners:
        function = owner.__dict__.get('__init__') if inspect.isclass(owner) else owner
        if function is None or owner is object:
            continue
        try:
            parameters = inspect.signature(function).parameters.values()
        except (TypeError, ValueError):
            return names, True
        names.update(p.name for p in parameters
                     if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and p.name != 'self')
        if not any(p.kind is p.VAR_KEYWORD for p in parameters):
            return names, followed and not owner.__module__.startswith('boxdet.')
        followed = True
        if owner.__module__.startswith('torch.'):
            break
    return names, True


def plain_keywords(cls: Any) -> dict[str, str]:
    """The keywords of a class of boxdet's that take one plain type, by name: 'int', 'float' or 'bool'.

    The class that is next in line says it; ``int | None`` takes no part, as None has a meaning of its own there.
    """
    kinds: dict[str, str] = {}
    for owner in inspect.getmro(cls) if inspect.isclass(cls) else ():
        function = owner.__dict__.get('__init__')
        if function is not None and owner.__module__.startswith('boxdet.'):
            for name, parameter in inspect.signature(function).parameters.items():
                kinds.setdefault(name, str(parameter.annotation))
    return {name: kind for name, kind in kinds.items() if kind in ('int', 'float', 'bool')}


def boxdet_keywords(cls: Any) -> set[str] | None:
    """The keywords of a user's class that come from the class of boxdet's it derives from; None: all of them do."""
    owner = next((base for base in inspect.getmro(cls) if base.__module__.startswith('boxdet.')), None) \
        if inspect.isclass(cls) else None
    if owner is cls or getattr(cls, '__module__', '').startswith('boxdet.'):
        return None
    return set() if owner is None else accepted_keywords(owner)[0]


def check_keywords(cls: Any, keywords: Mapping[str, Any], where: str = '') -> None:
    """Raise ConfigError when ``cls`` does not take one of ``keywords``; ``where`` is their config path for messages."""
    names, open_ended = accepted_keywords(cls)
    if open_ended:
        return
    for key in keywords:
        if key not in names:
            path = f'{where}.{key}' if where else key
            raise ConfigError(f"{path}: {cls.__name__} takes no '{key}'{nearest(key, names)}")


def _missing_keywords(cls: Any, keywords: Mapping[str, Any]) -> list[str]:
    parameters = inspect.signature(cls).parameters.values()
    return [f"'{p.name}'" for p in parameters
            if p.default is p.empty and p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)
            and p.name not in keywords]


# The detector families beyond the core, a file each: what each one registers, in whichever registry.
FAMILIES = {f'boxdet.models.families.{module}': names for module, names in {
    'htc': ('FusedSemanticHead', 'HTCMaskHead', 'HybridTaskCascade', 'HybridTaskCascadeRoIHead'),
    'point_rend': ('CoarseMaskHead', 'MaskPointHead', 'PointRend', 'PointRendRoIHead', 'SimpleRoIAlign'),
    'dynamic_rcnn': ('DynamicRoIHead',),
    'grid_rcnn': ('GridHead', 'GridRCNN', 'GridRoIHead'),
    'pisa': ('PISARoIHead', 'ScoreHLRSampler'),
    'sabl': ('BucketingBBoxCoder', 'SABLHead'),
    'scnet': ('FeatureRelayHead', 'GlobalContextHead', 'SCNet', 'SCNetBBoxHead', 'SCNetMaskHead', 'SCNetRoIHead',
              'SCNetSemanticHead'),
    'seesaw': ('NormedConv2d', 'NormedLinear', 'SeesawLoss'),
    'legacy': ('DetectronAnchorGenerator', 'DetectronRoIAlign', 'LegacyAnchorGenerator', 'LegacyDeltaXYWHBBoxCoder'),
    'ghm': ('GHMC', 'GHMR'),
    'dice': ('DiceLoss',), 'distillation': ('KnowledgeDistillationKLDivLoss',),
    'double_heads': ('DoubleConvFCBBoxHead', 'DoubleHeadRoIHead'),
    'single_mask_cascade': ('SingleMaskCascadeRoIHead',),
    'tensorpack_norms': ('TensorpackConvFCBBoxHead', 'TensorpackFCNMaskHead', 'TensorpackFPN'),
    'mask_scoring': ('MaskIoUHead', 'MaskScoringRCNN', 'MaskScoringRoIHead'),
    'tridentnet': ('TridentFasterRCNN', 'TridentResNet', 'TridentRoIHead'),
    'guided_anchoring': ('ApproxMaxIoUAssigner', 'GARPNHead'),
    'cascade_rpn': ('CascadeRPNHead', 'RegionAssigner', 'StageCascadeRPNHead'),
    # Backbones
    'swin': ('SwinTransformer',),
    'convnext': ('ConvNeXt', 'LN2d'),
    'regnet': ('RegNet',),
    'hrnet': ('HRFPN', 'HRNet'),
    'res2net': ('Res2Net',),
    'resnest': ('ResNeSt',),
    'pvt': ('PyramidVisionTransformer', 'PyramidVisionTransformerV2'),
    'timm_backbone': ('TIMMBackbone',),
    'mobilenet_v2': ('MobileNetV2',),
    'detectors': ('ConvAWS', 'DetectoRS_ResNeXt', 'DetectoRS_ResNet', 'RFP', 'SAC'),
    'attention_plugins': ('ContextBlock', 'GeneralizedAttention', 'NonLocal2d'),
    # Necks
    'pafpn': ('PAFPN',),
    'libra_rcnn': ('BFP',),
    'fpg': ('FPG',),
    'nas_fpn': ('NASFPN',),
    'carafe': ('FPN_CARAFE', 'carafe', 'pixel_shuffle'),
    'channel_mapper': ('ChannelMapper',),
}.items()}

MODELS = Registry('model', (
    'boxdet.models.backbones.resnet', 'boxdet.models.backbones.resnext', 'boxdet.models.backbones.vgg',
    'boxdet.models.necks.fpn',
    'boxdet.models.rpn_head', 'boxdet.models.roi_extractor', 'boxdet.models.bbox_head', 'boxdet.models.mask_head',
    'boxdet.models.keypoint_head', 'boxdet.models.shared_head', 'boxdet.models.standard_roi_head',
    'boxdet.models.cascade_roi_head', 'boxdet.models.losses', 'boxdet.models.detectors'), FAMILIES,
    idle_is_error=True)
DETECTORS = BACKBONES = NECKS = HEADS = ROI_EXTRACTORS = SHARED_HEADS = LOSSES = MODELS

LAYERS = Registry('layer', ('boxdet.models.layers', 'boxdet.models.roi_extractor', 'boxdet.models.roi_sampling'),
                  FAMILIES)

MATCHING = Registry('matching', (
    'boxdet.matching.anchors', 'boxdet.matching.box_coder', 'boxdet.matching.assigner',
    'boxdet.matching.sampler'), FAMILIES)
ANCHOR_GENERATORS = PRIOR_GENERATORS = BBOX_CODERS = BBOX_ASSIGNERS = BBOX_SAMPLERS = IOU_CALCULATORS = MATCHING

DATASETS = Registry('dataset', (
    'boxdet.datasets.coco', 'boxdet.datasets.coco_keypoint', 'boxdet.datasets.cityscapes', 'boxdet.datasets.custom',
    'boxdet.datasets.lvis', 'boxdet.datasets.voc', 'boxdet.datasets.wrappers'), {
        'boxdet.datasets.deepfashion': ('DeepFashionDataset',),
        'boxdet.datasets.objects365': ('Objects365V1Dataset', 'Objects365V2Dataset'),
        'boxdet.datasets.open_images': ('OpenImagesChallengeDataset', 'OpenImagesDataset'),
        'boxdet.datasets.wider_face': ('WIDERFaceDataset',)})
PIPELINES = Registry('pipeline', (
    'boxdet.datasets.pipelines.loading', 'boxdet.datasets.pipelines.geometric', 'boxdet.datasets.pipelines.color',
    'boxdet.datasets.pipelines.formatting', 'boxdet.datasets.pipelines.mixing',
    'boxdet.datasets.pipelines.compose', 'boxdet.datasets.pipelines.auto_augment',
    'boxdet.datasets.pipelines.libraries'))

EVALUATORS = Registry('evaluator', (
    'boxdet.evaluation.coco_metrics', 'boxdet.evaluation.voc', 'boxdet.evaluation.cityscapes', 'boxdet.evaluation.lvis',
    'boxdet.evaluation.evaluate'), {'boxdet.evaluation.open_images': ('OpenImagesEvaluator',)})

HOOKS = Registry('hook', ('boxdet.engine.hooks', 'boxdet.engine.momentum', 'boxdet.engine.loggers',
                          'boxdet.engine.averaging'))
RUNNERS = Registry('runner', ('boxdet.engine.runner',))
OPTIMIZERS = Registry('optimizer', ('boxdet.engine.schedule',))

__all__ = ['ANCHOR_GENERATORS', 'BACKBONES', 'BBOX_ASSIGNERS', 'BBOX_CODERS', 'BBOX_SAMPLERS', 'Cfg', 'DATASETS',
           'DETECTORS', 'EVALUATORS', 'HEADS', 'HOOKS', 'IOU_CALCULATORS', 'LAYERS', 'LOSSES', 'MATCHING', 'MODELS',
           'NECKS', 'OPTIMIZERS', 'PIPELINES', 'PRIOR_GENERATORS', 'ROI_EXTRACTORS', 'RUNNERS', 'Registry',
           'SHARED_HEADS', 'accepted_keywords', 'boxdet_keywords', 'check_keywords']
