"""Writing and reading files: all kinds, names, metadata, errors, and writes that never tear."""

import io
import os
import stat
import threading

import numpy as np
import pytest

from espalier.container import Reader, Writer, atomic_write, layout, read, write
from espalier.errors import InvalidArgument, UnknownMethod
from espalier.state import (
    STORAGE_DTYPES,
    Codebook,
    CompressedModel,
    CompressedTensor,
    Dense,
    Sparse,
    SparseCodebook,
    storage_dtype,
)

RNG = np.random.default_rng(0)


def dense(values, dtype="float32", shape=None):
    array = np.asarray(values).astype(storage_dtype(dtype)).reshape(-1)
    return Dense(np.shape(values) if shape is None else shape, dtype, array)


def model():
    kept = np.flatnonzero(RNG.random(300 * 78) < 0.08)
    codes = np.clip(RNG.normal(16, 5, kept.size), 0, 31).astype(np.uint8)
    levels = np.sort(RNG.normal(0, 0.1, 32)).astype("<f4")
    return CompressedModel(
        {
            "fc1.weight": SparseCodebook((300, 78), "float32", kept, codes, levels),
            "fc1.bias": dense(RNG.normal(0, 0.1, 300)),
            "steps": dense(12345, "int64"),
            "conv.weight": Codebook(
                (20, 1, 5, 5), "float32", RNG.integers(0, 32, 500).astype("u1"), levels
            ),
            "exact": Sparse(
                (9, 9), "bfloat16", np.array([0, 5, 80]), np.array([1, 2, 0x8000], "<u2")
            ),
            "nothing": dense(np.zeros((0, 3))),
        },
        {"tied": "fc1.weight"},
        {"model": "LeNet", "error": 0.0158},
    )


def same(a: CompressedTensor, b: CompressedTensor) -> bool:
    return (
        type(a) is type(b)
        and (a.shape, a.dtype) == (b.shape, b.dtype)
        and a.dense().tobytes() == b.dense().tobytes()
        and a.dense().dtype == b.dense().dtype
    )


@pytest.mark.parametrize("coder", ["fixed", "huffman"])
def test_a_model_comes_back_as_it_was(tmp_path, coder):
    before = model()
    path = tmp_path / "model.esp"
    ledger = write(before, path, coder=coder)
    assert ledger.file_bytes == path.stat().st_size
    after = read(path)
    assert list(after.tensors) == list(before.tensors)
    assert after.aliases == before.aliases
    assert after.metadata == before.metadata
    assert all(same(before[name], after[name]) for name in before.names())
    for part in ("positions", "codes", "codebook"):
        first, second = (getattr(m["fc1.weight"], part) for m in (before, after))
        assert np.array_equal(first, second)
        assert first.dtype == second.dtype


@pytest.mark.parametrize("dtype", STORAGE_DTYPES)
@pytest.mark.parametrize("n", [0, 1, 3, 500])
def test_every_dtype_is_exact(dtype, n):
    storage = storage_dtype(dtype)
    bits = RNG.integers(0, 2 if dtype == "bool" else 256, n * storage.itemsize).astype("u1")
    values = bits.view(storage)  # NaN payloads, signed zeros, denormals and all
    kept = np.arange(0, 3 * n, 3)
    one_code = np.zeros(n, "u1")
    file = io.BytesIO()
    tensors = {
        "dense": Dense((n, 1), dtype, values),
        "sparse": Sparse((3 * n,), dtype, kept, values),
    }
    if n:
        tensors["codebook"] = Codebook((n,), dtype, one_code, values[:1].copy())
        tensors["constant"] = Dense((n,), dtype, np.repeat(values[:1], n))
    write(CompressedModel(tensors), file)
    back = read(file)
    assert all(same(tensors[name], back[name]) for name in tensors)


def test_every_dtype_has_a_number_of_its_own():
    assert set(layout.DTYPE_IDS) == set(STORAGE_DTYPES)
    assert sorted(layout.DTYPE_IDS.values()) == list(range(1, 18))


@pytest.mark.parametrize("shape", [(), (1,), (0,), (2, 0, 3), (1,) * 15, (2, 3, 1, 5)])
def test_every_shape(shape):
    file = io.BytesIO()
    values = np.arange(int(np.prod(shape)), dtype="<f4")
    write(CompressedModel({"x": Dense(shape, "float32", values)}), file)
    assert read(file)["x"].dense().shape == shape


@pytest.mark.parametrize("density", [0.0, 0.001, 0.05, 0.5, 0.97, 1.0])
def test_every_density(density):
    kept = np.flatnonzero(RNG.random(70_000) < density)
    codes = RNG.integers(0, 8, kept.size).astype("u1")
    tensor = SparseCodebook((70_000,), "float32", kept, codes, np.arange(8, dtype="<f4"))
    file = io.BytesIO()
    ledger = write(CompressedModel({"x": tensor}), file)
    assert same(read(file)["x"], tensor)
    row = ledger["x"]
    if kept.size > 1000:
        bound = min(row.positions_bits_entropy, 70_000) / 8
        assert row.positions_bytes < 1.2 * bound + 60


