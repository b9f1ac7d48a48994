"""Compose: what is deferred gives the same numbers; users' transforms see what 2.x gave them."""
import numpy as np
import pytest
import torch

from boxdet.datasets.collate import collate
from boxdet.datasets.pipelines.compose import Compose
from boxdet.datasets.sample_keys import SAMPLE_KEYS
from boxdet.errors import ConfigError
from boxdet.registry import PIPELINES

NORM = dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
TAIL = [NORM, dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])]


def random_image(height=50, width=70):
    return np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)


def results(**more):
    image = random_image()
    return dict(img=image, img_info=dict(id=7, filename='a.jpg'), img_prefix=None, bbox_fields=[], mask_fields=[],
                seg_fields=[], **more)


def step_by_step(transforms, given):
    for transform in transforms:
        given = PIPELINES.build(transform)(given)
    return given


@pytest.mark.parametrize('flip', [True, False])
@pytest.mark.parametrize('format_as', [dict(type='DefaultFormatBundle'), dict(type='ImageToTensor', keys=['img'])])
def test_deferred_equals_step_by_step(flip, format_as):
    transforms = [dict(type='LoadImageFromWebcam'), dict(type='Resize', img_scale=(90, 60)), NORM,
                  dict(type='RandomFlip', flip_ratio=float(flip), direction='diagonal'),
                  dict(type='Pad', size_divisor=32), format_as, dict(type='Collect', keys=['img'])]
    expected = step_by_step(transforms, results())
    pipeline = Compose(transforms)
    full, compact = pipeline(results()), pipeline(results(), compact=True)
    assert compact['img'].dtype == np.uint8 and compact['img'].shape == full['img_metas']['img_shape']
    assert torch.equal(full['img'], expected['img']) and full['img'].dtype == torch.float32
    for key, value in expected['img_metas'].items():
        for other in (full, compact):
            assert np.array_equal(other['img_metas'][key], value) if key != 'img_norm_cfg' else True
    batch = collate([compact])
    assert batch.images.dtype == torch.uint8
    assert torch.equal(batch.to('cpu').images[0], expected['img'])
    assert torch.equal(collate([full]).to('cpu').images[0], expected['img'])


def test_a_batch_of_different_sizes_is_the_same_both_ways():
    pipeline = Compose([dict(type='LoadImageFromWebcam'), *TAIL])
    first, second = results(), results()
    second['img'] = random_image(90, 40)
    compact = collate([pipeline(dict(first), compact=True), pipeline(dict(second), compact=True)])
    full = collate([pipeline(dict(first)), pipeline(dict(second))])
    assert compact.images.shape == (2, 3, 96, 96) and compact.images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(compact.to('cpu').images, full.images)
    assert [m.pad_shape for m in compact.metas] == [(64, 96, 3), (96, 64, 3)]
    assert compact.metas[0].image_id == 7 and compact.metas[0].img_shape == (50, 70, 3)


@pytest.mark.parametrize('transforms', [
    [NORM, dict(type='Pad', size_divisor=32, pad_val=114), *TAIL[2:]],
    [NORM, dict(type='PhotoMetricDistortion'), *TAIL[1:]],
    [dict(type='Pad', size_divisor=32), NORM, *TAIL[2:]],
    [dict(type='PhotoMetricDistortion'), *TAIL],
    [*TAIL[:3], dict(type='Collect', keys=['img'], meta_keys=['filename', 'pad_shape'])],
    TAIL[2:],
])
def test_what_cannot_wait_is_done_at_once(transforms):
    transforms = [dict(type='LoadImageFromWebcam'), *transforms]
    np.random.seed(1)
    expected = step_by_step(transforms, results())
    np.random.seed(1)
    found = Compose(transforms)(results(), compact=True)
    assert found['img'].dtype == torch.float32 and torch.equal(found['img'], expected['img'])


def test_users_transforms():
    seen = []

    class AfterNormalize:
        def __call__(self, results):
            seen.append((results['img'].dtype, results['img_norm_cfg']['to_rgb']))
            results['img'] = results['img'] + 1
            return results

    class OwnNormalize(PIPELINES.get('Normalize')):
        def __call__(self, results):
            results = super().__call__(results)
            results['img'] *= 2
            return results

    load = dict(type='LoadImageFromWebcam')
    plain = Compose([load, *TAIL])(results())['img']
    changed = Compose([load, NORM, AfterNormalize(), *TAIL[1:]])(results(), compact=True)['img']
    assert seen == [(np.float32, True)] and torch.equal(changed[:, :50, :70], plain[:, :50, :70] + 1)
    own = OwnNormalize(**{k: v for k, v in NORM.items() if k != 'type'})
    assert torch.equal(Compose([load, own, *TAIL[1:]])(results(), compact=True)['img'], plain * 2)
    assert Compose([load, lambda results: None, *TAIL])(results()) is None
    with pytest.raises(TypeError):
        Compose([3])


