"""``espalier.load`` in a process that has NumPy and numba, and nothing else."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import espalier
from espalier.errors import InvalidArgument

ALONE = Path(__file__).parents[2] / "benchmarks" / "alone.py"


def alone(code, *args):
    return subprocess.run(
        [sys.executable, ALONE, code, *map(str, args)],
        capture_output=True,
        text=True,
        timeout=120,
    )


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(64, 64)
        self.half = nn.Linear(8, 8).bfloat16()
        self.again = nn.Linear(64, 64)
        self.again.weight = self.fc.weight
        self.register_buffer("steps", torch.tensor(7))
        self.register_buffer("small", torch.tensor([1.5, -448.0]).to(torch.float8_e4m3fn))


@pytest.fixture
def esp(tmp_path):
    torch.manual_seed(0)
    model = Tied()
    espalier.prune(model, density={"fc": 0.2})
    espalier.share(model, bits={"fc": 4})
    espalier.save(model, tmp_path / "model.esp")
    return tmp_path / "model.esp"


def test_arrays_without_torch(esp, tmp_path):
    done = alone(
        "import espalier, numpy, sys\n"
        "state = espalier.load(sys.argv[1])\n"
        "assert state['fc.weight'] is state['again.weight']\n"
        "assert not {'torch', 'safetensors', 'scipy'} & set(sys.modules)\n"
        "numpy.savez(sys.argv[2], **state)\n",
        esp,
        tmp_path / "back.npz",
    )
    assert done.returncode == 0, done.stderr
    arrays, tensors = np.load(tmp_path / "back.npz"), espalier.load(esp)
    assert set(arrays) == set(tensors)
    for name, tensor in tensors.items():
        exact = tensor.float() if tensor.dtype in (torch.bfloat16, torch.float8_e4m3fn) else tensor
        assert arrays[name].dtype == exact.numpy().dtype
        assert arrays[name].shape == tensor.shape
        assert arrays[name].tobytes() == exact.contiguous().numpy().tobytes()


def test_a_model_without_torch_is_one_clear_line(esp):
    done = alone(
        "import espalier, sys\n"
        "try:\n    espalier.load(sys.argv[1], into=object())\n"
        "except espalier.MissingDependency as error:\n    print(error)\n",
        esp,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("load into a model needs PyTorch, which cannot be imported")
    assert "pip install torch" in done.stdout


def test_as_numpy_imports_no_torch_where_it_is_there(esp):
    code = (
        "import sys, espalier\n"
        f"state = espalier.load({str(esp)!r}, as_numpy=True)\n"
        "sys.exit('torch' in sys.modules or type(state['steps']).__name__ != 'ndarray')"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=120)


def test_as_numpy_goes_with_no_model(esp):
    with pytest.raises(InvalidArgument, match="leave out into and trainable"):
        espalier.load(esp, Tied(), as_numpy=True)
    with pytest.raises(InvalidArgument, match="leave out into and trainable"):
        espalier.load(esp, trainable=True, as_numpy=True)


def test_a_broken_file_without_torch(tmp_path, esp):
    (tmp_path / "cut.esp").write_bytes(esp.read_bytes()[:-1])
    done = alone(
        "import espalier, sys\n"
        "try:\n    espalier.load(sys.argv[1])\n"
        "except espalier.TruncatedFile as error:\n    print(error)\n",
        tmp_path / "cut.esp",
    )
    assert "cut.esp" in done.stdout
    assert done.stdout.count("\n") == 1
