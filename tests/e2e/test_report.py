"""``espalier report``: what is in the page, and what is not a finished run."""

import json
import re
import shutil

import pytest

from espalier.analysis.figures import THEMES
from espalier.container import Reader

pytest.importorskip("altair")
pytest.importorskip("vl_convert")


def data_of(page, key):
    (text,) = re.findall(rf'<script type="application/json" id="{key}">(.*?)</script>', page)
    return json.loads(text)


def test_the_page_holds_the_values_of_the_run(espalier, finished_run, tmp_path):
    done = espalier("report", finished_run, "-o", tmp_path / "page.html")
    assert done.status == 0, done
    page = (tmp_path / "page.html").read_text()
    assert done.out == f"{tmp_path / 'page.html'}: {len(page.encode()):,} bytes\n"
    figures = data_of(page, "figures")
    with Reader(finished_run / "model.esp") as reader:
        ledger = reader.ledger()
        codes = reader.tensor("0.weight")
    steps = {r["step"]: r["bytes"] for r in figures["r0-waterfall"]["datasets"]["rows"]}
    assert steps == {
        "original": ledger.original_bytes,
        "pruned": ledger.bytes_p,
        "shared": ledger.bytes_pq,
        "coded": ledger.file_bytes,
        "the file": ledger.file_bytes,
    }
    weights = figures["r0-weights-0.weight"]["datasets"]
    assert len(weights["before"]) == len(weights["after"]) == codes.codebook.size
    assert sum(row["weights"] for row in weights["bins"]) == codes.stored
    shown = [row["centroid"] for row in weights["after"]]
    assert shown == pytest.approx(codes.codebook.tolist(), rel=1e-4)
    assert sum(r["count"] for r in figures["r0-codes-0.weight"]["datasets"]["rows"]) == codes.stored
    results = json.loads((finished_run / "results.json").read_text())
    losses = [
        epoch["train_loss"] for s in results["stages"] for epoch in s["values"].get("epochs", ())
    ]
    rows = figures["r0-training-loss"]["datasets"]["rows"]
    assert [r["loss"] for r in rows if r["series"] == "training"] == losses
    assert data_of(page, "themes")["dark"] == json.loads(json.dumps(THEMES["dark"].config()))
    assert f"<strong>{ledger.file_bytes:,}</strong>" in page


def test_the_same_run_gives_the_same_page_and_an_existing_page_is_kept(
    espalier, fails, finished_run, tmp_path
):
    first, second = tmp_path / "1.html", tmp_path / "2.html"
    assert espalier("report", finished_run, "-o", first, "-q").status == 0
    assert espalier("report", finished_run, "-o", second, "-q").out == ""
    assert first.read_bytes() == second.read_bytes()
    line = fails("report", finished_run, "-o", first)
    assert "1.html exists" in line


def test_several_runs_and_their_figures_as_files(espalier, finished_run, tmp_path):
    other = tmp_path / "other"
    shutil.copytree(finished_run, other)
    page = tmp_path / "page.html"
    done = espalier(
        "report", finished_run, other, "-o", page, "--figures", tmp_path / "figures", "--title", "T"
    )
    assert done.status == 0, done
    assert "<h1>T</h1>" in page.read_text()
    names = {
        p.relative_to(tmp_path / "figures").as_posix() for p in (tmp_path / "figures").rglob("*.*")
    }
    one = ("waterfall", "layer-bytes", "training-loss", "training-error", "weights-0.weight")
    assert {f"other/{n}.{s}" for n in one for s in ("png", "svg")} <= names
    assert f"{finished_run.name}/codes-2.weight.svg" in names
    assert "comparison.png" in names
    assert f", and {len(names)} files in" in done.out


def test_a_file_alone_has_a_page(espalier, finished_run, tmp_path):
    done = espalier("report", finished_run / "model.esp", "-o", tmp_path / "page.html")
    assert done.status == 0, done
    page = (tmp_path / "page.html").read_text()
    assert "<h1>model.esp</h1>" in page
    assert "How it was made" not in page


def test_a_sweep_in_the_run_is_shown(espalier, fails, finished_run, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    points = [
        {"layer": f"{layer}.weight", "axis": axis, "value": value, "metric": 90.0 + value}
        | {"relative_error": None}
        for layer in (0, 2)
        for axis, values in (("density", (0.1, 0.5)), ("bits", (2, 4)))
        for value in values
    ]
    sweep = {"version": 1, "metric": "accuracy, %", "baseline": 95.0, "points": points}
    (run / "sweep.json").write_text(json.dumps(sweep))
    assert espalier("report", run, "-o", tmp_path / "page.html").status == 0
    figures = data_of((tmp_path / "page.html").read_text(), "figures")
    drawn = figures["r0-sensitivity-density"]["datasets"]["rows"]
    assert [(r["layer"], r["value"], r["metric"]) for r in drawn] == [
        (layer, value, 90.0 + value) for layer in ("0", "2") for value in (0.1, 0.5)
    ]
    (run / "sweep.json").write_text("{}")
    line = fails("report", run, "-o", tmp_path / "other.html")
    assert "sweep.json: not a sensitivity sweep (KeyError: 'points')" in line


def test_what_is_not_a_finished_run_is_said_in_one_line(fails, finished_run, tmp_path):
    def line(*args):
        return fails("report", *args, "-o", tmp_path / "page.html")

    assert "nowhere: no such run or file" in line(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    assert "empty: not the folder of a run: it holds no results.json" in line(tmp_path / "empty")
    assert "the same run is named twice" in line(finished_run, finished_run)

    half = tmp_path / "half"
    shutil.copytree(finished_run, half)
    results = json.loads((half / "results.json").read_text())
    whole = results["stages"]
    (half / "results.json").write_text(json.dumps(results | {"stages": whole[:2]}))
    said = f"the run is not finished (2 of {len(whole)} stages are done)"
    assert said in line(half)
    (half / "results.json").write_text(json.dumps(results)[:100])
    assert "results.json: not the results of a run" in line(half)
    (half / "results.json").unlink()
    assert "the run is not finished (no stage is done)" in line(half)

    (half / "results.json").write_text(json.dumps(results))
    esp = half / "model.esp"
    esp.write_bytes(esp.read_bytes()[:-9])
    assert "model.esp: byte" in line(half)
    esp.unlink()
    assert "model.esp: the run saved it, and it is gone" in line(half)
    (half / "notes.txt").write_text("x")
    assert "neither the folder of a run nor an .esp file" in line(half / "notes.txt")
    assert not (tmp_path / "page.html").exists()
