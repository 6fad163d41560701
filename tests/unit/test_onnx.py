"""ONNX models: tensors out of the graph, and back into it."""

import json
import sys

import numpy as np
import pytest

from espalier.compress import compress_checkpoint
from espalier.container import Reader
from espalier.errors import (
    CorruptFile,
    FormatError,
    InvalidArgument,
    MissingDependency,
    TruncatedFile,
)
from espalier.interop import Content, TensorInfo, open_checkpoint, save_checkpoint

onnx = pytest.importorskip("onnx")
from onnx import TensorProto, helper, numpy_helper  # noqa: E402


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def make(initializers, **more):
    """A model whose only node is the identity."""
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"], name="same")],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 3])],
        initializers,
        **more,
    )
    model = helper.make_model(graph, producer_name="a test")
    entry = model.metadata_props.add()
    entry.key, entry.value = "author", "somebody"
    return model


def lists(name, data_type, field, values):
    tensor = TensorProto(name=name, data_type=data_type, dims=[len(values)])
    getattr(tensor, field).extend(values)
    return tensor


@pytest.fixture
def model():
    """Initialisers of every kind: raw, as numbers, without elements, of odd types."""
    strings = TensorProto(name="words", data_type=TensorProto.STRING, dims=[2])
    strings.string_data.extend([b"a", b"b"])
    odd = np.array([1.5, -0.0, np.nan, np.inf], np.float32)
    bools = TensorProto(
        name="odd bools", data_type=TensorProto.BOOL, dims=[2], raw_data=b"\x00\x07"
    )
    made = [
        numpy_helper.from_array(array(16, 3, 3, 3), "conv.weight"),
        numpy_helper.from_array(array(64, 32, seed=1), "fc.weight"),
        numpy_helper.from_array(np.array(7), "steps"),
        numpy_helper.from_array(np.array([True, False]), "flags"),
        numpy_helper.from_array(array(4, 5).astype(np.float16), "half"),
        numpy_helper.from_array(np.zeros((0, 4), np.float32), "none"),
        TensorProto(name="bf", data_type=TensorProto.BFLOAT16, dims=[2], raw_data=b"\x80\x3f\0\0"),
        TensorProto(name="f8", data_type=TensorProto.FLOAT8E4M3FN, dims=[3], raw_data=b"123"),
        TensorProto(name="fnuz", data_type=TensorProto.FLOAT8E4M3FNUZ, dims=[3], raw_data=b"123"),
        lists("f32 list", TensorProto.FLOAT, "float_data", odd.tolist()),
        lists("i64 list", TensorProto.INT64, "int64_data", [1, -(1 << 62)]),
        lists("f64 list", TensorProto.DOUBLE, "double_data", [0.1, -0.0]),
        lists("u64 list", TensorProto.UINT64, "uint64_data", [(1 << 64) - 1]),
        lists("f16 list", TensorProto.FLOAT16, "int32_data", [15360]),
        strings,
        bools,
    ]
    made[0].doc_string = "kept"
    return make(made, doc_string="of the graph")


IN_GRAPH = {"none", "fnuz", "f16 list", "words", "odd bools"}


@pytest.fixture
def path(tmp_path, model):
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def files_of(reader):
    return {name: lambda name=name: reader.file(name) for name in reader.files}


def content_of(esp, change=lambda original, files: None):
    reader = Reader(esp)
    infos = [TensorInfo(e.name, e.shape, e.dtype) for e in map(reader.entry, reader.names())]
    original = json.loads(json.dumps(dict(reader.metadata))).get("original", {})
    files = files_of(reader)
    change(original, files)
    return Content(infos, lambda n: reader.tensor(n).dense(), {}, {}, original, files=files)


def test_what_is_in_a_model(path, model):
    checkpoint = open_checkpoint(path)
    assert set(checkpoint.infos) == {t.name for t in model.graph.initializer} - IN_GRAPH
    for tensor in model.graph.initializer:
        if tensor.name in ("conv.weight", "fc.weight", "steps", "flags", "half", "i64 list"):
            dtype, got = checkpoint.load(tensor.name)
            want = numpy_helper.to_array(tensor)
            assert dtype == str(want.dtype)
            assert got.shape == want.shape
            assert got.tobytes() == want.tobytes()
    assert checkpoint.load("bf")[0] == "bfloat16"
    assert checkpoint.load("bf")[1].tolist() == [0x3F80, 0]
    assert checkpoint.load("f8")[1].tobytes() == b"123"
    assert "'words' stays in the graph: data type 8 is not supported" in checkpoint.notes
    assert len(checkpoint.notes) == len(IN_GRAPH)
    assert checkpoint.file_bytes == path.stat().st_size


