"""Names of what is written for each image: every image gets its own."""
import pytest

from boxdet.apis.output_names import image_names, output_names


@pytest.mark.parametrize('paths, names, expected', [
    (['r/a.png', 'r/deep/a.png'], ['a.png', 'deep/a.png'], ['a.png', 'deep/a.png']),          # these serve
    (['cam1/0.png', 'cam2/0.png'], ['0.png', '0.png'], ['cam1/0.png', 'cam2/0.png']),
    (['/data/x/cam1/0.png', '/data/x/cam2/0.png'], ['/data/x/cam1/0.png', '/data/x/cam2/0.png'],
     ['cam1/0.png', 'cam2/0.png']),
    (['r/../cam1/0.png', 'r/../cam2/0.png'], ['../cam1/0.png', '../cam2/0.png'], ['cam1/0.png', 'cam2/0.png']),
    (['/one/0.png'], ['/one/0.png'], ['0.png']),
    (['r/a.png', 'r/a.png', 'r/a.png'], ['a.png'] * 3, ['a.png', 'a_2.png', 'a_3.png']),       # one image three times
    (['r/a', 'r/a', 'r/a_2'], ['a', 'a', 'a_2'], ['a', 'a_2', 'a_2_2']),
    # one file on some systems
    (['r/A.png', 'r/a.png'], ['A.png', 'a.png'], ['A.png', 'a_2.png'])])
def test_names(paths, names, expected):
    found = output_names(paths, names)
    assert found == expected and len({name.casefold() for name in found}) == len(paths)


class Images:
    def __init__(self, prefix, *names):
        self.img_prefix, self.names = prefix, names

    def img_info(self, index):
        return dict(filename=self.names[index])

    def __len__(self):
        return len(self.names)


def test_of_a_data_set():
    assert image_names(Images('x/', 'a.jpg', 'a.png')) == ['a.jpg', 'a.png']
    assert image_names(Images('x/', 'a.jpg', 'a.png'), endings=False) == ['a', 'a_2']
    assert image_names(Images(None, 'c/a.jpg')) == ['c/a.jpg'] and image_names(Images('x')) == []
