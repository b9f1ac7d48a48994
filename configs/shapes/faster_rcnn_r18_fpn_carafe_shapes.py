"""CARAFE: the pyramid grows its levels by learned kernels."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    neck=dict(
        type='FPN_CARAFE', norm_cfg=None, act_cfg=None, order=('conv', 'norm', 'act'),
        upsample_cfg=dict(
            type='carafe', up_kernel=5, up_group=1, encoder_kernel=3, encoder_dilation=1, compressed_channels=16)))
