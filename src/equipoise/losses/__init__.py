"""Objectives, one number per sample, which attacks maximise and training minimises; training methods are their sums."""

from equipoise.core.documentation import show_attributes
from equipoise.losses.memory import SampleMemory
from equipoise.losses.objectives import (
    UNCERTAINTIES,
    Objective,
    boosted_cross_entropy,
    cross_entropy,
    dlr,
    each,
    entropy,
    expected_entropy,
    kl,
    least_confidence,
    log_diversity,
    logit_variance,
    margin,
    misclassified_kl,
    mutual_information,
    negated_probability,
    probability_margin,
    regularised,
    rival_probability,
    small_margin,
    smoothed_cross_entropy,
    uncertainty_named,
    variance,
)
from equipoise.losses.terms import Method, Term, as_method
from equipoise.losses.worst_case import Bounds, WarmedUp, crown_ibp, ibp

__all__ = [
    "UNCERTAINTIES",
    "Bounds",
    "Method",
    "Objective",
    "SampleMemory",
    "Term",
    "WarmedUp",
    "as_method",
    "boosted_cross_entropy",
    "cross_entropy",
    "crown_ibp",
    "dlr",
    "each",
    "entropy",
    "expected_entropy",
    "ibp",
    "kl",
    "least_confidence",
    "log_diversity",
    "logit_variance",
    "margin",
    "misclassified_kl",
    "mutual_information",
    "negated_probability",
    "probability_margin",
    "regularised",
    "rival_probability",
    "small_margin",
    "smoothed_cross_entropy",
    "uncertainty_named",
    "variance",
]

show_attributes(__name__)
