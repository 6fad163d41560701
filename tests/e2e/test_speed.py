"""``espalier speed`` as a process."""

import json

import pytest
import torch
from torch import nn

import espalier

MODEL = """
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 64, 3), nn.ReLU(), nn.Conv2d(64, 4, 3))
    espalier.prune_filters(model, 0.05, example=torch.zeros(1, 3, 32, 32))
    espalier.save(model, tmp_path / "small.esp")
    return tmp_path


VERDICTS = ("faster", "slower", "no difference")
COMMON = ("speed", "small.esp", "--model", "mine:network", "--threads", 1)


def test_a_table_and_json_have_the_same_rows(espalier, project):
    options = (*COMMON, "--runtimes", "eager", "--batches", "8", "--repeats", 15)
    done = espalier(*options, "--input-shape", "3,32,32", "--json", cwd=project)
    assert done.status == 0, done
    (row,) = json.loads(done.out)["rows"]
    assert (row["runtime"], row["batch"], row["note"]) == ("eager", 8, "")
    assert row["verdict"] in VERDICTS  # which one, a busy machine may decide
    assert row["ratio"]["low"] <= row["ratio"]["median"] <= row["ratio"]["high"]
    shown = espalier(*options, "--input-shape", "3,32,32", cwd=project)
    assert "original, ms" in shown.out
    assert any(verdict in shown.out for verdict in VERDICTS)
    assert "Medians, cpu, 1 threads" in shown.out


def test_sparse_layers_run_from_their_codes(espalier, project):
    (project / "mine.py").write_text(
        "from torch import nn\n\ndef network():\n"
        "    return nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024))\n"
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(1024, 1024))
    save(model, 0.02, project / "small.esp")
    options = (*COMMON, "--runtimes", "packed", "--batches", "1", "--repeats", 15)
    done = espalier(*options, "--input-shape", "1,32,32", "--json", cwd=project)
    assert done.status == 0, done
    (row,) = json.loads(done.out)["rows"]
    assert (row["runtime"], row["note"]) == ("packed", "")
    assert row["verdict"] in VERDICTS


def save(model, density, path):
    espalier.prune(model, density=density)
    espalier.save(model, path)


def test_bad_input_is_said_in_one_line(fails, project):
    def line(*args, status=1):
        return fails(*COMMON, *args, "-q", cwd=project, status=status)

    assert "--input-shape '3,x' must be sizes" in line("--input-shape", "3,x")
    shape = ("--input-shape", "3,32,32")
    assert "--batches '1,x' must be numbers" in line(*shape, "--batches", "1,x", status=2)
    assert "no runtime is called 'tpu'" in line(*shape, "--runtimes", "tpu")
    assert "fails on inputs of shape (1, 4, 8, 8)" in line("--input-shape", "4,8,8")
