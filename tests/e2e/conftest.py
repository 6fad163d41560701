"""The command line as a process of its own: forked from one that has torch loaded already."""

import json
import os
import select
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file


@dataclass(frozen=True)
class Ran:
    status: int
    out: str
    err: str


def environment():
    """A plain one: whether colours are on must not depend on who runs the tests."""
    keep = {k: v for k, v in os.environ.items() if k not in ("FORCE_COLOR", "COLUMNS")}
    # The models are tiny: a second thread would only wait for the first.
    return keep | {"PYTHONUNBUFFERED": "", "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def espalier(tmp_path_factory):
    """Run ``espalier ARGS``; returns its exit status, standard output and standard error."""
    files = [tmp_path_factory.mktemp("streams") / name for name in ("out", "err")]
    server = subprocess.Popen(
        [sys.executable, Path(__file__).with_name("forked.py")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(),
    )

    def run(*args, cwd=None):
        request = {"args": [str(arg) for arg in args], "cwd": str(cwd or Path.cwd())}
        request |= {"env": environment(), "out": str(files[0]), "err": str(files[1])}
        print(json.dumps(request), file=server.stdin, flush=True)
        if not select.select([server.stdout], [], [], 300)[0]:
            server.kill()
            raise TimeoutError(f"espalier {args} takes more than 300 s")
        status = int(server.stdout.readline())
        return Ran(status, *(file.read_text("utf-8") for file in files))

    yield run
    server.stdin.close()
    assert server.wait(60) == 0


@pytest.fixture(scope="session")
def fails(espalier):
    """Run ``espalier ARGS``, which must end with ``status`` and one line on standard error."""

    def run(*args, status=1, **options):
        ran = espalier(*args, **options)
        assert ran.status == status, ran
        assert ran.err.startswith("espalier: "), ran
        assert ran.err.count("\n") == 1, ran
        assert ran.err.endswith("\n"), ran
        assert ran.out == "", ran
        return ran.err

    return run


NETWORK = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2400, 64, generator=generator)
    y = x[:, :10].argmax(1)
    return (x[:2000], y[:2000]), (x[2000:], y[2000:])
"""
SHORT = """
model: mine:model
data: mine:data
holdout: 400
stages:
  - train: {epochs: 3, batch_size: 32}
  - evaluate: {split: test, name: reference}
  - prune: {density: 0.3}
  - retrain: {epochs: 2, batch_size: 32}
  - share: {bits: 4}
  - fine_tune: {epochs: 2, lr: 1e-3, batch_size: 32}
  - save: {path: model.esp, coder: huffman}
  - evaluate: {split: test, name: compressed}
"""


@pytest.fixture(scope="session")
def network_source():
    """A module with a small model and its data."""
    return NETWORK


@pytest.fixture(scope="session")
def finished_run(espalier, tmp_path_factory):
    """The folder of a short run that is finished. Not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    (folder / "mine.py").write_text(NETWORK)
    (folder / "short.yaml").write_text(SHORT)
    done = espalier("run", "short.yaml", "--out", "run", "-q", cwd=folder)
    assert done.status == 0, done
    return folder / "run"


def network(seed=0):
    """Tensors of a small network: shared, kept exactly, and of dtypes that are neither."""
    rng = np.random.default_rng(seed)

    def normal(*shape):
        return rng.normal(0, 0.1, shape).astype(np.float32)

    padding = normal(100, 32)
    padding[0] = 0
    return {
        "conv1.weight": normal(16, 3, 3, 3),
        "conv1.bias": normal(16),
        "fc1.weight": normal(64, 256),
        "fc1.bias": normal(64),
        "half.weight": normal(64, 64).astype(np.float16),
        "embed.weight": padding,
        "tiny.weight": normal(2, 2),
        "steps": np.array(7),
        "table": np.arange(300, dtype=np.int32),
    }


@pytest.fixture(scope="session")
def tensors():
    return network()


@pytest.fixture
def checkpoint(tmp_path, tensors):
    """A safetensors file with :func:`network` in it, alone in its folder."""
    path = tmp_path / "net.safetensors"
    save_file(tensors, path, metadata={"format": "pt"})
    return path
