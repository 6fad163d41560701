"""A network to study, from whatever the user has: a recipe, a run, functions, a bare checkpoint."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml
from torch import nn

from espalier.errors import CorruptFile, InvalidArgument
from espalier.recipe.refs import Split, build_data, build_model
from espalier.recipe.run import STATE, Progress, run_recipe
from espalier.recipe.schema import Recipe, load_recipe, parse_recipe
from espalier.recipe.state import restore
from espalier.samples import Data
from espalier.training.checkpoint import load_checkpoint
from espalier.training.metrics import Metrics, evaluate

SPLITS = ("held_out", "test")
WHOLE = ("train", "evaluate")
"""Stages that leave a network whole; with the first of another kind the reference is behind."""


@dataclass
class Network:
    """A trained model, and where its data comes from.

    Attributes
    ----------
    name : str
        For folders and titles.
    recipe : Recipe
        Its model, data, holdout and seed; its stages are those that made the network.
    model : nn.Module
    data_dir : path, optional
        Handed to the data function.
    """

    name: str
    recipe: Recipe
    model: nn.Module
    data_dir: str | os.PathLike[str] | None = None

    @cached_property
    def split(self) -> Split:
        """Training, held-out and test data, read when first asked for."""
        if not self.recipe.data:
            raise InvalidArgument("data: none is named; give --data package.module:function")
        return build_data(self.recipe, self.data_dir)

    def samples(self, split: str) -> Data:
        """The part of the data that choices are made on: ``"held_out"`` or ``"test"``."""
        if split not in SPLITS:
            raise InvalidArgument(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
        found = self.split.test if split == "test" else self.split.held_out
        if found is None:
            raise InvalidArgument(
                "nothing is held out of the training samples: give --holdout N (or --split test, "
                "if nothing is chosen by it)"
            )
        return found

    def data_in_words(self, split: str) -> str:
        """What :meth:`samples` gives, without reading it."""
        recipe = self.recipe
        options = (
            f" {json.dumps(recipe.data_options, sort_keys=True)}" if recipe.data_options else ""
        )
        drawn = f" ({recipe.holdout}, seed {recipe.seed})" if split == "held_out" else ""
        return f"{recipe.data}{options}, {split}{drawn}"


@dataclass(frozen=True)
class TopOne:
    """``evaluate`` of a network's own data, which is read when it is first needed."""

    read: Callable[[], Data] = field(repr=False)

    def __call__(self, model: nn.Module) -> Metrics:
        return evaluate(model, self.read())

    def __reduce__(self) -> Any:
        return _Evaluate, (self.read(),)


@dataclass(frozen=True)
class _Evaluate:
    data: Data

    def __call__(self, model: nn.Module) -> Metrics:
        return evaluate(model, self.data)


def open_network(
    source: str | Path | None,
    *,
    model: str | None = None,
    data: str | None = None,
    weights: str | None = None,
    holdout: int | None = None,
    data_dir: str | os.PathLike[str] | None = None,
    out: str | os.PathLike[str] = "runs",
    progress: Progress | None = None,
) -> Network:
    """The network that the user means.

    Parameters
    ----------
    source : str, path or None
        The folder of a finished run: the model that it ended with. Or a recipe: its first training
        is run, in ``out/reference``, or gone on with; with ``weights`` in it nothing is trained.
    model, data, weights, holdout :
        Without a source, as in a recipe: functions as ``package.module:function``, a checkpoint.
    data_dir, progress :
        As in :func:`espalier.run_recipe`.

    Raises
    ------
    InvalidArgument
        Neither or both are given; a run that is not finished; nothing to train with.
    """
    if (source is None) == (model is None):
        raise InvalidArgument(
            "give a recipe, a run's folder or a checkpoint; or --model and --data"
        )
    if source is None:
        recipe = _recipe_of(str(model), data, weights, holdout)
        name = str(model).rpartition(":")[2]
        return Network(name, recipe, build_model(recipe), data_dir)
    if data or weights:
        raise InvalidArgument("--data and --weights go with --model; a recipe names its own")
    folder = Path(source)
    if folder.is_dir():
        recipe, trained = _finished_run(folder)
        name = folder.name
    else:
        recipe, name = load_recipe(source), folder.stem
        if recipe.weights is None:
            recipe = reference_recipe(recipe)
            trained = run_recipe(
                recipe, Path(out) / "reference", resume=True, data_dir=data_dir, progress=progress
            ).model
        else:
            trained = build_model(recipe)
    if holdout is not None:
        recipe = recipe.model_copy(update={"holdout": holdout})
    return Network(name, recipe, trained, data_dir)


def _recipe_of(model: str, data: str | None, weights: str | None, holdout: int | None) -> Recipe:
    plain = {"model": model, "data": data or "", "weights": weights, "holdout": holdout or 0}
    return Recipe.model_validate(plain | {"stages": [{"evaluate": {"name": "reference"}}]})


def reference_recipe(recipe: Recipe) -> Recipe:
    """``recipe`` up to its first cut: what trains the network that is then made smaller."""
    stages = []
    for stage in recipe.stages:
        if stage.kind not in WHOLE or getattr(stage.options, "prune", None):
            break
        stages.append(stage)
    if not any(stage.kind == "train" for stage in stages):
        raise InvalidArgument("the recipe trains nothing before it prunes, and names no weights")
    return recipe.model_copy(update={"stages": stages})


def _finished_run(folder: Path) -> tuple[Recipe, nn.Module]:
    if not (folder / STATE).is_file():
        raise InvalidArgument(f"{folder}: holds no run ({STATE} is not there)")
    state = load_checkpoint(folder / STATE)
    try:
        recipe = Recipe.model_validate(json.loads(state["recipe"]))
        done = len(json.loads(state["stages"]))
    except (KeyError, TypeError, ValueError):
        raise CorruptFile(f"{folder / STATE}: not the state of a run") from None
    if done < len(recipe.stages):
        raise InvalidArgument(
            f"{folder}: holds {done} of {len(recipe.stages)} stages; finish it with espalier run "
            "--resume"
        )
    return recipe, restore(build_model(recipe), state)


def recipe_for(network: Network, weights: Path, stages: Sequence[Mapping[str, Any]]) -> str:
    """A recipe as YAML: ``weights``, changed by ``stages``, and judged before they are saved."""
    made = network.recipe
    plain: dict[str, Any] = {"model": made.model, "weights": str(weights), "data": made.data}
    plain |= {"model_options": made.model_options} if made.model_options else {}
    plain |= {"data_options": made.data_options} if made.data_options else {}
    plain |= {"holdout": made.holdout} if made.holdout else {}
    *changes, last = stages
    judged = [{"evaluate": {"split": split, "name": split}} for split in SPLITS]
    if not made.holdout and network.split.held_out is None:
        judged = judged[1:]
    plain |= {"seed": made.seed, "stages": [*changes, *judged, last]}
    text = yaml.safe_dump(plain, sort_keys=False)
    parse_recipe(text, "the proposal")
    return text
