"""tools/misc/translate_options.py: a config of the options, and a list of those that have no key."""
import importlib.util
from pathlib import Path

import pytest

from boxdet.engine.config import check_config, load_config
from boxdet.errors import ConfigError

ROOT = Path(__file__).parents[2]
spec = importlib.util.spec_from_file_location('translate_options', ROOT / 'tools/misc/translate_options.py')
tool = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tool)

DETECTRON = """
MODEL: {TYPE: generalized_rcnn, CONV_BODY: FPN.add_fpn_ResNet50_conv5_body, NUM_CLASSES: 5, MASK_ON: True}
SOLVER: {BASE_LR: 0.01, MAX_ITER: 90000, STEPS: [0, 60000, 80000], LR_POLICY: steps_with_decay}
TRAIN: {BATCH_SIZE_PER_IM: 256, RPN_PRE_NMS_TOP_N: 1500}
TEST: {SCORE_THRESH: 0.1}
"""
BENCHMARK = """
MODEL:
  META_ARCHITECTURE: GeneralizedRCNN
  BACKBONE: {CONV_BODY: R-50-FPN}
  RPN: {ANCHOR_STRIDE: "(4, 8, 16, 32, 64)", PRE_NMS_TOP_N_TRAIN: 1500}
  ROI_BOX_HEAD: {NUM_CLASSES: 4}
SOLVER: {BASE_LR: 0.01, STEPS: "(6000, 8000)", MAX_ITER: 9000}
"""


def translated(tmp_path, text):
    (tmp_path / 'a.yaml').write_text(text)
    config, left = tool.translate(str(tmp_path / 'a.yaml'), folder=tmp_path)
    (tmp_path / 'a.py').write_text(config)
    cfg = load_config(tmp_path / 'a.py')
    check_config(cfg)
    return cfg, left


def test_detectron(tmp_path):
    cfg, left = translated(tmp_path, DETECTRON)
    assert left == ['SOLVER.LR_POLICY'] and cfg.model.type == 'MaskRCNN'
    assert (cfg.model.roi_head.bbox_head.num_classes, cfg.model.roi_head.mask_head.num_classes) == (4, 4)
    assert cfg.runner == dict(type='IterBasedRunner', max_iters=90000) and cfg.lr_config.step == [60000, 80000]
    assert cfg.optimizer.lr == 0.01 and cfg.model.train_cfg.rcnn.sampler.num == 256
    assert cfg.model.train_cfg.rpn_proposal.nms_pre == 1500 and cfg.model.test_cfg.rcnn.score_thr == 0.1


def test_maskrcnn_benchmark(tmp_path):
    cfg, left = translated(tmp_path, BENCHMARK)
    assert left == [] and cfg.model.type == 'FasterRCNN' and cfg.model.roi_head.bbox_head.num_classes == 3
    assert cfg.model.rpn_head.anchor_generator.strides == [4, 8, 16, 32, 64] and cfg.runner.max_iters == 9000


def test_what_is_no_such_file(tmp_path):
    (tmp_path / 'a.yaml').write_text('a: 1')
    with pytest.raises(ConfigError, match='a.yaml: no options of Detectron'):
        tool.translate(str(tmp_path / 'a.yaml'))
    with pytest.raises(ConfigError, match='b.yaml: No such file'):
        tool.translate(str(tmp_path / 'b.yaml'))


def test_the_page_prints_the_tables():
    page = (ROOT / 'docs/migrating.md').read_text(encoding='utf-8')
    for table in (tool.DETECTRON, tool.MASKRCNN_BENCHMARK):
        assert all(f'| `{theirs}` | `{ours}` |' in page for theirs, ours in table.items())
