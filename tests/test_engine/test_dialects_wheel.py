"""Every two-stage config of the mmdetection 3.3.0 wheel: read, translated, built, compared with its twin in 2.28.2."""
import collections
import difflib
import re
import warnings

import pytest
import torch

from boxdet.engine.config import Config, load_config
from boxdet.engine.config_difference import _flat
from boxdet.engine.dialects.mmdet3 import is_mmdet3
from boxdet.engine.learning_rate import LrSchedule, Progress
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from tests.wheels import configs_of

pytestmark = pytest.mark.slow

# Two stages, but of families that boxdet does not have: queries, panoptic heads, unlabelled images.
OTHER_FAMILIES = ('queryinst', 'sparse_rcnn', 'panoptic_fpn', 'soft_teacher')
# What is refused, and the words that say why.
REFUSED = {
    'crowddet/crowddet-rcnn_r50_fpn_8xb2-30e_crowdhuman.py': "'BatchResize' changes whole batches",
    'crowddet/crowddet-rcnn_refine_r50_fpn_8xb2-30e_crowdhuman.py': "'BatchResize' changes whole batches",
    'dsdl/openimagesv6.py': 'boxdet reads files from the disk',
}
_WORDS = {'mstrain': 'ms', 'fp16': 'amp', 'pretrain': 'pre', 'r2': 'res2net', 'obj365v1': 'objects365v1',
          'obj365v2': 'objects365v2', 'faste': 'faster', 'attn0010': 'attention 0010', 'attn1111': 'attention 1111',
          'crpn': 'cascade rpn'}


def words(name: str) -> tuple[str, ...]:
    """What a file's name says, in either spelling: 'mask-rcnn_r50_fpn_ms-1x' and 'mask_rcnn_r50_fpn_mstrain_1x'."""
    parts = [_WORDS.get(part, part) for part in re.split('[-_]', name.removesuffix('.py').lower())]
    parts = [word for part in parts if not re.fullmatch(r'\d+xb?\d+', part) for word in part.split()]
    return tuple(sorted(word for word in parts if word not in ('backbone', '4conv1fc', '4conv1f', 'rcnn')))


@pytest.fixture(scope='module')
def three(tmp_path_factory):
    return configs_of('3.3.0', tmp_path_factory.mktemp('mmdet3'))


@pytest.fixture(scope='module')
def two(tmp_path_factory):
    return configs_of('2.28.2', tmp_path_factory.mktemp('mmdet2'))


@pytest.fixture(scope='module')
def files(three):
    """Every file whose model has a second stage or is an RPN, by its name within the configs folder."""
    found = []
    for path in sorted(three.glob('*/*.py')):
        if path.parent.name in ('_base_', 'common', *OTHER_FAMILIES):
            continue
        text = path.read_text()
        if 'read_base' in text:
            continue
        try:
            model = load_config(path, import_custom_modules=False, translate=False).get('model') or {}
        except ConfigError:  # of other kinds of detectors, with packages that are not installed
            continue
        stages = model.get('roi_head') is not None or model.get('type') == 'RPN'
        if stages and model.get('bbox_head') is None:
            found.append(f'{path.parent.name}/{path.name}')
    return found


@pytest.fixture(scope='module')
def translations(three, files):
    """The translation of each file, or the error that refuses it."""
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter('ignore')
        for name in files:
            try:
                found[name] = load_config(three / name, import_custom_modules=False)
            except ConfigError as error:
                found[name] = error
    return found


@pytest.fixture(scope='module')
def twins(two, files):
    """The 2.28.2 config of each file that has one."""
    by_words = collections.defaultdict(list)
    for path in sorted(two.glob('*/*.py')):
        by_words[path.parent.name, words(path.name)].append(path)
    found = {}
    for name in files:
        folder, file = name.split('/')
        same = by_words[folder, words(file)]
        if same:
            found[name] = load_config(same[0] if '8xb1' in file else same[-1], import_custom_modules=False)
    return found


_built = {}


def shapes(cfg):
    """State-dict keys and shapes of the model on the meta device, or the error that says which part is not there."""
    key = repr(cfg.model)
    if key not in _built:
        try:
            with torch.device('meta'):
                model = build_detector(cfg.model)
            _built[key] = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        except ConfigError as error:
            _built[key] = str(error)
        except Exception as error:  # a family that another part of it is still missing of
            _built[key] = f'{type(error).__name__}: {error}'
    return _built[key]


