"""Data sets, transforms and samples as 2.x's scripts read them, and a detector of a family (run by test_parts.py)."""
import json
import pickle
import warnings

import cv2
import numpy as np
import torch

import boxdet.compat

boxdet.compat.install()
from mmcv.parallel import DataContainer, collate  # noqa: E402
from mmdet.core import SamplingResult  # noqa: E402
from mmdet.datasets import CocoDataset, build_dataset, replace_ImageToTensor  # noqa: E402
from mmdet.datasets.pipelines import Collect, LoadImageFromFile, LoadMultiChannelImageFromFiles, Pad  # noqa: E402
from mmdet.models import DETECTORS, TwoStageDetector  # noqa: E402

cv2.imwrite('a.png', np.full((6, 8, 3), 7, np.uint8))
box = dict(id=1, image_id=1, category_id=5, bbox=[1, 1, 4, 4], area=16, iscrowd=0)
with open('coco.json', 'w') as file:
    json.dump(dict(images=[dict(id=1, file_name='a.png', width=8, height=6)], annotations=[box],
                   categories=[dict(id=5, name='car')]), file)

# Lists that were given stay lists, and what a script writes into data_infos is kept.
data = CocoDataset('coco.json', [], classes=['car'], filter_empty_gt=False, test_mode=True)
assert data.CLASSES == ['car'] and isinstance(data.data_infos, list)
assert CocoDataset('coco.json', [], classes=('car',), test_mode=True).CLASSES == ('car',)
data.data_infos[0]['note'] = 3
assert data.data_infos[0]['note'] == 3 and data.get_ann_info(0)['labels'].tolist() == [0]
assert build_dataset(dict(type='RepeatDataset', times=2, dataset=data)).CLASSES == ['car']

# Metas are a DataContainer to collate, and the dict that boxdet reads; they travel between processes.
steps = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', img_scale=[(16, 12), (8, 6)], transforms=[
    dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), dict(type='ImageToTensor', keys=['img']),
    dict(type='Collect', keys=['img'])])]
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter('always')
    assert replace_ImageToTensor(steps)[1]['transforms'][2] == dict(type='DefaultFormatBundle')
    Pad(size_divisor=32, pad_val=0)
assert [one.category for one in told] == [UserWarning, DeprecationWarning], told
views = CocoDataset('coco.json', steps, classes=('car',), test_mode=True)[0]
meta = pickle.loads(pickle.dumps(views['img_metas'][1]))
assert isinstance(meta, DataContainer) and isinstance(meta, dict) and meta.cpu_only
assert type(meta.data) is dict and meta.data['img_shape'] == (6, 8, 3) == meta['img_shape']
(opened,) = collate([meta]).data[0]
assert opened['ori_shape'] == (6, 8, 3) and isinstance(opened, dict)

found = LoadImageFromFile()(dict(img_prefix=None, img_info=dict(filename='a.png')))
assert found['img'].shape == (6, 8, 3)
said = "(to_float32=False, color_type='color', channel_order='bgr', file_client_args={'backend': 'disk'})"
assert repr(LoadImageFromFile()) == f'LoadImageFromFile{said}'
assert repr(LoadMultiChannelImageFromFiles()).endswith("color_type='unchanged', file_client_args={'backend': 'disk'})")
assert Collect(['img'])(found)['img_metas'].data['filename'] == 'a.png'

# A family's detector takes 2.x's calls, and calls its own methods.
for name in ('HybridTaskCascade', 'SCNet', 'PointRend', 'TridentFasterRCNN'):
    assert issubclass(DETECTORS.get(name), TwoStageDetector) and hasattr(DETECTORS.get(name), 'forward_dummy'), name
assert torch.is_tensor(views['img'][0])
for sizes in (dict(num_gts=0, num_preds=0), dict(num_gts=0, num_preds=3), dict(num_gts=7, num_preds=64), {}):
    drawn = SamplingResult.random(rng=1, **sizes)
    assert len(drawn.bboxes) == len(drawn.pos_inds) + len(drawn.neg_inds) <= 32
    assert len(drawn.pos_gt_bboxes) == len(drawn.pos_bboxes)
assert len(drawn.pos_inds) and (drawn.bboxes[:, 2:] >= drawn.bboxes[:, :2]).all()
print('samples')
