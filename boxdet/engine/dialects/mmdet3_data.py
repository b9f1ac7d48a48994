"""mmdetection 3.x's dataloaders, data sets and evaluators: 2.x's ``data`` and ``evaluation``."""
from __future__ import annotations

import os.path
from collections.abc import Mapping
from typing import Any

from boxdet.engine.dialects.mmdet3_pipeline import Loaded, Preprocessing, test_pipeline, train_pipeline
from boxdet.engine.dialects.piece import Context, Idle, Only, Piece, Section, Table, same

_DISK = dict(backend_args=Only(None, dict(backend='local'), advice='boxdet reads files from the disk'),
             file_client_args=Only(None, dict(backend='disk'), advice='boxdet reads files from the disk'))
_WRAPPERS = ('RepeatDataset', 'ClassBalancedDataset', 'ConcatDataset', 'MultiImageMixDataset')


# --- data sets ---

def _joined(name: str):
    """A path under ``data_root``, as 3.x joins them."""
    def rule(section: Section, key: str) -> dict[str, Piece]:
        return {name: section.made(_under_root(section, section.get(key)), key)} if section.get(key) else {}
    return rule


def _under_root(section: Section, path: str) -> str:
    root = section.get('data_root') or ''
    return path if not root or os.path.isabs(path) or '://' in path else os.path.join(root, path)


_PREFIXES = dict(img='img_prefix', img_path='img_prefix', sub_data_root='img_prefix', seg='seg_prefix',
                 seg_map_path='seg_prefix')


def _data_prefix(section: Section, key: str) -> dict[str, Piece]:
    found, prefixes = {}, section.inside(key)
    for name, value in prefixes.value.items():
        if name not in _PREFIXES:
            prefixes.fail(name, f"boxdet's data sets have folders of {', '.join(dict.fromkeys(_PREFIXES))}")
        found[_PREFIXES[name]] = prefixes.made(_under_root(section, value or ''), name)
    return found


def _metainfo(section: Section, key: str) -> dict[str, Piece]:
    info = section.get(key)
    if isinstance(info, str):
        section.fail(key, 'a file of names is given as metainfo=dict(classes=FILE)')
    info = info or {}
    name = next((name for name in ('classes', 'CLASSES') if name in info), None)
    inside = section.inside(key) if info else section
    for other in info:
        if other not in ('classes', 'CLASSES', 'palette', 'PALETTE'):
            inside.note(other, 'nothing in boxdet reads this part of metainfo')
    if name is None:
        return {}
    value = info[name]
    if isinstance(value, str) and not os.path.isfile(value):
        inside.fail(name, f"'{value}' is a text: a comma makes a list of one class of it, ('{value}',)")
    return dict(classes=inside.piece(name))


def _filter_cfg(section: Section, key: str) -> dict[str, Piece]:
    """What is left out of the training: 3.x leaves nothing out unless it is told to, 2.x does by itself."""
    if section.get('test_mode'):
        return {}
    options = section.get(key) or {}
    inside = section.inside(key) if options else section
    found = {}
    for name in options:
        if name not in ('filter_empty_gt', 'min_size', 'bbox_min_size'):
            inside.fail(name, 'boxdet leaves images out by filter_empty_gt and min_size')
    if not options.get('filter_empty_gt', False):
        found['filter_empty_gt'] = inside.made(False, 'filter_empty_gt')
    if options.get('bbox_min_size'):  # of VOC's files, whose 2.x name is min_size
        found['min_size'] = inside.made(options['bbox_min_size'], 'bbox_min_size')
    elif options.get('min_size', 0) != 32:
        found['min_size'] = inside.made(options.get('min_size', 0), 'min_size')
    return found


