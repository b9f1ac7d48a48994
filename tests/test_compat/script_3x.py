"""A script of mmdetection 3.x's usual form; run by ``python -m boxdet.compat``. Asserts."""
import sys

import mmcv
import numpy as np
import torch
from mmdet.apis import DetInferencer, inference_detector, init_detector
from mmdet.registry import MODELS, TRANSFORMS, VISUALIZERS
from mmdet.structures import DetDataSample
from mmdet.utils import register_all_modules
from mmengine.structures import InstanceData

root, out = sys.argv[1:]
register_all_modules()
assert 'FasterRCNN' in MODELS and 'Resize' in TRANSFORMS
torch.manual_seed(0)
model = init_detector(f'{root}/configs/shapes/mask_rcnn_r18_fpn_shapes.py', None, device='cpu',
                      cfg_options={'model.test_cfg.rcnn.score_thr': 0.01})
image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
result = inference_detector(model, image)
found = result.pred_instances
assert isinstance(found, InstanceData) and len(found) > 0 and result.ori_shape == (96, 128)
assert found.bboxes.shape == (len(found), 4) and found.masks.shape == (len(found), 96, 128)
assert found.masks.dtype == torch.bool and found.labels.dtype == torch.int64
certain = found[found.scores > float(found.scores.median())].cpu().numpy()
assert 0 < len(certain) < len(found) and isinstance(certain.bboxes, np.ndarray)

# The same object is 2.x's pair of lists.
boxes, masks = result
assert sum(map(len, boxes)) == sum(map(len, masks)) == len(found)
for k, rows in enumerate(boxes):
    own = found.labels == k
    np.testing.assert_array_equal(rows[:, :4], found.bboxes[own].numpy())
    np.testing.assert_array_equal(rows[:, 4], found.scores[own].numpy())
    assert all(np.array_equal(a, b) for a, b in zip(masks[k], found.masks[own].numpy()))

several = inference_detector(model, [image, image[:, ::-1].copy()])
assert torch.equal(several[0].pred_instances.scores, found.scores) and len(several) == 2

visualizer = VISUALIZERS.build(model.cfg.visualizer)
visualizer.dataset_meta = model.dataset_meta
visualizer.add_datasample('result', mmcv.imconvert(image, 'bgr', 'rgb'), data_sample=result, draw_gt=False,
                          pred_score_thr=0.0, out_file=f'{out}/drawn.png')
drawn = mmcv.imread(f'{out}/drawn.png')
assert drawn.shape == image.shape and (drawn != image).any()
assert np.array_equal(visualizer.get_image()[:, :, ::-1], drawn)

torch.save(dict(state_dict=model.state_dict(), meta=dict(CLASSES=model.CLASSES)), f'{out}/model.pth')
inferencer = DetInferencer(f'{root}/configs/shapes/faster_rcnn_r18_fpn_shapes.py', f'{out}/model.pth', device='cpu',
                           show_progress=False)
sample = inferencer(image, return_datasamples=True)['predictions'][0]
plain = inferencer(image)['predictions'][0]
assert isinstance(sample, DetDataSample) and 'masks' not in sample.pred_instances
np.testing.assert_allclose(sample.pred_instances.bboxes, plain['bboxes'], rtol=1e-6)
assert sample.pred_instances.labels.tolist() == plain['labels']
print('read')
