"""A detector over a data set: results in order, pictures of them on the way."""
from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from boxdet.engine.distributed import unwrap
from boxdet.engine.evaluation_loop import run_inference
from boxdet.errors import DataError
from boxdet.structures.batch import ImageMeta
from boxdet.structures.instances import Instances

__all__ = ['multi_gpu_test', 'run_inference', 'single_gpu_test']


def single_gpu_test(model: nn.Module, data_loader: Any, show: bool = False,
                    out_dir: str | os.PathLike | None = None, show_score_thr: float = 0.3,
                    progress: bool = True) -> Sequence[Instances]:
    """Predict every image of ``data_loader``.

    Args:
        model: detector on its device; parallel wrappers are taken off.
        data_loader: of ``boxdet.datasets.build_dataloader``, not shuffled.
        show: show each picture in a window until a key is pressed.
        out_dir: write each picture here, under its name in the data set.
        show_score_thr: objects scoring less are not drawn.
        progress: tell how far it is.

    Returns:
        one Instances an image, in the data set's order, in original pixels, on the CPU.

    Raises:
        UserError: no display for ``show``, a folder that cannot be written, an image that cannot be read.
    """
    detector = unwrap(model)

    def draw(_: int, meta: ImageMeta, result: Instances) -> None:
        if meta.filename is None:
            raise DataError(f'image {meta.image_id} has no file name, so its picture cannot be drawn')
        name = meta.ori_filename or os.path.basename(meta.filename)
        # A name that leads out of its folder (absolute, or up) must not lead out of out_dir.
        name = os.path.basename(name) if os.path.isabs(name) or '..' in Path(name).parts else name
        detector.show_result(meta.filename, result, score_thr=show_score_thr, show=show, win_name=name,
                             out_file=None if out_dir is None else os.path.join(out_dir, name))

    wanted = show or out_dir is not None
    return run_inference(detector, data_loader, detector.device, progress, on_result=draw if wanted else None)


def multi_gpu_test(model: nn.Module, data_loader: Any, tmpdir: str | None = None,
                   gpu_collect: bool = False) -> Sequence[Instances] | None:
    """Predict with all ranks, each its share of ``data_loader``.

    Args:
        tmpdir: bring the results together through files in this folder, which all machines see; without it they
            travel between the processes.
        gpu_collect: was mmdetection 2.x's way around slow shared folders, through the GPUs' memory. Results are on
            the CPU here and need no GPU to travel, so that it changes nothing and says so.

    Returns:
        on rank 0 what ``single_gpu_test`` returns, whatever the number of ranks; None on the others.
    """
    if gpu_collect:
        warnings.warn('gpu_collect has no effect: results travel between the processes on the CPU', stacklevel=2)
    detector = unwrap(model)
    return run_inference(detector, data_loader, detector.device, tmpdir=tmpdir)
