"""Learning from another network: the losses by hand, hooks, and the stage of a recipe."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import espalier
from espalier.errors import InvalidArgument
from espalier.recipe import run_recipe
from espalier.recipe.schema import parse_recipe
from espalier.recipe.teachers import cast_once
from espalier.samples import Samples
from espalier.training import Ensemble, train
from espalier.training.distillation import distillation_loss, feature_loss


def network(width: int = 6) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.Flatten(),
        nn.Linear(width * 16, 3),
    )  # fmt: skip


def samples(data_dir: object = None) -> tuple[Samples, Samples]:
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(96, 1, 8, 8, generator=generator), torch.arange(96) % 3
    return Samples(x[:64], y[:64]), Samples(x[64:], y[64:])


def test_soft_targets_by_hand():
    outputs, teacher = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 2.0]])
    p = torch.softmax(teacher / 2, 1)
    q = torch.softmax(outputs / 2, 1)
    expected = 4 * (p * (p / q).log()).sum()
    assert distillation_loss(outputs, teacher, 2.0) == pytest.approx(expected.item(), rel=1e-6)


def test_hints_by_hand():
    teacher = torch.tensor([[3.0, 4.0]])
    assert feature_loss(torch.tensor([[3.0, 2.0]]), teacher) == pytest.approx(4 / 25)
    assert feature_loss(teacher, teacher) == 0
    assert feature_loss(torch.ones(1, 2), torch.zeros(1, 2)).isfinite()


def test_attention_by_hand():
    # One sample, one row of two places: sums of squares (1, 1) and (9, 16).
    student = torch.tensor([[[1.0, 0.0]], [[0.0, 1.0]]]).view(1, 2, 1, 2)
    teacher = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    expected = (2**-0.5 - 9 / 337**0.5) ** 2 + (2**-0.5 - 16 / 337**0.5) ** 2
    assert feature_loss(student, teacher) == pytest.approx(expected, rel=1e-6)
    assert feature_loss(5 * student, teacher) == pytest.approx(expected, rel=1e-6)


def test_the_whole_loss_by_hand():
    torch.manual_seed(0)
    student, teacher = network(4), network(6).train()
    x, y = torch.randn(5, 1, 8, 8), torch.tensor([0, 1, 2, 0, 1])
    distill = espalier.Distiller(
        student, teacher, share=0.25, temperature=3, features={"1": "1", "0": "2"}, feature_weight=7
    )
    with pytest.raises(InvalidArgument, match=r"0: outputs of shapes .*\(5, 6, 4, 4\) cannot be"):
        distill(x, student(x), y)
    distill.close()
    with espalier.Distiller(
        student, teacher, share=0.25, temperature=3, features=["1", "2"], feature_weight=7
    ) as distill:
        outputs = student(x)
        loss = distill(x, outputs, y)
    with torch.no_grad():
        maps = [(student[:k](x), teacher[:k](x)) for k in (2, 3)]
        expected = 0.75 * functional.cross_entropy(outputs, y)
        expected += 0.25 * distillation_loss(outputs, teacher(x), 3)
        expected += 7 * sum(feature_loss(s, t) for s, t in maps)
    torch.testing.assert_close(loss.detach(), expected)
    loss.backward()
    assert student[0].weight.grad is not None
    assert all(p.grad is None for p in teacher.parameters())
    assert teacher.training
    assert not any(m._forward_hooks for net in (student, teacher) for m in net.modules())


def test_layers_are_learnt_without_a_label():
    torch.manual_seed(0)
    teacher, (data, _) = network(), samples()
    how = {"distill": 1.0, "epochs": 30, "lr": 1e-2, "batch_size": 16, "seed": 0}
    first = network()

    def distance(student: nn.Module) -> float:
        with torch.no_grad():
            return float(feature_loss(student[:2](data.x), teacher[:2](data.x)))

    plain, hinted = copy.deepcopy(first), copy.deepcopy(first)
    train(plain, data, teacher=teacher, **how)
    train(hinted, data, teacher=teacher, features=["1"], feature_weight=10.0, **how)
    assert distance(hinted) < 0.7 * distance(plain)


def test_bad_input():
    student, teacher = network(), network()
    for wrong, message in (
        ({"share": 1.5}, "share must lie in"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"feature_weight": -1}, "feature_weight must be at least 0"),
        ({"features": ["9"]}, "the student has no layer called '9'"),
        ({"features": {"1": "last"}}, "the teacher has no layer called 'last'"),
    ):
        with pytest.raises(InvalidArgument, match=message):
            espalier.Distiller(student, teacher, **wrong)
    with (
        espalier.Distiller(student, teacher, features=["1"]) as distill,
        pytest.raises(InvalidArgument, match="1: this layer did not run in the student"),
    ):
        distill(torch.zeros(1, 1, 8, 8), torch.zeros(1, 3), torch.zeros(1).long())
    with pytest.raises(InvalidArgument, match="features are learnt from a teacher"):
        train(network(), samples()[0], features=["1"], epochs=1)


RECIPE = """
model: tests.unit.test_distillation:network
data: tests.unit.test_distillation:samples
holdout: 16
stages:
  - train: {epochs: 1, batch_size: 16}
  - prune_filters: {keep: {"0": 0.5}}
  - retrain: {epochs: 2, batch_size: 16, distill: 0.5, features: ["1", "2"], feature_weight: 3}
