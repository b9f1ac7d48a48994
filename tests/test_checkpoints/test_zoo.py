"""Weights by the name of their config, from a server on the loopback."""
import hashlib
import importlib.util
import json
import re
import subprocess
import sys
import warnings
from collections import Counter

import cv2
import pytest
import torch

from boxdet.apis import init_detector
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import find_checkpoint, load_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError, ConfigError

NAME = 'tiny_mask_rcnn'


@pytest.fixture
def script(repo_root):
    """Load a command line of the checkout as a module."""
    def load(path):
        spec = importlib.util.spec_from_file_location('script', repo_root / path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module
    return load


@pytest.fixture
def served(server, tmp_path, monkeypatch, tiny_detector):
    """A zoo of one entry, ``NAME``: its config is in the working folder, its weights are on ``server``."""
    content = tiny_detector.checkpoint.read_bytes()
    file = f'tiny-{hashlib.sha256(content).hexdigest()[:8]}.pth'
    server.files[file] = content
    server.home, server.target = tmp_path / 'home', tmp_path / 'home/checkpoints' / file
    server.entry = dict(config=f'own/{NAME}.py', weights=server.url + file, project='boxdet', metrics=dict(box=65.0))
    (tmp_path / 'configs/own').mkdir(parents=True)
    (tmp_path / f'configs/own/{NAME}.py').write_text(f'_base_ = {str(tiny_detector.config)!r}\n')
    monkeypatch.setattr(zoo, 'entries', lambda: {NAME: server.entry})
    monkeypatch.setenv('BOXDET_HOME', str(server.home))
    monkeypatch.chdir(tmp_path)
    return server


def ask():
    return find_checkpoint(f'zoo://{NAME}')


# --- the download ---

def test_fresh_then_at_hand(served):
    assert ask() == ask() == served.target
    assert served.target.read_bytes() == served.files[served.target.name] and len(served.asked) == 1


def test_interrupted_and_resumed(served):
    served.breaks_off = 1000
    with pytest.raises(CheckpointError, match=f'broke off after 1000 of .*put it at {served.target} and start again'):
        ask()
    assert not served.target.exists()
    served.breaks_off = 0
    assert load_checkpoint(f'zoo://{NAME}')['meta']['CLASSES'] == ('disc', 'bar', 'cross')
    assert [begin for _, begin in served.asked] == [None, 'bytes=1000-']


def test_redirected(served):
    served.entry['weights'] = served.url + 'moved/' + served.target.name
    assert ask() == served.target and len(served.asked) == 2


def test_what_fails_is_one_line_and_leaves_nothing(served):
    served.files[served.target.name] = b'of another training'
    with pytest.raises(CheckpointError, match='its SHA-256 begins with .* is damaged or was changed; fetch it'):
        ask()
    served.files.clear()
    with pytest.raises(CheckpointError, match=f'404: Not Found; fetch it elsewhere, put it at {served.home}/'):
        ask()
    served.entry['weights'] = f'http://127.0.0.1:9/{served.target.name}'
    with pytest.raises(CheckpointError, match=f'Connection refused; fetch it elsewhere, put it at {served.target} and'):
        ask()
    assert list(served.target.parent.iterdir()) == []


def test_a_name_that_tells_an_md5(served, tiny_detector):
    """detectron2's: model_final_721ade.pkl. It is resumed and checked as the others are."""
    content = tiny_detector.checkpoint.read_bytes()
    served.files['model_final.pkl'] = content
    served.entry.update(weights=served.url + 'model_final.pkl', md5=hashlib.md5(content).hexdigest()[:6])
    served.breaks_off = 1000
    with pytest.raises(CheckpointError, match='broke off'):
        ask()
    served.breaks_off = 0
    assert ask().read_bytes() == content and served.asked[-1][1] == 'bytes=1000-'
    ask().unlink()
    served.entry['md5'] = '000000'
    with pytest.raises(CheckpointError, match=r'its MD5 begins with \w{6}, and its name says 000000: it is damaged'):
        ask()


def test_what_was_put_there_by_hand_serves_offline_and_read_only(served, monkeypatch):
    served.entry['weights'] = f'http://127.0.0.1:9/{served.target.name}'
    served.target.parent.mkdir(parents=True)
    served.target.write_bytes(served.files[served.target.name])
    served.target.parent.chmod(0o500)
    before = served.target.parent.stat().st_mtime_ns  # root may write there all the same
    assert init_detector(NAME, 'zoo', device='cpu').CLASSES == ('disc', 'bar', 'cross')
    assert served.target.parent.stat().st_mtime_ns == before and not served.asked


def test_a_home_that_takes_no_file(served, monkeypatch):
    served.home.write_text('a file in its place')
    with pytest.raises(CheckpointError, match=r'home/checkpoints cannot be written to; set BOXDET_HOME to a folder'):
        ask()


_RANK = '''
import json, sys
import torch.distributed as dist
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import load_checkpoint
name, entry, rank, init = sys.argv[1], json.loads(sys.argv[2]), int(sys.argv[3]), sys.argv[4]
zoo.entries = lambda: {name: entry}
dist.init_process_group('gloo', init_method=init, rank=rank, world_size=2)
print(len(load_checkpoint(f'zoo://{name}')['state_dict']))
dist.destroy_process_group()
'''


def test_two_ranks_ask_once(served, tmp_path, repo_root, monkeypatch, tiny_detector):
    monkeypatch.setenv('PYTHONPATH', str(repo_root))
    ranks = [subprocess.Popen([sys.executable, '-c', _RANK, NAME, json.dumps(served.entry), str(rank),
                               (tmp_path / 'meet').as_uri()], text=True, stdout=subprocess.PIPE) for rank in range(2)]
    entries = str(len(load_checkpoint(tiny_detector.checkpoint)['state_dict']))
    assert [rank.communicate(timeout=300)[0].strip() for rank in ranks] == [entries] * 2
    assert len(served.asked) == 1


# --- who asks by name ---

def test_a_detector_by_its_name(served, tiny_detector):
    model = init_detector(NAME, 'zoo', device='cpu')
    expected = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu').state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())
    assert len(served.asked) == 1


def test_the_tool_lists_and_downloads(served, script, capsys):
    tool = script('tools/zoo.py')
    tool.main(['list', 'tiny_*'])
    assert re.match(rf'{NAME} +boxdet +box 65.0 +{served.url}', capsys.readouterr().out)
    tool.main(['download', 'mask'])
    out, bar = capsys.readouterr()
    assert out == f'{NAME}: {served.target}\n' and '100%' in bar and served.target.name in bar


def test_a_wrong_name_gets_the_nearest_three(served, script, monkeypatch):
    names = ['mask_rcnn_r50_fpn_1x_coco', 'mask_rcnn_r50_fpn_2x_coco', 'mask_rcnn_r50_caffe_fpn_1x_coco', 'htc_r50',
             'mask_rcnn_swin']
    monkeypatch.setattr(zoo, 'entries', lambda: dict.fromkeys(names, served.entry))
    told = "'mask_rcnn_r5_fpn_1x_coco'; near it are (?!.*(?:htc|swin))mask_rcnn_r50_fpn_1x_coco, .*, .* [(]tools"
    with pytest.raises(CheckpointError, match=told):
        script('tools/zoo.py').main(['download', 'mask_rcnn_r5_fpn_1x_coco'])
    with pytest.raises(CheckpointError, match=told):
        find_checkpoint('zoo://mask_rcnn_r5_fpn_1x_coco')
    assert not served.asked


def test_evaluated_by_name(served, script, tmp_path):
    script('tools/test.py').main([NAME, 'zoo', '--device', 'cpu', '--eval', 'bbox', '--work-dir', str(tmp_path / 'w')])
    written, = (tmp_path / 'w').glob('eval_*.json')
    assert 'bbox_mAP' in json.loads(written.read_text())['metric'] and len(served.asked) == 1


def test_drawn_by_name_and_other_classes_are_told_before(served, script, tiny_detector, tmp_path):
    """The checkpoint's names stand on the image; that the config has others is said while there is no image yet."""
    (tmp_path / f'configs/own/{NAME}.py').write_text(
        f"_base_ = {str(tiny_detector.config)!r}\ndata = dict(test=dict(classes=('disc', 'bar', 'ring')))\n")
    drawn_before = []

    def tell(message, *_, **__):
        drawn_before.append((str(message), (tmp_path / 'drawn.png').exists()))
    with warnings.catch_warnings():
        warnings.simplefilter('always')
        warnings.showwarning = tell
        script('demo/image_demo.py').main([str(tiny_detector.images[0]), NAME, 'zoo', '--device', 'cpu',
                                           '--out-file', str(tmp_path / 'drawn.png')])
    assert cv2.imread(str(tmp_path / 'drawn.png')) is not None
    (message, drawn), = [one for one in drawn_before if 'trained on' in one[0]]
    assert not drawn and 'only in the checkpoint: cross; only in the config: ring' in message


def test_short_names_of_configs(tmp_path, monkeypatch):
    assert load_config('mask_rcnn_r50_fpn_1x_coco').model.type == 'MaskRCNN'
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs/own').mkdir(parents=True)
    (tmp_path / 'configs/own/mask_rcnn_r50_fpn_1x_coco.py').write_text("model = dict(type='Own')")
    assert load_config('mask_rcnn_r50_fpn_1x_coco').model.type == 'Own'  # the working folder's come first
    with pytest.raises(ConfigError, match='no config is called'):
        load_config('mask_rcnn_r50_fpn_1x_cocoo')


def test_every_entry_has_its_config_and_an_address(repo_root):
    found = json.loads((repo_root / 'boxdet/zoo.json').read_text())
    assert len(found) > 250
    for name, entry in found.items():
        assert (repo_root / 'configs' / entry['config']).is_file() and entry['config'].endswith(f'/{name}.py')
        assert entry['weights'].startswith(('https://', 'http://')) and entry['metrics']
    projects = Counter(entry['project'] for entry in found.values())
    assert projects.keys() == {'mmdetection', 'torchvision', 'tensorpack', 'Detectron', 'detectron2'}
    assert all(re.search(f"_{entry['md5']}[.]pkl$", entry['weights']) for entry in found.values() if 'md5' in entry)


def test_tables_of_the_projects_become_entries(script):
    """A row of Detectron's MODEL_ZOO.md and one of detectron2's, as they are written there."""
    def table(heads, *rows):
        cells = [''.join(f'<td align="left"><sup>{cell}</sup></td>' for cell in row) for row in rows]
        return (f"<table><tbody>{''.join(f'<th>{head}</th>' for head in heads)}"
                f"{''.join(f'<tr>{row}</tr>' for row in cells)}</tbody></table>")

    def link(address):
        return f'<a href="https://x/{address}">model</a>&nbsp;|&nbsp;<a href="x.json">boxes</a>'
    page = table(['backbone', 'box<br/>AP', 'mask<br/>AP', 'kp<br/>AP', 'links'],
                 ['R-50-C4', '35.8', '31.4', '-', link('12/e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.Zg/model_final.pkl')],
                 ['R-50', '35.7', '-', '-', link('12/retinanet_R-50-FPN_1x.yaml.01_45_57.Zg/model_final.pkl')])
    name = 'keypoint_rcnn_R_50_FPN_1x/1/model_final_04e291.pkl'
    page += table(['Name', 'box AP', 'kp. AP', 'download'],
                  ['R50-FPN', '53.6', '64.0', link(f'COCO-Keypoints/{name}')],
                  ['R50-FPN', '1', '1', link(f"LVISv0.5-InstanceSegmentation/{name.replace('keypoint', 'mask')}")])
    names = ('e2e_mask_rcnn_R-50-C4_1x', 'keypoint_rcnn_R_50_FPN_1x', 'mask_rcnn_R_50_FPN_1x')
    found = script('tools/zoo.py')._of_table(page, {name: f'{name}.py' for name in names})
    assert found.keys() == set(names[:2])
    assert found[names[0]] == dict(config=f'{names[0]}.py', project='Detectron', metrics=dict(box=35.8, mask=31.4),
                                   weights='https://x/12/e2e_mask_rcnn_R-50-C4_1x.yaml.01_45_57.Zg/model_final.pkl')
    assert found[names[1]]['metrics'] == dict(box=53.6, keypoint=64.0) and found[names[1]]['md5'] == '04e291'