def test_every_file_is_translated_or_refused_with_its_key(translations):
    refused = {name: str(error) for name, error in translations.items() if isinstance(error, ConfigError)}
    assert sorted(refused) == sorted(name for name in REFUSED if name in translations)
    assert all(REFUSED[name] in message and '.py:' in message for name, message in refused.items())
    assert len(translations) >= 380


def test_models_have_the_keys_and_shapes_of_their_twins(translations, twins):
    count = collections.Counter()
    for name, cfg in translations.items():
        if isinstance(cfg, ConfigError):
            continue
        ours = shapes(cfg)
        built = isinstance(ours, dict)
        count['built'] += built
        if name in twins:
            theirs = shapes(twins[name])
            # A family that is not there yet is missing for both.
            assert built == isinstance(theirs, dict), f'{name}: {ours if not built else theirs}'
            assert not built or ours == theirs, name
            count['equal'] += built
    print(f'\n{len(translations)} files, {dict(count)}')
    assert count['built'] >= 199 and count['equal'] >= 187


def test_translations_are_stable(translations):
    for name, cfg in translations.items():
        if isinstance(cfg, Config):
            assert not is_mmdet3(cfg), name
            assert Config.fromstring(cfg.pretty_text).to_dict() == cfg.to_dict(), name


# ---------------------------------------------------------------------------------- what differs from the twins

SECTIONS = ('model', 'data', 'optimizer', 'optimizer_config', 'lr_config', 'runner', 'evaluation', 'test_evaluation',
            'checkpoint_config', 'log_config', 'custom_hooks', 'fp16', 'cudnn_benchmark', 'mp_start_method',
            'opencv_num_threads', 'dist_params', 'auto_scale_lr', 'workflow', 'load_from', 'resume_from', 'log_level')
# (what of 'key: 2.x -> 3.x', why it means the same, or why it does not)
EXPLAINED = [
    (r"custom_hooks\.0\.type: 'NumClassCheckHook' -> '-'", 'every training checks its classes'),
    (r"workflow\.0: \['train', 1\] -> '-'", 'the default'),
    (r"cudnn_benchmark: '-' -> False", 'the default'),
    (r"evaluation\.interval: '-' -> 1", 'the default'),
    (r"\.persistent_workers: '-' -> ", '3.x keeps workers from epoch to epoch'),
    (r"(val|test)_dataloader\.(samples|workers)_per_gpu: '-' -> ", "3.x's files say it for each loader"),
    (r"\.pipeline.*: \{'keys': \['img'\], 'type': 'ImageToTensor'\}", 'DefaultFormatBundle is its newer form'),
    (r"\.pipeline.*: \{'flip_ratio': 0\.5, 'type': 'RandomFlip'\} -> \{'type': 'RandomFlip'\}",
     'in a test MultiScaleFlipAug says what is flipped'),
    (r"train_dataloader\.group_by_aspect: '-' -> False", "3.x's file has no AspectRatioBatchSampler"),
    (r"lr_config\.warmup_iters: (\d+) -> (\d+)", "3.x's factor is 1 in the last iteration of its warmup"),
    (r"lr_config\.by_epoch: '-' -> False", 'of a training by iterations the default'),
    (r"with_label': False.*-> .*LoadAnnotations|'gt_bboxes'\], 'type': 'Collect'\} ->", "3.x's RPN loads labels too"),
    (r"'with_mask': False", 'the default'),
    (r"'poly2mask': False.*-> ", "3.x's file makes bitmaps of polygons; its numbers are the same to a pixel"),
    (r"fp16\.loss_scale", "AmpOptimWrapper's scale is dynamic"),
    (r"auto_scale_lr\.", "3.x's files say their own batch size"),
    (r"custom_imports|model\.backbone\.type: 'mmcls\.ConvNeXt'", 'mmpretrain is the new name of mmcls'),
    (r"checkpoint_config\.max_keep_ckpts: '-' -> ", "3.x's file keeps fewer"),
    (r"log_config\.hooks\.1\.", "WandbVisBackend says less than MMDetWandbHook"),
    (r"dist_params\.port", "3.x's file names no port"),
    (r"optimizer_config\.grad_clip", "3.x's file clips no gradients"),
    (r"lr_config\.(schedulers|policy|step|warmup)", 'see test_schedules'),
    (r"data\.train\.datasets?\.|data\.train\.(dataset\.)?(type|ann_file|img_prefix|data_root|pipeline): .* -> "
     r"('-'|-|'ConcatDataset'|'RepeatDataset')$", "3.x wraps what 2.x writes as lists of files"),
    (r"data\.train\.(dataset\.)?datasets\.pipeline: - -> ", "3.x wraps what 2.x writes as lists of files"),
    (r"data\.(train|val|test)\.data_root: .* -> '-'", 'is part of the paths'),
    (r"data\.imgs_per_gpu: 2 -> '-'", 'an old name of samples_per_gpu'),
    (r"data\.train\.times: '-' -> ", "3.x's file repeats it"),
    (r"'type': 'Albu'|'meta_keys'|'DefaultFormatBundle'", 'Pad stands behind Albu in 3.x; metas are there anyway'),
    (r"'type': 'RandomCrop'\} -> ", "3.x's file crops otherwise"),
    (r"- -> \{'size': \[1024, 1024\], 'type': 'Pad'\}", "3.x pads the batch as well as the images"),
    (r"model\.backbone\.init_cfg", "3.x's files train from scratch: init_cfg=None"),
    (r"'type': 'Normalize'\} -> ", "3.x's file keeps its base's data_preprocessor"),
    (r"'type': 'LoadProposals'\} -> ", "3.x's file takes other numbers of proposals"),
    (r"evaluation\.metric: .* -> \['bbox', 'segm', 'cityscapes'\]", "3.x's file asks for CityScapesMetric too"),
    (r"data\.train\.(filter_empty_gt: '-' -> False|min_size: '-' -> 0)",
     '3.x leaves nothing out without filter_cfg; OpenImages has no images without objects'),
    (r"with_mask': True\} -> \{'type': 'LoadAnnotations', 'with_bbox': True\}", "3.x's file loads no masks"),
]


