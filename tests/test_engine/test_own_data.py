"""--data: a COCO file in the place of a config's data, in whatever wrappers and types that has."""
import json

import pytest

from boxdet.engine.config import check_config, load_config
from boxdet.engine.own_data import use_data
from boxdet.errors import ConfigError, DataError


@pytest.fixture
def files(shapes_dir):
    return [str(shapes_dir / f'annotations/instances_{split}.json') for split in ('train', 'val')]


def used(files, name, **options):
    cfg = load_config(name)
    told = use_data(cfg, files, **options)
    check_config(cfg)
    return cfg, '\n'.join(told)


def test_two_files(files, shapes_dir):
    cfg, told = used(files, 'cascade_mask_rcnn_r50_fpn_1x_coco')
    assert (cfg.data.train.ann_file, cfg.data.test.ann_file) == tuple(files)
    assert (cfg.data.train.img_prefix, cfg.data.val.img_prefix) == (str(shapes_dir / 'train'), str(shapes_dir / 'val'))
    assert [head.num_classes for head in cfg.model.roi_head.bbox_head] == [6, 6, 6]
    assert cfg.model.roi_head.mask_head.num_classes == 6 and len(cfg.data.train.classes) == 6
    assert cfg.data.train.pipeline[-1].type == 'Collect' and 'num_classes' not in cfg.model.rpn_head
    assert 'num_classes is 6 in model.roi_head.bbox_head.0, model.roi_head.bbox_head.1' in told
    assert '12 images in ' in told and '(circle, square, triangle, star, ring, stickman); data.train' in told


def test_another_type_in_a_wrapper_becomes_coco(files):
    cfg, told = used(files[:1], 'faster_rcnn_r50_fpn_1x_voc0712')
    assert cfg.data.train.type == 'RepeatDataset' and cfg.data.train.dataset.type == 'CocoDataset'
    assert cfg.data.train.dataset.ann_file == cfg.data.val.ann_file == files[0]
    assert cfg.evaluation.metric == ['bbox'] and 'data.val: VOCDataset becomes CocoDataset' in told
    assert 'evaluated on images that it learns from' in told


def test_stuff_keeps_its_classes(files):
    cfg, told = used(files, 'htc_r50_fpn_1x_coco')
    assert cfg.model.roi_head.semantic_head.num_classes == 183
    assert 'seg_prefix' not in cfg.data.train and 'data.train: seg_prefix is left out' in told


def test_the_folder_of_the_images(files, shapes_dir, tmp_path):
    content = json.loads((shapes_dir / 'annotations/instances_train.json').read_text())
    (tmp_path / 'labels.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=r"labels.json: its images \('.*', …\) are in no folder beside it; --images"):
        used([str(tmp_path / 'labels.json')], 'faster_rcnn_r50_fpn_1x_coco')
    for name in ('a', 'b'):
        (tmp_path / name).symlink_to(shapes_dir / 'train')
    with pytest.raises(DataError, match='images of these names are in .*a, .*b; --images says which'):
        used([str(tmp_path / 'labels.json')], 'faster_rcnn_r50_fpn_1x_coco')
    cfg, _ = used([str(tmp_path / 'labels.json')], 'faster_rcnn_r50_fpn_1x_coco', images=[str(tmp_path / 'b')])
    assert cfg.data.val.img_prefix == str((tmp_path / 'b').resolve())


@pytest.mark.parametrize('content, told', [
    ([1], "no 'images' list; --data takes COCO annotation files"), (dict(images=[]), "no 'images' list"),
    (dict(images=[dict(file_name='a.jpg')]), "no 'categories' with names")])
def test_other_files(tmp_path, content, told):
    (tmp_path / 'x.json').write_text(json.dumps(content))
    with pytest.raises(DataError, match=f'x.json: {told}'):
        used([str(tmp_path / 'x.json')], 'faster_rcnn_r50_fpn_1x_coco')


def test_other_numbers(files):
    with pytest.raises(ConfigError, match='here are 3 and 0'):
        used([*files, files[0]], 'faster_rcnn_r50_fpn_1x_coco')
