"""How many multiplications a detector makes on an image, part by part, without making them.

Everything runs on the meta device, where tensors have shapes and no numbers: a count takes a moment and no memory for
any model. The counter is torch's (``torch.utils.flop_counter``), with torchvision's deformable convolution added.

Counted: convolutions, transposed convolutions and matrix products (linear layers), at inference, for as many rois as
the config's ``test_cfg`` lets through: ``rpn.max_per_img`` proposals in the box heads, ``rcnn.max_per_img`` detections
in the mask and keypoint heads. A multiplication with its addition counts as one, as in the tables of mmdetection and
detectron2.
Not counted: norms, activations, pooling of rois, interpolation, NMS.

R rois, C channels.
"""
from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from boxdet.abilities import ability, overrides
from boxdet.errors import ConfigError
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.cascade_roi_head import CascadeRoIHead
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.models.standard_roi_head import StandardRoIHead
from boxdet.structures.batch import ImageMeta

T = TypeVar('T')

PROPOSALS = 1000  # where no RPN says how many: Fast R-CNN's files hold as many


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters, trained or frozen; no buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Multiply-adds of one image by part.

    The parts are backbone, neck, rpn_head, shared_head, bbox_head, mask_head, keypoint_head, grid_head, and context for
    what a RoI head makes of whole images.

    Args:
        model: a detector on the meta device (``with torch.device('meta'): build_detector(...)``).
        height: of the network's input; the pipeline's padding makes multiples of 32 of it.
        width: likewise.

    Raises:
        ConfigError: a model that is elsewhere, or whose parts are not known here.
    """
    if any(not parameter.is_meta for parameter in model.parameters()):
        raise ConfigError("count_operations: build the model under torch.device('meta')")
    counts: dict[str, int] = {}
    model = model.eval()
    image = torch.empty(1, 3, height, width, device='meta')
    with torch.no_grad():
        feats = _counted(counts, 'backbone', model.backbone, image)
        if model.with_neck:
            feats = _counted(counts, 'neck', model.neck, feats)
        if hasattr(model, 'rpn_head'):
            _counted(counts, 'rpn_head', _proposing, model.rpn_head, feats, ImageMeta(img_shape=(height, width, 3)))
        if getattr(model, 'with_roi_head', False):
            rpn = model.test_cfg.rpn
            _count_roi_head(counts, model.roi_head, feats, (height, width), getattr(rpn, 'max_per_img', PROPOSALS))
    return counts


def _proposing(head: nn.Module, feats: Sequence[torch.Tensor], meta: ImageMeta) -> None:
    """Run all layers of an RPN."""
    outs = head(feats)
    if ability(head, 'runs_on_images'):
        head.run(*outs, [meta])


def _counted(counts: dict[str, int], part: str, run: Callable[..., T], *inputs: object) -> T:
    """Run a part and add what it takes under its name."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d})
    before = sum(counts.values())
    with counter:
        result = run(*inputs)
    apart = sum(counts.values()) - before  # of modules that are counted as parts of their own
    counts[part] = counts.get(part, 0) + counter.get_total_flops() // 2 - apart  # multiplication and addition: two
    return result


def _deform_conv2d(image: Sequence[int], weight: Sequence[int], *args: object, out_shape: Sequence[int] = (),
                   **kwargs: object) -> int:
    """A deformable convolution multiplies as a plain one; its interpolation is not counted."""
    batch, _, height, width = out_shape
    out_channels, per_group, kernel_h, kernel_w = weight
    return 2 * batch * height * width * out_channels * per_group * kernel_h * kernel_w


