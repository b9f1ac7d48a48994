"""What the drawing must keep: pixels where nothing is, colours where masks and boxes are, labels inside the image."""

from types import SimpleNamespace

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as coco_masks

from boxdet.errors import DataError, UserError
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks
from boxdet.visualization import mask_windows
from boxdet.visualization.draw import CLOSED, END, draw_instances, place_labels, read_image, show, write_image
from boxdet.visualization.palette import class_color


def scene(boxes, labels, scores=None, size=(240, 320), masks=False) -> Instances:
    fields = dict(bboxes=torch.tensor(boxes, dtype=torch.float32), labels=torch.tensor(labels))
    if scores is not None:
        fields['scores'] = torch.tensor(scores)
    if masks:
        rles = []
        for x0, y0, x1, y1 in boxes:
            bitmap = np.zeros(size, np.uint8, order='F')
            bitmap[y0:y1, x0:x1] = 1
            bitmap[y0 + 20:y1 - 20, x0 + 20:x1 - 20] = 0  # a hole
            rles.append(coco_masks.encode(bitmap))
        fields['masks'] = RleMasks(rles, *size)
    return Instances(size, **fields)


def noise(height=240, width=320, seed=0):
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def test_the_image_is_not_changed_and_the_rest_stays():
    image = noise()
    before = image.copy()
    drawn = draw_instances(image, scene([[50, 100, 150, 200]], [0], [0.9], masks=True))
    assert np.array_equal(image, before)
    assert np.array_equal(drawn[:80], image[:80]) and np.array_equal(drawn[:, 200:], image[:, 200:])
    assert not np.array_equal(drawn, image)


def test_boxes_and_masks_have_the_colour_of_the_class_and_holes_stay():
    image = np.full((240, 320, 3), 100, np.uint8)
    drawn = draw_instances(image, scene([[50, 60, 150, 200]], [4], [0.9], masks=True))
    red, green, blue = class_color(4)
    assert drawn[130, 50].tolist() == [blue, green, red]  # the box's line
    mixed = 0.42 * np.array([blue, green, red]) + 0.58 * 100
    assert np.abs(drawn[190, 100] - mixed).max() <= 1
    assert drawn[130, 100].tolist() == [100, 100, 100]
    plain = draw_instances(image, scene([[50, 60, 150, 200]], [4], [0.9], masks=True), show_mask=False)
    assert plain[190, 100].tolist() == [100, 100, 100]


def test_a_small_mask_lies_on_a_large_one():
    image = np.zeros((240, 320, 3), np.uint8)
    instances = scene([[140, 110, 175, 145], [100, 60, 260, 200]], [1, 2], [0.9, 0.9])
    bitmaps = np.zeros((2, 240, 320), np.uint8)
    bitmaps[0, 110:145, 140:175], bitmaps[1, 60:200, 100:260] = 1, 1
    drawn = draw_instances(image, instances.replace(masks=bitmaps))
    red, green, blue = class_color(1)
    assert np.abs(drawn[130, 157] - 0.42 * np.array([blue, green, red])).max() <= 1


def test_scores_at_or_below_the_threshold_are_left_out():
    image = noise()
    instances = scene([[50, 100, 150, 200]], [0], [0.5])
    assert np.array_equal(draw_instances(image, instances, score_thr=0.5), image)
    assert not np.array_equal(draw_instances(image, instances, score_thr=0.49), image)


def test_ground_truth_without_scores_is_drawn():
    image = noise()
    assert not np.array_equal(draw_instances(image, scene([[50, 100, 150, 200]], [0]), ['cat']), image)


def test_chosen_colours():
    image = np.zeros((240, 320, 3), np.uint8)
    instances = scene([[50, 60, 150, 200]], [0], [0.9], masks=True)
    drawn = draw_instances(image, instances, bbox_color='green', mask_color=(255, 0, 0), text_color='blue')
    assert drawn[130, 50].tolist() == [0, 255, 0]
    assert drawn[190, 100, 2] == round(0.42 * 255) and drawn[190, 100, 0] == 0
    assert (drawn.reshape(-1, 3) == [255, 0, 0]).all(axis=1).any()  # pure blue: the text
    assert draw_instances(image, instances, palette=[(9, 8, 7)], show_mask=False)[130, 50].tolist() == [
        7, 8, 9]


