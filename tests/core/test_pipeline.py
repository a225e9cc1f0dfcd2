"""Threads beside a loop: order, bounds, errors where the loop is."""

import threading
import time

import pytest

from morphogen.core.running.pipeline import Behind, ahead


def test_what_is_made_ahead_comes_in_order_and_no_further_than_the_depth():
    begun = []

    def slow_at_first(item):
        begun.append(item)
        time.sleep(0.05 if item == 0 else 0)
        return item

    made = ahead(slow_at_first, iter(range(100)), threads=3, depth=4)
    assert next(made) == 0
    time.sleep(0.1)
    assert max(begun) <= 4  # the four that wait, beside the one that was given
    assert list(made) == list(range(1, 100))


def test_an_error_ahead_comes_at_its_item_and_nothing_is_left_running():
    before = threading.active_count()
    made = ahead(lambda n: 1 // (3 - n), range(10), threads=2)
    assert [next(made) for _ in range(3)] == [0, 0, 1]
    with pytest.raises(ZeroDivisionError):
        next(made)
    made = ahead(str, range(10))
    next(made)
    made.close()
    assert threading.active_count() == before


def test_what_is_put_behind_is_done_in_order_in_one_other_thread():
    done = []
    with Behind(lambda n: done.append((n, threading.current_thread().name))) as behind:
        for n in range(20):
            behind.put(n)
    assert [n for n, _ in done] == list(range(20)) and {name for _, name in done} == {"behind"}


def test_no_more_waits_than_there_is_room_for():
    gate, done = threading.Event(), []
    with Behind(lambda n: (gate.wait(5), done.append(n)), depth=2) as behind:
        for n in range(3):  # one at work, two that wait
            behind.put(n)
        blocked = threading.Thread(target=behind.put, args=(3,))
        blocked.start()
        blocked.join(0.1)
        assert blocked.is_alive() and not done
        gate.set()
        blocked.join(5)
    assert done == [0, 1, 2, 3]


def test_an_error_behind_comes_up_at_the_next_put_or_at_the_end():
    done = []

    def fails(n):
        if n == 1:
            raise OSError("the disk is full")
        done.append(n)

    with pytest.raises(OSError, match="full"), Behind(fails) as behind:
        for n in range(1000):
            behind.put(n)
    assert done == [0]  # what came after the error is not written over it
    with pytest.raises(OSError, match="full"), Behind(fails) as behind:
        behind.put(1)


def test_what_was_put_is_finished_when_the_loop_fails():
    done = []
    with pytest.raises(KeyboardInterrupt), Behind(lambda n: (time.sleep(0.02), done.append(n))) as behind:
        behind.put(1)
        behind.put(2)
        raise KeyboardInterrupt
    assert done == [1, 2]
