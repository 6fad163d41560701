"""Learning from another network's outputs."""

from __future__ import annotations

from torch import Tensor
from torch.nn import functional


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
    student = functional.log_softmax(outputs / temperature, 1)
    target = functional.log_softmax(teacher / temperature, 1)
    divergence = functional.kl_div(student, target, reduction="batchmean", log_target=True)
    return divergence * temperature**2
