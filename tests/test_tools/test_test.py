"""tools/test.py as users run it. One process checks the command line; the options are tried in this one."""

import importlib.util
import json
import shutil
import subprocess
import sys
import warnings

import cv2
import pytest
from pycocotools.coco import COCO

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.errors import CheckpointError, ConfigError, DataError, UserError
from boxdet.evaluation import load_results


@pytest.fixture(scope='module')
def tool(repo_root):
    spec = importlib.util.spec_from_file_location('boxdet_tools_test', repo_root / 'tools/test.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def run(tool, tiny_detector, capsys):
    """Run the tool in this process; returns what it printed."""
    def call(*arguments, config=tiny_detector.config, checkpoint=tiny_detector.checkpoint) -> str:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            tool.main([str(config), str(checkpoint), '--device', 'cpu', *map(str, arguments)])
        return capsys.readouterr().out
    return call


def metrics_of(folder) -> dict:
    written, = folder.glob('eval_*.json')
    return json.loads(written.read_text())['metric']


def test_command_line_evaluates_and_saves(tiny_detector, repo_root, tmp_path):
    command = [
        sys.executable,
        str(repo_root / 'tools/test.py'),
        str(tiny_detector.config),
        str(tiny_detector.checkpoint), '--device', 'cpu', '--eval', 'bbox', 'segm', 'proposal',
        'proposal_fast', '--out',
        str(tmp_path / 'r.pkl'), '--work-dir',
        str(tmp_path / 'work')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    metrics = metrics_of(tmp_path / 'work')
    assert {'bbox_mAP', 'segm_mAP_50', 'AR@100', 'proposal_fast_AR@1000'} <= set(metrics)
    assert f"bbox_mAP: {metrics['bbox_mAP']:.4f}" in done.stdout and 'Average Precision' in done.stdout
    assert len(load_results(tmp_path / 'r.pkl')) == 4 and '4/4 images' in done.stdout


def test_help_teaches_and_imports_nothing_heavy(repo_root):
    """What makes it quick; benchmarks/startup.py has the time."""
    probe = ('import runpy, sys; sys.argv = ["t", "--help"]\n'
             f'try: runpy.run_path({str(repo_root / "tools/test.py")!r}, run_name="__main__")\n'
             'except SystemExit: assert not {"torch", "mmengine", "cv2", "numpy"} & set(sys.modules)')
    done = subprocess.run([sys.executable, '-c', probe], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '--eval-options classwise=True' in done.stdout


def test_errors_are_one_line_and_status_2(tiny_detector, repo_root):
    command = [
        sys.executable,
        str(repo_root / 'tools/test.py'),
        str(tiny_detector.config), 'missing.pth', '--eval', 'bbox', '--device', 'cpu']
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith('error: ') and 'missing.pth' in done.stderr


@pytest.mark.parametrize('arguments, message', [
    ([], 'nothing to do: give --eval'), (['--eval', 'bbox', '--format-only'], 'exclude each other'),
    (['--out', 'r.txt'], "r.txt: results are written to a '.pkl' or '.json' file"),
    (['--eval', 'bbox', '--options', 'a=1', '--eval-options', 'b=1'], 'old name'),
    (['--out', 'r.pkl', '--eval-options', 'classwise=True'], 'options of --eval or --format-only'),
    (['--eval', 'bbox', '--eval-options', 'clsswise=True'], "did you mean 'classwise'"),
    (['--format-only', '--options', 'classwise=True'],
     "takes no 'classwise' on this data set (it takes jsonfile_prefix"),
    (['--eval', 'bbox', '--gpu-id', '0'], '--device and --gpu-id'),
    (['--eval', 'bbox', '--precision', 'int8'], 'needs --calibration DIR'),
    (['--eval', 'bbox', '--calibration', 'photos'], '--calibration is for --precision int8, not for fp32'),
    (['--eval', 'bbox', '--batch-size', '0'], '1 at least'), (['--eval', 'mAP'], "unknown metric 'mAP'"),
    (['--eval', 'bbox', '--cfg-options', 'model.test_cfg.rcnn.score_thresh=0.1'], "score_thr'")])
def test_wrong_use(run, arguments, message):
    with pytest.raises(UserError) as error:
        run(*arguments)
    assert message in str(error.value)


def test_classwise_table_by_either_name(run, tmp_path):
    new = run('--eval', 'bbox', '--eval-options', 'classwise=True', '--work-dir', tmp_path)
    old = run('--eval', 'bbox', '--options', 'classwise=True')
    for out in (new, old):
        assert '| disc ' in out and '| cross ' in out
        assert '\nbbox_mAP: ' in out and '_precision' not in out  # the line of metrics does not repeat the table
    assert 'bbox_disc_precision' in metrics_of(tmp_path)


def test_numbers_are_those_of_the_saved_results(run, tiny_detector, tmp_path):
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import load_config
    from boxdet.evaluation import evaluate
    run('--eval', 'bbox', 'segm', '--out', tmp_path / 'r.json', '--work-dir', tmp_path)
    dataset = build_dataset(load_config(tiny_detector.config).data.test, dict(test_mode=True))
    assert evaluate(dataset, load_results(tmp_path / 'r.json'), ['bbox', 'segm'],
                    logger='silent') == metrics_of(tmp_path)


@pytest.mark.parametrize('options', [['--batch-size', '3'], ['--cfg-options', 'data.test.samples_per_gpu=2']])
def test_batched_testing(run, tmp_path, options):
    run('--out', tmp_path / 'one.pkl')
    run('--out', tmp_path / 'many.pkl', *options)
    one, many = load_results(tmp_path / 'one.pkl'), load_results(tmp_path / 'many.pkl')
    assert [r.image_size for r in one] == [r.image_size for r in many] == [(96, 128), (128, 96), (96, 128),
                                                                           (60, 100)]


def test_it_detects_as_init_detector_does_and_as_the_network_says(run, tiny_detector, tmp_path):
    import torch

    from boxdet.apis import inference_detector, init_detector
    from boxdet.apis.inference import build_for_inference
    from boxdet.checkpoints.io import load_checkpoint
    from boxdet.checkpoints.loading import load_weights
    from boxdet.engine.config import load_config
    run('--out', tmp_path / 'tested.pkl')
    tested, images = load_results(tmp_path / 'tested.pkl'), [str(path) for path in tiny_detector.images]
    model = init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu')
    plain = build_for_inference(model.cfg).eval()  # no norm folded, weights as they come
    load_weights(plain, load_checkpoint(str(tiny_detector.checkpoint)), 'the checkpoint')
    plain.cfg = load_config(tiny_detector.config)
    for found, same, slow in zip(tested, inference_detector(model, images), inference_detector(plain, images)):
        assert torch.equal(found.bboxes, same.bboxes) and torch.equal(found.scores, same.scores)
        assert torch.allclose(found.bboxes, slow.bboxes, atol=1e-2)
        assert torch.allclose(found.scores, slow.scores, atol=1e-4)


@pytest.mark.parametrize('precision', ['bf16', 'int8'])
def test_other_precisions_as_init_detector_has_them(run, tiny_detector, tmp_path, precision):
    import torch

    from boxdet.apis import inference_detector, init_detector
    from boxdet.engine.environment import slow_in
    from boxdet.models.quantization import fast_in_int8
    if not (fast_in_int8('cpu') if precision == 'int8' else not slow_in(torch.bfloat16, torch.device('cpu'))):
        pytest.skip(f'this processor is slow in {precision}')
    calibration = dict(calibration=tiny_detector.folder / 'images') if precision == 'int8' else {}
    run('--out', tmp_path / 'tested.pkl', '--precision', precision,
        *(f'--{key}={folder}' for key, folder in calibration.items()))
    model = init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu', precision=precision,
                          **calibration)
    for found, image in zip(load_results(tmp_path / 'tested.pkl'), tiny_detector.images):
        expected = inference_detector(model, str(image))
        assert len(found) and torch.equal(found.bboxes, expected.bboxes) and torch.equal(found.scores, expected.scores)


def test_an_option_without_effect_says_so(tool, tiny_detector, tmp_path):
    with pytest.warns(UserWarning, match='--fuse-conv-bn has no effect: batch norms are always folded'):
        tool.main([str(tiny_detector.config), str(tiny_detector.checkpoint), '--device', 'cpu', '--fuse-conv-bn',
                   '--out', str(tmp_path / 'r.pkl')])


def test_images(run, tmp_path):
    run('--show-dir', tmp_path / 'images', '--show-score-thr', '0.0')
    assert cv2.imread(str(tmp_path / 'images/deep/b.png')).shape == (128, 96, 3)


def test_format_only_without_annotations(run, tiny_detector, tmp_path):
    content = json.loads(tiny_detector.ann_file.read_text())
    bare = dict(info={}, images=content['images'], categories=content['categories'])
    (tmp_path / 'bare.json').write_text(json.dumps(bare))
    out = run('--format-only', '--options', f'jsonfile_prefix={tmp_path}/sub/run', '--cfg-options',
              f'data.test.ann_file={tmp_path}/bare.json')
    assert all(f'predictions: {tmp_path}/sub/run.{kind}.json' in out for kind in ('bbox', 'segm'))
    truth = COCO()
    truth.dataset = dict(bare, annotations=[])
    truth.createIndex()
    boxes, masks = (truth.loadRes(f'{tmp_path}/sub/run.{kind}.json') for kind in ('bbox', 'segm'))
    assert len(boxes.anns) == len(masks.anns) > 0
    assert {a['category_id'] for a in boxes.anns.values()} <= {5, 7, 9}


def test_eval_without_annotations_names_the_way_out(run, tiny_detector, tmp_path):
    content = json.loads(tiny_detector.ann_file.read_text())
    (tmp_path / 'bare.json').write_text(json.dumps(dict(content, annotations=[])))
    with pytest.raises(UserError, match='bare.json holds no annotations.*--format-only'):
        run('--eval', 'bbox', '--cfg-options', f'data.test.ann_file={tmp_path}/bare.json')


def test_format_only_without_a_prefix_writes_to_the_work_dir(run, tmp_path):
    run('--format-only', '--work-dir', tmp_path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ['results.bbox.json', 'results.segm.json']


def test_options_of_the_config_hold_and_the_command_line_wins(run, tmp_path):
    run('--eval', 'bbox', '--work-dir', tmp_path / 'a', '--cfg-options', 'evaluation.classwise=True')
    assert 'bbox_disc_precision' in metrics_of(tmp_path / 'a')
    run('--eval', 'bbox', '--work-dir', tmp_path / 'b', '--cfg-options', 'evaluation.classwise=True',
        '--eval-options', 'classwise=False')
    assert 'bbox_disc_precision' not in metrics_of(tmp_path / 'b')


def test_other_checkpoints_and_no_test_data(run, tmp_path):
    with pytest.raises(CheckpointError, match='missing.pth'):
        run('--eval', 'bbox', checkpoint='missing.pth')
    with pytest.raises((ConfigError, DataError), match='nowhere.json'):
        run('--eval', 'bbox', '--cfg-options', 'data.test.ann_file=nowhere.json')


def test_data_that_does_not_fit_is_told_before_inference(run, monkeypatch):
    monkeypatch.setattr('boxdet.apis.test.run_inference', lambda *_, **__: pytest.fail('inference began'))
    with pytest.raises(DataError, match='data.test: 4 of 4 image files are missing: nowhere/a.png'):
        run('--eval', 'bbox', '--cfg-options', 'data.test.img_prefix=nowhere/')
    with pytest.raises(DataError, match="class 'disk' is not among the categories.*did you mean 'disc'"):
        run('--eval', 'bbox', '--cfg-options', 'data.test.classes=[disk,bar]')


# --- classes ---

@pytest.mark.parametrize('classes', [['disc', 'bar'], ['cross'], ['cross', 'disc', 'bar']])
def test_some_of_the_classes_or_another_order(tool, run, tiny_detector, tmp_path, classes):
    run('--eval', 'bbox', 'segm', '--eval-options', 'classwise=True', '--out', tmp_path / 'all.pkl', '--work-dir',
        tmp_path)
    whole, everything = metrics_of(tmp_path), load_results(tmp_path / 'all.pkl')
    with pytest.warns(UserWarning, match='the data set has') as told:
        tool.main([str(tiny_detector.config), str(tiny_detector.checkpoint), '--device', 'cpu', '--eval', 'bbox',
                   'segm',
                   '--eval-options', 'classwise=True', '--out', str(tmp_path / 'some.pkl'), '--work-dir',
                   str(tmp_path / 'some'), '--show-dir', str(tmp_path / 'drawn'), '--cfg-options',
                   f"data.test.classes=[{','.join(classes)}]"])
    some = metrics_of(tmp_path / 'some')
    for kind in ('bbox', 'segm'):
        for name in tiny_detector.classes:
            assert some.get(f'{kind}_{name}_precision') == (whole[f'{kind}_{name}_precision'] if name in classes
                                                            else None)
    left_out = [name for name in tiny_detector.classes if name not in classes]
    assert any((f"results of the others ({', '.join(left_out)}) are left out" if left_out else 'matched by name')
               in str(one.message) for one in told)
    for ours, full in zip(load_results(tmp_path / 'some.pkl'), everything):
        kept = [k for k, label in enumerate(full.labels.tolist()) if tiny_detector.classes[label] in classes]
        assert [classes[label] for label in ours.labels.tolist()] == [
            tiny_detector.classes[label] for label in full.labels[kept].tolist()]
        assert ours.scores.tolist() == full.scores[kept].tolist() and list(ours.masks) == [full.masks.rles[k]
                                                                                           for k in kept]


def test_classes_that_the_model_does_not_know(run, tiny_detector, tmp_path):
    content = json.loads(tiny_detector.ann_file.read_text())
    content['categories'].append(dict(id=11, name='ring'))
    (tmp_path / 'more.json').write_text(json.dumps(content))
    more = [f'data.test.ann_file={tmp_path}/more.json', 'data.test.classes=[disc,ring]']
    with pytest.raises(ConfigError, match=r"class 'ring' of data.test is none of the 3 that .*tiny.pth was trained on"):
        run('--eval', 'bbox', '--cfg-options', *more)
    run('--show-dir', tmp_path / 'drawn', '--cfg-options', *more)  # what is drawn has the model's names
    assert (tmp_path / 'drawn/a.png').exists()


def test_heads_stay_as_in_the_training(run):
    with pytest.raises(ConfigError, match=r'bbox_head.num_classes = 1: .*trained on 3 classes \(disc, bar, cross\); '
                                          r'leave '
                                          'num_classes as in the training, data.test.classes alone'):
        run('--eval', 'bbox', '--cfg-options', 'data.test.classes=[disc]', 'model.roi_head.bbox_head.num_classes=1')


@pytest.mark.parametrize('ids', [None, [10, 20, 35]])
def test_a_test_file_without_categories(tool, tiny_detector, tmp_path, ids):
    content = json.loads(tiny_detector.ann_file.read_text())
    (tmp_path / 'bare.json').write_text(json.dumps(dict(images=content['images'])))
    saved = load_checkpoint(tiny_detector.checkpoint)
    saved['meta'].update({} if ids is None else dict(category_ids=ids))
    save_checkpoint(saved, tmp_path / 'model.pth')
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter('always')
        tool.main([str(tiny_detector.config), str(tmp_path / 'model.pth'), '--device', 'cpu', '--format-only',
                   '--cfg-options', f'data.test.ann_file={tmp_path}/bare.json', 'data.test.classes=[cross,disc]'])
    written = {row['category_id'] for row in json.loads((tmp_path / 'test/results.bbox.json').read_text())}
    assert written and written <= ({1, 2} if ids is None else {35, 10})
    assert any("bare.json has no 'categories'" in str(one.message) for one in told) == (ids is None)


# --- where things go ---

def test_default_folders_are_beside_the_checkpoint(run, tiny_detector, tmp_path):
    checkpoint = shutil.copy(tiny_detector.checkpoint, tmp_path)
    out = run('--out', '--show-dir', '--report', '--eval', 'bbox', checkpoint=checkpoint)
    assert f'results: {tmp_path}/test/results.pkl' in out and len(load_results(tmp_path / 'test/results.pkl')) == 4
    assert sorted(p.name for p in (tmp_path / 'test/images').rglob('*.*')) == ['a.png', 'b.png', 'c.jpg', 'd.png']
    assert (tmp_path / 'test/report/index.html').exists()
    run('--format-only', checkpoint=checkpoint)
    assert (tmp_path / 'test/results.bbox.json').exists()


def test_images_of_one_name_in_two_folders(run, tiny_detector, tmp_path):
    for folder in ('left', 'right'):
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_detector.images[0], tmp_path / folder / '0.png')
        (tmp_path / f'{folder}.json').write_text(json.dumps(dict(json.loads(tiny_detector.ann_file.read_text()),
                                                                 annotations=[],
            images=[dict(id=1, file_name='0.png', height=96, width=128)])))
    (tmp_path / 'two.py').write_text(tiny_detector.config.read_text() + f"""
part = data['test']
data['test'] = dict(type='ConcatDataset', datasets=[
    dict(part, ann_file='{tmp_path}/' + name + '.json', img_prefix='{tmp_path}/' + name) for name in ('left', 'right')])
""")
    run('--show-dir', tmp_path / 'drawn', config=tmp_path / 'two.py')
    assert sorted(str(p.relative_to(tmp_path / 'drawn')) for p in (tmp_path / 'drawn').rglob('*.png')) == [
        'left/0.png', 'right/0.png']


def test_seconds_of_each_part(run, tmp_path):
    out = run('--eval', 'bbox', '--work-dir', tmp_path)
    line = next(line for line in out.splitlines() if line.startswith('seconds an image: data '))
    parts = json.loads(next(tmp_path.glob('eval_*.json')).read_text())['seconds']
    assert list(parts) == ['data', 'backbone', 'RPN', 'boxes', 'masks', 'output'] and min(parts.values()) > 0
    assert [word for word in line.split() if word in parts] == list(parts)


@pytest.mark.slow
def test_two_processes_give_the_results_of_one(run, tiny_detector, repo_root, tmp_path):
    run('--eval', 'bbox', 'segm', '--out', tmp_path / 'one.json', '--work-dir', tmp_path / 'one')
    command = [
        sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
        str(repo_root / 'tools/test.py'),
        str(tiny_detector.config),
        str(tiny_detector.checkpoint), '--launcher', 'pytorch', '--device', 'cpu', '--eval', 'bbox', 'segm',
        '--out',
        str(tmp_path / 'two.json'), '--work-dir',
        str(tmp_path / 'two')]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert metrics_of(tmp_path / 'one') == metrics_of(tmp_path / 'two')
    assert (tmp_path / 'one.json').read_text() == (tmp_path / 'two.json').read_text()


def test_several_data_sets_one_by_one(run, tiny_detector, tmp_path):
    files = f'data.test.ann_file=[{tiny_detector.ann_file},{tiny_detector.ann_file}]'
    out = run('--eval', 'bbox', '--work-dir', tmp_path, '--cfg-options', files)
    metrics = metrics_of(tmp_path)
    run('--eval', 'bbox', '--work-dir', tmp_path / 'one')
    assert metrics['0_bbox_mAP'] == metrics['1_bbox_mAP'] == metrics_of(tmp_path / 'one')['bbox_mAP']
    assert 'data set 1: 4 images of' in out and '8/8 images' in out
    run('--format-only', '--work-dir', tmp_path / 'written', '--cfg-options', files)
    assert sorted(p.name for p in (tmp_path / 'written').iterdir()) == [
        f'results_{i}.{kind}.json' for i in (0, 1) for kind in ('bbox', 'segm')]


@pytest.mark.parametrize('more', [
    ['--batch-size', '3'], ['--cfg-options', 'data.test.samples_per_gpu=3']])
def test_wrapped_data_sets_in_batches(run, tiny_detector, tmp_path, more):
    text = tiny_detector.config.read_text() + (
        "\ndata['test'] = dict(type='ConcatDataset', datasets=[dict(data['test']), dict(data['test'])])\n")
    (tmp_path / 'concat.py').write_text(text)
    run('--eval', 'bbox', '--work-dir', tmp_path, *more, config=tmp_path / 'concat.py')
    run('--eval', 'bbox', '--work-dir', tmp_path / 'one', '--batch-size', '3')
    assert metrics_of(tmp_path)['1_bbox_mAP'] == pytest.approx(metrics_of(tmp_path / 'one')['bbox_mAP'], abs=.02)


def test_a_config_without_test_data_and_a_checkpoint_in_its_place(run, tiny_detector, tmp_path):
    with pytest.raises(ConfigError, match='config.py has no data.test$'):
        run('--eval', 'bbox', '--cfg-options', 'data.test=None')
    with pytest.raises(ConfigError, match='tiny.pth is no config; it looks like a checkpoint'):
        run('--eval', 'bbox', config=tiny_detector.checkpoint, checkpoint=tiny_detector.config)


def test_several_data_sets_as_one(run, tiny_detector, tmp_path):
    files = f'data.test.ann_file=[{tiny_detector.ann_file},{tiny_detector.ann_file}]'
    run('--eval', 'bbox', 'segm', '--work-dir', tmp_path, '--cfg-options', files, 'data.test.separate_eval=False')
    assert {'bbox_mAP', 'segm_mAP_50'} <= set(metrics_of(tmp_path))


def test_what_cannot_be_evaluated(run, tiny_detector):
    with pytest.raises(UserError, match='RepeatDataset is no data set to evaluate'):
        run('--eval', 'bbox', '--cfg-options', 'data.test={"_delete_": True, "type": "RepeatDataset", "times": 2, '
                                               '"dataset": '
            f'{{"type": "CocoDataset", "ann_file": "{tiny_detector.ann_file}", "classes": ["disc", "bar", "cross"], '
            '"pipeline": []}}')
