"""MultiScaleFlipAug: one view a scale and flip; batched testing."""
import warnings

import numpy as np
import pytest
import torch

from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.pipelines.formatting import ImageToTensor, replace_ImageToTensor, to_tensor
from boxdet.errors import ConfigError

INNER = [dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'),
         dict(type='Normalize', mean=[1, 2, 3], std=[4, 5, 6]), dict(type='Pad', size_divisor=32),
         dict(type='ImageToTensor', keys=['img']), dict(type='Collect', keys=['img'])]


def image(height=40, width=60):
    return dict(img=np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8), bbox_fields=[])


def pipeline(**options):
    return Compose([dict(type='LoadImageFromWebcam'), dict(type='MultiScaleFlipAug', transforms=INNER, **options)])


def test_views():
    views = pipeline(img_scale=[(60, 40), (120, 80)], flip=True, flip_direction=['horizontal', 'vertical'])(image())
    assert [tuple(v.shape) for v in views['img']] == [(3, 64, 64)] * 3 + [(3, 96, 128)] * 3
    assert [m['flip_direction'] for m in views['img_metas']] == [None, 'horizontal', 'vertical'] * 2
    assert torch.equal(views['img'][1][:, :40, :60], views['img'][0][:, :40, :60].flip(2))
    batches = collate([pipeline(img_scale=[(60, 40), (120, 80)], flip=True)(image(), compact=True) for _ in range(2)])
    assert len(batches) == 4 and batches[2].images.shape == (2, 3, 96, 128)
    assert torch.equal(batches[2].to('cpu').images[0], views['img'][3])
    factors = pipeline(scale_factor=[0.5, 1.0])(image())
    assert [m['img_shape'] for m in factors['img_metas']] == [(20, 30, 3), (40, 60, 3)]


def test_views_leave_no_trace_in_each_other():
    """LoadProposals inside the views appends to the sample's list of box keys: once a view, and not for all of them."""
    inner = [dict(type='LoadProposals'), *INNER[:-1], dict(type='Collect', keys=['img', 'proposals'],
                                                           meta_keys=('img_shape', 'bbox_fields'))]
    given = dict(image(), proposals=np.array([[0, 0, 60, 40]], dtype=np.float32))
    views = Compose([dict(type='LoadImageFromWebcam'),
                     dict(type='MultiScaleFlipAug', transforms=inner, scale_factor=[1.0, 2.0])])(given)
    assert [m['bbox_fields'] for m in views['img_metas']] == [['proposals']] * 2 and given['bbox_fields'] == []
    assert [p.tolist() for p in views['proposals']] == [[[0, 0, 60, 40]], [[0, 0, 120, 80]]]


def test_single_view_is_one_batch():
    one = pipeline(img_scale=(60, 40))
    batch = collate([one(image()), one(image(60, 40))])
    assert batch.images.shape == (2, 3, 64, 64) and batch.gt is None
    with pytest.raises(ConfigError, match='different numbers of views'):
        collate([one(image()), pipeline(img_scale=(60, 40), flip=True)(image())])
    for wrong in (dict(), dict(img_scale=(1, 2), scale_factor=2.0), dict(img_scale=[(1, 2, 3)])):
        with pytest.raises(ConfigError, match='MultiScaleFlipAug'):
            pipeline(**wrong)


def test_image_to_tensor_is_as_good_and_is_replaced_for_batches():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        ImageToTensor(['img'])
    config = [dict(type='LoadImageFromFile'), dict(type='MultiScaleFlipAug', transforms=INNER, img_scale=(3, 4))]
    replaced = replace_ImageToTensor(config)
    assert [t['type'] for t in replaced[1]['transforms']][4] == 'DefaultFormatBundle'
    assert config[1]['transforms'][4]['type'] == 'ImageToTensor'


def test_formatting():
    assert to_tensor([1, 2]).tolist() == [1, 2] and to_tensor(np.ones(2)).dtype == torch.float64
    assert to_tensor(3.5).item() == 3.5
    with pytest.raises(TypeError):
        to_tensor('text')
    wrapped = Compose([dict(type='WrapFieldsToLists')])(dict(img=torch.ones(3, 4, 4), img_metas={}))
    assert collate([wrapped]).images.shape == (1, 3, 4, 4)
    moved = Compose([dict(type='Transpose', keys=['a'], order=(1, 0)), dict(type='ToTensor', keys=['a'])])(
        dict(a=np.ones((2, 3))))
    assert moved['a'].shape == (3, 2)
    with pytest.raises(ConfigError, match='filled up with 0'):
        Compose([dict(type='DefaultFormatBundle', pad_val=dict(img=114))])
