#!/usr/bin/env python
"""Draw the shapes data set: a small COCO-format data set of its own making, for the demo, the tests and the benchmarks.

Needs numpy, OpenCV and pycocotools only, so that it runs before boxdet is installed.

What is in it
    Textured circles, squares, triangles, stars, rings and stickmen, stretched, turned, small and large, partly hidden
    behind each other and cut by the border, on noisy backgrounds among bars, crosses, letters and scribbles that
    belong to no class. An object's mask holds the pixels that can be seen, not what lies behind another object.

    OUT/annotations/instances_{train,val}.json, OUT/train/*.jpg, OUT/val/*.jpg

    - masks: polygons (several where an object is cut in two), RLE where the mask has a hole or the traced polygon
      would be inexact; `bbox` and `area` are those of the decoded mask;
    - crowds: swarms of small shapes under one annotation with iscrowd=1 and an uncompressed RLE, as COCO has them;
    - some images without any object;
    - stickmen have keypoints (v=2 seen, v=1 hidden behind another object, v=0 outside the image).

Letters in comments: H, W image height and width; S the supersampling factor; shapes are drawn at (S*H, S*W).
"""
import argparse
import contextlib
import functools
import json
import math
import multiprocessing
import os
import shutil
import sys
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np
from pycocotools import mask as coco_mask

CLASSES = ('circle', 'square', 'triangle', 'star', 'ring', 'stickman')
KEYPOINTS = ('head', 'neck', 'hip', 'left_elbow', 'right_elbow', 'left_hand', 'right_hand',
             'left_knee', 'right_knee', 'left_foot', 'right_foot')
# Bones between keypoints, counted from 1 as COCO counts them.
SKELETON = ((1, 2), (2, 3), (2, 4), (4, 6), (2, 5), (5, 7), (3, 8), (8, 10), (3, 9), (9, 11))

GENERATOR = 1          # raise it when the same settings give other images: existing folders are then drawn again
SUPERSAMPLING = 4
SMALLEST, LARGEST = 0.11, 0.60      # diameter of an object as a share of the image's longer side
LEAST_VISIBLE = 0.70                # share of an object that must stay visible
EMPTY_SHARE, CROWD_SHARE = 0.05, 0.08
JPEG_QUALITY = 95


@dataclass
class Shape:
    """One object: what was drawn, and what can be seen of it.

    Attributes:
        label: index into CLASSES.
        full: (S*H, S*W) bool, the object as if nothing lay on it, cut by the border.
        visible: (S*H, S*W) bool, `full` without what later objects cover.
        keypoints: (J, 2) float in image pixels for a stickman, else None.
        is_crowd: a swarm under one annotation.
    """
    label: int
    full: np.ndarray
    visible: np.ndarray = field(default=None)
    keypoints: np.ndarray = None
    is_crowd: bool = False

    def __post_init__(self):
        self.visible = self.full.copy() if self.visible is None else self.visible


# ---------------------------------------------------------------------------------------------- outlines


def unit_outline(name, rng):
    """Closed polygons of a shape of radius 1 around the origin: list of (P, 2); the second one is a hole."""
    if name in ('circle', 'ring'):
        angles = np.linspace(0, 2 * np.pi, 64, endpoint=False)
        circle = np.stack([np.cos(angles), np.sin(angles)], axis=1)
        return [circle] if name == 'circle' else [circle, circle * rng.uniform(0.35, 0.55)]
    if name == 'star':
        angles = np.linspace(0, 2 * np.pi, 10, endpoint=False)
        radii = np.where(np.arange(10) % 2 == 0, 1.0, rng.uniform(0.48, 0.56))
        return [np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)]
    corners = {'square': 4, 'triangle': 3}[name]
    angles = np.linspace(0, 2 * np.pi, corners, endpoint=False)
    return [np.stack([np.cos(angles), np.sin(angles)], axis=1)]


