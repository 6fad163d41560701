"""What a compressed network *is*: frozen values in NumPy, with no torch and no bytes of a file.

A :class:`CompressedModel` maps the names of a plain ``state_dict`` to :class:`CompressedTensor`
values. The set of variants is closed: methods of pruning and quantization are many, representations
are few, so that a decoder never needs to know which method made a file.

NumPy has no bfloat16 and no 8-bit floats. A tensor therefore has a *dtype* (its name in PyTorch,
``"bfloat16"``) and a *storage dtype* (the NumPy type that holds the same bits, ``uint16``).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from espalier.errors import InvalidArgument

Array = NDArray[Any]

STORAGE_DTYPES: Mapping[str, np.dtype[Any]] = MappingProxyType(
    {
        "float32": np.dtype("<f4"),
        "float16": np.dtype("<f2"),
        "bfloat16": np.dtype("<u2"),
        "float64": np.dtype("<f8"),
        "float8_e4m3fn": np.dtype("u1"),
        "float8_e5m2": np.dtype("u1"),
        "int8": np.dtype("i1"),
        "int16": np.dtype("<i2"),
        "int32": np.dtype("<i4"),
        "int64": np.dtype("<i8"),
        "uint8": np.dtype("u1"),
        "uint16": np.dtype("<u2"),
        "uint32": np.dtype("<u4"),
        "uint64": np.dtype("<u8"),
        "bool": np.dtype("?"),
        "complex64": np.dtype("<c8"),
        "complex128": np.dtype("<c16"),
    }
)
"""Every dtype that a tensor can have, and the NumPy dtype that holds its bits, little-endian."""


def storage_dtype(dtype: str) -> np.dtype[Any]:
    """The NumPy dtype that holds the bits of ``dtype``; :class:`InvalidArgument` if unknown."""
    try:
        return STORAGE_DTYPES[dtype]
    except KeyError:
        known = ", ".join(STORAGE_DTYPES)
        raise InvalidArgument(f"dtype {dtype!r} is not known; known are {known}") from None


def count(shape: tuple[int, ...]) -> int:
    """Number of elements of a tensor of ``shape`` (1 for a scalar), without overflow."""
    n = 1
    for d in shape:
        n *= d
    return n


@dataclass(frozen=True, eq=False)
class CompressedTensor(ABC):
    """One tensor in one of the few representations that the file knows.

    Attributes
    ----------
    shape : tuple of int
    dtype : str
        Name of the dtype of the dense tensor, a key of :data:`STORAGE_DTYPES`.
    """

    shape: tuple[int, ...]
    dtype: str

    def __post_init__(self) -> None:
        storage_dtype(self.dtype)
        if any(d < 0 for d in self.shape):
            raise InvalidArgument(f"shape {self.shape} has a negative dimension")
        self._check()

    @property
    def size(self) -> int:
        """Number of elements of the dense tensor."""
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return self.size * storage_dtype(self.dtype).itemsize

    @property
    @abstractmethod
    def stored(self) -> int:
        """Number of elements that are written: all of them, or those at the kept positions."""

    @abstractmethod
    def dense(self) -> Array:
        """The tensor itself: a new array of ``shape`` in the storage dtype, bit for bit."""

    @abstractmethod
    def _check(self) -> None:
        """Raise :class:`InvalidArgument` where the parts contradict each other."""


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArgument(message)


def _check_values(values: Array, dtype: str, what: str) -> None:
    want = storage_dtype(dtype)
    _require(
        values.ndim == 1 and values.dtype == want,
        f"{what} must be 1-D {want} for {dtype}, not {values.ndim}-D {values.dtype}",
    )


def _check_positions(positions: Array, size: int) -> None:
    _require(
        positions.ndim == 1 and positions.dtype == np.int64,
        f"positions must be 1-D int64, not {positions.ndim}-D {positions.dtype}",
    )
    if positions.size:
        _require(
            bool(positions[0] >= 0 and positions[-1] < size)
            and bool(np.all(positions[1:] > positions[:-1])),
            f"positions must rise strictly within [0, {size})",
        )


def _check_codes(codes: Array, codebook: Array, n: int) -> None:
    _require(
        codes.ndim == 1 and codes.dtype in (np.dtype("u1"), np.dtype("<u2")),
        f"codes must be 1-D uint8 or uint16, not {codes.ndim}-D {codes.dtype}",
    )
    _require(codes.size == n, f"{codes.size} codes for {n} elements")
    if n:
        # A view of one code with stride 0 may stand for any number of elements.
        most = int(codes[0] if codes.strides == (0,) else codes.max())
        _require(most < codebook.size, f"code {most} is outside the codebook of {codebook.size}")


@dataclass(frozen=True, eq=False)
class Dense(CompressedTensor):
    """Every value, exactly. ``values``: flat, in the storage dtype."""

    values: Array

    @property
    def stored(self) -> int:
        return self.size

    def dense(self) -> Array:
        return self.values.reshape(self.shape).copy()

    def _check(self) -> None:
        _check_values(self.values, self.dtype, "values")
        _require(
            self.values.size == self.size,
            f"{self.values.size} values for shape {self.shape}",
        )


@dataclass(frozen=True, eq=False)
class Sparse(CompressedTensor):
    """Exact values at the kept positions, +0 elsewhere.

    ``positions``: int64, strictly rising, into the flat (row-major) tensor. ``values``: as many.
    """

    positions: Array
    values: Array

    @property
    def stored(self) -> int:
        return int(self.positions.size)

    def dense(self) -> Array:
        out = np.zeros(self.size, storage_dtype(self.dtype))
        out[self.positions] = self.values
        return out.reshape(self.shape)

    def _check(self) -> None:
        _check_positions(self.positions, self.size)
        _check_values(self.values, self.dtype, "values")
        _require(
            self.values.size == self.positions.size,
            f"{self.values.size} values for {self.positions.size} positions",
        )


@dataclass(frozen=True, eq=False)
class Codebook(CompressedTensor):
    """Shared weights: element i is ``codebook[codes[i]]``.

    ``codes``: flat, uint8 or uint16. ``codebook``: 1-D, in the storage dtype, at most 65536.
    """

    codes: Array
    codebook: Array

    @property
    def stored(self) -> int:
        return self.size

    def dense(self) -> Array:
        if not self.size:
            return np.zeros(self.shape, storage_dtype(self.dtype))
        return self.codebook[self.codes].reshape(self.shape)

    def _check(self) -> None:
        _check_values(self.codebook, self.dtype, "codebook")
        _check_codes(self.codes, self.codebook, self.size)


@dataclass(frozen=True, eq=False)
class SparseCodebook(CompressedTensor):
    """Shared weights at the kept positions, +0 elsewhere (Deep Compression, sections 2 and 3)."""

    positions: Array
    codes: Array
    codebook: Array

    @property
    def stored(self) -> int:
        return int(self.positions.size)

    def dense(self) -> Array:
        out = np.zeros(self.size, storage_dtype(self.dtype))
        if self.positions.size:
            out[self.positions] = self.codebook[self.codes]
        return out.reshape(self.shape)

    def _check(self) -> None:
        _check_positions(self.positions, self.size)
        _check_values(self.codebook, self.dtype, "codebook")
        _check_codes(self.codes, self.codebook, int(self.positions.size))


@dataclass(frozen=True, eq=False)
class CompressedModel:
    """The tensors of one network, in the order of its ``state_dict``.

    Attributes
    ----------
    tensors : mapping of str to CompressedTensor
        Each distinct tensor once, under the first of its names.
    aliases : mapping of str to str
        Further names of tied tensors, each mapped to a key of ``tensors``.
    metadata : mapping of str to JSON value
        What the user, or a stage, wants to travel with the weights. Never needed for decoding.
    """

    tensors: Mapping[str, CompressedTensor]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for alias, name in self.aliases.items():
            if alias in self.tensors:
                raise InvalidArgument(f"alias {alias!r} is also the name of a tensor")
            if name not in self.tensors:
                raise InvalidArgument(f"alias {alias!r} names {name!r}, which is not there")

    def names(self) -> list[str]:
        """All names, tied ones too."""
        return [*self.tensors, *self.aliases]

    def __getitem__(self, name: str) -> CompressedTensor:
        return self.tensors[self.aliases.get(name, name)]

    def dense(self) -> dict[str, Array]:
        """Every tensor, dense, in its storage dtype; tied names share one array."""
        arrays = {name: tensor.dense() for name, tensor in self.tensors.items()}
        return arrays | {alias: arrays[name] for alias, name in self.aliases.items()}

    def __iter__(self) -> Iterator[str]:
        return iter(self.tensors)
