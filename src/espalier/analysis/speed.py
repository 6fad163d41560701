"""``espalier.compare_speed``: how much faster a network became, and on which runtime."""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from espalier.analysis.runtime import RUNTIMES, Runtime
from espalier.errors import EspalierError, InvalidArgument
from espalier.modes import evaluating
from espalier.parametrization import current, finalize
from espalier.progress import Progress, reporting
from espalier.targets import find_targets
from espalier.timing import Clock, Spread, clock_for, compare, run_once

DEFAULT_RUNTIMES = ("eager", "compile", "onnxruntime")
SECONDS = 20.0
"""After so many, a comparison starts no new round."""


@dataclass(frozen=True)
class SpeedRow:
    """One runtime and batch size.

    Attributes
    ----------
    runtime : str
    batch : int
    original_ms, result_ms : Spread or None
        Milliseconds of a forward pass: median and quartiles. None if it was not measured.
    ratio : Spread or None
        Original by result, round by round: 2 means twice as fast.
    note : str
        Why it was not measured, or empty.
    """

    runtime: str
    batch: int
    original_ms: Spread | None = None
    result_ms: Spread | None = None
    ratio: Spread | None = None
    note: str = ""

    @property
    def verdict(self) -> str:
        """``faster`` or ``slower`` where the quartiles of the ratio agree, else ``no difference``.

        ``not measured`` where there is no ratio.
        """
        if self.ratio is None:
            return "not measured"
        if self.ratio.low > 1:
            return "faster"
        return "slower" if self.ratio.high < 1 else "no difference"


@dataclass(frozen=True)
class Speed:
    """The result of :func:`compare_speed`: a row for each runtime and batch size."""

    rows: tuple[SpeedRow, ...]
    threads: int
    device: str

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        rows = [asdict(row) | {"verdict": row.verdict} for row in self.rows]
        return {"threads": self.threads, "device": self.device, "rows": rows}


@torch.no_grad()
def compare_speed(
    original: nn.Module,
    result: nn.Module,
    example: Tensor,
    *,
    runtimes: Sequence[str | Runtime] = DEFAULT_RUNTIMES,
    batches: Sequence[int] = (1, 32),
    repeats: int = 30,
    warmup: int = 3,
    progress: Progress | bool | None = None,
) -> Speed:
    """Time two networks in turn on the same inputs, on several runtimes.

    Fewer multiply-accumulates are no promise: what a runtime fuses or pads may take the gain away,
    and that is what this is for. Both run alternately, so that a busy machine slows both; the
    ratio is taken round by round.

    Parameters
    ----------
    original, result : nn.Module
        Measured in evaluation mode, and left as they are. Masks and codebooks are put together
        before, on a copy.
    example : Tensor
        One input or more; its first sample is repeated for each batch size.
    runtimes : sequence of str
        Of ``eager``, ``compile`` (``torch.compile``), ``onnxruntime`` and ``packed``
        (:func:`espalier.accelerate`).
    batches : sequence of int
        Samples in one pass.
    repeats, warmup : int
        Rounds that count, and rounds before. A comparison that takes long stops at 20 seconds.
    progress : bool or callable, optional
        As in :func:`espalier.train`.

    Returns
    -------
    Speed
        A runtime that is not installed or cannot run a network has a row that says so.

    Raises
    ------
    InvalidArgument
        A network fails on the example; options out of range.
    UnknownMethod
        No runtime of that name.

    Examples
    --------
    >>> import torch, espalier
    >>> wide, narrow = torch.nn.Linear(64, 64), torch.nn.Linear(64, 8)
    >>> x = torch.zeros(1, 64)
    >>> found = espalier.compare_speed(wide, narrow, x, runtimes=["eager"], repeats=3)
    >>> [(row.runtime, row.batch) for row in found.rows]
    [('eager', 1), ('eager', 32)]
    """
    if repeats < 1 or warmup < 0:
        raise InvalidArgument(f"repeats {repeats} must be at least 1, warmup {warmup} at least 0")
    if not batches or any(n < 1 for n in batches):
        raise InvalidArgument(f"batches {list(batches)} must be numbers from 1 on")
    if not len(example):
        raise InvalidArgument("example has no sample in it")
    clock = clock_for(original, [example, *result.parameters()])
    models = [_plain(original), _plain(result)]
    made = [RUNTIMES.make(runtime) for runtime in runtimes]
    rows: list[SpeedRow] = []
    with evaluating(*models), reporting(progress) as report:
        for model in models:
            run_once(model, [example[:1]])
        total = len(made) * len(batches)
        for runtime in made:
            for batch in batches:
                x = example[:1].repeat(batch, *[1] * (example.dim() - 1))
                row = _row(runtime, batch, models, x, clock, repeats, warmup)
                rows.append(row)
                if report:
                    report(len(rows), total, f"{runtime.name}, batch {batch}")
    return Speed(tuple(rows), torch.get_num_threads(), clock.device)


def _plain(model: nn.Module) -> nn.Module:
    """``model`` itself, or a copy without masks and codebooks."""
    held = any(current(target) is not None for target in find_targets(model))
    return finalize(deepcopy(model)) if held else model


def _row(
    runtime: Runtime,
    batch: int,
    models: list[nn.Module],
    x: Tensor,
    clock: Clock,
    repeats: int,
    warmup: int,
) -> SpeedRow:
    runtime.reset()
    try:
        first, second = (runtime.prepare(model, [x]) for model in models)
    except EspalierError as error:
        return SpeedRow(runtime.name, batch, note=str(error))
    found = compare(first, second, clock, repeats=repeats, warmup=warmup, seconds=SECONDS)
    return SpeedRow(runtime.name, batch, found.first, found.second, found.ratio)
