"""Methods of mmdetection 2.x that nothing in boxdet calls: the table of them, and the check of a class that has one.

A class written for mmdetection 2.x may override ``forward_train``; with boxdet's ``TwoStageDetector`` as its base it is
registered and trained, and its method is never called. So the registries ask here before they build it. A method that
boxdet's base class has is called, whatever this table says.

``boxdet.compat`` brings base classes under mmdetection's import names that do call most of these methods.
"""
from __future__ import annotations

import warnings
from collections.abc import Mapping
from types import FunctionType, MappingProxyType

from boxdet.errors import ConfigError

_DETECTOR = {
    'forward_train': ('BaseDetector', 'loss(batch)'),
    'forward_test': ('BaseDetector', 'predict(batch, rescale)'),
    'simple_test': ('BaseDetector', 'predict(batch, rescale)'),
    'aug_test': ('BaseDetector', 'predict(views, rescale)'),
    'async_simple_test': ('TwoStageDetector', 'predict(batch, rescale)'),
    'forward_dummy': ('TwoStageDetector', 'extract_feat(images)'),
    'extract_feats': ('BaseDetector', 'extract_feat(images)'),
    'train_step': ('BaseDetector', 'loss(batch)'),
    'val_step': ('BaseDetector', 'loss(batch)'),
    '_parse_losses': ('BaseDetector', 'loss(batch), whose values with "loss" in their name are summed'),
    'onnx_export': ('BaseDetector', 'predict(batch, rescale), which boxdet.export follows')}
_ROI_HEAD = {
    'forward_train': ('BaseRoIHead', 'loss(feats, proposals, gt, ignored, metas)'),
    'simple_test': ('BaseRoIHead', 'predict(feats, proposals, metas)'),
    'aug_test': ('BaseRoIHead', 'classify and mask_probs'),
    'async_simple_test': ('BaseRoIHead', 'predict(feats, proposals, metas)'),
    '_bbox_forward': ('StandardRoIHead', 'box_forward(feats, rois)'),
    '_bbox_forward_train': ('StandardRoIHead', 'bbox_losses(feats, samples, scores, deltas, targets)'),
    '_mask_forward': ('StandardRoIHead', 'mask_features(feats, rois)'),
    '_mask_forward_train': ('StandardRoIHead', 'mask_losses(feats, pooled, samples, gt)'),
    'simple_test_bboxes': ('BBoxTestMixin', 'classify(feats, boxes, metas)'),
    'simple_test_mask': ('MaskTestMixin', 'mask_probs(feats, boxes, labels)'),
    'aug_test_bboxes': ('BBoxTestMixin', 'classify(feats, boxes, metas)'),
    'aug_test_mask': ('MaskTestMixin', 'mask_probs(feats, boxes, labels)'),
    'init_assigner_sampler': ('BaseRoIHead', '__init__, which sets assigner and sampler'),
    'init_bbox_head': ('BaseRoIHead', '__init__, which sets bbox_roi_extractor and bbox_head'),
    'init_mask_head': ('BaseRoIHead', '__init__, which sets mask_roi_extractor and mask_head'),
    'forward_dummy': ('StandardRoIHead', 'classify(feats, boxes, metas)'),
    'bbox_onnx_export': ('StandardRoIHead', 'predict_padded'),
    'mask_onnx_export': ('StandardRoIHead', 'predict_padded'),
    'onnx_export': ('StandardRoIHead', 'predict_padded')}
_BOX_HEAD = {
    'get_targets': ('BBoxHead', 'targets(samples, settings)'),
    '_get_target_single': ('BBoxHead', 'targets(samples, settings)'),
    'get_bboxes': ('BBoxHead', 'predict(boxes, cls_score, bbox_pred, image_hw, settings)'),
    'refine_bboxes': ('BBoxHead', 'refine(boxes, labels, bbox_pred, image_hw)'),
    'regress_by_class': ('BBoxHead', 'refine(boxes, labels, bbox_pred, image_hw)'),
    'custom_cls_channels': ('BBoxHead', 'fc_cls of a size of its own'),
    'custom_activation': ('BBoxHead', 'probabilities(cls_score)'),
    'custom_accuracy': ('BBoxHead', 'loss(cls_score, bbox_pred, targets)'),
    '_add_conv_fc_branch': ('ConvFCBBoxHead', '__init__ (num_shared_convs, num_shared_fcs, ...)'),
    'onnx_export': ('BBoxHead', 'predict_padded')}
