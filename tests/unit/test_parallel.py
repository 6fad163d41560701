"""Results in order, the first exception, and nothing begun too far ahead of the caller."""

import subprocess
import sys
import threading
import time

import pytest

from espalier.errors import InvalidArgument
from espalier.parallel import in_order, job_count


@pytest.mark.parametrize("jobs", [1, 2, 5])
def test_results_come_in_order(jobs):
    def slow_first(i):
        time.sleep(0.02 if i == 0 else 0)
        return i * i

    for n in (0, 1, 50):
        with in_order(slow_first, range(n), jobs) as results:
            assert list(results) == [i * i for i in range(n)]


@pytest.mark.parametrize("jobs", [1, 3])
def test_the_first_exception_in_order_is_raised(jobs):
    def fail(i):
        if i in (2, 3):
            time.sleep(0.02 if i == 2 else 0)
            raise ValueError(i)
        return i

    with in_order(fail, range(10), jobs) as results:
        assert [next(results), next(results)] == [0, 1]
        with pytest.raises(ValueError, match="2"):
            next(results)


@pytest.mark.parametrize("sizes", [[4] * 30, [4, 1] * 15, [0] * 5, [1] * 20 + [4]])
def test_what_is_begun_and_not_taken_is_bounded(sizes):
    begun, lock = [], threading.Lock()

    def work(item):
        with lock:
            begun.append(item)
        return item

    taken = 0
    with in_order(work, enumerate(sizes), 2, lambda item: item[1]) as results:
        for i, size in results:
            time.sleep(0.001)
            with lock:
                ahead = sum(s for j, s in begun if j >= i)
            assert ahead <= 2 * 2 * max(sizes)
            assert (i, size) == (taken, sizes[taken])
            taken += 1
    assert taken == len(sizes)


def test_threads_run_at_the_same_time():
    both = threading.Barrier(2, timeout=30)
    with in_order(lambda i: both.wait() >= 0 and i, range(4), 2) as results:
        assert list(results) == [0, 1, 2, 3]


def test_a_caller_that_stops_early_leaves_no_work_behind():
    done = []
    before = set(threading.enumerate())  # other tests' threads are none of this one's business

    def work(i):
        time.sleep(0.005)
        done.append(i)
        return i

    with in_order(work, range(100), 2) as results:
        next(results)
    count = len(done)
    assert count <= 6
    assert set(threading.enumerate()) <= before
    time.sleep(0.03)
    assert len(done) == count


def test_number_of_jobs():
    assert 1 <= job_count() <= 4
    assert job_count(7) == 7
    with pytest.raises(InvalidArgument, match="jobs is 0"):
        job_count(0)


def test_a_family_of_methods_is_whole_for_every_thread():
    code = (
        "import threading\n"
        "from espalier.interop.base import FORMATS\n"
        "seen = []\n"
        "ask = lambda: seen.append(tuple(FORMATS.names()))\n"
        "threads = [threading.Thread(target=ask) for _ in range(8)]\n"
        "[t.start() for t in threads]\n[t.join() for t in threads]\n"
        "assert len(seen) == 8 and len(set(seen)) == 1, seen\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
