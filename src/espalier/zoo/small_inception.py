"""A small inception network with what DeepRebirth merges: normalisation, poolings, branches."""

from __future__ import annotations

from torch import Tensor, nn

from espalier.zoo.googlenet import Inception


class SmallInception(nn.Module):
    """A stem as GoogLeNet's, three inception blocks with a pooling between, an average, a layer.

    31,498 parameters on grey images. Convolutions start as He et al. 2015 (arXiv 1502.01852)
    propose, without which so narrow a network learns slowly.

    Parameters
    ----------
    channels : int
        Of the images: 1 for MNIST, 3 for CIFAR-10.
    classes : int

    Notes
    -----
    Input: float (N, channels, 28, 28) or larger. Output: logits (N, classes).
    """

    def __init__(self, channels: int = 1, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, 16, 5, padding=2)
        self.relu = nn.ReLU()
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.norm = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.inception_a = Inception(16, 8, 12, 16, 4, 8, 8)
        self.inception_b = Inception(40, 16, 16, 24, 8, 12, 12)
        self.inception_c = Inception(64, 32, 24, 48, 8, 16, 16)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(112, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.pool(self.relu(self.conv1(x))))
        x = self.pool(self.inception_b(self.inception_a(x)))
        x = self.average(self.inception_c(x)).flatten(1)
        return self.fc(self.dropout(x))


def small_inception(channels: int = 1, classes: int = 10) -> SmallInception:
    """A freshly initialised :class:`SmallInception`."""
    return SmallInception(channels, classes)