@pytest.mark.parametrize("jobs", [1, 3])
def test_exact_tensors_give_the_same_message(path, model, tmp_path, jobs):
    compress_checkpoint(open_checkpoint(path), tmp_path / "x.esp", bits=None, jobs=jobs)
    save_checkpoint(tmp_path / "back.onnx", content_of(tmp_path / "x.esp"))
    back = onnx.load(tmp_path / "back.onnx")
    assert back.SerializeToString(deterministic=True) == model.SerializeToString(deterministic=True)
    with Reader(tmp_path / "x.esp") as reader:
        original, files = reader.metadata["original"], files_of(reader)
        assert open_checkpoint(path).missing_from(original, files) == []
        model.graph.node[0].name = "another"
        onnx.save(model, path)
        wrong = open_checkpoint(path).missing_from(original, files)
        assert wrong == ["file 'graph.onnx' differs"]


def test_only_lossy_tensors_change(path, model, tmp_path):
    compress_checkpoint(open_checkpoint(path), tmp_path / "x.esp", bits={"fc.weight": 2})
    save_checkpoint(tmp_path / "back.onnx", content_of(tmp_path / "x.esp"))
    back = onnx.load(tmp_path / "back.onnx")
    onnx.checker.check_model(make(back.graph.initializer[:5]))
    for before, after in zip(model.graph.initializer, back.graph.initializer, strict=True):
        same = before.SerializeToString() == after.SerializeToString()
        assert same == (before.name != "fc.weight")
    assert len(np.unique(numpy_helper.to_array(back.graph.initializer[1]))) == 4


def test_the_tensors_can_go_elsewhere(path, tmp_path):
    compress_checkpoint(open_checkpoint(path), tmp_path / "x.esp", bits=None)
    save_checkpoint(tmp_path / "x.safetensors", content_of(tmp_path / "x.esp"))
    assert np.array_equal(
        open_checkpoint(tmp_path / "x.safetensors").load("fc.weight")[1], array(64, 32, seed=1)
    )


def test_what_was_no_onnx_does_not_become_one(tmp_path):
    np.savez(tmp_path / "x.npz", w=array(3))
    compress_checkpoint(open_checkpoint(tmp_path / "x.npz"), tmp_path / "x.esp")
    with pytest.raises(InvalidArgument, match="the graph is not in the file"):
        save_checkpoint(tmp_path / "x.onnx", content_of(tmp_path / "x.esp"))
    assert not (tmp_path / "x.onnx").exists()


def test_data_in_another_file(tmp_path, model):
    onnx.save(
        make([numpy_helper.from_array(array(64, 32), "w"), numpy_helper.from_array(array(8), "b")]),
        tmp_path / "model.onnx",
        save_as_external_data=True,
        location="weights.bin",
        size_threshold=0,
    )
    checkpoint = open_checkpoint(tmp_path / "model.onnx")
    assert checkpoint.notes == ("2 tensors of other files will come back inside it",)
    assert checkpoint.file_bytes > 4 * (64 * 32 + 8)
    assert np.array_equal(checkpoint.load("w")[1], array(64, 32))
    compress_checkpoint(checkpoint, tmp_path / "x.esp", bits=None)
    save_checkpoint(tmp_path / "back.onnx", content_of(tmp_path / "x.esp"))
    (tmp_path / "weights.bin").unlink()
    back = onnx.load(tmp_path / "back.onnx")
    assert np.array_equal(numpy_helper.to_array(back.graph.initializer[0]), array(64, 32))
    with pytest.raises(InvalidArgument, match="no file there"):
        open_checkpoint(tmp_path / "model.onnx")


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("fields", "error", "says"),
    [
        ({"location": "../secret"}, FormatError, "refused to read '../secret'"),
        ({"location": "/etc/passwd"}, FormatError, "refused to read '/etc/passwd'"),
        ({"location": "gone.bin"}, InvalidArgument, "is no file there"),
        ({}, InvalidArgument, "is no file there"),
        ({"location": "w.bin", "offset": "x"}, CorruptFile, "described wrongly"),
        ({"location": "w.bin", "offset": "-4"}, FormatError, "ends before its data|has 36 bytes"),
        ({"location": "w.bin", "offset": "4"}, CorruptFile, "has 28 bytes, but .* needs 32"),
        ({"location": "w.bin", "length": "64"}, TruncatedFile, "ends before its data"),
        ({"location": "w\0.bin"}, CorruptFile, "described wrongly"),
    ],
)
def test_external_data_that_is_described_wrongly(tmp_path, fields, error, says):
    (tmp_path / "secret").write_bytes(bytes(32))
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / "w.bin").write_bytes(bytes(32))
    tensor = TensorProto(name="w", data_type=1, dims=[8], data_location=1)
    for key, value in fields.items():
        entry = tensor.external_data.add()
        entry.key, entry.value = key, value
    (inner / "model.onnx").write_bytes(make([tensor]).SerializeToString())
    with pytest.raises(error, match=says):
        open_checkpoint(inner / "model.onnx")


