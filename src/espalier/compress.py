"""Compress a bare checkpoint, without data or a model: magnitude pruning and weight sharing.

Everything here works on one NumPy array at a time, so a checkpoint need not fit in memory. The
defaults are safe: no pruning, and at most 256 shared values for each weight, which networks bear
without retraining.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from espalier.container import Ledger, Writer
from espalier.errors import InvalidArgument
from espalier.interop import Checkpoint, TensorInfo
from espalier.options import Lookup, check_bits, check_density, kept_count
from espalier.quantize.assignment import assign
from espalier.quantize.kmeans import Clustering, kmeans_1d
from espalier.state import (
    Array,
    Codebook,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

AUTO = "auto"
"""In place of a number of bits: the fewest values, at most 2^8, within :data:`AUTO_ERROR`."""

AUTO_BITS = 8
AUTO_ERROR = 2.0**-7
"""Relative error (Frobenius) that ``auto`` allows in a tensor: 42 dB, what 8 bits give at best."""

Bits = int | str | None
Choice = int | str | Mapping[str, Bits] | None

FLOATS = ("float16", "bfloat16", "float32", "float64")
"""Dtypes whose weights are pruned and shared; all others are kept exactly."""

_TABLE_BYTES = 48  # about what one more tensor with codes costs in the header
_ROUNDING_SHARE = 0.02  # of the squared error, which is what rounding the centroids may add
_LEAST_MANTISSA = 8  # explicit bits: with the sign and 8 of exponent, the two bytes of a float32
_MOSTLY_ZERO = 0.5  # above this share of zeros, writing positions is cheaper than a code for zero


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


@dataclass(frozen=True)
class Error:
    """How far a tensor is from its original.

    Attributes
    ----------
    relative : float
        Frobenius norm of the difference over that of the original.
    sqnr_db : float
        Signal to quantization noise, in dB: -20 log10(relative); infinite where nothing changed.
    max_abs : float
        Largest difference of one element.
    """

    relative: float
    sqnr_db: float
    max_abs: float


EXACT = Error(0.0, math.inf, 0.0)


@dataclass(frozen=True)
class Outcome:
    """What was done to one tensor, and the error made.

    ``reason`` says why a tensor was kept exactly; empty where it was not.
    """

    info: TensorInfo
    density: float | None
    bits: Bits
    reason: str
    error: Error


@dataclass(frozen=True)
class Summary:
    """The result of :func:`compress_checkpoint`: the file's ledger, and every tensor's outcome."""

    ledger: Ledger
    outcomes: Sequence[Outcome]
    skipped: Mapping[str, str]


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
        Shared values: at most 2^bits for each weight. ``"auto"``: the fewest, at most 2^8, that
        keep the tensor's relative error within 2^-7.

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
            reason = "no density and no bits are set for it"
        steps.append(Step(info, None, None, reason) if reason else Step(info, keep, width))
    return steps


def magnitude_positions(flat: Array, density: float) -> Array:
    """Positions of the largest magnitudes, rising; exactly as many as ``density`` asks for.

    Among equals the lower index stays.

    Examples
    --------
    >>> magnitude_positions(np.array([2.0, 1.0, -2.0, 2.0]), 0.5)
    array([0, 2])
    """
    keep = kept_count(density, flat.size)
    if keep >= flat.size:
        return np.arange(flat.size, dtype=np.int64)
    size = np.abs(flat)
    threshold = np.partition(size, flat.size - keep)[flat.size - keep]
    above = np.flatnonzero(size > threshold)
    ties = np.flatnonzero(size == threshold)[: keep - above.size]
    return np.sort(np.concatenate([above, ties])).astype(np.int64)


def to_numbers(array: Array, dtype: str) -> Array:
    """The values of a float tensor given in its storage dtype: float32, or float64 for float64."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    return array if dtype == "float64" else array.astype(np.float32, copy=False)


def from_numbers(values: Array, dtype: str) -> Array:
    """Float values in the storage dtype of ``dtype``, rounded to nearest, ties to even."""
    if dtype != "bfloat16":
        return values.astype(storage_dtype(dtype))
    bits = values.astype(np.float32).view(np.uint32)
    rounded = bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    return (rounded >> np.uint32(16)).astype(np.uint16)


