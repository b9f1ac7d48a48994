"""datasets.files: what is read, and one clear line for what cannot be."""
import os
import pickle

import cv2
import numpy as np
import pytest

from boxdet.datasets.files import (
    check_color_type,
    check_file_client,
    decode_image,
    read_bytes,
    read_data,
    read_names,
)
from boxdet.errors import ConfigError, DataError

IMAGE = np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8)


def encoded(suffix, image=IMAGE):
    return cv2.imencode(suffix, image)[1]


def with_thumbnail(jpeg):
    """The same JPEG with a small one in an APP1 segment of its header, as cameras write it."""
    inner = encoded('.jpg', IMAGE[:8, :8]).tobytes()
    segment = b'\xff\xe1' + (len(inner) + 8).to_bytes(2, 'big') + b'Exif\0\0' + inner
    return np.frombuffer(jpeg.tobytes()[:2] + segment + jpeg.tobytes()[2:], dtype=np.uint8)


@pytest.mark.parametrize('suffix', ['.jpg', '.png'])
def test_truncated_images_are_named(suffix):
    data = encoded(suffix)
    assert decode_image(data, 'a').shape == (40, 60, 3)
    for share in (0.3, 0.7, 0.99):
        with pytest.raises(DataError, match='folder/a.jpg.*truncated'):
            decode_image(data[:int(len(data) * share)], 'folder/a.jpg')


def test_a_thumbnail_hides_no_truncation_and_a_tail_is_none():
    data = with_thumbnail(encoded('.jpg'))
    assert decode_image(data, 'a').shape == (40, 60, 3)
    with pytest.raises(DataError, match='truncated'):
        decode_image(data[:-40], 'a')
    tail = np.concatenate([data, np.zeros(50, dtype=np.uint8)])
    assert decode_image(tail, 'a').shape == (40, 60, 3)


def test_what_is_no_image(tmp_path):
    with pytest.raises(DataError, match='a.jpg: not an image'):
        decode_image(np.frombuffer(b'hello, this is text', dtype=np.uint8), 'a.jpg')
    (tmp_path / 'empty.jpg').touch()
    with pytest.raises(DataError, match='empty file'):
        read_bytes(str(tmp_path / 'empty.jpg'))
    with pytest.raises(DataError, match="emptz.jpg: no such file; did you mean 'empty.jpg'"):
        read_bytes(str(tmp_path / 'emptz.jpg'))
    with pytest.raises(DataError, match="nor the folder"):
        read_bytes(str(tmp_path / 'nowhere' / 'empty.jpg'))
    with pytest.raises(DataError, match='cannot be read'):
        read_bytes(str(tmp_path))


def test_channel_order_and_color_types():
    data = encoded('.png')
    assert np.array_equal(decode_image(data, 'a'), IMAGE)
    assert np.array_equal(decode_image(data, 'a', channel_order='rgb'), IMAGE[..., ::-1])
    assert decode_image(data, 'a', 'grayscale').shape == (40, 60)
    with pytest.raises(ConfigError, match="did you mean 'color'"):
        check_color_type('colour')


def test_exif_orientation_is_obeyed():
    from PIL import Image
    image = Image.fromarray(IMAGE[..., ::-1])
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees to show it upright
    import io
    out = io.BytesIO()
    image.save(out, format='JPEG', exif=exif)
    data = np.frombuffer(out.getvalue(), dtype=np.uint8)
    assert decode_image(data, 'a').shape == (60, 40, 3)
    assert decode_image(data, 'a', 'color_ignore_orientation').shape == (40, 60, 3)


def test_file_client():
    assert check_file_client(None) == 'disk' and check_file_client(dict(backend='http')) == 'http'
    with pytest.raises(ConfigError, match='petrel'):
        check_file_client(dict(backend='petrel'))
    with pytest.raises(ConfigError, match='path_mapping'):
        check_file_client(dict(backend='disk', path_mapping={}))


def test_names(tmp_path):
    (tmp_path / 'names.txt').write_text('cat\n\n dog \n')
    assert read_names(str(tmp_path / 'names.txt')) == ('cat', 'dog')


class Evil:
    def __reduce__(self):
        return os.system, ('touch /tmp/boxdet_was_here',)


def test_pickles_hold_data_only(tmp_path):
    path = tmp_path / 'a.pkl'
    value = [dict(filename='a.jpg', ann=dict(bboxes=np.ones((2, 4), dtype=np.float32), n=np.float64(3)))]
    path.write_bytes(pickle.dumps(value))
    read = read_data(str(path))
    assert np.array_equal(read[0]['ann']['bboxes'], value[0]['ann']['bboxes']) and read[0]['ann']['n'] == 3
    path.write_bytes(pickle.dumps([Evil()]))
    with pytest.raises(DataError, match='a.pkl.*system'):
        read_data(str(path))
    assert not os.path.exists('/tmp/boxdet_was_here')
    path.write_bytes(b'broken')
    with pytest.raises(DataError, match='a.pkl'):
        read_data(str(path))
    with pytest.raises(DataError, match='expected a .json or .pkl'):
        read_data(str(tmp_path / 'a.xyz'))
