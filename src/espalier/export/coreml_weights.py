"""Compressed weights in a Core ML program: operators that the device's compiler expands.

=======================  ===================================================  ==========
form                     bytes, for n weights, s of them kept                 since
=======================  ===================================================  ==========
``palettized``           b n / 8: a b-bit index for each, and the codebook    iOS 16
``sparse``               n / 8 for the mask, and the values                     iOS 16
``sparse, palettized``   n / 8 for the mask, and b s / 8                      iOS 18
``quantized``            n, or n / 2 up to 4 bits; a scale for each block     iOS 18
=======================  ===================================================  ==========

b is 1, 2, 3, 4, 6 or 8, and not 3 before iOS 18. Masks, codes and codebooks are those of the
network; a codebook is filled up with zeros to 2^b entries.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from espalier.fixed_point import FixedPoint, grid_shape
from espalier.state import Array, Codebook, CompressedTensor, Dense, Sparse, SparseCodebook

TARGETS = ("iOS16", "iOS18")
FLOATS = ("float32", "float16")
_WIDTHS = {"iOS16": (1, 2, 4, 6, 8), "iOS18": (1, 2, 3, 4, 6, 8)}

Build = Callable[..., Any]
"""Makes the operators; takes what all of them are given, returns the weight as a variable."""


@dataclass(frozen=True)
class Form:
    """One way to store a weight: ``build`` makes its operators within a program."""

    kind: str
    nbytes: int
    build: Build


def smallest(tensor: CompressedTensor, target: str) -> Form | None:
    """The form of ``tensor`` that takes the fewest bytes; None where none is below plain."""
    if tensor.dtype not in FLOATS or not tensor.size:
        return None
    forms = [form for make in _FORMS for form in make(tensor, target)]
    best = min(forms, key=lambda form: form.nbytes, default=None)
    return best if best is not None and best.nbytes < tensor.nbytes else None


def halved(tensor: CompressedTensor) -> CompressedTensor:
    """The same in float16: values rounded, masks and codes as they are."""
    half: dict[str, Any] = {"dtype": "float16"}
    if isinstance(tensor, Codebook | SparseCodebook):
        half["codebook"] = tensor.codebook.astype("<f2")
    elif isinstance(tensor, Dense | Sparse):
        half["values"] = tensor.values.astype("<f2")
    return replace(tensor, **half)


def _width(levels: int, target: str) -> int | None:
    """Bits of an index, if any of those there are is enough."""
    return next((bits for bits in _WIDTHS[target] if levels <= 1 << bits), None)


def _filled(codebook: Array, bits: int) -> Array:
    full = np.zeros(1 << bits, codebook.dtype)
    full[: codebook.size] = codebook
    return full


def _unsigned(array: Array, bits: int) -> Array:
    """An array of one of coremltools' integers of few bits."""
    from coremltools.converters.mil.mil import types

    return array.astype(types.nptype_from_builtin(types.string_to_builtin(f"uint{bits}")))


def packed(codes: Array, bits: int) -> Array:
    """Codes of ``bits`` each, end to end, least significant bit first: uint8.

    Examples
    --------
    >>> [f"{byte:08b}" for byte in packed(np.array([0, 3, 2, 1, 3], np.uint8), 2)]
    ['01101100', '00000011']
    """
    every = np.unpackbits(codes.astype(np.uint8)[:, None], axis=1, bitorder="little")
    return np.packbits(every[:, :bits].reshape(-1), bitorder="little")


def _palettized(tensor: CompressedTensor, target: str) -> Iterator[Form]:
    if isinstance(tensor, Codebook):
        codes, codebook = tensor.codes, tensor.codebook
    elif isinstance(tensor, SparseCodebook):
        codes = np.zeros(tensor.size, np.uint16)
        codes[tensor.positions] = tensor.codes.astype(np.uint16) + np.uint16(1)
        codebook = np.concatenate([np.zeros(1, tensor.codebook.dtype), tensor.codebook])
    else:
        return
    bits = _width(codebook.size, target)
    if bits is None:
        return
    lut = _filled(codebook, bits)

    def build(**given: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        if target == "iOS16":
            shape = np.array(tensor.shape, np.uint32)
            return Builder.constexpr_lut_to_dense(
                indices=packed(codes, bits), lut=lut, shape=shape, **given
            )
        return Builder.constexpr_lut_to_dense(
            indices=_unsigned(codes.reshape(tensor.shape), bits),
            lut=lut.reshape(*(1 for _ in tensor.shape), -1, 1),
            **given,
        )

    yield Form("palettized", -(-bits * tensor.size // 8) + lut.nbytes, build)


def _sparse(tensor: CompressedTensor, target: str) -> Iterator[Form]:
    if not isinstance(tensor, Sparse | SparseCodebook) or not tensor.stored:
        return
    mask = np.zeros(tensor.size, np.uint8)
    mask[tensor.positions] = 1
    values = tensor.values if isinstance(tensor, Sparse) else tensor.codebook[tensor.codes]

    def build(**given: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        if target == "iOS16":
            shape, bits = np.array(tensor.shape, np.uint32), np.packbits(mask, bitorder="little")
            return Builder.constexpr_sparse_to_dense(
                nonzero_data=values, mask=bits, shape=shape, **given
            )
        places = _unsigned(mask.reshape(tensor.shape), 1)
        return Builder.constexpr_sparse_to_dense(nonzero_data=values, mask=places, **given)

    yield Form("sparse", -(-tensor.size // 8) + values.nbytes, build)
    if isinstance(tensor, SparseCodebook):
        yield from _sparse_palettized(tensor, mask, target)


def _sparse_palettized(tensor: SparseCodebook, mask: Array, target: str) -> Iterator[Form]:
    bits = _width(tensor.codebook.size, target)
    if target == "iOS16" or bits is None:
        return
    lut = _filled(tensor.codebook, bits)

    def build(name: str, **given: Any) -> Any:
        from coremltools.converters.mil.mil import Builder

        places, found = Builder.constexpr_lut_to_sparse(
            indices_mask=_unsigned(mask.reshape(tensor.shape), 1),
            indices_nonzero_data=_unsigned(tensor.codes, bits),
            lut=lut.reshape(*(1 for _ in tensor.shape), -1, 1),
            name=f"{name}_values",
            **given,
        )
        return Builder.constexpr_sparse_to_dense(
            nonzero_data=found, mask=places, name=name, **given
        )

    indices = -(-bits * tensor.stored // 8)
    yield Form("sparse, palettized", -(-tensor.size // 8) + indices + lut.nbytes, build)


def _quantized(tensor: CompressedTensor, target: str) -> Iterator[Form]:
    if target == "iOS16" or not isinstance(tensor, FixedPoint) or tensor.bits > 8:
        return
    if np.abs(tensor.zeros.astype(np.int32)).max(initial=0) > 127:
        return
    grid = grid_shape(tensor.shape, tensor.block)
    few = tensor.bits <= 4 and not tensor.zeros.any()

    def build(**given: Any) -> Any:
        from coremltools.converters.mil.mil import Builder, types

        kind = types.np_int4_dtype if few else np.int8
        offset = (
            {"offset": tensor.zeros.reshape(grid).astype(np.int8)} if tensor.zeros.any() else {}
        )
        return Builder.constexpr_blockwise_shift_scale(
            data=tensor.integers().astype(kind),
            scale=tensor.scales.astype(tensor.dtype).reshape(grid),
            **offset,
            **given,
        )

    scales = tensor.scales.astype(tensor.dtype).nbytes
    yield Form("quantized", tensor.size // (1 + few) + scales, build)


_FORMS = (_palettized, _sparse, _quantized)
