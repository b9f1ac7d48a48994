"""Weights by the name of their config, from a server on the loopback."""
import hashlib
import http.server
import importlib.util
import json
import threading

import pytest
import torch

from boxdet.apis import init_detector
from boxdet.checkpoints import zoo
from boxdet.checkpoints.io import find_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError, ConfigError
from boxdet.models import build_detector

NAME = 'faster_rcnn_r18_fpn_shapes'


@pytest.fixture
def tool(repo_root):
    spec = importlib.util.spec_from_file_location('zoo_tool', repo_root / 'tools/zoo.py')
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def served(tmp_path, monkeypatch, repo_root):
    """A zoo of one entry: weights of a shipped config on a server; what was asked for is in ``asked``."""
    config = next((repo_root / 'configs').glob(f'*/{NAME}.py'))
    folder = tmp_path / 'server'
    folder.mkdir()
    model = build_detector(load_config(config).model)
    torch.save(dict(meta=dict(CLASSES=('a',)), state_dict=model.state_dict()), folder / 'x.pth')
    digest = hashlib.sha256((folder / 'x.pth').read_bytes()).hexdigest()[:8]
    (folder / 'x.pth').rename(folder / f'{NAME}-{digest}.pth')
    asked = []

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *args):
            super().__init__(*args, directory=str(folder))

        def do_GET(self):
            asked.append(self.path)
            if self.path.startswith('/moved/'):
                self.send_response(302)
                self.send_header('Location', self.path.replace('/moved/', '/'))
                self.end_headers()
                return
            super().do_GET()

        def log_message(self, *_):
            pass
    server = http.server.ThreadingHTTPServer(('127.0.0.1', 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv('BOXDET_HOME', str(tmp_path / 'home'))
    address = f'http://127.0.0.1:{server.server_port}/moved/{NAME}-{digest}.pth'
    entry = dict(config=f'shapes/{NAME}.py', weights=address, project='boxdet', metrics=dict(box=65.0))
    monkeypatch.setattr(zoo, 'entries', lambda: {NAME: entry})
    yield dict(asked=asked, model=model, file=tmp_path / 'home/checkpoints' / f'{NAME}-{digest}.pth', entry=entry)
    server.shutdown()
    server.server_close()


def test_a_detector_by_its_name(served):
    model = init_detector(NAME, 'zoo', device='cpu')
    assert model.CLASSES == ('a',) or model.CLASSES
    assert torch.equal(model.state_dict()['backbone.layer1.0.conv1.weight'],
                       served['model'].state_dict()['backbone.layer1.0.conv1.weight'])
    assert served['file'].is_file() and len(served['asked']) == 2  # the address, and where it leads to
    assert find_checkpoint(f'zoo://{NAME}') == served['file'] and len(served['asked']) == 2


def test_a_wrong_hash_and_a_missing_file_are_one_line(served):
    wrong = served['entry']['weights'].replace(served['file'].stem.rpartition('-')[2], '00000000')
    served['entry']['weights'] = wrong
    with pytest.raises(CheckpointError, match='404'):
        find_checkpoint(f'zoo://{NAME}')


def test_the_tool_lists_and_downloads(served, tool, capsys):
    tool.main(['list', 'r18'])
    assert NAME in capsys.readouterr().out
    tool.main(['download', NAME])
    assert str(served['file']) in capsys.readouterr().out
    with pytest.raises(CheckpointError, match=f"near it are {NAME}"):
        tool.main(['download', 'faster_rcnn_r18_fpn_shape5'])


def test_short_names_of_configs(repo_root, tmp_path, monkeypatch):
    assert load_config('mask_rcnn_r50_fpn_1x_coco').model.type == 'MaskRCNN'
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'configs/own').mkdir(parents=True)
    (tmp_path / 'configs/own/mask_rcnn_r50_fpn_1x_coco.py').write_text("model = dict(type='Own')")
    assert load_config('mask_rcnn_r50_fpn_1x_coco').model.type == 'Own'  # the working folder's come first
    with pytest.raises(ConfigError, match='no config is called'):
        load_config('mask_rcnn_r50_fpn_1x_cocoo')


def test_every_entry_has_its_config_and_an_address(repo_root):
    found = json.loads((repo_root / 'boxdet/zoo.json').read_text())
    assert len(found) > 100
    for name, entry in found.items():
        assert (repo_root / 'configs' / entry['config']).is_file() and entry['config'].endswith(f'/{name}.py')
        assert entry['weights'].startswith(('https://', 'http://')) and entry['metrics']
    with pytest.raises(CheckpointError, match='near it are .*mask_rcnn_r50_fpn_1x_coco'):
        zoo.entry('mask_rcnn_r50_fpn_1x')
