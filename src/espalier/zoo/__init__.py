"""The papers' networks and data sets.

``espalier.zoo:lenet5`` and ``espalier.zoo:mnist`` are what a recipe names.
"""

from espalier.samples import Samples
from espalier.zoo.alexnet import AlexNet, alexnet
from espalier.zoo.data import DataSet, cifar10, digits, mnist
from espalier.zoo.googlenet import GoogLeNet, googlenet
from espalier.zoo.lenet import LeNet5, LeNet300100, lenet5, lenet300
from espalier.zoo.mobilenet import MobileNetV2, mobilenet_v2
from espalier.zoo.resnet import ResNet, resnet18, resnet34, resnet50
from espalier.zoo.resnet_cifar import (
    CifarResNet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from espalier.zoo.small_inception import SmallInception, small_inception
from espalier.zoo.squeezenet import SqueezeNet, squeezenet
from espalier.zoo.vgg import VGG16, vgg16, vgg16_cifar

__all__ = [
    "VGG16",
    "AlexNet",
    "CifarResNet",
    "DataSet",
    "GoogLeNet",
    "LeNet5",
    "LeNet300100",
    "MobileNetV2",
    "ResNet",
    "Samples",
    "SmallInception",
    "SqueezeNet",
    "alexnet",
    "cifar10",
    "digits",
    "googlenet",
    "lenet5",
    "lenet300",
    "mnist",
    "mobilenet_v2",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet110",
    "small_inception",
    "squeezenet",
    "vgg16",
    "vgg16_cifar",
]
