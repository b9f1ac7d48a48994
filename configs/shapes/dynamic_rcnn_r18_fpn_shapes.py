"""Dynamic R-CNN R18-FPN: thresholds and the loss follow the proposals."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(
        type='DynamicRoIHead',
        bbox_head=dict(loss_bbox=dict(_delete_=True, type='SmoothL1Loss', beta=1.0, loss_weight=1.0))),
    train_cfg=dict(
        rcnn=dict(
            dynamic_rcnn=dict(
                iou_topk=8, beta_topk=4, update_iter_interval=25, initial_iou=0.4, initial_beta=1.0))))
