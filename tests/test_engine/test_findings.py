"""Every finding: what brings it, what its line names, its entry in docs/checks.md, and the switch that lets it pass."""
import copy
import json
import logging
import re
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from boxdet.datasets import build_dataset
from boxdet.datasets.wrappers import ConcatDataset
from boxdet.engine.config import Config, check_config
from boxdet.engine.data_check import annotation_findings
from boxdet.engine.findings import CHECKS, Finding, ignored_codes, report
from boxdet.engine.preflight import check_evaluation, check_schedule, check_training
from boxdet.errors import ConfigError, DataError
from boxdet.models import build_detector
from tests.test_models import tiny_models

TRAIN = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_bbox=True, with_mask=True),
         dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks'],
                                                meta_keys=[])]
TEST = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=(64, 64), transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img'])])]
NAMES = ('apple', 'pear', 'plum')


class Case:
    """A folder with six images of 128 x 96 and three objects on each; ``change`` alters what the file says."""

    def __init__(self, folder):
        self.folder, self.model_cfg = folder, tiny_models.mask_rcnn()
        self.pipelines, self.classes, self.cfg, self.with_val = dict(train=TRAIN, val=TEST), NAMES, {}, True
        self.val_classes = None
        rng = np.random.default_rng(0)
        images = [dict(id=i, file_name=f'{i}.png', width=128, height=96) for i in range(6)]
        annotations = []
        for i in range(18):
            x, y, w, h = (int(v) for v in (rng.integers(40, 90), rng.integers(30, 60), *rng.integers(10, 36, 2)))
            annotations.append(dict(id=100 + i, image_id=i // 3, category_id=i % 3, iscrowd=0,
                                    bbox=[x, y, w, h], area=w * h,
                                    segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]]))
        self.file = dict(images=images, annotations=annotations,
                         categories=[dict(id=k, name=n) for k, n in enumerate(NAMES)])
        for image in images:
            cv2.imwrite(str(folder / image['file_name']), np.zeros((96, 128, 3), np.uint8))

    def each(self, change):
        for annotation in self.file['annotations']:
            change(annotation)

    def dataset(self, split, **options):
        (self.folder / 'ann.json').write_text(json.dumps(self.file))
        return build_dataset(dict(type='CocoDataset', ann_file=str(self.folder / 'ann.json'),
                                  img_prefix=str(self.folder), pipeline=self.pipelines[split],
                                  classes=self.val_classes if split == 'val' and self.val_classes else self.classes,
                                  test_mode=split == 'val', **options))

    iters_per_epoch, batch = 3, 2

    def train(self, ignore=()):
        """What train_detector asks, on a config of the usual keys."""
        cfg = Config(dict(dict(model=self.model_cfg, runner=dict(type='EpochBasedRunner', max_epochs=12),
                               lr_config=dict(policy='step', step=[8, 11]), optimizer=dict(type='SGD', lr=0.01)),
                          **copy.deepcopy(self.cfg), preflight=dict(ignore=list(ignore))))
        check_config(cfg)
        model = build_detector(self.model_cfg)
        check_training(model, self.dataset('train'), self.dataset('val') if self.with_val else None, ignored_codes(cfg),
                       batch=self.batch)
        check_schedule(model, cfg, cfg.runner, cfg.lr_config, cfg.get('evaluation') or {}, self.iters_per_epoch)


CASES = []


REMEDIES = []


def case(code, *fragments, remedy=None):
    """A slip, what its line has to name, and what the line says to do."""
    def register(function):
        CASES.append(pytest.param(code, fragments, function, id=f'{code}: {function.__name__}'))
        if remedy is not None:
            REMEDIES.append(pytest.param(code, function, remedy, id=f'{code}: {function.__name__}'))
        return function
    return register


def each(change):
    """A remedy for every annotation."""
    return lambda c: c.each(change)


def at(path, value):
    """A remedy in the model's config, given by its dotted path."""
    def remedy(c):
        cfg = Config(dict(model=c.model_cfg))
        cfg.merge_from_dict({f'model.{path}': value})
        c.model_cfg = cfg.model.to_dict()
    return remedy


def times(numbers, sides=(128, 96)):
    """Numbers x, y, x, y, … from 0 to 1 in pixels."""
    return [v * sides[i % 2] for i, v in enumerate(numbers)]


# --- config

@case('config.contradiction', 'total_epochs = 3 and runner.max_epochs = 12',
      remedy=lambda c: c.cfg.pop('total_epochs'))
def total_epochs(c):
    c.cfg = dict(total_epochs=3)


@case('config.contradiction', 'total_epochs = 3 and runner.max_iters = 90')
def total_epochs_of_iterations(c):
    c.cfg = dict(total_epochs=3, runner=dict(type='IterBasedRunner', max_iters=90))


@case('config.contradiction', "model.pretrained = 'a.pth' and model.backbone.init_cfg.checkpoint = 'b.pth'")
def pretrained_twice(c):
    c.model_cfg['pretrained'] = 'a.pth'
    c.model_cfg['backbone']['init_cfg'] = dict(type='Pretrained', checkpoint='b.pth')


@case('config.idle-key', "custom_keys['backbonee']", "did you mean 'backbone'?",
      remedy=lambda c: c.cfg['optimizer'].update(paramwise_cfg=dict(custom_keys=dict(backbone=dict(lr_mult=0.1)))))
def custom_key_of_nothing(c):
    c.cfg = dict(optimizer=dict(type='SGD', lr=0.01, paramwise_cfg=dict(custom_keys=dict(backbonee=dict(lr_mult=0.1)))))


