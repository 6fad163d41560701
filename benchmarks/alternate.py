"""Times of networks in turns, so that what else the machine does meets all of them alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from statistics import median, quantiles
from time import perf_counter
from typing import Any


def in_turns(
    networks: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 3
) -> dict[str, dict[str, Any]]:
    """Milliseconds of each call, and how many times as fast as the first it is.

    Ratios are of the medians; ``ratio_quartiles`` are of the ratios within a turn.
    """
    times: dict[str, list[float]] = {name: [] for name in networks}
    for turn in range(warmup + repeats):
        for name, call in networks.items():
            start = perf_counter()
            call()
            if turn >= warmup:
                times[name].append(1e3 * (perf_counter() - start))
    first = next(iter(times.values()))
    return {
        name: {
            "median_ms": median(own),
            "quartiles_ms": _quartiles(own),
            "least_ms": min(own),
            "ratio": median(first) / median(own),
            "ratio_of_least": min(first) / min(own),
            "ratio_quartiles": _quartiles([a / b for a, b in zip(first, own, strict=True)]),
        }
        for name, own in times.items()
    }


def _quartiles(values: list[float]) -> list[float]:
    low, _, high = quantiles(values, n=4, method="inclusive")
    return [low, high]
