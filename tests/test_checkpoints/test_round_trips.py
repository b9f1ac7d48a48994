"""Every format and kind of model, both ways, through files: bit for bit, and every name accounted for."""
import logging
import pickle
import re

import pytest
import torch

from boxdet.checkpoints.convert import format_named, formats, recognise
from boxdet.checkpoints.io import load_checkpoint, save_arrays, save_checkpoint, save_pickle
from boxdet.checkpoints.loading import load_weights
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError
from boxdet.models import build_detector

CAFFE = ['detectron/faster_rcnn_R_50_C4', 'detectron/mask_rcnn_R_50_C4', 'detectron/faster_rcnn_R_50_FPN',
         'detectron/mask_rcnn_R_50_FPN', 'detectron/keypoint_rcnn_R_50_FPN', 'detectron/e2e_mask_rcnn_R-50-FPN_2x_gn',
         'detectron/e2e_mask_rcnn_R-101-FPN_1x', 'detectron/e2e_mask_rcnn_X-101-32x8d-FPN_1x']
CONFIGS = {
    'torchvision': ['torchvision/fasterrcnn_resnet50_fpn', 'torchvision/maskrcnn_resnet50_fpn',
                    'torchvision/keypointrcnn_resnet50_fpn', 'torchvision/fasterrcnn_resnet50_fpn_v2',
                    'torchvision/maskrcnn_resnet50_fpn_v2'],
    'detectron2': [f'detectron2/{name}' for name in (
        'faster_rcnn_R_50_C4', 'mask_rcnn_R_50_C4', 'faster_rcnn_R_50_DC5', 'faster_rcnn_R_50_FPN',
        'mask_rcnn_R_50_FPN', 'keypoint_rcnn_R_50_FPN', 'mask_rcnn_R_50_FPN_3x_gn', 'cascade_mask_rcnn_R_50_FPN',
        'mask_rcnn_R_101_FPN_3x', 'mask_rcnn_X_101_32x8d_FPN')],
    'detectron': CAFFE, 'maskrcnn-benchmark': CAFFE, 'Detectron.pytorch': CAFFE,
    'tensorpack': [f'tensorpack/{name}' for name in (
        'mask_rcnn_R50_C4_1x', 'faster_rcnn_R50_FPN_1x', 'mask_rcnn_R50_FPN_2x', 'mask_rcnn_R50_FPN_GN_2x',
        'cascade_mask_rcnn_R50_FPN_1x', 'cascade_mask_rcnn_R50_FPN_GN_4x', 'mask_rcnn_R101_C4_1x')]}
CASES = [(project, config) for project, configs in CONFIGS.items() for config in configs]
# Norms that are a scale and a shift there are here a batch norm with these statistics.
FROZEN = {'running_mean': 0., 'running_var': 1 - 1e-5}


@pytest.fixture(scope='module')
def shapes(repo_root):
    """Config -> the shapes of its model's entries."""
    found = {}

    def get(config):
        if config not in found:
            with torch.device('meta'):
                state = build_detector(load_config(repo_root / f'configs/{config}.py').model).state_dict()
            found[config] = {name: value.shape for name, value in state.items()}
        return found[config]
    return get


def numbered(shapes, frozen):
    """A small state dict of these names: no number stands twice but in frozen statistics, so every place is known.

    Of outputs the rows are as many as there are classes.
    """
    state, start = {}, 1
    for name, shape in shapes.items():
        if name.endswith('num_batches_tracked'):
            continue
        keep = re.search(r'\.(fc_cls|fc_reg|conv_logits)\.', name) is not None
        small = [size if keep and not i else min(size, 3) for i, size in enumerate(shape)]
        value = torch.arange(start, start + torch.Size(small).numel(), dtype=torch.float32).view(small)
        start += value.numel()
        if frozen and name.rpartition('.')[2] in FROZEN:
            value = torch.full(small, FROZEN[name.rpartition('.')[2]])
        state[name] = value
    assert start < 1 << 24  # float32 tells them apart
    return state


def write(module, theirs, folder):
    """A file as the project writes it."""
    if hasattr(module, 'pickled'):
        return save_pickle(module.pickled(theirs), folder / 'theirs.pkl')
    if hasattr(module, 'arrays'):
        return save_arrays(module.arrays(theirs), folder / 'theirs.npz')
    return save_checkpoint(dict(model=theirs), folder / 'theirs.pth')


def test_every_format_is_here():
    assert CONFIGS.keys() == set(formats())  # mmdetection's names are boxdet's own


def same(found, expected):
    return found.keys() == expected.keys() and all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize('project, config', CASES)
