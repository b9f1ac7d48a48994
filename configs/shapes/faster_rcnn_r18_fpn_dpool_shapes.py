"""Deformable RoI pooling (Dai et al. 2017)."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(
        bbox_roi_extractor=dict(
            roi_layer=dict(
                _delete_=True, type='DeformRoIPoolPack', output_size=7, output_channels=64, deform_fc_channels=64,
                sampling_ratio=1))))