@case('config.idle-schedule', 'lr_config.step 8, 11: the training ends after 6 epochs (runner.max_epochs = 6)',
      remedy=lambda c: c.cfg.update(runner=dict(type='EpochBasedRunner', max_epochs=12)))
def steps_after_the_end(c):
    c.cfg = dict(runner=dict(type='EpochBasedRunner', max_epochs=6))


@case('config.idle-schedule', 'lr_config.step 90: the training ends after 36 iterations (runner.max_epochs = 12)')
def iterations_after_the_end_of_epochs(c):
    c.cfg = dict(lr_config=dict(policy='step', step=[9, 90], by_epoch=False))


@case('config.idle-schedule', 'lr_config.warmup_iters = 500 iterations: the training ends after 36 iterations',
      'set lr_config.warmup_iters to a tenth of it (3)',
      remedy=lambda c: c.cfg['lr_config'].update(warmup_iters=3))
def warmup_longer_than_the_training(c):
    c.cfg = dict(lr_config=dict(policy='step', step=[8, 11], warmup='linear', warmup_iters=500))


@case('config.idle-schedule', 'evaluation begins after 13 epochs, and the training ends after 12', '(save_best)',
      'set evaluation.interval to 12', remedy=lambda c: c.cfg['evaluation'].update(interval=12))
def evaluated_after_the_end(c):
    c.cfg = dict(evaluation=dict(interval=13, save_best='bbox_mAP'))


@case('config.idle-schedule', 'optimizer.lr = 0: no weight changes',
      remedy=lambda c: c.cfg['optimizer'].update(lr=0.01))
def rate_of_0(c):
    c.cfg = dict(optimizer=dict(type='SGD', lr=0))


@case('config.contradiction', "model.pretrained = 'a.pth' and model.backbone.init_cfg = None")
def pretrained_and_not(c):
    c.model_cfg['pretrained'], c.model_cfg['backbone']['init_cfg'] = 'a.pth', None


# --- data

@case('data.all-crowd', 'none of the 18 objects can be learned', 'annotation ids 100, 101, 102, …', '18 iscrowd',
      remedy=each(lambda a: a.update(iscrowd=0)))
def crowds(c):
    c.each(lambda a: a.update(iscrowd=1))


@case('data.all-crowd', "18 marked 'ignore'",
      remedy=each(lambda a: a.pop('ignore')))
def ignored(c):
    c.each(lambda a: a.update(ignore=1))


@case('data.all-crowd', '18 without area')
def no_area(c):
    c.each(lambda a: a.update(bbox=[*a['bbox'][:2], 0, 0]))


@case('data.areas', "'area' of 18 of 18 objects contradicts their boxes", 'areas of images of another size',
      remedy=each(lambda a: a.update(area=a['bbox'][2] * a['bbox'][3])))
def areas_of_larger_images(c):
    c.each(lambda a: a.update(area=a['area'] * 4))


@case('data.areas', 'relative numbers (0 to 1)',
      remedy=each(lambda a: a.update(area=a['bbox'][2] * a['bbox'][3])))
def relative_areas(c):
    c.each(lambda a: a.update(area=a['area'] / 128 / 96 / 100))


@case('data.boxes', '18 of 18 boxes', 'annotation ids 100, 101, 102, …', 'probably relative numbers (0 to 1)',
      remedy=each(lambda a: a.update(bbox=times(a['bbox']))))
def relative_boxes(c):
    c.each(lambda a: a.update(bbox=[v / s for v, s in zip(a['bbox'], (128, 96) * 2)]))


@case('data.boxes', 'probably corners (x1, y1, x2, y2) in place of x, y, width, height',
      remedy=each(lambda a: a.update(bbox=[*a['bbox'][:2], *np.subtract(a['bbox'][2:], a['bbox'][:2]).tolist()],
                                 area=float(np.prod(np.subtract(a['bbox'][2:], a['bbox'][:2]))))))
def corners(c):
    c.each(lambda a: a.update(bbox=[*a['bbox'][:2], a['bbox'][0] + a['bbox'][2], a['bbox'][1] + a['bbox'][3]], area=1))


@case('data.boxes', 'probably x and y exchanged')
def exchanged(c):
    c.each(lambda a: a.update(bbox=[a['bbox'][i] for i in (1, 0, 3, 2)]))
    for image in c.file['images']:
        image.update(width=60, height=128)
        cv2.imwrite(str(c.folder / image['file_name']), np.zeros((128, 60, 3), np.uint8))
    for a in c.file['annotations']:  # on images 60 wide and 128 high as they are stored
        x, y = a['bbox'][0] // 2, a['bbox'][1]
        a.update(bbox=[y, x, 12, 12], area=144)


@case('data.boxes', 'boxes of an image of another size (they reach to 1.',
      remedy=each(lambda a: a.update(bbox=[v / 2 for v in a['bbox']], area=a['area'] / 4)))
def larger_image(c):
    c.each(lambda a: a.update(bbox=[v * 2 for v in a['bbox']], area=a['area'] * 4))


@case('data.boxes', 'boxes of corners (x1, y1, x2, y2)')
def corners_within_the_image(c):
    def change(a):
        x, y = a['id'] % 7 + 2, a['id'] % 5 + 2
        a.update(bbox=[x, y, x + 9, y + 9], area=81, segmentation=[[x, y, x + 9, y, x + 9, y + 9, x, y + 9]])
    c.each(change)
    c.each(lambda a: a.update(bbox=[40, 40, 50, 50], segmentation=[[40, 40, 50, 40, 50, 50, 40, 50]]))


