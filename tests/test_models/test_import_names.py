"""The names that code written for mmdetection 2.x imports are there, and cost no more than what they name."""
import importlib
import logging
import subprocess
import sys

import pytest

from boxdet.registry import BACKBONES, NECKS, PIPELINES

NAMES = {
    'boxdet.models.builder': 'BACKBONES DETECTORS HEADS LOSSES NECKS ROI_EXTRACTORS SHARED_HEADS build_backbone '
                             'build_detector build_head build_loss build_neck build_roi_extractor build_shared_head',
    'boxdet.datasets.builder': 'DATASETS PIPELINES build_dataloader build_dataset',
    'boxdet.datasets.pipelines': 'Compose', 'boxdet.models.backbones': 'ResNet ResNeXt VGG',
    'boxdet.models.necks': 'FPN', 'boxdet.utils': 'get_root_logger', 'boxdet.engine.hooks': 'HOOKS Hook'}


@pytest.mark.parametrize('module', NAMES)
def test_names(module):
    imported = importlib.import_module(module)
    for name in NAMES[module].split():
        found = getattr(imported, name)
        assert callable(found) or name.isupper() and hasattr(found, 'register_module')
        assert name in imported.__all__
    with pytest.raises(ImportError):
        exec(f'from {module} import nothing_of_that_name')


def test_they_are_the_same_objects():
    from boxdet import datasets, models
    from boxdet.datasets import builder as data_builder
    from boxdet.models import builder
    assert all(getattr(builder, name) is getattr(models, name) for name in builder.__all__)
    assert all(getattr(data_builder, name) is getattr(datasets, name) for name in data_builder.__all__)
    assert builder.HEADS is models.HEADS and data_builder.PIPELINES is PIPELINES


@pytest.mark.parametrize('package, registry', [
    ('boxdet.datasets.pipelines', PIPELINES), ('boxdet.models.backbones', BACKBONES), ('boxdet.models.necks', NECKS)])
def test_a_package_offers_every_class_that_is_registered_from_it(package, registry):
    ours = {cls.__name__: cls for cls in (registry.get(name) for name in registry.names())
            if cls.__module__.startswith(f'{package}.')}
    imported = importlib.import_module(package)
    assert ours and set(ours) <= set(imported.__all__)
    assert all(getattr(imported, name) is cls for name, cls in ours.items())


def test_one_name_imports_one_module():
    code = ('import sys\nfrom boxdet.apis import init_detector\n'
            'assert not [name for name in sys.modules if name == "torchvision" or "families." in name]\n'
            'from boxdet.models.backbones import ResNet\nfrom boxdet.models.builder import HEADS\n'
            'from boxdet.datasets.pipelines import Compose\n'
            'assert "boxdet.models.backbones.resnet" in sys.modules\n'
            'unasked = {"boxdet.models.backbones.vgg", "boxdet.models.detectors", '
            '"boxdet.datasets.pipelines.geometric"}\n'
            'assert not unasked & set(sys.modules), unasked & set(sys.modules)')
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_root_logger(tmp_path):
    from boxdet.utils import get_root_logger
    logger = logging.getLogger('boxdet')
    kept, level, propagate = logger.handlers[:], logger.level, logger.propagate
    logger.handlers.clear()
    try:
        assert get_root_logger() is logger and len(logger.handlers) == 1
        own = logger.handlers[0]
        assert get_root_logger().handlers == [own]  # set up already
        get_root_logger(tmp_path / 'a.log', 'WARNING').warning('something')
        assert 'boxdet - WARNING - something' in (tmp_path / 'a.log').read_text() and logger.level == logging.WARNING
    finally:
        for handler in logger.handlers:
            handler.close()
        logger.handlers[:], logger.propagate = kept, propagate
        logger.setLevel(level)
