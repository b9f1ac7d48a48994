"""Results of a model for a data set that has some of its classes."""
import torch

from boxdet.evaluation.chosen_classes import ChosenClasses
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks

KNOWN = ('apple', 'pear', 'plum')


def found():
    return Instances((8, 8), 3, bboxes=torch.arange(16.).reshape(4, 4), scores=torch.tensor([.9, .8, .7, .6]),
                     labels=torch.tensor([2, 0, 1, 2]))


def test_others_are_left_out_and_labels_mapped():
    chosen = ChosenClasses.between(KNOWN, ('plum', 'apple'))
    result = chosen.relabelled(found())
    assert result.labels.tolist() == [0, 1, 0] and result.scores.tolist() == found().scores[[0, 1, 3]].tolist()
    assert result.num_classes == 2 and result.image_size == (8, 8) and chosen.kept(found()).labels.tolist() == [2, 0, 2]
    assert chosen.left_out == ['pear']
    assert str(chosen) == "the data set has 2 of the model's 3 classes: results of the others (pear) are left out"


def test_another_order():
    chosen = ChosenClasses.between(KNOWN, KNOWN[::-1])
    assert chosen.relabelled(found()).labels.tolist() == [0, 2, 1, 0]
    assert 'another order: labels are matched by name' in str(chosen)


def test_nothing_to_do_or_to_know():
    assert ChosenClasses.between(KNOWN, KNOWN) is None and ChosenClasses.between(None, KNOWN) is None
    assert ChosenClasses.between(KNOWN, None) is None and ChosenClasses.between(KNOWN, ('apple', 'fig')) is None


def test_empty_results_masks_and_proposals():
    chosen = ChosenClasses.between(KNOWN, ('pear',))
    empty = chosen.relabelled(empty_result((8, 8), 3, masks=True))
    assert len(empty) == 0 and len(empty.masks) == 0 and empty.num_classes == 1
    rles = [dict(size=[8, 8], counts=b'P2')] * 4
    assert len(chosen.relabelled(found().replace(masks=RleMasks(rles, 8, 8))).masks) == 1
    proposals = found().without('labels')
    assert chosen.relabelled(proposals) is proposals and chosen.kept(proposals) is proposals
