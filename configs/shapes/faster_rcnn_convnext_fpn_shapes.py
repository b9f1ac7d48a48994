"""ConvNeXt of 24 channels."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    backbone=dict(
        _delete_=True, type='ConvNeXt', arch=dict(depths=(1, 1, 3, 1), channels=(24, 48, 96, 192)),
        out_indices=[0, 1, 2, 3], drop_path_rate=0.0, layer_scale_init_value=1.0, gap_before_final_norm=False),
    neck=dict(in_channels=[24, 48, 96, 192]))