@case('data.boxes-outside', '6 of 18 boxes reach beyond their image')
def partly_outside(c):
    for a in c.file['annotations'][::3]:
        a.update(bbox=[120, 40, 14, 20], segmentation=[[120, 40, 128, 40, 128, 60, 120, 60]], area=160)


@case('data.boxes-outside', '6 of 18 boxes reach beyond their image')
def beyond_the_upper_left_corner(c):
    for a in c.file['annotations'][::3]:
        a.update(bbox=[-9, 40, 30, 20], segmentation=[[-9, 40, 21, 40, 21, 60, -9, 60]], area=600)


@case('data.class-order', 'data.val has classes that data.train has not: plum', 'set data.val.classes to names of',
      remedy=lambda c: setattr(c, 'val_classes', NAMES[:2][::-1]))
def other_classes(c):
    c.classes, c.val_classes = NAMES[:2], NAMES
    c.each(lambda a: a.update(category_id=a['category_id'] % 2))
    c.model_cfg['roi_head']['bbox_head']['num_classes'] = c.model_cfg['roi_head']['mask_head']['num_classes'] = 2


@case('data.few-images', 'data.train has 6 images, and a batch takes 16', 'set data.samples_per_gpu to 6 at most',
      remedy=lambda c: setattr(c, 'batch', 6))
def batch_of_more_than_all(c):
    c.batch = 16


@case('data.fewer-classes', "data.val: the data set has 1 of the model's 3 classes", '(pear, plum) are left out')
def fewer_classes(c):
    c.val_classes = NAMES[:1]


@case('data.in-a-corner', 'none of the 72 boxes reaches beyond 0.6', 'in percent',
      remedy=each(lambda a: a.update(bbox=[v * 1.4 for v in a['bbox']], area=a['area'] * 1.96,
                                     segmentation=[[v * 1.4 for v in a['segmentation'][0]]])))
def smaller_images(c):
    c.file['annotations'] = [{**a, 'id': 100 * k + a['id'], 'bbox': [x + k, y, 9, 9], 'area': 81, 'segmentation': [
        [x + k, y, x + k + 9, y, x + k + 9, y + 9, x + k, y + 9]]} for k in range(4) for a in c.file['annotations']
        for x, y in [(a['bbox'][0] * 0.8, a['bbox'][1] * 0.8)]]


@case('data.mostly-crowd', '17 of 18 objects cannot be learned (annotation ids 100, 101, 102, …): 10 iscrowd',
      "7 of 'area' 0 or less (compute it anew",
      remedy=each(lambda a: a.update(iscrowd=0, area=a['bbox'][2] * a['bbox'][3])))
def nearly_all_are_crowds(c):
    for i, a in enumerate(c.file['annotations'][:-1]):
        a.update(dict(iscrowd=1) if i < 10 else dict(area=0))


@case('data.repeated', '18 of 36 objects stand there more than once', 'take them out',
      remedy=lambda c: c.file.update(annotations=c.file['annotations'][:18]))
def repeated(c):
    c.file['annotations'] += [{**a, 'id': a['id'] + 100} for a in c.file['annotations']]


@case('data.shared-images', "data.train: 1 of 6 entries of 'images' name a file that another one names", '0.png',
      remedy=lambda c: c.file['images'][5].update(file_name='5.png'))
def one_file_in_two_entries(c):
    c.file['images'][5]['file_name'] = '0.png'


@case('data.shared-images', 'data.train: 6 of 6 images are in several of its 2 data sets', 'count as background')
def one_set_for_each_class(c):
    def dataset(split, make=c.dataset):
        return ConcatDataset([make(split), make(split)]) if split == 'train' else make(split)
    c.dataset = dataset


@case('data.shared-images', '2 of the 2 images of data.val are in data.train too', 'take them out of one')
def images_of_training_in_val(c):
    def dataset(split, make=c.dataset):
        made = make(split)
        if split == 'val':
            made._keep([0, 1])
        return made
    c.dataset = dataset


@case('data.without-image', '3 annotations are of images that the file does not list', 'annotation ids 115, 116, 117',
      remedy=lambda c: c.file.update(annotations=c.file['annotations'][:15]))
def image_is_not_listed(c):
    c.file['images'].pop()


@case('data.degenerate-boxes', '1 boxes have no area, or lie outside their image, and are not used (annotation 100)',
      remedy=lambda c: c.file['annotations'].pop(0))
def one_degenerate(c):
    c.file['annotations'][0].update(bbox=[5, 5, 0, 9])


@case('data.degenerate-boxes', '2 boxes have no area', '2 of them have a negative width or height')
def corners_exchanged(c):
    for a in c.file['annotations'][:2]:
        x, y, w, h = a['bbox']
        a.update(bbox=[x + w, y + h, -w, -h])


@case('data.dropped-classes', '6 of 18 objects are left out, of 1 categories', 'plum 6',
      remedy=lambda c: (setattr(c, 'classes', NAMES), at('roi_head.bbox_head.num_classes', 3)(c),
                         at('roi_head.mask_head.num_classes', 3)(c)))
def dropped(c):
    c.classes = NAMES[:2]
    c.model_cfg['roi_head']['bbox_head']['num_classes'] = c.model_cfg['roi_head']['mask_head']['num_classes'] = 2


@case('data.empty-class', 'no object of 1 of the 3 classes (plum)',
      remedy=lambda c: c.file['annotations'][0].update(category_id=2))
