"""``mmdet.apis`` and ``mmdet.datasets.build_dataloader``: results are 2.x's lists by class."""
from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import Any

from torch.utils.data import DataLoader

from boxdet import apis
from boxdet.compat.forms import as_rows, as_training_inputs, meta_dict
from boxdet.compat.mmcv1 import DataContainer, bare
from boxdet.compat.mmdet3 import as_both
from boxdet.datasets import loader as data_loader
from boxdet.engine.hooks import EvaluationHook, Hook, rule_of
from boxdet.errors import ConfigError
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances

set_random_seed = apis.set_random_seed
_PALETTES = ('none', 'coco', 'voc', 'citys', 'random')  # what 3.x has for the third argument of init_detector


def init_detector(config: Any, checkpoint: Any = None, device: Any = 'cuda:0', *more: Any, palette: str | None = None,
                  **options: Any) -> Any:
    """boxdet's, by 2.x's arguments (``device`` third) or 3.x's (``palette`` third, and not used)."""
    if device in _PALETTES:
        device, more = more[0] if more else 'cuda:0', more[1:]
    model: Any = apis.init_detector(config, checkpoint, device, *more, **options)
    model.dataset_meta = dict(classes=model.CLASSES, palette=model.PALETTE, CLASSES=model.CLASSES)
    if 'visualizer' not in model.cfg:  # 3.x's scripts build what its configs have here
        model.cfg.visualizer = dict(type='DetLocalVisualizer')
    return model


def result_2x(model: Any, result: Instances, masks: str) -> Any:
    """2.x's result of one image; of an RPN an array (N, 5)."""
    if not model.with_roi_head:
        return as_rows([result])[0].numpy()
    return result.per_class(result.num_classes or len(model.CLASSES or ()) or None, masks=masks)


def inference_detector(model: Any, imgs: Any, test_pipeline: Any = None, text_prompt: str | None = None,
                       custom_entities: bool = False, **options: Any) -> Any:
    """2.x's result of an image, or a list of them for a list or tuple of images.

    K arrays (n, 5); with masks a pair of that and K lists of (H, W) bool arrays. 3.x's scripts read the same objects
    as DetDataSamples: ``result.pred_instances.bboxes``.

    Raises:
        ConfigError: a pipeline beside the model's, or a text: the detectors here read none.
    """
    if test_pipeline is not None or text_prompt is not None:
        raise ConfigError('inference_detector: test_pipeline and text_prompt have no counterpart; the pipeline is '
                          "data.test's of model.cfg")
    found = apis.inference_detector(model, imgs, **options)
    if isinstance(found, Instances):
        return as_both(result_2x(model, found, 'bitmap'), found, imgs)
    return [as_both(result_2x(model, one, 'bitmap'), one, image) for one, image in zip(found, imgs)]


async def async_inference_detector(model: Any, imgs: Any) -> Any:
    """``inference_detector`` for a coroutine."""
    several = isinstance(imgs, (list, tuple))
    found = [await apis.async_inference_detector(model, one) for one in (imgs if several else [imgs])]
    found = [result_2x(model, one[0] if isinstance(one, list) else one, 'bitmap') for one in found]
    return found if several else found[0]


def show_result_pyplot(model: Any, img: Any, result: Any, score_thr: float = 0.3, title: str = 'result',
                       wait_time: float = 0, palette: Any = None, out_file: str | None = None) -> None:
    """Draw a result, in either form."""
    model.show_result(img, result, score_thr=score_thr, show=out_file is None, wait_time=wait_time, win_name=title,
                      out_file=out_file)


def _loader_of(data_loader: Any) -> Any:
    return data_loader.loader if isinstance(data_loader, DictLoader) else data_loader


def single_gpu_test(model: Any, data_loader: Any, show: bool = False, out_dir: str | None = None,
                    show_score_thr: float = 0.3) -> list[Any]:
    """2.x's results of a data set; masks are RLE dicts, as its test file holds them."""
    detector = bare(model)
    found = apis.single_gpu_test(detector, _loader_of(data_loader), show, out_dir, show_score_thr)
    return [result_2x(detector, one, 'rle') for one in found]


