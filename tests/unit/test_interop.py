"""Checkpoints of other tools: round trips through each format, and cases worked by hand."""

import json
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from espalier.errors import FormatError, InvalidArgument
from espalier.interop import Content, TensorInfo, open_checkpoint, save_checkpoint
from espalier.state import STORAGE_DTYPES, storage_dtype

SUFFIXES = [".safetensors", ".pt", ".pth", ".npz"]
NO_NUMPY = ["bfloat16", "float8_e4m3fn", "float8_e5m2"]


def example(dtype, shape=(2, 3), seed=0):
    """Any bits at all in the storage dtype, so that a lossy step on the way would show."""
    rng = np.random.default_rng(seed)
    if dtype == "bool":
        return rng.integers(0, 2, shape).astype(bool)
    if dtype.startswith(("float", "complex")) and dtype not in NO_NUMPY:
        return rng.normal(size=shape).astype(storage_dtype(dtype))
    info = np.iinfo(storage_dtype(dtype))
    return rng.integers(info.min, info.max, shape, storage_dtype(dtype), endpoint=True)


def content_of(arrays, aliases=None, metadata=None):
    infos = [TensorInfo(name, a.shape, dtype) for name, (dtype, a) in arrays.items()]
    return Content(infos, lambda name: arrays[name][1], aliases or {}, metadata or {})


def assert_same(checkpoint, arrays):
    for name, (dtype, array) in arrays.items():
        found, got = checkpoint.load(name)
        assert found == checkpoint.infos[name].dtype == dtype
        assert checkpoint.infos[name].shape == got.shape == array.shape
        assert got.dtype == storage_dtype(dtype)
        assert got.tobytes() == array.tobytes()


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_round_trip_of_every_dtype_in_order(tmp_path, suffix):
    unsupported = NO_NUMPY if suffix == ".npz" else []
    if suffix == ".safetensors":
        unsupported = ["complex128"]
    arrays = {f"z.{d}": (d, example(d)) for d in STORAGE_DTYPES if d not in unsupported}
    arrays["scalar"] = ("float32", np.array(1.5, np.float32))
    arrays["empty"] = ("int64", np.zeros((0, 3), np.int64))
    arrays["a.last"] = ("float64", example("float64", (4,)))
    path = tmp_path / f"all{suffix}"
    save_checkpoint(path, content_of(arrays))
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == list(arrays)
    assert not checkpoint.skipped
    assert_same(checkpoint, arrays)
    assert [p.name for p in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_same_content_same_bytes(tmp_path, suffix):
    arrays = {"b": ("float32", example("float32")), "a": ("int8", example("int8", seed=1))}
    for run in "12":
        (tmp_path / run).mkdir()
        save_checkpoint(tmp_path / run / f"x{suffix}", content_of(arrays))
    first, second = ((tmp_path / run / f"x{suffix}").read_bytes() for run in "12")
    assert first == second


@pytest.mark.parametrize(
    ("suffix", "dtype"), [(".npz", d) for d in NO_NUMPY] + [(".safetensors", "complex128")]
)
def test_a_dtype_the_format_lacks_is_refused_by_name(tmp_path, suffix, dtype):
    arrays = {"ok": ("float32", example("float32")), "odd": (dtype, example(dtype))}
    with pytest.raises(InvalidArgument, match=f"'odd' of {dtype}"):
        save_checkpoint(tmp_path / f"x{suffix}", content_of(arrays))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_tied_tensors_are_all_written(tmp_path, suffix):
    arrays = {"embed.weight": ("float32", example("float32"))}
    path = tmp_path / f"tied{suffix}"
    save_checkpoint(path, content_of(arrays, {"head.weight": "embed.weight"}))
    checkpoint = open_checkpoint(path)
    assert np.array_equal(checkpoint.load("head.weight")[1], arrays["embed.weight"][1])
    tied = suffix in (".pt", ".pth")
    assert checkpoint.aliases == ({"head.weight": "embed.weight"} if tied else {})


def test_names_and_with(tmp_path):
    weight = torch.ones(2, 2)
    torch.save({"a": weight, "tied": weight, "z": torch.zeros(1)}, tmp_path / "x.pt")
    with open_checkpoint(tmp_path / "x.pt") as checkpoint:
        assert checkpoint.names() == ["a", "z", "tied"]
        with pytest.raises(InvalidArgument, match="no tensor is called 'b'"):
            checkpoint.load("b")


def test_torch_reads_what_is_written(tmp_path):
    arrays = {d: (d, example(d)) for d in STORAGE_DTYPES if d != "complex128"}
    save_checkpoint(tmp_path / "x.pt", content_of(arrays))
    save_checkpoint(tmp_path / "x.safetensors", content_of(arrays, metadata={"format": "pt"}))
    plain = torch.load(tmp_path / "x.pt", weights_only=True)
    safe = load_file(tmp_path / "x.safetensors")
    for name in arrays:
        assert plain[name].dtype == safe[name].dtype == getattr(torch, name)
        if not name.startswith(("float", "bfloat", "complex", "uint")):
            assert torch.equal(plain[name], safe[name])
    with safe_open(tmp_path / "x.safetensors", "pt") as file:
        assert file.metadata() == {"format": "pt"}


def test_safetensors_of_the_library_is_read(tmp_path):
    tensors = {
        "bf16": torch.tensor([[1.0, -2.5]], dtype=torch.bfloat16),
        "f8": torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn),
        "f32": torch.randn(3, 4),
        "mask": torch.tensor([True, False]),
    }
    save_file(tensors, tmp_path / "lib.safetensors", metadata={"who": "them"})
    checkpoint = open_checkpoint(tmp_path / "lib.safetensors")
    assert checkpoint.metadata == {"who": "them"}
    assert set(checkpoint.names()) == set(tensors)
    assert checkpoint.load("bf16")[1].tolist() == [[0x3F80, 0xC020]]  # 1.0 and -2.5, by hand
    assert checkpoint.load("f8")[1].tolist() == [0x38, 0xC0]
    assert np.array_equal(checkpoint.load("f32")[1], tensors["f32"].numpy())
    assert checkpoint.load("mask")[1].tolist() == [True, False]


