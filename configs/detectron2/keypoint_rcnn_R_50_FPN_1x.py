"""detectron2's COCO-Keypoints/keypoint_rcnn_R_50_FPN_1x."""
_base_ = './keypoint_rcnn_R_50_FPN.py'