def test_line_width_follows_the_image():
    def drawn_width(height, width):
        image = np.zeros((height, width, 3), np.uint8)
        box = [width // 4, height // 4, 3 * width // 4, 3 * height // 4]
        drawn = draw_instances(image, scene([box], [0], [0.9], (height, width)))
        return int(drawn[height // 2, :width // 2].any(axis=1).sum())

    assert drawn_width(150, 200) == 1 < drawn_width(1080, 1920) < drawn_width(3000, 4000)
    image = np.zeros((240, 320, 3), np.uint8)
    thick = draw_instances(image, scene([[50, 60, 150, 200]], [0], [0.9]), thickness=7)
    assert 7 <= thick[130, :100].any(axis=1).sum() <= 9


@pytest.mark.parametrize('box', [(0, 0, 319, 239), (300, 0, 319, 10), (0, 230, 5, 239), (310, 230, 319, 239),
                                 (-40, -40, 20, 20), (300, 200, 400, 300)])
def test_labels_stay_inside_the_image(box):
    (x0, y0, x1, y1), = place_labels(np.array([box]), np.array([[90, 16]]), (240, 320), 2)
    assert x0 >= 0 and y0 >= 0 and x1 <= 320 and y1 <= 240 and (x1 - x0, y1 - y0) == (90, 16)
    draw_instances(noise(), scene([box], [0], [0.9]), ['a long class name'])


def shared(first, second):
    """Square pixels that two boxes share."""
    return (np.minimum(first[2:], second[2:]) - np.maximum(first[:2], second[:2])).clip(min=0).prod()


def test_labels_avoid_each_other():
    """Eight boxes in a heap: around them there is a place for each plate, if they touch by a line of pixels."""
    boxes = np.array([(100 + k, 80 + k, 220 + k, 180 + k) for k in range(8)])
    plates = place_labels(boxes, np.tile((80, 16), (8, 1)), (240, 320), 2)
    assert sum(shared(plates[i], plates[k]) for i in range(8) for k in range(i)) <= 80


def test_labels_hide_no_small_object():
    """Neither their own nor the one beside it, in the middle of the image or at its edge."""
    for x, y in ((100, 100), (0, 0), (300, 0), (300, 220), (0, 220)):
        below = y + (24 if y < 100 else -24)
        boxes = np.array([(x, y, x + 19, y + 19), (x, below, x + 19, below + 19)])
        for plate in place_labels(boxes, np.array([[70, 14], [70, 14]]), (240, 320), 2):
            assert shared(plate, boxes[0]) == 0 and shared(plate, boxes[1]) == 0


def test_small_images_have_small_labels():
    def plate_height(height, width):
        image = np.zeros((height, width, 3), np.uint8)
        drawn = draw_instances(image, scene([[20, 100, 280, 200]], [0], [0.9], (height, width)), ['cat'])
        return int(drawn[:99, 30].any(axis=1).sum())  # above the box there is the plate only

    assert plate_height(240, 320) == plate_height(302, 500) <= 13 < plate_height(1080, 1920)


def test_grey_images_empty_results_and_unknown_classes():
    grey = noise()[:, :, 0]
    assert draw_instances(grey, empty_result((240, 320), 3, masks=True)).shape == (240, 320, 3)
    draw_instances(grey, scene([[50, 60, 150, 200]], [7], [0.9]), ['only one'])


@pytest.mark.parametrize('image', [np.zeros((4, 4, 3), np.float32), np.zeros((4, 4, 2), np.uint8), [[1]]])
def test_what_is_no_image(image):
    with pytest.raises(DataError, match='an image to draw on'):
        draw_instances(image, empty_result())


def test_masks_of_another_size():
    with pytest.raises(DataError, match='beyond the 160x120 image'):
        draw_instances(noise(120, 160), scene([[50, 60, 300, 200]], [0], [0.9], masks=True))


def test_images_are_written_and_read(tmp_path):
    image = noise(40, 50)
    path = tmp_path / 'new folder/größe.png'
    write_image(image, path)
    assert np.array_equal(read_image(path), image)
    assert read_image(str(path)).shape == (40, 50, 3)


def test_images_come_in_every_form(tmp_path):
    image = noise(40, 50)
    write_image(image, tmp_path / 'a.png')
    content = (tmp_path / 'a.png').read_bytes()
    for form in (str(tmp_path / 'a.png'), tmp_path / 'a.png', content, bytearray(content), memoryview(content),
                 Image.open(tmp_path / 'a.png'), Image.fromarray(image[:, :, ::-1]), image):
        assert np.array_equal(read_image(form), image)
    with pytest.raises(DataError, match='an image is a file name, an array, bytes or a PIL image, not int'):
        read_image(3)
    with pytest.raises(DataError, match='the image: not an image'):
        read_image(b'text')


def test_a_turned_image_is_read_as_the_result_was(tmp_path):
    """The EXIF orientation counts or not, which the size tells that the result is of."""
    flat = Image.fromarray(noise(40, 50)[:, :, ::-1])
    exif = Image.Exif()
    exif[0x0112] = 6  # a quarter turn to be seen upright
    flat.save(tmp_path / 'turned.jpg', exif=exif, quality=95)
    for form in (tmp_path / 'turned.jpg', (tmp_path / 'turned.jpg').read_bytes(), Image.open(tmp_path / 'turned.jpg')):
        upright, stored = read_image(form), read_image(form, (40, 50))
        assert upright.shape == (50, 40, 3) and np.array_equal(read_image(form, (50, 40)), upright)
        assert stored.shape == (40, 50, 3) and np.array_equal(np.rot90(stored, -1), upright)
        with pytest.raises(DataError, match='the result is of an image of 60x40 pixels, this one has 40x50'):
            read_image(form, (40, 60))


def test_unreadable_and_unwritable_images_are_named(tmp_path):
    with pytest.raises(DataError, match='nothing.jpg: No such file'):
        read_image(tmp_path / 'nothing.jpg')
    (tmp_path / 'text.jpg').write_text('no image')
    with pytest.raises(DataError, match='text.jpg: not an image'):
        read_image(tmp_path / 'text.jpg')
    (tmp_path / 'empty.jpg').write_bytes(b'')
    with pytest.raises(DataError, match='empty.jpg: the file is empty'):
        read_image(tmp_path / 'empty.jpg')
    with pytest.raises(DataError, match=r"x\.foo: OpenCV writes no '\.foo'"):
        write_image(noise(4, 4), tmp_path / 'x.foo')
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write'):
        write_image(noise(4, 4), tmp_path / 'file/x.png')


def test_no_display_is_a_clear_error(monkeypatch):
    monkeypatch.setattr('sys.platform', 'linux')
    monkeypatch.delenv('DISPLAY', raising=False)
    monkeypatch.delenv('WAYLAND_DISPLAY', raising=False)
    with pytest.raises(UserError, match='DISPLAY is not set.*out_file'):
        show(noise())
    monkeypatch.setenv('DISPLAY', ':4711')
    with pytest.raises(UserError, match="display ':4711' does not answer"):
        show(noise())


def test_an_opencv_without_windows_is_a_clear_error(monkeypatch):
    monkeypatch.setattr('boxdet.visualization.draw._display_problem', lambda: '')

    def unbuilt(*_):
        raise cv2.error('The function is not implemented')

    monkeypatch.setattr(cv2, 'imshow', unbuilt)
    with pytest.raises(UserError, match='opencv-python-headless'):
        show(noise())


@pytest.fixture
def window(monkeypatch):
    """A window that does as ``keys`` and ``visible`` say: what OpenCV would answer in turn."""
    def make(keys, visible):
        monkeypatch.setattr('boxdet.visualization.draw._display_problem', lambda: '')
        monkeypatch.setattr(cv2, 'imshow', lambda *_: None)
        now = [0.]

        def wait_key(wait):
            now[0] += wait / 1000
            return keys.pop(0)

        monkeypatch.setattr('boxdet.visualization.draw.time', SimpleNamespace(monotonic=lambda: now[0]))
        monkeypatch.setattr(cv2, 'waitKey', wait_key)
        monkeypatch.setattr(cv2, 'getWindowProperty', lambda *_: visible.pop(0))
    return make


def test_show_tells_the_key_and_that_the_window_was_closed(window, monkeypatch):
    def gone(*_):
        raise cv2.error('NULL guiReceiver (please create a window)')

    window([-1, -1, ord('x')], [1, 1])
    assert show(noise()) == ord('x')
    window([-1, -1], [1, 0])
    assert show(noise()) == CLOSED and CLOSED in END
    window([-1], [])
    monkeypatch.setattr(cv2, 'getWindowProperty', gone)
    assert show(noise()) == CLOSED
    window([-1], [1])
    assert show(noise(), wait_time=1e-3) == -1
    assert -1 not in END and 27 in END and ord('q') in END


def test_a_hundred_masks_on_1080p_take_no_full_decodings(monkeypatch):
    """Only what lies within each mask's extent is written."""
    size, rng = (1080, 1920), np.random.default_rng(0)
    corners = rng.integers(0, (1700, 860), (100, 2))
    boxes = [[x, y, x + 160, y + 160] for x, y in corners.tolist()]
    instances = scene(boxes, rng.integers(0, 80, 100).tolist(), [0.9] * 100, size, masks=True)
    image = noise(*size)
    looked_at = []
    columns = mask_windows._columns

    def counted(*arguments):
        found = columns(*arguments)
        looked_at.append(found[2].size)
        return found

    monkeypatch.setattr(mask_windows, '_columns', counted)
    monkeypatch.setattr('pycocotools.mask.decode', lambda *_: pytest.fail('a mask was decoded in full'))
    draw_instances(image, instances)
    assert len(looked_at) == 100 and max(looked_at) <= 161 * 161


# --- keypoints

def person(keypoints, box=(20, 20, 180, 180), **fields):
    return Instances(bboxes=torch.tensor([box], dtype=torch.float32), labels=torch.zeros(1, dtype=torch.long),
                     keypoints=torch.tensor([keypoints], dtype=torch.float32), **fields)


def test_bones_and_keypoints_have_their_own_fixed_colors():
    image = np.zeros((200, 200, 3), np.uint8)
    keypoints = [[50.5, 50.5, .9], [150.5, 50.5, .9], [150.5, 150.5, .9], [50.5, 150.5, .01]]
    drawn = draw_instances(image, person(keypoints), skeleton=[(0, 1), (1, 2), (2, 3)])
    for keypoint, (x, y) in enumerate([(50, 50), (150, 50), (150, 150)]):
        assert drawn[y, x].tolist() == list(class_color(keypoint)[::-1])
    assert drawn[50, 100].tolist() == list(class_color(1)[::-1])                         # the bone 0-1
    assert drawn[100, 150].tolist() == list(class_color(2)[::-1])
    assert not drawn[150, 100].any() and not drawn[150, 50].any()                        # a keypoint that is a guess
    assert draw_instances(image, person(keypoints), skeleton=[(2, 3)], keypoint_thr=0)[150, 100].any()
    assert not draw_instances(image, person(keypoints))[50, 100].any()                 # no skeleton, no bones
    truth = [[x, y, 2 * (score > .5)] for x, y, score in keypoints]
    assert np.array_equal(draw_instances(image, person(truth), skeleton=[(0, 1), (1, 2), (2, 3)]), drawn)


def test_keypoints_grow_with_object_and_image():
    def painted(size, box):
        keypoints = [[box[0] + 1, box[1] + 1, 1], [box[2] - 1, box[3] - 1, 1]]
        given = person(keypoints, box)
        image = np.zeros((size, size, 3), np.uint8)
        plain = draw_instances(image, given.without('keypoints'))
        return np.count_nonzero((draw_instances(image, given, skeleton=[(0, 1)]) != plain).any(axis=2))

    small, large = painted(1600, (100, 800, 140, 840)), painted(1600, (100, 100, 900, 900))
    assert small < 200 and large > 100 * 20 and painted(160, (20, 20, 150, 150)) < large


def test_odd_keypoints_are_drawn_without_a_fault():
    image = np.zeros((100, 100, 3), np.uint8)
    odd = [[float('nan'), 5, 1], [1e12, -1e12, 1], [50, 50, float('nan')], [-3, 105, 1]]
    draw_instances(image, person(odd), skeleton=[(0, 1), (1, 2), (2, 3)])
    assert np.array_equal(draw_instances(image, person(odd)[:0]), image)
    several = Instances.cat([person([[x, y, 1.]]) for x, y in ((20, 20), (50, 50), (70, 20))])
    several = several.replace(scores=torch.tensor([.1, .9, .8]))
    drawn = draw_instances(image, several, score_thr=.5)
    assert drawn[50, 50].any() and drawn[20, 70].any()
