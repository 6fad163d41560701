"""Clocks for the CPU and for CUDA, and fair comparison: what is compared runs in turn."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument, first_line


class Clock:
    """Milliseconds between marks, on a CPU."""

    device = "cpu"

    def mark(self) -> Any:
        return time.perf_counter_ns()

    def wait(self) -> None:
        """Let everything before the last mark be over."""

    def between(self, start: Any, end: Any) -> float:
        return (end - start) / 1e6


class _CudaClock(Clock):
    """The same by CUDA events, which stand in the stream beside the work."""

    device = "cuda"

    def mark(self) -> Any:
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def wait(self) -> None:
        torch.cuda.synchronize()

    def between(self, start: Any, end: Any) -> float:
        return float(start.elapsed_time(end))


def clock_for(model: nn.Module, inputs: Sequence[Any]) -> Clock:
    """The clock of the device that ``model`` and ``inputs`` lie on; InvalidArgument if several."""
    tensors = [*model.parameters(), *(x for x in inputs if isinstance(x, Tensor))]
    kinds = {tensor.device.type for tensor in tensors}
    if len(kinds) > 1:
        raise InvalidArgument(
            f"model and inputs lie on several devices: {', '.join(sorted(kinds))}"
        )
    kind = kinds.pop() if kinds else "cpu"
    if kind not in ("cpu", "cuda"):
        raise InvalidArgument(f"device {kind}: times are taken on a CPU or with CUDA")
    return _CudaClock() if kind == "cuda" else Clock()


def run_once(model: nn.Module, inputs: Sequence[Any]) -> None:
    """A forward pass; InvalidArgument, with the shapes of ``inputs``, if it fails."""
    try:
        model(*inputs)
    except Exception as error:
        shapes = ", ".join(str(tuple(x.shape)) for x in inputs if isinstance(x, Tensor))
        raise InvalidArgument(
            f"the model fails on inputs of shape {shapes}: {first_line(error)}"
        ) from error


def quantile(values: Sequence[float], q: float) -> float:
    """The value at share ``q`` of the sorted ``values``."""
    ordered = sorted(values)
    return ordered[round(q * (len(ordered) - 1))]


@dataclass(frozen=True)
class Spread:
    """A median, and the quartiles around it."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(median(values), quantile(values, 0.25), quantile(values, 0.75))


@dataclass(frozen=True)
class Comparison:
    """Milliseconds of two calls that ran in turn, and ``ratio``: the first's time by the second's.

    The ratio is taken round by round, so that a busy moment of the machine, which both meet, does
    not count; more than 1 where the second is faster.
    """

    first: Spread
    second: Spread
    ratio: Spread


def compare(
    first: Callable[[], object],
    second: Callable[[], object],
    clock: Clock,
    *,
    repeats: int,
    warmup: int,
    seconds: float = float("inf"),
    tick: Callable[[], None] = lambda: None,
) -> Comparison:
    """Time two calls in turn: ``warmup`` rounds that do not count, and ``repeats`` that do.

    Which of them goes first changes from round to round. After ``seconds`` no new round starts,
    once there are three. ``tick`` is called after each round.
    """
    calls = (first, second)
    times: tuple[list[float], list[float]] = ([], [])
    started = time.monotonic()
    for i in range(-warmup, repeats):
        if i >= 3 and time.monotonic() - started > seconds:
            break
        for which in (0, 1) if i % 2 else (1, 0):
            start = clock.mark()
            calls[which]()
            end = clock.mark()
            clock.wait()
            if i >= 0:
                times[which].append(clock.between(start, end))
        tick()
    ratios = [a / b for a, b in zip(*times, strict=True)]
    return Comparison(Spread.of(times[0]), Spread.of(times[1]), Spread.of(ratios))
