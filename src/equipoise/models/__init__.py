"""Predictives, models with class probabilities: one network, several, or a distribution over networks.

Every predictive can be used wherever a network can: in every attack, training method and evaluation.
"""

from equipoise.core.documentation import show_attributes
from equipoise.models.black_box import BlackBox, from_callable, from_estimator, from_onnx
from equipoise.models.deep_kernel_gp import DeepKernelGP, kl_to_prior
from equipoise.models.dropout import MonteCarloDropout
from equipoise.models.ensemble import Ensemble
from equipoise.models.frozen import Frozen, called_with, cut, frozen
from equipoise.models.inference import (
    NOT_FINITE,
    Examined,
    check_outputs,
    examine,
    frozen_weights,
    full_precision,
    global_seed,
    is_batch_dependent,
    isolated,
    laid_out,
    module_mode,
    predict,
    reseed,
    usable_precision,
    validate_output,
    with_module,
)
from equipoise.models.live import live
from equipoise.models.recognised import expected_normalisation, recognised
from equipoise.models.single import Single, as_predictive
from equipoise.models.smoothed import Smoothed, SmoothedCertificate
from equipoise.models.splitting import Splittable, parts

__all__ = [
    "NOT_FINITE",
    "BlackBox",
    "DeepKernelGP",
    "Ensemble",
    "Examined",
    "Frozen",
    "MonteCarloDropout",
    "Single",
    "Smoothed",
    "SmoothedCertificate",
    "Splittable",
    "as_predictive",
    "called_with",
    "check_outputs",
    "cut",
    "examine",
    "expected_normalisation",
    "from_callable",
    "from_estimator",
    "from_onnx",
    "frozen",
    "frozen_weights",
    "full_precision",
    "global_seed",
    "is_batch_dependent",
    "isolated",
    "kl_to_prior",
    "laid_out",
    "live",
    "module_mode",
    "parts",
    "predict",
    "recognised",
    "reseed",
    "usable_precision",
    "validate_output",
    "with_module",
]

show_attributes(__name__)
