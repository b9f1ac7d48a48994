"""``--data my.json``: a config's data sets and classes in the place of which those of a COCO file are put."""
from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from boxdet.errors import ConfigError, DataError
from boxdet.files.json_text import read_json

# Types that read a COCO file, and keep what else the config sets for them.
_COCO_TYPES = ('CocoDataset', 'CocoKeypointDataset')
_OF_OTHER_DATA = ('data_root', 'seg_prefix', 'proposal_file')
# Heads whose num_classes is not that of the annotated objects.
_OTHER_CLASSES = ('rpn_head', 'semantic_head')


class _File(NamedTuple):
    path: Path
    folder: Path
    images: int
    classes: tuple[str, ...]


def use_data(cfg: Any, files: Sequence[str], images: Sequence[str] = ()) -> list[str]:
    """Let ``cfg`` train on the first of ``files``, and evaluate on the last.

    ``data.train``, ``data.val`` and ``data.test`` get the annotation file, the folder of its images and its classes, in
    whatever wrappers the config has; every head's ``num_classes`` is their number. Data sets of another type become a
    CocoDataset with the same pipeline, and COCO's metrics are evaluated.

    Args:
        cfg: Config; it is changed.
        files: one or two COCO annotation files; with one the model is evaluated on what it learns from.
        images: the folders of their images; without them they are looked for beside the files.

    Returns:
        lines that tell what was set.

    Raises:
        ConfigError: other numbers of files or folders, a config without data.train. DataError: a file that is none of
            COCO's, or whose images are not found.
    """
    if not 1 <= len(files) <= 2 or len(images) not in (0, 1, len(files)):
        raise ConfigError(f'--data takes one file to train on and perhaps one to evaluate on, and --images one folder '
                          f'or one for each; here are {len(files)} and {len(images)}')
    if not (cfg.get('data') or {}).get('train'):
        raise ConfigError('--data: the config has no data.train, whose type and pipeline would be used')
    folders = [*images, *images[-1:]][:len(files)] if images else [None] * len(files)
    opened = [_open(Path(file), folder) for file, folder in zip(files, folders)]
    classes = opened[0].classes
    told = [f'--data: {one.path}: {one.images} images in {one.folder}, {len(classes)} classes ({", ".join(classes)}); '
            f'data.{splits}' for one, splits in zip(opened, ('train', 'val and data.test'))]
    if len(opened) == 1:
        told.append('--data: data.val and data.test are the same file: the model is evaluated on images that it learns '
                    'from; a second file is evaluated in their place')
    for split, file in (('train', opened[0]), ('val', opened[-1]), ('test', opened[-1])):
        if cfg.data.get(split):
            cfg.data[split], notes = _replaced(cfg.data[split], file, classes)
            told += [f'--data: data.{split}: {note}' for note in notes]
    heads = list(_set_num_classes(cfg.get('model') or {}, len(classes), 'model'))
    told.append(f'--data: num_classes is {len(classes)} in {", ".join(heads)}')
    if cfg.get('evaluation') and any('becomes CocoDataset' in line for line in told):
        cfg.evaluation.metric = ['bbox', 'segm'] if (cfg.model.get('roi_head') or {}).get('mask_head') else ['bbox']
        told.append(f'--data: evaluation.metric is {", ".join(cfg.evaluation.metric)}')
    return told


def _open(path: Path, folder: str | None) -> _File:
    """What a COCO file holds, and where its images are."""
    content = read_json(path)
    images = content.get('images') if isinstance(content, Mapping) else None
    if not isinstance(images, list) or not images:
        raise DataError(f"{path}: no 'images' list; --data takes COCO annotation files (tools/dataset_converters/"
                        'to_coco.py makes them from other forms)')
    classes = tuple(one['name'] for one in content.get('categories') or []
                    if isinstance(one, Mapping) and isinstance(one.get('name'), str))
    if not classes:
        raise DataError(f"{path}: no 'categories' with names; they are the classes")
    names = [str(image.get('file_name') or image.get('filename')) for image in images if isinstance(image, Mapping)]
    found = _folder_of(path, names) if folder is None else Path(folder)
    return _File(path.resolve(), found.resolve(), len(images), classes)


def _folder_of(path: Path, names: Sequence[str]) -> Path:
    """The folder that holds the images: the file's own, the one above, or one that lies in these two.

    Of several the one whose name is a word of the file's is meant: train2017 of instances_train2017.json.
    """
    here = path.resolve().parent
    looked_at = {names[0], names[len(names) // 2], names[-1]}
    around = [here, here.parent, *(one for parent in (here, here.parent) for one in sorted(parent.iterdir())
                                   if one.is_dir() and one != here)]
    found = [one for one in around if all((one / name).is_file() for name in looked_at)]
    named = [one for one in found if one.name in re.split(r'[\W_]+', path.stem)]
    if not found:
        raise DataError(f"{path}: its images ('{names[0]}', …) are in no folder beside it; --images names theirs")
    if len(found) > 1 and not named and found[0] not in (here, here.parent):
        raise DataError(f"{path}: images of these names are in {', '.join(map(str, found))}; --images says which")
    return (named or found)[0]


def _replaced(settings: Any, file: _File, classes: Sequence[str]) -> tuple[Any, list[str]]:
    """The settings of a data set, in its wrappers, for another file; and what became of it beyond that."""
    if isinstance(settings, list):
        found, notes = _replaced(settings[0], file, classes)
        return found, [*notes, *([f'the first of {len(settings)} data sets is used'] if len(settings) > 1 else [])]
    if 'datasets' in settings:
        return _replaced(settings['datasets'], file, classes)
    if 'dataset' in settings:
        inner, notes = _replaced(settings['dataset'], file, classes)
        return dict(settings, dataset=inner), notes
    own = dict(ann_file=str(file.path), img_prefix=str(file.folder), classes=tuple(classes))
    kind = settings.get('type')
    if kind not in _COCO_TYPES:
        return dict(type='CocoDataset', pipeline=settings.get('pipeline'), **own), [f'{kind} becomes CocoDataset']
    left_out = [key for key in _OF_OTHER_DATA if settings.get(key) is not None]
    kept = {key: value for key, value in settings.items() if key not in _OF_OTHER_DATA}
    return {**kept, **own}, [f'{key} is left out' for key in left_out if key != 'data_root']


def _set_num_classes(node: Any, count: int, path: str) -> Iterator[str]:
    """Set every ``num_classes`` of the model's heads; yields where."""
    if isinstance(node, (list, tuple)):
        for place, one in enumerate(node):
            yield from _set_num_classes(one, count, f'{path}.{place}')
    elif isinstance(node, Mapping):
        if 'num_classes' in node:
            node['num_classes'] = count  # type: ignore[index]
            yield path
        for key, value in node.items():
            if key not in _OTHER_CLASSES:
                yield from _set_num_classes(value, count, f'{path}.{key}')
