"""Layers that may run from their packed weights, and what was measured of each."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from espalier.errors import InvalidArgument, first_line
from espalier.modes import evaluating
from espalier.parametrization import current
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.runtime.convolution import PackedConv
from espalier.runtime.inference_layer import DENSE
from espalier.runtime.layers import (
    EXPANDED,
    PACKED,
    SKIPPING,
    PackedLayer,
    PackedLinear,
)
from espalier.runtime.packed import REALS, PackedMatrix
from espalier.runtime.report import Choice
from espalier.targets import Skipped, Target, find_targets, refuse_nonfinite
from espalier.timing import Clock, Comparison, compare

LAYERS: dict[type[nn.Module], type[PackedLayer]] = {
    nn.Linear: PackedLinear,
    nn.Conv1d: PackedConv,
    nn.Conv2d: PackedConv,
    nn.Conv3d: PackedConv,
}
DENSEST = 0.5
"""Above this density no sparse kernel is faster than a dense one."""

_REPEATS, _WARMUP, _SECONDS = 15, 1, 0.5
_WORTH_IT = 1.03
"""How much faster than dense a form must be to be chosen: less may be noise."""
_WORTH_ITS_MEMORY = 1.1
"""How much faster than packed another form must be to be held."""
_SAMPLE = 1 << 16
_ZEROS = 0.25
"""Share of zeros in an input from which on it may pay to skip them."""

Inputs = dict[str, dict[int, torch.Size]]
"""Layer -> batch size -> shape of its input."""


@dataclass
class Candidate:
    """A layer, and what would stand in its place."""

    names: tuple[str, ...]
    layer: nn.Module
    made: PackedLayer
    matrix: PackedMatrix
    sample: Tensor
    shapes: dict[int, torch.Size]
    choices: tuple[Choice, ...] = ()

    def settle(self, choices: Iterable[Choice]) -> None:
        """Let the new layer do what was measured best."""
        self.choices = tuple(choices)
        forms = {choice.batch: choice.form for choice in self.choices}
        self.made.choice = {self.made.positions(self.input(n)): forms[n] for n in forms}

    def form(self, batch: int) -> str:
        """What was chosen at a measured batch size."""
        return next(choice.form for choice in self.choices if choice.batch == batch)

    @property
    def all_dense(self) -> bool:
        """Whether the layer is best left alone."""
        return all(choice.form == DENSE for choice in self.choices)

    def input(self, batch: int) -> Tensor:
        """What the layer meets at a batch size: its shape, filled with values that it did meet."""
        shape = self.shapes[batch]
        times = -(-shape.numel() // max(1, self.sample.numel()))
        return self.sample.reshape(-1).repeat(times)[: shape.numel()].view(shape)


def repeated(example: tuple[Any, ...], batch: int) -> tuple[Any, ...]:
    """The first samples of the tensors of ``example``, repeated up to ``batch``."""

    def one(x: Any) -> Any:
        if not isinstance(x, Tensor):
            return x
        return x.repeat(-(-batch // len(x)), *[1] * (x.dim() - 1))[:batch]

    return tuple(one(x) for x in example)


def look(
    model: nn.Module, example: tuple[Any, ...], batches: Sequence[int]
) -> tuple[Inputs, dict[str, Tensor]]:
    """Run ``model`` at each batch size; the shapes that each layer met, and an input of it."""
    shapes: Inputs = {}
    samples: dict[str, Tensor] = {}
    batch = 0

    def hook(name: str) -> Any:
        def seen(_module: nn.Module, inputs: Any) -> None:
            if inputs and isinstance(inputs[0], Tensor):
                shapes.setdefault(name, {}).setdefault(batch, inputs[0].shape)
                if name not in samples:
                    samples[name] = inputs[0].detach().clone()

        return seen

    modules = [(n, m) for n, m in model.named_modules() if _plain_type(m) in LAYERS]
    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules]
    try:
        with evaluating(model):
            for batch in sorted(batches):
                model(*repeated(example, batch))
    except Exception as error:
        raise InvalidArgument(
            f"the model cannot be run on the example at batch size {batch}: {first_line(error)}"
        ) from error
    finally:
        for handle in handles:
            handle.remove()
    return shapes, samples


def _plain_type(module: nn.Module) -> type[nn.Module]:
    return parametrize.type_before_parametrizations(module)


def find_candidates(
    model: nn.Module, shapes: Inputs, samples: dict[str, Tensor], densest: float
) -> tuple[list[Candidate], list[Skipped]]:
    """The layers that can be packed, and the others with the reason."""
    found: list[Candidate] = []
    skipped: list[Skipped] = []
    for target in find_targets(model):
        # Of an embedding, say, that shares its weight with a layer, the layer alone.
        sites = [s for s in target.sites if _plain_type(s.module) in LAYERS]
        if not any(site.attribute == "weight" for site in sites):
            skipped += [one for one in _not_made(model, target) if one not in skipped]
            continue
        packed: PackedMatrix | None = None
        for module in dict.fromkeys(site.module for site in sites):
            names = _names(model, module)
            called = next((name for name in names if name in shapes), "")
            why = _obstacle(target, module, names, called)
            if not why:
                layer, why = _packed(target, module, packed, densest)
            if why:
                skipped.append(Skipped(names[0], why))
            else:
                assert layer is not None
                packed = layer.forms[PACKED]
                found.append(
                    Candidate(tuple(names), module, layer, packed, samples[called], shapes[called])
                )
    return found, skipped


def _names(model: nn.Module, module: nn.Module) -> list[str]:
    return [name for name, m in model.named_modules(remove_duplicate=False) if m is module]


def _not_made(model: nn.Module, target: Target) -> Iterator[Skipped]:
    """A layer of another kind, if it is one that multiplies by a matrix."""
    if target.kind in ("linear", "conv"):
        module = target.sites[0].module
        kind = _plain_type(module).__name__
        yield Skipped(_names(model, module)[0], f"a {kind} is run dense")


def _obstacle(target: Target, module: nn.Module, names: list[str], called: str) -> str:
    if "" in names:
        return "is the whole model: there is nothing to put another layer into"
    if target.obstacle:
        return target.obstacle
    if target.value.dtype not in REALS:
        name = str(target.value.dtype).removeprefix("torch.")
        return f"it is {name}: float32 and float64 are computed from codes"
    if any((module._forward_hooks, module._forward_pre_hooks)):
        return "has hooks, which another layer would not have"
    return "" if called else "is not called on the example: its weight may be read in another way"


def _packed(
    target: Target, module: Any, shared: PackedMatrix | None, densest: float
) -> tuple[PackedLayer | None, str]:
    weight = target.value.detach()
    refuse_nonfinite(target, weight)
    density = float((weight != 0).float().mean()) if weight.numel() else 1.0
    if density > densest:
        return None, f"{100 * density:.0f}% of its weights are not zero: dense is faster"
    if density > DENSEST and not _shared(weight):
        return None, f"{100 * density:.0f}% of its weights are not zero, and they share no values"
    numbers, scales = _numbers(target, weight)
    if isinstance(module, nn.Linear):
        matrix = PackedMatrix.of(numbers) if shared is None else shared
        made: PackedLayer = PackedLinear(matrix, module, scales)
    else:
        rows = PackedConv.rows(numbers, module.groups)
        made = PackedConv(PackedMatrix.of(rows), module, scales)
    if made.weight_bytes > weight.nbytes:
        return None, f"packed it takes {made.weight_bytes:,} bytes, dense {weight.nbytes:,}"
    return made, ""


def _numbers(target: Target, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Whole numbers and a scale for each output, where they give the weight to the bit.

    They share values where the weight, with other scales in other rows, has none to share.
    """
    held, shape = current(target), weight.shape
    if isinstance(held, QuantizedWeight) and held.block == (1, *shape[1:]):
        grid = held.on_grid(target.latent)
        numbers, scales = grid.numbers.to(weight.dtype), grid.scales.to(weight.dtype).flatten()
        if len(scales) == len(weight) and not grid.zeros.any():
            dense = numbers * scales.view(-1, *[1] * (len(shape) - 1))
            if torch.equal(dense, weight):
                return numbers, scales.detach().clone()
    return weight, None


