"""rANS: decode(encode(x)) = x, kernel = reference, sizes near the bound, on generated input."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from espalier.entropy.coders.rans import Rans
from espalier.kernels import rans, rans_decode
from espalier.kernels.bitpack import bytes_of
from espalier.kernels.frequencies import fill_frequencies, frequencies_reference
from espalier.kernels.levels import (
    read_levels,
    read_levels_reference,
    write_levels,
    write_levels_reference,
)

thorough = settings(deadline=None, max_examples=150)

COUNTS = st.lists(
    st.one_of(st.just(0), st.integers(1, 9), st.integers(1, 10**12)), min_size=2, max_size=70
).filter(lambda counts: sum(c > 0 for c in counts) > 1)


@thorough
@given(COUNTS)
def test_tables(counts):
    coder = Rans()
    table = coder.fit(np.array(counts, np.int64))
    assert int(table.counts.sum()) == 1 << table.log
    assert [f > 0 for f in table.counts.tolist()] == [c > 0 for c in counts]
    levels = table.levels.tolist()
    slow = frequencies_reference(levels, table.log, table.precision)
    assert slow == table.counts[table.first :][: len(levels)].tolist()


@thorough
@given(st.data(), st.integers(0, 7), st.integers(8, 17))
def test_levels(data, precision, log):
    most = (log - precision + 1) << precision
    level = st.one_of(st.just(0), st.integers(0, 4), st.integers(0, most))
    middle = data.draw(st.lists(level, max_size=60))
    ends = data.draw(st.tuples(st.integers(1, most), st.integers(1, most)))
    levels = [ends[0], *middle, ends[1]]
    written = write_levels(np.array(levels), precision)
    assert written == write_levels_reference(levels, precision)
    buffer = bytes_of(written)
    found = np.zeros(len(levels), np.int64)
    status, size = read_levels(buffer, log, precision, found)
    assert (found.tolist(), size, status) == (levels, len(written), 0)
    assert read_levels_reference(written, precision, len(levels)) == levels
    frequencies = np.zeros(len(levels), np.int64)
    if fill_frequencies(found, log, precision, frequencies) == 0:
        assert frequencies.sum() == 1 << log
        assert frequencies.tolist() == frequencies_reference(levels, log, precision)


@thorough
@given(COUNTS, st.lists(st.integers(0, 10**9), min_size=1, max_size=300), st.booleans())
def test_payloads(counts, draws, wide):
    used = np.flatnonzero(counts)
    symbols = used[np.array(draws) % used.size].astype(np.uint16 if wide else np.uint8)
    padded = np.zeros(300 if wide else len(counts), np.int64)
    padded[: len(counts)] = counts
    coder = Rans()
    table = coder.fit(padded)
    found = rans.encode_reference(symbols.tolist(), table.counts, table.log)
    blocks = rans.encode(symbols, table.counts, table.log)
    assert blocks == [rans.bytes_reference(*block) for block in found]
    payload = coder.encode(symbols, table)
    body = coder.write_table(table) + payload
    assert np.array_equal(coder.decode(body, symbols.size, padded.size)[0], symbols)
    assert (
        rans_decode.decode_reference(*found[0], table.counts, table.log, symbols.size)
        == symbols.tolist()
    )
    bits = np.log2((1 << table.log) / table.counts[symbols]).sum()
    assert 8 * len(payload) <= bits + table.log + 8 + symbols.size * 0.01 + 8
