"""Cityscapes' instance metrics and result files, and COCO's metrics on the same data: ``CityscapesEvaluator``.

| metric                              | keys                                                                          |
|-------------------------------------|-------------------------------------------------------------------------------|
| 'cityscapes'                        | ``mAP`` (over IoU 0.50:0.95), ``AP@50``; ``classwise``:                       |
|                                     | ``cityscapes_NAME_precision``                                                 |
| 'bbox', 'segm', 'proposal[_fast]'   | COCO's, see boxdet/evaluation/coco_metrics.py                                 |

The average precision is cityscapesscripts' own. Its matching reads one PNG a detection and looks at the whole image
for each pair; the same pixel counts are taken here from the run-length codes, within each mask's extent, so that
nothing is written to be read again. Letters: H, W the image; h, w the extent of one mask; D different instance ids.
"""
from __future__ import annotations

import contextlib
import copy
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType

import numpy as np

from boxdet.datasets.cityscapes import LABEL_IDS
from boxdet.datasets.contracts import AnnotatedInCityscapes
from boxdet.datasets.files import decode_image, encode_png, read_bytes
from boxdet.errors import ConfigError, DataError, nearest
from boxdet.evaluation.coco_metrics import CocoEvaluator
from boxdet.evaluation.evaluator import Evaluator, Logger, Metrics
from boxdet.files.writing import write_whole
from boxdet.registry import EVALUATORS
from boxdet.structures.instances import Instances
from boxdet.visualization.mask_windows import rle_window

_FIRST_INSTANCE = 1000  # an instance id is 1000 * label + number; a smaller one is the label of a group


@EVALUATORS.register_module()
class CityscapesEvaluator(Evaluator[AnnotatedInCityscapes]):
    """Cityscapes' and COCO's numbers, by the keys above, of a CityscapesDataset.

    The ground truth of 'cityscapes' are the ``*_gtFine_instanceIds.png`` of the data set's folder ``seg_prefix``, or of
    ``img_prefix`` with gtFine in the place of leftImg8bit.

    Args:
        metric: of ``METRICS``.
        outfile_prefix: also write the predictions: the folder of 'cityscapes' (see ``format_results``), the prefix of
            COCO's JSON files.
        classwise: also a table and keys for each class.
        proposal_nums: as CocoEvaluator.
        iou_thrs: as CocoEvaluator.
        metric_items: as CocoEvaluator.
        max_dets: as CocoEvaluator.
        area_ranges: as CocoEvaluator.

    Raises:
        ConfigError: unknown metric or item.
    """
    METRICS = (*CocoEvaluator.METRICS, 'cityscapes')
    NEEDS = dict(CocoEvaluator.NEEDS, cityscapes='masks')
    FILES = 'txtfile_prefix'
    FILES_NEED = 'masks'

    def __init__(self, metric: str | Sequence[str] | None = None, outfile_prefix: str | None = None,
                 classwise: bool = False, proposal_nums: Sequence[int] = (100, 300, 1000),
                 iou_thrs: float | Sequence[float] | None = None, metric_items: str | Sequence[str] | None = None,
                 max_dets: int | None = None, area_ranges: Mapping[str, Sequence[float]] | None = None):
        super().__init__(metric)
        self.outfile_prefix, self.classwise = outfile_prefix, classwise
        others = [name for name in self.metrics if name != 'cityscapes']
        self._of_coco = None if not others else CocoEvaluator(
            others, outfile_prefix, classwise, proposal_nums, iou_thrs, metric_items, max_dets, area_ranges)

    def metric_names(self) -> list[str]:
        """The keys that ``evaluate`` gives, but those of single classes and texts."""
        return (['mAP', 'AP@50'] if 'cityscapes' in self.metrics else []) + (
            self._of_coco.metric_names() if self._of_coco else [])

    def check(self, dataset: AnnotatedInCityscapes) -> None:
        """Raise UserError when there is nothing to evaluate against, or cityscapesscripts is not installed."""
        CocoEvaluator(()).check(dataset)
        if 'cityscapes' in self.metrics:
            check_ground_truth(dataset)

    def check_files(self, dataset: AnnotatedInCityscapes) -> None:
        """Raise UserError for names that the files of Cityscapes' server cannot have."""
        _label_ids(dataset)
        _stems(dataset)

    def reset(self, dataset: AnnotatedInCityscapes, logger: Logger = None) -> None:
        """Begin with ``dataset``; forget what was processed before."""
        super().reset(dataset, logger)
        if self._of_coco:
            self._of_coco.reset(dataset, logger)

    def evaluate(self) -> Metrics:
        """As the class says.

        Raises:
            ConfigError: cityscapesscripts is not installed, a class that Cityscapes does not have.
            DataError: no ground truth for an image, results without masks or of another size.
        """
        values: Metrics = {}
        if 'cityscapes' in self.metrics:
            if self.outfile_prefix is not None:
                self.format_results(self.dataset, self.results, self.outfile_prefix)
            values.update(_cityscapes(self.dataset, self.results, self.say, self.classwise))
        if self._of_coco:
            self._of_coco.process(range(len(self.results)), self.results)
            values.update(self._of_coco.evaluate())
        return values

    # The signature is 2.x's CityscapesDataset.format_results.
    def format_results(self, dataset: AnnotatedInCityscapes, results: Sequence[Instances],  # type: ignore[override]
                       txtfile_prefix: str) -> dict[str, str]:
        """Write the files of Cityscapes' server: see the function of this name."""
        return format_results(dataset, results, txtfile_prefix)


