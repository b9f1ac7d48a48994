"""Checkpoints as mmengine's Runner writes them: message_hub, param_schedulers, a group for each weight, averages."""
import pytest
import torch
from mmengine.logging import MessageHub
from mmengine.model import ExponentialMovingAverage
from mmengine.optim import DefaultOptimWrapperConstructor, MultiStepLR
from toy_training import ToyDetector, toy_runner

from boxdet.checkpoints.io import load_checkpoint
from boxdet.checkpoints.loading import classes_of
from boxdet.errors import CheckpointError

SGD = dict(type='SGD', lr=0.05, momentum=0.9, weight_decay=1e-3)


def trained_by_mmengine(path, paramwise=None, iterations=8, average=False, shuffle=False):
    """Train a toy with mmengine's own optimizer wrapper; save what mmengine's Runner would after its epoch 2."""
    torch.manual_seed(3)
    model = ToyDetector()
    if shuffle:  # the same weights, registered in another order, as mmdetection's modules are in another than ours
        model._modules = {name: model._modules[name] for name in ('head', 'drop', 'bn', 'conv')}
    constructor = DefaultOptimWrapperConstructor(dict(type='OptimWrapper', optimizer=dict(SGD)), paramwise)
    step = constructor(model)
    averaged = ExponentialMovingAverage(model, momentum=0.1) if average else None
    scheduler = MultiStepLR(step.optimizer, milestones=[8], by_epoch=True)
    for _ in range(iterations):
        step.optimizer.zero_grad()
        loss = model.head(model.bn(model.conv(torch.randn(2, 3, 8, 8))).mean(dim=(2, 3))).square().sum()
        loss.backward()
        step.optimizer.step()
        if averaged is not None:
            averaged.update_parameters(model)
    hub = MessageHub.get_instance('toy_of_mmengine')
    hub.update_scalar('train/loss', 1.5)
    checkpoint = dict(
        meta=dict(epoch=2, iter=iterations, cfg="work_dir = 'x'\n", seed=7, experiment_name='toy',
                  mmengine_version='0.10.7', time='20240101_000000',
                  dataset_meta=dict(classes=('a', 'b'), palette=[(1, 2, 3), (4, 5, 6)])),
        state_dict=model.state_dict(), message_hub=hub.state_dict(), optimizer=step.state_dict(),
        param_schedulers=[scheduler.state_dict()])
    if averaged is not None:
        state = averaged.state_dict()
        checkpoint['state_dict'] = {name.removeprefix('module.'): value for name, value in state.items()
                                    if name.startswith('module.')}
        checkpoint['ema_state_dict'] = {**{f'module.{k}': v for k, v in model.state_dict().items()},
                                        'steps': state['steps']}
    torch.save(checkpoint, path)
    return model, step.optimizer


def momenta(model, optimizer):
    """The momentum of each weight by its name."""
    return {name: optimizer.state[weight]['momentum_buffer'] for name, weight in model.named_parameters()}


@pytest.mark.parametrize('shuffle', [False, True])
@pytest.mark.parametrize('paramwise', [None, dict(norm_decay_mult=0., bias_lr_mult=2.)])
def test_resumes_weights_momenta_and_progress(tmp_path, caplog, paramwise, shuffle):
    theirs, their_optimizer = trained_by_mmengine(tmp_path / 'epoch_2.pth', paramwise, shuffle=shuffle)
    ours = toy_runner(tmp_path, max_epochs=4, optimizer={**SGD, **({'paramwise_cfg': paramwise} if paramwise else {})})
    ours.logger.propagate = True
    ours.resume(str(tmp_path / 'epoch_2.pth'))
    expected, found = momenta(theirs, their_optimizer), momenta(ours.model, ours.optimizer)
    assert all(torch.equal(found[name], value) for name, value in expected.items())
    weights = dict(theirs.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in ours.model.named_parameters())
    assert (ours.epoch, ours.iter, ours.inner_iter) == (2, 2 * ours.train_loop.iters_per_epoch, 0)
    assert 'of mmdetection: its weights, optimizer and progress are taken over; message_hub and param_schedulers are ' \
           'not, as rates follow from the progress; it holds no random numbers' in caplog.text
    rates = {name: group['initial_lr'] for group in ours.optimizer.param_groups for name, weight in
             ours.model.named_parameters() if any(weight is one for one in group['params'])}
    assert rates == {name: 0.1 if paramwise and name in ('conv.bias', 'head.bias') else 0.05 for name in expected}
    ours.train()
    assert ours.epoch == 4


def test_resumes_what_amp_optim_wrapper_saves(tmp_path):
    trained_by_mmengine(tmp_path / 'epoch_2.pth')
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    checkpoint['optimizer']['loss_scaler'] = torch.amp.GradScaler('cpu', init_scale=128.).state_dict()
    torch.save(checkpoint, tmp_path / 'epoch_2.pth')
    ours = toy_runner(tmp_path, max_epochs=3, optimizer=SGD, fp16=dict(dtype='float16'))
    ours.resume(str(tmp_path / 'epoch_2.pth'))
    assert ours.optim_wrapper.scaler.get_scale() == 128.


def test_resumes_the_trained_weights_beside_their_average(tmp_path):
    theirs, _ = trained_by_mmengine(tmp_path / 'epoch_2.pth', average=True)
    ours = toy_runner(tmp_path, max_epochs=3, optimizer=SGD)
    ours.resume(str(tmp_path / 'epoch_2.pth'))
    weights = dict(theirs.named_parameters())
    assert all(torch.equal(weights[name], value) for name, value in ours.model.named_parameters())


def test_an_optimizer_of_other_weights_is_refused(tmp_path):
    trained_by_mmengine(tmp_path / 'epoch_2.pth')
    checkpoint = torch.load(tmp_path / 'epoch_2.pth', weights_only=False)
    checkpoint['optimizer']['state'][0]['momentum_buffer'] = torch.zeros(2, 2)
    torch.save(checkpoint, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match=r'momentum_buffer of its optimizer has the shape \(2, 2\), the weight'):
        toy_runner(tmp_path, optimizer=SGD).resume(str(tmp_path / 'odd.pth'))
    checkpoint['optimizer']['param_groups'][0]['params'].pop()
    torch.save(checkpoint, tmp_path / 'odd.pth')
    with pytest.raises(CheckpointError, match='its optimizer has 5 weights, the model 6 of its names'):
        toy_runner(tmp_path, optimizer=SGD).resume(str(tmp_path / 'odd.pth'))


def test_its_weights_load_and_its_classes_are_known(tmp_path):
    theirs, _ = trained_by_mmengine(tmp_path / 'epoch_2.pth')
    assert classes_of(load_checkpoint(tmp_path / 'epoch_2.pth')) == ('a', 'b')
    ours = toy_runner(tmp_path, optimizer=SGD)
    ours.load_checkpoint(str(tmp_path / 'epoch_2.pth'))
    assert all(torch.equal(a, b) for a, b in zip(ours.model.state_dict().values(), theirs.state_dict().values()))
