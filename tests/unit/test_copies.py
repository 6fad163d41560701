"""Tensors that equal others are written once, and stay tensors of their own; files travel along."""

import io

import numpy as np
import pytest
import torch

import espalier
from espalier.compress import compress_checkpoint
from espalier.container import Reader, Writer, layout, write
from espalier.errors import InvalidArgument
from espalier.interop import open_checkpoint
from espalier.state import CompressedModel, Dense

VALUES = np.random.default_rng(0).normal(size=6000).astype("<f4")


def dense(values=VALUES, shape=None, dtype="float32"):
    return Dense(shape or values.shape, dtype, values)


def test_an_equal_tensor_takes_a_name_and_a_number():
    file = io.BytesIO()
    model = CompressedModel({"a": dense(), "b": dense(VALUES.copy()), "c": dense(-VALUES)})
    ledger = write(model, file)
    assert [row.kind for row in ledger] == ["dense", "copy", "dense"]
    # Shared prefix, new rest of one byte, kind, index.
    assert ledger["b"].total_bytes == ledger["b"].header_bytes == 3 + 1 + 2
    assert ledger["b"].original_bytes == VALUES.nbytes
    with Reader(file) as reader:
        assert reader.ledger() == ledger
        assert reader.names() == ["a", "b", "c"]
        assert dict(reader.aliases) == {}
        assert np.array_equal(reader.tensor("b").dense(), VALUES)
        assert np.array_equal(reader.slice("b", slice(3, 7)), VALUES[3:7])
        assert list(reader.model().tensors) == ["a", "b", "c"]


@pytest.mark.parametrize(
    "other",
    [
        dense(shape=(60, 100)),
        dense(VALUES.view("<i4"), dtype="int32"),
        dense(np.append(VALUES[:-1], np.nextafter(VALUES[-1], np.float32(9)))),
        dense(np.append(VALUES, VALUES[:1])),
    ],
)
def test_what_is_no_copy(other):
    assert [
        row.kind for row in write(CompressedModel({"a": dense(), "b": other}), io.BytesIO())
    ] == [
        "dense",
        "dense",
    ]


def test_zeros_of_two_signs_and_nans_are_others():
    bits = np.array([0, 1 << 31, 0x7FC00000, 0x7FC00001], "<u4")
    tensors = {str(i): dense(np.full(9, b, "<u4").view("<f4")) for i, b in enumerate(bits.tolist())}
    tensors |= {f"again {name}": tensor for name, tensor in tensors.items()}
    file = io.BytesIO()
    ledger = write(CompressedModel(tensors), file)
    assert [row.kind for row in ledger] == ["dense"] * 4 + ["copy"] * 4
    with Reader(file) as reader:
        for i, b in enumerate(bits.tolist()):
            assert (reader.tensor(f"again {i}").dense().view("<u4") == b).all()


def test_an_alias_of_a_copy():
    file = io.BytesIO()
    with Writer(file) as writer:
        writer.add("a", dense())
        writer.add("b", dense())
        writer.alias("c", "b")
    with Reader(file) as reader:
        assert dict(reader.aliases) == {"c": "b"}
        assert np.array_equal(reader.tensor("c").dense(), VALUES)


def test_equal_tensors_of_a_model_are_loaded_apart(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(30, 30), torch.nn.Linear(30, 30))
    model[1].load_state_dict(model[0].state_dict())
    ledger = espalier.save(model, tmp_path / "m.esp")
    assert [row.kind for row in ledger] == ["packed", "packed", "copy", "copy"]
    state = espalier.load(tmp_path / "m.esp")
    state["0.weight"].zero_()
    assert state["1.weight"].abs().min() > 0
    tied = torch.nn.Sequential(model[0], model[0])
    assert espalier.save(tied, tmp_path / "tied.esp").aliases
    assert len(espalier.save(tied, tmp_path / "tied.esp")) == 2


@pytest.mark.parametrize("bits", [None, 4])
def test_a_checkpoint_by_any_number_of_jobs(tmp_path, bits):
    again = {f"layers.{i}.w": VALUES.reshape(60, 100) * (i % 3) for i in range(12)}
    np.savez(tmp_path / "x.npz", **again)
    for jobs in (1, 3):
        found = compress_checkpoint(
            open_checkpoint(tmp_path / "x.npz"), tmp_path / f"{jobs}.esp", bits=bits, jobs=jobs
        )
        assert [row.kind for row in found.ledger][3:] == ["copy"] * 9
        assert found.ledger.original_bytes == 12 * VALUES.nbytes
    assert (tmp_path / "1.esp").read_bytes() == (tmp_path / "3.esp").read_bytes()


# ---------------------------------------------------------------- files


FILES = {
    "config.json": [b'{"a": 1}\n'],
    "dir/noise": [np.random.default_rng(1).bytes(700) for _ in range(9)],
    "none": [],
    "a": [b"", b"x"],
}


def with_files(**options):
    file = io.BytesIO()
    with Writer(file, **options) as writer:
        writer.add("a", dense())
        for name, pieces in FILES.items():
            writer.file(name, pieces)
        writer.add("b", dense())
        writer.alias("c", "a")
    return file, writer.ledger


@pytest.mark.parametrize("coder", ["auto", "fixed", "huffman", "context"])
def test_files_come_back(monkeypatch, coder):
    monkeypatch.setattr(layout, "PIECE", 1000)
    file, ledger = with_files(coder=coder)
    with Reader(file) as reader:
        assert reader.names() == ["a", "b", "c"]
        assert dict(reader.files) == {"config.json": 9, "dir/noise": 6300, "none": 0, "a": 1}
        for name, pieces in FILES.items():
            assert b"".join(reader.file(name)) == b"".join(pieces)
        assert [len(piece) for piece in reader.file("dir/noise")] == [1000] * 6 + [300]
        assert reader.ledger() == ledger
        reader.verify()
        with pytest.raises(InvalidArgument, match="has no file 'z'"):
            list(reader.file("z"))
    rows = sum(row.total_bytes for row in ledger) + sum(f.total_bytes for f in ledger.files)
    assert rows + ledger.overhead == ledger.file_bytes == len(file.getvalue())


def test_text_takes_about_what_zlib_makes_of_it():
    text = "".join(f'"token{i}": {i},\n' for i in range(20_000)).encode()
    file = io.BytesIO()
    with Writer(file) as writer:
        row = writer.file("vocab.json", [text])
    assert row.original_bytes == len(text)
    assert row.total_bytes < 0.3 * len(text)


def test_two_files_of_one_name():
    with Writer(io.BytesIO()) as writer:
        writer.file("a", [])
        with pytest.raises(InvalidArgument, match="two files are called 'a'"):
            writer.file("a", [])
        with pytest.raises(InvalidArgument, match=r"the file name .* over the limit"):
            writer.file("a" * 1025, [])
