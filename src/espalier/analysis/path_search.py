"""The search over one option for each layer: an additive model, corrected by the real network."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from typing import TypeAlias

import numpy as np

from espalier.analysis.layer_options import Path, Table
from espalier.state import Array

BUCKETS = 400
_PAIRS, _MOST_NEIGHBOURS = 200, 8

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
