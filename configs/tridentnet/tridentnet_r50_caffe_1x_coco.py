_base_ = '../faster_rcnn/faster_rcnn_r50_caffe_c4_1x_coco.py'
model = dict(
    type='TridentFasterRCNN',
    backbone=dict(type='TridentResNet', trident_dilations=(1, 2, 3), num_branch=3, test_branch_idx=1),
    roi_head=dict(type='TridentRoIHead', num_branch=3, test_branch_idx=1),
    train_cfg=dict(
        rpn_proposal=dict(max_per_img=500),
        rcnn=dict(sampler=dict(num=128, pos_fraction=0.5, add_gt_as_proposals=False))))
