"""SqueezeNet 1.0 (Iandola et al. 2016, arXiv 1602.07360)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

# channels in, of the squeezing 1x1, of each of the two that expand
_FIRES = (
    (96, 16, 64),
    (128, 16, 64),
    (128, 32, 128),
    (256, 32, 128),
    (256, 48, 192),
    (384, 48, 192),
    (384, 64, 256),
    (512, 64, 256),
)
_POOLED = (4, 8)
"""Fire modules that a pool follows, by their number in the paper."""


class Fire(nn.Module):
    """Squeeze by 1x1, expand by 1x1 and 3x3 side by side."""

    def __init__(self, channels: int, squeeze: int, expand: int) -> None:
        super().__init__()
        self.squeeze1x1 = nn.Conv2d(channels, squeeze, 1)
        self.expand1x1 = nn.Conv2d(squeeze, expand, 1)
        self.expand3x3 = nn.Conv2d(squeeze, expand, 3, padding=1)
        self.relu = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        x = self.relu(self.squeeze1x1(x))
        return torch.cat([self.relu(self.expand1x1(x)), self.relu(self.expand3x3(x))], 1)


class SqueezeNet(nn.Module):
    """Two convolutions and eight fire modules between them: 1,248,424 parameters.

    Notes
    -----
    Input: float (N, 3, 224, 224). Output: logits (N, classes).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 96, 7, stride=2)
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.relu = nn.ReLU()
        for i, widths in enumerate(_FIRES):
            setattr(self, f"fire{i + 2}", Fire(*widths))
        self.dropout = nn.Dropout(0.5)
        self.conv10 = nn.Conv2d(512, classes, 1)
        self.average = nn.AdaptiveAvgPool2d(1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.relu(self.conv1(x)))
        for i in range(len(_FIRES)):
            x = getattr(self, f"fire{i + 2}")(x)
            if i + 2 in _POOLED:
                x = self.pool(x)
        return self.average(self.relu(self.conv10(self.dropout(x)))).flatten(1)


def squeezenet(classes: int = 1000) -> SqueezeNet:
    """A freshly initialised :class:`SqueezeNet`."""
    return SqueezeNet(classes)
