"""Keys and types that mmdetection 1.x had, and how 2.x writes them: told where one of them is refused."""
from __future__ import annotations

import re

_ROI_HEAD = "in model.roi_head=dict(type='StandardRoIHead', …) ('CascadeRoIHead' for a cascade)"
_CODER = "bbox_coder=dict(type='DeltaXYWHBBoxCoder', target_means=…, target_stds=…)"
_ANCHORS = "anchor_generator=dict(type='AnchorGenerator', scales=…, ratios=…, strides=…)"
_TRANSFORM = "{} of data.*.pipeline"

# Pattern of a dotted path -> what 2.x has in its place.
FORMS = {re.compile(path): form for path, form in {
    r'data\.imgs_per_gpu': 'data.samples_per_gpu',
    r'model\.((bbox|mask)_(head|roi_extractor)|shared_head|num_stages|stage_loss_weights|(semantic|mask_iou)_.*)':
        f'the same {_ROI_HEAD}',
    r'model\..*\.target_(means|stds)': _CODER,
    r'model\..*\.anchor_(scales|ratios|strides|base_sizes)': _ANCHORS,
    r'model\..*\.(octave_base_scale|scales_per_octave)': _ANCHORS,
    r'model\..*\.use_sigmoid_cls': "loss_cls=dict(type='CrossEntropyLoss', use_sigmoid=True)",
    r'model\..*\.smoothl1_beta': "loss_bbox=dict(type='SmoothL1Loss', beta=…) of the head",
    r'model\..*\.roi_layer\.out_size': 'output_size',
    r'model\..*\.roi_layer\.sample_num': 'sampling_ratio',
    r'model\..*\.dcn\.(modulated|deformable_groups|groups)':
        "dict(type='DCN', deform_groups=…), 'DCNv2' where modulated",
    r'model\..*\.(gcb|stage_with_gcb|gen_attention|stage_with_gen_attention)': 'plugins=[dict(cfg=…, stages=…)]',
    r'model\..*\.(activation|activate)': "act_cfg=dict(type='ReLU'), or None",
    r'model\..*\.normalize': "norm_cfg=dict(type='BN')",
    r'model\.test_cfg\.keep_all_stages|test_cfg\.keep_all_stages': 'nothing in its place: take it out',
    r'data\.\w+\.(img_scale|multiscale_mode|resize_keep_ratio)': _TRANSFORM.format('Resize'),
    r'data\.\w+\.img_norm_cfg': _TRANSFORM.format('Normalize'),
    r'data\.\w+\.size_divisor': _TRANSFORM.format('Pad'),
    r'data\.\w+\.flip_ratio': _TRANSFORM.format('RandomFlip'),
    r'data\.\w+\.with_(mask|label|crowd|semantic_seg)': _TRANSFORM.format('LoadAnnotations'),
    r'data\.\w+\.(extra_aug|num_max_proposals)': 'transforms of data.*.pipeline',
    r'optimizer_config\.(max_norm|norm_type)': 'optimizer_config.grad_clip=dict(max_norm=…, norm_type=…)',
}.items()}
TYPES = {'SharedFCBBoxHead': "'Shared2FCBBoxHead' (num_fcs is in its name)"}


def form_of_2x(path: str) -> str:
    """``'; mmdetection 2.x has … in its place'`` for the dotted path of a key that 1.x had, else ``''``."""
    form = next((form for pattern, form in FORMS.items() if pattern.fullmatch(path)), '')
    return f"; mmdetection 1.x's: 2.x has {form}" if form else ''


def type_of_2x(kind: str) -> str:
    """As ``form_of_2x``, for the name of a class."""
    return f"; mmdetection 1.x's: 2.x has {TYPES[kind]}" if kind in TYPES else ''