def stickman_keypoints(rng):
    """(J, 2) keypoints of a standing figure of height 2 around the origin, y down, in the order of KEYPOINTS.

    It faces the viewer: its left side is on the right of the image.
    """
    def limb(start, length, angle):         # angle from straight down, towards +x
        return start + length * np.array([math.sin(angle), math.cos(angle)])

    head, neck, hip = np.array([0, -0.72]), np.array([0, -0.40]), np.array([0, 0.18])
    points = {'head': head, 'neck': neck, 'hip': hip}
    for side, sign in (('left', 1), ('right', -1)):
        arm = rng.uniform(0.5, 2.2)
        points[f'{side}_elbow'] = limb(neck, 0.36, sign * arm)
        points[f'{side}_hand'] = limb(points[f'{side}_elbow'], 0.34, sign * (arm + rng.uniform(-0.5, 0.5)))
        leg = rng.uniform(0.2, 0.75)
        points[f'{side}_knee'] = limb(hip, 0.40, sign * leg)
        points[f'{side}_foot'] = limb(points[f'{side}_knee'], 0.38, sign * (leg - rng.uniform(0.0, 0.35)))
    return np.stack([points[name] for name in KEYPOINTS])


def random_pose(name, radius, rng):
    """2x2 matrix that turns, stretches and scales a unit shape; a stickman stays nearly upright."""
    turn = rng.uniform(-0.35, 0.35) if name == 'stickman' else rng.uniform(0, 2 * np.pi)
    stretch = math.sqrt(rng.uniform(0.85, 1.18))
    rotation = np.array([[math.cos(turn), -math.sin(turn)], [math.sin(turn), math.cos(turn)]])
    return rotation @ np.diag([radius * stretch, radius / stretch])


def draw_shape(name, center, radius, image_hw, rng):
    """A shape at `center` (x, y), in pixels -> Shape, cut by the border of the (H, W) image."""
    height, width = image_hw
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    pose = random_pose(name, radius, rng)
    keypoints = None
    if name == 'stickman':
        keypoints = stickman_keypoints(rng) @ pose.T + center
        draw_stickman(canvas, keypoints * SUPERSAMPLING, radius * SUPERSAMPLING)
    else:
        outline = [np.rint((polygon @ pose.T + center) * SUPERSAMPLING).astype(np.int32)
                   for polygon in unit_outline(name, rng)]
        cv2.fillPoly(canvas, outline, 1)          # even-odd: the second polygon becomes a hole
    return Shape(CLASSES.index(name), canvas.astype(bool), keypoints=keypoints)


def draw_stickman(canvas, keypoints, radius):
    """Fill a figure into `canvas` (S*H, S*W) from its `keypoints` (J, 2), both supersampled."""
    points = [tuple(int(round(v)) for v in keypoint) for keypoint in keypoints]
    for start, end in SKELETON:
        torso = (start, end) == (2, 3)
        thickness = max(1, int(round(radius * (0.50 if torso else 0.32))))
        cv2.line(canvas, points[start - 1], points[end - 1], 1, thickness)
    cv2.circle(canvas, points[0], max(1, int(round(radius * 0.32))), 1, -1)


# ---------------------------------------------------------------------------------------------- composition


def try_place(shapes, new):
    """Put `new` on top of `shapes`, unless it or one of them would be hidden too far. Returns whether it was put."""
    remaining = [shape.visible & ~new.full for shape in shapes]
    for shape, visible in zip(shapes, remaining):
        if np.count_nonzero(visible) < LEAST_VISIBLE * np.count_nonzero(shape.full):
            return False
    for shape, visible in zip(shapes, remaining):
        shape.visible = visible
    shapes.append(new)
    return True


def inside_share(shape, radius):
    """Rough share of a shape that lies inside the image: its drawn extent against its diameter."""
    _, _, width, height = cv2.boundingRect(shape.full.view(np.uint8))
    return min(width, height) / (2 * radius * SUPERSAMPLING)


