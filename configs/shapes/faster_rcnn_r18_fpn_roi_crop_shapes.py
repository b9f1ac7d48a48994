"""RoICrop, the crop-by-grid-sample pooling of Detectron.pytorch."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(
    roi_head=dict(bbox_roi_extractor=dict(roi_layer=dict(_delete_=True, type='RoICrop', output_size=7))))