def multi_gpu_test(model: Any, data_loader: Any, tmpdir: str | None = None, gpu_collect: bool = False) -> Any:
    """``single_gpu_test`` of several processes; None but on rank 0."""
    detector = bare(model)
    found = apis.multi_gpu_test(detector, _loader_of(data_loader), tmpdir, gpu_collect)
    return None if found is None else [result_2x(detector, one, 'rle') for one in found]


def train_detector(model: Any, dataset: Any, cfg: Any, distributed: bool = False, validate: bool = False,
                   timestamp: str | None = None, meta: Any = None) -> None:
    """As boxdet's; ``cfg`` may be one that a script made of a dict."""
    apis.train_detector(bare(model), dataset, cfg, distributed, validate, timestamp, meta)


def init_random_seed(seed: int | None = None, device: str = 'cuda') -> int:
    """``seed``, or one of chance that all ranks share."""
    from boxdet.engine.environment import choose_seed
    return choose_seed(seed)


def get_root_logger(log_file: str | None = None, log_level: Any = 'INFO') -> Any:
    """The logger of boxdet."""
    from boxdet.utils import get_root_logger as own
    return own(log_file, log_level)


class DictLoader:
    """A loader whose batches are 2.x's dicts of DataContainers: ``model(return_loss=..., **data)``."""

    def __init__(self, loader: Any):
        self.loader = loader
        self.dataset = data_loader.data_set_of(loader)

    def __getattr__(self, name: str) -> Any:
        if name == 'loader':
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self.loader:
            yield as_2x_data(batch)


def as_2x_data(batch: Batch | Sequence[Batch]) -> dict[str, Any]:
    """2.x's data of a batch: ``img`` and ``img_metas``, and the ground truth in training."""
    views = [one.to('cpu') for one in ([batch] if isinstance(batch, Batch) else batch)]
    if views[0].gt is not None:
        values = as_training_inputs(views[0])
        img, metas = values.pop('img'), values.pop('img_metas')
        return dict(img=DataContainer([img], stack=True), img_metas=DataContainer([metas], cpu_only=True),
                    **{key: DataContainer([value], cpu_only=key == 'gt_masks') for key, value in values.items()})
    proposals = [as_rows(view.proposals) for view in views if view.proposals is not None]
    return dict(img=[view.images for view in views],
                img_metas=[DataContainer([[meta_dict(meta) for meta in view.metas]], cpu_only=True) for view in views],
                **(dict(proposals=proposals) if proposals else {}))


def build_dataloader(dataset: Any, samples_per_gpu: int, workers_per_gpu: int, num_gpus: int = 1, dist: bool = True,
                     shuffle: bool = True, seed: int | None = None, **options: Any) -> DictLoader:
    """2.x's loader of ``dataset``; it shuffles and is distributed unless told otherwise, as there."""
    from boxdet.engine.distributed import is_distributed
    for name in ('runner_type', 'class_aware_sampler'):
        if options.get(name) is None:
            options.pop(name, None)
    options.pop('runner_type', None)
    own = data_loader.build_dataloader(dataset, samples_per_gpu=samples_per_gpu, workers_per_gpu=workers_per_gpu,
                                       num_gpus=num_gpus, dist=dist and is_distributed(), shuffle=shuffle,
                                       seed=seed or 0, **options)
    return DictLoader(own)


def get_loading_pipeline(pipeline: Sequence[dict]) -> list[dict]:
    """The parts of a pipeline that load the image and its annotations."""
    found = [step for step in pipeline if step['type'].startswith('Load')]
    if len(found) != 2:
        raise AssertionError('The data pipeline in your config file must include loading image and annotations '
                             'related pipeline.')
    return found


