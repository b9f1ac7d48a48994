"""Run an exported detector: needs numpy and onnxruntime, and neither torch nor the rest of boxdet.

    python runtime.py detector.onnx street.jpg --out predictions.json       # files are read with OpenCV or Pillow
    python runtime.py detector.onnx images --annotations val.json           # a COCO file's images, and their ids

>>> from runtime import Detector                                            # doctest: +SKIP
>>> found = Detector('detector.onnx')(image)                                # (H, W, 3) uint8, RGB

This file may be copied to wherever the model goes (``tools/export.py --with-runtime``). Boxes are x0, y0, x1, y1 in
pixels of the image. Letters: N results, J keypoints, H, W of the image, h, w of a mask.
"""
from __future__ import annotations

import argparse
import json
import os
from collections.abc import Sequence

import numpy as np
import onnxruntime

_LEAST = 65  # pixels of a side: the coarsest level of a pyramid, of stride 64, has two cells then


class Detector:
    """A detector in an ONNX file of ``boxdet.apis.export_onnx``.

    Args:
        path: of the file.
        providers: onnxruntime's, the CPU's by default.
    """

    def __init__(self, path: str | os.PathLike, providers: Sequence[str] = ('CPUExecutionProvider',)):
        if not os.path.isfile(path):
            raise FileNotFoundError(f'{os.fspath(path)}: no such file')
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3  # it warns of each float16 operator that the CPU does not have
        self.session = onnxruntime.InferenceSession(os.fspath(path), options, providers=list(providers))
        about = self.session.get_modelmeta().custom_metadata_map.get('boxdet')
        if about is None:
            raise ValueError(f'{path} was not written by boxdet: it has no metadata of that name')
        self.about = json.loads(about)
        self.classes = self.about['classes']
        self.takes = self.session.get_inputs()[0]

    def __call__(self, image: np.ndarray) -> dict[str, np.ndarray | list]:
        """Detect on an image (H, W, 3) uint8, RGB.

        Returns:
            boxes (N, 4), scores (N,), labels (N,), best first; masks, N COCO RLEs; keypoints (N, J, 3): x, y, score.
        """
        height, width = image.shape[:2]
        hw = self._resized(height, width)
        room = self._room(resize(image, hw))
        outputs = self.session.run(None, dict(images=room, sizes=np.array([hw] * len(room), dtype=np.int64)))
        out = dict(zip(self.about['outputs'], outputs))
        if not out.pop('settled'):
            print('warning: more candidates than the graph looks at; some results may be missing')
        count = int(out.pop('count')[0])
        found = {name: value[:count] if self.about['exact'] else value[0, :count] for name, value in out.items()}
        ratio = np.array([hw[1] / width, hw[0] / height], dtype=np.float32)
        found['boxes'] = found['boxes'] / np.tile(ratio, 2)
        if 'keypoints' in found:
            found['keypoints'] = found['keypoints'] / np.append(ratio, np.float32(1))
        if 'masks' in found:
            raise ValueError("masks of the network's input are not brought to the image: export with --masks logits")
        if 'mask_logits' in found:
            probs = 1 / (1 + np.exp(-found.pop('mask_logits')))
            found['masks'] = [encode(paste(*row, (height, width), self.about['mask_threshold'],
                                           self.about['whole_pixels'])) for row in zip(probs, found['boxes'])]
        return found

    def predictions(self, image: np.ndarray, image_id: int) -> list[dict]:
        """COCO result dicts of an image; the category of a label is the model's, or the label plus 1."""
        found, ids = self(image), self.about['categories']
        rows = []
        for i, (x0, y0, x1, y1) in enumerate(np.asarray(found['boxes'], np.float64).tolist()):
            label = int(found['labels'][i])
            row = dict(image_id=image_id, bbox=[x0, y0, x1 - x0, y1 - y0], score=float(found['scores'][i]),
                       category_id=ids[label] if ids else label + 1)
            if 'masks' in found:
                row['segmentation'] = found['masks'][i]
            if 'keypoints' in found:  # COCO's count pixels: half a pixel less
                offset = self.about['keypoint_offset']
                row['keypoints'] = (found['keypoints'][i] - np.array([offset, offset, 0])).ravel().tolist()
            rows.append(row)
        return rows

    def _resized(self, height: int, width: int) -> tuple[int, int]:
        """Height and width that the network wants of an image of these."""
        scale = self.about['scale']
        if scale is None:
            return height, width
        if scale == 'unknown':
            raise ValueError('the config resizes images in a way that the file does not tell: bring them to size '
                             'yourself, and run the session')
        if not self.about['keep_ratio']:
            return scale[1], scale[0]
        factor = min(max(scale) / max(height, width), min(scale) / min(height, width))
        return max(int(height * factor + 0.5), 1), max(int(width * factor + 0.5), 1)

    def _room(self, image: np.ndarray) -> np.ndarray:
        """(B, 3, H, W) of the size that the file takes, the image in its corner."""
        batch, _, height, width = (side if isinstance(side, int) else own
                                   for side, own in zip(self.takes.shape, (1, 3, *np.maximum(image.shape[:2], _LEAST))))
        if height < image.shape[0] or width < image.shape[1]:
            raise ValueError(f'the image is resized to {image.shape[:2]}, the file was made for {(height, width)}')
        room = np.zeros((batch, 3, height, width), np.float32 if 'float' in self.takes.type else np.uint8)
        room[0, :, :image.shape[0], :image.shape[1]] = image.transpose(2, 0, 1)
        return room


