"""Results as files: COCO JSON for servers and pycocotools, and ``results.pkl`` to evaluate again later.

Letters: N objects of an image, K classes.
"""
from __future__ import annotations

import io
import os
import pickle
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import torch

from boxdet.errors import DataError
from boxdet.evaluation.processes import in_processes, usable_processes
from boxdet.evaluation.stored_results import StoredResults, pack, pack_fields
from boxdet.files.json_text import read_json
from boxdet.files.pickles import DATA, RestrictedUnpickler, loads, thaw
from boxdet.files.writing import write_json_list, write_whole
from boxdet.geometry.keypoints import HALF_PIXEL
from boxdet.structures.instances import Fields, Instances, PerClass
from boxdet.structures.masks import RleMasks

KINDS = ('bbox', 'segm', 'keypoints', 'proposal')
Result = Instances | PerClass | np.ndarray  # of an image: ours, or mmdetection 2.x's; of 2.x's RPN (N, 5)
_Entry = PerClass | np.ndarray | Fields  # of an image in a results file


def coco_predictions(instances: Instances, image_id: int, category_ids: Sequence[int],
                     kind: str, keypoint_offset: float = HALF_PIXEL) -> list[dict]:
    """The COCO result dicts of one image.

    They hold ``image_id, category_id, bbox (x, y, width, height), score`` for 'bbox'; 'segm' holds ``segmentation``
    (RLE, counts as text) in place of ``bbox``, 'keypoints' holds ``keypoints`` (x, y, score of each in a row).

    ``bbox`` is left out of 'segm' because pycocotools would then take the box's area for the mask's, which
    moves small/medium/large mask AP; likewise of 'keypoints', whose area is that of the keypoints' extent.
    'proposal' is 'bbox' with every category 1.

    Args:
        instances: the image's N detections.
        image_id: of the image.
        category_ids: of the K labels.
        kind: of ``KINDS``.
        keypoint_offset: the data set's, see ``Instances.to_coco``.

    Raises:
        DataError: 'segm' asked of objects without masks, or 'keypoints' of objects without keypoints.
    """
    if kind == 'proposal':
        boxes = instances.without('masks', 'keypoints')
        return boxes.replace(labels=torch.zeros(len(instances), dtype=torch.long)).to_coco(image_id, [1])
    if kind == 'bbox':
        return instances.without('masks', 'keypoints').to_coco(image_id, category_ids)
    field, other, head = ('keypoints', 'masks', 'keypoint') if kind == 'keypoints' else ('masks', 'keypoints', 'mask')
    if field not in instances:
        if len(instances):
            raise DataError(
                f"image {image_id}: the results hold no {field}; '{kind}' needs a model with a {head} head")
        return []
    if kind == 'segm' and 'mask_scores' in instances:  # of 2.x's Mask Scoring R-CNN
        instances = instances.replace(scores=instances.mask_scores)
    rows = instances.without(other).to_coco(image_id, category_ids, keypoint_offset)
    for row in rows:
        del row['bbox']
    return rows


def from_coco_predictions(path: str | os.PathLike, image_ids: Sequence[int],
                          category_ids: Sequence[int]) -> list[Instances]:
    """Read a file of COCO result dicts (boxes or masks): one Instances for each of ``image_ids``.

    Raises:
        DataError: no such file, or a row of another image or category, naming it.
    """
    rows = _read_result_list(path)
    places = {image_id: place for place, image_id in enumerate(image_ids)}
    labels = {category: label for label, category in enumerate(category_ids)}
    by_image: list[list[dict]] = [[] for _ in image_ids]
    for number, row in enumerate(rows):
        for key, known in (('image_id', places), ('category_id', labels)):
            if row.get(key) not in known:
                raise DataError(f"{path}: row {number} is of {key} {row.get(key)}, which the annotations do not have")
        by_image[places[row['image_id']]].append(row)
    try:
        return [_from_coco_rows(own, labels) for own in by_image]
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(f'{path}: not a COCO result list ({type(error).__name__}: {error})') from error


def _read_result_list(path: str | os.PathLike) -> list[dict]:
    rows = read_json(path)
    if not isinstance(rows, list) or not all(isinstance(row, dict) and 'image_id' in row for row in rows):
        raise DataError(f"{path}: not a COCO result list, whose rows hold 'image_id', 'category_id', 'score' and "
                        "'bbox' or 'segmentation'")
    return rows