def compose(image_hw, rng):
    """The shapes of one image, lowest first: list[Shape]."""
    height, width = image_hw
    side = max(height, width)
    shapes = []
    if rng.random() < EMPTY_SHARE:
        return shapes
    if rng.random() < CROWD_SHARE:
        shapes.append(draw_crowd(image_hw, rng))
    count = int(rng.integers(2, 9))
    diameters = side * np.exp(rng.uniform(math.log(SMALLEST), math.log(LARGEST), count))
    # The large ones mostly lie below, or the small ones would never be seen; the factor keeps exceptions.
    for diameter in sorted(diameters, key=lambda d: -d * rng.uniform(0.5, 1.5)):
        name = CLASSES[rng.integers(len(CLASSES))]
        radius = diameter / 2
        if name == 'stickman':
            radius = max(radius, 0.08 * side)          # limbs thinner than two pixels cannot be told apart
        for _ in range(12):
            center = rng.uniform((0, 0), (width, height))
            shape = draw_shape(name, center, radius, image_hw, rng)
            if inside_share(shape, radius) >= 0.7 and try_place(shapes, shape):
                break
    return shapes


def draw_crowd(image_hw, rng):
    """A swarm of 12 to 25 small shapes of one class -> one Shape, is_crowd."""
    height, width = image_hw
    side = max(height, width)
    name = CLASSES[rng.integers(len(CLASSES) - 1)]             # no swarm of stickmen: their keypoints would be lost
    middle = rng.uniform((0.2 * width, 0.2 * height), (0.8 * width, 0.8 * height))
    full = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), bool)
    for _ in range(int(rng.integers(12, 26))):
        center = middle + rng.normal(0, 0.1 * side, 2)
        full |= draw_shape(name, center, rng.uniform(0.03, 0.05) * side, image_hw, rng).full
    if not full.any():                                         # all fell outside: one in the middle is enough
        full = draw_shape(name, middle, 0.05 * side, image_hw, rng).full
    return Shape(CLASSES.index(name), full, is_crowd=True)


# ---------------------------------------------------------------------------------------------- painting


def random_colour(rng):
    """(3,) float BGR of any hue, not too dark."""
    hsv = np.array([[[rng.integers(180), rng.integers(60, 256), rng.integers(70, 256)]]], np.uint8)
    return cv2.cvtColor(hsv, cv2.COLOR_HSV2BGR)[0, 0].astype(np.float32)


def muted(colour):
    """A colour drawn most of the way to its own grey: the ground and the clutter are paler than the shapes."""
    return 0.35 * colour + 0.65 * colour.mean()


def texture(image_hw, first, second, rng):
    """(H, W, 3) float32: plain, striped, chequered, dotted or mottled in two colours, with light from one side."""
    height, width = image_hw
    y, x = np.mgrid[:height, :width].astype(np.float32)
    angle, period = rng.uniform(0, np.pi), rng.uniform(5, 14)
    along = (x * math.cos(angle) + y * math.sin(angle)) * (2 * math.pi / period)
    across = (-x * math.sin(angle) + y * math.cos(angle)) * (2 * math.pi / period)
    kind = rng.integers(5)
    if kind == 0:
        pattern = np.zeros_like(x)
    elif kind == 1:
        pattern = np.sin(along) * 3
    elif kind == 2:
        pattern = np.sin(along) * np.sin(across) * 6
    elif kind == 3:
        pattern = (np.cos(along) + np.cos(across) - 0.8) * 4
    else:
        pattern = noise_field(image_hw, 6, rng) * 3
    mix = np.clip(0.5 + 0.5 * pattern, 0, 1)[..., None] * (0.0 if kind == 0 else 1.0)
    light = 1 + rng.uniform(0.1, 0.3) * np.sin(along * period / (1.5 * max(image_hw)) + rng.uniform(0, 6))
    return (first * (1 - mix) + second * mix) * light[..., None]


