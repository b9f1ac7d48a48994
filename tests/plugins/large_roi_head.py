"""A RoI head with settings of its own: boxes smaller than ``least_area`` are no results."""
from dataclasses import dataclass

from boxdet.models import HEADS
from boxdet.models.bbox_head import RoITestSettings
from boxdet.models.standard_roi_head import StandardRoIHead


@dataclass(frozen=True)
class LargeSettings(RoITestSettings):
    least_area: float = 0


@HEADS.register_module()
class LargeRoIHead(StandardRoIHead):
    test_settings = LargeSettings

    def __init__(self, shape, **kwargs):
        super().__init__(**kwargs)
        self.shape = shape  # a dict with a 'type' that is not boxdet's

    def predict(self, feats, proposals, metas):
        results = super().predict(feats, proposals, metas)
        return [r[(r.bboxes[:, 2:] - r.bboxes[:, :2]).prod(dim=1) >= self.test_cfg.least_area] for r in results]
