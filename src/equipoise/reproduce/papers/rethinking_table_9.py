"""R Table 9: MNIST, clean accuracy, under FGSM and under PGD with more and more steps."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import MNIST_QUIRK, NOTES, table

_PAPER = """
                    Normal   EntM    ADP    PAT PAT-EntM TRADES
Clean                 99.2  99.13  99.37  98.47    98.04  97.78
FGSM32               55.31  62.77  77.61  95.14    95.01  95.18
PGD10-32             26.03  32.73  57.54  94.15     94.1  94.28
PGD10-48              2.35   3.08  17.06  89.82    90.65  90.57
PGD20-32             20.38  23.32  43.76  93.91    93.91   94.2
PGD20-48              1.13   1.28   7.34  88.62    89.77  90.53
PGD40-32             19.04  19.89  39.14  93.54    93.88  94.17
PGD40-48              0.98   0.85   4.52  88.39    89.59  90.52
black-box PGD10-32   83.11  85.76  87.07  96.32    96.16  96.93
black-box PGD10-48   46.94   52.2  52.77   94.6    94.48  95.79
black-box PGD20-32   81.43  83.95  84.88  96.31    95.96  96.81
black-box PGD20-48   44.68  46.23  46.81  94.36    94.23  95.45
"""
_NET = (
    " The network is that of R, App. A.1, whose convolutions cannot have the printed stride of 5: 320 features need "
    "1; nor can its first FC layer have 10 outputs, as its second has 50 inputs."
)

experiment = Experiment(
    "rethinking-table-9",
    "MNIST: clean accuracy, under FGSM and under PGD with more and more steps",
    "R Table 9",
    table("Accuracy on MNIST (R Table 9)", "mnist", _PAPER),
    quirks=MNIST_QUIRK,
    notes=NOTES + _NET,
)
