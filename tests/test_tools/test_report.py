"""The HTML report by command line: tools/test.py --report, and tools/analysis_tools/report.py on saved results."""

import importlib.util
import json
import subprocess
import sys

import pytest

from boxdet.errors import ConfigError


@pytest.fixture(scope='module')
def made(repo_root, tiny_detector, tmp_path_factory):
    """What one run of tools/test.py wrote, and said."""
    folder = tmp_path_factory.mktemp('report')
    done = subprocess.run([sys.executable, str(repo_root / 'tools/test.py'), str(tiny_detector.config),
                           str(tiny_detector.checkpoint), '--device', 'cpu', '--out', str(folder / 'r.pkl'), '--report',
                           str(folder / 'new/report')], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return folder, done.stdout


@pytest.fixture(scope='module')
def tool(repo_root):
    spec = importlib.util.spec_from_file_location('report_tool', repo_root / 'tools/analysis_tools/report.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def content(page):
    return json.loads(page.read_text().split('id="data">')[1].split('</script>')[0])


def test_test_writes_a_report_on_the_configured_metric(made, tiny_detector):
    folder, printed = made
    page = folder / 'new/report/index.html'
    assert f'report: {page}' in printed and 'bbox_mAP:' in printed and 'segm_mAP' not in printed
    data = content(page)
    assert [c['name'] for c in data['classes']] == list(tiny_detector.classes)
    assert str(tiny_detector.config) in data['meta'] and sum(c['objects'] for c in data['classes']) == 8


def test_saved_results_give_the_same_report(made, tool, tiny_detector, tmp_path, capsys):
    folder, _ = made
    tool.main([str(tiny_detector.config), str(folder / 'r.pkl'), str(tmp_path), '--title', 'Mine', '--errors', '2'])
    first, second = content(folder / 'new/report/index.html'), content(tmp_path / 'index.html')
    assert second['title'] == 'Mine' and len(second['errors']) == 2
    same = ('classes', 'curves', 'confusion', 'calibration', 'headline', 'sizes')
    assert {key: first[key] for key in same} == {key: second[key] for key in same}
    tool.main([str(tiny_detector.config), str(folder / 'r.pkl'), str(tmp_path), '--eval', 'bbox', 'segm'])
    assert 'Masks' in content(tmp_path / 'index.html')['classNote']


def test_wrong_arguments_are_one_line(tool, repo_root, tiny_detector, tmp_path):
    with pytest.raises(ConfigError, match='--errors -1'):
        tool.main([str(tiny_detector.config), 'r.pkl', str(tmp_path), '--errors', '-1'])
    done = subprocess.run([sys.executable, str(repo_root / 'tools/analysis_tools/report.py'), str(tiny_detector.config),
                           str(tmp_path / 'none.pkl'), str(tmp_path)], capture_output=True, text=True)
    assert done.returncode == 2 and len(done.stderr.strip().splitlines()) == 1 and 'none.pkl' in done.stderr
    done = subprocess.run([sys.executable, str(repo_root / 'tools/test.py'), str(tiny_detector.config),
                           str(tiny_detector.checkpoint), '--report', 'x', '--format-only'], capture_output=True,
                           text=True)
    assert done.returncode == 2 and '--report and --format-only exclude each other' in done.stderr
