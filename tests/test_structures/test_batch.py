"""Batch and ImageMeta: the deferred normalisation equals the pipeline's."""

import numpy as np
import pytest
import torch

from boxdet.structures.batch import Batch, ImageMeta, SampledRois, normalize_images
from boxdet.structures.instances import Instances

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)


def meta(height, width, **more) -> ImageMeta:
    return ImageMeta.from_dict(
        dict(img_shape=(height, width, 3), ori_shape=(height, width, 3), img_norm_cfg=NORM, **more))


@pytest.mark.parametrize('to_rgb', [True, False])
def test_normalisation_on_the_device_is_that_of_the_pipeline(to_rgb):
    # collate has put the channels into the network's order, whatever to_rgb says
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (2, 12, 16, 3), dtype=np.uint8)
    norm = dict(NORM, to_rgb=to_rgb)
    metas = [
        ImageMeta(img_shape=(12, 16, 3), img_norm_cfg=norm),
        ImageMeta(img_shape=(7, 10, 3), img_norm_cfg=norm)]
    out = normalize_images(torch.from_numpy(images).permute(0, 3, 1, 2), metas)
    for k, (height, width) in enumerate([(12, 16), (7, 10)]):
        crop = images[k, :height, :width].astype(np.float32)
        mean, scale = np.float32(norm['mean']), (1 / np.float64(norm['std'])).astype(np.float32)
        expected = np.zeros((12, 16, 3), np.float32)
        expected[:height, :width] = (crop - mean) * scale
        assert np.array_equal(out[k].permute(1, 2, 0).numpy(), expected)


def test_to_normalises_bytes_and_leaves_floats():
    batch = Batch(torch.full((1, 3, 4, 4), 7, dtype=torch.uint8), [meta(4, 4)])
    assert batch.to('cpu').images.dtype == torch.float32 and batch.images.dtype == torch.uint8
    floats = Batch(torch.ones(1, 3, 4, 4), [meta(4, 4)])
    assert torch.equal(floats.to('cpu').images, floats.images)


def test_to_moves_everything_of_the_batch():
    found = Instances(bboxes=torch.zeros(2, 4), labels=torch.zeros(2, dtype=torch.long))
    batch = Batch(torch.zeros(1, 3, 4, 4), [meta(4, 4)], gt=[found], ignored=[torch.zeros(1, 4)],
                  proposals=[Instances(bboxes=torch.zeros(3, 4), scores=torch.zeros(3))],
                  semantic_seg=torch.zeros(1, 1, 2, 2, dtype=torch.uint8))
    moved = batch.to('meta')
    assert {moved.images.device.type, moved.gt[0].bboxes.device.type, moved.ignored[0].device.type,
            moved.proposals[0].scores.device.type, moved.semantic_seg.device.type} == {'meta'}
    assert len(moved) == 1 and moved.semantic_seg.dtype == torch.uint8


def test_every_part_is_copied_and_waited_for_on_the_cpu_only(monkeypatch):
    batch = Batch(torch.zeros(1, 3, 4, 4), [meta(4, 4)], gt=[Instances(bboxes=torch.zeros(2, 4))],
                  ignored=[torch.zeros(1, 4)], semantic_seg=torch.zeros(1, 1, 2, 2))
    asked, whole = [], torch.Tensor.to

    def to(self, *args, **kwargs):
        asked.append(kwargs.get('non_blocking', args[1] if len(args) > 1 and isinstance(args[1], bool) else False))
        return whole(self, *args, **kwargs)

    monkeypatch.setattr(torch.Tensor, 'to', to)
    batch.to(torch.device('cpu'))
    assert len(asked) == 4 and not any(asked)
    asked.clear()
    batch.to('meta')
    assert len(asked) == 4 and all(asked)


def full_batch() -> Batch:
    return Batch(torch.zeros(1, 3, 4, 4), [meta(4, 4)], gt=[Instances(bboxes=torch.zeros(2, 4))],
                 ignored=[torch.zeros(1, 4)], proposals=[Instances(bboxes=torch.zeros(3, 4))])


@pytest.mark.parametrize('device, waits', [('cpu', True), (torch.device('cpu'), True), ('meta', False)])
def test_a_copy_to_the_cpu_waits(device, waits, monkeypatch):
    asked, to = [], torch.Tensor.to
    monkeypatch.setattr(torch.Tensor, 'to', lambda self, *args, **more: (asked.append(more.get('non_blocking')),
                                                                         to(self, *args, **more))[1])
    full_batch().to(device)
    full_batch().gt[0].to(device, non_blocking=True)
    assert len(asked) == 5 and all(bool(each) is not waits for each in asked)


def test_tensors_handed_to_a_stream_are_recorded_there(monkeypatch):
    recorded = []
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda self, stream: recorded.append((id(self), stream)))
    batch = full_batch()
    batch.record_stream('side')
    tensors = (batch.images, batch.gt[0].bboxes, batch.ignored[0], batch.proposals[0].bboxes)
    assert sorted(recorded) == sorted((id(tensor), 'side') for tensor in tensors)


def test_meta_reads_2x_names_and_keeps_the_rest():
    read = ImageMeta.from_dict(dict(filename='a.jpg', ori_shape=(5, 6, 3), scale_factor=2.0, weather='rain'))
    assert read.scale_factor.tolist() == [2, 2, 2, 2] and read.scale_factor.dtype == np.float32
    assert read.extra == {'weather': 'rain'} and read.original_size == (5, 6)
    assert ImageMeta().scale_factor.tolist() == [1, 1, 1, 1]


def test_sampled_boxes_are_positives_first():
    empty = torch.zeros(0, dtype=torch.long)
    rois = SampledRois(torch.ones(1, 4), torch.zeros(2, 4), empty, empty, empty, torch.ones(1, 4), empty,
                       empty)
    assert rois.boxes.tolist() == [[1] * 4, [0] * 4, [0] * 4]
