"""Values of a COCO file that are of another type than COCO writes: read where they mean one thing, else an error.

pandas writes ids as 3.0, web tools as "3", spreadsheets names as numbers. What stands in a file at the place
``annotations[17].image_id`` is told by that path.
"""
from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from boxdet.errors import DataError

_FLAGS = {'0': 0, '1': 1, 'false': 0, 'true': 1, '': 0}


def settle_values(data: dict, ann_file: str) -> None:
    """Make ids, names, sizes and flags of a parsed COCO file of the types that COCO has, in place.

    Args:
        data: the file's content.
        ann_file: its name, for errors.

    Raises:
        DataError: a value that is none of what it could be, with its path in the file.
    """
    def fail(path: str, value: Any, wanted: str) -> None:
        shown = 'null' if value is None else repr(value)
        raise DataError(f'{ann_file}: {path} is {shown if len(shown) < 60 else shown[:57] + "..."}, not {wanted}')

    for key in ('images', 'annotations', 'categories'):
        if key in data and not isinstance(data[key], list):
            fail(key, data[key], 'a list')
    images, annotations, categories = (data.get(key) or [] for key in ('images', 'annotations', 'categories'))
    as_usual = _are_usual(annotations, {type(image.get('id')) for image in images if isinstance(image, dict)})
    for key in ('images', 'categories') if as_usual else ('images', 'annotations', 'categories'):
        for place, entry in enumerate(data.get(key) or ()):
            if not isinstance(entry, dict):
                fail(f'{key}[{place}]', entry, 'an object { … }')

    _each(images, 'images', 'id', (int, str), _whole_or_text, 'a number or a text', fail)
    _each(images, 'images', 'file_name', (str,), _no, "a text such as '0001.jpg'", fail)
    for key in ('width', 'height'):
        _each(images, 'images', key, (int,), _side, 'a number of pixels', fail, none_is_absent=True)
    _each(categories, 'categories', 'id', (int,), _whole, 'a number', fail)
    _each(categories, 'categories', 'name', (str,), _name, 'a text', fail)
    if as_usual:
        return
    _each(annotations, 'annotations', 'id', (int, str), _whole_or_text, 'a number or a text', fail)
    _each(annotations, 'annotations', 'category_id', (int,), _whole, 'the id of a category', fail)
    _each(annotations, 'annotations', 'image_id', (int, str), _whole_or_text, 'the id of an image', fail)
    for key in ('iscrowd', 'ignore'):
        _each(annotations, 'annotations', key, (), _flag, '0 or 1', fail, none_is_absent=True)
    _match_images(images, annotations)


def _each(entries: list[dict], what: str, key: str, usual: tuple[type, ...], read: Callable[[Any], Any], wanted: str,
          fail: Callable[[str, Any, str], None], none_is_absent: bool = False) -> None:
    """Read ``key`` of every entry; absent keys are for others to complain about."""
    if not {type(entry[key]) for entry in entries if key in entry} - set(usual):
        return
    for place, entry in enumerate(entries):
        if key not in entry or type(entry[key]) in usual:
            continue
        if entry[key] is None and none_is_absent:
            del entry[key]
            continue
        value = read(entry[key])
        if value is None:
            fail(f'{what}[{place}].{key}', entry[key], wanted)
        entry[key] = value


def _are_usual(annotations: list[dict], image_ids: set[type]) -> bool:
    """Whether all annotations have values of COCO's types, as nearly always: a million of them are passed once."""
    try:
        kinds = {(type(a.get('id')), type(a.get('image_id')), type(a.get('category_id')), a.get('iscrowd'),
                  a.get('ignore')) for a in annotations}
    except (AttributeError, TypeError):
        return False
    flag = (0, 1, None)
    return all(own in (int, str) and {image} == image_ids and category is int and crowd in flag and ignore in flag
               for own, image, category, crowd, ignore in kinds)


def _match_images(images: Iterable[dict], annotations: list[dict]) -> None:
    """Image ids that are numbers on one side and the same numbers as texts on the other."""
    ids = {image.get('id') for image in images}
    kinds = {type(i) for i in ids}
    theirs = {type(annotation.get('image_id')) for annotation in annotations}
    if len(kinds) != 1 or not theirs - kinds - {type(None)}:
        return
    for annotation in annotations:
        given = annotation.get('image_id')
        other = _whole(given) if kinds == {int} else str(given)
        if given not in ids and other in ids:
            annotation['image_id'] = other


def _no(value: Any) -> None:
    return None


def _whole(value: Any) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return int(value) if isinstance(value, str) and value.strip().isdecimal() else None


def _whole_or_text(value: Any) -> int | None:
    return _whole(value) if isinstance(value, float) else None


def _side(value: Any) -> float | None:
    if isinstance(value, float) and 0 < value < float('inf'):
        return int(value) if value.is_integer() else value
    return _whole(value)


def _name(value: Any) -> str | None:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    return str(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _flag(value: Any) -> int | None:
    if isinstance(value, (int, float)):
        return int(value) if value in (0, 1) else None
    return _FLAGS.get(value.strip().lower()) if isinstance(value, str) else None
