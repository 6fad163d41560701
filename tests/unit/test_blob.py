"""Bytes as compressed text, and text that only looks like it."""

import base64
import zlib

import pytest

from espalier.errors import CorruptFile
from espalier.interop.blob import pack, pieces, unpack

MOST = 1 << 24


@pytest.mark.parametrize("data", [b"", b"x", bytes(5 << 20), bytes(range(256)) * 9000])
def test_round_trip(data):
    assert unpack(pack(data), len(data), "it", MOST) == data
    assert all(len(piece) <= 1 << 20 for piece in pieces(pack(data), len(data), "it"))


def test_a_large_incompressible_one():
    import random

    data = random.Random(0).randbytes(3 << 20)
    assert unpack(pack(data), len(data), "it", MOST) == data


@pytest.mark.parametrize("size", [0, 4, 6, -1, 1 << 62, "5", None, 5.0, True])
def test_another_size(size):
    with pytest.raises(CorruptFile, match="it: "):
        unpack(pack(b"12345"), size, "it", MOST)


def test_a_bomb_stops_at_the_size_that_is_declared():
    bomb = pack(bytes(1 << 28))
    taken = []
    with pytest.raises(CorruptFile):
        taken.extend(pieces(bomb, 1000, "it"))
    assert sum(map(len, taken)) <= 1000
    with pytest.raises(CorruptFile, match="over the limit"):
        unpack(bomb, 1 << 28, "it", MOST)


def test_prefixes_and_what_follows():
    data = zlib.compress(b"12345")
    for broken in [*(data[:n] for n in range(len(data))), data + b"x", data + data]:
        with pytest.raises(CorruptFile):
            unpack(base64.b64encode(broken).decode(), 5, "it", MOST)


@pytest.mark.parametrize("text", ["", "x", "é", "eJw=DA", 3, None, b"eJwDAAAAAAE="])
def test_what_is_no_text_of_ours(text):
    with pytest.raises(CorruptFile):
        unpack(text, 0, "it", MOST)