"""


def test_a_stage_of_a_recipe_learns_layers_of_the_network_before_it_was_cut(tmp_path):
    result = run_recipe(parse_recipe(RECIPE, "x"), tmp_path / "run")
    assert result.model[0].out_channels == 3
    plain = run_recipe(
        parse_recipe(RECIPE.replace('features: ["1", "2"], ', ""), "x"), tmp_path / "plain"
    )
    assert not torch.equal(plain.model[0].weight, result.model[0].weight)
    with pytest.raises(InvalidArgument, match="features are learnt from a teacher: set distill"):
        parse_recipe(RECIPE.replace("distill: 0.5, ", ""), "x")


def test_an_ensemble_teaches_with_the_mean_of_its_logits():
    torch.manual_seed(0)
    members = [nn.Linear(4, 3) for _ in range(3)]
    both = Ensemble(members)
    x = torch.randn(8, 4)
    mean = sum(member(x) for member in members) / 3
    assert torch.allclose(both(x), mean, atol=1e-6)
    # The geometric mean of the members' probabilities, made to sum to one.
    product = torch.stack([member(x).softmax(1) for member in members]).log().mean(0).exp()
    assert torch.allclose(both(x).softmax(1), product / product.sum(1, keepdim=True), atol=1e-6)


@pytest.mark.parametrize(("augment", "calls"), [(None, 4), ("shift-1", 12)])
def test_a_teacher_is_asked_once_where_nothing_changes(monkeypatch, augment, calls):
    from espalier.training import loop

    asked, results = [], []
    for once in (True, False):
        torch.manual_seed(0)
        student, teacher = network(), network()
        teacher.register_forward_hook(lambda *_, once=once: asked.append(once))
        if not once:
            monkeypatch.setattr(loop._Run, "_teach_once", lambda _: None)
        how = {"epochs": 3, "batch_size": 16, "distill": 0.5, "augment": augment}
        train(student, samples()[0], teacher=teacher, **how)
        results.append(student[0].weight)
    assert asked.count(True) == calls
    assert asked.count(False) == 12
    assert torch.equal(*results)


def test_a_teacher_alone_says_what_mixed_samples_are():
    """Labels are not asked for, and the teacher sees what the student sees."""
    torch.manual_seed(0)
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    student, teacher = network(), network()
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0]))
    data = samples()[0]
    data = Samples(data.x, torch.full((len(data),), 99))  # no class
    train(student, data, epochs=1, batch_size=16, distill=1, mix="mixup", teacher=teacher)
    assert len(seen["teacher"]) == 4
    assert all(torch.equal(a, b) for a, b in zip(*seen.values(), strict=True))
    drawn = [any(torch.equal(x, row) for row in data.x) for x in seen["student"][0]]
    assert 0 < sum(drawn) < 16


@pytest.mark.parametrize("features", [(), ("1",)])
def test_views_come_again_in_turn_and_their_teacher_is_asked_once(features):
    """A student at rest sees each batch of an epoch as it was so many epochs before."""
    torch.manual_seed(0)
    seen: dict[str, list[torch.Tensor]] = {"student": [], "teacher": []}
    student, teacher = network(), network()
    for name, model in (("student", student), ("teacher", teacher)):
        model.register_forward_pre_hook(lambda _, x, name=name: seen[name].append(x[0]))
    how = {"epochs": 5, "batch_size": 16, "distill": 0.5, "augment": "shift-1", "views": 2}
    train(student, samples()[0], teacher=teacher, features=features, **how)
    batches = torch.stack(seen["student"]).unflatten(0, (5, 4))
    assert torch.equal(batches[0], batches[2])
    assert torch.equal(batches[1], batches[3])
    assert torch.equal(batches[0], batches[4])
    assert not torch.equal(batches[0], batches[1])
    assert len(seen["teacher"]) == (20 if features else 8)


def test_views_go_on_where_a_run_was_interrupted(tmp_path):
    class Interrupt(Exception):
        """Stands for Ctrl-C."""

    def run(checkpoint=None, stop_at: int | None = None) -> torch.Tensor:
        torch.manual_seed(0)
        student, teacher = network(), network()

        def progress(done: int, _total: int, _text: str) -> None:
            if done == stop_at:
                raise Interrupt

        how = {"epochs": 5, "batch_size": 16, "distill": 0.5, "augment": "shift-1", "views": 2}
        where = {"checkpoint": checkpoint, "progress": progress}
        train(student, samples()[0], teacher=teacher, **where, **how)
        return student[0].weight

    with pytest.raises(Interrupt):
        run(tmp_path / "run.pt", stop_at=14)
    assert torch.equal(run(tmp_path / "run.pt"), run())


def test_views_change_nothing_but_what_is_drawn():
    """As many views as epochs: each epoch draws its own, as without."""
    results = []
    for views in (0, 3, 4):
        torch.manual_seed(0)
        student, teacher = network(), network()
        how = {"epochs": 3, "batch_size": 16, "distill": 0.5, "augment": "shift-1"}
        train(student, samples()[0], teacher=teacher, views=views, **how)
        results.append(student[0].weight)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_teacher_of_many_classes_is_asked_for_each_batch():
    """What it says would take more than the samples."""
    torch.manual_seed(0)
    asked = []
    student, teacher = nn.Linear(3, 4), nn.Linear(3, 4)
    teacher.register_forward_hook(lambda *_: asked.append(1))
    data = Samples(torch.randn(64, 3), torch.zeros(64, dtype=torch.long))
    train(student, data, epochs=2, batch_size=16, distill=0.5, teacher=teacher)
    assert len(asked) == 9


def test_an_ensemble_has_members():
    with pytest.raises(InvalidArgument, match="at least one network"):
        Ensemble([])


def test_losses_of_half_precision_are_not_rounded():
    torch.manual_seed(0)
    outputs, teacher = torch.randn(2, 16, 10).bfloat16()
    expected = distillation_loss(outputs.float(), teacher.float(), 2.0)
    assert distillation_loss(outputs, teacher, 2.0) == expected
    assert feature_loss(outputs, teacher) == feature_loss(outputs.float(), teacher.float())


TAUGHT = """
model: tests.unit.test_distillation:network
data: tests.unit.test_distillation:samples
holdout: 16
stages:
  - train: {epochs: 2, batch_size: 16, teachers: 2}
  - prune_filters: {keep: {"0": 0.5}}
  - retrain: {epochs: 2, batch_size: 16, distill: 0.5, temperature: 2}
