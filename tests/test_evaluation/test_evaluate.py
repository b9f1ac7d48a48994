"""evaluate() and format_results() on a data set of three small images."""

import contextlib
import io
import json
import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks
from pycocotools.coco import COCO

from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate, format_results
from boxdet.structures.instances import Instances, empty_result
from boxdet.structures.masks import RleMasks

SIZE = (60, 80)
BOXES = {1: [(3, (5, 5, 25, 25)), (9, (30, 10, 70, 50))], 2: [(9, (10, 10, 60, 50))], 3: []}


class Dataset:
    CLASSES = ('cat', 'dog')
    ann_file = 'ann.json'

    def __init__(self, annotated: bool = True):
        self.coco = COCO()
        annotations = [dict(image_id=i, category_id=c, bbox=[x0, y0, x1 - x0, y1 - y0], iscrowd=0,
                            area=(x1 - x0) * (y1 - y0), segmentation=[[x0, y0, x1, y0, x1, y1, x0, y1]])
                       for i, rows in BOXES.items() for c, (x0, y0, x1, y1) in rows]
        self.coco.dataset = dict(
            info={}, images=[dict(id=i, height=60, width=80, file_name=f'{i}.jpg') for i in BOXES],
            annotations=[dict(a, id=k) for k, a in enumerate(annotations, 1)] if annotated else [],
            categories=[dict(id=3, name='cat'), dict(id=9, name='dog')])
        with contextlib.redirect_stdout(io.StringIO()):
            self.coco.createIndex()
        self.img_ids, self.cat_ids = list(BOXES), [3, 9]

    def __len__(self):
        return len(self.img_ids)


def perfect(masks: bool = True, num_classes: int | None = 2) -> list[Instances]:
    results = []
    for rows in BOXES.values():
        boxes = torch.tensor([b for _, b in rows], dtype=torch.float32).reshape(-1, 4)
        fields = dict(bboxes=boxes, scores=torch.linspace(0.9, 0.5, len(rows)),
                      labels=torch.tensor([[3, 9].index(c) for c, _ in rows], dtype=torch.long))
        if masks:
            rles = []
            for _, (x0, y0, x1, y1) in rows:
                bitmap = np.zeros(SIZE, np.uint8, order='F')
                bitmap[y0:y1, x0:x1] = 1
                rles.append(coco_masks.encode(bitmap))
            fields['masks'] = RleMasks(rles, *SIZE)
        results.append(Instances(SIZE, num_classes, **fields))
    return results


def test_perfect_results_and_the_keys_of_2x():
    values = evaluate(Dataset(), perfect(), ['bbox', 'segm'], logger='silent')
    assert list(values) == [f'{kind}_mAP{end}' for kind in ('bbox', 'segm')
                            for end in ('', '_50', '_75', '_s', '_m', '_l', '_copypaste')]
    assert values['bbox_mAP'] == values['segm_mAP'] == pytest.approx(1.0)
    assert values['bbox_mAP_l'] == -1.0
    assert values['bbox_mAP_copypaste'] == '1.000 1.000 1.000 1.000 1.000 -1.000'


def test_proposal_beside_bbox_gives_both():
    values = evaluate(Dataset(), perfect(), ['proposal', 'bbox', 'proposal_fast'], logger='silent')
    assert values['bbox_mAP'] == values['AR@100'] == values['proposal_fast_AR@1000'] == pytest.approx(1.0)


def test_proposal_fast_alone_and_its_numbers():
    results = [r[:1] for r in perfect(masks=False)]  # one of the three boxes is not found
    values = evaluate(Dataset(), results, 'proposal_fast', proposal_nums=(1, 10), logger='silent')
    assert values == {'AR@1': pytest.approx(2 / 3), 'AR@10': pytest.approx(2 / 3)}


