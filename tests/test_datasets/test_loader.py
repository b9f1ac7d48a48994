"""The loader: the same samples for any number of workers, capped threads, flat memory, clear errors."""
import json
import logging
import os
import random
import signal
import subprocess
import sys

import cv2
import numpy as np
import psutil
import pytest
import torch

from boxdet.datasets import build_dataloader
from boxdet.datasets.coco import CocoDataset
from boxdet.errors import DataError

PIPELINE = [dict(type='LoadImageFromFile'), dict(type='LoadAnnotations', with_mask=True),
            dict(type='Resize', img_scale=[(80, 40), (80, 60)]),
            dict(type='RandomFlip', flip_ratio=0.5),
            dict(type='Normalize', mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375]),
            dict(type='Pad', size_divisor=32), dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels', 'gt_masks', 'gt_bboxes_ignore'])]


def write_set(folder, count=9, objects=3):
    rng = np.random.default_rng(0)
    images, annotations = [], []
    for i in range(count):
        height, width = (40, 60) if i % 3 else (60, 40)
        cv2.imwrite(str(folder / f'{i}.png'), rng.integers(0, 256, (height, width, 3)).astype(np.uint8))
        images.append(dict(id=i, file_name=f'{i}.png', height=height, width=width))
        for _ in range(objects):
            x, y = rng.uniform(0, 20, 2).round(2).tolist()
            annotations.append(dict(id=len(annotations), image_id=i, category_id=1, bbox=[x, y, 15, 12], area=180,
                                    iscrowd=0, segmentation=[[x, y, x + 15, y, x + 15, y + 12, x, y + 12]]))
    path = folder / 'instances.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])))
    return str(path)


@pytest.fixture
def dataset(tmp_path):
    return CocoDataset(write_set(tmp_path), PIPELINE, classes=('thing',), img_prefix=str(tmp_path))


def contents(batches):
    return [(b.images.clone(), [m.filename for m in b.metas], [g.bboxes for g in b.gt],
             [g.masks.to_bitmaps() for g in b.gt]) for b in batches]


def same(one, other):
    return len(one) == len(other) and all(
        torch.equal(a[0], b[0]) and a[1] == b[1] and all(torch.equal(x, y) for x, y in zip(a[2], b[2]))
        and all(np.array_equal(x, y) for x, y in zip(a[3], b[3])) for a, b in zip(one, other))


def test_any_number_of_workers_gives_the_same(dataset):
    def epoch(workers, number=0, seed=5):
        loader = build_dataloader(dataset, 2, workers, seed=seed)
        loader.sampler.set_epoch(number)
        return contents(loader)

    alone = epoch(0)
    assert len(alone) == 5 and alone[0][0].dtype == torch.uint8
    assert same(alone, epoch(1)) and same(alone, epoch(2))
    assert not same(alone, epoch(0, number=1)) and not same(alone, epoch(0, seed=6))
    flips = {m for _ in range(1) for b in build_dataloader(dataset, 2, 0, seed=5) for m in (x.flip for x in b.metas)}
    assert flips == {True, False}


def test_an_image_is_augmented_anew_in_every_epoch(dataset):
    def drawn(number):
        loader = build_dataloader(dataset, 2, 0, seed=5)
        loader.sampler.set_epoch(number)
        return {m.image_id: (m.flip, m.img_shape) for b in loader for m in b.metas}

    epochs = [drawn(number) for number in range(3)]
    assert all(epoch.keys() == epochs[0].keys() == set(range(9)) for epoch in epochs)
    for one, other in ((0, 1), (0, 2), (1, 2)):  # the order apart, which changes too
        changed = [image for image in range(9) if epochs[one][image] != epochs[other][image]]
        assert len(changed) > 4
    assert drawn(1) == epochs[1]


def test_the_random_state_of_the_training_is_left_alone(dataset):
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    expected = random.random(), np.random.rand(), torch.rand(1)
    random.seed(1), np.random.seed(1), torch.manual_seed(1)
    for _ in build_dataloader(dataset, 2, 0, seed=0):
        pass
    assert (random.random(), np.random.rand(), torch.rand(1)) == expected


def test_resuming_in_the_middle(dataset):
    loader = build_dataloader(dataset, 2, 2, seed=5)
    loader.sampler.set_epoch(3)
    seen, states = [], []
    for batch in loader:
        seen.append(contents([batch])[0])
        states.append(loader.sampler.state_dict())
    assert [s['consumed'] for s in states] == [2, 4, 6, 8, 10] and loader.sampler.consumed == 0
    later = build_dataloader(dataset, 2, 0, seed=0)
    later.sampler.load_state_dict(states[1])
    assert same(contents(later), seen[2:])


