"""mmdetection 3.x's transforms, and its data preprocessor, as mmdetection 2.x's pipelines.

3.x normalises and pads the batch in the model (``data_preprocessor``), 2.x each image in the pipeline: both stand where
3.x packs the sample. A test pipeline of 2.x has its views inside ``MultiScaleFlipAug``.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from boxdet.engine.dialects.piece import Context, Idle, Key, Only, Piece, Rule, Section, Table, same

_DISK = dict(backend_args=Only(None, dict(backend='local'), advice='boxdet reads files from the disk'),
             file_client_args=Only(None, dict(backend='disk'), advice='boxdet reads files from the disk'))


def _swapped(name: str) -> Rule:
    """3.x counts (width, height), 2.x (height, width)."""
    def rule(section: Section, key: str) -> dict[str, Piece]:
        value = section.get(key)
        pair = isinstance(value, (list, tuple)) and len(value) == 2
        return {name: section.made(type(value)(value[::-1]) if pair else value, key)}
    return rule


def _scale(section: Section, key: str) -> dict[str, Piece]:
    value = section.get(key)
    return {'img_scale': section.made((value, value) if isinstance(value, int) else value, key)}


def _label_fields(section: Section, key: str) -> dict[str, Piece]:
    """Albu's: 3.x's names of the labels are 2.x's ``gt_labels``; flags of ignored boxes are no field in 2.x."""
    value = dict(section.get(key) or {})
    if 'label_fields' in value:
        value['label_fields'] = ['gt_labels' if name == 'gt_bboxes_labels' else name for name in value['label_fields']
                                 if name != 'gt_ignore_flags']
    return {key: section.made(value, key)}



_RESIZE: Table = dict(keep_ratio='keep_ratio', clip_object_border='bbox_clip_border', interpolation='interpolation',
                      backend='backend')

