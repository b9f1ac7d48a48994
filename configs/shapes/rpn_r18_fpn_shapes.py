"""The RPN alone; its proposals, saved by `tools/test.py --out`, train fast_rcnn_r18_fpn_shapes.py."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    _delete_=True, type='RPN', backbone={{_base_.model.backbone}}, neck={{_base_.model.neck}},
    rpn_head={{_base_.model.rpn_head}}, train_cfg=dict(rpn={{_base_.model.train_cfg.rpn}}),
    test_cfg=dict(rpn={{_base_.model.test_cfg.rpn}}))
evaluation = dict(metric='proposal_fast')
