"""Seeds and random states, devices, the log, and what the machine is."""
import copy
import logging
import platform
import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from boxdet.engine.config import load_config
from boxdet.engine.environment import (
    choose_device,
    choose_seed,
    collect_env,
    env_text,
    give_back_memory,
    memory_format,
    place_for_training,
    random_states,
    set_random_seed,
    set_random_states,
    setup_logger,
    slow_in,
)
from boxdet.errors import ConfigError
from boxdet.models import build_detector
from boxdet.models.folding import FastConv2d


def draw():
    return random.random(), np.random.rand(), np.random.randn(), torch.rand(1).item()


def test_a_seed_fixes_every_generator():
    set_random_seed(3)
    first = draw()
    set_random_seed(3)
    assert draw() == first
    set_random_seed(4)
    assert draw() != first


def test_backends_are_left_alone_unless_asked():
    before = torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark
    set_random_seed(3)
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
    assert not torch.are_deterministic_algorithms_enabled()
    try:
        set_random_seed(3, deterministic=True)
        assert torch.backends.cudnn.deterministic and torch.are_deterministic_algorithms_enabled()
    finally:
        torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark = before
        torch.use_deterministic_algorithms(False)


def test_states_are_put_back_and_survive_a_checkpoint(tmp_path):
    np.random.randn()  # leaves a second Gaussian number waiting
    torch.save(random_states(), tmp_path / 'states.pth')
    first = draw()
    set_random_states(torch.load(tmp_path / 'states.pth', weights_only=True))
    assert draw() == first


def test_seeds_are_chosen():
    assert choose_seed(5) == 5
    assert len({choose_seed(None) for _ in range(5)}) == 5


def test_devices():
    assert choose_device('cpu') == torch.device('cpu')
    with pytest.raises(ConfigError, match="device 'gpu' is not understood"):
        choose_device('gpu')
    with pytest.raises(ConfigError, match="device 'cuda:99' is not there"):
        choose_device('cuda:99')
    with pytest.raises(ConfigError, match="device '1.5' is not understood"):
        choose_device(1.5)


@pytest.fixture()
def two_gpus(monkeypatch):
    """A machine with two GPUs, as far as torch says; returns the devices that were set."""
    chosen = []
    monkeypatch.setattr(torch.cuda, 'is_available', lambda: True)
    monkeypatch.setattr(torch.cuda, 'device_count', lambda: 2)
    monkeypatch.setattr(torch.cuda, 'set_device', lambda device: chosen.append(torch.device(device).index))
    monkeypatch.delenv('LOCAL_RANK', raising=False)
    return chosen


@pytest.mark.parametrize('given', ['cuda', torch.device('cuda')])
def test_cuda_without_a_number_is_the_current_gpu_or_the_rank_s(given, two_gpus, monkeypatch):
    assert choose_device(given) == torch.device('cuda', 0)
    monkeypatch.setenv('LOCAL_RANK', '1')
    assert choose_device(given) == choose_device(None) == torch.device('cuda', 1)
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: True)
    monkeypatch.setattr(torch.cuda, 'current_device', lambda: 0)
    assert choose_device(given) == torch.device('cuda', 0) and choose_device('cuda:1') == torch.device('cuda', 1)
    assert two_gpus == [0, 1, 1, 0, 1] and None not in two_gpus
    with pytest.raises(ConfigError, match="'cuda:2' is not there: .* sees 2 GPUs"):
        choose_device('cuda:2')


@pytest.mark.parametrize('in_use', [False, True])
def test_a_process_on_the_cpu_asks_no_gpu_for_its_name(two_gpus, in_use, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.cuda, 'is_initialized', lambda: in_use)
    monkeypatch.setattr(torch.cuda, 'get_device_name', lambda index: asked.append(index) or 'H200')
    monkeypatch.setattr(torch.backends.cudnn, 'version', lambda: asked.append('cuDNN'))
    facts = collect_env()
    assert facts['GPUs'] == '2' and asked == ([0, 1, 'cuDNN'] if in_use else [])


@pytest.mark.parametrize('capability, dtype, expected', [
    ((7, 5), torch.float32, torch.contiguous_format), ((7, 5), torch.float16, torch.channels_last),
    ((8, 0), torch.float32, torch.channels_last), ((9, 0), torch.bfloat16, torch.channels_last)])
def test_memory_format_of_gpus(capability, dtype, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, 'get_device_capability', lambda device: capability)
    assert memory_format('cuda:0', dtype) == expected and memory_format('cpu') == torch.channels_last


def test_half_precision_that_a_processor_has_no_instructions_for(monkeypatch):
    assert not slow_in(torch.float32, 'cpu') and not slow_in(torch.bfloat16, 'cuda:0')
    for dtype, name in ((torch.bfloat16, '_is_mkldnn_bf16_supported'), (torch.float16, '_is_mkldnn_fp16_supported')):
        for has in (True, False):
            monkeypatch.setattr(torch.ops.mkldnn, name, lambda has=has: has)
            assert slow_in(dtype, 'cpu') is not has
    monkeypatch.setattr(torch.ops.mkldnn, '_is_mkldnn_bf16_supported', lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, 'is_available', lambda: False)
    assert slow_in(torch.bfloat16, torch.device('cpu'))


