"""Where each name of mmdetection 2.x and mmcv 1.x is to be found.

A name is looked up by its package (``mmdet.core``, ``mmdet.models``, ...), whichever of its modules it is imported
from: in the table of the package, then in the registries whose classes the package holds.
"""
from __future__ import annotations

import importlib
from typing import Any

from boxdet import registry
from boxdet.compat.models import form_of

ABSENT = object()



def _table(home: str, names: str) -> dict[str, str]:
    return {name: f'{home}:{name}' for name in names.split()}


_REGISTRIES = {'BBOX_ASSIGNERS': 'boxdet.registry:MATCHING', 'BBOX_SAMPLERS': 'boxdet.registry:MATCHING',
               'BBOX_CODERS': 'boxdet.registry:MATCHING', 'IOU_CALCULATORS': 'boxdet.registry:MATCHING',
               'ANCHOR_GENERATORS': 'boxdet.registry:MATCHING', 'PRIOR_GENERATORS': 'boxdet.registry:MATCHING',
               'MATCH_COST': 'boxdet.registry:MATCHING',
               **dict.fromkeys(['DETECTORS', 'BACKBONES', 'NECKS', 'HEADS', 'ROI_EXTRACTORS', 'SHARED_HEADS', 'LOSSES',
                                'MODELS'], 'boxdet.registry:MODELS'),
               'DATASETS': 'boxdet.registry:DATASETS', 'PIPELINES': 'boxdet.registry:PIPELINES',
               'HOOKS': 'boxdet.registry:HOOKS', 'RUNNERS': 'boxdet.registry:RUNNERS',
               'OPTIMIZERS': 'boxdet.registry:OPTIMIZERS', 'PLUGIN_LAYERS': 'boxdet.registry:LAYERS',
               'NORM_LAYERS': 'boxdet.registry:LAYERS', 'CONV_LAYERS': 'boxdet.registry:LAYERS',
               'ACTIVATION_LAYERS': 'boxdet.registry:LAYERS', 'UPSAMPLE_LAYERS': 'boxdet.registry:LAYERS'}
_BUILDERS = dict.fromkeys(['build_assigner', 'build_bbox_coder', 'build_anchor_generator', 'build_prior_generator',
                           'build_iou_calculator'], 'boxdet.compat.functions:build_from_matching')
_CORE = {
    **_table('boxdet.compat.functions', 'multi_apply unmap images_to_levels reduce_mean bbox_overlaps bbox_flip '
             'bbox_mapping '
             'bbox_mapping_back bbox_cxcywh_to_xyxy bbox_xyxy_to_cxcywh roi2bbox bbox2distance '
             'distance2bbox bbox_rescale '
             'encode_mask_results mask2bbox mask_target split_combined_polys build_sampler '
             'imshow_det_bboxes eval_map'),
    **_table('boxdet.compat.arrays', 'mask2ndarray center_of_mass flip_tensor select_single_mlvl '
             'filter_scores_and_topk mask_matrix_nms'),
    **_table('boxdet.compat.evaluation', 'eval_recalls tpfp_default'),
    **_table('boxdet.compat.hits', 'tpfp_imagenet tpfp_openimages'),
    **_table('boxdet.compat.containers', 'GeneralData InstanceData'),
    **_table('boxdet.compat.drawing', 'color_val_matplotlib palette_val get_palette imshow_gt_det_bboxes'),
    **_table('boxdet.compat.hooks', 'ExpMomentumEMAHook LinearMomentumEMAHook CheckInvalidLossHook '
             'MemoryProfilerHook SetEpochInfoHook SyncNormHook'),
    'LearningRateDecayOptimizerConstructor': 'boxdet.compat.optimizers:LearningRateDecayOptimizerConstructor',
    **_BUILDERS, **_REGISTRIES,
    **_table('boxdet.compat.forms', 'bbox2result bbox2roi AssignResult SamplingResult'),
    **_table('boxdet.compat.mmcv1', 'auto_fp16 force_fp32'), **_table('boxdet.compat.apis', 'EvalHook DistEvalHook'),
    **_table('boxdet.geometry.nms', 'multiclass_nms batched_nms'),
    **_table('boxdet.structures.masks', 'BitmapMasks PolygonMasks'),
    'get_classes': 'boxdet.datasets.class_names:get_classes',
    'EpochBasedRunner': 'boxdet.compat.runners:EpochBasedRunner', 'Hook': 'boxdet.engine.hooks:Hook',
    'build_optimizer': 'boxdet.engine.schedule:build_optimizer'}