_MASK_HEAD = {
    'get_targets': ('FCNMaskHead', 'targets(samples, gt, settings)'),
    'get_seg_masks': ('FCNMaskHead', 'predict(x, labels)'),
    'onnx_export': ('FCNMaskHead', 'predict(x, labels)')}
_RPN_HEAD = {
    'forward_train': ('BaseDenseHead', 'loss(cls_scores, bbox_preds, gt, ignored, metas, batch_hw)'),
    'forward_single': ('RPNHead', 'forward(feats)'),
    'loss_single': ('AnchorHead', 'loss(cls_scores, bbox_preds, gt, ignored, metas, batch_hw)'),
    'get_targets': ('AnchorHead', 'targets(anchors, inside, gt, ignored)'),
    '_get_targets_single': ('AnchorHead', 'targets(anchors, inside, gt, ignored)'),
    'get_anchors': ('AnchorHead', 'anchors(cls_scores)'),
    'get_bboxes': ('BaseDenseHead', 'predict(cls_scores, bbox_preds, metas, settings)'),
    '_get_bboxes_single': ('RPNHead', 'predict(cls_scores, bbox_preds, metas, settings)'),
    '_get_bboxes': ('RPNHead', 'predict(cls_scores, bbox_preds, metas, settings)'),
    '_bbox_post_process': ('RPNHead', 'predict_padded'),
    '_init_layers': ('RPNHead', '_build_layers(in_channels, feat_channels, num_convs)'),
    'simple_test': ('BaseDenseHead', 'predict(cls_scores, bbox_preds, metas, settings)'),
    'simple_test_rpn': ('RPNTestMixin', 'predict(cls_scores, bbox_preds, metas, settings)'),
    'aug_test': ('BaseDenseHead', 'predict(cls_scores, bbox_preds, metas, settings)'),
    'aug_test_rpn': ('RPNTestMixin', 'predict(cls_scores, bbox_preds, metas, settings)'),
    'async_simple_test_rpn': ('RPNTestMixin', 'predict(cls_scores, bbox_preds, metas, settings)'),
    'onnx_export': ('RPNHead', 'predict_padded')}
_EXTRACTOR = {
    'build_roi_layers': ('BaseRoIExtractor', '__init__, which sets roi_layers'),
    'roi_rescale': ('BaseRoIExtractor', 'forward(feats, rois, roi_scale_factor)')}
_BACKBONE = {
    'make_stage_plugins': ('ResNet', 'plugins=, a keyword'),
    'make_res_layer': ('ResNet', '_make_stages(in_channels, depths)'),
    '_make_stem_layer': ('ResNet', '_make_stem(in_channels, channels)')}
_ANCHORS = {
    'gen_base_anchors': ('AnchorGenerator', '_base_anchors(level)'),
    'gen_single_level_base_anchors': ('AnchorGenerator', '_base_anchors(level)'),
    'single_level_grid_priors': ('AnchorGenerator', 'grid_priors(featmap_sizes, dtype, device)'),
    'single_level_grid_anchors': ('AnchorGenerator', 'grid_priors(featmap_sizes, dtype, device)'),
    'single_level_valid_flags': ('AnchorGenerator', 'valid_flags(featmap_sizes, pad_shape, device)'),
    'sparse_priors': ('AnchorGenerator', 'grid_priors(featmap_sizes, dtype, device)')}
_DATASET = {
    '_set_group_flag': ('CustomDataset', 'flag, an attribute'),
    '_rand_another': ('CustomDataset', '__getitem__(index)'),
    'prepare_train_img': ('CustomDataset', '__getitem__(index)'),
    'prepare_test_img': ('CustomDataset', '__getitem__(index)'),
    'pre_pipeline': ('CustomDataset', '__getitem__(index)'),
    '_filter_imgs': ('CustomDataset', 'filter_empty_gt=False, and load_annotations(ann_file)')}
