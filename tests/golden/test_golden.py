"""Files of the past decode to the same bits, for ever. They are made by ``make.py``, not here."""

import hashlib
import importlib.util
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest

from espalier.container import Reader, write
from espalier.container.layout import DTYPE_IDS
from espalier.state import Codebook, CompressedModel

HERE = Path(__file__).parent

DECODER = HERE.parents[1] / "docs" / "reference_decoder.py"
_spec = importlib.util.spec_from_file_location("reference_decoder", DECODER)
reference_decoder = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(reference_decoder)

# SHA-256 of each file, so that none is replaced unseen; a missing one fails.
GOLDEN = {
    "context-v2": "ae6c166d0cf5272588948aa6f76bc03a91e2162f2814ea0be48a743ed5f96979",
    "dtypes-v2": "3f8f17e87fe3a3307de9f77ca61411d187db6e2fb4fcf78bafe782ebb2dafa87",
    "lenet-fixed-v2": "a93d26fcc43b3a8840b5ed9af14428e78af0e7e66f6589661ae8d4005a592205",
    "lenet-huffman-v2": "671f8f6a8756b8731a029683ebb5409901a1bb2f3a9da1a65342e1220bffc723",
    "neighbours-v2": "7e822b1e85f24c768ca516bd741d2d2576bf7117927f80a649397c92f948e416",
    "nothing-v2": "701187bd8a462c49ca4982c7874ebc02869ee6654f3f50683c36b5caa071f5f0",
    "numbers-rans-v2": "8e20d4481e532b71c6d17352be682eccbcbc82ae28a67c61f6d1d41daa8596fd",
    "numbers-v2": "07ba4493dc6e9a3e8ba15c91be3c01358690dd193a47897615c83983996464f7",
    "packs-v2": "00ac12ec61326e5fb7c03ec91d43e171328ed63adf268ebcdcf3177946ea536b",
    "rans-v2": "8db16e574091ecbabaa46d70991e0c951797e5d9b720e856af2ce2b3d21bd940",
    "repeats-v2": "17505f006aaa26d7cbdeb40bb2595d8ed6741a5e78bafaabf1a752674998b18e",
    "shapes-v2": "ad9d6947172ab48e66f16f5a39884052f10ac8128780e67e3b292dc314ce4c64",
    "sizes-v2": "cd632c710658b4cfa62497ede249e979eb7f4e415a94f4dcafe73ef2f670939e",
    "sorted-v2": "a17366e7f05b808802db7a1c7d28834407de98dc8bb40d3246bc89344ea64499",
}


@pytest.mark.parametrize("name", GOLDEN)
def test_the_file_is_the_one_that_was_checked_in(name):
    data = (HERE / f"{name}.esp").read_bytes()
    assert hashlib.sha256(data).hexdigest() == GOLDEN[name]


@pytest.mark.parametrize("name", GOLDEN)
def test_it_decodes_to_the_same_bits(name):
    expected = np.load(HERE / f"{name}.npz")
    with Reader(HERE / f"{name}.esp") as reader:
        tensors = [name for name in expected if not name.startswith("file:")]
        assert [n for n in reader.names() if n not in reader.aliases] == tensors
        for tensor in tensors:
            assert reader.tensor(tensor).dense().tobytes() == expected[tensor].tobytes()
        assert [f"file:{name}" for name in reader.files] == list(expected)[len(tensors) :]
        for name in reader.files:
            assert b"".join(reader.file(name)) == expected[f"file:{name}"].tobytes()


@pytest.mark.parametrize("name", GOLDEN)
def test_a_decoder_written_from_the_specification_agrees(name):
    found = reference_decoder.read((HERE / f"{name}.esp").read_bytes())
    tensors, aliases, metadata, files = found
    with Reader(HERE / f"{name}.esp") as reader:
        assert list(tensors) == [n for n in reader.names() if n not in reader.aliases]
        assert aliases == dict(reader.aliases)
        assert json.loads(metadata) == dict(reader.metadata)
        for tensor, (dtype, shape, data) in tensors.items():
            found = reader.tensor(tensor)
            assert DTYPE_IDS[found.dtype] == dtype
            assert found.shape == tuple(shape)
            assert found.dense().tobytes() == data
        assert files == {name: b"".join(reader.file(name)) for name in reader.files}


