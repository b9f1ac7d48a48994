"""A detector over a folder of images: COCO JSON that is a training set, written so that a killed run can go on.

While it runs, every image's result is one line of ``OUT.part``, beside the file to come; its first line tells which
model and settings made it. A run that finds its own ``.part`` leaves out the images in it. The JSON appears whole at
the end, in the order of the names, and the ``.part`` goes. In memory there is no more than one image's result at a
time.
"""
from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from torch import nn

from boxdet.apis.behind import Behind, drawing_behind
from boxdet.apis.inference import inference_stream
from boxdet.datasets.files import image_size
from boxdet.errors import DataError
from boxdet.files.json_text import JsonObject
from boxdet.files.writing import write_whole
from boxdet.structures.instances import Instances

OnResult = Callable[[str, Instances], None]  # (name in the folder, result)


class Journal:
    """``OUT.part``: a line an image, of which only the last can be broken.

    Args:
        path: of the file.
        made_by: what must be the same for a run to go on.

    Attributes:
        done: each image that is through, and the byte of the file where its line begins.

    Raises:
        DataError: the file is of another run, or cannot be written.
    """

    def __init__(self, path: Path, made_by: JsonObject):
        self.path = path
        self.done: dict[str, int] = {}
        header = json.dumps(made_by, sort_keys=True)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = open(path, 'a+b')  # noqa: SIM115  (open as long as the run)
            intact = self._read(header)
            self._file.truncate(intact)  # a line that a crash cut off
            if not intact:
                self._file.write(header.encode() + b'\n')
                self._file.flush()
        except OSError as error:
            raise DataError(f'cannot write {path}: {error.strerror or error}') from error

    def _read(self, header: str) -> int:
        """Fill ``done``; how many bytes of the file are whole lines."""
        self._file.seek(0)
        intact = 0
        for number, line in enumerate(self._file):
            if not line.endswith(b'\n') or line.startswith(b'\0'):
                break
            if number == 0 and line.decode() != header + '\n':
                raise DataError(f'{self.path} is of a run with another model or other settings: finish that one, or '
                                'start anew with --restart')
            if number:
                self.done[json.loads(line)['file']] = intact
            intact += len(line)
        return intact

    def __getitem__(self, name: str) -> JsonObject:
        """What image ``name`` gave: 'width', 'height', 'annotations'."""
        self._file.seek(self.done[name])
        return json.loads(self._file.readline())

    def add(self, name: str, row: JsonObject) -> None:
        """Note what image ``name`` gave."""
        begin = self._file.seek(0, os.SEEK_END)
        self._file.write(json.dumps(dict(file=name, **row)).encode() + b'\n')
        self._file.flush()
        self.done[name] = begin

    def remove(self) -> None:
        """Close the file and delete it."""
        self._file.close()
        self.path.unlink()


def made_by(config_text: str, checkpoint: str, **settings: Any) -> JsonObject:
    """What tells one run from another: config, checkpoint file (size and time of its last change) and settings."""
    found = dict(config=hashlib.sha256(config_text.encode()).hexdigest(), checkpoint=str(checkpoint), **settings)
    if os.path.isfile(checkpoint):
        stat = os.stat(checkpoint)
        found['checkpoint_file'] = [stat.st_size, stat.st_mtime_ns]
    return found


