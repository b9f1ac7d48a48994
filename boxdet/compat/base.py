"""``BaseDetector`` and ``BaseRoIHead``: what a plug-in derives from that writes everything itself."""
from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from mmengine.model import BaseModule

from boxdet.compat.detectors import Detector2x, best_first
from boxdet.compat.forms import as_training_inputs
from boxdet.models.settings import Section
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances


class BaseDetector(Detector2x, BaseModule):
    """A detector with ``extract_feat``, ``forward_train`` and ``simple_test`` of its own; it names its own parts."""

    train_settings = test_settings = None  # type: ignore[assignment]  # sections are handed over as they are
    with_keypoint = False

    def __init__(self, init_cfg: Any = None):
        BaseModule.__init__(self, init_cfg)  # of no backbone that boxdet knows
        self.CLASSES = self.PALETTE = None
        self.fp16_enabled = False

    @property
    def with_neck(self) -> bool:
        """Whether there is a neck."""
        return getattr(self, 'neck', None) is not None

    @property
    def with_rpn(self) -> bool:
        """Whether there is an RPN head."""
        return getattr(self, 'rpn_head', None) is not None

    @property
    def with_roi_head(self) -> bool:
        """Whether there is a RoI head."""
        return getattr(self, 'roi_head', None) is not None

    @property
    def with_bbox(self) -> bool:
        """Whether boxes are predicted."""
        return getattr(getattr(self, 'roi_head', None), 'with_bbox', getattr(self, 'bbox_head', None) is not None)

    @property
    def with_mask(self) -> bool:
        """Whether masks are predicted."""
        return getattr(getattr(self, 'roi_head', None), 'with_mask', getattr(self, 'mask_head', None) is not None)

    def loss(self, batch: Batch) -> dict[str, Any]:
        """``forward_train``'s."""
        return self.forward_train(**as_training_inputs(self._on_device(batch)))

    def predict(self, batch: Batch | Sequence[Batch], rescale: bool = True) -> list[Instances]:
        """``simple_test``'s, or ``aug_test``'s of several views."""
        from boxdet.compat.forms import meta_dict
        views = [self._on_device(one) for one in ([batch] if isinstance(batch, Batch) else batch)]
        metas = [[meta_dict(meta) for meta in view.metas] for view in views]
        with torch.no_grad():
            results = self.simple_test(views[0].images, metas[0], rescale=rescale) if len(views) == 1 \
                else self.aug_test([view.images for view in views], metas, rescale=rescale)
        sizes = [meta.original_size if rescale else meta.input_size for meta in views[0].metas]
        return [best_first(Instances.from_per_class(one, size)) for one, size in zip(results, sizes)]


class BaseRoIHead(BaseModule):
    """A RoI head of a plug-in: 2.x's constructor, with ``init_bbox_head`` and the others of its own."""

    train_settings = test_settings = None

    def __init__(self, bbox_roi_extractor: Any = None, bbox_head: Any = None, mask_roi_extractor: Any = None,
                 mask_head: Any = None, shared_head: Any = None, train_cfg: Any = None, test_cfg: Any = None,
                 pretrained: Any = None, init_cfg: Any = None):
        super().__init__(init_cfg)
        self.train_cfg, self.test_cfg = (cfg if cfg is None else Section(cfg) for cfg in (train_cfg, test_cfg))
        if shared_head is not None:
            from boxdet.models import build_shared_head
            self.shared_head = build_shared_head(shared_head)
        if bbox_head is not None:
            self.init_bbox_head(bbox_roi_extractor, bbox_head)
        if mask_head is not None:
            self.init_mask_head(mask_roi_extractor, mask_head)
        self.init_assigner_sampler()

    @property
    def with_bbox(self) -> bool:
        """Whether there is a box head."""
        return getattr(self, 'bbox_head', None) is not None

    @property
    def with_mask(self) -> bool:
        """Whether there is a mask head."""
        return getattr(self, 'mask_head', None) is not None

    @property
    def with_shared_head(self) -> bool:
        """Whether there is a shared head."""
        return getattr(self, 'shared_head', None) is not None
