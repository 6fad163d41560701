"""``espalier demo``: the whole chain on LeNet-300-100, with the paper's tables beside ours."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from espalier.analysis.paper import LENET300
from espalier.analysis.report import write_report
from espalier.analysis.tables import Table, layer_table, markdown, stage_table
from espalier.container import atomic_write
from espalier.errors import DataUnavailable, InvalidArgument, MissingDependency
from espalier.recipe import load_recipe, run_recipe
from espalier.recipe.run import Progress, RunResult
from espalier.recipe.schema import Recipe
from espalier.zoo.data import mnist

DATA_SETS = ("mnist", "digits")


@dataclass(frozen=True)
class DemoResult:
    """What the demo did. ``note``: why another data set than the wanted one was used, or empty."""

    run: RunResult
    dataset: str
    note: str

    @property
    def ledger(self) -> dict[str, Any]:
        """The ledger of the file, as JSON values."""
        ledger: dict[str, Any] = self.run.saved("model.esp")["ledger"]
        return ledger

    @property
    def errors(self) -> dict[str, float]:
        """Test errors of the reference, pruned and compressed network, in percent."""
        names = ("reference", "pruned", "compressed")
        return {name: self.run.evaluation(name)["error"] for name in names}

    @property
    def sizes(self) -> dict[str, int]:
        """Bytes of the dense tensors, and of the file after each stage."""
        files = {"pruned": "pruned.esp", "shared": "shared.esp", "coded": "model.esp"}
        sizes = {stage: self.run.saved(f)["ledger"]["file_bytes"] for stage, f in files.items()}
        return {"original": self.ledger["original_bytes"]} | sizes

    def tables(self) -> list[tuple[str, Table]]:
        """Title and table: stages, and layers. The paper's numbers are for MNIST alone."""
        paper = LENET300 if self.dataset == "mnist" else None
        beside = " (the paper's in brackets)" if paper else ""
        return [
            ("LeNet-300-100, stage by stage", stage_table(self.sizes, self.errors, paper)),
            (f"Layer by layer{beside}", layer_table(self.ledger, paper)),
        ]

    def to_json(self) -> dict[str, Any]:
        """Everything measured, as plain data."""
        return {
            "dataset": self.dataset,
            "note": self.note,
            "errors": self.errors,
            "sizes": self.sizes,
            "ledger": self.ledger,
            "seconds": round(sum(stage.seconds for stage in self.run.stages), 1),
            "out": str(self.run.out),
        }


def run_demo(
    dataset: str | None = None,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "runs/demo",
    seed: int = 0,
    resume: bool = False,
    force: bool = False,
    progress: Progress | None = None,
    announce: Callable[[str], None] = lambda _line: None,
) -> DemoResult:
    """Train, prune, retrain, share, fine-tune, code and save LeNet-300-100.

    Parameters
    ----------
    dataset : {"mnist", "digits"}, optional
        MNIST by default, and where it can be neither found nor downloaded, scikit-learn's digits.
    data_dir : path, optional
        Where data is looked for first.
    out : path
        Folder for ``model.esp``, ``ledger.json``, ``results.json``, ``report.md``, and with the
        extra ``report`` the same as a page, ``report.html``.
    seed : int
    resume, force : bool
        As for :func:`espalier.run_recipe`.
    progress : callable, optional
    announce : callable
        Is told, in one line, which data is used, and whether there is no page.

    Raises
    ------
    DataUnavailable
        ``dataset="mnist"`` was asked for, and it is not to be had.
    """
    if dataset not in (None, *DATA_SETS):
        raise InvalidArgument(f"dataset must be one of {', '.join(DATA_SETS)}, not {dataset!r}")
    note = ""
    if dataset is None:
        dataset, note = _what_there_is(data_dir)
    announce(note or f"data set: {dataset}")
    recipe = load_recipe("lenet300", seed=seed)
    if dataset == "digits":
        recipe = _on_digits(recipe)
    run = run_recipe(recipe, out, resume=resume, force=force, data_dir=data_dir, progress=progress)
    result = DemoResult(run, dataset, note)
    _write(result)
    try:
        title = f"Deep Compression of LeNet-300-100 on {dataset}"
        write_report([result.run.out], result.run.out / "report.html", title=title, force=True)
    except MissingDependency as error:
        announce(f"no report.html: {error}")
    return result


def _what_there_is(data_dir: str | os.PathLike[str] | None) -> tuple[str, str]:
    try:
        mnist(data_dir)
    except DataUnavailable as error:
        return "digits", f"MNIST is not to be had, going on with scikit-learn's digits ({error})"
    return "mnist", ""


def _on_digits(recipe: Recipe) -> Recipe:
    """The same chain for a data set that is forty times smaller: as many steps, smaller batches."""
    plain = recipe.to_json() | {"data": "espalier.zoo:digits", "holdout": 200}
    for stage in plain["stages"]:
        for kind in ("train", "retrain", "fine_tune"):
            if kind in stage:
                stage[kind] |= {"batch_size": 16, "average": 0.99}
    return Recipe.model_validate(plain)


def _write(result: DemoResult) -> None:
    out = result.run.out
    with atomic_write(out / "ledger.json", force=True) as file:
        file.write(json.dumps(result.ledger, indent=1).encode() + b"\n")
    text = [f"# Deep Compression of LeNet-300-100 on {result.dataset}\n"]
    text += [f"{result.note}\n"] if result.note else []
    for title, table in result.tables():
        text += [f"## {title}\n", markdown(table)]
    with atomic_write(out / "report.md", force=True) as file:
        file.write("\n".join(text).encode())