# 3.x's type -> (2.x's type, its keys, what 3.x's defaults are where 2.x's are others). Types that are in no table stay
# as they are with all their keys: they are the user's own, or called alike.
TRANSFORMS: Mapping[str, tuple[str, Table, Mapping[str, Any]]] = {
    'LoadImageFromFile': ('LoadImageFromFile', dict(
        _DISK, **same('to_float32', 'color_type'), imdecode_backend=Only('cv2', advice='boxdet decodes by OpenCV'),
        ignore_empty=Only(False, advice="data sets take on_error='skip' for images that cannot be read")), {}),
    'LoadAnnotations': ('LoadAnnotations', dict(
        _DISK, **same('with_bbox', 'with_label', 'with_mask', 'with_seg', 'poly2mask', 'with_keypoints'),
        box_type=Only('hbox', advice='boxes are horizontal'), imdecode_backend=Idle('of class maps only'),
        reduce_zero_label=Only(False, advice='class maps are read as they are'),
        ignore_index=Only(255, advice='255 marks what counts for no class')), {}),
    'LoadProposals': ('LoadProposals', same('num_max_proposals'), {}),
    'Resize': ('Resize', dict(_RESIZE, scale=_scale), dict(keep_ratio=False)),
    'RandomFlip': ('RandomFlip', dict(prob='flip_ratio', direction='direction'), {}),
    'RandomCrop': ('RandomCrop', dict(same('crop_type', 'allow_negative_crop', 'recompute_bbox', 'bbox_clip_border'),
                                      crop_size='crop_size'), {}),
    'Pad': ('Pad', dict(same('size_divisor', 'pad_to_square', 'pad_val'), size=_swapped('size'),
                        padding_mode=Only('constant', advice='boxdet fills up with one value')), {}),
    'Normalize': ('Normalize', same('mean', 'std', 'to_rgb'), {}),
    'Expand': ('Expand', same('mean', 'to_rgb', 'ratio_range', 'seg_ignore_label', 'prob'), {}),
    'MinIoURandomCrop': ('MinIoURandomCrop', same('min_ious', 'min_crop_size', 'bbox_clip_border'), {}),
    'PhotoMetricDistortion': ('PhotoMetricDistortion', same(
        'brightness_delta', 'contrast_range', 'saturation_range', 'hue_delta'), {}),
    'FilterAnnotations': ('FilterAnnotations', same(
        'min_gt_bbox_wh', 'min_gt_mask_area', 'by_box', 'by_mask', 'keep_empty'), {}),
    'Albu': ('Albu', dict(same('transforms', 'keymap', 'skip_img_without_anno'), bbox_params=_label_fields), {}),
    'InstaBoost': ('InstaBoost', same('action_candidate', 'action_prob', 'scale', 'dx', 'dy', 'theta', 'color_prob',
                                      'hflag', 'aug_ratio'), {}),
    'CopyPaste': ('CopyPaste', dict(same('max_num_pasted', 'bbox_occluded_thr', 'mask_occluded_thr', 'selected'),
                                    paste_by_box=Only(False, advice='objects are pasted by their masks')), {}),
    'Corrupt': ('Corrupt', same('corruption', 'severity'), {}),
    'CutOut': ('CutOut', same('n_holes', 'cutout_shape', 'cutout_ratio', 'fill_in'), {}),
    'YOLOXHSVRandomAug': ('YOLOXHSVRandomAug', same('hue_delta', 'saturation_delta', 'value_delta'), {}),
    'Mosaic': ('Mosaic', dict(same('center_ratio_range', 'bbox_clip_border', 'pad_val', 'prob'),
                              img_scale=_swapped('img_scale')), {}),
    'MixUp': ('MixUp', dict(same('ratio_range', 'flip_ratio', 'pad_val', 'max_iters', 'bbox_clip_border'),
                            img_scale=_swapped('img_scale')), {}),
    'RandomAffine': ('RandomAffine', dict(
        same('max_rotate_degree', 'max_translate_ratio', 'scaling_ratio_range', 'max_shear_degree', 'border_val',
             'bbox_clip_border'), border=_swapped('border')), {}),
}
# Transforms of 3.x that 2.x has not, or has under the same name with other keywords and other numbers.
_OTHERWISE = ('Rotate', 'ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'RandAugment', 'AutoAugment', 'Color',
                    'Brightness', 'Contrast', 'Sharpness', 'Solarize', 'SolarizeAdd', 'Posterize', 'Equalize',
                    'AutoContrast', 'Invert', 'RandomShift', 'RandomErasing', 'GeomTransform', 'ColorTransform',
                    'FixShapeResize', 'RandomOrder', 'MultiBranch', 'TransformBroadcaster', 'CachedMosaic',
                    'CachedMixUp', 'LoadPanopticAnnotations')

PREPROCESSORS = ('DetDataPreprocessor', 'ImgDataPreprocessor', 'BaseDataPreprocessor')
# Keys of a data preprocessor that ``Preprocessing`` reads, and the others.
PREPROCESSOR: Table = {
    **dict.fromkeys(('mean', 'std', 'bgr_to_rgb', 'pad_size_divisor', 'batch_augments'),
                    Idle('stand in the pipelines as Normalize and Pad')),
    'rgb_to_bgr': Only(False, advice='images are read as BGR'),
    'pad_value': Only(0, advice='batches are filled up with 0'),
    'pad_mask': Idle('masks always have the size of the padded image'),
    'mask_pad_value': Only(0, advice='masks are filled up with 0'),
    'pad_seg': Idle('class maps always have the size of the padded image'),
    'seg_pad_value': Only(255, advice='class maps are filled up with 255'),
    'boxtype2tensor': Idle('boxes are tensors'), 'non_blocking': Idle('batches travel without waiting'),
    'use_det_processor': Idle('there is one way')}
_BATCH_PAD: Table = dict(size='size', pad_mask=Idle('see pad_mask'), pad_seg=Idle('see pad_seg'),
                         img_pad_value=Only(0, advice='batches are filled up with 0'),
                         mask_pad_value=Only(0, advice='masks are filled up with 0'),
                         seg_pad_value=Only(255, advice='class maps are filled up with 255'))


