"""The 15 corruptions of MNIST-C (Mu & Gilmer 2019), on batches of images of any size.

corrupt(x, "fog", seed=0)                          # the images x in fog
cross_entropy @ Corrupted(("rotate", "fog"))       # a term of a training method on corrupted images
load_published("mnist_c")                          # the published images, for those who have them

Written from the published description and parameters. Each function's docstring says where it differs from the
original; the published images were also rounded to bytes, which ours are not.
"""

from equipoise.corruptions.mnist_c import CORRUPTIONS, MNIST_C, Corrupted, Corruption, chosen, corrupt
from equipoise.corruptions.published import Published, load_published

__all__ = ["CORRUPTIONS", "MNIST_C", "Corrupted", "Corruption", "Published", "chosen", "corrupt", "load_published"]
