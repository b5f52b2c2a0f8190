"""R Table 7: CIFAR-100, all attacks, with 20 steps too."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import NOTES, table

_PAPER = """
                   Normal   EntM    ADP     LS    PAT PAT-EntM PAT-LS TRADES
Clean               75.66  77.17  80.04  77.60  59.65    62.53  62.83  54.63
FGSM4               12.73   29.8  28.29  31.14  38.86    44.37   43.2  37.94
PGD10-4              0.97    9.1   6.15   9.91  37.76    43.43  42.39  37.61
PGD10-8                 0   3.32    1.3   3.35  22.41    29.09  27.13  24.77
PGD10-16                0    0.7      0      1   7.47    13.18  11.21  10.28
PGD20-4                 0    2.9   1.94   3.15  36.89    42.65   41.3  36.83
PGD20-8                 0   0.69   0.15   0.87  20.46    26.89  24.75  23.12
PGD20-16                0      0      0      0   5.43     9.82   8.02   8.01
PGD40-4                 0   1.08   0.87   1.35  36.55    42.45  41.08  36.45
PGD40-8                 0    0.1      0      0  19.62     26.1  24.05   22.6
PGD40-16                0      0      0      0   4.73     8.22   6.69   7.26
black-box PGD10-4   13.77  18.07  21.36  18.44   49.4    52.25  52.97  46.76
black-box PGD10-8    3.65   5.45   7.07    5.6  38.84    41.48  41.44  38.55
black-box PGD20-4    9.92  13.31  16.12   13.5  49.34    52.02  52.56  46.45
black-box PGD20-8    1.89   2.84    3.7   2.98  38.25    40.66  40.39  38.13
"""
_DIFFERS = " See rethinking-table-2 for the numbers in which the two tables differ."

experiment = Experiment(
    "rethinking-table-7",
    "CIFAR-100: all attacks, with 20 steps too",
    "R Table 7",
    table("Accuracy on CIFAR-100 (R Table 7)", "cifar100", _PAPER),
    notes=NOTES + _DIFFERS,
)