_COCO = {
    '_parse_ann_info': ('CocoDataset', 'get_ann_info(index)'),
    '_proposal2json': ('CocoDataset', 'evaluate(results, ...), or an evaluator of your own in EVALUATORS'),
    '_det2json': ('CocoDataset', 'evaluate(results, ...), or an evaluator of your own in EVALUATORS'),
    '_segm2json': ('CocoDataset', 'evaluate(results, ...), or an evaluator of your own in EVALUATORS'),
    'results2json': ('CocoDataset', 'format_results(results, ...)'),
    'fast_eval_recall': ('CocoDataset', 'evaluate(results, ...), or an evaluator of your own in EVALUATORS'),
    'evaluate_det_segm': ('CocoDataset', 'evaluate(results, ...), or an evaluator of your own in EVALUATORS')}
_LOADING = {
    '_load_bboxes': ('LoadAnnotations', '_load_boxes(results)'),
    '_load_labels': ('LoadAnnotations', '__call__(results)'),
    '_poly2mask': ('LoadAnnotations', '_load_masks(results), which returns the masks'),
    'process_polygons': ('LoadAnnotations', '_load_masks(results), which returns the masks'),
    '_load_semantic_seg': ('LoadAnnotations', '_load_semantic_map(results)')}
_RESIZE = {
    '_random_scale': ('Resize', '_draw_scale()'), 'random_select': ('Resize', '_draw_scale()'),
    'random_sample': ('Resize', '_draw_scale()'), 'random_sample_ratio': ('Resize', '_draw_scale()'),
    '_resize_img': ('Resize', '__call__(results)'), '_resize_bboxes': ('Resize', '__call__(results)'),
    '_resize_masks': ('Resize', '__call__(results)'), '_resize_seg': ('Resize', '__call__(results)')}
_CALL = '__call__(results)'

# By the name of boxdet's class that a user's derives from: the method, its class in mmdetection 2.x, what to override.
TABLE: Mapping[str, Mapping[str, tuple[str, str]]] = MappingProxyType({
    '_Detector': _DETECTOR, 'StandardRoIHead': _ROI_HEAD, 'CascadeRoIHead': _ROI_HEAD, 'BBoxHead': _BOX_HEAD,
    'FCNMaskHead': _MASK_HEAD, 'RPNHead': _RPN_HEAD, 'SingleRoIExtractor': _EXTRACTOR,
    'GenericRoIExtractor': _EXTRACTOR, 'ResNet': _BACKBONE, 'AnchorGenerator': _ANCHORS,
    'MaxIoUAssigner': {'assign_wrt_overlaps': ('MaxIoUAssigner', 'assign(bboxes, gt_bboxes, ...)')},
    'RandomSampler': {'_sample_pos': ('RandomSampler', 'choose_positives(inds, wanted, ...)'),
                      '_sample_neg': ('RandomSampler', 'choose_negatives(inds, wanted, ...)'),
                      'random_choice': ('RandomSampler', 'choose_positives and choose_negatives')},
    'CustomDataset': _DATASET, 'CocoDataset': _COCO, 'LoadAnnotations': _LOADING, 'Resize': _RESIZE,
    'RandomFlip': {'bbox_flip': ('RandomFlip', _CALL)},
    'Pad': {'_pad_img': ('Pad', _CALL), '_pad_masks': ('Pad', _CALL), '_pad_seg': ('Pad', _CALL)},
    'RandomCrop': {'_crop_data': ('RandomCrop', _CALL), '_get_crop_size': ('RandomCrop', '_draw_size(height, width)')},
    'Mosaic': {'_mosaic_transform': ('Mosaic', _CALL), '_mosaic_combine': ('Mosaic', _CALL),
               '_filter_box_candidates': ('Mosaic', _CALL), 'get_indexes': ('Mosaic', _CALL)},
    'MixUp': {'_mixup_transform': ('MixUp', _CALL), '_filter_box_candidates': ('MixUp', _CALL),
              'get_indexes': ('MixUp', _CALL)},
    'CopyPaste': {'_select_object': ('CopyPaste', _CALL), '_copy_paste': ('CopyPaste', _CALL),
                  'get_updated_masks': ('CopyPaste', _CALL), 'get_indexes': ('CopyPaste', _CALL)},
    'RandomAffine': {'filter_gt_bboxes': ('RandomAffine', '_kept(scale, hw, before, after)'),
                     '_get_rotation_matrix': ('RandomAffine', _CALL), '_get_scaling_matrix': ('RandomAffine', _CALL),
                     '_get_shear_matrix': ('RandomAffine', _CALL), '_get_translation_matrix': ('RandomAffine', _CALL)},
    'Albu': {'albu_builder': ('Albu', _CALL), 'mapper': ('Albu', _CALL)}})