def test_regular_gaps_and_one_code_still_pay_a_bit_each():
    # Otherwise 20 bytes could ask for any amount of memory, and a reader would refuse them.
    n = 100_000
    codes, levels = np.zeros(n, "u1"), np.ones(1, "<f4")
    tensor = SparseCodebook((4 * n,), "float32", np.arange(n) * 4, codes, levels)
    file = io.BytesIO()
    write(CompressedModel({"x": tensor}), file)
    assert same(read(file)["x"], tensor)
    assert len(file.getvalue()) > n / 8


def test_a_constant_tensor_takes_no_space_and_no_memory():
    file = io.BytesIO()
    codes = np.zeros(1_000_000, "u1")
    tensors = {
        "zeros": dense(np.zeros((1000, 1000))),
        "one code": Codebook((1000, 1000), "float32", codes, np.ones(1, "<f4")),
    }
    ledger = write(CompressedModel(tensors), file)
    assert ledger.file_bytes < 100
    back = read(file)
    assert back["zeros"].values.strides == (0,)
    assert back["one code"].codes.strides == (0,)
    assert all(same(back[name], tensors[name]) for name in tensors)


def test_streaming_to_a_pipe_needs_no_seek():
    class Pipe(io.RawIOBase):
        def __init__(self):
            super().__init__()
            self.data = bytearray()

        def writable(self):
            return True

        def write(self, data):
            self.data += data
            return len(data)

    pipe = Pipe()
    write(model(), pipe)
    file = io.BytesIO()
    write(model_again := read(io.BytesIO(bytes(pipe.data))), file)
    assert file.getvalue() == bytes(pipe.data)
    assert not pipe.closed
    assert model_again.names()[-1] == "tied"


def test_one_tensor_is_read_without_the_others(tmp_path):
    path = tmp_path / "model.esp"
    write(model(), path)

    class Counted(io.FileIO):
        reads: list[tuple[int, int]] = []

        def read(self, size=-1):
            self.reads.append((self.tell(), size))
            return super().read(size)

        def readinto(self, buffer):
            self.reads.append((self.tell(), len(buffer)))
            return super().readinto(buffer)

    with Counted(path) as file:
        reader = Reader(file)
        assert len(file.reads) <= 3
        file.reads.clear()
        entry = reader.entry("fc1.weight")
        reader.tensor("fc1.weight")
        assert file.reads == [(entry.offset, entry.length)]
        file.reads.clear()
        pack, _ = reader._directory.packed["fc1.bias"]
        for _ in range(2):  # the second time it is known
            reader.tensor("fc1.bias")
            assert file.reads == [(pack.offset, pack.length)]
    assert reader.entry("tied").shape == (300, 78)


def test_a_file_object_with_the_least_there_is():
    whole = io.BytesIO()
    write(model(), whole)

    class Least:
        def __init__(self):
            self.read, self.seek = whole.read, whole.seek

    want = Reader(whole).model().dense()
    assert all(np.array_equal(a, want[n]) for n, a in Reader(Least()).model().dense().items())


def test_tensors_share_no_memory_with_the_buffer_that_chunks_are_read_into(tmp_path):
    write(model(), tmp_path / "model.esp")
    with Reader(tmp_path / "model.esp") as reader:
        before = {name: reader.dense(name) for name in reader.names()}
        copies = {name: array.copy() for name, array in before.items()}
        reader._scratch.buffer[:] = 0
        assert all(np.array_equal(before[name], copies[name]) for name in before)


def test_a_long_directory(tmp_path):
    tensors = {f"block.{i}.norm.running_mean": dense([i]) for i in range(3000)}
    path = tmp_path / "many.esp"
    ledger = write(CompressedModel(tensors), path)
    assert list(read(path).tensors) == list(tensors)
    assert ledger.total("header_bytes") < 3000 * 20


def test_the_overhead_of_a_file_is_small():
    file = io.BytesIO()
    assert write(CompressedModel({}), file).file_bytes == 23
    ledger = write(CompressedModel({"conv1.weight": dense(np.arange(10.0))}), io.BytesIO())
    assert ledger["conv1.weight"].header_bytes <= 30  # the only one in its pack


# ---------------------------------------------------------------- what a writer refuses


def test_a_writer_refuses_what_a_file_cannot_hold():
    with Writer(io.BytesIO()) as w:
        w.add("a", dense([1.0]))
        w.alias("b", "a")
        for name in ("a", "b"):
            with pytest.raises(InvalidArgument, match=f"two tensors are called '{name}'"):
                w.add(name, dense([1.0]))
            with pytest.raises(InvalidArgument, match="two tensors"):
                w.alias(name, "a")
        with pytest.raises(InvalidArgument, match="names 'z', which is not there"):
            w.alias("c", "z")
        with pytest.raises(InvalidArgument, match="over the limit of 1024"):
            w.add("x" * 1025, dense([1.0]))
        with pytest.raises(InvalidArgument, match="not Unicode"):
            w.add("\udc80", dense([1.0]))
        with pytest.raises(InvalidArgument, match="15 dimensions"):
            w.add("deep", dense([1.0], shape=(1,) * 16))
        big = Codebook((1,), "float32", np.zeros(1, "u1"), np.zeros(65537, "<f4"))
        with pytest.raises(InvalidArgument, match="tensor 'big': a codebook of 65537"):
            w.add("big", big)
    assert [row.name for row in w.ledger] == ["a"]
    with pytest.raises(InvalidArgument, match="with block"):
        w.add("late", dense([1.0]))


