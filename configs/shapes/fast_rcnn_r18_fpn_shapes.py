"""Fast R-CNN on the proposals that `tools/test.py RPN_CONFIG RPN_CHECKPOINT --out FILE.pkl` saved for both splits."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    _delete_=True, type='FastRCNN', backbone={{_base_.model.backbone}}, neck={{_base_.model.neck}},
    roi_head={{_base_.model.roi_head}}, train_cfg=dict(rcnn={{_base_.model.train_cfg.rcnn}}),
    test_cfg=dict(rcnn={{_base_.model.test_cfg.rcnn}}))
img_norm_cfg = dict(mean=[123.675, 116.28, 103.53], std=[58.395, 57.12, 57.375], to_rgb=True)
train_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=100),
    dict(type='LoadAnnotations', with_bbox=True),
    dict(type='Resize', img_scale=(160, 128), keep_ratio=True),
    dict(type='RandomFlip', flip_ratio=0.5),
    dict(type='Normalize', **img_norm_cfg),
    dict(type='Pad', size_divisor=32),
    dict(type='DefaultFormatBundle'),
    dict(type='Collect', keys=['img', 'proposals', 'gt_bboxes', 'gt_labels']),
]
test_pipeline = [
    dict(type='LoadImageFromFile'),
    dict(type='LoadProposals', num_max_proposals=100),
    dict(
        type='MultiScaleFlipAug', img_scale=(160, 128), flip=False,
        transforms=[
            dict(type='Resize', keep_ratio=True),
            dict(type='RandomFlip'),
            dict(type='Normalize', **img_norm_cfg),
            dict(type='Pad', size_divisor=32),
            dict(type='DefaultFormatBundle'),
            dict(type='Collect', keys=['img', 'proposals']),
        ]),
]
data_root = 'data/shapes/'
data = dict(
    train=dict(pipeline=train_pipeline, proposal_file=data_root + 'proposals/rpn_r18_fpn_train.pkl'),
    val=dict(pipeline=test_pipeline, proposal_file=data_root + 'proposals/rpn_r18_fpn_val.pkl'),
    test=dict(pipeline=test_pipeline, proposal_file=data_root + 'proposals/rpn_r18_fpn_val.pkl'))
