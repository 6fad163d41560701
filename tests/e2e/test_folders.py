"""Hugging Face folders through the command line: there and back, and how much memory it takes."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest
from safetensors.numpy import save_file

# Not ru_maxrss, which on Linux begins with that of the process that started this one.
MEASURED = """
import re, sys
from espalier.cli import main
status = main(sys.argv[1:])
print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read()).group(1))
sys.exit(status)
"""
TENSOR_BYTES = 4 << 20


def folder(path, tensors, shards=2, shape=(1024, 1024)):
    """``tensors`` random layers in ``shards`` files with an index, and a config."""
    rng = np.random.default_rng(0)
    path.mkdir()
    weight_map = {}
    for shard in range(shards):
        name = f"model-{shard + 1:05}-of-{shards:05}.safetensors"
        part = {
            f"layers.{i}.weight": rng.normal(0, 0.02, shape).astype(np.float32)
            for i in range(shard, tensors, shards)
        }
        part |= {f"layers.{i}.bias": np.zeros(7, np.float32) for i in range(shard, tensors, shards)}
        save_file(part, path / name, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(part, name)
    index = {"metadata": {}, "weight_map": weight_map}
    (path / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    (path / "config.json").write_text('{"model_type": "random"}\n')
    return path


def tree(path):
    return {
        str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()
    }


def test_a_folder_there_and_back(espalier, fails, tmp_path):
    model = folder(tmp_path / "model", 4, shape=(64, 48))
    esp, back = tmp_path / "model.esp", tmp_path / "back"
    done = espalier("compress", model, "-o", esp, "--bits", "none", "--jobs", 2)
    assert done.status == 0, done
    total = sum(map(len, tree(model).values()))
    assert f"{model}: {total:,} bytes" in done.out
    done = espalier("verify", esp, "--against", model)
    assert "8 tensors equal, 0 not" in done.out, done
    done = espalier("decompress", esp, "-o", back, "--json", "-j", 2)
    assert json.loads(done.out)["output_bytes"] == total
    assert tree(back) == tree(model)
    assert "is not empty; --force" in fails("decompress", esp, "-o", back)
    assert espalier("decompress", esp, "-o", back, "--force", "-q").status == 0
    # As one plain file too.
    assert espalier("decompress", esp, "-o", tmp_path / "all.safetensors", "-q").status == 0
    assert (
        "8 tensors equal, 0 not"
        in espalier("verify", esp, "--against", tmp_path / "all.safetensors").out
    )
    ledger = json.loads(espalier("inspect", esp, "--json").out)
    assert ledger["metadata"]["original"]["format"] == "folder"
    sizes = {file["name"]: file["original_bytes"] for file in ledger["files"]}
    assert sizes["config.json"] == 25
    assert "config.json" in espalier("inspect", esp).out
    (model / "config.json").write_text("{}")
    line = fails("verify", esp, "--against", model)
    assert "file 'config.json' differs" in line


def test_a_lossy_folder_has_the_same_bytes_for_any_number_of_jobs(espalier, tmp_path):
    model = folder(tmp_path / "model", 6, shape=(64, 48))
    for jobs in ("1", "2", "4"):
        done = espalier("compress", model, "-o", tmp_path / f"{jobs}.esp", "-q", "--jobs", jobs)
        assert done.status == 0, done
    assert len({(tmp_path / f"{jobs}.esp").read_bytes() for jobs in "124"}) == 1
    assert espalier("decompress", tmp_path / "1.esp", "-o", tmp_path / "back", "-q").status == 0
    before, after = tree(model), tree(tmp_path / "back")
    assert before.keys() == after.keys()
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {name for name in before if name.endswith(".safetensors")}


def peak_bytes(*args):
    done = subprocess.run(
        [sys.executable, "-c", MEASURED, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=300,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout.split()[-1]) * 1024


@pytest.mark.slow
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc")
@pytest.mark.parametrize("options", [["--bits", "none"], ["--bits", "4"]])
def test_memory_is_bounded_by_the_largest_tensor(tmp_path, options):
    """Sixteen times the tensors, and no more memory than a few of them more."""
    jobs = ["--jobs", 2]
    peaks = {}
    for tensors in (4, 64):
        model = folder(tmp_path / f"{tensors}", tensors)
        esp, back = tmp_path / f"{tensors}.esp", tmp_path / f"{tensors}-back"
        peaks[tensors] = (
            peak_bytes("compress", model, "-o", esp, "-q", *options, *jobs),
            peak_bytes("decompress", esp, "-o", back, "-q", *jobs),
        )
    for small, large in zip(peaks[4], peaks[64], strict=True):
        assert large - small < 6 * 2 * TENSOR_BYTES, peaks
        assert large - small < 64 * TENSOR_BYTES / 4
