"""Every config that boxdet ships, and mmdetection 2.28.2's own: each loads, every key is known, its model builds."""

import copy
import json
import subprocess
import sys
import warnings
import zipfile
from pathlib import Path

import pytest
import torch

from boxdet.engine.config import Config, check_config, load_config
from boxdet.models import build_detector

CONFIGS = Path(__file__).resolve().parent.parent / 'configs'
LEAVES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
                if path.relative_to(CONFIGS).parts[0] not in ('_base_', 'common'))
PIECES = sorted(str(path.relative_to(CONFIGS)) for path in CONFIGS.rglob('*.py')
                if path.relative_to(CONFIGS).parts[0] in ('_base_', 'common'))

_built: dict[str, dict[str, list[int]]] = {}


def shapes_of_model(cfg: Config) -> dict[str, list[int]]:
    """State-dict keys and shapes of the model, built on the meta device; many configs share one model."""
    key = repr(cfg.model)
    if key not in _built:
        before = copy.deepcopy(cfg.model)
        with torch.device('meta'):
            model = build_detector(cfg.model)
        assert cfg.model == before, 'building changed the config'
        _built[key] = {name: list(value.shape) for name, value in model.state_dict().items()}
    return _built[key]


def check_without_warning(cfg: Config) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        check_config(cfg)


@pytest.fixture(scope='module')
def golden_keys(reference):
    return json.loads((reference / 'state_dict_keys.json').read_text())


@pytest.mark.parametrize('name', LEAVES)
def test_config_loads_checks_and_builds(name):
    cfg = load_config(CONFIGS / name)
    check_without_warning(cfg)
    assert shapes_of_model(cfg)
    assert Config.fromstring(cfg.pretty_text).to_dict() == cfg.to_dict()


@pytest.mark.parametrize('name', PIECES)
def test_piece_of_a_config_checks(name):
    check_without_warning(load_config(CONFIGS / name))


def test_state_dict_keys_are_those_of_mmdetection(golden_keys):
    for name, expected in golden_keys.items():
        found = shapes_of_model(load_config(CONFIGS / name))
        assert sorted(found) == sorted(expected), name
        assert found == expected, name


def listed_names(reference) -> list[str]:
    """The files of mmdetection 2.28.2 that boxdet ships under their names."""
    lists = ('config_names.txt', 'config_names_families.txt')
    # boxdet has no class_aware_sampler, and says so: the configs of Open Images with it are not shipped.
    return [name for file in lists for name in (reference / file).read_text().split() if '_cas_' not in name]


def test_every_listed_config_is_there(reference):
    listed = listed_names(reference)
    assert len(listed) > 300 and [name for name in listed if not (CONFIGS / name).exists()] == []


# ---------------------------------------------------------------------------------- mmdetection's own files


@pytest.fixture(scope='module')
def mmdetection_configs(tmp_path_factory):
    """The config files of the mmdet 2.28.2 wheel; nothing else of it is unpacked."""
    folder = tmp_path_factory.mktemp('mmdet')
    command = [sys.executable, '-m', 'pip', 'download', '--quiet', '--no-deps', '--disable-pip-version-check',
               '--retries', '1', '--timeout', '20', '-d', str(folder), 'mmdet==2.28.2']
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode != 0:
        reason = (done.stderr.strip().splitlines() or ['no message'])[-1]
        pytest.skip(f'pip cannot download mmdet 2.28.2: {reason}')
    with zipfile.ZipFile(next(folder.glob('mmdet-2.28.2*.whl'))) as wheel:
        names = [name for name in wheel.namelist() if name.startswith('mmdet/.mim/configs/') and name.endswith('.py')]
        wheel.extractall(folder, names)
    return folder / 'mmdet/.mim/configs'


@pytest.mark.slow
def test_configs_of_mmdetection_load_check_and_build_unchanged(mmdetection_configs, golden_keys, reference):
    faster_and_mask = {str(path.relative_to(mmdetection_configs)) for family in ('faster_rcnn', 'mask_rcnn')
                       for path in (mmdetection_configs / family).glob('*.py')}
    listed = {name for name in (reference / 'config_names.txt').read_text().split()
              if not name.startswith(('_base_', 'common'))}
    assert len(faster_and_mask) > 60
    for name in sorted(faster_and_mask | listed):
        cfg = load_config(mmdetection_configs / name)
        check_without_warning(cfg)
        found = shapes_of_model(cfg)
        assert sorted(found) == sorted(golden_keys.get(name, found)), name


@pytest.mark.slow
def test_shipped_configs_hold_the_values_of_mmdetections(mmdetection_configs, reference):
    for name in listed_names(reference):
        theirs = with_bundles(load_config(mmdetection_configs / name).to_dict())
        assert without_defaults(load_config(CONFIGS / name).to_dict()) == without_defaults(theirs), name


def without_defaults(value):
    """Without what a shared block of one project spells out and the other's leaves to the class."""
    if isinstance(value, (list, tuple)):
        return type(value)(without_defaults(item) for item in value)
    if not isinstance(value, dict):
        return value
    older = {'imgs_per_gpu': 'samples_per_gpu'}  # DeepFashion's file still calls it so
    return {older.get(key, key): without_defaults(item) for key, item in value.items()
            if not (key in ('match_low_quality', 'with_conv_res') and item is True)}


def with_bundles(value):
    """The deprecated ImageToTensor replaced by what it stands for in boxdet's files."""
    if isinstance(value, (list, tuple)):
        return type(value)(with_bundles(item) for item in value)
    if not isinstance(value, dict):
        return value
    if value.get('type') == 'ImageToTensor' and value['keys'] == ['img']:
        return dict(type='DefaultFormatBundle')
    return {key: with_bundles(item) for key, item in value.items()}


def test_no_stock_config_asks_for_what_is_deprecated():
    assert not [str(path) for path in CONFIGS.rglob('*.py') if 'ImageToTensor' in path.read_text()]
