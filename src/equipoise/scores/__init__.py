"""Scores of robustness, `∫ E_x[ H(R_Q(x, eps)) · G(eps) ] d eps`, with standard errors (F, Secs. 2 and 3).

score = r2(x.shape[1:])                      # or Score(Sampled(UniformOnBall("linf")), Radii(0.3), H=identity)
estimate = score(model, x, seed=0)           # .value, .error, .interval, .curve
"""

from equipoise.core.deprecation import renamed_names
from equipoise.core.documentation import show_attributes
from equipoise.scores.estimate import Estimate
from equipoise.scores.instances import certified_r2, diameter, label_aware, on_manifold, published_r2, r1, r2, r4
from equipoise.scores.laws import Labelled, Law, OnManifold, UniformOnBall, uniform_move
from equipoise.scores.radii import Distances, Radii
from equipoise.scores.score import (
    Certified,
    Measurement,
    Robustness,
    Sampled,
    Score,
    WorstCase,
    alike,
    certain,
    identity,
    inverse,
)

__all__ = [
    "Certified",
    "Distances",
    "Estimate",
    "Labelled",
    "Law",
    "Measurement",
    "OnManifold",
    "Radii",
    "Robustness",
    "Sampled",
    "Score",
    "UniformOnBall",
    "WorstCase",
    "alike",
    "certain",
    "certified_r2",
    "diameter",
    "identity",
    "inverse",
    "label_aware",
    "on_manifold",
    "published_r2",
    "r1",
    "r2",
    "r4",
    "uniform_move",
]

__getattr__ = renamed_names(__name__, {"Measured": "Measurement"})

show_attributes(__name__)
