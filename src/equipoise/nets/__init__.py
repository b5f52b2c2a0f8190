"""The papers' networks, from images in [0, 1] to logits of shape (batch, classes).

`build` makes a network by name, with seeded weights. Input normalisation is a layer of the network, so that attacks
and their `eps` are in pixels of [0, 1]. `split` cuts a network into an encoder and a classifier, for latent attacks.
"""

from equipoise.nets.convolutional import CNN4, LeNet, SmallCNN
from equipoise.nets.due import FCResNet, WideResNetFeatures
from equipoise.nets.lipschitz import BoundedBatchNorm2d, BoundedNorm, bounded
from equipoise.nets.mlp import MLP
from equipoise.nets.normalize import Normalize
from equipoise.nets.registry import build, count_parameters, extractors, how_built, imported, made, make, names
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
    "made",
    "make",
    "names",
    "split",
    "stages",
]
