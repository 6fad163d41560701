"""The training loop: the best epoch, early stopping, and runs that resume to the same bits."""

import gc
import weakref

import pytest
import torch
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader, TensorDataset

import espalier
from espalier.errors import CorruptFile, InvalidArgument
from espalier.samples import Samples
from espalier.training import Settings, evaluate, set_dropout, train
from espalier.training.augment import AUGMENTATIONS, MIXES, Mixed, affine, cutmix, flip, mixup


def samples(n: int = 300, seed: int = 0) -> Samples:
    generator = torch.Generator().manual_seed(seed)
    y = torch.randint(0, 3, (n,), generator=generator)
    x = torch.randn(n, 4, generator=generator) + 2 * nn.functional.one_hot(y, 4)
    return Samples(x, y)


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_it_learns():
    model, data = network(), samples()
    before = evaluate(model, data).error
    history = train(model, data, epochs=5, lr=1e-2, batch_size=32)
    assert evaluate(model, data).error < before / 2
    assert history.chosen == 4
    assert len(history.epochs) == 5


def test_error_by_hand():
    model = nn.Identity()
    model.p = nn.Parameter(torch.zeros(()))
    data = Samples(torch.tensor([[2.0, 1.0], [0.0, 1.0], [3.0, 0.0]]), torch.tensor([0, 0, 1]))
    metrics = evaluate(model, data, batch_size=2)
    assert (metrics.n, metrics.wrong) == (3, 2)
    assert metrics.error == pytest.approx(200 / 3)
    assert metrics.loss == pytest.approx((0.31326 + 1.31326 + 3.04859) / 3, abs=1e-4)


def test_the_best_epoch_is_kept():
    model, data, held_out = network(), samples(), samples(100, seed=1)
    history = train(
        model, data, held_out=held_out, epochs=8, lr=0.3, schedule="constant", batch_size=16
    )
    best = min(history.epochs, key=lambda e: (e.error, e.loss))
    assert history.chosen == best.epoch
    assert evaluate(model, held_out).error == best.error


def test_patience_stops_early():
    history = train(
        network(), samples(), held_out=samples(50, seed=1), epochs=60, lr=0.05, patience=3
    )
    assert len(history.epochs) < 60
    assert len(history.epochs) - 1 - history.chosen == 3


class Interrupt(Exception):
    """Stands for Ctrl-C."""


@pytest.mark.parametrize("average", [0.0, 0.9])
@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_an_interrupted_run_ends_with_the_same_bits(tmp_path, optimizer, average):
    settings = Settings(epochs=6, lr=0.01, batch_size=32, optimizer=optimizer, average=average)
    data, held_out = samples(), samples(100, seed=1)

    def run(checkpoint=None, stop_at: int = 10**9) -> torch.Tensor:
        model = network()
        pruner = espalier.Pruner(model, 0.3, schedule="surgery", steps=30, every=4)

        def progress(done: int, total: int, text: str) -> None:
            if done == stop_at:
                raise Interrupt

        train(
            model,
            data,
            settings,
            held_out=held_out,
            callbacks=[pruner],
            checkpoint=checkpoint,
            progress=progress,
        )
        return weights(model)

    path = tmp_path / "run.pt"
    with pytest.raises(Interrupt):
        run(path, stop_at=32)
    assert path.exists()
    assert torch.equal(run(path), run())


def test_no_epoch_is_chosen_while_pruning_goes_on():
    model = network()
    pruner = espalier.Pruner(model, 0.2, steps=40, every=5)
    history = train(
        model, samples(), held_out=samples(60, seed=1), epochs=8, batch_size=32, callbacks=[pruner]
    )
    assert history.chosen >= 40 // 9
    assert int(model[0].weight.count_nonzero()) == round(0.2 * 64)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path):
    path = tmp_path / "run.pt"
    train(network(), samples(), epochs=1, checkpoint=path)
    with pytest.raises(InvalidArgument, match="other settings"):
        train(network(), samples(), epochs=2, checkpoint=path)
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(CorruptFile, match="not a checkpoint"):
        train(network(), samples(), epochs=1, checkpoint=path)


def test_the_users_own_loader(tmp_path):
    data = samples()
    loader = DataLoader(TensorDataset(data.x, data.y), batch_size=32, shuffle=True)
    first, second = network(), network()
    train(first, loader, epochs=2, held_out=loader)
    train(second, loader, epochs=2, held_out=loader)
    assert torch.equal(weights(first), weights(second))
    assert evaluate(first, loader).n == 300
    with pytest.raises(InvalidArgument, match="views are of Samples"):
        train(first, loader, epochs=2, augment="flip", views=2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"epochs": 0}, "epochs must be at least 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"optimizer": "magic"}, "optimizer must be one of adam, sgd"),
        ({"augment": "blur"}, "no augmentation is called 'blur'"),
        ({"average": 1.0}, "average must lie"),
        ({"views": -1, "augment": "flip"}, "views must be at least 0, not -1"),
        ({"views": 4}, "views are drawn by augment or mix: set one"),
        ({"mix": "paint"}, "mix must be one of None, mixup, cutmix, not 'paint'"),
        ({"batch_size": 1000}, "300 samples do not fill a batch of 1000"),
    ],
)
def test_wrong_settings(options, message):
    with pytest.raises(InvalidArgument, match=message):
        train(network(), samples(), **options)


