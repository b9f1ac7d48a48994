"""A detector over a data set: results in order, images of them on the way."""
from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import partial
from typing import cast

from torch import nn
from torch.utils.data import DataLoader

from boxdet.apis.behind import Behind, drawing_behind
from boxdet.apis.inference import load_into
from boxdet.apis.output_names import image_names
from boxdet.checkpoints.loading import compare_classes
from boxdet.datasets.contracts import Dataset
from boxdet.datasets.loader import data_set_of
from boxdet.engine.distributed import is_main, unwrap
from boxdet.engine.evaluation_loop import run_inference
from boxdet.engine.part_times import PartTimes
from boxdet.engine.preflight import check_num_classes, head_classes, parts_of
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation.chosen_classes import ChosenClasses
from boxdet.registry import Cfg
from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances

__all__ = ['multi_gpu_test', 'run_inference', 'single_gpu_test']


def single_gpu_test(model: nn.Module, data_loader: DataLoader, show: bool = False,
                    out_dir: str | os.PathLike | None = None, show_score_thr: float = 0.3,
                    progress: bool = True, times: PartTimes | None = None) -> Sequence[Instances]:
    """Predict every image of ``data_loader``.

    Where ``model.CLASSES`` are more than those of the data set, or in another order, results are matched by name; those
    of other classes are left out, with a log message.

    Args:
        model: detector on its device; parallel wrappers are taken off.
        data_loader: of ``boxdet.datasets.build_dataloader``, not shuffled.
        show: show each image in a window until a key is pressed.
        out_dir: write each image here, under its name in the data set (see ``apis.output_names``), in threads behind
            the network.
        show_score_thr: objects scoring less are not drawn.
        progress: tell how far it is.
        times: measures the parts, see ``run_inference``.

    Returns:
        one Instances an image, in the data set's order, in original pixels, on the CPU.

    Raises:
        UserError: no display for ``show``, a folder that cannot be written, an image that cannot be read.
    """
    detector, dataset = unwrap(model), data_set_of(data_loader)
    chosen = _chosen(detector, dataset)
    names = image_names(dataset) if out_dir is not None and hasattr(dataset, 'img_info') else None

    # Windows belong to the main thread.
    behind = Behind(0) if show or out_dir is None else drawing_behind(detector)

    def draw(index: int, meta: ImageMeta, result: Instances) -> None:
        if meta.filename is None:
            raise DataError(f'image {meta.image_id} has no file name, so it cannot be drawn')
        name = os.path.basename(meta.filename) if names is None else names[index]
        shown = result if chosen is None else chosen.kept(result)
        behind.put(partial(detector.show_result, meta.filename, shown, score_thr=show_score_thr, show=show,
                           win_name=name, out_file=None if out_dir is None else os.path.join(out_dir, name)))

    wanted = show or out_dir is not None
    with behind:
        results = run_inference(detector, data_loader, detector.device, progress, on_result=draw if wanted else None,
                                convert=None if chosen is None else chosen.relabelled, times=times)
    return cast('Sequence[Instances]', results)  # None on the other ranks only


def multi_gpu_test(model: nn.Module, data_loader: DataLoader, tmpdir: str | None = None,
                   gpu_collect: bool = False, times: PartTimes | None = None) -> Sequence[Instances] | None:
    """Predict with all ranks, each its share of ``data_loader``; classes are matched as in ``single_gpu_test``.

    Args:
        model: detector on its device; parallel wrappers are taken off.
        data_loader: of ``boxdet.datasets.build_dataloader`` with ``dist=True``, not shuffled.
        tmpdir: bring the results together through files in this folder, which all machines see; without it they
            travel between the processes.
        gpu_collect: was mmdetection 2.x's way around slow shared folders, through the GPUs' memory. Results are on
            the CPU here and need no GPU to travel, so that it changes nothing and says so.
        times: measures the parts of this rank, see ``run_inference``.

    Returns:
        on rank 0 what ``single_gpu_test`` returns, whatever the number of ranks; None on the others.
    """
    if gpu_collect:
        warnings.warn('gpu_collect has no effect: results travel between the processes on the CPU', stacklevel=2)
    detector = unwrap(model)
    chosen = _chosen(detector, data_set_of(data_loader))
    return run_inference(detector, data_loader, detector.device, tmpdir=tmpdir,
                         convert=None if chosen is None else chosen.relabelled, times=times)


def load_for_test(model: nn.Module, checkpoint: str | os.PathLike, dataset: Dataset, strict: bool = True) -> None:
    """Load ``checkpoint`` into ``model``, and compare what it was trained on with ``dataset``.

    The data set may have some of the model's classes only. A COCO file without categories gets the category ids of the
    training, where the checkpoint tells them.

    Args:
        model: built detector.
        checkpoint: file or address.
        dataset: data.test.
        strict: results will be measured or written by class; otherwise classes that differ are a warning.

    Raises:
        ConfigError: the model's heads are not those of the checkpoint, or the data set has a class that the model does
            not know. CheckpointError: see ``load_into``.
    """
    meta = load_into(model, checkpoint, None)
    known, wanted, heads = model.CLASSES, getattr(dataset, 'CLASSES', None), list(head_classes(model))
    if known is None:
        model.CLASSES = wanted  # type: ignore[assignment]  # torch types it as Tensor | Module
        if strict:
            check_num_classes(model, dataset, 'test')
    elif heads and wanted is not None:
        other = [f'model.{name}.num_classes = {count}' for name, count in heads if count != len(known)]
        if other:
            raise ConfigError(f"{'; '.join(other)}: {checkpoint} was trained on {len(known)} classes "
                              f'({_listed(known)}); leave num_classes as in the training, data.test.classes alone '
                              'chooses what is evaluated')
        unknown = [name for name in wanted if name not in known]
        difference = compare_classes(dict(meta=dict(CLASSES=known)), wanted, str(checkpoint)) if unknown else ''
        if unknown and strict and len(known) != len(wanted):
            raise ConfigError(f"class '{unknown[0]}' of data.test is none of the {len(known)} that {checkpoint} was "
                              f'trained on ({_listed(known)}){nearest(unknown[0], known)}')
        if difference:
            warnings.warn(difference, stacklevel=2)
    _take_category_ids(dataset, checkpoint, meta, known or wanted)


def _take_category_ids(dataset: Dataset, checkpoint: str | os.PathLike, meta: Cfg, known: Sequence[str] | None) -> None:
    ids = dict(zip(known or (), meta.get('category_ids') or ()))
    for part in parts_of(dataset):
        if getattr(part, 'tells_categories', True):
            continue
        if ids and all(name in ids for name in part.CLASSES):
            part.set_category_ids([ids[name] for name in part.CLASSES])
        elif list(part.cat_ids) == list(range(1, len(part.CLASSES) + 1)):
            warnings.warn(f"{part.ann_file} has no 'categories', and {checkpoint} does not tell the category ids of "
                          f'its training: predictions are written with ids from 1 to {len(part.CLASSES)}', stacklevel=3)


def _listed(names: Sequence[str]) -> str:
    return ', '.join(names[:10]) + (', …' if len(names) > 10 else '')


def _chosen(detector: nn.Module, dataset: Dataset) -> ChosenClasses | None:
    """How the detector's classes become the data set's; says so."""
    chosen = ChosenClasses.of(detector, dataset)
    if chosen is not None and is_main():
        warnings.warn(str(chosen), stacklevel=3)
    return chosen
