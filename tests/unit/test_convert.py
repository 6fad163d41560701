"""``espalier convert``: what it takes, what it refuses, and what it then leaves."""

import json

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from torch import nn

import espalier
from espalier.cli import main
from espalier.compress import compress_checkpoint
from espalier.interop import open_checkpoint

onnx = pytest.importorskip("onnx")
MINE = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def data():
    x = torch.randn(500, 64)
    return (x, x[:, 0].long()), (x, x[:, 0].long())

def narrow():
    x = torch.randn(500, 9)
    return (x, x[:, 0].long()), (x, x[:, 0].long())

def odd():
    return 3
"""
NETWORK = ("--model", "convertible:model", "--input-shape", "64")
INT8 = ("--weights", "int8")


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder with a checkpoint, an .esp file of it, and one that was made from .onnx."""
    (tmp_path / "convertible.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    torch.save(model.state_dict(), "net.pt")
    espalier.share(model, bits=4)
    espalier.save(model, "net.esp")
    espalier.export_onnx(model, torch.randn(1, 64), "graph.onnx", weights="float")
    compress_checkpoint(open_checkpoint("graph.onnx"), "graph.esp", bits=4)
    (tmp_path / "graph.onnx").unlink()
    return tmp_path


@pytest.fixture
def convert(here, capsys):
    def run(*args):
        status = main(["convert", *map(str, args)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.mark.parametrize(
    ("args", "kinds"),
    [
        (("net.esp", "-o", "x.onnx", *NETWORK), {"words"}),
        (("graph.esp", "-o", "x.onnx"), {"words"}),
        (("net.pt", "-o", "x.onnx", *NETWORK), set()),
        (("net.esp", "-o", "x.onnx", *NETWORK, "--weights", "float"), set()),
        (("net.esp", "-o", "x.onnx", *NETWORK, *INT8, "--data", "convertible:data"), {"int8"}),
        (("graph.esp", "-o", "x.onnx", *INT8, "--data", "convertible:data"), {"int8"}),
    ],
)
def test_to_onnx(convert, args, kinds):
    status, out, err = convert(*args, "--json")
    assert status == 0, err
    assert set(json.loads(out)["weights"].values()) == kinds
    onnx.checker.check_model("x.onnx", full_check=True)


def test_to_coreml(convert, here):
    pytest.importorskip("coremltools")
    status, out, err = convert("net.esp", "-o", "x.mlpackage", *NETWORK, "--precision", "float16")
    assert (status, err) == (0, "")
    assert "weights: 2 by palettized" in out
    assert (here / "x.mlpackage" / "Manifest.json").is_file()


@pytest.fixture
def hub(here):
    """A folder of that network, in two shards, with a config."""
    shapes = {"0.weight": (64, 64), "0.bias": (64,), "2.weight": (10, 64), "2.bias": (10,)}
    shards = {"0": "model-00001-of-00002.safetensors", "2": "model-00002-of-00002.safetensors"}
    (here / "hub").mkdir()
    for layer, file in shards.items():
        part = {n: np.zeros(s, np.float32) for n, s in shapes.items() if n.startswith(layer)}
        save_file(part, here / "hub" / file, metadata={"format": "pt"})
    index = {"weight_map": {name: shards[name[0]] for name in shapes}}
    (here / "hub" / "model.safetensors.index.json").write_text(json.dumps(index))
    (here / "hub" / "config.json").write_text("{}")
    return here / "hub"


@pytest.mark.parametrize("source", ["net.esp", "net.pt"])
def test_a_folder_like_another(convert, hub, here, source):
    status, out, err = convert(source, "-o", "out", "--like", "hub")
    assert (status, err) == (0, "")
    assert "4 tensors" in out
    names = [sorted(path.name for path in (here / f).iterdir()) for f in ("hub", "out")]
    assert names[0] == names[1]
    assert (here / "out" / "config.json").read_text() == "{}"
    want = espalier.load("net.esp") if source == "net.esp" else torch.load("net.pt")
    with open_checkpoint(here / "out") as found:
        assert found.metadata == {"format": "pt"}
        for name, tensor in want.items():
            assert np.array_equal(found.load(name)[1], tensor)


def test_a_folder_that_the_network_does_not_fit(convert, hub, here):
    config = here / "hub" / "config.json"
    for change, says in [
        ({"0.weight": (64, 63)}, "'0.weight' is float32 [64, 63], and is float32 [64, 64] in"),
        ({"0.other": (3,)}, "'0.other' is float32 [3], and is not there in"),
    ]:
        part = {name: np.zeros(shape, np.float32) for name, shape in change.items()}
        (here / "hub" / "model.safetensors.index.json").unlink(missing_ok=True)
        for file in (here / "hub").glob("*.safetensors"):
            file.unlink()
        save_file(part, here / "hub" / "model.safetensors")
        status, _, err = convert("net.esp", "-o", "out", "--like", "hub")
        assert status == 1
        assert says in err
        assert not (here / "out").exists()
    assert config.exists()


def test_between_checkpoints(convert, here):
    for source in ("net.pt", "net.esp"):
        status, out, _ = convert(source, "-o", "x.npz", "-f")
        assert status == 0
        assert "4 tensors" in out
        want = torch.load(source) if source == "net.pt" else espalier.load(source)
        with np.load("x.npz") as back:
            assert all(np.array_equal(back[name], want[name]) for name in want)


@pytest.mark.parametrize(
    ("args", "status", "says"),
    [
        (("net.esp", "-o", "x.onnx"), 1, "has no ONNX graph"),
        (("net.esp", "-o", "x.onnx", "--model", "convertible:model"), 2, "--input-shape or"),
        (("net.esp", "-o", "x.onnx", *NETWORK[:3], "7"), 1, "cannot be exported to ONNX"),
        (("net.esp", "-o", "x.onnx", *NETWORK, "--weights", "int3"), 1, "weights must be one of"),
        (("net.esp", "-o", "x.onnx", *NETWORK[:2], *INT8), 2, "give --data"),
        (("net.esp", "-o", "x.onnx", *NETWORK, *INT8), 1, "give --data"),
        (("graph.esp", "-o", "x.onnx", *INT8), 1, "give --data"),
        (("graph.esp", "-o", "x.onnx", "--data", "convertible:data"), 2, "goes with --weights"),
        (("graph.esp", "-o", "x.onnx", "--input-shape", "64"), 2, "go with --model"),
        (("graph.esp", "-o", "x.onnx", *INT8, "--data", "convertible:narrow"), 1, "(128, 9)"),
        (("graph.esp", "-o", "x.onnx", *INT8, "--data", "convertible:odd"), 1, "gave a int"),
        (("graph.esp", "-o", "x.onnx", *INT8, "--data", "convertible:no"), 1, "no function 'no'"),
        (("net.pt", "-o", "x.onnx"), 1, "the graph is not in the file"),
        (("net.pt", "-o", "x.esp"), 1, "espalier compress"),
        (("net.esp", "-o", "x.xyz"), 1, "names no format"),
        (("net.esp", "-o", "x.pt", *NETWORK), 2, "--model is for .onnx and .mlpackage"),
        (("net.esp", "-o", "x.pt", "--weights", "float"), 2, "--weights is for .onnx"),
        (("net.esp", "-o", "x.onnx", *NETWORK, "--target", "iOS16"), 2, "is for .mlpackage"),
        (("net.esp", "-o", "x.pt", "--like", "."), 2, "--like is for a folder"),
        (("net.esp", "-o", "x", "--like", "net.pt"), 1, "net.pt is no folder"),
        (("net.esp", "-o", "x", "--like", "."), 1, "without a .safetensors file"),
        (("net.esp", "-o", "x"), 1, "names no format"),
        (("net.esp", "-o", "x.mlpackage"), 2, "give --model"),
        (("net.esp", "-o", "x.mlpackage", *NETWORK, "--target", "iOS9"), 1, "target must be"),
        (("net.esp", "-o", "net.pt"), 1, "--force"),
        (("gone.esp", "-o", "x.pt"), 1, "gone.esp"),
        (("net.net", "-o", "x.esp"), 2, "needs --prototxt"),
    ],
)
def test_what_is_refused_leaves_nothing(convert, here, args, status, says):
    before = {path: path.read_bytes() for path in here.iterdir() if path.is_file()}
    got, out, err = convert(*args)
    assert (got, out) == (status, "")
    assert err.startswith("espalier: ")
    assert err.count("\n") == 1
    assert says in err
    assert {path: path.read_bytes() for path in here.iterdir() if path.is_file()} == before