def test_results_of_an_rpn_are_evaluated_whatever_the_classes():
    results = [r.without('labels') for r in perfect(masks=False, num_classes=None)]
    values = evaluate(Dataset(), results, ['proposal', 'proposal_fast'], logger='silent')
    assert values['AR@300'] == values['proposal_fast_AR@300'] == pytest.approx(1.0)


def test_results_in_the_form_of_2x():
    legacy = [r.per_class() for r in perfect()]
    assert evaluate(Dataset(), legacy, ['bbox', 'segm'], logger='silent') == evaluate(
        Dataset(), perfect(), ['bbox', 'segm'], logger='silent')


def test_results_may_be_a_generator():
    assert evaluate(Dataset(), (r for r in perfect()), logger='silent')['bbox_mAP'] == pytest.approx(1.0)


def test_no_detection_anywhere_is_zero_with_a_warning(caplog):
    results = [empty_result(SIZE, 2, masks=True) for _ in BOXES]
    with caplog.at_level(logging.INFO):
        values = evaluate(Dataset(), results, ['bbox', 'segm', 'proposal', 'proposal_fast'],
                          logger=logging.getLogger('boxdet.test'))
    assert values['bbox_mAP'] == values['segm_mAP'] == values['AR@100'] == values['proposal_fast_AR@100'] == 0
    assert 'the results of all 3 images are empty' in caplog.text


def test_classwise_table_and_keys(capsys):
    results = perfect()
    results[0] = results[0][1:]  # the cat is not found
    values = evaluate(Dataset(), results, 'bbox', classwise=True)
    assert (values['bbox_cat_precision'], values['bbox_dog_precision']) == (0, pytest.approx(1.0))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith(('| cat', '| dog'))]
    assert [[cell.strip() for cell in line.split('|')[1:5]] for line in lines] == [
        ['cat', '1', '0.000', '0.000'], ['dog', '2', '1.000', '1.000']]


def test_the_summary_reads_as_that_of_pycocotools(capsys):
    evaluate(Dataset(), perfect(), 'bbox')
    out = capsys.readouterr().out
    assert ' Average Precision (AP) @[ IoU=0.50:0.95 | area=   all | maxDets= 100 ] = 1.000' in out


def test_chosen_items():
    values = evaluate(Dataset(), perfect(), 'bbox', metric_items=['mAP_50', 'AR@300', 'AR_s@1000'],
                      logger='silent')
    assert list(values) == ['bbox_mAP_50', 'bbox_AR@300', 'bbox_AR_s@1000', 'bbox_mAP_copypaste']


def crowded(count: int) -> list[Instances]:
    """``count`` wrong detections with high scores before the right one."""
    boxes = torch.cat([torch.tensor([[0., 0, 1, 1]]).repeat(count, 1), torch.tensor([[10., 10, 60, 50]])])
    full = Instances(SIZE, 2, bboxes=boxes, scores=torch.linspace(1, 0.1, count + 1),
                     labels=torch.ones(count + 1, dtype=torch.long))
    return [empty_result(SIZE, 2), full, empty_result(SIZE, 2)]


def test_as_many_detections_count_as_the_model_gives(caplog):
    logger = logging.getLogger('boxdet.test')
    with caplog.at_level(logging.WARNING):
        assert evaluate(Dataset(), crowded(101), logger=logger)['bbox_mAP'] > 0
    assert '1 images have more than 100 detections of one class (up to 102): bbox counts all' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert evaluate(Dataset(), crowded(101), max_dets=100, logger=logger)['bbox_mAP'] == 0
    assert '1 images have more than 100 detections of one class; bbox counts the 100 best' in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        assert evaluate(Dataset(), crowded(101), max_dets=200, logger=logger)['bbox_mAP'] > 0
        assert evaluate(Dataset(), crowded(50), logger=logger)['bbox_mAP'] > 0
    assert not caplog.records