class Preprocessing:
    """``model.data_preprocessor``: what stands before the packing of a pipeline.

    Args:
        section: the preprocessor, None for a config without a model.
        semantic_head: ``model.roi_head.semantic_head``, which in 3.x makes the class maps smaller itself.
    """

    def __init__(self, section: Section | None, semantic_head: Section | None = None):
        self.section, self.semantic_head = section, semantic_head
        if section is None:
            return
        if section.kind not in (*PREPROCESSORS, None):
            section.fail('type', f"'{section.get('type')}' is no data preprocessor that boxdet could translate; it "
                                 f"reads {', '.join(PREPROCESSORS)}")
        section.read(PREPROCESSOR)

    def class_maps(self) -> list[Piece]:
        """SegRescale, for a training with class maps."""
        head = self.semantic_head
        if head is None:
            return []
        factor = head.made(head.get('seg_scale_factor', 1 / 8), 'seg_scale_factor')
        return [Piece.mapping(dict(type=head.made('SegRescale'), scale_factor=factor), head.key)]

    def transforms(self, training: bool) -> list[Piece]:
        """Normalize and Pad, in 2.x's form."""
        section = self.section
        if section is None:
            return []
        mean, std = section.get('mean') or [0., 0., 0.], section.get('std') or [1., 1., 1.]
        parts = [Piece.mapping(dict(type=section.made('Normalize'), mean=section.made(mean, 'mean'),
                                    std=section.made(std, 'std'),
                                    to_rgb=section.made(bool(section.get('bgr_to_rgb', False)), 'bgr_to_rgb')),
                               section.key)]
        fixed = [one for one in section.sections('batch_augments') if training]
        for one in fixed:
            if one.kind != 'BatchFixedSizePad':
                one.fail('type', f"'{one.get('type')}' changes whole batches in the model, which boxdet does image by "
                                 'image: put RandomChoiceResize into the pipeline instead')
            parts.append(_typed('Pad', one, one.read(_BATCH_PAD)))
        if not fixed:
            divisor = section.made(section.get('pad_size_divisor', 1), 'pad_size_divisor')
            parts.append(Piece.mapping(dict(type=section.made('Pad'), size_divisor=divisor), section.key))
        return parts


@dataclass
class Loaded:
    """What the transforms so far have put into a sample."""
    boxes: bool = False
    labels: bool = False
    masks: bool = False
    seg: bool = False
    keypoints: bool = False
    proposals: bool = False

    def note(self, section: Section) -> None:
        """Take in a transform that loads."""
        if section.kind == 'LoadProposals':
            self.proposals = True
        elif section.kind == 'LoadAnnotations':
            self.boxes, self.labels = section.get('with_bbox', True), section.get('with_label', True)
            self.masks, self.seg = section.get('with_mask', False), section.get('with_seg', False)
            self.keypoints = section.get('with_keypoints', False)

    def keys(self) -> list[str]:
        """What Collect takes in training."""
        chosen = [('proposals', self.proposals), ('gt_bboxes', self.boxes), ('gt_labels', self.labels),
                  ('gt_masks', self.masks), ('gt_semantic_seg', self.seg), ('gt_keypoints', self.keypoints)]
        return ['img', *(name for name, there in chosen if there)]


_NO_PACKING = ('no PackDetInputs in this pipeline: normalisation, padding and the choice of keys stand in its place in '
               'boxdet')


def train_pipeline(transforms: Sequence[Any], key: Key, context: Context, preprocessing: Preprocessing,
                   loaded: Loaded, packs: bool = True) -> Piece:
    """A training pipeline in 2.x's form.

    Args:
        transforms: 3.x's.
        key: where they stand.
        context: of the config.
        preprocessing: what the model does to a batch in 3.x.
        loaded: what the data set inside a mixing one has loaded already; it is brought up to date.
        packs: the pipeline ends in PackDetInputs; one whose images are mixed later does not.

    Raises:
        ConfigError: a transform that has no counterpart, or nothing packs the sample.
    """
    parts: list[Piece] = []
    for section in _flat(transforms, key, context):
        if section.kind in ('PackDetInputs', 'PackInputs'):
            parts += [*preprocessing.transforms(training=True), *(preprocessing.class_maps() if loaded.seg else []),
                      *_bundle(section, loaded)]
            packs = False
        else:
            loaded.note(section)
            parts.append(transform(section))
    if packs:
        context.fail(key, _NO_PACKING)
    return Piece.sequence(_resized_again(parts)[0], key)


