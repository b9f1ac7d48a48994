"""docs/keypoints.md: its annotation file and its config work as they stand there."""
import ast
import json

from boxdet.datasets import build_dataset
from boxdet.engine.config import check_config, load_config
from boxdet.engine.preflight import check_metrics
from boxdet.models import build_detector
from tests.test_docs.examples import runs


@runs('docs/keypoints.md')
def test_keypoints_of_your_own(examples, repo_root, tmp_path, monkeypatch):
    file, config = (one.text for one in examples)
    content = ast.literal_eval(file)
    content['images'] = [dict(id=3, file_name='3.jpg', width=100, height=80)]
    (tmp_path / 'cats').mkdir()
    for split in ('train', 'val'):
        (tmp_path / f'cats/{split}.json').write_text(json.dumps(content))
    (tmp_path / 'cats.py').write_text(config.replace('../keypoint_rcnn', f'{repo_root}/configs/keypoint_rcnn'))
    monkeypatch.chdir(tmp_path)
    cfg = load_config(tmp_path / 'cats.py')
    check_config(cfg)
    dataset = build_dataset(cfg.data.train)
    import torch
    with torch.device('meta'):
        model = build_detector(cfg.model)
    check_metrics(model, ['bbox', 'keypoints'], dataset)
    assert dataset.FLIP_PAIRS == model.roi_head.keypoint_head.flip_pairs == ((1, 2),)
    assert model.skeleton == dataset.SKELETON and len(dataset) == 1
