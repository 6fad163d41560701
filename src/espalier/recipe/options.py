"""What each stage of a recipe takes."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_Fraction = Annotated[float, Field(gt=0, le=1)]
_Density = _Fraction | dict[str, _Fraction | None]
_Quality = Annotated[float, Field(ge=0)] | dict[str, Annotated[float, Field(ge=0)] | None]
_Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_Grid = _Positive | Literal["kept"]
_Count = Annotated[int, Field(ge=1)]
_Rank = _Count | _Fraction | Annotated[list[_Count], Field(min_length=1)] | Literal["vbmf"]
_Part = Literal["exact", "streamline", "branch"]
_Bits = Annotated[int, Field(ge=1, le=16)]
_FixedBits = Annotated[int, Field(ge=2, le=16)]


class Strict(BaseModel):
    """Nothing that is not asked for, and nothing that changes."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class GradualPrune(Strict):
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


class Train(Strict):
    """``train``, ``retrain``, ``fine_tune``: the fields of :class:`espalier.training.Settings`."""

    epochs: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)] = 1e-3
    batch_size: Annotated[int, Field(ge=1)] = 128
    optimizer: Literal["adam", "sgd"] = "adam"
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    schedule: Literal["cosine", "constant"] = "cosine"
    augment: Literal["shift", "shift-1", "flip", "shift-flip", "affine"] | None = None
    mix: Literal["mixup", "cutmix"] | None = None
    """Half of the samples are mixed with others of their batch, and learn both labels."""
    views: Annotated[int, Field(ge=0)] = 0
    """With ``augment`` or ``mix``: so many versions of the training set, drawn once, take turns."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    average: Annotated[float, Field(ge=0, lt=1)] = 0.0
    choose: Literal["best", "last"] = "best"
    patience: Annotated[int, Field(ge=0)] = 0
    distill: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Share of the loss that the network has which the last ``train`` stage left."""
    teachers: Annotated[int, Field(ge=0)] = 0
    """Of ``train``: so many networks more are trained, from other seeds, to teach with this one."""
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 4.0
    features: list[str] | dict[str, str] = []
    """With ``distill``: layers whose outputs are learnt too, or the teacher's name for each."""
    feature_weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    merged_lr: _Positive = 10.0
    """Layers that a ``merge`` stage made learn so many times as fast as the rest."""
    precision: Literal["float32", "bfloat16"] = "float32"
    channels_last: bool = False
    dropout: Annotated[float, Field(ge=0, lt=1)] | None = None
    prune: GradualPrune | None = None
    refresh_every: Annotated[int, Field(ge=0)] = 0
    """Assign shared weights again every so many steps; needs ``share: {refreshable: true}``."""

    @model_validator(mode="after")
    def _taught(self) -> Train:
        if self.features and not self.distill:
            raise ValueError("features are learnt from a teacher: set distill too")
        if self.views and self.augment is None and self.mix is None:
            raise ValueError("views are drawn by augment or mix: set one of them too")
        return self


class Prune(Strict):
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


class PruneFilters(Strict):
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


class Factorize(Strict):
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


class Merge(Strict):
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


class Share(Strict):
    """``share``: codebooks, as :func:`espalier.share` makes them."""

    bits: _Bits | dict[str, _Bits | None]
    init: str | None = None
    solver: str | None = None
    reseed: bool = True
    refreshable: bool = False
    layerwise: Train | None = None
    """Share one layer after another, and train like this after each."""


class QuantizeRd(Strict):
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
    wants the best of those after the ramp whose file is near the target.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)

    lam: _Positive | None = Field(None, alias="lambda")
    """What a bit may cost, in nats a sample."""
    target: _Count | None = None
    """Bytes of the whole file, which lambda is led to, from ``lambda`` or 1e-6."""
    grid: _Grid | dict[str, _Grid | None] = 1.0
    biases: bool = True
    rounding: Literal["straight-through", "noise", "annealed"] = "straight-through"
    ramp: Annotated[float, Field(ge=0, le=1)] = 0.3
    harden: Annotated[float, Field(ge=0, le=1)] = 0.7
    every: _Count = 50
    groups: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    freeze_norms: bool | None = None
    """Batch norms train as scales and shifts: if left out, unless a later stage trains them."""
    remove_dead: Annotated[int, Field(ge=0)] = 0
    """How often dead units are taken out: the epochs are divided into as many equal parts."""
    refine: Annotated[int, Field(ge=0)] = 0
    """After training, symbols are refined on so many training samples; needed to hold a target."""
    fixed_epochs: Annotated[int, Field(ge=0)] = 0
    """After that, so many epochs more with the symbols fixed, at a tenth of ``lr``."""
    choose: Literal["best", "last"] = "last"

    @model_validator(mode="after")
    def _one_of(self) -> RateAware:
        if self.lam is None and self.target is None:
            raise ValueError("give lambda or target")
        if self.prune is not None or self.refresh_every:
            raise ValueError("prune and refresh_every do not go with grids that are trained")
        if self.remove_dead > self.epochs:
            raise ValueError(f"remove_dead {self.remove_dead} needs as many epochs")
        return self


class Quantize(Strict):
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
    size: Literal["rms", "one"] | _Positive | None = None
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


class Evaluate(Strict):
    """``evaluate``: error and loss, kept in the results under ``name``."""

    split: Literal["held_out", "test"] = "held_out"
    name: str


class Save(Strict):
    """``save``: the file, read back and compared bit for bit before the stage counts as done."""

    path: str
    coder: str = "auto"
    effort: Literal["fast", "default", "max"] = "default"

    @model_validator(mode="after")
    def _inside(self) -> Save:
        if Path(self.path).is_absolute() or ".." in Path(self.path).parts:
            raise ValueError(f"path {self.path!r} must lie inside the run folder")
        return self


STAGES: dict[str, type[Strict]] = {
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
