"""Huffman coding, worked by hand: lengths, code words, tables, runs, hostile payloads."""

import itertools

import numpy as np
import pytest

from espalier.entropy.cursor import Cursor
from espalier.entropy.lengths import read_lengths, write_lengths
from espalier.errors import CorruptFile, FormatError, TruncatedFile
from espalier.kernels import bitpack, huffman, prefix_code


def lengths_of(counts, limit=12):
    return prefix_code.code_lengths(np.array(counts), limit).tolist()


def test_code_lengths_of_a_known_tree():
    # 8 | 5 | 1 + 2: the tree of Huffman 1952 by hand.
    assert lengths_of([5, 1, 0, 2, 8]) == [2, 3, 0, 3, 1]


@pytest.mark.parametrize(
    ("counts", "lengths"),
    [
        ([], []),
        ([0, 0], [0, 0]),
        ([0, 7, 0], [0, 0, 0]),  # a lone symbol takes no bits
        ([1, 1], [1, 1]),
        ([1, 10**15], [1, 1]),
        ([3, 3, 3, 3], [2, 2, 2, 2]),
        ([1, 1, 1], [2, 2, 1]),  # ties: the earlier symbols are merged first
    ],
)
def test_code_lengths_of_small_alphabets(counts, lengths):
    assert lengths_of(counts) == lengths


def test_the_limit_holds_and_is_used_best():
    fibonacci = [1, 1, 2, 3, 5, 8, 13, 21]
    assert max(lengths_of(fibonacci, 16)) == 7
    limited = lengths_of(fibonacci, 4)
    assert max(limited) == 4
    cost = sum(c * length for c, length in zip(fibonacci, limited, strict=True))
    every = itertools.combinations_with_replacement(range(4, 0, -1), 8)
    complete = [c for c in every if sum(2.0**-length for length in c) == 1]
    best = min(sum(a * b for a, b in zip(fibonacci, c, strict=True)) for c in complete)
    assert cost == best


def test_package_merge_agrees_with_the_reference_under_ties():
    rng = np.random.default_rng(0)
    for limit, size in [(8, 256), (12, 256), (9, 300), (16, 40)]:
        counts = rng.integers(0, 4, size)
        found = prefix_code.code_lengths(counts, limit)
        assert found.tolist() == prefix_code.code_lengths_reference(counts.tolist(), limit)
        assert (2.0 ** -found[found > 0].astype(float)).sum() == 1


def test_code_words_are_those_of_rfc_1951():
    # The example of section 3.2.2: lengths (3, 3, 3, 3, 3, 2, 4, 4) for ABCDEFGH.
    lengths = np.array([3, 3, 3, 3, 3, 2, 4, 4], np.uint8)
    words = prefix_code.code_words(lengths)
    text = [f"{w:0{n}b}"[::-1] for w, n in zip(words.tolist(), lengths.tolist(), strict=True)]
    assert text == ["010", "011", "100", "101", "110", "00", "1110", "1111"]


def test_a_stream_bit_by_bit():
    lengths = np.array([1, 2, 2], np.uint8)  # 0, 10, 11
    data, ends = huffman.encode(np.array([1, 0, 2, 0], np.uint8), lengths, 6)
    assert data.tolist() == [0b011001]  # read from the right: 10 0 11 0
    assert ends.tolist() == [1]
    assert huffman.decode(data, 4, ends, lengths)[0].tolist() == [1, 0, 2, 0]


def test_long_streams_are_split_into_even_runs():
    assert huffman.substreams(huffman.SPLIT_FROM - 1) == 1
    assert huffman.substreams(huffman.SPLIT_FROM) == 8
    assert huffman.substreams(huffman.BLOCK) == 8
    assert huffman.substreams(huffman.BLOCK + 1) == 16
    starts = huffman.run_starts(20003)
    assert starts[0] == 0
    assert starts[-1] == 20003
    assert np.diff(starts).tolist() == [2501, 2501, 2501, 2500, 2500, 2500, 2500, 2500]


@pytest.mark.parametrize("alphabet", [2, 3, 40, 256, 257, 5000])
@pytest.mark.parametrize("n", [1, 7, 16383, 16384, 40001])
def test_fast_and_slow_agree(alphabet, n):
    rng = np.random.default_rng(n)
    spread = np.abs(rng.normal(0, alphabet / 5, n)).astype(int) % alphabet
    symbols = spread.astype(np.uint8 if alphabet <= 256 else np.uint16)
    symbols[: min(n, 2)] = [0, 1][: min(n, 2)]
    counts = np.bincount(symbols, minlength=alphabet)
    counts[:2] += 1
    lengths = prefix_code.code_lengths(counts, 12 if alphabet <= 256 else 16)
    bits = int(lengths[symbols].sum(dtype=np.int64))
    data, ends = huffman.encode(symbols, lengths, bits)
    assert (data.tobytes(), ends.tolist()) == huffman.encode_reference(symbols.tolist(), lengths)
    found, status = huffman.decode(data, n, ends, lengths)
    assert status == bitpack.OK
    assert np.array_equal(found, symbols)
    assert huffman.decode_reference(data.tobytes(), n, ends.tolist(), lengths) == symbols.tolist()


