"""What scripts and plug-ins call beside the classes that they derive from, with values. Its own process; asserts."""
import copy
import json
import os
import subprocess
import sys
import tempfile
from types import SimpleNamespace

import cv2
import numpy as np
import torch
from spied_models import batch, called, spying

import boxdet.apis
from boxdet.engine.config import load_config
from boxdet.models import build_detector as build_plain

ROOT = sys.argv[1]
FOLDER = tempfile.mkdtemp()


def small(kind, ohem=False):
    folder = kind.replace('cascade_mask', 'cascade')
    cfg = load_config(f'{ROOT}/configs/{folder}_rcnn/{kind}_rcnn_r50_fpn_1x_coco.py').model.to_dict()
    cfg['backbone'].update(depth=18, init_cfg=None)
    cfg['neck'].update(in_channels=[64, 128, 256, 512], out_channels=8)
    cfg['rpn_head'].update(in_channels=8, feat_channels=8)
    head = cfg['roi_head']
    for part in (head['bbox_roi_extractor'], head['mask_roi_extractor']):
        part['out_channels'] = 8
    for one in head['bbox_head'] if isinstance(head['bbox_head'], list) else [head['bbox_head']]:
        one.update(in_channels=8, fc_out_channels=16, num_classes=2)
    head['mask_head'].update(in_channels=8, conv_out_channels=8, num_classes=2)
    stages = cfg['train_cfg']['rcnn']
    for one in stages if isinstance(stages, list) else [stages]:
        one['sampler']['num'] = 32
        if ohem:
            one['sampler']['type'] = 'OHEMSampler'
    return cfg


KINDS = dict(cascade=small('cascade_mask'), ohem=small('mask', ohem=True))
torch.manual_seed(0)
plain = {name: build_plain(copy.deepcopy(cfg)) for name, cfg in KINDS.items()}

import boxdet.compat  # noqa: E402

boxdet.compat.install()

from mmcv import Config  # noqa: E402
from mmcv.parallel import DataContainer, MMDataParallel, collate, scatter  # noqa: E402
from mmcv.runner import build_runner, load_checkpoint, save_checkpoint  # noqa: E402
from mmdet.apis import multi_gpu_test, single_gpu_test, train_detector  # noqa: E402
from mmdet.core import DistEvalHook, EvalHook, encode_mask_results, eval_map  # noqa: E402
from mmdet.datasets import DATASETS, PIPELINES, CocoDataset, build_dataloader, build_dataset  # noqa: E402
from mmdet.datasets.pipelines import LoadAnnotations, Pad, RandomCrop, RandomFlip, Resize  # noqa: E402
from mmdet.models import build_detector  # noqa: E402
from mmdet.models.builder import HEADS  # noqa: E402
from mmdet.models.roi_heads import CascadeRoIHead, StandardRoIHead  # noqa: E402

# ---------------------------------------------------------------- forms of RoI heads: cascade with masks, OHEM
CALLED = dict(cascade=spying(HEADS, CascadeRoIHead, '_bbox_forward', '_bbox_forward_train', '_mask_forward',
                             '_mask_forward_train', 'forward_train'),
              ohem=spying(HEADS, StandardRoIHead, '_bbox_forward', '_mask_forward', 'forward_train',
                          'simple_test_mask'))
for name, kind in CALLED.items():
    cfg = copy.deepcopy(KINDS[name])
    cfg['roi_head']['type'] = kind
    model = build_detector(cfg)
    model.load_state_dict(plain[name].state_dict())
    found, data = [], batch()
    for one in (plain[name], model):
        torch.manual_seed(1)
        np.random.seed(1)
        found.append({key: float(sum(v) if isinstance(v, list) else v) for key, v in one.train().loss(data).items()})
    assert set(found[0]) == set(found[1])
    np.testing.assert_allclose([found[1][key] for key in found[0]], list(found[0].values()), rtol=1e-4, err_msg=name)
    data.gt = None
    ours, theirs = (one.eval().predict(data) for one in (plain[name], model))
    assert [len(a) for a in ours] == [len(b) for b in theirs]
    # Two views of an image, by 2.x's call.
    metas = [[dict(img_shape=(128, 128, 3), ori_shape=(64, 64, 3), pad_shape=(128, 128, 3), flip=flip,
                   scale_factor=np.full(4, 2, np.float32), flip_direction='horizontal' if flip else None)]
             for flip in (False, True)]
    views = [data.images[:1], data.images[:1].flip(-1)]
    with torch.no_grad():
        boxes, masks = model(return_loss=False, rescale=True, img=views, img_metas=metas)[0]
    assert len(boxes) == len(masks) == 2 and all(m.shape == (64, 64) for own in masks for m in own)
