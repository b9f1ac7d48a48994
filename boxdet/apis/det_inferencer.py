"""mmdetection 3.x's ``DetInferencer``: images in, plain dicts, files and drawings out.

>>> from boxdet.apis import DetInferencer                                               # doctest: +SKIP
>>> inferencer = DetInferencer(model='mask-rcnn_r50_fpn_1x_coco.py', weights='mask_rcnn.pth')
>>> found = inferencer('images/', batch_size=4, out_dir='outputs', no_save_pred=False)
>>> found['predictions'][0]['scores'][:2]
[0.9981, 0.9922]
"""
from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxdet.apis.images import IMAGE_ENDINGS, ImageLike, is_image
from boxdet.apis.inference import inference_stream, init_detector
from boxdet.apis.output_names import output_names
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import load_checkpoint
from boxdet.engine.config import Config, load_config, translated
from boxdet.engine.environment import choose_device
from boxdet.engine.evaluation_loop import Progress
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.files.writing import write_json
from boxdet.registry import Cfg
from boxdet.structures.instances import Instances
from boxdet.visualization import draw

# 3.x's names of palettes -> ours; the vivid colours tell the classes of COCO and Cityscapes apart as well as theirs.
_PALETTES = {'none': None, 'coco': 'vivid', 'voc': 'voc', 'citys': 'vivid', 'random': 'random'}
_OF_TEXTS = ('texts', 'stuff_texts', 'custom_entities', 'tokens_positive')


class DetInferencer:
    """A detector for images in any form, with mmdetection 3.x's keywords and results.

    Args:
        model: a config file of mmdetection 2.x or 3.x, its name without folders ('mask-rcnn_r50_fpn_1x_coco'), or a
            Config. None: the config that the checkpoint holds.
        weights: checkpoint file or address. None with a name as ``model``: those that were published for it (see
            ``tools/zoo.py``). None otherwise: random weights, and a warning.
        device: 'cpu', 'cuda:0', ...; a GPU where there is one, else the CPU.
        scope: 3.x's registry; 'mmdet' is the only one.
        palette: colours of the classes: 'none' (boxdet's), 'coco', 'voc', 'citys' or 'random'.
        show_progress: tell how far it is.

    Attributes:
        model: the detector, of ``init_detector``.

    Raises:
        ConfigError: neither model nor weights, or a wrong config. CheckpointError: weights that cannot be used.
    """

    def __init__(self, model: str | os.PathLike | Mapping | None = None, weights: str | os.PathLike | None = None,
                 device: str | torch.device | None = None, scope: str | None = 'mmdet', palette: str = 'none',
                 show_progress: bool = True):
        if scope not in (None, 'mmdet'):
            raise ConfigError(f"DetInferencer: scope '{scope}': boxdet has one registry, which is mmdet's")
        if palette not in _PALETTES:
            raise ConfigError(f"DetInferencer: palette '{palette}'{nearest(str(palette), _PALETTES)}; it is one of "
                              f"{', '.join(_PALETTES)}")
        config = _config_of(model, weights)
        if weights is None and _is_name(model) and Path(config.filename).stem in zoo.entries():
            weights = zoo.SCHEME + Path(config.filename).stem
        if weights is None:
            warnings.warn('DetInferencer: no weights are given: the results are those of random ones', stacklevel=2)
        self.model = init_detector(config, weights, device=choose_device(device))
        self.palette = _PALETTES[palette]
        self.show_progress = show_progress
        self._unnamed = 0  # images without a file name so far: numbers for their files

    def __call__(self, inputs: ImageLike | Iterable[ImageLike], batch_size: int = 1, return_vis: bool = False,
                 show: bool = False, wait_time: float = 0, no_save_vis: bool = False, draw_pred: bool = True,
                 pred_score_thr: float = 0.3, return_datasamples: bool = False, print_result: bool = False,
                 no_save_pred: bool = True, out_dir: str | os.PathLike = '', **texts: Any) -> dict[str, list]:
        """Detect on ``inputs``.

        Args:
            inputs: a file, an address, a folder of images, an array (H, W, 3) uint8 in BGR order, the bytes of a file,
                a PIL image; or a list of them.
            batch_size: images of one input size that go through the network together.
            return_vis: keep the drawings, (H, W, 3) uint8 in RGB order.
            show: show each drawing in a window.
            wait_time: seconds that it stays open; 0 until a key is pressed.
            no_save_vis: with ``out_dir``, write no drawings.
            draw_pred: draw the detections; without, the drawings are the images.
            pred_score_thr: objects scoring less are not drawn. The predictions hold all.
            return_datasamples: predictions as objects, not as dicts: see ``data_sample``.
            print_result: print the predictions.
            no_save_pred: with ``out_dir``, write no predictions; 3.x's default, which False changes.
            out_dir: drawings go to its folder ``vis``, predictions to ``preds`` as one JSON file an image.
            **texts: 3.x's keywords for detectors that read texts; there are none here.

        Returns:
            dict(predictions=[dict(labels, scores, bboxes, masks), ...], visualization=[...]): plain lists, one entry an
            image in order; boxes are x1, y1, x2, y2 in pixels, ``masks`` COCO RLE dicts with text counts where the
            detector gives masks. ``visualization`` is empty without ``return_vis``.

        Raises:
            ConfigError: a keyword that means nothing here. DataError: an image that cannot be read, a folder that
                cannot be written.
        """
        for name, value in texts.items():
            if name not in _OF_TEXTS:
                raise ConfigError(f"DetInferencer takes no '{name}'{nearest(name, _KEYWORDS)}")
            if value:
                raise ConfigError(f'DetInferencer: {name}: the detectors here read no texts')
        draw.check_score_thr(pred_score_thr)
        images = _images(inputs)
        names = self._names(images)
        wanted = return_vis or show or bool(out_dir) and not no_save_vis
        found: dict[str, list] = dict(predictions=[], visualization=[])
        for name, (image, result) in zip(names, self._results(images, batch_size)):
            if wanted:
                drawing = self._draw(image, result, pred_score_thr, draw_pred)
                if out_dir and not no_save_vis:
                    draw.write_image(drawing, Path(out_dir, 'vis', name))
                if show:
                    draw.show(drawing, name, wait_time)
                if return_vis:
                    found['visualization'].append(drawing[:, :, ::-1])
            prediction = as_prediction(result)
            if out_dir and not no_save_pred:
                write_json(Path(out_dir, 'preds', f'{os.path.splitext(name)[0]}.json'), prediction)
            if print_result:
                print(prediction)
            found['predictions'].append(self.data_sample(result, image) if return_datasamples else prediction)
        return found

    def data_sample(self, result: Instances, image: ImageLike) -> Any:
        """What ``return_datasamples`` gives for one image: boxdet's Instances.

        A subclass makes another object of it; ``boxdet.compat`` gives 3.x's DetDataSample.
        """
        return result

    def _results(self, images: list[ImageLike], batch_size: int) -> Iterator[tuple[ImageLike, Instances]]:
        progress = Progress(len(images)) if self.show_progress else None
        for pair in inference_stream(self.model, images, batch_size):
            if progress is not None:
                progress.advance(1)
            yield pair
        if progress is not None:
            progress.close()

    def _draw(self, source: ImageLike, result: Instances, score_thr: float, draw_pred: bool) -> np.ndarray:
        image = draw.read_image(source, result.image_size)
        if not draw_pred:
            return image
        return draw.draw_instances(image, result, self.model.CLASSES, score_thr, self.palette or self.model.PALETTE,
                                   skeleton=self.model.skeleton)

    def _names(self, images: Sequence[ImageLike]) -> list[str]:
        """File names for the drawings, all different: the images' own, or numbers."""
        paths = []
        for image in images:
            if isinstance(image, (str, os.PathLike)):
                path = str(image).partition('?')[0] if '://' in str(image) else str(image)
                paths.append(path if path.lower().endswith(IMAGE_ENDINGS) else f'{path}.jpg')
            else:
                paths.append(f'{self._unnamed:08}.jpg')
                self._unnamed += 1
        return output_names(paths) if paths else []


