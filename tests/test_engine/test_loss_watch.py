"""Losses are summed; one that is no number ends the training with one line; means for readers at their own pace."""
import pytest
import torch
from toy_training import toy_loader, toy_runner, weights

from boxdet.engine import loss_watch
from boxdet.engine.loss_watch import LogBuffer, LossWatch, TrainingError, total_loss
from boxdet.errors import UserError
from boxdet.structures.batch import ImageMeta


def test_total_loss_sums_what_is_called_loss():
    one = torch.tensor([1., 3.], requires_grad=True)
    total, values = total_loss(dict(loss_a=one, loss_levels=[torch.tensor(1.), torch.tensor(2.)], acc=torch.tensor(9.)))
    assert float(total.detach()) == 5. and total.requires_grad
    assert {k: float(v) for k, v in values.items()} == dict(loss_a=2., loss_levels=3., acc=9., loss=5.)
    assert not any(v.requires_grad for v in values.values())


def test_losses_of_other_kinds_are_refused():
    with pytest.raises(TypeError, match="loss 'loss_a' is a float"):
        total_loss(dict(loss_a=1.))
    with pytest.raises(ValueError, match="no value with 'loss' in its name: \\['acc'\\]"):
        total_loss(dict(acc=torch.tensor(1.)))


def test_nan_stops_and_names_iteration_files_and_parts(tmp_path):
    runner = toy_runner(tmp_path, loader=toy_loader(6, bad=(4,), shuffle=False))
    before = weights(runner)
    with pytest.raises(TrainingError) as caught:
        runner.train()
    text = str(caught.value)
    assert text == ('the loss is not finite at iteration 3: loss_cls nan, loss_levels nan, acc 0.5, loss nan; images: '
                    'img_4.jpg, img_5.jpg') or text.startswith('the loss is not finite at iteration 3: loss_cls nan')
    assert 'images: img_4.jpg, img_5.jpg' in text and '\n' not in text
    assert isinstance(caught.value, UserError)
    # Two good updates were made, the bad one was not: the weights are usable.
    after = weights(runner)
    assert not torch.equal(after['head.weight'], before['head.weight'])
    assert torch.isfinite(after['head.weight']).all() and torch.isfinite(after['conv.weight']).all()


def test_infinite_parts_count_but_not_accuracy():
    buffer = LogBuffer()
    watch = LossWatch(buffer, torch.device('cpu'))
    metas = [ImageMeta(filename='x.jpg')]
    watch.record(1, dict(loss=torch.tensor(1.), acc=torch.tensor(float('nan'))), metas)
    with pytest.raises(TrainingError, match='iteration 2: loss_a inf, loss inf; images: x.jpg'):
        watch.record(2, dict(loss_a=torch.tensor(float('inf')), loss=torch.tensor(float('inf'))), metas)


def test_means_since_a_snapshot():
    buffer = LogBuffer()
    buffer.update(dict(a=1., b=10.))
    first = buffer.snapshot()
    buffer.update(dict(a=3.))
    buffer.update(dict(a=5.), count=3)
    assert buffer.means_since(first) == dict(a=4.5)
    assert buffer.means_since() == dict(a=pytest.approx(19 / 5), b=10.)


def test_values_of_two_devices_are_looked_at_together(monkeypatch):
    from tests.emulated_gpu import emulated_gpu
    started, devices, stack = [], [], torch.stack
    monkeypatch.setattr(loss_watch, '_start_copy', lambda values: (started.append(values), None))
    # A GPU refuses to stack what lies elsewhere; fake tensors do not.
    monkeypatch.setattr(torch, 'stack', lambda values: devices.append({v.device.type for v in values}) or stack(values))
    with emulated_gpu():
        _, values = total_loss({'loss_cls': torch.empty((), device='cuda'), 'num_pos': torch.tensor(3.)})
        LossWatch(LogBuffer(), torch.device('cuda')).record(1, values, [])
    assert started[0].shape == (3,) and devices == [{'cuda'}]


def test_on_a_gpu_a_loss_is_looked_at_one_iteration_later(monkeypatch):
    waited = []

    class Event:
        def __init__(self, number):
            self.number = number

        def synchronize(self):
            waited.append(self.number)
    copies = []

    def start_copy(values):
        copies.append(values)
        return values, Event(len(copies))
    monkeypatch.setattr(loss_watch, '_start_copy', start_copy)
    buffer = LogBuffer()
    watch, metas = LossWatch(buffer, torch.device('cuda')), [ImageMeta(filename='x.jpg')]
    watch.record(1, dict(loss=torch.tensor(1.)), metas)
    watch.record(1, dict(grad_norm=torch.tensor(5.)), metas)
    assert waited == [] and buffer.means_since() == {}  # the iteration itself never waits
    watch.record(2, dict(loss=torch.tensor(float('nan'))), metas)
    assert waited == [1, 2] and buffer.means_since() == dict(loss=1., grad_norm=5.)
    with pytest.raises(TrainingError, match='at iteration 2: loss nan; images: x.jpg'):
        watch.flush()
