"""C kernels for the CPU, used wherever there is a C compiler: small convolutional networks with their input gradients
(`layers.c`) and the projections of FAB (`hyperplane.c`).

`native_forward(predict, fallback, weights)` is a prediction that uses the kernels if they support the network.
`compiler()` is the C compiler in use, or None.
"""

from equipoise.core.deprecation import renamed_names
from equipoise.kernels.native.build import compiler
from equipoise.kernels.native.hyperplane import move_onto
from equipoise.kernels.native.layers import native_forward

__all__ = ["compiler", "move_onto", "native_forward"]
__getattr__ = renamed_names(__name__, {"shortcut": "native_forward"})
