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

T = TypeVar("T")


def serial(jobs: int | None) -> bool:
    """Whether the work stays in this process."""
    return jobs == 1 or (jobs is None and _default_jobs() == 1 and not _configured())


def _default_jobs() -> int:
    return min(MOST_JOBS, os.cpu_count() or 1)


def in_processes(
    work: Callable[..., T],
    calls: Iterable[tuple[Any, ...]],
    jobs: int | None,
    kept: Callable[[], int],
) -> Iterator[T]:
    """``work(*call)`` of every call, as each is done.

    Parameters
    ----------
    jobs : int or None
        None: what :func:`joblib.parallel_config` says where it is used, else one for each
        processor, at most 4.
    kept : callable
        How many results are kept by now, for the message where a worker was killed.

    Raises
    ------
    EspalierError
        A worker process ended, and its backend does not start the work again.
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
        raise EspalierError(
            f"a worker process ended ({type(error).__name__}); {kept()} points are kept: run again "
            "to go on, with fewer jobs if memory is short"
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
    # Dask's error is known by name, since Dask need not be installed.
    return isinstance(error, BrokenExecutor) or type(error).__name__ == "KilledWorker"
