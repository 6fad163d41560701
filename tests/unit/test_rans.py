"""rANS, worked by hand: levels, frequencies, states, blocks, hostile payloads and tables."""

import numpy as np
import pytest

from espalier.entropy.coders.rans import Rans
from espalier.errors import CorruptFile, FormatError, TruncatedFile
from espalier.kernels import bitpack, rans, rans_decode
from espalier.kernels.frequencies import (
    best_levels,
    fill_frequencies,
    frequencies_reference,
    log2_table,
)
from espalier.kernels.levels import (
    read_levels,
    read_levels_reference,
    write_levels,
    write_levels_reference,
)


def frequencies_of(levels, log, precision):
    found = np.zeros(len(levels), np.int64)
    status = fill_frequencies(np.array(levels), log, precision, found)
    return found.tolist(), status


def bell(n, alphabet, seed=0):
    values = np.random.default_rng(seed).normal(alphabet / 2, alphabet / 7, n)
    dtype = np.uint8 if alphabet <= 256 else np.uint16
    return np.clip(values, 0, alphabet - 1).astype(dtype)


# ---------------------------------------------------------------- tables


def test_logarithms_are_exact_to_the_last_bit():
    table = log2_table()
    assert table[[1, 2, 4, 1 << 17]].tolist() == [0, 1 << 16, 2 << 16, 17 << 16]
    assert table[3] == 103872  # 1.584962... * 65536 = 103872.09
    f = np.arange(1, table.size)
    assert np.abs(table[1:] - np.log2(f) * 65536).max() < 1.001


@pytest.mark.parametrize(
    ("levels", "precision", "found"),
    [
        ([1, 1], 0, None),  # weights 0 and 0, and 14 left to share
        ([2, 2], 0, [8, 8]),
        ([2, 1, 0, 3], 0, [5, 1, 0, 10]),  # weights 1, 0, -, 2; 13 to share: 4, 4, 13
        ([3, 4], 0, [5, 11]),  # weights 2, 4; 14 to share: 4, 14
        ([5, 6], 1, [6, 10]),  # weights 4, 6: two to an octave; 14 to share: 5.6, 14
        ([1, 5], 0, [1, 15]),
        ([1] * 16, 0, [1] * 16),
        ([1] * 17, 0, None),
    ],
)
def test_frequencies_by_hand(levels, precision, found):
    frequencies, status = frequencies_of(levels, 4, precision)
    assert (status == bitpack.OK) == (found is not None)
    if found is not None:
        assert frequencies == found == frequencies_reference(levels, 4, precision)


def test_no_symbol_has_more_than_255_of_256():
    assert frequencies_of([1, 11], 10, 0)[1] == bitpack.RANGE  # 1 and 1023 of 1024
    coder = Rans()
    table = coder.fit(np.array([10**12, 1]))
    assert table.counts.max() <= (1 << table.log) * 255 // 256
    assert table.counts.sum() == 1 << table.log


def test_levels_bit_by_bit():
    # 2: 001; one more, 2: 001; the same, 0: 1; three less, 5: 000001.
    data = write_levels(np.array([3, 4, 4, 1]), 0)
    assert "".join(f"{byte:08b}"[::-1] for byte in data) == "0010011000001000"
    # 0: 1; one less: 01; a run of three, 2 + 1: 0 1 1; then 1: 01.
    data = write_levels(np.array([1, 0, 0, 0, 2]), 0)
    assert "".join(f"{byte:08b}"[::-1] for byte in data) == "10101101"


