"""Small convolutional networks on a CPU, computed by kernels of our own (`chain.c`) wherever there is a C compiler.

`shortcut(predict, weights)` is a prediction like `predict` that takes this way wherever the network is a chain that the
kernels know. `compiler()` is the C compiler that is used, or None.
"""

from equipoise.native.build import compiler
from equipoise.native.chain import shortcut

__all__ = ["compiler", "shortcut"]
