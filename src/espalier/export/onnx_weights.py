"""Compressed weights in an ONNX graph: small initialisers, and the operators that expand them.

Every form uses standard operators on initialisers alone, so that a runtime computes the weight
once, when it loads the model, and the network then runs as the float one does.

===========  ==============================================  =================================
form         bytes, for n weights, s of them kept            operators
===========  ==============================================  =================================
``indices``  n                                               Cast, Gather
``words``    8 n / m: m codes in each int64 of base k        Div, Mod, Reshape, Slice, Gather
``gaps``     2 s: an 8-bit gap and an 8-bit code each        Cast, CumSum, Gather,
             (Han et al. 2016, section 2); 5 s for exact     ScatterElements, Reshape
             float32 values
===========  ==============================================  =================================

To each the codebook is added, and to numbers on a grid a Mul by the scales. The smallest that the
graph's version of ONNX knows is taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from espalier.errors import InvalidArgument
from espalier.fixed_point import FixedPoint, SparseFixedPoint, grid_shape
from espalier.interop.onnx_file import DTYPES
from espalier.state import (
    Array,
    Codebook,
    CompressedTensor,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

_TYPES = {name: number for number, name in DTYPES.items()}
_SCATTERED = frozenset({"float16", "float32", "float64"})
_WORD = (1 << 63) - 1
_GAP = 255


@dataclass(frozen=True)
class Form:
    """How one weight is written: what makes the tensor ``name`` in a graph.

    Attributes
    ----------
    kind : str
        ``"indices"``, ``"words"`` or ``"gaps"``.
    initializers : mapping of str to (dtype name, array)
        An array is in the storage dtype, and has the initialiser's shape.
    nodes : list of (operator, inputs, output, attributes)
    """

    kind: str
    initializers: dict[str, tuple[str, Array]] = field(default_factory=dict)
    nodes: list[tuple[str, list[str], str, dict[str, Any]]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        """Bytes of the initialisers."""
        return sum(array.nbytes for _, array in self.initializers.values())

    def held(self, name: str, dtype: str, array: Any) -> str:
        """Adds an initialiser; its name."""
        self.initializers[name] = dtype, np.asarray(array, storage_dtype(dtype))
        return name

    def node(self, operator: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds a node; the name of its output."""
        self.nodes.append((operator, inputs, output, attributes))
        return output


def _on_grid(name: str, tensor: FixedPoint, opset: int) -> Form | None:
    """(number - zero) * scale, with the numbers in the form that is smallest for a codebook."""
    if tensor.dtype != "float32" or not tensor.size:
        return None
    numbers = np.arange(tensor.levels) * tensor.stride + tensor.first
    book, inner = numbers.astype(np.float32), f"{name}.numbers"
    held: CompressedTensor
    if not isinstance(tensor, SparseFixedPoint):
        held = Codebook(tensor.shape, "float32", tensor.codes, book)
    elif not tensor.zeros.any():
        held = SparseCodebook(tensor.shape, "float32", tensor.positions, tensor.codes, book)
    else:
        return None
    form = smallest(inner, held, opset)
    if form is None:
        return None
    pairs = list(zip(grid_shape(tensor.shape, tensor.block), tensor.block, strict=True))
    split = form.held(f"{name}.split", "int64", [n for pair in pairs for n in pair])
    blocks = [n for count, _ in pairs for n in (count, 1)]
    value = form.node("Reshape", [inner, split], f"{name}.blocks")
    if tensor.zeros.any():
        zeros = form.held(f"{name}.zeros", "float32", tensor.zeros.reshape(blocks))
        value = form.node("Sub", [value, zeros], f"{name}.differences")
    scales = form.held(f"{name}.scales", "float32", tensor.scales.reshape(blocks))
    value = form.node("Mul", [value, scales], f"{name}.scaled")
    shape = form.held(f"{name}.whole", "int64", list(tensor.shape))
    form.node("Reshape", [value, shape], name)
    return form


def smallest(name: str, tensor: CompressedTensor, opset: int) -> Form | None:
    """The form of ``tensor`` that takes the fewest bytes; None where no form is below plain."""
    if isinstance(tensor, FixedPoint):
        on_grid = _on_grid(name, tensor, opset)
        return on_grid if on_grid is not None and on_grid.nbytes < tensor.nbytes else None
    forms = [form for make in _FORMS for form in make(name, tensor, opset)]
    best = min(forms, key=lambda form: form.nbytes, default=None)
    return best if best is not None and best.nbytes < tensor.nbytes else None


