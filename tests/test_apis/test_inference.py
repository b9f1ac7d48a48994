"""init_detector and inference_detector on a small random Mask R-CNN."""

import io
import subprocess
import sys
import threading
import warnings
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from boxdet.apis import fuse_conv_bn, inference_detector, init_detector, show_result_pyplot
from boxdet.apis.inference import _evaluating as evaluating
from boxdet.apis.inference import _moved
from boxdet.checkpoints.io import load_checkpoint, save_checkpoint
from boxdet.engine.config import load_config
from boxdet.errors import CheckpointError, ConfigError, DataError, UserError
from boxdet.structures.batch import Batch
from boxdet.structures.instances import Instances


@pytest.fixture(scope='module')
def model(tiny_detector):
    return init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu')


def same(one: Instances, other: Instances, tolerance: float = 0) -> bool:
    return (len(one) == len(other) and torch.equal(one.labels, other.labels)
            and torch.allclose(one.bboxes, other.bboxes, rtol=0, atol=100 * tolerance)
            and torch.allclose(one.scores, other.scores, rtol=0, atol=tolerance))


def test_a_detector_is_ready_for_use(model, tiny_detector):
    assert not model.training and tiny_detector.classes == model.CLASSES
    assert model.cfg.model.type == 'MaskRCNN'
    state = load_checkpoint(tiny_detector.checkpoint)['state_dict']
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


def test_result_of_one_image(model, tiny_detector):
    result = inference_detector(model, str(tiny_detector.images[1]))
    assert isinstance(result, Instances) and 0 < len(result) <= 12
    assert result.image_size == (128, 96) and result.num_classes == 3
    assert result.bboxes[:, [0, 2]].max() <= 96 and result.bboxes[:, [1, 3]].max(
    ) <= 128 and result.bboxes.min() >= 0
    assert result.scores.tolist() == sorted(result.scores.tolist(), reverse=True)
    assert result.masks_bitmaps().shape == (len(result), 128, 96)


def test_every_form_of_an_image_gives_the_same(model, tiny_detector):
    path = tiny_detector.images[0]
    expected = inference_detector(model, str(path))
    image = cv2.imread(str(path))
    written = io.BytesIO()
    written.write(path.read_bytes())  # it stands at its end, as after a save
    alpha = np.dstack([image, np.full(image.shape[:2], 7, np.uint8)])
    with open(path, 'rb') as file:
        for form in (path, image, path.read_bytes(), Image.open(path), np.asfortranarray(image), file, written,
                     alpha):
            assert same(inference_detector(model, form), expected)
    rgba = np.ascontiguousarray(alpha[:, :, [2, 1, 0, 3]])
    assert same(inference_detector(model, rgba, channel_order='rgb'), expected)


def test_grey_images(model, tiny_detector):
    grey = cv2.imread(str(tiny_detector.images[0]), cv2.IMREAD_GRAYSCALE)
    expected = inference_detector(model, cv2.merge([grey] * 3))
    for image in (grey, grey[:, :, None], Image.fromarray(grey)):
        assert same(inference_detector(model, image), expected)


@pytest.mark.parametrize('ending', ['.png', '.tiff'])
def test_grey_images_of_sixteen_bits(model, tiny_detector, tmp_path, ending):
    grey = cv2.imread(str(tiny_detector.images[0]), cv2.IMREAD_GRAYSCALE)
    path = str(tmp_path / f'deep{ending}')
    cv2.imwrite(path, grey.astype(np.uint16) * 256 + 200)
    expected = inference_detector(model, cv2.merge([grey] * 3))
    with open(path, 'rb') as file:
        for image in (path, file, Image.open(path)):
            assert same(inference_detector(model, image), expected)
    for values in (grey.astype(np.int32), grey.astype(np.float32)):
        with pytest.raises(DataError, match="image 0 is a PIL image of mode '[IF]'.*what is white"):
            inference_detector(model, Image.fromarray(values))