def empty_class(c):
    c.each(lambda a: a.update(category_id=a['category_id'] % 2))


@case('data.empty-class', 'data.val: ', 'no object of 1 of the 3 classes (plum): nothing is measured for them')
def val_without_a_class(c):
    def dataset(split, make=c.dataset, whole=c.file['annotations']):
        c.file['annotations'] = whole if split == 'train' else [a for a in whole if a['category_id'] != 2]
        return make(split)
    c.dataset = dataset


@case('data.masks', '1 of 18 masks that were looked at cannot be read (annotation 117)', 'x and y of three points',
      remedy=lambda c: c.file['annotations'][17]['segmentation'][0].append(c.file['annotations'][17]['bbox'][1]))
def odd_polygon(c):
    c.file['annotations'][17]['segmentation'][0].pop()


@case('data.masks', '1 of 18 masks that were looked at cannot be read (annotation 109)')
def polygon_with_nan(c):
    c.file['annotations'][9]['segmentation'][0][3] = float('nan')


@case('data.masks', '18 of 18 masks', 'probably masks without a pixel')
def empty_rles(c):
    c.each(lambda a: a.update(segmentation=dict(size=[96, 128], counts=[96 * 128])))


@case('data.masks', '18 of 18 masks that were looked at lie elsewhere', 'annotation ids 100, 101, 102, …',
      'relative numbers',
      remedy=each(lambda a: a.update(segmentation=[times(a['segmentation'][0])])))
def relative_masks(c):
    c.each(lambda a: a.update(segmentation=[[v / s for v, s in zip(a['segmentation'][0], (128, 96) * 4)]]))


@case('data.masks', 'probably x and y exchanged',
      remedy=each(lambda a: a.update(segmentation=[[a['segmentation'][0][i ^ 1] for i in range(8)]])))
def exchanged_masks(c):
    c.each(lambda a: a.update(segmentation=[[a['segmentation'][0][i ^ 1] for i in range(8)]]))


@case('data.masks', 'probably masks of images of another size',
      remedy=each(lambda a: a.update(segmentation=[[v / 2.5 for v in a['segmentation'][0]]])))
def larger_masks(c):
    c.each(lambda a: a.update(segmentation=[[v * 2.5 for v in a['segmentation'][0]]]))


@case('data.masks', "the 'segmentation' of 18 of 18 objects is neither a list of polygons", 'but [[[82, 49], [105, 49]',
      remedy=each(lambda a: a.update(segmentation=[np.ravel(a['segmentation']).tolist()])))
def pairs_of_points(c):
    c.each(lambda a: a.update(segmentation=[np.reshape(a['segmentation'][0], (-1, 2)).tolist()]))


@case('data.boxes', 'the centre of the box in place of its corner',
      remedy=each(lambda a: a.update(bbox=[*np.subtract(a['bbox'][:2], np.divide(a['bbox'][2:], 2)), *a['bbox'][2:]])))
def centres(c):
    c.each(lambda a: a.update(bbox=[*np.add(a['bbox'][:2], np.divide(a['bbox'][2:], 2)), *a['bbox'][2:]]))


@case('data.masks', '18 RLE masks are of another size than their image', 'size is [height, width]')
def rle_of_another_size(c):
    c.each(lambda a: a.update(segmentation=dict(size=[128, 96], counts=[128 * 96])))


@case('data.no-image-files', '2 of 6 image files are none that can be read', '4.png (empty)', '5.png (a web page or')
def web_page_for_an_image(c):
    (c.folder / '4.png').write_bytes(b'')
    (c.folder / '5.png').write_text('<!DOCTYPE html><html>404</html>')


@case('data.missing-images', 'they are there by the last part of their names (such as', "correct 'file_name'",
      remedy=lambda c: [i.update(file_name=i['file_name'].rpartition('\\')[2]) for i in c.file['images']])
def paths_of_another_machine(c):
    for image in c.file['images']:
        image['file_name'] = 'C:\\data\\' + image['file_name']


@case('data.missing-images', 'they are in ', 'photos: set img_prefix to it',
      remedy=lambda c: [(c.folder / 'photos' / i['file_name']).rename(c.folder / i['file_name'])
                        for i in c.file['images']])
def images_in_another_folder(c):
    (c.folder / 'photos').mkdir()
    for image in c.file['images']:
        (c.folder / image['file_name']).rename(c.folder / 'photos' / image['file_name'])


@case('data.missing-images', "they are there with '/' in place of '\\' (such as", "correct 'file_name'",
      remedy=lambda c: [i.update(file_name=i['file_name'].replace('\\', '/')) for i in c.file['images']])
def backslashes(c):
    (c.folder / 'sub').mkdir()
    for image in c.file['images']:
        (c.folder / image['file_name']).rename(c.folder / 'sub' / image['file_name'])
        image['file_name'] = f"sub\\{image['file_name']}"


@case('data.missing-images', '1 of 6 image files are missing', '5.png',
      remedy=lambda c: cv2.imwrite(str(c.folder / '5.png'), np.zeros((96, 128, 3), np.uint8)))
def missing_image(c):
    (c.folder / '5.png').unlink()


@case('data.no-images', 'no image is left to use (of 6 in the file; left out: empty 6)')
def nothing(c):
    c.file['annotations'] = []
    c.with_val = False


@case('data.no-masks', "none of the 18 objects has a 'segmentation'",
      remedy=lambda c: setattr(c, 'model_cfg', tiny_models.faster_rcnn()))
