"""R Table 11: WideResNet-34-10 on CIFAR-10 and CIFAR-100, under PGD and CW."""

from equipoise.reproduce.experiment import Experiment, Part, Table, Variant
from equipoise.reproduce.printed import printed
from equipoise.reproduce.rethinking import NOTES, cell, wide

_PAPER = {
    "cifar10": """
            PAT TRADES PAT-EntM
Clean     88.11  86.09    88.65
PGD40-4    69.2  68.09    69.98
PGD40-8   45.53   46.7    52.98
PGD40-16  19.03  19.27    33.21
CW40-4    69.42  68.33    69.66
CW40-8    46.23  47.76     50.4
CW40-16    18.9  18.09    31.31
""",
    "cifar100": """
            PAT TRADES PAT-EntM
Clean     61.96  58.57    63.93
PGD40-4   39.49  38.52    42.85
PGD40-8   22.89  23.49    26.43
PGD40-16    6.2   7.64     10.6
CW40-4    39.44   38.2    40.86
CW40-8    23.47  23.78     24.7
CW40-16    6.64   7.93     7.77
""",
}


def _parts(variant: Variant) -> list[Part]:
    return [
        Table(f"Accuracy on {data} (R Table 11)", [cell(*one, data=data, build=wide) for one in found], "attack")
        for data, found in ((data, printed(text)) for data, text in _PAPER.items())
    ]


experiment = Experiment(
    "rethinking-table-11",
    "WideResNet-34-10 on CIFAR-10 and CIFAR-100, under PGD and CW",
    "R Table 11",
    _parts,
    notes=NOTES + " The weight of the entropy is 1 on CIFAR-10 and .5 on CIFAR-100 (R, App. D).",
)
