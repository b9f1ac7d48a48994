"""tools/analysis_tools/get_flops.py and model_zoo.py, and the table in docs/."""
from __future__ import annotations

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FASTER = 'faster_rcnn/faster_rcnn_r50_fpn_1x_coco.py'


def load_tool(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / f'tools/analysis_tools/{name}.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope='module')
def model_zoo():
    return load_tool('model_zoo')


def test_the_command_line_prints_parts_and_totals(capsys):
    get_flops = load_tool('get_flops')
    get_flops.main([str(ROOT / 'configs' / FASTER), '--shape', '1280', '800'])
    out = capsys.readouterr().out
    parts = dict(re.findall(r'^(\w+) +([\d.]+) GFLOPs', out, re.M))
    assert list(parts) == ['backbone', 'neck', 'rpn_head', 'bbox_head', 'all']
    assert sum(float(v) for k, v in parts.items() if k != 'all') == pytest.approx(float(parts['all']), abs=0.03)
    assert 'at 1280 x 800' in out and re.search(r'parameters +41\.\d+ M', out)
    get_flops.main([str(ROOT / 'configs' / FASTER), '--shape', '640', '--cfg-options',
                    'model.test_cfg.rpn.max_per_img=500'])
    fewer = dict(re.findall(r'^(\w+) +([\d.]+) GFLOPs', capsys.readouterr().out, re.M))
    assert float(fewer['bbox_head']) == pytest.approx(float(parts['bbox_head']) / 2, abs=0.01)
    assert float(fewer['backbone']) == pytest.approx(float(parts['backbone']) * 0.4, rel=1e-3)


def test_wrong_arguments_are_one_line():
    command = [sys.executable, str(ROOT / 'tools/analysis_tools/get_flops.py'), str(ROOT / 'configs' / FASTER)]
    done = subprocess.run([*command, '--shape', '1', '2', '3'], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr == 'error: --shape 1 2 3: it is WIDTH HEIGHT, or one number for both\n'


def test_every_config_is_in_the_zoo(model_zoo):
    text = (ROOT / 'docs/model_zoo.md').read_text()
    listed = model_zoo.listed_names(text)
    assert sorted(set(model_zoo.config_names()) - listed) == [], 'run tools/analysis_tools/model_zoo.py'
    assert sorted(name for name in listed if not (ROOT / 'configs' / name).exists()) == []


@pytest.mark.parametrize('name', [FASTER, 'shapes/faster_rcnn_r18_c4_shapes.py',
                                  'dcnv2/faster_rcnn_r50_fpn_mdpool_1x_coco.py',
                                  'tutorial/faster_rcnn_r50_fpn_1gpu_coco.py'])
def test_the_zoo_holds_what_is_counted(name, model_zoo):
    row = next(line for line in (ROOT / 'docs/model_zoo.md').read_text().splitlines() if f'configs/{name})' in line)
    millions, gflops, (width, height) = model_zoo.measure([name])[name]
    assert f'| {millions:.1f} | {gflops:.1f} | {width} x {height} |' in row


def test_published_figures_have_a_source_and_a_config(model_zoo):
    figures = model_zoo.published_figures()
    assert set(figures) <= set(model_zoo.config_names()) and len(figures) > 100
    for aims, source in figures.values():
        assert source and aims and all(15 < value < 70 for value in aims.values())
    row = next(line for line in (ROOT / 'docs/model_zoo.md').read_text().splitlines() if f'configs/{FASTER})' in line)
    assert '| box 37.4 | 1 | [047c8118](https://' in row and row.endswith('-047c8118.pth) |')


def test_published_weights_are_linked_by_their_hash(model_zoo):
    text = (ROOT / 'docs/model_zoo.md').read_text()
    for name, entry in model_zoo.zoo.entries().items():
        assert f'{model_zoo.link_to(entry)} |' in text, f'{name}: run tools/analysis_tools/model_zoo.py'
    assert model_zoo.link_to(dict(weights='https://a/b_final_e9d89b.pkl', md5='e9d89b')).startswith('[MD5 e9d89b](')


def test_metafiles_are_read(tmp_path, model_zoo):
    (tmp_path / 'faster_rcnn').mkdir()
    rows = [dict(Config=f'configs/{FASTER}', Results=[dict(Metrics={'box AP': 37.4}), dict(Metrics={'mask AP': 1.5})]),
            dict(Config='configs/nowhere.py', Results=[dict(Metrics={'box AP': 1.0})]), dict(Name='without config')]
    (tmp_path / 'faster_rcnn/metafile.yml').write_text(json.dumps(dict(Models=rows)))  # JSON is YAML
    assert model_zoo.read_metafiles(tmp_path) == {FASTER: dict(box=37.4)}  # it has no masks
    with pytest.raises(Exception, match='no \\*/metafile.yml'):
        model_zoo.read_metafiles(tmp_path / 'faster_rcnn')