def _count_roi_head(counts: dict[str, int], head: nn.Module, feats: Sequence[torch.Tensor],
                    image_hw: tuple[int, int], proposals: int) -> None:
    """Run the box, mask, keypoint and grid branches on so many proposals, and on as many detections as are kept."""
    detections = getattr(head.test_cfg, 'max_per_img', RoITestSettings.max_per_img)
    detections = detections if detections > 0 else proposals
    meta = ImageMeta(img_shape=(*image_hw, 3))
    boxes, found = (torch.empty(count, 4, device='meta') for count in (proposals, detections))
    labels, scores = torch.empty(detections, dtype=torch.long, device='meta'), torch.empty(detections, device='meta')
    head = _with_stand_ins(copy.deepcopy(head), counts)
    if hasattr(head, 'context'):
        feats = _counted(counts, 'context', head.context, feats)
    _counted(counts, 'bbox_head', head.classify, feats, [boxes], [meta])
    if hasattr(head, 'mask_head'):
        if overrides(head, 'mask_fields', StandardRoIHead, CascadeRoIHead) \
                or overrides(head, 'mask_probs', StandardRoIHead, CascadeRoIHead):
            _counted(counts, 'mask_head', head.mask_fields, feats, [found], [labels], scores)
        else:  # masks of every class, as the tables count them, though only those of the labels are made
            several = isinstance(head.mask_head, nn.ModuleList)
            stages = [(i,) for i in range(len(head.mask_head))] if several else [()]
            for stage, predictor in zip(stages, _stages(head.mask_head)):
                _counted(counts, 'mask_head', lambda *at, to=predictor: to(head.mask_features(*at)), *stage, feats,
                         boxes_to_rois([found]))
    if hasattr(head, 'keypoint_head'):
        _counted(counts, 'keypoint_head', head.keypoint_heatmaps, feats, [found])
    if hasattr(head, 'grid_head'):
        _counted(counts, 'grid_head', lambda: head.grid_head(head.grid_features(feats, boxes_to_rois([found]))))
    for part in [part for part, count in counts.items() if not count]:
        del counts[part]


def _with_stand_ins(head: nn.Module, counts: dict[str, int]) -> nn.Module:
    """``head`` with pooling that gives shapes only, and a shared head that is counted by itself."""
    for name, module in list(head.named_modules()):
        if name and hasattr(module, 'roi_layers'):
            parent, _, own = name.rpartition('.')
            setattr(head.get_submodule(parent), own, _Pooling(module))
    if getattr(head, 'shared_head', None) is not None:
        head.shared_head = _CountedApart(head.shared_head, counts, 'shared_head')
    return head


def _stages(modules: nn.Module) -> nn.ModuleList | list[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]


class _Pooling(nn.Module):
    """An extractor that gives features of the right shape.

    The pooling itself multiplies nothing that is counted. Layers inside of it (deformable RoI pooling) do, and those
    before and after the joining of levels.
    """

    def __init__(self, extractor: nn.Module):
        super().__init__()
        self.extractor, self.num_inputs, self.out_channels = extractor, extractor.num_inputs, extractor.out_channels
        self.featmap_strides = extractor.featmap_strides

    def forward(self, feats: Sequence[torch.Tensor], rois: torch.Tensor, **kwargs: object) -> torch.Tensor:
        """(R, C, h, w) for rois (R, 5)."""
        own, layer = self.extractor, self.extractor.roi_layers[0]
        pooled = torch.empty(len(rois), own.out_channels, *layer.output_size, device='meta')
        for inner in layer.children():
            inner(pooled.flatten(1))
        levels = [pooled] * own.num_inputs
        if getattr(own, 'pre_module', None) is not None:
            levels = [own.pre_module(one) for one in levels]
        if getattr(own, 'aggregation', None) == 'concat':
            pooled = torch.cat(levels, dim=1)
        return pooled if getattr(own, 'post_module', None) is None else own.post_module(pooled)


class _CountedApart(nn.Module):
    """A module whose multiplications are counted as a part of their own, and not of the parts that call it."""

    def __init__(self, module: nn.Module, counts: dict[str, int], part: str):
        super().__init__()
        self.module, self.counts, self.part = module, counts, part

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """As the module."""
        return _counted(self.counts, self.part, self.module, x)
