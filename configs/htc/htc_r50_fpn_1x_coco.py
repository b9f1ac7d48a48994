_base_ = [
    '../_base_/models/htc_without_semantic_r50_fpn.py', '../_base_/datasets/coco_instance_semantic.py',
    '../_base_/schedules/schedule_1x.py', '../_base_/default_runtime.py'
]
model = dict(
    roi_head=dict(
        semantic_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=256, featmap_strides=[8],
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
        semantic_head=dict(
            type='FusedSemanticHead', num_ins=5, fusion_level=1, num_convs=4, in_channels=256, conv_out_channels=256,
            num_classes=183, loss_seg=dict(type='CrossEntropyLoss', ignore_index=255, loss_weight=0.2))))
