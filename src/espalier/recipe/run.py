"""Running a recipe in a folder: a checkpoint after each stage and epoch, results as JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from torch import nn

from espalier.container import atomic_write
from espalier.errors import CorruptFile, InvalidArgument
from espalier.recipe.board import Board
from espalier.recipe.context import TEACHERS, Context
from espalier.recipe.options import Train
from espalier.recipe.refs import Split, build_data, build_model
from espalier.recipe.schema import Recipe, load_recipe
from espalier.recipe.stages import run_stage
from espalier.recipe.state import model_state, restore
from espalier.recipe.teachers import drop_teachers, keep_teacher
from espalier.training.checkpoint import load_checkpoint, save_checkpoint

RESULTS, STATE = "results.json", "state.pt"

Progress = Callable[[str, int, int, str], None]
"""Receives (stage, steps done, steps in all, a short text)."""


@dataclass(frozen=True)
class StageResult:
    """What one stage did: its kind, how long it took, and what it measured."""

    kind: str
    seconds: float
    values: dict[str, Any]


@dataclass
class RunResult:
    """A whole run. ``model`` is the network after the last stage."""

    out: Path
    recipe: Recipe
    model: nn.Module
    split: Split
    stages: list[StageResult] = field(default_factory=list)

    def evaluation(self, name: str) -> dict[str, Any]:
        """What the ``evaluate`` stage called ``name`` measured."""
        for stage in self.stages:
            if stage.kind == "evaluate" and stage.values["name"] == name:
                return stage.values
        raise InvalidArgument(f"no evaluate stage is called {name!r}")

    def saved(self, path: str | None = None) -> dict[str, Any]:
        """What a ``save`` stage wrote; the last one, or the one with that path."""
        for stage in reversed(self.stages):
            if stage.kind == "save" and path in (None, stage.values["path"]):
                return stage.values
        raise InvalidArgument(f"no save stage wrote {path or 'a file'}")

    def to_json(self) -> dict[str, Any]:
        """Recipe and results, as plain data."""
        return {
            "recipe": self.recipe.to_json(),
            "data": self.split.source,
            "stages": [asdict(stage) for stage in self.stages],
        }


def run_recipe(
    recipe: str | Path | Recipe,
    out: str | os.PathLike[str],
    *,
    resume: bool = False,
    force: bool = False,
    seed: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    device: str | torch.device | None = None,
    progress: Progress | None = None,
    tensorboard: bool = False,
) -> RunResult:
    """Run the stages of a recipe, in order, in the folder ``out``.

    Parameters
    ----------
    recipe : path, name of a built-in recipe, or Recipe
    out : path
        Made if it is not there. Holds ``results.json``, what ``save`` stages write, and the state
        from which an interrupted run goes on.
    resume : bool
        Go on with an interrupted run; it ends as it would have. A run that is finished is returned
        as it is.
    force : bool
        Start again where ``out`` already holds a run.
    seed : int, optional
        In place of the recipe's.
    data_dir : path, optional
        Handed to the data function as ``data_dir``.
    device : str or torch.device, optional
        Where to train, such as ``"cuda"``; by default where the model's function builds it. An
        interrupted run may go on elsewhere, to another result in the last digits.
    progress : callable, optional
    tensorboard : bool
        Log training, densities and sizes for TensorBoard, in the folder ``tensorboard`` of ``out``.

    Raises
    ------
    MissingDependency
        ``tensorboard`` without the extra of that name.
    InvalidArgument
        The recipe is wrong; ``out`` holds another run; ``resume`` with another recipe.
    """
    loaded = recipe if isinstance(recipe, Recipe) else load_recipe(recipe, seed=seed)
    folder = Path(out)
    done = _open_folder(folder, loaded, resume, force)
    board = Board(folder, _epochs(loaded, done), not resume) if tensorboard else None
    split = build_data(loaded, data_dir)
    model = build_model(loaded)
    if device is not None:
        model.to(device)
    if done:
        restore(model, load_checkpoint(folder / STATE))
    result = RunResult(folder, loaded, model, split, done)
    for index in range(len(done), len(loaded.stages)):
        stage = loaded.stages[index]
        label = f"{index + 1}/{len(loaded.stages)} {stage.kind}"
        context = Context(
            model=model,
            split=split,
            recipe=loaded,
            folder=folder,
            index=index,
            progress=_bind(progress, label),
            board=board,
        )
        start = monotonic()
        values = run_stage(context, stage)
        seconds = round(monotonic() - start, 2)
        result.stages.append(StageResult(stage.kind, seconds, values))
        if stage.kind == "train" and loaded.distills:
            keep_teacher(context)
        _close_stage(result)
        if board is not None:
            board.close_stage(stage.kind, values, model)
        for path in context.checkpoints():
            path.unlink()
    drop_teachers(folder)
    if board is not None:
        board.close()
    return result


def _epochs(recipe: Recipe, done: list[StageResult]) -> int:
    """How many epochs the finished stages trained, those between shared layers too."""
    total = 0
    for stage, result in zip(recipe.stages, done, strict=False):
        total += len(result.values.get("epochs", ()))
        if stage.training is not None and not isinstance(stage.options, Train):
            total += len(result.values["layers"]) * stage.training.epochs
    return total


def _bind(progress: Progress | None, label: str) -> Callable[[int, int, str], None] | None:
    if progress is None:
        return None
    report = progress
    return lambda done, total, text: report(label, done, total, text)


def _close_stage(result: RunResult) -> None:
    """One atomic write holds weights and results together, so that neither can be ahead."""
    save_checkpoint(
        result.out / STATE,
        {
            "recipe": json.dumps(result.recipe.to_json(), sort_keys=True),
            "stages": json.dumps([asdict(stage) for stage in result.stages]),
        }
        | model_state(result.model),
    )
    with atomic_write(result.out / RESULTS, force=True) as file:
        file.write(json.dumps(result.to_json(), indent=1).encode() + b"\n")


def _open_folder(folder: Path, recipe: Recipe, resume: bool, force: bool) -> list[StageResult]:
    """The stages already done in ``folder``; none unless resuming."""
    if folder.exists() and not folder.is_dir():
        raise InvalidArgument(f"{folder}: is a file; --out takes a folder")
    held = [folder / name for name in (STATE, RESULTS) if (folder / name).exists()]
    held += sorted(folder.glob(TEACHERS))
    partial = sorted(folder.glob("stage-*.pt")) if folder.is_dir() else []
    if (held or partial) and not (resume or force):
        raise InvalidArgument(
            f"{folder}: already holds a run; --resume goes on with it, --force starts again"
        )
    folder.mkdir(parents=True, exist_ok=True)
    if force and not resume:
        for path in held + partial:
            path.unlink()
    if not (resume and (folder / STATE).exists()):
        return []
    state = load_checkpoint(folder / STATE)
    try:
        # Read as a recipe, so that an option that is younger than the run has its default there.
        before = Recipe.model_validate(json.loads(state["recipe"]))
        stages = json.loads(state["stages"])
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{folder / STATE}: not the state of a run") from None
    if before != recipe:
        raise InvalidArgument(
            f"{folder}: holds a run of another recipe or seed; choose another --out"
        )
    return [StageResult(**stage) for stage in stages]