def no_masks(c):
    c.each(lambda a: a.pop('segmentation'))


@case('data.some-masks', "1 of 18 objects have no 'segmentation' (annotation 100)")
def one_without_mask(c):
    c.file['annotations'][0]['segmentation'] = []


# --- model

def head(c, kind='bbox'):
    return c.model_cfg['roi_head'][f'{kind}_head']


@case('model.channels', 'model.neck.in_channels = [8, 16, 32, 99]', 'model.backbone gives [8, 16, 32, 64]',
      remedy=at('neck.in_channels', [8, 16, 32, 64]))
def backbone_and_neck(c):
    c.model_cfg['neck']['in_channels'] = [8, 16, 32, 99]


@case('model.channels', 'model.rpn_head.in_channels = 24', 'model.neck gives 16 channels (out_channels)',
      remedy=at('rpn_head.in_channels', 16))
def neck_and_rpn(c):
    c.model_cfg['rpn_head']['in_channels'] = 24


@case('model.channels', 'bbox_roi_extractor.out_channels = 24',
      remedy=at('roi_head.bbox_roi_extractor.out_channels', 16))
def neck_and_extractor(c):
    c.model_cfg['roi_head']['bbox_roi_extractor']['out_channels'] = 24


@case('model.channels', 'model.roi_head.mask_head.in_channels = 24',
      remedy=at('roi_head.mask_head.in_channels', 16))
def extractor_and_mask_head(c):
    head(c, 'mask')['in_channels'] = 24


@case('model.channels', 'model.roi_head.bbox_head.in_channels = 256', 'shared_head',
      remedy=at('roi_head.bbox_head.in_channels', 512))
def shared_head(c):
    c.model_cfg = tiny_models.c4_mask_rcnn()
    head(c)['in_channels'] = 256


@case('model.channels', 'model.roi_head.bbox_head.1.in_channels = 24')
def one_stage_of_a_cascade(c):
    c.model_cfg = tiny_models.cascade_mask_rcnn()
    head(c)[1]['in_channels'] = 24


@case('model.levels', 'model.neck.in_channels has 4 levels', 'model.backbone gives 3 (out_indices)',
      remedy=at('backbone.out_indices', (0, 1, 2, 3)))
def levels_of_the_backbone(c):
    c.model_cfg['backbone']['out_indices'] = (1, 2, 3)


@case('model.levels', 'anchor_generator.strides has 5 levels', 'model.neck gives 4 (num_outs)',
      remedy=at('neck.num_outs', 5))
def levels_of_anchors(c):
    c.model_cfg['neck']['num_outs'] = 4


@case('model.levels', 'bbox_roi_extractor.featmap_strides has 6 levels',
      remedy=at('roi_head.bbox_roi_extractor.featmap_strides', [4, 8, 16, 32, 64]))
def levels_of_rois(c):
    c.model_cfg['roi_head']['bbox_roi_extractor']['featmap_strides'] = [4, 8, 16, 32, 64, 128]


@case('model.strides', 'strides = [8, 16, 32, 64, 128]', 'set strides=[4, 8, 16, 32, 64]',
      remedy=at('rpn_head.anchor_generator.strides', [4, 8, 16, 32, 64]))
def strides_of_anchors(c):
    c.model_cfg['rpn_head']['anchor_generator']['strides'] = [8, 16, 32, 64, 128]


@case('model.strides', 'mask_roi_extractor.featmap_strides = [8, 16, 32, 64]', 'set featmap_strides=[4, 8, 16, 32]',
      remedy=at('roi_head.mask_roi_extractor.featmap_strides', [4, 8, 16, 32]))
def strides_of_rois(c):
    c.model_cfg['roi_head']['mask_roi_extractor']['featmap_strides'] = [8, 16, 32, 64]


@case('model.roi-size', 'model.roi_head.bbox_head.roi_feat_size is 7x7', 'gives RoIs of 14x14 (roi_layer.output_size)',
      remedy=at('roi_head.bbox_head.roi_feat_size', 14))
def roi_size(c):
    c.model_cfg['roi_head']['bbox_roi_extractor']['roi_layer']['output_size'] = 14


@case('model.mask-size', 'model.train_cfg.rcnn.mask_size is 14x14', 'gives masks of 28x28: set mask_size=28',
      remedy=at('train_cfg.rcnn.mask_size', 28))
def mask_size(c):
    c.model_cfg['train_cfg']['rcnn']['mask_size'] = 14


@case('model.head-reads', 'model.roi_head.bbox_head does not take features (16, 7, 7)')
def head_of_ones_own(c):
    from torch import nn

    from boxdet.registry import HEADS

    class LinearHead(nn.Module):
        def __init__(self, num_classes):
            super().__init__()
            self.num_classes, self.fc = num_classes, nn.Linear(10, num_classes + 1)

        def forward(self, x):
            return self.fc(x.flatten(1)), None
    HEADS.register_module(module=LinearHead, force=True)
    c.model_cfg['roi_head']['bbox_head'] = dict(type='LinearHead', num_classes=3)


@case('model.loss-form', 'bbox_head.loss_bbox is GIoULoss', 'set model.roi_head.bbox_head.reg_decoded_bbox=True',
      remedy=at('roi_head.bbox_head.reg_decoded_bbox', True))
def iou_loss_on_deltas(c):
    head(c)['loss_bbox'] = dict(type='GIoULoss')


@case('model.loss-form', 'model.rpn_head.loss_bbox is BoundedIoULoss',
      remedy=at('rpn_head.reg_decoded_bbox', True))
