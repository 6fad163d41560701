"""Folders as Hugging Face has them: safetensors files, one or in shards, and others beside them.

Tensors are compressed; every other file, and the header of every safetensors file, is kept byte
for byte, so that the folder can be given back. Where tensors stay exact the files are identical.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from espalier.container import atomic_folder
from espalier.errors import CorruptFile, FormatError, InvalidArgument
from espalier.interop.base import (
    FOLDER,
    Checkpoint,
    Content,
    Pieces,
    TensorInfo,
    pieces_of,
    whole,
)
from espalier.interop.safetensors_file import (
    MAX_HEADER_BYTES,
    Header,
    SafetensorsCheckpoint,
    parse_header,
    write_array,
)
from espalier.state import Array

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
SUFFIX = ".safetensors"
_MAX_INDEX_BYTES = 1 << 27


class FolderCheckpoint(Checkpoint):
    """An open folder: headers are in memory, tensors are read when asked for.

    The tensors of the model (``model.safetensors``, the shards of the index, or the only
    safetensors file) go by their own names; those of any other safetensors file by
    ``PATH/OF/FILE.safetensors/NAME``. A tensor of a dtype that is not supported is kept as bytes.
    """

    def __init__(self, path: Path) -> None:
        files, notes = _files(path)
        shards = [name for name in files if name.endswith(SUFFIX)]
        if not shards:
            raise InvalidArgument(
                f"{path}: is a folder without a {SUFFIX} file; name one checkpoint file"
            )
        self._others = [name for name in files if name not in set(shards)]
        self._sizes = {name: (path / name).stat().st_size for name in files}
        model = _model_files(path, shards)
        infos: dict[str, TensorInfo] = {}
        metadata: dict[str, str] = {}
        self._parts: dict[str, SafetensorsCheckpoint] = {}
        self._homes: dict[str, tuple[SafetensorsCheckpoint, str]] = {}
        self._prefixes = {name: "" if name in model else f"{name}/" for name in shards}
        for shard in [*model, *(name for name in shards if name not in model)]:
            part = self._parts[shard] = SafetensorsCheckpoint(path / shard)
            metadata |= part.metadata if shard in model else {}
            for name, entry in part.header.entries.items():
                ours = self._prefixes[shard] + name
                if ours in infos:
                    raise FormatError(f"{path}: two files hold a tensor {ours!r}")
                info = part.infos.get(name)
                if info is None:
                    info = TensorInfo(name, (entry.nbytes,), "uint8")
                    notes.append(f"{ours!r} is kept as bytes: {part.skipped[name]}")
                infos[ours] = replace(info, name=ours)
                self._homes[ours] = part, name
        _check_index(path, model, infos, self._homes)
        super().__init__(path, infos, metadata=metadata, notes=notes)

    @property
    def file_bytes(self) -> int:
        return sum(self._sizes.values())

    def _load(self, info: TensorInfo) -> Array:
        part, name = self._homes[info.name]
        return part.raw(name) if name in part.skipped else part.load(name)[1]

    def original(self) -> dict[str, Any]:
        """Of each safetensors file, the prefix that the names of its tensors have here."""
        return {"format": FOLDER, "shards": dict(self._prefixes)}

    def files(self) -> dict[str, Pieces]:
        """Every file that is not safetensors, and the header of every one that is."""
        whole = {name: partial(pieces_of, self.path / name) for name in self._others}
        headers = {name: _pieces(part.header.raw) for name, part in self._parts.items()}
        return whole | headers


def _pieces(data: bytes) -> Pieces:
    return lambda: [data]


def _files(path: Path) -> tuple[list[str], list[str]]:
    """All files as ``a/b/c``, sorted, and notes on what is passed over."""
    found, notes = [], []
    for folder, inner, names in os.walk(path):
        inner.sort()
        for name in [n for n in inner if n.startswith(".")]:
            inner.remove(name)
            notes.append(f"the hidden folder {name} is not kept")
        for name in names:
            file = Path(folder) / name
            if not file.is_file():
                notes.append(f"{file.relative_to(path)} is not kept: it is not a regular file")
                continue
            relative = file.relative_to(path).as_posix()
            if not _is_safe(relative):
                notes.append(f"{relative!r} is not kept: not every system can have such a name")
                continue
            found.append(relative)
    return sorted(found), notes


def _model_files(path: Path, shards: list[str]) -> list[str]:
    """The files of the model itself: by the index, by name, or because there is no other."""
    index = _read_index(path)
    if index is not None:
        named = sorted(set(index.values()))
        for name in named:
            if name not in shards:
                raise FormatError(f"{path}: {INDEX} names the file {name!r}, which is not there")
        return named
    here = [name for name in shards if "/" not in name]
    if SINGLE in here:
        return [SINGLE]
    return here if len(here) == 1 else []


def _read_index(path: Path) -> dict[str, str] | None:
    """The index's map from tensors to files; None without an index."""
    file = path / INDEX
    if not file.is_file():
        return None
    if file.stat().st_size > _MAX_INDEX_BYTES:
        raise CorruptFile(f"{file}: over {_MAX_INDEX_BYTES:,} bytes are no index")
    try:
        index = json.loads(file.read_bytes().decode("utf-8"))
    except (ValueError, RecursionError) as error:
        raise CorruptFile(f"{file}: is not JSON ({error})") from None
    found = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise CorruptFile(f"{file}: has no weight_map from tensors to files")
    return found


