import pytest

from boxdet.errors import UserError
from boxdet.visualization.palette import class_color, class_colors, parse_color, readable_on, voc_color


def test_a_class_keeps_its_colour_and_shares_it_with_no_near_class():
    colors = class_colors(None, 200)
    assert colors == class_colors('vivid', 200) and colors[17] == class_color(17)
    assert len(set(colors[:80])) == 80


def test_vocs_published_colours():
    assert [voc_color(k) for k in (0, 1, 7, 19)] == [(128, 0, 0), (0, 128, 0), (64, 0, 0), (0, 64, 128)]


@pytest.mark.parametrize('palette, expected', [
    ('green', [(0, 255, 0)] * 3), ('#0a0B0c', [(10, 11, 12)] * 3), ((1, 2, 3), [(1, 2, 3)] * 3),
    ([(1, 2, 3), 'red'], [(1, 2, 3), (255, 0, 0), (1, 2, 3)]),
    ([(1, 2, 3), (4, 5, 6), (7, 8, 9)], [(1, 2, 3), (4, 5, 6), (7, 8, 9)])])
def test_ways_to_name_a_palette(palette, expected):
    assert class_colors(palette, 3) == expected


def test_random_is_the_same_every_time():
    assert class_colors('random', 5) == class_colors('random', 5)[:5] != class_colors(None, 5)


@pytest.mark.parametrize('color', ['greeen', '#12', (1, 2), (1, 2, 300)])
def test_what_is_no_colour(color):
    with pytest.raises(UserError):
        parse_color(color)


def test_text_stands_out():
    assert readable_on((255, 255, 0)) == (0, 0, 0) and readable_on((0, 0, 142)) == (255, 255, 255)