class EvalHook(Hook):
    """Evaluate a loader's data set with 2.x's results.

    Args:
        dataloader: torch's, or one of ``build_dataloader``.
        start: the first epoch (or iteration) that counts; a training that begins there is evaluated before it. None
            for the first multiple of ``interval``.
        interval: epochs (or iterations) between two evaluations.
        by_epoch: count epochs.
        save_best: keep the checkpoint of the best value of this metric; 'auto' takes the first one.
        rule: 'greater' or 'less'; found from the metric's name when None.
        dynamic_intervals: pairs (milestone, interval): from that count on another interval.
        **eval_kwargs: of the data set's ``evaluate``.

    Raises:
        TypeError: another kind of loader.
        ValueError: ``interval`` is not positive, or ``start`` negative.
        ConfigError: a ``rule`` that is neither, or that the name ``save_best`` does not tell.
    """
    priority = 'LOW'

    def __init__(self, dataloader: Any, start: int | None = None, interval: int = 1, by_epoch: bool = True,
                 save_best: str | None = None, rule: str | None = None,
                 dynamic_intervals: Sequence[Sequence[int]] | None = None, **eval_kwargs: Any):
        if not isinstance(dataloader, (DictLoader, DataLoader)):
            raise TypeError(f'EvalHook takes a DataLoader, not {type(dataloader)}')
        if interval <= 0 or start is not None and start < 0:
            raise ValueError(f'EvalHook: interval {interval} is positive, start {start} is not negative')
        if save_best not in (None, 'auto') and rule is None:
            rule = rule_of(str(save_best))
        self.best = EvaluationHook(dataloader.dataset, dataloader, dict, by_epoch=by_epoch, save_best=save_best,
                                   rule=rule)
        self.dataloader, self.start, self.interval, self.by_epoch = dataloader, start, interval, by_epoch
        self.dynamic_intervals = sorted(tuple(pair) for pair in dynamic_intervals or ())
        self.save_best, self.eval_kwargs, self.initial_flag = save_best, eval_kwargs, True

    def _should_evaluate(self, runner: Any) -> bool:
        """Whether the epoch (or iteration) at hand is one to evaluate after."""
        count = (runner.epoch if self.by_epoch else runner.iter) + 1
        interval = next((every for milestone, every in reversed(self.dynamic_intervals) if milestone <= count),
                        self.interval)
        return count % interval == 0 if self.start is None else count >= self.start and (
            count - self.start) % interval == 0

    def _before(self, runner: Any, by_epoch: bool) -> None:
        done = runner.epoch if by_epoch else runner.iter
        if self.by_epoch == by_epoch and self.initial_flag and self.start is not None and done >= self.start:
            self._do_evaluate(runner)
        if self.by_epoch == by_epoch:
            self.initial_flag = False

    def before_train_epoch(self, runner: Any) -> None:
        """Evaluate what the training begins with, where ``start`` says so."""
        self._before(runner, by_epoch=True)

    def before_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Likewise."""
        self._before(runner, by_epoch=False)

    def after_train_epoch(self, runner: Any) -> None:
        """Evaluate, where it is time."""
        if self.by_epoch:
            self._do_evaluate(runner)

    def after_train_iter(self, runner: Any, *_: Any, **__: Any) -> None:
        """Likewise."""
        if not self.by_epoch:
            self._do_evaluate(runner)

    def _do_evaluate(self, runner: Any) -> None:
        if not self._should_evaluate(runner):
            return
        # A script may have put a loop of its own in the place of mmdet.apis.single_gpu_test.
        test = getattr(sys.modules.get('mmdet.apis'), 'single_gpu_test', single_gpu_test)
        training = runner.model.training
        runner.model.eval()
        self.evaluate(runner, test(runner.model, self.dataloader, show=False))
        runner.model.train(training)

    def evaluate(self, runner: Any, results: list[Any]) -> None:
        """Log what the data set's ``evaluate`` finds, and keep the best checkpoint where that is asked for."""
        dataset: Any = self.dataloader.dataset
        values = dataset.evaluate(results, logger=runner.logger, **self.eval_kwargs)
        runner.logger.info(', '.join(f'{name}: {value}' for name, value in values.items()))
        if self.save_best is not None:
            self.best._keep_best(runner, values, (runner.epoch if self.by_epoch else runner.iter) + 1)


class DistEvalHook(EvalHook):
    """The same in several processes."""
