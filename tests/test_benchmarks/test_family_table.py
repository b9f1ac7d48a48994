"""benchmarks/family_table.py: what it runs, in which order, and the table that it writes."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from boxdet.checkpoints.io import load_state, save_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError, DataError, UserError
from boxdet.models import build_detector

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope='module')
def families():
    spec = importlib.util.spec_from_file_location('family_table', ROOT / 'benchmarks/family_table.py')
    module = sys.modules['family_table'] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_member_has_a_config_and_known_metrics(families):
    shown = dict(bbox='bbox_mAP', segm='segm_mAP', keypoints='keypoints_mAP', proposal_fast='AR@100')
    assert set(shown.values()) <= set(families.COLUMNS.values()) and len(families.MEMBERS) >= 20
    for name, member in families.MEMBERS.items():
        cfg = load_config(families.config_of(name))
        assert not member.needs or member.needs in families.MEMBERS
        assert set(member.metrics) <= set(shown)
        assert ('segm' in member.metrics) == bool(cfg.model.get('roi_head', {}).get('mask_head')), name


def test_what_a_member_builds_on_comes_first(families):
    assert families.in_order(['soft_nms', 'fast']) == ['faster', 'rpn', 'fast', 'soft_nms']
    assert families.in_order(None) == list(families.MEMBERS)
    place = {name: i for i, name in enumerate(families.MEMBERS)}
    assert all(place[member.needs] < place[name] for name, member in families.MEMBERS.items() if member.needs)
    with pytest.raises(ConfigError, match="did you mean 'cascade'"):
        families.parse_args(['--only', 'cascde'])


def test_the_options_give_a_config_that_holds(families, tmp_path):
    args = families.parse_args(['--out', str(tmp_path), '--data', str(tmp_path / 'data'), '--epochs', '3'])
    for name, epochs in (('fast', 3), ('dcn', 4), ('fpg', 4)):
        cfg = load_config(families.config_of(name), families.options_of(name, args, split='train'))
        assert cfg.runner.max_epochs == cfg.checkpoint_config.interval == epochs
        assert cfg.data.test.img_prefix == f'{tmp_path}/data/train/'
        assert cfg.data.val.img_prefix == f'{tmp_path}/data/val/'
    assert load_config(families.config_of('fast'), families.options_of('fast', args)).data.train.proposal_file == str(
        tmp_path / 'rpn/proposals_train.pkl')


def test_bodies_are_the_named_parts_of_the_demos_model(families, tmp_path):
    demo = tmp_path / 'demo.pth'
    args = families.parse_args(['--out', str(tmp_path / 'out'), '--body', str(demo)])
    (tmp_path / 'out').mkdir()
    assert families.body_for('vgg', args) == []
    with pytest.raises(UserError, match='demo.pth is not there: run `python tools/demo.py`'):
        families.body_for('faster', args)
    keys = ('backbone.conv1.weight', 'neck.x', 'rpn_head.y', 'roi_head.z')
    save_checkpoint(dict(meta={}, state_dict={key: torch.ones(1) for key in keys}), demo)
    for name, expected in (('faster', keys[:2]), ('libra', ('backbone.conv1.weight', 'neck.0.x'))):
        option, path = families.body_for(name, args)
        assert option == '--load-from' and tuple(load_state(path)) == expected


@pytest.mark.parametrize('name', ['faster', 'libra'])  # libra's neck is a list
def test_members_have_a_body_as_thin_as_the_demos(families, name):
    demo = load_config(ROOT / 'configs/shapes/mask_rcnn_r18w32_fpn_shapes.py').model
    model = load_config(families.config_of(name), families.demo_body(name)).model
    assert model.backbone == demo.backbone
    assert (model.neck[0] if name == 'libra' else model.neck).in_channels == demo.neck.in_channels


def saved(out: Path, name: str, metrics: dict, **changes) -> None:
    result = dict(metrics=metrics, images=1000, epochs=1, scratch_epochs=4, body='latest.pth', minutes=1.25,
                  megabytes=700.4) | changes
    (out / name).mkdir(parents=True)
    (out / name / 'result.json').write_text(json.dumps(result))


def test_the_table_goes_between_its_markers(families, tmp_path):
    saved(tmp_path, 'mask', dict(bbox_mAP=0.5, bbox_mAP_75=0.4, segm_mAP=0.3, segm_mAP_75=0.25, other=1))
    saved(tmp_path, 'faster', dict(bbox_mAP=0.4567, bbox_mAP_75=0.1))
    saved(tmp_path, 'soft_nms', dict(bbox_mAP=0.46, bbox_mAP_75=0.11), minutes=None)
    page = tmp_path / 'results.md'
    page.write_text(f'before\n{families.START}\nold\n{families.END}\nafter\n')
    families.main(['--out', str(tmp_path), '--table', '--results', str(page)])
    text = page.read_text()
    assert text.startswith(f'before\n{families.START}\n') and text.endswith(f'\n{families.END}\nafter\n')
    assert '\nold\n' not in text
    rows = [line for line in text.splitlines() if line.startswith('|')]
    assert rows[0] == ('| member | body | AR | box | box AP75 | mask | mask AP75 | keypoint | keypoint AP75 | minutes '
                       '| '
                       'MB |')
    assert rows[2:] == ['| Faster R-CNN | demo |  | 0.457 | 0.100 |  |  |  |  | 1.2 | 700 |',
                        '| Mask R-CNN | demo |  | 0.500 | 0.400 | 0.300 | 0.250 |  |  | 1.2 | 700 |',
                        '| Faster R-CNN with soft-NMS | demo |  | 0.460 | 0.110 |  |  |  |  |  | 700 |']
    assert 'and get one epoch; the others start from nothing and get 4 epochs, as do' in text.replace('\n', ' ')
    saved(tmp_path / 'other', 'faster', dict(bbox_mAP=0.2), images=500)
    families.main(['--out', str(tmp_path / 'other'), str(tmp_path), '--table', '--results', str(page)])
    text = page.read_text()
    assert text.index('| Faster R-CNN | demo |  | 0.200') < text.index('| Faster R-CNN | demo |  | 0.457')
    assert 'on 500 images' in text and 'on 1,000 images' in text and '\nNot trained: Cascade R-CNN, RPN alone, ' in text
    page.write_text('no markers')
    with pytest.raises(DataError, match='markers'):
        families.main(['--out', str(tmp_path), '--table', '--results', str(page)])


def test_results_of_two_recipes_make_no_table(families, tmp_path):
    saved(tmp_path, 'faster', dict(bbox_mAP=0.4))
    saved(tmp_path, 'cascade', dict(bbox_mAP=0.4), epochs=12)
    with pytest.raises(DataError, match='2 recipes'):
        families.table_of(families.read_results(tmp_path))


def test_a_failing_command_is_told_with_its_last_lines(families, tmp_path):
    log = tmp_path / 'a/log.txt'
    with pytest.raises(UserError, match='status 3(.|\n)*here it broke'):
        families.run(['-c', 'print("here it broke"); raise SystemExit(3)'], log)
    cost = families.run(['-c', 'x = bytearray(200 << 20); sum(i for i in range(2_000_000))'], log)
    assert cost.megabytes > 200 and cost.seconds > 0


def test_one_failure_does_not_stop_the_others(families, tmp_path, monkeypatch, capsys):
    def measure(name, args):
        if name == 'rpn':
            raise UserError('no memory')
        (args.out / name).mkdir(parents=True)
        return dict(metrics=dict(bbox_mAP=0.5), images=8, epochs=1, scratch_epochs=4, body='a.pth', minutes=1.0,
                    megabytes=500.0)

    monkeypatch.setattr(families, 'draw_data_set', lambda args: None)
    monkeypatch.setattr(families, 'measure', measure)
    page = tmp_path / 'results.md'
    page.write_text(f'{families.START}\n{families.END}\n')
    with pytest.raises(UserError, match='without rpn, fast'):
        families.main(['--out', str(tmp_path), '--only', 'fast', 'faster', 'ohem', '--results', str(page)])
    said = capsys.readouterr()
    assert 'rpn failed: no memory' in said.err and 'fast failed: it needs rpn' in said.err
    rows = [line.split('|')[1].strip() for line in page.read_text().splitlines() if line.startswith('|')]
    assert rows == ['member', '---', 'Faster R-CNN', 'OHEM']


@pytest.mark.slow
def test_from_training_to_the_table(tmp_path):
    """The smallest run there is: train, judge, judge with the same weights, write; and go on without doing it again."""
    page, out = tmp_path / 'results.md', tmp_path / 'out'
    page.write_text('<!-- family table: start -->\n<!-- family table: end -->\n')
    draw = [str(ROOT / 'tools/make_shapes.py'), '--out', str(out / 'data'), '--train', '4', '--val', '2']
    subprocess.run([sys.executable, *draw], check=True, capture_output=True)
    model = build_detector(load_config(ROOT / 'configs/shapes/mask_rcnn_r18w32_fpn_shapes.py').model)
    save_checkpoint(dict(meta={}, state_dict=model.state_dict()), out / 'demo.pth')
    command = [sys.executable, str(ROOT / 'benchmarks/family_table.py'), '--out', str(out), '--data', str(out / 'data'),
               '--body', str(out / 'demo.pth'), '--only', 'soft_nms', '--results', str(page)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    results = [json.loads((out / name / 'result.json').read_text()) for name in ('faster', 'soft_nms')]
    assert all(0 <= result['metrics']['bbox_mAP'] <= 1 and result['megabytes'] > 100 for result in results)
    assert results[0]['minutes'] > 0 and results[1]['minutes'] is None and not (out / 'soft_nms/latest.pth').exists()
    assert '| Faster R-CNN with soft-NMS |' in page.read_text()
    trained = (out / 'faster/latest.pth').stat().st_mtime_ns
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0 and (out / 'faster/latest.pth').stat().st_mtime_ns == trained
