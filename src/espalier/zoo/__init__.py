"""The papers' networks and data sets.

``espalier.zoo:lenet5`` and ``espalier.zoo:mnist`` are what a recipe names.
"""

from espalier.samples import Samples
from espalier.zoo.data import DataSet, cifar10, digits, mnist
from espalier.zoo.lenet import LeNet5, LeNet300100, lenet5, lenet300
from espalier.zoo.resnet_cifar import CifarResNet, resnet20

__all__ = [
    "CifarResNet",
    "DataSet",
    "LeNet5",
    "LeNet300100",
    "Samples",
    "cifar10",
    "digits",
    "lenet5",
    "lenet300",
    "mnist",
    "resnet20",
]
