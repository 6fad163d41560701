"""``choose``: from a sweep to a setting for every layer, checked on the real network.

The problem: min bytes(s) subject to baseline - metric(s) <= loss, or max metric(s) subject to
bytes(s) <= n, over one option for each layer. Bytes are true coded sizes and add up. Losses add up
roughly; so the sum of the layers' own losses is only where the search begins, and every answer of
the real network corrects it.
"""

from __future__ import annotations

import copy
import io
import itertools
import os
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeAlias

import numpy as np
from torch import nn

from espalier.analysis.axis import AXES, Setting, Value, apply_setting, axes_of, stages_of
from espalier.analysis.evaluations import Evaluate, Evaluations
from espalier.analysis.sensitivity import Sweep
from espalier.errors import InvalidArgument
from espalier.state import Array
from espalier.torch_io import save
from espalier.training.progress import Progress, reporting

BUCKETS = 400
EVALUATIONS = 120

Path: TypeAlias = tuple[int, ...]
"""The number of the option that each layer takes."""


@dataclass(frozen=True)
class Option:
    """What one layer can be made: a value on some axes, its coded size, and its loss alone."""

    values: dict[str, Value]
    size_bytes: int
    loss: float


@dataclass(frozen=True)
class Table:
    """The options of every layer; the first of each is the layer as it is.

    ``fixed_bytes``: what the file holds beside these weights.
    """

    layers: tuple[str, ...]
    options: tuple[tuple[Option, ...], ...]
    fixed_bytes: int

    def setting(self, path: Path) -> dict[str, dict[str, Value]]:
        """What ``path`` does to the network."""
        chosen = zip(self.layers, self.options, path, strict=True)
        return {layer: row[i].values for layer, row, i in chosen if row[i].values}

    def size_bytes(self, path: Path) -> int:
        """The file of ``path``."""
        return self.fixed_bytes + sum(
            row[i].size_bytes for row, i in zip(self.options, path, strict=True)
        )


@dataclass(frozen=True)
class Proposal:
    """A setting for every layer, measured.

    Attributes
    ----------
    setting : mapping
        Layer -> axis -> value.
    metric, baseline : float
        Of the network so changed, nothing retrained; and as it was.
    file_bytes, baseline_bytes : int
        Of the real ``.esp`` files.
    max_loss, max_bytes : float or None, int or None
        What was asked for.
    evaluations : int
        Of the whole network, on the way.
    """

    setting: dict[str, dict[str, Value]]
    metric: float
    baseline: float
    file_bytes: int
    baseline_bytes: int
    max_loss: float | None
    max_bytes: int | None
    evaluations: int

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Proposal:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(**plain)
        except TypeError as error:
            raise InvalidArgument(f"not a proposal ({error})") from None

    def stages(self) -> list[dict[str, Any]]:
        """The stages of a recipe that make this file of the network."""
        return [*stages_of(self.setting), {"save": {"path": "model.esp"}}]


def option_table(trials: Evaluations, sweep: Sweep) -> Table:
    """The options of a sweep's layers: every combination of the values on its axes.

    The sizes of combinations are measured here; their losses are the sums of the sweep's.
    """
    if coupled := [axis for axis in sweep.axes if not AXES.get(axis).adds_up]:
        raise InvalidArgument(
            f"{coupled[0]}: what one layer loses changes the size of others, so that the sweep's "
            "sizes do not add up; choose from a sweep of other axes"
        )
    rows: list[list[dict[str, Value]]] = []
    for layer in sweep.layers:
        axes = [a for a in sweep.axes if sweep.curve(layer.name, a)]
        choices = [[None, *(p.value for p in sweep.curve(layer.name, a))] for a in axes]
        rows.append(
            [
                {a: v for a, v in zip(axes, values, strict=True) if v is not None}
                for values in itertools.product(*choices)
            ]
        )
    settings = [
        {layer.name: values}
        for layer, row in zip(sweep.layers, rows, strict=True)
        for values in row
    ]
    outcomes = iter(trials.measure(settings, metric=False))
    losses = {(p.layer, p.axis, p.value): max(0.0, sweep.loss(p)) for p in sweep.points}
    options = []
    for layer, row in zip(sweep.layers, rows, strict=True):
        found = []
        for values in row:
            outcome = next(outcomes)
            assert outcome.layer is not None
            loss = sum(losses[layer.name, axis, value] for axis, value in values.items())
            found.append(Option(values, outcome.layer.size_bytes, loss))
        options.append(tuple(found))
    as_they_are = sum(row[0].size_bytes for row in options)
    return Table(
        tuple(layer.name for layer in sweep.layers),
        tuple(options),
        sweep.file_bytes - as_they_are,
    )


