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
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from espalier.errors import InvalidArgument

_Fraction = Annotated[float, Field(gt=0, le=1)]
_Density = _Fraction | dict[str, _Fraction | None]
_Quality = Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)] | None]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Count = Annotated[int, Field(ge=1)]
_Rank = _Count | _Fraction | Annotated[list[_Count], Field(min_length=1)] | Literal["vbmf"]
_Part = Literal["exact", "streamline", "branch"]
_Bits = Annotated[int, Field(ge=1, le=16)]
_FixedBits = Annotated[int, Field(ge=2, le=16)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class GradualPrune(_Strict):
    """Pruning while training: the schedule counts in epochs here, and in steps in ``Pruner``."""

    density: _Density
    schedule: Literal["rounds", "cubic", "surgery"] = "cubic"
    epochs: Annotated[float, Field(gt=0)]
    """From the first cut to the last."""
    every: Annotated[int, Field(ge=1)] = 100
    """Steps between two cuts (cubic, surgery)."""
    rounds: Annotated[int, Field(ge=1)] = 5
    criterion: str = "magnitude"
    scope: Literal["layer", "global"] = "layer"
    samples: Annotated[int, Field(ge=1)] = 1024
    """For second-order criteria: how many training samples to look at."""


class Train(_Strict):
    """``train``, ``retrain``, ``fine_tune``: the fields of :class:`espalier.training.Settings`."""

    epochs: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    augment: Literal["shift", "flip", "shift-flip", "affine"] | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    choose: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=0)] = 0
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss that the network has which the last ``train`` stage left."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    features: list[str] | dict[str, str] = []
    """With ``distill``: layers whose outputs are learnt too, or the teacher's name for each."""
    feature_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    merged_lr: _Positive = 10.0
    """Layers that a ``merge`` stage made learn so many times as fast as the rest."""
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    prune: GradualPrune | None = None
    refresh_every: Annotated[int, Field(ge=0)] = 0
    """Assign shared weights again every so many steps; needs ``share: {refreshable: true}``."""

    @model_validator(mode="after")
    def _taught(self) -> Train:
        if self.features and not self.distill:
            raise ValueError("features are learnt from a teacher: set distill too")
        return self


class Prune(_Strict):
    """``prune``: masks at once, as :func:`espalier.prune` sets them."""

    density: _Density | None = None
    quality: _Quality | None = None
    criterion: str | None = None
    scope: Literal["layer", "global"] = "layer"
    samples: Annotated[int, Field(ge=1)] = 1024

    @model_validator(mode="after")
    def _one_of(self) -> Prune:
        if (self.density is None) == (self.quality is None):
            raise ValueError("give either density or quality")
        return self


class PruneFilters(_Strict):
    """``prune_filters``: whole filters removed, as :func:`espalier.prune_filters` does it."""

    keep: _Density | None = None
    macs: _Fraction | None = None
    parameters: _Fraction | None = None
    latency: _Fraction | None = None
    """Share of the measured time of a forward pass on one sample."""
    criterion: str = "l1"
    scope: Literal["layer", "global"] = "layer"
    samples: Annotated[int, Field(ge=1)] = 1024
    """For criteria that look at outputs or gradients: how many training samples."""
    layerwise: Train | None = None
    """Prune one group of layers after another, and train like this after each."""

    @model_validator(mode="after")
    def _one_of(self) -> PruneFilters:
        given = (self.keep, self.macs, self.parameters, self.latency)
        if sum(v is not None for v in given) != 1:
            raise ValueError("give one of keep, macs, parameters and latency")
        if self.layerwise is not None and (self.keep is None or self.scope != "layer"):
            raise ValueError("layerwise takes keep, with scope: layer")
        return self


