"""Folders of safetensors: what is in them, and the way there and back."""

import json
import os

import numpy as np
import pytest
from safetensors.numpy import save_file

from espalier.compress import compress_checkpoint
from espalier.container import Reader, layout
from espalier.errors import CorruptFile, FormatError, InvalidArgument
from espalier.interop import Content, TensorInfo, open_checkpoint, save_checkpoint

INDEX = "model.safetensors.index.json"
SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")


def array(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def raw_safetensors(entries, metadata=None):
    """A file made by hand: {name: (code, shape, bytes)}, with an odd but valid header."""
    header, at = {"__metadata__": metadata} if metadata else {}, 0
    for name, (code, shape, data) in entries.items():
        header[name] = {"shape": shape, "data_offsets": [at, at + len(data)], "dtype": code}
        at += len(data)
    text = json.dumps(header, indent=1).encode() + b"   "
    return len(text).to_bytes(8, "little") + text + b"".join(d for _, _, d in entries.values())


@pytest.fixture
def sharded(tmp_path):
    """Two shards, one of them with an odd header, an index, and other files."""
    path = tmp_path / "model"
    (path / "tokenizer").mkdir(parents=True)
    first = {"a.weight": array(32, 16), "a.bias": array(32)}
    save_file(first, path / SHARDS[0], metadata={"format": "pt"})
    second = {
        "b.weight": ("F32", [16, 32], array(16, 32, seed=1).tobytes()),
        "scale": ("F8_E8M0", [5], b"\x7f\x80\x81\x82\x83"),
        "none": ("BF16", [0, 4], b""),
        "steps": ("I64", [], (7).to_bytes(8, "little")),
    }
    (path / SHARDS[1]).write_bytes(raw_safetensors(second))
    names = dict.fromkeys(first, SHARDS[0]) | dict.fromkeys(second, SHARDS[1])
    (path / INDEX).write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": names}))
    (path / "config.json").write_text('{"hidden_size": 32}\n')
    (path / ".gitattributes").write_bytes(b"*.bin\r\n")
    (path / "tokenizer" / "vocab.txt").write_bytes(os.urandom(3000))
    (path / "empty.txt").write_bytes(b"")
    return path


def compress(path, out, **options):
    return compress_checkpoint(open_checkpoint(path), out, **options)


def files_of(reader):
    return {name: lambda name=name: reader.file(name) for name in reader.files}


def restore(esp, out, force=False, jobs=1, change=lambda original, files: None):
    with Reader(esp) as reader:
        infos = [TensorInfo(e.name, e.shape, e.dtype) for e in map(reader.entry, reader.names())]
        original = json.loads(json.dumps(reader.metadata["original"]))
        files = files_of(reader)
        change(original, files)
        load = lambda name: reader.tensor(name).dense()  # noqa: E731
        content = Content(infos, load, {}, {}, original, jobs, files)
        save_checkpoint(out, content, force=force)


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_what_is_in_a_folder(sharded):
    checkpoint = open_checkpoint(sharded)
    assert sorted(checkpoint.names()) == [
        *("a.bias", "a.weight", "b.weight", "none", "scale", "steps"),
    ]
    assert checkpoint.infos["scale"] == TensorInfo("scale", (5,), "uint8")
    assert checkpoint.infos["none"] == TensorInfo("none", (0, 4), "bfloat16")
    assert checkpoint.load("scale")[1].tobytes() == b"\x7f\x80\x81\x82\x83"
    assert np.array_equal(checkpoint.load("b.weight")[1], array(16, 32, seed=1))
    assert checkpoint.metadata == {"format": "pt"}
    assert checkpoint.notes == ("'scale' is kept as bytes: dtype F8_E8M0 is not supported",)
    assert checkpoint.file_bytes == sum(map(len, tree(sharded).values()))


@pytest.mark.parametrize("jobs", [1, 3])
def test_exact_tensors_give_identical_files(sharded, tmp_path, jobs):
    compress(sharded, tmp_path / "x.esp", bits=None)
    restore(tmp_path / "x.esp", tmp_path / "back", jobs=jobs)
    assert tree(tmp_path / "back") == tree(sharded)
    with Reader(tmp_path / "x.esp") as reader:
        original, files = reader.metadata["original"], files_of(reader)
        checkpoint = open_checkpoint(sharded)
        assert checkpoint.missing_from(original, files) == []
        del files["config.json"]
        files["empty.txt"] = lambda: [b"", b"x"]
        assert checkpoint.missing_from(original, files) == [
            "file 'config.json' differs",
            "file 'empty.txt' differs",
        ]
        assert checkpoint.missing_from({}, files_of(reader)) == [
            "what belongs to which file differs"
        ]


def test_only_lossy_tensors_change(sharded, tmp_path):
    compress(sharded, tmp_path / "x.esp", bits=3)
    restore(tmp_path / "x.esp", tmp_path / "back")
    before, after = tree(sharded), tree(tmp_path / "back")
    assert before.keys() == after.keys()
    assert {name for name in before if before[name] != after[name]} == set(SHARDS)
    for name in SHARDS:
        assert len(before[name]) == len(after[name])
    back = open_checkpoint(tmp_path / "back")
    assert len(np.unique(back.load("a.weight")[1])) == 8
    assert np.array_equal(back.load("a.bias")[1], array(32))


def test_same_bytes_for_any_number_of_jobs(sharded, tmp_path):
    for jobs in (1, 2, 5):
        compress(sharded, tmp_path / f"{jobs}.esp", jobs=jobs)
    assert len({(tmp_path / f"{jobs}.esp").read_bytes() for jobs in (1, 2, 5)}) == 1


def test_a_single_file_and_others_beside_it(tmp_path):
    path = tmp_path / "model"
    (path / "vae").mkdir(parents=True)
    for name, seed in [("model", 0), ("model.fp16", 1), ("vae/model", 2)]:
        save_file({"w": array(3, 4, seed=seed)}, path / f"{name}.safetensors")
    checkpoint = open_checkpoint(path)
    assert checkpoint.names() == [
        "w",
        "model.fp16.safetensors/w",
        "vae/model.safetensors/w",
    ]
    assert np.array_equal(checkpoint.load("vae/model.safetensors/w")[1], array(3, 4, seed=2))
    compress(path, tmp_path / "x.esp", bits=None)
    restore(tmp_path / "x.esp", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(path)


def test_the_only_file_is_the_model_whatever_its_name(tmp_path):
    save_file({"w": array(3)}, tmp_path / "adapter.safetensors")
    assert open_checkpoint(tmp_path).names() == ["w"]


def test_hidden_folders_and_odd_names_are_passed_over_and_said(sharded):
    (sharded / ".git").mkdir()
    (sharded / ".git" / "HEAD").write_text("x")
    (sharded / "a\\b.txt").write_text("x")
    (sharded / "pipe").symlink_to("nowhere")
    notes = open_checkpoint(sharded).notes
    assert "the hidden folder .git is not kept" in notes
    assert any("b.txt' is not kept: not every system" in note for note in notes)
    assert "pipe is not kept: it is not a regular file" in notes


def test_links_to_files_are_followed(sharded, tmp_path):
    (sharded / SHARDS[0]).rename(tmp_path / "blob")
    (sharded / SHARDS[0]).symlink_to(tmp_path / "blob")
    assert "a.weight" in open_checkpoint(sharded).infos


# ---------------------------------------------------------------- what is refused


def test_a_folder_without_safetensors(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(InvalidArgument, match=r"is a folder without a \.safetensors file"):
        open_checkpoint(tmp_path)


@pytest.mark.parametrize(
    ("index", "error", "says"),
    [
        ("{", CorruptFile, "is not JSON"),
        ("[" * 100_000, CorruptFile, "is not JSON"),
        ("[]", CorruptFile, "has no weight_map"),
        ('{"weight_map": {"a": 3}}', CorruptFile, "has no weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', FormatError, "'gone.safetensors', which is"),
        ('{"weight_map": {"a": "../x.safetensors"}}', FormatError, "which is not there"),
        (
            json.dumps({"weight_map": {"c": SHARDS[0]}}),
            FormatError,
            "'c' is in .*, where it is not",
        ),
        (
            json.dumps({"weight_map": {"a.bias": SHARDS[1], "b.weight": SHARDS[1]}}),
            FormatError,
            "'a.bias' is in .*, where it is not",
        ),
    ],
)
def test_an_index_that_is_wrong(sharded, index, error, says):
    (sharded / INDEX).write_text(index)
    with pytest.raises(error, match=says):
        open_checkpoint(sharded)


def test_a_tensor_in_two_shards(sharded):
    (sharded / SHARDS[1]).write_bytes((sharded / SHARDS[0]).read_bytes())
    with pytest.raises(FormatError, match="two files hold a tensor 'a"):
        open_checkpoint(sharded)


def test_a_shard_cut_short(sharded):
    data = (sharded / SHARDS[1]).read_bytes()
    (sharded / SHARDS[1]).write_bytes(data[:-1])
    with pytest.raises(FormatError, match=SHARDS[1]):
        open_checkpoint(sharded)


def test_large_other_files_come_in_pieces(sharded, tmp_path, monkeypatch):
    monkeypatch.setattr(layout, "PIECE", 1000)
    compress(sharded, tmp_path / "x.esp", bits=None)
    with Reader(tmp_path / "x.esp") as reader:
        assert reader.files["tokenizer/vocab.txt"] == 3000
        pieces = list(reader.file("tokenizer/vocab.txt"))
        assert [len(piece) for piece in pieces] == [1000, 1000, 1000]
        ledger = reader.ledger()
    assert {file.name for file in ledger.files} == set(tree(sharded))
    rows = sum(row.total_bytes for row in ledger)
    assert rows + ledger.files_bytes + ledger.overhead == (tmp_path / "x.esp").stat().st_size
    restore(tmp_path / "x.esp", tmp_path / "back")
    assert tree(tmp_path / "back") == tree(sharded)


# ---------------------------------------------------------------- writing a folder


@pytest.fixture
def esp(sharded, tmp_path):
    compress(sharded, tmp_path / "x.esp", bits=None)
    return tmp_path / "x.esp"


def test_a_folder_that_is_not_empty(esp, sharded, tmp_path):
    back = tmp_path / "back"
    back.mkdir()
    restore(esp, back)  # empty: as good as none
    (back / "config.json").write_text("mine")
    (back / "notes.txt").write_text("mine")
    with pytest.raises(InvalidArgument, match="is not empty"):
        restore(esp, back)
    assert (back / "config.json").read_text() == "mine"
    restore(esp, back, force=True)
    assert tree(back) == tree(sharded) | {"notes.txt": b"mine"}
    with pytest.raises(InvalidArgument, match="exists, and is not a folder"):
        restore(esp, esp, force=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["back", "model", "x.esp"]


def file(name, *pieces):
    return lambda original, files: files.__setitem__(name, lambda: pieces)


def shard(name, prefix):
    return lambda original, files: original["shards"].__setitem__(name, prefix)


@pytest.mark.parametrize(
    "tamper",
    [
        *[
            file(name, b"x")
            for name in ("../x", "/x", "a/../../x", "a\\x", "C:x", "", ".", "a//b", "a\0", "a/. /b")
        ],
        shard("../x.safetensors", ""),
        shard("x.safetensors", ""),
        shard(SHARDS[0], "other/"),
        shard(SHARDS[0], 3),
        lambda original, files: original.pop("shards"),
        lambda original, files: files.pop(SHARDS[0]),
        file(SHARDS[0], b""),
        file(SHARDS[0], (1 << 60).to_bytes(8, "little"), b"{}"),
        file(SHARDS[0], (2).to_bytes(8, "little"), b"{", b"]"),
        file(SHARDS[0], *(bytes(1 << 25) for _ in range(3))),
    ],
)
def test_descriptions_that_lie_write_nothing(esp, tmp_path, tamper):
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(CorruptFile):
        restore(esp, tmp_path / "back", change=tamper)
    assert sorted(tmp_path.rglob("*")) == before