def _from_coco_rows(rows: Sequence[dict], labels: dict[int, int]) -> Instances:
    fields: Fields = {}
    if rows and 'segmentation' in rows[0]:
        fields['masks'] = RleMasks([row['segmentation'] for row in rows])
    if rows and 'bbox' not in rows[0]:
        boxes = torch.from_numpy(fields['masks'].bboxes())
    else:
        boxes = torch.tensor([row['bbox'] for row in rows], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
    return Instances(bboxes=boxes.float(), scores=torch.tensor([float(row['score']) for row in rows]),
                     labels=torch.tensor([labels[row['category_id']] for row in rows], dtype=torch.long), **fields)


def from_legacy(result: Result) -> Instances:
    """Read mmdetection 2.x's result of one image; Instances are returned as they are.

    Args:
        result: K arrays (n, 5) as x1, y1, x2, y2, score; or a tuple of that and K lists of RLE dicts or bitmaps; or, of
            an RPN, one array (N, 5).

    Raises:
        DataError: none of these.
    """
    if isinstance(result, Instances):
        return result
    if isinstance(result, np.ndarray) and result.ndim == 2 and result.shape[1] == 5:
        rows = torch.from_numpy(result.astype(np.float32))
        return Instances(bboxes=rows[:, :4], scores=rows[:, 4], labels=torch.zeros(len(rows), dtype=torch.long))
    return Instances.from_per_class(result)


def save_results(results: Iterable[Instances], path: str | os.PathLike, proposals: bool = False,
                 num_classes: int | None = None) -> None:
    """Write results to ``path``, whole or not at all: a list of one entry an image, in the data set's order.

    ``.pkl`` has mmdetection 2.x's form, an entry being ``Instances.per_class()``: a list of K arrays (n, 5) as x1, y1,
    x2, y2, score; with masks a tuple of that and a list of K lists of COCO RLE dicts, their ``counts`` bytes. 2.x has
    none for keypoints or for fields of your own: such an entry is a dict, as in ``.json``.

    ``.json`` has a dict an image, with ``bboxes`` (N, 4), ``scores`` (N,), ``labels`` (N,), and where there are any
    ``masks`` (COCO RLE dicts) and ``keypoints`` (N, J, 3); ``image_size`` (height, width) and ``num_classes``.

    Reading the pickle needs numpy only. One image at a time is in memory.

    Args:
        results: one Instances an image.
        path: ends in .pkl or .json.
        proposals: the results of an RPN: write one array (N, 5) an image as x1, y1, x2, y2, score, the form
            that a data set reads as its ``proposal_file``.
        num_classes: K of results that do not know it.

    Raises:
        DataError: another file ending, or for ``.pkl`` labels beyond K, or K unknown.
    """
    path, suffix = Path(path), check_results_path(path)
    found = (from_legacy(result) for result in results)
    if suffix == '.json':
        plain = _as_proposals if proposals else _as_plain
        write_json_list(path, (plain(result) for result in found))
    elif proposals:
        write_whole(path, lambda file: _write_pickled_rows(file, ((_as_proposals(result), None) for result in found)))
    else:
        write_whole(path, lambda file: _write_pickled_rows(file, (_as_legacy(result, num_classes) for result in found)))


def load_results(path: str | os.PathLike, nproc: int | None = None) -> Sequence[Instances]:
    """Read what ``save_results`` wrote, or mmdetection 2.x's ``results.pkl``. No code of the file is run.

    Args:
        path: ends in .pkl or .json.
        nproc: processes that read a pickle of ``save_results``; None for as many as this process has processors, where
            the file is large enough.

    Returns:
        a ``StoredResults``: packed in memory, and beyond a limit on disk. Of a file of ``save_results`` one image at a
        time is read.

    Raises:
        DataError: the file is missing, damaged, or holds anything but numbers, texts and their containers.
    """
    path, suffix = Path(path), check_results_path(path)
    rows = read_json(path) if suffix == '.json' else None
    try:
        if suffix == '.json':
            return StoredResults.of(_from_row(row, suffix) for row in _list_of_rows(rows))
        with open(path, 'rb') as file:
            bounds = _bounds(file)
            if bounds is None:
                file.seek(0)
                rows = RestrictedUnpickler(file, DATA).load()
                return StoredResults.of(_from_row(row, suffix) for row in _list_of_rows(rows))
        return _stored_rows(path, bounds, nproc)
    except OSError as error:
        raise DataError(f'{path}: {error.strerror}') from error
    except DataError as error:
        raise DataError(f'{path}: {error}') from error
    except Exception as error:  # a damaged pickle raises almost anything
        raise DataError(f'{path}: not a results file ({type(error).__name__}: {error})') from error


# The file is a pickled list whose items are pickled one by one, so that neither writer nor reader holds all of them.
# After the end of the pickle, where other readers stop, follow the int32 numbers that 2.x's form does not hold (height,
# width, and the place in the result of each object, objects ordered by class) and an index: the offset of each item,
# its length, and the length of its numbers.
_INDEXED = b'results with index 2'
_WORTH = 4 << 20  # bytes of a file from which on several processes pay
_SHARE = 1 << 18  # bytes that a process reads at a time
_NO_BOXES = np.zeros((0, 5), np.float32)
_PROTOCOL, _EMPTY_LIST, _APPEND, _STOP = b'\x80\x03', b']', b'a', b'.'


def _write_pickled_rows(file: BinaryIO, rows: Iterable[tuple[_Entry, np.ndarray | None]]) -> None:
    file.write(_PROTOCOL + _EMPTY_LIST)
    bounds, beside = [], []
    for row, order in rows:
        # Protocol 3 numbers its memo explicitly: each item starts over, and the numbers of the last one are replaced.
        data = pickle.dumps(row, protocol=3)[len(_PROTOCOL):-len(_STOP)]
        beside.append(b'' if order is None else order.astype('<i4').tobytes())
        bounds.append((file.tell(), len(data), len(beside[-1])))
        file.write(data + _APPEND)
    file.write(_STOP)
    file.writelines(beside)
    file.write(np.array(bounds, '<i8').tobytes() + np.array(len(bounds), '<i8').tobytes() + _INDEXED)


def _bounds(file: BinaryIO) -> list[list[int]] | None:
    """Of each entry of a pickle: offset and length of its bytes, offset and length of the numbers beside it.

    None where the file does not tell.
    """
    size = file.seek(0, os.SEEK_END)
    tail = len(_INDEXED) + 8
    file.seek(max(size - tail, 0))
    end = file.read()
    if not end.endswith(_INDEXED) or len(end) != tail:
        return None
    count = int(np.frombuffer(end[:8], '<i8')[0])
    if not 0 <= 24 * count <= size:
        raise DataError('damaged: its index does not fit the file')
    file.seek(size - tail - 24 * count)
    offsets, lengths, beside = np.frombuffer(file.read(24 * count), '<i8').reshape(-1, 3).T
    places = size - tail - 24 * count - int(beside.sum()) + np.cumsum(beside) - beside
    return np.stack([offsets, lengths, places, beside], axis=1).tolist()


def _stored_rows(path: Path, bounds: Sequence[Sequence[int]], nproc: int | None) -> StoredResults:
    """The entries of a pickle, which lie where ``_bounds`` says."""
    processes = min(usable_processes(nproc), len(bounds)) if nproc or path.stat().st_size >= _WORTH else 1
    sizes = np.cumsum([length for _, length, _, _ in bounds])
    shares = np.split(np.arange(len(bounds)), np.flatnonzero(np.diff(sizes // _SHARE)) + 1)

    def packed(share: int) -> list[bytes]:
        found = []
        with open(path, 'rb') as file:
            for offset, length, place, beside in (bounds[index] for index in shares[share].tolist()):
                file.seek(offset)
                entry = _PROTOCOL + file.read(length) + _STOP
                file.seek(place)
                order = np.frombuffer(file.read(beside), '<i4') if beside else None
                quick = None if order is None else _packed_quickly(entry, order)
                found.append(pack(_from_row(loads(entry), '.pkl', order)) if quick is None else quick)
        return found

    stored = StoredResults(len(bounds))
    for indices, parts in zip(shares, in_processes(packed, len(shares), processes)):
        for index, data in zip(indices.tolist(), parts):
            stored.put_packed(index, data)
    return stored


def _packed_quickly(entry: bytes, order: np.ndarray) -> bytes | None:
    """``pack`` of an entry as ``_as_legacy`` makes it; None for any other, of which ``_from_row`` tells what is wrong.

    In half the time: only the boxes are thawed, and nothing becomes a tensor.
    """
    row = pickle.Unpickler.load(RestrictedUnpickler(io.BytesIO(entry), DATA))
    by_class, masks = row if isinstance(row, tuple) and len(row) == 2 else (row, None)
    by_class = thaw(by_class)
    if not isinstance(by_class, list) or not all(
            isinstance(boxes, np.ndarray) and boxes.dtype == np.float32 and boxes.shape[1:] == (5,)
            for boxes in by_class):
        return None
    counts = [len(boxes) for boxes in by_class]
    (height, width), places = order[:2].tolist(), order[2:]
    rows = places.argsort()
    if not np.array_equal(places[rows], np.arange(sum(counts))):
        return None
    flat = np.concatenate([_NO_BOXES, *(boxes for boxes in by_class if len(boxes))])[rows]
    fields: Fields = dict(bboxes=flat[:, :4], scores=flat[:, 4], labels=np.repeat(np.arange(len(counts)), counts)[rows])
    if masks is not None:
        if not isinstance(masks, list) or [len(own) if type(own) is list else -1 for own in masks] != counts:
            return None
        rles = [rle for own in masks for rle in own]
        if not all(type(rle) is dict and rle.get('size') == [height, width] and type(rle.get('counts')) is bytes
                   for rle in rles):
            return None
        fields['masks'] = RleMasks([rles[row] for row in rows.tolist()], height, width)
    return pack_fields(None if height < 0 else (height, width), len(counts), fields)


def _list_of_rows(rows: object) -> list:
    if not isinstance(rows, list):
        raise DataError(f'a results file holds a list, one entry an image, not {type(rows).__name__}')
    return rows


def _from_row(row: _Entry, suffix: str, order: np.ndarray | None = None) -> Instances:
    if isinstance(row, dict):
        return _from_plain(row)
    if order is None:
        # Proposals come as lists from JSON.
        return from_legacy(np.array(row, np.float32).reshape(-1, 5) if suffix == '.json' else row)
    height, width, *places = order.tolist()
    found = Instances.from_per_class(row, None if height < 0 else (height, width))
    if sorted(places) != list(range(len(found))):
        raise DataError('damaged: the order of the objects does not fit them')
    return found[torch.tensor(places, dtype=torch.long).argsort()]


def check_results_path(path: str | os.PathLike) -> str:
    """The ending of a results file: '.pkl' or '.json'.

    Raises:
        DataError: any other.
    """
    suffix = {'.pickle': '.pkl'}.get(Path(path).suffix.lower(), Path(path).suffix.lower())
    if suffix not in ('.pkl', '.json'):
        raise DataError(f"{path}: results are written to a '.pkl' or '.json' file")
    return suffix


def _as_legacy(instances: Instances, num_classes: int | None) -> tuple[_Entry, np.ndarray | None]:
    """The entry of a pickle, and the image's size and the objects' places in ``instances``: see ``_INDEXED``."""
    if not {'bboxes', 'scores', 'labels'} <= set(instances.fields) <= {'bboxes', 'scores', 'labels', 'masks'}:
        return _as_plain(instances), None
    count = num_classes if instances.num_classes is None else instances.num_classes
    if count is None:
        raise DataError('mmdetection 2.x\'s form of results is by class: give save_results() num_classes')
    labels = instances.numpy()['labels']
    if len(labels) and not 0 <= labels.min() <= labels.max() < count:
        raise DataError(f'labels from {labels.min()} to {labels.max()} in a result of {count} classes')
    size = instances.image_size or (-1, -1)
    row = instances.per_class(count)
    masks: list[list[dict]] | None = None
    if 'masks' in instances.fields:
        row, masks = cast('tuple[list[np.ndarray], list[list[dict]]]', row)
    # Most classes have nothing: one array for all of them, which a pickle holds once and reads back in no time.
    row = [boxes if len(boxes) else _NO_BOXES for boxes in cast('list[np.ndarray]', row)]
    if masks is not None:
        row = row, [[_plain_rle(rle) for rle in of_class] for of_class in masks]
    return row, np.concatenate([[int(v) for v in size], np.argsort(labels, kind='stable')])


def _plain_rle(rle: dict) -> dict:
    counts = rle['counts']
    return dict(size=[int(v) for v in rle['size']], counts=counts.encode() if isinstance(counts, str) else counts)


def _as_plain(instances: Instances) -> Fields:
    row = instances.numpy()
    if 'masks' in row:
        row['masks'] = [_plain_rle(rle) for rle in row['masks']]
    return dict(row, image_size=instances.image_size, num_classes=instances.num_classes)


def _as_proposals(instances: Instances) -> np.ndarray:
    arrays = instances.numpy()
    return np.concatenate([arrays['bboxes'], arrays['scores'][:, None]], axis=1).astype(np.float32)


def _from_plain(row: Fields) -> Instances:
    row = dict(row)
    image_size, num_classes = row.pop('image_size', None), row.pop('num_classes', None)
    fields: Fields = dict(
        bboxes=torch.from_numpy(np.array(row.pop('bboxes'), np.float32).reshape(-1, 4)),
        scores=torch.from_numpy(np.array(row.pop('scores'), np.float32)),
        labels=torch.from_numpy(np.array(row.pop('labels'), np.int64)))
    masks = row.pop('masks', None)
    if masks is not None:
        fields['masks'] = RleMasks(masks, *(image_size or ()))
    for name, value in row.items():
        fields[name] = torch.from_numpy(np.array(value, np.float32))
    if 'keypoints' in fields and fields['keypoints'].dim() != 3:  # JSON of an image without objects does not tell J
        fields['keypoints'] = fields['keypoints'].reshape(0, 0, 3)
    return Instances(tuple(image_size) if image_size else None, num_classes, **fields)
