"""What test_numbers.py asks of 1 to 4 gloo ranks.

Started once, as a program: the ranks are forked from it and need not import everything again.
``numbers_of_ranks.py FOLDER`` leaves the answers in FOLDER/answers.pth.
"""
from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / 'tests/test_models')]

import numpy as np  # noqa: E402
import tiny_models as tiny  # noqa: E402
import torch  # noqa: E402
import torch.distributed as dist  # noqa: E402
from torch import nn  # noqa: E402

from boxdet.datasets import build_dataloader  # noqa: E402
from boxdet.engine import distributed  # noqa: E402
from boxdet.engine.evaluation_loop import run_inference  # noqa: E402
from boxdet.models import build_detector  # noqa: E402
from boxdet.structures.batch import Batch  # noqa: E402

CPU = torch.device('cpu')


def on_ranks(folder: Path, world: int, ask: Callable[[int, int], Any]) -> list[Any]:
    """``ask(rank, world)`` in ``world`` processes that form a group; their answers by rank."""
    name = f'{ask.__name__}_{world}_{len(list(folder.iterdir()))}'
    children = []
    for rank in range(world):
        child = os.fork()
        if child:
            children.append(child)
            continue
        status = 1
        try:
            dist.init_process_group('gloo', init_method=f'file://{folder}/{name}.store', rank=rank, world_size=world)
            torch.save(ask(rank, world), folder / f'{name}.{rank}.pth')
            distributed.shut_down()
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    assert not any(statuses), (name, statuses)
    return [torch.load(folder / f'{name}.{rank}.pth', weights_only=False) for rank in range(world)]


# --- evaluation ---

class Images:
    """Five random images of two sizes, as a data set."""
    CLASSES = ('a', 'b', 'c')
    flag = np.zeros(5, dtype=np.uint8)

    def __len__(self):
        return 5

    def __getitem__(self, index):
        height, width = ((96, 128), (128, 96))[index % 2]
        image = torch.randn(3, height, width, generator=torch.Generator().manual_seed(index))
        shape = (height, width, 3)
        return dict(img=image, img_metas=dict(filename=f'{index}.jpg', ori_shape=shape, img_shape=shape,
                                              pad_shape=shape, scale_factor=np.ones(4, np.float32), flip=False))


def evaluate(rank: int, world: int, tmpdir: Path | None = None) -> Any:
    model = detector(tiny.mask_rcnn(test_cfg=tiny.test_cfg(score_thr=0.01)))
    loader = build_dataloader(Images(), 1, 0, dist=True, shuffle=False)
    results = run_inference(model, loader, CPU, progress=False, tmpdir=tmpdir)
    share = len(loader)
    return share, results and [(r.bboxes, r.scores, r.labels, [m['counts'] for m in r.masks]) for r in results]


# --- gradients ---

def detector(config: dict) -> nn.Module:
    torch.manual_seed(0)
    model = build_detector(tiny.copied(config))
    model.init_weights()
    return model


def equal_shares(**backbone: Any) -> dict:
    """A Faster R-CNN whose every image counts alike in every normaliser.

    All anchors and a fixed number of proposals are samples, none drawn at random.
    """
    config = tiny.faster_rcnn()
    config['backbone'] |= backbone
    every = dict(type='RandomSampler', num=10 ** 6, pos_fraction=1.0, neg_pos_ub=-1)
    config['train_cfg']['rpn']['sampler'] = every | dict(add_gt_as_proposals=False)
    config['train_cfg']['rcnn']['sampler'] = every | dict(add_gt_as_proposals=True)
    config['train_cfg']['rpn_proposal'] |= dict(nms=dict(type='nms', iou_threshold=1.0), max_per_img=40)
    return config


def same_boxes() -> Batch:
    """Two images that differ in their pixels only."""
    both = tiny.batch((2, 2), masks=False)
    return Batch(both.images, both.metas, [both.gt[0], both.gt[0]], both.ignored)


def part(batch: Batch, rank: int, world: int) -> Batch:
    if world == 1:
        return batch
    here = slice(rank, rank + 1)
    return Batch(batch.images[here], batch.metas[here], batch.gt[here], batch.ignored[here])


