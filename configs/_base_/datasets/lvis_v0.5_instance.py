"""LVIS v0.5, boxes and masks; images of rare classes are repeated in training."""
_base_ = 'coco_instance.py'
dataset_type = 'LVISV05Dataset'
data_root = 'data/lvis_v0.5/'
data = dict(
    samples_per_gpu=2, workers_per_gpu=2,
    train=dict(
        _delete_=True, type='ClassBalancedDataset', oversample_thr=1e-3,
        dataset=dict(
            type=dataset_type, img_prefix=data_root + 'train2017/',
            ann_file=data_root + 'annotations/lvis_v0.5_train.json')),
    val=dict(
        type=dataset_type, img_prefix=data_root + 'val2017/', ann_file=data_root + 'annotations/lvis_v0.5_val.json'),
    test=dict(
        type=dataset_type, img_prefix=data_root + 'val2017/', ann_file=data_root + 'annotations/lvis_v0.5_val.json'))
evaluation = dict(metric=['bbox', 'segm'])
