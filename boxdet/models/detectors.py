"""Whole detectors: backbone, neck, proposals, second stage; and the way of results back to the original image.

Everything up to the RoI head's results is in network-input pixels; ``structures.batch`` knows the way back.
Letters: B images, V views of an image, N objects of an image, h, w height and width of a mask-head output.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from boxdet.abilities import ability
from boxdet.errors import ConfigError
from boxdet.geometry.masks import paste_to_rle
from boxdet.geometry.nms import Suppression
from boxdet.geometry.nms_rounds import IN_ROUNDS
from boxdet.models import contracts
from boxdet.models.bbox_head import RoITestSettings, RoITrainSettings
from boxdet.models.initialization import InitCfg, initialize
from boxdet.models.rpn_head import ProposalSettings, RPNTrainSettings
from boxdet.models.settings import Settings, read_section, section
from boxdet.models.test_time_augmentation import merge_boxes, merge_keypoints, merge_masks, merge_proposals
from boxdet.registry import BACKBONES, DETECTORS, HEADS, NECKS, Cfg, accepted_keywords
from boxdet.structures.batch import Batch, ImageMeta, image_sizes, to_input, to_original
from boxdet.structures.instances import Instances, PaddedInstances
from boxdet.structures.masks import RleMasks

if TYPE_CHECKING:
    from boxdet.visualization.palette import ColorSpec, PaletteSpec


_EXPORT = ("export it with boxdet.apis.export_onnx(model, 'model.onnx') or export_program(model, 'model.pt2') "
           '(tools/export.py, docs/export.md)')


@dataclass(frozen=True)
class TrainSettings(Settings):
    """``model.train_cfg``; a section that is absent is None, and of the type that its reader declares.

    Args:
        rpn: which anchors the RPN learns from.
        rpn_proposal: the proposals that the second stage is trained on; those of ``test_cfg.rpn`` where absent.
        rcnn: which proposals the second stage learns from; of a cascade a tuple, one a stage.
    """
    rpn: RPNTrainSettings | Any = section('rpn_head', 'train_settings')
    rpn_proposal: ProposalSettings | Any = section('rpn_head', 'test_settings')
    rcnn: RoITrainSettings | Any = section('roi_head', 'train_settings')


@dataclass(frozen=True)
class TestSettings(Settings):
    """``model.test_cfg``; a section that is absent is None, and of the type that its reader declares.

    Args:
        rpn: from RPN outputs to proposals.
        rcnn: from class scores, boxes and masks to results.
        fixed_size: predict in tensors of a fixed size, so that a GPU is never waited for before the results: the same
            results up to rounding. Heads and settings that cannot do it are told, once, and predict as usual.
    """
    rpn: ProposalSettings | Any = section('rpn_head', 'test_settings')
    rcnn: RoITestSettings | Any = section('roi_head', 'test_settings')
    fixed_size: bool = False


class _Detector(nn.Module):
    """What every detector here has: features of a batch, one ``forward`` for training and testing, drawings."""

    train_settings = TrainSettings
    test_settings = TestSettings
    draws_in_threads = True
    memory_format: torch.memory_format = torch.preserve_format  # of the images; set by ``models.folding.lay_out``

    def __init__(self, backbone: Cfg | contracts.Backbone, neck: Cfg | Sequence[Cfg] | contracts.Neck | None,
                 pretrained: str | None, init_cfg: InitCfg):
        super().__init__()
        self.backbone = BACKBONES.build(backbone, **_pretrained(backbone, pretrained))
        if neck is not None:
            self.neck = nn.Sequential(*map(NECKS.build, neck)) if isinstance(neck, Sequence) else NECKS.build(neck)
            self._neck_frees = ability(self.neck, 'frees_levels')
        self.init_cfg = init_cfg
        self.told_of_fixed_size = self._gives_keypoints = False
        self.CLASSES: tuple[str, ...] | None = None
        self.PALETTE: PaletteSpec = None

    def _read_settings(self, train_cfg: TrainSettings | Cfg | None, test_cfg: TestSettings | Cfg | None,
                       **parts: object) -> tuple[TrainSettings, TestSettings]:
        """Set ``train_cfg`` and ``test_cfg``, every section read as the class of its part declares."""
        train, test = ({} if cfg is None else cfg for cfg in (train_cfg, test_cfg))
        self.train_cfg = read_section(self, 'train_settings', train, 'model.train_cfg', parts)
        self.test_cfg = read_section(self, 'test_settings', test, 'model.test_cfg', parts)
        return self.train_cfg, self.test_cfg

    @property
    def with_neck(self) -> bool:
        """Whether there is a neck between backbone and heads."""
        return hasattr(self, 'neck')

    @property
    def with_rpn(self) -> bool:
        """Whether the detector makes its own proposals."""
        return hasattr(self, 'rpn_head')

    @property
    def with_roi_head(self) -> bool:
        """Whether there is a second stage."""
        return hasattr(self, 'roi_head')

    @property
    def with_bbox(self) -> bool:
        """Whether the second stage gives boxes."""
        return self.with_roi_head and self.roi_head.with_bbox

    @property
    def with_mask(self) -> bool:
        """Whether the second stage gives masks."""
        return self.with_roi_head and self.roi_head.with_mask

    @property
    def with_keypoint(self) -> bool:
        """Whether the second stage gives keypoints."""
        return self._gives_keypoints

    @property
    def skeleton(self) -> tuple[tuple[int, int], ...]:
        """The keypoints that drawings connect, counted from 0; () without a keypoint head."""
        return ability(self.roi_head.keypoint_head, 'skeleton') if self.with_keypoint else ()

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def init_weights(self) -> None:
        """Give every part its initial or pretrained weights."""
        initialize(self)

    def extract_feat(self, images: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Map images (B, 3, H, W) to the levels that the heads read.

        Raises:
            ConfigError: it is being traced by TorchScript.
        """
        _refuse_tracing()
        # A model in half precision reads half.
        feats = self.backbone(images.to(next(self.parameters()).dtype, memory_format=self.memory_format))
        if not self.with_neck:
            return tuple(feats)
        levels = list(feats)
        del feats
        return tuple(self.neck(levels, keep=False) if self._neck_frees else self.neck(levels))

    def forward(self, batch: Batch | Sequence[Batch], mode: str = 'loss',
                **options: bool) -> dict[str, torch.Tensor | list[torch.Tensor]] | list[Instances]:
        """Return ``loss(batch)`` or ``predict(batch, **options)``: what parallel wrappers call.

        Raises:
            ValueError: another mode. TypeError: a tensor in the place of a Batch. ConfigError: it is being traced by
                TorchScript.
        """
        _refuse_tracing()
        if isinstance(batch, torch.Tensor):
            raise TypeError(f'a {type(self).__name__} takes a Batch and not a tensor: detect on images with '
                            f'boxdet.apis.inference_detector, {_EXPORT}')
        if mode == 'loss':
            return self.loss(batch, **options)
        if mode == 'predict':
            return self.predict(batch, **options)
        raise ValueError(f"mode is '{mode}'; it is 'loss' or 'predict'")

    def __prepare_scriptable__(self) -> nn.Module:
        """What torch.jit.script asks a module for.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f'torch.jit.script cannot read a detector: {_EXPORT}')

    def _on_device(self, batch: Batch) -> Batch:
        here = batch.images.device == self.device and batch.images.dtype != torch.uint8
        return batch if here else batch.to(self.device)

    def __getstate__(self) -> dict[str, Any]:
        """The state of a whole detector for ``torch.save``: no pickle names a memory format by itself."""
        return {**self.__dict__, 'memory_format': str(self.memory_format).removeprefix('torch.')}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__({**state, 'memory_format': getattr(torch, state['memory_format'])})

    def show_result(self, img: Any, result: Instances | Sequence, score_thr: float = 0.3,
                    bbox_color: ColorSpec | None = None, text_color: ColorSpec | None = None,
                    mask_color: ColorSpec | None = None, thickness: float | None = None,
                    font_size: float | None = None, win_name: str = '', show: bool = False, wait_time: float = 0,
                    out_file: str | None = None) -> np.ndarray:
        """Draw a result on its image.

        Args:
            img: file name, (H, W, 3) uint8 in BGR order, the bytes of an image file, or a PIL image.
            result: what ``predict`` gave for this image, or mmdetection 2.x's lists (see ``Instances.from_per_class``).
            score_thr: objects scoring less are not drawn.
            bbox_color: of boxes, in place of a colour for each class.
            text_color: of texts, likewise.
            mask_color: of masks, likewise.
            thickness: line width in pixels.
            font_size: height of the text in pixels.
            win_name: title of the window.
            show: open a window.
            wait_time: seconds that it stays open; 0 until a key is pressed.
            out_file: write the drawing there; a '.pdf' is a page of lines and text, in the classes' colours.

        Returns:
            (H, W, 3) uint8, BGR.

        Raises:
            UserError: the image cannot be read or is not of the result's size, or there is no display for ``show``.
        """
        from boxdet.visualization import draw, pdf  # imported late: only drawings need OpenCV

        found = result if isinstance(result, Instances) else Instances.from_per_class(result)
        image = draw.read_image(img, found.image_size)
        drawing = draw.draw_instances(image, found, self.CLASSES, score_thr, self.PALETTE,
                                      thickness=thickness,
                                      font_scale=None if font_size is None else font_size / 22,
                                      bbox_color=bbox_color, text_color=text_color, mask_color=mask_color,
                                      skeleton=self.skeleton)
        if out_file is not None and str(out_file).lower().endswith('.pdf'):
            pdf.write_pdf(image, found, out_file, self.CLASSES, score_thr, self.PALETTE, self.skeleton)
        elif out_file is not None:
            draw.write_image(drawing, out_file)
        if show:
            draw.show(drawing, win_name, wait_time)
        return drawing


@DETECTORS.register_module()
class TwoStageDetector(_Detector):
    """Proposals, and a second stage that looks at each of them.

    Args:
        backbone: config, or the module.
        neck: config, or the module; a list of them is gone through in a row. Without one the heads read the backbone's
            levels.
        rpn_head: config, or the module; without one the batch brings proposals.
        roi_head: config, or the module.
        train_cfg: TrainSettings or a dict of them.
        test_cfg: TestSettings or a dict of them.
        pretrained: the backbone's weights, 2.x's older way to say its ``init_cfg``.
        init_cfg: initial weights of the whole, in place of the parts' own.

    Raises:
        ConfigError: a wrong or missing setting, or no ``roi_head``.
    """

    def __init__(self, backbone: Cfg | contracts.Backbone, neck: Cfg | Sequence[Cfg] | contracts.Neck | None = None,
                 rpn_head: Cfg | contracts.RPNHead | None = None, roi_head: Cfg | contracts.RoIHead | None = None,
                 train_cfg: TrainSettings | Cfg | None = None, test_cfg: TestSettings | Cfg | None = None,
                 pretrained: str | None = None, init_cfg: InitCfg = None):
        super().__init__(backbone, neck, pretrained, init_cfg)
        if roi_head is None:
            raise ConfigError(f'model: {type(self).__name__} needs a roi_head')
        train, test = self._read_settings(train_cfg, test_cfg, rpn_head=rpn_head, roi_head=roi_head)
        if test.rcnn is None:
            raise ConfigError("model.test_cfg needs 'rcnn': how results are chosen")
        if rpn_head is not None:
            if test.rpn is None:
                raise ConfigError("model.test_cfg needs 'rpn': how many proposals, and which")
            settings = _if_taken(rpn_head, train_cfg=train.rpn, test_cfg=test.rpn)
            self.rpn_head = HEADS.build(rpn_head, **settings)
        # Of a RoI head only a shared head, the backbone's last stage, comes with the backbone's weights.
        weights = pretrained if isinstance(roi_head, dict) and roi_head.get('shared_head') else None
        self.roi_head = HEADS.build(roi_head, **_if_taken(roi_head, train_cfg=train.rcnn, test_cfg=test.rcnn,
                                                          pretrained=weights))
        self._wants_semantic_seg = ability(self.roi_head, 'wants_semantic_seg')
        self._gives_keypoints = ability(self.roi_head, 'with_keypoint')

    def loss(self, batch: Batch) -> dict[str, torch.Tensor | list[torch.Tensor]]:
        """Return the losses by name: scalars, or lists of a scalar a level."""
        batch = self._on_device(batch)
        feats = self.extract_feat(batch.images)
        losses, proposals = {}, batch.proposals
        if self.with_rpn:
            outs = self.rpn_head(feats)
            losses = self.rpn_head.loss(*outs, batch.gt, batch.ignored, batch.metas, batch.images.shape[-2:])
            settings = self.test_cfg.rpn if self.train_cfg.rpn_proposal is None else self.train_cfg.rpn_proposal
            proposals = self.rpn_head.predict(*outs, batch.metas, settings)
        semantic = dict(semantic_seg=_given_maps(batch)) if self._wants_semantic_seg else {}
        losses.update(self.roi_head.loss(feats, _given(proposals), batch.gt, batch.ignored, batch.metas, **semantic))
        return losses

    @torch.no_grad()
    def predict(self, batch: Batch | Sequence[Batch], rescale: bool = True) -> list[Instances]:
        """Detect.

        Args:
            batch: images, or several views of the same images (test-time augmentation).
            rescale: give boxes and masks in the original image's pixels; in the network input's otherwise.

        Returns:
            B Instances(bboxes (N, 4), scores (N,), labels (N,)[, masks RleMasks][, keypoints (N, J, 3)]), best first,
            on the CPU.
        """
        views = [self._on_device(view) for view in ([batch] if isinstance(batch, Batch) else batch)]
        feats, metas = [self.extract_feat(view.images) for view in views], [view.metas for view in views]
        if len(views) == 1:
            results = self._detect(feats[0], views[0])
            results = [to_original(r, meta, self._pairs) for r, meta in zip(results, metas[0])] if rescale else results
        else:
            proposals = [self._propose(levels, view) for levels, view in zip(feats, views)]
            results = self._merge_views(feats, proposals, metas)
            results = results if rescale else [to_input(r, meta, self._pairs) for r, meta in zip(results, metas[0])]
        return [self._with_masks(r.to('cpu')) for r in results]

    def _detect(self, feats: Sequence[torch.Tensor], batch: Batch) -> list[Instances]:
        """What the roi head makes of one view, on the CPU."""
        found = None
        if self.test_cfg.fixed_size and self._has_fixed_size(batch.proposals is None):
            found = self.detect_padded(feats, batch, IN_ROUNDS).to_host()
        if found is None or not found.settled:
            results = self.roi_head.predict(feats, self._propose(feats, batch), batch.metas)
        else:
            results = found.instances(image_sizes(batch.metas), self.roi_head.last_bbox_head.num_classes)
            if self.with_keypoint:  # heatmaps are expensive: computed for real boxes, not for padding
                results = self.roi_head.add_keypoints(feats, results)
        return [r.to('cpu') for r in results]

    def detect_padded(self, feats: Sequence[torch.Tensor], batch: Batch, suppression: Suppression) -> PaddedInstances:
        """Proposals and results of a batch, keypoints excepted, in tensors of one size and on the device.

        Args:
            feats: what ``extract_feat`` gave.
            batch: its images; its ``metas`` may be a tensor (B, 2) of their (height, width).
            suppression: how candidates are chosen and suppressed.
        """
        if batch.proposals is None:
            proposals = self.rpn_head.predict_padded(*self.rpn_head(feats), batch.metas, self.test_cfg.rpn, suppression)
        else:
            proposals = PaddedInstances.of(batch.proposals)
        return self.roi_head.predict_padded(feats, proposals, batch.metas, suppression)

    def _has_fixed_size(self, proposes: bool) -> bool:
        """Whether heads and settings allow for predictions of a fixed size."""
        problem = proposes and _no_fixed_size(self.rpn_head, 'rpn', self.test_cfg.rpn, 'nms_pre')
        problem = problem or _no_fixed_size(self.roi_head, 'rcnn', self.test_cfg.rcnn, 'max_per_img')
        return not _tell_once(self, problem or _no_fixed_size(self.roi_head.last_bbox_head))

    def _propose(self, feats: Sequence[torch.Tensor], batch: Batch) -> Sequence[Instances]:
        """The proposals that the batch brings, or else the detector's own."""
        if batch.proposals is None and self.with_rpn:
            return self.rpn_head.predict(*self.rpn_head(feats), batch.metas, self.test_cfg.rpn)
        return _given(batch.proposals)

    def _merge_views(self, feats: Sequence[Sequence[torch.Tensor]], proposals: Sequence[Sequence[Instances]],
                     metas: Sequence[Sequence[ImageMeta]]) -> list[Instances]:
        """Results of B images in original pixels from V views; arguments are lists of one a view."""
        if self.with_rpn:
            merged = merge_proposals(proposals, metas, self.test_cfg.rpn)
        else:
            # Every view brings the same proposals.
            merged = [to_original(p, meta) for p, meta in zip(proposals[0], metas[0])]
        results = merge_boxes(self.roi_head, feats, merged, metas, self.test_cfg.rcnn)
        if self.with_mask:
            results = merge_masks(self.roi_head, feats, results, metas)
        return merge_keypoints(self.roi_head, feats, results, metas) if self.with_keypoint else results

    @property
    def _pairs(self) -> Sequence[tuple[int, int]] | None:
        """The keypoints that a mirror swaps, where the model knows."""
        return ability(self.roi_head.keypoint_head, 'flip_pairs') if self.with_keypoint else None

    def _with_masks(self, result: Instances) -> Instances:
        """Paste mask probabilities into the image and encode them."""
        if 'mask_probs' not in result:
            return result
        assert result.image_size is not None  # ``to_original`` has set it
        height, width = result.image_size
        settings = self.test_cfg.rcnn
        # A head that declares no settings may leave these two out.
        threshold, whole_pixels = (getattr(settings, name, getattr(RoITestSettings, name))
                                   for name in ('mask_thr_binary', 'paste_whole_pixels'))
        codes = paste_to_rle(result.mask_probs, result.bboxes, (height, width), threshold, whole_pixels)
        return result.without('mask_probs').replace(masks=RleMasks(codes, height, width))


