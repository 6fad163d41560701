"""``espalier profile`` as a process."""

import json

import pytest

MODEL = """
import torch
from torch import nn

def network():
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10))

def batch():
    return torch.zeros(2, 3, 8, 8)

def number():
    return 3
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(MODEL)
    return tmp_path


def test_a_table_and_json_say_the_same(espalier, project):
    options = ("profile", "--model", "mine:network", "--repeats", 2, "--threads", 1)
    shown = espalier(*options, "--input-shape", "3,8,8", "--batch", 2, cwd=project)
    assert shown.status == 0, shown
    assert "conv2d" in shown.out
    assert "of the time in non-tensor layers" in shown.out
    done = espalier(*options, "--inputs", "mine:batch", "--json", cwd=project)
    assert done.status == 0, done
    found = json.loads(done.out)
    assert (found["model"], found["inputs"], found["threads"]) == (
        "mine:network",
        [[2, 3, 8, 8]],
        1,
    )
    assert found["parameters"] == 3 * 8 * 9 + 8 + 8 * 36 * 10 + 10
    assert f"{found['macs']:,}" in shown.out
    assert [row["layer"] for row in found["rows"]] == ["0", "1", "2", "3"]


def test_it_can_be_drawn(espalier, fails, project):
    pytest.importorskip("vl_convert")
    options = ("profile", "--model", "mine:network", "--inputs", "mine:batch", "--repeats", 1)
    done = espalier(*options, "--plot", "time.svg", "-q", cwd=project)
    assert done.status == 0, done
    assert "conv2d" in (project / "time.svg").read_text()
    assert "time.svg exists" in fails(*options, "--plot", "time.svg", "-q", cwd=project)
    line = fails(*options, "--plot", "time.gif", "-q", cwd=project)
    assert "time.gif: figures are written as .png or .svg" in line


def test_bad_input_is_said_in_one_line(fails, project):
    def line(*args, **options):
        model = options.pop("model", "mine:network")
        return fails("profile", "--model", model, *args, "-q", cwd=project, **options)

    assert "give either --input-shape or --inputs" in line(status=2)
    assert "--input-shape '3,x' must be sizes" in line("--input-shape", "3,x")
    assert "fails on inputs of shape (1, 4, 8, 8)" in line("--input-shape", "4,8,8")
    assert "mine:number gave a int, not a Module" in line("--input-shape", "1", model="mine:number")
    assert "--model: cannot import none" in line("--input-shape", "1", model="none:x")
    assert "--device must be cpu or cuda, not 'tpu'" in line(
        "--inputs", "mine:batch", "--device", "tpu"
    )
