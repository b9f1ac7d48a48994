"""pycocotools' COCO with the further names that mmdetection 2.x gives it."""
from __future__ import annotations

from typing import Any

from pycocotools import coco as pycocotools_coco


class COCO(pycocotools_coco.COCO):
    """pycocotools' COCO, its methods also in snake case.

    Args:
        annotation_file: path of a COCO file; None for an empty object.

    Attributes:
        img_ann_map: annotations by image id (``imgToAnns``).
        cat_img_map: image ids by category id (``catToImgs``).
    """

    def createIndex(self) -> None:
        """Build the look-up tables of ``self.dataset``."""
        super().createIndex()
        self.img_ann_map, self.cat_img_map = self.imgToAnns, self.catToImgs

    def get_ann_ids(self, img_ids: Any = (), cat_ids: Any = (), area_rng: Any = (),
                    iscrowd: bool | None = None) -> list[int]:
        """``getAnnIds``."""
        return self.getAnnIds(img_ids, cat_ids, area_rng, iscrowd)

    def get_cat_ids(self, cat_names: Any = (), sup_names: Any = (), cat_ids: Any = ()) -> list[int]:
        """``getCatIds``."""
        return self.getCatIds(cat_names, sup_names, cat_ids)

    def get_img_ids(self, img_ids: Any = (), cat_ids: Any = ()) -> list[int]:
        """``getImgIds``."""
        return self.getImgIds(img_ids, cat_ids)

    def load_anns(self, ids: Any) -> list[dict]:
        """``loadAnns``."""
        return self.loadAnns(ids)

    def load_cats(self, ids: Any) -> list[dict]:
        """``loadCats``."""
        return self.loadCats(ids)

    def load_imgs(self, ids: Any) -> list[dict]:
        """``loadImgs``."""
        return self.loadImgs(ids)
