"""collate: what becomes of each key."""
import numpy as np
import pytest
import torch

from boxdet.datasets.collate import collate
from boxdet.errors import ConfigError
from boxdet.structures.masks import BitmapMasks


def sample(objects=2, height=32, width=48, **more):
    return dict(img=torch.full((3, height, width), float(objects)), img_metas=dict(
        filename='a.jpg', img_shape=(height - 2, width - 3, 3), pad_shape=(height, width, 3), ori_shape=(9, 9, 3),
        scale_factor=np.full(4, 2.0), flip=False, note='kept'),
        gt_bboxes=torch.ones(objects, 4), gt_labels=torch.zeros(objects, dtype=torch.long),
        gt_masks=BitmapMasks(np.zeros((objects, height, width), dtype=np.uint8), height, width), **more)


def test_everything_finds_its_place():
    batch = collate([sample(2, gt_bboxes_ignore=torch.ones(3, 4), proposals=torch.ones(5, 5) * 0.5,
                            gt_keypoints=torch.zeros(2, 17, 3), gt_semantic_seg=torch.ones(1, 3, 5)),
                     sample(0, 64, 32, gt_bboxes_ignore=torch.ones(0, 4), proposals=torch.ones(2, 4),
                            gt_keypoints=torch.zeros(0, 17, 3), gt_semantic_seg=torch.ones(1, 4, 4))])
    assert len(batch) == 2 and batch.images.shape == (2, 3, 64, 48)
    assert batch.images.is_contiguous(memory_format=torch.channels_last)
    assert (batch.images[0, :, :32] == 2).all() and not batch.images[0, :, 32:].any()
    first, second = batch.gt
    assert set(first.fields) == {'bboxes', 'labels', 'masks', 'keypoints'} and len(first) == 2 and len(second) == 0
    assert first.image_size == (30, 45) and second.masks.height == 64
    assert [len(b) for b in batch.ignored] == [3, 0] and batch.ignored[0].dtype == torch.float32
    assert batch.proposals[0].scores.tolist() == [0.5] * 5 and batch.proposals[1].scores.tolist() == [1, 1]
    assert batch.metas[0].extra == {'note': 'kept'} and batch.semantic_seg.shape == (2, 1, 4, 5)
    assert batch.metas[0].scale_factor.dtype == np.float32


def test_semantic_maps_are_filled_up_with_the_unknown_class():
    maps = [torch.full((1, 3, 5), 7, dtype=torch.uint8), torch.full((1, 4, 2), 8, dtype=torch.uint8)]
    for padding, expected in ((None, 255), (19, 19)):
        samples = [sample(1, gt_semantic_seg=one) for one in maps]
        for one in samples if padding else []:
            one['img_metas']['seg_pad_val'] = padding
        found = collate(samples).semantic_seg
        assert found.dtype == torch.uint8 and found.shape == (2, 1, 4, 5)
        assert (found[0, 0, :3] == 7).all() and (found[0, 0, 3:] == expected).all()
        assert (found[1, 0, :, :2] == 8).all() and (found[1, 0, :, 2:] == expected).all()
    assert collate([sample()]).semantic_seg is None
    with pytest.raises(ConfigError, match=r"'gt_semantic_seg' of a.jpg has shape \(4, 4\); DefaultFormatBundle makes"):
        collate([sample(1, gt_semantic_seg=torch.ones(4, 4))])


def test_without_ground_truth():
    bare = {key: value for key, value in sample().items() if not key.startswith('gt_')}
    batch = collate([bare])
    assert batch.gt is None and batch.ignored is None and batch.proposals is None
    assert collate([sample()]).ignored[0].shape == (0, 4)
    with pytest.raises(ConfigError, match="'img' among its keys"):
        collate([dict(gt_bboxes=1)])


def test_images_that_are_still_arrays():
    """A pipeline without DefaultFormatBundle: normalised arrays are taken, others need a Normalize."""
    array = np.arange(32 * 48 * 3, dtype=np.float32).reshape(32, 48, 3)
    batch = collate([{**sample(), 'img': array}])
    assert torch.equal(batch.images[0].permute(1, 2, 0), torch.from_numpy(array))
    with pytest.raises(ConfigError, match='image a.jpg: the pipeline has no Normalize: put it before Collect'):
        collate([{**sample(), 'img': array.astype(np.uint8)}])
