"""CityscapesDataset: the ``instancesonly_filtered_*.json`` files that tools/dataset_converters/cityscapes.py writes."""
from __future__ import annotations

import numpy as np

from boxdet.datasets.class_names import CITYSCAPES_CLASSES
from boxdet.datasets.coco import CocoDataset
from boxdet.registry import DATASETS

# Numbers of Cityscapes' labels that have instances and take part in the evaluation (cityscapesscripts,
# helpers/labels.py); a result file names the class of a mask by them.
LABEL_IDS = dict(zip(CITYSCAPES_CLASSES, (24, 25, 26, 27, 28, 31, 32, 33)))


@DATASETS.register_module()
class CityscapesDataset(CocoDataset):
    """The eight classes of Cityscapes with instances; arguments and errors as CocoDataset.

    ``img_prefix`` ends in ``leftImg8bit/SPLIT``. Two things differ from COCO, as in 2.x: an image whose annotations are
    all crowds is left out of training like an empty one (``filter_report`` counts it under 'only_crowd'), and the class
    map of an image is its ``segm_file``. Metrics: COCO's, and 'cityscapes' (boxdet/evaluation/cityscapes.py).
    """
    CLASSES = CITYSCAPES_CLASSES
    PALETTE = [(220, 20, 60), (255, 0, 0), (0, 0, 142), (0, 0, 70), (0, 60, 100), (0, 80, 100), (0, 0, 230),
               (119, 11, 32)]
    EVALUATORS = ('CityscapesEvaluator',)

    def get_ann_info(self, index: int) -> dict:
        """As ``CocoDataset.get_ann_info``; 'seg_map' is the image's ``segm_file`` where it has one."""
        info = super().get_ann_info(index)
        info['seg_map'] = self.data_infos[index].get('segm_file', info['seg_map'])
        return info

    def _without_object(self) -> dict[str, np.ndarray]:
        """As ``CocoDataset._without_object``, and 'only_crowd'."""
        reasons = super()._without_object()
        singles = self._per_image(~self._crowd)
        reasons['only_crowd'] = (singles == 0) & ~reasons['empty'] & ~reasons['without_wanted_class']
        return reasons
