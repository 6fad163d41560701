"""``espalier.study``: the figures of Deep Compression, on any network.

Han, Mao and Dally 2016 (arXiv 1510.00149): figure 6 (accuracy against size for pruning, sharing,
both, truncated SVD, and beside it Tucker-2), figure 7 (accuracy against bits, convolutions and
fully connected layers apart, pruned and not), figure 8 (the initialisations of k-means), and
table 6 (numbers of bits).
"""

from __future__ import annotations

import copy
import hashlib
import io
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import torch
from torch import nn

from espalier.analysis.evaluations import Evaluate, call_evaluate, pack
from espalier.analysis.kept import Kept, fingerprint
from espalier.analysis.processes import in_processes, serial, until_done
from espalier.analysis.study_cases import FIGURES, Case, Tuning, cases, cut
from espalier.errors import InvalidArgument
from espalier.parametrization import attach
from espalier.progress import Progress, reporting
from espalier.samples import Data, Samples
from espalier.targets import find_targets, unwrap
from espalier.torch_io import save
from espalier.training.checkpoint import load_checkpoint, save_checkpoint

VERSION = 2


@dataclass(frozen=True)
class StudyPoint:
    """A measured case. ``share``: file over the dense tensors of the original network."""

    case: Case
    metric: float
    file_bytes: int
    share: float
    seconds: float


@dataclass(frozen=True)
class Study:
    """The result of :func:`study`.

    Attributes
    ----------
    metric, data : str
        What was measured, and on what.
    baseline, pruned : float
        The metric of the network, and of the pruned network that figures 7, 8 and the table use.
    original_bytes : int
        Of the dense tensors.
    tuning : Tuning or None
    points : tuple of StudyPoint
    """

    metric: str
    data: str
    baseline: float
    pruned: float
    original_bytes: int
    tuning: Tuning | None
    points: tuple[StudyPoint, ...]

    def of(self, figure: str, series: str | None = None) -> tuple[StudyPoint, ...]:
        """The points of a figure, or of one of its series, in order."""
        return tuple(
            p for p in self.points if p.case.figure == figure and series in (None, p.case.series)
        )

    def to_json(self) -> dict[str, Any]:
        """Everything, as plain data."""
        return {"version": VERSION} | asdict(self)

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> Study:
        """The inverse of :meth:`to_json`."""
        try:
            values = dict(plain)
            if values.pop("version") != VERSION:
                raise InvalidArgument(f"a study of version {plain['version']}, not {VERSION}")
            values["tuning"] = Tuning(**values["tuning"]) if values["tuning"] else None
            values["points"] = tuple(
                StudyPoint(**{**p, "case": Case(**p["case"])}) for p in values["points"]
            )
            return cls(**values)
        except (KeyError, TypeError) as error:
            raise InvalidArgument(f"not a study ({error})") from None


