"""Files at a URL, read by ranges through fsspec: an optional dependency, the extra ``remote``."""

from __future__ import annotations

import re
from typing import Any, BinaryIO, cast

from espalier.errors import InvalidArgument, MissingDependency

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+(?:::[^/]*)*://")  # one letter is a drive of Windows


def is_url(source: str) -> bool:
    """Whether ``source`` begins with a protocol.

    Examples
    --------
    >>> is_url("https://example.org/model.esp"), is_url("models/a.esp"), is_url("C:/a.esp")
    (True, False, False)
    """
    return _URL.match(source) is not None


def open_url(url: str) -> BinaryIO:
    """Open what is at ``url`` for reading at any place; each read is one request.

    Raises
    ------
    MissingDependency
        fsspec, or what it needs for this protocol, is not installed.
    InvalidArgument
        fsspec does not know the protocol.
    OSError
        There is no such file, it cannot be reached, or its server does not serve ranges.
    """
    try:
        import fsspec
    except ImportError:
        raise _missing(url, "fsspec") from None
    try:
        # No cache: the reader asks for exactly what it needs, and never twice.
        file = fsspec.open(url, "rb", cache_type="none").open()
    except ImportError as error:
        raise _missing(url, str(error)) from None
    except OSError as error:
        raise _plain(url, error) from None
    except ValueError as error:
        raise InvalidArgument(f"{url}: {error}") from None
    except Exception as error:  # noqa: BLE001 - each protocol has errors of its own
        raise _plain(url, error) from None
    try:
        file.seek(0, 2)  # what cannot be read by ranges may call itself seekable and yet refuse
    except (ValueError, OSError):
        file.close()
        raise OSError(
            None, "its server does not serve ranges (or the file is empty): download it", url
        ) from None
    return cast(BinaryIO, _Remote(url, file))


def _missing(url: str, what: str) -> MissingDependency:
    return MissingDependency(f"{url}: cannot be read ({what}): pip install 'espalier[remote]'")


def _plain(url: str, error: BaseException) -> OSError:
    # fsspec says of all that fails that there is no such file; its cause says what failed.
    cause = error.__cause__ or error
    return OSError(None, f"cannot be read ({str(cause) or type(cause).__name__})", url)


class _Remote:
    """A file of fsspec's, whose errors are OSError and name the URL."""

    def __init__(self, url: str, file: Any) -> None:
        self.name = url
        self._file = file

    def seek(self, offset: int, whence: int = 0) -> int:
        return int(self._file.seek(offset, whence))

    def read(self, n: int = -1) -> bytes:
        if n == 0:
            return b""
        try:
            return bytes(self._file.read(n))
        except Exception as error:  # noqa: BLE001 - each protocol has errors of its own
            raise _plain(self.name, error) from None

    def close(self) -> None:
        self._file.close()
