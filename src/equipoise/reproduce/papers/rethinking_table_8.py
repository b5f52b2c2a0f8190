"""R Table 8: SVHN, all attacks, with 20 steps too."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import NOTES, table

_PAPER = """
                   Normal   EntM    ADP     LS    PAT PAT-EntM PAT-LS TRADES
Clean               97.04  97.18  97.58  97.31     94    94.08  94.08  93.28
FGSM4               65.74  85.39  83.55  85.75  82.99    83.21  83.04  84.26
PGD10-4             27.54  72.99  70.76  79.86  79.72    80.11  79.39  80.41
PGD10-8              4.73  48.47  49.91  59.13  61.71    63.88   62.6  64.95
PGD10-16                0  21.61  25.13  31.97  29.33    38.85  35.77  36.27
PGD20-4             13.04  55.47  54.68  61.34  78.15    78.66  77.55  78.45
PGD20-8              0.81  22.42  25.24  27.35  55.24    57.37  55.56  58.13
PGD20-16                0    5.0    6.6    7.2  18.65    27.57   23.9  24.49
PGD40-4              8.37  40.85  42.73  44.53  77.71     78.3  77.06  77.96
PGD40-8              0.36  10.27  13.62   12.4  52.76    54.65  52.14  57.02
PGD40-16                0   1.15   2.25    1.9  14.18     23.8  17.58  17.96
black-box PGD10-4   66.07  70.47  67.83  69.76  83.69    83.85  84.08  83.78
black-box PGD10-8    43.7  49.77  46.53  48.25  68.88    69.03  69.48   69.4
black-box PGD20-4   60.17  66.33  63.79   65.8  82.67    83.15   83.3  82.94
black-box PGD20-8    36.1   45.3  40.18  43.05  65.00    65.42  65.43  65.32
"""

experiment = Experiment(
    "rethinking-table-8",
    "SVHN: all attacks, with 20 steps too",
    "R Table 8",
    table("Accuracy on SVHN (R Table 8)", "svhn", _PAPER),
    notes=NOTES,
)
