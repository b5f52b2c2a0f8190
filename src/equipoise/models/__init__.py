"""From a model to class probabilities: one network, several, or a distribution over them.

Every predictive works wherever a network does: in every attack, every training method and every evaluation.
"""

from equipoise.models.deep_kernel_gp import DeepKernelGP, kl_to_prior
from equipoise.models.dropout import MonteCarloDropout
from equipoise.models.ensemble import Ensemble
from equipoise.models.frozen import Frozen, called_with, cut, frozen
from equipoise.models.inference import (
    NOT_FINITE,
    Examined,
    check_outputs,
    couples_samples,
    examine,
    first_look,
    frozen_weights,
    full_precision,
    isolated,
    laid_out,
    predict,
    reseed,
    seeded,
    standing,
    usable_precision,
    with_module,
)
from equipoise.models.single import Single, as_predictive
from equipoise.models.splitting import Splittable, parts

__all__ = [
    "NOT_FINITE",
    "DeepKernelGP",
    "Ensemble",
    "Examined",
    "Frozen",
    "MonteCarloDropout",
    "Single",
    "Splittable",
    "as_predictive",
    "called_with",
    "check_outputs",
    "couples_samples",
    "cut",
    "examine",
    "first_look",
    "frozen",
    "frozen_weights",
    "full_precision",
    "isolated",
    "kl_to_prior",
    "laid_out",
    "parts",
    "predict",
    "reseed",
    "seeded",
    "standing",
    "usable_precision",
    "with_module",
]