assert called == {'_bbox_forward', '_bbox_forward_train', '_mask_forward', '_mask_forward_train', 'forward_train',
                  'simple_test_mask'}, called

# ---------------------------------------------------------------- mean average precision
rows = np.array([[0, 0, 10, 10, .9], [50, 50, 60, 60, .8], [20, 20, 40, 40, .7]], np.float32)
truth = dict(bboxes=np.array([[0, 0, 10, 10], [20, 20, 40, 40]], np.float32), labels=np.array([0, 0]))
mean, classes = eval_map([[rows, rows[:0]]], [truth])
np.testing.assert_allclose([mean, classes[0]['ap']], [0.5 + 0.5 * 2 / 3] * 2, rtol=1e-6)
np.testing.assert_allclose(classes[0]['precision'], [1, 1 / 2, 2 / 3])
assert classes[0]['num_gts'] == 2 and classes[0]['num_dets'] == 3 and classes[1]['num_gts'] == 0
means, _ = eval_map([[rows, rows[:0]]], [truth], scale_ranges=[(0, 15), (15, 100)])
np.testing.assert_allclose(means, [1, 1])
mean, _ = eval_map([[rows, rows[:0]]], [truth], dataset='voc07')
np.testing.assert_allclose(mean, (6 + 5 * 2 / 3) / 11)

# ---------------------------------------------------------------- containers
sample = [dict(img=DataContainer(torch.full((1, 2 + i, 3), float(i)), stack=True), name=str(i),
               boxes=DataContainer(torch.full((i, 4), float(i))), meta=DataContainer(dict(i=i), cpu_only=True))
          for i in range(4)]
joined = collate(sample, samples_per_gpu=2)
assert [own.shape for own in joined['img'].data] == [(2, 1, 3, 3), (2, 1, 5, 3)] and joined['name'] == list('0123')
assert joined['img'].data[0][0, 0].tolist() == [[0.] * 3] * 3 and joined['img'].data[1][0, 0, 4].tolist() == [0.] * 3
assert [[len(b) for b in own] for own in joined['boxes'].data] == [[0, 1], [2, 3]]
(moved,) = scatter(collate(sample[:2], 2), [-1])
assert moved['meta'] == [dict(i=0), dict(i=1)] and moved['img'].shape == (2, 1, 3, 3) and len(moved['boxes']) == 2

# ---------------------------------------------------------------- data on disk, in plug-ins' own classes
touched = set()


def noting(registry, base, *names):
    def note(name):
        def method(self, *args, **kwargs):
            touched.add(name)
            return getattr(super(made, self), name)(*args, **kwargs)
        return method
    made = type(f'My{base.__name__}', (base,), {name: note(name) for name in names})
    return registry.register_module(name=made.__name__)(made).__name__


OWN = {Resize: ('_random_scale', '_resize_img', '_resize_bboxes', '_resize_masks', '_resize_seg'),
       RandomFlip: ('bbox_flip',), Pad: ('_pad_img', '_pad_masks', '_pad_seg'),
       RandomCrop: ('_get_crop_size', '_crop_data'),
       LoadAnnotations: ('_load_bboxes', '_load_labels', '_load_masks', '_poly2mask'),
       CocoDataset: ('_parse_ann_info', '_filter_imgs', 'pre_pipeline', 'prepare_train_img', '_det2json', 'xyxy2xywh')}
MINE = {base.__name__: noting(DATASETS if base is CocoDataset else PIPELINES, base, *names)
        for base, names in OWN.items()}
images, annotations = [], []
for i in range(3):
    cv2.imwrite(f'{FOLDER}/{i}.png', np.random.default_rng(i).integers(0, 255, (96, 128, 3), np.uint8))
    images.append(dict(id=i, file_name=f'{i}.png', width=128, height=96))
    annotations += [dict(id=2 * i + j, image_id=i, category_id=7 + j, bbox=[10 + 40 * j, 12, 50, 60], area=3000,
                         iscrowd=0, segmentation=[[10 + 40 * j, 12, 60 + 40 * j, 12, 60 + 40 * j, 72]])
                    for j in range(2)]
