"""T Fig 13: MNIST, PGD and UTA in the latent space, clean and under PGD in the input space."""

from functools import partial

from equipoise.reproduce.experiment import Experiment, Part, Variant
from equipoise.reproduce.recipes import T_CHARTS_NOTES, T_LATENT_NOTES, T_RADII, t_charts, t_latent


def _parts(variant: Variant) -> list[Part]:
    return t_charts({name: partial(t_latent, name) for name in ("LS-PGD", "LS-UTA")}, T_RADII["mnist"], restarts=10)


experiment = Experiment(
    "uta-figure-13",
    "MNIST, perturbations in the latent space: clean accuracy against the eps of training, and under PGD of the test",
    "T Fig 13",
    _parts,
    notes=T_LATENT_NOTES + T_CHARTS_NOTES + " The test starts 10 times at random.",
)
