"""Pages of images with their detections, looked at as pixels."""

import numpy as np
import pytest
import torch

from boxdet.errors import DataError
from boxdet.structures.instances import Instances
from boxdet.visualization.palette import class_color
from boxdet.visualization.pdf import write_pdf


def person(keypoints) -> Instances:
    return Instances((200, 200), bboxes=torch.tensor([[20., 20, 180, 180]]), scores=torch.tensor([0.9]),
                     labels=torch.zeros(1, dtype=torch.long), keypoints=torch.tensor([keypoints], dtype=torch.float32))


@pytest.fixture
def draw(tmp_path, monkeypatch):
    """The figure of a page as (800, 800, 3) uint8 RGB, four pixels of it for one of the image."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    made, write = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *arguments, **more: (made.append(figure),
                                                                               write(figure, *arguments, **more)))

    def call(instances, **options):
        write_pdf(np.zeros((200, 200, 3), np.uint8), instances, tmp_path / 'a.pdf', **options)
        assert (tmp_path / 'a.pdf').read_bytes().startswith(b'%PDF-')
        made[-1].set_dpi(100)
        canvas = FigureCanvasAgg(made[-1])
        canvas.draw()
        return np.asarray(canvas.buffer_rgba())[:, :, :3]
    return call


def near(page, x, y, color):
    """Whether the colour is seen in the pixel (x, y) of the image."""
    return bool((np.abs(page[4 * y:4 * y + 4, 4 * x:4 * x + 4].astype(int) - color).max(axis=2) < 9).any())


def test_keypoints_and_bones_are_drawn(draw):
    keypoints = [[50.5, 50.5, .9], [150.5, 50.5, .9], [150.5, 150.5, .9], [50.5, 150.5, .01]]
    page = draw(person(keypoints), skeleton=[(0, 1), (1, 2), (2, 3)])
    assert near(page, 50, 50, class_color(0)) and near(page, 150, 150, class_color(2))
    assert near(page, 100, 50, class_color(1)) and near(page, 150, 100, class_color(2))  # the bones
    assert not page[580:624, 360:440].any(), 'a keypoint that is a guess has no bone'
    assert not draw(person(keypoints))[180:224, 360:440].any(), 'no skeleton, no bones'
    assert not draw(person(keypoints).without('keypoints'), skeleton=[(0, 1)])[180:224, 180:480].any()


def test_labels_do_not_cover_one_another(tmp_path, monkeypatch):
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    made, write = [], Figure.savefig
    monkeypatch.setattr(Figure, 'savefig', lambda figure, *arguments, **more: (made.append(figure),
                                                                               write(figure, *arguments, **more)))
    places = [[20. + 2 * k, 60 + k, 150, 150] for k in range(6)] + [[0., 0, 40, 30], [150., 170, 199, 199]]
    crowd = Instances((200, 200), bboxes=torch.tensor(places), scores=torch.linspace(.9, .5, len(places)),
                      labels=torch.arange(len(places)))
    write_pdf(np.full((200, 200, 3), 255, np.uint8), crowd, tmp_path / 'a.pdf', ['a longer name'] * len(places))
    canvas = FigureCanvasAgg(made[0])
    canvas.draw()
    boxes = [text.get_window_extent(canvas.get_renderer()) for text in made[0].axes[0].texts]
    assert len(boxes) == len(places)
    page = made[0].bbox
    for k, box in enumerate(boxes):
        assert page.x0 <= box.x0 and box.x1 <= page.x1 and page.y0 <= box.y0 and box.y1 <= page.y1
        for other in boxes[:k]:
            assert not box.overlaps(other)


def test_odd_keypoints_and_no_objects(draw):
    odd = [[float('nan'), 5, 1], [1e12, -1e12, 1], [50, 50, float('nan')], [-3, 205, 1]]
    draw(person(odd), skeleton=[(0, 1), (1, 2), (2, 3)])
    draw(person(odd)[:0], skeleton=[(0, 1)])


def test_a_folder_that_takes_no_file(tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write'):
        write_pdf(np.zeros((9, 9, 3), np.uint8), person([[1, 1, 1]]), tmp_path / 'file/a.pdf')
