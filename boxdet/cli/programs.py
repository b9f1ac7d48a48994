"""The commands."""

# Command: the program, below the folder that holds tools/ and demo/. In this order --help lists them.
PROGRAMS = {
    'train': 'tools/train.py', 'test': 'tools/test.py', 'infer': 'tools/infer_dir.py', 'export': 'tools/export.py',
    'report': 'tools/analysis_tools/report.py', 'zoo': 'tools/zoo.py', 'config': 'tools/misc/print_config.py',
    'check': 'tools/check.py', 'demo': 'tools/demo.py',
    'dist_train': 'tools/dist_train.sh', 'dist_test': 'tools/dist_test.sh',
    'slurm_train': 'tools/slurm_train.sh', 'slurm_test': 'tools/slurm_test.sh',
    'image': 'demo/image_demo.py', 'video': 'demo/video_demo.py', 'webcam': 'demo/webcam_demo.py',
    **{name: f'tools/analysis_tools/{name}.py' for name in (
        'analyze_logs', 'analyze_results', 'benchmark', 'coco_error_analysis', 'confusion_matrix', 'eval_metric',
        'get_flops')},
    'browse_dataset': 'tools/misc/browse_dataset.py', 'translate_options': 'tools/misc/translate_options.py',
    **{name: f'tools/dataset_converters/{name}.py' for name in (
        'to_coco', 'from_coco', 'images2coco', 'pascal_voc', 'cityscapes')},
    'convert': 'tools/model_converters/convert.py', 'publish_model': 'tools/model_converters/publish_model.py',
    'make_shapes': 'tools/make_shapes.py',
}
