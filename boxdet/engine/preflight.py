"""Before the first step: does the data fit the model, and is the batch what the learning rate was made for?

Whatever would end in a training that learns nothing is an error here: a head for another number of classes, class
names that the annotations do not have, a data set without images. What may be meant is a warning with names and ids.
"""
from __future__ import annotations

import contextlib
import logging
import math
import os
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from pathlib import Path
from typing import Any

from torch import nn

from boxdet.datasets.files import kind_of_no_image
from boxdet.engine.data_check import annotation_findings
from boxdet.engine.findings import Finding, ignored_codes, refuse, report
from boxdet.engine.model_check import model_findings
from boxdet.engine.sample_check import (
    compared_normalization,
    evaluated_sample_findings,
    training_sample_findings,
)
from boxdet.errors import ConfigError, nearest
from boxdet.evaluation.chosen_classes import ChosenClasses
from boxdet.evaluation.evaluate import needs_of, require_annotations

logger = logging.getLogger('boxdet')

_SHOWN = 5
_OBJECTLESS = ('empty', 'without_wanted_class', 'only_crowd')  # images that filter_empty_gt leaves out, by the reason
_LOOKED_AT = 128  # image files whose first bytes are read
_STAT_THREADS = 16  # a network file system answers one stat in milliseconds, many at once


def check_training(model: nn.Module, dataset: Any, validation: Any = None, ignore: Sequence[str] = (),
                   metric: Any = None, batch: int = 0) -> None:
    """Check the parts of the model, the training set and the validation set (or None) against each other.

    Args:
        model: built.
        dataset: the training set.
        validation: what is evaluated on the way, or None.
        ignore: codes of findings that are meant (see ``findings``).
        metric: what is measured on the validation set (see ``boxdet.evaluation.evaluate``).
        batch: images that all processes take at a time; 0 where that is not known.

    Raises:
        ConfigError: parts of the model do not fit, or the model and the data do not. DataError: data that cannot teach
            what is meant, or is not there.
    """
    report(chain(_training_findings(model, dataset, validation, metric), _few_images(dataset, batch)), ignore)


def _training_findings(model: nn.Module, dataset: Any, validation: Any, metric: Any) -> Iterator[Finding]:
    yield from model_findings(model)
    yield from _num_classes(model, dataset, 'training')
    yield from _class_weights(model)
    yield from _keypoints(model, dataset, 'training')
    wants_masks = dict(train=getattr(model, 'with_mask', False),
                       val=validation is not None and 'masks' in needs_of(validation, metric).values())
    there = True
    files: dict[str, list[str]] = dict(train=[], val=[])
    for name, data in (('train', dataset), ('val', validation)):
        for part in parts_of(data) if data is not None else ():
            files[name] += (own := image_files(part))
            found = [*_data(part, f'data.{name}', own), *_named_twice(own, f'data.{name}')]
            yield from found
            usable = not any(finding.error for finding in found)
            if usable:
                yield from annotation_findings(part, f'data.{name}', wants_masks[name])
            there = there and usable
    if len(parts := list(parts_of(dataset))) > 1:
        yield from _in_several_parts(parts)
    if validation is not None:
        yield from _compared(dataset, validation)
        yield from _shared(files['train'], files['val'])
    if there:
        yield from training_sample_findings(model, dataset)
        if validation is not None:
            yield from evaluated_sample_findings(validation, 'data.val')
            yield from compared_normalization(dataset, validation)


def check_evaluation(dataset: Any, ignore: Sequence[str] = (), metric: Any = None,
                     name: str = 'data.test') -> None:
    """Check what is evaluated: images that are there, annotations that can be measured by, a pipeline for testing.

    Args:
        dataset: the data to evaluate on.
        ignore: as in ``check_training``.
        metric: what is measured; None for nothing.
        name: what to call the data.

    Raises: as ``check_training``.
    """
    report(_evaluation_findings(dataset, metric, name), ignore)


def _evaluation_findings(dataset: Any, metric: Any, name: str) -> Iterator[Finding]:
    there = True
    for part in parts_of(dataset):
        if (getattr(part, 'filter_report', None) or {}).get('beyond_max_images'):
            logger.warning('%s: %d images%s: numbers are of these alone', name, len(part), _counts(part))
        found = list(_missing(part, image_files(part), name))
        yield from found
        there = there and not found
        if metric:
            yield from annotation_findings(part, name, 'masks' in needs_of(dataset, metric).values())
    if there:
        yield from evaluated_sample_findings(dataset, name)