# ---------------------------------------------------------------------------------------------- result files


def format_results(dataset: AnnotatedInCityscapes, results: Sequence[Instances], txtfile_prefix: str) -> dict[str, str]:
    """Write what Cityscapes' server takes into the folder ``txtfile_prefix``; needs no annotations.

    For each image ``STEM_pred.txt``, one line a detection: the mask's file, the label id and the score; and for each
    detection ``STEM_NUMBER_CLASS.png``, 8 bits a pixel, 255 within the mask and 0 elsewhere. One decoded mask a
    thread is in memory at a time.

    Returns:
        the folder by 'cityscapes'.

    Raises:
        ConfigError: a class that Cityscapes does not have. DataError: results without masks or of another size, two
            images of one name, or a folder that cannot be written.
    """
    folder = Path(txtfile_prefix)
    ids = _label_ids(dataset)
    stems = _stems(dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        # Packing a PNG leaves other threads free to run. One image at a time: the results may lie on disk.
        with ThreadPoolExecutor() as pool:
            for index, (stem, result) in enumerate(zip(stems, results)):
                _write_image(folder, stem, result, _masks(dataset, index, result), dataset.CLASSES, ids, pool)
    except OSError as error:
        raise DataError(f'cannot write {error.filename or folder}: {error.strerror or error}') from error
    return {'cityscapes': str(folder)}


def _write_image(folder: Path, stem: str, result: Instances, rles: Sequence[dict], names: Sequence[str],
                 ids: Sequence[int], pool: ThreadPoolExecutor) -> None:
    arrays = result.numpy()
    files = [f"{stem}_{number}_{names[label].replace(' ', '_')}.png"
             for number, label in enumerate(arrays['labels'].tolist())]
    list(pool.map(lambda file, rle: (folder / file).write_bytes(encode_png(_bitmap(rle))), files, rles))
    lines = [f'{file} {ids[label]} {score}\n' for file, label, score in zip(files, arrays['labels'], arrays['scores'])]
    # Last, so that a text file never names a mask that is not there.
    write_whole(folder / f'{stem}_pred.txt', lambda file: file.write(''.join(lines).encode()))


def _bitmap(rle: dict) -> np.ndarray:
    """(H, W) uint8, 255 within the mask."""
    bitmap = np.zeros(tuple(rle['size']), dtype=np.uint8)
    window = rle_window(rle)
    if window is not None:
        left, top, mask = window
        np.multiply(mask, 255, out=bitmap[top:top + mask.shape[0], left:left + mask.shape[1]])
    return bitmap


def _stems(dataset: AnnotatedInCityscapes) -> list[str]:
    """What each image's result files are called.

    Raises:
        DataError: names with spaces, or two images of one name.
    """
    stems = [Path(dataset.img_info(index)['filename']).stem for index in range(len(dataset))]
    for stem in stems:
        if ' ' in stem:
            raise DataError(f"image '{stem}': result files separate their columns by spaces, so no name may hold one")
    if len(set(stems)) < len(stems):
        twice = next(stem for stem in stems if stems.count(stem) > 1)
        raise DataError(f'two images are called {twice}: their result files would overwrite each other')
    return stems


def _label_ids(dataset: AnnotatedInCityscapes) -> list[int]:
    """Cityscapes' number of each class."""
    for name in dataset.CLASSES:
        if name not in LABEL_IDS:
            raise ConfigError(f"class '{name}' is none of Cityscapes' classes with instances ({', '.join(LABEL_IDS)})"
                              f'{nearest(name, LABEL_IDS)}')
    return [LABEL_IDS[name] for name in dataset.CLASSES]


def _masks(dataset: AnnotatedInCityscapes, index: int, result: Instances) -> Sequence[dict]:
    """The RLEs of a result, all of its image's size."""
    info = dataset.img_info(index)
    if 'masks' not in result:
        if len(result):
            raise DataError(f"{info['filename']}: the results hold no masks; Cityscapes' metric and files need a model "
                            'with a mask head')
        return ()
    rles = list(result.masks)
    for rle in rles:
        if info.get('height') and tuple(rle['size']) != (info['height'], info['width']):
            raise DataError(f"{info['filename']}: a predicted mask is {rle['size'][1]}x{rle['size'][0]}, the "
                            f"annotation file says {info['width']}x{info['height']}")
    return rles


# ---------------------------------------------------------------------------------------------- the metric


def _cityscapes(dataset: AnnotatedInCityscapes, results: Sequence[Instances], say: Callable[..., None],
                classwise: bool) -> dict[str, float]:
    scripts = _scripts()
    args = copy.copy(scripts.args)  # of the module: others may evaluate with it too
    args.instLabels, args.colorized, args.distanceAvailable = list(dataset.CLASSES), False, False
    _label_ids(dataset)
    void = [label.id for label in scripts.labels if label.ignoreInEval]
    matches = {}
    for index, (path, result) in enumerate(zip(_ground_truth_files(dataset), results)):
        matches[path] = _image_matches(path, _masks(dataset, index, result), result, args.instLabels, void)
    precisions = scripts.evaluateMatches(matches, args)  # (1, K, T), nan for classes without ground truth
    if np.isnan(precisions).all():
        raise DataError(f'{dataset.ann_file}: its images show no instance of {", ".join(dataset.CLASSES)} that '
                        'Cityscapes counts, so there is nothing to evaluate against')
    averages = scripts.computeAverages(precisions, args)
    table = io.StringIO()
    with contextlib.redirect_stdout(table):
        scripts.printResults(averages, args)
    say(f'cityscapes:\n{table.getvalue().strip()}')
    values = {'mAP': float(averages['allAp']), 'AP@50': float(averages['allAp50%'])}
    if classwise:
        values.update({f'cityscapes_{name}_precision': -1.0 if np.isnan(of['ap']) else float(of['ap'])
                       for name, of in averages['classes'].items()})
    return values


def _scripts() -> ModuleType:
    try:
        from cityscapesscripts.evaluation import evalInstanceLevelSemanticLabeling
    except ImportError as error:
        raise ConfigError("metric 'cityscapes' needs cityscapesscripts: pip install cityscapesscripts") from error
    return evalInstanceLevelSemanticLabeling


def check_ground_truth(dataset: AnnotatedInCityscapes) -> None:
    """Raise before the hours of inference what 'cityscapes' would find after them.

    Raises:
        ConfigError: as ``evaluate``. DataError: files of instance ids are missing.
    """
    _scripts()
    _label_ids(dataset)
    missing = [path for path in _ground_truth_files(dataset) if not os.path.isfile(path)]
    if missing:
        raise DataError(f"metric 'cityscapes': {len(missing)} of {len(dataset)} files of instance ids are missing, the "
                        f'first is {missing[0]}; seg_prefix names their folder')


def _ground_truth_files(dataset: AnnotatedInCityscapes) -> Iterator[str]:
    """The file of instance ids of each image."""
    folder: str | Path | None = dataset.seg_prefix
    if folder is None:
        parts = Path(dataset.img_prefix or '').parts
        if 'leftImg8bit' not in parts:
            raise ConfigError(f"metric 'cityscapes': img_prefix '{dataset.img_prefix}' has no folder leftImg8bit, "
                              'beside which gtFine would be; seg_prefix names the folder of the ground truth')
        at = len(parts) - 1 - parts[::-1].index('leftImg8bit')
        folder = Path(*parts[:at], 'gtFine', *parts[at + 1:])
    for index in range(len(dataset)):
        name = Path(dataset.img_info(index)['filename'])
        yield str(Path(folder, name.parent, name.stem.removesuffix('_leftImg8bit') + '_gtFine_instanceIds.png'))


def _image_matches(path: str, rles: Sequence[dict], result: Instances, names: Sequence[str],
                   void: Sequence[int]) -> dict[str, dict[str, list[dict]]]:
    """Ground truth and detections of an image with the pixels they share, as ``evaluateMatches`` reads them."""
    truth = decode_image(read_bytes(path), path, 'unchanged')
    if truth.ndim != 2:
        raise DataError(f'{path}: an image of instance ids has one channel, not {truth.shape[2]}')
    counts = np.bincount(truth.ravel())
    present = np.flatnonzero(counts)                                        # (D,)
    place = np.zeros(len(counts), dtype=np.intp)
    place[present] = np.arange(len(present))
    of_label = np.where(present < _FIRST_INSTANCE, present, present // _FIRST_INSTANCE)
    is_void = np.isin(present, void)
    gt: dict[str, list[dict]] = {name: [
        dict(instID=int(present[d]), pixelCount=int(counts[present[d]]), medDist=-1, distConf=0.0, matchedPred=[])
        for d in np.flatnonzero(of_label == LABEL_IDS[name])] for name in names}
    predictions: dict[str, list[dict]] = {name: [] for name in names}
    arrays = result.numpy()
    for rle, label, score in zip(rles, arrays['labels'].tolist(), arrays['scores'].tolist()):
        if tuple(rle['size']) != truth.shape:
            raise DataError(f"{path}: {truth.shape[1]}x{truth.shape[0]} pixels, a predicted mask of this image has "
                            f"{rle['size'][1]}x{rle['size'][0]}")
        window = rle_window(rle)
        if window is None:  # an empty mask is no detection
            continue
        left, top, mask = window
        under = truth[top:top + mask.shape[0], left:left + mask.shape[1]][mask.view(bool)]
        shared = np.bincount(place[under], minlength=len(present))          # (D,)
        prediction = dict(pixelCount=len(under), voidIntersection=int(shared[is_void].sum()), confidence=score)
        overlapping = []
        for instance in gt[names[label]]:
            pixels = int(shared[place[instance['instID']]])
            if pixels:
                overlapping.append({**instance, 'intersection': pixels})
                instance['matchedPred'].append({**prediction, 'intersection': pixels})
        predictions[names[label]].append({**prediction, 'matchedGt': overlapping})
    return dict(groundTruth=gt, prediction=predictions)
