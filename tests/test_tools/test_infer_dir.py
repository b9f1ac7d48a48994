"""tools/infer_dir.py on a bare folder: what it writes is a training set, and a killed run goes on."""
import importlib.util
import json
import shutil
import signal
import subprocess
import sys
import time
import warnings

import cv2
import numpy as np
import pytest

from boxdet.datasets import build_dataset
from boxdet.errors import UserError


@pytest.fixture
def command(tiny_detector, repo_root):
    def make(folder, out, *more):
        return [sys.executable, str(repo_root / 'tools/infer_dir.py'), str(folder), str(tiny_detector.config),
                str(tiny_detector.checkpoint), *(('--out', str(out)) if out else ()), '--device', 'cpu', '--score-thr',
                '0.1', *map(str, more)]
    return make


@pytest.fixture
def run(command, repo_root, capsys):
    """Run the tool in this process: its exit status, output and errors."""
    spec = importlib.util.spec_from_file_location('boxdet_tools_infer_dir', repo_root / 'tools/infer_dir.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)

    def call(*arguments):
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            status = tool.main(command(*arguments)[2:])
        return status, *capsys.readouterr()
    return call


@pytest.fixture
def folder(tiny_detector, tmp_path):
    """Four images, one of them in a folder, and files that are none."""
    shutil.copytree(tiny_detector.folder / 'images', tmp_path / 'images')
    (tmp_path / 'images/notes.txt').write_text('not an image')
    (tmp_path / 'images/.hidden.png').write_bytes(b'x')
    return tmp_path / 'images'


def test_default_names_are_beside_the_checkpoint(tiny_detector, run, folder, tmp_path, monkeypatch):
    checkpoint = shutil.copy(tiny_detector.checkpoint, tmp_path)
    monkeypatch.setattr(tiny_detector, 'checkpoint', checkpoint)
    status, told, _ = run(folder, None)
    assert status == 0 and f'{tmp_path}/infer/images.json and {tmp_path}/infer/images: 4 images' in told
    assert len(json.loads((tmp_path / 'infer/images.json').read_text())['images']) == 4
    assert len(list((tmp_path / 'infer/images').rglob('*.png'))) == 4


def test_predictions_are_a_training_set(run, folder, tmp_path, tiny_detector):
    out = tmp_path / 'deep/predictions.json'
    status, told, _ = run(folder, out, '--show-dir', tmp_path / 'drawn')
    assert status == 0 and '4/4 images' in told and f'predictions.json and {tmp_path}/drawn: 4 images' in told
    content = json.loads(out.read_text())
    assert [i['file_name'] for i in content['images']] == ['a.png', 'c.jpg', 'd.png', 'deep/b.png']
    assert [c['name'] for c in content['categories']] == list(tiny_detector.classes)
    assert content['annotations'] and all(a['score'] >= 0.1 for a in content['annotations'])
    assert not out.with_name('predictions.json.part').exists()
    dataset = build_dataset(dict(
        type='CocoDataset', ann_file=str(out), img_prefix=str(folder), classes=tiny_detector.classes,
        filter_empty_gt=False, pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True)]))
    assert len(dataset) == 4 and dataset.filter_report['degenerate_boxes'] == []
    assert sum(len(dataset[i]['gt_masks'].masks) for i in range(4)) > 0
    boxes = np.concatenate([dataset.get_ann_info(i)['bboxes'] for i in range(4)])
    assert len(boxes) == len(content['annotations'])
    assert cv2.imread(str(tmp_path / 'drawn/deep/b.png.png')).shape == (128, 96, 3)


def test_unreadable_files_and_pdf(run, folder, tmp_path):
    (folder / 'b.jpg').write_bytes((folder / 'c.jpg').read_bytes()[:900])
    (folder / 'empty.png').write_bytes(b'')
    out = tmp_path / 'p.json'
    status, _, errors = run(folder, out, '--batch-size', 4, '--show-dir', tmp_path / 'drawn', '--format', 'pdf')
    assert status == 1
    left_out = [line for line in errors.splitlines() if line.startswith('left out: ')]
    assert len(left_out) == 2
    assert 'b.jpg: the image file is truncated' in left_out[0] and 'empty.png: empty' in left_out[1]
    assert len(json.loads(out.read_text())['images']) == 4
    page = (tmp_path / 'drawn/a.png.pdf').read_bytes()
    assert page.startswith(b'%PDF-') and page.rstrip().endswith(b'%%EOF') and b'/Subtype /Image' in page
    assert len(list((tmp_path / 'drawn').rglob('*.pdf'))) == 4


def test_a_killed_run_goes_on(command, run, folder, tmp_path):
    for i in range(30):
        shutil.copy(folder / 'a.png', folder / f'more{i:02d}.png')
    out, part = tmp_path / 'p.json', tmp_path / 'p.json.part'
    running = subprocess.Popen(command(folder, out), stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (part.exists() and part.read_bytes().count(b'\n') > 3):
            assert running.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
    finally:
        running.send_signal(signal.SIGKILL)
        running.wait()
    assert not out.exists()
    lines = part.read_bytes().count(b'\n')
    with open(part, 'ab') as file:
        file.write(b'{"file": "zz')  # a line that the kill cut off
    with pytest.raises(UserError, match='another model or other settings.*--restart'):  # it would mix two runs
        run(folder, out, '--score-thr', '0.5')
    status, told, _ = run(folder, out)
    assert status == 0 and f'{lines - 1} images are done, going on' in told and not part.exists()
    assert run(folder, tmp_path / 'q.json')[0] == 0
    assert json.loads((tmp_path / 'q.json').read_text()) == json.loads(out.read_text())
    part.write_text('of another run')
    assert run(folder, out, '--restart')[0] == 0 and not part.exists()


def test_wrong_use(run, folder, tmp_path):
    (tmp_path / 'bare').mkdir()
    for place, out, message in ((tmp_path / 'none', 'a.json', 'none: no such folder'),
                                (folder, 'a.pkl', "to a '.json' file"),
                                (tmp_path / 'bare', 'a.json', 'no images in it')):
        with pytest.raises(UserError, match=message):
            run(place, tmp_path / out)


def test_images_only_and_endings(run, folder, tmp_path):
    status, told, _ = run(folder, None, '--show-dir', tmp_path / 'drawn', '--image-ext', 'PNG', '.bmp')
    assert status == 0 and told.strip().endswith('drawn: 3 images')
    assert sorted(path.name for path in (tmp_path / 'drawn').rglob('*') if path.is_file()) == [
        'a.png.png', 'b.png.png', 'd.png.png']
    for more, message in ((('--image-ext', '.pgn'), "--image-ext .pgn: .*did you mean '.pn?g"),
                          (('--image-ext', 'bmp'), 'none of the 4 images in it ends in .bmp'),
                          (('--score-thr', 'nan'), '--score-thr nan: scores are from 0 to 1')):
        with pytest.raises(UserError, match=message):
            run(folder, tmp_path / 'a.json', *more)


def test_a_page_has_the_skeleton(run, folder, tmp_path, monkeypatch):
    from boxdet.models.detectors import TwoStageDetector
    from boxdet.visualization import pdf
    given = []
    monkeypatch.setattr(TwoStageDetector, 'skeleton', ((0, 1),))
    monkeypatch.setattr(pdf, 'write_pdf', lambda *arguments: given.append(arguments[-1]))
    assert run(folder, None, '--show-dir', tmp_path / 'drawn', '--format', 'pdf')[0] == 0
    assert given == [((0, 1),)] * 4
