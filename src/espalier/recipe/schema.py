"""What a recipe may say. Everything is checked before anything runs.

.. code-block:: yaml

    model: espalier.zoo:lenet300
    data: espalier.zoo:mnist
    holdout: 5000
    seed: 0
    stages:
      - train: {epochs: 20, lr: 2e-3}
      - prune: {density: {"fc1": 0.08, "fc2": 0.09, "fc3": 0.26}}
      - retrain: {epochs: 20, lr: 1e-3}
      - share: {bits: 6}
      - fine_tune: {epochs: 5, lr: 1e-4}
      - evaluate: {split: test, name: compressed}
      - save: {path: model.esp}
"""

from __future__ import annotations

import re
from importlib import resources
from pathlib import Path
from typing import Annotated, Any

import yaml
from pydantic import Field, ValidationError, model_validator

from espalier.errors import InvalidArgument
from espalier.recipe.options import (
    STAGES,
    Evaluate,
    Factorize,
    Merge,
    Prune,
    PruneFilters,
    Quantize,
    QuantizeRd,
    RateAware,
    Save,
    Share,
    Strict,
    Train,
)


class Stage(Strict):
    """One entry of ``stages``: a name, and what that stage takes."""

    kind: str
    options: (
        RateAware
        | Train
        | Prune
        | PruneFilters
        | Factorize
        | Merge
        | Share
        | Quantize
        | QuantizeRd
        | Evaluate
        | Save
    )

    @property
    def distills(self) -> bool:
        """Whether it learns from another network's outputs."""
        return self.training is not None and self.training.distill > 0

    @property
    def training(self) -> Train | None:
        """How it trains, as a whole or after each of its layers; None if it does not."""
        if isinstance(self.options, Train):
            return self.options
        return getattr(self.options, "layerwise", None)

    @model_validator(mode="before")
    @classmethod
    def _from_yaml(cls, value: Any) -> Any:
        if isinstance(value, dict) and isinstance(value.get("options"), Strict):
            return value
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("a stage is written NAME: {OPTION: VALUE, ...}")
        ((kind, options),) = value.items()
        if kind not in STAGES:
            raise ValueError(f"no stage is called {kind!r}; known are {', '.join(STAGES)}")
        return {"kind": kind, "options": STAGES[kind].model_validate(options or {})}


class Recipe(Strict):
    """A whole run: a model, its data, and the stages."""

    model: str
    """``package.module:function`` that builds the network."""
    model_options: dict[str, Any] = Field(default_factory=dict)
    weights: str | None = None
    """A checkpoint to start from: ``.esp`` (its masks and codebooks stay), ``.safetensors``, ..."""
    data: str
    """``package.module:function`` that gives a :class:`espalier.zoo.DataSet`, or (train, test)."""
    data_options: dict[str, Any] = Field(default_factory=dict)
    holdout: Annotated[int, Field(ge=0)] = 0
    """How many training samples to hold out for every choice that is made on the way."""
    seed: int = 0
    stages: Annotated[list[Stage], Field(min_length=1)]

    @model_validator(mode="after")
    def _teachers(self) -> Recipe:
        taught = self.weights is not None
        for stage in self.stages:
            if stage.distills and not taught:
                raise ValueError(
                    f"{stage.kind}: distill needs an earlier train stage, or weights, to learn from"
                )
            taught = taught or stage.kind == "train"
        return self

    @model_validator(mode="after")
    def _ensembles(self) -> Recipe:
        for index, stage in enumerate(self.stages):
            if stage.training is None or not stage.training.teachers:
                continue
            if stage.kind != "train":
                raise ValueError(f"{stage.kind}: teachers are trained by a train stage")
            learning = [s.training for s in self.stages[index + 1 :] if s.training and s.distills]
            if not learning:
                raise ValueError("train: teachers without a later stage that has distill")
            if any(training.features for training in learning):
                raise ValueError("features are learnt from one network: leave out teachers")
        return self

    @model_validator(mode="after")
    def _folded_last(self) -> Recipe:
        for index, stage in enumerate(self.stages):
            folds = isinstance(stage.options, QuantizeRd) and stage.options.fold_batchnorm
            if folds and self.trains_after(index):
                raise ValueError(
                    f"{stage.kind}: fold_batchnorm is for a network that no later stage trains"
                )
        return self

    def trains_after(self, index: int) -> bool:
        """Whether a stage after that at ``index`` trains."""
        return any(stage.training is not None for stage in self.stages[index + 1 :])

    def trains_norms_after(self, index: int) -> bool:
        """Whether one after that at ``index`` trains batch norms otherwise than as constants."""
        later = [stage for stage in self.stages[index + 1 :] if stage.training is not None]
        return any(getattr(stage.options, "freeze_norms", False) is False for stage in later)

    @property
    def distills(self) -> bool:
        """Whether any stage learns from another network's outputs."""
        return any(stage.distills for stage in self.stages)

    def to_json(self) -> dict[str, Any]:
        """The recipe with all defaults filled in, as plain data."""
        plain = self.model_dump(exclude={"stages"})
        return plain | {"stages": [{s.kind: s.options.model_dump()} for s in self.stages]}


def builtin_recipes() -> list[str]:
    """Names of the recipes that come with Espalier."""
    folder = resources.files("espalier.recipe") / "builtin"
    return sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )


def load_recipe(source: str | Path, *, seed: int | None = None) -> Recipe:
    """Read and check a recipe.

    Parameters
    ----------
    source : path or str
        A YAML file, or the name of a built-in recipe.
    seed : int, optional
        Takes the place of the recipe's own.

    Raises
    ------
    InvalidArgument
        No such recipe, not YAML, or something in it is not as it should be; says where.
    """
    path = Path(source)
    if path.is_file():
        text = path.read_text(encoding="utf-8", errors="replace")
    elif str(source) in builtin_recipes():
        text = (resources.files("espalier.recipe") / "builtin" / f"{source}.yaml").read_text(
            "utf-8"
        )
    else:
        built_in = ", ".join(builtin_recipes())
        raise InvalidArgument(f"{source}: no such recipe file; built in are {built_in}")
    return parse_recipe(text, str(source), seed=seed)


def parse_recipe(text: str, where: str, *, seed: int | None = None) -> Recipe:
    """A recipe from YAML text; ``where`` names it in messages."""
    try:
        plain = yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise InvalidArgument(f"{where}{line}: not YAML ({problem})") from None
    if not isinstance(plain, dict):
        raise InvalidArgument(f"{where}: a recipe is a mapping, not {type(plain).__name__}")
    if seed is not None:
        plain["seed"] = seed
    try:
        return Recipe.model_validate(plain)
    except ValidationError as error:
        raise InvalidArgument(f"{where}: {_first_problem(error)}") from None


class _Loader(yaml.SafeLoader):
    """SafeLoader that reads 1e-3 as a number, as YAML 1.2 and every reader of a recipe does."""


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?[0-9]+(\.[0-9]*)?[eE][-+]?[0-9]+$"),
    list("-+0123456789"),
)


def _first_problem(error: ValidationError) -> str:
    problems = error.errors()
    # Of the branches of a union only the deepest complaint says what the user meant.
    first = max(problems, key=lambda p: len(p["loc"]))
    where = ".".join(str(part) for part in first["loc"])  # empty for the recipe as a whole
    got = first.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    place = f"{where}: " if where else ""
    return f"{place}{first['msg'].removeprefix('Value error, ')}{shown}{more}"