class Factorize(_Strict):
    """``factorize``: weights as products of smaller ones, as :func:`espalier.factorize` makes them.

    Multiply-accumulates and time are those of one training sample.
    """

    rank: _Rank | dict[str, _Rank | None] | None = None
    energy: _Density | None = None
    parameters: _Fraction | None = None
    macs: _Fraction | None = None
    latency: _Fraction | None = None
    method: str | dict[str, str | None] | None = None

    @model_validator(mode="after")
    def _one_of(self) -> Factorize:
        given = (self.rank, self.energy, self.parameters, self.macs, self.latency)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give one of rank, energy, parameters, macs and latency")
        return self


class Merge(_Strict):
    """``merge``: layers merged, as :func:`espalier.merge` does it."""

    parts: _Part | list[_Part] = ["exact", "streamline", "branch"]
    layers: str | list[str] = "*"
    start: Literal["fit", "random"] = "fit"
    relu: bool = True
    width: _Fraction = 1.0
    samples: Annotated[int, Field(ge=1)] = 512
    """For the fit: how many training samples."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    layerwise: Train | None = None
    """Merge one layer or block after another, and train like this after each."""


class Share(_Strict):
    """``share``: codebooks, as :func:`espalier.share` makes them."""

    bits: _Bits | dict[str, _Bits | None]
    init: str | None = None
    solver: str | None = None
    reseed: bool = True
    refreshable: bool = False
    layerwise: Train | None = None
    """Share one layer after another, and train like this after each."""


class QuantizeRd(_Strict):
    """``quantize_rd``: grids by rate and distortion, as :func:`espalier.quantize_rd` makes them.

    Either ``lambda``, or how far the held-out loss or error may rise: then the largest lambda that
    stays within it is searched.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    lam: _Positive | dict[str, _Positive | None] | None = Field(None, alias="lambda")
    max_loss_rise: Annotated[float, Field(ge=0)] | None = None
    """Nats a sample."""
    max_error_rise: Annotated[float, Field(ge=0)] | None = None
    """Points."""
    samples: Annotated[int, Field(ge=1)] = 1024
    """How many training samples show the curvature of the loss, and move batch norms."""
    batch_size: Annotated[int, Field(ge=1)] = 128
    quantizer: Literal["uniform", "ecsq"] = "uniform"
    correct_bias: bool = True
    move_batchnorm: bool = True
    """Let batch norms take out what quantization changed in means and deviations."""
    fold_batchnorm: bool | None = None
    """Scales of batch norms go into the weights: if left out, unless a later stage trains."""

    @model_validator(mode="after")
    def _one_of(self) -> QuantizeRd:
        given = (self.lam, self.max_loss_rise, self.max_error_rise)
        if sum(value is not None for value in given) != 1:
            raise ValueError("give one of lambda, max_loss_rise and max_error_rise")
        return self