@pytest.mark.parametrize("value", [object(), float("nan"), {1, 2}, b"bytes"])
def test_metadata_must_be_json(tmp_path, value):
    path = tmp_path / "model.esp"
    with pytest.raises(InvalidArgument, match="metadata must be JSON"):
        write(CompressedModel({}, {}, {"key": value}), path)
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_coder_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UnknownMethod, match="fixed, huffman"):
        write(model(), tmp_path / "model.esp", coder="zip")
    assert list(tmp_path.iterdir()) == []


def test_a_tensor_that_is_not_there():
    file = io.BytesIO()
    write(model(), file)
    with pytest.raises(InvalidArgument, match="no tensor 'fc9'"):
        Reader(file).tensor("fc9")


# ---------------------------------------------------------------- atomic writes


def test_a_file_is_there_when_the_block_ends_and_not_before(tmp_path):
    path = tmp_path / "a.esp"
    with atomic_write(path) as file:
        file.write(b"new")
        assert not path.exists()
    assert path.read_bytes() == b"new"
    umask = os.umask(0)
    os.umask(umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~umask


def test_an_existing_file_is_kept_unless_forced(tmp_path):
    path = tmp_path / "a.esp"
    path.write_bytes(b"old")
    path.chmod(0o640)
    message = "exists; --force / force=True overwrites it"
    with pytest.raises(InvalidArgument, match=message), atomic_write(path):
        pytest.fail("the block must not run")
    assert path.read_bytes() == b"old"
    with atomic_write(path, force=True) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
def test_a_failure_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "a.esp"
    path.write_bytes(b"old")

    def fail():
        with atomic_write(path, force=True) as file:
            file.write(b"half")
            raise error

    with pytest.raises(error):
        fail()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_ctrl_c_while_writing_a_model(tmp_path):
    path = tmp_path / "a.esp"

    def interrupted():
        with Writer(path) as w:
            w.add("a", dense([1.0]))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no /dev/full")
def test_a_full_disk_leaves_the_old_file_and_names_the_path(tmp_path, monkeypatch):
    path = tmp_path / "a.esp"
    path.write_bytes(b"old")
    fdopen = os.fdopen

    def full(descriptor, mode):
        os.close(descriptor)
        return fdopen(os.open("/dev/full", os.O_WRONLY), mode)

    monkeypatch.setattr(os, "fdopen", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(model(), path, force=True)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_cannot_be_written_is_said_before_the_block_runs(tmp_path):
    def refused(path, match, force=False):
        with pytest.raises(InvalidArgument, match=match), atomic_write(path, force=force):
            pytest.fail("the block must not run")

    refused(tmp_path / "no" / "a.esp", "the folder .*no is missing")
    refused(tmp_path, "not a regular file", force=True)
    refused("/dev/null", "not a regular file", force=True)


def test_a_link_is_followed(tmp_path):
    (tmp_path / "real.esp").write_bytes(b"old")
    link = tmp_path / "link.esp"
    link.symlink_to("real.esp")
    with atomic_write(link, force=True) as file:
        file.write(b"new")
    assert link.is_symlink()
    assert (tmp_path / "real.esp").read_bytes() == b"new"


def test_a_file_that_came_up_meanwhile_is_kept(tmp_path):
    path = tmp_path / "a.esp"

    def outrun():
        with atomic_write(path) as file:
            file.write(b"mine")
            path.write_bytes(b"theirs")

    with pytest.raises(InvalidArgument, match="exists"):
        outrun()
    assert path.read_bytes() == b"theirs"
    assert list(tmp_path.iterdir()) == [path]


def test_two_writers_leave_one_whole_file(tmp_path):
    path = tmp_path / "a.esp"
    bodies = [bytes([i]) * 300_000 for i in range(4)]

    def work(body):
        with atomic_write(path, force=True) as file:
            for i in range(0, len(body), 1000):
                file.write(body[i : i + 1000])

    threads = [threading.Thread(target=work, args=(body,)) for body in bodies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert path.read_bytes() in bodies
    assert list(tmp_path.iterdir()) == [path]


def test_names_are_written_in_terms_of_those_before():
    parts = ("conv1.weight", "bn1.weight", "bn1.bias", "bn1.running_mean")
    names = [f"layer{i}.{j}.{part}" for i in range(4) for j in range(3) for part in parts]
    ledger = write(CompressedModel({name: dense([1.0]) for name in names}), io.BytesIO())
    fields = 1 + 1 + 1 + 2 + 4  # kind, dtype, dimension, stream, checksum
    spent = ledger.total("header_bytes") - fields * len(names)
    assert spent < 5 * len(names)