def study(
    model: nn.Module,
    evaluate: Evaluate,
    train_data: Data | None = None,
    *,
    figures: Sequence[str] = FIGURES,
    series: Sequence[str] | None = None,
    pruned: nn.Module | None = None,
    density: float = 0.1,
    tuning: Tuning | None = None,
    metric: str = "accuracy",
    data: str = "",
    jobs: int | None = None,
    keep: str | os.PathLike[str] | None = None,
    progress: Progress | bool | None = None,
) -> Study:
    """Reproduce the studies of Deep Compression on ``model``.

    Parameters
    ----------
    model, evaluate, metric, data, jobs, keep, progress :
        As for :func:`espalier.sensitivity`.
    train_data : Samples or DataLoader, optional
        To train with after each cut, as ``tuning`` says. Without it nothing is retrained.
    figures : sequence of str
        Of ``"compression"`` (figure 6), ``"bits"`` (7), ``"initialisation"`` (8), ``"table"``.
    series : sequence of str, optional
        Those lines of the figures alone: ``("pruning", "Tucker-2")``.
    pruned : nn.Module, optional
        A pruned copy of the network, retrained; made at ``density`` and by ``tuning`` without it.
    density : float
        Of all weights together, for ``pruned``.
    tuning : Tuning, optional

    Returns
    -------
    Study

    Raises
    ------
    InvalidArgument
        No such figure or series, ``evaluate`` fails, ``keep`` holds points of another network.

    Notes
    -----
    Deviations from the paper: its densities by layer are not given for these figures, so they are
    those of :func:`layer_densities`, which keep more of small layers as the paper's tables do;
    every size is that of a whole file, entropy-coded, whatever the method; the ranks of the
    truncated SVD are those that hold one share of the energy of every layer. Beside it stands
    Tucker-2 (Kim et al. 2016, arXiv 1511.06530) where there are convolutions and tensorly, of the
    extra ``structure``, is installed. Factors that would hold more numbers than their layer are not
    made.

    Examples
    --------
    >>> import torch, espalier
    >>> from espalier.analysis.study import study
    >>> model, x = torch.nn.Linear(8, 4), torch.eye(8)
    >>> found = study(model, lambda m: float(m(x).sum()), figures=["table"], jobs=1)
    >>> [p.case.series for p in found.points]
    ['8/5', '8/4', '4/2']
    """
    unknown = sorted(set(figures) - set(FIGURES))
    if unknown or not figures:
        raise InvalidArgument(f"figures are {', '.join(FIGURES)}; not {', '.join(unknown) or '()'}")
    plain = unwrap(model)
    tuning = (tuning or Tuning()) if train_data is not None else None
    part = _part(train_data, tuning)
    with reporting(progress) as report:
        about = {
            "tuning": str(asdict(tuning)) if tuning else "",
            "metric": metric,
            "data": data,
            "model": fingerprint(plain),
            "pruned network": f"density {density:g}" if pruned is None else fingerprint(pruned),
        }
        kept = Kept(keep, about)
        if pruned is None:
            if report:
                report(0, 1, "the pruned network")
            pruned = _pruned(plain, density, part, tuning, keep)
        bench = _Bench(plain, unwrap(pruned), evaluate, part, tuning)
        kinds = sorted({t.kind for t in find_targets(plain) if t.by_default})
        wanted = [Case("", "baseline", 0), Case("", "baseline", 0, "pruned")]
        wanted += _of_series(cases(figures, kinds, tuned=tuning is not None), series)
        records = bench.run(wanted, kept, jobs, report)
    original = save(plain, io.BytesIO()).original_bytes
    points = [
        StudyPoint(case, r["metric"], r["file_bytes"], r["file_bytes"] / original, r["seconds"])
        for case, r in zip(wanted, records, strict=True)
    ]
    return Study(
        metric=metric,
        data=data,
        baseline=points[0].metric,
        pruned=points[1].metric,
        original_bytes=original,
        tuning=tuning,
        points=tuple(points[2:]),
    )


def _of_series(found: list[Case], series: Sequence[str] | None) -> list[Case]:
    """The cases of some series, or of all."""
    if series is None:
        return found
    names = list(dict.fromkeys(case.series for case in found))
    unknown = sorted(set(series) - set(names))
    if unknown or not series:
        raise InvalidArgument(
            f"series of these figures are {', '.join(names)}; not {', '.join(unknown) or '()'}"
        )
    return [case for case in found if case.series in series]


def _pruned(
    model: nn.Module,
    density: float,
    data: Data | None,
    tuning: Tuning | None,
    keep: str | os.PathLike[str] | None,
) -> nn.Module:
    """The network of figures 7 and 8; trained once where points are kept, and read from there."""
    if keep is None:
        return cut(copy.deepcopy(model), Case("", "", 0, density=density, tuned=True), data, tuning)
    path = Path(keep).with_suffix(".pruned.pt")
    whose = f"{fingerprint(model)} {density:g} {tuning}"
    if path.is_file():
        state = load_checkpoint(path)
        if state.get("of") == whose:
            return attach(copy.deepcopy(model), state["model"])
    pruned = _pruned(model, density, data, tuning, None)
    save_checkpoint(path, {"of": whose, "model": pruned.state_dict()})
    return pruned