def _codes(tensor: CompressedTensor) -> tuple[Array, Array] | None:
    """A code for every element and the codebook, where zero has its place; None without one."""
    if isinstance(tensor, Codebook):
        return tensor.codes, tensor.codebook
    if not isinstance(tensor, SparseCodebook) or tensor.codebook.size >= 1 << 16:
        return None
    codes = np.zeros(tensor.size, np.uint16)
    codes[tensor.positions] = tensor.codes.astype(np.uint16) + np.uint16(1)
    return codes, _with_zero(tensor.codebook)


def _with_zero(codebook: Array) -> Array:
    return np.concatenate([np.zeros(1, codebook.dtype), codebook])


def _lookup(form: Form, name: str, codes: Array, book: tuple[str, Array], output: str) -> str:
    """``codebook[codes]``, of codes in as few bytes as they need."""
    dtype = "uint8" if book[1].size <= 256 else "uint16"
    narrow = form.held(f"{name}.indices", dtype, codes)
    codebook = form.held(f"{name}.codebook", *book)
    wide = form.node("Cast", [narrow], f"{name}.wide", to=_TYPES["int32"])
    return form.node("Gather", [codebook, wide], output, axis=0)


def _indices(name: str, tensor: CompressedTensor, opset: int) -> Iterator[Form]:
    """One index for each weight."""
    found = _codes(tensor)
    if found is None or opset < 6:  # Cast
        return
    codes, codebook = found
    form = Form("indices")
    _lookup(form, name, codes.reshape(tensor.shape), (tensor.dtype, codebook), name)
    yield form


