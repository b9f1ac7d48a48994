"""Evaluation in several processes: the same numbers to the last bit, and an end to every process, whatever happens."""

import multiprocessing
import os
import signal
import subprocess
import sys

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_masks

from boxdet.errors import ConfigError, DataError
from boxdet.evaluation import coco, evaluate, load_results, lvis, predictions, processes, save_results
from boxdet.evaluation.coco import OksSettings, coco_scores, match, truth_columns
from boxdet.evaluation.processes import in_processes, usable_processes
from boxdet.evaluation.stored_results import StoredResults
from boxdet.structures.instances import empty_result
from boxdet.structures.masks import RleMasks

pytestmark = pytest.mark.skipif(sys.platform != 'linux', reason='elsewhere one process evaluates')


@pytest.fixture
def used(monkeypatch) -> list[int]:
    """How many processes each step of an evaluation used."""
    numbers = []

    def counted(work, parts, number):
        numbers.append(number)
        return in_processes(work, parts, number)
    monkeypatch.setattr(coco, 'in_processes', counted)
    return numbers


# --- the numbers ---

@pytest.mark.parametrize('kind, options', [
    ('bbox', {}), ('segm', {}), ('keypoints', dict(limits=[20])), ('bbox', dict(limits=[1, 3, 100])),
    ('bbox', dict(class_agnostic=True)), ('segm', dict(iou_thrs=[0.1, 1.0], limits=[5]))], ids=str)
@pytest.mark.parametrize('memory', [1 << 20, 0], ids=['in memory', 'on disk'])
def test_every_number_is_that_of_one_process(random_data_set, used, kind, options, memory):
    """Crowds, equal scores and overlaps, images without objects or detections, ids in any order."""
    dataset, results = random_data_set(4, images=20)
    results[3] = results[-1] = empty_result((250, 250), 3, masks=True).replace(keypoints=torch.zeros(0, 5, 3))
    stored = StoredResults.of(results, memory)
    one, *others = [coco_scores(dataset.coco, stored, kind, dataset.img_ids, dataset.cat_ids, nproc=nproc,
                                oks_settings=OksSettings(dataset.SIGMAS, 0.5), **options) for nproc in (1, 2, 5)]
    assert used == [1, 1, 2, 1 if 'class_agnostic' in options else 2, 5, 1 if 'class_agnostic' in options else 3]
    assert (one.precision > 0).any() and (one.precision == 0).any()
    for other in others:
        assert np.array_equal(other.precision, one.precision) and np.array_equal(other.recall, one.recall)


def test_matches_are_those_of_one_process(random_data_set):
    dataset, results = random_data_set(6)
    stored, images = StoredResults.of(results), [dataset.coco.imgs[i] for i in dataset.img_ids]
    gt = truth_columns(dataset.coco, dataset.img_ids, dataset.cat_ids, 'segm')
    one, other = [match(gt, stored, images, dataset.cat_ids, 'segm', with_pairs=True, nproc=nproc) for nproc in (1, 3)]
    for name in ('image', 'row', 'label', 'score', 'area', 'rank', 'status', 'counted', 'truth', 'overlap'):
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype and np.array_equal(mine, theirs), name


@pytest.mark.parametrize('kind', ['bbox', 'segm'])
def test_lvis(random_data_set, used, kind):
    dataset, results = random_data_set(7)
    for number, image_id in enumerate(dataset.img_ids):
        dataset.coco.imgs[image_id].update(neg_category_ids=dataset.cat_ids[:number % 3],
                                           not_exhaustive_category_ids=dataset.cat_ids[number % 3:][:1])
    one, other = [lvis.lvis_scores(dataset, StoredResults.of(results), kind, limit=15, nproc=nproc) for nproc in (1, 3)]
    assert used == [1, 1, 3, 3] and 0 < one.ap(limit=15) < 1
    assert np.array_equal(other.precision, one.precision) and np.array_equal(other.recall, one.recall)


