"""The report: its numbers against a hand-counted set, and the page in a real browser (headless Chromium)."""

import json
import re
import shutil

import cv2
import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.datasets import build_dataset
from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import evaluate
from boxdet.evaluation.report import check_reportable, report_data, write_report
from boxdet.structures.instances import Instances
from boxdet.structures.masks import RleMasks

CLASSES = ('disc', '</script><b>bar</b>', 'never')


@pytest.fixture(scope='module')
def dataset(tmp_path_factory):
    """Three images with five objects of two classes, and a crowd region."""
    folder = tmp_path_factory.mktemp('report')
    boxes = {1: [(0, 10, 10, 30, 30), (1, 60, 20, 40, 40)], 2: [(0, 20, 20, 50, 50), (1, 100, 10, 30, 60)],
             3: [(0, 5, 5, 40, 40)]}
    annotations = [dict(image_id=image, category_id=1 + k, bbox=[x, y, w, h], area=w * h, iscrowd=0,
                        segmentation=[[x, y, x + w, y, x + w, y + h, x, y + h]])
                   for image, ones in boxes.items() for k, x, y, w, h in ones]
    annotations.append(dict(image_id=3, category_id=1, bbox=[100, 40, 50, 50], area=2500, iscrowd=1,
                            segmentation=dict(size=[100, 160], counts=[10040, 50, 50, 50, 5810])))
    for i, annotation in enumerate(annotations):
        annotation['id'] = i + 1
    content = dict(images=[dict(id=i, file_name=f'{i}.png', width=160, height=100) for i in (1, 2, 3)],
                   annotations=annotations, categories=[dict(id=k + 1, name=name) for k, name in enumerate(CLASSES)])
    (folder / 'ann.json').write_text(json.dumps(content))
    for i in (1, 2, 3):
        image = np.full((100, 160, 3), 50 * i, np.uint8)
        for _, x, y, w, h in boxes[i]:
            cv2.rectangle(image, (x, y), (x + w, y + h), (0, 200, 255), -1)
        cv2.imwrite(str(folder / f'{i}.png'), image)
    return build_dataset(dict(type='CocoDataset', ann_file=str(folder / 'ann.json'), img_prefix=str(folder),
                              classes=CLASSES, pipeline=[]), dict(test_mode=True))


def found(*rows):
    rows = np.array(rows, dtype=np.float64).reshape(-1, 6)
    return Instances(labels=torch.tensor(rows[:, 0], dtype=torch.long), scores=torch.tensor(rows[:, 1]).float(),
                     bboxes=torch.tensor(rows[:, 2:]).float(), num_classes=3)


@pytest.fixture(scope='module')
def results():
    return [
        found((0, .91, 10, 10, 40, 40),       # right
              (0, .81, 10, 10, 40, 40),        # the same object again
              (0, .71, 60, 20, 100, 60)),      # the bar, taken for a disc
        found((0, .95, 20, 20, 70, 70),       # right
              (1, .61, 118, 30, 140, 80),      # the bar, in the wrong place: IoU 0.21
              (0, .85, 130, 80, 150, 95)),    # nothing there
        found((0, .31, 5, 5, 45, 45),          # right, with a low score
              (0, .99, 105, 45, 145, 85))]    # in the crowd: neither right nor wrong


@pytest.fixture(scope='module')
def data(dataset, results):
    return report_data(dataset, results, evaluate(dataset, results, 'bbox', logger='silent'))


def test_counts_of_the_classes(data):
    disc, bar, never = data['classes']
    assert (disc['objects'], bar['objects'], never['objects']) == (3, 2, 0)
    # By falling score: .95 right, .91 right, .85, .81, .71 wrong, .31 right; F1 4/5 at .91, 6/9 at .31.
    assert disc['threshold'] == pytest.approx(.91) and disc['f1'] == pytest.approx(4 / 5)
    assert (disc['precision'], disc['recall'], disc['detections']) == pytest.approx((1, 2 / 3, 2))
    # Recalls up to 2/3 at precision 1 (67 of 101 levels), the others at 1/2.
    assert disc['ap50'] == pytest.approx((67 + 34 * .5) / 101)
    assert disc['ap'] == pytest.approx(disc['ap50']), 'the boxes are exact: the same at every IoU'
    assert bar['ap50'] == 0 and bar['f1'] == 0 and never['ap'] == -1


def test_curves(data):
    half = data['curves'][0]
    assert half['iou'] == 0.5 and half['classes'][2] is None
    assert half['classes'][0] == [1000] * 67 + [500] * 34 and half['mean'] == [500] * 67 + [250] * 34


def test_confusion(data):
    # At the best threshold of all classes together: .91, two discs found.
    assert data['confusion']['matrix'] == [[2, 0, 0, 1], [0, 0, 0, 2], [0, 0, 0, 0], [0, 0, 0, 0]]