def _words(name: str, tensor: CompressedTensor, opset: int) -> Iterator[Form]:
    """As many indices in each int64 as it has digits of base k."""
    found = _codes(tensor)
    if found is None or opset < 10 or not tensor.size:  # Mod, and Slice by inputs
        return
    codes, codebook = found
    base = max(codebook.size, 2)
    powers = [1]
    while powers[-1] * base <= _WORD // base:
        powers.append(powers[-1] * base)
    packed = np.zeros(-(-tensor.size // len(powers)), np.int64)
    for i, power in enumerate(powers):
        part = codes[i :: len(powers)].astype(np.int64)
        packed[: part.size] += part * power
    form = Form("words")
    words = form.held(f"{name}.words", "int64", packed.reshape(-1, 1))
    scale = form.held(f"{name}.powers", "int64", powers)
    shifted = form.node("Div", [words, scale], f"{name}.shifted")
    radix = form.held(f"{name}.base", "int64", base)
    digits = form.node("Mod", [shifted, radix], f"{name}.digits")
    if tensor.size % len(powers):
        flat = form.held(f"{name}.flat", "int64", [-1])
        padded = form.node("Reshape", [digits, flat], f"{name}.padded")
        first = form.held(f"{name}.first", "int64", [0])
        size = form.held(f"{name}.size", "int64", [tensor.size])
        digits = form.node("Slice", [padded, first, size], f"{name}.cut")
    shape = form.held(f"{name}.shape", "int64", list(tensor.shape))
    indices = form.node("Reshape", [digits, shape], f"{name}.indices")
    book = form.held(f"{name}.codebook", tensor.dtype, codebook)
    form.node("Gather", [book, indices], name, axis=0)
    yield form


def _gaps(name: str, tensor: CompressedTensor, opset: int) -> Iterator[Form]:
    """Where the kept weights are, by 8-bit gaps, and their codes or values."""
    if not isinstance(tensor, Sparse | SparseCodebook) or tensor.dtype not in _SCATTERED:
        return
    if opset < 11 or not tensor.stored:  # ScatterElements, CumSum
        return
    gaps, kept = _short_gaps(tensor.positions)
    form = Form("gaps")
    if isinstance(tensor, SparseCodebook):
        codebook = _with_zero(tensor.codebook)
        if codebook.size > 1 << 16:
            return
        codes = np.zeros(gaps.size, np.uint16)
        codes[kept] = tensor.codes.astype(np.uint16) + np.uint16(1)
        values = _lookup(form, name, codes, (tensor.dtype, codebook), f"{name}.values")
    else:
        exact = np.zeros(gaps.size, tensor.values.dtype)
        exact[kept] = tensor.values
        values = form.held(f"{name}.values", tensor.dtype, exact)
    steps = form.held(f"{name}.gaps", "uint8", gaps)
    far = form.node("Cast", [steps], f"{name}.steps", to=_TYPES["int64"])
    axis = form.held(f"{name}.axis", "int64", 0)
    positions = form.node("CumSum", [far, axis], f"{name}.positions")
    size = form.held(f"{name}.size", "int64", [tensor.size])
    zero = np.zeros(1, storage_dtype(tensor.dtype))
    zeros = form.node("ConstantOfShape", [size], f"{name}.zeros", value=(tensor.dtype, zero))
    flat = form.node("ScatterElements", [zeros, positions, values], f"{name}.flat", axis=0)
    shape = form.held(f"{name}.shape", "int64", list(tensor.shape))
    form.node("Reshape", [flat, shape], name)
    yield form


def _short_gaps(positions: Array) -> tuple[Array, Array]:
    """Gaps of at most 255, from place 0 on, and where among them those of kept weights are.

    The others are fillers, at places that are not kept: what is written there is zero.
    """
    gaps = np.diff(positions, prepend=0)
    fillers = np.maximum(gaps - 1, 0) // _GAP
    ends = np.cumsum(fillers + 1) - 1
    short = np.full(int(ends[-1]) + 1, _GAP, np.uint8)
    short[ends] = (gaps - fillers * _GAP).astype(np.uint8)
    return short, ends


_FORMS: tuple[Callable[[str, CompressedTensor, int], Iterator[Form]], ...] = (
    _indices,
    _words,
    _gaps,
)


def compress_weights(model: Any, tensors: Mapping[str, CompressedTensor]) -> dict[str, Form]:
    """Give the initialisers of an ONNX model the form of ``tensors``, in place.

    Parameters
    ----------
    model : onnx.ModelProto
    tensors : mapping of str to CompressedTensor
        By the names of initialisers, which have the same shapes and values. One whose plain form
        is the smallest stays an initialiser.

    Returns
    -------
    dict of str to Form
        Of those that were changed.
    """
    from onnx import helper

    graph = model.graph
    opset = opset_of(model)
    changed: dict[str, Form] = {}
    for tensor in graph.initializer:
        form = (
            smallest(tensor.name, tensors[tensor.name], opset) if tensor.name in tensors else None
        )
        if form is not None:
            changed[tensor.name] = form
    remove(graph.initializer, changed)
    remove(graph.input, changed)  # before IR version 4 an initialiser was an input too
    taken = names_in(graph)
    nodes = []
    for name, form in changed.items():
        refuse_clash(taken, [*form.initializers, *(output for _, _, output, _ in form.nodes)])
        graph.initializer.extend(tensor_proto(n, *held) for n, held in form.initializers.items())
        for i, (operator, inputs, output, attributes) in enumerate(form.nodes):
            plain = {k: _attribute(v) for k, v in attributes.items()}
            nodes.append(
                helper.make_node(operator, inputs, [output], name=f"{name}.expand{i}", **plain)
            )
    nodes += list(graph.node)
    del graph.node[:]
    graph.node.extend(nodes)
    return changed


def opset_of(model: Any) -> int:
    """The version of ONNX whose operators a model uses."""
    return max((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), default=1)


def names_in(graph: Any) -> set[str]:
    """Of the values that a graph has."""
    held = {tensor.name for tensor in graph.initializer}
    return held | {output for node in graph.node for output in node.output}


def refuse_clash(taken: set[str], names: Iterable[str]) -> None:
    """:class:`InvalidArgument` if a graph has a value of one of these names."""
    clash = taken.intersection(names)
    if clash:
        raise InvalidArgument(f"the graph has a value called {min(clash)!r} already")


def remove(entries: Any, names: Mapping[str, Any]) -> None:
    """Take entries of these names out of a field of a message."""
    for i in reversed(range(len(entries))):
        if entries[i].name in names:
            del entries[i]


def tensor_proto(name: str, dtype: str, array: Array) -> Any:
    """An initialiser; ``array`` is in the storage dtype."""
    from onnx import TensorProto

    raw = np.ascontiguousarray(array).tobytes()
    return TensorProto(name=name, data_type=_TYPES[dtype], dims=array.shape, raw_data=raw)


def _attribute(value: Any) -> Any:
    return tensor_proto("", *value) if isinstance(value, tuple) else value
