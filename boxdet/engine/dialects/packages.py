"""Where the configs of a package are: ``_base_ = 'mmdet::faster_rcnn/faster-rcnn_r50_fpn_1x_coco.py'``."""
from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from boxdet.errors import ConfigError, near_names
from boxdet.files.shipped import config_folders

FOLDER = 'BOXDET_MMDET_CONFIGS'  # environment: a folder in the place of the installed package


def package_config(package: str, name: str) -> str:
    """The path of config ``name`` of a package: below its ``.mim/configs`` or ``configs``.

    $BOXDET_MMDET_CONFIGS, a configs folder or one that holds ``configs`` (a checkout, an unpacked wheel), comes before
    an installed package.

    Raises:
        ConfigError: neither is there; the message says how to get the configs.
    """
    roots = _roots(package)
    if not roots:
        raise ConfigError(
            f"'{package}::{name}': the package {package} is not installed, and {FOLDER} names no folder of configs; "
            f'`pip download {package} --no-deps` and unpack the wheel (its configs are in {package}/.mim/configs), or '
            f'write the path of a file in place of {package}::')
    for root in roots:
        if (root / name).is_file():
            return str(root / name)
    return str(roots[0] / name)  # reading it tells that it is not there, and what is near


def find_config(name: str) -> Path:
    """The config that is called ``name`` without folder and ending: in ``./configs``, boxdet's or mmdet's.

    3.x's names have hyphens where those of 2.x have underscores: either is found.

    Raises:
        ConfigError: there is none; names the three most similar ones.
    """
    known: dict[str, Path] = {}
    for root in (*config_folders(), *_roots('mmdet')):
        for path in sorted(root.rglob('*.py')) if root.is_dir() else ():
            if '_base_' not in path.relative_to(root).parts:
                known.setdefault(path.stem, path)
    alike = [path for stem, path in known.items() if stem.replace('-', '_') == name.replace('-', '_')]
    if not alike:
        raise ConfigError(f"no config is called '{name}'{near_names(name, known)}")
    return known.get(name, alike[0])


def package_module(module: str) -> str:
    """The path of the pure-Python config ``mmdet.configs.faster_rcnn.faster_rcnn_r50_fpn_1x_coco``."""
    package, *parts = module.split('.')
    if parts[:1] == ['configs']:
        return package_config(package, '/'.join(parts[1:]) + '.py')
    found = _package_folder(package)
    if found is None:
        raise ConfigError(f'read_base() imports {module}: the package {package} is not installed')
    return str(found.joinpath(*parts)) + '.py'


def _roots(package: str) -> list[Path]:
    """Folders that may hold the package's configs, the given one first."""
    folders = []
    given = os.environ.get(FOLDER)
    if given:
        base = Path(given).expanduser()
        folders += [base / package / '.mim/configs', base / '.mim/configs', base / package / 'configs',
                    base / 'configs', base]
    found = _package_folder(package)
    if found is not None:
        folders += [found / '.mim/configs', found / 'configs', found.parent / 'configs']
    return [folder for folder in folders if folder.is_dir()]


def _package_folder(package: str) -> Path | None:
    spec = importlib.util.find_spec(package) if package.isidentifier() else None
    places = list(spec.submodule_search_locations or []) if spec else []
    return Path(places[0]) if places else None