def iou_loss_in_the_rpn(c):
    c.model_cfg['rpn_head']['loss_bbox'] = dict(type='BoundedIoULoss')


@case('model.loss-form', 'model.roi_head.bbox_head.reg_decoded_bbox=True gives boxes in pixels to L1Loss',
      remedy=at('roi_head.bbox_head.reg_decoded_bbox', False))
def deltas_loss_on_boxes(c):
    head(c)['reg_decoded_bbox'] = True


@case('model.loss-form', 'mask_head.loss_mask is of exclusive classes', 'loss_mask.use_mask=True',
      remedy=at('roi_head.mask_head.loss_mask.use_mask', True))
def mask_of_exclusive_classes(c):
    head(c, 'mask')['loss_mask'] = dict(type='CrossEntropyLoss')


@case('model.loss-form', 'bbox_head.loss_cls is FocalLoss, which learns a yes or no for each class',
      remedy=at('roi_head.bbox_head.loss_cls', dict(type='CrossEntropyLoss', use_sigmoid=False, _delete_=True)))
def focal_loss_before_a_softmax(c):
    head(c)['loss_cls'] = dict(type='FocalLoss')


@case('model.loss-form', 'bbox_head.loss_cls is CrossEntropyLoss, which learns a yes or no')
def sigmoid_before_a_softmax(c):
    head(c)['loss_cls'] = dict(type='CrossEntropyLoss', use_sigmoid=True)


@case('model.loss-form', 'bbox_head.loss_cls is L1Loss, which is no loss of classes',
      remedy=at('roi_head.bbox_head.loss_cls', dict(type='CrossEntropyLoss', _delete_=True)))
def numbers_for_classes(c):
    head(c)['loss_cls'] = dict(type='L1Loss')


@case('model.loss-form', 'bbox_head.loss_bbox is FocalLoss, which is no loss of boxes',
      remedy=at('roi_head.bbox_head.loss_bbox', dict(type='L1Loss', loss_weight=1.0)))
def classes_for_boxes(c):
    head(c)['loss_bbox'] = dict(type='FocalLoss')


@case('model.loss-form', 'mask_head.loss_mask is CrossEntropyLoss, which is no loss of masks',
      remedy=at('roi_head.mask_head.loss_mask', dict(type='CrossEntropyLoss', use_mask=True, _delete_=True)))
def classes_for_masks(c):
    head(c, 'mask')['loss_mask'] = dict(type='CrossEntropyLoss', use_sigmoid=True)


@case('model.loss-form', 'rpn_head.loss_cls is CrossEntropyLoss with use_mask=True, which is no loss of classes')
def masks_for_classes(c):
    c.model_cfg['rpn_head']['loss_cls'] = dict(type='CrossEntropyLoss', use_mask=True)


@case('model.class-weight', 'loss_cls.class_weight has 3 numbers, and 4 scores are weighed',
      remedy=at('roi_head.bbox_head.loss_cls.class_weight', [1., 2., 3., 1.]))
def class_weight(c):
    head(c)['loss_cls'] = dict(type='CrossEntropyLoss', class_weight=[1., 2., 3.])


@case('model.num-classes',
      'model.roi_head.mask_head.num_classes = 4: the training data has 3 classes (apple, pear, plum)',
      remedy=at('roi_head.mask_head.num_classes', 3))
def num_classes(c):
    head(c, 'mask')['num_classes'] = 4


@case('model.num-classes', 'model.roi_head.bbox_head.2.num_classes = 80')
def num_classes_of_a_stage(c):
    c.model_cfg = tiny_models.cascade_mask_rcnn()
    head(c)[2]['num_classes'] = 80


@case('model.keypoints', 'learns keypoints, and the training data set CocoDataset has none')
def keypoints(c):
    c.model_cfg = tiny_models.keypoint_rcnn()


@case('model.image-channels', 'model.backbone reads images of 3 channels (in_channels), and those of data.train have 1',
      remedy=at('backbone.in_channels', 1))
def grey(c):
    c.pipelines['train'] = [dict(type='LoadImageFromFile', color_type='grayscale'), *TRAIN[1:]]


# --- pipelines

@case('pipeline.keys', "data.train: its samples have no 'gt_masks', which model.roi_head.mask_head learns from",
      remedy=lambda c: c.pipelines.update(train=TRAIN))
