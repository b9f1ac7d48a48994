"""A sampler from scratch: the first boxes of each kind."""
import torch

from boxdet.registry import BBOX_SAMPLERS
from boxdet.structures.batch import SampledRois


@BBOX_SAMPLERS.register_module()
class FirstSampler:
    def __init__(self, num, **kwargs):
        self.num, self.options = num, kwargs

    def sample(self, assign_result, bboxes, gt_bboxes, gt_labels=None, **kwargs):
        assert not kwargs  # it does not say that it ranks by losses, so that it is given none
        pos = (assign_result.gt_inds > 0).nonzero()[:self.num // 2, 0]
        neg = (assign_result.gt_inds == 0).nonzero()[:self.num - len(pos), 0]
        matched = assign_result.gt_inds[pos] - 1
        return SampledRois(pos_boxes=bboxes[pos], neg_boxes=bboxes[neg], pos_inds=pos, neg_inds=neg,
                           pos_gt_index=matched, pos_gt_boxes=gt_bboxes[matched],
                           pos_gt_labels=None if gt_labels is None else gt_labels[matched],
                           pos_is_gt=torch.zeros_like(pos, dtype=torch.bool))