@DETECTORS.register_module()
class FasterRCNN(TwoStageDetector):
    """Faster R-CNN (Ren et al. 2015)."""


@DETECTORS.register_module()
class MaskRCNN(TwoStageDetector):
    """Mask R-CNN (He et al. 2017)."""


@DETECTORS.register_module()
class KeypointRCNN(TwoStageDetector):
    """Mask R-CNN's keypoint variant (He et al. 2017, section 5), with or without masks."""


@DETECTORS.register_module()
class CascadeRCNN(TwoStageDetector):
    """Cascade R-CNN (Cai and Vasconcelos 2018), with or without masks."""


@DETECTORS.register_module()
class FastRCNN(TwoStageDetector):
    """Fast R-CNN (Girshick 2015), on proposals that the batch brings."""

    def __init__(self, backbone: Cfg | contracts.Backbone, roi_head: Cfg | contracts.RoIHead,
                 neck: Cfg | Sequence[Cfg] | contracts.Neck | None = None, train_cfg: TrainSettings | Cfg | None = None,
                 test_cfg: TestSettings | Cfg | None = None, pretrained: str | None = None, init_cfg: InitCfg = None):
        super().__init__(backbone, neck=neck, roi_head=roi_head, train_cfg=train_cfg, test_cfg=test_cfg,
                         pretrained=pretrained, init_cfg=init_cfg)