def resize(image: np.ndarray, hw: tuple[int, int]) -> np.ndarray:
    """``cv2.resize(image, hw[::-1])`` of an image (H, W, 3) uint8, bit for bit: weights are in units of 1/2048."""
    height, width = image.shape[:2]
    if hw == (height, width):
        return image
    if (height, width) == (2 * hw[0], 2 * hw[1]):  # OpenCV averages then
        return ((image.reshape(hw[0], 2, hw[1], 2, 3).astype(np.int32).sum(axis=(1, 3)) + 2) >> 2).astype(np.uint8)
    left, across = _places(width, hw[1])
    top, down = _places(height, hw[0])
    across = np.where((left < 0) | (left >= width - 1), 0, across)
    left = left.clip(0, width - 1)
    right = np.minimum(left + 1, width - 1)
    pixels = image.astype(np.int32)
    one, other = (np.rint(v * 2048).astype(np.int32)[None, :, None] for v in (1 - across, across))
    rows = pixels[:, left] * one + pixels[:, right] * other                              # (H, w, 3)
    one, other = (np.rint(v * 2048).astype(np.int32)[:, None, None] for v in (1 - down, down))
    above, below = (rows[np.clip(top + k, 0, height - 1)] >> 4 for k in (0, 1))
    return ((((one * above) >> 16) + ((other * below) >> 16) + 2) >> 2).clip(0, 255).astype(np.uint8)


def _places(size: int, wanted: int) -> tuple[np.ndarray, np.ndarray]:
    """The pixel before each new one, and how far behind it that lies."""
    place = ((np.arange(wanted) + 0.5) * (1 / (wanted / size)) - 0.5).astype(np.float32)
    first = np.floor(place).astype(int)
    return first, place - first.astype(np.float32)


def paste(probs: np.ndarray, box: np.ndarray, hw: tuple[int, int], threshold: float,
          whole_pixels: bool = False) -> np.ndarray:
    """The mask (H, W) bool of probabilities (h, w) within a box, which torchvision's way cuts to whole pixels."""
    (x0, y0, x1, y1), weights = box, []
    for start, end, pixels, cells in ((y0, y1, hw[0], probs.shape[0]), (x0, x1, hw[1], probs.shape[1])):
        pixel = np.arange(pixels)
        if whole_pixels:  # of the box enlarged by half a cell on each side
            half, centre = (end - start) * np.float32(0.5) * np.float32((cells + 2) / cells), (end + start) / 2
            first, last = int(centre - half), int(centre + half)
            size = max(last - first + 1, 1)
            place = np.clip((pixel - first + 0.5) * ((cells + 2) / size) - 0.5, 0, cells + 1) - 1
            place = np.where((pixel >= first) & (pixel < first + size), place, -2.0)
        elif end > start:
            place = (pixel + 0.5 - start) / (end - start) * cells - 0.5
        else:  # the pixels around a box without extent take the middle of the mask
            around = (pixel >= np.floor(start) - 1) & (pixel < np.ceil(end) + 1)
            place = np.where(around, (cells - 1) / 2, -2.0)
        weights.append(np.maximum(1 - np.abs(place[:, None] - np.arange(cells)), 0).astype(np.float32))
    return weights[0] @ probs @ weights[1].T >= threshold


def encode(mask: np.ndarray) -> dict:
    """COCO RLE of a mask (H, W) bool, column by column, counts as text."""
    flat = np.concatenate([[False], mask.T.ravel()])
    counts = np.diff(np.concatenate([[0], np.flatnonzero(flat[1:] != flat[:-1]), [mask.size]])).tolist()
    text = ''
    for i, count in enumerate(counts):
        value, more = count - counts[i - 2] if i > 2 else count, True
        while more:  # five bits a character, the last of them with the sign
            bits, value = value & 31, value >> 5
            more = value != (-1 if bits & 16 else 0)
            text += chr(bits + 32 * more + 48)
    return dict(size=list(mask.shape), counts=text)


def read(path: str) -> np.ndarray:
    """An image file as (H, W, 3) uint8, RGB."""
    try:
        import cv2
    except ImportError:
        from PIL import Image, ImageOps
        with Image.open(path) as image:
            return np.asarray(ImageOps.exif_transpose(image).convert('RGB'))
    image = cv2.imread(path, cv2.IMREAD_COLOR)
    if image is None:
        raise ValueError(f'{path}: not an image that can be read')
    return image[:, :, ::-1]


def main(argv: Sequence[str] | None = None) -> None:
    """The command line at the top of the file."""
    parser = argparse.ArgumentParser(description='Detect on images, and write COCO results; image ids are 1, 2, ...')
    parser.add_argument('model', help='the .onnx file')
    parser.add_argument('images', nargs='+', help='image files; with --annotations their folder')
    parser.add_argument('--annotations', metavar='FILE', help='a COCO file: all its images, under the ids it has')
    parser.add_argument('--out', default='predictions.json', help='the file to write (default: %(default)s)')
    args = parser.parse_args(argv)
    named = dict(enumerate(args.images, start=1))
    if args.annotations:
        with open(args.annotations, encoding='utf-8') as file:
            listed = json.load(file)['images']
        named = {image['id']: os.path.join(args.images[0], image['file_name']) for image in listed}
    detector = Detector(args.model)
    rows = [row for image_id, path in named.items() for row in detector.predictions(read(path), image_id)]
    with open(args.out, 'w', encoding='utf-8') as file:
        json.dump(rows, file)
    print(f'{len(rows)} detections in {len(named)} images: {args.out}')


if __name__ == '__main__':
    try:
        main()
    except (OSError, ValueError) as error:
        raise SystemExit(f'error: {error}') from None
