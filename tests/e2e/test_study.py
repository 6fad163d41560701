"""``espalier study`` as a process."""

import json

import pytest

NETWORK = """
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def data():
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    return (x[:500], y[:500]), (x[500:], y[500:])
"""
MINE = ("--model", "mine:model", "--data", "mine:data", "--holdout", "100", "--out", "s", "-j", "1")


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    return tmp_path


def test_figures_numbers_and_findings(espalier, project):
    ran = espalier("study", *MINE, "--figures", "bits,table", "--samples", "128", cwd=project)
    assert ran.status == 0, ran
    assert "pruning does not hurt quantization" in ran.out
    found = json.loads((project / "s" / "study.json").read_text())
    assert found["tuning"]["samples"] == 128
    assert len(found["points"]) == 2 * 7 + 3
    assert "## Accuracy against bits (figure 7)" in (project / "s" / "study.md").read_text()
    assert (project / "s" / "study-bits.svg").read_bytes().startswith(b"<svg")
    kept = (project / "s" / "study-points.jsonl").read_bytes()
    again = espalier("study", *MINE, "--figures", "bits,table", "--samples", "128", cwd=project)
    assert again.status == 0, again
    assert (project / "s" / "study-points.jsonl").read_bytes() == kept


@pytest.mark.parametrize(
    ("args", "said"),
    [
        ((*MINE, "--figures", "nine"), "figures are compression, bits, initialisation, table"),
        ((*MINE, "--density", "0"), "density must be a number in (0, 1]"),
        ((*MINE, "--samples", "5"), "tuning.samples must lie between"),
        ((*MINE[:4], "--out", "s"), "nothing is held out"),
    ],
)
def test_mistakes_are_said_in_one_line(fails, project, args, said):
    assert said in fails("study", *args, "-q", cwd=project)