def test_there_and_back(project, config, shapes, tmp_path):
    module = format_named(project)
    ours = numbered(shapes(config), frozen=CONFIGS[project] is CAFFE)
    theirs = module.from_boxdet(ours)
    assert recognise(theirs) is module
    read = load_checkpoint(write(module, theirs, tmp_path))
    assert read['meta']['converted_from'] == module.NAME and same(read['state_dict'], ours)
    assert same(module.from_boxdet(read['state_dict']), theirs)
    # As safetensors it is the same file to them.
    save_checkpoint(theirs, tmp_path / 'theirs.safetensors')
    assert same(load_checkpoint(tmp_path / 'theirs.safetensors')['state_dict'], ours)


@pytest.mark.parametrize('project, config', [(project, configs[1]) for project, configs in CONFIGS.items()])
def test_a_little_wrong_is_told(project, config, shapes, tmp_path):
    """One name misspelt, one entry too many, one lost: each is named, with what it may have been meant for."""
    module = format_named(project)
    theirs = module.from_boxdet(numbered(shapes(config), frozen=CONFIGS[project] is CAFFE))
    names = [name for name in theirs if re.search(r'(?:layer1|res2|group0).*conv2.*(?:weight|W)$|branch2b_w$', name)]
    misspelt, lost = names[0], names[1]
    odd = {name.replace(misspelt, f'{misspelt}x'): value for name, value in theirs.items() if name != lost}
    odd[f'{lost[:-3]}y{lost[-3:]}.more'] = torch.ones(1)
    path = write(module, odd, tmp_path)
    with pytest.raises(CheckpointError) as told:
        load_checkpoint(path)
    message = str(told.value)
    assert message.startswith(f'{path}: these are nearly the weights of ') and '\n' not in message
    assert message.count(' is unknown') == 2 and message.count(' is missing') == 2 and 'did you mean' in message
    if project != 'Detectron.pytorch':  # told by Detectron's names
        assert f'{misspelt}x is unknown' in message and f'{lost} is missing' in message


@pytest.mark.parametrize('project, name', [
    ('detectron2', 'pixel_mean'), ('detectron', 'conv1_w_momentum'), ('detectron', 'lr'),
    ('maskrcnn-benchmark', 'rpn.anchor_generator.cell_anchors.0'),
    ('Detectron.pytorch', 'Keypoint_Outs.upsample.upconv.weight'), ('tensorpack', 'global_step')])
def test_what_is_passed_over_is_told(project, name, shapes, tmp_path, caplog):
    module = format_named(project)
    ours = numbered(shapes(CONFIGS[project][1]), frozen=CONFIGS[project] is CAFFE)
    path = write(module, {**module.from_boxdet(ours), name: torch.ones(())}, tmp_path)
    with caplog.at_level(logging.INFO, 'boxdet'):
        assert same(load_checkpoint(path)['state_dict'], ours)
    assert caplog.messages == [f'{path}: converted {len(ours)} entries from {module.NAME}, and passed over {name}']


def test_detectron2s_backbones(shapes, repo_root, tmp_path):
    """ImageNetPretrained/MSRA/R-50.pkl (detectron2://): without any prefix, with the classifier beside it."""
    whole = numbered(shapes('detectron2/faster_rcnn_R_50_DC5'), frozen=False)
    theirs = {name.removeprefix('backbone.'): value.numpy()
              for name, value in format_named('detectron2').from_boxdet(whole).items() if name.startswith('backbone.')}
    content = dict(model={**theirs, 'stem.fc.weight': torch.ones(2).numpy()}, matching_heuristics=True)
    (tmp_path / 'R-50.pkl').write_bytes(pickle.dumps(content, protocol=2))
    found = load_checkpoint(tmp_path / 'R-50.pkl')['state_dict']
    assert same(found, {name.removeprefix('backbone.'): value for name, value in whole.items()
                        if name.startswith('backbone.')})


def test_mmdetections_own(shapes, repo_root, tmp_path):
    """Its names are boxdet's: nothing is converted, what is left over and what is missing is in the report."""
    state = numbered(shapes('detectron/mask_rcnn_R_50_FPN'), frozen=False)
    save_checkpoint(dict(meta=dict(CLASSES=('a',)), state_dict=state), tmp_path / 'x.pth')
    read = load_checkpoint(tmp_path / 'x.pth')
    assert recognise(state) is None and same(read['state_dict'], state) and 'converted_from' not in read['meta']
    model = torch.nn.ModuleDict(dict(conv=torch.nn.Conv2d(1, 1, 1), fc=torch.nn.Linear(1, 1)))
    report = load_weights(model, {'conv.weight': torch.ones(1, 1, 1, 1), 'conv.bias': torch.ones(1),
                                  'fc.weigth': torch.ones(1, 1), 'fc.bias': torch.ones(2)})
    assert (report.missing, report.unexpected) == (['fc.weight'], ['fc.weigth'])
    assert report.mismatched == ['fc.bias: checkpoint (2,), model (1,)']
