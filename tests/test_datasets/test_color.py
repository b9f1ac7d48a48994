"""Transforms of pixel values: mmcv's numbers; PhotoMetricDistortion within its bounds."""
import cv2
import mmcv
import numpy as np
import pytest

from boxdet.datasets.pipelines.color import (
    BrightnessTransform,
    ColorTransform,
    ContrastTransform,
    CutOut,
    EqualizeTransform,
    Normalize,
    PhotoMetricDistortion,
    normalize,
)
from boxdet.datasets.pipelines.compose import Compose
from boxdet.errors import ConfigError

NORM = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375])


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('to_rgb', [True, False])
def test_normalize_is_mmcv(dtype, to_rgb):
    image = np.random.default_rng(0).integers(0, 256, (37, 53, 3)).astype(dtype)
    original = image.copy()
    results = Normalize(**NORM, to_rgb=to_rgb)(dict(img=image))
    expected = image.astype(np.float32)
    if to_rgb:
        cv2.cvtColor(expected, cv2.COLOR_BGR2RGB, expected)
    cv2.subtract(expected, np.float64(np.float32(NORM['mean'])).reshape(1, -1), expected)
    cv2.multiply(expected, 1 / np.float64(np.float32(NORM['std'])).reshape(1, -1), expected)
    assert results['img'].dtype == np.float32 and np.abs(results['img'] - expected).max() < 1e-6
    assert np.array_equal(image, original)
    assert results['img_norm_cfg']['to_rgb'] is to_rgb and np.allclose(results['img_norm_cfg']['mean'], NORM['mean'])


@pytest.mark.parametrize('to_rgb', [True, False])
def test_normalize_takes_any_type_and_view(to_rgb):
    """Users' transforms leave float64, wider integers and mirrored views behind; mmcv takes them all."""
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    transform = Normalize(**NORM, to_rgb=to_rgb)
    expected = transform(dict(img=image))['img']
    for dtype in (np.float64, np.float16, np.uint16, np.int64):
        assert np.array_equal(transform(dict(img=image.astype(dtype)))['img'], expected)
    for view in (image[:, ::-1], image.astype(np.float32)[:, ::-1]):
        assert np.array_equal(transform(dict(img=view))['img'], expected[:, ::-1])


@pytest.mark.parametrize('shape', [(7, 9), (7, 9, 1), (7, 9, 4)])
def test_normalize_tells_what_has_other_channels(shape):
    with pytest.raises(ConfigError, match=r"Normalize: .*\(7, 9.*mean of 3 channels; LoadImageFromFile\(color_type"):
        Normalize(**NORM)(dict(img=np.zeros(shape, dtype=np.uint8)))


def test_normalize_into_a_padded_image():
    image = np.random.default_rng(0).integers(0, 256, (7, 9, 3)).astype(np.uint8)
    mean, std = np.float32(NORM['mean']), np.float32(NORM['std'])
    padded = normalize(image, mean, std, True, (12, 16))
    assert np.array_equal(padded[:7, :9], normalize(image, mean, std, True))
    assert padded.shape == (12, 16, 3) and not padded[7:].any() and not padded[:, 9:].any()


def test_photo_metric_distortion():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3)).astype(np.uint8)
    np.random.seed(0)
    outputs = [PhotoMetricDistortion()(dict(img=image))['img'] for _ in range(30)]
    assert all(o.dtype == np.float32 and o.shape == image.shape for o in outputs)
    assert max(np.abs(a - outputs[0]).max() for a in outputs[1:]) > 20
    np.random.seed(0)
    still = PhotoMetricDistortion(0, (1, 1), (1, 1), 0)
    unchanged = [np.sort(still(dict(img=image))['img'], axis=2) for _ in range(20)]
    assert max(np.abs(u - np.sort(image, axis=2)).max() for u in unchanged) < 0.01


def smooth(seed=0, dtype=np.uint8):
    noise = np.random.default_rng(seed).integers(0, 200, (40, 50, 3)).astype(np.uint8)
    return cv2.GaussianBlur(noise, (7, 7), 0).astype(dtype)