DATASET: Table = {
    **_DISK, 'ann_file': _joined('ann_file'), 'proposal_file': _joined('proposal_file'),
    'data_root': Idle('is part of the paths'), 'data_prefix': _data_prefix, 'metainfo': _metainfo,
    'filter_cfg': Idle('see _filter_cfg, which also speaks where it is absent'),
    'test_mode': Idle('val and test are opened so'), 'pipeline': Idle('see _dataset'),
    'seg_map_suffix': 'seg_suffix', **same('ann_subdir', 'img_subdir', 'get_supercategory', 'get_parent_class'),
    **{name: _joined(name) for name in ('label_file', 'hierarchy_file', 'meta_file', 'image_level_ann_file')},
    'img_suffix': Only('jpg', '.jpg', advice='the files of the annotations name their images'),
    'indices': Only(None, advice='make an annotation file of these images'),
    'serialize_data': Idle('annotations are kept packed'), 'lazy_init': Only(False, advice='data sets open at once'),
    'max_refetch': Idle("on_error='skip' takes another image"),
    'return_classes': Only(False, advice='samples carry no texts')}
# Wrappers keep their names and keywords; what 3.x has beyond them.
_WRAPPER: Table = {**same('times', 'oversample_thr', 'filter_empty_gt', 'skip_type_keys', 'max_refetch'),
                   'dataset': Idle('see _dataset'), 'datasets': Idle('see _dataset'), 'pipeline': Idle('see _dataset'),
                   'ignore_keys': Idle('metainfo is compared by its classes'),
                   'lazy_init': Only(False, advice='data sets open at once'),
                   'verify_meta': Idle('classes are compared')}


class Datasets:
    """The data sets of one config.

    Args:
        preprocessing: of its model.
    """

    def __init__(self, context: Context, preprocessing: Preprocessing):
        self.context, self.preprocessing = context, preprocessing

    def translate(self, section: Section, training: bool, loaded: Loaded | None = None, packs: bool = True) -> Piece:
        """A data set's config in 2.x's form.

        Args:
            section: 3.x's.
            training: it is trained on; else it is tested.
            loaded: what is in the samples, see ``Loaded``.
            packs: its pipeline ends with the packing.
        """
        loaded, kind = loaded or Loaded(), section.kind
        known = section.value.keys() <= DATASET.keys() | {'type'} or not isinstance(kind, str)
        if kind in _WRAPPERS:
            found = section.read(_WRAPPER)
            mixes = kind == 'MultiImageMixDataset'
            if 'dataset' in section.value:
                found['dataset'] = self.translate(section.inside('dataset'), training, loaded, packs and not mixes)
            if 'datasets' in section.value:
                parts = [self.translate(one, training, loaded, packs) for one in section.sections('datasets')]
                found['datasets'] = Piece.sequence(parts, (*section.key, 'datasets'))
                if not training:  # 3.x's evaluator knows one annotation file
                    found['separate_eval'] = section.made(False)
        else:
            found = section.read(DATASET, others=not known)
            if 'img_prefix' not in found and section.get('data_root'):
                found['img_prefix'] = section.made(section.get('data_root'), 'data_root')
            if training:
                found.update(_filter_cfg(section, 'filter_cfg'))
        if section.get('pipeline') is not None:
            found['pipeline'] = self._pipeline(section, training, loaded, packs)
        return Piece.mapping({**({'type': section.made(kind, 'type')} if 'type' in section.value else {}), **found},
                             section.key)

    def _pipeline(self, section: Section, training: bool, loaded: Loaded, packs: bool) -> Piece:
        transforms, key = section.get('pipeline'), (*section.key, 'pipeline')
        if training:
            found = train_pipeline(transforms, key, self.context, self.preprocessing, loaded, packs)
            return _with_shares(found) if str(section.kind).startswith('OpenImages') else found
        return test_pipeline(transforms, key, self.context, self.preprocessing)


def _with_shares(pipeline: Piece) -> Piece:
    """OpenImages' boxes are shares of the image: 3.x's data set makes pixels of them, in 2.x LoadAnnotations does."""
    steps = [{**step, 'denorm_bbox': True} if step['type'] == 'LoadAnnotations' else step for step in pipeline.value]
    return Piece(steps, pipeline.origins)


# --- loaders ---

