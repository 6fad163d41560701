"""``espalier.sensitivity``: how much of each layer can go before the network suffers."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from espalier.analysis.axis import Grid, Setting, Value, check_grid, make_axis, sweepable
from espalier.analysis.evaluations import Evaluate, Evaluations
from espalier.errors import InvalidArgument
from espalier.options import Lookup
from espalier.progress import Progress, reporting
from espalier.targets import find_targets
from espalier.torch_io import save

VERSION = 1


@dataclass(frozen=True)
class SweptLayer:
    """A layer as it was before the sweep. ``size_bytes``: its weight's true coded size."""

    name: str
    kind: str
    elements: int
    size_bytes: int

    @property
    def short(self) -> str:
        """The layer's name, for tables and pictures: ``conv1`` for ``conv1.weight``."""
        return self.name.removesuffix(".weight")


@dataclass(frozen=True)
class Point:
    """One layer at one value of one axis, all other layers as they were.

    ``metric`` is None where nothing was evaluated; the other fields are those of
    :class:`~espalier.analysis.evaluations.LayerOutcome`.
    """

    layer: str
    axis: str
    value: Value
    metric: float | None
    size_bytes: int
    density: float
    relative_error: float | None
    sqnr_db: float | None
    seconds: float


@dataclass(frozen=True)
class Sweep:
    """The result of :func:`sensitivity`.

    Attributes
    ----------
    model : str
        Fingerprint of the network's tensors.
    metric, better, data : str
        What ``evaluate`` measured (empty without one), whether ``"higher"`` or ``"lower"`` is
        better, and on what.
    baseline : float or None
        The metric of the network as it is.
    file_bytes, original_bytes : int
        The network as it is in an ``.esp`` file; and its tensors, dense.
    layers : tuple of SweptLayer
    points : tuple of Point
        Layer by layer, axis by axis, in the order of the grid.
    """

    model: str
    metric: str
    better: str
    data: str
    baseline: float | None
    file_bytes: int
    original_bytes: int
    layers: tuple[SweptLayer, ...]
    points: tuple[Point, ...]

    @property
    def axes(self) -> tuple[str, ...]:
        """The axes that were swept."""
        return tuple(dict.fromkeys(point.axis for point in self.points))

    def grid(self, axis: str) -> tuple[Value, ...]:
        """The values that were tried on ``axis``, rising."""
        return tuple(sorted({p.value for p in self.points if p.axis == axis}))

    def curve(self, layer: str, axis: str) -> tuple[Point, ...]:
        """The points of one layer on one axis, by rising value."""
        found = [p for p in self.points if (p.layer, p.axis) == (layer, axis)]
        return tuple(sorted(found, key=lambda p: p.value))

    def loss(self, point: Point) -> float:
        """What ``point`` costs in the metric, 0 or less where it costs nothing."""
        if point.metric is None or self.baseline is None:
            raise InvalidArgument(
                "the sweep has no metric: give sensitivity() an evaluate function"
            )
        lost = self.baseline - point.metric
        return lost if self.better == "higher" else -lost

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"version": VERSION} | asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Sweep:
        """The inverse of :meth:`to_json`."""
        try:
            values = dict(plain)
            if values.pop("version") != VERSION:
                raise InvalidArgument(f"a sweep of version {plain['version']}, not {VERSION}")
            values["layers"] = tuple(SweptLayer(**layer) for layer in values["layers"])
            values["points"] = tuple(Point(**point) for point in values["points"])
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InvalidArgument(f"not a sweep ({error})") from None


