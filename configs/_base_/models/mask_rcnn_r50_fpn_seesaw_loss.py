"""Mask R-CNN for LVIS v1 with the seesaw loss."""
_base_ = './mask_rcnn_r50_fpn.py'
model = dict(
    roi_head=dict(
        bbox_head=dict(
            num_classes=1203, cls_predictor_cfg=dict(type='NormedLinear', tempearture=20),
            loss_cls=dict(
                _delete_=True, type='SeesawLoss', use_sigmoid=False, p=0.8, q=2.0, num_classes=1203, loss_weight=1.0)),
        mask_head=dict(num_classes=1203)),
    test_cfg=dict(rcnn=dict(score_thr=0.0001, max_per_img=300)))
