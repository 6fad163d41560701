"""What a report is about: a finished run, or a file."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from espalier.analysis.distributions import (
    Symbols,
    WeightHistogram,
    code_symbols,
    gap_symbols,
    is_weight,
    weight_histogram,
)
from espalier.container import Reader
from espalier.errors import CorruptFile, InvalidArgument

RESULTS, STATE, SWEEP = "results.json", "state.pt", "sweep.json"
MOST_LAYERS = 128
"""Layers that are shown one by one: the largest."""


@dataclass(frozen=True)
class LayerView:
    """One weight as a report shows it.

    ``weights``: before sharing, where the run kept it; else as in the file. ``before``, ``after``:
    centroids before fine-tuning (if the run kept them) and in the file.
    """

    name: str
    weights: WeightHistogram
    before: tuple[float, ...]
    after: tuple[float, ...]
    codes: Symbols | None
    gaps: Symbols | None


@dataclass(frozen=True)
class Sweep:
    """A sensitivity sweep: one layer at a time, as the command ``sensitivity`` writes it."""

    metric: str
    baseline: float | None
    rows: tuple[dict[str, Any], ...]
    """``layer``, ``axis``, ``value``, ``metric``, ``relative_error``."""

    @property
    def axes(self) -> list[str]:
        """What was varied: ``["density", "bits"]``."""
        return list(dict.fromkeys(row["axis"] for row in self.rows))


@dataclass(frozen=True)
class ReportRun:
    """Everything that a page shows of one run or file.

    Attributes
    ----------
    name : str
        Its folder or file, as short as it stays unique.
    file : str
        The ``.esp`` file.
    ledger : mapping
        :meth:`espalier.container.Ledger.to_dict` of it.
    layers : tuple of LayerView
        The largest first up to :data:`MOST_LAYERS`, then in the order of the file.
    omitted : int
        Weights that are not among ``layers``.
    evaluations : tuple of mapping
        ``name``, ``split``, ``error``, ``loss``, ``n``; in the order of the run.
    stages : tuple of mapping
        ``kind`` and ``seconds``.
    epochs : tuple of mapping
        ``epoch`` (through all stages, from 1), ``stage``, ``train_loss``, ``error``, ``loss``.
    recipe : mapping or None
    data : str
    sweep : Sweep or None
    """

    name: str
    file: str
    ledger: Mapping[str, Any]
    layers: tuple[LayerView, ...]
    omitted: int = 0
    evaluations: tuple[Mapping[str, Any], ...] = ()
    stages: tuple[Mapping[str, Any], ...] = ()
    epochs: tuple[Mapping[str, Any], ...] = ()
    recipe: Mapping[str, Any] | None = None
    data: str = ""
    sweep: Sweep | None = None

    @property
    def before_and_after(self) -> tuple[Mapping[str, Any], Mapping[str, Any]] | None:
        """The first and the last evaluation on the split of the last; None with fewer than two."""
        if not self.evaluations:
            return None
        last = self.evaluations[-1]
        first = next(e for e in self.evaluations if e["split"] == last["split"])
        return None if first is last else (first, last)

    @property
    def steps(self) -> list[tuple[str, int]]:
        """Bytes of the original, and after pruning, sharing and coding."""
        sizes = self.ledger
        steps = [("original", sizes["original_bytes"]), ("pruned", sizes["bytes_p"])]
        return [*steps, ("shared", sizes["bytes_pq"]), ("coded", sizes["file_bytes"])]


@dataclass
class _Results:
    """The parts of ``results.json``."""

    recipe: Mapping[str, Any] | None = None
    data: str = ""
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    stages: list[dict[str, Any]] = field(default_factory=list)
    epochs: list[dict[str, Any]] = field(default_factory=list)
    shared: dict[str, WeightHistogram] = field(default_factory=dict)
    saved: str = ""


def open_runs(
    paths: Sequence[str | os.PathLike[str]], sweep: str | os.PathLike[str] | None = None
) -> list[ReportRun]:
    """Read what a report is about.

    Parameters
    ----------
    paths : sequence of path
        Folders of finished runs (or of the demo), and ``.esp`` files.
    sweep : path, optional
        A sensitivity sweep or its folder, for all of them; without one a run's own ``sweep.json``.

    Raises
    ------
    InvalidArgument
        No such path; a run that is not finished, or saved no file; the same path twice.
    CorruptFile
        ``results.json`` or a file is damaged.
    """
    if not paths:
        raise InvalidArgument("a report takes at least one run")
    places = [Path(path) for path in paths]
    if len({place.resolve() for place in places}) < len(places):
        raise InvalidArgument("the same run is named twice")
    shared = read_sweep(Path(sweep)) if sweep is not None else None
    names = _short_names(places)
    return [_open(place, name, shared) for place, name in zip(places, names, strict=True)]


def _open(path: Path, name: str, sweep: Sweep | None) -> ReportRun:
    if not path.exists():
        raise InvalidArgument(f"{path}: no such run or file")
    if path.is_file():
        if path.suffix != ".esp":
            raise InvalidArgument(f"{path}: neither the folder of a run nor an .esp file")
        return _report_run(path, name, _Results(), sweep)
    results = _read_results(path)
    own = path / SWEEP
    if sweep is None and own.is_file():
        sweep = read_sweep(own)
    return _report_run(path / results.saved, name, results, sweep)


def _report_run(file: Path, name: str, results: _Results, sweep: Sweep | None) -> ReportRun:
    with Reader(file) as reader:
        ledger = reader.ledger().to_dict()
        weights = [n for n in reader.names() if n not in reader.aliases]
        entries = [reader.entry(n) for n in weights if len(reader.entry(n).shape) >= 2]
        largest = sorted(entries, key=lambda e: e.elements, reverse=True)[:MOST_LAYERS]
        chosen = {entry.name for entry in largest}
        layers = [
            _layer(n, reader.tensor(n), results.shared.get(n)) for n in weights if n in chosen
        ]
    return ReportRun(
        name=name,
        file=str(file),
        ledger=ledger,
        layers=tuple(layer for layer in layers if layer is not None),
        omitted=len(entries) - len(largest),
        evaluations=tuple(results.evaluations),
        stages=tuple(results.stages),
        epochs=tuple(results.epochs),
        recipe=results.recipe,
        data=results.data,
        sweep=sweep,
    )


def _layer(name: str, tensor: Any, recorded: WeightHistogram | None) -> LayerView | None:
    if not is_weight(tensor) or not tensor.stored:
        return None
    found = weight_histogram(name, tensor)
    return LayerView(
        name=name,
        weights=recorded or found,
        before=recorded.centroids if recorded else (),
        after=found.centroids,
        codes=code_symbols(tensor),
        gaps=gap_symbols(tensor),
    )


# ---------------------------------------------------------------- results.json


def _read_results(folder: Path) -> _Results:
    path = folder / RESULTS
    if not path.is_file():
        if (folder / STATE).exists() or any(folder.glob("stage-*.pt")):
            raise InvalidArgument(f"{folder}: {_unfinished(0, None)}")
        raise InvalidArgument(f"{folder}: not the folder of a run: it holds no {RESULTS}")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        stages, wanted = plain["stages"], len(plain["recipe"]["stages"])
        results = _parse(plain)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CorruptFile(f"{path}: not the results of a run ({what})") from None
    if len(stages) < wanted:
        raise InvalidArgument(f"{folder}: {_unfinished(len(stages), wanted)}")
    if not results.saved:
        raise InvalidArgument(f"{folder}: the run saved no file; its recipe needs a save stage")
    if not (folder / results.saved).is_file():
        raise InvalidArgument(f"{folder / results.saved}: the run saved it, and it is gone")
    return results


def _unfinished(done: int, wanted: int | None) -> str:
    of = f"{done} of {wanted} stages are" if wanted else "no stage is"
    return f"the run is not finished ({of} done); 'espalier run RECIPE --resume' goes on with it"


def _parse(plain: Mapping[str, Any]) -> _Results:
    results = _Results(recipe=plain["recipe"], data=str(plain.get("data", "")))
    for stage in plain["stages"]:
        kind, values = str(stage["kind"]), stage["values"]
        results.stages.append({"kind": kind, "seconds": float(stage["seconds"])})
        if kind == "evaluate":
            results.evaluations.append(_evaluation(values))
        elif kind == "save":
            results.saved = str(values["path"])
        elif kind == "share":
            found = [WeightHistogram.from_json(w) for w in values.get("weights", ())]
            results.shared |= {w.name: w for w in found}
        for epoch in values.get("epochs", ()):
            results.epochs.append(
                {
                    "epoch": len(results.epochs) + 1,
                    "stage": kind,
                    "train_loss": _number(epoch["train_loss"]),
                    "error": _number(epoch["error"]),
                    "loss": _number(epoch["loss"]),
                }
            )
    return results


def _evaluation(values: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "name": str(values["name"]),
        "split": str(values["split"]),
        "error": float(values["error"]),
        "loss": _number(values.get("loss")),
        "n": int(values["n"]),
    }


def _number(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# ---------------------------------------------------------------- sweeps and names


def read_sweep(path: Path) -> Sweep:
    """Read a sensitivity sweep; :class:`InvalidArgument` or :class:`CorruptFile` if it is none."""
    if path.is_dir():
        path /= SWEEP
    if not path.is_file():
        raise InvalidArgument(f"{path}: no such sweep")
    try:
        plain = json.loads(path.read_text(encoding="utf-8"))
        rows = tuple(
            {
                "layer": str(point["layer"]).removesuffix(".weight"),
                "axis": str(point["axis"]),
                "value": float(point["value"]),
                "metric": _number(point["metric"]),
                "relative_error": _number(point["relative_error"]),
            }
            for point in plain["points"]
        )
        metric, baseline = str(plain["metric"]), _number(plain["baseline"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        what = f"{type(error).__name__}: {error}"
        raise CorruptFile(f"{path}: not a sensitivity sweep ({what})") from None
    return Sweep(metric, baseline, rows)


def _short_names(places: Sequence[Path]) -> list[str]:
    """The last part of each path, or as many as make it unique."""
    parts = [place.resolve().parts for place in places]
    for n in range(1, max(map(len, parts)) + 1):
        names = ["/".join(p[-n:]) for p in parts]
        if len(set(names)) == len(names):
            break
    return names