def test_a_loss_that_is_nan_stops_the_run():
    data = samples()
    data.x[5] = float("nan")
    with pytest.raises(InvalidArgument, match="the loss is nan in epoch 0"):
        train(network(), data)


def test_frozen_models_are_refused():
    model = network().requires_grad_(False)
    with pytest.raises(InvalidArgument, match="no parameter that requires a gradient"):
        train(model, samples())


def test_dropout_is_set_everywhere():
    model = network()
    set_dropout(model, 0.05)
    assert model[2].p == 0.05


@pytest.mark.parametrize(("name", "pixels"), [("shift", 2), ("shift-1", 1)])
def test_shift_moves_whole_images(name, pixels):
    image = torch.zeros(1, 1, 9, 9)
    image[0, 0, 4, 4] = 1
    places = set()
    for seed in range(99):
        moved = AUGMENTATIONS[name](image, torch.Generator().manual_seed(seed))
        assert moved.sum() == 1
        (place,) = moved[0, 0].nonzero().tolist()
        assert all(abs(i - 4) <= pixels for i in place)
        places.add(tuple(place))
    assert (2 * pixels + 1) ** 2 - 3 <= len(places) <= (2 * pixels + 1) ** 2


def test_flip_mirrors_some():
    images = torch.arange(4.0).expand(50, 1, 2, 4)
    flipped = flip(images, torch.Generator().manual_seed(0))
    mirrored = (flipped[:, 0, 0, 0] == 3).sum()
    assert 10 < mirrored < 40


def test_affine_with_nothing_to_do_changes_nothing():
    x, generator = torch.randn(5, 2, 9, 7), torch.Generator().manual_seed(0)
    same = affine(x, generator, degrees=0, scale=0, shear=0, pixels=0)
    torch.testing.assert_close(same, x, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("option", "most"), [("degrees", 2.7), ("scale", 0.45), ("shear", 0.45), ("pixels", 1.1)]
)
def test_each_part_of_affine_moves_a_dot_no_further_than_it_says(option, most):
    x = torch.full((200, 1, 21, 21), -1.0)
    x[:, :, 14, 14] = 1.0  # 4 pixels right of the middle and below it
    given = {"degrees": 30.0, "scale": 0.1, "shear": 0.1, "pixels": 1.0}
    options = dict.fromkeys(given, 0.0) | {option: given[option]}
    moved = affine(x, torch.Generator().manual_seed(0), **options) + 1
    mass = moved.sum((1, 2, 3))
    rows, columns = torch.meshgrid(torch.arange(21.0), torch.arange(21.0), indexing="ij")
    dy, dx = ((moved[:, 0] * at).sum((1, 2)) / mass for at in (rows - 14, columns - 14))
    assert moved.min() == 0  # the background is the image's minimum
    assert 0.2 < torch.maximum(dy.abs(), dx.abs()).max() <= most


def test_mixup_by_hand():
    x = torch.arange(200.0)[:, None].expand(200, 6)
    mixed = mixup(x, torch.Generator().manual_seed(0))
    share = mixed.share[:, None]
    torch.testing.assert_close(mixed.x, share * x + (1 - share) * x[mixed.partners])
    assert 70 < (mixed.share == 1).sum() < 130
    assert mixed.share.min() >= 0


def test_cutmix_by_hand():
    x = torch.arange(1.0, 201)[:, None, None, None].expand(200, 2, 10, 8)
    mixed = cutmix(x, torch.Generator().manual_seed(0))
    other = mixed.x != x
    assert torch.equal(mixed.x, torch.where(other, x[mixed.partners], x))
    alone = mixed.partners != torch.arange(200)
    own = 1 - other.float().mean((1, 2, 3))
    torch.testing.assert_close(own[alone], mixed.share[alone])
    assert torch.equal(other[:, 0], other[:, 1])
    for box in other[:, 0][(own < 1)]:  # one box: rows and columns, and all of what they cross
        assert torch.equal(box, box.any(1)[:, None] & box.any(0)[None, :])
    area = 1 - mixed.share
    assert 70 < (area == 0).sum() < 130
    assert area.max() > 0.6


