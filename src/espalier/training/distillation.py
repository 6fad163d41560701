"""Learning from another network: its outputs, and what its layers give on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument
from espalier.modes import evaluating
from espalier.targets import unwrap

Features = Sequence[str] | Mapping[str, str]
"""Layers of the student, by name, and those of the teacher that they learn from."""


def at_least_float32(values: Tensor) -> Tensor:
    """What mixed precision left in half, in float32: losses are not to be rounded."""
    return values.to(torch.promote_types(values.dtype, torch.float32))


def distillation_loss(outputs: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """T^2 KL(softmax(teacher / T) || softmax(outputs / T)), the mean over the samples.

    Hinton, Vinyals and Dean 2015 (arXiv 1503.02531, section 2). The factor T^2 keeps the size of
    the gradients the same at any temperature.

    Parameters
    ----------
    outputs, teacher : Tensor, (N, classes)
        Logits.
    temperature : float
        Above 0; the higher, the more the small probabilities count.

    Examples
    --------
    >>> import torch
    >>> logits = torch.tensor([[2.0, 0.0], [0.0, 1.0]])
    >>> float(distillation_loss(logits, logits, 4.0))
    0.0
    """
    student = functional.log_softmax(at_least_float32(outputs) / temperature, 1)
    target = functional.log_softmax(at_least_float32(teacher) / temperature, 1)
    divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2


def feature_loss(student: Tensor, teacher: Tensor) -> Tensor:
    """How far a layer's outputs are from the teacher's, relative to the teacher's size.

    Of the same shape, ||s - t||^2 / ||t||^2 (hints: Romero et al. 2015, arXiv 1412.6550, equation
    3). Of maps with other channels, pruned ones for instance, the mean over the samples of
    ||q(s) - q(t)||^2 with q the sum of the squares over the channels, flattened, of norm 1
    (attention: Zagoruyko and Komodakis 2017, arXiv 1612.03928, equation 2).

    Parameters
    ----------
    student, teacher : Tensor, (N, channels, ...)

    Raises
    ------
    InvalidArgument
        The shapes have no more in common than the samples.

    Examples
    --------
    >>> import torch
    >>> maps = torch.tensor([[[1.0, 2.0]]])
    >>> round(float(feature_loss(2 * maps, maps)), 6)
    1.0
    """
    student, teacher = at_least_float32(student), at_least_float32(teacher)
    if student.shape == teacher.shape:
        return (student - teacher).square().sum() / teacher.square().sum().clamp_min(1e-12)
    if student.dim() < 3 or len(student) != len(teacher) or student.shape[2:] != teacher.shape[2:]:
        shapes = f"{tuple(student.shape)} and {tuple(teacher.shape)}"
        raise InvalidArgument(f"outputs of shapes {shapes} cannot be compared")
    return (_attention(student) - _attention(teacher)).square().sum(1).mean()


def _attention(maps: Tensor) -> Tensor:
    return functional.normalize(maps.square().sum(1).flatten(1), dim=1)


class Ensemble(nn.Module):
    """Networks that answer together: the mean of their logits.

    softmax of it is the geometric mean of what they say each, made to sum to one: one of the two
    that Hinton, Vinyals and Dean 2015 (arXiv 1503.02531, section 2) teach with.

    Parameters
    ----------
    members : sequence of nn.Module
        Whose outputs have one shape.

    Raises
    ------
    InvalidArgument
        There are no members.

    Examples
    --------
    >>> import torch
    >>> both = Ensemble([torch.nn.Identity(), torch.nn.Flatten()])
    >>> both(torch.tensor([[1.0, 2.0]]))
    tensor([[1., 2.]])
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if not members:
            raise InvalidArgument("an ensemble needs at least one network")
        self.members = nn.ModuleList(members)

    def forward(self, inputs: Tensor) -> Tensor:
        total = self.members[0](inputs)
        for member in self.members[1:]:
            total = total + member(inputs)
        return total / len(self.members)


