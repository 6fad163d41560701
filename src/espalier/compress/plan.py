"""What to do with each tensor of a checkpoint, decided from its name, shape and dtype alone."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from espalier.errors import InvalidArgument
from espalier.fixed_point import FLOATS, Block
from espalier.grids import GRIDS, Grid, blocks_of, check_method, check_precision
from espalier.interop import TensorInfo
from espalier.options import Lookup, check_bits, check_density, check_lambda, named

AUTO = "auto"
"""In place of a number of bits: 8, with no more values than its error asks for."""

SHARED = "kmeans"
"""The quantizer of shared values; the others are those of :func:`espalier.quantize`."""

AUTO_BITS = 8

LOSSLESS = "lossless"
"""Why a weight is kept exactly where neither density nor bits are set for any."""

Bits = int | str | None
Choice = int | str | Mapping[str, Bits] | None
ByName = float | Mapping[str, float | None] | None


class Step(NamedTuple):
    """What will be done to one tensor.

    Attributes
    ----------
    info : TensorInfo
    density : float or None
        Fraction of elements to keep; None: all.
    bits : int, "auto" or None
        At most 2^bits shared values; None: exact values, or those of a grid.
    reason : str
        Why nothing is done; empty where something is.
    lam : float or None
        What a bit may cost on a grid.
    limit : float or None
        On a grid, the relative error of the tensor that lambda is chosen for.
    grid : Grid or None
        In place of shared values: fixed point, binary or ternary, ``block`` for block.
    """

    info: TensorInfo
    density: float | None
    bits: Bits
    reason: str = ""
    lam: float | None = None
    limit: float | None = None
    grid: Grid | None = None
    block: Block = ()

    @property
    def on_grid(self) -> bool:
        """Whether the weight goes to a grid, by rate and distortion."""
        return self.lam is not None or self.limit is not None


def check_width(value: object) -> int | str:
    """``value`` as a number of bits from 1 to 16, or ``"auto"``."""
    return AUTO if value == AUTO else check_bits(value)


def check_limit(value: object) -> float:
    """``value`` as a limit of the relative error of a tensor: a number between 0 and 1."""
    if isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 1:
        return float(value)
    raise InvalidArgument(f"a limit of relative errors must lie between 0 and 1, not {value!r}")


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
    lam: ByName = None,
    limit: ByName = None,
    quantizer: str | Mapping[str, str | None] = SHARED,
    group_size: int | None = None,
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

    lam, limit : float, or mapping, or None
        In place of ``bits`` (left out, or ``"auto"``), a grid chosen by rate and distortion: with
        this lambda, or with the largest whose relative error, for each tensor, is at most
        ``limit``.
    quantizer : str or mapping
        ``"kmeans"``: shared values. Or a method of :func:`espalier.quantize`, ``bits`` being those
        of ``"fixed"`` (``"auto"``: 8); a scale for each output channel. Binary and ternary methods
        leave the first and the last weight as shared values, unless a name pattern asks for them.
    group_size : int, optional
        Scales for so many inputs of a channel.

    Raises
    ------
    InvalidArgument
        A value is out of range, or a key matches none of the weights; two of ``bits``, ``lam`` and
        ``limit`` are set.
    """
    if bits == AUTO and not (lam is None and limit is None):
        bits = None
    if sum(value is not None for value in (bits, lam, limit)) > 1:
        raise InvalidArgument("bits, lam and limit exclude each other: give one of them")
    if quantizer != SHARED and bits is None:
        raise InvalidArgument(f"quantizer {quantizer!r} takes bits, not lam or limit")
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
    lams, limits = resolve(lam, "lambda", check_lambda), resolve(limit, "limit", check_limit)
    anything = not (bits is None and lam is None and limit is None)
    grids = _grids(weights, targets, quantizer, group_size, widths)
    steps = []
    for info, reason in zip(infos, reasons, strict=True):
        chosen = [table.get(info.name) for table in (densities, widths, lams, limits)]
        if not reason and chosen == [None] * 4:
            what = "bits" if bits is not None else "lambda" if lam is not None else "limit"
            reason = f"no density and no {what} are set for it" if anything else LOSSLESS
        if reason:
            steps.append(Step(info, None, None, reason))
        else:
            keep, width, rate, error = chosen
            steps.append(Step(info, keep, width, "", rate, error, *grids[info.name]))
    return steps


def _grids(
    weights: list[TensorInfo],
    targets: Sequence[tuple[tuple[str, ...], str]],
    quantizer: str | Mapping[str, str | None],
    group_size: int | None,
    widths: Mapping[str, Any],
) -> dict[str, tuple[Grid | None, Block]]:
    """The grid and the block of each weight that has bits; None where values are shared."""
    lookup = Lookup(quantizer, "quantizer", check_quantizer)
    methods = lookup.resolve(targets)
    asked = named(lookup.entries)
    found: dict[str, tuple[Grid | None, Block]] = {}
    for i, (info, method) in enumerate(zip(weights, methods, strict=True)):
        found[info.name] = None, ()
        width = widths.get(info.name)
        if method in (None, SHARED) or width is None:
            continue
        end = i in (0, len(weights) - 1) and not asked(targets[i][0])
        if GRIDS.get(method).keeps_ends and end:
            continue
        try:
            fixed = {"bits": AUTO_BITS if width == AUTO else width} if method == "fixed" else {}
            grid = GRIDS.make(method, **fixed)
            check_precision(grid, info.dtype)
            granularity = "tensor" if grid.one_block else "group" if group_size else "channel"
            found[info.name] = grid, blocks_of(info.shape, granularity, group_size)
        except InvalidArgument as error:
            raise InvalidArgument(f"tensor {info.name!r}: {error}") from None
    return found


def check_quantizer(value: object) -> str:
    """``value`` as the name of a way to quantize a bare weight."""
    return SHARED if value == SHARED else check_method(value)
