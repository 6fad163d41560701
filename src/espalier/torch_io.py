"""``nn.Module`` <-> :class:`CompressedModel`: read off the model, and put back on it."""

from __future__ import annotations

import copy
import os
from collections.abc import Iterable, Mapping
from typing import Any, BinaryIO

import numpy as np
import torch
from torch import Tensor, nn

from espalier.container import Ledger, Reader, write
from espalier.errors import FormatError, InvalidArgument
from espalier.fixed_point import FixedPoint, SparseFixedPoint, scale_dtype
from espalier.grids import GRIDS
from espalier.grids.tensor import grid_tensor, shared_tensor
from espalier.parametrization import (
    PRUNED,
    Mask,
    SharedWeight,
    codes_dtype,
    current,
    finalize,
    parameter_rank,
    set_codes,
    set_grid,
    set_mask,
)
from espalier.parametrization.quantized_weight import QuantizedWeight
from espalier.parametrization.rate_aware_weight import RateAwareWeight
from espalier.quantized_inputs import (
    INPUTS_KEY,
    check_layers,
    grids_from_json,
    grids_to_json,
    input_grids,
    is_input_quantizer,
    set_input_grids,
)
from espalier.state import (
    Array,
    Codebook,
    CompressedModel,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)
from espalier.structure.edit import StructuralEdit, edit_from_json, edits_of, perform
from espalier.targets import Target, find_targets, refuse_nonfinite, unwrap

EDITS_KEY = "espalier.edits"
"""Where a file's metadata hold the structural edits, as a list of JSON objects."""

