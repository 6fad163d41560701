"""VGG-16 (Simonyan and Zisserman 2014, arXiv 1409.1556), for ImageNet and for CIFAR."""

from __future__ import annotations

from torch import Tensor, nn

_STAGES = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))


def _features(batch_norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = []
    channels = 3
    for stage in _STAGES:
        for width in stage:
            layers.append(nn.Conv2d(channels, width, 3, padding=1, bias=not batch_norm))
            layers += [nn.BatchNorm2d(width)] if batch_norm else []
            layers.append(nn.ReLU())
            channels = width
        layers.append(nn.MaxPool2d(2))
    return nn.Sequential(*layers)


class VGG16(nn.Module):
    """Thirteen 3x3 convolutions and a classifier."""

    def __init__(self, features: nn.Sequential, classifier: nn.Sequential) -> None:
        super().__init__()
        self.features = features
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).flatten(1))


def vgg16(classes: int = 1000) -> VGG16:
    """A freshly initialised VGG-16 for images of 224 x 224: 138,357,544 parameters."""
    classifier = nn.Sequential(
        nn.Linear(512 * 7 * 7, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, 4096),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Linear(4096, classes),
    )
    return VGG16(_features(batch_norm=False), classifier)


def vgg16_cifar(classes: int = 10) -> VGG16:
    """VGG-16 for images of 32 x 32, with batch normalisation: 14,987,210 parameters.

    As in Li et al. 2017 (arXiv 1608.08710, section 4.1): two linear layers, 512 wide.
    """
    classifier = nn.Sequential(
        nn.Linear(512, 512, bias=False), nn.BatchNorm1d(512), nn.ReLU(), nn.Linear(512, classes)
    )
    return VGG16(_features(batch_norm=True), classifier)