def parts_of(dataset: Any) -> Iterator[Any]:
    """The data sets inside wrappers (RepeatDataset, ConcatDataset, …), or the data set itself."""
    if hasattr(dataset, 'datasets'):
        for part in dataset.datasets:
            yield from parts_of(part)
    elif hasattr(dataset, 'dataset'):
        yield from parts_of(dataset.dataset)
    else:
        yield dataset


# --- classes ---

def check_num_classes(model: nn.Module, dataset: Any, name: str = 'training') -> None:
    """Compare every head's ``num_classes`` with the data set's ``CLASSES``.

    Args:
        model: built.
        dataset: with or without wrappers.
        name: what to call the data, 'training' or 'test'.

    Raises:
        ConfigError: they differ, with the heads by name.
    """
    refuse(_num_classes(model, dataset, name))


def _num_classes(model: nn.Module, dataset: Any, name: str) -> Iterator[Finding]:
    classes = getattr(dataset, 'CLASSES', None)
    if classes is None:
        logger.warning('the %s data set %s has no CLASSES: heads are not compared with it', name,
                       type(dataset).__name__)
        return
    if isinstance(classes, str):
        raise ConfigError(f"classes='{classes}' is one text, which reads as {len(classes)} classes of a letter each; "
                          f"write classes=('{classes}',)")
    wrong = [f'model.{head}.num_classes = {count}' for head, count in head_classes(model) if count != len(classes)]
    if wrong:
        shown = ', '.join(list(classes)[:_SHOWN]) + (', …' if len(classes) > _SHOWN else '')
        advice = (f'set num_classes to {len(classes)} or data.*.classes to the names' if name != 'test' else
                  'data.test.classes lists the names that the model was trained with, in their order')
        if all(count == len(classes) + 1 for _, count in head_classes(model)):
            advice += '; the background is not counted, as it was in mmdetection 1.x'
        yield Finding('model.num-classes',
                      f"{'; '.join(wrong)}: the {name} data has {len(classes)} classes ({shown}); {advice}")


def head_classes(model: nn.Module) -> Iterator[tuple[str, int]]:
    """(name, num_classes) of each head that tells classes apart; a proposal head (any or no object) does not."""
    for name, module in model.named_modules():
        count = getattr(module, 'num_classes', None)
        if isinstance(count, int) and not isinstance(count, bool) and name and 'rpn_head' not in name.split('.') \
                and not getattr(module, 'class_agnostic', False):
            yield name, count


def _class_weights(model: nn.Module) -> Iterator[Finding]:
    """Heads whose ``loss_cls.class_weight`` has another length than the head has scores."""
    for name, module in model.named_modules():
        weights = getattr(getattr(module, 'loss_cls', None), 'class_weight', None)
        if weights is None or not (hasattr(module, 'cls_out_channels') or hasattr(module, 'fc_cls')):
            continue  # what scores a head of the user's own has is not known
        wanted = getattr(module, 'cls_out_channels', None) or module.num_classes + 1
        if len(weights) != wanted:
            background = '' if wanted == 1 else f': {wanted - 1} classes and, as the last, the background'
            yield Finding('model.class-weight', f'model.{name}.loss_cls.class_weight has {len(weights)} numbers, and '
                                                f'{wanted} scores are weighed{background}')


def check_keypoints(model: nn.Module, dataset: Any, name: str = 'training') -> None:
    """Compare the keypoint head, where the model has one, with the keypoints of each data set inside ``dataset``.

    Args:
        model: built.
        dataset: with or without wrappers.
        name: what to call the data, 'training' or 'test'.

    Raises:
        ConfigError: no keypoints, another number of them, or other pairs that a mirror swaps.
    """
    refuse(_keypoints(model, dataset, name))