def _resized_again(parts: Sequence[Piece], resized: bool = False) -> tuple[list[Piece], bool]:
    """The transforms with ``override=True`` for each Resize after another, which 2.x takes for a mistake otherwise."""
    found = []
    for part in parts:
        kind = part.value.get('type')
        if kind == 'Resize' and resized:
            part = Piece({**part.value, 'override': True}, part.origins)
        if kind == 'AutoAugment':
            branches = [_resized_again([Piece(one) for one in branch], resized) for branch in part.value['policies']]
            policies = [[one.value for one in ones] for ones, _ in branches]
            part = Piece({**part.value, 'policies': policies}, part.origins)
            resized = resized or any(ended for _, ended in branches)
        resized = resized or kind == 'Resize'
        found.append(part)
    return found, resized


def test_pipeline(transforms: Sequence[Any], key: Key, context: Context, preprocessing: Preprocessing) -> Piece:
    """A test pipeline in 2.x's form: what follows the first Resize works inside MultiScaleFlipAug.

    Ground truth that it loads is left out: evaluation reads the data set's.
    """
    outside: list[Piece] = []
    inside: list[Piece] | None = None
    view: dict[str, Piece] = {}
    loaded = Loaded()
    for section in _flat(transforms, key, context):
        if section.kind == 'LoadAnnotations':
            continue
        loaded.note(section)
        if section.kind == 'TestTimeAug':
            view, inside, pack = _views(section)
            return _test_end(outside, view, inside, pack, preprocessing, loaded, key)
        if section.kind in ('PackDetInputs', 'PackInputs'):
            return _test_end(outside, view, inside, section, preprocessing, loaded, key)
        if inside is None and section.kind == 'Resize':
            view, inside = _view_of_resize(section)
        else:
            (outside if inside is None else inside).append(transform(section))
    context.fail(key, _NO_PACKING)


def transform(section: Section) -> Piece:
    """One transform in 2.x's form; a type that no table knows is left as it is."""
    kind = section.kind
    if kind in ('RandomResize', 'RandomChoiceResize'):
        return _random_resize(section)
    if kind == 'RandomChoice':
        return _choice(section)
    if kind in _OTHERWISE:
        section.fail('type', f"3.x's {kind} has no counterpart among boxdet's transforms")
    if kind not in TRANSFORMS:
        return Piece.mapping({name: section.piece(name) for name in section.value}, section.key)
    name, table, defaults = TRANSFORMS[kind]
    if kind == 'Resize' and section.get('scale_factor') is not None:
        section.fail('scale_factor', "a training's Resize takes a scale; RandomResize(scale=…, ratio_range=(f, f)) "
                                     'multiplies one')
    found = section.read({**table, 'scale_factor': Only(None)} if kind == 'Resize' else table)
    for key, value in defaults.items():
        found.setdefault(key, section.made(value))
    if kind == 'RandomCrop' and section.get('crop_type', 'absolute') in ('absolute', 'relative'):
        found['crop_size'] = _swapped('crop_size')(section, 'crop_size')['crop_size']
    return _typed(name, section, found)


def _typed(name: str, section: Section, parts: Mapping[str, Piece]) -> Piece:
    return Piece.mapping({'type': section.made(name, 'type'), **parts}, section.key)


def _flat(transforms: Sequence[Any], key: Key, context: Context) -> list[Section]:
    """The transforms; those inside ProposalBroadcaster one by one, as 2.x's work on proposals too."""
    found = []
    for i, one in enumerate(transforms):
        section = Section(one, (*key, i), context)
        found += section.sections('transforms') if section.kind == 'ProposalBroadcaster' else [section]
    return found


