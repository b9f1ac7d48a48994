_base_ = 'coco_detection.py'
dataset_type = 'Objects365V2Dataset'
data_root = 'data/Objects365/Obj365_v2/'
data = dict(
    train=dict(
        type=dataset_type, img_prefix=data_root + 'train/',
        ann_file=data_root + 'annotations/zhiyuan_objv2_train.json'),
    val=dict(
        type=dataset_type, img_prefix=data_root + 'val/', ann_file=data_root + 'annotations/zhiyuan_objv2_val.json'),
    test=dict(
        type=dataset_type, img_prefix=data_root + 'val/', ann_file=data_root + 'annotations/zhiyuan_objv2_val.json'))
