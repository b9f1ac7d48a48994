"""Keypoint R-CNN (He et al. 2017, section 5): Faster R-CNN for persons with a heatmap for each of COCO's 17 keypoints.

The values are detectron2's Base-Keypoint-RCNN-FPN: a plain L1 loss and fewer proposals in training cost keypoint AP.
"""
_base_ = './faster_rcnn_r50_fpn.py'
model = dict(
    type='KeypointRCNN',
    roi_head=dict(
        bbox_head=dict(
            num_classes=1, loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=0.5, loss_weight=1.0)),
        keypoint_roi_extractor=dict(
            type='SingleRoIExtractor', out_channels=256, featmap_strides=[4, 8, 16, 32],
            roi_layer=dict(type='RoIAlign', output_size=14, sampling_ratio=0)),
        keypoint_head=dict(
            type='KeypointRCNNHead', num_convs=8, in_channels=256, conv_out_channels=512, num_keypoints=17,
            loss_keypoint=dict(type='CrossEntropyLoss', loss_weight=1.0))),
    train_cfg=dict(rpn_proposal=dict(max_per_img=1500)))
