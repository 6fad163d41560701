"""Bit packing and gaps, worked by hand; fast = reference is in tests/property/test_coding.py.

Run with every access of a kernel checked:

    NUMBA_BOUNDSCHECK=1 NUMBA_CACHE_DIR=$(mktemp -d) pytest tests/unit/test_bitpack.py \
        tests/unit/test_huffman.py tests/contract/test_coders.py tests/property/test_coding.py
"""

import numpy as np
import pytest

from espalier.kernels import bitpack, gaps


def bits(data, n):
    """The first n bits of a stream, in its order, as text."""
    return "".join(str(b) for b in np.unpackbits(np.asarray(data, np.uint8), bitorder="little"))[:n]


def array(data):
    return np.frombuffer(bytes(data), np.uint8)


def test_pack_is_least_significant_bit_first():
    packed = bitpack.pack(np.array([1, 2, 3], np.uint8), 4)
    assert packed.tolist() == [0x21, 0x03]
    assert bits(packed, 12) == "100001001100"


@pytest.mark.parametrize("width", [1, 2, 5, 7, 8, 9, 13, 16, 31, 33, 48])
def test_pack_and_unpack_agree_with_the_reference(width):
    rng = np.random.default_rng(width)
    symbols = rng.integers(0, 1 << width, 301, dtype=np.uint64)
    packed = bitpack.pack(symbols, width)
    assert packed.tobytes() == bitpack.pack_reference(symbols, width)
    assert bitpack.unpack_reference(packed.tobytes(), 301, width) == symbols.tolist()
    found, status = bitpack.unpack(packed, 301, width, np.uint64)
    assert status == bitpack.OK
    assert found.tolist() == symbols.tolist()


def test_a_width_of_zero_takes_no_bytes_and_no_memory():
    assert bitpack.pack(np.zeros(9, np.uint8), 0).size == 0
    found, status = bitpack.unpack(array(b""), 1 << 45, 0, np.uint8)
    assert status == bitpack.OK
    assert found.size == 1 << 45
    assert found.strides == (0,)


@pytest.mark.parametrize(
    ("data", "status"),
    [
        (b"\x21", bitpack.SHORT),
        (b"\x21\x03\x00", bitpack.TRAILING),
        (b"\x21\x13", bitpack.TRAILING),  # a padding bit
        (b"\x21\x03", bitpack.OK),
    ],
)
def test_unpack_wants_the_exact_bytes(data, status):
    assert bitpack.unpack(array(data), 3, 4, np.uint8)[1] == status


def test_gaps_with_fillers():
    # Gaps 1, 0, 6 in 2 bits: 1; 0; filler 3, filler 3, 0.
    packed = gaps.pack_gaps(np.array([1, 2, 9]), 2, 5)
    assert bits(packed, 10) == "1000111100"
    assert packed.tobytes() == gaps.pack_gaps_reference(np.array([1, 2, 9]), 2)
    found, status = gaps.unpack_gaps(packed, 3, 2, 10)
    assert status == bitpack.OK
    assert found.tolist() == [1, 2, 9]


def test_a_gap_of_the_fillers_value_is_a_filler_and_zero():
    packed = gaps.pack_gaps(np.array([3]), 2, 2)
    assert bits(packed, 4) == "1100"
    assert gaps.unpack_gaps(packed, 1, 2, 4)[0].tolist() == [3]


def test_one_bit_gaps_are_the_bitmap():
    mask = np.array([0, 1, 1, 0, 0, 1, 0], bool)
    positions = np.flatnonzero(mask)
    packed = gaps.pack_gaps(positions, 1, 6)
    # Here 1 says that no weight stands at a place, and 0 that one does.
    assert bits(packed, 6) == "".join("0" if m else "1" for m in mask[:6])


@pytest.mark.parametrize(
    ("data", "n", "size", "status"),
    [
        (b"\xf1\x00", 3, 9, bitpack.RANGE),  # the last position is 9
        (b"\xf1\x00", 4, 99, bitpack.OK),  # the padding reads as a gap of 0: n decides
        (b"\xf1\x00", 6, 99, bitpack.OK),
        (b"\xf1\x00", 7, 99, bitpack.SHORT),
        (b"\xf1\x00\x00", 3, 99, bitpack.TRAILING),
        (b"\xf1\x04", 3, 99, bitpack.TRAILING),
        (b"\xff\xff", 1, 99, bitpack.SHORT),  # fillers only
        (b"\xff\xff", 1, 9, bitpack.RANGE),
        (b"", 1, 9, bitpack.SHORT),
    ],
)
def test_hostile_gaps_have_a_status(data, n, size, status):
    assert gaps.unpack_gaps(array(data), n, 2, size)[1] == status


def test_tokens_and_raw_bits():
    # direct 2, top 0: gap 3 is token 3; gap 13 = 0b1101 has exponent 3: token 4 + 1, raw 101.
    tokens, raw = gaps.split_gaps(np.array([3, 17]), 2, 0, 3)
    assert tokens.tolist() == [3, 5]
    assert bits(raw, 3) == "101"
    # top 1: the bit after the leading one joins the token, 4 + 2 * 1 + 1, and 01 stays.
    tokens, raw = gaps.split_gaps(np.array([3, 17]), 2, 1, 2)
    assert tokens.tolist() == [3, 7]
    assert bits(raw, 2) == "10"
    found, status = gaps.join_gaps(tokens, raw, 2, 1, 18)
    assert status == bitpack.OK
    assert found.tolist() == [3, 17]


def test_a_gap_as_large_as_a_tensor_can_be():
    positions = np.array([(1 << 48) - 2, (1 << 48) - 1])
    tokens, raw = gaps.split_gaps(positions, 1, 0, 47)
    found, status = gaps.join_gaps(tokens, raw, 1, 0, 1 << 48)
    assert status == bitpack.OK
    assert found.tolist() == positions.tolist()


@pytest.mark.parametrize(
    ("tokens", "raw", "size", "status"),
    [
        ([3, 5], b"\x05", 17, bitpack.RANGE),
        ([3, 5], b"", 99, bitpack.SHORT),
        ([3, 5], b"\x05\x00", 99, bitpack.TRAILING),
        ([3, 5], b"\x0d", 99, bitpack.TRAILING),
        ([3, 255], b"\xff" * 32, 1 << 48, bitpack.RANGE),  # 2**253
        ([3, 3], b"\x00", 99, bitpack.TRAILING),
    ],
)
def test_hostile_tokens_have_a_status(tokens, raw, size, status):
    assert gaps.join_gaps(np.array(tokens, np.uint8), array(raw), 2, 0, size)[1] == status