def test_calibration_leaves_ignored_detections_out(data):
    bins = data['calibration']['all']
    assert [count for count, _, _ in bins] == [0, 0, 0, 1, 0, 0, 1, 1, 2, 2]
    assert [right for _, right, _ in bins] == [0, 0, 0, 1, 0, 0, 0, 0, 0, 2]
    assert bins[9][2] == pytest.approx(1.86, abs=1e-3)


def test_sizes(data):
    # disc: 900, 2500, 1600 pixels; bar: 1600, 1800. The discs of .91 and .95 are found.
    assert data['sizes']['all'] == [[1, 1], [4, 1], [0, 0]]
    assert data['sizes']['extra'][0]['name'] == 'AP'


def test_errors_are_named_for_what_they_are(data):
    wrong = {(e['kind'], e['title']) for e in data['errors']}
    bar = CLASSES[1]
    assert wrong == {('nothing there', 'disc, score 0.85'), ('double', 'disc, score 0.81'),
                     ('wrong class', 'disc, score 0.71'),
                     ('wrong place', f'{bar}, score 0.61'), ('missed', f'{bar} missed'), ('missed', 'disc missed')}
    scores = [e['title'] for e in data['errors'] if e['kind'] != 'missed']
    assert scores[0].endswith('0.85') and scores[-1].endswith('0.61'), 'the most confident first'
    low = next(e for e in data['errors'] if e['title'] == 'disc missed')
    assert 'found with score 0.31 only; the class counts from 0.91' in low['detail']
    for error in data['errors']:
        image = data['images'][error['image']]
        drawn = image['truth'][error['truth']] if error['kind'] == 'missed' else image['found'][error['detection']]
        assert drawn['box'] == error['box']


def test_fewer_errors_are_spread_over_the_classes(dataset, results):
    metrics = evaluate(dataset, results, 'bbox', logger='silent')
    few = report_data(dataset, results, metrics, most_errors=4)
    assert len(few['errors']) == 4 and {e['label'] for e in few['errors'] if e['kind'] != 'missed'} == {0, 1}
    assert report_data(dataset, results, metrics, most_errors=0)['errors'] == []


def test_masks_are_outlined(dataset):
    bitmaps = np.zeros((100, 160, 2), np.uint8, order='F')
    bitmaps[10:40, 10:40, 0] = 1
    square, nothing = coco_masks.encode(bitmaps)
    results = [found((0, .9, 10, 10, 40, 40)).replace(masks=RleMasks([square])), found().replace(masks=RleMasks([])),
               found((1, .9, 0, 0, 9, 9)).replace(masks=RleMasks([nothing]))]
    metrics = evaluate(dataset, results, ['bbox', 'segm'], logger='silent')
    data = report_data(dataset, results, metrics)
    assert data['classes'][0]['ap50'] == pytest.approx(34 / 101) and 'Masks' in data['classNote']
    image = next(p for p in data['images'] if p['name'] == '1.png')
    assert image['found'][0]['mask'] == 'M10 10L10 39L39 39L39 10Z'
    assert any(one['mask'] == '' for p in data['images'] for one in p['found']), 'an empty mask has no outline'


def test_no_detections_at_all(dataset, tmp_path):
    results = [found()] * 3
    metrics = evaluate(dataset, results, 'bbox', logger='silent')
    data = report_data(dataset, results, metrics)
    assert data['overall']['f1'] == 0 and [e['kind'] for e in data['errors']] == ['missed'] * 5
    assert write_report(tmp_path, dataset, results, metrics, 'none').is_file()


def test_an_image_that_cannot_be_read_is_told(dataset, results, tmp_path):
    broken = build_dataset(dict(type='CocoDataset', ann_file=dataset.ann_file, img_prefix=str(tmp_path),
                                classes=CLASSES,
                                pipeline=[]), dict(test_mode=True))
    told = []
    data = report_data(broken, results, {}, say=told.append)
    assert data['errors'] == [] and len(told) == 3
    assert all('.png: no such file' in line for line in told)


def test_folder_that_cannot_be_written(dataset, results, tmp_path):
    (tmp_path / 'file').write_text('')
    with pytest.raises(DataError, match='cannot write .*file.report.index.html: Not a directory'):
        write_report(tmp_path / 'file/report', dataset, results, {}, 'x')


def test_wrappers_are_refused(dataset):
    with pytest.raises(ConfigError, match='not on a list'):
        check_reportable([dataset])


# --- the page ---

@pytest.fixture(scope='module')
def browser(need):
    """Chromium without a window, steered over its own driver; no network is needed, and none is there to be used."""
    webdriver = pytest.importorskip('selenium.webdriver', reason='the page is tested with selenium: pip install '
                                                                 'selenium')
    need('chromium', 'chromedriver', package='chromium chromium-driver')
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which('chromium')
    for argument in ('--headless=new', '--no-sandbox', '--disable-gpu', '--disable-dev-shm-usage',
                     '--window-size=1200,900',
                     '--host-resolver-rules=MAP * ~NOTFOUND'):
        options.add_argument(argument)
    options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which('chromedriver')))
    yield started
    started.quit()