@pytest.mark.parametrize(
    ("tensor", "says"),
    [
        (TensorProto(name="w", data_type=1, dims=[4], raw_data=b"123"), "has 3 bytes, but"),
        (TensorProto(name="w", data_type=1, dims=[1 << 40, 1 << 40], raw_data=b"1"), "has 1 bytes"),
        (TensorProto(name="w", data_type=1, dims=[-4], raw_data=b"1"), r"has the shape \[-4\]"),
        (lists("w", 1, "float_data", [1.0] * 3), None),
        (TensorProto(name="w", data_type=1, dims=[3], float_data=[1.0]), "has 4 bytes, but"),
        (TensorProto(name="w", data_type=1, dims=[3]), "has 0 bytes, but"),
    ],
)
def test_initialisers_that_contradict_themselves(tmp_path, tensor, says):
    (tmp_path / "model.onnx").write_bytes(make([tensor]).SerializeToString())
    if says is None:
        open_checkpoint(tmp_path / "model.onnx")
        return
    with pytest.raises(CorruptFile, match=says):
        open_checkpoint(tmp_path / "model.onnx")


def test_two_initialisers_of_one_name(tmp_path):
    tensor = numpy_helper.from_array(array(3), "w")
    (tmp_path / "model.onnx").write_bytes(make([tensor, tensor]).SerializeToString())
    with pytest.raises(CorruptFile, match="two initialisers are called 'w'"):
        open_checkpoint(tmp_path / "model.onnx")


def test_prefixes_and_foreign_files(path, tmp_path):
    data = path.read_bytes()
    for cut in (
        b"\x08",
        b"\x08\x0a",
        data[:20],
        data[: len(data) // 2],
        data[:-1],
        b"\x08\x01junk",
    ):
        path.write_bytes(cut)
        with pytest.raises(FormatError, match=r"model\.onnx: not a"):
            open_checkpoint(path)
    path.write_bytes(b"GIF89a" + bytes(100))
    with pytest.raises(FormatError, match=r"model\.onnx: not a"):
        open_checkpoint(path)


def test_flipped_bytes_are_refused_or_read(tmp_path):
    tensors = [numpy_helper.from_array(array(2, 3), "a"), lists("b", 7, "int64_data", [1, 2])]
    data = make(tensors).SerializeToString()
    for at in range(len(data)):
        for flip in (1, 8, 128, 255):
            broken = bytearray(data)
            broken[at] ^= flip
            (tmp_path / "model.onnx").write_bytes(broken)
            try:
                checkpoint = open_checkpoint(tmp_path / "model.onnx")
                for name in checkpoint.names():
                    checkpoint.load(name)
                checkpoint.original()
            except (FormatError, InvalidArgument):
                pass


def test_without_the_package_the_extra_is_named(path, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(MissingDependency, match=r"pip install 'espalier\[onnx\]'"):
        open_checkpoint(path)


@pytest.mark.parametrize(
    "tamper",
    [
        lambda o, files: files.clear(),
        lambda o, files: files.update({"graph.onnx": list}),
        lambda o, files: files.update({"graph.onnx": lambda: [b"\x08", b"\x01junk"]}),
        lambda o, files: files.update({"graph.onnx": lambda: iter(lambda: bytes(1 << 26), 0)}),
        lambda o, files: o.pop("kept"),
        lambda o, files: o.update(kept=[]),
        lambda o, files: o.update(lists={"fc.weight": "name"}),
        lambda o, files: o.update(lists={"fc.weight": "double_data"}),
        lambda o, files: o.update(lists=3),
    ],
)
def test_descriptions_that_lie_write_nothing(path, tmp_path, tamper):
    compress_checkpoint(open_checkpoint(path), tmp_path / "x.esp", bits=None)
    with pytest.raises(CorruptFile, match=r"ONNX graph|graph\.onnx"):
        save_checkpoint(tmp_path / "back.onnx", content_of(tmp_path / "x.esp", tamper))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.onnx", "x.esp"]
