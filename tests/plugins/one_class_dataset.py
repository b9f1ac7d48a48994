"""A data set with a ``__getitem__`` of its own."""
from boxdet.datasets import DATASETS
from boxdet.datasets.coco import CocoDataset


@DATASETS.register_module()
class OneClassDataset(CocoDataset):
    """Every object is of the class ``label``."""

    def __init__(self, label, source, **kwargs):
        super().__init__(**kwargs)
        self.label, self.source = label, source

    def __getitem__(self, index):
        sample = super().__getitem__(index)
        sample['gt_labels'] = sample['gt_labels'] * 0 + self.label
        return sample
