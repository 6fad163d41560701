"""``espalier.profile``: where the time of a forward pass goes, operation by operation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.analysis.figures import Figure, shares
from espalier.analysis.operations import (
    Operations,
    dispatched_operations,
    traced_operations,
)
from espalier.errors import InvalidArgument, first_line
from espalier.modes import evaluating
from espalier.progress import Progress, reporting
from espalier.timing import Clock, clock_for, quantile, run_once

TENSOR, NON_TENSOR = "tensor", "non-tensor"


@dataclass(frozen=True)
class OperationTime:
    """One operation of the forward pass.

    Attributes
    ----------
    layer : str
        The module that does it, or the operation's own name within its module: ``"conv1"``,
        ``"layer1.0/relu"``.
    operation : str
        ``"conv2d"``, ``"relu"``, ``"max_pool2d"``: a module, a function and a method of the same
        kind have one name.
    kind : str
        ``"tensor"`` if it multiplies by a tensor of weights (or looks one up), else
        ``"non-tensor"``: pooling, normalisation, activation, concatenation (Li, Wang and Kong 2018,
        section 1).
    ms : float
        Median forward time.
    ms_low, ms_high : float
        Quartiles of it.
    macs : int
        Multiply-accumulates; of convolutions and matrix products alone.
    parameters, weight_bytes : int
        That it reads and no operation before it has; bytes with buffers.
    activation_bytes : int
        Of what it gives.
    """

    layer: str
    operation: str
    kind: str
    ms: float
    ms_low: float
    ms_high: float
    macs: int
    parameters: int
    weight_bytes: int
    activation_bytes: int


@dataclass(frozen=True)
class OperationShare:
    """All operations of one name together; ``share`` of the time, from 0 to 1."""

    operation: str
    kind: str
    calls: int
    ms: float
    share: float
    macs: int


@dataclass(frozen=True)
class Profile:
    """The result of :func:`profile`.

    Attributes
    ----------
    rows : tuple of OperationTime
        In the order of the forward pass.
    pass_ms : float
        Median time of a measured pass, all operations together. Where a machine is busy it is more
        than the sum of the operations' medians.
    end_to_end_ms : float
        Median time of the model itself, called between the measured passes.
    method : str
        ``"traced"``, or ``"dispatched"`` where the model cannot be traced.
    note : str
        Why it cannot, or empty.
    device : str
    threads : int
    inputs : tuple of tuple of int
        Shapes.
    repeats : int
    """

    rows: tuple[OperationTime, ...]
    pass_ms: float
    end_to_end_ms: float
    method: str
    note: str
    device: str
    threads: int
    inputs: tuple[tuple[int, ...], ...]
    repeats: int

    @property
    def total_ms(self) -> float:
        """Sum of the operations' times."""
        return sum(row.ms for row in self.rows)

    def share(self, kind: str) -> float:
        """Share of the time in ``"tensor"`` or ``"non-tensor"`` operations, from 0 to 1."""
        if kind not in (TENSOR, NON_TENSOR):
            raise InvalidArgument(f"kind must be {TENSOR} or {NON_TENSOR}, not {kind!r}")
        return sum(row.ms for row in self.rows if row.kind == kind) / self.total_ms

    def by_operation(self) -> tuple[OperationShare, ...]:
        """Operations of the same name together, the longest first."""
        groups: dict[tuple[str, str], list[OperationTime]] = {}
        for row in self.rows:
            groups.setdefault((row.operation, row.kind), []).append(row)
        total = self.total_ms
        found = []
        for (operation, kind), rows in groups.items():
            ms, macs = sum(row.ms for row in rows), sum(row.macs for row in rows)
            found.append(OperationShare(operation, kind, len(rows), ms, ms / total, macs))
        return tuple(sorted(found, key=lambda share: share.ms, reverse=True))

    def figure(self, title: str = "Time by operation") -> Figure:
        """Bars of the time of each kind of operation, tensor and non-tensor apart."""
        rows = [{"operation": s.operation, "kind": s.kind, "ms": s.ms} for s in self.by_operation()]
        return shares(
            rows,
            label="operation",
            value="ms",
            group="kind",
            unit="milliseconds",
            title=f"{title}: {100 * self.share(NON_TENSOR):.0f} % in non-tensor layers",
            name="profile",
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, with totals and shares, as plain data."""
        totals = {"total_ms": self.total_ms, "share_non_tensor": self.share(NON_TENSOR)}
        columns = ("macs", "parameters", "weight_bytes", "activation_bytes")
        totals |= {name: sum(getattr(row, name) for row in self.rows) for name in columns}
        operations = [asdict(share) for share in self.by_operation()]
        return asdict(self) | totals | {"by_operation": operations}


@torch.no_grad()
def profile(
    model: nn.Module,
    *inputs: Any,
    repeats: int = 20,
    warmup: int = 3,
    progress: Progress | bool | None = None,
) -> Profile:
    """Time each operation of a forward pass, and what it multiplies, reads and gives.

    The model is traced (``torch.fx``), so that functional activations and pooling count too, and
    the operations are run one by one as the model runs them: a time holds the operation and the
    freeing of what is not needed after it. Where a model cannot be traced, the operators that
    PyTorch dispatches are timed in their place, and the result says so.

    Parameters
    ----------
    model : nn.Module
        In evaluation mode while it is measured, on the device of its parameters; it stays as it is.
        Weights that are pruned or shared are put together before, once.
    *inputs : Tensor
        Of one forward pass.
    repeats : int
        Measured passes; a time is their median.
    warmup : int
        Passes before, that do not count.
    progress : bool or callable, optional
        As in :func:`espalier.train`.

    Returns
    -------
    Profile

    Raises
    ------
    InvalidArgument
        The model fails on these inputs; ``repeats`` or ``warmup`` out of range.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.ReLU())
    >>> found = espalier.profile(model, torch.zeros(2, 8), repeats=3)
    >>> [(row.layer, row.operation, row.kind, row.macs) for row in found.rows]
    [('0', 'linear', 'tensor', 64), ('1', 'relu', 'non-tensor', 0)]

    Notes
    -----
    Li, Wang and Kong 2018 (arXiv 1708.04728), table 1, by operation in place of by layer.
    """
    if repeats < 1 or warmup < 0:
        raise InvalidArgument(f"repeats {repeats} must be at least 1, warmup {warmup} at least 0")
    if not inputs:
        raise InvalidArgument("profile takes the inputs of one forward pass")
    clock = clock_for(model, inputs)
    with evaluating(model), parametrize.cached(), reporting(progress) as report:
        run_once(model, inputs)
        operations, method, note = _operations(model, inputs)
        rows = _describe(operations)
        times, whole = _measure(model, inputs, operations, clock, repeats, warmup, report)
    measured = [
        replace(row, ms=median(each), ms_low=quantile(each, 0.25), ms_high=quantile(each, 0.75))
        for row, each in zip(rows, times, strict=True)
    ]
    shapes = tuple(tuple(x.shape) for x in inputs if isinstance(x, Tensor))
    return Profile(
        rows=tuple(measured),
        pass_ms=median(map(sum, zip(*times, strict=True))),
        end_to_end_ms=median(whole),
        method=method,
        note=note,
        device=clock.device,
        threads=torch.get_num_threads(),
        inputs=shapes,
        repeats=repeats,
    )


def _operations(model: nn.Module, inputs: Sequence[Any]) -> tuple[Operations, str, str]:
    try:
        operations = traced_operations(model, inputs)
    except Exception as error:  # noqa: BLE001 - tracing runs the user's code, which may raise anything
        found = dispatched_operations(model, inputs)
        return found, "dispatched", f"the model cannot be traced: {first_line(error)}"
    return operations, "traced", ""


def _describe(operations: Operations) -> list[OperationTime]:
    """All of each row but its times."""
    rows = []
    seen: set[int] = set()
    for operation in operations.found:
        own = [t for t in operation.weights if id(t) not in seen]
        seen |= {id(t) for t in own}
        multiplies = operation.macs or operation.name == "embedding"
        rows.append(
            OperationTime(
                layer=operation.layer,
                operation=operation.name,
                kind=TENSOR if multiplies else NON_TENSOR,
                ms=math.nan,
                ms_low=math.nan,
                ms_high=math.nan,
                macs=operation.macs,
                parameters=sum(t.numel() for t in own if isinstance(t, nn.Parameter)),
                weight_bytes=sum(t.numel() * t.element_size() for t in own),
                activation_bytes=operation.output_bytes,
            )
        )
    return rows


def _measure(
    model: nn.Module,
    inputs: Sequence[Any],
    operations: Operations,
    clock: Clock,
    repeats: int,
    warmup: int,
    progress: Progress | None,
) -> tuple[list[list[float]], list[float]]:
    """Times of each operation and of the model as it is, in turn: both meet the same noise."""
    times: list[list[float]] = []
    whole: list[float] = []
    for i in range(-warmup, repeats):
        start = clock.mark()
        model(*inputs)
        end = clock.mark()
        clock.wait()
        marks = operations.marks(clock.mark)
        clock.wait()
        if i >= 0:
            whole.append(clock.between(start, end))
            each = [clock.between(a, b) for a, b in marks]
            times = times or [[] for _ in each]
            for kept, one in zip(times, each, strict=True):
                kept.append(one)
        if progress:
            progress(i + warmup + 1, repeats + warmup, "profile")
    return times, whole