def _keypoints(model: nn.Module, dataset: Any, name: str) -> Iterator[Finding]:
    if not getattr(model, 'with_keypoint', False):
        return
    head, where = model.roi_head.keypoint_head, 'model.roi_head.keypoint_head'
    for part in parts_of(dataset):
        kind, names = type(part).__name__, getattr(part, 'KEYPOINT_NAMES', None)
        if names is None:
            yield Finding('model.keypoints', (
                f'{type(model).__name__} learns keypoints, and the {name} data set {kind} has '
                "none: type='CocoKeypointDataset' reads them"))
            continue
        if len(names) != head.num_keypoints:
            yield Finding('model.keypoints', (
                f'{where}.num_keypoints = {head.num_keypoints}: {part.ann_file} has {len(names)} keypoints '
                f"({', '.join(names[:_SHOWN])}{', …' if len(names) > _SHOWN else ''})"))
            continue
        ours = getattr(head, 'flip_pairs', None)
        if ours is not None and _unordered(ours) != _unordered(part.FLIP_PAIRS):
            yield Finding('model.keypoints', f'{where}.flip_pairs = {list(ours)}: the {name} data set {kind} swaps '
                                             f'{list(part.FLIP_PAIRS)} in a mirror; the two have to agree')


def _unordered(pairs: Sequence[Sequence[int]]) -> set[frozenset[int]]:
    return {frozenset(pair) for pair in pairs}


def check_metrics(model: nn.Module, metric: Any, dataset: Any = None, writing: bool = False) -> None:
    """Raise UserError when a metric asks for what the model does not give, or ``dataset`` does not know.

    Args:
        model: one that tells what it gives.
        metric: of ``boxdet.evaluation.evaluate``.
        dataset: None for COCO's metrics.
        writing: look at the result files, for ``--format-only``, instead.
    """
    for name, field in needs_of(dataset, metric, writing).items():
        flag, reason = _FIELDS[field]
        if not getattr(model, flag, True):
            what = 'the result files of this data set need' if writing else f"metric '{name}' needs"
            raise ConfigError(f'{what} {reason.format(model=type(model).__name__)}')
    if dataset is None or writing:
        return
    if 'keypoints' in needs_of(dataset, metric).values():
        check_keypoints(model, dataset, 'test')
    require_annotations(dataset, metric)


# What a detector says about a field of its results, and what to tell where it has none.
_FIELDS = dict(
    labels=('with_roi_head', "classes, and an RPN's proposals have none ({model} has no RoI head): evaluate 'proposal' "
                             "or 'proposal_fast'"),
    masks=('with_mask', "masks, and this {model} has no mask head: evaluate 'bbox'"),
    keypoints=('with_keypoint', "keypoints, and this {model} has no keypoint head: evaluate 'bbox'"))


def _compared(dataset: Any, validation: Any) -> Iterator[Finding]:
    ours, theirs = getattr(dataset, 'CLASSES', None), getattr(validation, 'CLASSES', None)
    if ours is not None and theirs is not None and tuple(ours) != tuple(theirs):
        odd = [name for name in theirs if name not in ours]
        chosen = ChosenClasses.between(ours, theirs)
        if odd:
            yield Finding('data.class-order', (
                f"data.val has classes that data.train has not: {', '.join(odd[:_SHOWN])}{nearest(odd[0], ours)}; "
                'labels would mean other things: set data.val.classes to names of data.train.classes'))
        elif chosen is not None and chosen.left_out:
            yield Finding('data.fewer-classes', f'data.val: {chosen}')
        elif chosen is not None:
            logger.info('data.val: %s', chosen)


def _named_twice(files: Sequence[str], name: str) -> Iterator[Finding]:
    if len(set(files)) < len(files):
        twice = [path for path, count in Counter(files).items() if count > 1]
        yield Finding('data.shared-images', (
            f"{name}: {len(files) - len(set(files))} of {len(files)} entries of 'images' name a file that another one "
            f"names ({', '.join(twice[:3])}{', …' if len(twice) > 3 else ''}): each is taken for an image with its own "
            'objects only; make one entry of them'))


def _in_several_parts(parts: Sequence[Any]) -> Iterator[Finding]:
    """Images that several data sets of a training bring."""
    counts = Counter(path for part in parts for path in {os.path.normpath(one) for one in image_files(part)})
    twice = [path for path, count in counts.items() if count > 1]
    if twice:
        yield Finding('data.shared-images', (
            f"data.train: {len(twice)} of {len(counts)} images are in several of its {len(parts)} data sets "
            f"({', '.join(twice[:3])}{', …' if len(twice) > 3 else ''}): each entry is an image with its own objects "
            'only, and those of the others count as background; make one entry of them'))


