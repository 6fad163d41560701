"""The CIFAR ResNets of He et al. (2015, arXiv 1512.03385, section 4.2), option A shortcuts."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from espalier.errors import InvalidArgument


class _Block(nn.Module):
    """Two 3x3 convolutions and an identity; where the shape changes, subsample and pad channels."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride = stride
        self.pad = (channels - channels_in) // 2

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.stride != 1 or self.pad:
            x = x[:, :, :: self.stride, :: self.stride]
            x = functional.pad(x, (0, 0, 0, 0, self.pad, self.pad))
        return torch.relu(y + x)


class CifarResNet(nn.Module):
    """ResNet of ``depth`` = 6n + 2 layers for 32 x 32 images.

    Notes
    -----
    Input: float (N, 3, 32, 32). Output: logits (N, classes).
    """

    def __init__(self, depth: int, classes: int = 10) -> None:
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise InvalidArgument(
                f"depth {depth} of a CIFAR ResNet must be 6n + 2: 20, 32, 44, ..."
            )
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._layer(16, 16, 1, n)
        self.layer2 = self._layer(16, 32, 2, n)
        self.layer3 = self._layer(32, 64, 2, n)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _layer(channels_in: int, channels: int, stride: int, n: int) -> nn.Sequential:
        first = _Block(channels_in, channels, stride)
        return nn.Sequential(first, *(_Block(channels, channels, 1) for _ in range(n - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet20(classes: int = 10) -> CifarResNet:
    """A freshly initialised ResNet-20: 269,722 parameters."""
    return CifarResNet(20, classes)


def resnet32(classes: int = 10) -> CifarResNet:
    """A freshly initialised ResNet-32: 464,154 parameters."""
    return CifarResNet(32, classes)


def resnet44(classes: int = 10) -> CifarResNet:
    """A freshly initialised ResNet-44: 658,586 parameters."""
    return CifarResNet(44, classes)


def resnet56(classes: int = 10) -> CifarResNet:
    """A freshly initialised ResNet-56: 853,018 parameters."""
    return CifarResNet(56, classes)


def resnet110(classes: int = 10) -> CifarResNet:
    """A freshly initialised ResNet-110: 1,727,962 parameters."""
    return CifarResNet(110, classes)
