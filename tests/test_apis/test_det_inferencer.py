"""DetInferencer: mmdetection 3.x's keywords, files and result dicts, with the numbers of inference_detector."""
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from boxdet.apis import DetInferencer, inference_detector, init_detector
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import ConfigError, DataError
from boxdet.structures.instances import Instances


@pytest.fixture(scope='module')
def expected(tiny_detector):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    return [inference_detector(model, str(path)) for path in tiny_detector.images]


@pytest.fixture(scope='module')
def inferencer(tiny_detector):
    return DetInferencer(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu', show_progress=False)


@pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning')
def test_predictions_are_plain_lists_with_the_numbers_of_inference_detector(inferencer, tiny_detector, expected):
    found = inferencer([str(path) for path in tiny_detector.images], batch_size=2)
    assert set(found) == {'predictions', 'visualization'} and found['visualization'] == []
    assert len(found['predictions']) == len(expected)
    for prediction, result in zip(found['predictions'], expected):
        assert set(prediction) == {'labels', 'scores', 'bboxes', 'masks'}
        assert prediction['labels'] == result.labels.tolist()
        np.testing.assert_allclose(prediction['scores'], result.scores.numpy(), atol=1e-6)
        np.testing.assert_allclose(prediction['bboxes'], result.bboxes.numpy(), atol=1e-4)
        bitmaps = np.stack([coco_mask.decode(mask) for mask in prediction['masks']])
        assert (bitmaps != result.masks_bitmaps()).mean() < 1e-4
        assert isinstance(prediction['masks'][0]['counts'], str)
        json.dumps(prediction)


def test_writes_drawings_and_predictions(inferencer, tiny_detector, tmp_path):
    one, two = str(tiny_detector.images[0]), cv2.imread(str(tiny_detector.images[2]))
    found = inferencer([one, two], out_dir=str(tmp_path), no_save_pred=False, pred_score_thr=0.1, return_vis=True)
    assert sorted(p.name for p in (tmp_path / 'vis').iterdir()) == ['00000000.jpg', 'a.png']
    assert json.loads((tmp_path / 'preds/a.json').read_text()) == found['predictions'][0]
    assert json.loads((tmp_path / 'preds/00000000.json').read_text()) == found['predictions'][1]
    assert [drawing.shape for drawing in found['visualization']] == [(96, 128, 3)] * 2
    drawn = cv2.imread(str(tmp_path / 'vis/a.png'))
    np.testing.assert_array_equal(drawn[:, :, ::-1], found['visualization'][0])  # RGB
    assert (drawn != cv2.imread(one)).any()


def test_without_predictions_the_drawing_is_the_image(inferencer, tiny_detector, tmp_path):
    one = str(tiny_detector.images[0])
    found = inferencer(one, draw_pred=False, return_vis=True, out_dir=tmp_path, no_save_vis=True)
    np.testing.assert_array_equal(found['visualization'][0][:, :, ::-1], cv2.imread(one))
    assert list(tmp_path.iterdir()) == []


def test_a_folder_and_images_of_one_name(inferencer, tiny_detector, tmp_path):
    for folder in 'xy':
        (tmp_path / folder).mkdir()
        shutil.copy(tiny_detector.images[0], tmp_path / folder)
    assert len(inferencer(tmp_path / 'x')['predictions']) == 1
    inferencer([str(tmp_path / 'x/a.png'), str(tmp_path / 'y/a.png')], out_dir=tmp_path / 'out', no_save_pred=False)
    assert sorted(str(p.relative_to(tmp_path / 'out')) for p in (tmp_path / 'out').rglob('*.json')) == [
        'preds/x/a.json', 'preds/y/a.json']
    (tmp_path / 'empty').mkdir()
    with pytest.raises(DataError, match='no image in this folder'):
        inferencer(tmp_path / 'empty')


def test_objects_in_place_of_dicts(inferencer, tiny_detector, expected, capsys):
    found = inferencer(str(tiny_detector.images[0]), return_datasamples=True, print_result=True)['predictions']
    assert isinstance(found[0], Instances) and torch.equal(found[0].labels, expected[0].labels)
    assert "'bboxes': [[" in capsys.readouterr().out


def test_the_config_comes_with_the_checkpoint(tiny_detector, tmp_path, expected):
    checkpoint = load_checkpoint(tiny_detector.checkpoint)
    checkpoint['meta']['config'] = load_config(tiny_detector.config).pretty_text
    save_checkpoint(checkpoint, tmp_path / 'whole.pth')
    found = DetInferencer(weights=tmp_path / 'whole.pth', device='cpu')(str(tiny_detector.images[0]))
    np.testing.assert_allclose(found['predictions'][0]['scores'], expected[0].scores.numpy(), atol=1e-6)
    with pytest.raises(ConfigError, match='holds no config: give one as model'):
        DetInferencer(weights=tiny_detector.checkpoint, device='cpu')


def test_a_config_by_its_name_and_random_weights(monkeypatch):
    with pytest.raises(ConfigError, match="'mask_rcnn_r50_fpn_1x_coc'; near it are mask_rcnn_r50_fpn_1x_coco, "):
        DetInferencer('mask_rcnn_r50_fpn_1x_coc', 'x.pth', device='cpu')
    with pytest.warns(UserWarning, match='no weights are given: the results are those of random ones'):
        made = DetInferencer('mask_rcnn_r18_fpn_shapes', device='cpu', palette='voc')
    assert type(made.model).__name__ == 'MaskRCNN' and made.palette == 'voc'


@pytest.mark.parametrize('options, message', [
    (dict(scope='mmyolo'), "scope 'mmyolo': boxdet has one registry"), (dict(palette='cocoo'), "did you mean 'coco'"),
    (dict(), 'needs a model, or weights')])
def test_wrong_arguments(options, message):
    with pytest.raises(ConfigError, match=message):
        DetInferencer(device='cpu', **options)


def test_wrong_keywords_of_a_call(inferencer, tiny_detector):
    with pytest.raises(ConfigError, match="takes no 'score_thr'; did you mean 'pred_score_thr'"):
        inferencer(str(tiny_detector.images[0]), score_thr=0.3)
    with pytest.raises(ConfigError, match='texts: the detectors here read no texts'):
        inferencer(str(tiny_detector.images[0]), texts='cat')


@pytest.mark.parametrize('name', ['mask-rcnn_r50_fpn_1x_coco', 'mask_rcnn_r50_fpn_1x_coco'])
def test_a_name_alone_brings_the_published_weights(name, monkeypatch):
    given = []
    monkeypatch.setattr('boxdet.apis.det_inferencer.init_detector',
                        lambda config, weights, device: given.append((config.filename, weights)))
    DetInferencer(name, device='cpu')
    assert given[0][0].endswith('mask_rcnn_r50_fpn_1x_coco.py') and given[0][1] == 'zoo://mask_rcnn_r50_fpn_1x_coco'