def test_unknown_safetensors_dtype_is_skipped_with_its_reason(tmp_path):
    header = {
        "odd": {"dtype": "F4", "shape": [4], "data_offsets": [0, 2]},
        "fine": {"dtype": "U8", "shape": [1], "data_offsets": [2, 3]},
    }
    write_safetensors(tmp_path / "x.safetensors", header, b"abc")
    checkpoint = open_checkpoint(tmp_path / "x.safetensors")
    assert checkpoint.names() == ["fine"]
    assert checkpoint.skipped == {"odd": "dtype F4 is not supported"}
    assert checkpoint.load("fine")[1].tolist() == [ord("c")]


def write_safetensors(path, header, data):
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(len(raw).to_bytes(8, "little") + raw + data)


def entry(begin, end, shape=(1,), dtype="U8"):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "says"),
    [
        ({"a": entry(0, 1), "b": entry(2, 3)}, b"abc", "'b' leaves a hole"),
        ({"a": entry(0, 2, (2,)), "b": entry(1, 2)}, b"ab", "'b' overlaps"),
        ({"a": entry(0, 1)}, b"ab", "1 bytes follow the last tensor"),
        ({"a": entry(0, 3, (3,))}, b"ab", "ends inside tensor 'a'"),
        ({"a": entry(0, 1, (2,))}, b"a", "'a' has 1 bytes, but its shape"),
        ({"a": entry(1, 0)}, b"a", "'a' is malformed"),
        ({"a": entry(0, 1, (-1,))}, b"a", "'a' is malformed"),
        ({"a": entry(0, 1, (True,))}, b"a", "'a' is malformed"),
        ({"a": entry(0, 1, (2**62, 2**62))}, b"a", "'a' is malformed"),
        ({"a": {"dtype": "U8"}}, b"a", "'a' is malformed"),
        ({"a": [1]}, b"a", "'a' is malformed"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
        (b'{"a": 1, "a": 1}', b"", "a key occurs twice"),
        (b"{not json}", b"", "not JSON"),
        (b"{\xff}", b"", "not JSON"),
        (b"{" + b'"a":[' * 9999 + b"]" * 9999 + b"}", b"", "not JSON"),
    ],
)
def test_hostile_safetensors(tmp_path, header, data, says):
    path = tmp_path / "bad.safetensors"
    write_safetensors(path, header, data)
    with pytest.raises(FormatError, match=r"bad\.safetensors") as error:
        open_checkpoint(path)
    assert says in str(error.value)