def test_a_results_file_is_read_as_by_one_process(random_data_set, tmp_path, monkeypatch):
    _, results = random_data_set(3, images=30)
    save_results(results, tmp_path / 'results.pkl')
    monkeypatch.setattr(predictions, '_SHARE', 10000)
    one, other = [load_results(tmp_path / 'results.pkl', nproc) for nproc in (1, 3)]
    assert len(one) == 30 and [one.packed(k) for k in range(30)] == [other.packed(k) for k in range(30)]
    with open(tmp_path / 'results.pkl', 'rb') as file:
        begin = predictions._bounds(file)[17][0]
    content = bytearray((tmp_path / 'results.pkl').read_bytes())
    content[begin:begin + 8] = bytes(8)
    (tmp_path / 'damaged.pkl').write_bytes(content)
    for nproc in (1, 3):
        with pytest.raises(DataError, match=r'damaged.pkl: '):
            load_results(tmp_path / 'damaged.pkl', nproc)
    assert not multiprocessing.active_children()


# --- when ---

def test_only_where_there_is_much_to_do(random_data_set, used, monkeypatch):
    dataset, results = random_data_set(8)
    stored = StoredResults.of(results)
    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: {0, 3})
    monkeypatch.setattr(processes, '_granted_processors', lambda: 8)

    def numbers(given, **options):
        used.clear()
        evaluate(dataset, given, 'bbox', logger='silent', **options)
        return used
    assert numbers(stored) == [1, 1]
    monkeypatch.setattr(coco, '_WORTH', 100)
    assert numbers(stored) == [2, 2] and numbers(stored, nproc=1) == [1, 1]
    assert numbers(results)[0] == 1  # they may hold tensors of a GPU


def test_processors_that_this_process_may_use(tmp_path, monkeypatch):
    own, root = tmp_path / 'cgroup', tmp_path / 'groups'
    (root / 'user/job').mkdir(parents=True)
    own.write_text('4:memory:/other\n0::/user/job\n')
    assert processes._granted_processors(root, own) == sys.maxsize
    (root / 'user/cpu.max').write_text('250000 100000\n')
    (root / 'user/job/cpu.max').write_text('max 100000\n')
    assert processes._granted_processors(root, own) == 3
    (root / 'user/job/cpu.max').write_text('50000 100000\n')
    assert processes._granted_processors(root, own) == 1
    assert processes._granted_processors(root, tmp_path / 'none') == sys.maxsize

    monkeypatch.setattr(os, 'sched_getaffinity', lambda _: set(range(6)))
    monkeypatch.setattr(processes, '_granted_processors', lambda: 4)
    assert usable_processes() == 4 and usable_processes(9) == 9 and usable_processes(1) == 1
    with monkeypatch.context() as patch:
        patch.setattr(multiprocessing, 'get_start_method', lambda allow_none: 'spawn')
        assert usable_processes(4) == 1
    with monkeypatch.context() as patch:
        patch.setattr(sys, 'platform', 'darwin')
        assert usable_processes(4) == 1


def test_a_process_that_may_have_no_children_works_alone():
    context = multiprocessing.get_context('fork')
    mine, theirs = context.Pipe()
    worker = context.Process(target=lambda: theirs.send((usable_processes(), usable_processes(4))), daemon=True)
    worker.start()
    assert mine.recv() == (1, 1)
    worker.join()


@pytest.mark.parametrize('nproc', [0, -1, 1.5, True, 'two'])
def test_no_number_of_processes(random_data_set, nproc):
    dataset, results = random_data_set(1)
    with pytest.raises(ConfigError, match=f'nproc={nproc!r}: the number of processes that evaluate, 1 at least'):
        evaluate(dataset, results, 'bbox', nproc=nproc)


# --- how it ends ---

def test_parts_come_in_order_from_other_processes():
    found = list(in_processes(lambda part: (part, os.getpid()), 20, 3))
    assert [part for part, _ in found] == list(range(20))
    assert len({pid for _, pid in found}) == 3 and os.getpid() not in dict(map(reversed, found))
    assert not multiprocessing.active_children()
    assert list(in_processes(lambda part: os.getpid(), 2, 1)) == [os.getpid()] * 2