def test_500_perfect_boxes_on_one_image(caplog):
    dataset, boxes = Dataset(), [[x * 3, y * 3, x * 3 + 2, y * 3 + 2] for x in range(25) for y in range(20)]
    dataset.coco.dataset['annotations'] = [
        dict(id=i, image_id=1, category_id=9, iscrowd=0, area=4, bbox=[x, y, 2, 2])
        for i, (x, y, *_) in enumerate(boxes)]
    dataset.coco.createIndex()
    full = Instances(SIZE, 2, bboxes=torch.tensor(boxes, dtype=torch.float32), scores=torch.linspace(1, 0.1, 500),
                     labels=torch.ones(500, dtype=torch.long))
    with caplog.at_level(logging.WARNING):
        values = evaluate(dataset, [full, empty_result(SIZE, 2), empty_result(SIZE, 2)], logger=logging.getLogger('t'))
    assert values['bbox_mAP'] == 1 and '(up to 500)' in caplog.text


def test_max_dets_of_nothing():
    with pytest.raises(ConfigError, match='max_dets=0: at least 1'):
        evaluate(Dataset(), perfect(), max_dets=0, logger='silent')


@pytest.mark.parametrize('options, message', [
    (dict(metric='bbbox'), "unknown metric 'bbbox'; did you mean 'bbox'?"),
    (dict(metric='mAP'), "unknown metric 'mAP'"),
    (dict(metric_items=['mAP_smal']), "unknown metric item 'mAP_smal'")])
def test_unknown_names(options, message):
    with pytest.raises(ConfigError) as error:
        evaluate(Dataset(), perfect(), logger='silent', **options)
    assert message in str(error.value)


def test_results_of_another_data_set():
    with pytest.raises(DataError, match='2 results for a data set of 3 images'):
        evaluate(Dataset(), perfect()[:2], logger='silent')
    foreign = perfect()
    foreign[1] = foreign[1].replace(labels=torch.tensor([5]))
    with pytest.raises(DataError, match=r'image 2: a detection of class 5, but the data set has 2 classes'):
        evaluate(Dataset(), foreign, logger='silent')


def test_segm_needs_masks():
    with pytest.raises(DataError, match='hold no masks'):
        evaluate(Dataset(), perfect(masks=False), 'segm', logger='silent')


def test_no_annotations_names_the_file_and_the_way_out():
    with pytest.raises(DataError, match='ann.json holds no annotations.*--format-only'):
        evaluate(Dataset(annotated=False), perfect(), logger='silent')


def test_written_files_load_in_pycocotools(tmp_path):
    files = format_results(Dataset(annotated=False), perfect(), str(tmp_path / 'deep/run'))
    assert files == dict(bbox=f'{tmp_path}/deep/run.bbox.json', segm=f'{tmp_path}/deep/run.segm.json',
                         proposal=f'{tmp_path}/deep/run.bbox.json')
    boxes = json.loads(Path(files['bbox']).read_text())
    assert boxes[0] == dict(image_id=1, category_id=3, bbox=[5.0, 5.0, 20.0, 20.0], score=pytest.approx(0.9))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = Dataset().coco.loadRes(files['bbox'])
        masks = Dataset().coco.loadRes(files['segm'])
    assert len(loaded.anns) == len(masks.anns) == 3
    assert [a['area'] for a in masks.anns.values()] == [400, 1600, 2000]


@pytest.mark.parametrize('num_classes', [None, 1])
def test_files_of_proposals(tmp_path, num_classes):
    results = [r.replace(labels=torch.zeros(len(r), dtype=torch.long)) for r in perfect(False, num_classes)]
    files = format_results(Dataset(), results, str(tmp_path / 'rpn'))
    assert files == {'proposal': f'{tmp_path}/rpn.proposal.json'}
    assert {row['category_id'] for row in json.loads(Path(files['proposal']).read_text())} == {1}


def test_evaluate_also_writes_the_files(tmp_path):
    evaluate(Dataset(), perfect(), logger='silent', jsonfile_prefix=str(tmp_path / 'x'))
    assert sorted(p.name for p in tmp_path.iterdir()) == ['x.bbox.json', 'x.segm.json']