@pytest.mark.parametrize('dtype', [np.uint8, np.float32])
@pytest.mark.parametrize('level', [0, 3, 10])
def test_enhancements_are_mmcv_s(level, dtype):
    factor = level / 10 * 1.8 + 0.1
    for cls, expected in ((ColorTransform, mmcv.adjust_color), (BrightnessTransform, mmcv.adjust_brightness),
                          (ContrastTransform, mmcv.adjust_contrast)):
        given = dict(img=smooth(dtype=dtype), depth=smooth(dtype=dtype)[..., 0], img_fields=['img', 'depth'])
        found = cls(level, 1.0)(dict(given))
        assert found['img'].dtype == dtype and found['depth'] is given['depth']
        assert np.array_equal(found['img'], expected(smooth(dtype=dtype), factor).astype(dtype))
        assert np.array_equal(given['img'], smooth(dtype=dtype))
        assert cls(level, 0.0)(dict(given))['img'] is given['img']
        for wrong in (dict(level=11), dict(level=5, prob=-1)):
            with pytest.raises(ConfigError, match=cls.__name__):
                cls(**wrong)


def test_equalize_is_mmcv_s():
    for image in (smooth(), smooth(1) // 7, np.full((9, 9, 3), 3, np.uint8)):
        assert np.array_equal(EqualizeTransform(1.0)(dict(img=image))['img'], mmcv.imequalize(image))
    np.random.seed(0)
    changed = [EqualizeTransform(0.25)(dict(img=smooth()))['img'].max() > smooth().max() for _ in range(200)]
    assert 0.15 < np.mean(changed) < 0.35


def test_cut_out():
    image = smooth() + 1
    np.random.seed(3)
    found = CutOut((2, 4), [(8, 5), (3, 12)], fill_in=(0, 0, 7))(dict(img=image))['img']
    np.random.seed(3)
    holes = np.zeros(image.shape[:2], bool)
    for _ in range(np.random.randint(2, 5)):
        x, y = np.random.randint(0, 50), np.random.randint(0, 40)
        w, h = [(8, 5), (3, 12)][np.random.randint(0, 2)]
        holes[y:y + h, x:x + w] = True
    assert holes.any() and (found[holes] == [0, 0, 7]).all() and np.array_equal(found[~holes], image[~holes])
    assert np.array_equal(image, smooth() + 1)
    part = CutOut(1, cutout_ratio=(1.0, 1.0))(dict(img=image))['img']
    assert (part[-1, -1] == 0).all()
    for wrong in (dict(n_holes=1), dict(n_holes=1, cutout_shape=(1, 2), cutout_ratio=(1, 1)),
                  dict(n_holes=(3, 1), cutout_shape=(1, 2)), dict(n_holes=1, cutout_shape=(1, 2, 3)),
                  dict(n_holes=1, cutout_shape=8), dict(n_holes=1, cutout_ratio=[])):
        with pytest.raises(ConfigError, match='CutOut'):
            CutOut(**wrong)


def test_distortion_tells_that_it_changes_one_image():
    several = dict(img=smooth(), depth=smooth(), img_fields=['img', 'depth'])
    with pytest.raises(ConfigError, match="'img' alone, .* \\['img', 'depth'\\]"):
        PhotoMetricDistortion()(several)


@pytest.mark.parametrize('color_type, dtype', [('grayscale', np.uint8), ('unchanged', np.uint16)])
def test_images_of_one_channel_are_normalised(tmp_path, color_type, dtype):
    pixels = (np.arange(48, dtype=dtype) * (5 if dtype == np.uint8 else 1300)).reshape(6, 8)
    cv2.imwrite(str(tmp_path / 'a.png'), pixels)
    for to_rgb in (True, False):  # True is the default, and turns nothing
        pipeline = Compose([dict(type='LoadImageFromFile', color_type=color_type),
                            dict(type='Normalize', mean=[100.], std=[50.], to_rgb=to_rgb),
                            dict(type='Pad', size_divisor=8),
                            dict(type='DefaultFormatBundle'), dict(type='Collect', keys=['img'])])
        image = pipeline(dict(img_info=dict(filename='a.png'), img_prefix=str(tmp_path)))['img']
        assert image.shape == (1, 8, 8) and (image[0, 6:] == 0).all()
        np.testing.assert_allclose(image[0, :6], (pixels.astype(np.float32) - 100) / 50, rtol=1e-6)


def test_channels_behind_the_colours_keep_their_place():
    image = np.arange(24, dtype=np.uint8).reshape(2, 3, 4)
    result = normalize(image, np.zeros(4, np.float32), np.ones(4, np.float32), to_rgb=True)
    assert result.tolist() == image[..., [2, 1, 0, 3]].tolist()


@pytest.mark.parametrize('std', [[58.4, 0, 57.4], [58.4, -1, 57.4], [58.4, 57.1], [58.4, float('nan'), 57.4]])
def test_normalize_divides_by_numbers_above_0(std):
    with pytest.raises(ConfigError, match='Normalize: .*one number a channel each, and a std above 0'):
        Normalize([123.7, 116.3, 103.5], std)
