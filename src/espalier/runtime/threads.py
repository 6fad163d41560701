"""Work on several threads: PyTorch's own, where they can be had.

PyTorch's operations run on a pool of OpenMP. Its threads spin for a while after each of them, so
that a second pool beside it would find the processors taken; and they are there at once, where a
sleeping thread has to be woken. ``GOMP_parallel`` is the entry that GNU's OpenMP and LLVM's share;
where it is missing, threads of our own take the work.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path

import torch

Share = Callable[[int, int, int], None]


def run(body: int, block: int, threads: int) -> None:
    """Call the function at the address ``body`` with ``block``, on ``threads`` threads at once.

    Its parts take their work off a counter, so that it does not matter how many of them come.
    """
    if threads <= 1:
        _function(body)(block)
    else:
        _shared()(body, block, threads)


@cache
def _function(body: int) -> Callable[[int], None]:
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p)(body)  # lets go of the interpreter's lock


@cache
def _shared() -> Share:
    return openmp() or pool()


def openmp() -> Share | None:
    """PyTorch's own threads, by the OpenMP library that it has loaded; None if there is none."""
    for path in Path(torch.__file__).parent.glob("lib/libtorch_cpu.*"):
        try:
            entry = ctypes.CDLL(str(path)).GOMP_parallel
        except (OSError, AttributeError):
            continue
        entry.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
        entry.restype = None
        return lambda body, block, threads: entry(body, block, threads, 0)
    return None


def pool() -> Share:
    """Threads of our own, beside the caller's."""
    executors: dict[int, ThreadPoolExecutor] = {}

    def share(body: int, block: int, threads: int) -> None:
        if threads not in executors:
            executors[threads] = ThreadPoolExecutor(threads - 1, "espalier-runtime")
        function = _function(body)
        others = [executors[threads].submit(function, block) for _ in range(threads - 1)]
        function(block)
        for other in others:
            other.result()

    return share
