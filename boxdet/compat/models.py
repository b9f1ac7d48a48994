"""Base classes under mmdetection 2.x's names whose 2.x methods are called: what ``mmdet.models`` gives to a plug-in.

Each is one of boxdet's with the methods of 2.x in front (``compat.detectors``, ``compat.heads``, ``compat.roi_heads``,
``compat.data``); here they are put together and registered.
"""
from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from boxdet import registry
from boxdet.compat import data, detectors, heads, roi_heads, samples
from boxdet.compat.forms import SamplingResult
from boxdet.matching.sampler import RankLosses

if TYPE_CHECKING:
    from boxdet.matching.sampler import RandomSampler as _Sampler  # whose ``sample`` all samplers have
else:
    _Sampler = object


class Sampler2x(_Sampler):
    """Samples by 2.x's names, from 2.x's call; what else a caller gives (``feats``) is not needed."""

    def __init__(self, *args: Any, context: Any = None, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.context = context

    def sample(self, assign_result: Any, bboxes: torch.Tensor, gt_bboxes: torch.Tensor,
               gt_labels: torch.Tensor | None = None, rank_losses: RankLosses | None = None,
               **kwargs: Any) -> SamplingResult:
        """As the sampler's."""
        asked: dict[str, Any] = {} if rank_losses is None else dict(rank_losses=rank_losses)
        if 'predictions' in kwargs:
            asked['predictions'] = kwargs['predictions']
        drawn = super().sample(assign_result, bboxes[:, :4].float(), gt_bboxes.float(), gt_labels, **asked)
        return SamplingResult.of(drawn, len(gt_bboxes))


# Which methods a class of boxdet's gets: those of the first whose last base it derives from.
_FORMS: tuple[type, ...] = (detectors.Detector2x, roi_heads.RoIHead2x, roi_heads.CascadeRoIHead2x, heads.BBoxHead2x,
                            heads.MaskHead2x, heads.RPNHead2x, *data.FORMS, *samples.FORMS)
_HOMES = 'boxdet.models.', 'boxdet.datasets.'
# Of the families those whose 2.x methods are StandardRoIHead's; the others keep boxdet's form, but for detectors.
_FAMILIES = tuple(f'boxdet.models.families.{name}' for name in (
    'double_heads', 'dynamic_rcnn', 'grid_rcnn', 'mask_scoring', 'pisa', 'point_rend'))
# Methods that stay idle there: the family's own way to results does not pass them.
_UNHEARD = dict(GridRoIHead=('simple_test_bboxes',), PointRendRoIHead=('_mask_forward',),
                MaskScoringRoIHead=('_mask_forward', 'simple_test_bboxes', 'simple_test_mask'))
_made: dict[type, type] = {}


def form_of(cls: type) -> type:
    """The class that ``mmdet.models`` has under this name: ``cls`` with 2.x's methods, or ``cls``."""
    if cls in _made or not isinstance(cls, type) or not cls.__module__.startswith(_HOMES) \
            or cls.__module__.startswith('boxdet.models.families.') and cls.__module__ not in _FAMILIES \
            and not issubclass(cls, detectors.Detector2x.__bases__[-1]):
        return _made.get(cls, cls)
    form = next((form for form in _FORMS if issubclass(cls, form.__bases__[-1])), None)
    if form is None and cls.__module__.startswith('boxdet.datasets.pipelines.') and '__call__' in vars(cls):
        form = data.Transform2x
    if form is None:
        return cls
    # The class's own bases come first, so that a RoI head of 2.x is a subclass of 2.x's StandardRoIHead too.
    bases = tuple(dict.fromkeys(form_of(base) for base in cls.__bases__ if form_of(base) is not base))
    own = (cls,) if not bases else (*bases, cls)
    content: dict[str, Any] = dict(__module__='boxdet.compat.models', __doc__=cls.__doc__)
    if cls.__name__ in _UNHEARD:
        content['unheard'] = _UNHEARD[cls.__name__]
    if 'can_defer' in vars(cls):  # an ability that is not inherited
        content['can_defer'] = vars(cls)['can_defer']
    made = type(cls.__name__, (form, *own) if not bases else own, content)
    _made[cls] = made
    return made


def _sampling_form(cls: type) -> type:
    if cls not in _made:
        _made[cls] = type(cls.__name__, (Sampler2x, cls), dict(__module__='boxdet.compat.models', __doc__=cls.__doc__))
    return _made[cls]


def __getattr__(name: str) -> type:
    """The class of this name, which a pickle of a whole model asks for; also in a process without the import hook."""
    made = next((one for one in _made.values() if one.__name__ == name), None)
    for known, form in ((registry.MODELS, form_of), (registry.DATASETS, form_of), (registry.PIPELINES, form_of),
                        (registry.MATCHING, _sampling_form)):
        if made is None and not name.startswith('_') and name in known:
            made = form(known.get(name))
    if made is None:
        raise AttributeError(f'{__name__} has no {name}')
    return made


def register_forms() -> None:
    """Put the classes with 2.x's methods into the registries, under the same names."""
    samples.hold_lists()
    for known in (registry.MODELS, registry.DATASETS, registry.PIPELINES):
        for name in known.names():
            cls = known.get(name)
            made = form_of(cls)
            if made is not cls:
                known.register_module(name=name, module=made, force=True)
    for name in registry.MATCHING.names():
        cls = registry.MATCHING.get(name)
        if hasattr(cls, 'sample') and not issubclass(cls, Sampler2x) and cls.__module__.startswith('boxdet.'):
            registry.MATCHING.register_module(name=name, module=_sampling_form(cls), force=True)
