"""The 15 corruptions of MNIST-C (Mu & Gilmer 2019), on batches of images of any size.

    corrupt(x, "fog", seed=0)        # the images x in fog
    load_published("mnist_c")        # the published images, if you have them

Written from the published description and parameters. Each function's docstring says where it differs from the
original; the published images were also rounded to bytes, which ours are not. To train on corrupted images see
`equipoise.training.corruption`, to evaluate on them `equipoise.evaluation`.
"""

from equipoise.corruptions.mnist_c import CORRUPTIONS, MNIST_C, Corruption, check_images, chosen, corrupt
from equipoise.corruptions.published import Published, load_published

__all__ = ["CORRUPTIONS", "MNIST_C", "Corruption", "Published", "check_images", "chosen", "corrupt", "load_published"]
