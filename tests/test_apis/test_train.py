"""apis.train: in which form a model is trained."""
from __future__ import annotations

import logging

import pytest
import torch

from boxdet.apis import train
from boxdet.engine.config import load_config
from boxdet.models import build_detector
from boxdet.models.folding import InferenceConv2d


@pytest.mark.parametrize('wanted, chosen, says', [
    (True, torch.channels_last, 'memory format: channels last (as channels_last says)'),
    (False, torch.contiguous_format, 'memory format: planar (as channels_last says)'),
    (None, torch.contiguous_format, 'memory format: planar (chosen for cpu; channels_last=True or False sets it)')])
def test_memory_format_is_chosen_logged_and_settable(tiny_detector, wanted, chosen, says, caplog, monkeypatch):
    monkeypatch.setattr(train, 'memory_format', lambda *args, **more: torch.contiguous_format)
    cfg = load_config(tiny_detector.config, [] if wanted is None else [f'channels_last={wanted}'])
    model, seen = build_detector(cfg.model), []
    state = {name: value.clone() for name, value in model.state_dict().items()}
    monkeypatch.setattr(logging.getLogger('boxdet'), 'propagate', True)
    with caplog.at_level(logging.INFO, 'boxdet'):
        model = train.place_for_training(model, torch.device('cpu'), cfg)
    assert says in caplog.text
    conv = model.backbone.conv1
    assert type(conv) is InferenceConv2d and conv.weight.is_contiguous(memory_format=chosen)
    model.backbone.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for given in (torch.channels_last, torch.contiguous_format):  # batches come as they come
        model.extract_feat(torch.rand(1, 3, 64, 64).to(memory_format=given))
    assert all(images.is_contiguous(memory_format=chosen) for images in seen) and len(seen) == 2
    assert list(state) == list(model.state_dict())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items() if 'running' not in name
               and 'tracked' not in name)
