"""Every two-stage file of the mmdet 2.28.2 wheel, on the meta device: it builds, with the listed keys and shapes."""
from __future__ import annotations

import json
import re

import pytest
import torch

from boxdet.engine.config import load_config
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from tests.wheels import configs_of

# Panoptic segmentation, and first stages that are learned queries.
OUT_OF_SCOPE = ('PanopticFPN', 'QueryInst', 'SparseRCNN')
# 2.x cannot build it either: a one-stage head in a two-stage detector.
BROKEN = 'objects365/retinanet_r50_fpn_syncbn_1350k_obj365v1.py'
PARTS = 6  # that processes share


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    return configs_of('2.28.2', tmp_path_factory.mktemp('mmdet'))


def two_stage_models(folder, part: int) -> dict[str, tuple[dict, list[str]]]:
    """Each distinct model with a RoI head, or of an RPN, and the files that have it; of the folders of a part."""
    found: dict[str, tuple[dict, list[str]]] = {}
    folders = sorted(path for path in folder.iterdir() if path.is_dir())[part::PARTS]
    for path in sorted(path for one in folders for path in one.rglob('*.py')):
        name = path.relative_to(folder).as_posix()
        if name.startswith(('_base_', 'common')) or name == BROKEN:
            continue
        model = load_config(path, import_custom_modules=False).get('model') or {}
        if model.get('type') not in OUT_OF_SCOPE and ('roi_head' in model or model.get('type') == 'RPN'):
            found.setdefault(repr(model), (model, []))[1].append(name)
    return found


@pytest.mark.slow
@pytest.mark.parametrize('part', range(PARTS))
def test_two_stage_files_build_with_the_keys_of_mmdetection(folder, reference, part):
    listed = {}
    for name in ('state_dict_keys.json', 'state_dict_keys_families.json'):
        listed.update(json.loads((reference / name).read_text()))
    problems = []
    for model, names in two_stage_models(folder, part).values():
        try:
            with torch.device('meta'):
                built = build_detector(model)
        except ConfigError as error:
            problems.append(f'{names}: {error}')
            continue
        shapes = {key: list(value.shape) for key, value in built.state_dict().items()}
        problems += [f'{name}: other keys or shapes' for name in names if listed.get(name, shapes) != shapes]
    assert not problems, '\n'.join(problems)


def test_every_seesaw_file_has_the_keys_that_follow_from_the_listed_one(folder, reference):
    listed = json.loads((reference / 'state_dict_keys_families.json').read_text())[
        'seesaw_loss/mask_rcnn_r50_fpn_random_seesaw_loss_mstrain_2x_lvis_v1.py']
    paths = sorted((folder / 'seesaw_loss').glob('*.py'))
    assert len(paths) == 12
    for path in paths:
        expected = {}
        for key, shape in listed.items():
            cascade = 'cascade' in path.name and key.startswith('roi_head.')
            if cascade and '.fc_reg.' in key:
                shape = [4, *shape[1:]]  # its boxes are those of no class
            for block in range(5, 23) if 'r101' in path.name and '.layer3.5.' in key else [5]:
                for stage in ('.0.', '.1.', '.2.') if cascade else ('.',):
                    name = key.replace('.layer3.5.', f'.layer3.{block}.')
                    expected[re.sub(r'^(roi_head\.(bbox|mask)_head)\.', rf'\1{stage}', name)] = shape
        with torch.device('meta'):
            built = build_detector(load_config(path, import_custom_modules=False).model)
        assert {key: list(value.shape) for key, value in built.state_dict().items()} == expected, path.name
