"""FPG with three pathways."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
norm_cfg, order = dict(type='BN', requires_grad=True), ('act', 'conv', 'norm')
model = dict(
    neck=dict(
        type='FPG', norm_cfg=norm_cfg, inter_channels=64, stack_times=3, paths=['bu', 'bu', 'bu'],
        same_up_trans=dict(
            type='conv', kernel_size=3, stride=2, padding=1, norm_cfg=norm_cfg, inplace=False, order=order),
        across_lateral_trans=dict(type='conv', kernel_size=1, norm_cfg=norm_cfg, inplace=False, order=order),
        across_down_trans=dict(
            type='interpolation_conv', mode='nearest', kernel_size=3, norm_cfg=norm_cfg, inplace=False, order=order),
        across_skip_trans=dict(type='conv', kernel_size=1, norm_cfg=norm_cfg, inplace=False, order=order),
        output_trans=dict(type='last_conv', kernel_size=3, inplace=False, order=order),
        skip_inds=[(0, 1, 2), (0, 1), (0,), ()]))