def no_masks_collected(c):
    c.pipelines['train'] = [*TRAIN[:3], dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'], meta_keys=[])]


@case('pipeline.keys', "no 'gt_labels', which model.roi_head.bbox_head")
def no_labels_collected(c):
    c.pipelines['train'] = [*TRAIN[:3], dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_masks'], meta_keys=[])]


@case('pipeline.keys', "no 'gt_bboxes', which model.rpn_head")
def no_boxes_collected(c):
    c.pipelines['train'] = [*TRAIN[:3], dict(type='Collect', keys=['img', 'gt_labels', 'gt_masks'], meta_keys=[])]


@case('pipeline.keys', 'data.train.pipeline has RandomFlip behind DefaultFormatBundle', 'put RandomFlip before it',
      remedy=lambda c: c.pipelines.update(train=TRAIN))
def formatted_too_early(c):
    c.pipelines['train'] = [*TRAIN[:2], TRAIN[2], dict(type='RandomFlip', flip_ratio=1.0), *TRAIN[3:]]


@case('pipeline.keys', 'data.val.pipeline is empty, and loads no image: set it to the test_pipeline',
      remedy=lambda c: c.pipelines.update(val=TEST))
def empty_pipeline_in_validation(c):
    c.pipelines['val'] = []


@case('pipeline.keys', 'data.train.pipeline is empty, and loads no image',
      remedy=lambda c: c.pipelines.update(train=TRAIN))
def empty_pipeline(c):
    c.pipelines['train'] = []


@case('pipeline.keys', "data.val: its samples have no 'img', which the model reads: name it in Collect",
      remedy=lambda c: c.pipelines.update(val=TEST))
def no_image_collected_in_validation(c):
    c.pipelines['val'] = [TEST[0], dict(type='Collect', keys=[], meta_keys=[])]


@case('pipeline.phase', 'data.train.pipeline is one for testing',
      remedy=lambda c: c.pipelines.update(train=TRAIN))
def pipeline_of_testing(c):
    c.pipelines['train'] = TEST


@case('pipeline.phase', 'data.val.pipeline is one for training (LoadAnnotations)',
      remedy=lambda c: c.pipelines.update(val=TEST))
def training_pipeline_in_validation(c):
    c.pipelines['val'] = TRAIN


NORM = dict(type='Normalize', mean=[123.7, 116.3, 103.5], std=[58.4, 57.1, 57.4], to_rgb=True)


def normalised(training, evaluated):
    """Pipelines with these steps before formatting."""
    def change(c):
        c.pipelines = dict(train=[*TRAIN[:2], *training, *TRAIN[2:]], val=[TEST[0], {**TEST[1], 'transforms': [
            *TEST[1]['transforms'][:2], *evaluated, *TEST[1]['transforms'][2:]]}])
    return change


@case('pipeline.normalize', 'data.val normalises images by ([123.7, 116.3, 103.5], [58.4', 'and data.train by ([0.0, 0',
      remedy=normalised([NORM], [NORM]))
def normalised_otherwise(c):
    normalised([dict(type='Normalize', mean=[0] * 3, std=[255.] * 3)], [NORM])(c)


@case('pipeline.normalize', 'data.train.pipeline normalises images 2 times', remedy=normalised([NORM], [NORM]))
def normalised_twice(c):
    normalised([NORM, NORM], [NORM])(c)


@case('pipeline.normalize', 'numbers of images from 0 to 1, and these go to 255: multiply both by 255')
def normalised_from_0_to_1(c):
    norm = dict(type='Normalize', mean=[.485, .456, .406], std=[.229, .224, .225], to_rgb=True)
    normalised([norm], [norm])(c)


@pytest.mark.parametrize('change, cause', [
    (lambda x, y, box: (y, x), 'x and y exchanged'), (lambda x, y, box: (x / 128, y / 96), 'relative numbers'),
    (lambda x, y, box: (x - box[0], y - box[1]), "relative to the box's corner"),
    (lambda x, y, box: (x, y), None)])
def test_keypoints_elsewhere_than_their_boxes(tmp_path, change, cause):
    c = Case(tmp_path)
    for a in c.file['annotations']:
        x, y = a['bbox'][:2]
        a['keypoints'] = [v for j in range(1, 4) for v in (*change(x + j, y + j, a['bbox']), 2)]
    c.file['categories'] = [{**one, 'keypoints': ['nose', 'left_eye', 'right_eye']} for one in c.file['categories']]
    (tmp_path / 'ann.json').write_text(json.dumps(c.file))
    dataset = build_dataset(dict(type='CocoKeypointDataset', ann_file=str(tmp_path / 'ann.json'), classes=NAMES,
                                 img_prefix=str(tmp_path), pipeline=TRAIN[:1]))
    found = [one for one in annotation_findings(dataset, 'data.train') if one.code == 'data.keypoints']
    if cause is None:
        assert found == []
    else:
        assert 'of 18 objects lie elsewhere than their boxes' in str(found[0]) and cause in str(found[0])


# --- tests

@pytest.fixture
def log(caplog):
    logging.getLogger('boxdet').propagate = True
    caplog.set_level(logging.INFO, logger='boxdet')
    return caplog


@pytest.mark.parametrize('code, fragments, change', CASES)
def test_it_is_found_and_may_be_ignored(tmp_path, log, code, fragments, change):
    one = Case(tmp_path)
    change(one)
    if CHECKS[code] is None:
        one.train()
        line = next(r.message for r in log.records if r.levelno == logging.WARNING and r.message.endswith(f'[{code}]'))
    else:
        with pytest.raises(CHECKS[code]) as found:
            one.train()
        line = str(found.value)
    assert line.endswith(f' [{code}]') and '\n' not in line
    for fragment in fragments:
        assert fragment in line
    # loading them is an error of its own
    if change in (rle_of_another_size, pairs_of_points, odd_polygon, polygon_with_nan, web_page_for_an_image):
        return
    log.clear()
    one.train(ignore=sorted(CHECKS))  # all of them, as one slip may bring others
    assert [r.message for r in log.records if r.levelno > logging.INFO] == []


def test_nothing_is_found_where_nothing_is_wrong(tmp_path, log):
    for model_cfg in (tiny_models.mask_rcnn(), tiny_models.faster_rcnn(), tiny_models.cascade_mask_rcnn(),
                      tiny_models.c4_mask_rcnn()):
        one = Case(tmp_path)
        one.model_cfg = model_cfg
        one.train()
    assert [r.message for r in log.records if r.levelno > logging.INFO] == []


@pytest.mark.parametrize('code, change, remedy', REMEDIES)
def test_the_advice_helps(tmp_path, log, code, change, remedy):
    one = Case(tmp_path)
    change(one)
    remedy(one)
    one.train()
    assert [r.message for r in log.records if r.levelno > logging.INFO] == []


def test_images_that_are_kept_are_not_called_left_out(tmp_path, log):
    one = Case(tmp_path)
    one.file['annotations'] = one.file['annotations'][:9]
    one.train()
    assert 'data.train: 3 images (of 6 in the file; left out: empty 3)' in log.text
    log.clear()
    dataset = one.dataset
    one.dataset = lambda split: dataset(split, filter_empty_gt=False)
    one.train()
    assert 'data.train: 6 images (of 6 in the file; filter_empty_gt=False keeps: empty 3)' in log.text


def test_boxes_of_other_data_sets_are_looked_at_image_by_image():
    class Own:
        def __len__(self):
            return 3

        def img_info(self, index):
            return dict(filename=f'{index}.png', width=50, height=40)

        def get_ann_info(self, index):
            return dict(bboxes=np.array([[1, 1, 20, 20], [10, 10, 90 if index else 50, 30]], np.float32))

    found, = annotation_findings(Own(), 'data.train')
    assert str(found).startswith('data.train: Own: 2 of 6 boxes that were looked at reach beyond their image (1')


def test_an_ignored_finding_is_told(tmp_path, log):
    one = Case(tmp_path)
    relative_boxes(one)
    one.train(ignore=['data.boxes', 'data.all-crowd', 'data.masks'])
    assert re.search(r'preflight.ignore: .*relative numbers .*\[data.boxes\]', log.text)


def test_several_errors_are_all_told(log):
    findings = [Finding('data.boxes', 'one'), Finding('data.areas', 'two'), Finding('model.levels', 'three')]
    with pytest.raises(DataError, match=r'one \[data.boxes\]'):
        report(findings)
    assert [(r.levelname, r.message) for r in log.records] == [
        ('WARNING', 'two [data.areas]'), ('ERROR', 'three [model.levels]')]


def test_every_code_is_documented_and_tried(repo_root):
    rows = re.findall(r'^\| `([a-z.-]+)` \| (error|warning) \|', (repo_root / 'docs/checks.md').read_text(), re.M)
    assert dict(rows) == {code: 'warning' if kind is None else 'error' for code, kind in CHECKS.items()}
    assert [code for code, _ in rows] == sorted(code for code, _ in rows)
    assert {param.values[0] for param in CASES} | {'data.missing-classes', 'data.keypoints'} == set(CHECKS)


def test_missing_classes_are_told(tmp_path, log):
    from boxdet.engine.preflight import _data
    dataset = SimpleNamespace(filter_report=dict(missing_classes=['plum']), CLASSES=NAMES, ann_file='a.json',
                              __len__=None)
    found = list(_data(type('Data', (), dict(vars(dataset), __len__=lambda self: 2))(), 'data.train', []))
    assert [one.code for one in found] == ['data.missing-classes']
    assert 'no category for 1 of the 3 classes (plum)' in str(found[0])


@pytest.mark.parametrize('section, message', [
    (dict(ignore=['data.boxs']),
     "there is no check 'data.boxs'; did you mean 'data.boxes'?; docs/checks.md lists them"),
    (dict(ignor=[]), "preflight.ignor: there is no such key; did you mean 'ignore'?"),
    (dict(ignore='data.boxes'), "preflight.ignore is a list of codes such as ['data.boxes'], not 'data.boxes'"),
    (['data.boxes'], "preflight must be a dict such as dict(ignore=['data.boxes'])")])
def test_a_switch_that_is_wrong(section, message):
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_config(Config(dict(preflight=section)))


def test_an_evaluation_is_checked_too(tmp_path):
    one = Case(tmp_path)
    check_evaluation(one.dataset('val'), metric='segm')
    crowds(one)
    with pytest.raises(DataError, match=r'data.test: .*none of the 18 objects .*\[data.all-crowd\]'):
        check_evaluation(one.dataset('val'), metric='segm')
    check_evaluation(one.dataset('val'))  # nothing is measured
    one_without_mask(holey := Case(tmp_path))
    check_evaluation(holey.dataset('val'), metric='bbox')
    with pytest.raises(DataError, match=r"1 of 18 objects have no 'segmentation' .*set evaluation.metric .*no-masks"):
        check_evaluation(holey.dataset('val'), metric='segm')
    relative_masks(again := Case(tmp_path))
    check_evaluation(again.dataset('val'), metric='bbox')
    with pytest.raises(DataError, match=r'relative numbers.*\[data.masks\]'):
        check_evaluation(again.dataset('val'), metric='segm')


def test_an_evaluation_of_some_images_says_so(tmp_path, log):
    one = Case(tmp_path)
    check_evaluation(one.dataset('val'), metric='bbox')
    assert 'numbers are' not in log.text
    check_evaluation(one.dataset('val', max_images=2), metric='bbox')
    assert ('data.test: 2 images (of 6 in the file; left out: beyond_max_images 4): numbers are of these alone'
            in log.text)


def test_the_switch_stands_in_a_config_of_mmdetection_3x(tmp_path):
    from boxdet.engine.config import load_config
    (tmp_path / 'c.py').write_text("default_scope = 'mmdet'\npreflight = dict(ignore=['data.boxes'])\n")
    assert ignored_codes(load_config(tmp_path / 'c.py')) == ('data.boxes',)
    assert ignored_codes(load_config(tmp_path / 'c.py', ['preflight.ignore=[data.areas]'])) == ('data.areas',)