@pytest.fixture(scope='module')
def page(browser, dataset, results, tmp_path_factory):
    """The report, opened from the disk; at the end no test may have left an error in the console."""
    folder = tmp_path_factory.mktemp('page')
    metrics = evaluate(dataset, results, 'bbox', logger='silent')
    file = write_report(folder, dataset, results, metrics, 'A <b>title</b>', ['config.py', 'model.pth'])
    assert [path.name for path in folder.iterdir()] == ['index.html']
    text = file.read_text()
    assert not re.search(r'(src|href)="?https?:', text), 'nothing is fetched'
    browser.get(file.as_uri())
    yield browser
    assert browser.get_log('browser') == []


def texts(page, selector):
    return [element.text for element in page.find_elements('css selector', selector)]


def keys(page, *pressed):
    from selenium.webdriver import ActionChains
    ActionChains(page).send_keys(*pressed).perform()


def choose(page, name):
    from selenium.webdriver.support.ui import Select
    Select(page.find_element('id', 'filter')).select_by_visible_text(name)


@pytest.mark.slow
def test_page_shows_everything(page):
    assert page.title == 'A <b>title</b>' and texts(page, 'h1') == ['A <b>title</b>']
    assert texts(page, '#meta') == ['config.py · model.pth']
    assert 'bbox_mAP' in texts(page, '.card span') and len(texts(page, '#classes tbody tr')) == 3
    assert CLASSES[1] in texts(page, '#classes .name'), 'a name is text, whatever it says'
    assert len(texts(page, '.shot')) == 7 and len(page.find_elements('css selector', '#pr polyline')) == 3


@pytest.mark.slow
def test_table_sorts_by_click_and_by_key(page):
    from selenium.webdriver.common.keys import Keys
    names = '#classes .name'
    page.find_element('css selector', '[data-key=objects]').click()
    assert texts(page, names) == ['disc', CLASSES[1], 'never']
    keys(page, Keys.ENTER)  # the heading keeps the focus
    assert texts(page, names) == ['never', CLASSES[1], 'disc']
    assert page.find_element('css selector', 'th[aria-sort]').get_attribute('aria-sort') == 'ascending'
    page.find_element('css selector', '[data-key=name]').click()
    assert texts(page, names)[0] == CLASSES[1]


@pytest.mark.slow
def test_filter_by_class(page):
    choose(page, CLASSES[1])
    assert len(texts(page, '.shot')) == 4, 'its false detection, the disc that it was taken for, its two misses'
    assert len(texts(page, 'tr.chosen')) == 1 and len(page.find_elements('css selector', '#matrix .chosen')) == 7
    choose(page, 'never')
    assert texts(page, '#pr .none') == ['No objects of this class in the data set.']
    assert texts(page, '#errors .none') == ['None of this kind.']
    page.find_elements('css selector', '#classes .name')[1].click()
    assert page.find_element('id', 'filter').get_attribute('value') == '0', 'a click on a class chooses it, too'
    choose(page, 'all classes')
    page.find_element('css selector', '[data-kind=missed]').click()
    assert len(texts(page, '.shot')) == 3
    page.find_element('css selector', '[data-kind=all]').click()


@pytest.mark.slow
def test_images_open_with_the_keyboard(page):
    from selenium.webdriver.common.keys import Keys
    page.execute_script("document.querySelector('.shot').focus()")
    keys(page, Keys.ENTER)
    dialog = page.find_element('css selector', 'dialog')
    assert dialog.get_property('open') and '(1 of 7)' in dialog.text
    loaded = page.execute_async_script('''
        const done = arguments[0], image = new Image();
        image.onload = () => done([image.naturalWidth, image.naturalHeight]);
        image.src = document.querySelector('dialog image').getAttribute('href');''')
    assert loaded == [160, 100]
    assert page.find_elements('css selector', 'dialog .truth')
    assert page.find_elements('css selector', 'dialog .found.focus')
    keys(page, Keys.ARROW_RIGHT)
    assert '(2 of 7)' in dialog.text
    keys(page, Keys.ARROW_LEFT, Keys.ARROW_LEFT)
    assert '(7 of 7)' in dialog.text, 'it goes round'
    page.find_element('css selector', '[data-hides=no-truth]').click()
    assert not any(e.is_displayed() for e in page.find_elements('css selector', 'dialog .truth'))
    page.find_element('css selector', '[data-hides=no-truth]').click()
    keys(page, Keys.ESCAPE)
    assert not dialog.get_property('open')
    assert page.execute_script("return document.activeElement.className") == 'shot'


@pytest.mark.slow
def test_fits_a_telephone(page):
    page.execute_cdp_cmd('Emulation.setDeviceMetricsOverride',
                         dict(width=375, height=700, deviceScaleFactor=2, mobile=True))
    try:
        width = page.execute_script('return document.documentElement.scrollWidth')
        assert width <= 375, 'nothing sticks out; wide tables scroll in their own frame'
    finally:
        page.execute_cdp_cmd('Emulation.clearDeviceMetricsOverride', {})
