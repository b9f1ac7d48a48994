"""Side-Aware Boundary Localization (Wang et al. 2020): a side of a box is a bucket of its proposal and a shift in it.

Letters: R rois, P positive rois, N boxes, C channels, K classes, s buckets of a side (half of ``num_buckets``), w the
side of a roi's enlarged features. Sides come as left, right, top, bottom. bbox_pred is (R, 8 * s): the logits of the
buckets of the four sides (R, 4 * s), then the shifts from them (R, 4 * s), as shares of a bucket.
"""
from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from boxdet.errors import ConfigError
from boxdet.geometry.boxes import at_least_float32, clip_boxes
from boxdet.models.bbox_head import BBoxHead, BoxTargets
from boxdet.models.initialization import InitCfg
from boxdet.models.layers import ConvModule
from boxdet.registry import BBOX_CODERS, HEADS, LOSSES, Cfg

_INIT = [
    dict(type='Xavier', layer='Linear', distribution='uniform', override=[
        *(dict(type='Normal', name=name, std=0.01)
          for name in ('reg_conv_att_x', 'reg_conv_att_y', 'fc_reg_cls', 'fc_cls')),
        dict(type='Normal', name='fc_reg_offset', std=0.001)])]
_ENLARGE = dict(type='Kaiming', distribution='normal', override=[dict(name='upsample_x'), dict(name='upsample_y')])


