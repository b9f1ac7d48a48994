"""The graph of a detector by torch.export, and as a ``.pt2`` file that needs torch and torchvision only."""
from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn
from torch.export import Dim, ExportedProgram

from boxdet.errors import ConfigError
from boxdet.export.graph import DetectionGraph, InputFormat
from boxdet.export.suppression import ProgramSuppression
from boxdet.files.writing import write_whole

_EXAMPLE = (160, 224)  # any size will do where sizes are open


def exported(graph: DetectionGraph, shape: tuple[int, int] | None = None, batch: int | None = None,
             float_input: bool = False) -> ExportedProgram:
    """Follow ``graph`` once, with sizes that are symbols where they are open.

    Args:
        graph: the detector.
        shape: (height, width) of the images; None for any.
        batch: number of images; None for any.
        float_input: images are float32 in [0, 255], and not uint8.
    """
    count, (height, width) = 2 if batch is None else batch, shape or _EXAMPLE
    images = torch.zeros(count, 3, height, width, dtype=torch.float32 if float_input else torch.uint8)
    sizes = torch.tensor([[height, width]]).expand(count, 2).contiguous()
    open_batch = {0: Dim('batch', min=1)} if batch is None else {}
    # A level of one cell would be another graph: torch treats sizes of 1 as known.
    least = 1 + int(max(max(stride) for stride in graph.model.rpn_head.anchor_generator.strides))
    open_sides = {2: Dim('height', min=least), 3: Dim('width', min=least)} if shape is None else {}
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        return torch.export.export(graph.eval(), (images, sizes), strict=False,
                                   dynamic_shapes=({**open_batch, **open_sides}, open_batch))


def write_program(model: nn.Module, path: str | os.PathLike, inputs: InputFormat,
                  shape: tuple[int, int] | None = None, batch: int | None = None, float_input: bool = False,
                  precision: str = 'fp32', masks: str = 'logits', exact: bool = False, compiled: bool = False) -> Path:
    """Write a detector for ``torch.export.load``, which needs torchvision imported, and not boxdet.

    Args: as in ``onnx_file.write_onnx``; ``path`` ends in .pt2. ``compiled`` compiles the file with AOTInductor for
    this machine's processor; ``torch._inductor.aoti_load_package`` loads it then.

    Raises:
        ConfigError: what ``DetectionGraph`` refuses, another ending, or no compiler. DataError: the file cannot be
            written.
    """
    if Path(path).suffix != '.pt2':
        raise ConfigError(f"export: a file for torch.export.load ends in .pt2, '{path}' does not")
    compiler = os.environ.get('CXX', 'g++')
    if compiled and shutil.which(compiler) is None:
        raise ConfigError(f"export: AOTInductor needs a C++ compiler, and '{compiler}' is not found; the variable CXX "
                          'names another')
    graph = DetectionGraph(model, inputs, ProgramSuppression, masks, exact, precision)
    program = exported(graph, shape, batch, float_input)
    if not compiled:
        return write_whole(path, lambda file: torch.export.save(program, file))
    with tempfile.TemporaryDirectory() as folder, torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter('ignore')
        package = torch._inductor.aoti_compile_and_package(program, package_path=os.path.join(folder, 'a.pt2'))
        return write_whole(path, Path(package).read_bytes())
