"""Small tensors are coded together, and stay tensors of their own."""

import io

import numpy as np
import pytest

from espalier.compress import compress_checkpoint
from espalier.container import Reader, Writer, layout, write
from espalier.errors import CorruptFile
from espalier.interop import open_checkpoint
from espalier.state import CompressedModel, Dense

RNG = np.random.default_rng(0)


def dense(n, dtype="<f4", shape=None):
    values = RNG.normal(size=n).astype(dtype)
    return Dense(shape or (n,), values.dtype.name, values)


def written(tensors, **options):
    file = io.BytesIO()
    return file, write(CompressedModel(tensors), file, **options)


def test_they_come_back_in_their_order_and_share_no_memory():
    tensors = {
        "bias": dense(10),
        "weight": dense(5000),
        "scale": dense(6, "<f8", (2, 3)),
        "scalar": dense(1, shape=()),
        "steps": Dense((), "int64", np.array([3])),
        "norm": dense(20),
    }
    tensors["again"] = tensors["norm"]
    file, ledger = written(tensors)
    kinds = ["packed", "dense", "packed", "packed", "dense", "packed", "copy"]
    assert [row.kind for row in ledger] == kinds
    with Reader(file) as reader:
        assert reader.names() == list(tensors)
        arrays = reader.arrays()
        for name, tensor in tensors.items():
            for found in (arrays[name], reader.dense(name), reader.tensor(name).dense()):
                assert found.tobytes() == tensor.values.tobytes()
                assert found.shape == tensor.shape
                assert found.flags.writeable
        assert not any(
            np.shares_memory(arrays[a], arrays[b]) for a in tensors for b in tensors if a != b
        )
        arrays["norm"][:] = 0
        assert np.array_equal(reader.dense("again"), tensors["norm"].values)
        assert np.array_equal(reader.slice("scale", (1, slice(2))), tensors["scale"].dense()[1, :2])


def test_tied_names_share_an_array():
    file = io.BytesIO()
    write(CompressedModel({"a": dense(10), "b": dense(9000)}, {"c": "a", "d": "b"}), file)
    arrays = Reader(file).arrays()
    assert list(arrays) == ["a", "b", "c", "d"]
    assert arrays["a"] is arrays["c"]
    assert arrays["b"] is arrays["d"]


@pytest.mark.parametrize(
    "tensor",
    [
        dense(layout.SMALL),
        Dense((40,), "int64", np.arange(40)),
        Dense((40,), "bool", np.arange(40) % 3 == 0),
        Dense((40,), "float32", np.ones(40, "<f4")),
        Dense((40,), "float32", np.repeat(np.arange(4), 10).astype("<f4")),
        Dense((0, 3), "float32", np.zeros(0, "<f4")),
    ],
    ids=["large", "integers", "flags", "constant", "runs", "empty"],
)
def test_what_has_a_chunk_of_its_own(tensor):
    _, ledger = written({"x": tensor, "y": dense(9)})
    assert [row.kind for row in ledger] == ["dense", "packed"]


def test_a_pack_has_at_most_two_to_the_sixteen_elements():
    tensors = {f"t{i}": dense(4000) for i in range(50)}
    file, ledger = written(tensors)
    with Reader(file) as reader:
        packs = [entry for entry in reader._directory.entries if entry.kind == "pack"]
        assert sum(pack.stored for pack in packs) == 50 * 4000
        assert [pack.stored <= layout.MAX_PACK for pack in packs] == [True] * 4
        assert all(reader.dense(n).tobytes() == t.values.tobytes() for n, t in tensors.items())
        assert reader.ledger() == ledger


def test_shares_are_the_bytes_of_the_pack():
    file, ledger = written({f"t{i}": dense(1 + 37 * i) for i in range(30)})
    data = file.getvalue()
    with Reader(file) as reader:
        (pack,) = [entry for entry in reader._directory.entries if entry.kind == "pack"]
    shares = ledger.total("values_bytes") + ledger.total("tables_bytes")
    assert shares == pack.length
    assert ledger.total("total_bytes") + ledger.overhead == len(data)
    # Magic and version 9, number of features 1, of entries 1, footer 12: no byte is nobody's.
    assert ledger.overhead == 23
    each = [row.values_bytes / row.elements for row in ledger if row.elements > 300]
    assert max(each) < 1.02 * min(each)


def test_together_they_take_less():
    values = [dense(64) for _ in range(40)]
    _, ledger = written({f"t{i}": tensor for i, tensor in enumerate(values)})
    alone = [written({"t": tensor})[1].file_bytes - 23 for tensor in values]
    assert ledger.file_bytes < 0.93 * sum(alone)


def test_damage_is_told_of_each():
    file, _ = written({"a": dense(10), "b": dense(12)})
    data = bytearray(file.getvalue())
    data[12] ^= 1
    with Reader(io.BytesIO(bytes(data))) as reader:
        for name in ("a", "b"):
            for read in (reader.tensor, reader.row):
                with pytest.raises(CorruptFile, match=f"pack of tensor '{name}': the checksum"):
                    read(name)
        with pytest.raises(CorruptFile, match="pack of tensor 'a'"):
            reader.arrays()
        with pytest.raises(CorruptFile):
            reader.verify()


def test_files_and_tensors_without_a_name():
    file = io.BytesIO()
    first, second = dense(9), dense(8)
    with Writer(file) as writer:
        writer.add("", first)
        writer.file("", [b"text"])
        writer.add("second", second)
        writer.alias("tied", "")
    with Reader(file) as reader:
        assert reader.names() == ["", "second", "tied"]
        assert np.array_equal(reader.dense("tied"), first.values)
        assert np.array_equal(reader.dense("second"), second.values)
        assert b"".join(reader.file("")) == b"text"


def test_the_file_is_the_same_for_any_number_of_jobs(tmp_path):
    tensors = {f"layer{i}.bias": RNG.normal(size=3000).astype("<f4") for i in range(40)}
    np.savez(tmp_path / "x.npz", **tensors)
    for jobs in (1, 3):
        checkpoint = open_checkpoint(tmp_path / "x.npz")
        compress_checkpoint(checkpoint, tmp_path / f"{jobs}.esp", jobs=jobs)
    assert (tmp_path / "1.esp").read_bytes() == (tmp_path / "3.esp").read_bytes()