Oracle: TypeAlias = Callable[[Sequence[Path]], Sequence[float]]
"""The real loss of each path."""


class Search:
    """The search over a table, by an additive model that each measured path corrects.

    predicted(path) = sum over layers of loss[layer][option]. A path that is measured shares the
    difference out among its changed layers, in proportion to what they were thought to lose (the
    projection of Kaczmarz 1937), so that the model agrees with it from then on.

    Parameters
    ----------
    table : Table
    oracle : callable
    batch : int
        Paths to measure at a time.
    """

    def __init__(self, table: Table, oracle: Oracle, batch: int = 1) -> None:
        self.table, self.oracle, self.batch = table, oracle, batch
        self.sizes = [np.array([o.size_bytes for o in row]) for row in table.options]
        self.losses = [np.array([o.loss for o in row]) for row in table.options]
        self.measured: dict[Path, float] = {}

    def predicted(self, path: Path) -> float:
        """The loss that the model expects of ``path``."""
        return float(sum(row[i] for row, i in zip(self.losses, path, strict=True)))

    def measure(self, paths: Sequence[Path]) -> None:
        """Ask the network, and correct the model."""
        new = [p for p in dict.fromkeys(paths) if p not in self.measured]
        for path, loss in zip(new, self.oracle(new), strict=True):
            self.measured[path] = loss
            self._correct(path, loss)

    def _correct(self, path: Path, loss: float) -> None:
        changed = [(row, i) for row, i in zip(self.losses, path, strict=True) if i]
        if not changed:
            return
        wrong = loss - self.predicted(path)
        shares = np.array([abs(row[i]) for row, i in changed])
        shares = shares + 0.2 * max(shares.sum(), abs(wrong)) / len(changed) + 1e-12
        for (row, i), share in zip(changed, shares / shares.sum(), strict=True):
            row[i] += wrong * share

    def cheapest(self, allowed: float) -> Path | None:
        """The smallest file whose predicted loss is at most ``allowed``; None if there is none."""
        low = sum(float(row.min()) for row in self.losses)
        if allowed < low:
            return None
        step = (allowed - low) / BUCKETS or 1.0
        costs = [np.ceil((row - row.min()) / step - 1e-9).astype(int) for row in self.losses]
        return _knapsack(costs, self.sizes, BUCKETS)

    def best_within(self, max_bytes: int) -> Path | None:
        """The least predicted loss in a file of at most ``max_bytes``."""
        room = max_bytes - self.table.fixed_bytes - sum(int(row.min()) for row in self.sizes)
        if room < 0:
            return None
        step = max(1.0, room / (4 * BUCKETS))
        costs = [np.ceil((row - row.min()) / step - 1e-9).astype(int) for row in self.sizes]
        return _knapsack(costs, self.losses, int(room / step))


def _knapsack(costs: Sequence[Array], values: Sequence[Array], room: int) -> Path:
    """One option of each row: the least sum of values with costs of at most ``room`` together.

    The multiple-choice knapsack problem, by dynamic programming over whole costs.
    """
    best = np.zeros(room + 1)
    taken = []
    for cost, value in zip(costs, values, strict=True):
        offers = np.full((cost.size, room + 1), np.inf)
        for i, (c, v) in enumerate(zip(cost, value, strict=True)):
            if c <= room:
                offers[i, c:] = best[: room + 1 - c] + v
        taken.append(offers.argmin(0))
        best = offers.min(0)
    path, left = [], room
    for cost, choice in zip(reversed(costs), reversed(taken), strict=True):
        option = int(choice[left])
        path.append(option)
        left -= int(cost[option])
    return tuple(reversed(path))


