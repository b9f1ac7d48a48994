"""mmdetection 3.x's forms of results, for scripts that read ``result.pred_instances.bboxes``.

3.x's scripts and 2.x's import the same functions from ``mmdet.apis``. So what ``inference_detector`` gives there is
2.x's result, lists by class, that has 3.x's attributes beside (``as_both``).
"""
from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from mmengine.structures import BaseDataElement, InstanceData

from boxdet import apis
from boxdet.errors import UserError
from boxdet.registry import Registry
from boxdet.structures.instances import Instances
from boxdet.structures.masks import BitmapMasks
from boxdet.visualization import draw

VISUALIZERS = Registry('visualizer')


class DetDataSample(BaseDataElement):
    """3.x's container of an image's ground truth and predictions, each an InstanceData.

    Attributes:
        pred_instances, gt_instances, ignored_instances, proposals: InstanceData; absent until they are set.
    """


def data_sample(result: Instances, image: Any = None) -> DetDataSample:
    """3.x's form of a result.

    Args:
        result: of boxdet.
        image: what was detected on; its path is ``img_path``.

    Returns:
        a DetDataSample whose ``pred_instances`` has ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) and, of a
        detector that has them, ``masks`` (N, H, W) bool and ``keypoints`` (N, J, 2) with ``keypoint_scores`` (N, J).
    """
    fields: dict[str, Any] = dict(bboxes=result.bboxes, scores=result.scores)
    fields['labels'] = result.labels if 'labels' in result else torch.zeros(len(result), dtype=torch.long)
    if 'masks' in result:
        fields['masks'] = torch.from_numpy(result.masks_bitmaps().astype(bool))
    if 'keypoints' in result:
        fields['keypoints'], fields['keypoint_scores'] = result.keypoints[..., :2], result.keypoints[..., 2]
    size = result.image_size
    meta: dict[str, Any] = {} if size is None else dict(ori_shape=tuple(size), img_shape=tuple(size))
    if isinstance(image, (str, os.PathLike)):
        meta['img_path'] = str(image)
    sample = DetDataSample(metainfo=meta)
    sample.pred_instances = InstanceData(**fields)
    return sample


class _Both:
    """What gives a result of 2.x the attributes of a DetDataSample."""
    _found: Instances
    _image: Any = None

    @property
    def sample(self) -> DetDataSample:
        """The result as 3.x's object."""
        if '_sample' not in self.__dict__:
            self._sample = data_sample(self._found, self._image)
        return self._sample

    def __getattr__(self, name: str) -> Any:
        if name.startswith('_'):
            raise AttributeError(name)
        return getattr(self.sample, name)


class BoxResult(_Both, list):
    """K arrays (n, 5)."""


class MaskResult(_Both, tuple):
    """K arrays (n, 5), and K lists of (H, W) bool arrays."""


def as_both(result: Any, found: Instances, image: Any = None) -> Any:
    """2.x's ``result`` of an image with the attributes of 3.x's: a list, or a tuple of two."""
    if not isinstance(result, (list, tuple)):
        return result  # of an RPN: an array
    both: Any = MaskResult(result) if isinstance(result, tuple) else BoxResult(result)
    both._found, both._image = found, image
    return both


def instances_of(sample: Any) -> Instances:
    """The other way: of a DetDataSample's ``pred_instances``, or its ``gt_instances``."""
    found = getattr(sample, 'pred_instances', None)
    found = sample.gt_instances if found is None else found
    bboxes = torch.as_tensor(found.bboxes).detach().cpu()
    size = tuple(sample.get('ori_shape') or sample.get('img_shape') or ())[:2] or None
    scores = torch.as_tensor(found.get('scores', torch.ones(len(bboxes)))).detach().cpu()
    fields: dict[str, Any] = dict(bboxes=bboxes, scores=scores, labels=torch.as_tensor(found.labels).detach().cpu())
    if 'masks' in found:
        masks = np.asarray(found.masks).astype(np.uint8)
        fields['masks'] = BitmapMasks(masks, *masks.shape[1:]).to_rle()
    return Instances(size, **fields)