def _shared(training: Sequence[str], evaluated: Sequence[str]) -> Iterator[Finding]:
    """Images that are learned and evaluated, or learned twice; one set for both is a look at whether it learns."""
    evaluation = {os.path.normpath(path) for path in evaluated}
    learned = {path for path in map(os.path.normpath, training) if path in evaluation}
    if learned and len(learned) == len(evaluation) == len(set(training)):
        logger.info('data.val has the same images as data.train: its numbers tell nothing of other images')
    elif learned:
        yield Finding('data.shared-images', (
            f'{len(learned)} of the {len(evaluation)} images of data.val are in data.train too '
            f"({', '.join(sorted(learned)[:3])}{', …' if len(learned) > 3 else ''}): their numbers tell nothing of "
            'other images; take them out of one'))


# --- data ---

def _data(dataset: Any, name: str, files: Sequence[str]) -> Iterator[Finding]:
    """Log what was left out of one data set (called ``name``) and why; look for its images and its classes."""
    counts = _counts(dataset)
    if len(dataset) == 0:
        odd = (getattr(dataset, 'filter_report', None) or {}).get('degenerate_boxes') or []
        counts += f'; {len(odd)} boxes have no area ({odd[0]}, …)' if odd else ''
        yield Finding('data.no-images', f"{name}: no image is left to use{counts}; annotation file "
                                        f"{getattr(dataset, 'ann_file', None)}")
        return
    logger.info('%s: %d images%s', name, len(dataset), counts)
    yield from _missing(dataset, files, name)
    absent = (getattr(dataset, 'filter_report', None) or {}).get('missing_classes') or []
    if absent:
        yield Finding('data.missing-classes', (
            f'{name}: {dataset.ann_file} has no category for {len(absent)} of the {len(dataset.CLASSES)} classes '
            f"({', '.join(absent[:_SHOWN])}{', …' if len(absent) > _SHOWN else ''})"))


def _counts(dataset: Any) -> str:
    """' (of 120 in the file; left out: empty 3, too_small 1)', or ''."""
    report = getattr(dataset, 'filter_report', None) or {}
    counts = {reason: count for reason, count in report.items()
              if isinstance(count, int) and count and reason not in ('images', 'kept')}
    objectless = {} if getattr(dataset, 'filter_empty_gt', True) else {
        reason: counts.pop(reason) for reason in _OBJECTLESS if reason in counts}
    told = [', '.join(f'{reason} {count}' for reason, count in some.items()) for some in (counts, objectless)]
    total = f"of {report['images']} in the file" if 'images' in report else ''
    parts = [total, f'left out: {told[0]}' if told[0] else '',
             f'filter_empty_gt=False keeps: {told[1]}' if told[1] else '']
    return f" ({'; '.join(part for part in parts if part)})" if any(parts) else ''


def check_files(dataset: Any, name: str) -> None:
    """Raise DataError, with the first names, when image files of ``dataset`` (called ``name``) are not there."""
    refuse(_missing(dataset, image_files(dataset), name))


