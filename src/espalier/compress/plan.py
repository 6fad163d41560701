"""What to do with each tensor of a checkpoint, decided from its name, shape and dtype alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from espalier.interop import TensorInfo
from espalier.options import Lookup, check_bits, check_density

AUTO = "auto"
"""In place of a number of bits: 8, with no more values than its error asks for."""

LOSSLESS = "lossless"
"""Why a weight is kept exactly where neither density nor bits are set for any."""

Bits = int | str | None
Choice = int | str | Mapping[str, Bits] | None

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes whose weights are pruned and shared; all others are kept exactly."""


@dataclass(frozen=True)
class Step:
    """What will be done to one tensor.

    Attributes
    ----------
    info : TensorInfo
    density : float or None
        Fraction of elements to keep; None: all.
    bits : int, "auto" or None
        At most 2^bits shared values; None: exact values.
    reason : str
        Why neither is done; empty where one is.
    """

    info: TensorInfo
    density: float | None
    bits: Bits
    reason: str = ""


def check_width(value: object) -> int | str:
    """``value`` as a number of bits from 1 to 16, or ``"auto"``."""
    return AUTO if value == AUTO else check_bits(value)


def kind_of(info: TensorInfo) -> str:
    """The kind of layer, as far as the number of dimensions tells: 2 linear, 3 to 5 conv."""
    dims = len(info.shape)
    return "linear" if dims == 2 else "conv" if 3 <= dims <= 5 else "other"


def why_exact(info: TensorInfo) -> str:
    """Why a tensor is no weight to be pruned or shared; empty if it is one."""
    if info.dtype not in FLOATS:
        return f"{info.dtype} is kept as it is"
    if len(info.shape) < 2:
        return f"{len(info.shape)}-D: biases, norms and the like are kept as they are"
    return "" if info.size else "it has no elements"


def plan(
    infos: Iterable[TensorInfo],
    density: float | Mapping[str, float | None] | None = None,
    bits: Choice = AUTO,
) -> list[Step]:
    """Decide for every tensor, from its name and shape alone.

    Parameters
    ----------
    infos : iterable of TensorInfo
    density : float in (0, 1], or mapping, or None
        Fraction of each weight to keep, by magnitude; see :class:`espalier.options.Lookup`. A
        weight answers to its name, and to its name without ``.weight``.
    bits : int from 1 to 16, or "auto", or mapping, or None
        Shared values: at most 2^bits for each weight. ``"auto"``: 8 bits, and of the 129 to 256
        values of such a codebook the fewest that keep the tensor's relative error within 2^-7.

    Raises
    ------
    InvalidArgument
        A value is out of range, or a key matches none of the weights.
    """
    infos = list(infos)
    reasons = [why_exact(info) for info in infos]
    weights = [info for info, reason in zip(infos, reasons, strict=True) if not reason]
    targets = [((info.name.removesuffix(".weight"), info.name), kind_of(info)) for info in weights]

    def resolve(value: Any, what: str, check: Callable[[object], Any]) -> dict[str, Any]:
        if value is None:
            return {}
        values = Lookup(value, what, check).resolve(targets)
        return {info.name: v for info, v in zip(weights, values, strict=True)}

    densities = resolve(density, "density", check_density)
    widths = resolve(bits, "bits", check_width)
    steps = []
    for info, reason in zip(infos, reasons, strict=True):
        keep, width = densities.get(info.name), widths.get(info.name)
        if not reason and keep is None and width is None:
            reason = LOSSLESS if bits is None else "no density and no bits are set for it"
        steps.append(Step(info, None, None, reason) if reason else Step(info, keep, width))
    return steps
