"""Where mmdetection 2.x's users import the registries and builders of data from; nothing lives here."""
from boxdet.datasets.loader import build_dataloader
from boxdet.datasets.wrappers import build_dataset
from boxdet.registry import DATASETS, PIPELINES

__all__ = ['DATASETS', 'PIPELINES', 'build_dataloader', 'build_dataset']