"""


@pytest.fixture
def teachers(monkeypatch):
    """The teacher of each stage that has one, when it has begun."""
    import espalier.recipe.training as stage

    seen = []
    of = stage.teacher_of
    monkeypatch.setattr(stage, "teacher_of", lambda *a: seen.append(of(*a)) or seen[-1])
    return seen


def test_networks_from_other_seeds_teach_with_the_own_one(tmp_path, teachers):
    result = run_recipe(parse_recipe(TAUGHT, "x"), tmp_path / "run")
    (ensemble,) = teachers
    first, second, third = (member[0].weight for member in ensemble.members)
    assert not torch.equal(first, second)
    assert not torch.equal(second, third)
    assert len(result.stages[0].values["teachers"]) == 2
    assert not list((tmp_path / "run").glob("teacher*"))


def normed() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 6, 3), nn.BatchNorm2d(6), *network()[1:])


@pytest.mark.parametrize(
    ("options", "folded", "dtype"),
    [
        ("", True, torch.float32),
        (', features: ["0"]', False, torch.float32),
        (", precision: bfloat16", True, torch.bfloat16),
    ],
)
def test_a_teacher_s_batch_norms_are_folded_unless_layers_teach(
    tmp_path, teachers, options, folded, dtype
):
    recipe = f"""
