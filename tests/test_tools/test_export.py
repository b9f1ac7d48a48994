"""tools/export.py by its command line: what each flag does to the file, and wrong values in one line."""
from __future__ import annotations

import importlib.util
import subprocess
import sys

import numpy as np
import pytest

from boxdet.export.parity import Parity
from tests.exported_detector import write_detector


def export(repo_root, folder, *arguments):
    return subprocess.run([sys.executable, repo_root / 'tools/export.py', 'config.py', 'latest.pth', *arguments],
                          cwd=folder, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope='module')
def folder(tiny_detector, tmp_path_factory):
    made = tmp_path_factory.mktemp('export')
    write_detector(tiny_detector, made)
    return made


def described(path):
    """Shapes and types of a file's inputs and outputs by name, sizes that are open as None; and its initializers."""
    onnx = pytest.importorskip('onnx')
    graph = onnx.load(path).graph
    values = {}
    for value in (*graph.input, *graph.output):
        kind = value.type.tensor_type
        shape = [size.dim_value or None for size in kind.shape.dim]
        values[value.name] = (shape, onnx.helper.tensor_dtype_to_np_dtype(kind.elem_type))
    return values, {onnx.helper.tensor_dtype_to_np_dtype(one.data_type) for one in graph.initializer}


@pytest.mark.slow
def test_one_size_in_half_precision_with_whole_masks(repo_root, folder):
    done = export(repo_root, folder, 'deep/half.onnx', '--shape', '128', '160', '--batch', '2', '--precision', 'fp16',
                  '--masks', 'paste', '--with-runtime')
    assert done.returncode == 0, done.stderr
    assert 'wrote deep/half.onnx (' in done.stdout and 'python deep/runtime.py deep/half.onnx IMAGE' in done.stdout
    assert (folder / 'deep/runtime.py').read_bytes() == (repo_root / 'boxdet/runtime.py').read_bytes()
    values, weights = described(folder / 'deep/half.onnx')
    assert values['images'] == ([2, 3, 128, 160], np.uint8) and np.dtype(np.float16) in weights
    assert values['masks'][1] == np.bool_ and values['masks'][0][2:] == [128, 160] and 'mask_logits' not in values
    assert values['boxes'][1] == np.float32


@pytest.mark.slow
def test_any_size_and_the_comparison(repo_root, folder):
    done = export(repo_root, folder, 'any.onnx', '--dynamic', '--masks', 'logits', '--precision', 'fp32',
                  '--float-input', '--exact', '--batch', '1', '--verify', 'images/a.png', 'images/d.png')
    assert done.returncode == 0, done.stdout + done.stderr
    assert 'detections equal in 2 images' in done.stdout and 'box 0.05 pixel' in done.stdout.splitlines()[-1]
    values, weights = described(folder / 'any.onnx')
    assert values['images'] == ([1, 3, None, None], np.float32) and np.dtype(np.float16) not in weights
    assert len(values['boxes'][0]) == 2 and len(values['mask_logits'][0]) == 3
    assert not (folder / 'runtime.py').exists()


@pytest.mark.parametrize(('arguments', 'told'), [
    (['a.onnx', '--shape', '96'], 'argument --shape: expected 2 arguments'),
    (['a.onnx', '--shape', '0', '96'], '--shape 0 96: sides are 1 at least'),
    (['a.onnx', '--shape', '96', '96', '--dynamic'], 'argument --dynamic: not allowed with argument --shape'),
    (['a.onnx', '--batch', '0'], '--batch 0: it is 1 at least'),
    (['a.onnx', '--batch', 'two'], "argument --batch: invalid int value: 'two'"),
    (['a.onnx', '--precision', 'int8'], "argument --precision: invalid choice: 'int8' (choose from"),
    (['a.onnx', '--masks', 'polygons'], "argument --masks: invalid choice: 'polygons' (choose from"),
    (['a.onnx', '--verify'], 'argument --verify: expected at least one argument'),
    (['a.onnx', '--verify', 'images/a.png', 'b.png'], '--verify: no file b.png'),
    (['a.trt'], "a.trt ends in neither '.onnx' nor '.pt2'"),
    (['a.pt2', '--verify', 'images/a.png'], '--verify is for .onnx files only'),
    (['a.pt2', '--with-runtime'], '--with-runtime is for .onnx files only'),
    (['a.onnx', '--compile'], '--compile is for .pt2 files only'),
    (['a.onnx', '--dinamic'], "unrecognized arguments: --dinamic; did you mean '--dynamic'?")])
def test_a_wrong_value_is_one_line(repo_root, tmp_path, arguments, told):
    (tmp_path / 'images').mkdir()
    (tmp_path / 'images/a.png').touch()
    done = export(repo_root, tmp_path, *arguments)
    assert done.returncode == 2 and done.stdout == ''
    assert done.stderr.startswith(f'error: {told}') and done.stderr.count('\n') == 1, done.stderr
    assert not list(tmp_path.glob('a.*'))


@pytest.mark.parametrize(('equal', 'status'), [(99, 0), (98, 1)])
def test_too_few_equal_detections_are_the_exit_status(repo_root, folder, tmp_path, monkeypatch, capsys, equal, status):
    monkeypatch.chdir(folder)
    monkeypatch.setattr('boxdet.apis.export.export_onnx', lambda model, path, **options: (tmp_path / 'a.onnx').touch())
    monkeypatch.setattr('boxdet.apis.export.verify_onnx',
                        lambda *args, **options: Parity(images=1, detections=100, exported=100, equal=equal))
    spec = importlib.util.spec_from_file_location('boxdet_export_tool', repo_root / 'tools/export.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(['config.py', 'latest.pth', str(tmp_path / 'a.onnx'), '--verify', 'images/a.png']) == status
    assert f'{equal} of 100 detections equal' in capsys.readouterr().out