class QuietHandler(SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@pytest.fixture
def address(tiny_detector):
    """Of a local server of the images' folder."""
    handler = partial(QuietHandler, directory=str(tiny_detector.folder / 'images'))
    with ThreadingHTTPServer(('127.0.0.1', 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield f'http://127.0.0.1:{server.server_port}'
        server.shutdown()
        thread.join()


def test_an_image_at_an_address(model, tiny_detector, address):
    expected = inference_detector(model, str(tiny_detector.images[0]))
    assert same(inference_detector(model, f'{address}/a.png'), expected)
    assert same(inference_detector(model, f'{address}/a.png', exif_orientation=True), expected)
    with pytest.raises(DataError, match=r'/nope.png: cannot be read \(HTTP Error 404'):
        inference_detector(model, f'{address}/nope.png')
    with pytest.raises(DataError, match=r'/a b.png: cannot be downloaded \(URL'):
        inference_detector(model, f'{address}/a b.png')
    with pytest.raises(DataError, match='http://127.0.0.1:1/a.png: cannot be read'):
        inference_detector(model, 'http://127.0.0.1:1/a.png')


def test_several_images_in_order(model, tiny_detector):
    paths = [str(p) for p in tiny_detector.images]
    singles = [inference_detector(model, p) for p in paths]
    for several in (inference_detector(model, paths), inference_detector(model, tuple(paths)),
                    inference_detector(model, iter(paths))):
        assert len(several) == 4 and all(same(a, b) for a, b in zip(several, singles))
    assert inference_detector(model, []) == [] and len(inference_detector(model, paths[:1])) == 1


def test_batches_are_made_of_one_input_size(model, tiny_detector, monkeypatch):
    sizes, forward = [], type(model).predict
    monkeypatch.setattr(type(model), 'predict', lambda self, batch, **options: (
        sizes.append(tuple(batch.images.shape)), forward(self, batch, **options))[1])
    inference_detector(model, [str(tiny_detector.images[k]) for k in (0, 1, 2, 3, 0)], batch_size=2)
    assert sizes == [(2, 3, 128, 160), (1, 3, 128, 160), (1, 3, 160, 128), (1, 3, 96, 160)]


def test_batches_give_the_results_of_single_images(model, tiny_detector):
    paths = [str(tiny_detector.images[k]) for k in (0, 1, 2, 3, 0)]  # three of one input size between others
    batched = inference_detector(model, paths, batch_size=2)
    assert all(same(a, inference_detector(model, p), 1e-5) for a, p in zip(batched, paths))


def test_the_pipeline_follows_the_config(tiny_detector):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    before = inference_detector(model, str(tiny_detector.images[0]))
    model.cfg.data.test.pipeline[1]['img_scale'] = (96, 64)
    assert not same(inference_detector(model, str(tiny_detector.images[0])), before)


def test_test_time_augmentation(tiny_detector):
    options = {'data.test.pipeline.1.flip': True}
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu', cfg_options=options)
    paths = [str(p) for p in tiny_detector.images[:2]]
    assert [r.image_size for r in inference_detector(model, paths, batch_size=2)] == [(96, 128), (128, 96)]


@pytest.mark.parametrize('image, message', [('missing.jpg', 'missing.jpg'),
                                            (b'no image', 'image 0: 8 bytes that are no image file'),
                                            (b'', 'no image file'),
                                            (np.zeros((5, 5, 3), np.float32), 'image 0 is an array.*of uint8'),
                                            (np.zeros((0, 5, 3), np.uint8), 'image 0'),
                                            (np.zeros((5, 5, 2), np.uint8), r'image 0 is an array \(5, 5, 2\)'),
                                            ([np.zeros((5, 5, 3), np.uint8), 7], 'image 1 is a int'),
                                            (None, 'image 0 is a NoneType: give'), (3, 'image 0 is a int: give'),
                                            (io.StringIO('text'), "gives str, not bytes .* opened with 'rb'"),
                                            (io.BytesIO(b'no image'), 'image 0: 8 bytes that are no image file')])
def test_what_is_no_image(model, image, message):
    with pytest.raises(DataError, match=message):
        inference_detector(model, image)


def test_files_that_can_no_longer_be_read(model, tiny_detector):
    file = open(tiny_detector.images[0], 'rb')  # noqa: SIM115
    file.close()
    with pytest.raises(DataError, match='image 0: the BufferedReader cannot be read .*closed'):
        inference_detector(model, file)
    cut = Image.open(io.BytesIO(tiny_detector.images[0].read_bytes()[:2000]))
    with pytest.raises(DataError, match='image 0: a PIL image that cannot be read .*truncated'):
        inference_detector(model, cut)


@pytest.mark.parametrize('options, message', [
    (dict(batch_size='2'), "batch_size is '2'; it is a whole number, 1 or more"),
    (dict(batch_size=2.5), 'batch_size is 2.5'), (dict(batch_size=True), 'batch_size is True'),
    (dict(prefetch='1'), "prefetch is '1'; it is a whole number, 0 or more"), (dict(prefetch=-1), 'prefetch is -1')])
def test_numbers_that_are_none(model, tiny_detector, options, message):
    for images in (str(tiny_detector.images[0]), [str(tiny_detector.images[0])]):
        with pytest.raises(ConfigError, match=message):
            inference_detector(model, images, **options)


def test_a_config_that_needs_proposals_says_so(repo_root, tiny_detector):
    model = init_detector(repo_root / 'configs/shapes/fast_rcnn_r18_fpn_shapes.py', device='cpu')
    for images in (str(tiny_detector.images[0]), [str(tiny_detector.images[0])]):
        with pytest.raises(ConfigError, match='fast_rcnn_r18_fpn_shapes.py: its test pipeline needs proposals'):
            inference_detector(model, images)


@pytest.mark.parametrize('options, message', [
    ({'modell.x': 3}, "modell .--cfg-options.: nothing reads this variable; did you mean 'model'"),
    ({'norms.mean': [0, 0, 0]}, "norms .*did you mean 'norm'"),  # a variable of the file's own
    ('a=b', "cfg_options is a dict such as .* not 'a=b'"), (3, 'cfg_options is a dict such as .* not 3')])
def test_options_that_cannot_be_meant(tiny_detector, options, message):
    for config in (tiny_detector.config, load_config(tiny_detector.config)):
        with pytest.raises(ConfigError, match=message):
            init_detector(config, device='cpu', cfg_options=options)


def test_options_may_add_sections_and_variables_of_ones_own(tiny_detector):
    cfg = load_config(tiny_detector.config, {'optimizer': dict(type='SGD', lr=0.1), 'xyzzy': 3})
    cfg.model_x = 5  # not by an option
    model = init_detector(cfg, device='cpu', cfg_options=['fp16.loss_scale=512.', 'model.test_cfg.rcnn.max_per_img=3'])
    assert (model.cfg.xyzzy, model.cfg.fp16.loss_scale, model.cfg.model.test_cfg.rcnn.max_per_img) == (3, 512., 3)


def test_a_batch_goes_to_a_gpu_out_of_page_locked_memory(monkeypatch):
    ways = []
    monkeypatch.setattr(Batch, 'pin_memory', lambda self: ways.append('pinned') or self)
    monkeypatch.setattr(Batch, 'to', lambda self, device: ways.append(device.type) or self)
    batch = Batch(torch.zeros(1, 3, 2, 2), [])
    _moved(batch, torch.device('cuda:0')), _moved(batch, torch.device('cpu'))
    assert ways == ['pinned', 'cuda', 'cpu']


def test_config_objects_stay_as_they_are(tiny_detector):
    cfg = load_config(tiny_detector.config)
    before = cfg.pretty_text
    model = init_detector(cfg, tiny_detector.checkpoint, device='cpu', cfg_options={
        'model.test_cfg.rcnn.max_per_img': 3})
    assert cfg.pretty_text == before and 'init_cfg' in cfg.model.backbone
    assert len(inference_detector(model, str(tiny_detector.images[0]))) <= 3


def test_without_a_checkpoint_classes_are_those_of_the_config(tiny_detector):
    assert tiny_detector.classes == init_detector(tiny_detector.config, device='cpu').CLASSES
    other = init_detector(tiny_detector.config, device='cpu', cfg_options={
        'data.test.classes': ['x', 'y', 'z']})
    assert other.CLASSES == ('x', 'y', 'z')


def test_heads_of_another_number_of_classes_than_names_warn(tiny_detector):
    heads = {f'model.roi_head.{kind}_head.num_classes': 4 for kind in ('bbox', 'mask')}
    with pytest.warns(UserWarning, match=r'bbox_head.num_classes = 4; .*mask_head.num_classes = 4, and .* names 3 '
                                         r'classes'):
        init_detector(tiny_detector.config, device='cpu', cfg_options=heads)


def test_parts_that_do_not_fit_are_told_when_the_model_is_built(tiny_detector):
    wrong = {'model.rpn_head.anchor_generator.strides': [8, 16, 32, 64, 128]}
    with pytest.raises(ConfigError, match=r'anchors would lie elsewhere.*\[model.strides\]'):
        init_detector(tiny_detector.config, tiny_detector.checkpoint, 'cpu', wrong)
    init_detector(tiny_detector.config, tiny_detector.checkpoint, 'cpu',
                  {**wrong, 'preflight.ignore': ['model.strides']})


def test_settings_for_testing_in_two_places_are_told(tiny_detector):
    beside = {'test_cfg': dict(rcnn=dict(score_thr=0.9))}  # which of the two was meant cannot be known
    with pytest.warns(DeprecationWarning), pytest.raises(ConfigError, match='test_cfg is given twice.*take the other'):
        init_detector(tiny_detector.config, tiny_detector.checkpoint, 'cpu', beside)


def test_a_checkpoint_without_classes_warns(tiny_detector, tmp_path):
    save_checkpoint(dict(meta={}, state_dict=load_checkpoint(tiny_detector.checkpoint)['state_dict']),
                    tmp_path / 'c.pth')
    with pytest.warns(UserWarning, match='c.pth does not tell its classes'):
        assert tiny_detector.classes == init_detector(tiny_detector.config, tmp_path / 'c.pth',
                             device='cpu').CLASSES


def test_a_checkpoint_of_other_classes_warns(tiny_detector):
    options = {'data.test.classes': ['disc', 'bar', 'ring']}
    with pytest.warns(UserWarning, match='ring'):
        model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu',
                              cfg_options=options)
    assert tiny_detector.classes == model.CLASSES


def test_a_good_load_is_silent(tiny_detector):
    with warnings.catch_warnings():
        warnings.simplefilter('error', UserWarning)
        warnings.simplefilter('ignore', DeprecationWarning)
        init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')


def test_wrong_checkpoints(tiny_detector, tmp_path):
    with pytest.raises(CheckpointError, match='nothing.pth'):
        init_detector(tiny_detector.config, tmp_path / 'nothing.pth', device='cpu')
    save_checkpoint(dict(meta={}, state_dict={'a.weight': torch.zeros(3)}), tmp_path / 'foreign.pth')
    with pytest.raises(CheckpointError, match='foreign.pth.*another architecture'):
        init_detector(tiny_detector.config, tmp_path / 'foreign.pth', device='cpu')
    state = dict(load_checkpoint(tiny_detector.checkpoint)['state_dict'])
    state.pop('roi_head.bbox_head.fc_cls.weight')
    save_checkpoint(dict(meta=dict(CLASSES=tiny_detector.classes), state_dict=state), tmp_path / 'part.pth')
    with pytest.warns(UserWarning, match='fc_cls.weight'):
        init_detector(tiny_detector.config, tmp_path / 'part.pth', device='cpu')


@pytest.mark.skipif(torch.cuda.is_available(), reason='there is a GPU')
def test_no_gpu_names_the_way_out(tiny_detector):
    with pytest.raises(ConfigError, match='cpu'):
        init_detector(tiny_detector.config, tiny_detector.checkpoint)


def test_show_result_writes_the_image(model, tiny_detector, tmp_path):
    result = inference_detector(model, str(tiny_detector.images[0]))
    drawn = model.show_result(str(tiny_detector.images[0]), result, score_thr=0.0, out_file=str(
        tmp_path / 'x/out.png'))
    assert np.array_equal(cv2.imread(str(tmp_path / 'x/out.png')), drawn)
    assert not np.array_equal(drawn, cv2.imread(str(tiny_detector.images[0])))
    with pytest.raises(UserError, match='missing.png'):
        model.show_result('missing.png', result)


def test_show_result_pyplot(model, tiny_detector, tmp_path, monkeypatch):
    import matplotlib.pyplot as plt
    shown = []
    monkeypatch.setattr(plt, 'show', lambda **_: shown.append(plt.gcf().axes[0].images[0].get_array()))
    image = cv2.imread(str(tiny_detector.images[0]))
    result = inference_detector(model, image)
    show_result_pyplot(model, image, result, score_thr=0.0, out_file=str(tmp_path / 'out.png'))
    assert np.array_equal(shown[0][:, :, ::-1], cv2.imread(str(tmp_path / 'out.png')))
    plt.close('all')


def test_folded_batch_norms_compute_the_same(tiny_detector):
    model = init_detector(tiny_detector.config, tiny_detector.checkpoint, device='cpu')
    torch.manual_seed(1)
    norms = [m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    for norm in norms:  # as after a training
        norm.running_mean.normal_(0, 0.1), norm.running_var.uniform_(0.5, 2), norm.weight.data.uniform_(
            0.5, 1.5)
    images = torch.randn(1, 3, 96, 128)
    with torch.no_grad():
        expected = model.extract_feat(images)
        fused = fuse_conv_bn(model)
        assert norms and not any(isinstance(m, torch.nn.BatchNorm2d) for m in fused.modules())
        for a, b in zip(fused.extract_feat(images), expected):
            assert torch.allclose(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


def test_importing_the_api_loads_nothing_heavy():
    code = 'import sys, boxdet.apis; assert not {"torch", "cv2", "mmengine", "matplotlib"} & set(sys.modules)'
    subprocess.run([sys.executable, '-c', code], check=True)


def test_every_name_of_the_api_is_there():
    import boxdet.apis
    for name in boxdet.apis.__all__:
        assert callable(getattr(boxdet.apis, name))
    with pytest.raises(AttributeError, match="no attribute 'inference'|no attribute 'init_detecto'"):
        boxdet.apis.init_detecto


def test_a_model_in_training_is_lent_to_several_threads():
    """The one that leaves first must not put it back into training: the others' batch norms would learn."""
    model = torch.nn.BatchNorm2d(3)
    late = evaluating(model)
    with evaluating(model):
        late.__enter__()
    assert not model.training
    late.__exit__(None, None, None)
    assert model.training
    with evaluating(model.eval()):
        assert not model.training
    assert not model.training


def test_a_whole_detector_is_saved_and_read(tiny_detector, tmp_path):
    model = init_detector(str(tiny_detector.config), str(tiny_detector.checkpoint), device='cpu')
    torch.save(model, tmp_path / 'whole.pth')
    again = torch.load(tmp_path / 'whole.pth', weights_only=False)
    assert again.memory_format is model.memory_format
    image = str(tiny_detector.images[0])
    expected, found = inference_detector(model, image), inference_detector(again, image)
    assert len(found) and torch.equal(found.bboxes, expected.bboxes) and torch.equal(found.scores, expected.scores)
