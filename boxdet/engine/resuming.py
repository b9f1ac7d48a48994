"""Going on as if never stopped: 2.x's ``resume_from``."""
from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from boxdet.checkpoints.io import find_checkpoint, load_checkpoint
from boxdet.checkpoints.loading import compare_classes, describe, load_weights
from boxdet.engine.config_difference import differences
from boxdet.engine.dialects.checkpoint import for_resume, is_foreign
from boxdet.engine.distributed import unwrap
from boxdet.engine.environment import set_random_states
from boxdet.errors import CheckpointError

_START_ANEW = '; --load-from starts a new training from its weights'


def resume(runner: Any, filename: str) -> None:
    """Give ``runner`` weights, optimizer, progress and random states of the checkpoint ``filename``.

    What differs between the checkpoint's training and this one is told.

    Raises:
        CheckpointError: not found, unreadable, of another architecture, or it lacks what a resume needs.
    """
    found = find_checkpoint(filename)
    checkpoint = load_checkpoint(found)
    report = load_weights(unwrap(runner.model), checkpoint, str(filename))
    meta = checkpoint['meta']
    if 'optimizer' not in checkpoint or 'epoch' not in meta or 'iter' not in meta:
        raise CheckpointError(f'{filename} holds weights only, no optimizer and progress: use --load-from')
    if report.missing or report.mismatched:
        other = compare_classes(checkpoint, runner.meta.get('CLASSES'), str(filename))
        reason = other or describe(report).replace('\n ', ';')
        raise CheckpointError(f'cannot resume: {reason}{_START_ANEW}')
    if is_foreign(checkpoint):
        checkpoint, note = for_resume(checkpoint, unwrap(runner.model), runner.optimizer, str(filename))
        runner.logger.warning(note)
    if 'online_state_dict' in checkpoint:  # of a training with averaged weights: those it goes on with
        unwrap(runner.model).load_state_dict(checkpoint['online_state_dict'], strict=False)
    tell_other_classes(runner, checkpoint, filename, _START_ANEW)
    changed = differences(str(meta.get('config') or ''), str(runner.meta.get('config') or ''))
    if changed:
        runner.logger.info('the config differs from that of %s:\n%s', filename, '\n'.join(changed))
    _load_optimizer(runner, checkpoint, filename)
    _set_progress(runner, checkpoint, filename)
    states = checkpoint.get('random') or []
    if runner.rank < len(states):
        set_random_states(states[runner.rank])
    runner.resumed_from = found.resolve()
    runner.meta['hook_msgs'] = dict(meta.get('hook_msgs') or {})
    runner.meta['seed'] = meta.get('seed', runner.meta.get('seed'))  # its random numbers go on
    runner.call_hook('after_load_checkpoint', checkpoint=checkpoint)
    runner.logger.info('resumed from %s: epoch %d, iteration %d', filename, runner.epoch, runner.iter)


def tell_other_classes(runner: Any, checkpoint: Mapping, address: str, advice: str = '') -> None:
    """Warn where the checkpoint was trained on other classes, and say what to do."""
    note = compare_classes(checkpoint, runner.meta.get('CLASSES'), str(address))
    if note:
        runner.logger.warning(note + advice)


def batch_of(runner: Any) -> dict[str, int]:
    """What the images of one update are made of."""
    loop = runner.train_loop
    return dict(world_size=runner.world_size, samples_per_gpu=getattr(loop.dataloader, 'batch_size', None) or 1,
                accumulation=loop.accumulation)


def _load_optimizer(runner: Any, checkpoint: Mapping, filename: str) -> None:
    configured = runner.current_lr()
    try:
        runner.optimizer.load_state_dict(checkpoint['optimizer'])
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"cannot resume from {filename}: its optimizer does not fit this config's "
                              f'({error}); --load-from takes the weights alone') from error
    initial = [group.get('initial_lr', group['lr']) for group in runner.optimizer.param_groups]
    if initial != configured:
        runner.logger.warning('the learning rate goes on from the %g of %s, not from the %g of the config',
                              initial[0], filename, configured[0])
    scaler = runner.optim_wrapper.scaler
    if scaler is not None and 'loss_scaler' in checkpoint:
        scaler.load_state_dict(checkpoint['loss_scaler'])


def _set_progress(runner: Any, checkpoint: Mapping, filename: str) -> None:
    loop, meta = runner.train_loop, checkpoint['meta']
    loop.epoch, loop.iter, loop.inner_iter = int(meta['epoch']), int(meta['iter']), int(meta.get('inner_iter', 0))
    if is_foreign(checkpoint) and loop.by_epoch:  # its epochs may be some images longer or shorter
        loop.iter = loop.epoch * loop.iters_per_epoch
    if loop.finished:
        runner.logger.warning('%s is at epoch %d, iteration %d: the config asks for no more than that', filename,
                              loop.epoch, loop.iter)
    _load_sampler(loop, checkpoint, filename)
    now = batch_of(runner)
    before = {key: meta.get(key, value) for key, value in now.items()}
    if before != now:
        runner.logger.warning('%s was saved with %s, now there are %s: the order of images and the random numbers '
                              'cannot continue exactly; the epoch goes on at the same share of it', filename,
                              *(', '.join(f'{key} {value}' for key, value in one.items()) for one in (before, now)))
        _rescale_progress(loop, math.prod(before.values()) / math.prod(now.values()), now)


def _load_sampler(loop: Any, checkpoint: Mapping, filename: str) -> None:
    sampler = loop.dataloader.sampler
    if 'sampler' in checkpoint and hasattr(sampler, 'load_state_dict'):
        sampler.load_state_dict(checkpoint['sampler'])
    elif loop.inner_iter:
        raise CheckpointError(f'{filename} was saved within an epoch, and the sampler {type(sampler).__name__} '
                              'cannot go on from there; resume from the end of an epoch')


def _rescale_progress(loop: Any, factor: float, batch: Mapping[str, int]) -> None:
    """The same share of the epoch is ``factor`` times as many iterations now."""
    loop.inner_iter = min(int(loop.inner_iter * factor), loop.iters_per_epoch)
    if loop.by_epoch:
        loop.iter = loop.epoch * loop.iters_per_epoch + loop.inner_iter
    if hasattr(loop.dataloader.sampler, 'consumed'):
        done = loop.inner_iter if loop.by_epoch else loop.iter
        loop.dataloader.sampler.consumed = done * batch['accumulation'] * batch['samples_per_gpu']
