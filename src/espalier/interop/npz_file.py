"""NumPy's ``.npz`` archives: a zip of ``.npy`` arrays, never a pickled object."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, BinaryIO, ClassVar

import numpy as np
from numpy.lib import format as npy

from espalier.errors import CorruptFile, InvalidArgument, TruncatedFile
from espalier.floats import NOT_IN_NUMPY
from espalier.interop.base import FORMATS, Checkpoint, Content, Format, TensorInfo
from espalier.state import STORAGE_DTYPES, Array, storage_dtype

_NAMES = {dtype: name for name, dtype in STORAGE_DTYPES.items() if name not in NOT_IN_NUMPY}


class NpzCheckpoint(Checkpoint):
    """An open ``.npz`` archive; arrays are read when asked for."""

    def __init__(self, path: Path) -> None:
        infos: dict[str, TensorInfo] = {}
        skipped: dict[str, str] = {}
        self._members: dict[str, str] = {}
        with _reading(path), zipfile.ZipFile(path) as archive:
            for member in archive.namelist():
                name = member.removesuffix(".npy")
                if name == member:
                    skipped[member] = "not a .npy array"
                    continue
                with archive.open(member) as file:
                    shape, dtype = _array_header(file)
                if dtype.hasobject:
                    raise InvalidArgument(
                        f"{path}: array {name!r} holds pickled objects, which may run code; "
                        "save it as numbers"
                    )
                known = _NAMES.get(dtype.newbyteorder("<"))
                if known is None:
                    skipped[name] = f"dtype {dtype} is not supported"
                    continue
                infos[name] = TensorInfo(name, shape, known)
                self._members[name] = member
        super().__init__(path, infos, skipped=skipped)

    def _load(self, info: TensorInfo) -> Array:
        member = self._members[info.name]
        with _reading(self.path), zipfile.ZipFile(self.path) as archive, archive.open(member) as f:
            array = npy.read_array(f, allow_pickle=False)
        return np.ascontiguousarray(array, storage_dtype(info.dtype)).reshape(info.shape)


def _array_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype[Any]]:
    version = npy.read_magic(file)
    read = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
    shape, _, dtype = read(file)
    return tuple(int(d) for d in shape), dtype


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """What zipfile and NumPy raise for a broken file, as errors of ours that name it."""
    try:
        yield
    except InvalidArgument:
        raise
    except (zipfile.BadZipFile, EOFError) as error:
        raise TruncatedFile(f"{path}: not a whole .npz archive ({error})") from None
    except (ValueError, zlib.error, NotImplementedError, RuntimeError) as error:
        raise CorruptFile(f"{path}: not a sound .npz archive ({error})") from None


def zip_members(path: Path) -> list[str]:
    """The names inside a zip archive; none if it is not a whole one."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError):
        return []


@FORMATS.register("npz")
@dataclass(frozen=True)
class Npz(Format):
    """``.npz``, for the dtypes that NumPy has."""

    suffixes: ClassVar[tuple[str, ...]] = (".npz",)

    def recognises(self, head: bytes, path: Path) -> bool:
        return head.startswith(b"PK") and any(m.endswith(".npy") for m in zip_members(path))

    def open(self, path: Path) -> Checkpoint:
        return NpzCheckpoint(path)

    def check(self, content: Content) -> None:
        for info in content.infos:
            if info.dtype in NOT_IN_NUMPY:
                raise InvalidArgument(
                    f"npz cannot hold tensor {info.name!r} of {info.dtype}; "
                    "choose the suffix .safetensors or .pt"
                )

    def write(self, file: BinaryIO, content: Content) -> None:
        tensors = content.untied()
        with (
            content.arrays(name for _, name in tensors) as arrays,
            zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive,
        ):
            for (info, _), found in zip(tensors, arrays, strict=True):
                array = np.ascontiguousarray(found, storage_dtype(info.dtype))
                # A ZipInfo of its own has a fixed date: the same input gives the same bytes.
                entry = zipfile.ZipInfo(f"{info.name}.npy")
                with archive.open(entry, "w", force_zip64=True) as member:
                    npy.write_array(member, array.reshape(info.shape), allow_pickle=False)
