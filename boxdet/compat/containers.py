"""``GeneralData`` and ``InstanceData`` of ``mmdet.core``: named values of an image beside facts about it."""
from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch

_OWN = ('_meta_info_fields', '_data_fields')
_NONE = object()


def _same(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return isinstance(second, torch.Tensor) and torch.equal(first, second)
    if isinstance(first, np.ndarray):
        return isinstance(second, np.ndarray) and np.array_equal(first, second)
    return bool(first == second)


class GeneralData:
    """Values by name, as attributes and as keys; facts (``meta_info``) that are set once.

    Args:
        meta_info: facts by name, such as the size of the image.
        data: values by name.

    Raises:
        AssertionError: either is no dict.
        KeyError: a fact that is there already with another value.
        AttributeError: a value under the name of a fact.
    """
    _meta_info_fields: set[str]
    _data_fields: set[str]

    def __init__(self, meta_info: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None):
        self.__dict__.update({name: set() for name in _OWN})
        if meta_info is not None:
            self.set_meta_info(meta_info)
        if data is not None:
            self.set_data(data)

    def set_meta_info(self, meta_info: Mapping[str, Any]) -> None:
        """Add facts; the same value again changes nothing."""
        assert isinstance(meta_info, dict), f'meta_info is a dict, not {type(meta_info)}'
        for name, value in copy.deepcopy(meta_info).items():
            if name not in self._meta_info_fields:
                self._meta_info_fields.add(name)
                self.__dict__[name] = value
            elif not _same(self.__dict__[name], value):
                raise KeyError(f"meta_info '{name}' is set already and stays as it is")

    def set_data(self, data: Mapping[str, Any]) -> None:
        """Add values."""
        assert isinstance(data, dict), f'data is a dict, not {type(data)}'
        for name, value in data.items():
            setattr(self, name, value)

    def new(self, meta_info: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None) -> Any:
        """One with the same facts, those of ``meta_info``, and the values ``data``."""
        made = type(self)(dict(self.meta_info_items()))
        if meta_info is not None:
            made.set_meta_info(meta_info)
        if data is not None:
            made.set_data(data)
        return made

    def keys(self) -> list[str]:
        """Names of the values, in their order."""
        return [name for name in self.__dict__ if name in self._data_fields]

    def values(self) -> list[Any]:
        """The values."""
        return [self.__dict__[name] for name in self.keys()]

    def items(self) -> Iterator[tuple[str, Any]]:
        """Names and values."""
        return zip(self.keys(), self.values())

    def meta_info_keys(self) -> list[str]:
        """Names of the facts, in their order."""
        return [name for name in self.__dict__ if name in self._meta_info_fields]

    def meta_info_values(self) -> list[Any]:
        """The facts."""
        return [self.__dict__[name] for name in self.meta_info_keys()]

    def meta_info_items(self) -> Iterator[tuple[str, Any]]:
        """Names and facts."""
        return zip(self.meta_info_keys(), self.meta_info_values())

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OWN or name in self._meta_info_fields:
            raise AttributeError(f"'{name}' stays as it is")
        self._data_fields.add(name)
        self.__dict__[name] = value

    def __delattr__(self, name: str) -> None:
        if name in _OWN:
            raise AttributeError(f"'{name}' stays as it is")
        if name in self._meta_info_fields:
            raise KeyError(f"meta_info '{name}' stays as it is")
        super().__delattr__(name)
        self._data_fields.discard(name)

    def __setitem__(self, name: str, value: Any) -> None:
        setattr(self, name, value)

    def __delitem__(self, name: str) -> None:
        delattr(self, name)

    def __getitem__(self, name: Any) -> Any:
        return getattr(self, name)

    def get(self, name: str, default: Any = None) -> Any:
        """The value or fact, or ``default``."""
        return self.__dict__.get(name, default)

    def pop(self, name: str, default: Any = _NONE) -> Any:
        """Take a value out, or give ``default``.

        Raises:
            KeyError: a fact, or nothing of that name.
        """
        if name in self._data_fields:
            self._data_fields.discard(name)
            return self.__dict__.pop(name)
        if default is _NONE or name in self._meta_info_fields or name in _OWN:
            raise KeyError(name)
        return default

    def __contains__(self, name: str) -> bool:
        return name in self._data_fields or name in self._meta_info_fields

    def _mapped(self, change: Callable[[torch.Tensor], Any]) -> Any:
        return self.new(data={name: change(value) if isinstance(value, torch.Tensor) else value
                              for name, value in self.items()})

    def to(self, *args: Any, **kwargs: Any) -> Any:
        """With its tensors moved or converted, as torch's ``to``."""
        return self._mapped(lambda value: value.to(*args, **kwargs))

    def cpu(self) -> Any:
        """With its tensors on the CPU."""
        return self._mapped(lambda value: value.cpu())

    def cuda(self) -> Any:
        """With its tensors on the GPU."""
        return self._mapped(lambda value: value.cuda())

    def detach(self) -> Any:
        """With its tensors apart from the graph."""
        return self._mapped(lambda value: value.detach())

    def numpy(self) -> Any:
        """With arrays in the place of tensors."""
        return self._mapped(lambda value: value.detach().cpu().numpy())

    def __repr__(self) -> str:
        lines = [f'<{type(self).__name__}(', '  META INFORMATION']
        lines += [f'    {name}: {value}' for name, value in self.meta_info_items()]
        lines.append('  DATA FIELDS')
        for name, value in self.items():
            shaped = isinstance(value, (torch.Tensor, np.ndarray))
            lines.append(f'    shape of {name}: {value.shape}' if shaped else f'    {name}: {value}')
        return '\n'.join([*lines, ')>'])


class InstanceData(GeneralData):
    """Values of N instances: tensors, arrays and lists of one length, indexed together."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in _OWN and name not in self._meta_info_fields:
            assert isinstance(value, (torch.Tensor, np.ndarray, list)), \
                f"'{name}' is a tensor, an array or a list, not {type(value)}"
            others = [one for key, one in self.items() if key != name]
            assert not others or len(value) == len(others[0]), \
                f"'{name}' is of {len(value)} instances, the others of {len(others[0])}"
        super().__setattr__(name, value)

    def __len__(self) -> int:
        return len(self.values()[0]) if self._data_fields else 0

    def __getitem__(self, item: Any) -> Any:
        """The value of a name; the instances of an int (one), a slice, a long or a bool tensor."""
        if isinstance(item, str):
            return getattr(self, item)
        assert len(self), 'there are no instances'
        if isinstance(item, (int, np.integer)):
            if not -len(self) <= item < len(self):
                raise IndexError(f'instance {item} of {len(self)}')
            item = slice(int(item), int(item) + 1 or None)
        if not isinstance(item, slice):
            assert isinstance(item, torch.Tensor) and item.dim() == 1 and item.dtype in (torch.long, torch.bool), \
                f'an index is a name, an int, a slice, or a long or bool tensor (n,), not {item!r}'
            assert item.dtype is torch.long or len(item) == len(self), \
                f'{len(item)} bools for {len(self)} instances'
        return self.new(data={name: _picked(value, item) for name, value in self.items()})

    @staticmethod
    def cat(instances_list: Sequence[InstanceData]) -> InstanceData:
        """The instances of all, with the facts of the first."""
        assert instances_list, 'nothing to put together'
        first = instances_list[0]
        if len(instances_list) == 1:
            return first
        return first.new(data={name: _joined([one[name] for one in instances_list]) for name, _ in first.items()})


def _picked(value: Any, item: Any) -> Any:
    if not isinstance(item, torch.Tensor):
        return value[item]
    if isinstance(value, torch.Tensor):
        return value[item.to(value.device)]
    index = item.cpu().numpy()
    if isinstance(value, np.ndarray):
        return value[index]
    return [value[i] for i in (np.flatnonzero(index) if index.dtype == bool else index)]


def _joined(values: list[Any]) -> Any:
    if isinstance(values[0], torch.Tensor):
        return torch.cat(values)
    if isinstance(values[0], np.ndarray):
        return np.concatenate(values)
    return [one for value in values for one in value]
