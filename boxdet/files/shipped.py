"""Where configs, tools, demos and documents are: in the wheel below the package, in a checkout beside it."""
from __future__ import annotations

from pathlib import Path

_PACKAGE = Path(__file__).resolve().parent.parent
# The wheel keeps the folders of a checkout together in 'share', so that they find each other there as here.
ROOT = _PACKAGE / 'share' if (_PACKAGE / 'share').is_dir() else _PACKAGE.parent


def config_folders() -> tuple[Path, ...]:
    """Where a config is looked for by its name: ``./configs`` first, then the configs that boxdet comes with."""
    return Path('configs'), ROOT / 'configs'
