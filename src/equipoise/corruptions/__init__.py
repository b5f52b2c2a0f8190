"""Common corruptions of batches of images of any size: MNIST-C, CIFAR-10-C and ImageNet-C.

    corrupt(x, "fog", seed=0)               # the images x in the fog of MNIST-C (Mu & Gilmer 2019)
    corrupt(x, "cifar-c/snow/3", seed=0)    # in the snow of CIFAR-10-C (Hendrycks & Dietterich 2019), severity 3 of 5
    chosen(["cifar-c"])                     # the names of its 19 corruptions at 5 severities
    load_published("mnist_c")               # the published images, if you have them

Written from the published descriptions and parameters. Each function's docstring says where it differs from the
original; the published images were also rounded to bytes, which ours are not. To train on corrupted images see
`equipoise.training.corruption`, to evaluate on them `equipoise.evaluation`.
"""

from equipoise.corruptions.catalogue import ALL, COLLECTIONS, MNIST_C, check_images, chosen, corrupt
from equipoise.corruptions.mnist_c import CORRUPTIONS, Corruption
from equipoise.corruptions.published import Published, load_published

__all__ = [
    "ALL",
    "COLLECTIONS",
    "CORRUPTIONS",
    "MNIST_C",
    "Corruption",
    "Published",
    "check_images",
    "chosen",
    "corrupt",
    "load_published",
]