_DTYPES: dict[str, torch.dtype] = {
    name: getattr(torch, name)
    for name in (
        ["float32", "float16", "bfloat16", "float64", "float8_e4m3fn", "float8_e5m2"]
        + ["int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64"]
        + ["bool", "complex64", "complex128"]
    )
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a torch dtype in the file."""
    try:
        return _NAMES[dtype]
    except KeyError:
        raise InvalidArgument(f"tensors of {dtype} cannot be stored") from None


def to_array(tensor: Tensor) -> tuple[str, Array]:
    """``(dtype name, flat array in the storage dtype)``: the same bits, if possible not copied."""
    name = dtype_name(tensor.dtype)
    flat = tensor.detach().cpu().contiguous().flatten()
    bits = flat.view(torch.uint8).numpy() if flat.numel() else np.empty(0, np.uint8)
    return name, bits.view(storage_dtype(name))


def to_tensor(array: Array, dtype: str) -> Tensor:
    """The inverse of :func:`to_array`, in the array's shape."""
    flat = np.ascontiguousarray(array).reshape(-1)
    if not flat.flags.writeable:
        flat = flat.copy()
    bits = torch.from_numpy(flat.view(np.uint8)) if flat.size else torch.empty(0, dtype=torch.uint8)
    return bits.view(_DTYPES[dtype]).reshape(array.shape)


def compressed_tensor(target: Target) -> CompressedTensor:
    """The representation that a weight has now: shared, pruned, or plain."""
    held = current(target)
    match held:
        case SharedWeight():
            return _shared(target, held)
        case QuantizedWeight():
            return _on_grid(target, held)
        case RateAwareWeight():
            return _in_training(target, held)
        case Mask():
            dtype, values = to_array(target.value)
            # Not the nonzeros: a kept weight may be zero, and has its place all the same.
            positions = np.flatnonzero(held.mask.cpu().numpy().reshape(-1)).astype(np.int64)
            if positions.size == values.size:
                return Dense(tuple(target.value.shape), dtype, values)
            return Sparse(tuple(target.value.shape), dtype, positions, values[positions])
    dtype, values = to_array(target.value)
    return Dense(tuple(target.value.shape), dtype, values)


def _shared(target: Target, held: SharedWeight) -> CompressedTensor:
    dtype, codebook = to_array(held.centroids(target.latent))
    codes = held.codes.cpu().numpy().reshape(-1).astype(np.int64)
    positions = np.flatnonzero(codes != PRUNED)
    used, codes = np.unique(codes[positions], return_inverse=True)  # centroids that lost all go
    shape = tuple(held.codes.shape)
    return shared_tensor(shape, dtype, positions, codes.reshape(-1), codebook[used - 1])


def _in_training(target: Target, held: RateAwareWeight) -> CompressedTensor:
    """What rate-aware training would leave now: multiples of the step."""
    symbols = held.symbols(target.latent).cpu().numpy()
    positions = np.flatnonzero(symbols)
    multiples, codes = np.unique(symbols.reshape(-1)[positions], return_inverse=True)
    dtype, codebook = to_array(held.step * torch.from_numpy(multiples).to(held.step))
    return shared_tensor(symbols.shape, dtype, positions, codes.reshape(-1), codebook)


def _on_grid(target: Target, held: QuantizedWeight) -> CompressedTensor:
    found = held.on_grid(target.latent)
    parts = (found.numbers.flatten(), found.scales, found.zeros)
    numbers, scales, zeros = (part.detach().cpu().numpy() for part in parts)
    mask = None if held.mask is None else held.mask.cpu().numpy().reshape(-1)
    shape, dtype = tuple(target.value.shape), dtype_name(target.value.dtype)
    return grid_tensor(held.grid, held.block, shape, dtype, numbers, scales, zeros, mask)


def read_model(model: nn.Module, metadata: Mapping[str, Any] | None = None) -> CompressedModel:
    """Everything that a plain ``state_dict`` of ``model`` would hold, in compressed representation.

    Raises
    ------
    InvalidArgument
        A pruned or shared weight holds NaN or infinity (by name): training went wrong.
    """
    tensors: dict[str, CompressedTensor] = {}
    aliases: dict[str, str] = {}
    targets = {name: target for target in find_targets(model) for name in target.names}
    for name, value in _plain_state(model).items():
        target = targets.get(name)
        if target is None:
            dtype, values = to_array(value)
            tensors[name] = Dense(tuple(value.shape), dtype, values)
        elif name != target.name:
            aliases[name] = target.name
        else:
            if current(target) is not None:
                refuse_nonfinite(target, target.value)
            if current(target) is None and target.obstacle:
                dtype, values = to_array(value)
                tensors[name] = Dense(tuple(value.shape), dtype, values)
            else:
                tensors[name] = compressed_tensor(target)
    return CompressedModel(tensors, aliases, dict(metadata or {}))


def _plain_state(model: nn.Module) -> dict[str, Tensor]:
    """The ``state_dict`` that ``model`` would have, in its order, without parametrizations."""
    model = unwrap(model)
    plain: dict[str, dict[str, Tensor]] = {}
    modules = dict(model.named_modules(remove_duplicate=False))
    for key, value in model.state_dict(keep_vars=True).items():
        if is_input_quantizer(key):
            continue
        path, _, name = key.rpartition(".")
        if name == "_extra_state":
            raise InvalidArgument(
                f"{key}: extra state of a module is not a tensor; it cannot be saved"
            )
        head, mark, tail = key.rpartition("parametrizations.")
        if not (mark and (not head or head.endswith("."))):
            plain.setdefault(path, {})[name] = value
            continue
        path, name = head.rstrip("."), tail.partition(".")[0]
        if name not in plain.setdefault(path, {}):
            plain[path][name] = getattr(modules[path], name)
    state = {}
    for path, tensors in plain.items():
        rank = parameter_rank(modules[path]) if path in modules else {}
        for name in sorted(tensors, key=lambda name: rank.get(name, len(rank))):
            state[f"{path}.{name}" if path else name] = tensors[name].detach()
    return state


def save(
    model: nn.Module,
    path: str | os.PathLike[str] | BinaryIO,
    *,
    coder: str = "auto",
    effort: str = "default",
    metadata: Mapping[str, Any] | None = None,
    force: bool = True,
) -> Ledger:
    """Write ``model`` to one ``.esp`` file: masks, codebooks, and everything else.

    Parameters
    ----------
    model : nn.Module
        Read, not changed.
    path : path or binary file
        A path appears whole or not at all.
    coder : str
        ``"auto"``: the smallest for each stream. ``"huffman"``: canonical Huffman (Han et al.
        2016, section 4). ``"fixed"``: fixed width, the paper's stage before Huffman coding.
    effort : str
        With ``"auto"``: ``"fast"``, ``"default"`` or ``"max"`` (smallest, slow both ways).
    metadata : mapping, optional
        JSON values to travel with the weights.
    force : bool
        Whether an existing file is replaced.

    Returns
    -------
    Ledger
        Measured bytes, tensor by tensor; they sum to the size of the file.

    Examples
    --------
    >>> import torch, espalier, tempfile, os
    >>> model = torch.nn.Linear(256, 256)
    >>> _ = espalier.prune(model, density=0.1)
    >>> _ = espalier.share(model, bits=5)
    >>> path = os.path.join(tempfile.mkdtemp(), "model.esp")
    >>> ledger = espalier.save(model, path)
    >>> ledger.file_bytes == os.path.getsize(path)
    True
    """
    return write(_with_edits(model, metadata), path, coder=coder, effort=effort, force=force)


def _with_edits(model: nn.Module, metadata: Mapping[str, Any] | None) -> CompressedModel:
    """The model's tensors, what was changed in its structure, and how inputs are quantized."""
    own = {
        EDITS_KEY: [edit.for_file(model).to_json() for edit in edits_of(model)],
        INPUTS_KEY: grids_to_json(input_grids(model)),
    }
    for key in own:
        if key in (metadata or {}):
            raise InvalidArgument(f"metadata: the key {key!r} is Espalier's own")
    return read_model(model, dict(metadata or {}) | {key: v for key, v in own.items() if v})


def stored_edits(metadata: Mapping[str, Any]) -> list[StructuralEdit]:
    """The structural edits that a file's metadata hold, in order."""
    stored = metadata.get(EDITS_KEY, [])
    if not isinstance(stored, list):
        raise FormatError(f"metadata: {EDITS_KEY!r} is not a list")
    return [edit_from_json(plain) for plain in stored]


def load(
    path: str | os.PathLike[str] | BinaryIO,
    into: nn.Module | None = None,
    *,
    strict: bool = True,
    trainable: bool = False,
) -> Any:
    """:func:`espalier.loading.load`, of tensors: where PyTorch is there, and is wanted."""
    with Reader(path) as reader:
        aliases = dict(reader.aliases)
        order = list(reader.names())
        names = [name for name in order if name not in aliases]
        tensors = {name: reader.tensor(name) for name in names} if trainable else {}
        arrays = reader.arrays()
        dense = {name: to_tensor(arrays[name], reader.entry(name).dtype) for name in names}
        edits = stored_edits(reader.metadata)
        grids = grids_from_json(reader.metadata.get(INPUTS_KEY, {}))
    dense |= {alias: dense[name] for alias, name in aliases.items()}
    state = {name: dense[name] for name in order}
    if into is None:
        return state
    edits = _still_to_do(edits, into)
    fresh = into
    if edits:
        fresh = copy.deepcopy(into)  # so that what does not fit leaves the model as it was
        perform(fresh, edits)
    _check_fit(fresh, state, strict)
    check_layers(fresh, grids)
    perform(into, edits)
    finalize(into)
    unwrap(into).load_state_dict(state, strict=strict)
    set_input_grids(into, grids)
    if trainable:
        for target in find_targets(into):
            if target.name in tensors and not target.obstacle:
                _parametrize(target, tensors[target.name])
    return into


def _still_to_do(edits: list[StructuralEdit], model: nn.Module) -> list[StructuralEdit]:
    """The file's edits that ``model`` has not seen yet."""
    done = edits_of(model)
    same = [mine.makes_shapes_of(its) for mine, its in zip(done, edits, strict=False)]
    if len(same) < len(done) or not all(same):
        raise InvalidArgument("the model's structure was changed in another way than the file's")
    return edits[len(done) :]


def needed(names: Iterable[str]) -> list[str]:
    """Those of ``names`` without which a state is not whole.

    Batch norms count batches, and PyTorch too does without the count: old weights, and files of
    plain tensors, often leave it out.
    """
    return [name for name in names if not name.endswith("num_batches_tracked")]


def _check_fit(model: nn.Module, state: Mapping[str, Tensor], strict: bool) -> None:
    plain = _plain_state(model)
    wrong = [
        f"{name} is {tuple(value.shape)} in the file and {tuple(plain[name].shape)} in the model"
        for name, value in state.items()
        if name in plain and value.shape != plain[name].shape
    ]
    if strict:
        wrong += [f"{name} is only in the file" for name in state if name not in plain]
        lacking = needed(name for name in plain if name not in state)
        wrong += [f"{name} is only in the model" for name in lacking]
    if wrong:
        more = f" and {len(wrong) - 3} more" if len(wrong) > 3 else ""
        raise InvalidArgument("the file does not fit the model: " + "; ".join(wrong[:3]) + more)


def _parametrize(target: Target, tensor: CompressedTensor) -> None:
    """Put the mask or the codebook of ``tensor`` on a weight that already has its values."""
    device = target.latent.device
    match tensor:
        case Sparse():
            mask = torch.zeros(tensor.size, dtype=torch.bool)
            mask[torch.from_numpy(tensor.positions)] = True
            set_mask(target, mask.view(tensor.shape).to(device))
        case Codebook() | SparseCodebook():
            codes = torch.zeros(tensor.size, dtype=torch.int32)
            found = torch.from_numpy(tensor.codes.astype(np.int32)) + 1
            if isinstance(tensor, SparseCodebook):
                codes[torch.from_numpy(tensor.positions)] = found
            else:
                codes = found
            codebook = to_tensor(tensor.codebook, tensor.dtype).to(target.latent)
            narrow = codes.view(tensor.shape).to(device, codes_dtype(codebook.numel()))
            set_codes(target, narrow, codebook, latent=False)
        case FixedPoint():
            _set_numbers(target, tensor)


def _set_numbers(target: Target, tensor: FixedPoint) -> None:
    """Put numbers and scales on a weight; the file does not say by which method they came."""
    device, wide = target.latent.device, scale_dtype(tensor.dtype)
    grid = GRIDS.make("numbers", first=tensor.first, stride=tensor.stride, levels=tensor.levels)
    mask = None
    if isinstance(tensor, SparseFixedPoint):
        mask = torch.zeros(tensor.size, dtype=torch.bool)
        mask[torch.from_numpy(tensor.positions)] = True
        mask = mask.view(tensor.shape).to(device)
    scales = to_tensor(tensor.scales, wide).view(-1, 1).to(device)
    zeros = to_tensor(tensor.zeros, "int16").view(-1, 1).to(device)
    set_grid(target, QuantizedWeight(grid, tensor.block, scales, zeros, mask))