def noise_field(image_hw, cell, rng):
    """(H, W) float32 smooth noise of deviation about 1 with bumps of about `cell` pixels."""
    height, width = image_hw
    coarse = rng.standard_normal((height // cell + 2, width // cell + 2)).astype(np.float32)
    return cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)


def paint_background(image_hw, rng):
    """(H, W, 3) float32: cloudy noise between three colours, and clutter that belongs to no class."""
    height, width = image_hw
    colours = [muted(random_colour(rng)) for _ in range(3)]
    clouds = [1 / (1 + np.exp(-2 * noise_field(image_hw, cell, rng)))[..., None]
              for cell in (max(image_hw) // 2, max(image_hw) // 5)]
    image = colours[0] * (1 - clouds[0]) + colours[1] * clouds[0]
    image = image * (1 - 0.5 * clouds[1]) + colours[2] * 0.5 * clouds[1]
    image += (noise_field(image_hw, 3, rng) * rng.uniform(2, 12))[..., None]
    for _ in range(int(rng.integers(3, 10))):
        alpha = clutter_coverage(image_hw, rng)
        x, y, across, down = cv2.boundingRect((alpha > 0).view(np.uint8))
        if not across:                      # a letter or scribble that fell outside
            continue
        window, alpha = image[y:y + down, x:x + across], alpha[y:y + down, x:x + across, None] * rng.uniform(0.4, 1.0)
        window += (texture((down, across), muted(random_colour(rng)), muted(random_colour(rng)), rng) - window) * alpha
    return image


def clutter_coverage(image_hw, rng):
    """(H, W) float32 in 0..1: a bar, a cross, a letter or a scribble."""
    height, width = image_hw
    side = max(image_hw)
    canvas = np.zeros((height * SUPERSAMPLING, width * SUPERSAMPLING), np.uint8)
    center = rng.uniform((0, 0), (width, height)) * SUPERSAMPLING
    length = rng.uniform(0.05, 0.3) * side * SUPERSAMPLING
    thickness = int(rng.uniform(0.008, 0.035) * side * SUPERSAMPLING) + 1
    kind = rng.integers(4)
    angle = rng.uniform(0, np.pi)
    step = length * np.array([math.cos(angle), math.sin(angle)])

    def stroke(start, end):
        cv2.line(canvas, [int(v) for v in start], [int(v) for v in end], 1, thickness)

    if kind == 0:
        stroke(center - step, center + step)
    elif kind == 1:
        side_step = np.array([-step[1], step[0]])
        stroke(center - step / 2, center + step / 2)
        stroke(center - side_step / 2, center + side_step / 2)
    elif kind == 2:
        letter = 'AEFHKLMNRSWXZ2345679'[rng.integers(20)]
        cv2.putText(canvas, letter, [int(v) for v in center], cv2.FONT_HERSHEY_SIMPLEX, length / 30, 1, thickness)
    else:
        walk = center + np.cumsum(rng.normal(0, length / 4, (8, 2)), axis=0)
        cv2.polylines(canvas, [walk.astype(np.int32)], False, 1, max(1, thickness // 2))
    return coverage(canvas)


def coverage(mask):
    """(S*H, S*W) bool, or uint8 of 0 and 1 -> (H, W) float32, the covered share of every pixel."""
    height, width = mask.shape[0] // SUPERSAMPLING, mask.shape[1] // SUPERSAMPLING
    mask = np.ascontiguousarray(mask).view(np.uint8) * np.uint8(240)         # 240 / 16 parts: no rounding up to S = 4
    return cv2.resize(mask, (width, height), interpolation=cv2.INTER_AREA) / np.float32(240)


def paint_shape(image, shape, rng):
    """Paint `shape` onto `image` (H, W, 3) float32, in place: shadow, texture, rim."""
    left, top, width, height = cv2.boundingRect(shape.full.view(np.uint8))
    # whole pixels around it, and room for the shadow
    y0, x0 = max(0, top // SUPERSAMPLING - 1), max(0, left // SUPERSAMPLING - 1)
    y1, x1 = (top + height) // SUPERSAMPLING + 12, (left + width) // SUPERSAMPLING + 10
    window = image[y0:y1, x0:x1]
    full = shape.full[y0 * SUPERSAMPLING:y1 * SUPERSAMPLING, x0 * SUPERSAMPLING:x1 * SUPERSAMPLING]
    alpha = coverage(full)[..., None]
    first = random_colour(rng)
    ground = (window * alpha).sum((0, 1)) / max(float(alpha.sum()), 1e-6)
    for _ in range(20):                     # an object in the colour of its ground would be a riddle, not a task
        if np.abs(first - ground).max() > 60:
            break
        first = random_colour(rng)
    second = np.clip(first + rng.uniform(-50, 50, 3), 0, 255).astype(np.float32)
    if rng.random() < 0.5:
        offset = np.float32([[1, 0, 2], [0, 1, 3]])
        shadow = cv2.warpAffine(cv2.GaussianBlur(alpha[..., 0], (0, 0), 2), offset, window.shape[1::-1])
        window *= 1 - 0.45 * shadow[..., None]
    fill = texture(window.shape[:2], first, second, rng)
    if rng.random() < 0.5:
        inner = cv2.erode(full.view(np.uint8), np.ones((3, 3), np.uint8), iterations=SUPERSAMPLING // 2)
        fill *= 0.55 + 0.45 * coverage(inner)[..., None]
    window += (fill - window) * alpha


def paint(shapes, image_hw, rng):
    """(H, W, 3) uint8 BGR image of the shapes, with sensor noise."""
    image = paint_background(image_hw, rng)
    for shape in shapes:
        paint_shape(image, shape, rng)
    if rng.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 0.8))
    image = image + rng.normal(0, rng.uniform(1, 6), image.shape)
    return np.clip(np.rint(image), 0, 255).astype(np.uint8)


# ---------------------------------------------------------------------------------------------- annotation


def outline_polygons(mask):
    """Polygons of a (S*H, S*W) mask in image pixels, each [x, y, x, y, ...]; None when the mask has a hole."""
    contours, hierarchy = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    if hierarchy is None or (hierarchy.reshape(-1, 4)[:, 3] >= 0).any():
        return None
    polygons = []
    for contour in contours:
        points = cv2.approxPolyDP(contour, 1.5, True).reshape(-1, 2)
        if len(points) < 3 or cv2.contourArea(points) < SUPERSAMPLING ** 2:
            continue                                            # a splinter of less than one pixel
        polygons.append(np.round((points + 0.5) / SUPERSAMPLING, 2).ravel().tolist())
    return polygons or None


def segmentation(shape):
    """COCO segmentation of the visible part, and the (H, W) uint8 mask that pycocotools decodes it to."""
    mask = (coverage(shape.visible) >= 0.5).astype(np.uint8)
    height, width = mask.shape
    if shape.is_crowd:
        return {'size': [height, width], 'counts': uncompressed_counts(mask)}, mask
    polygons = outline_polygons(shape.visible)
    if polygons:
        decoded = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width)))
        # thin or split objects can lose too much in tracing; those keep their exact mask
        if (decoded & mask).sum() >= 0.9 * max((decoded | mask).sum(), 1):
            return polygons, decoded
    rle = coco_mask.encode(np.asfortranarray(mask))
    return {'size': [height, width], 'counts': rle['counts'].decode()}, mask


def uncompressed_counts(mask):
    """Run lengths of a (H, W) mask in column order, beginning with the zeros: list[int]."""
    flat = mask.ravel(order='F')
    borders = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], borders, [flat.size]])).tolist()
    return runs if flat[0] == 0 else [0] + runs