def plain(value):
    """Lists for tuples, keys sorted, without 2.x's ``file_client_args=dict(backend='disk')`` and other defaults."""
    if isinstance(value, dict):
        return {key: plain(value[key]) for key in sorted(value) if key != 'file_client_args'
                and not (key == 'multiscale_mode' and value[key] == 'range')}
    return [plain(item) for item in value] if isinstance(value, (list, tuple)) else value


def take_pipelines(value, at, found):
    """Move every pipeline out of a ``data`` section, its transforms as texts by the place of the pipeline."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        here = f'{at}.{key}' if isinstance(key, str) else at
        if key in ('pipeline', 'transforms') and isinstance(value[key], list):
            steps = value.pop(key)
            take_pipelines(steps, here, found)
            found[here].extend(map(repr, steps))
        elif isinstance(value[key], (dict, list)):
            take_pipelines(value[key], here, found)


def differences(theirs, ours):
    """'key: 2.x -> 3.x' for every value that differs, and (key, value of ours) or None for those of pipelines."""
    theirs, ours = (plain({name: cfg[name] for name in SECTIONS if name in cfg}) for cfg in (theirs, ours))
    steps = collections.defaultdict(list), collections.defaultdict(list)
    for cfg, found in zip((theirs, ours), steps):
        take_pipelines(cfg.get('data') or {}, 'data', found)
    for key in {**steps[0], **steps[1]}:
        before, after = steps[0][key], steps[1][key]
        for tag, i, j, u, v in difflib.SequenceMatcher(None, before, after, autojunk=False).get_opcodes():
            if tag != 'equal':
                yield f"{key}: {' '.join(before[i:j]) or '-'} -> {' '.join(after[u:v]) or '-'}", None
    before, after = _flat(theirs), _flat(ours)
    for key in {**before, **after}:
        if before.get(key, '-') != after.get(key, '-'):
            yield f"{key}: {before.get(key, '-')!r} -> {after.get(key, '-')!r}", key


def stands_in_the_3x_file(cfg, key):
    """Whether a value was taken as it is from the 3.x config, or is a path made of one there."""
    settings = cfg.explain(key) if key else []
    if not settings or settings[-1].written is None and not key.startswith(('model', 'auto_scale_lr')):
        return False
    last = settings[-1]
    written = cfg.as_written
    for part in last.written or last.key:
        written = written[part]
    joined = isinstance(written, str) and isinstance(last.value, str) and last.value.endswith(written)
    return joined or plain(written) == plain(last.value)


def test_every_difference_from_the_twin_is_explained(translations, twins):
    unexplained, used = collections.defaultdict(list), collections.Counter()
    for name, theirs in twins.items():
        ours = translations[name]
        if isinstance(ours, ConfigError):
            continue
        for line, key in differences(theirs.to_dict(), ours.to_dict()):
            rule = next((pattern for pattern, _ in EXPLAINED if re.search(pattern, line)), None)
            if rule is not None:
                used[rule] += 1
            elif key is not None and " -> '-'" not in line and stands_in_the_3x_file(ours, key):
                used['as the 3.x file says'] += 1
            else:
                unexplained[line].append(name)
    for line, names in unexplained.items():
        print(len(names), line[:300], names[0])
    assert not unexplained
    assert set(used) >= {pattern for pattern, _ in EXPLAINED[:8]}


def test_schedules(translations, twins):
    """The rate at every step: of 12 epochs or what the file has, an epoch 40 iterations, the warmup as it is."""
    others = []
    for name, theirs in twins.items():
        ours = translations[name]
        if isinstance(ours, ConfigError) or ours.runner != theirs.runner or ours.optimizer != theirs.optimizer:
            continue
        rates = []
        for cfg in (theirs, ours):
            schedule = LrSchedule(**{'by_epoch': cfg.runner.type == 'EpochBasedRunner', **cfg.lr_config})
            epochs = cfg.runner.get('max_epochs', 1)
            length = 40 if 'max_epochs' in cfg.runner else cfg.runner.max_iters
            steps = [*range(0, epochs * length, max(1, epochs * length // 600)), epochs * length - 1]
            rates.append([schedule.rate(1., Progress(i, i // length, epochs * length, epochs, length)) for i in steps])
        apart = max(abs(a - b) for a, b in zip(*rates))
        if apart > 0.012:  # the warmup's factor reaches 1 one iteration earlier: 1 / 99 in the shortest
            others.append(name)
    # 3.x's own files: an ``end`` before the milestones, other milestones, other warmups.
    assert sorted(others) == [
        'faster_rcnn/faster-rcnn_r50-caffe-dc5_ms-3x_coco.py', 'faster_rcnn/faster-rcnn_r50-caffe_fpn_ms-2x_coco.py',
        'mask_rcnn/mask-rcnn_r50-caffe_fpn_ms-poly-2x_coco.py', 'mask_rcnn/mask-rcnn_r50-caffe_fpn_ms-poly-3x_coco.py',
        'scratch/faster-rcnn_r50-scratch_fpn_gn-all_6x_coco.py', 'scratch/mask-rcnn_r50-scratch_fpn_gn-all_6x_coco.py',
        'strong_baselines/mask-rcnn_r50-caffe_fpn_rpn-2conv_4conv1fc_syncbn-all_lsj-400e_coco.py']


def test_every_rate_is_that_of_mmengines_schedulers(translations):
    """Of each schedule among the files, at every step of 3000 (an epoch has 30)."""
    from test_dialects_schedule import rates_of_mmengine
    seen = set()
    for cfg in translations.values():
        if isinstance(cfg, ConfigError) or repr(cfg.as_written.param_scheduler) in seen:
            continue
        entries = cfg.as_written.to_dict()['param_scheduler']
        seen.add(repr(cfg.as_written.param_scheduler))
        by_epoch = cfg.runner.type == 'EpochBasedRunner'
        schedule = LrSchedule(**{'by_epoch': by_epoch, **cfg.lr_config})
        epochs = cfg.runner.get('max_epochs', 1)
        steps, length = min(3000, epochs * 30 if by_epoch else 3000), 30
        ours = [schedule.rate(0.02, Progress(i, i // length, epochs * 30, epochs, length)) for i in range(steps)]
        assert ours == pytest.approx(rates_of_mmengine(entries, steps, length), rel=1e-9), entries
    assert len(seen) >= 15
