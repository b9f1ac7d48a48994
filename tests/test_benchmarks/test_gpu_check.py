"""benchmarks/gpu_check.py --dry: the script that is to run on a rented GPU takes the same path here, in tiny sizes."""
import json
import re

import pytest
import torch

from benchmarks import gpu_check
from tests.test_docs.examples import expanded, runs

QUICK = ['machine', 'without_waiting', 'mixed_precision', 'deterministic', 'streams_and_threads', 'distributed',
         'memory', 'data']
SLOW = ['golden_float64', 'golden_float32', 'gradients', 'inference', 'fixed_size', 'compiled', 'training']


def test_every_part_is_run_by_a_test():
    assert set(QUICK + SLOW) == set(gpu_check.PARTS)


def check(folder, parts):
    assert gpu_check.main(['--dry', '--out', str(folder), '--parts', *parts]) == 0
    results = json.loads((folder / 'gpu_check.json').read_text())
    assert list(results) == parts
    assert all(found.get('ok') or 'skipped' in found for found in results.values())
    table = (folder / 'gpu_check.md').read_text()
    assert all(f'| {part} |' in table for part in parts)
    return results


def test_quick_parts_and_going_on(tmp_path, capsys):
    results = check(tmp_path, QUICK)
    assert [name for name, found in results.items() if 'skipped' in found] == ['memory']
    assert results['deterministic']['equal'] and results['data']['images_a_second'] > 0
    capsys.readouterr()
    check(tmp_path, QUICK)
    assert capsys.readouterr().out.count('done before') == len(QUICK)


def test_a_part_that_fails_is_told_and_the_next_one_runs(tmp_path, monkeypatch, capsys):
    def broken(args):
        raise RuntimeError('no such kernel')
    monkeypatch.setitem(gpu_check.PARTS, 'memory', broken)
    assert gpu_check.main(['--dry', '--out', str(tmp_path), '--parts', 'memory', 'machine']) == 1
    results = json.loads((tmp_path / 'gpu_check.json').read_text())
    assert results['memory']['error'] == 'RuntimeError: no such kernel' and results['machine']['ok']
    assert 'failed: memory' in capsys.readouterr().out
    monkeypatch.undo()
    # What failed runs again.
    assert gpu_check.main(['--dry', '--out', str(tmp_path), '--parts', 'memory', 'machine']) == 0


def test_a_wrong_device_is_one_line(tmp_path):
    if torch.cuda.is_available():
        pytest.skip('there is a GPU here')
    assert gpu_check.main(['--out', str(tmp_path), '--parts', 'machine']) == 1
    assert 'no CUDA device here; --dry' in json.loads((tmp_path / 'gpu_check.json').read_text())['machine']['error']


@pytest.mark.slow
@runs('docs/performance.md: python benchmarks/gpu_check.py', 'docs/performance.md: golden_float32 ...')
def test_golden_cases_from_prepared_arrays(examples, tmp_path, monkeypatch, capsys, reference, shared_data):
    """The rented machine needs no OpenCV: the network's inputs travel as arrays."""
    prepare, there, form = (one.filled for one in examples)
    cases = gpu_check.golden_cases()
    name = 'float32/faster_rcnn_r50_fpn_1x_coco'
    monkeypatch.setattr(gpu_check, 'golden_cases', lambda: {name: cases[name]})
    monkeypatch.chdir(tmp_path)
    assert gpu_check.main(expanded(prepare)[0][2:]) == 0
    assert list(torch.load('gpu_inputs.pt', weights_only=False)) == [name]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    assert gpu_check.main([*expanded(there)[0][2:], '--dry', '--parts', 'golden_float32']) == 0
    found = json.loads((tmp_path / 'gpu_check.json').read_text())['golden_float32']
    assert found['cases'] == 1 and found['worst'] >= 0.97
    begins, ends, *_, last = form.splitlines()
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == begins
    for line, place in ((ends, 1), (last, -1)):
        assert re.fullmatch(re.sub(r"\b(N|SHARE|S|15)\b", r'[\\d.]+', re.escape(line)), printed[place]), printed


@pytest.mark.slow
@pytest.mark.parametrize('part', [part for part in SLOW if part != 'golden_float32'])
def test_slow_parts(tmp_path, part):
    check(tmp_path, [part])
