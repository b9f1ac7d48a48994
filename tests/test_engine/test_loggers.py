"""The text log in 2.x's form, its JSON twin, TensorBoard's event files, trackers that are not installed."""
import json
import logging
import re
import struct
import sys
import time
import types
from pathlib import Path

import pytest
from toy_training import toy_loader, toy_runner

from boxdet.engine.hooks import EvaluationHook, LrUpdaterHook
from boxdet.engine.loggers import LoggerHook, TensorboardLoggerHook, TextLoggerHook, numbers_of
from boxdet.errors import ConfigError
from boxdet.registry import HOOKS

METRICS = dict(bbox_mAP=0.25, bbox_mAP_copypaste='0.250 0.500')


def train(tmp_path, *hooks, metrics=METRICS, **kwargs):
    evaluation = EvaluationHook(None, toy_loader(5, shuffle=False), lambda *_, **__: metrics, progress=False,
                                by_epoch='max_iters' not in kwargs)
    runner = toy_runner(tmp_path, hooks=[LrUpdaterHook(policy='step', step=[1]), evaluation, *hooks],
                        optimizer_config=dict(grad_clip=dict(max_norm=1.)), **kwargs)
    runner.train()
    return runner


@pytest.fixture
def lines(caplog):
    """The log's messages."""
    logger = logging.getLogger('boxdet')
    logger.propagate = True
    caplog.set_level(logging.INFO, logger='boxdet')
    return lambda: [record.getMessage() for record in caplog.records]


def test_lines_of_an_epoch_training(tmp_path, lines):
    train(tmp_path, TextLoggerHook(interval=2), max_epochs=2)
    found = [line for line in lines() if line.startswith('Epoch')]
    assert len(found) == 6
    assert re.fullmatch(r'Epoch \[1\]\[2/4\]\tlr: 1\.000e-01, eta: 0:00:0\d, time: \d\.\d{3}, data_time: \d\.\d{3}, '
                        r'memory: \d+, loss_cls: \d\.\d{4}, loss_levels: \d\.\d{4}, acc: \d\.\d{4}, loss: \d\.\d{4}, '
                        r'grad_norm: \d\.\d{4}', found[0])
    assert found[2] == 'Epoch(val) [1][3]\tbbox_mAP: 0.2500, bbox_mAP_copypaste: 0.250 0.500'
    assert found[3].startswith('Epoch [2][2/4]\tlr: 1.000e-02, ')


def test_lines_of_an_iteration_training(tmp_path, lines):
    train(tmp_path, TextLoggerHook(interval=3, by_epoch=False), max_iters=6)
    found = [line.partition('\t')[0] for line in lines() if line.startswith('Iter')]
    assert [head for head in found if 'val' not in head] == ['Iter [3/6]', 'Iter [6/6]']
    assert found[0] == 'Iter(val) [1]'


@pytest.mark.parametrize('interval, ignore_last, expected', [
    (3, True, [3, 7]), (3, False, [3, 4, 7, 8]), (50, True, [4, 8]), (1, True, list(range(1, 9)))])
def test_when_an_entry_is_made(tmp_path, interval, ignore_last, expected):
    class Steps(LoggerHook):
        def log(self, runner, entry, step):
            if entry['mode'] == 'train':
                steps.append(step)
    steps = []
    train(tmp_path, Steps(interval=interval, ignore_last=ignore_last), max_epochs=2)
    assert steps == expected


def test_json_log(tmp_path):
    runner = train(tmp_path, TextLoggerHook(interval=2), max_epochs=1)
    head, *entries = [json.loads(line) for line in (tmp_path / f'{runner.timestamp}.log.json').read_text().splitlines()]
    assert head['seed'] == 0 and head['CLASSES'] == ['a', 'b'] and 'PyTorch' in head['env_info']
    assert [(e['mode'], e['epoch'], e['iter']) for e in entries] == [('train', 1, 2), ('train', 1, 4), ('val', 1, 3)]
    assert list(entries[0]) == ['mode', 'epoch', 'iter', 'lr', 'memory', 'data_time', 'loss_cls', 'loss_levels', 'acc',
                                'loss', 'grad_norm', 'time']
    assert entries[0]['lr'] == 0.1 and entries[0]['memory'] > 1 and entries[2]['bbox_mAP'] == 0.25
    assert entries[0]['loss'] == pytest.approx(entries[0]['loss_cls'] + entries[0]['loss_levels'], abs=2e-6)


