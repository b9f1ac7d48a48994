"""Detectors with mmdetection 2.x's methods.

As long as a plug-in overrides none of them, boxdet's own path is taken; otherwise 2.x's: ``forward_train`` of the
detector calls that of the heads (``compat.heads``, ``compat.roi_heads``).

Letters: B images, N boxes of an image, K classes.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from boxdet.compat.forms import (
    as_batch,
    as_ground_truth,
    as_ignored,
    as_instances,
    as_rows,
    as_training_inputs,
    has_own,
    meta_dict,
    metas_of,
    unpacked,
)
from boxdet.compat.heads import rpn_forward_train
from boxdet.compat.roi_heads import tests_2x, wants_2x
from boxdet.models.roi_extractor import boxes_to_rois
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances

if TYPE_CHECKING:
    from boxdet.models.detectors import TwoStageDetector as _Detector  # whose loss and predict every detector has
else:
    from boxdet.models.detectors import _Detector



class Detector2x(_Detector):
    """2.x's methods of every detector."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.fp16_enabled = False

    @property
    def with_shared_head(self) -> bool:
        """Whether roi features pass shared layers first."""
        return self.with_roi_head and getattr(self.roi_head, 'with_shared_head', False)

    def forward(  # type: ignore[override]  # 2.x's arguments too
            self, img: Any = None, img_metas: Any = None, return_loss: bool | None = None, mode: str | None = None,
            **kwargs: Any) -> Any:
        """2.x's ``forward(img, img_metas, return_loss, ...)``, or boxdet's ``forward(batch, mode)``."""
        first = img[0] if isinstance(img, (list, tuple)) and img else img
        if isinstance(first, Batch):
            return super().forward(img, mode or ('predict' if return_loss is False else 'loss'), **kwargs)
        img, img_metas = unpacked(img), unpacked(img_metas)
        kwargs = {key: unpacked(value) for key, value in kwargs.items()}
        if return_loss is None or return_loss:
            return self.forward_train(img, img_metas, **kwargs)
        return self.forward_test(img, img_metas, **kwargs)

    def loss(self, batch: Batch) -> dict[str, Any]:
        """As the detector's; through ``forward_train`` where a part brings a method of 2.x's."""
        if not (has_own(self, 'forward_train') or self._parts_are_own()):
            return super().loss(batch)
        return self.forward_train(**as_training_inputs(self._on_device(batch)))

    def _parts_are_own(self) -> bool:
        heads = [getattr(self, name) for name in ('rpn_head', 'roi_head') if hasattr(self, name)]
        return any(wants_2x(head) for head in heads)

    def forward_train(self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]], **kwargs: Any) -> dict[str, Any]:
        """Losses by name, of 2.x's arguments."""
        if not self._parts_are_own():
            return super().loss(as_batch(img, img_metas, **kwargs))
        gt_bboxes, proposals = kwargs.pop('gt_bboxes'), kwargs.pop('proposals', None)
        gt_labels, ignored = kwargs.pop('gt_labels', None), kwargs.pop('gt_bboxes_ignore', None)
        shape = tuple(img.shape[-2:])
        img_metas = [{**(meta if isinstance(meta, Mapping) else meta_dict(meta)), 'batch_input_shape': shape}
                     for meta in img_metas]
        feats = self.extract_feat(img)
        losses: dict[str, Any] = {}
        if self.with_rpn:
            settings = self.test_cfg.rpn if self.train_cfg.rpn_proposal is None else self.train_cfg.rpn_proposal
            losses, proposals = rpn_forward_train(self.rpn_head, feats, img_metas, gt_bboxes, ignored, settings)
        if not self.with_roi_head:
            return losses
        if hasattr(self.roi_head, 'forward_train'):
            parts = self.roi_head.forward_train(feats, img_metas, proposals, gt_bboxes, gt_labels, ignored, **kwargs)
        else:
            gt = as_ground_truth(gt_bboxes, gt_labels, kwargs.get('gt_masks'), kwargs.get('gt_keypoints'))
            parts = self.roi_head.loss(feats, as_instances(proposals), gt, as_ignored(ignored, gt_bboxes),
                                       metas_of(img_metas))
        return {**losses, **parts}

    def predict(self, batch: Batch | Sequence[Batch], rescale: bool = True) -> list[Instances]:
        """As the detector's; through ``simple_test`` where a part brings a test method of 2.x's."""
        views = [batch] if isinstance(batch, Batch) else batch
        own = has_own(self, 'simple_test', 'forward_test') or tests_2x(getattr(self, 'roi_head', None))
        if not own or len(views) > 1:
            return super().predict(batch, rescale=rescale)
        view = self._on_device(views[0])
        given = {} if view.proposals is None else dict(proposals=as_rows(view.proposals))
        metas = [meta_dict(meta) for meta in view.metas]
        with torch.no_grad():
            results = self.simple_test(view.images, metas, rescale=rescale, **given)
        sizes = [meta.original_size if rescale else meta.input_size for meta in view.metas]
        return [best_first(Instances.from_per_class(result, size)) for result, size in zip(results, sizes)]

    def forward_test(self, imgs: Sequence[torch.Tensor] | torch.Tensor, img_metas: Sequence[Any], rescale: bool = False,
                     **kwargs: Any) -> list[Any]:
        """2.x's results of the views ``imgs`` (1, 3, H, W) of the images."""
        if isinstance(imgs, torch.Tensor):
            imgs, img_metas = [imgs], [img_metas] if isinstance(img_metas[0], Mapping) else img_metas
        if len(imgs) != len(img_metas):
            raise ValueError(f'{len(imgs)} views of the images, but img_metas of {len(img_metas)}')
        metas = [[one] if isinstance(one, Mapping) else list(one) for one in img_metas]
        if len(imgs) > 1:
            return self.aug_test(imgs, metas, rescale=rescale, **kwargs)
        kwargs = {key: value[0] if key == 'proposals' and isinstance(value, (list, tuple)) else value
                  for key, value in kwargs.items()}
        return self.simple_test(imgs[0], metas[0], rescale=rescale, **kwargs)

    def simple_test(self, img: torch.Tensor, img_metas: Sequence[Mapping[str, Any]],
                    proposals: Sequence[torch.Tensor] | None = None, rescale: bool = False) -> list[Any]:
        """2.x's results of B images: K arrays (n, 5); with masks a pair whose masks are (H, W) bool arrays."""
        metas = [dict(meta) for meta in img_metas]
        if tests_2x(getattr(self, 'roi_head', None)):
            feats = self.extract_feat(img)
            if proposals is None:
                proposals = as_rows(self.rpn_head.predict(*self.rpn_head(feats), metas_of(metas), self.test_cfg.rpn))
            return self.roi_head.simple_test(feats, proposals, metas, rescale=rescale)
        found = super().predict(as_batch(img, _complete(metas, img), proposals=proposals), rescale=rescale)
        return [self.result_2x(one) for one in found]

    def aug_test(self, imgs: Sequence[torch.Tensor], img_metas: Sequence[Sequence[Mapping[str, Any]]],
                 rescale: bool = False, proposals: Sequence[Any] | None = None) -> list[Any]:
        """2.x's results, merged from several views of an image."""
        views = [as_batch(img, _complete(metas, img)) for img, metas in zip(imgs, img_metas)]
        return [self.result_2x(one) for one in super().predict(views, rescale=rescale)]

    def result_2x(self, result: Instances) -> Any:
        """What 2.x's ``inference_detector`` gives for an image; of an RPN an array (N, 5)."""
        if not self.with_roi_head:
            return as_rows([result])[0].numpy()
        return result.per_class(result.num_classes or self.roi_head.last_bbox_head.num_classes, masks='bitmap')

    def forward_dummy(self, img: torch.Tensor) -> tuple[Any, ...]:
        """The outputs of all heads on an image, with 1000 proposals of chance: for counting operations."""
        feats = self.extract_feat(img)
        outs: tuple[Any, ...] = ()
        if self.with_rpn:
            outs += (self.rpn_head(feats),)
        if self.with_roi_head:
            proposals = torch.rand(1000, 4, device=img.device) * img.shape[-1]
            rois = boxes_to_rois([torch.cat([proposals[:, :2], proposals[:, :2] + proposals[:, 2:]], dim=1)])
            stages = range(getattr(self.roi_head, 'num_stages', 1))
            several = hasattr(self.roi_head, 'num_stages')
            outs += tuple(self.roi_head.box_forward(*([stage] if several else []), feats, rois)[:2] for stage in stages)
            if self.with_mask:
                head = self.roi_head.mask_head
                outs += tuple((head[stage] if several else head)(
                    self.roi_head.mask_features(*([stage] if several else []), feats, rois[:100])) for stage in stages)
        return outs

    def extract_feats(self, imgs: Sequence[torch.Tensor]) -> list[Any]:
        """``extract_feat`` of each view."""
        return [self.extract_feat(img) for img in imgs]

    def _parse_losses(self, losses: Mapping[str, Any]) -> tuple[torch.Tensor, dict[str, float]]:
        """The sum of what has 'loss' in its name, and numbers to log."""
        means = {name: sum(one.mean() for one in value) if isinstance(value, (list, tuple)) else value.mean()
                 for name, value in losses.items()}
        total = sum(value for name, value in means.items() if 'loss' in name)
        return total, {**{name: float(value) for name, value in means.items()}, 'loss': float(total)}

    def train_step(self, data: Any, optimizer: Any = None) -> dict[str, Any]:
        """``loss``, ``log_vars``, ``num_samples`` of a batch, which may be a dict of ``forward_train``'s arguments."""
        losses = self.loss(data) if isinstance(data, Batch) else self(**data, return_loss=True)
        loss, log_vars = self._parse_losses(losses)
        count = len(data) if isinstance(data, Batch) else len(unpacked(data['img_metas']))
        return dict(loss=loss, log_vars=log_vars, num_samples=count)

    val_step = train_step

    # torch.save of a whole model takes a protocol that knows no memory formats.


def _complete(metas: Sequence[Mapping[str, Any]], img: torch.Tensor) -> list[dict[str, Any]]:
    """Metas with the shapes that a script left out: those of the input."""
    height, width = img.shape[-2:]
    filled = []
    for meta in metas:
        meta = dict(meta)
        meta.setdefault('img_shape', (height, width, 3))
        meta.setdefault('pad_shape', (height, width, 3))
        meta.setdefault('ori_shape', meta['img_shape'])
        filled.append(meta)
    return filled


def best_first(result: Instances) -> Instances:
    """The rows in descending order of their scores."""
    return result[result.scores.argsort(descending=True, stable=True)]