def test_order_and_ranks(dataset):
    names = [m.image_id for b in build_dataloader(dataset, 4, 0, shuffle=False) for m in b.metas]
    assert names == list(range(9))
    ranks = [[m.image_id for b in build_dataloader(dataset, 1, 0, dist=True, seed=5, rank=r, world_size=2)
              for m in b.metas] for r in range(2)]
    one = [m.image_id for b in build_dataloader(dataset, 2, 0, seed=5) for m in b.metas]
    assert [i for pair in zip(*ranks) for i in pair] == one
    assert build_dataloader(dataset, 2, 0, num_gpus=2).batch_size == 4
    endless = build_dataloader(dataset, 2, 0, seed=5, runner_type='IterBasedRunner')
    assert len(endless) == 5 and len([b for b, _ in zip(endless, range(12))]) == 12


def test_a_users_getitem_is_called(dataset):
    class Mine(CocoDataset):
        def __getitem__(self, index):
            sample = super().__getitem__(index)
            sample['img'] = sample['img'] * 0 + 3
            return sample

    mine = Mine(dataset.ann_file, PIPELINE, classes=('thing',), img_prefix=dataset.img_prefix)
    batch = next(iter(build_dataloader(mine, 1, 0)))
    assert batch.images.dtype == torch.float32 and (batch.images == 3).all()


@pytest.mark.parametrize('workers', [0, 1])
def test_errors_of_the_data_come_out_plain(dataset, workers):
    path = os.path.join(dataset.img_prefix, '4.png')
    with open(path, 'r+b') as file:
        file.truncate(500)
    with pytest.raises(DataError) as error:
        list(build_dataloader(dataset, 2, workers))
    assert str(error.value).startswith(path) and 'truncated' in str(error.value) and '\n' not in str(error.value)


def broken(dataset, tmp_path, *numbers):
    """Cut the files of these images short."""
    for number in numbers:
        os.truncate(tmp_path / f'{number}.png', 500)
    dataset.on_error = 'skip'
    return dataset


@pytest.mark.parametrize('workers', [0, 2])
def test_unreadable_images_are_skipped_when_asked(dataset, tmp_path, caplog, workers):
    logging.getLogger('boxdet').propagate = True
    whole = contents(build_dataloader(dataset, 2, 0, seed=5))
    loader = build_dataloader(broken(dataset, tmp_path, 1, 4), 2, workers, seed=5)
    found = contents(loader)
    names = [[os.path.basename(n)[0] for n in batch[1]] for batch in found]
    before = [[os.path.basename(n)[0] for n in batch[1]] for batch in whole]
    assert not {'1', '4'} & {n for batch in names for n in batch}
    changed = {a for x, y in zip(before, names) for a, b in zip(x, y) if a != b}
    assert changed == {'1', '4'} and len(loader.unreadable) == 2  # the other images stay, in their order
    assert f"on_error='skip': image 1 of at most 100 is skipped: {tmp_path}" in caplog.text
    # The stand-ins are of the same aspect group, and the same for any number of workers.
    assert all(len({int(n) % 3 == 0 for n in batch}) == 1 for batch in names)
    assert same(found, contents(build_dataloader(dataset, 2, 0, seed=5)))
    told = len(caplog.records)
    list(loader)
    assert len(loader.unreadable) == 2 and len(caplog.records) == told  # the same ones, an epoch later


def test_skipping_has_a_limit(dataset, tmp_path):
    broken(dataset, tmp_path, 1, 4).max_errors = 1
    with pytest.raises(DataError, match=r'2 images could not be read, more than max_errors=1; the last one: .*\.png'):
        list(build_dataloader(dataset, 2, 1, seed=5))
    dataset.max_errors = 10 ** 6
    for number in range(9):
        os.truncate(tmp_path / f'{number}.png', 500)
    with pytest.raises(DataError, match='truncated'):  # nothing is left to take
        list(build_dataloader(dataset, 2, 0, seed=5))


def test_an_evaluation_skips_nothing(dataset, tmp_path):
    with pytest.raises(DataError, match='4.png'):
        list(build_dataloader(broken(dataset, tmp_path, 4), 2, 0, shuffle=False))


def test_on_error_is_the_data_set_s_keyword(dataset):
    from boxdet.errors import ConfigError
    made = CocoDataset(dataset.ann_file, PIPELINE, classes=('thing',), on_error='skip', max_errors=3)
    assert (made.on_error, made.max_errors) == ('skip', 3)
    with pytest.raises(ConfigError, match="CocoDataset.on_error is 'ignore': it is 'raise' or 'skip'"):
        CocoDataset(dataset.ann_file, PIPELINE, classes=('thing',), on_error='ignore')


