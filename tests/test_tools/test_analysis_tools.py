"""The analysis tools on results of real images (coco_mini, where it is) and of generated ones, and their images."""

import importlib.util
import json
import subprocess
import sys
import warnings

import cv2
import numpy as np
import pytest
import torch

from boxdet.errors import ConfigError, DataError, UserError
from boxdet.evaluation import evaluate, format_results, save_results
from boxdet.structures.instances import Instances

TOOLS = ('analysis_tools/eval_metric', 'analysis_tools/analyze_logs', 'analysis_tools/analyze_results',
         'analysis_tools/confusion_matrix', 'analysis_tools/coco_error_analysis', 'analysis_tools/benchmark',
         'misc/browse_dataset')


@pytest.fixture
def run(repo_root, capsys):
    """Run a tool in this process; returns what it printed."""
    def call(name: str, *arguments) -> str:
        spec = importlib.util.spec_from_file_location(f'boxdet_{name}', repo_root / f'tools/{name}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            module.main([str(a) for a in arguments])
        return capsys.readouterr().out
    return call


def near_truth(dataset) -> list[Instances]:
    """The ground truth as results, moved a little, with the first object of every third image missing."""
    rng, results = np.random.default_rng(0), []
    for index in range(len(dataset)):
        info = dataset.get_ann_info(index)
        boxes = info['bboxes'] + rng.normal(0, 2, info['bboxes'].shape)
        image = dataset.coco.imgs[dataset.img_ids[index]]
        masks = None
        if info['masks']:
            from boxdet.structures.masks import BitmapMasks
            masks = BitmapMasks.from_coco(info['masks'], image['height'], image['width']).to_rle()
        result = Instances((image['height'], image['width']), len(dataset.CLASSES),
                           bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(info['labels']),
                           scores=torch.tensor(rng.uniform(0.35, 1, len(boxes)), dtype=torch.float32),
                           **({} if masks is None else dict(masks=masks)))
        results.append(result[1:] if index % 3 == 0 else result)
    return results


@pytest.fixture(scope='module')
def generated(tiny_detector, tmp_path_factory):
    """(config, dataset, results, path of results.pkl) of the tiny detector's four images."""
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import load_config
    dataset = build_dataset(load_config(tiny_detector.config).data.test, dict(test_mode=True))
    results = near_truth(dataset)
    path = tmp_path_factory.mktemp('results') / 'r.pkl'
    save_results(results, path)
    return tiny_detector.config, dataset, results, path


@pytest.fixture(scope='module')
def real(shared_data, repo_root, tmp_path_factory):
    """The same of coco_mini's validation images, under the stock Mask R-CNN config."""
    from boxdet.datasets import build_dataset
    from boxdet.engine.config import load_config
    folder, data = tmp_path_factory.mktemp('real'), shared_data / 'coco_mini'
    parts = ', '.join(f"{split}=dict(ann_file='{data}/annotations/instances_{name}.json', img_prefix='{data}/{name}/')"
                      for split, name in (('train', 'train2017'), ('val', 'val2017'), ('test', 'val2017')))
    config = folder / 'config.py'
    config.write_text(f"_base_ = '{repo_root}/configs/mask_rcnn/mask_rcnn_r50_fpn_1x_coco.py'\n"
                      f'data = dict(workers_per_gpu=0, {parts})\n')
    dataset = build_dataset(load_config(config).data.test, dict(test_mode=True))
    results = near_truth(dataset)
    save_results(results, folder / 'r.pkl')
    return config, dataset, results, folder / 'r.pkl'


@pytest.fixture(params=['generated', 'real'])
def case(request):
    return request.getfixturevalue(request.param)


# --- the command lines ---

@pytest.mark.parametrize('name', TOOLS)
def test_help_teaches(repo_root, name):
    done = subprocess.run([sys.executable, str(repo_root / f'tools/{name}.py'), '--help'], capture_output=True,
                          text=True)
    assert done.returncode == 0 and 'usage:' in done.stdout
    assert f'python tools/{name}.py' in done.stdout  # an example


@pytest.mark.parametrize('name, arguments, message', [
    ('analysis_tools/eval_metric', ['c.py', 'r.pkl'], 'either --eval METRIC'),
    ('analysis_tools/eval_metric', ['absent.py', 'r.pkl', '--eval', 'bbox'], 'absent.py'),
    ('analysis_tools/confusion_matrix', ['c.py', 'r.pkl', 'o', '--score-thr', '3'], '--score-thr 3.0: it is between'),
    ('analysis_tools/analyze_results', ['c.py', 'r.pkl', 'o', '--topk', '0'], '--topk 0: it is 1 at least'),
    ('analysis_tools/coco_error_analysis', ['a.json', 'b.json', 'o', '--ann', 'x.json'],
     '2 result files for 1 --types'),
    ('analysis_tools/coco_error_analysis', ['a.json', 'o', '--ann', 'absent.json'], 'absent.json'),
    ('analysis_tools/coco_error_analysis', ['a.json', 'o', '--areas', '9', '4', '7'], '--areas 9 4 7'),
    ('analysis_tools/analyze_logs', ['plot_curve', 'absent.json'], 'absent.json: No such file'),
    ('analysis_tools/analyze_logs', ['plot_curve', 'a', '--legend', 'x', 'y'], '--legend has 2 names'),
    ('analysis_tools/benchmark', ['c.py', 'x.pth', '--max-iter', '0'], '--max-iter 0: it is 1 at least'),
    ('misc/browse_dataset', ['c.py', '--not-show'], '--not-show without --output-dir')])
def test_wrong_use(run, name, arguments, message):
    with pytest.raises(UserError) as error:
        run(name, *arguments)
    assert message in str(error.value)


def test_an_error_is_one_line_and_status_2(repo_root, generated, tmp_path):
    (tmp_path / 'r.pkl').write_bytes(b'no pickle')
    tool = repo_root / 'tools/analysis_tools/confusion_matrix.py'
    done = subprocess.run([sys.executable, str(tool), str(generated[0]), str(tmp_path / 'r.pkl'), str(tmp_path / 'o')],
                          capture_output=True, text=True)
    assert done.returncode == 2 and 'Traceback' not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith('error: ') and 'r.pkl: not a results file' in done.stderr


def test_results_of_other_data_are_refused(run, generated, tmp_path):
    config, _, results, _ = generated
    save_results(results[:2], tmp_path / 'r.pkl')
    for name in ('confusion_matrix', 'analyze_results'):
        with pytest.raises(DataError, match='2 results for a data set of 4 images'):
            run(f'analysis_tools/{name}', config, tmp_path / 'r.pkl', tmp_path / 'o')


# --- saved results ---

def test_eval_metric(run, case, tmp_path):
    config, dataset, results, path = case
    out = run('analysis_tools/eval_metric', config, path, '--eval', 'bbox', 'segm', '--out', tmp_path / 'm.json',
              '--eval-options', 'classwise=True')
    metric = json.loads((tmp_path / 'm.json').read_text())['metric']
    expected = evaluate(dataset, results, ['bbox', 'segm'], logger='silent', classwise=True)
    assert metric == expected and 0.3 < metric['bbox_mAP'] < 1 and f"bbox_mAP: {metric['bbox_mAP']:.4f}" in out
    with pytest.raises(ConfigError, match=r"--eval-options.clsswise: .*did you mean 'classwise'"):
        run('analysis_tools/eval_metric', config, path, '--eval', 'bbox', '--eval-options', 'clsswise=True')
    run('analysis_tools/eval_metric', config, path, '--format-only', '--eval-options', f'jsonfile_prefix={tmp_path}/s')
    assert json.loads((tmp_path / 's.segm.json').read_text())[0]['score'] > 0.3


def test_confusion_matrix(run, case, tmp_path):
    config, dataset, results, path = case
    out = run('analysis_tools/confusion_matrix', config, path, tmp_path)
    found = json.loads((tmp_path / 'confusion_matrix.json').read_text())
    matrix = np.array(found['matrix'])
    objects = np.concatenate([dataset.get_ann_info(k)['labels'] for k in range(len(dataset))])
    assert found['classes'][-1] == 'background' and matrix.sum() == len(objects) + matrix[-1].sum()
    assert matrix.trace() > 0.6 * len(objects) and f'{len(objects)} objects: {matrix.trace()} found' in out
    image = cv2.imread(str(tmp_path / 'confusion_matrix.png'))
    assert image.shape[0] > 500 and len(np.unique(image.reshape(-1, 3), axis=0)) > 20


def test_thresholds_of_the_confusion_matrix(run, generated, tmp_path):
    config, dataset, _, path = generated
    run('analysis_tools/confusion_matrix', config, path, tmp_path, '--score-thr', '1', '--nms-iou-thr', '0.5',
        '--color-theme', 'viridis')
    nothing = np.array(json.loads((tmp_path / 'confusion_matrix.json').read_text())['matrix'])
    assert nothing[:, :-1].sum() == 0 and nothing[:, -1].sum() == 8  # objects
    with pytest.raises(ConfigError, match="unknown color theme 'plasm'; did you mean 'plasma'"):
        run('analysis_tools/confusion_matrix', config, path, tmp_path, '--color-theme', 'plasm')


def test_analyze_results(run, case, tmp_path):
    config, dataset, results, path = case
    run('analysis_tools/analyze_results', config, path, tmp_path, '--topk', '2', '--show-score-thr', '0.3')
    scores = json.loads((tmp_path / 'scores.json').read_text())
    ranked = list(scores.values())
    assert ranked == sorted(ranked, reverse=True) and ranked[0] > ranked[-1]
    for kind, expected in (('good', ranked[:2]), ('bad', ranked[-2:])):
        files = sorted((tmp_path / kind).iterdir())
        assert len(files) == 2
        assert sorted(float(f.stem.rpartition('_')[2]) for f in files) == pytest.approx(sorted(expected), abs=6e-4)
        assert cv2.imread(str(files[0])).shape[1] > 900  # two images side by side


def test_coco_error_analysis(run, generated, tmp_path):
    _, dataset, results, _ = generated
    format_results(dataset, results, str(tmp_path / 'r'))
    for kind, extra in (('bbox', []), ('segm', ['--extraplots'])):
        out = run('analysis_tools/coco_error_analysis', tmp_path / f'r.{kind}.json', tmp_path / 'out', '--ann',
                  dataset.ann_file, '--types', kind, *extra)
        assert f'{kind}, all classes: C75' in out
        areas = json.loads((tmp_path / f'out/{kind}/error_analysis.json').read_text())
        for one in areas.values():
            values = list(one['all'].values())
            assert values == sorted(values) and values[-1] == 1 and list(one['all'])[0] == 'C75'
        assert {'allclass', *dataset.CLASSES} == set(areas)
        assert {f.name for f in (tmp_path / f'out/{kind}').iterdir()} == {
            f'{name}{end}.png' for name in areas for end in (('', '-bars') if extra else ('',))} | {
                'error_analysis.json', *(['object-sizes.png'] if extra else [])}
    with pytest.raises(DataError, match='holds no masks; --types segm needs'):
        run('analysis_tools/coco_error_analysis', tmp_path / 'r.bbox.json', tmp_path / 'o', '--types', 'segm', '--ann',
            dataset.ann_file)
    (tmp_path / 'wrong.json').write_text('[{"image_id": 99, "category_id": 5, "score": 1, "bbox": [0, 0, 1, 1]}]')
    with pytest.raises(DataError, match='wrong.json: row 0 is of image_id 99, which the annotations do not have'):
        run('analysis_tools/coco_error_analysis', tmp_path / 'wrong.json', tmp_path / 'o', '--ann', dataset.ann_file)


@pytest.mark.slow
def test_coco_error_analysis_of_real_images(run, real, tmp_path):
    _, dataset, results, _ = real
    format_results(dataset, results, str(tmp_path / 'r'))
    out = run('analysis_tools/coco_error_analysis', tmp_path / 'r.bbox.json', tmp_path / 'out', '--ann',
              dataset.ann_file)
    areas = json.loads((tmp_path / 'out/bbox/error_analysis.json').read_text())
    assert 'bbox, all classes: C75' in out and set(areas) <= {'allclass', *dataset.CLASSES}
    assert areas['allclass']['all']['C50'] > 0.8 and \
        {f'{n}.png' for n in areas} < {f.name for f in (tmp_path / 'out/bbox').iterdir()}


# --- logs ---

@pytest.fixture
def log(tmp_path):
    rows = [dict(env_info={}, seed=0)]
    for epoch in (1, 2, 3):
        rows += [dict(mode='train', epoch=epoch, iter=i, lr=0.01, time=5. if i == 10 else 0.1 * epoch, data_time=0.01,
                      loss=2 / (epoch + i / 30), loss_cls=1 / (epoch + i / 30)) for i in (10, 20, 30)]
        rows.append(dict(mode='val', epoch=epoch, iter=5, lr=0.01, bbox_mAP=0.1 * epoch))
    path = tmp_path / 'run/x.log.json'
    path.parent.mkdir()
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def test_curves_of_logs(run, log, tmp_path):
    run('analysis_tools/analyze_logs', 'plot_curve', log, '--keys', 'loss', 'loss_cls', '--out', tmp_path / 'a.png')
    run('analysis_tools/analyze_logs', 'plot_curve', log, log, '--legend', 'one', 'two', '--start-epoch', '2',
        '--style',
        'dark', '--title', 'T', '--out', tmp_path / 'b.svg')
    assert cv2.imread(str(tmp_path / 'a.png')).shape[1] > 800
    assert b'<svg' in (tmp_path / 'b.svg').read_bytes() and sorted(f.suffix for f in tmp_path.iterdir()
                                                                   if f.is_file()) == [
        '.png', '.svg']
    with pytest.raises(DataError, match="no 'bbox_map' in it from epoch 1 on; did you mean 'bbox_mAP'"):
        run('analysis_tools/analyze_logs', 'plot_curve', log, '--keys', 'bbox_map', '--out', tmp_path / 'c.png')
    with pytest.raises(DataError, match="figures have no format '.xyz'"):
        run('analysis_tools/analyze_logs', 'plot_curve', log, '--out', tmp_path / 'c.xyz')
    with pytest.raises(UserError, match='cannot open a window'):
        run('analysis_tools/analyze_logs', 'plot_curve', log)


def test_time_of_iterations(run, log):
    out = run('analysis_tools/analyze_logs', 'cal_train_time', log)
    assert 'slowest epoch 3, average time is 0.3000' in out and 'fastest epoch 1, average time is 0.1000' in out
    assert 'time std over epochs is 0.0816' in out and 'average iter time: 0.2000 s/iter' in out
    out = run('analysis_tools/analyze_logs', 'cal_train_time', log, '--include-outliers')
    assert 'average iter time: 1.8000 s/iter' in out


def test_an_unfinished_epoch_is_marked(run, log, tmp_path):
    rows = log.read_text().splitlines()
    assert 'is unfinished' not in run('analysis_tools/analyze_logs', 'cal_train_time', log)
    last = max(k for k, row in enumerate(rows) if json.loads(row).get('mode') == 'train')
    (tmp_path / 'cut.log.json').write_text('\n'.join(rows[:last]))
    for task in (['cal_train_time'], ['plot_curve', '--keys', 'loss', '--out', tmp_path / 'a.png']):
        out = run('analysis_tools/analyze_logs', task[0], tmp_path / 'cut.log.json', *task[1:])
        assert 'cut.log.json: epoch 3 is unfinished, the log ends at ' in out
    assert 'slowest epoch 3 (unfinished), average' in run(
        'analysis_tools/analyze_logs', 'cal_train_time', tmp_path / 'cut.log.json')


# --- models and data sets ---

def test_benchmark(run, tiny_detector, tmp_path):
    out = run('analysis_tools/benchmark', tiny_detector.config, tiny_detector.checkpoint, '--device', 'cpu',
              '--max-iter', '4',
              '--repeat-num', '2', '--log-interval', '2', '--fuse-conv-bn', '--out', tmp_path / 'b.json')
    told = json.loads((tmp_path / 'b.json').read_text())
    assert told['network_fps'] >= told['whole_fps'] > 0 and told['memory_mb'] > 50 and told['images'] == 3
    assert list(told['seconds_an_image']) == ['data', 'backbone', 'RPN', 'boxes', 'masks', 'output']
    assert 'seconds an image: data ' in out
    assert len(told['network_fps_each']) == 2 and '2 images, network' in out and 'peak memory' in out


@pytest.mark.parametrize('poly', [True, False])
def test_browse_dataset_on_real_images(run, real, tmp_path, poly):
    options = [] if poly else ['--cfg-options', 'data.train.pipeline.1.poly2mask=False', '--original']
    out = run('misc/browse_dataset', real[0], '--output-dir', tmp_path, '--not-show', '--number', '3', *options)
    files = sorted(tmp_path.iterdir(), key=lambda f: f.stem[-1])
    assert len(files) == 3 and '3 images' in out and [f.stem[-2:] for f in files] == ['_0', '_1', '_2']
    width = cv2.imread(str(files[0])).shape[1]
    assert (width >= 800) == poly  # as the pipeline resized it, or as it is stored


_WRAPPED = '''
piece = dict(type='CocoDataset', ann_file='FOLDER/ann.json', img_prefix='FOLDER/images/',
             classes=('disc', 'bar', 'cross'),
             pipeline=[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
                       dict(type='RandomFlip', flip_ratio=1.0), dict(type='Normalize', mean=[0, 0, 0], std=[1, 1, 1]),
                       dict(type='DefaultFormatBundle'),
                       dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])])
data = dict(train=dict(type='RepeatDataset', times=2, dataset=dict(type='ConcatDataset', datasets=[piece, piece])))
'''


def test_browse_dataset_walks_through_wrappers(run, tiny_detector, tmp_path):
    config = tmp_path / 'c.py'
    config.write_text(_WRAPPED.replace('FOLDER', str(tiny_detector.folder)))
    run('misc/browse_dataset', config, '--output-dir', tmp_path / 'all', '--not-show')
    files = {int(f.stem.rpartition('_')[2]): cv2.imread(str(f)) for f in (tmp_path / 'all').iterdir()}
    assert sorted(files) == list(range(16)) and np.array_equal(files[1], files[5])
    plain = cv2.imread(str(tiny_detector.images[0]))
    difference = np.abs(files[0].astype(int) - plain[:, ::-1]).max(axis=2)
    assert 0.05 < (difference > 30).mean() < 0.9  # the mirrored image, with objects drawn on part of it
    with pytest.raises(DataError, match="the sample has no 'gt_bboxes'"):
        run('misc/browse_dataset', config, '--output-dir', tmp_path / 'x', '--not-show', '--skip-type',
            'LoadAnnotations',
            'Normalize', 'DefaultFormatBundle', 'Collect')


def test_browse_dataset_without_a_display_says_so(run, tiny_detector, tmp_path, monkeypatch):
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    config = tmp_path / 'c.py'
    config.write_text(_WRAPPED.replace('FOLDER', str(tiny_detector.folder)))
    with pytest.raises(UserError, match='cannot open a window'):
        run('misc/browse_dataset', config)


@pytest.mark.slow
def test_log_and_speed_of_a_training_on_real_images(run, repo_root, shared_data, tiny_detector, tmp_path):
    data, classes = shared_data / 'coco_mini', "classes=('person', 'car', 'chair')"
    steps = """[dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
        dict(type='Resize', img_scale=(160, 128), keep_ratio=True), dict(type='RandomFlip', flip_ratio=0.5),
        dict(type='Normalize', **norm), dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
        dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'])]"""
    (tmp_path / 'c.py').write_text(
        tiny_detector.config.read_text().replace('init_cfg=dict(type=', 'init_cfg=None and dict(type=')
        + f"""
data['train'] = dict(type='CocoDataset', ann_file='{data}/annotations/instances_train2017.json',
                     img_prefix='{data}/train2017/', {classes}, pipeline={steps})
data['test'].update(ann_file='{data}/annotations/instances_val2017.json', img_prefix='{data}/val2017/', {classes})
data['val'] = data['test']
model['train_cfg'] = dict(
    rpn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.7, neg_iou_thr=0.3, min_pos_iou=0.3),
             sampler=dict(type='RandomSampler', num=32, pos_fraction=0.5, add_gt_as_proposals=False),
             allowed_border=-1),
    rpn_proposal=dict(nms_pre=50, max_per_img=20, nms=dict(type='nms', iou_threshold=0.7), min_bbox_size=0),
    rcnn=dict(assigner=dict(type='MaxIoUAssigner', pos_iou_thr=0.5, neg_iou_thr=0.5, min_pos_iou=0.5),
              sampler=dict(type='RandomSampler', num=16, pos_fraction=0.25), mask_size=28))
optimizer = dict(type='SGD', lr=0.001)
optimizer_config = dict(grad_clip=None)
lr_config = dict(policy='step', step=[1])
runner = dict(type='EpochBasedRunner', max_epochs=1)
checkpoint_config = dict(interval=1)
log_config = dict(interval=5, hooks=[dict(type='TextLoggerHook')])
""")
    run('train', tmp_path / 'c.py', '--work-dir', tmp_path / 'work', '--device', 'cpu', '--seed', '0')
    log, = (tmp_path / 'work').glob('*.log.json')
    run('analysis_tools/analyze_logs', 'plot_curve', log, '--keys', 'loss', 'loss_mask', '--out', tmp_path / 'a.png')
    assert cv2.imread(str(tmp_path / 'a.png')).shape[1] > 800
    assert 'average iter time' in run('analysis_tools/analyze_logs', 'cal_train_time', log)
    out = run('analysis_tools/benchmark', tmp_path / 'c.py', tmp_path / 'work/latest.pth', '--device', 'cpu',
              '--max-iter', '6',
              '--log-interval', '3')
    assert 'peak memory' in out