def test_entries_are_means_since_the_last(tmp_path):
    every, second = [], []

    class Keep(LoggerHook):
        def log(self, runner, entry, step):
            if entry['mode'] == 'train':
                (every if self.interval == 1 else second).append(entry['loss'])
    train(tmp_path, Keep(interval=1), Keep(interval=2), max_epochs=1)
    assert second == pytest.approx([(every[0] + every[1]) / 2, (every[2] + every[3]) / 2])


def test_tensorboard_event_files(tmp_path):
    pytest.importorskip('tensorboard')
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train(tmp_path, TensorboardLoggerHook(interval=2), max_epochs=2)
    events = EventAccumulator(str(tmp_path / 'tf_logs'))
    events.Reload()
    assert set(events.Tags()['scalars']) == {'train/loss_cls', 'train/loss_levels', 'train/acc', 'train/loss',
                                             'train/grad_norm', 'val/bbox_mAP', 'learning_rate'}
    assert [(e.step, e.value) for e in events.Scalars('val/bbox_mAP')] == [(4, 0.25), (8, 0.25)]
    assert [e.step for e in events.Scalars('train/loss')] == [2, 4, 6, 8]


@pytest.mark.parametrize('hook, package', [('WandbLoggerHook', 'wandb'), ('MlflowLoggerHook', 'mlflow'),
                                           ('TensorboardLoggerHook', 'tensorboard')])
def test_trackers_that_are_not_installed(monkeypatch, hook, package):
    name = 'torch.utils.tensorboard' if package == 'tensorboard' else package
    monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ConfigError, match=f'{hook} needs the package .*pip install {package}'):
        HOOKS.build(dict(type=hook))


def test_trackers_get_the_same_numbers(tmp_path, monkeypatch):
    got = dict(wandb=[], mlflow=[])
    wandb = types.SimpleNamespace(init=lambda **kwargs: got['wandb'].append(kwargs), finish=lambda: None,
                                  log=lambda values, step: got['wandb'].append((step, values)))
    mlflow = types.SimpleNamespace(set_experiment=got['mlflow'].append, set_tags=None, log_params=None,
                                   log_metrics=lambda values, step: got['mlflow'].append((step, values)),
                                   end_run=lambda: None)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    monkeypatch.setitem(sys.modules, 'mlflow', mlflow)
    train(tmp_path, HOOKS.build(dict(type='WandbLoggerHook', interval=2, init_kwargs=dict(project='p'))),
          HOOKS.build(dict(type='MlflowLoggerHook', interval=2, exp_name='e')), max_epochs=1)
    assert got['wandb'][0] == dict(project='p', dir=str(tmp_path)) and got['mlflow'][0] == 'e'
    assert got['wandb'][1:] == got['mlflow'][1:] and [step for step, _ in got['wandb'][1:]] == [2, 4, 4]


def test_keywords_of_mmcv_1x(tmp_path, monkeypatch):
    logged, files = [], []
    artifact = types.SimpleNamespace(add_file=lambda path: files.append(Path(path).name))
    wandb = types.SimpleNamespace(
        init=lambda **kwargs: None, finish=lambda: None, Artifact=lambda name, type: artifact,
        log=lambda values, **options: logged.append((values.get('global_step'), options)), log_artifact=files.append)
    monkeypatch.setitem(sys.modules, 'wandb', wandb)
    (tmp_path / 'a.log').write_text('')
    (tmp_path / 'a.pth').write_text('')
    train(tmp_path, HOOKS.build(dict(type='WandbLoggerHook', interval=2, log_artifact=True, with_step=False,
                                     commit=True, reset_flag=True)), max_epochs=1)
    assert logged[0] == (2, dict(commit=True)) and files == ['a.log', artifact]
    with pytest.warns(UserWarning, match='MMDetWandbHook uploads numbers only'):
        hook = HOOKS.build(dict(type='MMDetWandbHook', init_kwargs=dict(project='p'), interval=2, log_checkpoint=True))
    logged.clear()
    train(tmp_path, hook, max_epochs=1)
    assert logged[0] == (None, dict(step=2))
    monkeypatch.setitem(sys.modules, 'mlflow', types.SimpleNamespace())
    with pytest.warns(UserWarning, match='log_model=True. has no effect'):
        HOOKS.build(dict(type='MlflowLoggerHook', log_model=True))


# --- the table of the documentation ---

LOSSES = ('loss_cls', 'loss_levels', 'acc')


def documented(repo_root):
    """{'train': {key: tracker's key or ''}, 'val': ...} of docs/reliability.md, NAME replaced by the toy's names."""
    lines = (repo_root / 'docs/reliability.md').read_text().partition('## What is logged')[2].splitlines()
    table = dict(train={}, val={})
    for row in (line for line in lines if line.startswith('| `')):
        key, tracker, modes, _ = [cell.strip(' `') for cell in row.strip('|').split('|', 3)]
        for mode in modes.split(', '):
            names = ((*LOSSES,) if mode == 'train' else ('bbox_mAP', 'AR@100')) if key == 'NAME' else (key,)
            table[mode].update({key.replace('NAME', name): tracker.replace('NAME', name) for name in names})
    return table