def test_the_decoder_is_short_and_stands_alone():
    text = DECODER.read_text()
    assert len(text.splitlines()) < 400
    assert not re.search(r"^\s*(import|from) +(espalier|numpy|numba)", text, re.MULTILINE)


def test_the_decoder_reads_payloads_of_several_blocks_and_runs():
    """Too large for a golden file: what takes more than 2**20 symbols."""
    symbols = np.random.default_rng(0).binomial(15, 0.4, (1 << 20) + 9).astype("u1")
    for coder in ("huffman", "rans"):
        file = io.BytesIO()
        codebook = np.arange(16).astype("<f2")
        model = CompressedModel({"x": Codebook(symbols.shape, "float16", symbols, codebook)})
        write(model, file, coder=coder)
        tensors, _, _, _ = reference_decoder.read(file.getvalue())
        assert tensors["x"][2] == codebook[symbols].tobytes(), coder


def test_every_golden_file_is_tested():
    assert {path.stem for path in HERE.glob("*.esp")} == set(GOLDEN)
    assert {path.stem for path in HERE.glob("*.npz")} == set(GOLDEN)


def test_what_is_in_them():
    """By hand, so that the expected values do not hang on the maker alone."""
    with Reader(HERE / "lenet-huffman-v2.esp") as reader:
        assert reader.names() == [
            "conv1.weight",
            "conv1.bias",
            "ip1.weight",
            "ip1.bias",
            "ip2.weight",
            "steps",
            "tied.weight",
        ]
        assert dict(reader.aliases) == {"tied.weight": "ip1.weight"}
        assert dict(reader.metadata) == {"net": "LeNet", "é": [1, None]}
        assert reader.tensor("steps").dense() == 12345
        assert reader.tensor("conv1.weight").shape == (20, 1, 5, 5)
        assert reader.tensor("tied.weight").dense().shape == (60, 100)
        coders = {row.codes_coder for row in reader.ledger()}
    assert coders == {"huffman", ""}
    with Reader(HERE / "shapes-v2.esp") as reader:
        ledger = reader.ledger()
        assert reader.tensor("regular").dense()[:10].tolist() == [-3] + [0] * 8 + [-3]
        assert reader.tensor("one code").dense().tolist() == [-0.5] * 5000
    with Reader(HERE / "repeats-v2.esp") as reader:
        kinds = {row.name: row.kind for row in reader.ledger()}
        assert [kinds[name] for name in ("a", "b", "bias", "c.bias", "other", "flat")] == [
            *("sparse codebook", "copy", "packed", "copy", "copy", "packed")
        ]
        assert reader.entry("tied to a copy").name == "c.bias"
        assert b"".join(reader.file("config.json")) == b"{}\n"
        assert [len(piece) for piece in reader.file("a")] == [4000, 1000]
        assert reader.names()[:2] == ["a", "bias"]
        layouts = {stream.method >> 4 for name in kinds for stream in reader.entry(name).streams}
    assert 4 in layouts
    with Reader(HERE / "numbers-v2.esp") as reader:
        binary, group = reader.tensor("binary"), reader.tensor("again")
        assert [len(set(np.abs(row))) for row in binary.dense()] == [1] * 10
        assert (binary.axis, binary.bits, group.axis, group.bits) == (0, 2, None, 4)
        assert group.dense()[0, 17] == group.integers()[0, 17] * group.scales[1]
        assert reader.tensor("affine").zeros.any()
    assert ledger["uniform"].codes_coder == "fixed"
    assert ledger["far"].positions_coder == "fixed"
    assert ledger.file_bytes == (HERE / "shapes-v2.esp").stat().st_size