def test_several_blocks():
    n = huffman.BLOCK + 5
    symbols = (np.arange(n) % 7 % 3).astype(np.uint8)
    lengths = np.array([1, 2, 2], np.uint8)
    data, ends = huffman.encode(symbols, lengths, int(lengths[symbols].sum(dtype=np.int64)))
    assert ends.size == 16
    found, status = huffman.decode(data, n, ends, lengths)
    assert status == bitpack.OK
    assert np.array_equal(found, symbols)


def test_hostile_payloads_have_a_status():
    lengths = np.array([1, 2, 2], np.uint8)
    symbols = np.tile(np.array([1, 0, 2, 0], np.uint8), 6000)
    data, ends = huffman.encode(symbols, lengths, 36000)
    n = symbols.size

    def status(data, n, ends):
        return huffman.decode(np.asarray(data), n, np.asarray(ends), lengths)[1]

    assert status(data, n, ends) == bitpack.OK
    assert status(data[:-1], n, [*ends[:-1], ends[-1] - 1]) == bitpack.SHORT
    assert status(np.append(data, [0]), n, [*ends[:-1], ends[-1] + 1]) == bitpack.TRAILING
    assert status(data, n, [ends[0] - 1, *ends[1:]]) != bitpack.OK
    assert status(data, n, [0] * 7 + [ends[-1]]) != bitpack.OK
    assert status(data, n, [ends[-1]] * 8) != bitpack.OK
    assert status(np.zeros(0, np.uint8), n, [0] * 8) == bitpack.SHORT
    padded = huffman.encode(symbols[:3], lengths, 5)[0]
    assert status(padded | 0x80, 3, [1]) == bitpack.TRAILING


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("lengths", "text"),
    [
        # first 0, span 2; guess 2: one less 101, one more 100, same 0.
        ([1, 2, 2], "1011000"),
        # first 1, span 4; guess 3: two off -> 110 and 0 in 4 bits; 111 and gamma(2) = 010 (zero
        # bits after the leading one, lowest first); one more 100; same 0.
        ([0, 1, 0, 0, 2, 2], "11000001110101000"),
    ],
)
def test_a_table_bit_by_bit(lengths, text):
    data = write_lengths(np.array(lengths, np.uint8), -1)
    assert "".join(f"{b:08b}"[::-1] for b in data[2:])[: len(text)] == text
    assert len(data) == 2 + (len(text) + 7) // 8
    found, lone = read_lengths(Cursor(data), len(lengths))
    assert (found.tolist(), lone) == (lengths, -1)


def test_the_table_of_a_lone_symbol():
    data = write_lengths(np.zeros(300, np.uint8), 200)
    assert data == b"\xc8\x01\x00"
    found, lone = read_lengths(Cursor(data), 300)
    assert (int(found.max()), lone) == (0, 200)


def test_a_table_of_65536_symbols():
    lengths = np.full(65536, 16, np.uint8)
    data = write_lengths(lengths, -1)
    assert len(data) == 1 + 3 + 65536 // 8
    assert read_lengths(Cursor(data), 65536)[0].tolist() == lengths.tolist()


def test_bowls_take_two_bits_a_symbol():
    counts = np.bincount(np.clip(np.random.default_rng(0).normal(16, 5, 9999), 0, 31).astype(int))
    lengths = prefix_code.code_lengths(counts, 12)
    assert len(write_lengths(lengths, -1)) <= 10


@pytest.mark.parametrize(
    ("data", "alphabet", "error", "message"),
    [
        (b"", 4, TruncatedFile, "first symbol"),
        (b"\x04\x00", 4, CorruptFile, "over the limit of 3"),
        (b"\x01\x03", 4, CorruptFile, "over the limit of 2"),
        (b"\x00\x02", 4, TruncatedFile, "code lengths"),
        (b"\x00\x02\x00", 4, CorruptFile, "2\\*\\*-length is 0.75"),
        (b"\x00\x01\x05", 4, CorruptFile, "0 for symbol 0"),  # one less than one
        (b"\x00\x01\x07", 4, CorruptFile, "for symbol 0"),  # a run where a symbol must be
        (b"\x00\x01\x40", 4, CorruptFile, "padding"),
        (b"\x00\x00", 0, CorruptFile, "alphabet is empty"),
    ],
)
def test_impossible_tables_are_refused(data, alphabet, error, message):
    with pytest.raises(error, match=message):
        read_lengths(Cursor(data), alphabet)


def test_every_two_bytes_of_table_are_read_or_refused():
    for word in range(1 << 16):
        data = b"\x00\x09" + word.to_bytes(2, "little")
        try:
            lengths, lone = read_lengths(Cursor(data), 16)
        except FormatError:
            continue
        bits = [word >> i & 1 for i in range(16)]
        assert prefix_code.read_lengths_reference(bits, 10, 4) == lengths[:10].tolist()
        used = lengths[lengths > 0].astype(float)
        assert lone == -1
        assert (2.0**-used).sum() == 1
