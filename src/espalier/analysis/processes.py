"""Work in several processes, through joblib: its own, or those of Dask or Ray.

A Dask cluster, for example::

    with joblib.parallel_config(backend="dask"):
        espalier.sensitivity(model, evaluate, keep="points.jsonl")
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import BrokenExecutor
from typing import Any, TypeVar

from espalier.errors import EspalierError, MissingDependency

MOST_JOBS = 4
# A task that killed its workers; and one whose data was on the worker that was killed.
_DASK_ERRORS = ("KilledWorker", "FutureCancelledError", "CancelledError")

T = TypeVar("T")


def serial(jobs: int | None) -> bool:
    """Whether the work stays in this process."""
    return jobs == 1 or (jobs is None and _default_jobs() == 1 and not _configured())


def workers(jobs: int | None) -> int:
    """How many processes ``jobs`` means."""
    if serial(jobs):
        return 1
    if jobs is None and not _configured():
        return _default_jobs()
    return int(_joblib().effective_n_jobs(jobs))


def _default_jobs() -> int:
    return min(MOST_JOBS, os.cpu_count() or 1)


class WorkerDied(EspalierError):
    """A worker process was killed, and its backend did not start the work again."""


def in_processes(
    work: Callable[..., T], calls: Iterable[tuple[Any, ...]], jobs: int | None
) -> Iterator[T]:
    """``work(*call)`` of every call, as each is done.

    Parameters
    ----------
    jobs : int or None
        None: what :func:`joblib.parallel_config` says where it is used, else one for each
        processor, at most 4.

    Raises
    ------
    WorkerDied
        What has come until then stands.
    """
    joblib = _joblib()
    n = _default_jobs() if jobs is None and not _configured() else jobs
    try:
        parallel = joblib.Parallel(n_jobs=n, batch_size=1, return_as="generator_unordered")
    except ValueError:  # a backend that cannot hand out results one by one
        parallel = joblib.Parallel(n_jobs=n, batch_size=1)
    delayed = joblib.delayed(work)
    try:
        yield from parallel(delayed(*call) for call in calls)
    except Exception as error:
        if not _worker_died(error):
            raise
        raise WorkerDied(f"a worker process ended ({type(error).__name__})") from error


def until_done(
    attempt: Callable[[], Iterator[T]], kept: Callable[[], int], take: Callable[[T], None]
) -> None:
    """Hand the results of ``attempt()`` to ``take``; again, where a worker was killed on the way.

    ``attempt`` gives what is still missing. Work that kills its worker twice in a row, with nothing
    finished between, is given up.

    Raises
    ------
    WorkerDied
        With the number of points that are ``kept``.
    """
    failures = 0
    while True:
        before = kept()
        try:
            for result in attempt():
                take(result)
            return
        except WorkerDied as error:
            failures = failures + 1 if kept() == before else 1
            if failures == 2:
                raise WorkerDied(
                    f"{error}; {kept()} points are kept: run again to go on, with fewer jobs if "
                    "memory is short"
                ) from error


def _joblib() -> Any:
    try:
        import joblib
    except ImportError:
        raise MissingDependency(
            "several processes need joblib: pip install 'espalier[analysis]', or jobs=1"
        ) from None
    return joblib


def _configured() -> bool:
    """Whether the caller chose a backend, or a number of jobs, by ``joblib.parallel_config``."""
    joblib = _joblib()
    backend, jobs = joblib.parallel.get_active_backend()
    return jobs not in (None, 1) or not isinstance(backend, joblib.parallel.BACKENDS["loky"])


def _worker_died(error: Exception) -> bool:
    # Dask's errors are known by name, since Dask need not be installed.
    return isinstance(error, BrokenExecutor) or type(error).__name__ in _DASK_ERRORS
