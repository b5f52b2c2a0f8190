"""T Fig 2: clean accuracy on MNIST, Fashion-MNIST and SVHN, against the eps of training."""

from equipoise.reproduce.experiment import Chart, Experiment, Part, Variant
from equipoise.reproduce.recipes import SEEDS, T_NOTES, T_QUIRKS, T_RADII, curve, evaluated, t_training


def _chart(data: str, variant: Variant) -> Chart:
    lines = [
        curve(
            name,
            {eps: [evaluated(t_training(data, variant, name, eps, seed)) for seed in SEEDS] for eps in T_RADII[data]},
        )
        for name in ("PGD", "UTA")
    ]
    return Chart(f"Clean accuracy on {data}", "eps of training", "clean accuracy, %", lines)


def _parts(variant: Variant) -> list[Part]:
    return [_chart(data, variant) for data in T_RADII]


experiment = Experiment(
    "uta-figure-2",
    "Clean accuracy on MNIST, Fashion-MNIST and SVHN of PGD and UTA, against the eps of training",
    "T Fig 2",
    _parts,
    quirks=T_QUIRKS,
    notes=T_NOTES + " The radii are those of T Table 1.",
)
