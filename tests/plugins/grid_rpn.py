"""An RPN from scratch: a box of one size for each cell of one level. It declares nothing: its settings are dicts."""
import torch
from torch import nn
from torch.nn import functional as F

from boxdet.models import HEADS
from boxdet.structures.instances import Instances


@HEADS.register_module()
class GridRPN(nn.Module):
    def __init__(self, in_channels, stride, train_cfg=None, test_cfg=None):
        super().__init__()
        self.stride, self.train_cfg, self.test_cfg = stride, train_cfg, test_cfg
        self.objectness = nn.Conv2d(in_channels, 1, 1)

    def forward(self, feats):
        return (self.objectness(feats[0])[:, 0],)  # (B, h, w), and nothing else

    def boxes(self, scores, side):
        h, w = scores.shape[-2:]
        y, x = torch.meshgrid(torch.arange(h), torch.arange(w), indexing='ij')
        centre = (torch.stack([x, y], dim=-1).flatten(0, 1) + 0.5) * self.stride
        return torch.cat([centre - side / 2, centre + side / 2], dim=1).to(scores)

    def loss(self, scores, gt, ignored, metas, batch_hw):
        centres = self.boxes(scores, 0)[:, :2]
        inside = [((centres[:, None] > g.bboxes[:, :2]) & (centres[:, None] < g.bboxes[:, 2:])).all(2).any(1)
                  for g in gt]
        target = torch.stack(inside).float() * self.train_cfg['certainty']
        return dict(loss_grid=F.binary_cross_entropy_with_logits(scores.flatten(1), target))

    def predict(self, scores, metas, settings):
        boxes = self.boxes(scores, settings['side'])
        best = scores.flatten(1).sigmoid().topk(settings['count'], dim=1)
        return [Instances(meta.img_shape[:2], bboxes=boxes[index], scores=score)
                for meta, score, index in zip(metas, best.values, best.indices)]
