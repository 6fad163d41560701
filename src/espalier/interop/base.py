"""What every checkpoint format answers, and the choice among them by suffix and by content."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, Self

from espalier.container import atomic_write
from espalier.container.layout import MAGIC
from espalier.errors import CorruptFile, FormatError, InvalidArgument, TruncatedFile
from espalier.parallel import in_order
from espalier.registry import Registry
from espalier.state import Array, count, storage_dtype

_HEAD_BYTES = 64

Pieces = Callable[[], Iterable[bytes]]
"""Opens a file: its bytes, a piece at a time."""

_PIECE = 1 << 20

FOLDER = "folder"
"""``format`` of what :meth:`Checkpoint.original` says of a folder."""


@dataclass(frozen=True)
class TensorInfo:
    """Name, shape and dtype of a tensor, known without loading it.

    ``dtype`` is the name in PyTorch, a key of :data:`espalier.state.STORAGE_DTYPES`.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str

    @property
    def size(self) -> int:
        """Number of elements."""
        return count(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.size * storage_dtype(self.dtype).itemsize


class Checkpoint(ABC):
    """An open checkpoint: what is in it, and one tensor at a time.

    Attributes
    ----------
    path : Path
    infos : mapping of str to TensorInfo
        Every distinct tensor, in the order of the file.
    aliases : mapping of str to str
        Further names of tied tensors, each mapped to a key of ``infos``.
    skipped : mapping of str to str
        Entries that cannot be represented, with the reason: objects, unsupported dtypes.
    metadata : mapping of str to str
        What the file says about itself.
    notes : tuple of str
        What the user should know about how the weights were found.
    """

    def __init__(
        self,
        path: Path,
        infos: Mapping[str, TensorInfo],
        *,
        aliases: Mapping[str, str] | None = None,
        skipped: Mapping[str, str] | None = None,
        metadata: Mapping[str, str] | None = None,
        notes: Sequence[str] = (),
    ) -> None:
        self.path = path
        self.infos = dict(infos)
        self.aliases = dict(aliases or {})
        self.skipped = dict(skipped or {})
        self.metadata = dict(metadata or {})
        self.notes = tuple(notes)

    @property
    def file_bytes(self) -> int:
        """Bytes on disk."""
        return self.path.stat().st_size

    def original(self) -> dict[str, Any]:
        """What beside tensors and :meth:`files` is needed to give the checkpoint back, as JSON.

        Empty where tensors, names and ``metadata`` are all there is. It has a key ``format``.
        """
        return {}

    def files(self) -> dict[str, Pieces]:
        """Bytes beside the tensors that are needed to give the checkpoint back, by name."""
        return {}

    def missing_from(self, original: Mapping[str, Any], files: Mapping[str, Pieces]) -> list[str]:
        """What of this checkpoint, beside tensors, those of another one do not hold."""
        if not self.original():
            return []
        ours = self.files()
        wrong = [f"file {name!r} differs" for name in ours if not _same(ours, files, name)]
        if dict(original) != self.original():
            wrong.append("what belongs to which file differs")
        return wrong

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:  # noqa: B027 - there is nothing to close
        """Nothing to do: no file stays open between two loads."""

    def names(self) -> list[str]:
        """All names: of the distinct tensors in the order of the file, then those of tied ones."""
        return [*self.infos, *self.aliases]

    def load(self, name: str) -> tuple[str, Array]:
        """The dtype of the tensor of that name, and its C-contiguous array in the storage dtype."""
        name = self.aliases.get(name, name)
        if name not in self.infos:
            raise InvalidArgument(f"{self.path}: no tensor is called {name!r}")
        return self.infos[name].dtype, self._load(self.infos[name])

    @abstractmethod
    def _load(self, info: TensorInfo) -> Array:
        """The tensor that ``info`` describes."""


@dataclass(frozen=True)
class Content:
    """What a writer is to write; tensors are asked for one at a time, in order of ``infos``.

    Attributes
    ----------
    infos : sequence of TensorInfo
    load : callable
        From the name of a tensor to its array in the storage dtype.
    aliases : mapping of str to str
        Further names of tied tensors. A format that cannot tie writes the tensor again.
    metadata : mapping of str to str
        Written where the format has a place for it.
    original : mapping
        :meth:`Checkpoint.original` of the checkpoint that the tensors came from.
    files : mapping of str to callable
        :meth:`Checkpoint.files` of it.
    jobs : int
        How many threads load tensors.
    """

    infos: Sequence[TensorInfo]
    load: Callable[[str], Array]
    aliases: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    original: Mapping[str, Any] = field(default_factory=dict)
    jobs: int = 1
    files: Mapping[str, Pieces] = field(default_factory=dict)

    def arrays(self, names: Iterable[str]) -> AbstractContextManager[Iterator[Array]]:
        """Opens the arrays of those names, in that order, loaded ahead by ``jobs`` threads."""
        nbytes = {info.name: info.nbytes for info in self.infos}
        return in_order(self.load, names, self.jobs, nbytes.__getitem__)

    def untied(self) -> list[tuple[TensorInfo, str]]:
        """Every name as a tensor of its own: its info, and the name to load it by."""
        by_name = {info.name: info for info in self.infos}
        tied = [
            (TensorInfo(alias, by_name[name].shape, by_name[name].dtype), name)
            for alias, name in self.aliases.items()
        ]
        return [(info, info.name) for info in self.infos] + tied


class Format(ABC):
    """A checkpoint format: how its files are recognised, opened and written."""

    suffixes: ClassVar[tuple[str, ...]]

    @abstractmethod
    def recognises(self, head: bytes, path: Path) -> bool:
        """Whether the file at ``path``, which begins with ``head``, looks like this format."""

    @abstractmethod
    def open(self, path: Path) -> Checkpoint:
        """Read the list of tensors; :class:`FormatError` if the file is not what it says."""

    @abstractmethod
    def check(self, content: Content) -> None:
        """:class:`InvalidArgument` if the format cannot hold ``content``."""

    @abstractmethod
    def write(self, file: BinaryIO, content: Content) -> None:
        """Write ``content`` to a binary file that was just created."""


FORMATS: Registry[Format] = Registry("checkpoint format", "espalier.interop")


def _suffixes() -> str:
    return ", ".join(sorted(suffix for cls in FORMATS for suffix in cls.suffixes))


def _by_suffix(path: Path) -> Format | None:
    suffix = path.suffix.lower()
    return next((cls() for cls in FORMATS if suffix in cls.suffixes), None)


def open_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Open a checkpoint by its suffix, or, where the suffix is unknown, by its content.

    A folder is taken for one of Hugging Face's: safetensors files, and others beside them.

    Raises
    ------
    InvalidArgument
        If there is no file at ``path``, or none of a format that can be read.
    FormatError
        If the file is not what its suffix says, is cut short or contradicts itself.

    Examples
    --------
    >>> checkpoint = open_checkpoint("resnet20.safetensors")      # doctest: +SKIP
    >>> checkpoint.infos["conv1.weight"].shape                    # doctest: +SKIP
    (16, 3, 3, 3)
    """
    path = Path(path)
    if path.is_dir():
        from espalier.interop.folder import FolderCheckpoint

        return FolderCheckpoint(path)
    if not path.exists():
        raise InvalidArgument(f"{path}: no such file")
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not head:
        raise TruncatedFile(f"{path}: the file is empty")
    named = _by_suffix(path)
    if named is not None and named.recognises(head, path):
        return named.open(path)
    found = next((cls() for cls in FORMATS if cls().recognises(head, path)), None)
    if named is None and found is not None:
        return found.open(path)
    if found is not None:
        raise FormatError(
            f"{path}: the suffix is {path.suffix}, but inside it is a {_name(found)} file; "
            f"rename it to {found.suffixes[0]}"
        )
    if head.startswith(MAGIC):
        raise InvalidArgument(f"{path}: is an Espalier file already; decompress it first")
    if named is not None:
        return named.open(path)  # raises, and says in what way the file is wrong
    raise InvalidArgument(f"{path}: not a checkpoint of a known format; can be read: {_suffixes()}")


def writer_for(path: str | os.PathLike[str]) -> Format:
    """The format that ``path`` asks for by its suffix."""
    path = Path(path)
    named = _by_suffix(path)
    if named is None:
        suffix = f"the suffix {path.suffix!r}" if path.suffix else "a name without a suffix"
        raise InvalidArgument(f"{path}: {suffix} names no format; can be written: {_suffixes()}")
    return named


def save_checkpoint(path: str | os.PathLike[str], content: Content, *, force: bool = False) -> None:
    """Write a checkpoint in the format of its suffix: to a temporary file, then renamed.

    Parameters
    ----------
    path : path
        Ends in the suffix of a known format; or a folder, where ``content`` came from one.
    content : Content
    force : bool, default False
        Replace a file that exists.

    Raises
    ------
    InvalidArgument
        If the suffix is unknown, the file exists, or the format cannot hold a tensor.
    """
    if _by_suffix(Path(path)) is None and content.original.get("format") == FOLDER:
        from espalier.interop.folder import write_folder

        write_folder(path, content, force=force)
        return
    chosen = writer_for(path)
    try:
        chosen.check(content)
    except InvalidArgument as error:
        raise InvalidArgument(f"{path}: {error}") from None
    with atomic_write(Path(path), force=force) as file:
        chosen.write(file, content)


def pieces_of(path: Path) -> Iterator[bytes]:
    """The bytes of a file on disk, a piece at a time."""
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            yield piece


def whole(files: Mapping[str, Pieces], name: str, most: int) -> bytes:
    """All bytes of a file, at most ``most``; :class:`CorruptFile` if it is longer or not there."""
    if name not in files:
        raise CorruptFile(f"{name}: is not in the file")
    data = bytearray()
    for piece in files[name]():
        data += piece
        if len(data) > most:
            raise CorruptFile(f"{name}: has over {most} bytes")
    return bytes(data)


def _same(ours: Mapping[str, Pieces], theirs: Mapping[str, Pieces], name: str) -> bool:
    """Whether both hold the file ``name``, with the same bytes."""
    return name in theirs and _digest(ours[name]) == _digest(theirs[name])


def _digest(pieces: Pieces) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces():
        digest.update(piece)
    return digest.digest()


def _name(chosen: Format) -> str:
    return str(getattr(chosen, "name", type(chosen).__name__))