@DETECTORS.register_module()
class RPN(_Detector):
    """The region proposal network alone; its results are proposals, all of label 0. As ``TwoStageDetector``."""

    def __init__(self, backbone: Cfg | contracts.Backbone, neck: Cfg | Sequence[Cfg] | contracts.Neck | None,
                 rpn_head: Cfg | contracts.RPNHead, train_cfg: TrainSettings | Cfg | None = None,
                 test_cfg: TestSettings | Cfg | None = None, pretrained: str | None = None, init_cfg: InitCfg = None):
        super().__init__(backbone, neck, pretrained, init_cfg)
        self._read_settings(train_cfg, test_cfg, rpn_head=rpn_head)
        if self.test_cfg.rpn is None:
            raise ConfigError("model.test_cfg needs 'rpn': how many proposals, and which")
        self.rpn_head = HEADS.build(rpn_head, **_if_taken(rpn_head, train_cfg=self.train_cfg.rpn,
                                                          test_cfg=self.test_cfg.rpn))

    def loss(self, batch: Batch) -> dict[str, list[torch.Tensor]]:
        """Return ``loss_rpn_cls`` and ``loss_rpn_bbox``, lists of a scalar a level."""
        batch = self._on_device(batch)
        outs = self.rpn_head(self.extract_feat(batch.images))
        return self.rpn_head.loss(*outs, batch.gt, batch.ignored, batch.metas, batch.images.shape[-2:])

    @torch.no_grad()
    def predict(self, batch: Batch | Sequence[Batch], rescale: bool = True) -> list[Instances]:
        """Return B Instances(bboxes (N, 4), scores (N,), labels (N,) of zeros), best first, on the CPU.

        Args: as in ``TwoStageDetector.predict``.
        """
        views = [self._on_device(view) for view in ([batch] if isinstance(batch, Batch) else batch)]
        metas = [view.metas for view in views]
        if len(views) == 1:
            results = self._detect(views[0])
            results = [to_original(r, meta) for r, meta in zip(results, metas[0])] if rescale else results
        else:
            outs = [self.rpn_head(self.extract_feat(view.images)) for view in views]
            found = [self.rpn_head.predict(*own, view.metas, self.test_cfg.rpn) for own, view in zip(outs, views)]
            results = merge_proposals(found, metas, self.test_cfg.rpn)
            results = results if rescale else [to_input(r, meta) for r, meta in zip(results, metas[0])]
        return [Instances(r.image_size, 1, bboxes=r.bboxes, scores=r.scores,
                          labels=torch.zeros_like(r.scores, dtype=torch.long)).to('cpu') for r in results]

    def _detect(self, batch: Batch) -> list[Instances]:
        """Proposals of one view, in network-input pixels."""
        outs, settings = self.rpn_head(self.extract_feat(batch.images)), self.test_cfg.rpn
        if self.test_cfg.fixed_size and not _tell_once(self, _no_fixed_size(self.rpn_head, 'rpn', settings, 'nms_pre')):
            found = self.rpn_head.predict_padded(*outs, batch.metas, settings, IN_ROUNDS).to_host()
            if found.settled:
                return found.instances(image_sizes(batch.metas))
        return self.rpn_head.predict(*outs, batch.metas, settings)