def compress_tensor(step: Step, array: Array) -> tuple[CompressedTensor, Outcome]:
    """Do what ``step`` says to ``array``, which is in the storage dtype of its tensor.

    Zeros stay exactly zero, whether they were pruned here or before.

    Raises
    ------
    InvalidArgument
        A weight holds NaN or infinity; the message names the tensor.
    """
    info = step.info
    shape, dtype = info.shape, info.dtype
    bits_in_file = array.reshape(-1)
    if step.reason:
        return Dense(shape, dtype, bits_in_file), Outcome(info, None, None, step.reason, EXACT)
    values = to_numbers(bits_in_file, dtype)
    _refuse_nonfinite(info, values)
    nonzero = np.flatnonzero(values)
    kept = None  # all
    if step.density is not None:
        kept = magnitude_positions(values, step.density)
        kept = kept[values[kept] != 0]
    elif nonzero.size < (1 - _MOSTLY_ZERO) * values.size:
        kept = nonzero
    tensor: CompressedTensor
    reason = ""
    if step.bits is not None:
        part = values if kept is None else values[kept]
        codes, book = share(part, step.bits, dtype)
        reason = _why_sharing_does_not_pay(codes, book)
        if kept is None:
            tensor = Codebook(shape, dtype, codes, book)
        else:
            tensor = SparseCodebook(shape, dtype, kept, codes, book)
    if step.bits is None or reason:
        if kept is None or (step.density is None and reason):
            return Dense(shape, dtype, bits_in_file), Outcome(info, None, None, reason, EXACT)
        tensor = Sparse(shape, dtype, kept, bits_in_file[kept])
    error = measure(values, to_numbers(tensor.dense().reshape(-1), dtype))
    bits = None if reason else step.bits
    return tensor, Outcome(info, step.density, bits, reason, error)


def share(values: Array, bits: int | str, dtype: str) -> tuple[Array, Array]:
    """Codes and codebook, in the storage dtype of ``dtype``, of at most 2^bits shared values.

    The centroids minimise the squared error, and are then rounded to as few bits as add no more
    than 2% to it: a codebook of rounded values takes less than half the bytes, which in a small
    layer is much of the file. A zero among the values gets a code of its own and stays exactly
    zero.

    Parameters
    ----------
    values : ndarray, float32 or float64, shape (n,)
        Finite.
    bits : int from 1 to 16, or "auto"
    dtype : str
        Of the tensor that the values come from.

    Returns
    -------
    codes : ndarray, uint8 or uint16, shape (n,)
    codebook : ndarray, shape (k,), rising
    """
    if not values.size:
        return np.zeros(0, np.uint8), np.zeros(0, storage_dtype(dtype))
    nonzero = values[values != 0]
    with_zero = nonzero.size < values.size
    centroids = np.zeros(0)
    if nonzero.size:
        room = (1 << (AUTO_BITS if isinstance(bits, str) else bits)) - with_zero
        found = kmeans_1d(nonzero, room)
        if isinstance(bits, str):
            energy = float(np.square(nonzero, dtype=np.float64).sum())
            found = _fewest(nonzero, found, energy * AUTO_ERROR**2 / (1 + _ROUNDING_SHARE))
        centroids = _rounded(found)
    if with_zero:
        centroids = np.append(centroids, 0.0)
    # Centroids that round to one value are one; codes are of the codebook as it is written.
    book = np.unique(to_numbers(from_numbers(centroids, dtype), dtype))
    return assign(values, book), from_numbers(book, dtype)


