"""Results of a model that knows more classes than a data set, or the same in another order, as results of that set."""
from __future__ import annotations

from collections.abc import Sequence

import torch

from boxdet.structures.instances import Instances


class ChosenClasses:
    """From labels that count in a model's classes to labels that count in a data set's; other classes are left out.

    Args:
        known: the names of the model's K classes.
        wanted: those of the data set, all among ``known``.

    >>> chosen = ChosenClasses(('apple', 'pear', 'plum'), ('plum', 'apple'))
    >>> found = Instances(labels=torch.tensor([0, 1, 2]), scores=torch.tensor([.9, .8, .7]))
    >>> chosen.relabelled(found).labels.tolist()
    [1, 0]
    """

    def __init__(self, known: Sequence[str], wanted: Sequence[str]):
        self.left_out = [name for name in known if name not in wanted]
        places = {name: label for label, name in enumerate(wanted)}
        self._labels = torch.tensor([places.get(name, -1) for name in known])  # (K,)
        self._count = len(wanted)

    @classmethod
    def between(cls, known: Sequence[str] | None, wanted: Sequence[str] | None) -> ChosenClasses | None:
        """None where nothing is to be done: they are the same, one is not known, or the model lacks one of them."""
        if known is None or wanted is None or tuple(known) == tuple(wanted) or not set(wanted) <= set(known):
            return None
        return cls(known, wanted)

    @classmethod
    def of(cls, detector: object, dataset: object) -> ChosenClasses | None:
        """``between`` what a detector and a data set call ``CLASSES``; None for an RPN, whose results have none."""
        if not getattr(detector, 'with_roi_head', True):
            return None
        return cls.between(getattr(detector, 'CLASSES', None), getattr(dataset, 'CLASSES', None))

    def kept(self, result: Instances) -> Instances:
        """The detections of the data set's classes, labelled as the model does; proposals have none and all stay."""
        return result[self._labels[result.labels] >= 0] if 'labels' in result else result

    def relabelled(self, result: Instances) -> Instances:
        """The ``kept`` detections with the data set's labels."""
        if 'labels' not in result:
            return result
        kept = self.kept(result)
        return Instances(kept.image_size, self._count, **{**kept.fields, 'labels': self._labels[kept.labels]})

    def __str__(self) -> str:
        if not self.left_out:
            return "the data set has the model's classes in another order: labels are matched by name"
        shown = ', '.join(self.left_out[:10]) + (', …' if len(self.left_out) > 10 else '')
        return (f"the data set has {self._count} of the model's {len(self._labels)} classes: results of the others "
                f'({shown}) are left out')