def _refuse_tracing() -> None:
    """A trace keeps the numbers of one image (how many boxes, which sizes) as constants, without a word.

    Raises:
        ConfigError: torch.jit.trace, or the ONNX exporter that uses it, is at work.
    """
    if torch.jit.is_tracing():
        raise ConfigError('torch.jit.trace, which torch.onnx.export(dynamo=False) uses too, makes a detector that '
                          f'gives wrong boxes on other images: {_EXPORT}')


def _no_fixed_size(head: nn.Module, section: str = '', settings: RoITestSettings | None = None, limit: str = '') -> str:
    """Why ``head`` cannot predict in a fixed size, or not with ``settings``, which need a ``limit``; '' if it can."""
    if not ability(head, 'fixed_size_prediction'):
        return f'{type(head).__name__} declares no fixed_size_prediction, or overrides predict'
    if settings is not None and getattr(settings, limit, 0) <= 0:
        return f'model.test_cfg.{section}.{limit} sets no limit'
    if settings is not None and not IN_ROUNDS.supports(settings.nms):
        return f"model.test_cfg.{section}.nms is {dict(settings.nms)}, which needs type='nms' and no max_num"
    return ''


def _tell_once(model: _Detector, problem: str) -> str:
    """``problem``; the first time that there is one it is a warning too."""
    if problem and not model.told_of_fixed_size:
        model.told_of_fixed_size = True
        warnings.warn(f'model.test_cfg.fixed_size=True has no effect: {problem}', stacklevel=2)
    return problem


