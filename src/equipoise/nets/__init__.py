"""The papers' networks. Every one takes images in [0, 1] and returns logits of shape (batch, classes).

`build` makes one by name, with seeded weights; input normalisation is a layer inside the model, so that attacks
and their `eps` always live in [0, 1]. `split` cuts one into an encoder and a classifier, for attacks in between.
"""

from equipoise.nets.cnn4 import CNN4
from equipoise.nets.due import FCResNet, WideResNetFeatures
from equipoise.nets.lenet import LeNet
from equipoise.nets.lipschitz import BoundedBatchNorm2d, BoundedNorm, bounded
from equipoise.nets.mlp import MLP
from equipoise.nets.normalize import Normalize
from equipoise.nets.preact_resnet import PreActBlock, PreActResNet18, PreActResNet18UDP
from equipoise.nets.registry import build, count_parameters, extractors, how_built, imported, make, names
from equipoise.nets.resnet import BasicBlock, ResNet18
from equipoise.nets.resnet20 import ResNet20
from equipoise.nets.small_cnn import SmallCNN
from equipoise.nets.split import Staged, split, stages
from equipoise.nets.wide_resnet import WideResNet

__all__ = [
    "CNN4",
    "MLP",
    "BasicBlock",
    "BoundedBatchNorm2d",
    "BoundedNorm",
    "FCResNet",
    "LeNet",
    "Normalize",
    "PreActBlock",
    "PreActResNet18",
    "PreActResNet18UDP",
    "ResNet18",
    "ResNet20",
    "SmallCNN",
    "Staged",
    "WideResNet",
    "WideResNetFeatures",
    "bounded",
    "build",
    "count_parameters",
    "extractors",
    "how_built",
    "imported",
    "make",
    "names",
    "split",
    "stages",
]