def _missing(dataset: Any, files: Sequence[str], name: str) -> Iterator[Finding]:
    """Image files that are not there or empty, and first bytes that are of no image, of some."""
    sizes = _sizes(files)
    missing = [path for path, size in zip(files, sizes) if size is None]
    if missing:
        remedy = _elsewhere(missing[:_SHOWN], getattr(dataset, 'img_prefix', None) or '',
                            getattr(dataset, 'ann_file', None))
        yield Finding('data.missing-images', (
            f"{name}: {len(missing)} of {len(files)} image files are missing: {', '.join(missing[:_SHOWN])}"
            f"{', …' if len(missing) > _SHOWN else ''}; {remedy}"))
        return
    odd = {path: 'empty' for path, size in zip(files, sizes) if size == 0}
    for path in files[::max(len(files) // _LOOKED_AT, 1)]:
        kind = '' if path in odd else kind_of_no_image(path)
        if kind:
            odd[path] = kind
    if odd and getattr(dataset, 'on_error', 'raise') != 'skip':
        told = ', '.join(f'{path} ({kind})' for path, kind in list(odd.items())[:_SHOWN])
        yield Finding('data.no-image-files', (
            f"{name}: {len(odd)} of {len(files)} image files are none that can be read: {told}"
            f"{', …' if len(odd) > _SHOWN else ''}; get them anew, or convert them to JPEG or PNG"))


def missing_files(dataset: Any) -> tuple[list[str], int]:
    """The image files that are not there, in order, and the number of files looked for."""
    paths = image_files(dataset)
    return [path for path, size in zip(paths, _sizes(paths)) if size is None], len(paths)


def _sizes(paths: Sequence[str]) -> list[int | None]:
    """The size of each file in bytes; None where there is none."""
    def size(path: str) -> int | None:
        try:
            found = os.stat(path)
        except (OSError, ValueError):
            return None
        return found.st_size if stat.S_ISREG(found.st_mode) else 1

    with ThreadPoolExecutor(_STAT_THREADS) as pool:
        return list(pool.map(size, paths, chunksize=256))


def _elsewhere(missing: Sequence[str], prefix: str, ann_file: Any = None) -> str:
    """What to do about files that are not there: the slip in their names, where the files lie under other ones."""
    def beside(path: str, chosen: Callable[[str, str], bool]) -> str:
        folder, name = os.path.split(path)
        found = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        return os.path.join(folder, next((one for one in found if chosen(one, name)), name))

    slips: dict[str, Callable[[str], str]] = {
        "without the '/' in front, which leaves img_prefix out": lambda path: os.path.join(prefix, path.lstrip('/')),
        "with '/' in place of '\\'": lambda path: path.replace('\\', '/'),
        'without blanks around their names': lambda path: os.path.join(os.path.dirname(path),
                                                                       os.path.basename(path).strip()),
        'with letters like ü in the other Unicode form (NFC, NFD)': lambda path: beside(path, lambda one, name: (
            unicodedata.normalize('NFC', one) == unicodedata.normalize('NFC', name))),
        'in other upper and lower case': lambda path: beside(path, lambda one, name: one.lower() == name.lower()),
        'with another ending, or with one': lambda path: beside(path, lambda one, name: (
            os.path.splitext(one)[0] in (name, os.path.splitext(name)[0]))),
        'without the last folder of their paths': lambda path: os.path.join(os.path.dirname(os.path.dirname(path)),
                                                                            os.path.basename(path)),
        'by the last part of their names': lambda path: os.path.join(prefix, _last_part(path))}
    for what, corrected in slips.items():
        if all(os.path.isfile(corrected(path)) for path in missing):
            return f"they are there {what} (such as {corrected(missing[0])}): correct 'file_name' of the annotations"
    for folder in _around(ann_file) if len(missing) > 1 else ():  # one name may be found anywhere
        relative = [os.path.relpath(path, prefix) if prefix else path for path in missing]
        if all(os.path.isfile(os.path.join(folder, name)) for name in relative):
            return f"they are in {folder}: set img_prefix to it"
    return ('they are addresses: download the images' if all('://' in path for path in missing)
            else 'check img_prefix and data_root')


def _last_part(path: str) -> str:
    """The file's name in an address, or in a path of another machine."""
    return path.replace('\\', '/').rpartition('/')[2]


def _around(ann_file: Any) -> Iterator[str]:
    """Folders where images of an annotation file often lie: its own, the one above, and what is in these two."""
    if not isinstance(ann_file, str):
        return
    here = os.path.dirname(os.path.abspath(ann_file))
    for parent in (here, os.path.dirname(here)):
        yield parent
        with contextlib.suppress(OSError):
            yield from sorted(entry.path for entry in os.scandir(parent) if entry.is_dir())


def image_files(dataset: Any) -> list[str]:
    """The path of every image of a data set that names them; [] for one that does not."""
    if not hasattr(dataset, 'img_info'):
        return []
    prefix = getattr(dataset, 'img_prefix', None) or ''
    names = [dataset.img_info(i)['filename'] for i in range(len(dataset))]
    return [os.path.join(prefix, name) for name in names]


def _few_images(dataset: Any, batch: int) -> Iterator[Finding]:
    if 0 < len(dataset) < batch:
        yield Finding('data.few-images', (
            f'data.train has {len(dataset)} images, and a batch takes {batch} (data.samples_per_gpu for each process): '
            f'images are drawn again to fill it; set data.samples_per_gpu to {len(dataset)} at most'))


# --- folders ---

def check_writable(folder: str | os.PathLike, name: str) -> None:
    """Make ``folder`` (called ``name``) and write a file into it.

    Raises:
        ConfigError: it cannot be made or written to.
    """
    path = Path(folder)
    probe = path / f'.{os.getpid()}.partial'
    try:
        path.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b'x')
    except OSError as error:
        raise ConfigError(f'{name} {path} cannot be written: {error.strerror}') from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


# --- optimizer and schedule ---

def check_schedule(model: nn.Module, cfg: Any, length: Mapping[str, Any], lr_config: Mapping[str, Any] | None,
                   evaluation: Mapping[str, Any] | None, iters_per_epoch: int | None = None) -> None:
    """Warn of what does nothing: ``custom_keys`` without a parameter, a rate of 0, what comes after the end.

    Args:
        model: not yet wrapped.
        cfg: the config, for ``optimizer`` and ``preflight``.
        length: ``runner`` as it is used.
        lr_config: the schedule of the rate as it is used.
        evaluation: likewise; None without a validation set.
        iters_per_epoch: optimizer steps of an epoch; None where that is not known.
    """
    rate = (cfg.get('optimizer') or {}).get('lr')
    found = [*_idle_custom_keys(model, cfg), *_idle_schedule(length, lr_config, evaluation, iters_per_epoch)]
    if rate == 0:
        found.append(Finding('config.idle-schedule', 'optimizer.lr = 0: no weight changes; set a rate above 0'))
    report(found, ignored_codes(cfg))


def _idle_custom_keys(model: nn.Module, cfg: Any) -> Iterator[Finding]:
    names = [name for name, _ in model.named_parameters()]
    parts = {part for name in names for part in name.split('.')}
    for key in ((cfg.get('optimizer') or {}).get('paramwise_cfg') or {}).get('custom_keys') or {}:
        if not any(key in name for name in names):
            yield Finding('config.idle-key', (
                f"optimizer.paramwise_cfg.custom_keys['{key}'] is part of no parameter's name "
                f'and changes nothing{nearest(key, [*parts, *names])}'))


def _idle_schedule(length: Mapping[str, Any], lr_config: Mapping[str, Any] | None,
                   evaluation: Mapping[str, Any] | None, iters_per_epoch: int | None) -> Iterator[Finding]:
    """What comes after the end, counted in epochs or iterations, as far as the one can be told from the other."""
    by_epoch = 'max_epochs' in length
    key = 'max_epochs' if by_epoch else 'max_iters'
    end = length.get(key)
    if not isinstance(end, int):
        return
    ends = dict(epochs=end) if by_epoch else dict(iterations=end)
    if iters_per_epoch:
        ends.setdefault('epochs', math.ceil(end / iters_per_epoch))
        ends.setdefault('iterations', end * iters_per_epoch)

    def ending(unit: str) -> str:
        return f'the training ends after {ends[unit]} {unit} (runner.{key} = {end})'

    rates = lr_config or {}
    step, unit = rates.get('step'), _unit(rates.get('by_epoch', by_epoch))
    steps = [step] if isinstance(step, int) else step or ()
    late = [one for one in steps if isinstance(one, int) and one >= ends.get(unit, math.inf)]
    if late:
        yield Finding('config.idle-schedule', (
            f"lr_config.step {', '.join(map(str, late))}: {ending(unit)}, before the rate falls"))
    warmup, unit = rates.get('warmup_iters', 0), _unit(rates.get('warmup_by_epoch', False))
    if rates.get('warmup') and warmup >= ends.get(unit, math.inf):
        yield Finding('config.idle-schedule', (
            f'lr_config.warmup_iters = {warmup} {unit}: {ending(unit)}, before the rate is what optimizer.lr says; set '
            f'lr_config.warmup_iters to a tenth of it ({max(ends[unit] // 10, 1)}), or train longer'))
    if evaluation is None:
        return
    first, unit = evaluation.get('start'), _unit(evaluation.get('by_epoch', by_epoch))
    first = evaluation.get('interval', 1) if first is None else first
    if first > ends.get(unit, math.inf):
        best = ', and no best checkpoint is kept (save_best)' if evaluation.get('save_best') else ''
        yield Finding('config.idle-schedule', (
            f'evaluation begins after {first} {unit}, and {ending(unit)}: nothing is evaluated{best}; set '
            f'evaluation.interval to {ends[unit]}'))


def _unit(by_epoch: bool) -> str:
    return 'epochs' if by_epoch else 'iterations'


# --- batch and learning rate ---

def learning_rate_scale(samples_per_gpu: int, world_size: int, accumulation: int, learning_rate: float,
                        auto_scale_lr: Mapping | None = None) -> float:
    """Log the batch that one update sees against the one the learning rate was made for, and return their ratio.

    The linear scaling rule (Goyal et al. 2017): the rate grows with the batch. It is applied when
    ``auto_scale_lr.enable`` says so; otherwise 1.0 is returned, with a warning when the batches differ.

    Raises:
        ConfigError: ``auto_scale_lr`` is enabled without ``base_batch_size``.
    """
    effective = samples_per_gpu * world_size * accumulation
    text = (f'{world_size} process{"es" if world_size > 1 else ""} x {samples_per_gpu} images x {accumulation} '
            f'accumulated = effective batch {effective}')
    options = dict(auto_scale_lr or {})
    base = options.get('base_batch_size')
    if options.get('enable') and not base:
        raise ConfigError('auto_scale_lr.enable needs auto_scale_lr.base_batch_size, the batch that the rate is for')
    if not base:
        logger.info('%s; learning rate %g', text, learning_rate)
        return 1.
    scale = effective / base
    if options.get('enable'):
        logger.info('%s; base batch %d; learning rate %g x %g = %g', text, base, learning_rate, scale,
                    learning_rate * scale)
        return scale
    level = logging.INFO if effective == base else logging.WARNING
    advice = '' if effective == base else f' (the linear scaling rule would give {learning_rate * scale:g}: ' \
                                          '--auto-scale-lr applies it)'
    logger.log(level, '%s; base batch %d; learning rate %g%s', text, base, learning_rate, advice)
    return 1.


def _scaled_scheduler(entry: Mapping[str, Any], scale: float) -> dict[str, Any]:
    """One of the policy 'param_scheduler', if it counts iterations."""
    found = dict(entry)
    if entry.get('by_epoch', True):
        return found
    for key in ('begin', 'end', 'T_max', 'step_size'):
        if found.get(key):
            found[key] = max(round(found[key] / scale), 1)
    if 'milestones' in found:
        found['milestones'] = [round(one / scale) for one in found['milestones']]
    return found


def scale_steps(scale: float, length: Mapping[str, Any], lr_config: Mapping[str, Any] | None,
                **sections: Mapping[str, Any] | None) -> tuple[Mapping[str, Any] | None, ...]:
    """Make a schedule that is counted in iterations as much shorter as the batch is larger: the same images are seen.

    Detectron.pytorch's adaptive adjustment, asked for by ``auto_scale_lr.scale_steps``. Epochs stay as they are.

    Args:
        scale: effective batch / base batch.
        length: the config's ``runner``.
        lr_config: the config's.
        **sections: ``evaluation`` and ``checkpoint_config``, whose ``interval`` and ``start`` count the same.

    Returns:
        new ``runner`` and ``lr_config``, and the new sections in their order.
    """
    length, rates = dict(length), None if lr_config is None else dict(lr_config)
    by_epoch = 'max_iters' not in length
    if not by_epoch:
        length['max_iters'] = max(round(length['max_iters'] / scale), 1)
    if rates is not None and not rates.get('by_epoch', by_epoch):
        for key in ('step', 'periods'):
            value = rates.get(key)
            if isinstance(value, int):
                rates[key] = max(round(value / scale), 1)
            elif value is not None:
                rates[key] = [max(round(one / scale), 1) for one in value]
    if rates is not None and 'schedulers' in rates:
        rates['schedulers'] = [_scaled_scheduler(one, scale) for one in rates['schedulers']]
    scaled = [_scaled_interval(section, scale, by_epoch) for section in sections.values()]
    told = ''.join(f', {name} {new}' for name, new, old in zip(sections, scaled, sections.values()) if new != old)
    logger.info('auto_scale_lr.scale_steps: the schedule is %g times as long: runner %s, lr_config %s%s', 1 / scale,
                length, rates, told)
    return length, rates, *scaled


def _scaled_interval(section: Mapping[str, Any] | None, scale: float, by_epoch: bool) -> Mapping[str, Any] | None:
    """``interval``, ``start``, … of a section that counts iterations; what is not positive has another meaning."""
    if section is None or section.get('by_epoch', by_epoch):
        return section
    counts = {key: max(round(section[key] / scale), 1) for key in ('interval', 'start') if (section.get(key) or 0) > 0}
    if section.get('dynamic_intervals'):
        pairs = [tuple(max(round(n / scale), 1) for n in pair) for pair in section['dynamic_intervals']]
        return {**section, **counts, 'dynamic_intervals': pairs}
    return {**section, **counts}