def _fewest(values: Array, found: Clustering, allowed: float) -> Clustering:
    """A clustering with about the fewest centroids whose squared error is within ``allowed``."""
    most = k = found.centroids.size
    if not 0 < found.wcss < allowed:  # also where nothing is lost: that must stay so
        return found
    trial = found
    k = math.ceil(k * math.sqrt(found.wcss / allowed))  # the error falls as 1 / k^2
    while k < most:
        trial = kmeans_1d(values, k)
        if trial.wcss <= allowed:
            return trial
        k += max(1, k // 64)
    return found


def _rounded(found: Clustering) -> Array:
    """The centroids with the fewest mantissa bits that add at most 2% to the squared error.

    A centroid is the mean of its values, so moving it by d adds n d^2 for its n values.
    """
    mantissa, exponent = np.frexp(found.centroids)
    counts = np.bincount(found.codes, minlength=found.centroids.size)
    for bits in range(_LEAST_MANTISSA, np.finfo(np.float64).nmant):
        scale = 2.0 ** (bits + 1)
        rounded = np.ldexp(np.round(mantissa * scale) / scale, exponent)
        added = float((counts * np.square(rounded - found.centroids)).sum())
        if added <= _ROUNDING_SHARE * found.wcss:
            return rounded
    return found.centroids


def _why_sharing_does_not_pay(codes: Array, book: Array) -> str:
    """Empty if codes at their entropy and the codebook are smaller than the exact values."""
    exact = codes.size * book.itemsize
    counts = np.bincount(codes, minlength=1)
    counts = counts[counts > 0]
    entropy_bits = float(-(counts * np.log2(counts / max(codes.size, 1))).sum())
    shared = math.ceil(entropy_bits / 8) + book.nbytes + counts.size // 2 + _TABLE_BYTES
    if shared < exact:
        return ""
    return f"sharing would take about {shared} bytes, its {codes.size} exact values take {exact}"


def _refuse_nonfinite(info: TensorInfo, values: Array) -> None:
    if np.isfinite(values).all():
        return
    nan, infinite = int(np.isnan(values).sum()), int(np.isinf(values).sum())
    raise InvalidArgument(
        f"tensor {info.name!r} holds {nan} NaN and {infinite} infinite values; weights must be "
        "finite to be pruned or shared"
    )


def measure(original: Array, now: Array) -> Error:
    """How far the values ``now`` are from the ``original`` ones."""
    if np.array_equal(original, now):
        return EXACT
    wide = np.result_type(original, np.float64)
    difference = now.astype(wide) - original
    noise = float(np.linalg.norm(difference))
    signal = float(np.linalg.norm(original.astype(wide)))
    relative = noise / signal if signal else math.inf
    return Error(relative, -20 * math.log10(relative), float(np.abs(difference).max()))


def compress_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    density: float | Mapping[str, float | None] | None = None,
    bits: Choice = AUTO,
    coder: str = "huffman",
    force: bool = False,
    progress: Callable[[TensorInfo], None] | None = None,
) -> Summary:
    """Write the tensors of ``checkpoint`` to the ``.esp`` file ``path``, one at a time.

    Parameters
    ----------
    checkpoint : Checkpoint
        From :func:`espalier.interop.open_checkpoint`.
    path : path
        Written to a temporary file and renamed.
    density, bits
        See :func:`plan`.
    coder : str, default "huffman"
        Entropy coder of the codes and positions.
    force : bool, default False
        Replace a file that exists.
    progress : callable, optional
        Called with the info of each tensor when it is done.

    Returns
    -------
    Summary

    Examples
    --------
    >>> from espalier.interop import open_checkpoint
    >>> checkpoint = open_checkpoint("resnet20.safetensors")                 # doctest: +SKIP
    >>> compress_checkpoint(checkpoint, "resnet20.esp").ledger.ratio         # doctest: +SKIP
    4.3
    """
    steps = plan(checkpoint.infos.values(), density, bits)
    outcomes = []
    with Writer(Path(path), coder=coder, force=force) as writer:
        for step in steps:
            try:
                tensor, outcome = compress_tensor(step, checkpoint.load(step.info.name))
            except InvalidArgument as error:
                raise InvalidArgument(f"{checkpoint.path}: {error}") from None
            writer.add(step.info.name, tensor)
            outcomes.append(outcome)
            if progress:
                progress(step.info)
        for alias, name in checkpoint.aliases.items():
            writer.alias(alias, name)
        if checkpoint.metadata:
            writer.metadata = {"checkpoint": checkpoint.metadata}
    return Summary(writer.ledger, outcomes, checkpoint.skipped)
