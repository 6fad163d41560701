"""``espalier convert``: what it takes, what it refuses, and what it then leaves."""

import json

import numpy as np
import pytest
import torch
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
    status, out, err = convert("net.esp", "-o", "x.mlpackage", *NETWORK, "--target", "iOS16")
    assert (status, err) == (0, "")
    assert "weights: 2 by palettized" in out
    assert (here / "x.mlpackage" / "Manifest.json").is_file()


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