def _sampler(section: Section, key: str) -> dict[str, Piece]:
    sampler = section.inside(key)
    if sampler.kind in ('DefaultSampler', 'InfiniteSampler'):
        sampler.read(dict(shuffle=Idle('training shuffles'), seed=Only(None, advice="'randomness' holds the seed"),
                          round_up=Only(True, advice='ranks get as many images each')))
        if section.key[0] == 'train_dataloader' and not sampler.get('shuffle', True):
            return dict(shuffle=sampler.piece('shuffle'))
        return {}
    if sampler.kind == 'ClassAwareSampler':
        found = sampler.read(dict(num_sample_class='num_sample_class', seed=Only(None)))
        return dict(class_aware_sampler=Piece.mapping(found, sampler.key))
    sampler.fail('type', f"boxdet's loaders shuffle (DefaultSampler, InfiniteSampler) or draw classes evenly "
                         f"(ClassAwareSampler); they know no {sampler.get('type')}")


LOADER: Table = {
    'batch_size': 'samples_per_gpu', 'num_workers': 'workers_per_gpu', **same(
        'persistent_workers', 'pin_memory', 'prefetch_factor', 'drop_last', 'timeout', 'multiprocessing_context'),
    'dataset': Idle('becomes data.train, data.val, data.test'), 'sampler': _sampler,
    'batch_sampler': Only(None, dict(type='AspectRatioBatchSampler'), dict(type='mmdet.AspectRatioBatchSampler'),
                          dict(type='AspectRatioBatchSampler', drop_last=False),
                          advice='training batches hold images of one aspect: AspectRatioBatchSampler'),
    'collate_fn': Only(None, dict(type='pseudo_collate'), advice="boxdet's batches are put together by itself"),
    'worker_init_fn': Only(None, advice='workers are seeded by the samples'),
    'num_batch_per_epoch': Only(None, advice='an epoch is every image once'),
    'batch_sampler_cfg': Only(None)}
# What 2.x's ``data`` has once for all splits, by the training's loader.
_SHARED = ('samples_per_gpu', 'workers_per_gpu', 'persistent_workers', 'pin_memory')
_USUAL = dict(samples_per_gpu=1, shuffle=False, drop_last=False)  # of the loaders of val and test


def data(values: Mapping[str, Any], context: Context, datasets: Datasets) -> Piece | None:
    """``train_dataloader``, ``val_dataloader`` and ``test_dataloader`` as ``data``; None where there are none."""
    found: dict[str, Piece] = {}
    for split in ('train', 'val', 'test'):
        name = f'{split}_dataloader'
        if values.get(name) is None:
            continue
        section = Section(values[name], (name,), context)
        options = section.read(LOADER)
        if split == 'train':
            if section.get('batch_sampler') is None:
                options['group_by_aspect'] = section.made(False, 'batch_sampler')
            found.update({key: options.pop(key) for key in _SHARED if key in options})
            options = {k: v for k, v in options.items() if (k, v.value) != ('drop_last', False)}
        else:
            shared = {**_USUAL, **{key: found[key].value for key in _SHARED[1:] if key in found}}
            options = {k: v for k, v in options.items() if k not in shared or shared[k] != v.value}
        if options:
            found[name] = Piece.mapping(options, section.key)
        if section.get('dataset') is not None:
            found[split] = datasets.translate(section.inside('dataset'), training=split == 'train')
    return Piece.mapping(found) if found else None


# --- evaluators ---



def _iou_thrs(section: Section, key: str) -> dict[str, Piece]:
    return {} if section.get(key) is None else {'iou_thr': section.piece(key)}


_COMMON: Table = {
    **_DISK, 'ann_file': Idle('the data set has the annotations; see _check_ann_file'),
    'format_only': Idle('see evaluation'),
    'collect_device': Idle('results travel on the CPU'), 'collect_dir': Idle('results travel on the CPU'),
    'prefix': Only(None, 'coco', advice="metrics have 2.x's names")}
