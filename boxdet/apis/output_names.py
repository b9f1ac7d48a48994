"""A name of its own for what is written for each image, whatever the images are called."""
from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from boxdet.datasets.contracts import Dataset


def output_names(paths: Sequence[str], names: Sequence[str] | None = None) -> list[str]:
    """Relative names for files about the images ``paths``, all different.

    Where ``names`` serve they stay. Images of one name in several folders, and names that lead out of a folder, are
    named from the folder that all of them lie in; an image that is there twice gets its number.

    Args:
        paths: where each image lies.
        names: what each is called in its data set; None: its last part.

    >>> output_names(['cam1/0.png', 'cam2/0.png'])
    ['cam1/0.png', 'cam2/0.png']
    >>> output_names(['cam1/0.png', 'cam1/1.png'])
    ['0.png', '1.png']
    """
    names = [os.path.basename(path) for path in paths] if names is None else list(names)
    if len({_folded(name) for name in names}) < len(names) or not all(map(_stays_inside, names)):
        full = [os.path.abspath(path) for path in paths]
        folder = os.path.commonpath([os.path.dirname(path) for path in full])
        names = [os.path.relpath(path, folder) for path in full]
    taken: dict[str, int] = {}
    found = []
    for name in names:
        count = taken[_folded(name)] = taken.get(_folded(name), 0) + 1
        stem, ending = os.path.splitext(name)
        found.append(name if count == 1 else f'{stem}_{count}{ending}')
        taken.setdefault(_folded(found[-1]), 1)
    return found


def image_names(dataset: Dataset, endings: bool = True) -> list[str]:
    """``output_names`` of the images of a data set, wrappers included.

    Args:
        dataset: with ``img_info``.
        endings: whether the names end as those of the images do; without, a.jpg and a.png are told apart by a number.

    Raises:
        KeyError, AttributeError: a data set that does not tell where its images lie.
    """
    paths, names = [], []
    for index in range(len(dataset)):
        part, place = located(dataset, index)
        name = part.img_info(place)['filename']
        names.append(name if endings else os.path.splitext(name)[0])
        paths.append(os.path.join(getattr(part, 'img_prefix', None) or '', names[-1]))
    return output_names(paths, names) if paths else []


def located(dataset: Dataset, index: int) -> tuple[Dataset, int]:
    """The data set inside wrappers that holds image ``index``, and the place there."""
    while not hasattr(dataset, 'img_prefix') and hasattr(dataset, '_at'):
        dataset, index = dataset._at(index)
    return dataset, index


def _stays_inside(name: str) -> bool:
    return not os.path.isabs(name) and '..' not in Path(name).parts


def _folded(name: str) -> str:
    return os.path.normpath(name).casefold()  # some file systems do not tell A from a