def gradients(model: nn.Module, batch: Batch, wrapped: bool = True) -> dict[str, torch.Tensor]:
    running = distributed.wrap_distributed(model, CPU) if wrapped else model
    model.train()
    tiny.total(running(batch, mode='loss')).backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


def frozen_statistics(rank: int, world: int) -> Any:
    return gradients(detector(equal_shares(norm_eval=True)), part(same_boxes(), rank, world))


def sync_bn(rank: int, world: int) -> Any:
    model = detector(equal_shares(norm_cfg=dict(type='SyncBN', requires_grad=True)))
    return gradients(model, part(same_boxes(), rank, world)), dict(model.named_buffers())


def sync_bn_checkpointed(rank: int, world: int) -> Any:
    model = detector(equal_shares(norm_cfg=dict(type='SyncBN', requires_grad=True), with_cp=True))
    return gradients(model, part(same_boxes(), rank, world)), dict(model.named_buffers())


def mean_of_ranks(rank: int, world: int) -> Any:
    """(gradients by DDP, the mean of what each rank has alone) of images that count differently."""
    mine = part(tiny.batch((3, 1)), rank, world)
    config = tiny.mask_rcnn()
    config['backbone']['norm_eval'] = True
    results = []
    for wrapped in (True, False):
        model = detector(config)
        torch.manual_seed(rank)  # of the samplers
        results.append(gradients(model, mine, wrapped))
    alone = results[1]
    for name in sorted(alone):
        dist.all_reduce(alone[name])
        alone[name] /= world
    return results


# --- nothing there ---

def empty(rank: int, world: int) -> Any:
    """Loss keys of three updates: objects on rank 0 only, on rank 1 only, nowhere."""
    answers = {}
    for name in ('faster_rcnn', 'mask_rcnn', 'cascade_mask_rcnn'):
        model = detector(getattr(tiny, name)())
        running = distributed.wrap_distributed(model, CPU)
        optimizer = torch.optim.SGD(model.parameters(), lr=1e-3)
        answers[name] = []
        for counts in ((2, 0), (0, 2), (0, 0)):
            losses = running(part(tiny.batch(counts), rank, world).to('cpu'), mode='loss')
            total = tiny.total(losses)
            optimizer.zero_grad()
            total.backward()
            optimizer.step()
            finite = all(p.grad is not None and bool(p.grad.isfinite().all()) for p in model.parameters()
                         if p.requires_grad)
            answers[name].append((sorted(losses), finite))
        answers[name].append({k: v.detach().clone() for k, v in model.named_parameters()})
    return answers


class WithSpare(nn.Module):
    """A branch that only one rank uses."""

    def __init__(self):
        super().__init__()
        self.used, self.spare = nn.Linear(2, 2), nn.Linear(2, 2)

    def forward(self, x, spare):
        return self.spare(self.used(x)) if spare else self.used(x)


def spare_branch(rank: int, world: int) -> Any:
    answers = []
    for find in (True, False):
        torch.manual_seed(0)
        model = WithSpare()
        running = distributed.wrap_distributed(model, CPU, find_unused_parameters=find)
        try:
            for _ in range(2):
                model.zero_grad()
                running(torch.ones(1, 2), spare=find and rank == 0).sum().backward()
            answers.append(None if model.spare.weight.grad is None else model.spare.weight.grad.clone())
        except RuntimeError as error:
            answers.append(str(error))
    return answers


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    detector(tiny.cascade_mask_rcnn())  # so that its modules are imported before the ranks are forked
    evaluations = {f'evaluate_{world}': on_ranks(folder, world, evaluate) for world in (1, 2, 3, 4)}

    def through_files(rank: int, world: int) -> Any:
        return evaluate(rank, world, folder / 'tmpdir')
    answers = dict(evaluations, files=on_ranks(folder, 3, through_files),
                   left=[path.name for path in (folder / 'tmpdir').iterdir()])
    for ask in (frozen_statistics, sync_bn, sync_bn_checkpointed):
        answers[ask.__name__] = on_ranks(folder, 1, ask) + on_ranks(folder, 2, ask)
    for ask in (mean_of_ranks, empty, spare_branch):
        answers[ask.__name__] = on_ranks(folder, 2, ask)
    torch.save(answers, folder / 'answers.pth')


if __name__ == '__main__':
    main(Path(sys.argv[1]))