def test_what_is_asked_of_torch_exists():
    assert isinstance(slow_in(torch.bfloat16, 'cpu'), bool) and isinstance(slow_in(torch.float16, 'cpu'), bool)


@pytest.mark.parametrize('device', ['meta', 'xla', pytest.param('mps', marks=pytest.mark.skipif(
    torch.backends.mps.is_available(), reason='this machine has it'))])
def test_devices_that_cannot_compute_here(device):
    with pytest.raises(ConfigError, match=f"device '{device}' is not there.*--device cpu"):
        choose_device(device)


_FREED = """
import psutil, torch
from boxdet.engine.environment import give_back_memory
held = [torch.ones(2 ** 14) for _ in range(2000)]  # 64 kB each: from the heap, which only shrinks at its end
last = torch.ones(2 ** 14)
del held
before = psutil.Process().memory_info().rss
give_back_memory()
print((before - psutil.Process().memory_info().rss) / 2 ** 20)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_freed_memory_is_given_back():
    done = subprocess.run([sys.executable, '-c', _FREED], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 80
    give_back_memory()  # any number of times


def test_log_goes_to_console_and_file_once(tmp_path, capsys):
    for _ in range(2):
        logger = setup_logger(tmp_path / 'a' / 'x.log')
    try:
        logger.info('hello')
        logger.debug('not this')
        assert capsys.readouterr().out.count('hello') == 1
        assert ' - boxdet - INFO - hello\n' in (tmp_path / 'a' / 'x.log').read_text()
    finally:
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
    assert logging.getLogger('boxdet') is logger


def test_environment_is_told():
    facts = collect_env()
    assert facts['PyTorch'] == torch.__version__
    assert {'Python', 'torchvision', 'OpenCV', 'boxdet', 'CPU cores'} <= set(facts)
    assert f'PyTorch: {torch.__version__}' in env_text()


_KEPT = """
import resource, torch
from boxdet.engine.environment import keep_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(20):
        torch.ones(2 ** 22)  # 16 MB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
first = faults()
keep_memory()
faults()
print(first, faults())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='another C library')
def test_memory_is_kept_for_the_next_step():
    done = subprocess.run([sys.executable, '-c', _KEPT], capture_output=True, text=True, check=True)
    mapped, kept = map(int, done.stdout.split())
    assert mapped > 100 and kept < mapped / 10


def test_a_model_placed_for_training_has_the_same_gradients(tiny_detector):
    cfg = load_config(tiny_detector.config)
    model = build_detector(cfg.model).train()
    placed = place_for_training(copy.deepcopy(model), torch.device('cpu'), cfg)
    images, models = torch.rand(2, 3, 256, 320), (model, placed)
    maps = [one.extract_feat(images) for one in models]
    for levels in maps:
        sum(level.square().mean() for level in levels).backward()
    assert all(torch.allclose(one, other, rtol=1e-4, atol=1e-5) for one, other in zip(*maps))
    for (name, one), other in zip(model.named_parameters(), placed.parameters()):
        assert (one.grad is None) == (other.grad is None), name
        assert one.grad is None or (one.grad - other.grad).norm() <= 1e-4 * one.grad.norm(), name


@pytest.mark.parametrize('wanted, chosen, says', [
    (True, torch.channels_last, 'memory format: channels last (as channels_last says)'),
    (False, torch.contiguous_format, 'memory format: planar (as channels_last says)'),
    (None, torch.contiguous_format, 'memory format: planar (chosen for cpu; channels_last=True or False sets it)')])
def test_memory_format_is_chosen_logged_and_settable(tiny_detector, wanted, chosen, says, caplog, monkeypatch):
    monkeypatch.setattr('boxdet.engine.environment.memory_format', lambda *args, **more: torch.contiguous_format)
    cfg = load_config(tiny_detector.config, [] if wanted is None else [f'channels_last={wanted}'])
    model, seen = build_detector(cfg.model), []
    state = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(logging.getLogger('boxdet'), 'propagate', True)
    with caplog.at_level(logging.INFO, 'boxdet'):
        model = place_for_training(model, torch.device('cpu'), cfg)
    assert says in caplog.text
    conv = model.backbone.conv1
    assert type(conv) is FastConv2d and conv.weight.is_contiguous(memory_format=chosen)
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for given in (torch.channels_last, torch.contiguous_format):  # batches come as they come
        model.extract_feat(torch.rand(1, 3, 64, 64).to(memory_format=given))
    assert all(images.is_contiguous(memory_format=chosen) for images in seen) and len(seen) == 2
    assert model.backbone.layer2[0].conv2.fast and not model.backbone.layer1[0].conv2.fast
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if 'running' not in name
               and 'tracked' not in name)
