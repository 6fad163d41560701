"""``choose``: from a sweep to a setting for every layer, checked on the real network.

The problem: min bytes(s) subject to baseline - metric(s) <= loss, or max metric(s) subject to
bytes(s) <= n, over one option for each layer. Bytes are true coded sizes and add up. Losses add up
roughly; so the sum of the layers' own losses is only where the search begins, and every answer of
the real network corrects it.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from espalier.analysis.axis import Setting, Value, axes_of, stages_of
from espalier.analysis.evaluations import Evaluate, Evaluations
from espalier.analysis.layer_options import Path, Table, file_bytes, option_table
from espalier.analysis.path_search import Oracle, Search, best_metric, smallest_file
from espalier.analysis.sensitivity import Sweep
from espalier.errors import InvalidArgument
from espalier.progress import Progress, reporting

EVALUATIONS = 120


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