with open(f'{FOLDER}/a.json', 'w') as file:
    categories = [dict(id=7, name='a'), dict(id=8, name='b')]
    json.dump(dict(images=images, annotations=annotations, categories=categories), file)
NORM = dict(type='Normalize', mean=[100., 110, 120], std=[50., 60, 70], to_rgb=True)


def data_set(own, *steps):
    name = MINE.get if own else (lambda kind, same: same)
    pipeline = [dict(type='LoadImageFromFile'), *(dict(step, type=name(step['type'], step['type'])) for step in steps)]
    return dict(type=name('CocoDataset', 'CocoDataset'), ann_file=f'{FOLDER}/a.json', img_prefix=FOLDER,
                classes=('a', 'b'), pipeline=pipeline)


TRAIN = (dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
         dict(type='Resize', img_scale=[(200, 120), (220, 160)]), dict(type='RandomFlip', flip_ratio=0.5),
         dict(type='RandomCrop', crop_size=(96, 96), allow_negative_crop=True), NORM, dict(type='Pad', size_divisor=32),
         dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks']))
for i in range(3):
    np.random.seed(i)
    ours = build_dataset(data_set(False, *TRAIN))[i]
    np.random.seed(i)
    theirs = build_dataset(data_set(True, *TRAIN))[i]
    for key in ('img', 'gt_bboxes', 'gt_labels'):
        torch.testing.assert_close(theirs[key], ours[key])
    np.testing.assert_array_equal(theirs['gt_masks'].to_ndarray(), ours['gt_masks'].to_ndarray())
    assert repr(theirs['img_metas']) == repr(ours['img_metas'])
assert repr(Resize(img_scale=(3, 4), keep_ratio=False)).startswith('Resize(img_scale=[(3, 4)], multiscale_mode=')

TEST = dict(type='MultiScaleFlipAug', img_scale=(160, 120), flip=False, transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), NORM, dict(type='Pad', size_divisor=32),
    dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])])
cfg = load_config(f'{ROOT}/configs/shapes/mask_rcnn_r18_fpn_shapes.py')
cfg.model = KINDS['ohem']
cfg.model['test_cfg']['rcnn']['score_thr'] = 0.0
model = build_detector(cfg.model).eval()
model.CLASSES = ('a', 'b')
tested = build_dataset({**data_set(True, TEST), 'test_mode': True})
loader = build_dataloader(tested, samples_per_gpu=1, workers_per_gpu=0, dist=False, shuffle=False)
results = single_gpu_test(MMDataParallel(model, device_ids=[-1]), loader)
assert len(results) == 3 and len(results[0][0]) == 2 and set(results[0][1][0][0]) == {'size', 'counts'}
several = multi_gpu_test(model, loader)
np.testing.assert_array_equal(several[2][0][1], results[2][0][1])
by_hand = []
for data in loader:
    with torch.no_grad():
        found = model(return_loss=False, rescale=True, **data)
    by_hand += [(boxes, encode_mask_results(masks)) for boxes, masks in found]
for (boxes, masks), (other, codes) in zip(results, by_hand):
    np.testing.assert_allclose(boxes[0], other[0], rtol=1e-4, atol=1e-3)
    assert [len(own) for own in masks] == [len(own) for own in codes]
mine = tested.evaluate(results, metric=['bbox', 'segm'], logger='silent')
same = build_dataset({**data_set(False, TEST), 'test_mode': True}).evaluate(results, metric=['bbox', 'segm'],
                                                                           logger='silent')
assert mine.keys() == same.keys() and {'bbox_mAP', 'segm_mAP'} <= mine.keys()
paths = build_dataset({**data_set(True, TEST), 'test_mode': True}).results2json(results, f'{FOLDER}/out')
with open(paths['bbox']) as file:
    assert os.path.isfile(paths['segm']) and json.load(file)[0]['category_id'] in (7, 8)

