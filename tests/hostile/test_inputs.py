"""Bad input to the command line: one clear line, the right exit status, nothing left behind."""

import json
import os
import resource
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from espalier.cli import main

LIMIT_BYTES = 200_000


@pytest.fixture
def cli(capsys):
    """Run ``espalier ARGS`` in this process; it must fail with one line, which is returned."""

    def run(*args, status=1):
        before = signal.getsignal(signal.SIGTERM)
        try:
            got = main([str(arg) for arg in args])
        finally:
            signal.signal(signal.SIGTERM, before)
        out, err = capsys.readouterr()
        assert got == status, (got, err)
        assert out == ""
        assert err.startswith("espalier: ")
        assert err.count("\n") == 1, err
        assert err.endswith("\n")
        return err

    return run


@pytest.fixture
def weights():
    rng = np.random.default_rng(0)
    return {
        "conv1.weight": rng.normal(size=(8, 3, 3, 3)).astype(np.float32),
        "fc1.weight": rng.normal(size=(32, 64)).astype(np.float32),
        "fc1.bias": rng.normal(size=32).astype(np.float32),
    }


@pytest.fixture
def checkpoint(tmp_path, weights):
    path = tmp_path / "net.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def esp(checkpoint, tmp_path, capsys):
    path = tmp_path / "net.esp"
    assert main(["compress", str(checkpoint), "-o", str(path), "-q"]) == 0
    return path


def listing(folder):
    return sorted(path.name for path in folder.iterdir())


# ---------------------------------------------------------------- what goes in


@pytest.mark.parametrize(
    ("name", "data", "says"),
    [
        ("missing.safetensors", None, "no such file"),
        ("missing.pt", None, "no such file"),
        ("empty.safetensors", b"", "is empty"),
        ("foreign.safetensors", b"\x7fELF" + bytes(100), "safetensors"),
        ("foreign.pt", b"GIF89a" + bytes(100), "PyTorch"),
        ("foreign.npz", b"not a zip at all", ".npz"),
        ("notes.txt", b"dear diary", "can be read: .npz, .onnx, .pt, .pth, .safetensors"),
    ],
)
def test_missing_empty_and_foreign_files(cli, tmp_path, name, data, says):
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    before = listing(tmp_path)
    err = cli("compress", path, "-o", tmp_path / "out.esp")
    assert name in err
    assert says in err
    assert listing(tmp_path) == before


def test_a_folder_is_not_a_checkpoint(cli, tmp_path):
    assert "is a folder" in cli("compress", tmp_path, "-o", tmp_path / "out.esp")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".npz"])