def _bundle(pack: Section, loaded: Loaded) -> list[Piece]:
    return [Piece.mapping(dict(type=pack.made('DefaultFormatBundle')), pack.key),
            Piece.mapping(dict(type=pack.made('Collect'), keys=pack.made(loaded.keys()), **_meta_keys(pack)), pack.key)]


# What 3.x's packing names that boxdet's metas hold anyway.
_METAS = ('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor', 'flip', 'flip_direction', 'pad_shape',
          'homography_matrix', 'sample_idx', 'img', 'batch_input_shape', 'instances', 'image_level_labels')
_META_KEYS_2X = ('filename', 'ori_filename', 'ori_shape', 'img_shape', 'pad_shape', 'scale_factor', 'flip',
                 'flip_direction', 'img_norm_cfg')


def _meta_keys(pack: Section) -> dict[str, Piece]:
    """Keys of a sample that a user's own code reads are asked for; the usual ones are there anyway."""
    own = [name for name in pack.get('meta_keys') or () if name not in _METAS]
    return dict(meta_keys=pack.made((*_META_KEYS_2X, *own), 'meta_keys')) if own else {}


def _random_resize(section: Section) -> Piece:
    """RandomResize (a scale between two, or one times a ratio) and RandomChoiceResize (one of several)."""
    choice = section.kind == 'RandomChoiceResize'
    inner = section.get('resize_kwargs') or {}
    if inner:
        section = Section({**{k: v for k, v in section.value.items() if k != 'resize_kwargs'}, **inner}, section.key,
                          section.context)
    table: Table = {**_RESIZE, 'resize_type': Only('Resize', 'mmdet.Resize', advice='Resize is what boxdet resizes by'),
                    'ratio_range': 'ratio_range', ('scales' if choice else 'scale'): _scale}
    found = section.read(table)
    found.setdefault('keep_ratio', section.made(False))
    scale = found.get('img_scale')
    if scale is None:
        section.fail(None, f"{section.kind} needs '{'scales' if choice else 'scale'}'")
    several = bool(scale.value) and isinstance(scale.value[0], (list, tuple))
    if choice and not several:
        found['img_scale'] = section.made([(side, side) for side in scale.value], 'scales')
    if choice:
        found['multiscale_mode'] = section.made('value', 'type')
    elif several:
        found['multiscale_mode'] = section.made('range', 'type')
    if section.get('ratio_range') is None:
        found.pop('ratio_range', None)
    return _typed('Resize', section, found)


def _choice(section: Section) -> Piece:
    """RandomChoice: one of several pipelines, each as likely, is 2.x's AutoAugment."""
    if section.get('prob') is not None:
        section.fail('prob', 'every one of the pipelines is as likely as the others in boxdet; take the key out, or '
                             'list a pipeline several times')
    branches = []
    for i, branch in enumerate(section.get('transforms') or ()):
        key = (*section.key, 'transforms', i)
        ones = [branch] if isinstance(branch, Mapping) else branch
        branches.append(Piece.sequence([transform(one) for one in _flat(ones, key, section.context)], key))
    section.read(dict(transforms=Idle('read above'), prob=Only(None)))
    return _typed('AutoAugment', section, dict(policies=Piece.sequence(branches, (*section.key, 'transforms'))))


def _view_of_resize(section: Section) -> tuple[dict[str, Piece], list[Piece]]:
    """The keys of MultiScaleFlipAug that a Resize of a test pipeline means, and the Resize inside."""
    table: Table = {**_RESIZE, 'scale': _scale, 'scale_factor': 'scale_factor'}
    found = section.read(table)
    view: dict[str, Piece] = {name: found.pop(name) for name in ('img_scale', 'scale_factor') if name in found}
    if 'img_scale' in view and view['img_scale'].value is None:
        del view['img_scale']
    if view.get('scale_factor') is not None and view['scale_factor'].value is None:
        del view['scale_factor']
    if len(view) != 1:
        section.fail(None, "a Resize of a test pipeline has either 'scale' or 'scale_factor'")
    found.setdefault('keep_ratio', section.made(False))
    return view, [_typed('Resize', section, found)]


