"""A keypoint model from the annotation file to the image, through the tools as users run them."""
import contextlib
import importlib.util
import io
import json
import warnings

import cv2
import numpy as np
import pytest

from boxdet.evaluation import load_results

KEYPOINTS = 11


@pytest.fixture(scope='module')
def project(repo_root, shapes_dir, tmp_path_factory):
    """The folder of a config for the tiny shapes set, and a training of one epoch with its validation."""
    folder = tmp_path_factory.mktemp('keypoints')
    parts = ''.join(f"    {part}=dict(ann_file='{shapes_dir}/annotations/instances_{split}.json', "
                    f"img_prefix='{shapes_dir}/{split}/'),\n"
                    for part, split in (('train', 'train'), ('val', 'val'), ('test', 'val')))
    (folder / 'config.py').write_text(
        f"_base_ = '{repo_root}/configs/shapes/keypoint_rcnn_r18_fpn_shapes.py'\n"
        f'data = dict(samples_per_gpu=2,\n{parts})\n'
        "model = dict(test_cfg=dict(rcnn=dict(score_thr=0.01)))\n"
        "evaluation = dict(interval=1, save_best='keypoints_mAP')\nrunner = dict(max_epochs=1)\n")
    run(repo_root, 'tools/train.py', folder / 'config.py', '--work-dir', folder / 'work', '--seed', 0, '--device',
        'cpu')
    return folder


def run(root, script, *arguments) -> str:
    """Run a tool in this process (others try them in processes of their own); returns what it printed."""
    spec = importlib.util.spec_from_file_location('boxdet_tool', root / script)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()) as out:
        warnings.simplefilter('ignore')
        module.main([*map(str, arguments)])
    return out.getvalue()


@pytest.mark.slow
def test_training_evaluates_keypoints(project):
    log, = (project / 'work').glob('*.log.json')
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert any(row.get('mode') == 'train' and row['loss_keypoint'] > 0 for row in rows)
    row = next(row for row in rows if row.get('mode') == 'val')
    assert {'bbox_mAP', 'keypoints_mAP', 'keypoints_mAP_50', 'keypoints_mAP_75', 'keypoints_mAP_m',
            'keypoints_mAP_l'} <= set(row)
    assert list((project / 'work').glob('best_keypoints_mAP_*.pth'))


@pytest.mark.slow
def test_the_test_tool_measures_draws_and_saves(project, repo_root, shapes_dir, tmp_path):
    out = run(repo_root, 'tools/test.py', project / 'config.py', project / 'work/latest.pth', '--device', 'cpu',
              '--eval', 'bbox', 'keypoints', '--eval-options', 'classwise=True', f'jsonfile_prefix={tmp_path}/r',
              '--out',
              tmp_path / 'r.pkl', '--show-dir', tmp_path / 'images', '--show-score-thr', '0.01')
    assert 'keypoints_mAP: ' in out and 'bbox_mAP: ' in out
    results = load_results(tmp_path / 'r.pkl')
    assert len(results) == 6 and any(map(len, results))
    assert all(r.keypoints.shape == (len(r), KEYPOINTS, 3) for r in results)
    rows = json.loads((tmp_path / 'r.keypoints.json').read_text())
    assert len(rows) == sum(map(len, results))
    first = next(r for r in results if len(r))
    # The shapes' file has continuous coordinates (keypoint_offset=0).
    np.testing.assert_allclose(np.reshape(rows[0]['keypoints'], (KEYPOINTS, 3)), first.keypoints[0].numpy(), rtol=1e-6)
    assert set(rows[0]) == {'image_id', 'category_id', 'keypoints', 'score'} and rows[0]['category_id'] == 6
    images = sorted((tmp_path / 'images').glob('*.jpg'))
    assert len(images) == 6
    changed = sum((cv2.imread(str(p)) != cv2.imread(str(shapes_dir / 'val' / p.name))).any() for p in images)
    assert changed > 0


@pytest.mark.slow
def test_views_and_the_image_demo(project, repo_root, shapes_dir, tmp_path):
    flipped = ['data.test.pipeline.1.flip=True', 'data.test.pipeline.1.img_scale=[(160,128),(200,160)]']
    out = run(repo_root, 'tools/test.py', project / 'config.py', project / 'work/latest.pth', '--device', 'cpu',
              '--eval', 'keypoints', '--cfg-options', *flipped)
    assert 'keypoints_mAP: ' in out
    run(repo_root, 'demo/image_demo.py', shapes_dir / 'val/000001.jpg', project / 'config.py',
        project / 'work/latest.pth', '--device', 'cpu', '--score-thr', '0', '--out-file', tmp_path / 'shown.png')
    assert cv2.imread(str(tmp_path / 'shown.png')).shape == cv2.imread(str(shapes_dir / 'val/000001.jpg')).shape


@pytest.mark.slow
def test_files_for_a_server_need_no_annotations(project, repo_root, shapes_dir, tmp_path):
    content = json.loads((shapes_dir / 'annotations/instances_val.json').read_text())
    del content['annotations']
    (tmp_path / 'infos.json').write_text(json.dumps(content))
    run(repo_root, 'tools/test.py', project / 'config.py', project / 'work/latest.pth', '--device', 'cpu',
        '--format-only', '--eval-options', f'jsonfile_prefix={tmp_path}/sent', '--cfg-options',
        f'data.test.ann_file={tmp_path}/infos.json')
    assert json.loads((tmp_path / 'sent.keypoints.json').read_text()) and (tmp_path / 'sent.bbox.json').exists()
