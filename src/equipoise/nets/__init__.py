"""The papers' networks. Every one takes images in [0, 1] and returns logits of shape (batch, classes).

`build` makes one by name, with seeded weights; input normalisation is a layer inside the model, so that attacks
and their `eps` always live in [0, 1]. `split` cuts one into an encoder and a classifier, for attacks in between.
"""

from equipoise.nets.convolutional import CNN4, LeNet, SmallCNN
from equipoise.nets.due import FCResNet, WideResNetFeatures
from equipoise.nets.lipschitz import BoundedBatchNorm2d, BoundedNorm, bounded
from equipoise.nets.mlp import MLP
from equipoise.nets.normalize import Normalize
from equipoise.nets.registry import build, count_parameters, extractors, how_built, imported, make, names
from equipoise.nets.residual import (
    BasicBlock,
    PreActBlock,
    PreActResNet18,
    PreActResNet18UDP,
    ResNet18,
    ResNet20,
    WideResNet,
)
from equipoise.nets.split import Staged, split, stages

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
