"""demo/inference_demo.ipynb from top to bottom, in a kernel of its own."""

import json
import subprocess
import sys

import pytest


@pytest.mark.slow
def test_notebook_runs_from_top_to_bottom(repo_root, tiny_detector, tmp_path, monkeypatch):
    monkeypatch.setenv('BOXDET_CONFIG', str(tiny_detector.config))
    monkeypatch.setenv('BOXDET_CHECKPOINT', str(tiny_detector.checkpoint))
    monkeypatch.setenv('BOXDET_IMAGES', str(tiny_detector.folder / 'images'))
    monkeypatch.delenv('MPLBACKEND')  # the notebook shows its figures inline
    done = subprocess.run([sys.executable, '-m', 'nbconvert', '--to', 'notebook', '--execute', '--output-dir',
                           str(tmp_path),
                           '--ExecutePreprocessor.timeout=300', '--ExecutePreprocessor.kernel_name=python3',
                           str(repo_root / 'demo/inference_demo.ipynb')], capture_output=True, text=True, cwd=repo_root)
    assert done.returncode == 0, done.stderr
    cells = [cell for cell in json.loads((tmp_path / 'inference_demo.ipynb').read_text())['cells']
             if cell['cell_type'] == 'code']
    outputs = [output for cell in cells for output in cell['outputs']]
    assert all(cell['execution_count'] for cell in cells)
    assert sum('image/png' in output.get('data', {}) for output in outputs) >= 2, 'images are shown'
    assert any('<video' in ''.join(output.get('data', {}).get('text/html', '')) for output in outputs)
