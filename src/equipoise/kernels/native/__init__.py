"""C kernels for the CPU, used wherever there is a C compiler, or a wheel that brings them compiled: small networks with
their input gradients (`layers.c`, in the memory of `workspace.c`), whole climbs (`climb.c`) and searches over squares
(`square.c`) on them, gradients of their weights (`training.c`), and projections of FAB (`hyperplane.c`).

`native_forward(predict, fallback, weights)` is a prediction that uses the kernels if they support the network, and
`native_training` the live one of a training step. `compiler()` is the C compiler in use, or None.
"""

from equipoise.core.deprecation import renamed_names
from equipoise.kernels.native.build import compiler, library, way
from equipoise.kernels.native.climbs import AutoSteps, ClimbPlan, ClimbSamples, ClimbTerm, climb
from equipoise.kernels.native.forward import NativeForward, NativeNetwork, native_forward, native_prediction
from equipoise.kernels.native.hyperplane import move_onto
from equipoise.kernels.native.layers import MAX_WEIGHTS
from equipoise.kernels.native.squares import SquarePlan, SquareSamples, search_squares
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
    "library",
    "move_onto",
    "native_forward",
    "native_prediction",
    "native_training",
    "search_squares",
    "way",
]
__getattr__ = renamed_names(__name__, {"shortcut": "native_forward"})