@BBOX_CODERS.register_module()
class BucketingBBoxCoder:
    """The sides of a box as buckets of another box, and shifts in them.

    Args:
        num_buckets: of the enlarged box's width, and of its height; each side has half of them.
        scale_factor: how many times the box is enlarged first.
        offset_topk: shifts are learnt from so many nearest buckets of a side.
        offset_upperbound: from the second one on only where the shift is below this.
        cls_ignore_neighbor: buckets less than one away that are not the nearest are neither right nor wrong.
        clip_border: decoded boxes are clipped to the image's last pixel, where its shape is given.
    """

    def __init__(self, num_buckets: int, scale_factor: float, offset_topk: int = 2, offset_upperbound: float = 1.0,
                 cls_ignore_neighbor: bool = True, clip_border: bool = True):
        self.num_buckets, self.scale_factor = num_buckets, scale_factor
        self.side_num = math.ceil(num_buckets / 2)
        self.offset_topk, self.offset_upperbound = offset_topk, offset_upperbound
        self.cls_ignore_neighbor, self.clip_border = cls_ignore_neighbor, clip_border

    def _buckets(self, bboxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Width or height of a bucket (N, 4, 1), and the centres of the buckets (N, 4, s), of each side."""
        bboxes = at_least_float32(bboxes)
        size = (bboxes[:, 2:] - bboxes[:, :2]) * self.scale_factor                       # (N, 2)
        first = (bboxes[:, :2] + bboxes[:, 2:]) * 0.5 - size * 0.5
        last = (bboxes[:, :2] + bboxes[:, 2:]) * 0.5 + size * 0.5
        unit = (size / self.num_buckets).repeat_interleave(2, dim=1)[..., None]
        ends = torch.stack([first[:, 0], last[:, 0], first[:, 1], last[:, 1]], dim=1)[..., None]
        inwards = (0.5 + torch.arange(self.side_num, device=bboxes.device)) * unit       # (N, 4, s)
        return unit, torch.stack([ends[:, i] + (-1) ** i * inwards[:, i] for i in range(4)], dim=1)

    def encode(self, bboxes: torch.Tensor,
               gt_bboxes: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """How boxes (N, 4) are to become others (N, 4).

        Returns:
            shifts, their weights, which bucket is right (0 or 1), and the weights of that: (N, 4 * s) each.
        """
        unit, centres = self._buckets(bboxes)
        gt = _sides(at_least_float32(gt_bboxes))[..., None]                              # left, right, top, bottom
        shifts = (centres - gt) / unit                                                   # (N, 4, s)
        near, nearest = shifts.abs().topk(self.offset_topk, dim=2, largest=False)
        learnt = near < self.offset_upperbound
        learnt[..., 0] = True
        shift_weights = torch.zeros_like(shifts).scatter(2, nearest, learnt.to(shifts.dtype))
        right = F.one_hot(nearest[..., 0], self.side_num).to(shifts.dtype)
        weights = torch.ones_like(shifts)
        if self.cls_ignore_neighbor:
            weights = weights.masked_fill((shifts.abs() < 1) & (right == 0), 0)
        return shifts.flatten(1), shift_weights.flatten(1), right.flatten(1), weights.flatten(1)

    def decode(self, bboxes: torch.Tensor, pred_bboxes: torch.Tensor | Sequence[torch.Tensor],
               max_shape: Sequence[int] | torch.Tensor | None = None) -> torch.Tensor:
        """Boxes (N, 4) moved by predictions (N, 8 * s), or by logits and shifts (N, 4 * s) each.

        ``max_shape`` is (height, width, ...) of the image, or a tensor (N, 2) of one for each box.
        """
        logits, shifts = self._split(pred_bboxes)
        unit, centres = self._buckets(bboxes)
        best = logits.softmax(dim=2).argmax(dim=2, keepdim=True)                         # (N, 4, 1)
        sides = (centres.gather(2, best) - shifts.gather(2, best) * unit).squeeze(2)     # (N, 4)
        boxes = _sides(sides)
        if not self.clip_border or max_shape is None:
            return boxes
        last = max_shape - 1 if isinstance(max_shape, torch.Tensor) else [side - 1 for side in max_shape[:2]]
        return clip_boxes(boxes, last)

    def confidence(self, pred_bboxes: torch.Tensor | Sequence[torch.Tensor]) -> torch.Tensor:
        """How sure the sides are (N,): the mean probability of their best bucket, and of the second if beside it."""
        logits, _ = self._split(pred_bboxes)
        probs, place = logits.softmax(dim=2).topk(2, dim=2)
        beside = (place[..., 0] - place[..., 1]).abs() == 1
        return (probs[..., 0] + probs[..., 1] * beside).mean(dim=1)

    def _split(self, pred_bboxes: torch.Tensor | Sequence[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        both = pred_bboxes.chunk(2, dim=1) if isinstance(pred_bboxes, torch.Tensor) else pred_bboxes
        logits, shifts = (at_least_float32(one).unflatten(1, (4, self.side_num)) for one in both)
        return logits, shifts


@HEADS.register_module()
class SABLHead(BBoxHead):
    """Scores as usual; the sides from features that attention has gathered along x and along y.

    Args:
        num_classes: K.
        cls_in_channels: C that the scores come of.
        reg_in_channels: C that the boxes come of.
        roi_feat_size: side of the features.
        reg_feat_up_ratio: how many times the features along a side are enlarged; w is the number of buckets.
        reg_pre_kernel: kernel of the convolutions before the attention.
        reg_post_kernel: of those after it.
        reg_pre_num: convolutions before the attention.
        reg_post_num: convolutions after it.
        cls_out_channels: size of the linear layers of the scores.
        reg_offset_out_channels: of those of the shifts.
        reg_cls_out_channels: of those of the buckets.
        num_cls_fcs: linear layers of the scores.
        num_reg_fcs: linear layers of shifts and of buckets.
        reg_class_agnostic: always True.
        norm_cfg: of the convolutions' norms.
        bbox_coder: config, a ``BucketingBBoxCoder``.
        loss_cls: config of the loss of the scores.
        loss_bbox_cls: of the buckets.
        loss_bbox_reg: of the shifts.
        init_cfg: initial weights.

    Raises:
        ConfigError: features that do not give one place a bucket, or ``reg_class_agnostic=False``.
    """

    def __init__(self, num_classes: int, cls_in_channels: int = 256, reg_in_channels: int = 256, roi_feat_size: int = 7,
                 reg_feat_up_ratio: int = 2, reg_pre_kernel: int = 3, reg_post_kernel: int = 3, reg_pre_num: int = 2,
                 reg_post_num: int = 1, cls_out_channels: int = 1024, reg_offset_out_channels: int = 256,
                 reg_cls_out_channels: int = 256, num_cls_fcs: int = 1, num_reg_fcs: int = 0,
                 reg_class_agnostic: bool = True, norm_cfg: Cfg | None = None, bbox_coder: Cfg | None = None,
                 loss_cls: Cfg | None = None, loss_bbox_cls: Cfg | None = None, loss_bbox_reg: Cfg | None = None,
                 init_cfg: InitCfg = None):
        coder = BBOX_CODERS.build(bbox_coder or dict(type='BucketingBBoxCoder', num_buckets=14, scale_factor=1.7))
        ratio = int(reg_feat_up_ratio)
        if roi_feat_size * ratio != coder.num_buckets:
            raise ConfigError(f'SABLHead: roi_feat_size * reg_feat_up_ratio is {roi_feat_size * ratio}, but there are '
                              f'{coder.num_buckets} num_buckets in the bbox_coder')
        if not reg_class_agnostic:
            raise ConfigError('SABLHead: only reg_class_agnostic=True exists')
        loss_bbox_reg = loss_bbox_reg or dict(type='SmoothL1Loss', beta=0.1, loss_weight=1.0)
        default = _INIT + [_ENLARGE] * (ratio > 1)
        super().__init__(with_reg=False, roi_feat_size=roi_feat_size, in_channels=cls_in_channels,
                         num_classes=num_classes, bbox_coder=coder, reg_class_agnostic=True, loss_cls=loss_cls,
                         loss_bbox=loss_bbox_reg, num_cls_fcs=num_cls_fcs, fc_out_channels=cls_out_channels,
                         init_cfg=init_cfg or default)
        self.with_reg, self.reg_in_channels, self.side_num = True, reg_in_channels, coder.side_num
        self.loss_bbox_cls = LOSSES.build(loss_bbox_cls
                                          or dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=1.0))
        channels = reg_in_channels
        self.reg_feat_up_ratio = ratio
        if ratio > 1:
            self.upsample_x = nn.ConvTranspose1d(channels, channels, ratio, stride=ratio)
            self.upsample_y = nn.ConvTranspose1d(channels, channels, ratio, stride=ratio)
        self.reg_pre_convs = nn.ModuleList(
            ConvModule(channels, channels, reg_pre_kernel, padding=reg_pre_kernel // 2, norm_cfg=norm_cfg)
            for _ in range(reg_pre_num))
        side, around = reg_post_kernel, reg_post_kernel // 2
        self.reg_post_conv_xs = nn.ModuleList(
            ConvModule(channels, channels, (1, side), padding=(0, around), norm_cfg=norm_cfg)
            for _ in range(reg_post_num))
        self.reg_post_conv_ys = nn.ModuleList(
            ConvModule(channels, channels, (side, 1), padding=(around, 0), norm_cfg=norm_cfg)
            for _ in range(reg_post_num))
        self.reg_conv_att_x, self.reg_conv_att_y = nn.Conv2d(channels, 1, 1), nn.Conv2d(channels, 1, 1)
        self.reg_cls_fcs = _linear(channels, reg_cls_out_channels, num_reg_fcs)
        self.reg_offset_fcs = _linear(channels, reg_offset_out_channels, num_reg_fcs)
        self.fc_reg_cls = nn.Linear(reg_cls_out_channels, 1)
        self.fc_reg_offset = nn.Linear(reg_offset_out_channels, 1)

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Map features (R, C, h, w) to scores (R, K + 1) and what the sides are (R, 8 * s)."""
        scores = self.fc_cls(self._through_fcs(x.flatten(1), self.cls_fcs))
        along_x, along_y = self.side_features(x)                                         # (R, C, w) each
        parts = []
        for fcs, last in ((self.reg_cls_fcs, self.fc_reg_cls), (self.reg_offset_fcs, self.fc_reg_offset)):
            for along in (along_x, along_y):
                parts += self._of_two_sides(last(self._through_fcs(along.transpose(1, 2).flatten(0, 1), fcs)), len(x))
        return scores, torch.cat(parts, dim=1)

    def _of_two_sides(self, value: torch.Tensor, rois: int) -> list[torch.Tensor]:
        """Numbers (R * w, 1) as those of the first side (R, s), and of the last one (R, s) from outside inwards."""
        value = value.view(rois, self.bbox_coder.num_buckets)
        return [value[:, :self.side_num], value[:, -self.side_num:].flip(1)]

    def side_features(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (R, C, w) along x, and along y, of (R, C, h, h)."""
        for conv in self.reg_pre_convs:
            x = conv(x)
        weight_x, weight_y = self.reg_conv_att_x(x).sigmoid(), self.reg_conv_att_y(x).sigmoid()
        along_x = (x * (weight_x / weight_x.sum(dim=2, keepdim=True))).sum(dim=2, keepdim=True)    # (R, C, 1, h)
        along_y = (x * (weight_y / weight_y.sum(dim=3, keepdim=True))).sum(dim=3, keepdim=True)    # (R, C, h, 1)
        for conv_x, conv_y in zip(self.reg_post_conv_xs, self.reg_post_conv_ys):
            along_x, along_y = conv_x(along_x), conv_y(along_y)
        along_x, along_y = along_x.squeeze(2), along_y.squeeze(3)
        if self.reg_feat_up_ratio > 1:
            along_x, along_y = F.relu(self.upsample_x(along_x)), F.relu(self.upsample_y(along_y))
        return along_x, along_y

    def loss(self, cls_score: torch.Tensor | None, bbox_pred: torch.Tensor | None,
             targets: BoxTargets) -> dict[str, torch.Tensor]:
        """Return ``loss_cls``, ``acc``, ``loss_bbox_cls`` and ``loss_bbox_reg``, scalars, divided by R as usual."""
        losses, count = super().loss(cls_score, None, targets), max(len(targets.labels), 1)
        if bbox_pred is not None:
            logits, shifts = at_least_float32(bbox_pred[targets.pos_index]).chunk(2, dim=1)         # (P, 4 * s) each
            wanted, shift_weights, right, weights = self.bbox_coder.encode(targets.pos_boxes, targets.pos_gt_boxes)
            losses['loss_bbox_cls'] = self.loss_bbox_cls(
                *(one.reshape(-1, self.side_num) for one in (logits, right, weights)), avg_factor=4 * count)
            losses['loss_bbox_reg'] = self.loss_bbox(shifts, wanted, shift_weights, avg_factor=count)
        return losses

    def ranked_scores(self, scores: torch.Tensor, bbox_pred: torch.Tensor | None) -> torch.Tensor:
        """Scores (B, N, K) times how sure the sides are (section 3.3)."""
        return scores * self.bbox_coder.confidence(bbox_pred).view(*scores.shape[:2], 1)


def _sides(boxes: torch.Tensor) -> torch.Tensor:
    """Boxes (N, 4) as left, right, top, bottom; and these as boxes."""
    return boxes.unflatten(1, (2, 2)).transpose(1, 2).flatten(1)


def _linear(channels: int, size: int, count: int) -> nn.ModuleList:
    return nn.ModuleList(nn.Linear(size if i else channels, size) for i in range(count))
