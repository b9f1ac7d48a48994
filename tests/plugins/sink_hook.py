"""A hook as mmcv 1.x has it, which keeps what it sees; its sink is a dict with a ``type``."""
from boxdet.engine.hooks import HOOKS, Hook

SEEN = []


@HOOKS.register_module()
class SinkHook(Hook):
    def __init__(self, sink, interval=1):
        if sink != dict(type='s3', parts=[dict(type='Resize', height=3)]):
            raise ValueError(sink)
        self.interval = interval

    def after_train_iter(self, runner):
        if self.every_n_iters(runner, self.interval):
            losses = {name: float(value) for name, value in runner.outputs['log_vars'].items()}
            SEEN.append((runner.iter, losses, [gt.labels.tolist() for gt in runner.data_batch.gt]))