for kind in (EvalHook, DistEvalHook):
    told, hook = [], kind(loader, interval=2, metric='bbox')
    for epoch in range(4):
        runner = SimpleNamespace(model=model.train(), epoch=epoch, logger=SimpleNamespace(info=told.append))
        hook.after_train_epoch(runner)
        assert runner.model.training
    assert len(told) == 2 and 'bbox_mAP' in told[0]

# ---------------------------------------------------------------- checkpoints, training
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
save_checkpoint(MMDataParallel(model), f'{FOLDER}/one/a.pth', optimizer, meta=dict(epoch=3))
other = build_detector(cfg.model)
content = load_checkpoint(other, f'{FOLDER}/one/a.pth', map_location='cpu', strict=True)
assert content['meta']['epoch'] == 3 and content['meta']['CLASSES'] == ('a', 'b') and 'optimizer' in content
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))
renamed = {f'module.{key}': value for key, value in content['state_dict'].items()}
torch.save(renamed, f'{FOLDER}/b.pth')
load_checkpoint(other, f'{FOLDER}/b.pth', strict=True)
named = {f'net.{name}': value for name, value in model.state_dict().items()}
torch.save(dict(meta={}, state_dict=named), f'{FOLDER}/named.pth')
for value in other.parameters():
    value.data.zero_()
load_checkpoint(other, f'{FOLDER}/named.pth', strict=True, revise_keys=[('^net', 'module'), (r'^module\.', '')])
assert all(torch.equal(value, model.state_dict()[name]) for name, value in other.state_dict().items())
del renamed['module.neck.fpn_convs.0.conv.bias']
torch.save(renamed, f'{FOLDER}/c.pth')
try:
    load_checkpoint(other, f'{FOLDER}/c.pth', strict=True)
    raise SystemExit('a checkpoint that lacks a weight was loaded strictly')
except RuntimeError as error:
    assert 'neck.fpn_convs.0.conv.bias' in str(error), error
torch.save(model, f'{FOLDER}/whole.pth')  # the whole object, read here and by a process without the hook
same = torch.load(f'{FOLDER}/whole.pth', weights_only=False)
assert type(same) is type(model) and same.memory_format is model.memory_format and same.CLASSES == ('a', 'b')
assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), same.state_dict().values()))
read = f"import torch; print(type(torch.load('{FOLDER}/whole.pth', weights_only=False).roi_head.bbox_sampler).__name__)"
assert subprocess.run([sys.executable, '-W', 'ignore', '-c', read], capture_output=True,
                      text=True).stdout == 'OHEMSampler\n'

script = Config(dict(cfg.to_dict(), work_dir=f'{FOLDER}/trained', seed=0, gpu_ids=[0], device='cpu',
                     runner=dict(type='EpochBasedRunner', max_epochs=1)))
script.data = dict(samples_per_gpu=1, workers_per_gpu=0, train=data_set(True, *TRAIN), val=data_set(True, TEST))
before = {key: value.clone() for key, value in other.state_dict().items()}
train_detector(other, [build_dataset(script.data.train)], script, distributed=False, validate=True)
assert os.path.isfile(f'{FOLDER}/trained/epoch_1.pth')
trained = torch.load(f'{FOLDER}/trained/epoch_1.pth', weights_only=False)['state_dict']
assert any(not torch.equal(trained[key], before[key]) for key in before)

runner = build_runner(dict(type='EpochBasedRunner', max_epochs=1), default_args=dict(
    model=MMDataParallel(other, device_ids=[-1]), batch_processor=None, work_dir=f'{FOLDER}/runner', logger=None,
    meta=None, optimizer=torch.optim.SGD(other.parameters(), lr=0.001)))
runner.register_training_hooks(dict(policy='step', step=[1]), dict(grad_clip=dict(max_norm=5)), dict(interval=1))
runner.register_hook(EvalHook(loader, metric='bbox'))
before = {key: value.clone() for key, value in other.state_dict().items()}
train_loader = build_dataloader(build_dataset(script.data.train), 1, 0, dist=False)
runner.run([train_loader], [('train', 1)])
assert runner.iter == len(train_loader) and np.isfinite(runner.outputs['loss'].item())
trained = torch.load(f'{FOLDER}/runner/latest.pth')['state_dict']
assert any(not torch.equal(trained[key], before[key]) for key in before)
absent = {name for names in OWN.values() for name in names} - touched
assert not absent, absent
print('all paths')