def predict_folder(model: nn.Module, folder: str | os.PathLike, names: Sequence[str], journal: Journal,
                   score_thr: float, batch_size: int = 1, on_result: OnResult | None = None,
                   advance: Callable[[int], None] = lambda count: None) -> list[str]:
    """Predict those of ``names`` that ``journal`` does not have.

    Args:
        model: of ``init_detector``.
        folder: where the images are.
        names: of its images.
        journal: notes what is done, and knows what was.
        score_thr: what scores less is left out.
        batch_size: images that go through the network together.
        on_result: draws each image, from its name and result, before it is noted as done; in a thread behind the
            network where the model's ``show_result`` draws in threads (see ``abilities``).
        advance: called with the number of images that are through.

    Returns:
        what is wrong with each image that could not be read.
    """
    waiting, unreadable = [name for name in names if name not in journal.done], []
    advance(len(names) - len(waiting))

    def note(name: str, row: JsonObject) -> None:
        journal.add(name, row)
        advance(1)

    with Behind(0) if on_result is None else drawing_behind(model) as behind:
        for name, result in _predict(model, folder, waiting, batch_size):
            if isinstance(result, str):
                unreadable.append(result)
                advance(1)
            else:
                row = _row(result[result.scores >= score_thr], os.path.join(folder, name))
                behind.put(partial(on_result or _nothing, name, result), partial(note, name, row))
    return unreadable


def _nothing(name: str, result: Instances) -> None:
    pass


def _predict(model: nn.Module, folder: str | os.PathLike, names: Sequence[str],
             batch_size: int) -> Iterator[tuple[str, Instances | str]]:
    """(name, Instances or error message); after an image that cannot be read a new stream continues."""
    through = 0
    while through < len(names):
        paths = (os.path.join(folder, name) for name in names[through:])
        try:
            for _, result in inference_stream(model, paths, batch_size):
                through += 1
                yield names[through - 1], result
        except DataError as error:
            through += 1
            yield names[through - 1], str(error)


def _row(result: Instances, path: str) -> JsonObject:
    width, height = result.image_size[::-1] if result.image_size else image_size(path)
    num_classes = result.num_classes or (int(result.labels.max()) + 1 if len(result) else 1)
    found = result.to_coco(0, range(1, num_classes + 1))
    areas = result.masks.areas.tolist() if 'masks' in result else [row['bbox'][2] * row['bbox'][3] for row in found]
    # Less than a pixel, or an empty mask, is no object to train on.
    annotations = [_annotation(row, area) for row, area in zip(found, areas) if min(row['bbox'][2:]) >= 1 and area > 0]
    return dict(width=int(width), height=int(height), annotations=annotations)


def _annotation(row: JsonObject, area: float) -> JsonObject:
    """A COCO annotation, without ids, of a COCO result."""
    annotation = {**row, 'area': area, 'iscrowd': 0}
    del annotation['image_id']
    if 'keypoints' in row:  # results give each keypoint a score, annotations a visibility
        annotation['keypoints'] = [2 if i % 3 == 2 else value for i, value in enumerate(row['keypoints'])]
        annotation['num_keypoints'] = len(row['keypoints']) // 3
    return annotation


def write_annotations(path: str | os.PathLike, names: Sequence[str], journal: Journal, classes: Sequence[str],
                      info: JsonObject) -> int:
    """Write what ``journal`` has of ``names`` as COCO JSON, categories from 1; return the number of objects."""
    rows = list(enumerate((name for name in names if name in journal.done), 1))
    categories = [dict(id=k, name=name) for k, name in enumerate(classes, 1)]
    objects = 0

    def images() -> Iterator[JsonObject]:
        for number, name in rows:
            row = journal[name]
            yield dict(id=number, file_name=name, width=row['width'], height=row['height'])

    def annotations() -> Iterator[JsonObject]:
        nonlocal objects
        for number, name in rows:
            for annotation in journal[name]['annotations']:
                objects += 1
                yield dict(annotation, id=objects, image_id=number)

    def write(file: BinaryIO) -> None:
        file.write(b'{"info": ' + json.dumps(info).encode())
        for key, found in (('images', images()), ('annotations', annotations())):
            file.write(f', "{key}": ['.encode())
            for number, one in enumerate(found):
                file.write((b', ' if number else b'') + json.dumps(one).encode())
            file.write(b']')
        file.write(b', "categories": ' + json.dumps(categories).encode() + b'}')
    write_whole(path, write)
    return objects