model: tests.unit.test_distillation:normed
data: tests.unit.test_distillation:samples
holdout: 16
stages:
  - train: {{epochs: 1, batch_size: 16}}
  - save: {{path: dense.esp}}
  - retrain: {{epochs: 1, batch_size: 16, distill: 0.5{options}}}
"""
    run_recipe(parse_recipe(recipe, "x"), tmp_path / "run")
    (teacher,) = teachers
    assert isinstance(teacher[1], nn.Identity) == folded
    plain = normed()
    espalier.load(tmp_path / "run" / "dense.esp", plain)
    x = samples()[1].x
    assert teacher[0].weight.dtype == dtype
    found, want = teacher.eval()(x.to(dtype)).float(), plain.eval()(x)
    assert torch.allclose(found, want, atol=1e-5 if dtype == torch.float32 else 0.02)


def test_a_teacher_that_is_cast_once_says_what_autocast_makes_it_say():
    torch.manual_seed(0)
    plain = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    ).eval()
    x = torch.randn(2, 3, 8, 8)
    cast = cast_once(copy.deepcopy(plain))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(cast(x), plain(x))
    assert cast[0].weight.dtype == torch.bfloat16
    assert cast[1].weight.dtype == torch.float32


def test_a_run_with_teachers_resumes_to_the_same_bits(tmp_path, monkeypatch):
    import espalier.recipe.teachers as room

    whole = run_recipe(parse_recipe(TAUGHT, "x"), tmp_path / "whole")
    calls = []
    one = room.train

    def interrupted(*args, **kwargs):
        calls.append(one(*args, **kwargs))
        if len(calls) == 2:
            raise KeyboardInterrupt
        return calls[-1]

    monkeypatch.setattr(room, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run_recipe(parse_recipe(TAUGHT, "x"), tmp_path / "run")
    monkeypatch.setattr(room, "train", one)
    resumed = run_recipe(parse_recipe(TAUGHT, "x"), tmp_path / "run", resume=True)
    for name, value in whole.model.state_dict().items():
        assert torch.equal(resumed.model.state_dict()[name], value)


def test_a_later_train_stage_takes_over_from_earlier_teachers(tmp_path, teachers):
    again = TAUGHT.replace("  - prune_filters", "  - train: {epochs: 1}\n  - prune_filters")
    run_recipe(
        parse_recipe(again.replace("epochs: 1}", "epochs: 1, batch_size: 16}"), "x"),
        tmp_path / "run",
    )
    assert not isinstance(teachers[0], Ensemble)


@pytest.mark.parametrize(
    ("before", "after", "message"),
    [
        ("distill: 0.5", "teachers: 1, distill: 0.5", "retrain: teachers are trained by a train"),
        ("distill: 0.5, ", "", "^x: train: teachers without a later stage that has distill"),
        ("distill: 0.5,", 'distill: 0.5, features: ["1"],', "features are learnt from one network"),
    ],
)
def test_teachers_that_cannot_teach(before, after, message):
    with pytest.raises(InvalidArgument, match=message):
        parse_recipe(TAUGHT.replace(before, after), "x")
