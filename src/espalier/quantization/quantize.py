"""``espalier.quantize``: weights, and what enters their layers, on grids of few bits."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from espalier.errors import InvalidArgument
from espalier.fixed_point import to_groups
from espalier.grids import GRIDS, Grid, blocks_of, check_method, check_precision
from espalier.grids.calibration import Range
from espalier.options import Lookup, check_fixed_bits, named
from espalier.parametrization import mask_of, set_grid
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.quantization.activations import calibrate_inputs, input_ranges, round_biases
from espalier.quantization.norms import move_norms, reestimate_batchnorm
from espalier.quantized_inputs import InputGrid
from espalier.targets import Skipped, Target, find_targets, refuse_nonfinite, select, unwrap

Bits = int | Mapping[str, int | None]
Methods = str | Mapping[str, str | None]

BITS = 8
"""Of fixed point, where none are given."""


@dataclass(frozen=True)
class GridWeight:
    """One weight on its grid.

    ``levels``: numbers there are. ``scales``: how many. ``relative_error``: Frobenius norm of what
    quantization changed, over that of the weight.
    """

    name: str
    method: str
    bits: int
    levels: int
    scales: int
    elements: int
    kept: int
    relative_error: float


@dataclass(frozen=True)
class QuantizeReport:
    """Every weight on a grid, every one that is not, with the reason, and the grids of inputs."""

    layers: tuple[GridWeight, ...]
    skipped: tuple[Skipped, ...]
    inputs: dict[str, InputGrid]


@torch.no_grad()
def quantize(
    model: nn.Module,
    bits: Bits | None = None,
    *,
    method: Methods = "fixed",
    granularity: str = "channel",
    group_size: int | None = None,
    keep_ends: bool | None = None,
    batches: Iterable[Any] | None = None,
    correct_bias: bool = True,
    activations: Bits | None = None,
    activation_options: Mapping[str, Any] | None = None,
    **options: Any,
) -> QuantizeReport:
    """Put weights on grids: fixed point of 2 to 16 bits, binary or ternary.

    weight = (number - zero) * scale, with whole numbers and a scale for each output channel, for
    the whole tensor, or for groups of inputs. What the optimizer sees stays a dense weight behind
    it, which trains on by a straight-through estimator; used at once, this is quantization after
    training. Pruned weights stay exactly zero. Saves disk, and time where a runtime for integers
    takes the exported network.

    Parameters
    ----------
    model : nn.Module
        Changed in place; not yet wrapped for distributed training.
    bits : int or mapping, default 8
        Of fixed point: one value, or values by ``"*"``, by kind and by name pattern, as for
        :func:`espalier.prune`.
    method : str or mapping
        ``"fixed"``; ``"binary_connect"`` (Courbariaux et al. 2015); ``"binary"``, with a scale
        (Rastegari et al. 2016); ``"ternary"`` (Li et al. 2016); ``"trained_ternary"`` (Zhu et al.
        2017); or methods by ``"*"``, kind and name pattern.
    granularity : {"channel", "tensor", "group"}
        What has a scale of its own. ``"trained_ternary"`` always has one pair for a tensor.
    group_size : int, optional
        With ``"group"``: inputs of one output channel that share a scale.
    keep_ends : bool, optional
        Whether the first and the last layer are left alone, unless a name pattern asks for them. If
        not given: for binary and ternary methods, as in their papers.
    batches : iterable of inputs, or of (inputs, targets), optional
        Some hundred training samples, for ``correct_bias`` and ``activations``.
    correct_bias : bool
        With ``batches``: biases and batch norms take out what quantization changed in the means
        (and batch norms, in the deviations) of the channels (Nagel et al. 2019, arXiv 1906.04721,
        section 4.2, measured as in their appendix).
    activations : int or mapping, optional
        Bits, 2 to 16, that the inputs of quantized layers are rounded to, as an integer runtime
        does; as the accuracy of the network then is, so it will be there. Biases of those layers
        are rounded too, to the 32 bits of such a runtime. Needs ``batches``.
    activation_options : mapping, optional
        ``symmetric`` (False), ``power_of_two``, ``calibration``, ``percentile``: as for
        ``"fixed"``.
    **options
        Of the method. ``"fixed"``: ``symmetric`` (True), ``power_of_two`` (False), ``calibration``
        (``"mse"``, ``"minmax"`` or ``"percentile"``), ``percentile`` (99.9), ``train_scale``
        (False). ``"binary_connect"``: ``size``. ``"ternary"``, ``"trained_ternary"``:
        ``threshold``. With several methods, each takes those that it knows.

    Returns
    -------
    QuantizeReport

    Raises
    ------
    InvalidArgument
        Bits outside 2..16, groups that do not divide the inputs (by name), an option that no method
        knows, a pattern that matches nothing, NaN or infinity in a weight (by name); the model is
        then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Linear(64, 8)
    >>> report = espalier.quantize(model, bits=4)
    >>> report.layers[0].scales, len(model.weight[0].unique()) <= 15
    (8, True)
    """
    if isinstance(model, DistributedDataParallel):
        raise InvalidArgument(
            "quantize before wrapping the model in DistributedDataParallel: scales that learn are "
            "parameters that its buckets would not hold"
        )
    work, skipped = _plan(model, bits, method, keep_ends, options)
    if not work:
        reasons = "; ".join(f"{s.name}: {s.reason}" for s in skipped)
        raise InvalidArgument(f"nothing is left to quantize ({reasons})")
    seen = None if batches is None else list(batches)
    if activations is not None and not seen:
        raise InvalidArgument("activations: batches are needed to see their ranges")
    ranges: dict[str, Range] = {}
    if activations is not None:
        names = [target.name for target, _ in work]
        ranges = input_ranges(model, activations, names, activation_options or {})
    made = [(target, *_on_grid(target, grid, granularity, group_size)) for target, grid in work]
    original = copy.deepcopy(model) if seen and correct_bias else None
    layers = tuple(_put(target, quantized, lost) for target, quantized, lost in made)
    if original is not None and seen:
        _correct(model, original, seen, [target for target, *_ in made])
    inputs = calibrate_inputs(model, ranges, seen) if ranges and seen else {}
    round_biases(model, inputs)
    return QuantizeReport(layers, tuple(skipped), inputs)


def _plan(
    model: nn.Module,
    bits: Bits | None,
    method: Methods,
    keep_ends: bool | None,
    options: Mapping[str, Any],
) -> tuple[list[tuple[Target, Grid]], list[Skipped]]:
    """The method of each weight, made of the options that it knows."""
    methods = _methods(method, bits)
    classes = {name: GRIDS.get(name) for name in methods.entries.values() if name is not None}
    _check_options(classes, options)
    if bits is not None and "fixed" not in classes:
        raise InvalidArgument(f"bits are of fixed point, and the method is {', '.join(classes)}")
    chosen, skipped = select(model, methods)
    widths = _widths(model, bits)
    ends = _ends(model)
    asked = named(methods.entries | (dict(bits) if isinstance(bits, Mapping) else {}))
    work: list[tuple[Target, Grid]] = []
    for target, name in chosen:
        cls = classes[name]
        keeps = cls.keeps_ends if keep_ends is None else keep_ends
        if keeps and target.name in ends and not asked(target.answers_to):
            where = "first" if target.name == ends[0] else "last"
            skipped.append(Skipped(target.name, f"it is the {where} layer, which is kept"))
            continue
        own = _known(cls, options)
        if name == "fixed":
            width = widths.get(target.name)
            if width is None:
                skipped.append(Skipped(target.name, "no bits are set for it"))
                continue
            own["bits"] = width
        work.append((target, GRIDS.make(name, **own)))
    return work, skipped


def _methods(method: Methods, bits: Bits | None) -> Lookup[str]:
    """The method of each weight; where only bits are given by weight, these say which."""
    if isinstance(method, str) and isinstance(bits, Mapping):
        named_method = check_method(method)
        given = {key: None if width is None else named_method for key, width in bits.items()}
        return Lookup(given, "bits")
    return Lookup(method, "method", check_method)


def _known(cls: type[Grid], options: Mapping[str, Any]) -> dict[str, Any]:
    names = {f.name for f in fields(cls)}  # type: ignore[arg-type]
    return {key: value for key, value in options.items() if key in names}


def _check_options(classes: Mapping[str, type[Grid]], options: Mapping[str, Any]) -> None:
    known = {f.name for cls in classes.values() for f in fields(cls)} - {"bits"}  # type: ignore[arg-type]
    unknown = sorted(set(options) - known)
    if unknown:
        takes = ", ".join(sorted(known)) or "no options"
        raise InvalidArgument(
            f"{', '.join(classes)}: takes {takes}, not {', '.join(map(repr, unknown))}"
        )
    for name, cls in classes.items():
        GRIDS.make(name, **_known(cls, options))


def _widths(model: nn.Module, bits: Bits | None) -> dict[str, int]:
    lookup = Lookup(BITS if bits is None else bits, "bits", check_fixed_bits)
    return {target.name: width for target, width in select(model, lookup)[0]}


def _ends(model: nn.Module) -> tuple[str, str]:
    """The names of the first and of the last weight."""
    names = [target.name for target in find_targets(model) if target.by_default]
    return (names[0], names[-1]) if names else ("", "")


def _on_grid(
    target: Target, grid: Grid, granularity: str, group_size: int | None
) -> tuple[QuantizedWeight, float]:
    """The grid of a weight, and the relative error that it makes."""
    weight, mask = target.value.detach(), mask_of(target)
    refuse_nonfinite(target, weight)
    try:
        check_precision(grid, str(weight.dtype).removeprefix("torch."))
        if grid.one_block:
            granularity, group_size = "tensor", None
        block = blocks_of(tuple(weight.shape), granularity, group_size, _channels(target))
    except InvalidArgument as error:
        raise InvalidArgument(f"{target.name}: {error}") from None
    wide = torch.float64 if weight.dtype == torch.float64 else torch.float32
    kept = torch.ones_like(weight, dtype=torch.bool) if mask is None else mask
    rows = to_groups(weight.double(), block).cpu().numpy()
    scales, zeros = grid.fit(rows, to_groups(kept, block).cpu().numpy())
    own = None if mask is None else mask.clone()
    found = [torch.from_numpy(part).to(weight.device) for part in (scales, zeros)]
    quantized = QuantizedWeight(grid, block, found[0].to(wide), found[1], own)
    lost = (quantized(weight).double() - weight.double()).norm()
    return quantized, float(lost / weight.double().norm().clamp_min(1e-300))


def _channels(target: Target) -> int:
    """The dimension of the output channels."""
    module = target.sites[0].module
    return int(bool(getattr(module, "transposed", False)) and getattr(module, "groups", 1) == 1)


def _put(target: Target, quantized: QuantizedWeight, lost: float) -> GridWeight:
    mask = quantized.mask
    set_grid(target, quantized)
    return GridWeight(
        target.name,
        quantized.grid.name,
        quantized.grid.bits_of(),
        quantized.grid.numbers[2],
        quantized.scales.numel(),
        target.latent.numel(),
        target.latent.numel() if mask is None else int(mask.sum()),
        lost,
    )


def _correct(
    model: nn.Module, original: nn.Module, batches: list[Any], targets: list[Target]
) -> None:
    """Let biases, and batch norms where there are any, take out what was changed."""
    modules = {id(module): name for name, module in unwrap(model).named_modules()}
    biased = [
        modules[id(site.module)]
        for target in targets
        for site in target.sites
        if isinstance(getattr(site.module, "bias", None), nn.Parameter)
    ]
    if biased:
        move_norms(model, batches, original, biased)
    reestimate_batchnorm(model, batches, like=original)


__all__ = ["GridWeight", "QuantizeReport", "quantize"]
