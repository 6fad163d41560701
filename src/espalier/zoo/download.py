"""Fetching a file from the first of several mirrors that has the right bytes."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path
from time import monotonic

from espalier.container import atomic_write
from espalier.errors import DataUnavailable, FormatError

CONNECT_SECONDS = 10.0
"""All mirrors together get this long until one of them answers."""

MAX_BYTES = 1 << 30


def download(
    urls: Sequence[str],
    path: Path,
    *,
    check: Callable[[bytes], object],
    connect_seconds: float = CONNECT_SECONDS,
) -> None:
    """Write to ``path`` what the first working mirror of ``urls`` sends.

    Parameters
    ----------
    urls : sequence of str
        Tried in turn.
    path : Path
        Appears whole or not at all; its folder is made.
    check : callable
        Is given the bytes and raises :class:`FormatError` if they are not the wanted ones: the
        next mirror is then tried.
    connect_seconds : float
        After so long without a first answer from any mirror, give up. A transfer that has begun
        is given 30 s of silence.

    Raises
    ------
    DataUnavailable
        No mirror could be reached, or none had the right bytes; says what each one answered.
    """
    deadline = monotonic() + connect_seconds
    failures = []
    for url in urls:
        left = deadline - monotonic()
        if left <= 0:
            failures.append(f"{url}: no time left")
            continue
        try:
            data = _fetch(url, left)
            check(data)
        except (OSError, FormatError, ValueError) as error:
            failures.append(f"{url}: {error}")
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path, force=True) as file:
            file.write(data)
        return
    raise DataUnavailable("could not download: " + "; ".join(failures))


def _fetch(url: str, connect_seconds: float) -> bytes:
    """The bytes at ``url``; :class:`TimeoutError` if there is no answer in time.

    The thread is what makes the limit hold: a resolver that hangs ignores socket time-outs.
    """
    answered = threading.Event()
    result: dict[str, bytes | Exception] = {}

    def work() -> None:
        try:
            with urllib.request.urlopen(url, timeout=connect_seconds) as response:
                answered.set()
                response.fp.raw._sock.settimeout(30.0) if hasattr(response.fp, "raw") else None
                data = response.read(MAX_BYTES + 1)
            if len(data) > MAX_BYTES:
                raise ValueError(f"longer than {MAX_BYTES} bytes")
            result["data"] = data
        except (OSError, ValueError) as error:
            result["error"] = error
        finally:
            answered.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    if not answered.wait(connect_seconds):
        raise TimeoutError(f"no answer within {connect_seconds:.0f} s")
    thread.join()
    if "data" not in result:
        error = result["error"]
        raise error if isinstance(error, Exception) else OSError("no data")
    data = result["data"]
    if not isinstance(data, bytes):  # pragma: no cover - narrows the type
        raise OSError("no data")
    return data
