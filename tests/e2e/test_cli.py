"""The command line doing its job: each command, and the way from a checkpoint and back."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import espalier as package
from espalier.container import Reader

REAL = Path(os.environ.get("ESPALIER_DATA", "")) / "resnet_cifar10" / "resnet20.safetensors"


@pytest.mark.parametrize("args", [["--help"], ["--version"], ["compress", "--help"], ["run", "-h"]])
def test_help_loads_nothing_heavy(args):
    code = (
        "import sys\nfrom espalier.cli import main\n"
        f"status = main({args!r})\n"
        "heavy = {'torch', 'numba', 'numpy', 'yaml', 'safetensors'} & set(sys.modules)\n"
        "sys.exit(f'{status} {heavy}' if status or heavy else 0)"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)


def test_version_and_example_in_help(espalier):
    assert espalier("--version").out == f"espalier {package.__version__}\n"
    text = espalier("compress", "--help").out
    assert "espalier compress resnet20.safetensors -o resnet20.esp" in text
    assert "\x1b" not in text


def test_round_trip(espalier, checkpoint, tensors, tmp_path):
    esp, back = tmp_path / "net.esp", tmp_path / "back.safetensors"
    done = espalier("compress", checkpoint, "-o", esp)
    assert done.status == 0, done
    assert done.err == ""
    assert "\x1b" not in done.out
    size = f"{esp.stat().st_size:,} bytes"
    assert f"{esp}: {size}" in done.out
    assert f"{checkpoint}: {checkpoint.stat().st_size:,} bytes" in done.out
    assert "1-D: biases, norms and the like" in done.out
    assert "its 4 exact values take 16" in done.out  # tiny.weight

    done = espalier("decompress", esp, "-o", back)
    assert done.status == 0, done
    got = load_file(back)
    assert set(got) == set(tensors)
    for name in ("conv1.bias", "fc1.bias", "steps", "table", "tiny.weight"):
        assert np.array_equal(got[name], tensors[name])
    for name in ("conv1.weight", "fc1.weight", "half.weight", "embed.weight"):
        error = np.linalg.norm(got[name].astype(float) - tensors[name])
        assert 0 < error <= 2**-7 * 1.01 * np.linalg.norm(tensors[name].astype(float))
        assert len(np.unique(got[name])) <= 256
        assert got[name].dtype == tensors[name].dtype
    assert not got["embed.weight"][0].any()  # zeros stay zeros
    with safe_open(back, "np") as file:
        assert file.metadata() == {"format": "pt"}

    done = espalier("verify", esp, "--against", checkpoint)
    assert done.status == 0, done
    assert "sound, 9 tensors decoded" in done.out
    assert "5 tensors equal, 4 not" in done.out
    assert espalier("verify", esp, "--against", back, "-q").out == ""
    assert "9 tensors equal, 0 not" in espalier("verify", esp, "--against", back).out


@pytest.mark.parametrize("suffix", [".pt", ".npz"])
def test_other_formats(espalier, checkpoint, tmp_path, suffix):
    esp, back, again = tmp_path / "a.esp", tmp_path / f"back{suffix}", tmp_path / "b.esp"
    assert espalier("compress", checkpoint, "-o", esp, "-q").status == 0
    assert espalier("decompress", esp, "-o", back, "-q").status == 0
    assert espalier("compress", back, "-o", again, "-q", "--bits", "none").status == 0
    done = espalier("verify", again, "--against", back)
    assert "9 tensors equal, 0 not" in done.out, done
    with Reader(esp) as first, Reader(again) as second:
        for name in first.names():
            assert np.array_equal(first.tensor(name).dense(), second.tensor(name).dense())


def test_fixed_point_binary_and_ternary(espalier, checkpoint, tensors, tmp_path):
    esp = tmp_path / "net.esp"
    done = espalier(
        *("compress", checkpoint, "-o", esp, "--json", "--bits", "6,half=none"),
        *("--quantizer", "fixed,fc1*=ternary,embed=kmeans"),
    )
    assert done.status == 0, done
    rows = {row["name"]: row for row in json.loads(done.out)["tensors"]}
    assert rows["conv1.weight"]["values"] == 63
    assert rows["fc1.weight"]["values"] == 3
    with Reader(esp) as reader:
        kinds = {name: reader.entry(name).kind for name in ("conv1.weight", "fc1.weight")}
        assert kinds == {"conv1.weight": "fixed point", "fc1.weight": "fixed point"}
        conv = reader.tensor("conv1.weight")
        assert conv.axis == 0
        error = np.abs(conv.dense() - tensors["conv1.weight"])
        assert error.max() <= conv.scales.max() * 1.01 or error.mean() < conv.scales.max() / 2
        assert len(np.unique(np.abs(reader.tensor("fc1.weight").dense()[0]))) == 2
    assert espalier("verify", esp, "--against", checkpoint, "-q").status == 0
    assert "fixed point" in espalier("inspect", esp).out


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (("--quantizer", "fixt"), 2, "no method is called 'fixt'"),
        (("--quantizer", "fixed", "--bits", "1"), 1, "must be an integer from 2 to 16, not 1"),
        (("--quantizer", "fixed", "--lossless"), 2, "--quantizer excludes"),
        (("--quantizer", "fixed", "--lambda", "0.01"), 2, "--quantizer excludes"),
        (("--group-size", "8"), 2, "--group-size needs --quantizer"),
        (("--quantizer", "fixed", "--group-size", "5"), 1, "cannot be divided into groups of 5"),
    ],
)
def test_quantizers_that_cannot_be(espalier, checkpoint, tmp_path, options, status, said):
    done = espalier("compress", checkpoint, "-o", tmp_path / "net.esp", *options)
    assert done.status == status, done
    assert said in " ".join(done.err.split())
    assert done.err.count("\n") <= 3
    assert not (tmp_path / "net.esp").exists()


def test_density_and_bits_by_kind_and_pattern(espalier, checkpoint, tensors, tmp_path):
    esp = tmp_path / "net.esp"
    done = espalier(
        *("compress", checkpoint, "-o", esp, "--json"),
        *("--density", "linear=0.1,embed=none", "--bits", "conv=3,fc1*=2,half=none"),
    )
    assert done.status == 0, done
    report = json.loads(done.out)
    assert report["output_bytes"] == esp.stat().st_size
    rows = {row["name"]: row for row in report["tensors"]}
    assert rows["conv1.weight"]["bits"] == 3
    assert rows["fc1.weight"]["values"] == 4
    with Reader(esp) as reader:
        for name, kept, values in [
            ("conv1.weight", 432, 8),
            ("fc1.weight", 1638, 4),  # 16384 * 0.1 to the nearest
            ("half.weight", 410, 410),
        ]:
            dense = reader.tensor(name).dense()
            assert np.count_nonzero(dense) == kept
            assert len(np.unique(dense[dense != 0])) <= values
        kept = reader.tensor("half.weight").dense()
    magnitude = np.abs(tensors["half.weight"])
    assert magnitude[kept != 0].min() >= magnitude[kept == 0].max()
    assert np.array_equal(kept[kept != 0], tensors["half.weight"][kept != 0])


def test_inspect_beside_other_compressors(espalier, checkpoint, tmp_path):
    esp = tmp_path / "model.esp"
    espalier("compress", checkpoint, "-o", esp, "--lossless", "-q")
    assert "baselines" not in json.loads(espalier("inspect", esp, "--json").out)
    done = espalier("inspect", esp, "--json", "--baselines")
    report = json.loads(done.out)
    names = [row["name"] for row in report["tensors"]]
    assert list(report["baselines"]["gzip -9"]) == names
    for row in report["tensors"]:
        size = report["baselines"]["gzip -9"][row["name"]]
        assert size == 0 if row["kind"] == "copy" else 0 < size < row["original_bytes"] + 40
    assert ("zstd -19" in report["baselines"]) == ("zstandard" not in done.err)
    text = espalier("inspect", esp, "--baselines").out
    assert "Beside other compressors" in text
    assert "gzip -9" in text


def test_inspect_adds_up(espalier, checkpoint, tmp_path):
    esp = tmp_path / "net.esp"
    espalier("compress", checkpoint, "-o", esp, "-q", "--density", "0.3")
    report = json.loads(espalier("inspect", esp, "--json").out)
    assert report["file_bytes"] == esp.stat().st_size
    rows = report["tensors"]
    assert sum(row["total_bytes"] for row in rows) + report["overhead"] == esp.stat().st_size
    text = espalier("inspect", esp).out
    for title in ("keep %", "weight bits", "index bits", "P+Q", "P+Q+H", "codebook"):
        assert title in text
    assert f"{esp.stat().st_size:,}" in text


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_lossless(espalier, checkpoint, tensors, tmp_path, suffix):
    odd = np.array([[np.nan, -0.0], [np.inf, 1e-45]], np.float32)
    odd.view(np.uint32)[0, 0] = 0x7FA00001  # a signalling NaN with a payload
    save_file(tensors | {"odd.weight": odd}, checkpoint)
    esp, back = tmp_path / "net.esp", tmp_path / f"back{suffix}"
    done = espalier("compress", checkpoint, "-o", esp, "--lossless", "--json")
    assert done.status == 0, done
    report = json.loads(done.out)
    assert all(row["max_abs_error"] == 0 for row in report["tensors"])
    assert esp.stat().st_size < checkpoint.stat().st_size
    assert espalier("decompress", esp, "-o", back, "-q").status == 0
    for original in (checkpoint, back):
        report = json.loads(espalier("verify", esp, "--against", original, "--json").out)
        assert len(report["differences"]) == 10
        assert all(d["max_abs"] == d["relative"] == 0 for d in report["differences"])


def test_same_input_same_bytes(espalier, checkpoint, tmp_path):
    for name in ("1.esp", "2.esp"):
        assert espalier("compress", checkpoint, "-o", tmp_path / name, "-q").status == 0
    assert (tmp_path / "1.esp").read_bytes() == (tmp_path / "2.esp").read_bytes()


def test_tied_tensors_are_stored_once(espalier, tmp_path):
    weight = torch.randn(100, 64)
    torch.save({"model": {"a.weight": weight, "b.weight": weight}}, tmp_path / "tied.pt")
    done = espalier("compress", tmp_path / "tied.pt", "-o", tmp_path / "tied.esp")
    assert done.status == 0
    assert done.err == f"espalier: {tmp_path}/tied.pt: weights found under 'model'\n"
    assert (tmp_path / "tied.esp").stat().st_size < 8000
    espalier("decompress", tmp_path / "tied.esp", "-o", tmp_path / "back.pt")
    back = torch.load(tmp_path / "back.pt", weights_only=True)
    assert back["a.weight"].data_ptr() == back["b.weight"].data_ptr()


def test_what_cannot_be_stored_is_said(espalier, tmp_path):
    torch.save({"w": torch.randn(64, 64), "extra": [1, 2]}, tmp_path / "x.pt")
    done = espalier("compress", tmp_path / "x.pt", "-o", tmp_path / "x.esp", "-q")
    assert done.status == 0
    assert done.err.count("\n") == 1
    assert "'extra' is not in" in done.err


def test_a_pruned_checkpoint_stays_pruned(espalier, tmp_path):
    weight = torch.randn(128, 128)
    weight[torch.rand(128, 128) < 0.9] = 0
    torch.save({"fc.weight": weight}, tmp_path / "x.pt")
    assert espalier("compress", tmp_path / "x.pt", "-o", tmp_path / "x.esp", "-q").status == 0
    with Reader(tmp_path / "x.esp") as reader:
        assert reader.entry("fc.weight").kind == "sparse codebook"
        dense = reader.tensor("fc.weight").dense()
    assert np.array_equal(dense == 0, weight.numpy() == 0)


def test_a_closed_pipe_is_quiet(espalier, checkpoint, tmp_path):
    esp = tmp_path / "net.esp"
    espalier("compress", checkpoint, "-o", esp, "-q")
    command = f"'{sys.executable}' -m espalier inspect '{esp}' --json | head -n 1"
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=60)
    assert done.stdout == "{\n"
    assert done.stderr == ""


@pytest.mark.skipif(not REAL.is_file(), reason="needs the published ResNet-20")
def test_a_published_network_shrinks_to_a_quarter(espalier, tmp_path):
    esp = tmp_path / "r20.esp"
    assert espalier("compress", REAL, "-o", esp, "-q").status == 0
    assert esp.stat().st_size <= REAL.stat().st_size / 4
    report = json.loads(espalier("verify", esp, "--against", REAL, "--json").out)
    assert max(d["relative"] for d in report["differences"]) <= 2**-7 * 1.01
