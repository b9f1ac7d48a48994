"""WIDERFaceDataset: WIDER Face (Yang et al. 2016) as XML files in VOC's form, with a folder for each kind of event.

::

    WIDER_train/train.txt                                      one image a line: the file name without its ending
    WIDER_train/Annotations/0_Parade_marchingband_1_849.xml    <folder>0--Parade</folder>, <size>, <object> …
    WIDER_train/0--Parade/0_Parade_marchingband_1_849.jpg
"""
from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

from boxdet.datasets.files import image_size
from boxdet.datasets.voc import VOCFile, XMLDataset
from boxdet.registry import DATASETS


@DATASETS.register_module()
class WIDERFaceDataset(XMLDataset):
    """Faces; an image lies in the folder that its XML file names, under ``img_prefix``.

    Args:
        **options: of XMLDataset.

    Raises: as XMLDataset.
    """
    CLASSES = ('face',)
    PALETTE = [(0, 255, 0)]

    def __init__(self, **options: Any):
        self._folders: dict[str, str] = {}  # of each image
        super().__init__(**options)

    def _read(self, name: str, path: str) -> VOCFile:
        file = super()._read(name, path)
        self._folders[name] = file.folder
        return file

    def _image_entries(self, sizes: Iterable[tuple[int, int] | None]) -> list[dict]:
        entries = []
        for name, size in zip(self.img_ids, sizes):
            filename = os.path.join(self._folders.get(name, ''), f'{name}.jpg')
            width, height = size or image_size(os.path.join(self.img_prefix, filename))
            entries.append(dict(id=name, filename=filename, width=width, height=height))
        return entries