def _part(data: Data | None, tuning: Tuning | None) -> Data | None:
    """The training samples that are used, drawn once."""
    if tuning is None or tuning.samples is None or not isinstance(data, Samples):
        return data
    if not tuning.batch_size <= tuning.samples <= len(data):
        raise InvalidArgument(
            f"tuning.samples must lie between {tuning.batch_size} and {len(data)}, not "
            f"{tuning.samples}"
        )
    generator = torch.Generator().manual_seed(tuning.seed)
    return data.subset(torch.randperm(len(data), generator=generator)[: tuning.samples])


@dataclass
class _Bench:
    """What every case needs."""

    trained: nn.Module
    pruned: nn.Module
    evaluate: Evaluate
    data: Data | None
    tuning: Tuning | None

    def run(
        self, wanted: Sequence[Case], kept: Kept, jobs: int | None, report: Progress | None
    ) -> list[dict[str, Any]]:
        """The record of every case, those kept taken from there."""

        def missing() -> list[Case]:
            return [case for case in wanted if kept.get(_key(case)) is None]

        def attempt() -> Iterator[tuple[Case, dict[str, Any]]]:
            if not missing():
                return
            if serial(jobs):
                for case in missing():
                    yield case, self.measure(case)
                return
            packed = [np.frombuffer(x, np.uint8) for x in self._packed()]
            digest = "".join(hashlib.sha256(part.data).hexdigest() for part in packed)
            yield from in_processes(_work, ((*packed, digest, c) for c in missing()), jobs)

        done = len(wanted) - len(missing())

        def take(result: tuple[Case, dict[str, Any]]) -> None:
            nonlocal done
            case, record = result
            kept.put(_key(case), record)
            done += 1
            if report:
                report(done, len(wanted), f"{case.series} {case.x:g}")

        until_done(attempt, lambda: len(kept), take)
        return [record for case in wanted if (record := kept.get(_key(case))) is not None]

    def _packed(self) -> tuple[bytes, bytes]:
        others = _Others(self.evaluate, self.data, self.tuning)
        return pack(self.trained, others), pack(self.pruned, None)

    def measure(self, case: Case) -> dict[str, Any]:
        """Cut, train on, and measure a copy."""
        start = monotonic()
        model = copy.deepcopy(self.pruned if case.base == "pruned" else self.trained)
        cut(model, case, self.data, self.tuning)
        what = f"{case.figure or 'the network'} {case.series} {case.x:g}"
        metric = call_evaluate(self.evaluate, model, what)
        return {
            "metric": metric,
            "file_bytes": save(model, io.BytesIO()).file_bytes,
            "seconds": round(monotonic() - start, 2),
        }


def _key(case: Case) -> Any:
    return {"case": asdict(case)}


@dataclass(frozen=True)
class _Others:
    """What travels to a worker beside a model; callable, since it stands for ``evaluate``."""

    evaluate: Evaluate
    data: Data | None
    tuning: Tuning | None

    def __call__(self, model: nn.Module) -> Any:
        return self.evaluate(model)


_held: tuple[str, _Bench] | None = None


def _work(trained: Any, pruned: Any, digest: str, case: Case) -> tuple[Case, dict[str, Any]]:
    """Measure one case in a worker, which unpacks the networks once."""
    global _held
    if _held is None or _held[0] != digest:
        import cloudpickle

        (first, state, others), (second, other_state, _) = (
            cloudpickle.loads(packed.tobytes()) for packed in (trained, pruned)
        )
        _held = (
            digest,
            _Bench(
                first if state is None else attach(first, state),
                second if other_state is None else attach(second, other_state),
                others.evaluate,
                others.data,
                others.tuning,
            ),
        )
    return case, _held[1].measure(case)


__all__ = ["Case", "Study", "StudyPoint", "Tuning", "study"]
