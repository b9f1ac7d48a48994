"""LVIS v1, boxes and masks; images of rare classes are repeated in training."""
_base_ = 'coco_instance.py'
dataset_type = 'LVISV1Dataset'
data_root = 'data/lvis_v1/'
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(
        _delete_=True, type='ClassBalancedDataset', oversample_thr=1e-3,
        dataset=dict(
            type=dataset_type, img_prefix=data_root,
            ann_file=data_root + 'annotations/lvis_v1_train.json')),
    val=dict(
        type=dataset_type, img_prefix=data_root, ann_file=data_root + 'annotations/lvis_v1_val.json'),
    test=dict(
        type=dataset_type, img_prefix=data_root, ann_file=data_root + 'annotations/lvis_v1_val.json'))
evaluation = dict(metric=['bbox', 'segm'])
