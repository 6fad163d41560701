"""Fetching a file from the first of several mirrors that has the right bytes."""

from __future__ import annotations

import threading
import urllib.request
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from http.client import HTTPException
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
        except (OSError, HTTPException, FormatError, ValueError) as error:
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
    fetched: Future[bytes] = Future()

    def work() -> None:
        try:
            with urllib.request.urlopen(url, timeout=connect_seconds) as response:
                answered.set()
                if hasattr(response.fp, "raw"):
                    response.fp.raw._sock.settimeout(30.0)
                data = response.read(MAX_BYTES + 1)
                missing = response.length or 0
            if len(data) > MAX_BYTES:
                raise ValueError(f"longer than {MAX_BYTES} bytes")
            if missing:
                raise OSError(f"ended {missing} bytes early")
            fetched.set_result(data)
        except Exception as error:  # noqa: BLE001 - all go to the caller, who waits for one
            fetched.set_exception(error)
        finally:
            answered.set()

    threading.Thread(target=work, daemon=True).start()
    if not answered.wait(connect_seconds):
        raise TimeoutError(f"no answer within {connect_seconds:.0f} s")
    return fetched.result()
