"""mmdetection 2.x's import names, backed by boxdet, for scripts and plug-ins that were written for it.

    python -m boxdet.compat SCRIPT [ARGS ...]

runs a script as it is; ``install()`` does the same for the process that calls it, before the first ``import mmdet``:

>>> import boxdet.compat
>>> boxdet.compat.install()                                                # doctest: +SKIP
>>> from mmdet.apis import init_detector, inference_detector               # doctest: +SKIP

In it results are 2.x's lists by class, and base classes call 2.x's methods (``compat.models``). Nothing of boxdet
imports this package. docs/migrating.md tells what differs.
"""
from __future__ import annotations

import logging

__all__ = ['install']


def install(prefer_installed: bool = False) -> bool:
    """Make ``mmdet`` and the parts of ``mmcv`` 1.x importable.

    Args:
        prefer_installed: leave everything as it is where a real mmdet is installed.

    Returns:
        whether the names are boxdet's; it is said once in the log.

    Raises:
        UserError: a real mmdet is imported already.
    """
    from boxdet.compat import imports  # torch with it: not for those who only look at this package
    installed = imports.install(prefer_installed)
    if installed is not None:
        logger = logging.getLogger('boxdet')
        logger.info('mmdet and mmcv 1.x are boxdet.compat in this process' if installed
                    else 'mmdet is the one that is installed (prefer_installed=True)')
    return imports.is_installed()
