"""Data sets and samples as mmdetection 2.x's scripts read them: lists that may be changed, metas in DataContainers."""
from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

from boxdet.compat.data import Transform2x
from boxdet.compat.mmcv1 import DataContainer
from boxdet.datasets import custom
from boxdet.datasets.pipelines import formatting, loading


def hold_lists() -> None:
    """From now on data sets hold lists where 2.x's do: ``data_infos``, and ``CLASSES`` that were given as a list."""
    custom.CustomDataset.holder = list
    of_boxdet = vars(custom.CustomDataset)['get_classes'].__func__

    def get_classes(cls: type[custom.CustomDataset], classes: str | Sequence[str] | None = None) -> Any:
        """As the data set's; names that were given as a list, or in a file, are a list."""
        found = of_boxdet(cls, classes)
        return found if classes is None or isinstance(classes, tuple) else list(found)

    setattr(custom.CustomDataset, 'get_classes', classmethod(get_classes))  # noqa: B010  # a method to mypy


class MetaContainer(dict, DataContainer):
    """``img_metas`` of a sample: the dict that boxdet reads, and the DataContainer of it that 2.x's scripts open."""
    _stack, _padding_value, _cpu_only, _pad_dims = False, 0, True, None

    def __init__(self, *args: Any, **kwargs: Any):
        dict.__init__(self, *args, **kwargs)

    @property
    def data(self) -> dict[str, Any]:
        """The metas."""
        return dict(self)


class Collect2x(Transform2x, formatting.Collect):
    """2.x's ``Collect``, whose metas are a DataContainer."""

    def __call__(self, results: dict) -> dict:
        """Keep what is asked for."""
        kept = super().__call__(results)
        return {**kept, 'img_metas': MetaContainer(kept['img_metas'])}


class LoadMultiChannelImage2x(Transform2x, loading.LoadMultiChannelImageFromFiles):
    """The attributes that 2.x's loader has."""

    def __init__(self, to_float32: bool = False, color_type: str = 'unchanged', file_client_args: dict | None = None):
        super().__init__(to_float32, color_type, file_client_args)
        self.file_client_args = dict(file_client_args or dict(backend='disk'))


def replace_ImageToTensor(pipelines: Sequence[dict]) -> list[dict]:
    """As boxdet's, with 2.x's warning."""
    replaced = formatting.replace_ImageToTensor(pipelines)
    if replaced != list(pipelines):
        warnings.warn('ImageToTensor is replaced by DefaultFormatBundle: it would not make a batch', UserWarning,
                      stacklevel=2)
    return replaced


# Which methods a class of boxdet's gets: those of the first whose last base it derives from.
FORMS: tuple[type, ...] = (Collect2x, LoadMultiChannelImage2x)