def test_state_dict_under_a_key_is_found_and_said(tmp_path):
    weights = {"fc.weight": torch.ones(2, 2)}
    torch.save({"epoch": 3, "state_dict": weights, "best": torch.tensor(1.0)}, tmp_path / "a.pt")
    checkpoint = open_checkpoint(tmp_path / "a.pt")
    assert checkpoint.names() == ["fc.weight"]
    assert checkpoint.notes == ("weights found under 'state_dict'",)
    torch.save({"model": {"state_dict": weights}, "optimizer": {}}, tmp_path / "b.pt")
    assert open_checkpoint(tmp_path / "b.pt").notes == ("weights found under 'model.state_dict'",)
    torch.save({"generator": weights, "step": 1}, tmp_path / "c.pt")
    assert open_checkpoint(tmp_path / "c.pt").notes == ("weights found under 'generator'",)


def test_torch_entries_that_are_no_tensors_are_skipped_with_their_reason(tmp_path):
    torch.save(
        {"w": torch.ones(2), "extra": [1], "sparse": torch.eye(2).to_sparse()}, tmp_path / "x.pt"
    )
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.names() == ["w"]
    assert checkpoint.skipped["extra"] == "a list, not a tensor"
    assert "layout" in checkpoint.skipped["sparse"]


def test_views_and_parameters_of_torch(tmp_path):
    base = torch.arange(6.0).reshape(2, 3)
    weights = OrderedDict(t=base.t(), row=base[1], p=torch.nn.Parameter(base.clone()), again=base)
    torch.save(weights, tmp_path / "x.pt")
    checkpoint = open_checkpoint(tmp_path / "x.pt")
    assert checkpoint.load("t")[1].tolist() == [[0, 3], [1, 4], [2, 5]]
    assert checkpoint.load("row")[1].tolist() == [3, 4, 5]
    assert checkpoint.aliases == {}  # other views of the same memory are tensors of their own