def _check_index(
    path: Path,
    model: list[str],
    infos: Mapping[str, TensorInfo],
    homes: Mapping[str, tuple[SafetensorsCheckpoint, str]],
) -> None:
    """Every tensor of the index must be in the file that it names."""
    for name, file in (_read_index(path) or {}).items():
        if name not in infos or homes[name][0].path != path / file or file not in model:
            raise FormatError(f"{path}: by {INDEX} {name!r} is in {file}, where it is not")


# ---------------------------------------------------------------- the way back


def write_folder(path: str | os.PathLike[str], content: Content, *, force: bool = False) -> None:
    """Write the folder that ``content.original`` describes: whole, or not at all.

    Parameters
    ----------
    path : path-like
        A folder that is empty or not there; with ``force``, files in it of the same names are
        replaced, and others stay.

    Raises
    ------
    CorruptFile
        The description contradicts itself or the tensors, or names a file outside the folder.
    InvalidArgument
        The folder is not empty.
    """
    where = Path(path)
    prefixes = _prefixes(content.original, where)
    for name in [*prefixes, *content.files]:
        _check_path(name, where)
    infos = {info.name: info for info in content.infos}
    headers = {
        name: _header(name, prefix, content, infos, where) for name, prefix in prefixes.items()
    }
    with atomic_folder(path, force=force) as folder:
        for name in content.files:
            if name not in headers:
                with _create(folder / name) as file:
                    file.writelines(content.files[name]())
        for name, header in headers.items():
            placed = sorted(header.entries, key=lambda n: _place(header, n))
            names = [prefixes[name] + n for n in placed]
            with _create(folder / name) as file, content.arrays(names) as arrays:
                file.write(header.raw)
                for ours, array in zip(names, arrays, strict=True):
                    write_array(file, array, infos[ours].dtype)


def _place(header: Header, name: str) -> tuple[int, int]:
    return header.entries[name].begin, header.entries[name].end


def _create(path: Path) -> Any:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("xb")


def _prefixes(original: Mapping[str, Any], where: Path) -> dict[str, str]:
    found = original.get("shards")
    if not isinstance(found, dict) or not all(isinstance(v, str) for v in found.values()):
        raise CorruptFile(f"{where}: the file does not say which shards the folder has")
    return found


def _is_safe(name: str) -> bool:
    """Whether a file of that name lies inside the folder, on any system."""
    parts = name.split("/")
    return (
        name.isprintable()
        and not set(name) & set("\\:")
        and not {"", ".", ".."} & {part.rstrip(" .") and part for part in parts}
    )


def _check_path(name: str, where: Path) -> None:
    if not _is_safe(name):
        raise CorruptFile(f"{where}: refused to write the file {name[:80]!r}")


def _header(
    name: str, prefix: str, content: Content, infos: Mapping[str, TensorInfo], where: Path
) -> Header:
    """The header of a safetensors file, whose tensors are all there."""
    what = f"{where}: {name}"
    raw = whole(content.files, name, MAX_HEADER_BYTES + 8)
    if int.from_bytes(raw[:8], "little") != len(raw) - 8:
        raise CorruptFile(f"{what}: its header is not whole")
    header = parse_header(raw, where / name)
    for tensor, entry in header.entries.items():
        info = infos.get(prefix + tensor)
        if info is None or info.nbytes != entry.nbytes:
            raise CorruptFile(f"{what}: its tensor {tensor!r} is not there in that size")
    return header