def test_targets_of_what_is_mixed_are_probabilities():
    mixed = Mixed(torch.zeros(3, 1), torch.tensor([1, 0, 2]), torch.tensor([0.75, 1.0, 0.5]))
    expected = torch.tensor([[0.75, 0.0, 0.25], [0.0, 0.0, 1.0], [1.0, 0.0, 0.0]])
    assert torch.equal(mixed.targets(torch.tensor([0, 2, 0]), 3), expected)
    with pytest.raises(InvalidArgument, match=r"mixes labels, .* float32 of the shape \(3, 2\)"):
        mixed.targets(torch.zeros(3, 2), 3)


def test_a_network_learns_from_mixed_samples():
    targets, data = [], samples()
    for mix in (None, "mixup"):
        model = network()

        def loss(outputs: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            targets.append(y)
            return functional.cross_entropy(outputs, y)

        train(model, data, loss=loss, epochs=8, lr=0.01, batch_size=32, mix=mix)
        assert evaluate(model, data).error < 20
    assert targets[0].shape == (32,)
    assert targets[-1].shape == (32, 3)
    torch.testing.assert_close(targets[-1].sum(1), torch.ones(32))
    with pytest.raises(InvalidArgument, match="cutmix is for images"):
        train(network(), data, mix="cutmix")


@pytest.mark.parametrize("name", MIXES)
def test_mixes_depend_on_the_generator_alone(name):
    x = torch.randn(8, 3, 8, 8)
    first, second = (MIXES[name](x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert first.x.shape == x.shape


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentations_depend_on_the_generator_alone(name):
    x = torch.randn(8, 3, 8, 8)
    first, second = (AUGMENTATIONS[name](x, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert first.shape == x.shape


def test_a_bar_with_the_loss_and_the_time_left(capsys):
    train(network(), samples(), held_out=samples(60, seed=1), epochs=2, progress=True)
    printed = capsys.readouterr()
    assert "epoch 2/2" in printed.err
    assert printed.out == ""


def test_a_teacher_alone_can_teach():
    torch.manual_seed(1)
    teacher, data = nn.Linear(4, 3), samples()
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    labels = teacher(data.x).argmax(1)  # not those of the samples, which are never looked at
    model = network()
    train(model, data, teacher=teacher, distill=1.0, epochs=8, lr=1e-2, batch_size=32)
    assert evaluate(model, Samples(data.x, labels)).error < 10 < evaluate(model, data).error
    assert teacher.training
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())


def test_a_teacher_and_distill_belong_together():
    with pytest.raises(InvalidArgument, match="distill above 0 and a teacher"):
        train(network(), samples(), distill=0.5, epochs=1)
    with pytest.raises(InvalidArgument, match="distill above 0 and a teacher"):
        train(network(), samples(), teacher=network(), epochs=1)
    for wrong in ({"distill": 1.5}, {"temperature": 0.0}):
        with pytest.raises(InvalidArgument, match=next(iter(wrong))):
            Settings(**wrong)


def test_nothing_of_the_training_set_is_kept_after_a_run():
    data = samples()
    gone = weakref.ref(data.x)
    gc.collect()
    gc.disable()
    try:
        train(network(), data, teacher=network(), distill=0.5, epochs=1, average=0.9)
        del data
        assert gone() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("wrong", [{"precision": "float16"}, {"precision": ""}])
def test_a_precision_is_one_that_is_known(wrong):
    with pytest.raises(InvalidArgument, match="precision must be one of float32, bfloat16"):
        Settings(**wrong)


def test_in_mixed_precision_products_are_bfloat16_and_weights_and_losses_are_not():
    seen = []
    model = network()
    model[0].register_forward_hook(lambda _m, _i, output: seen.append(output.dtype))

    def loss(outputs, targets):
        seen.append(outputs.dtype)
        return nn.functional.cross_entropy(outputs, targets)

    data = samples()
    before = evaluate(model, data).error
    seen.clear()
    train(model, data, loss=loss, epochs=5, lr=1e-2, batch_size=32, precision="bfloat16")
    assert set(seen[::2]) == {torch.bfloat16}
    assert set(seen[1::2]) == {torch.float32}
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert evaluate(model, data).error < before / 2


@pytest.mark.parametrize("channels_last", [False, True])
def test_channels_last_is_how_images_lie_in_memory_and_not_what_they_are(channels_last):
    seen = []
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.LazyLinear(3))
    images = Samples(torch.randn(32, 3, 6, 6), torch.arange(32) % 3)
    model(images.x)
    model.register_forward_pre_hook(lambda _m, inputs: seen.append(inputs[0]))
    train(model, images, epochs=1, batch_size=16, channels_last=channels_last)
    for x in seen:
        assert x.shape == (16, 3, 6, 6)
        assert x.is_contiguous(memory_format=torch.channels_last) is channels_last


def test_channels_last_leaves_alone_what_has_no_channels():
    train(network(), samples(), epochs=1, channels_last=True)
