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
from espalier.kernels.gather import gather

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
        if min(self.shape, default=0) < 0:
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
    def flat(self, start: int, stop: int) -> Array:
        """Elements ``start`` to ``stop`` of the flat tensor: a new array in the storage dtype."""

    def dense(self) -> Array:
        """The tensor itself: a new array of ``shape`` in the storage dtype, bit for bit."""
        return self.flat(0, self.size).reshape(self.shape)

    def slice(self, index: Any) -> Array:
        """``dense()[index]``, of which only the rows that are asked for become dense.

        Parameters
        ----------
        index : int, slice, Ellipsis, or a tuple of them
            Rows are taken by its first part.

        Returns
        -------
        ndarray
            A new one, or a scalar of NumPy's.

        Raises
        ------
        InvalidArgument
            The index is of another kind, or outside the shape.

        Examples
        --------
        >>> tensor = Dense((3, 2), "int8", np.arange(6, dtype="i1"))
        >>> tensor.slice((slice(1, None), 0)).tolist()
        [2, 4]
        """
        parts = index if isinstance(index, tuple) else (index,)
        if not all(p is Ellipsis or isinstance(p, int | np.integer | slice) for p in parts):
            raise InvalidArgument(f"{index!r} is no index: ints, slices and ... are")
        try:
            if not self.shape or not parts or parts[0] is Ellipsis:
                return self.dense()[index].copy()
            rows = _rows(parts[0], self.shape[0])
            start, stop = (min(rows), max(rows) + 1) if rows else (0, 0)
            each = count(self.shape[1:])
            block = self.flat(start * each, stop * each).reshape(stop - start, *self.shape[1:])
            if not isinstance(parts[0], slice):
                return block[(0, *parts[1:])].copy()
            if rows and rows.step != 1:
                block = block[[row - start for row in rows]]
            return block[(slice(None), *parts[1:])].copy()
        except IndexError as error:
            raise InvalidArgument(f"index {index!r} of shape {self.shape}: {error}") from None

    @abstractmethod
    def _check(self) -> None:
        """Raise :class:`InvalidArgument` where the parts contradict each other."""


def _rows(part: Any, n: int) -> range:
    """The rows of ``n`` that an int or a slice takes."""
    if isinstance(part, slice):
        return range(*part.indices(n))
    if not -n <= part < n:
        raise IndexError(f"row {part} of {n}")
    return range(part % n, part % n + 1)


def positions_within(positions: Array, start: int, stop: int) -> tuple[slice, Array]:
    """Which positions lie from ``start`` to ``stop``, and how far behind ``start``."""
    low, high = np.searchsorted(positions, (start, stop))
    within = positions[low:high]
    return slice(low, high), within - start if start else within


_CODES = (np.dtype("u1"), np.dtype("<u2"))


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise InvalidArgument(message)


def _check_values(values: Array, dtype: str, what: str) -> None:
    want = storage_dtype(dtype)
    # No _require: to write a dtype takes as long as to decode a small tensor.
    if values.ndim != 1 or values.dtype != want:
        raise InvalidArgument(
            f"{what} must be 1-D {want} for {dtype}, not {values.ndim}-D {values.dtype}"
        )


def check_positions(positions: Array, size: int) -> None:
    """Refuse positions that are not 1-D int64, strictly rising, below ``size``."""
    if positions.ndim != 1 or positions.dtype != np.int64:
        raise InvalidArgument(
            f"positions must be 1-D int64, not {positions.ndim}-D {positions.dtype}"
        )
    if positions.size:
        _require(
            bool(positions[0] >= 0 and positions[-1] < size)
            and bool(np.all(positions[1:] > positions[:-1])),
            f"positions must rise strictly within [0, {size})",
        )


def check_codes(codes: Array, levels: int, n: int, what: str = "the codebook of") -> None:
    """Refuse codes that are not ``n``, or not below ``levels``; ``what`` has them, for messages."""
    if codes.ndim != 1 or codes.dtype not in _CODES:
        raise InvalidArgument(
            f"codes must be 1-D uint8 or uint16, not {codes.ndim}-D {codes.dtype}"
        )
    _require(codes.size == n, f"{codes.size} codes for {n} elements")
    if n:
        # A view of one code with stride 0 may stand for any number of elements.
        most = int(codes[0] if codes.strides == (0,) else codes.max())
        _require(most < levels, f"code {most} is outside {what} {levels}")


@dataclass(frozen=True, eq=False)
class Dense(CompressedTensor):
    """Every value, exactly. ``values``: flat, in the storage dtype."""

    values: Array

    @property
    def stored(self) -> int:
        return self.size

    def flat(self, start: int, stop: int) -> Array:
        return self.values[start:stop].copy()

    def _check(self) -> None:
        _check_values(self.values, self.dtype, "values")
        if self.values.size != self.size:
            raise InvalidArgument(f"{self.values.size} values for shape {self.shape}")


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

    def flat(self, start: int, stop: int) -> Array:
        out = np.zeros(stop - start, storage_dtype(self.dtype))
        part, at = positions_within(self.positions, start, stop)
        out[at] = self.values[part]
        return out

    def _check(self) -> None:
        check_positions(self.positions, self.size)
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

    def flat(self, start: int, stop: int) -> Array:
        return gather(self.codebook, self.codes[start:stop])

    def _check(self) -> None:
        _check_values(self.codebook, self.dtype, "codebook")
        check_codes(self.codes, self.codebook.size, self.size)


@dataclass(frozen=True, eq=False)
class SparseCodebook(CompressedTensor):
    """Shared weights at the kept positions, +0 elsewhere (Deep Compression, sections 2 and 3)."""

    positions: Array
    codes: Array
    codebook: Array

    @property
    def stored(self) -> int:
        return int(self.positions.size)

    def flat(self, start: int, stop: int) -> Array:
        out = np.zeros(stop - start, storage_dtype(self.dtype))
        part, at = positions_within(self.positions, start, stop)
        out[at] = self.codebook[self.codes[part]]
        return out

    def _check(self) -> None:
        check_positions(self.positions, self.size)
        _check_values(self.codebook, self.dtype, "codebook")
        check_codes(self.codes, self.codebook.size, int(self.positions.size))


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
