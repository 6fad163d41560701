"""Files that appear whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from espalier.errors import InvalidArgument


def _check_target(target: Path, path: str | os.PathLike[str], force: bool) -> int | None:
    """The permissions of the file to be overwritten, or None if there is none."""
    if not target.parent.is_dir():
        raise InvalidArgument(
            f"cannot write {os.fspath(path)}: the folder {target.parent} is missing"
        )
    try:
        mode = target.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise InvalidArgument(f"cannot write {os.fspath(path)}: it is not a regular file")
    if not force:
        raise InvalidArgument(f"{os.fspath(path)} exists; --force / force=True overwrites it")
    return stat.S_IMODE(mode)


def _publish(temporary: Path, target: Path, path: str | os.PathLike[str], force: bool) -> None:
    if force:
        temporary.replace(target)
        return
    # A link fails where the target has come up meanwhile; a rename would overwrite it.
    try:
        os.link(temporary, target)
    except FileExistsError:
        raise InvalidArgument(
            f"{os.fspath(path)} exists; --force / force=True overwrites it"
        ) from None
    except OSError:  # a file system without hard links
        temporary.replace(target)
    else:
        temporary.unlink()


def _sync_folder(folder: Path) -> None:
    # So that the new name survives a power cut too; not every system can open a folder.
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[BinaryIO]:
    """Write a file so that ``path`` is either as it was or whole.

    The bytes go to a temporary file beside it, which is flushed to disk and renamed when the block
    ends, and removed when the block fails in whatever way, Ctrl-C and a full disk included.

    Parameters
    ----------
    path : path-like
        A link is followed: the file that it leads to is replaced.
    force : bool
        Overwrite an existing file, keeping its permissions.

    Yields
    ------
    binary file object, for writing

    Raises
    ------
    InvalidArgument
        The file exists and ``force`` is false, its folder does not exist, or it is no regular file.
    OSError
        The system refused, and why, with ``path`` as its file name.

    Examples
    --------
    >>> import tempfile
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     with atomic_write(folder + "/a") as file:
    ...         _ = file.write(b"whole")
    ...     os.listdir(folder)
    ['a']
    """
    target = Path(os.path.realpath(path))
    mode = _check_target(target, path, force)
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    try:
        # 0o666 less the umask, as open() would; tempfile would make it private.
        descriptor = os.open(
            temporary, os.O_CREAT | os.O_EXCL | os.O_RDWR | getattr(os, "O_BINARY", 0), 0o666
        )
        with os.fdopen(descriptor, "wb") as file:
            yield file
            file.flush()
            if mode is not None:
                temporary.chmod(mode)
            os.fsync(file.fileno())
        _publish(temporary, target, path, force)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and not isinstance(error, InvalidArgument):
            about_this = error.filename is None or os.fspath(error.filename) == str(temporary)
            if error.errno is not None and about_this:
                raise OSError(error.errno, error.strerror, os.fspath(path)) from error
        raise
    _sync_folder(target.parent)


@contextlib.contextmanager
def atomic_folder(path: str | os.PathLike[str], *, force: bool = False) -> Iterator[Path]:
    """Fill a folder so that ``path`` is either as it was or whole.

    The files go to a temporary folder beside it, which is renamed when the block ends, and removed
    when it fails in whatever way.

    Parameters
    ----------
    path : path-like
        A folder that is empty or not there yet.
    force : bool
        Move the files into a folder that is not empty, one by one, each replacing one of the same
        name; other files in it stay.

    Yields
    ------
    Path
        The folder to fill.

    Raises
    ------
    InvalidArgument
        There is a file at ``path``; its own folder does not exist; or it is not empty and ``force``
        is false.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise InvalidArgument(
            f"cannot write {os.fspath(path)}: the folder {target.parent} is missing"
        )
    if target.exists() and not target.is_dir():
        raise InvalidArgument(f"{os.fspath(path)} exists, and is not a folder")
    full = target.exists() and any(target.iterdir())
    if full and not force:
        raise InvalidArgument(
            f"{os.fspath(path)} is not empty; --force / force=True replaces the files in it that "
            "have the same names"
        )
    temporary = target.with_name(f".{target.name[:100]}.{secrets.token_hex(6)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for file in [file for file in temporary.rglob("*") if file.is_file()]:
            with file.open("rb") as written:
                os.fsync(written.fileno())
            if full:
                final = target / file.relative_to(temporary)
                final.parent.mkdir(parents=True, exist_ok=True)
                file.replace(final)
        if not full:
            if target.exists():
                target.rmdir()
            temporary.rename(target)
    finally:
        if temporary.exists():
            shutil.rmtree(temporary)
    _sync_folder(target.parent)
