# Every class is drawn as often as every other.
_base_ = ['faster_rcnn_r50_fpn_32x2_1x_openimages_challenge.py']
data = dict(train_dataloader=dict(class_aware_sampler=dict(num_sample_class=1)))
