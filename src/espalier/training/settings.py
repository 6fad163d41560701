"""How to train: the settings of :func:`espalier.train`, each checked when it is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from espalier.errors import InvalidArgument
from espalier.training.augment import MIXES, augmentation
from espalier.training.distillation import Features


@dataclass(frozen=True)
class Settings:
    """How to train.

    Parameters
    ----------
    epochs : int
    lr : float
        Peak learning rate.
    batch_size : int
    optimizer : {"adam", "sgd"}
        SGD has Nesterov momentum 0.9.
    weight_decay : float
        L2 for SGD, decoupled for Adam.
    schedule : {"cosine", "constant"}
        Learning rate over the whole run; cosine falls to zero.
    augment : str, optional
        ``"shift"``, ``"shift-1"``, ``"flip"``, ``"shift-flip"``, ``"affine"``.
    mix : {"mixup", "cutmix"}, optional
        Half of the samples are mixed with others of their batch, after ``augment``, and learn both
        labels, each as much as there is of it; of images, a box (``"cutmix"``), else weighted sums.
        A ``loss`` of your own gets probabilities (N, classes) for targets then. A teacher says what
        it sees: with ``distill=1`` labels are not asked for.
    views : int
        With ``augment`` or ``mix``: draw so many versions of the training set, one an epoch, and
        then go through them again in turn, batch for batch. A teacher is then asked but once for
        each. 0: every epoch draws its own.
    label_smoothing : float
    average : float
        Decay of an exponential moving average of the parameters, evaluated and kept in their place;
        0 for none.
    choose : {"best", "last"}
        With a held-out split: keep the epoch with the lowest held-out error (ties: lower loss), or
        the last one.
    patience : int
        Stop when the held-out error has not fallen for so many epochs; 0 never stops early.
    distill : float
        Share of the loss that a teacher's outputs have, in [0, 1]; the labels have the rest. See
        :func:`espalier.training.distillation.distillation_loss`.
    temperature : float
        Of the distillation.
    features : sequence of str, or mapping
        With distillation: layers whose outputs are learnt too, see :class:`espalier.Distiller`.
    feature_weight : float
    merged_lr : float
        Layers that :func:`espalier.merge` made learn so many times as fast as the rest.
    precision : {"float32", "bfloat16"}
        ``"bfloat16"``: the network, and a teacher, compute in mixed precision
        (:func:`torch.autocast`); weights, gradients' sums and the loss stay float32. Up to twice as
        fast on CPUs that have AVX-512 BF16 or AMX, and on GPUs; slower on others.
    channels_last : bool
        Whether images have their channels last in memory, which most CPUs' and GPUs' convolutions
        are faster with, when there are more than a few channels.
    seed : int
    """

    epochs: int = 10
    lr: float = 1e-3
    batch_size: int = 128
    optimizer: str = "adam"
    weight_decay: float = 0.0
    schedule: str = "cosine"
    augment: str | None = None
    mix: str | None = None
    views: int = 0
    label_smoothing: float = 0.0
    average: float = 0.0
    choose: str = "best"
    patience: int = 0
    distill: float = 0.0
    temperature: float = 4.0
    features: Features = ()
    feature_weight: float = 1.0
    merged_lr: float = 10.0
    precision: str = "float32"
    channels_last: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size"):
            if getattr(self, name) < 1:
                raise InvalidArgument(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.views < 0:
            raise InvalidArgument(f"views must be at least 0, not {self.views}")
        if self.views and self.augment is None and self.mix is None:
            raise InvalidArgument("views are drawn by augment or mix: set one of them too")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise InvalidArgument(f"lr must be positive, not {self.lr}")
        if not 0 <= self.average < 1:
            raise InvalidArgument(f"average must lie in [0, 1), not {self.average}")
        if not 0 <= self.distill <= 1:
            raise InvalidArgument(f"distill must lie in [0, 1], not {self.distill}")
        for name in ("temperature", "merged_lr"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise InvalidArgument(f"{name} must be positive, not {value}")
        for name, known in (
            ("optimizer", ("adam", "sgd")),
            ("schedule", ("cosine", "constant")),
            ("choose", ("best", "last")),
            ("precision", ("float32", "bfloat16")),
            ("mix", (None, *MIXES)),
        ):
            if getattr(self, name) not in known:
                raise InvalidArgument(
                    f"{name} must be one of {', '.join(map(str, known))},"
                    f" not {getattr(self, name)!r}"
                )
        augmentation(self.augment)