# Further methods of 2.28.2's classes that boxdet's class of that name does without; it says which it has itself.
_FURTHER: Mapping[str, str] = MappingProxyType({
    'AnchorGenerator': '_meshgrid', 'BrightnessTransform': '_adjust_brightness_img',
    'CascadeRPNHead': 'get_bboxes forward_train simple_test_rpn aug_test_rpn',
    'CityscapesDataset': 'results2txt _evaluate_cityscapes', 'ClassBalancedDataset': '_get_repeat_factors',
    'CocoDataset': 'xyxy2xywh', 'ColorTransform': '_adjust_color_img', 'ContrastTransform': '_adjust_contrast_img',
    'CopyPaste': 'gen_masks_from_bboxes get_gt_masks', 'DefaultFormatBundle': '_add_default_meta_keys',
    'DetectoRS_ResNet': 'rfp_forward', 'DoubleConvFCBBoxHead': '_add_conv_branch _add_fc_branch',
    'EqualizeTransform': '_imequalize', 'FPG': 'build_trans fuse', 'FPN_CARAFE': 'slice_as tensor_add',
    'GridHead': 'calc_sub_regions get_targets get_bboxes', 'GridRoIHead': '_random_jitter',
    'HRNet': '_make_transition_layer _make_layer _make_stage', 'HybridTaskCascade': 'with_semantic',
    'HybridTaskCascadeRoIHead': '_mask_forward_test', 'InstaBoost': '_load_anns _parse_anns',
    'IoUBalancedNegSampler': 'sample_via_interval',
    'MMDetWandbHook': '_after_train_iter _update_wandb_config _log_ckpt_as_artifact _get_eval_results '
                      '_init_data_table _init_pred_table _add_ground_truth _log_predictions _get_wandb_bboxes '
                      '_get_wandb_masks _log_data_table _log_eval_table',
    'MaskIoUHead': 'get_targets _get_area_ratio get_mask_scores',
    'MaskPointHead': 'get_targets _get_target_single get_roi_rel_points_train get_roi_rel_points_test',
    'MobileNetV2': 'make_layer _freeze_stages', 'MultiImageMixDataset': 'update_skip_type_keys',
    'NumClassCheckHook': '_check_head', 'OHEMSampler': 'hard_mining',
    'OpenImagesDataset': 'get_classes_from_csv get_meta_from_file get_meta_from_pipeline get_img_shape '
                         'get_relation_matrix _convert_hierarchy_tree add_supercategory_ann process_results '
                         'load_image_label_from_csv get_image_level_ann denormalize_gt_bboxes',
    'PointRendRoIHead': 'init_point_head _mask_point_forward_train _get_fine_grained_point_feats '
                        '_mask_point_forward_test _onnx_get_fine_grained_point_feats _mask_point_onnx_export',
    'PseudoSampler': '_sample_pos _sample_neg', 'RandomAffine': '_get_share_matrix',
    'RegNet': 'generate_regnet quantize_float adjust_width_group get_stages_from_blocks', 'RegionAssigner': 'assign',
    'Rotate': '_rotate_img _rotate_bboxes _rotate_masks _rotate_seg _filter_invalid',
    'SABLHead': '_add_fc_branch cls_forward attention_pool side_aware_feature_extractor reg_pred side_aware_split '
                'bbox_pred_split reg_forward bucket_target _bucket_target_single',
    'SCNetBBoxHead': '_forward_shared _forward_cls_reg',
    'SCNetRoIHead': 'with_feat_relay with_glbctx _fuse_glbctx _slice_pos_feats', 'SeesawLoss': '_split_cls_score',
    'Shear': '_shear_img _shear_bboxes _shear_masks _shear_seg _filter_invalid',
    'StageCascadeRPNHead': '_region_targets_single region_targets anchor_offset refine_bboxes',
    'SwinTransformer': '_freeze_stages',
    'Translate': '_translate_img _translate_bboxes _translate_masks _translate_seg _filter_invalid',
    'TridentRoIHead': 'merge_trident_bboxes'})

