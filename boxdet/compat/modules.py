"""The modules of mmdetection 2.28, of mmcv 1.7, and some of mmdetection 3.3, that people import from."""
from __future__ import annotations

PACKAGES: dict[str, str] = {
    'mmdet': 'apis core datasets evaluation models registry structures utils version visualization',
    'mmcv': 'device engine fileio ops parallel runner utils',
    'mmcv.engine': 'test',
    'mmcv.fileio': 'file_client handlers io parse',
    'mmcv.ops': (
        'carafe deform_conv focal_loss merge_cells modulated_deform_conv nms point_sample roi_align roi_pool'),
    'mmcv.parallel': 'collate data_container data_parallel distributed registry scatter_gather utils',
    'mmcv.runner': 'base_module builder checkpoint dist_utils epoch_based_runner fp16_utils hooks optimizer utils',
    'mmcv.runner.hooks': 'checkpoint evaluation hook logger lr_updater optimizer',
    'mmcv.runner.optimizer': 'builder default_constructor',
    'mmcv.utils': 'config logging misc parrots_wrapper path progressbar registry version_utils',
    'mmdet.apis': 'det_inferencer inference test train',
    'mmdet.core': (
        'anchor bbox data_structures evaluation export hook mask optimizers post_processing utils '
        'visualization'),
    'mmdet.core.anchor': 'anchor_generator builder point_generator utils',
    'mmdet.core.bbox': 'assigners builder coder demodata iou_calculators match_costs samplers transforms',
    'mmdet.core.bbox.assigners': (
        'approx_max_iou_assigner ascend_assign_result ascend_max_iou_assigner assign_result atss_assigner '
        'base_assigner center_region_assigner grid_assigner hungarian_assigner mask_hungarian_assigner '
        'max_iou_assigner point_assigner region_assigner sim_ota_assigner task_aligned_assigner '
        'uniform_assigner'),
    'mmdet.core.bbox.coder': (
        'base_bbox_coder bucketing_bbox_coder delta_xywh_bbox_coder distance_point_bbox_coder '
        'legacy_delta_xywh_bbox_coder pseudo_bbox_coder tblr_bbox_coder yolo_bbox_coder'),
    'mmdet.core.bbox.iou_calculators': 'builder iou2d_calculator',
    'mmdet.core.bbox.match_costs': 'builder match_cost',
    'mmdet.core.bbox.samplers': (
        'base_sampler combined_sampler instance_balanced_pos_sampler iou_balanced_neg_sampler '
        'mask_pseudo_sampler mask_sampling_result ohem_sampler pseudo_sampler random_sampler sampling_result '
        'score_hlr_sampler'),
    'mmdet.core.data_structures': 'general_data instance_data',
    'mmdet.core.evaluation': 'bbox_overlaps class_names eval_hooks mean_ap panoptic_utils recall',
    'mmdet.core.export': 'model_wrappers onnx_helper pytorch2onnx',
    'mmdet.core.hook': (
        'checkloss_hook ema memory_profiler_hook set_epoch_info_hook sync_norm_hook sync_random_size_hook '
        'wandblogger_hook yolox_lrupdater_hook yolox_mode_switch_hook'),
    'mmdet.core.mask': 'mask_target structures utils',
    'mmdet.core.optimizers': 'builder layer_decay_optimizer_constructor',
    'mmdet.core.post_processing': 'bbox_nms matrix_nms merge_augs',
    'mmdet.core.utils': 'dist_utils misc',
    'mmdet.core.visualization': 'image palette',
    'mmdet.datasets': (
        'api_wrappers builder cityscapes coco coco_occluded coco_panoptic custom dataset_wrappers deepfashion '
        'lvis objects365 openimages pipelines samplers transforms utils voc wider_face xml_style'),
    'mmdet.datasets.api_wrappers': 'coco_api panoptic_evaluation',
    'mmdet.datasets.pipelines': (
        'auto_augment compose formating formatting instaboost loading test_time_aug transforms'),
    'mmdet.datasets.samplers': 'class_aware_sampler distributed_sampler group_sampler infinite_sampler',
    'mmdet.evaluation': 'functional metrics',
    'mmdet.structures': 'bbox det_data_sample mask',
    'mmdet.structures.bbox': 'base_boxes bbox_overlaps horizontal_boxes transforms',
    'mmdet.structures.mask': 'mask_target structures utils',
    'mmdet.visualization': 'local_visualizer palette',
    'mmdet.models': (
        'backbones builder dense_heads detectors losses necks plugins roi_heads seg_heads task_modules utils'),
    'mmdet.models.task_modules': 'assigners builder coders prior_generators samplers',
    'mmdet.models.backbones': (
        'csp_darknet darknet detectors_resnet detectors_resnext efficientnet hourglass hrnet mobilenet_v2 pvt '
        'regnet res2net resnest resnet resnext ssd_vgg swin trident_resnet'),
    'mmdet.models.dense_heads': (
        'anchor_free_head anchor_head ascend_anchor_head ascend_retina_head ascend_ssd_head atss_head '
        'autoassign_head base_dense_head base_mask_head cascade_rpn_head centernet_head centripetal_head '
        'corner_head ddod_head deformable_detr_head dense_test_mixins detr_head embedding_rpn_head fcos_head '
        'fovea_head free_anchor_retina_head fsaf_head ga_retina_head ga_rpn_head gfl_head guided_anchor_head '
        'lad_head ld_head mask2former_head maskformer_head nasfcos_head paa_head pisa_retinanet_head '
        'pisa_ssd_head reppoints_head retina_head retina_sepbn_head rpn_head sabl_retina_head solo_head '
        'solov2_head ssd_head tood_head vfnet_head yolact_head yolo_head yolof_head yolox_head'),
    'mmdet.models.detectors': (
        'atss autoassign base cascade_rcnn centernet cornernet ddod deformable_detr detr fast_rcnn '
        'faster_rcnn fcos fovea fsaf gfl grid_rcnn htc kd_one_stage lad mask2former mask_rcnn '
        'mask_scoring_rcnn maskformer nasfcos paa panoptic_fpn panoptic_two_stage_segmentor point_rend '
        'queryinst reppoints_detector retinanet rpn scnet single_stage single_stage_instance_seg solo solov2 '
        'sparse_rcnn tood trident_faster_rcnn two_stage vfnet yolact yolo yolof yolox'),
    'mmdet.models.losses': (
        'accuracy ae_loss balanced_l1_loss cross_entropy_loss dice_loss focal_loss gaussian_focal_loss '
        'gfocal_loss ghm_loss iou_loss kd_loss mse_loss pisa_loss seesaw_loss smooth_l1_loss utils '
        'varifocal_loss'),
    'mmdet.models.necks': (
        'bfp channel_mapper ct_resnet_neck dilated_encoder dyhead fpg fpn fpn_carafe hrfpn nas_fpn '
        'nasfcos_fpn pafpn rfp ssd_neck yolo_neck yolox_pafpn'),
    'mmdet.models.plugins': 'dropblock msdeformattn_pixel_decoder pixel_decoder',
    'mmdet.models.roi_heads': (
        'base_roi_head bbox_heads cascade_roi_head double_roi_head dynamic_roi_head grid_roi_head '
        'htc_roi_head mask_heads mask_scoring_roi_head pisa_roi_head point_rend_roi_head roi_extractors '
        'scnet_roi_head shared_heads sparse_roi_head standard_roi_head test_mixins trident_roi_head'),
    'mmdet.models.roi_heads.bbox_heads': (
        'bbox_head convfc_bbox_head dii_head double_bbox_head sabl_head scnet_bbox_head'),
    'mmdet.models.roi_heads.mask_heads': (
        'coarse_mask_head dynamic_mask_head fcn_mask_head feature_relay_head fused_semantic_head '
        'global_context_head grid_head htc_mask_head mask_point_head maskiou_head scnet_mask_head '
        'scnet_semantic_head'),
    'mmdet.models.roi_heads.roi_extractors': 'base_roi_extractor generic_roi_extractor single_level_roi_extractor',
    'mmdet.models.roi_heads.shared_heads': 'res_layer',
    'mmdet.models.seg_heads': 'base_semantic_head panoptic_fpn_head panoptic_fusion_heads',
    'mmdet.models.seg_heads.panoptic_fusion_heads': (
        'base_panoptic_fusion_head heuristic_fusion_head maskformer_fusion_head'),
    'mmdet.models.utils': (
        'brick_wrappers builder ckpt_convert conv_upsample csp_layer gaussian_target inverted_residual '
        'make_divisible misc normed_predictor panoptic_gt_processing point_sample positional_encoding '
        'res_layer se_layer transformer'),
    'mmdet.utils': (
        'ascend_util collect_env compat_config contextmanagers logger memory misc profiling replace_cfg_vals '
        'rfnext setup_env split_batch util_distribution util_mixins util_random'),
}
MODULES = frozenset(f'{package}.{name}' for package, names in PACKAGES.items() for name in names.split())
