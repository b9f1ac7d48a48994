"""Grid R-CNN R18-FPN: nine points tell where a box is."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    type='GridRCNN',
    roi_head=dict(
        type='GridRoIHead', bbox_head=dict(with_reg=False),
        grid_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=64, featmap_strides=[4, 8, 16, 32], finest_scale=28,
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=1)),
        grid_head=dict(
            type='GridHead', grid_points=9, num_convs=4, in_channels=64, point_feat_channels=8,
            norm_cfg=dict(type='GN', num_groups=9),
            loss_grid=dict(type='CrossEntropyLoss', use_sigmoid=True, loss_weight=15))),
    train_cfg=dict(rcnn=dict(pos_radius=1, max_num_grid=64)))
