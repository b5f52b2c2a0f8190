"""Training methods, each a weighted sum of loss terms. You can define your own in the same way:

    cross_entropy + 0.5 * (entropy @ udp(eps=0.1, step_size=0.02, steps=10))

Parameters of several methods, unless a method says otherwise:

    eps: Radius ε of the ball, in pixels of [0, 1], such as 0.1 or 8/255; in a latent space, in units of its values.
    step_size: Length α of a step, in units of `eps`, or its schedule; by default 2.5 ε / steps.
    steps: Number of steps K of the inner maximisation.
    loss: Training loss L, and the attack's objective where the method maximises the loss: `cross_entropy`, or with
        uncertainty promoted `regularised(entropy_weight=2)` (METHOD-EntM) or `regularised(smoothing=0.74)` (METHOD-LS).
    clean_share: Share a of the clean loss, in [0, 1].
    divergence: D(clean, perturbed): KL(clean ‖ perturbed), its reverse, or the cross-entropy with the clean prediction.
    layer: Name of the layer whose output is perturbed, such as fc1 of a LeNet.
    options: Further fields of the attack, such as `norm`, `box`, `start`, and `mode`, the model's mode while it is
        attacked: `train` as in the papers' runs, or `eval` (the default), where samples are independent of each other,
        which is faster and leaves batch-norm's statistics to the clean and final points.

All other parameters are described by the method itself. Below, x' stands for the perturbed input.
"""

from equipoise.core.documentation import show_attributes
from equipoise.training.methods.attacked import (
    fgsm_at,
    friendly_at,
    gradalign_at,
    mart,
    n_fgsm_at,
    pat,
    pgd_at,
    r_fgsm_at,
    trades,
    udp,
    udp_trades,
    udpr,
    uta,
)
from equipoise.training.methods.certified import crown_ibp, ibp, mtl_ibp
from equipoise.training.methods.latent import (
    ls_pgd,
    ls_trades,
    ls_udp,
    ls_udpr,
    ls_uta,
    on_manifold_at,
    on_manifold_udp,
)
from equipoise.training.methods.regularised import adp, corruption_at, entm, hein, label_smoothing, r2, r4, standard
from equipoise.training.methods.remembered import fgsm_pgi, mma
from equipoise.training.methods.variations import (
    adaptive_eps,
    alternating,
    average_of,
    distilled,
    every,
    remembering,
    worst_of,
)

__all__ = [
    "adaptive_eps",
    "adp",
    "alternating",
    "average_of",
    "corruption_at",
    "crown_ibp",
    "distilled",
    "entm",
    "every",
    "fgsm_at",
    "fgsm_pgi",
    "friendly_at",
    "gradalign_at",
    "hein",
    "ibp",
    "label_smoothing",
    "ls_pgd",
    "ls_trades",
    "ls_udp",
    "ls_udpr",
    "ls_uta",
    "mart",
    "mma",
    "mtl_ibp",
    "n_fgsm_at",
    "on_manifold_at",
    "on_manifold_udp",
    "pat",
    "pgd_at",
    "r2",
    "r4",
    "r_fgsm_at",
    "remembering",
    "standard",
    "trades",
    "udp",
    "udp_trades",
    "udpr",
    "uta",
    "worst_of",
]

show_attributes(__name__)
