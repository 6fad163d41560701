"""An ``.esp`` file as what a checkpoint's writer takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from espalier.errors import InvalidArgument
from espalier.interop.base import Checkpoint, Content, Pieces, TensorInfo
from espalier.state import Array

if TYPE_CHECKING:
    from espalier.container import Reader


def content_of(reader: Reader, names: Sequence[str] | None = None, *, jobs: int = 1) -> Content:
    """The tensors of a file, each decoded when it is asked for, and what else it keeps.

    Parameters
    ----------
    reader : Reader
        Stays open until the content is written.
    names : sequence of str, optional
        Of the tensors that are wanted, and then alone, without graph and files; by default all.
    jobs : int
        How many threads decode.
    """
    infos, aliases = _tensors(reader, reader.names() if names is None else names)
    original = _dict(reader.metadata, "original") if names is None else {}
    files = files_of(reader) if names is None else {}
    said = _dict(reader.metadata, "checkpoint")
    metadata = {key: value for key, value in said.items() if isinstance(value, str)}
    return Content(infos, reader.dense, aliases, metadata, original, jobs, files)


def content_of_checkpoint(checkpoint: Checkpoint, *, jobs: int = 1) -> Content:
    """The same of a checkpoint in any format; it stays open until the content is written."""
    return Content(
        list(checkpoint.infos.values()),
        lambda name: checkpoint.load(name)[1],
        checkpoint.aliases,
        checkpoint.metadata,
        checkpoint.original(),
        jobs,
        checkpoint.files(),
    )


def like(content: Content, folder: Checkpoint) -> Content:
    """The same tensors, written as the files of a folder, whose other files go along.

    Raises
    ------
    InvalidArgument
        The folder has a tensor that ``content`` has not, or not of that shape and dtype.
    """
    infos = {info.name: info for info, _ in content.untied()}
    for name, wanted in folder.infos.items():
        if infos.get(name) != wanted:
            found = infos.get(name)
            has = f"is {found.dtype} {list(found.shape)}" if found else "is not there"
            raise InvalidArgument(
                f"{folder.path}: {name!r} is {wanted.dtype} {list(wanted.shape)}, and {has} in "
                "what is to be written like it"
            )
    every = dict(content.aliases)

    def load(name: str) -> Array:
        return content.load(every.get(name, name))

    return replace(
        content,
        infos=list(folder.infos.values()),
        load=load,
        aliases={},
        original=folder.original(),
        files=folder.files(),
    )


def counted(content: Content, advance: Callable[[int], None]) -> Content:
    """The same; ``advance`` is called with the bytes of each tensor when it is loaded."""

    def load(name: str) -> Array:
        array = content.load(name)
        advance(array.nbytes)
        return array

    return replace(content, load=load)


def _tensors(reader: Reader, names: Sequence[str]) -> tuple[list[TensorInfo], dict[str, str]]:
    """Infos of the tensors of those names, and further names of tied ones among them."""
    infos: dict[str, TensorInfo] = {}
    aliases: dict[str, str] = {}
    for name in names:
        entry = reader.entry(name)
        if entry.name in infos:
            aliases[name] = infos[entry.name].name
        else:
            infos[entry.name] = TensorInfo(name, entry.shape, entry.dtype)
    return list(infos.values()), aliases


def _dict(metadata: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = metadata.get(key)
    return found if isinstance(found, dict) else {}


def files_of(reader: Reader) -> dict[str, Pieces]:
    """The files that travel with the tensors, by name."""
    return {name: partial(reader.file, name) for name in reader.files}