_MODELS = {
    **_REGISTRIES, **_BUILDERS,
    **_table('boxdet.models', 'build_detector build_backbone build_neck build_head build_loss build_roi_extractor '
             'build_shared_head'),
    **_table('boxdet.compat.functions', 'weighted_loss reduce_loss Accuracy multi_apply'),
    **_table('boxdet.compat.layers', 'AdaptiveAvgPool2d adaptive_avg_pool2d AdaptivePadding PatchEmbed PatchMerging '
             'SELayer DyReLU InvertedResidual ConvUpsample'),
    'make_divisible': 'boxdet.models.families.mobilenet_v2:make_divisible',
    **_table('boxdet.compat.arrays', 'interpolate_as sigmoid_geometric_mean'),
    **_table('boxdet.models.losses', 'weight_reduce_loss accuracy binary_cross_entropy mask_cross_entropy'),
    **_table('boxdet.models.backbones.resnet', 'BasicBlock Bottleneck'),
    **_table('boxdet.compat.blocks', 'Bottle2neck TridentBottleneck HRModule PVTEncoderLayer SwinBlock'),
    'BaseDetector': 'boxdet.compat.base:BaseDetector', 'BaseRoIHead': 'boxdet.compat.base:BaseRoIHead',
    'BaseRoIExtractor': 'boxdet.models.roi_extractor:SingleRoIExtractor',
    'BaseModule': 'mmengine.model:BaseModule'}
_DATASETS = {
    **_REGISTRIES, 'build_dataset': 'boxdet.datasets:build_dataset',
    **_table('boxdet.compat.apis', 'build_dataloader get_loading_pipeline'),
    'replace_ImageToTensor': 'boxdet.compat.samples:replace_ImageToTensor',
    **_table('boxdet.datasets', 'GroupSampler DistributedGroupSampler '
             'DistributedSampler get_classes '
             'Compose'),
    **_table('boxdet.compat.mmcv1', 'DataContainer'), 'DC': 'boxdet.compat.mmcv1:DataContainer',
    **_table('pycocotools.coco', 'COCO'), **_table('pycocotools.cocoeval', 'COCOeval'),
    'to_tensor': 'boxdet.datasets.pipelines.formatting:to_tensor',
    'NumClassCheckHook': 'boxdet.engine.hooks:NumClassCheckHook'}
_UTILS = {
    'AvoidOOM': 'boxdet.compat.arrays:AvoidOOM', 'cast_tensor_type': 'boxdet.compat.arrays:cast_tensors',
    **_table('boxdet.compat.functions', 'find_latest_checkpoint get_device update_data_root split_batch '
             'get_caller_name log_img_scale'),
    **_table('boxdet.compat.configs', 'replace_cfg_vals setup_multi_processes compat_cfg compat_runner_args '
             'compat_imgs_per_gpu compat_loader_args'),
    **_table('boxdet.compat.apis', 'get_root_logger'), 'collect_env': 'boxdet.engine.environment:collect_env',
    'build_dp': 'boxdet.compat.mmcv1:MMDataParallel', 'build_ddp': 'boxdet.compat.mmcv1:MMDistributedDataParallel',
    'concurrent': 'boxdet.apis:concurrent'}
_APIS = {
    **_table('boxdet.compat.apis', 'init_detector inference_detector async_inference_detector show_result_pyplot '
             'single_gpu_test multi_gpu_test train_detector set_random_seed init_random_seed get_root_logger')}
_OF_3X = {
    'mmdet.registry': {
        **_REGISTRIES, 'TRANSFORMS': 'boxdet.registry:PIPELINES', 'TASK_UTILS': 'boxdet.registry:MATCHING',
        'METRICS': 'boxdet.registry:EVALUATORS', 'EVALUATOR': 'boxdet.registry:EVALUATORS',
        'VISUALIZERS': 'boxdet.compat.mmdet3:VISUALIZERS'},
    'mmdet.structures': {
        **_table('boxdet.compat.mmdet3', 'DetDataSample InstanceData bbox2roi get_box_tensor'),
        **_table('boxdet.compat.functions', 'bbox_overlaps bbox_flip bbox_cxcywh_to_xyxy bbox_xyxy_to_cxcywh '
                 'bbox2distance distance2bbox roi2bbox encode_mask_results mask2bbox mask_target'),
        **_table('boxdet.structures.masks', 'BitmapMasks PolygonMasks')},
    'mmdet.visualization': {
        **_table('boxdet.compat.mmdet3', 'DetLocalVisualizer'), 'get_palette':
        'boxdet.visualization.palette:class_colors'},
    'mmdet.evaluation': {
        **_table('boxdet.compat.functions', 'eval_map bbox_overlaps'), 'get_classes':
        'boxdet.datasets.class_names:get_classes'}}