def _shared(weight: Tensor) -> bool:
    """Whether some values of ``weight`` stand for many of its elements; by a sample of them."""
    some = weight.flatten()[:: max(1, weight.numel() // _SAMPLE)]
    return len(some.unique()) < len(some) / 2


def gain(found: Comparison) -> float:
    """How many times as fast the second is: by its rounds, or by the quick ones, if that is less.

    On a busy machine the median may be of a call that had to wait; the lower quartile seldom is.
    """
    return min(found.ratio.median, found.first.low / max(found.second.low, 1e-9))


def measured(candidate: Candidate, batch: int, prefer: str, expand: bool) -> Choice:
    """Time the forms of a layer's weight in turn with the layer as it was, and choose one."""
    x, layer, made = candidate.input(batch), candidate.layer, candidate.made

    def timed(form: str) -> Comparison:
        made.choice = {1: form}
        return compare(
            lambda: layer(x),
            lambda: made(x),
            Clock(),
            repeats=_REPEATS,
            warmup=_WARMUP,
            seconds=_SECONDS,
        )

    first = timed(PACKED)
    form, ratio, ms = PACKED, gain(first), {PACKED: first.second}
    if prefer == "memory":
        return Choice(batch, form, first.first, ms, ratio)
    for other, margin in _others(made, x, expand):
        found = timed(other)
        ms[other] = found.second
        if gain(found) > margin * ratio:
            form, ratio = other, gain(found)
    if ratio < _WORTH_IT:
        form, ratio = DENSE, 1.0
    return Choice(batch, form, first.first, ms, ratio)


def _others(made: PackedLayer, x: Tensor, expand: bool) -> Iterator[tuple[str, float]]:
    """Further forms to try, and how much faster each must be than the best before it."""
    if not isinstance(made, PackedLinear):
        return
    if made.positions(x) == 1 and float((x == 0).float().mean()) >= _ZEROS:
        made.skip()
        yield SKIPPING, _WORTH_ITS_MEMORY
    if expand:
        made.expand()
        yield EXPANDED, _WORTH_ITS_MEMORY
