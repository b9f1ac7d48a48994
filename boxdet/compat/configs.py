"""Functions of ``mmdet.utils`` on configs: older keys, ``${key}`` in texts, threads."""
from __future__ import annotations

import copy
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from mmengine.config import ConfigDict

from boxdet.engine.environment import setup_processes

_OF_A_LOADER = ('samples_per_gpu', 'workers_per_gpu', 'persistent_workers')


def replace_cfg_vals(ori_cfg: Any) -> Any:
    """The config with every ``${key}`` in a text replaced by the value of that key.

    A ``model_wrapper`` then takes the place of ``model``.
    """
    def value_of(key: str) -> Any:
        found = ori_cfg
        for name in key.split('.'):
            found = found[name]
        return found

    def replaced(value: Any) -> Any:
        if isinstance(value, Mapping):
            return {key: replaced(one) for key, one in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(replaced(one) for one in value)
        if isinstance(value, str):
            keys = re.findall(r'\$\{([a-zA-Z\d_.]*)\}', value)
            if len(keys) == 1 and value == f'${{{keys[0]}}}':
                return value_of(keys[0])
            for key in keys:
                part = value_of(key)
                assert not isinstance(part, (Mapping, list, tuple)), f'{key}: a {type(part).__name__} within a text'
                value = value.replace(f'${{{key}}}', str(part))
        return value

    made = type(ori_cfg)(replaced(copy.deepcopy(ori_cfg._cfg_dict.to_dict())), filename=ori_cfg.filename)
    if made.get('model_wrapper') is not None:
        made.model = made.pop('model_wrapper')
    return made


def compat_cfg(cfg: Any) -> Any:
    """A copy of the config with 2.28's keys in the place of older ones, for scripts that read them; boxdet needs none.

    It is ``compat_imgs_per_gpu``, ``compat_loader_args`` and ``compat_runner_args``.
    """
    return compat_runner_args(compat_loader_args(compat_imgs_per_gpu(copy.deepcopy(cfg))))


def compat_runner_args(cfg: Any) -> Any:
    """``runner`` where the config only has ``total_epochs``, with a warning; else they must agree."""
    if 'runner' not in cfg and 'total_epochs' in cfg:
        cfg.runner = ConfigDict(type='EpochBasedRunner', max_epochs=cfg.total_epochs)
        warnings.warn('total_epochs is taken for runner.max_epochs; give `runner` in the config', stacklevel=2)
    elif 'total_epochs' in cfg:
        assert cfg.total_epochs == cfg.runner.max_epochs, 'total_epochs and runner.max_epochs differ'
    return cfg


def compat_imgs_per_gpu(cfg: Any) -> Any:
    """``data.samples_per_gpu`` of the older ``data.imgs_per_gpu``, which wins, with a warning."""
    if 'imgs_per_gpu' in cfg.data:
        warnings.warn('data.imgs_per_gpu is taken for data.samples_per_gpu', stacklevel=2)
        cfg.data.samples_per_gpu = cfg.data.imgs_per_gpu
    return cfg


def compat_loader_args(cfg: Any) -> Any:
    """``data.{train,val,test}_dataloader`` with what ``data`` and its data sets say of loaders.

    Raises:
        AssertionError: a setting that both say.
    """
    data = cfg.data
    for part in ('train', 'val', 'test'):
        loader = data.setdefault(f'{part}_dataloader', ConfigDict())
        common = {name: data[name] for name in _OF_A_LOADER if name in data}
        of_set = data.get(part)
        if part == 'train':
            own = common
        else:  # the number of samples stands in the data set, of several the largest counts
            common.pop('samples_per_gpu', None)
            sets = of_set if isinstance(of_set, (list, tuple)) else [of_set or {}]
            numbers = [one.pop('samples_per_gpu') for one in sets if 'samples_per_gpu' in one]
            own = {**common, **(dict(samples_per_gpu=max(numbers)) if numbers else {})}
        twice = sorted(set(own) & set(loader))
        assert not twice, f'{", ".join(twice)}: both data and data.{part}_dataloader have it'
        loader.update(own)
    return cfg


def setup_multi_processes(cfg: Any) -> None:
    """Start processes by ``mp_start_method`` ('fork'), and one thread of OpenCV, OpenMP and MKL in each.

    ``opencv_num_threads`` is another number of OpenCV's (0 for none beside the caller). The others are left alone
    where no loader has several workers, and where the environment has a number.
    """
    setup_processes(dict(mp_start_method=cfg.get('mp_start_method', 'fork'),
                         opencv_num_threads=cfg.get('opencv_num_threads', 0)))
    workers = [cfg.data.get('workers_per_gpu', 1),
               *(cfg.data.get(f'{part}_dataloader', {}).get('workers_per_gpu', 1) for part in ('train', 'val', 'test'))]
    if max(workers) > 1:
        for name in ('OMP_NUM_THREADS', 'MKL_NUM_THREADS'):
            os.environ.setdefault(name, '1')
