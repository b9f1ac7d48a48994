"""Results as files: COCO JSON that servers and pycocotools accept, and ``results.pkl`` to evaluate again
later.

Letters: N objects of an image, K classes.
"""
from __future__ import annotations

import io
import json
import os
import pickle
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from boxdet.errors import DataError
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

KINDS = ('bbox', 'segm', 'proposal')


def coco_predictions(instances: Instances, image_id: int, category_ids: Sequence[int],
                     kind: str) -> list[dict]:
    """The COCO result dicts of one image: ``image_id, category_id, bbox (x, y, width, height), score`` for
    'bbox'; 'segm' holds ``segmentation`` (RLE, counts as text) in place of ``bbox``.

    ``bbox`` is left out of 'segm' because pycocotools would then take the box's area for the mask's, which
    moves small/medium/large mask AP. 'proposal' is 'bbox' with every category 1.

    Raises:
        DataError: 'segm' asked of objects without masks.
    """
    if kind == 'proposal':
        rows = instances.without('masks',
                                 'keypoints').replace(labels=torch.zeros(len(instances), dtype=torch.long))
        return rows.to_coco(image_id, [1])
    if kind == 'bbox':
        return instances.without('masks', 'keypoints').to_coco(image_id, category_ids)
    if 'masks' not in instances:
        if len(instances):
            raise DataError(
                f"image {image_id}: the results hold no masks; 'segm' needs a model with a mask head")
        return []
    rows = instances.without('keypoints').to_coco(image_id, category_ids)
    for row in rows:
        del row['bbox']
    return rows


def from_legacy(result: Any) -> Instances:
    """Read mmdetection 2.x's result of one image; Instances are returned as they are.

    Args:
        result: K arrays (n, 5) as x1, y1, x2, y2, score; or a tuple of that and K lists of RLE dicts; or, of
            an RPN, one array (N, 5).

    Raises:
        DataError: none of these.
    """
    if isinstance(result, Instances):
        return result
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.shape[1] == 5:
        return _from_rows(result, np.zeros(len(result), np.int64))
    boxes, masks = result if isinstance(result, tuple) and len(result) == 2 else (result, None)
    if not isinstance(boxes,
                      (list, tuple)) or not all(np.ndim(b) == 2 and np.shape(b)[1] == 5 for b in boxes):
        raise DataError(
            f'results are Instances, or lists of (n, 5) arrays, one a class; not {type(result).__name__}')
    labels = np.repeat(np.arange(len(boxes)), [len(b) for b in boxes])
    rows = np.concatenate(boxes) if boxes else np.zeros((0, 5), np.float32)
    instances = _from_rows(rows, labels, num_classes=len(boxes))
    if masks is None:
        return instances
    rles = [rle for of_class in masks for rle in of_class]
    size = tuple(rles[0]['size']) if rles else (0, 0)
    return instances.replace(masks=RleMasks(rles, *size))


def _from_rows(rows: np.ndarray, labels: np.ndarray, num_classes: int | None = None) -> Instances:
    rows = torch.from_numpy(np.asarray(rows, dtype=np.float32))
    return Instances(num_classes=num_classes, bboxes=rows[:, :4], scores=rows[:, 4],
                     labels=torch.from_numpy(labels))


def save_results(results: Iterable[Instances], path: str | os.PathLike, proposals: bool = False) -> None:
    """Write results to ``path`` (.pkl or .json), whole or not at all: one dict an image, in the data set's
    order.

    A dict holds ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,) and where there are any ``masks`` (COCO
    RLE dicts) and ``keypoints``; ``image_size`` (height, width) and ``num_classes``. Reading the pickle needs
    numpy only.

    Args:
        proposals: the results of an RPN: write one array (N, 5) an image as x1, y1, x2, y2, score, the form
            that a data set reads as its ``proposal_file``.

    Raises:
        DataError: another file ending.
    """
    path, suffix = Path(path), check_results_path(path)
    plain = _as_proposals if proposals else _as_plain
    rows = [plain(from_legacy(result)) for result in results]
    if suffix == '.json':
        write_atomically(path, lambda file: file.write(json.dumps(rows, default=_json_value).encode()))
    else:
        write_atomically(path, lambda file: pickle.dump(rows, file, protocol=4))


