"""The seesaw loss with a normed classifier."""
_base_ = './mask_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(
        bbox_head=dict(
            cls_predictor_cfg=dict(type='NormedLinear', tempearture=20),
            loss_cls=dict(_delete_=True, type='SeesawLoss', p=0.8, q=2.0, num_classes=6, loss_weight=1.0))))
