"""C kernels for the CPU, used wherever there is a C compiler: small networks with their input gradients (`layers.c`),
whole climbs on them (`climb.c`), queries of the square attack (`square.c`), gradients of their weights (`training.c`),
and projections of FAB (`hyperplane.c`).

`native_forward(predict, fallback, weights)` is a prediction that uses the kernels if they support the network, and
`native_training` the live one of a training step. `compiler()` is the C compiler in use, or None.
"""

from equipoise.core.deprecation import renamed_names
from equipoise.kernels.native.build import compiler
from equipoise.kernels.native.climbs import AutoSteps, ClimbPlan, ClimbSamples, ClimbTerm, climb
from equipoise.kernels.native.forward import NativeForward, NativeNetwork, native_forward
from equipoise.kernels.native.hyperplane import move_onto
from equipoise.kernels.native.layers import MAX_WEIGHTS
from equipoise.kernels.native.squares import SquarePlan, SquareSamples, native_prediction, search_squares
from equipoise.kernels.native.training import native_training

__all__ = [
    "MAX_WEIGHTS",
    "AutoSteps",
    "ClimbPlan",
    "ClimbSamples",
    "ClimbTerm",
    "NativeForward",
    "NativeNetwork",
    "SquarePlan",
    "SquareSamples",
    "climb",
    "compiler",
    "move_onto",
    "native_forward",
    "native_prediction",
    "native_training",
    "search_squares",
]
__getattr__ = renamed_names(__name__, {"shortcut": "native_forward"})