def load_results(path: str | os.PathLike) -> list[Instances]:
    """Read what ``save_results`` wrote, or mmdetection 2.x's ``results.pkl``. No code of the file is run.

    Raises:
        DataError: the file is missing, damaged, or holds anything but numbers, texts and their containers.
    """
    path, suffix = Path(path), check_results_path(path)
    try:
        data = path.read_bytes()
        rows = json.loads(data) if suffix == '.json' else _PlainUnpickler(io.BytesIO(data)).load()
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f'{path}: not a results file ({type(error).__name__}: {error})') from error
    if not isinstance(rows, list):
        raise DataError(f'{path}: a results file holds a list, one entry an image, not {type(rows).__name__}')
    try:
        if suffix == '.json':  # proposals come as lists
            rows = [
                np.array(row, np.float32).reshape(-1, 5) if isinstance(row, list) else row for row in rows]
        return [_from_plain(row) if isinstance(row, dict) else from_legacy(row) for row in rows]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: not a results file ({type(error).__name__}: {error})') from error


def check_results_path(path: str | os.PathLike) -> str:
    """The ending of a results file: '.pkl' or '.json'.

    Raises:
        DataError: any other.
    """
    suffix = {'.pickle': '.pkl'}.get(Path(path).suffix.lower(), Path(path).suffix.lower())
    if suffix not in ('.pkl', '.json'):
        raise DataError(f"{path}: results are written to a '.pkl' or '.json' file")
    return suffix


def _as_plain(instances: Instances) -> dict[str, Any]:
    row = instances.numpy()
    if 'masks' in row:
        row['masks'] = [
            dict(size=[int(v) for v in rle['size']], counts=rle['counts']) for rle in row['masks']]
    return dict(row, image_size=instances.image_size, num_classes=instances.num_classes)


def _as_proposals(instances: Instances) -> np.ndarray:
    arrays = instances.numpy()
    return np.concatenate([arrays['bboxes'], arrays['scores'][:, None]], axis=1).astype(np.float32)


def _json_value(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode('ascii')
    if isinstance(value, (np.ndarray, np.generic)):
        return value.tolist()
    raise TypeError(f'{type(value).__name__} has no JSON form')


def _from_plain(row: dict[str, Any]) -> Instances:
    row = dict(row)
    image_size, num_classes = row.pop('image_size', None), row.pop('num_classes', None)
    fields: dict[str, Any] = dict(
        bboxes=torch.from_numpy(np.array(row.pop('bboxes'), np.float32).reshape(-1, 4)),
        scores=torch.from_numpy(np.array(row.pop('scores'), np.float32)),
        labels=torch.from_numpy(np.array(row.pop('labels'), np.int64)))
    masks = row.pop('masks', None)
    if masks is not None:
        rles = [
            dict(rle,
                 counts=rle['counts'].encode('ascii') if isinstance(rle['counts'], str) else rle['counts'])
            for rle in masks]
        size = image_size or (tuple(rles[0]['size']) if rles else (0, 0))
        fields['masks'] = RleMasks(rles, *size)
    for name, value in row.items():
        fields[name] = torch.from_numpy(np.array(value, np.float32))
    return Instances(tuple(image_size) if image_size else None, num_classes, **fields)


class _PlainUnpickler(pickle.Unpickler):
    """Unpickles numbers, texts, their containers and numpy arrays; every other name in the file is
    refused.
    """

    _ALLOWED = frozenset([(f'numpy.{core}.{name}', attribute) for core in ('core', '_core')
                          for name, attribute in (('multiarray', '_reconstruct'), ('multiarray', 'scalar'),
                                                  ('numeric', '_frombuffer'))] +
                         [('numpy', 'ndarray'), ('numpy', 'dtype'), ('_codecs', 'encode')])

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in self._ALLOWED:
            raise DataError(f"refused: the file asks for '{module}.{name}', which no results file needs")
        return super().find_class(module, name)


def write_json(path: str | os.PathLike, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all."""
    write_atomically(Path(path), lambda file: file.write(json.dumps(value).encode()))


def write_atomically(path: Path, write: Callable[[Any], Any]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, which then takes its place.

    Raises:
        DataError: the folder or the disk does not take it; what was at ``path`` is left as it was.
    """
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f'.{path.name}.')
        with os.fdopen(handle, 'wb') as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files for their owner only
        os.replace(temporary, path)
        temporary = None
    except OSError as error:
        raise DataError(f'cannot write {path}: {error.strerror or error}') from error
    finally:
        if temporary is not None:
            os.unlink(temporary)
