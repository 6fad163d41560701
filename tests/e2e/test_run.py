"""``espalier run`` and ``espalier demo`` as processes: whole, interrupted and resumed."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

RECIPE = """
model: mine:model
data: mine:data
holdout: 400
stages:
  - train: {epochs: 5, batch_size: 32}
  - evaluate: {split: test, name: reference}
  - retrain: {epochs: 12, batch_size: 32, prune: {density: 0.3, epochs: 6}}
  - share: {bits: 4}
  - fine_tune: {epochs: 2, lr: 1e-4, batch_size: 32}
  - save: {path: model.esp}
"""


@pytest.fixture
def project(tmp_path, network_source):
    """A folder with the user's own module and recipe."""
    (tmp_path / "mine.py").write_text(network_source)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    return tmp_path


def test_a_run_that_is_interrupted_resumes_to_the_same_file(espalier, project):
    done = espalier("run", "recipe.yaml", "--out", "whole", cwd=project)
    assert done.status == 0, done
    assert "smaller" in done.out
    script = Path(sys.executable).with_name("espalier")  # not -m, which adds the folder by itself
    running = subprocess.Popen(
        [script, "run", "recipe.yaml", "--out", "run"],
        cwd=project,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    while not (project / "run" / "stage-03.pt").exists():  # in the middle of retraining
        assert running.poll() is None, running.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.002)
    running.send_signal(signal.SIGINT)
    out, err = running.communicate(timeout=60)
    assert (running.returncode, out) == (130, "")
    assert err.endswith("retrain\nespalier: interrupted\n")
    assert {p.name for p in (project / "run").iterdir()} == {
        "state.pt",
        "results.json",
        "stage-03.pt",
    }
    again = espalier("run", "recipe.yaml", "--out", "run", cwd=project)
    assert again.status == 1
    assert "--resume goes on with it, --force starts again" in again.err
    resumed = espalier(
        "run", "recipe.yaml", "--out", "run", "--resume", "--json", "-q", cwd=project
    )
    assert resumed.status == 0, resumed
    first, second = ((project / folder / "model.esp").read_bytes() for folder in ("whole", "run"))
    assert first == second
    stages = json.loads(resumed.out)["stages"]
    assert [s["kind"] for s in stages][-1] == "save"


def test_the_users_mistakes_are_said_in_one_line(fails, project):
    (project / "mine.py").write_text("import no_such_package\n")
    line = fails("run", "recipe.yaml", "--out", "run", cwd=project)
    assert "cannot import mine (No module named 'no_such_package')" in line
    line = fails("run", "recipe.yaml", "--device", "tpu", cwd=project)
    assert "--device must be cpu or cuda, not 'tpu'" in line
    line = fails("run", "recipe.yaml", "--out", "mine.py", cwd=project)
    assert "mine.py: is a file; --out takes a folder" in line


@pytest.mark.slow
def test_the_demo_on_digits(espalier, tmp_path):
    done = espalier("demo", "--dataset", "digits", "--out", tmp_path / "demo", "--json")
    assert done.status == 0, done
    result = json.loads(done.out)
    assert result["sizes"]["coded"] == (tmp_path / "demo" / "model.esp").stat().st_size
    assert result["sizes"]["original"] / result["sizes"]["coded"] > 40
    assert result["errors"]["compressed"] <= result["errors"]["reference"] + 3
    report = (tmp_path / "demo" / "report.md").read_text()
    assert "| fc1 | 3.0 |" in report
    page = (tmp_path / "demo" / "report.html").read_text()
    assert "<h1>Deep Compression of LeNet-300-100 on digits</h1>" in page
    checked = espalier("verify", tmp_path / "demo" / "model.esp")
    assert checked.status == 0, checked