def sensitivity(
    model: nn.Module,
    evaluate: Evaluate | None = None,
    grid: Grid | None = None,
    *,
    layers: Sequence[str] | None = None,
    metric: str = "accuracy",
    better: str = "higher",
    data: str = "",
    jobs: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Sweep:
    """Change one layer at a time, over a grid, and see what the network loses.

    For each layer l and value v: metric(w_1, ..., c_v(w_l), ..., w_n), where c_v prunes to density
    v, shares 2^v values, or does what any other registered axis does. Without ``evaluate``: the
    relative error norm(c_v(w) - w) / norm(w), and the SQNR, of the weights alone. Nothing is
    retrained.

    Parameters
    ----------
    model : nn.Module
        Stays as it is: every point is measured on a copy.
    evaluate : callable, optional
        ``evaluate(model)`` gives a number, or what :func:`espalier.evaluate` returns. Give it data
        held out of the training set, since choices are made by it.
    grid : mapping of str to sequence, optional
        ``{"density": (0.1, 0.3), "bits": (2, 4)}``; all registered axes with their own values
        without it.
    layers : sequence of str, optional
        Name patterns or kinds of the layers to sweep; all by default.
    metric : str
        Name of what ``evaluate`` measures.
    better : {"higher", "lower"}
    data : str
        In words, what ``evaluate`` looks at. It is kept with the points.
    jobs : int, optional
        Processes, through joblib. By default one for each processor, at most 4, or what
        ``joblib.parallel_config`` says: Dask or Ray are used like that.
    keep : path, optional
        A file where each finished point is kept: called again with it, the sweep goes on.
    progress : bool or callable, optional
        As in :func:`espalier.train`.

    Returns
    -------
    Sweep

    Raises
    ------
    InvalidArgument
        A value outside its axis' range, no such layer; ``evaluate`` raises, or gives NaN; ``keep``
        holds points of another model. What was measured is kept.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 2))
    >>> sweep = espalier.sensitivity(model, grid={"density": (0.25, 0.5)}, jobs=1)
    >>> [(p.layer, p.value) for p in sweep.points]
    [('0.weight', 0.25), ('0.weight', 0.5), ('1.weight', 0.25), ('1.weight', 0.5)]

    Notes
    -----
    The sweep of Han et al. 2015 (arXiv 1506.02626, figure 6) and of Li et al. 2017 (arXiv
    1608.08710, section 3.2).
    """
    checked = check_grid(grid)
    if better not in ("higher", "lower"):
        raise InvalidArgument(f"better must be 'higher' or 'lower', not {better!r}")
    with reporting(progress) as report:
        trials = Evaluations(
            model, evaluate, keep=keep, metric=metric, data=data, jobs=jobs, progress=report
        )
        return sweep_with(trials, checked, layers, better, data)


def sweep_with(
    trials: Evaluations,
    grid: dict[str, tuple[Value, ...]],
    layers: Sequence[str] | None,
    better: str,
    data: str,
) -> Sweep:
    """The sweep of ``trials``' model; ``grid`` has been checked."""
    model = trials.model
    having = find_layers(model, list(grid), layers, trials.example(grid))
    targets = [t for t in find_targets(model) if t.name in having]
    settings = settings_of(having, grid)
    first: list[Setting] = [{}] if trials.evaluate else []
    as_they_are: list[Setting] = [{t.name: {}} for t in targets]
    outcomes = trials.measure([*first, *as_they_are, *settings])
    baseline = outcomes.pop(0).metric if first else None
    sizes = [outcome.layer for outcome in outcomes[: len(targets)]]
    ledger = save(model, io.BytesIO())
    points = []
    for outcome in outcomes[len(targets) :]:
        ((layer, values),) = outcome.setting.items()
        ((axis, value),) = values.items()
        assert outcome.layer is not None
        points.append(
            Point(
                layer, axis, value, outcome.metric, seconds=outcome.seconds, **asdict(outcome.layer)
            )
        )
    return Sweep(
        model=trials.fingerprint,
        metric=trials.metric if trials.evaluate else "",
        better=better,
        data=data,
        baseline=baseline,
        file_bytes=ledger.file_bytes,
        original_bytes=ledger.original_bytes,
        layers=tuple(
            SweptLayer(t.name, t.kind, t.value.numel(), size.size_bytes)
            for t, size in zip(targets, sizes, strict=True)
            if size is not None
        ),
        points=tuple(points),
    )


def find_layers(
    model: nn.Module, axes: Sequence[str], patterns: Sequence[str] | None, example: Any = None
) -> dict[str, list[str]]:
    """The layers of ``model`` to sweep, each with its axes.

    Raises
    ------
    InvalidArgument
        A pattern matches no layer; no layer can be swept.
    """
    having = sweepable(model, [make_axis(name, example) for name in axes])
    if patterns:
        targets = [t for t in find_targets(model) if t.name in having]
        lookup: Lookup[bool] = Lookup({"*": None, **dict.fromkeys(patterns, True)}, "layers")
        chosen = lookup.resolve([(t.answers_to, t.kind) for t in targets])
        having = {t.name: having[t.name] for t, c in zip(targets, chosen, strict=True) if c}
    if not having:
        raise InvalidArgument("the model has no layer that can be swept")
    return having


def settings_of(having: Mapping[str, Sequence[str]], grid: Grid) -> list[Setting]:
    """One setting for each layer, each of its axes and each value."""
    return [
        {layer: {name: value}}
        for layer, axes in having.items()
        for name, values in grid.items()
        if name in axes
        for value in values
    ]


__all__ = ["Point", "Sweep", "SweptLayer", "sensitivity"]
