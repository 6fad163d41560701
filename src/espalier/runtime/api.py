"""``espalier.accelerate``: sparse layers run from their compressed weights, dense ones laid out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from espalier.errors import InvalidArgument, first_line
from espalier.parametrization import finalize
from espalier.runtime.candidates import (
    DENSEST,
    Candidate,
    find_candidates,
    gain,
    look,
    measured,
    repeated,
)
from espalier.runtime.inference_layer import DENSE, InferenceLayer
from espalier.runtime.layers import PACKED
from espalier.runtime.prepack import Laid, lay_out, twin
from espalier.runtime.report import ModelTime, PackedRow, RuntimeReport
from espalier.targets import Skipped, unwrap
from espalier.timing import Clock, compare

PREFERENCES = ("time", "memory")
_SLOWEST = 1.02
"""How many times as long the network may be measured to take, so that 1.05 holds after noise."""
_REPEATS, _WARMUP, _SECONDS = 15, 1, 2.0


@torch.no_grad()
def accelerate(
    model: nn.Module,
    example: Any,
    *,
    batches: Sequence[int] = (1, 32),
    prefer: str = "time",
    expand: bool = False,
    prepack: bool = True,
) -> RuntimeReport:
    """Let sparse layers compute from their nonzeros and codes, wherever that is faster.

    And dense ones from weights that were laid out once.

    A linear layer or a convolution whose weight has zeros, by a mask or a codebook of Espalier's or
    as plain values, is replaced by one that holds a word of 16 or 32 bits for each nonzero, its
    column and its code, and computes y_i = sum_j S[I_ij] x_j from them, on as many threads as
    PyTorch has. Each is timed in turn with the dense layer, at each batch size; where that is
    faster, the dense weight stays beside, and computes. At last the whole network is timed; where
    it became slower at a batch size, layers go back to dense, at that size or for good.

    Of the convolutions that stay dense, those of images in float32 hold their weights in the order
    in which oneDNN reads them, which PyTorch otherwise brings about at each call, and compute the
    activation behind them along, if that makes the whole network faster. So also in one without
    zeros. Images come out of them with their channels innermost in memory.

    The results are those of the dense network but for the order of additions. For inference on the
    CPU: the network is in evaluation mode afterwards, and its new layers have no parameters.
    ``state_dict()`` still gives plain dense weights. Deep copies share the packed ones.

    Parameters
    ----------
    model : nn.Module
        Changed in place: layers replaced, masks and codebooks finalized.
    example : Tensor, or tuple of the model's inputs
        One sample or more, repeated for each batch size.
    batches : sequence of int
        Sizes to measure. With any other, each layer does what was best at the nearest.
    prefer : str
        ``"time"``, or ``"memory"``: every sparse layer runs from its packed weight alone, timed all
        the same, and faster or slower than before.
    expand : bool
        Whether linear layers may take more memory than packed: their weights expanded once into
        ``torch.sparse_csr`` are tried too.
    prepack : bool
        Whether dense convolutions may be laid out anew.

    Returns
    -------
    RuntimeReport
        Times, forms and bytes, layer by layer; what is skipped, with the reason.

    Raises
    ------
    InvalidArgument
        The model fails on the example, or lies on another device than the CPU; an option is out of
        range; a weight holds NaN or infinity. The model is then as it was.

    Examples
    --------
    >>> import torch, espalier
    >>> model = torch.nn.Sequential(torch.nn.Linear(2048, 1024), torch.nn.ReLU())
    >>> _ = espalier.prune(model, density=0.05)
    >>> _ = espalier.share(model, bits=5)
    >>> x = torch.randn(1, 2048)
    >>> before = model(x).detach()
    >>> report = espalier.accelerate(model, x, batches=[1], prefer="memory")
    >>> report.layers[0].dense_bytes // report.layers[0].weight_bytes
    39
    >>> torch.allclose(model(x), before, atol=1e-5)
    True

    Notes
    -----
    The idea is that of Han et al. 2016, EIE (arXiv 1602.01528), section 3. Otherwise than there, an
    index is the column within a block and no gap; zeros among the x are skipped where one sample
    goes into a linear layer, a quarter of it zeros or more, and that is faster.
    """
    model = unwrap(model)
    inputs = example if isinstance(example, tuple) else (example,)
    _check(model, inputs, batches, prefer)
    shapes, samples = look(model, inputs, batches)
    candidates, skipped = find_candidates(
        model, shapes, samples, 1.0 if prefer == "memory" else DENSEST
    )
    model.eval()
    finalize(model)
    before, dense_bytes = twin(model), _bytes(model)
    for candidate in candidates:
        weight = candidate.layer.weight
        assert isinstance(weight, Tensor)
        candidate.made.forms[DENSE] = weight.detach()
        candidate.settle([measured(candidate, n, prefer, expand) for n in batches])
    chosen, times = _replaced(model, before, candidates, inputs, batches, prefer)
    laid = Laid()
    if prepack:
        sparse = {candidate.names: candidate.layer for candidate in chosen}
        laid = lay_out(model, sparse, inputs, batches, shapes, prefer)
        chosen = [candidate for candidate in chosen if candidate.names not in laid.layers]
    if laid.layers:
        times = _times(before, model, inputs, batches)
    skipped += [_slower(candidate) for candidate in candidates if candidate not in chosen]
    for candidate in chosen:
        candidate.made.drop_unused()
    rows = laid.rows()
    return RuntimeReport(
        layers=tuple(_row(candidate) for candidate in chosen),
        skipped=tuple(s for s in skipped if s.name not in {row.name for row in rows}),
        prepacked=rows,
        forms=laid.forms,
        model=times,
        dense_bytes=dense_bytes,
        weight_bytes=_bytes(model),
        threads=torch.get_num_threads(),
    )


def _check(model: nn.Module, inputs: tuple[Any, ...], batches: Sequence[int], prefer: str) -> None:
    if prefer not in PREFERENCES:
        raise InvalidArgument(f"prefer {prefer!r} must be one of {', '.join(PREFERENCES)}")
    if not batches or any(n < 1 for n in batches):
        raise InvalidArgument(f"batches {list(batches)} must be numbers from 1 on")
    tensors = [x for x in inputs if isinstance(x, Tensor)]
    if not tensors or any(not x.dim() or not len(x) for x in tensors):
        raise InvalidArgument("example has no sample in it")
    for x in (*tensors, *model.parameters()):
        if x.device.type != "cpu":
            raise InvalidArgument(
                f"compressed weights are computed from on the CPU, not {x.device}"
            )


def _slower(candidate: Candidate) -> Skipped:
    first = candidate.choices[0]
    return Skipped(
        candidate.names[0],
        f"dense is faster: {first.dense_ms.median:.3g} ms at batch {first.batch}, packed "
        f"{first.ms[PACKED].median:.3g}",
    )


def _put(model: nn.Module, names: Iterable[str], module: nn.Module) -> None:
    for name in names:
        head, _, tail = name.rpartition(".")
        setattr(model.get_submodule(head), tail, module)


def _replaced(
    model: nn.Module,
    before: nn.Module,
    candidates: list[Candidate],
    inputs: tuple[Any, ...],
    batches: Sequence[int],
    prefer: str,
) -> tuple[list[Candidate], tuple[ModelTime, ...]]:
    """Put the new layers in place, but for those that make the network slower."""
    chosen = [candidate for candidate in candidates if not candidate.all_dense]
    while chosen:
        for candidate in chosen:
            _put(model, candidate.names, candidate.made)
        try:
            times = _times(before, model, inputs, batches)
        except Exception as error:
            _put_back(model, chosen)
            raise InvalidArgument(
                f"the model cannot be run with packed layers: {first_line(error)}"
            ) from error
        slow = {time.batch for time in times if time.gain < 1 / _SLOWEST}
        if prefer == "memory" or not slow:
            return chosen, times
        _put_back(model, chosen)
        chosen = _milder(chosen, slow)
    return [], ()


def _milder(chosen: list[Candidate], slow: set[int]) -> list[Candidate]:
    """What to try next of layers with which the network is slower at the batch sizes ``slow``.

    First without those that are dense there anyway, since to look that up takes time; then with all
    of them dense there; then none.
    """
    sparse = [c for c in chosen if all(c.form(n) != DENSE for n in slow)]
    if len(sparse) < len(chosen):
        return sparse
    for candidate in chosen:
        candidate.settle(
            replace(choice, form=DENSE, ratio=1.0) if choice.batch in slow else choice
            for choice in candidate.choices
        )
    return [candidate for candidate in chosen if not candidate.all_dense]


def _put_back(model: nn.Module, candidates: Iterable[Candidate]) -> None:
    for candidate in candidates:
        _put(model, candidate.names, candidate.layer)


def _times(
    before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], batches: Sequence[int]
) -> tuple[ModelTime, ...]:
    return tuple(_timed(before, after, repeated(inputs, n), n) for n in batches)


def _timed(before: nn.Module, after: nn.Module, inputs: tuple[Any, ...], batch: int) -> ModelTime:
    found = compare(
        lambda: before(*inputs),
        lambda: after(*inputs),
        Clock(),
        repeats=_REPEATS,
        warmup=_WARMUP,
        seconds=_SECONDS,
    )
    return ModelTime(batch, found.first, found.second, found.ratio, gain(found))


def _bytes(model: nn.Module) -> int:
    """Of all parameters, buffers and packed weights in memory; what is shared counts once."""
    tensors = {id(x): x.nbytes for x in (*model.parameters(), *model.buffers())}
    for layer in model.modules():
        if isinstance(layer, InferenceLayer):
            tensors |= layer.held()
            if layer.bias is not None:
                tensors[id(layer.bias)] = layer.bias.nbytes
    return sum(tensors.values())


def _row(candidate: Candidate) -> PackedRow:
    made, matrix = candidate.made, candidate.matrix
    return PackedRow(
        name=candidate.names[0],
        shape=tuple(made.shape),
        density=matrix.nonzeros / max(1, made.shape.numel()),
        levels=None if matrix.bits is None else int(matrix.table.size),
        dense_bytes=made.shape.numel() * made.dtype.itemsize,
        weight_bytes=made.weight_bytes,
        choices=candidate.choices,
    )
