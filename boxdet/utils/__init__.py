"""Where mmdetection 2.x's users import a few names from."""
from __future__ import annotations

import logging
from pathlib import Path

__all__ = ['get_root_logger']


def get_root_logger(log_file: str | Path | None = None, log_level: int | str = logging.INFO) -> logging.Logger:
    """The logger 'boxdet'; set up (``engine.environment.setup_logger``) where it is not yet, or for a ``log_file``."""
    logger = logging.getLogger('boxdet')
    if logger.handlers and log_file is None:
        return logger
    from boxdet.engine.environment import setup_logger  # torch with it: not for the import of this package
    return setup_logger(log_file, log_level)
