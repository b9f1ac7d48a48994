"""What evaluation and ``boxdet.apis`` ask of a data set, as Protocols: a data set of your own needs no base class."""
from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol, TypeGuard

if TYPE_CHECKING:
    import numpy as np
    from pycocotools.coco import COCO


class Dataset(Protocol):
    """Images in an order, with the names of the classes."""

    @property
    def CLASSES(self) -> tuple[str, ...]:
        """K names; label k stands for the k-th."""

    def __len__(self) -> int:
        """Number of images."""

    def img_info(self, index: int) -> dict:
        """'filename', 'width', 'height', ... of an image."""

    def get_ann_info(self, index: int) -> dict:
        """'bboxes' (N, 4) xyxy, 'labels' (N,) from 0, 'bboxes_ignore' (M, 4), ... of an image."""


class AnnotatedDataset(Dataset, Protocol):
    """One that its annotation file tells from others."""

    @property
    def ann_file(self) -> str:
        """What messages call it."""

    @property
    def has_annotations(self) -> bool:
        """Whether there is something to evaluate against."""


class AnnotatedInCoco(AnnotatedDataset, Protocol):
    """One whose annotations pycocotools has read."""

    @property
    def coco(self) -> COCO:
        """Its images, annotations and categories."""

    @property
    def img_ids(self) -> Sequence[int]:
        """The id of each image, in the order of the data set."""

    @property
    def cat_ids(self) -> Sequence[int]:
        """The category id of each class."""


class AnnotatedInCityscapes(AnnotatedInCoco, Protocol):
    """One whose semantic maps or instance ids lie beside the images, as in Cityscapes."""

    @property
    def img_prefix(self) -> str | None:
        """The folder of the images."""

    @property
    def seg_prefix(self) -> str | None:
        """The folder of the instance ids; None for the one beside ``img_prefix``."""


class WithKeypoints(AnnotatedInCoco, Protocol):
    """One whose objects have J keypoints."""

    @property
    def KEYPOINT_NAMES(self) -> tuple[str, ...]:
        """J names."""

    @property
    def SIGMAS(self) -> tuple[float, ...] | None:
        """(J,) how far each may be off, as COCO defines it; None where nothing is known."""

    @property
    def keypoint_offset(self) -> float:
        """Pixels from the annotation file's coordinates to the samples'."""


class AnnotatedInOpenImages(AnnotatedDataset, Protocol):
    """One whose classes are a tree and whose images were searched for some of them."""

    @property
    def get_supercategory(self) -> bool:
        """Whether an object counts for the classes above its own."""

    @property
    def filter_labels(self) -> bool:
        """Whether detections of classes that an image was not searched for are left out."""

    def class_tree(self) -> np.ndarray:
        """(K, K) bool, [k, p]: class p is k, or above it."""

    def image_sizes(self) -> np.ndarray:
        """(I, 2) float64 width, height."""

    def image_labels(self) -> list[np.ndarray]:
        """The labels (L,) int64 that each image was searched for."""


class ImageFolder(AnnotatedDataset, Protocol):
    """One whose images are files below a folder."""

    @property
    def data_infos(self) -> Sequence[dict]:
        """``img_info`` of each image."""

    @property
    def img_prefix(self) -> str | None:
        """The folder."""


def in_coco(dataset: object) -> TypeGuard[AnnotatedInCoco]:
    """Whether pycocotools has read the annotations of ``dataset``."""
    return hasattr(dataset, 'coco')


def with_keypoints(dataset: object) -> TypeGuard[WithKeypoints]:
    """Whether the objects of ``dataset`` have keypoints."""
    return hasattr(dataset, 'SIGMAS')
