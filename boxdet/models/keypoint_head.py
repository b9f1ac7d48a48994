"""The keypoint head (He et al. 2017, section 5): one heatmap a keypoint on each roi, a softmax over its cells.

Letters: B images, R rois, P positive rois, J keypoints, C channels, h, w of the features, H, W of the heatmaps.
"""
from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.utils import _pair

from boxdet.errors import ConfigError, nearest
from boxdet.geometry.boxes import at_least_float32
from boxdet.geometry.keypoints import (
    decode_heatmaps,
    decode_in_two_steps,
    encode_heatmaps,
    flip_order,
    heatmap_probabilities,
)
from boxdet.models.initialization import InitCfg, initialize, kaiming_init
from boxdet.models.layers import ConvModule
from boxdet.registry import HEADS, LOSSES, Cfg
from boxdet.structures import coco_person
from boxdet.structures.batch import SampledRois
from boxdet.structures.instances import Instances

Pairs = tuple[tuple[int, int], ...]
_SCORES = ('probability', 'logit')


@dataclass(frozen=True)
class KeypointTargets:
    """What the positives should have predicted.

    Args:
        cells: (P, J) int64, the heatmap cell of each keypoint.
        valid: (P, J) bool: the keypoint is labelled and lies in the roi; the others have no loss.
    """
    cells: torch.Tensor
    valid: torch.Tensor

    @property
    def rois(self) -> torch.Tensor:
        """(P,) bool: positives with a keypoint to learn from. The rest need not be computed."""
        return self.valid.any(dim=1)

    def __getitem__(self, index: torch.Tensor) -> KeypointTargets:
        return KeypointTargets(self.cells[index], self.valid[index])