def _given(proposals: Sequence[Instances] | None) -> Sequence[Instances]:
    if proposals is None:
        raise ConfigError(
            'the model has no rpn_head and the batch no proposals: Fast R-CNN needs a data set with '
            'proposal_file and LoadProposals in its pipeline')
    return proposals


def _given_maps(batch: Batch) -> torch.Tensor:
    if batch.semantic_seg is None:
        raise ConfigError(
            'the roi_head learns from semantic maps and the batch has none: the data set needs a seg_prefix, its '
            "pipeline LoadAnnotations(with_seg=True), SegRescale and 'gt_semantic_seg' in Collect.keys")
    return batch.semantic_seg


def _pretrained(backbone: Cfg | contracts.Backbone, weights: str | None) -> dict[str, object]:
    """``model.pretrained`` in the keyword that the backbone's class has for it.

    Raises:
        ConfigError: it has none.
    """
    if weights is None or not isinstance(backbone, Mapping) or 'type' not in backbone:
        return {}
    names, open_ended = accepted_keywords(BACKBONES.get(backbone['type']))
    if 'init_cfg' in names:
        return dict(init_cfg=dict(type='Pretrained', checkpoint=weights))
    if 'pretrained' in names or open_ended:
        return dict(pretrained=weights)
    raise ConfigError(f"model.pretrained: {backbone['type']} takes neither init_cfg nor pretrained")


def _if_taken(cfg: object, **defaults: object) -> dict[str, object]:
    """Those of ``defaults`` that are not None and that the class of ``cfg`` takes: a user's head may do without."""
    if not isinstance(cfg, dict) or 'type' not in cfg:
        return {}
    names, open_ended = accepted_keywords(HEADS.get(cfg['type']))
    return {k: v for k, v in defaults.items() if v is not None and (open_ended or k in names)}
