"""``compress --lambda`` and ``--target-loss`` as processes, and the stage of a recipe."""

import json

import pytest
import torch
from torch import nn

import espalier as package

MODULE = """
import torch
from torch import nn

def model():
    return nn.Sequential(nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
                         nn.Linear(8 * 36, 10))

def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1200, 1, 8, 8, generator=generator)
    y = x.flatten(1)[:, :10].argmax(1)
    return (x[:1000], y[:1000]), (x[1000:], y[1000:])

def no_data():
    return 7
"""
RECIPE = """
model: mine:model
data: mine:data
holdout: 200
stages:
  - train: {epochs: 12, batch_size: 50, lr: 3e-3}
  - evaluate: {split: held_out, name: before}
  - quantize_rd: {max_loss_rise: 0.01, samples: 200}
  - evaluate: {split: held_out, name: after}
  - save: {path: model.esp}
"""
REFERENCES = ["--model", "mine:model", "--data", "mine:data"]


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 36, 10)
    )


def samples() -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(1200, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return x, x.flatten(1)[:, :10].argmax(1)


@pytest.fixture(scope="module")
def trained() -> dict[str, torch.Tensor]:
    """The weights of a network that has learned something to lose."""
    model, (x, y) = network(), samples()
    optimizer = torch.optim.Adam(model.parameters(), 3e-3)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x[:1000]), y[:1000]).backward()
        optimizer.step()
    return model.state_dict()


@pytest.fixture
def project(tmp_path, trained):
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "recipe.yaml").write_text(RECIPE)
    torch.save(trained, tmp_path / "net.pt")
    return tmp_path


@torch.no_grad()
def loss(state: dict[str, torch.Tensor]) -> float:
    model, (x, y) = network().eval(), samples()
    model.load_state_dict(state)
    return float(nn.functional.cross_entropy(model(x), y))


def test_lambda_from_the_weights_alone(espalier, project):
    sizes = []
    for lam in ("0.003", "0.03", "conv=0.3,linear=0.03"):
        done = espalier("compress", "net.pt", "-o", "net.esp", "--lambda", lam, "-f", cwd=project)
        assert done.status == 0, done
        sizes.append((project / "net.esp").stat().st_size)
    assert sizes[0] > sizes[1] > sizes[2]
    package.load(project / "net.esp", into=network())


def test_target_without_data_limits_the_relative_error(espalier, project):
    args = ["compress", "net.pt", "-o", "net.esp", "--target-loss", "5%", "--json"]
    done = espalier(*args, cwd=project)
    assert done.status == 0, done
    tensors = json.loads(done.out)["tensors"]
    quantized = [t for t in tensors if t["lambda"] is not None]
    assert [t["name"] for t in quantized] == ["0.weight", "4.weight"]
    assert all(t["relative_error"] <= 0.05 for t in quantized)
    assert quantized[1]["relative_error"] > 0.045  # the other has only 72 weights


@pytest.mark.parametrize("how", [["--lambda", "3e-6"], ["--target-loss", "0.02"]])
def test_with_the_users_model_and_data(espalier, project, trained, how):
    args = ["compress", "net.pt", "-o", "net.esp", *how, *REFERENCES, "--json"]
    done = espalier(*args, cwd=project)
    assert done.status == 0, done
    assert "quantize" in done.err
    assert ("evaluations" in done.err) == (how[0] == "--target-loss")
    found = {t["name"]: t for t in json.loads(done.out)["tensors"]}
    assert found["4.weight"]["values"] < 256
    assert found["1.running_mean"]["relative_error"] > 0  # the batch norm was moved
    before, after = loss(trained), loss(package.load(project / "net.esp"))
    assert before - 0.02 < after < before + 0.03


def test_more_loss_smaller_file(espalier, project):
    sizes = []
    for limit in ("0.002", "0.5"):
        args = ["compress", "net.pt", "-o", "net.esp", "-f", "--target-loss", limit, *REFERENCES]
        assert espalier(*args, cwd=project).status == 0
        sizes.append((project / "net.esp").stat().st_size)
    assert sizes[0] > sizes[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lambda", "0"], "lambda must be a finite number above 0, not 0.0"),
        (["--lambda", "some"], "lambda: 'some' is not a number"),
        (["--lambda", "0.1", "--bits", "4"], "--bits and --lambda exclude each other"),
        (["--lambda", "0.1", "--target-loss", "1"], "--lambda and --target-loss exclude"),
        (["--lambda", "0.1", "--lossless"], "--lossless excludes"),
        (["--target-loss", "-1"], "'-1' is not a number above 0, or percents"),
        (["--target-loss", "2"], "'2' is no relative error below 1"),
        (["--lambda", "0.1", "--model", "mine:model"], "--model and --data belong together"),
        (REFERENCES, "--model and --data need --lambda or --target-loss"),
    ],
)
def test_wrong_usage(fails, project, options, message):
    assert message in fails("compress", "net.pt", "-o", "n.esp", *options, status=2, cwd=project)
    assert not (project / "n.esp").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--lambda", "fc*=0.1"], "the pattern 'fc*' matches nothing; there are 0 (conv), 4"),
        (["--lambda", "0.1", "--model", "mine:nothing", "--data", "mine:data"], "has no function"),
        (["--lambda", "0.1", "--model", "mine:model", "--data", "mine:no_data"], "gave a int"),
    ],
)
def test_what_cannot_be_done(espalier, project, options, message):
    done = espalier("compress", "net.pt", "-o", "n.esp", "-q", *options, cwd=project)
    assert done.status == 1
    assert message in done.err
    assert done.err.count("\n") == 1
    assert not (project / "n.esp").exists()


def test_a_recipe_with_the_stage(espalier, project):
    done = espalier("run", "recipe.yaml", "--out", "run", "-q", "--json", cwd=project)
    assert done.status == 0, done
    stages = json.loads(done.out)["stages"]
    before, quantized, after = (stages[i]["values"] for i in (1, 2, 3))
    assert after["loss"] <= before["loss"] + 0.01
    assert quantized["limit"] == pytest.approx(before["loss"] + 0.01)
    assert 0 < quantized["bits_per_weight"] < 8
    assert (project / "run" / "model.esp").exists()


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("{}", "give one of lambda, max_loss_rise and max_error_rise"),
        ("{lambda: 1e-8, max_loss_rise: 1}", "give one of lambda"),
        ("{lambda: -1}", "greater than 0"),
    ],
)
def test_recipes_that_are_wrong(fails, project, stage, message):
    text = RECIPE.replace("{max_loss_rise: 0.01, samples: 200}", stage)
    (project / "recipe.yaml").write_text(text)
    assert message in fails("run", "recipe.yaml", "--out", "run", cwd=project)