@HEADS.register_module()
class KeypointRCNNHead(nn.Module):
    """Convolutions, a transposed convolution to J maps, and a bilinear enlargement: 14 to 28 to 56 cells a side.

    Args:
        num_convs: convolutions before the maps.
        roi_feat_size: side of the features.
        in_channels: C of the features.
        conv_kernel_size: of the convolutions.
        conv_out_channels: of the convolutions.
        num_keypoints: J.
        upsample_kernel_size: of the transposed convolution, which has stride 2.
        up_scale: of the bilinear enlargement.
        conv_cfg: layer config of the convolutions.
        norm_cfg: of their norms.
        loss_keypoint: config of the loss over the H * W cells of a heatmap.
        normalize_by_visible_keypoints: divide the loss by the keypoints that have one (Detectron's default); otherwise
            by those of a full sample, so that objects with many labelled keypoints weigh more.
        score_type: the score of a keypoint: its 'probability' (Detectron) or its 'logit' (torchvision).
        flip_pairs: keypoints (from 0) that a mirror swaps, for flipped views; of 17 keypoints COCO's by default.
        skeleton: keypoints (from 0) that drawings connect; of 17 keypoints COCO's by default.
        init_cfg: initial weights; by default He's for every layer.

    Raises:
        ConfigError: another ``score_type``, or pairs of keypoints that there are not.
    """

    fixed_size_prediction = True

    def __init__(self, num_convs: int = 8, roi_feat_size: int | tuple[int, int] = 14, in_channels: int = 256,
                 conv_kernel_size: int = 3, conv_out_channels: int = 512, num_keypoints: int = 17,
                 upsample_kernel_size: int = 4, up_scale: int = 2, conv_cfg: Cfg | None = None,
                 norm_cfg: Cfg | None = None, loss_keypoint: Cfg | nn.Module | None = None,
                 normalize_by_visible_keypoints: bool = True, score_type: str = 'probability',
                 flip_pairs: Sequence[Sequence[int]] | None = None, skeleton: Sequence[Sequence[int]] | None = None,
                 init_cfg: InitCfg = None):
        super().__init__()
        if score_type not in _SCORES:
            raise ConfigError(f"keypoint_head.score_type is '{score_type}'{nearest(score_type, _SCORES)} "
                              f'(it is one of {", ".join(_SCORES)})')
        if upsample_kernel_size % 2:
            raise ConfigError(f'keypoint_head.upsample_kernel_size is {upsample_kernel_size}; only an even one doubles '
                              'the maps')
        self.num_convs, self.roi_feat_size = num_convs, _pair(roi_feat_size)
        self.in_channels, self.conv_out_channels = in_channels, conv_out_channels
        self.num_keypoints, self.up_scale = num_keypoints, up_scale
        self.heatmap_size = tuple(2 * up_scale * side for side in self.roi_feat_size)
        self.normalize_by_visible_keypoints = normalize_by_visible_keypoints
        self.score_type = score_type
        self.flip_pairs, self.skeleton = _layout(num_keypoints, flip_pairs, skeleton)
        self.loss_keypoint = LOSSES.build(loss_keypoint or dict(type='CrossEntropyLoss', loss_weight=1.0))
        self.convs = nn.ModuleList(
            ConvModule(in_channels if i == 0 else conv_out_channels, conv_out_channels, conv_kernel_size,
                       padding=(conv_kernel_size - 1) // 2, conv_cfg=conv_cfg, norm_cfg=norm_cfg)
            for i in range(num_convs))
        self.upsample = nn.ConvTranspose2d(conv_out_channels if num_convs else in_channels, num_keypoints,
                                           upsample_kernel_size, stride=2, padding=upsample_kernel_size // 2 - 1)
        self.init_cfg = init_cfg

    def init_weights(self) -> None:
        """Run ``init_cfg``; without one, He's initialisation of the last layer, as the convolutions have it."""
        initialize(self)
        if self.init_cfg is None:
            kaiming_init(self.upsample)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map roi features (R, C, h, w) to heatmap logits (R, J, H, W)."""
        for conv in self.convs:
            x = conv(x)
        x = self.upsample(x)                                                            # (R, J, 2h, 2w)
        if self.up_scale == 1:
            return x
        return F.interpolate(x, scale_factor=float(self.up_scale), mode='bilinear', align_corners=False)

    # ------------------------------------------------------------------------------------------ training

    def targets(self, samples: Sequence[SampledRois], gt: Sequence[Instances]) -> KeypointTargets:
        """The heatmap cells that the positives of B images should have predicted, images in order.

        Args:
            samples: B images' rois.
            gt: B objects with ``keypoints`` (N, J, 3): x, y, visibility.

        Raises:
            ConfigError: objects without keypoints, or with another number of them.
        """
        for objects in gt:
            self._check(objects)
        boxes = torch.cat([drawn.pos_boxes for drawn in samples])                        # (P, 4)
        keypoints = torch.cat([objects.keypoints[drawn.pos_gt_index] for drawn, objects in zip(samples, gt)])
        return KeypointTargets(*encode_heatmaps(keypoints.to(boxes), boxes, self.heatmap_size))

    def _check(self, objects: Instances) -> None:
        if 'keypoints' not in objects:
            raise ConfigError('the batch has no gt_keypoints: a keypoint model needs a CocoKeypointDataset, '
                              "LoadAnnotations(with_keypoint=True) and 'gt_keypoints' in Collect.keys")
        count = objects.keypoints.shape[1]
        if count != self.num_keypoints:
            raise ConfigError(f'keypoint_head.num_keypoints is {self.num_keypoints}, the data has {count} keypoints')

    def loss(self, logits: torch.Tensor, targets: KeypointTargets, full_sample: float) -> dict[str, torch.Tensor]:
        """Return ``loss_keypoint`` from the logits (P, J, H, W) of positives and their targets (P, J).

        Args:
            logits: of the positives that there is something to learn from.
            targets: theirs.
            full_sample: keypoints of a batch that has all the positives it may have, for
                ``normalize_by_visible_keypoints=False``; 0 where the sampler knows none.

        Raises:
            ConfigError: such a loss, and such a sampler.
        """
        if not (self.normalize_by_visible_keypoints or full_sample):
            raise ConfigError('keypoint_head.normalize_by_visible_keypoints=False divides by the size of a full '
                              'sample: train_cfg.rcnn.sampler needs num and pos_fraction (RandomSampler, ...)')
        valid = targets.valid.flatten().nonzero().squeeze(1)                             # (V,)
        logits = at_least_float32(logits)
        cells = logits.flatten(0, 1).flatten(1)[valid]                           # (V, H * W)
        if len(valid) == 0:
            return dict(loss_keypoint=logits.sum() * 0)
        count = len(valid) if self.normalize_by_visible_keypoints else full_sample
        return dict(loss_keypoint=self.loss_keypoint(cells, targets.cells.flatten()[valid], avg_factor=count))

    # ------------------------------------------------------------------------------------------ results

    @torch.no_grad()
    def predict(self, heatmaps: torch.Tensor, boxes: torch.Tensor) -> torch.Tensor:
        """Keypoints (R, J, 3) as x, y and score, from heatmap logits (R, J, H, W) in boxes (R, 4)."""
        return self._with_scores(heatmaps, *decode_heatmaps(heatmaps, boxes))

    def predict_padded(self, heatmaps: torch.Tensor, boxes: torch.Tensor, side: int) -> torch.Tensor:
        """As ``predict``, in tensors of a size that is known: no box is wider or higher than ``side`` pixels."""
        return self._with_scores(heatmaps, *decode_in_two_steps(heatmaps, boxes, side))

    def _with_scores(self, heatmaps: torch.Tensor, keypoints: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if self.score_type == 'probability':
            scores = heatmap_probabilities(heatmaps, scores)
        return torch.cat([keypoints, scores[..., None]], dim=-1)


def _layout(num_keypoints: int, flip_pairs: Sequence[Sequence[int]] | None,
            skeleton: Sequence[Sequence[int]] | None) -> tuple[Pairs | None, Pairs]:
    """``flip_pairs`` and ``skeleton`` as tuples, those of COCO's persons where it is them; pairs may stay None."""
    if num_keypoints == len(coco_person.NAMES):
        flip_pairs = coco_person.FLIP_PAIRS if flip_pairs is None else flip_pairs
        skeleton = coco_person.SKELETON if skeleton is None else skeleton
    try:
        if flip_pairs is not None:
            flip_pairs = tuple((int(left), int(right)) for left, right in flip_pairs)
            flip_order(num_keypoints, flip_pairs)
        skeleton = tuple((int(start), int(end)) for start, end in skeleton or ())
    except (TypeError, ValueError) as error:
        raise ConfigError(f'keypoint_head.flip_pairs and skeleton are lists of pairs of keypoints: {error}') from None
    if not all(0 <= keypoint < num_keypoints for bone in skeleton for keypoint in bone):
        raise ConfigError(f'keypoint_head.skeleton: keypoints count from 0 to {num_keypoints - 1}, not {skeleton}')
    return flip_pairs, skeleton
