"""Where mmdetection 2.x's users import the registries and builders of models from; nothing lives here."""
from boxdet.models import (
                           BACKBONES,
                           DETECTORS,
                           HEADS,
                           LOSSES,
                           NECKS,
                           ROI_EXTRACTORS,
                           SHARED_HEADS,
                           build_backbone,
                           build_detector,
                           build_head,
                           build_loss,
                           build_neck,
                           build_roi_extractor,
                           build_shared_head,
)

__all__ = [
    'BACKBONES', 'DETECTORS', 'HEADS', 'LOSSES', 'NECKS', 'ROI_EXTRACTORS', 'SHARED_HEADS', 'build_backbone',
    'build_detector', 'build_head', 'build_loss', 'build_neck', 'build_roi_extractor', 'build_shared_head']
