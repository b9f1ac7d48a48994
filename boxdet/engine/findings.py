"""What a check finds: a code, one line, and whether it ends the run.

``preflight=dict(ignore=[code, …])`` in a config lets it pass. docs/checks.md has an entry for each code.
"""
from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from boxdet.errors import ConfigError, DataError, UserError, nearest

logger = logging.getLogger('boxdet')

# What ends a run, as which error; None is a warning.
CHECKS: dict[str, type[UserError] | None] = {
    'config.contradiction': ConfigError,
    'config.idle-key': None,
    'config.idle-schedule': None,
    'data.all-crowd': DataError,
    'data.areas': None,
    'data.boxes': DataError,
    'data.boxes-outside': None,
    'data.class-order': ConfigError,
    'data.degenerate-boxes': None,
    'data.dropped-classes': None,
    'data.empty-class': None,
    'data.few-images': None,
    'data.fewer-classes': None,
    'data.in-a-corner': None,
    'data.keypoints': DataError,
    'data.masks': DataError,
    'data.missing-classes': None,
    'data.missing-images': DataError,
    'data.mostly-crowd': None,
    'data.no-image-files': DataError,
    'data.no-images': DataError,
    'data.no-masks': DataError,
    'data.repeated': None,
    'data.shared-images': None,
    'data.some-masks': None,
    'data.without-image': None,
    'model.channels': ConfigError,
    'model.class-weight': ConfigError,
    'model.head-reads': ConfigError,
    'model.image-channels': ConfigError,
    'model.keypoints': ConfigError,
    'model.levels': ConfigError,
    'model.loss-form': ConfigError,
    'model.mask-size': ConfigError,
    'model.num-classes': ConfigError,
    'model.roi-size': ConfigError,
    'model.strides': ConfigError,
    'pipeline.keys': ConfigError,
    'pipeline.normalize': None,
    'pipeline.phase': ConfigError,
}


@dataclass(frozen=True)
class Finding:
    """One thing that can hardly be meant.

    Args:
        code: a key of ``CHECKS``.
        message: one line: where, how many, which ids, the remedy.
    """
    code: str
    message: str

    @property
    def error(self) -> UserError | None:
        """The error that it ends a run with; None for a warning."""
        kind = CHECKS[self.code]
        return None if kind is None else kind(str(self))

    def __str__(self) -> str:
        return f'{self.message} [{self.code}]'


def ignored_codes(cfg: Any) -> tuple[str, ...]:
    """The codes of ``preflight=dict(ignore=[…])``.

    Raises:
        ConfigError: an unknown code, or another key.
    """
    section = cfg.get('preflight') or {}
    if not isinstance(section, Mapping):
        raise ConfigError(f"preflight must be a dict such as dict(ignore=['data.boxes']), not {section!r}")
    for key in section:
        if key != 'ignore':
            raise ConfigError(f"preflight.{key}: there is no such key{nearest(key, ['ignore'])}")
    codes = section.get('ignore') or ()
    if not isinstance(codes, (list, tuple)):
        raise ConfigError(f"preflight.ignore is a list of codes such as ['data.boxes'], not {codes!r}")
    for code in codes:
        if code not in CHECKS:
            raise ConfigError(f"preflight.ignore: there is no check '{code}'{nearest(str(code), CHECKS)}; "
                              'docs/checks.md lists them')
    return tuple(codes)


def report(findings: Iterable[Finding], ignore: Iterable[str] = ()) -> None:
    """Log what was found; what is ignored is told in a word.

    Raises:
        ConfigError or DataError: the first finding that ends a run; others of the kind are in the log.
    """
    errors: list[UserError] = []
    try:
        for finding in findings:
            error = finding.error
            if finding.code in ignore:
                logger.info('preflight.ignore: %s', finding)
            elif error is None:
                logger.warning('%s', finding)
            else:
                errors.append(error)
    except UserError:  # of what stands on what was found before
        if not errors:
            raise
    for error in errors[1:]:
        logger.error('%s', error)
    if errors:
        raise errors[0]


def refuse(findings: Iterable[Finding], ignore: Iterable[str] = ()) -> None:
    """As ``report``, for the checks of a command that only asks whether to go on: the first error is raised at once."""
    for finding in findings:
        if finding.error is not None and finding.code not in ignore:
            raise finding.error
