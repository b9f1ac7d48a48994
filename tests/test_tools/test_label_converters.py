"""tools/dataset_converters/to_coco.py and from_coco.py as users run them."""
import importlib.util
import json
import shutil

import pytest
from pycocotools.coco import COCO

from boxdet.datasets import build_dataset
from boxdet.errors import DataError


@pytest.fixture
def convert(repo_root, capsys):
    """Run a converter in this process; returns what it printed."""
    def call(tool, *arguments):
        spec = importlib.util.spec_from_file_location(tool, repo_root / f'tools/dataset_converters/{tool}.py')
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        assert module.main([str(a) for a in arguments]) is None
        return ''.join(capsys.readouterr())
    return call


@pytest.mark.parametrize('form', ['yolo', 'labelme', 'cvat', 'label_studio'])
def test_shapes_there_and_back(convert, shapes_dir, tmp_path, form):
    """The demo's data as another tool's labels, and back: the same boxes, and boxdet loads them."""
    source, images = shapes_dir / 'annotations/instances_val.json', shapes_dir / 'val'
    out = tmp_path / 'labels'
    convert('from_coco', source, out, '--to', form, '--images', images)
    printed = convert('to_coco', out, tmp_path / 'coco', '--images', images, '--merge-splits')
    assert 'left out' not in printed and 'for the config:' in printed
    back = COCO(str(tmp_path / 'coco/annotations/instances_all.json'))
    original = COCO(str(source))
    assert len(back.imgs) == len(original.imgs) and len(back.anns) == len(original.anns)
    if form != 'cvat':  # its skeletons have no box of their own
        assert (sum(a['bbox'][2] * a['bbox'][3] for a in back.anns.values())
                == pytest.approx(sum(a['bbox'][2] * a['bbox'][3] for a in original.anns.values()), rel=0.02))
    names = tuple(c['name'] for c in original.dataset['categories'])
    prefix = printed.split("img_prefix='")[1].split("'")[0]
    dataset = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path / 'coco/annotations/instances_all.json'),
                                 img_prefix=prefix, classes=names, pipeline=[dict(type='LoadImageFromFile')]))
    assert dataset[0]['img'].ndim == 3


@pytest.mark.parametrize('form', ['yolo', 'labelme', 'cvat', 'label_studio'])
def test_names_beyond_ascii(convert, shapes_dir, tmp_path, form):
    """Of folders, images and classes, there and back; boxdet loads them by these names."""
    data = json.loads((shapes_dir / 'annotations/instances_val.json').read_text())
    data['images'] = data['images'][:2]
    kept = {image['id'] for image in data['images']}
    data['annotations'] = [one for one in data['annotations'] if one['image_id'] in kept]
    for category, name in zip(data['categories'], ('größe', '猫', "l'été & <co>", 'дом', 'ñandú', 'x y')):
        category['name'] = name
    for image, name in zip(data['images'], ('straße/ü 1.png', 'straße/日本.png')):
        target = tmp_path / 'bilder ä' / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(shapes_dir / 'val' / image['file_name'], target)
        image['file_name'] = name
    source = tmp_path / 'größe.json'
    source.write_text(json.dumps(data, ensure_ascii=False), 'utf-8')
    convert('from_coco', source, tmp_path / 'étiquettes', '--to', form, '--images', tmp_path / 'bilder ä')
    printed = convert('to_coco', tmp_path / 'étiquettes', tmp_path / 'zurück', '--images', tmp_path / 'bilder ä',
                      '--merge-splits')
    assert 'left out' not in printed
    back = json.loads((tmp_path / 'zurück/annotations/instances_all.json').read_text('utf-8'))
    assert {i['file_name'].rpartition('/')[2] for i in back['images']} == {'ü 1.png', '日本.png'}

    def objects(content):
        names = {category['id']: category['name'] for category in content['categories']}
        return sorted(names[one['category_id']] for one in content['annotations'])
    assert objects(back) == objects(data)
    dataset = build_dataset(dict(type='CocoDataset', ann_file=str(tmp_path / 'zurück/annotations/instances_all.json'),
                                 img_prefix=printed.split("img_prefix='")[1].split("'")[0], pipeline=[
                                     dict(type='LoadImageFromFile')], classes=sorted(set(objects(data)))))
    assert len(dataset) == 2 and all(sample['img'].ndim == 3 for sample in dataset)


def test_coco_is_split_and_loses_classes(convert, shapes_dir, tmp_path):
    source, images = shapes_dir / 'annotations/instances_train.json', shapes_dir / 'train'
    names = [c['name'] for c in json.loads(source.read_text())['categories']]
    printed = convert('to_coco', source, tmp_path, '--images', images, '--val', '0.25', '--classes', *names[1:])
    parts = [json.loads((tmp_path / f'annotations/instances_{name}.json').read_text()) for name in ('train', 'val')]
    assert abs(len(parts[1]['images']) - 0.25 * len(parts[0]['images'] + parts[1]['images'])) <= 2
    assert [c['name'] for c in parts[0]['categories']] == names[1:]
    assert f"x class '{names[0]}' is not among those to keep" in printed
    assert not {i['file_name'] for i in parts[0]['images']} & {i['file_name'] for i in parts[1]['images']}


def test_what_cannot_be_done_is_one_line(convert, shapes_dir, tmp_path):
    source, images = shapes_dir / 'annotations/instances_val.json', shapes_dir / 'val'
    with pytest.raises(DataError, match="class 'cat' is not among"):
        convert('to_coco', source, tmp_path, '--images', images, '--classes', 'cat')
    elsewhere = tmp_path.with_name(f'{tmp_path.name}-elsewhere') / 'labels.json'
    elsewhere.parent.mkdir()
    elsewhere.write_bytes(source.read_bytes())
    with pytest.raises(DataError, match='none of its .* images is there; name their folder with --images'):
        convert('to_coco', elsewhere, tmp_path)
    with pytest.raises(DataError, match='not COCO\'s results form'):
        convert('from_coco', source, tmp_path, '--to', 'yolo', '--results', source)
    assert not list(tmp_path.iterdir())


def test_predictions_become_labels(convert, shapes_dir, tmp_path):
    source, images = shapes_dir / 'annotations/instances_val.json', shapes_dir / 'val'
    data = json.loads(source.read_text())
    results = [dict(image_id=data['images'][0]['id'], category_id=data['categories'][0]['id'], bbox=[1, 2, 30, 40],
                    score=score) for score in (0.9, 0.1)]
    (tmp_path / 'results.bbox.json').write_text(json.dumps(results))
    printed = convert('from_coco', source, tmp_path / 'out', '--to', 'labelme', '--images', images, '--results',
                      tmp_path / 'results.bbox.json')
    assert 'left out: 1 predictions that score less than 0.3' in printed
    name = data['images'][0]['file_name'].rsplit('.', 1)[0]
    shapes = json.loads((tmp_path / f'out/{name}.json').read_text())['shapes']
    assert [(s['points'], s['description']) for s in shapes] == [([[1, 2], [31, 42]], 'score 0.900')]
