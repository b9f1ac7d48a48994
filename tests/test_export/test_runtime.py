"""boxdet/runtime.py: alone, without torch, what the detector gives; and tools/export.py, which copies it."""
from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as mask_api

from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.geometry.keypoints import decode_heatmaps, heatmap_probabilities
from boxdet.geometry.masks import paste_to_rle

pytest.importorskip('onnxruntime')
from boxdet import runtime

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(('before', 'after'), [((96, 128), (120, 160)), ((120, 160), (60, 80)), ((100, 75), (37, 28)),
                                               ((31, 47), (200, 303)), ((50, 50), (50, 50)), ((50, 50), (25, 30))])
def test_images_are_resized_as_opencv_does(before, after):
    image = np.random.default_rng(0).integers(0, 256, (*before, 3), dtype=np.uint8)
    assert np.array_equal(runtime.resize(image, after), cv2.resize(image, after[::-1]))


@pytest.mark.parametrize('share', [0.0, 0.5, 1.0])
def test_masks_are_encoded_as_pycocotools_does(share):
    mask = np.random.default_rng(0).random((37, 53)) < share
    expected = mask_api.encode(np.asfortranarray(mask.astype(np.uint8)))
    assert runtime.encode(mask) == dict(size=[37, 53], counts=expected['counts'].decode())


def test_masks_are_pasted_as_the_detector_does():
    rng = np.random.default_rng(0)
    probs = cv2.resize(rng.random((7, 7)).astype(np.float32), (28, 28))
    for box in ([10.3, 5.1, 60.7, 40.2], [-8.0, -3.0, 30.0, 90.0], [4.0, 4.0, 4.0, 9.0]):
        box = np.float32(box)
        expected = paste_to_rle(probs[None], box[None], (64, 80))[0]
        one, other = (mask_api.decode(dict(code, counts=code['counts'])) for code in (
            expected, runtime.encode(runtime.paste(probs, box, (64, 80), 0.5))))
        assert (one != other).sum() <= 1


def test_keypoints_are_found_as_the_detector_does():
    random = torch.Generator().manual_seed(0)
    heatmaps = torch.randn(3, 5, 56, 56, generator=random)
    boxes = torch.tensor([[0.0, 0, 30.5, 80.2], [5, 5, 100, 61], [3, 3, 3.2, 3.1]])
    places, logits = decode_heatmaps(heatmaps, boxes)
    for kind, scores in (('logit', logits), ('probability', heatmap_probabilities(heatmaps, logits))):
        found = runtime.Detector.__new__(runtime.Detector)
        found.about = dict(keypoint_scores=kind)
        for i in range(3):
            own = found._keypoints(heatmaps[i].numpy(), boxes[i].numpy())
            np.testing.assert_allclose(own[:, :2], places[i], atol=1e-4)
            np.testing.assert_allclose(own[:, 2], scores[i], rtol=1e-4)


def test_it_imports_nothing_but_numpy_and_onnxruntime(tmp_path):
    (tmp_path / 'runtime.py').write_bytes((ROOT / 'boxdet/runtime.py').read_bytes())
    code = ('import sys; sys.modules.update(torch=None, boxdet=None, cv2=None, mmengine=None, torchvision=None)\n'
            'import runtime; print(runtime.Detector.__name__)')
    done = subprocess.run([sys.executable, '-c', code], cwd=tmp_path, capture_output=True,
                          text=True, timeout=120)
    assert done.stdout.strip() == 'Detector', done.stderr


def _with_distinct_results(checkpoint: Path, path: Path) -> Path:
    """The weights with larger last layers: fresh ones score all alike, and a last bit decides which results stay."""
    content = load_checkpoint(checkpoint)
    for name, value in content['state_dict'].items():
        if name.endswith(('rpn_cls.weight', 'fc_cls.weight', 'conv_logits.weight')):
            value *= 50
        if name.endswith(('rpn_reg.weight', 'fc_reg.weight')):  # boxes that are anchors overlap by round numbers
            value *= 30
    save_checkpoint(content, path)
    return path


@pytest.mark.slow
def test_the_tool_writes_a_file_that_the_runtime_detects_with(tiny_detector, tmp_path, capsys):
    from boxdet.apis import inference_detector, init_detector
    spec = importlib.util.spec_from_file_location('export_tool', ROOT / 'tools/export.py')
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    out = tmp_path / 'made/tiny.onnx'
    images = [str(path) for path in tiny_detector.images if path.suffix == '.png']
    checkpoint = _with_distinct_results(tiny_detector.checkpoint, tmp_path / 'distinct.pth')
    status = tool.main([str(tiny_detector.config), str(checkpoint), str(out), '--batch', '1',
                        '--with-runtime', '--verify', *images])
    said = capsys.readouterr().out
    assert status == 0 and 'detections equal in 3 images' in said, said
    code = ('import sys; sys.modules.update(torch=None, boxdet=None); sys.path.insert(0, sys.argv[1])\n'
            'import runtime; runtime.main(sys.argv[2:])')
    subprocess.run([sys.executable, '-c', code, out.parent, out, *images, '--out', tmp_path / 'predictions.json'],
                   check=True, capture_output=True, timeout=300, cwd=tmp_path)
    found = json.loads((tmp_path / 'predictions.json').read_text())
    model = init_detector(str(tiny_detector.config), str(checkpoint), device='cpu')
    expected = [row for i, path in enumerate(images)
                for row in inference_detector(model, path).to_coco(i + 1, [1, 2, 3])]
    assert len(found) == len(expected) > 3
    equal = sum(any(own['image_id'] == row['image_id'] and own['category_id'] == row['category_id']
                    and np.abs(np.subtract(own['bbox'], row['bbox'])).max() < 0.05
                    and abs(own['score'] - row['score']) < 5e-4
                    and (mask_api.decode(own['segmentation']) != mask_api.decode(row['segmentation'])).sum() <= 1
                    for own in found) for row in expected)
    assert equal >= 0.99 * len(expected)
