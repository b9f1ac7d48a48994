"""The import name of mmdetection 2.x's layout for the overlap, which stands beside the assigner that uses it."""
from boxdet.matching.assigner import BboxOverlaps2D

__all__ = ['BboxOverlaps2D']
