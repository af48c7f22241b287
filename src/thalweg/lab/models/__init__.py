"""The networks of the slides' image experiments: see ``resnet.py`` and ``vgg.py``."""

from thalweg.lab.models.norm import GlobalBatchNorm2d
from thalweg.lab.models.resnet import resnet18, resnet18_cifar, resnet20, resnet34, resnet50
from thalweg.lab.models.vgg import VGG, vgg16

__all__ = [
    "VGG", "GlobalBatchNorm2d", "resnet18", "resnet18_cifar", "resnet20", "resnet34", "resnet50", "vgg16",
]  # fmt: skip