def test_legacy_torch_format(tmp_path):
    torch.save({"w": torch.ones(2)}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    assert open_checkpoint(tmp_path / "x.pth").load("w")[1].tolist() == [1, 1]


class Payload:
    """Would create a file if it were unpickled."""

    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return open, (str(self.target), "w")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_by_name_and_not_run(tmp_path, zipped):
    target = tmp_path / "ran"
    path = tmp_path / "evil.pt"
    torch.save(
        {"w": torch.ones(2), "x": Payload(target)}, path, _use_new_zipfile_serialization=zipped
    )
    with pytest.raises(FormatError, match=r"evil.pt: refused, .* asks for (_?io|builtins)\.open"):
        open_checkpoint(path)
    assert not target.exists()


def test_a_whole_module_is_refused_by_name(tmp_path):
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pt")
    with pytest.raises(FormatError, match=r"torch\.nn\.modules\.linear\.Linear"):
        open_checkpoint(tmp_path / "module.pt")


@pytest.mark.parametrize("thing", [torch.ones(2), [1], {"epoch": 1}, {}])
def test_torch_files_without_a_state_dict(tmp_path, thing):
    torch.save(thing, tmp_path / "x.pt")
    with pytest.raises(FormatError, match=r"x\.pt: holds"):
        open_checkpoint(tmp_path / "x.pt")


def test_npz_with_objects_is_refused_and_odd_members_are_skipped(tmp_path):
    np.savez(tmp_path / "o.npz", a=np.array([{}], dtype=object))
    with pytest.raises(InvalidArgument, match="'a' holds pickled objects"):
        open_checkpoint(tmp_path / "o.npz")
    np.savez_compressed(tmp_path / "s.npz", s=np.array(["x"]), be=np.arange(3, dtype=">i4"))
    with zipfile.ZipFile(tmp_path / "s.npz", "a") as archive:
        archive.writestr("README.txt", "hello")
    checkpoint = open_checkpoint(tmp_path / "s.npz")
    assert checkpoint.load("be")[1].tolist() == [0, 1, 2]
    assert checkpoint.load("be")[1].dtype == np.dtype("<i4")
    assert set(checkpoint.skipped) == {"s", "README.txt"}


def test_npz_in_fortran_order(tmp_path):
    array = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.savez(tmp_path / "f.npz", f=array)
    got = open_checkpoint(tmp_path / "f.npz").load("f")[1]
    assert got.flags.c_contiguous
    assert np.array_equal(got, array)


def test_missing_folder_empty_and_foreign(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.txt").write_text("hello, this is no checkpoint")
    (tmp_path / "model.tflite").write_bytes(b"\x08\x07\x12\x04test")
    for name, says in {
        "nothing.pt": "no such file",
        "folder": "is a folder",
        "empty.pt": "is empty",
        "text.txt": "can be read: .npz, .onnx, .pt, .pth, .safetensors",
        "model.tflite": "can be read: .npz",
    }.items():
        with pytest.raises((InvalidArgument, FormatError)) as error:
            open_checkpoint(tmp_path / name)
        assert name in str(error.value)
        assert says in str(error.value)


def test_a_wrong_suffix_says_what_is_inside(tmp_path):
    torch.save({"w": torch.ones(1)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").rename(tmp_path / "x.safetensors")
    with pytest.raises(FormatError, match=r"inside it is a PyTorch file; rename it to \.pt"):
        open_checkpoint(tmp_path / "x.safetensors")
    (tmp_path / "x.safetensors").rename(tmp_path / "pytorch_model.bin")
    assert open_checkpoint(tmp_path / "pytorch_model.bin").names() == ["w"]


def test_unknown_output_suffix_and_existing_output(tmp_path):
    arrays = {"a": ("float32", example("float32"))}
    with pytest.raises(InvalidArgument, match=r"x\.zip: the suffix '\.zip' names no format"):
        save_checkpoint(tmp_path / "x.zip", content_of(arrays))
    save_checkpoint(tmp_path / "x.npz", content_of(arrays))
    before = (tmp_path / "x.npz").read_bytes()
    with pytest.raises(InvalidArgument, match=r"x\.npz"):
        save_checkpoint(tmp_path / "x.npz", content_of({}))
    assert (tmp_path / "x.npz").read_bytes() == before
    save_checkpoint(tmp_path / "x.npz", content_of({}), force=True)
    assert open_checkpoint(tmp_path / "x.npz").names() == []


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_prefix_is_a_format_error_or_the_same_names(tmp_path, suffix):
    arrays = {"a": ("float32", example("float32")), "b": ("int8", example("int8"))}
    whole = tmp_path / f"whole{suffix}"
    save_checkpoint(whole, content_of(arrays))
    raw = whole.read_bytes()
    path = tmp_path / f"cut{suffix}"
    for length in [*range(min(len(raw), 100)), *range(100, len(raw), 37), len(raw) - 1]:
        path.write_bytes(raw[:length])
        with pytest.raises((FormatError, InvalidArgument), match=rf"cut\{suffix}"):
            open_checkpoint(path)
