"""From a model to class probabilities: one network, several, or a distribution over them.

Every predictive works wherever a network does: in every attack, every training method and every evaluation.
"""

from equipoise.predictive.deep_kernel_gp import DeepKernelGP, kl_to_prior
from equipoise.predictive.dropout import MonteCarloDropout
from equipoise.predictive.ensemble import Ensemble
from equipoise.predictive.parts import Splittable, parts
from equipoise.predictive.single import (
    Single,
    as_predictive,
    called_with,
    check_outputs,
    couples_samples,
    first_look,
    frozen_weights,
    full_precision,
    predict,
    reseed,
    seeded,
    standing,
    with_module,
)

__all__ = [
    "DeepKernelGP",
    "Ensemble",
    "MonteCarloDropout",
    "Single",
    "Splittable",
    "as_predictive",
    "called_with",
    "check_outputs",
    "couples_samples",
    "first_look",
    "frozen_weights",
    "full_precision",
    "kl_to_prior",
    "parts",
    "predict",
    "reseed",
    "seeded",
    "standing",
    "with_module",
]