_allowed = False     # what the config that was read last says
_told: set[type] = set()


def allow(value: bool) -> None:
    """Whether idle overrides of heads and detectors are warnings: ``allow_idle_overrides`` of a config."""
    global _allowed
    _allowed = bool(value)


def idle_overrides(cls: type) -> dict[str, tuple[str, str]]:
    """The methods of ``cls`` that nothing calls, each with 2.x's class and with what to override in its place."""
    if not isinstance(cls, type):
        return {}
    ours = [base for base in cls.__mro__ if base.__module__.startswith('boxdet.')]
    if not ours or ours[0] is cls:
        return {}
    # What a user's class has before the first of ours; a method that one of ours defines is called, or calls it.
    theirs = {name for owner in cls.__mro__[:cls.__mro__.index(ours[0])] for name in vars(owner)}
    heard = {name for owner in ours for name in vars(owner)}
    heard -= {name for owner in ours for name in vars(owner).get('unheard', ())}  # it has them for its callers only
    found: dict[str, tuple[str, str]] = {}
    for base in ours:
        for name, row in (*TABLE.get(base.__name__, {}).items(), *_further(base)):
            if name in theirs and name not in heard:
                found.setdefault(name, row)
    return {name: row for name, row in found.items() if not _calls(cls, ours[0], name, found)}


def _further(base: type) -> list[tuple[str, tuple[str, str]]]:
    """The rows of ``_FURTHER`` for a class of ours; what to override is one of its own methods."""
    names = _FURTHER.get(base.__name__, '').split()
    own = [name for name, value in vars(base).items() if callable(value) and not name.startswith('__')] if names else []
    return [(name, (base.__name__, f"one of {', '.join([*own, '__call__'])}")) for name in names]


def _calls(cls: type, ours: type, name: str, idle: Mapping[str, object]) -> bool:
    """Whether a method of the user's that is called itself reads an attribute ``name``."""
    own = {method: value for owner in cls.__mro__[:cls.__mro__.index(ours)] for method, value in vars(owner).items()}
    return any(name in value.__code__.co_names for method, value in own.items()
               if method not in idle and isinstance(value, FunctionType))


def check(cls: type, is_error: bool) -> None:
    """Tell what ``cls`` overrides and nobody calls, before it is built.

    Args:
        cls: a registered class.
        is_error: of models: a training that leaves the method out is lost. A warning otherwise, once a class.

    Raises:
        ConfigError: there is such a method, ``is_error``, and the config does not say ``allow_idle_overrides=True``.
    """
    if cls in _told:
        return
    found = idle_overrides(cls)
    if not found:
        _told.add(cls)
        return
    rows = '; '.join(f"{name} (mmdetection 2.x's {owner}): override {ours}" for name, (owner, ours) in found.items())
    line = (f'{cls.__name__} overrides what boxdet never calls: {rows}. Classes that import mmdet run as they are '
            'through boxdet.compat (docs/migrating.md)')
    if is_error and not _allowed:
        raise ConfigError(f'{line}; allow_idle_overrides=True in the config makes this a warning')
    _told.add(cls)
    warnings.warn(line, stacklevel=3)