_APIS['DetInferencer'] = 'boxdet.compat.mmdet3:DetInferencer'
_UTILS.update(_table('boxdet.compat.mmdet3', 'register_all_modules get_test_pipeline_cfg'))
_VERSION = {'__version__': '2.28.2', 'version_info': (2, 28, 2), 'short_version': '2.28.2'}

_ENGINE = {
    **_table('mmengine.config', 'ConfigDict DictAction'), 'Config': 'boxdet.compat.mmcv1:Config',
    **_table('mmengine.fileio', 'dump load FileClient list_from_file dict_from_file'),
    **_table('mmengine.utils', 'mkdir_or_exist ProgressBar is_str is_list_of is_seq_of is_tuple_of '
             'check_file_exist scandir '
             'digit_version concat_list track_iter_progress track_parallel_progress symlink '
             'import_modules_from_strings '
             'is_filepath slice_list deprecated_api_warning to_2tuple'),
    **_table('mmengine.utils', 'Timer check_time'), 'print_log': 'mmengine.logging:print_log',
    **_table('boxdet.compat.mmcv1', 'jit build_from_cfg assert_params_all_zeros'), 'Registry':
    'boxdet.registry:Registry',
    'get_logger': 'boxdet.compat.apis:get_root_logger', 'get_git_hash': 'mmengine.utils:get_git_hash',
    'TORCH_VERSION': 'mmengine.utils.dl_utils:TORCH_VERSION', 'collect_env': 'boxdet.engine.environment:collect_env'}
_ENGINE['Timer'], _ENGINE['check_time'] = 'mmengine.utils.timer:Timer', 'mmengine.utils.timer:check_time'
_RUNNER = {
    **_table('boxdet.compat.mmcv1', 'load_checkpoint save_checkpoint load_state_dict weights_to_cpu '
             'force_fp32 auto_fp16 '
             'cast_tensor_type wrap_fp16_model BaseModule ModuleList Sequential get_dist_info'),
    **_table('boxdet.compat.apis', 'EvalHook DistEvalHook'),
    'ModuleDict': 'mmengine.model:ModuleDict', 'init_dist': 'boxdet.engine.distributed:init_dist',
    'set_random_seed': 'boxdet.apis:set_random_seed', 'Hook': 'boxdet.engine.hooks:Hook',
    **_table('boxdet.compat.runners', 'EpochBasedRunner IterBasedRunner build_runner'),
    'BaseRunner': 'boxdet.compat.runners:Runner1x', **_table('boxdet.compat.hooks', 'IterTimerHook OptimizerHook'),
    **_table('mmengine.runner.priority', 'Priority get_priority'),
    'build_optimizer': 'boxdet.engine.schedule:build_optimizer', '_load_checkpoint':
    'boxdet.checkpoints.io:load_checkpoint',
    'HOOKS': 'boxdet.registry:HOOKS', 'RUNNERS': 'boxdet.registry:RUNNERS', 'OPTIMIZERS':
    'boxdet.registry:OPTIMIZERS',
    **_table('boxdet.engine.hooks', 'CheckpointHook LrUpdaterHook'),
    **_table('boxdet.engine.loggers', 'TextLoggerHook TensorboardLoggerHook')}
_PARALLEL = _table('boxdet.compat.mmcv1', 'DataContainer collate scatter MMDataParallel MMDistributedDataParallel '
                   'is_module_wrapper')
_OPS = {**_table('boxdet.compat.mmcv1', 'nms soft_nms'), 'batched_nms': 'boxdet.geometry.nms:batched_nms',
        **_table('boxdet.models.roi_extractor', 'RoIAlign RoIPool'),
        **_table('boxdet.models.layers', 'DeformConv2d ModulatedDeformConv2d'),
        'DeformConv2dPack': 'boxdet.models.layers:DeformConv2d',
        'ModulatedDeformConv2dPack': 'boxdet.models.layers:ModulatedDeformConv2d',
        **_table('boxdet.models.roi_sampling', 'DeformRoIPoolPack ModulatedDeformRoIPoolPack')}
