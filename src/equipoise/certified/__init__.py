"""Certificates: lower bounds of the classification margin that no perturbation within the ball can undercut.

An attack shows that a margin is no larger than what it found; a certificate, that it is no smaller. Together they are a
bracket: `certified <= true <= attacked`. The network is taken apart into affine layers, ReLUs and maxima
(`translate`), and its logits are bounded over ball ∩ box by one of three methods:

    ibp        intervals through all layers (Gowal et al. 2018, "On the Effectiveness of Interval Bound Propagation
               for Training Verifiably Robust Models"): fast and loose
    crown-ibp  intervals up to the last ReLU, then linear bounds of the margins back to the input (Zhang et al. 2020,
               "Towards Stable and Efficient Training of Verifiably Robust Neural Networks")
    crown      linear bounds for every layer (Zhang et al. 2018, "Efficient Neural Network Robustness Certification
               with General Activation Functions"): the tightest of the three

What is certified is the network as it runs in float32 (or in the model's own precision), not only an ideal one: for
every point that `Ball.contains` accepts, however rounded, and every order in which sums are formed. To that end the
standard bound of the rounding error of every layer, `k u (|W| max|z| + |b|)` for k roundings of relative size u = 2⁻²⁴,
is taken twice and passed on like a perturbation of that layer's output. The bounds themselves are computed in float64;
their own rounding, of the same form with u = 2⁻⁵³, is covered by that factor of two (for a network in float64, by
u = 2⁻⁴⁸). Two things are taken for granted:
that no number underflows, and that convolutions are sums of products, not transforms such as Winograd's or in TF32.
"""

from equipoise.certified.margins import METHODS, bounds, certified, certified_margin, certified_radius
from equipoise.certified.network import Network, translate
from equipoise.certified.regions import Region

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
