"""A whole detector under autocast: what it computes in half precision, and what must stay float32."""
import pytest
import torch

from boxdet.datasets import build_dataloader, build_dataset
from boxdet.engine.config import load_config
from boxdet.engine.loss_watch import total_loss
from boxdet.engine.schedule import build_optimizer, build_update_step
from boxdet.models import build_detector


@pytest.fixture(scope='module')
def setting(repo_root, shapes_dir):
    cfg = load_config(repo_root / 'configs/shapes/mask_rcnn_r18_fpn_shapes.py', {
        'data.train.ann_file': str(shapes_dir / 'annotations/instances_train.json'),
        'data.train.img_prefix': str(shapes_dir / 'train')})
    return cfg, next(iter(build_dataloader(build_dataset(cfg.data.train), 2, 0, seed=0))).to('cpu')


def update(setting, fp16):
    """One update of a Mask R-CNN: (losses, gradients, dtypes of the backbone's features, weights' dtypes)."""
    cfg, batch = setting
    torch.manual_seed(0)
    model = build_detector(cfg.model).train()
    features = []
    model.neck.register_forward_hook(lambda module, args, out: features.extend(level.dtype for level in out))
    step = build_update_step(build_optimizer(model, dict(type='SGD', lr=1e-3)), None, fp16)
    torch.manual_seed(1)  # of the samplers
    with step.optim_context(model):
        total, values = total_loss(model(batch, mode='loss'))
    step.backward(total)
    if step.scaler is not None:
        step.scaler.unscale_(step.optimizer)
    gradients = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    return values, gradients, set(features), {p.dtype for p in model.parameters()}


@pytest.mark.parametrize('dtype', ['bfloat16', 'float16'])
def test_losses_and_masters_are_float32(setting, dtype):
    exact, exact_gradients, features, _ = update(setting, None)
    assert features == {torch.float32}
    # The first loss scale that fits in float16 is smaller than the default, which finds it by a few skipped updates.
    half, gradients, features, weights = update(setting, dict(dtype=dtype, loss_scale=128.))
    assert features == {getattr(torch, dtype)} and weights == {torch.float32}
    assert {value.dtype for name, value in half.items() if 'loss' in name} == {torch.float32}
    assert {g.dtype for g in gradients.values()} == {torch.float32} and gradients.keys() == exact_gradients.keys()
    assert all(g.isfinite().all() for g in gradients.values())
    for name, value in exact.items():
        if name != 'acc':
            assert float(half[name]) == pytest.approx(float(value), rel=0.1, abs=0.02), name
    # Targets are matched and cut in float32, so that gradients point the same way.
    for name in ('roi_head.mask_head.conv_logits', 'roi_head.bbox_head.fc_cls', 'rpn_head.rpn_cls'):
        name = f'{name}.weight'
        one, other = exact_gradients[name].flatten(), gradients[name].flatten()
        assert float(torch.cosine_similarity(one, other, dim=0)) > 0.97, name