_CNN = {**_table('mmengine.model', 'xavier_init normal_init constant_init kaiming_init uniform_init '
             'trunc_normal_init '
                 'bias_init_with_prob caffe2_xavier_init initialize'),
        **_table('boxdet.compat.mmcv1', 'is_norm'), 'NORM_LAYERS': 'boxdet.registry:LAYERS',
        'CONV_LAYERS': 'boxdet.registry:LAYERS', 'PLUGIN_LAYERS': 'boxdet.registry:LAYERS'}

# By module, where a package has two classes of one name, or boxdet's takes other arguments.
_BLOCKS = 'boxdet.compat.blocks'
MODULES = {
    'mmdet.models.backbones.resnext': {'Bottleneck': f'{_BLOCKS}:ResNeXtBottleneck'},
    'mmdet.models.backbones.resnest': {'Bottleneck': f'{_BLOCKS}:ResNeStBottleneck'},
    'mmdet.models.utils': _table(_BLOCKS, 'ResLayer SimplifiedBasicBlock'),
    'mmdet.models.utils.res_layer': _table(_BLOCKS, 'ResLayer SimplifiedBasicBlock'),
    'mmdet.datasets.builder': _table('boxdet.datasets', 'build_dataset')}
# By package; a module of a package has the names of the package.
PACKAGES = {'mmdet.apis': _APIS, 'mmdet.core': _CORE, 'mmdet.models': _MODELS, 'mmdet.datasets': _DATASETS,
            'mmdet.utils': _UTILS, **_OF_3X}
MMCV = {'mmcv': _ENGINE, 'mmcv.utils': _ENGINE, 'mmcv.fileio': _ENGINE, 'mmcv.runner': _RUNNER,
        'mmcv.parallel': _PARALLEL, 'mmcv.ops': _OPS, 'mmcv.cnn': _CNN, 'mmcv.engine': _APIS}
_HELD = {'mmdet.core': (registry.MATCHING,),
         'mmdet.models': (registry.MODELS, registry.LAYERS, registry.MATCHING),
         'mmdet.datasets': (registry.DATASETS, registry.PIPELINES), 'mmdet.evaluation': (registry.EVALUATORS,),
         'mmcv.runner': (registry.HOOKS, registry.RUNNERS)}
# What is not there and has something else in its place.
INSTEAD = {
    'SingleStageDetector': 'boxdet.models.detectors.TwoStageDetector or RPN (boxdet has two-stage detectors)',
    'AnchorHead': 'mmdet.models.RPNHead', 'BaseDenseHead': 'mmdet.models.RPNHead',
    'BBoxTestMixin': "StandardRoIHead's simple_test_bboxes", 'MaskTestMixin': "StandardRoIHead's simple_test_mask",
    'ONNXRuntimeDetector': 'boxdet.export', 'DeployModel': 'boxdet.export'}


def _package(module: str) -> str:
    parts = module.split('.')
    return '.'.join(parts[:2])


def known(module: str) -> list[str]:
    """The names that a module has."""
    package = _package(module)
    table = {**PACKAGES.get(package, {}), **MMCV.get(package, {})}
    return sorted({*table, *(name for one in _HELD.get(package, ()) for name in one.names())})


def lookup(module: str, name: str) -> Any:
    """The object behind ``name`` of ``module``, or ``ABSENT``."""
    package = _package(module)
    if module in ('mmdet', 'mmdet.version'):
        if name == 'digit_version':
            return _resolve('boxdet.compat.functions:digit_version')
        return _VERSION.get(name, ABSENT)
    if name in MODULES.get(module, ()):
        return _resolve(MODULES[module][name])
    table = PACKAGES.get(package) or MMCV.get(module) or MMCV.get(package) or {}
    if name in table:
        return _resolve(table[name])
    for one in _HELD.get(package, ()):
        if name in one:
            return form_of(one.get(name))
    return ABSENT


def _resolve(place: str) -> Any:
    home, _, name = place.partition(':')
    return form_of(getattr(importlib.import_module(home), name))
