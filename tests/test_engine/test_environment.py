"""Seeds and random states, devices, the log, and what the machine is."""
import logging
import random

import numpy as np
import pytest
import torch

from boxdet.engine.environment import (choose_device, choose_seed, collect_env, env_text, random_states,
                                       set_random_seed, set_random_states, setup_logger)
from boxdet.errors import ConfigError


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


@pytest.mark.parametrize('device', ['meta', 'xla', pytest.param('mps', marks=pytest.mark.skipif(
    torch.backends.mps.is_available(), reason='this machine has it'))])
def test_devices_that_cannot_compute_here(device):
    with pytest.raises(ConfigError, match=f"device '{device}' is not there.*--device cpu"):
        choose_device(device)


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
