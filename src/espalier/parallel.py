"""Work done by several threads, its results in order, and no more of them at a time than fit.

Threads and not processes: kernels and NumPy let go of the interpreter's lock, and arrays need not
be sent anywhere.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

from espalier.errors import InvalidArgument

T = TypeVar("T")
R = TypeVar("R")

_MOST_BY_DEFAULT = 4  # each job holds a tensor


def job_count(jobs: int | None = None) -> int:
    """``jobs``, or by default one for each processor that this process may use, 4 at most.

    Examples
    --------
    >>> job_count(3)
    3
    """
    if jobs is None:
        # Where there is affinity, a container may have fewer processors than the machine.
        usable = getattr(os, "sched_getaffinity", lambda _pid: range(os.cpu_count() or 1))(0)
        return min(len(usable), _MOST_BY_DEFAULT)
    if jobs < 1:
        raise InvalidArgument(f"jobs is {jobs}; it must be 1 or more")
    return jobs


@contextmanager
def in_order(
    function: Callable[[T], R],
    items: Iterable[T],
    jobs: int = 1,
    weight: Callable[[T], int] = lambda _item: 1,
) -> Iterator[Iterator[R]]:
    """``map(function, items)`` by ``jobs`` threads, running ahead of the caller only so far.

    The results are those of ``map``, in the order of ``items``, whatever ``jobs`` is; so is the
    exception, if one is raised. When the block ends, no thread is left.

    Parameters
    ----------
    function : callable
    items : iterable
    jobs : int, default 1
        1 is the caller's own thread.
    weight : callable, default 1 for each
        What an item's result may hold, say bytes. The items begun and not yet taken by the caller
        weigh together at most 2 * jobs times as much as the heaviest one: since large and small
        tensors take turns in most networks, fewer would leave threads idle.

    Yields
    ------
    iterator of results

    Examples
    --------
    >>> with in_order(str, [3, 1, 2], jobs=2) as results:
    ...     list(results)
    ['3', '1', '2']
    """
    if jobs == 1:
        yield map(function, items)
        return
    begun: deque[tuple[Future[R], int]] = deque()
    with ThreadPoolExecutor(jobs) as pool:
        try:
            yield _results(pool, function, list(items), 2 * jobs, weight, begun)
        finally:
            for future, _ in begun:
                future.cancel()


def _results(
    pool: ThreadPoolExecutor,
    function: Callable[[T], R],
    items: list[T],
    ahead: int,
    weight: Callable[[T], int],
    begun: deque[tuple[Future[R], int]],
) -> Iterator[R]:
    room = ahead * max(map(weight, items), default=0)
    for item in items:
        room -= weight(item)
        while room < 0:
            future, weighs = begun.popleft()
            yield future.result()
            del future  # and with it the result, which the caller has let go of
            room += weighs
        begun.append((pool.submit(function, item), weight(item)))
    while begun:
        yield begun.popleft()[0].result()
