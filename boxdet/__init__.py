"""boxdet: two-stage object detection (Faster, Mask and Cascade R-CNN) with mmdetection 2.x's configs."""

from .version import __version__

__all__ = ['__version__']