def _test_end(outside: list[Piece], view: dict[str, Piece], inside: list[Piece] | None, pack: Section,
              preprocessing: Preprocessing, loaded: Loaded, key: Key) -> Piece:
    """The whole test pipeline: what comes first, and its views."""
    if inside is None:  # images go in as large as they are
        view = dict(scale_factor=pack.made(1.0))
        inside = [Piece.mapping(dict(type=pack.made('Resize'), keep_ratio=pack.made(True)), pack.key)]
    if not any(part.value['type'] == 'RandomFlip' for part in inside):
        inside.append(Piece.mapping(dict(type=pack.made('RandomFlip')), pack.key))
    tail = [Piece.mapping(dict(type=pack.made('DefaultFormatBundle')), pack.key)]
    if loaded.proposals:
        tail += [Piece.mapping(dict(type=pack.made('ToTensor'), keys=pack.made(['proposals'])), pack.key),
                 Piece.mapping(dict(type=pack.made('ToDataContainer'), fields=pack.made(
                     [dict(key='proposals', stack=False)])), pack.key)]
    keys = ['img', 'proposals'] if loaded.proposals else ['img']
    tail.append(Piece.mapping(dict(type=pack.made('Collect'), keys=pack.made(keys), **_meta_keys(pack)), pack.key))
    view.setdefault('flip', pack.made(False))
    steps = Piece.sequence([*inside, *preprocessing.transforms(training=False), *tail], key)
    views = Piece.mapping(dict(type=pack.made('MultiScaleFlipAug'), **view, transforms=steps), key)
    return Piece.sequence([*outside, views], key)


def _views(section: Section) -> tuple[dict[str, Piece], list[Piece], Section]:
    """TestTimeAug: its lists of alternatives as the scales and flips of MultiScaleFlipAug."""
    view: dict[str, Piece] = {}
    inside: list[Piece] = []
    pack = None
    for i, alternatives in enumerate(section.get('transforms') or ()):
        key = (*section.key, 'transforms', i)
        ones = _flat([alternatives] if isinstance(alternatives, Mapping) else alternatives, key, section.context)
        kinds = {one.kind for one in ones}
        if kinds == {'Resize'}:
            found = [_view_of_resize(one) for one in ones]
            name = next(iter(found[0][0]))
            if any(name not in one or steps[0].value != found[0][1][0].value for one, steps in found):
                section.context.fail(key, "the Resizes of one test-time augmentation differ in their scales only")
            view[name] = Piece.sequence([one[name] for one, _ in found], key)
            inside += found[0][1]
        elif kinds == {'RandomFlip'}:
            view.update(_flips(ones, key))
            inside.append(Piece.mapping(dict(type=ones[0].made('RandomFlip')), key))
        elif kinds <= {'PackDetInputs', 'PackInputs'} and len(ones) == 1:
            pack = ones[0]
        elif kinds != {'LoadAnnotations'}:
            if len(ones) > 1:
                section.context.fail(key, "boxdet's views differ in scale and flip, not in "
                                          f"{', '.join(map(str, kinds))}")
            inside.append(transform(ones[0]))
    if pack is None:
        section.fail('transforms', 'no PackDetInputs among them')
    section.read(dict(transforms=Idle('read above')))
    if not any(part.value['type'] == 'Resize' for part in inside):
        view['scale_factor'] = pack.made(1.0)
        inside.insert(0, Piece.mapping(dict(type=pack.made('Resize'), keep_ratio=pack.made(True)), pack.key))
    return view, inside, pack


def _flips(ones: list[Section], key: Key) -> dict[str, Piece]:
    """2.x's ``flip`` and ``flip_direction`` of RandomFlip(prob=1), RandomFlip(prob=0) in a row."""
    directions = []
    for one in ones:
        prob = one.get('prob', 1.)
        if prob not in (0, 1):
            one.fail('prob', f'a view is flipped or not: 1 or 0, not {prob!r}')
        if prob:
            directions.append(one.get('direction', 'horizontal'))
    if not directions:
        return {}
    found = dict(flip=Piece(True, (((), key),)))
    if directions != ['horizontal']:
        found['flip_direction'] = Piece(directions, (((), key),))
    return found