class Distiller:
    """A loss with a teacher in it, for a loop of your own.

    (1 - share) loss(outputs, targets) + share T^2 KL(teacher || outputs)
    + feature_weight sum over layers :func:`feature_loss`; see :func:`distillation_loss`.

    Parameters
    ----------
    student, teacher : nn.Module
        The teacher is not changed, and runs in evaluation mode, without gradients.
    share : float
        Of the teacher's outputs in the loss, in [0, 1].
    temperature : float
    features : sequence of str, or mapping, optional
        Layers whose outputs are compared too: names that both networks have, or the student's name
        -> the teacher's.
    feature_weight : float
    loss : callable
        ``loss(outputs, targets)``; cross-entropy by default.

    Raises
    ------
    InvalidArgument
        A number out of range; a layer that one of the networks lacks, did not run, or whose outputs
        cannot be compared (by name).

    Examples
    --------
    >>> import torch, espalier
    >>> teacher, student = torch.nn.Linear(4, 3), torch.nn.Linear(4, 3)
    >>> x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    >>> with espalier.Distiller(student, teacher, share=0.5, temperature=2) as distill:
    ...     loss = distill(x, student(x), y)
    >>> loss.backward()
    """

    def __init__(
        self,
        student: nn.Module,
        teacher: nn.Module,
        *,
        share: float = 0.7,
        temperature: float = 4.0,
        features: Features = (),
        feature_weight: float = 1.0,
        loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy,
    ) -> None:
        if not 0 <= share <= 1:
            raise InvalidArgument(f"share must lie in [0, 1], not {share}")
        if not (math.isfinite(temperature) and temperature > 0):
            raise InvalidArgument(f"temperature must be positive, not {temperature}")
        if not (math.isfinite(feature_weight) and feature_weight >= 0):
            raise InvalidArgument(f"feature_weight must be at least 0, not {feature_weight}")
        self.teacher, self.share, self.temperature = teacher, share, temperature
        self.feature_weight, self.loss = feature_weight, loss
        named = dict(features) if isinstance(features, Mapping) else {n: n for n in features}
        learning = [_layer(student, name, "student") for name in named]
        teaching = [_layer(teacher, name, "teacher") for name in named.values()]
        self._names = list(named)
        self._learnt: dict[str, Tensor] = {}
        self._taught: dict[str, Tensor] = {}
        self._hooks = [
            module.register_forward_hook(_keeper(kept, name))
            for kept, modules in ((self._learnt, learning), (self._taught, teaching))
            for name, module in zip(named, modules, strict=True)
        ]

    def __call__(
        self, inputs: Any, outputs: Tensor, targets: Tensor, taught: Tensor | None = None
    ) -> Tensor:
        """The loss of ``outputs``, which the student just gave on ``inputs``.

        ``taught``: what :meth:`teach` gave on these inputs, where that is known.
        """
        if taught is None:
            taught = self.teach(inputs)
        total = self.share * distillation_loss(outputs, taught, self.temperature)
        if self.share < 1:
            total = total + (1 - self.share) * self.loss(outputs, targets)
        for name in self._names:
            total = total + self.feature_weight * self._feature(name)
        return total

    @torch.no_grad()
    def teach(self, inputs: Any) -> Tensor:
        """The teacher's outputs on ``inputs``."""
        with evaluating(self.teacher):
            return self.teacher(*inputs) if isinstance(inputs, tuple) else self.teacher(inputs)

    def _feature(self, name: str) -> Tensor:
        if name not in self._learnt:
            raise InvalidArgument(f"{name}: this layer did not run in the student's forward pass")
        try:
            return feature_loss(self._learnt.pop(name), self._taught.pop(name))
        except InvalidArgument as error:
            raise InvalidArgument(f"{name}: {error}") from None

    def close(self) -> None:
        """Take the hooks off both networks."""
        for hook in self._hooks:
            hook.remove()

    def __enter__(self) -> Distiller:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _layer(model: nn.Module, name: str, role: str) -> nn.Module:
    try:
        return unwrap(model).get_submodule(name)
    except AttributeError:
        raise InvalidArgument(f"features: the {role} has no layer called {name!r}") from None


def _keeper(kept: dict[str, Tensor], name: str) -> Callable[..., None]:
    def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
        kept[name] = output

    return keep
