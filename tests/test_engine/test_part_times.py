"""Time by part, with a clock that the modules move."""
import pytest
import torch
from torch import nn

from boxdet.engine import part_times
from boxdet.engine.part_times import PartTimes, told


class Takes(nn.Module):
    def __init__(self, clock, seconds):
        super().__init__()
        self.clock, self.seconds = clock, seconds

    def forward(self, value):
        self.clock[0] += self.seconds
        return value


class RoIHead(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.bbox_head, self.mask_head = nn.Sequential(Takes(clock, 3), Takes(clock, 4)), Takes(clock, 16)


class Detector(nn.Module):
    def __init__(self, clock):
        super().__init__()
        self.clock = clock
        self.backbone, self.neck, self.rpn_head = Takes(clock, 1), Takes(clock, .5), Takes(clock, 2)
        self.roi_head = RoIHead(clock)

    def forward(self, value):
        value = self.rpn_head(self.neck(self.backbone(value)))
        self.clock[0] += .25                             # suppression after the RPN's convolutions
        return self.roi_head.mask_head(self.roi_head.bbox_head(value))


@pytest.fixture
def clock(monkeypatch):
    clock = [0.]
    monkeypatch.setattr(part_times.time, 'perf_counter', lambda: clock[0])
    return clock


def loader(clock, batches):
    for batch in range(batches):
        clock[0] += 100
        yield torch.tensor(batch)


def test_each_part_gets_its_time(clock):
    model = Detector(clock)
    with PartTimes(model, 'cpu') as times:
        for batch in times.waiting(loader(clock, 2)):
            model(batch)
            times.begin('output')
            clock[0] += 1000
    assert times.seconds == dict(data=200, backbone=3, RPN=4.5, boxes=14, masks=32, output=2000)
    assert list(times.seconds) == ['data', 'backbone', 'RPN', 'boxes', 'masks', 'output']
    model(torch.tensor(0))  # outside, nothing is measured
    assert sum(times.seconds.values()) == 2253.5
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_told_by_image():
    assert told(dict(data=1., backbone=3.), 4) == 'seconds an image: data 0.2500 + backbone 0.7500 = 1.0000'
    assert told({}, 0) == 'seconds an image:  = 0.0000'


def test_on_a_gpu_by_events_of_its_queue(clock, monkeypatch):
    """Kernels run later than they are launched: their times are between events, and nobody waits before the end."""
    waited = []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self, stream):
            assert stream == 'the stream'
            self.at = clock[0]

        def elapsed_time(self, later):
            return 1000 * (later.at - self.at)

        def synchronize(self):
            waited.append(self.at)

    monkeypatch.setattr(torch.cuda, 'Event', Event)
    monkeypatch.setattr(torch.cuda, 'current_stream', lambda device: 'the stream')
    model = Detector(clock)
    with PartTimes(model, 'cuda:0') as times:
        for batch in times.waiting(loader(clock, 2)):
            model(batch)
            times.begin('output')
    assert times.seconds == dict(data=200, backbone=3, RPN=4.5, boxes=14, masks=32, output=0)
    assert len(waited) == 3  # once a batch, when it is done, and at the end