EVALUATORS: Mapping[str, Table] = {
    'CocoMetric': {**_COMMON, **same('metric', 'classwise', 'proposal_nums', 'iou_thrs', 'metric_items'),
                   'outfile_prefix': 'jsonfile_prefix', 'sort_categories': Idle('labels are told apart by the names of '
                   'the classes'), 'use_mp_eval': Idle('evaluation uses all cores'),
                   'eval_mode': Idle("VOC's; CocoMetric of 3.x takes and ignores it")},
    'LVISMetric': {**_COMMON, **same('metric', 'classwise', 'proposal_nums', 'iou_thrs'),
                   'metric_items': Only(None, advice='LVIS has one set of items'),
                   'outfile_prefix': 'jsonfile_prefix'},
    'VOCMetric': {**_COMMON, 'metric': 'metric', 'iou_thrs': _iou_thrs, **same('scale_ranges', 'proposal_nums'),
                  'eval_mode': Idle('11points for VOC2007, area for VOC2012: VOCDataset(year=…)')},
    'CityScapesMetric': {**_COMMON, 'seg_prefix': Idle('found beside leftImg8bit'), **same('outfile_prefix'),
                         'dump_matches': Only(False, advice='matches are not written'),
                         'file_client_args': Only(None)},
    'OpenImagesMetric': {**_COMMON, 'iou_thrs': 'iou_thr', 'ioa_thrs': 'ioa_thr', **same('use_group_of'),
                         'get_supercategory': Idle("the data set's"), 'filter_labels': Only(True)}}


_METRICS = dict(CityScapesMetric=['cityscapes'], OpenImagesMetric='mAP')  # of evaluators that have one only


def evaluation(name: str, values: Mapping[str, Any], context: Context, data_of: Piece | None) -> dict[str, Piece]:
    """``val_evaluator`` or ``test_evaluator`` as the keys of ``evaluation``.

    'format_only' is among them where 3.x only writes files.

    Args:
        name: of the section.
        values: the config.
        context: of the config.
        data_of: the data set that is evaluated, translated.

    Raises:
        ConfigError: a metric that boxdet has not.
    """
    section = Section(values[name], (name,), context) if isinstance(values[name], Mapping) else None
    if section is not None and section.kind == 'Evaluator':
        metrics = section.sections('metrics')
    else:
        metrics = Section(values, (), context).sections(name)
    found: dict[str, Piece] = {}
    for one in metrics:
        if one.kind not in EVALUATORS:
            known = "its --out writes all results" if str(one.kind).startswith('Dump') else \
                f"boxdet has {', '.join(EVALUATORS)}"
            one.fail('type', f"no evaluation by '{one.get('type')}': {known}; --cfg-options {name}=None leaves it out")
        _check_ann_file(one, data_of)
        if one.kind == 'VOCMetric':
            _check_rule(one, data_of)
        options = one.read(EVALUATORS[one.kind])
        if one.kind in _METRICS:
            options['metric'] = one.made(_METRICS[one.kind], 'type')
        if one.get('format_only'):
            options['format_only'] = one.piece('format_only')
        found = _together(found, options)
    return found


def _together(found: dict[str, Piece], more: dict[str, Piece]) -> dict[str, Piece]:
    """The options of two metrics of one evaluation."""
    if 'metric' in found and 'metric' in more:
        lists = [[one['metric'].value] if isinstance(one['metric'].value, str) else list(one['metric'].value)
                 for one in (found, more)]
        more = {**more, 'metric': Piece(list(dict.fromkeys(lists[0] + lists[1])), more['metric'].origins)}
    return {**found, **more}


def _check_rule(metric: Section, data_of: Piece | None) -> None:
    """The area under VOC's curve follows the data set's year here, and ``eval_mode`` in 3.x."""
    dataset = data_of.value if data_of is not None else {}
    year = 2007 if metric.get('eval_mode', '11points') == '11points' else 2012
    paths = f"{dataset.get('ann_file')} {dataset.get('img_prefix')}"
    if 'VOC2007' in paths and year == 2012 or 'VOC2012' in paths and 'VOC2007' not in paths and year == 2007:
        metric.note('eval_mode' if 'eval_mode' in metric.value else 'type', 'boxdet measures by the rule of the data '
                    f"set's year; data.val.year={year} (and data.test.year) gives that of 3.x")


def _check_ann_file(metric: Section, data_of: Piece | None) -> None:
    """3.x's evaluator opens annotations of its own: a file left behind from the base config is found here."""
    ours = data_of.value.get('ann_file') if data_of is not None else None
    theirs = metric.get('ann_file')
    if isinstance(theirs, str) and isinstance(ours, str) and os.path.normpath(theirs) != os.path.normpath(ours):
        metric.note('ann_file', f'the data set that is evaluated has {ours}, which is what boxdet evaluates on')