def test_signals_of_slurm_do_not_end_workers(dataset):
    """They go to every process of a job, and the training wants one more batch and a checkpoint."""
    batches = iter(build_dataloader(dataset, 1, 2, seed=5))
    next(batches), next(batches)  # one of each worker: both are at work
    workers = [child.pid for child in psutil.Process().children()]
    for pid in workers:
        os.kill(pid, signal.SIGTERM)
        os.kill(pid, signal.SIGUSR1)
    assert len(workers) >= 2 and len(list(batches)) == 7


@pytest.mark.parametrize('death', [lambda results: os._exit(3), lambda results: os.kill(os.getpid(), signal.SIGKILL)])
def test_a_dying_worker_is_reported(dataset, death):
    dataset.pipeline.transforms.insert(0, death)
    with pytest.raises(DataError, match='data-loading process died.*workers_per_gpu=1'):
        list(build_dataloader(dataset, 2, 1))


def threads_and_torch(results):
    """A transform that reports on its process."""
    with open('/proc/self/status') as file:
        count = next(int(line.split()[1]) for line in file if line.startswith('Threads'))
    a = np.random.rand(600, 600).astype(np.float32)
    cv2.GaussianBlur(a, (31, 31), 3)
    torch.mm(torch.from_numpy(a), torch.from_numpy(a))
    results['img_info']['threads'] = (cv2.getNumThreads(), torch.get_num_threads(), count)
    return results


def test_threads_of_workers_are_capped(dataset):
    dataset.pipeline.transforms[-1].meta_keys += ('img_info',)
    dataset.pipeline.transforms.insert(0, threads_and_torch)
    dataset.pipeline._defer_from += 1
    found = [m.extra['img_info']['threads'] for b in build_dataloader(dataset, 2, 2) for m in b.metas]
    assert all(opencv <= 1 and of_torch == 1 and total <= 4 for opencv, of_torch, total in found), found


# In a process of its own: what other tests left in this one's memory would be copied into the workers bit by bit.
MEMORY_OF_AN_EPOCH = """
import json, os, sys
import numpy as np
from boxdet.datasets import build_dataloader
from boxdet.datasets.coco import CocoDataset

def proportional_memory(pids):  # the sum of PSS in MB: memory that processes share is counted once
    total = 0
    for pid in pids:
        with open(f'/proc/{pid}/smaps_rollup') as file:
            total += next(int(line.split()[1]) for line in file if line.startswith('Pss:'))
    return total / 1024

blank = np.zeros((8, 8, 3), dtype=np.uint8)

def image(results):
    results['img'] = blank.copy()
    return results

dataset = CocoDataset(sys.argv[1], [image, dict(type='LoadAnnotations'), dict(type='DefaultFormatBundle'),
                                    dict(type='Collect', keys=['img', 'gt_bboxes', 'gt_labels'])], classes=('thing',))
loader = build_dataloader(dataset, 16, 4, persistent_workers=True, seed=0)
measured = []
for epoch in range(3):
    loader.sampler.set_epoch(epoch)
    for place, _ in enumerate(loader):
        if place in (30, len(loader) - 5):
            measured.append(proportional_memory([os.getpid(), *(w.pid for w in loader._iterator._workers)]))
print(json.dumps(measured))
"""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists('/proc/self/smaps_rollup'), reason='needs /proc/*/smaps_rollup')
def test_memory_stays_flat(tmp_path):
    """4 workers, 3 epochs, annotations of 80 MB as Python objects: what is read must not be copied into workers."""
    images = [dict(id=i, file_name=f'{i}.jpg', height=480, width=640) for i in range(4000)]
    polygon = np.linspace(1, 90, 120).tolist()
    annotations = [dict(id=i, image_id=i // 5, category_id=1, bbox=[1, 1, 90, 90], area=99, iscrowd=0,
                        segmentation=[polygon]) for i in range(5 * len(images))]
    path = tmp_path / 'a.json'
    path.write_text(json.dumps(dict(images=images, annotations=annotations, categories=[dict(id=1, name='thing')])))
    done = subprocess.run([sys.executable, '-c', MEMORY_OF_AN_EPOCH, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured = json.loads(done.stdout)
    assert len(measured) == 6
    # After the first images of the first epoch (caches, allocator), nothing more may be added.
    assert max(measured[1:]) - measured[0] < 25, measured


@pytest.mark.parametrize('in_use', [False, True])
def test_batches_are_page_locked_only_where_a_gpu_is_in_use(dataset, in_use, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: in_use)
    loader = build_dataloader(dataset, samples_per_gpu=1, workers_per_gpu=0, dist=False)
    assert loader.pin_memory is in_use