class DetInferencer(apis.DetInferencer):
    """boxdet's, whose ``return_datasamples=True`` gives 3.x's DetDataSample."""

    def data_sample(self, result: Instances, image: Any) -> DetDataSample:
        """The result as 3.x's object."""
        return data_sample(result, image)


@VISUALIZERS.register_module()
class DetLocalVisualizer:
    """3.x's drawings of a DetDataSample.

    Args:
        name: not used. vis_backends: not used; the drawing goes to a file, a window or ``get_image``.
        save_dir: not used.
        line_width: of boxes, in pixels.
        alpha: not used; masks are half transparent.

    Attributes:
        dataset_meta: dict(classes=names, palette=colours), which a script sets.
    """

    def __init__(self, name: str = 'visualizer', image: np.ndarray | None = None, vis_backends: Any = None,
                 save_dir: str | None = None, bbox_color: Any = None, text_color: Any = None, mask_color: Any = None,
                 line_width: float = 3, alpha: float = 0.8):
        self.dataset_meta: Mapping[str, Any] = {}
        self.line_width, self._image = line_width, image

    def add_datasample(self, name: str, image: np.ndarray, data_sample: Any = None, draw_gt: bool = True,
                       draw_pred: bool = True, show: bool = False, wait_time: float = 0, out_file: str | None = None,
                       pred_score_thr: float = 0.3, step: int = 0) -> None:
        """Draw on ``image`` (H, W, 3) in RGB order: the ground truth on the left, the predictions on the right."""
        meta = {str(key).lower(): value for key, value in (self.dataset_meta or {}).items()}
        drawings, sample = [], data_sample.sample if isinstance(data_sample, _Both) else data_sample
        plain = np.ascontiguousarray(image[:, :, ::-1])
        for part, wanted, threshold in (('gt_instances', draw_gt, 0.), ('pred_instances', draw_pred, pred_score_thr)):
            found = sample.get(part) if wanted and sample is not None else None
            if found is not None:
                only = DetDataSample(metainfo=sample.metainfo)
                setattr(only, part, found)
                drawings.append(draw.draw_instances(plain.copy(), instances_of(only), meta.get('classes'), threshold,
                                                    thickness=round(self.line_width)))
        drawing = np.concatenate(drawings or [plain], axis=1)
        self._image = drawing[:, :, ::-1]
        if out_file is not None:
            draw.write_image(drawing, out_file)
        if show:
            draw.show(drawing, name, wait_time)

    def get_image(self) -> np.ndarray | None:
        """The last drawing (H, W, 3), RGB; None before the first."""
        return self._image

    def show(self, drawn_img: np.ndarray | None = None, win_name: str = 'image', wait_time: float = 0.) -> None:
        """Show a drawing, the last by default, in a window.

        Raises:
            UserError: there is none.
        """
        image = self._image if drawn_img is None else drawn_img
        if image is None:
            raise UserError('DetLocalVisualizer.show: nothing was drawn yet; add_datasample draws')
        draw.show(np.ascontiguousarray(image[:, :, ::-1]), win_name, wait_time)


def register_all_modules(init_default_scope: bool = True) -> None:
    """Nothing to do: names are looked up when they are asked for."""


def get_test_pipeline_cfg(cfg: Any) -> Any:
    """The pipeline of ``data.test``."""
    test = cfg.data.test
    while 'pipeline' not in test:
        test = test['dataset'] if 'dataset' in test else test['datasets'][0]
    return test.pipeline


def get_box_tensor(boxes: Any) -> torch.Tensor:
    """Boxes (N, 4) as a tensor."""
    return boxes.tensor if hasattr(boxes, 'tensor') else boxes


def bbox2roi(bbox_list: Sequence[Any]) -> torch.Tensor:
    """Rois (R, 5) of boxes (N, 4) of B images."""
    from boxdet.compat.forms import bbox2roi as own
    return own([get_box_tensor(boxes) for boxes in bbox_list])

