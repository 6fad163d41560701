"""``espalier sensitivity`` as a process."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

NETWORK = """
import math, time
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 4))

def data():
    x = torch.randn(600, 16, generator=torch.Generator().manual_seed(0))
    y = x[:, :4].argmax(1)
    return (x[:500], y[:500]), (x[500:], y[500:])

def slow(model):
    time.sleep(0.3)
    return float(model(torch.ones(1, 16)).sum())

def nan(model):
    return math.nan

def broken(model):
    raise KeyError("labels")
"""
RECIPE = """
model: mine:model
data: mine:data
holdout: 100
stages:
  - train: {epochs: 2, batch_size: 32}
  - prune: {density: 0.5}
"""


@pytest.fixture
def project(tmp_path):
    (tmp_path / "mine.py").write_text(NETWORK)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_functions_of_the_users_own(espalier, project):
    args = ["--model", "mine:model", "--data", "mine:data", "--holdout", "100"]
    args += ["--density", "0.1,0.5", "--grid", "bits=2", "--out", "s", "-j", "1"]
    ran = espalier("sensitivity", *args, cwd=project)
    assert ran.status == 0, ran
    assert "accuracy by density" in ran.out
    sweep = json.loads((project / "s" / "sweep.json").read_text())
    assert len(sweep["points"]) == 6
    assert sweep["data"] == "mine:data, held_out (100, seed 0)"


def test_a_recipe_trains_its_network_and_a_finished_run_is_taken_as_it_is(espalier, project):
    one = espalier(
        "sensitivity",
        "recipe.yaml",
        "--bits",
        "1",
        "--out",
        "a",
        "--json",
        "-q",
        "-j",
        "1",
        cwd=project,
    )
    assert one.status == 0, one
    again = espalier(
        "sensitivity",
        "a/reference",
        "--bits",
        "1",
        "--out",
        "b",
        "--json",
        "-q",
        "-j",
        "1",
        cwd=project,
    )
    modules = [sys.executable, "-X", "importtime", "-m", "espalier", "sensitivity", "a/reference"]
    answered = subprocess.run(
        [*modules, "--bits", "1", "--out", "b", "--json", "-j", "1"],
        cwd=project,
        capture_output=True,
        text=True,
        check=True,
    )
    assert answered.stdout == again.out
    assert " torch" not in answered.stderr  # the same question is answered from the folder
    assert " numba" not in answered.stderr
    two = espalier(
        "sensitivity",
        "a/reference",
        "--bits",
        "1",
        "--out",
        "b",
        "--json",
        "-q",
        "-j",
        "1",
        cwd=project,
    )
    assert json.loads(one.out) == json.loads(two.out) | {"points": json.loads(one.out)["points"]}


def test_a_bare_checkpoint_needs_no_data(espalier, checkpoint):
    folder = checkpoint.parent
    ran = espalier(
        "sensitivity",
        checkpoint,
        "--bits",
        "2,4",
        "--layers",
        "linear,conv1",
        "--out",
        "s",
        cwd=folder,
    )
    assert ran.status == 0, ran
    assert "SQNR dB by bits" in ran.out
    points = json.loads((folder / "s" / "sweep.json").read_text())["points"]
    assert [p["layer"] for p in points][:2] == ["conv1.weight"] * 2
    assert all(p["relative_error"] > 0 for p in points if p["layer"] != "tiny.weight")


def test_a_sweep_that_is_killed_goes_on(espalier, project):
    args = ["sensitivity", "--model", "mine:model", "--evaluate", "mine:slow", "--out", "s"]
    args += ["--density", "0.1,0.2,0.3,0.4,0.5,0.6", "-j", "1", "-q"]
    running = subprocess.Popen(
        [sys.executable, "-m", "espalier", *args], cwd=project, env=os.environ
    )
    points, deadline = project / "s" / "points.jsonl", time.monotonic() + 120
    while not points.exists() or points.read_bytes().count(b"\n") < 6:
        assert running.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.02)
    running.send_signal(signal.SIGKILL)
    running.wait()
    held = points.read_bytes()
    assert not (project / "s" / "sweep.json").exists()
    ran = espalier(*args, cwd=project)
    assert ran.status == 0, ran
    assert points.read_bytes()[: held.rfind(b"\n") + 1] == held[: held.rfind(b"\n") + 1]
    assert len(json.loads((project / "s" / "sweep.json").read_text())["points"]) == 12


MINE = ("--model", "mine:model", "--data", "mine:data", "-j", "1", "--out", "s")


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        ((*MINE, "--bits", "2"), 1, "nothing is held out of the training samples"),
        ((*MINE, "--bits", "0"), 2, "bits must be an integer from 1 to 16, not 0"),
        ((*MINE, "--density", "0.1,many"), 2, "density: 'many' is not a number"),
        ((*MINE, "--grid", "width=3"), 1, "no axis is called 'width'; known are bits, density"),
        ((*MINE, "--grid", "rank=3"), 2, "rank must be a share of the full rank in (0, 1]"),
        ((*MINE, "--grid", "rank"), 2, "is not AXIS=VALUE"),
        ((*MINE, "--split", "test", "--layers", "conv1"), 1, "'conv1' matches nothing"),
        ((*MINE, "--split", "train"), 2, "--split must be held_out or test"),
        ((*MINE, "--metric", "F1"), 2, "go with --evaluate"),
        ((*MINE, "--evaluate", "mine:nan"), 1, "the network as it is: returned nan"),
        ((*MINE, "--evaluate", "mine:broken"), 1, "raised KeyError: 'labels'"),
        ((*MINE, "--evaluate", "mine:nothing"), 1, "mine has no function 'nothing'"),
        (("recipe.yaml", *MINE), 2, "give either INPUT or --model"),
        (("nothing.yaml", "--out", "s"), 1, "nothing.yaml: no such recipe file"),
        (("mine.py", "--out", "s"), 1, "mine.py"),
        ((*MINE[:-1], "mine.py"), 1, "mine.py: is a file"),
    ],
)
def test_mistakes_are_said_in_one_line(fails, project, args, status, said):
    assert said in fails("sensitivity", *args, "-q", status=status, cwd=project)


def test_a_recipe_of_ranks_makes_the_file_that_was_measured(espalier, project):
    grid = ["--grid", "rank=0.25,0.5", "--bits", "6"]
    args = ["recipe.yaml", *grid, "--out", "s", "-q", "-j", "1"]
    swept = espalier("sensitivity", *args, cwd=project)
    assert swept.status == 0, swept
    chosen = espalier("choose", "s", "--max-loss", "20", "--json", "-j", "1", cwd=project)
    assert chosen.status == 0, chosen
    proposal = json.loads(chosen.out)
    assert any("rank" in values for values in proposal["setting"].values())
    recipe = (project / "s" / "recipe.yaml").read_text()
    assert "factorize" in recipe
    assert "*weight" in recipe
    ran = espalier("run", "s/recipe.yaml", "--out", "r", "--json", "-q", cwd=project)
    assert ran.status == 0, ran
    assert (project / "r" / "model.esp").stat().st_size == proposal["file_bytes"]
    assert f"{100 - proposal['metric']:g}" in {
        f"{stage['values']['error']:g}"
        for stage in json.loads(ran.out)["stages"]
        if stage["kind"] == "evaluate"
    }


def test_a_sweep_becomes_a_recipe_that_makes_the_file(espalier, project):
    swept = espalier(
        "sensitivity",
        "recipe.yaml",
        "--density",
        "0.2,0.5",
        "--bits",
        "2,4",
        "--out",
        "s",
        "-q",
        "-j",
        "1",
        cwd=project,
    )
    assert swept.status == 0, swept
    chosen = espalier("choose", "s", "--max-loss", "3", "--json", "-j", "1", cwd=project)
    assert chosen.status == 0, chosen
    proposal = json.loads(chosen.out)
    assert proposal["file_bytes"] < proposal["baseline_bytes"]
    assert proposal["metric"] >= proposal["baseline"] - 3
    ran = espalier("run", "s/recipe.yaml", "--out", "r", "--json", "-q", cwd=project)
    assert ran.status == 0, ran
    assert (project / "r" / "model.esp").stat().st_size == proposal["file_bytes"]
    measured = {
        stage["values"]["name"]: stage["values"]["error"]
        for stage in json.loads(ran.out)["stages"]
        if stage["kind"] == "evaluate"
    }
    assert measured["held_out"] == pytest.approx(100 - proposal["metric"])
    small = espalier("choose", "s", "--max-bytes", "900", "--out", "b", "-j", "1", cwd=project)
    assert small.status == 0, small
    assert json.loads((project / "b" / "proposal.json").read_text())["file_bytes"] <= 900


@pytest.mark.parametrize(
    ("args", "status", "said"),
    [
        (("s", "--max-loss", "1"), 1, "s: holds no sweep; espalier sensitivity makes one"),
        (("s",), 2, "give either --max-loss or --max-bytes"),
        (("s", "--max-loss", "-1"), 2, "--max-loss"),
        (("s", "--max-loss", "1", "--max-bytes", "9"), 2, "give either"),
    ],
)
def test_choosing_from_nothing(fails, project, args, status, said):
    assert said in fails("choose", *args, status=status, cwd=project)
