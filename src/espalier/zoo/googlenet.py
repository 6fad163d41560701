"""GoogLeNet (Szegedy et al. 2014, arXiv 1409.4842) as in Caffe's ``bvlc_googlenet``, to deploy."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# name: channels in; of the 1x1, of the 3x3 and before it, of the 5x5 and before it, after the pool
_INCEPTIONS = {
    "3a": (192, 64, 96, 128, 16, 32, 32),
    "3b": (256, 128, 128, 192, 32, 96, 64),
    "4a": (480, 192, 96, 208, 16, 48, 64),
    "4b": (512, 160, 112, 224, 24, 64, 64),
    "4c": (512, 128, 128, 256, 24, 64, 64),
    "4d": (512, 112, 144, 288, 32, 64, 64),
    "4e": (528, 256, 160, 320, 32, 128, 128),
    "5a": (832, 256, 160, 320, 32, 128, 128),
    "5b": (832, 384, 192, 384, 48, 128, 128),
}


class _Conv(nn.Sequential):
    """A convolution and its ReLU."""

    def __init__(
        self, channels_in: int, channels: int, size: int, stride: int = 1, padding: int = 0
    ) -> None:
        super().__init__(nn.Conv2d(channels_in, channels, size, stride, padding), nn.ReLU())


class Inception(nn.Module):
    """Four branches of one input, concatenated: 1x1; 1x1, 3x3; 1x1, 5x5; pool, 1x1."""

    def __init__(
        self, channels: int, one: int, before3: int, three: int, before5: int, five: int, pool: int
    ) -> None:
        super().__init__()
        self.branch1 = _Conv(channels, one, 1)
        self.branch2 = nn.Sequential(
            _Conv(channels, before3, 1), _Conv(before3, three, 3, padding=1)
        )
        self.branch3 = nn.Sequential(
            _Conv(channels, before5, 1), _Conv(before5, five, 5, padding=2)
        )
        self.branch4 = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), _Conv(channels, pool, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.branch1(x), self.branch2(x), self.branch3(x), self.branch4(x)], 1)


class GoogLeNet(nn.Module):
    """Nine inception blocks, with local response normalisation, without the auxiliary classifiers.

    6,998,552 parameters with 1000 classes.

    Notes
    -----
    Input: float (N, 3, 224, 224). Output: logits (N, classes).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = _Conv(3, 64, 7, stride=2, padding=3)
        self.norm1 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.conv2_reduce = _Conv(64, 64, 1)
        self.conv2 = _Conv(64, 192, 3, padding=1)
        self.norm2 = nn.LocalResponseNorm(5, alpha=1e-4, beta=0.75)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        for name, widths in _INCEPTIONS.items():
            setattr(self, f"inception{name}", Inception(*widths))
        self.average = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.4)
        self.fc = nn.Linear(1024, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm1(self.pool(self.conv1(x)))
        x = self.pool(self.norm2(self.conv2(self.conv2_reduce(x))))
        for name in _INCEPTIONS:
            if name in ("4a", "5a"):
                x = self.pool(x)
            x = getattr(self, f"inception{name}")(x)
        return self.fc(self.dropout(self.average(x).flatten(1)))


def googlenet(classes: int = 1000) -> GoogLeNet:
    """A freshly initialised :class:`GoogLeNet`."""
    return GoogLeNet(classes)
