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
    "context-v1": "7674b8f6d2ef74a47c364207b6c163562f6432031ef22f2a812fcd15df4839b4",
    "dtypes-v1": "059a9031bbf7d1b4a5fc3fa1df29a7f437f89351b3cbcc05ece0ad2ded150a3f",
    "lenet-fixed-v1": "b8b218c3119c34474946d87022c483bfeccf5cffc6bf05991ccd668bc68c6668",
    "lenet-huffman-v1": "2b3dd3f248a8e040d9b27247300289e22685366483f35418fd4999bcb2a93789",
    "neighbours-v1": "c10b5b9ac2f6749cc826efde3e80dbf55b89debac98756a000012d583fdf1bda",
    "nothing-v1": "1f94fd34eec5afa52d7caea8654bbbff2357e26fc7cbf3f908ad726f4c21d5d1",
    "repeats-v1": "aff06d01df109a35f536b51173b6382fc96ffbf98905477738505f5b40ff78da",
    "rans-v1": "9f3df2560dc63114fd0361a967a57f92c63a4937f95ad76a483213f594ef0059",
    "shapes-v1": "29de4c403bd89650bd58b49454bfc14eaa924a059f475ad435dab7203e2011bb",
    "sizes-v1": "2a617395b54620ed8c5993cc010936727bd111cb5f776bed965d18250cc21056",
    "sorted-v1": "1ed2e283df5dae805e058b9e242810248fa4ea0e1e2bf780e191294c0e4e2162",
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
    with Reader(HERE / "lenet-huffman-v1.esp") as reader:
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
    with Reader(HERE / "shapes-v1.esp") as reader:
        ledger = reader.ledger()
        assert reader.tensor("regular").dense()[:10].tolist() == [-3] + [0] * 8 + [-3]
        assert reader.tensor("one code").dense().tolist() == [-0.5] * 5000
    with Reader(HERE / "repeats-v1.esp") as reader:
        kinds = {row.name: row.kind for row in reader.ledger()}
        assert [kinds[name] for name in ("a", "b", "bias", "c.bias", "other", "flat")] == [
            *("sparse codebook", "copy", "dense", "copy", "copy", "dense")
        ]
        assert reader.entry("tied to a copy").name == "c.bias"
        assert b"".join(reader.file("config.json")) == b"{}\n"
        assert [len(piece) for piece in reader.file("a")] == [4000, 1000]
        assert reader.names()[:2] == ["a", "bias"]
        layouts = {stream.method >> 4 for name in kinds for stream in reader.entry(name).streams}
    assert 4 in layouts
    assert ledger["uniform"].codes_coder == "fixed"
    assert ledger["far"].positions_coder == "fixed"
    assert ledger.file_bytes == (HERE / "shapes-v1.esp").stat().st_size