def test_errors_of_collect():
    with pytest.raises(ConfigError, match="no 'gt_boxes'; did you mean 'gt_bboxes'"):
        Compose([dict(type='Collect', keys=['gt_boxes'])])(results(gt_bboxes=np.zeros((0, 4))))
    with pytest.raises(ConfigError, match="no 'flipp'"):
        Compose([dict(type='Collect', keys=['img'], meta_keys=['flipp'])])(results())
    with pytest.raises(ConfigError, match='Normalise.*Normalize'):
        Compose([dict(type='Normalise')])


def test_every_key_of_a_sample_is_in_the_table(shared_data):
    from boxdet.datasets.coco import CocoDataset
    root = shared_data / 'coco_mini'
    known = {k.key for k in SAMPLE_KEYS}
    keys = set()
    steps = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True),
             dict(type='Resize', img_scale=(133, 80)), dict(type='RandomFlip', flip_ratio=0.5), *TAIL[:3],
             lambda results: keys.update(results) or results,
             dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])]
    dataset = CocoDataset(str(root / 'annotations/instances_val2017.json'), steps, img_prefix=str(root / 'val2017'))
    keys.update(dataset[0])
    assert keys <= known and len(keys) > 20
    assert len(known) == len(SAMPLE_KEYS)


def test_containers_are_only_checked():
    fields = [dict(key='img', stack=True), dict(key='proposals', stack=False, cpu_only=False)]
    given = dict(img=random_image(), proposals=np.ones((2, 4), dtype=np.float32))
    before = dict(given)
    found = PIPELINES.build(dict(type='ToDataContainer', fields=fields))(given)
    assert found is given and found.keys() == before.keys() and all(found[key] is before[key] for key in before)
    with pytest.raises(ConfigError, match="ToDataContainer: the sample has no 'gt_bboxes'"):
        PIPELINES.build(dict(type='ToDataContainer'))(given)


@pytest.mark.parametrize('field, message', [
    (dict(stack=True), "names no 'key'"), (dict(key='img', stak=True), "did you mean 'stack'"),
    (dict(key='proposals', stack=True), "'proposals' is not stacked"),
    (dict(key='img', padding_value=9), 'not with 9')])
def test_containers_that_cannot_be_are_refused(field, message):
    with pytest.raises(ConfigError, match=message):
        PIPELINES.build(dict(type='ToDataContainer', fields=[field]))


def test_proposals_follow_the_image_and_wait_with_it():
    """Fast R-CNN's test pipeline: the same numbers by step, at once and deferred."""
    inner = [dict(type='Resize', keep_ratio=True), dict(type='RandomFlip'), NORM, dict(type='Pad', size_divisor=32),
             dict(type='ImageToTensor', keys=['img']), dict(type='ToTensor', keys=['proposals']),
             dict(type='ToDataContainer', fields=[dict(key='proposals', stack=False)]),
             dict(type='Collect', keys=['img', 'proposals'])]
    pipeline = Compose([dict(type='LoadImageFromWebcam'), dict(type='LoadProposals', num_max_proposals=2),
                        dict(type='MultiScaleFlipAug', img_scale=(140, 100), flip=True, transforms=inner)])
    boxes = np.array([[10, 5, 40, 30, .9], [0, 0, 70, 50, .8], [1, 1, 2, 2, .7]], dtype=np.float32)
    full, compact = pipeline(results(proposals=boxes)), pipeline(results(proposals=boxes), compact=True)
    assert compact['img'][0].dtype == np.uint8 and full['img'][0].dtype == torch.float32
    plain, flipped = collate([full])
    assert plain.proposals[0].bboxes.tolist() == [[20, 10, 80, 60], [0, 0, 140, 100]]      # twice as large
    assert flipped.proposals[0].bboxes.tolist() == [[60, 10, 120, 60], [0, 0, 140, 100]]  # 140 - x
    assert plain.proposals[0].scores.tolist() == [1, 1] and boxes[0].tolist()[:4] == [10, 5, 40, 30]
    for one, other in zip((plain, flipped), collate([compact])):
        assert torch.equal(one.images, other.to('cpu').images)
        assert torch.equal(one.proposals[0].bboxes, other.proposals[0].bboxes)
