"""Certificates: lower bounds of the classification margin that no perturbation within the ball can undercut.

An attack gives an upper bound of the margin, a certificate a lower one: `certified <= true <= attacked`. The network
is translated into affine layers, ReLUs and maxima (`translate`), and its logits are bounded over ball ∩ box by one of
three methods:

    ibp        intervals through all layers (Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation
               for Training Verifiably Robust Models"): fast and loose
    crown-ibp  intervals up to the last ReLU, then linear bounds of the margins back to the input (Zhang et al. 2020,
               "Towards Stable and Efficient Training of Verifiably Robust Neural Networks")
    crown      linear bounds for every layer (Zhang et al. 2018, "Efficient Neural Network Robustness Certification
               with General Activation Functions"): the tightest of the three

Certificates hold for the network as it runs in float32 (or in the model's own precision), not only in exact arithmetic:
for every point that `Ball.contains` accepts, however rounded, and every order of summation. To that end twice the
standard bound of the rounding error of every layer, `k u (|W| max|z| + |b|)` for k roundings of relative size u = 2⁻²⁴,
is treated like a perturbation of that layer's output. The bounds are computed in float64; their own rounding, of the
same form with u = 2⁻⁵³, is covered by the factor of two (for a network in float64, by u = 2⁻⁴⁸). Two assumptions are
made: no number underflows, and convolutions are sums of products, not transforms such as Winograd's or in TF32.
"""

from equipoise.bounds.network import Network, translate
from equipoise.bounds.regions import Region
from equipoise.certified.margins import METHODS, bounds, certified, certified_margin, certified_radius

__all__ = [
    "METHODS",
    "Network",
    "Region",
    "bounds",
    "certified",
    "certified_margin",
    "certified_radius",
    "translate",
]
