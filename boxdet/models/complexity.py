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

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.models.bbox_head import RoITestSettings

PROPOSALS = 1000  # where no RPN says how many: Fast R-CNN's files hold as many


def count_parameters(model: nn.Module) -> int:
    """Numbers in all parameters, trained or frozen; no buffers."""
    return sum(parameter.numel() for parameter in model.parameters())


def count_operations(model: nn.Module, height: int, width: int) -> dict[str, int]:
    """Multiply-adds of one image by part: backbone, neck, rpn_head, shared_head, bbox_head, mask_head, keypoint_head.

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
            _counted(counts, 'rpn_head', model.rpn_head, feats)
        if getattr(model, 'with_roi_head', False):
            rpn = model.test_cfg.rpn
            _count_roi_head(counts, model.roi_head, getattr(rpn, 'max_per_img', PROPOSALS))
    return counts


def _counted(counts: dict[str, int], part: str, run: Callable[..., Any], *inputs: Any) -> Any:
    """Run a part and add what it takes under its name."""
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.torchvision.deform_conv2d: _deform_conv2d})
    with counter:
        result = run(*inputs)
    counts[part] = counts.get(part, 0) + counter.get_total_flops() // 2  # torch counts multiplication and addition
    return result


def _deform_conv2d(image: Sequence[int], weight: Sequence[int], *args: Any, out_shape: Sequence[int] = (), **kwargs: Any
                   ) -> int:
    """A deformable convolution multiplies as a plain one; its interpolation is not counted, as nobody's is."""
    batch, _, height, width = out_shape
    out_channels, per_group, kernel_h, kernel_w = weight
    return 2 * batch * height * width * out_channels * per_group * kernel_h * kernel_w


def _count_roi_head(counts: dict[str, int], head: nn.Module, proposals: int) -> None:
    detections = getattr(head.test_cfg, 'max_per_img', RoITestSettings.max_per_img)
    detections = detections if detections > 0 else proposals
    for extractor, box_head in zip(_stages(head.bbox_roi_extractor), _stages(head.bbox_head)):
        pooled = _roi_features(counts, 'bbox_head', extractor, proposals, head)
        _counted(counts, 'bbox_head', box_head, pooled)
    for part in ('mask', 'keypoint'):
        last = getattr(head, f'{part}_head', None)
        for stage, predictor in enumerate(_stages(last) if last is not None else ()):
            own = _stages(getattr(head, f'{part}_roi_extractor', head.bbox_roi_extractor))[stage]
            shared = ability(predictor, 'res_layer') is None
            pooled = _roi_features(counts, f'{part}_head', own, detections, head if shared else None)
            _counted(counts, f'{part}_head', predictor, pooled)


def _stages(modules: nn.Module) -> nn.ModuleList | list[nn.Module]:
    return modules if isinstance(modules, nn.ModuleList) else [modules]


def _roi_features(counts: dict[str, int], part: str, extractor: nn.Module, rois: int, head: nn.Module | None
                  ) -> torch.Tensor:
    """Features (rois, C, h, w) as the extractor and the shared head of ``head`` give them.

    The pooling itself multiplies nothing that is counted; layers inside of it (deformable RoI pooling) do.
    """
    layer = extractor.roi_layers[0]
    pooled = torch.empty(rois, extractor.out_channels, *layer.output_size, device='meta')
    for inner in layer.children():
        _counted(counts, part, inner, pooled.flatten(1))
    levels = [pooled] * extractor.num_inputs
    if getattr(extractor, 'pre_module', None) is not None:
        levels = [_counted(counts, part, extractor.pre_module, one) for one in levels]
    if getattr(extractor, 'aggregation', None) == 'concat':
        pooled = torch.cat(levels, dim=1)
    if getattr(extractor, 'post_module', None) is not None:
        pooled = _counted(counts, part, extractor.post_module, pooled)
    if getattr(head, 'shared_head', None) is not None:
        pooled = _counted(counts, 'shared_head', head.shared_head, pooled)
    return pooled