def smallest_file(search: Search, max_loss: float, evaluations: int) -> Path:
    """The smallest file found whose real loss is at most ``max_loss``."""
    start: Path = (0,) * len(search.table.layers)
    search.measured[start] = 0.0

    def best() -> Path:
        fitting = [p for p, loss in search.measured.items() if loss <= max_loss + 1e-9]
        return min(fitting, key=search.table.size_bytes)

    # Optimism: what is thought to lose a little too much is tried too, more and more of it while
    # that succeeds, less where it fails.
    slack = 0.0
    while len(search.measured) <= evaluations:
        proposals = _proposals(search, best(), max_loss, slack)
        if not proposals:
            if slack > 2 * max_loss + 1e-6:
                break
            slack = max(1.5 * slack, 0.1 * max_loss, 1e-6)
            continue
        before = best()
        search.measure(
            proposals[: max(1, min(search.batch, evaluations + 1 - len(search.measured)))]
        )
        if best() == before:
            slack *= 0.7
    return best()


def _proposals(search: Search, incumbent: Path, max_loss: float, slack: float) -> list[Path]:
    """Paths smaller than the incumbent that are thought to lose at most a little too much."""
    size = search.table.size_bytes
    bound = size(incumbent)
    found = []
    for part in (0.0, 0.5, 1.0):
        path = search.cheapest(max_loss + part * slack)
        if path is not None:
            found.append(path)
    found += _neighbours(search, incumbent, max_loss + slack)
    return [p for p in dict.fromkeys(found) if p not in search.measured and size(p) < bound]


def _neighbours(search: Search, path: Path, allowed: float) -> list[Path]:
    """Paths that differ in one layer or two, by predicted loss next to the measured one's."""
    here = search.measured[path]
    moves = []
    for layer, (sizes, losses) in enumerate(zip(search.sizes, search.losses, strict=True)):
        for option in range(sizes.size):
            if option != path[layer]:
                saved = int(sizes[path[layer]] - sizes[option])
                lost = float(losses[option] - losses[path[layer]])
                moves.append((layer, option, saved, lost))
    found = [(m[2], _moved(path, m)) for m in moves if m[2] > 0 and here + m[3] <= allowed]
    useful = sorted(moves, key=lambda m: -m[2])
    giving = [m for m in useful if m[2] > 0][:_PAIRS]
    taking = sorted((m for m in moves if m[3] < 0), key=lambda m: m[3])[:_PAIRS]
    for one, two in itertools.product(giving, taking):
        if one[0] != two[0] and one[2] + two[2] > 0 and here + one[3] + two[3] <= allowed:
            found.append((one[2] + two[2], _moved(_moved(path, one), two)))
    found.sort(key=lambda pair: -pair[0])
    return [p for _, p in found if p not in search.measured][:_MOST_NEIGHBOURS]


_PAIRS, _MOST_NEIGHBOURS = 200, 8


def _moved(path: Path, move: tuple[int, int, int, float]) -> Path:
    return (*path[: move[0]], move[1], *path[move[0] + 1 :])


def best_metric(search: Search, max_bytes: int, evaluations: int) -> Path | None:
    """The path of the least real loss found whose file is at most ``max_bytes``."""
    room = float(max_bytes)
    while len(search.measured) < evaluations:
        path = search.best_within(int(room))
        if path is None:
            break
        if path in search.measured:
            room = 0.99 * room  # the model is settled here: look a little further inside
            if room < 0.8 * max_bytes:
                break
            continue
        search.measure([path])
    fitting = [p for p in search.measured if search.table.size_bytes(p) <= max_bytes]
    return min(fitting, key=lambda p: search.measured[p], default=None)


