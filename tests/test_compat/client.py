"""A client that calls mmdet.apis as SAHI 0.11 does, boxes and masks; and a test script's loop. Asserts."""
import sys

import numpy as np

root, kind = sys.argv[1:]
import boxdet.compat  # noqa: E402

boxdet.compat.install()

import torch  # noqa: E402
from mmcv.parallel import MMDataParallel  # noqa: E402
from mmdet.apis import inference_detector, init_detector  # noqa: E402

import boxdet.apis  # noqa: E402

torch.manual_seed(0)
model = init_detector(f'{root}/configs/shapes/{kind}_rcnn_r18_fpn_shapes.py', None, device='cpu',
                      cfg_options={'model.test_cfg.rcnn.score_thr': 0.01})
image = np.random.default_rng(0).integers(0, 255, (96, 128, 3), np.uint8)
results = [inference_detector(model, image)]
num_categories = len(model.CLASSES)
found = []
for original in results:
    boxes, masks = original if isinstance(original, tuple) else (original, None)
    assert isinstance(original, tuple) == (kind == 'mask')
    assert len(boxes) == num_categories and all(b.shape[1] == 5 and b.dtype == np.float32 for b in boxes)
    for category_id in range(num_categories):
        category_boxes = boxes[category_id]
        for index in range(category_boxes.shape[0]):
            score = category_boxes[index][4]
            mask = None if masks is None else masks[category_id][index]
            if mask is not None:
                assert mask.shape == image.shape[:2] and mask.dtype == bool
                image.copy()[mask] = 0
            found.append((category_id, float(score), category_boxes[index][:4].astype(int).tolist(), mask))
plain = boxdet.apis.inference_detector(model, image)
assert len(found) == len(plain) > 0
assert sorted((k, round(s, 5)) for k, s, _, _ in found) == sorted(
    (int(k), round(float(s), 5)) for k, s in zip(plain.labels, plain.scores))

# The loop of a test script: the model called by keywords.
meta = dict(img_shape=(128, 160, 3), ori_shape=(64, 80, 3), pad_shape=(128, 160, 3),
            scale_factor=np.full(4, 2, np.float32),
            flip=False)
tensor = torch.rand(1, 3, 128, 160)
for caller in (model, MMDataParallel(model)):
    with torch.no_grad():
        one = caller(return_loss=False, rescale=True, img=[tensor], img_metas=[[meta]])[0]
    boxes = one[0] if kind == 'mask' else one
    assert len(boxes) == num_categories
    if kind == 'mask':
        assert [len(m) for m in one[1]] == [len(b) for b in boxes]
        assert all(m.shape == (64, 80) for of_class in one[1] for m in of_class)
assert len(model.forward_dummy(tensor)) >= 2
print('equal')
