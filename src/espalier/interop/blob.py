"""Bytes as text that JSON can hold, compressed; and back, without trust."""

from __future__ import annotations

import base64
import binascii
import zlib
from collections.abc import Iterator
from typing import Any

from espalier.errors import CorruptFile

_PIECE = 1 << 20


def pack(data: bytes) -> str:
    """``data`` by zlib, in base64."""
    return base64.b64encode(zlib.compress(data, 9)).decode("ascii")


def pieces(text: Any, size: Any, what: str) -> Iterator[bytes]:
    """What :func:`pack` made of ``size`` bytes, a piece at a time, so that no lie takes memory.

    Raises
    ------
    CorruptFile
        It is not as many bytes as ``size``, or not what ``pack`` makes; ``what`` names it.
    """
    wrong = CorruptFile(f"{what}: is not sound zlib data of {size} bytes")
    if type(size) is not int or not isinstance(text, str):
        raise wrong
    try:
        data = base64.b64decode(text, validate=True)
        stream = zlib.decompressobj()
        for start in range(0, len(data), _PIECE):
            tail = data[start : start + _PIECE]
            while tail and not stream.eof:
                piece = stream.decompress(tail, _PIECE)
                tail = stream.unconsumed_tail
                size -= len(piece)
                if size < 0:
                    raise wrong
                yield piece
            if tail or stream.unused_data:
                raise wrong
        rest = stream.decompress(b"", size + 1)
        if len(rest) != size or not stream.eof:
            raise wrong
        yield rest
    except (binascii.Error, ValueError, zlib.error):
        raise wrong from None


def unpack(text: Any, size: Any, what: str, most: int) -> bytes:
    """What :func:`pack` made of ``size`` bytes, at most ``most``."""
    if type(size) is int and size > most:
        raise CorruptFile(f"{what}: {size} bytes, over the limit of {most}")
    return b"".join(pieces(text, size, what))
