"""From an open checkpoint to an ``.esp`` file, one tensor at a time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from espalier.compress.exact import keep_exactly
from espalier.compress.plan import AUTO, Bits, Choice, Step, plan
from espalier.compress.weights import EXACT, Error, magnitude_positions, measure, share, to_numbers
from espalier.container import Ledger, Writer
from espalier.container.writer import Encoded
from espalier.errors import InvalidArgument
from espalier.interop import Checkpoint, TensorInfo
from espalier.parallel import in_order, job_count
from espalier.state import Array, Codebook, CompressedTensor, Dense, Sparse, SparseCodebook

_TABLE_BYTES = 48  # about what one more tensor with codes costs in the header
_MOSTLY_ZERO = 0.5  # above this share of zeros, writing positions is cheaper than a code for zero


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
        outcome = Outcome(info, None, None, step.reason, EXACT)
        return keep_exactly(info, bits_in_file), outcome
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
    density, bits
        See :func:`plan`.
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
    steps = plan(checkpoint.infos.values(), density, bits)
    outcomes = []
    with Writer(Path(path), coder, force, effort=effort) as writer:

        def work(step: Step) -> tuple[Encoded, Outcome]:
            try:
                tensor, outcome = compress_tensor(step, checkpoint.load(step.info.name)[1])
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
        about = {"checkpoint": checkpoint.metadata, "original": checkpoint.original()}
        writer.metadata = {key: value for key, value in about.items() if value}
    return Summary(writer.ledger, outcomes, checkpoint.skipped)