def of_json(folder, table):
    entries = [json.loads(line) for line in next(folder.glob('*.log.json')).read_text().splitlines()][1:]
    return {mode: {frozenset(e) - {'bbox_mAP_copypaste'} for e in entries if e['mode'] == mode} for mode in table}


def of_tensorboard(folder):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(folder / 'tf_logs'))
    events.Reload()
    return set(events.Tags()['scalars'])


def of_wandb(folder):
    """Wait for the end of the offline run, which wandb's own process writes in its own time."""
    until = time.monotonic() + 60
    while True:
        names, ended = read_wandb(next(folder.glob('wandb/offline-run-*/*.wandb')).read_bytes())
        if ended or time.monotonic() > until:
            return names
        time.sleep(0.2)


def read_wandb(content):
    """(keys logged, whether the run ended): LevelDB's log format behind a header of 7 bytes, each record a protobuf."""
    from wandb.proto import wandb_internal_pb2
    place, data, names, ended = 7, b'', set(), False
    while place + 7 < len(content):
        if 32768 - place % 32768 < 7:  # no room for a record's head: the block is filled up
            place += 32768 - place % 32768
        _, length, part = struct.unpack_from('<IHB', content, place)
        data += content[place + 7:place + 7 + length]
        place += 7 + length
        if part in (1, 4):  # a whole record, or the last part of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(data)
            names |= {item.key or item.nested_key[0] for item in record.history.item}
            ended |= record.WhichOneof('record_type') == 'exit'
            data = b''
    return {name for name in names if not name.startswith('_')}, ended


def of_mlflow(folder):
    import mlflow
    client = mlflow.MlflowClient()
    runs = client.search_runs([client.get_experiment_by_name('shapes').experiment_id])
    assert len(runs) == 1 and [m.step for m in client.get_metric_history(runs[0].info.run_id, 'train/loss')] == [2, 4]
    return {name.replace('_at_', '@') for name in runs[0].data.metrics}


@pytest.mark.parametrize('backend', ['json', 'tensorboard', 'wandb', 'mlflow'])
def test_the_table_of_the_documentation(tmp_path, monkeypatch, repo_root, backend):
    """Each backend, the real one, holds the keys that docs/reliability.md names, and no others."""
    table = documented(repo_root)
    assert len(table['train']) == 12 and len(table['val']) == 6
    if backend != 'json':
        pytest.importorskip(backend)
    monkeypatch.setenv('WANDB_MODE', 'offline')
    monkeypatch.setenv('WANDB_SILENT', 'true')
    monkeypatch.setenv('MLFLOW_TRACKING_URI', (tmp_path / 'mlruns').as_uri())
    monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
    hook = dict(json=dict(type='TextLoggerHook'), tensorboard=dict(type='TensorboardLoggerHook'),
                wandb=dict(type='WandbLoggerHook', init_kwargs=dict(project='p')),
                mlflow=dict(type='MlflowLoggerHook', exp_name='shapes'))[backend]
    train(tmp_path, HOOKS.build(dict(hook, interval=2)), metrics={**METRICS, 'AR@100': 0.5}, max_epochs=1)
    if backend == 'json':
        assert of_json(tmp_path, table) == {mode: {frozenset(keys)} for mode, keys in table.items()}
    else:
        found = dict(tensorboard=of_tensorboard, wandb=of_wandb, mlflow=of_mlflow)[backend](tmp_path)
        assert found == {tracker for keys in table.values() for tracker in keys.values() if tracker}


def test_names_for_trackers():
    entry = dict(mode='train', epoch=1, iter=2, lr=0.1, memory=3, data_time=0.1, time=0.2, loss=1., note='text')
    assert numbers_of(entry) == {'train/loss': 1., 'learning_rate': 0.1}


def test_hint_when_the_loader_is_slow(tmp_path, lines, monkeypatch):
    now = [0.]
    monkeypatch.setattr('boxdet.engine.train_loop.time', types.SimpleNamespace(perf_counter=lambda: now[0]))

    class Slow(list):
        sampler = dataset = None

        def __iter__(self):
            for batch in super().__iter__():
                now[0] += 1
                yield batch
    toy_runner(tmp_path, 2, hooks=[TextLoggerHook(interval=2)], loader=Slow(toy_loader())).train()
    assert len([line for line in lines() if 'data.workers_per_gpu may help' in line]) == 1
