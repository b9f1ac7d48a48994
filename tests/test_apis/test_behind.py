"""Work in threads behind the network."""

import threading

import pytest

from boxdet.apis.behind import Behind
from boxdet.errors import DataError


def test_the_caller_goes_on_and_hears_in_order():
    free, told, threads = threading.Event(), [], set()

    def work(number):
        threads.add(threading.current_thread())
        assert number or free.wait(60)  # the first is done last
    with Behind(2) as behind:
        behind.put(lambda: work(0), lambda: told.append(0))
        for number in (1, 2, 3):
            behind.put(lambda number=number: work(number), lambda number=number: told.append(number))
        assert told == []  # none has to wait for the caller to go on
        free.set()
    assert told == [0, 1, 2, 3] and threading.current_thread() not in threads


def test_no_more_than_its_places_wait(monkeypatch):
    free, waiting = threading.Event(), []
    with Behind(1) as behind:
        finish = behind._finish_first

        def noted():
            waiting.append(len(behind._waiting))
            free.set()
            finish()
        monkeypatch.setattr(behind, '_finish_first', noted)
        for _ in range(3):
            behind.put(lambda: free.wait(60))
        assert waiting[:1] == [3]  # the third has waited for the first


def test_without_threads_all_is_done_at_once():
    done = []
    with Behind(0) as behind:
        behind.put(lambda: done.append(threading.current_thread()), lambda: done.append('told'))
        assert done == [threading.current_thread(), 'told']


def test_a_failure_reaches_the_caller_and_nothing_after_it_is_told():
    told = []

    def fail():
        raise DataError('cannot write a.png: No space left on device')
    with pytest.raises(DataError, match='No space left'), Behind(1) as behind:
        behind.put(lambda: None, lambda: told.append('before'))
        behind.put(fail, lambda: told.append('failed'))
        behind.put(lambda: None, lambda: told.append('after'))
    assert told == ['before']


def test_after_an_exception_nothing_more_begins():
    free, begun, first = threading.Event(), [], threading.Event()

    def work():
        begun.append(None)
        first.set()
        free.wait(60)
    with pytest.raises(KeyboardInterrupt), Behind(1) as behind:
        behind.put(work)
        behind.put(work)
        behind._waiting[1][0].add_done_callback(lambda future: free.set())  # it is cancelled
        first.wait(60)
        raise KeyboardInterrupt
    assert len(begun) == 1
