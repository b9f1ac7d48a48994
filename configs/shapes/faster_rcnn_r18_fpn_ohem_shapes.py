"""Online hard example mining (Shrivastava et al. 2016): of all rois, those with the largest losses."""
_base_ = './faster_rcnn_r18_fpn_shapes.py'
model = dict(train_cfg=dict(rcnn=dict(sampler=dict(type='OHEMSampler'))))