def choose(
    model: nn.Module,
    evaluate: Evaluate,
    sweep: Sweep,
    *,
    max_loss: float | None = None,
    max_bytes: int | None = None,
    evaluations: int = EVALUATIONS,
    data: str = "",
    jobs: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Proposal:
    """Values for each layer, from a sweep: the smallest file at a loss, or the best at a size.

    Parameters
    ----------
    model, evaluate, data, jobs, keep, progress :
        As for :func:`espalier.sensitivity`, which made ``sweep`` of them.
    sweep : Sweep
        Its grid is what is chosen from; every layer may also stay as it is.
    max_loss : float
        In the metric's own unit: 0.1 is a tenth of a point of accuracy.
    max_bytes : int
        Of the whole file, instead.
    evaluations : int
        Of the whole network, at most.

    Returns
    -------
    Proposal
        Its metric and its bytes are measured, not predicted. Nothing is retrained.

    Raises
    ------
    InvalidArgument
        Neither or both limits; a sweep of another model, or without a metric; no combination is
        as small as ``max_bytes``.
    """
    _check(sweep, max_loss, max_bytes, evaluations)
    with reporting(progress) as report:
        trials = Evaluations(
            model, evaluate, keep=keep, metric=sweep.metric, data=data, jobs=jobs, progress=report
        )
        if trials.fingerprint != sweep.model:
            raise InvalidArgument("the sweep is of another model: sweep this one first")
        table = option_table(trials, sweep)
        search = Search(table, _oracle(trials, table, sweep), batch=trials.workers)
        if max_loss is not None:
            path = smallest_file(search, max_loss, evaluations)
        else:
            assert max_bytes is not None
            path = _within(trials, search, max_bytes, evaluations)
    return _proposal(trials, sweep, table.setting(path), search, max_loss, max_bytes)


def _within(trials: Evaluations, search: Search, max_bytes: int, evaluations: int) -> Path:
    """As :func:`best_metric`, with files that are really that small.

    The directory of a file is a few bytes more or less than the sum of its parts says.
    """
    room = max_bytes
    while (path := best_metric(search, room, evaluations)) is not None:
        excess = _file_bytes(trials, search.table.setting(path)) - max_bytes
        if excess <= 0:
            return path
        room -= excess
    least = search.table.fixed_bytes + sum(int(row.min()) for row in search.sizes)
    raise InvalidArgument(
        f"max_bytes {max_bytes}: the smallest file of this grid has {least} bytes"
    )


def file_bytes(model: nn.Module, setting: Setting, example: Any = None) -> int:
    """The length of the real file of ``model`` changed by ``setting``."""
    changed = apply_setting(copy.deepcopy(model), setting, example)
    return save(changed, io.BytesIO()).file_bytes


def _file_bytes(trials: Evaluations, setting: Setting) -> int:
    return file_bytes(trials.model, setting, trials.example(axes_of([setting])))


def _check(sweep: Sweep, max_loss: float | None, max_bytes: int | None, evaluations: int) -> None:
    if (max_loss is None) == (max_bytes is None):
        raise InvalidArgument("give either max_loss or max_bytes")
    if max_loss is not None and not max_loss >= 0:
        raise InvalidArgument(f"max_loss must be at least 0, not {max_loss}")
    if max_bytes is not None and max_bytes < 1:
        raise InvalidArgument(f"max_bytes must be at least 1, not {max_bytes}")
    if evaluations < 1:
        raise InvalidArgument(f"evaluations must be at least 1, not {evaluations}")
    if sweep.baseline is None:
        raise InvalidArgument("the sweep has no metric: give sensitivity() an evaluate function")


def _oracle(trials: Evaluations, table: Table, sweep: Sweep) -> Oracle:
    def ask(paths: Sequence[Path]) -> list[float]:
        losses = []
        for outcome in trials.measure([table.setting(path) for path in paths]):
            assert outcome.metric is not None
            assert sweep.baseline is not None
            lost = sweep.baseline - outcome.metric
            losses.append(lost if sweep.better == "higher" else -lost)
        return losses

    return ask


def _proposal(
    trials: Evaluations,
    sweep: Sweep,
    setting: Setting,
    search: Search,
    max_loss: float | None,
    max_bytes: int | None,
) -> Proposal:
    (outcome,) = trials.measure([setting])
    assert outcome.metric is not None
    assert sweep.baseline is not None
    return Proposal(
        setting={layer: dict(values) for layer, values in setting.items()},
        metric=outcome.metric,
        baseline=sweep.baseline,
        file_bytes=_file_bytes(trials, setting),
        baseline_bytes=sweep.file_bytes,
        max_loss=max_loss,
        max_bytes=max_bytes,
        evaluations=len(search.measured),
    )


__all__ = ["Option", "Proposal", "Table", "choose"]
