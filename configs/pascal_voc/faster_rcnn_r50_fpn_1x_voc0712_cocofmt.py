"""The same from COCO JSON, as `tools/dataset_converters/pascal_voc.py --out-format coco` writes it: COCO's metrics."""
_base_ = './faster_rcnn_r50_fpn_1x_voc0712.py'
CLASSES = ('aeroplane', 'bicycle', 'bird', 'boat', 'bottle', 'bus', 'car', 'cat', 'chair', 'cow', 'diningtable',
           'dog', 'horse', 'motorbike', 'person', 'pottedplant', 'sheep', 'sofa', 'train', 'tvmonitor')
dataset_type = 'CocoDataset'
data = dict(
    train=dict(dataset=dict(
        type=dataset_type, classes=CLASSES, ann_file='data/voc0712_trainval.json', img_prefix='data/VOCdevkit')),
    val=dict(type=dataset_type, classes=CLASSES, ann_file='data/voc07_test.json', img_prefix='data/VOCdevkit'),
    test=dict(type=dataset_type, classes=CLASSES, ann_file='data/voc07_test.json', img_prefix='data/VOCdevkit'))
evaluation = dict(metric='bbox')
