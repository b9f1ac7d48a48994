"""Asyncio tasks that share a model: the guide's sample, 32 at once, the queue's bound, an event loop that goes on."""

import asyncio
import subprocess
import sys
import threading

import pytest
import torch

from boxdet.apis import async_inference_detector, inference_detector, init_detector
from boxdet.errors import ConfigError, DataError
from boxdet.utils.contextmanagers import concurrent


@pytest.fixture(scope='module')
def model(tiny_detector):
    return init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu')


def queue_of(entries) -> asyncio.Queue:
    queue = asyncio.Queue()
    for entry in entries:
        queue.put_nowait(entry)
    return queue


def test_thirty_two_tasks_share_a_model(model, tiny_detector):
    paths = [str(tiny_detector.images[k % 4]) for k in range(32)]
    expected = {path: inference_detector(model, path) for path in set(paths)}

    async def main():
        queue = queue_of([None] * 5)

        async def detect(path):
            async with concurrent(queue):
                return await async_inference_detector(model, path)
        results = await asyncio.gather(*[detect(path) for path in paths])
        return results, queue.qsize()
    results, left = asyncio.run(main())
    assert left == 5
    for path, result in zip(paths, results):
        assert torch.equal(result.bboxes, expected[path].bboxes) and torch.equal(result.labels, expected[path].labels)
        assert list(result.masks) == list(expected[path].masks)


def test_the_queue_bounds_the_tasks_and_gets_its_entries_back(model, tiny_detector):
    async def main():
        queue, inside, most = queue_of(['a', 'b']), 0, 0

        async def task(number):
            nonlocal inside, most
            async with concurrent(queue) as stream:
                assert stream in ('a', 'b')
                inside += 1
                most = max(most, inside)
                await asyncio.sleep(0)  # the others have their turn
                inside -= 1
                if number == 3:
                    raise RuntimeError('this task fails')
        done = await asyncio.gather(*[task(k) for k in range(12)], return_exceptions=True)
        return most, sorted(queue.get_nowait() for _ in range(2)), [e for e in done if e]
    most, entries, failures = asyncio.run(main())
    assert most == 2 and entries == ['a', 'b'] and len(failures) == 1


def test_the_event_loop_goes_on_and_threads_are_few(model, tiny_detector, monkeypatch):
    places, forward = set(), type(model).predict
    monkeypatch.setattr(type(model), 'predict', lambda self, *args, **options: (
        places.add(threading.current_thread().name), forward(self, *args, **options))[1])

    async def main():
        ticks = 0
        tasks = [asyncio.create_task(async_inference_detector(model, str(tiny_detector.images[0]))) for _ in range(6)]
        while not all(task.done() for task in tasks):
            await asyncio.sleep(0)
            ticks += 1
        return ticks
    assert asyncio.run(main()) > 6
    assert threading.current_thread().name not in places
    assert 1 <= len(places) <= 64 and all(name.startswith('boxdet-cpu') for name in places)


def test_several_images_and_errors(model, tiny_detector):
    paths = [str(p) for p in tiny_detector.images]
    several = asyncio.run(async_inference_detector(model, paths, batch_size=2))
    assert [r.image_size for r in several] == [inference_detector(model, p).image_size for p in paths]
    with pytest.raises(DataError, match='missing.jpg'):
        asyncio.run(async_inference_detector(model, 'missing.jpg'))
    model.train()
    with pytest.raises(ConfigError, match='model.eval'):
        asyncio.run(async_inference_detector(model, paths[0]))
    model.eval()


def test_the_public_name_costs_nothing_until_it_is_used():
    code = 'import sys, boxdet.utils; assert "torch" not in sys.modules'
    subprocess.run([sys.executable, '-c', code], check=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason='CUDA streams need a GPU')
def test_each_task_works_on_its_own_stream(tiny_detector):
    model = init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cuda:0')

    async def main():
        queue = queue_of([torch.cuda.Stream('cuda:0') for _ in range(3)])

        async def detect(path):
            async with concurrent(queue):
                return await async_inference_detector(model, path)
        return await asyncio.gather(*[detect(str(tiny_detector.images[k % 4])) for k in range(32)])
    results = asyncio.run(main())
    single = inference_detector(model, str(tiny_detector.images[0]))
    assert torch.allclose(results[0].bboxes, single.bboxes, atol=1e-2)


def test_a_stream_waits_for_the_model_and_its_tensors_are_recorded_there_once(monkeypatch):
    from types import SimpleNamespace

    from boxdet.apis import asynchronous
    model, device = torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), torch.nn.BatchNorm2d(1)), torch.device('cuda', 0)
    waited, recorded = [], []
    monkeypatch.setattr(torch.cuda, 'default_stream', lambda device: 'default')
    monkeypatch.setattr(torch.Tensor, 'record_stream', lambda self, stream: recorded.append((id(self), stream)))
    streams = [SimpleNamespace(cuda_stream=number, wait_stream=waited.append) for number in (1, 2)]
    for stream in (streams[0], streams[0], streams[1]):
        asynchronous._lend(model, stream, device)
    assert waited == ['default'] * 3
    tensors = {id(tensor) for tensor in (*model.parameters(), *model.buffers())}
    for stream in streams:
        assert sorted(tensor for tensor, where in recorded if where is stream) == sorted(tensors)