def test_truncated_checkpoints(cli, tmp_path, weights, suffix):
    path = tmp_path / f"cut{suffix}"
    if suffix == ".safetensors":
        save_file(weights, path)
    elif suffix == ".pt":
        torch.save({k: torch.from_numpy(v) for k, v in weights.items()}, path)
    else:
        np.savez(path, **weights)
    raw = path.read_bytes()
    for length in (4, len(raw) // 2, len(raw) - 1):
        path.write_bytes(raw[:length])
        assert path.name in cli("compress", path, "-o", tmp_path / "out.esp")
        assert listing(tmp_path) == [path.name]


class Payload:
    def __init__(self, command):
        self.command = command

    def __reduce__(self):
        return os.system, (self.command,)


def test_a_pickle_with_code_is_refused_by_name_and_not_run(cli, tmp_path):
    torch.save({"w": torch.ones(2), "x": Payload(f"touch {tmp_path}/ran")}, tmp_path / "evil.pt")
    err = cli("compress", tmp_path / "evil.pt", "-o", tmp_path / "out.esp")
    assert "refused" in err
    assert f"{os.system.__module__}.system" in err
    assert listing(tmp_path) == ["evil.pt"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(cli, tmp_path, weights, value):
    weights["fc1.weight"][3, 4] = value
    save_file(weights, tmp_path / "bad.safetensors")
    err = cli("compress", tmp_path / "bad.safetensors", "-o", tmp_path / "out.esp")
    assert "bad.safetensors: tensor 'fc1.weight' holds" in err
    assert listing(tmp_path) == ["bad.safetensors"]


def test_what_is_kept_exactly_may_hold_nan(tmp_path, weights, capsys):
    weights["fc1.bias"][0] = np.nan
    save_file(weights, tmp_path / "net.safetensors")
    args = ["compress", str(tmp_path / "net.safetensors"), "-o", str(tmp_path / "x.esp"), "-q"]
    assert main(args) == 0


# ---------------------------------------------------------------- options


@pytest.mark.parametrize("option", ["--density", "--bits"])
@pytest.mark.parametrize("key", ["fc9*", "embedding", "fc1.bias"])
def test_a_key_that_matches_nothing(cli, checkpoint, tmp_path, option, key):
    err = cli("compress", checkpoint, "-o", tmp_path / "out.esp", option, f"{key}=1")
    assert f"'{key}' matches nothing; there are conv1 (conv), fc1 (linear)" in err
    assert listing(tmp_path) == [checkpoint.name]


@pytest.mark.parametrize(
    ("option", "value", "says"),
    [
        *[("--density", v, "(0, 1]") for v in ("0", "-0.5", "1.5", "fc1=0", "*=2")],
        *[("--density", v, "a finite number") for v in ("nan", "inf", "fc1=nan")],
        ("--density", "half", "not a number"),
        *[("--bits", v, "from 1 to 16") for v in ("0", "17", "-1", "conv=0", "auto,fc1=99")],
        ("--bits", "8.5", "'8.5' is not"),
        ("--bits", "=8", "not KEY=VALUE"),
        ("--bits", "conv=8,", "not KEY=VALUE"),
    ],
)
def test_options_out_of_range_are_wrong_usage(cli, checkpoint, tmp_path, option, value, says):
    err = cli("compress", checkpoint, "-o", tmp_path / "out.esp", option, value, status=2)
    assert says in err
    assert "see 'espalier compress --help'" in err
    assert listing(tmp_path) == [checkpoint.name]


@pytest.mark.parametrize(
    "args",
    [
        ["compress"],
        ["compress", "a.pt"],
        ["compress", "a.pt", "-o", "b.esp", "--no-such-option"],
        ["no-such-command"],
        ["compress", "a.pt", "-o", "b.esp", "--lossless", "--bits", "8"],
        ["compress", "a.pt", "-o", "b.esp", "--lossless", "--density", "0.5"],
        ["compress", "a.pt", "-o", "b.esp", "--jobs", "0"],
        ["run", "lenet300", "--resume", "--force"],
        ["demo", "--dataset", "imagenet"],
    ],
)
def test_wrong_usage(cli, args):
    assert "--help'" in cli(*args, status=2)


def test_unknown_coder_and_output_suffix(cli, checkpoint, esp, tmp_path):
    err = cli("compress", checkpoint, "-o", tmp_path / "out.esp", "--coder", "zip")
    assert "'zip'" in err
    assert "huffman" in err
    err = cli("decompress", esp, "-o", tmp_path / "out.zip")
    assert "can be written: .npz, .onnx, .pt, .pth, .safetensors" in err
    assert listing(tmp_path) == ["net.esp", "net.safetensors"]


# ---------------------------------------------------------------- .esp files


@pytest.mark.parametrize("command", ["inspect", "verify", "decompress"])
def test_esp_files_that_are_missing_foreign_or_cut(cli, esp, checkpoint, tmp_path, command):
    more = ["-o", tmp_path / "out.npz"] if command == "decompress" else []
    raw = esp.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 3] ^= 4
    for name, data in {
        "missing.esp": None,
        "empty.esp": b"",
        "foreign.esp": checkpoint.read_bytes(),
        "cut.esp": raw[: len(raw) // 2],
        "almost.esp": raw[:-1],
        "longer.esp": raw + b"x",
        "flipped.esp": bytes(flipped),
    }.items():
        if data is not None:
            (tmp_path / name).write_bytes(data)
        before = listing(tmp_path)
        assert name in cli(command, tmp_path / name, *more)
        assert listing(tmp_path) == before


def test_verify_against_another_network(cli, esp, weights, tmp_path):
    weights["fc1.weight"] = weights["fc1.weight"][:, :5].copy()
    weights["fc2.weight"] = weights.pop("fc1.bias")
    save_file(weights, tmp_path / "other.safetensors")
    err = cli("verify", esp, "--against", tmp_path / "other.safetensors")
    assert "'fc1.weight' is [32, 64] float32, not [32, 5] float32" in err
    assert "'fc2.weight' is missing" in err
    assert "'fc1.bias' is not in the original" in err


def test_a_compressed_file_is_not_compressed_again(cli, esp, tmp_path):
    assert "already" in cli("compress", esp, "-o", tmp_path / "twice.esp")


# ---------------------------------------------------------------- what comes out


def test_an_output_that_exists_is_kept_unless_forced(cli, checkpoint, esp, tmp_path):
    other = tmp_path / "precious.npz"
    other.write_bytes(b"precious")
    before = esp.read_bytes()
    assert "--force" in cli("compress", checkpoint, "-o", esp, "--bits", "2")
    assert "--force" in cli("decompress", esp, "-o", other)
    assert esp.read_bytes() == before
    assert other.read_bytes() == b"precious"
    assert main(["compress", str(checkpoint), "-o", str(esp), "--bits", "2", "-q", "--force"]) == 0
    assert esp.stat().st_size < len(before)


def test_output_in_a_missing_folder_or_on_a_device(cli, checkpoint, tmp_path):
    assert "nowhere" in cli("compress", checkpoint, "-o", tmp_path / "nowhere" / "x.esp")
    assert "/dev/full" in cli("compress", checkpoint, "-o", "/dev/full", "--force")


def process(*args, **options):
    return subprocess.Popen(
        [sys.executable, "-m", "espalier", *map(str, args)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def full_disk():
    resource.setrlimit(resource.RLIMIT_FSIZE, (LIMIT_BYTES, LIMIT_BYTES))


@pytest.fixture
def large(tmp_path):
    """A checkpoint that takes a second or more to compress, in a folder of its own."""
    rng = np.random.default_rng(0)
    folder = tmp_path / "large"
    folder.mkdir()
    big = {f"fc{i}.weight": rng.normal(size=(1000, 1000)).astype(np.float32) for i in range(12)}
    save_file(big, folder / "large.safetensors")
    return folder / "large.safetensors"


@pytest.mark.parametrize("output", ["out.esp", "out.pt", "out.npz", "out.safetensors"])
def test_a_full_disk_leaves_nothing(large, output, tmp_path):
    args = ["compress", large, "-o", large.with_name(output)]
    if output != "out.esp":
        # Pruned to a thousandth: a small file that becomes a large one.
        small = tmp_path / "small.esp"
        assert main(["compress", str(large), "-o", str(small), "--density", "0.001", "-q"]) == 0
        args = ["decompress", small, "-o", large.with_name(output)]
    running = process(*args, preexec_fn=full_disk)
    out, err = running.communicate(timeout=120)
    assert running.returncode == 1, err
    assert err.count("\n") == 1, err
    assert output in err
    assert out == ""
    assert listing(large.parent) == ["large.safetensors"]


def test_standard_output_on_a_full_disk(esp):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "espalier", "inspect", str(esp)],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=60,
        )
    assert done.returncode == 1
    assert done.stderr == "espalier: No space left on device\n"


@pytest.mark.parametrize(
    ("sent", "status", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")],
)
def test_interrupted_in_the_middle_leaves_nothing(large, sent, status, said):
    folder = large.parent
    running = process("compress", large, "-o", folder / "out.esp")
    deadline = time.monotonic() + 60
    while listing(folder) == ["large.safetensors"]:
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    assert "out.esp" not in listing(folder)
    running.send_signal(sent)
    out, err = running.communicate(timeout=60)
    assert running.returncode == status, err
    assert err == f"espalier: {said}\n"
    assert out == ""
    assert listing(folder) == ["large.safetensors"]


# ---------------------------------------------------------------- recipes


def test_recipes_that_are_missing_or_wrong(cli, tmp_path):
    assert "no such recipe" in cli("run", tmp_path / "no.yaml", "--out", tmp_path / "out")
    (tmp_path / "bad.yaml").write_text("stages: [{dance: {}}]\n")
    assert "bad.yaml" in cli("run", tmp_path / "bad.yaml", "--out", tmp_path / "out")
    (tmp_path / "worse.yaml").write_text("{{{{")
    assert "worse.yaml" in cli("run", tmp_path / "worse.yaml", "--out", tmp_path / "out")
    assert listing(tmp_path) == ["bad.yaml", "worse.yaml"]


def test_json_of_a_lossless_tensor_is_json(tmp_path, capsys):
    save_file({"w": np.zeros((64, 64), np.float32)}, tmp_path / "zero.safetensors")
    args = ["compress", str(tmp_path / "zero.safetensors"), "-o", str(tmp_path / "z.esp"), "--json"]
    assert main(args) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["tensors"][0]["sqnr_db"] is None
    assert report["tensors"][0]["relative_error"] == 0
