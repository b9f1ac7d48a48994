"""GRoIE R18-FPN: a roi is pooled from all levels."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            _delete_=True, type='GenericRoIExtractor', aggregation='sum', out_channels=64,
            featmap_strides=[4, 8, 16, 32], roi_layer=dict(type='RoIAlign', output_size=7, sampling_ratio=1),
            pre_cfg=dict(type='ConvModule', in_channels=64, out_channels=64, kernel_size=5, padding=2, inplace=False),
            post_cfg=dict(
                type='GeneralizedAttention', in_channels=64, spatial_range=-1, num_heads=4, attention_type='0100',
                kv_stride=2))))