class RateAware(Train):
    """``rate_aware``: training with the bits in the loss, by :class:`espalier.RateAware`.

    Its own options, with those of ``train``. The last epoch is taken, unless ``choose: best``
    wants the best of those after the ramp.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    lam: _Positive | None = Field(None, alias="lambda")
    """What a bit may cost, in nats a sample."""
    target: _Count | None = None
    """In place of ``lambda``: bytes of the whole file."""
    grid: _Positive | dict[str, _Positive | None] = 1.0
    biases: bool = True
    rounding: Literal["straight-through", "noise", "annealed"] = "straight-through"
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.3
    harden: Annotated[float, Field(ge=0, le=1)] = 0.7
    every: _Count = 50
    freeze_norms: bool | None = None
    """Batch norms train as scales and shifts: if left out, unless a later stage trains."""
    remove_dead: Annotated[int, Field(ge=0)] = 0
    """How often dead units are taken out: the epochs are divided into as many equal parts."""
    refine: Annotated[int, Field(ge=0)] = 0
    """After training, symbols are refined on so many training samples; needed to hold a target."""
    choose: Literal["best", "last"] = "last"

    @model_validator(mode="after")
    def _one_of(self) -> RateAware:
        if (self.lam is None) == (self.target is None):
            raise ValueError("give either lambda or target")
        if self.prune is not None or self.refresh_every:
            raise ValueError("prune and refresh_every do not go with grids that are trained")
        if self.remove_dead > self.epochs:
            raise ValueError(f"remove_dead {self.remove_dead} needs as many epochs")
        return self


class Quantize(_Strict):
    """``quantize``: grids of few bits, as :func:`espalier.quantize` makes them."""

    bits: _FixedBits | dict[str, _FixedBits | None] | None = None
    method: str | dict[str, str | None] = "fixed"
    granularity: Literal["channel", "tensor", "group"] = "channel"
    group_size: _Count | None = None
    keep_ends: bool | None = None
    symmetric: bool | None = None
    power_of_two: bool | None = None
    calibration: Literal["mse", "minmax", "percentile"] | None = None
    percentile: Annotated[float, Field(gt=50, le=100)] | None = None
    train_scale: bool | None = None
    size: Literal["glorot", "one"] | _Positive | None = None
    threshold: Annotated[float, Field(ge=0, allow_inf_nan=False)] | None = None
    correct_bias: bool = True
    activations: _FixedBits | dict[str, _FixedBits | None] | None = None
    activation_options: dict[str, bool | float | str] = {}
    samples: _Count = 1024
    """How many training samples show means and ranges."""
    batch_size: _Count = 128

    @property
    def method_options(self) -> dict[str, Any]:
        """Options of the methods themselves, those that are given."""
        names = ("symmetric", "power_of_two", "calibration", "percentile", "train_scale")
        given = {name: getattr(self, name) for name in (*names, "size", "threshold")}
        return {name: value for name, value in given.items() if value is not None}

    @model_validator(mode="after")
    def _grouped(self) -> Quantize:
        if (self.granularity == "group") != (self.group_size is not None):
            raise ValueError("group_size belongs to granularity: group, and that needs one")
        return self


class Evaluate(_Strict):
    """``evaluate``: error and loss, kept in the results under ``name``."""

    split: Literal["held_out", "test"] = "held_out"
    name: str


class Save(_Strict):
    """``save``: the file, read back and compared bit for bit before the stage counts as done."""

    path: str
    coder: str = "auto"
    effort: Literal["fast", "default", "max"] = "default"

    @model_validator(mode="after")
    def _inside(self) -> Save:
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise ValueError(f"path {self.path!r} must lie inside the run folder")
        return self


STAGES: dict[str, type[_Strict]] = {
    "train": Train,
    "prune": Prune,
    "prune_filters": PruneFilters,
    "factorize": Factorize,
    "merge": Merge,
    "retrain": Train,
    "share": Share,
    "fine_tune": Train,
    "quantize": Quantize,
    "quantize_rd": QuantizeRd,
    "rate_aware": RateAware,
    "evaluate": Evaluate,
    "save": Save,
}


class Stage(_Strict):
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
        if isinstance(value, dict) and isinstance(value.get("options"), _Strict):
            return value
        if isinstance(value, str):
            value = {value: {}}
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError("a stage is written NAME: {OPTION: VALUE, ...}")
        ((kind, options),) = value.items()
        if kind not in STAGES:
            raise ValueError(f"no stage is called {kind!r}; known are {', '.join(STAGES)}")
        return {"kind": kind, "options": STAGES[kind].model_validate(options or {})}


class Recipe(_Strict):
    """A whole run: a model, its data, and the stages."""

    model: str
    """``package.module:function`` that builds the network."""
    model_options: dict[str, Any] = {}
    weights: str | None = None
    """A checkpoint to start from: ``.esp`` (its masks and codebooks stay), ``.safetensors``, ..."""
    data: str
    """``package.module:function`` that gives a :class:`espalier.zoo.DataSet`, or (train, test)."""
    data_options: dict[str, Any] = {}
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
    where = ".".join(str(part) for part in first["loc"])
    got = first.get("input")
    shown = f" (got {got!r})" if isinstance(got, str | int | float | bool) else ""
    more = f"; and {len(problems) - 1} more" if len(problems) > 1 else ""
    return f"{where}: {first['msg'].removeprefix('Value error, ')}{shown}{more}"
