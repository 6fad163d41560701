"""From an open checkpoint to an ``.esp`` file, one tensor at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from espalier.compress.exact import keep_exactly
from espalier.compress.plan import AUTO, SHARED, Bits, ByName, Choice, Step, plan
from espalier.compress.rate import quantize, quantize_within
from espalier.compress.weights import EXACT, Error, magnitude_positions, measure, share
from espalier.container import Ledger, Writer
from espalier.container.encoded import Encoded
from espalier.errors import InvalidArgument
from espalier.fixed_point import FLOATS, SparseFixedPoint, to_numbers
from espalier.grids.tensor import quantized_array
from espalier.interop import Checkpoint, TensorInfo
from espalier.parallel import in_order, job_count
from espalier.state import Array, Codebook, CompressedTensor, Dense, Sparse, SparseCodebook

_TABLE_BYTES = 48  # about what one more tensor with codes costs in the header
_MOSTLY_ZERO = 0.5  # above this share of zeros, writing positions is cheaper than a code for zero


class Outcome(NamedTuple):
    """What was done to one tensor, and the error made.

    ``reason`` says why a tensor was kept exactly; empty where it was not. ``lam``: of its grid.
    """

    info: TensorInfo
    density: float | None
    bits: Bits
    reason: str
    error: Error
    lam: float | None = None

    @property
    def exact(self) -> bool:
        """Whether nothing was done to it."""
        return (self.density, self.bits, self.lam, self.error) == (None, None, None, EXACT)


@dataclass(frozen=True)
class Summary:
    """The result of :func:`compress_checkpoint`: the file's ledger, and every tensor's outcome."""

    ledger: Ledger
    outcomes: Sequence[Outcome]
    skipped: Mapping[str, str]


def compress_tensor(
    step: Step, array: Array, prepared: CompressedTensor | None = None
) -> tuple[CompressedTensor, Outcome]:
    """Do what ``step`` says to ``array``, which is in the storage dtype of its tensor.

    Zeros stay exactly zero, whether they were pruned here or before. ``prepared`` takes the place
    of what would be done.

    Raises
    ------
    InvalidArgument
        A weight holds NaN or infinity; the message names the tensor.
    """
    info = step.info
    shape, dtype = info.shape, info.dtype
    bits_in_file = array.reshape(-1)
    if prepared is not None:
        return _as_prepared(step, array, prepared)
    if step.reason:
        outcome = Outcome(info, None, None, step.reason, EXACT)
        return keep_exactly(info, bits_in_file), outcome
    values = to_numbers(bits_in_file, dtype)
    _refuse_nonfinite(info, values)
    nonzero = np.flatnonzero(values)
    kept = None  # all
    if step.density is not None:
        kept = magnitude_positions(values, step.density)
        kept = kept[values[kept] != 0]
    elif nonzero.size < _least_dense(step) * values.size:
        kept = nonzero
    tensor: CompressedTensor
    reason, lam = "", step.lam
    if step.grid is not None:
        mask = None if kept is None else _mask(kept, shape)
        tensor = quantized_array(step.grid, step.block, values.reshape(shape), dtype, mask)
    elif step.bits is not None or step.on_grid:
        part = values if kept is None else values[kept]
        codes, book, lam = _codebook(step, part)
        reason = _why_sharing_does_not_pay(codes, book)
        if kept is None:
            tensor = Codebook(shape, dtype, codes, book)
        else:
            tensor = SparseCodebook(shape, dtype, kept, codes, book)
    if reason or not (step.bits is not None or step.on_grid):
        if kept is None or (step.density is None and reason):
            return Dense(shape, dtype, bits_in_file), Outcome(info, None, None, reason, EXACT)
        tensor = Sparse(shape, dtype, kept, bits_in_file[kept])
    error = measure(values, to_numbers(tensor.dense().reshape(-1), dtype))
    if reason:
        return tensor, Outcome(info, step.density, None, reason, error)
    return tensor, Outcome(info, step.density, step.bits, reason, error, lam)


def _as_prepared(
    step: Step, array: Array, prepared: CompressedTensor
) -> tuple[CompressedTensor, Outcome]:
    info = step.info
    if (prepared.shape, prepared.dtype) != (info.shape, info.dtype):
        raise InvalidArgument(
            f"tensor {info.name!r} is {info.dtype} {info.shape} in the checkpoint and "
            f"{prepared.dtype} {prepared.shape} in the model"
        )
    now = prepared.dense().reshape(-1)
    if info.dtype in FLOATS:
        error = measure(*(to_numbers(part, info.dtype) for part in (array.reshape(-1), now)))
    else:
        error = EXACT if np.array_equal(array.reshape(-1), now) else Error(math.nan, 0.0, math.nan)
    density = None
    if isinstance(prepared, Sparse | SparseCodebook | SparseFixedPoint):
        density = prepared.stored / max(prepared.size, 1)
    if error == EXACT and isinstance(prepared, Dense):
        reason = step.reason if info.dtype not in FLOATS else "kept as it is"
        return keep_exactly(info, array.reshape(-1)), Outcome(info, None, None, reason, EXACT)
    return prepared, Outcome(info, density, None, "", error, step.lam)


def _least_dense(step: Step) -> float:
    """The density from which zeros are codes: all of it, where no number is zero."""
    return 1.0 if step.grid is not None and step.grid.numbers[1] > 1 else 1 - _MOSTLY_ZERO


def _mask(kept: Array, shape: tuple[int, ...]) -> Array:
    mask = np.zeros(shape, np.bool_)
    mask.reshape(-1)[kept] = True
    return mask


def _codebook(step: Step, values: Array) -> tuple[Array, Array, float | None]:
    """Codes, codebook and, on a grid, its lambda."""
    try:
        if step.lam is not None:
            return *quantize(values, step.lam, step.info.dtype), step.lam
        if step.limit is not None:
            return quantize_within(values, step.limit, step.info.dtype)
    except InvalidArgument as error:
        raise InvalidArgument(f"tensor {step.info.name!r}: {error}") from None
    assert step.bits is not None
    return *share(values, step.bits, step.info.dtype), None


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


def compress_checkpoint(
    checkpoint: Checkpoint,
    path: str | os.PathLike[str],
    *,
    density: float | Mapping[str, float | None] | None = None,
    bits: Choice = AUTO,
    lam: ByName = None,
    limit: ByName = None,
    quantizer: str | Mapping[str, str | None] = SHARED,
    group_size: int | None = None,
    prepared: Mapping[str, CompressedTensor] | None = None,
    coder: str = "auto",
    effort: str = "default",
    jobs: int = 1,
    force: bool = False,
    progress: Callable[[TensorInfo], None] | None = None,
) -> Summary:
    """Write the tensors of ``checkpoint`` to the ``.esp`` file ``path``.

    Tensors are read, compressed and written one after the other, or by several threads. What is in
    memory is a few times the ``jobs`` tensors that are being compressed, and at most as much again
    as two for each job that wait to be written.

    Parameters
    ----------
    checkpoint : Checkpoint
        From :func:`espalier.interop.open_checkpoint`.
    path : path
        Written to a temporary file and renamed.
    density, bits, lam, limit, quantizer, group_size
        See :func:`plan`.
    prepared : mapping, optional
        Tensors, by name, that are written in place of what would be made of those of the
        checkpoint: as a network has them that was quantized with data.
    coder : str, default "auto"
        Entropy coder; ``"auto"`` is the smallest for each stream.
    effort : str, default "default"
        With ``"auto"``: ``"fast"``, ``"default"`` or ``"max"`` (smallest, slow both ways).
    jobs : int, default 1
        Threads. The file is the same for any number of them.
    force : bool, default False
        Replace a file that exists.
    progress : callable, optional
        Called with the info of each tensor when it is written.

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
    steps = plan(checkpoint.infos.values(), density, bits, lam, limit, quantizer, group_size)
    outcomes = []
    with Writer(Path(path), coder, force, effort=effort) as writer:

        def work(step: Step) -> tuple[Encoded, Outcome]:
            try:
                array = checkpoint.load(step.info.name)[1]
                given = (prepared or {}).get(step.info.name)
                tensor, outcome = compress_tensor(step, array, given)
                return writer.encode(tensor), outcome
            except InvalidArgument as error:
                raise InvalidArgument(f"{checkpoint.path}: {error}") from None

        with in_order(work, steps, job_count(jobs), lambda step: step.info.nbytes) as results:
            for step, (encoded, outcome) in zip(steps, results, strict=True):
                writer.put(step.info.name, encoded)
                outcomes.append(outcome)
                if progress:
                    progress(step.info)
        for alias, name in checkpoint.aliases.items():
            writer.alias(alias, name)
        for name, pieces in checkpoint.files().items():
            writer.file(name, pieces())
        about = {"checkpoint": checkpoint.metadata, "original": checkpoint.original()}
        writer.metadata = {key: value for key, value in about.items() if value}
    return Summary(writer.ledger, outcomes, checkpoint.skipped)
