"""What takes the time on a CPU, by kernels of our own wherever there is a C compiler: small convolutional networks
(`chain.c`) and the moves of FAB (`plane.c`).

`shortcut(predict, slow, weights)` is a prediction that takes this way wherever the network is a chain that the kernels
know. `compiler()` is the C compiler that is used, or None.
"""

from equipoise.kernels.native.build import compiler
from equipoise.kernels.native.chain import shortcut
from equipoise.kernels.native.plane import move_onto

__all__ = ["compiler", "move_onto", "shortcut"]
