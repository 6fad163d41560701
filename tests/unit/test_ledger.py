"""The ledger adds up, on real files, and its columns are those of the paper."""

import io
import json
from math import ceil

import numpy as np
import pytest

from espalier.analysis.tables import layers_of
from espalier.container import Reader, write
from espalier.entropy import entropy_bits
from espalier.state import Codebook, CompressedModel, Dense, Sparse, SparseCodebook

RNG = np.random.default_rng(0)
LEVELS = np.sort(RNG.normal(0, 0.1, 32)).astype("<f4")


def sparse(n=23_520, density=0.08):
    kept = np.flatnonzero(RNG.random(n) < density)
    codes = np.clip(RNG.normal(16, 5, kept.size), 0, 31).astype(np.uint8)
    return SparseCodebook((n,), "float32", kept, codes, LEVELS)


def model():
    return CompressedModel(
        {
            "fc.weight": sparse(),
            "fc.bias": Dense((30,), "float32", RNG.normal(0, 1, 30).astype("<f4")),
            "conv": Codebook((500,), "float32", RNG.integers(0, 32, 500).astype("u1"), LEVELS),
            "exact": Sparse((9,), "float16", np.array([0, 8]), np.array([1, 2], "<f2")),
        },
        {"tied": "fc.weight"},
        {"made by": "a test"},
    )


@pytest.mark.parametrize("coder", ["fixed", "huffman"])
def test_the_rows_and_the_overhead_are_the_file(tmp_path, coder):
    path = tmp_path / "model.esp"
    ledger = write(model(), path, coder=coder)
    assert ledger.file_bytes == path.stat().st_size
    parts = ("header", "positions", "codes", "codebook", "tables", "values")
    for row in ledger:
        assert row.total_bytes == sum(getattr(row, f"{part}_bytes") for part in parts)
    total = sum(row.total_bytes for row in ledger)
    assert total + ledger.overhead == path.stat().st_size
    # Magic 8, version 1, number of features 1, of tensors 1, footer 12.
    aliases = 2 + 1 + (3 + len("tied")) + 1
    metadata = 2 + len('{"made by":"a test"}')
    assert ledger.overhead == 23 + aliases + metadata


def test_the_reader_makes_the_same_ledger():
    file = io.BytesIO()
    written = write(model(), file)
    assert Reader(file).ledger() == written
    assert Reader(file).row("tied") == written["fc.weight"]
    with pytest.raises(KeyError):
        written["fc9"]


def test_the_columns_of_the_paper():
    tensor = sparse()
    n = tensor.stored
    row = write(CompressedModel({"w": tensor}), io.BytesIO())["w"]
    gaps = np.diff(tensor.positions, prepend=-1) - 1
    assert row.keep == n / 23_520
    assert row.code_bits == 5
    assert row.codes_bits_entropy == pytest.approx(entropy_bits(tensor.codes))
    assert row.positions_bits_entropy == pytest.approx(entropy_bits(gaps))
    # Coded sizes hold their tables, and end between the bound and the fixed width.
    assert row.codes_bits_entropy / n < row.code_bits_coded < 5
    assert row.positions_bits_entropy / n < row.gap_bits_coded
    assert row.gap_bits_coded < row.gap_bits * (1 + row.fillers / n)
    assert row.code_bits_coded * n / 8 == row.codes_bytes + row.codes_tables_bytes
    # The fixed width is the one that makes gaps and codes together smallest.
    sizes = {b: (b + 5) * (gaps // (2**b - 1) + 1).sum() for b in range(1, 16)}
    assert row.gap_bits == min(sizes, key=sizes.get)
    assert row.fillers == (gaps // (2**row.gap_bits - 1)).sum()
    written = n + row.fillers
    index = ceil(row.gap_bits * written / 8)
    assert row.bytes_p == row.header_bytes + 4 * written + index
    assert row.bytes_pq == row.header_bytes + ceil(5 * written / 8) + index + 4 * 32
    assert row.bytes_pqh == row.total_bytes < row.bytes_pq < row.bytes_p


def test_dense_tensors_have_no_stages_but_bytes():
    ledger = write(model(), io.BytesIO())
    row = ledger["fc.bias"]
    assert (row.keep, row.levels, row.code_bits, row.gap_bits) == (1.0, 0, 0, 0)
    assert row.bytes_p == row.bytes_pq == row.header_bytes + 120
    row = ledger["conv"]
    assert row.bytes_p == row.header_bytes + 2000
    assert row.bytes_pq == row.header_bytes + ceil(500 * 5 / 8) + 128


def test_totals_and_ratio():
    ledger = write(model(), io.BytesIO())
    assert ledger.original_bytes == 4 * 23_520 + 120 + 2000 + 18  # the tied one once
    assert ledger.ratio == ledger.original_bytes / ledger.file_bytes
    assert ledger.bytes_p == ledger.total("bytes_p") + ledger.overhead
    assert ledger.stored == sum(row.stored for row in ledger)
    assert len(ledger) == 4


def test_streams_that_fell_back_say_so():
    codes = RNG.integers(0, 256, 4000).astype("u1")
    levels = np.arange(256, dtype="<f4")
    ledger = write(
        CompressedModel({"x": Codebook((4000,), "float32", codes, levels)}), io.BytesIO()
    )
    assert ledger["x"].codes_coder == "fixed"
    ledger = write(model(), io.BytesIO(), coder="huffman")
    assert ledger["fc.weight"].codes_coder == ledger["fc.weight"].positions_coder == "huffman"
    ledger = write(model(), io.BytesIO(), coder="fixed")
    assert {row.codes_coder for row in ledger} == {"fixed", ""}


def test_json_round_trip():
    ledger = write(model(), io.BytesIO())
    found = json.loads(ledger.to_json())
    assert found["file_bytes"] == ledger.file_bytes
    assert found["aliases"] == {"tied": "fc.weight"}
    rows = found["tensors"]
    assert sum(row["total_bytes"] for row in rows) + found["overhead"] == found["file_bytes"]
    assert rows[0]["shape"] == [23_520]
    assert rows[0]["keep"] == ledger["fc.weight"].keep


def test_the_ledger_of_nothing():
    ledger = write(CompressedModel({}), io.BytesIO())
    assert (ledger.file_bytes, ledger.overhead, ledger.original_bytes) == (23, 23, 0)
    assert ledger.ratio == 0.0


def test_the_paper_s_total_is_of_pruned_and_shared_tensors_alone():
    weights = sparse(density=0.05)
    biases = {
        f"{name}.bias": Dense((40,), "float32", RNG.normal(0, 1, 40).astype("<f4"))
        for name in ("fc", "other")
    }
    ledger = write(CompressedModel({"fc.weight": weights} | biases), io.BytesIO()).to_dict()
    assert {row["kind"] for row in ledger["tensors"]} == {"sparse codebook", "packed"}
    layers, total = layers_of(ledger)
    assert total.keep == layers[0].columns.keep == 100 * weights.stored / weights.size
    assert total.weight_bits == 5