def test_an_error_is_the_one_of_one_process(random_data_set):
    """The first wrong image is named, though another process may come upon another one first."""
    dataset, results = random_data_set(9, images=30)
    small = RleMasks([coco_masks.encode(np.ones((10, 20), np.uint8, order='F'))], 10, 20)
    for place in (11, 25):
        assert len(results[place])
        results[place] = results[place].replace(masks=RleMasks([small[0]] * len(results[place]), 10, 20))
    for nproc in (1, 4):
        with pytest.raises(DataError, match=rf'^image {dataset.img_ids[11]} .*a predicted mask is 20x10') as caught:
            evaluate(dataset, StoredResults.of(results), 'segm', logger='silent', nproc=nproc)
    assert '_mask_areas' in str(caught.value.__cause__)  # where it was raised
    assert not multiprocessing.active_children()


def test_a_killed_process_ends_the_evaluation(random_data_set, monkeypatch):
    dataset, results = random_data_set(2)
    here, choose = os.getpid(), coco._choose

    def killed(*args):
        if os.getpid() != here:
            os.kill(os.getpid(), signal.SIGKILL)
        return choose(*args)
    monkeypatch.setattr(coco, '_choose', killed)
    with pytest.raises(DataError, match=r'a process of the evaluation ended \(SIGKILL\).*nproc=1'):
        evaluate(dataset, StoredResults.of(results), 'bbox', logger='silent', nproc=2)
    assert not multiprocessing.active_children()
    evaluate(dataset, StoredResults.of(results), 'bbox', logger='silent', nproc=1)


def test_a_process_that_leaves():
    with pytest.raises(DataError, match=r'ended \(exit status 3\)'):
        list(in_processes(lambda part: os._exit(3), 4, 2))


def test_an_iterator_that_is_left_ends_its_processes():
    parts = in_processes(lambda part: part or signal.pause(), 4, 2)
    del parts  # not begun
    parts = in_processes(lambda part: signal.pause() if part else part, 4, 2)
    assert next(parts) == 0 and len(multiprocessing.active_children()) == 2
    parts.close()
    assert not multiprocessing.active_children()


_PROGRAM = '''
import os, sys
from boxdet.errors import run_command
from boxdet.evaluation.processes import in_processes

def work(part):
    os.write(1, b'+')
    return os.read(0, 1)

def main():
    list(in_processes(work, 2, 2))
run_command(main)
'''


@pytest.fixture
def program():
    """A program whose two copies work, until its standard input ends."""
    with subprocess.Popen([sys.executable, '-c', _PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, start_new_session=True) as program:
        assert program.stdout.read(2) == b'++'
        yield program


def test_ctrl_c_ends_all_processes(program):
    os.killpg(program.pid, signal.SIGINT)
    assert program.stdout.read() == b''  # ends when the last process is gone
    assert program.stderr.read() == b'interrupted\n' and program.wait() == 130


def test_the_copies_of_a_killed_program_end(program):
    program.kill()
    assert program.wait() == -signal.SIGKILL
    program.stdin.close()  # their parts are done
    assert program.stdout.read() == b'' and program.stderr.read() == b''


_THREADS = '''
import threading, torch
from boxdet.evaluation.processes import in_processes
torch.set_num_threads(2)
(torch.rand(500, 500) @ torch.rand(500, 500)).sort()  # OpenMP's threads run
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(sum(in_processes(lambda part: int(torch.ones(1 << 20).sum()), 4, 2)) == 4 << 20)
'''


def test_a_fork_beside_threads_and_after_openmp():
    done = subprocess.run([sys.executable, '-W', 'error', '-c', _THREADS], capture_output=True, text=True,
                          env={key: value for key, value in os.environ.items() if key != 'OMP_NUM_THREADS'})
    assert done.stdout == 'True\n', done.stderr
