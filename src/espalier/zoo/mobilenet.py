"""MobileNetV2 (Sandler et al. 2018, arXiv 1801.04381, table 2)."""

from __future__ import annotations

from torch import Tensor, nn

# expansion, channels, blocks, stride of the first
_STAGES = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)


def _conv(
    channels_in: int, channels: int, size: int, stride: int = 1, groups: int = 1
) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels, size, stride, size // 2, groups=groups, bias=False),
        nn.BatchNorm2d(channels),
    ]


class InvertedResidual(nn.Module):
    """Widen by 1x1, filter each channel by 3x3, narrow by 1x1 without an activation."""

    def __init__(self, channels_in: int, channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = channels_in * expansion
        layers = [*_conv(channels_in, wide, 1), nn.ReLU6()] if expansion > 1 else []
        layers += [*_conv(wide, wide, 3, stride, groups=wide), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, *_conv(wide, channels, 1))
        self.residual = stride == 1 and channels_in == channels

    def forward(self, x: Tensor) -> Tensor:
        y = self.layers(x)
        return x + y if self.residual else y


class MobileNetV2(nn.Module):
    """Seventeen inverted residuals: 3,504,872 parameters with 1000 classes.

    Notes
    -----
    Input: float (N, 3, 224, 224). Output: logits (N, classes).
    """

    def __init__(self, classes: int = 1000) -> None:
        super().__init__()
        channels, layers = 32, [*_conv(3, 32, 3, 2), nn.ReLU6()]
        for expansion, width, count, stride in _STAGES:
            for i in range(count):
                layers.append(InvertedResidual(channels, width, 1 if i else stride, expansion))
                channels = width
        self.features = nn.Sequential(*layers, *_conv(channels, 1280, 1), nn.ReLU6())
        self.average = nn.AdaptiveAvgPool2d(1)
        self.dropout = nn.Dropout(0.2)
        self.fc = nn.Linear(1280, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.average(self.features(x)).flatten(1)))


def mobilenet_v2(classes: int = 1000) -> MobileNetV2:
    """A freshly initialised :class:`MobileNetV2`."""
    return MobileNetV2(classes)