_KEYWORDS = ('inputs', 'batch_size', 'return_vis', 'show', 'wait_time', 'no_save_vis', 'draw_pred', 'pred_score_thr',
             'return_datasamples', 'print_result', 'no_save_pred', 'out_dir')


def as_prediction(result: Instances) -> dict[str, list]:
    """A result as mmdetection 3.x's dict of plain lists: ``labels``, ``scores``, ``bboxes`` and, if any, ``masks``."""
    arrays = result.numpy()
    count = len(result)
    found = dict(labels=arrays['labels'].tolist() if 'labels' in result else [0] * count,
                 scores=arrays['scores'].tolist(), bboxes=arrays['bboxes'].tolist())
    if 'masks' in result:
        found['masks'] = [row['segmentation'] for row in result.to_coco(0, range(result.num_classes or 1 + max(
            found['labels'], default=0)))]
    if 'keypoints' in result:
        keypoints = arrays['keypoints']  # (N, J, 3)
        found['keypoints'], found['keypoint_scores'] = keypoints[..., :2].tolist(), keypoints[..., 2].tolist()
    return found


def _is_name(model: object) -> bool:
    """Whether ``model`` is the name of a config, not a file."""
    return isinstance(model, (str, os.PathLike)) and not os.path.isfile(model) and os.path.splitext(model)[1] not in (
        '.py', '.json', '.yaml', '.yml')


def _config_of(model: str | os.PathLike | Cfg | None, weights: str | os.PathLike | None) -> Config:
    """The Config that ``model`` names, or that the checkpoint ``weights`` holds."""
    if model is None:
        if weights is None:
            raise ConfigError('DetInferencer needs a model, or weights whose checkpoint holds its config')
        meta = load_checkpoint(weights).get('meta') or {}
        text = meta.get('cfg') or meta.get('config')
        if not isinstance(text, str) or not text:
            raise ConfigError(f'DetInferencer: {weights} holds no config: give one as model')
        return translated(Config.fromstring(text, '.py'))
    if isinstance(model, (str, os.PathLike)):
        return load_config(model)
    if isinstance(model, Mapping) and not hasattr(model, 'merge_from_dict'):
        model = Config(dict(model))
    return translated(model)


def _images(inputs: ImageLike | Iterable[ImageLike]) -> list[ImageLike]:
    """The images that ``inputs`` are; a folder is those in it, without the folders inside, as in 3.x."""
    if isinstance(inputs, (str, os.PathLike)) and os.path.isdir(inputs):
        found = sorted(os.path.join(inputs, name) for name in os.listdir(inputs)
                       if name.lower().endswith(IMAGE_ENDINGS))
        if not found:
            raise DataError(f'{inputs}: no image in this folder')
        return list(found)
    return [inputs] if is_image(inputs) else list(inputs)
