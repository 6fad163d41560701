"""``search``: Optuna over the options of every layer, from where a sweep leaves off.

What :func:`~espalier.analysis.choose.choose` finds in a hundred evaluations is one file; a search
goes on for as long as it is given, on several machines if need be, and can show the whole front of
size against accuracy.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import nn

from espalier.analysis.axis import axes_of
from espalier.analysis.choose import Proposal
from espalier.analysis.evaluations import Evaluate, Evaluations
from espalier.analysis.layer_options import Path, Table, file_bytes, option_table
from espalier.analysis.path_search import Search
from espalier.analysis.sensitivity import Sweep
from espalier.errors import InvalidArgument, MissingDependency
from espalier.progress import Progress, reporting

NAME = "espalier"
_IDENTITY = "espalier"
_WARM = (0.25, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0)
_FRONT_LOSS = 5.0  # the Pareto front is warm-started up to losses of so many points


@dataclass(frozen=True)
class Goal:
    """What is searched for: one of the two limits, or neither for the whole Pareto front."""

    max_loss: float | None = None
    max_bytes: int | None = None

    def __post_init__(self) -> None:
        if self.max_loss is not None and self.max_bytes is not None:
            raise InvalidArgument("give max_loss, max_bytes, or neither for the Pareto front")
        if self.max_loss is not None and not self.max_loss >= 0:
            raise InvalidArgument(f"max_loss must be at least 0, not {self.max_loss}")
        if self.max_bytes is not None and self.max_bytes < 1:
            raise InvalidArgument(f"max_bytes must be at least 1, not {self.max_bytes}")

    @property
    def directions(self) -> int:
        """How many objectives there are."""
        return 2 if self.max_loss is None and self.max_bytes is None else 1

    def values(self, loss: float, size: int) -> list[float]:
        """What Optuna minimises."""
        if self.max_loss is not None:
            return [float(size)]
        return [loss] if self.max_bytes is not None else [float(size), loss]

    def excess(self, loss: float, size: int) -> float:
        """By how much the limit is missed; 0 or less where it is kept."""
        if self.max_loss is not None:
            return loss - self.max_loss
        return float(size - self.max_bytes) if self.max_bytes is not None else 0.0


@dataclass(frozen=True)
class SearchResult:
    """What a search has found by now.

    ``front``: the proposals of which none is both smaller and better than another, the smallest
    first; with a limit, the one best proposal that keeps it, or none.
    """

    front: tuple[Proposal, ...]
    trials: int

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> SearchResult:
        """The inverse of :meth:`to_json`."""
        try:
            return cls(tuple(Proposal(**p) for p in plain["front"]), plain["trials"])
        except (KeyError, TypeError) as error:
            raise InvalidArgument(f"not the result of a search ({error})") from None


def _optuna() -> Any:
    try:
        import optuna
    except ImportError:
        raise MissingDependency(
            "search needs Optuna, which is not installed: pip install 'espalier[search]'"
        ) from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna


def search(
    model: nn.Module,
    evaluate: Evaluate,
    sweep: Sweep,
    goal: Goal | None = None,
    *,
    trials: int = 200,
    storage: str | None = None,
    seed: int = 0,
    data: str = "",
    jobs: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> SearchResult:
    """Search the grid of a sweep for the smallest file, the best network, or the Pareto front.

    Tree-structured Parzen estimators (Bergstra et al. 2011) as Optuna has them, with the limit as a
    constraint. They begin with the settings that the sweep's own losses suggest.

    Parameters
    ----------
    model, evaluate, sweep, data, jobs, keep, progress :
        As for :func:`~espalier.analysis.choose.choose`.
    goal : Goal, optional
        The Pareto front without it.
    trials : int
        Finished trials in the storage, of all processes together, after which the search ends.
    storage : str, optional
        URL of a database, as ``sqlite:///search.db`` or ``postgresql://...``: a search that was
        interrupted goes on, and several processes may work on one. In memory without it.
    seed : int

    Raises
    ------
    InvalidArgument
        A database that holds the search of another model, grid or goal; one that cannot be opened.
    """
    goal = goal or Goal()
    if trials < 1:
        raise InvalidArgument(f"trials must be at least 1, not {trials}")
    if sweep.baseline is None:
        raise InvalidArgument("the sweep has no metric: give sensitivity() an evaluate function")
    optuna = _optuna()
    with reporting(progress) as report:
        measured = Evaluations(
            model, evaluate, keep=keep, metric=sweep.metric, data=data, jobs=jobs
        )
        if measured.fingerprint != sweep.model:
            raise InvalidArgument("the sweep is of another model: sweep this one first")
        table = option_table(measured, sweep)
        run = _Run(optuna, measured, sweep, table, goal)
        study = run.open(storage, seed)
        run.work(study, trials, report)
    return run.result(study)


@dataclass
class _Run:
    """One call of :func:`search`."""

    optuna: Any
    measured: Evaluations
    sweep: Sweep
    table: Table
    goal: Goal

    def identity(self) -> str:
        """What the trials in a database are of: they are worth nothing for anything else."""
        options = [[o.values for o in row] for row in self.table.options]
        grid = hashlib.sha256(json.dumps([self.table.layers, options]).encode()).hexdigest()
        about = {
            "model": self.sweep.model,
            "metric": self.sweep.metric,
            "data": self.sweep.data,
            "grid": grid[:16],
            "goal": asdict(self.goal),
        }
        return json.dumps(about, sort_keys=True)

    def open(self, storage: str | None, seed: int) -> Any:
        """The study in ``storage``, made and warm-started where it is new."""
        optuna = self.optuna
        sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True)
        try:
            study = optuna.create_study(
                study_name=NAME,
                storage=storage,
                sampler=sampler,
                directions=["minimize"] * self.goal.directions,
                load_if_exists=True,
            )
            found = study.user_attrs.get(_IDENTITY)
        except (InvalidArgument, MemoryError):
            raise
        except Exception as error:
            line = " ".join(str(error).split())[:200]
            raise InvalidArgument(
                f"{storage}: cannot be opened ({type(error).__name__}: {line})"
            ) from error
        self._check(storage, study, found)
        if found is None:
            study.set_user_attr(_IDENTITY, self.identity())
        self._warm(study)
        return study

    def _check(self, storage: str | None, study: Any, found: str | None) -> None:
        wanted = self.identity()
        if found is None and study.trials:
            raise InvalidArgument(f"{storage}: holds trials that are not Espalier's")
        if found is not None and found != wanted:
            old, new = json.loads(found), json.loads(wanted)
            other = ", ".join(what for what in new if old.get(what) != new[what])
            raise InvalidArgument(
                f"{storage}: holds the search of another {other}; choose another --storage"
            )

    def _warm(self, study: Any) -> None:
        """Try first what the sweep suggests; also what a process that was killed had begun."""
        states = self.optuna.trial.TrialState
        seen = [t.params for t in study.get_trials(deepcopy=False) if t.state == states.COMPLETE]
        seen += [
            t.system_attrs.get("fixed_params", {})
            for t in study.get_trials(deepcopy=False, states=(states.WAITING,))
        ]
        for path in self.suggestions():
            if (params := self.params(path)) not in seen:
                study.enqueue_trial(params)
                seen.append(params)

    def suggestions(self) -> list[Path]:
        """Paths that the additive model thinks best, at limits around the one that is set."""
        model = Search(self.table, lambda _: [])
        if self.goal.max_bytes is not None:
            found = [
                model.best_within(int(part * self.goal.max_bytes)) for part in (1.0, 0.95, 0.9)
            ]
        else:
            limit = self.goal.max_loss if self.goal.max_loss is not None else _FRONT_LOSS
            found = [model.cheapest(part * limit) for part in _WARM]
        return list(dict.fromkeys(path for path in found if path is not None))

    def params(self, path: Path) -> dict[str, int]:
        """A path as Optuna knows it: a number for each layer, by rising size."""
        return {
            layer: self._order(i).index(option)
            for i, (layer, option) in enumerate(zip(self.table.layers, path, strict=True))
        }

    def path(self, params: dict[str, int]) -> Path:
        """The inverse of :meth:`params`."""
        return tuple(self._order(i)[params[layer]] for i, layer in enumerate(self.table.layers))

    def _order(self, layer: int) -> list[int]:
        row = self.table.options[layer]
        return sorted(range(len(row)), key=lambda i: (row[i].size_bytes, i))

    def work(self, study: Any, trials: int, report: Progress | None) -> None:
        """Ask, measure and tell, until the storage holds so many finished trials."""
        while (done := len(self._finished(study))) < trials:
            if report:
                report(done, trials, self._said(study))
            asked = [study.ask() for _ in range(min(self.measured.workers, trials - done))]
            paths = [self._suggest(trial) for trial in asked]
            for trial, path, loss in zip(asked, paths, self._losses(paths), strict=True):
                size = self.table.size_bytes(path)
                excess = self.goal.excess(loss, size)
                trial.set_constraint("limit", excess)
                trial.set_user_attr("excess", excess)
                trial.set_user_attr("loss", loss)
                study.tell(trial, self.goal.values(loss, size))
        if report:
            report(done, trials, self._said(study))

    def _suggest(self, trial: Any) -> Path:
        sizes = zip(self.table.layers, self.table.options, strict=True)
        return self.path({n: trial.suggest_int(n, 0, len(row) - 1) for n, row in sizes})

    def _losses(self, paths: Sequence[Path]) -> list[float]:
        outcomes = self.measured.measure([self.table.setting(path) for path in paths])
        found = []
        for outcome in outcomes:
            assert outcome.metric is not None
            assert self.sweep.baseline is not None
            lost = self.sweep.baseline - outcome.metric
            found.append(lost if self.sweep.better == "higher" else -lost)
        return found

    def _finished(self, study: Any) -> list[Any]:
        complete = self.optuna.trial.TrialState.COMPLETE
        return list(study.get_trials(deepcopy=False, states=(complete,)))

    def _best(self, study: Any) -> list[Any]:
        """The finished trials that are worth showing."""
        kept = [t for t in self._finished(study) if t.user_attrs["excess"] <= 1e-9]
        if self.goal.directions == 1:
            return sorted(kept, key=lambda t: (t.values[0], t.number))[:1]
        front: list[Any] = []
        for trial in sorted(kept, key=lambda t: (t.values, t.number)):
            if not front or trial.values[1] < front[-1].values[1]:
                front.append(trial)
        return front

    def _said(self, study: Any) -> str:
        best = self._best(study)
        if not best:
            return "nothing within the limit yet"
        if self.goal.directions == 2:
            return f"{len(best)} on the front"
        size = self.table.size_bytes(self.path(best[0].params))
        return f"{size:,} bytes, {best[0].user_attrs['loss']:.2f} lost"

    def result(self, study: Any) -> SearchResult:
        """What the storage holds by now."""
        front = []
        assert self.sweep.baseline is not None
        sign = -1 if self.sweep.better == "higher" else 1
        for trial in self._best(study):
            setting = self.table.setting(self.path(trial.params))
            example = self.measured.example(axes_of([setting]))
            front.append(
                Proposal(
                    setting=setting,
                    metric=self.sweep.baseline + sign * trial.user_attrs["loss"],
                    baseline=self.sweep.baseline,
                    file_bytes=file_bytes(self.measured.model, setting, example),
                    baseline_bytes=self.sweep.file_bytes,
                    max_loss=self.goal.max_loss,
                    max_bytes=self.goal.max_bytes,
                    evaluations=len(self._finished(study)),
                )
            )
        return SearchResult(tuple(front), len(self._finished(study)))


__all__ = ["Goal", "SearchResult", "search"]