def keypoints(shape):
    """[x, y, v] of every keypoint, flat, as COCO has it."""
    height, width = (n // SUPERSAMPLING for n in shape.full.shape)
    flat = []
    for x, y in shape.keypoints:
        if not (0 <= x < width and 0 <= y < height):
            flat += [0, 0, 0]
            continue
        row, column = int(y * SUPERSAMPLING), int(x * SUPERSAMPLING)
        flat += [round(float(x), 1), round(float(y), 1), 2 if shape.visible[row, column] else 1]
    return flat


def annotate(shape, image_id):
    """The COCO annotation of a shape without its id, or None where nothing of it can be seen at image resolution."""
    segments, mask = segmentation(shape)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    x, y = int(columns[0]), int(rows[0])
    annotation = {
        'id': None, 'image_id': image_id, 'category_id': shape.label + 1, 'iscrowd': int(shape.is_crowd),
        'bbox': [x, y, int(columns[-1]) + 1 - x, int(rows[-1]) + 1 - y], 'area': int(mask.sum()),
        'segmentation': segments}
    if shape.keypoints is not None:
        annotation['keypoints'] = keypoints(shape)
        annotation['num_keypoints'] = sum(v > 0 for v in annotation['keypoints'][2::3])
    return annotation


# ---------------------------------------------------------------------------------------------- files


def categories():
    """COCO categories, ids from 1 in the order of CLASSES."""
    entries = [{'id': i + 1, 'name': name, 'supercategory': 'shape'} for i, name in enumerate(CLASSES)]
    entries[-1].update(keypoints=list(KEYPOINTS), skeleton=[list(bone) for bone in SKELETON])
    return entries


def draw_image(folder, split, settings, index):
    """Draw image `index` of a split into its folder; its entry and its annotations, which have no ids yet."""
    # a stream of its own for each image: image 7 is the same whatever the number of images
    rng = np.random.default_rng([settings['seed'], ('train', 'val').index(split), index])
    long_side, short_side = settings['size'], settings['size'] * 4 // 5
    image_hw = (short_side, long_side) if rng.random() < 0.5 else (long_side, short_side)
    shapes = compose(image_hw, rng)
    name = f'{index:06d}.jpg'
    write_jpeg(folder / split / name, paint(shapes, image_hw, rng))
    entry = {'id': index + 1, 'file_name': name, 'width': image_hw[1], 'height': image_hw[0]}
    return entry, [annotation for annotation in (annotate(shape, index + 1) for shape in shapes) if annotation]


@contextlib.contextmanager
def on_all_cores(count):
    """A `map` in order over `count` items, in a process for each core where processes can be forked."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1
    if min(cores, count // 50) < 2 or 'fork' not in multiprocessing.get_all_start_methods():
        yield map
        return
    with multiprocessing.get_context('fork').Pool(cores, initializer=cv2.setNumThreads, initargs=(0, )) as pool:
        yield functools.partial(pool.imap, chunksize=8)


def write_split(folder, split, count, settings, progress):
    """Draw `count` images of a split into `folder` and write its annotation file."""
    images, annotations = [], []
    (folder / split).mkdir(parents=True)
    with on_all_cores(count) as each:
        for entry, own in each(functools.partial(draw_image, folder, split, settings), range(count)):
            images.append(entry)
            annotations += [dict(annotation, id=len(annotations) + i) for i, annotation in enumerate(own, 1)]
            progress(split, len(images), count)
    content = {'info': {'description': 'shapes, drawn by tools/make_shapes.py', 'settings': settings},
               'licenses': [], 'images': images, 'annotations': annotations, 'categories': categories()}
    (folder / 'annotations' / f'instances_{split}.json').write_text(json.dumps(content))
    return len(annotations)


def write_jpeg(path, image):
    """Write an image; cv2.imwrite answers False rather than say why it failed, so the bytes are written here."""
    encoded, data = cv2.imencode('.jpg', image, [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
    if not encoded:
        raise OSError(f'{path}: OpenCV could not encode the image')
    path.write_bytes(data.tobytes())


def settings_of(folder):
    """The settings that a folder was drawn with, or None where it is not a complete folder of ours."""
    found = []
    for split in ('train', 'val'):
        try:
            content = json.loads((folder / 'annotations' / f'instances_{split}.json').read_text())
            settings = content['info']['settings']
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if not all((folder / split / image['file_name']).is_file() for image in content['images']):
            return {'incomplete': split}
        found.append(settings)
    return found[0] if found[0] == found[1] else {'incomplete': 'annotations'}


def make_shapes(out, train=1000, val=120, size=160, seed=0, force=False, progress=lambda split, done, count: None):
    """Draw the data set into the folder `out`, as a whole or not at all.

    Args:
        out: folder to write; its parent is made when missing.
        train: number of images of the training split.
        val: number of images of the validation split.
        size: longer side of every image in pixels; the shorter one is 4/5 of it.
        seed: the same seed and settings give the same bytes (with the same versions of OpenCV and numpy).
        force: draw again even when the folder holds this very data set.
        progress: called as progress(split, images done, images of the split).

    Returns:
        Number of annotations by split, or None when the folder was left as it was.

    Raises:
        FileExistsError: `out` holds files that this tool did not write; they are never deleted.
    """
    out = Path(out)
    settings = {'generator': GENERATOR, 'train': train, 'val': val, 'size': size, 'seed': seed}
    existing = settings_of(out)
    if existing == settings and not force:
        return None
    if existing is None and out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f'{out} exists and was not written by make_shapes.py; move it away or choose another '
                              f'--out')
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = out.parent / f'.{out.name}.partial-{os.getpid()}'
    try:
        (partial / 'annotations').mkdir(parents=True)
        counts = {split: write_split(partial, split, count, settings, progress)
                  for split, count in (('train', train), ('val', val))}
        replace_folder(partial, out)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return counts


def replace_folder(new, target):
    """Rename `new` to `target`; what was there goes away only after the new one stands ready beside it."""
    old = target.parent / f'.{target.name}.old-{os.getpid()}'
    if target.exists():
        target.rename(old)
    new.rename(target)
    shutil.rmtree(old, ignore_errors=True)


def show_progress(split, done, count):
    """One line, rewritten on a terminal; in a log file only the last state of a split is printed."""
    if sys.stdout.isatty():
        print(f'\rdrawing {split}: {done}/{count}', end='\n' if done == count else '', flush=True)
    elif done == count:
        print(f'drawing {split}: {done}/{count}', flush=True)


def parse_args(argv=None):
    parser = argparse.ArgumentParser(
        description='Draw the shapes data set in COCO format: images, boxes, polygon and RLE masks, crowds, keypoints.',
        epilog='Example: python tools/make_shapes.py --out data/shapes --train 1000 --val 120\n'
               'A folder that already holds the data set with the same settings is left alone; other settings draw\n'
               'it again. The new folder replaces the old one only when it is complete.',
        formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--out', default='data/shapes', metavar='DIR', help='folder to write (default: %(default)s)')
    parser.add_argument('--train', type=int, default=1000, metavar='N', help='training images (default: %(default)s)')
    parser.add_argument('--val', type=int, default=120, metavar='N', help='validation images (default: %(default)s)')
    parser.add_argument('--size', type=int, default=160, metavar='PX',
                        help='longer side of an image; the other side is 4/5 of it (default: %(default)s)')
    parser.add_argument('--seed', type=int, default=0, metavar='N',
                        help='the same seed gives the same files (default: %(default)s)')
    parser.add_argument('--force', action='store_true', help='draw again even when the data set is already there')
    args = parser.parse_args(argv)
    if args.size < 64:
        parser.error(f'--size {args.size}: the shapes need images of at least 64 pixels')
    if args.train < 1 or args.val < 1 or args.seed < 0:
        parser.error('--train and --val need at least one image each, and --seed cannot be negative')
    return args


def main(argv=None):
    args = parse_args(argv)
    try:
        counts = make_shapes(args.out, args.train, args.val, args.size, args.seed, args.force, show_progress)
    except OSError as error:
        print(f'error: {error}', file=sys.stderr)
        return 2
    if counts is None:
        print(f'{args.out}: already there with these settings (--force draws it again)')
    else:
        print(f'{args.out}: {args.train} + {args.val} images, {counts["train"]} + {counts["val"]} annotations')
    return 0


if __name__ == '__main__':
    sys.exit(main())