@pytest.mark.parametrize("precision", [0, 1, 3, 7])
def test_levels_come_back(precision):
    rng = np.random.default_rng(precision)
    for size in [2, 3, 50, 256]:
        most = (12 - precision + 1) << precision
        levels = np.maximum(rng.integers(-most // 4, most + 1, size), 0)
        levels[[0, -1]] = most, 1
        data = write_levels(levels, precision)
        assert data == write_levels_reference(levels.tolist(), precision)
        found = np.zeros(size, np.int64)
        status, used = read_levels(bitpack.bytes_of(data + b"x"), 12, precision, found)
        assert (found.tolist(), used, status) == (levels.tolist(), len(data), bitpack.OK)
        assert read_levels_reference(data, precision, size) == levels.tolist()


@pytest.mark.parametrize("alphabet", [2, 32, 256, 3000])
def test_the_table_costs_little(alphabet):
    counts = np.bincount(bell(20_000, alphabet), minlength=alphabet)
    used = np.flatnonzero(counts)
    coder = Rans()
    table = coder.fit(counts)
    assert table.counts[used].min() > 0
    assert table.counts.sum() == 1 << table.log
    p = counts[used] / counts.sum()
    bound = -counts[used] @ np.log2(p) / 8
    size = coder.bits(counts, table) / 8 + len(coder.write_table(table))
    states = table.log + 6  # bytes of eight
    assert size <= 1.003 * bound + 0.7 * used.size + states


def test_the_best_levels_depend_on_the_ratio_only_where_counts_are_huge():
    counts = np.array([3, 9, 4]) << 50
    log, precision, levels, frequencies = best_levels(counts, False)
    assert frequencies.sum() == 1 << log
    assert precision < log
    assert np.abs(frequencies / frequencies.sum() - counts / counts.sum()).max() < 0.01
    assert levels.min() > 0


@pytest.mark.parametrize(
    ("data", "alphabet", "error", "message"),
    [
        (b"", 4, TruncatedFile, "first symbol"),
        (b"\x04\x00", 4, CorruptFile, "over the limit of 3"),
        (b"\x01\x03", 4, CorruptFile, "over the limit of 2"),
        (b"\x00\x02", 4, TruncatedFile, "sum and precision"),
        (b"\x00\x02\x00", 4, TruncatedFile, "3 symbols is cut short"),
        (b"\x00\x02\x0e", 4, CorruptFile, r"2\*\*18"),
        (b"\x00\x02\x80", 4, CorruptFile, "precision of 8"),
        (b"\x00\x02\x40", 4, CorruptFile, "precision of 4"),
        (b"\x00\x01\x00\x03", 4, CorruptFile, "sum is"),  # levels 1 and 1
        (b"\x00\x01\x00\xff", 4, CorruptFile, "2 symbols"),  # padding of ones
        (b"\x00\x01\x00\x00\x00\x00", 4, CorruptFile, "2 symbols"),  # no level is so large
        (b"\x00\x00", 0, CorruptFile, "alphabet is empty"),
    ],
)
def test_impossible_tables_are_refused(data, alphabet, error, message):
    with pytest.raises(error, match=message):
        Rans().decode(data, 9, alphabet)


def test_every_two_bytes_of_table_are_read_or_refused():
    log, precision, found = 6, 1, 0
    for word in range(1 << 16):
        levels, frequencies = np.zeros((2, 6), np.int64)
        status, size = read_levels(np.array([word & 255, word >> 8], "u1"), log, precision, levels)
        if status == bitpack.OK:
            assert size <= 2
            if fill_frequencies(levels, log, precision, frequencies) == bitpack.OK:
                assert frequencies.sum() == 1 << log
                assert frequencies[[0, 5]].min() > 0
                found += 1
    assert found > 100


# ---------------------------------------------------------------- payloads


def test_a_state_by_hand():
    # M = 16, f = 12, 4: from 16, push 1: 4 * 16 + 12 + 0 = 76; push 0: 6 * 16 + 0 + 4 = 100.
    frequencies = np.array([12, 4])
    assert rans.encode_reference([0, 1], frequencies, 4) == [([100], [])]
    # 100 = 64 + 36: 6 in six bits, then 36 in six.
    (block,) = rans.encode(np.array([0, 1], np.uint8), frequencies, 4)
    assert block == rans.bytes_reference([100], []) == (6 | 36 << 6).to_bytes(2, "little")
    assert rans_decode.decode_reference([100], [], frequencies, 4, 2) == [0, 1]


def test_division_by_multiplication():
    frequencies = np.array([1, 2, 3, 5, 7, 4095, 4096, 4097, 65535, 131071])
    for f, (r, s) in zip(
        frequencies.tolist(), rans.encode_table(frequencies)[:, 2:].tolist(), strict=True
    ):
        for x in [
            0,
            1,
            f - 1,
            f,
            f + 1,
            10**9,
            10**18 // f * f - 1,
            2**63 - 1,
            (2**63 - 1) // f * f,
        ]:
            assert (x * r) >> (63 + s) == x // f


@pytest.mark.parametrize("alphabet", [2, 40, 256, 257, 5000, 40_000])
@pytest.mark.parametrize("n", [1, 2, 3, 16, 1000, 1001, 4095, 4096, 4097, 70_001])
def test_fast_and_slow_agree(alphabet, n):
    symbols = bell(n, alphabet, n)
    counts = np.bincount(symbols, minlength=alphabet)
    counts[:2] += 1
    if alphabet == 40_000:
        counts += 1  # so many symbols need a sum beyond 2**15, and a look after each of them
    table = Rans().fit(counts)
    found = rans.encode_reference(symbols.tolist(), table.counts, table.log)
    blocks = rans.encode(symbols, table.counts, table.log)
    assert blocks == [rans.bytes_reference(*block) for block in found]
    body = Rans().write_table(table) + Rans().encode(symbols, table)
    assert np.array_equal(Rans().decode(body, n, alphabet)[0], symbols)
    slow = rans_decode.decode_reference(*found[0], table.counts, table.log, n)
    assert slow == symbols.tolist()


def test_several_blocks():
    n = rans.BLOCK + 5
    assert np.diff(rans.block_starts(n)).tolist() == [524291, 524290]
    symbols = (np.arange(n) % 7 % 3).astype(np.uint8)
    coder = Rans()
    table = coder.fit(np.bincount(symbols))
    written, payload = coder.write_table(table), coder.encode(symbols, table)
    assert np.array_equal(coder.decode(written + payload, n, 3)[0], symbols)
    cut = bytearray(payload)
    cut[0] ^= 1  # bytes of the first block
    with pytest.raises(FormatError):
        coder.decode(written + bytes(cut), n, 3)
    with pytest.raises(TruncatedFile, match="cannot lie"):
        coder.decode(written + payload, 100 * n, 3)


def test_states_that_grow_at_different_rates_begin_higher():
    # Seven states see next to no bits; the eighth has given words away before they are at 2**31.
    n = 1 << 13
    symbols = np.where(np.arange(n) % 8 == 3, np.arange(n) // 8 % 16, 0).astype(np.uint8)
    counts = np.array([10**6] + [1] * 15)
    table = Rans().fit(counts)
    found = rans.encode_reference(symbols.tolist(), table.counts, table.log)
    blocks = rans.encode(symbols, table.counts, table.log)
    assert blocks == [rans.bytes_reference(*block) for block in found]
    assert min(found[0][0]) >= rans.LOW
    assert rans_decode.decode_reference(*found[0], table.counts, table.log, n) == symbols.tolist()
    body = Rans().write_table(table) + Rans().encode(symbols, table)
    assert np.array_equal(Rans().decode(body, n, 16)[0], symbols)


@pytest.mark.parametrize("n", [50, 3000, 70_000])
def test_hostile_payloads(n):
    symbols = bell(n, 32)
    coder = Rans()
    table = coder.fit(np.bincount(symbols, minlength=32))
    written, payload = coder.write_table(table), coder.encode(symbols, table)
    rng = np.random.default_rng(n)
    for at in {0, 1, 7, 8, 63, 64, len(payload) - 1, *rng.integers(0, len(payload), 20).tolist()}:
        if at < len(payload):
            flipped = bytearray(payload)
            flipped[at] ^= 1 << rng.integers(0, 8)
            # A flip may make other symbols of it, which is for a checksum to see.
            try:
                found, _ = coder.decode(written + bytes(flipped), n, 32)
            except FormatError:
                continue
            assert not np.array_equal(found, symbols)
    for other in [n - 1, n + 1]:
        with pytest.raises(FormatError):
            coder.decode(written + payload, other, 32)


def test_a_state_has_one_form():
    coder = Rans()
    table = coder.fit(np.array([12, 4]))
    written = coder.write_table(table)
    state = coder.encode(np.array([0, 1], np.uint8), table)
    assert coder.decode(written + state, 2, 2)[0].tolist() == [0, 1]
    # A byte too many; over 2**63; below 2**31 behind a word.
    for payload in (state + b"\x00", b"\xff" * 8, b"\x00" * 4 + b"\x64" + b"\x00" * 4):
        with pytest.raises(CorruptFile, match="not one of 2 symbols"):
            coder.decode(written + payload, 2, 2)
