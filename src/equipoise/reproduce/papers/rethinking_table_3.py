"""R Table 3: SVHN, clean accuracy and under FGSM, PGD and transferred attacks."""

from equipoise.reproduce.experiment import Experiment
from equipoise.reproduce.rethinking import NOTES, table

_PAPER = """
                   Normal   EntM     LS    ADP    PAT TRADES PAT-EntM PAT-LS
Clean               97.04  97.18  97.31  97.58     94  93.28    94.08  94.08
FGSM4               65.74  85.39  85.75  83.55  82.99  84.26    83.21  83.04
PGD10-4             27.54  72.99  79.86  70.76  79.72  80.41    80.11  79.39
PGD10-8              4.73  48.47  59.13  49.91  61.71  64.95    63.88   62.6
PGD10-16                0  21.61  31.97  25.13  29.33  36.27    38.85  35.77
PGD40-4              8.37  40.85  44.53  42.73  77.71  77.96     78.3  77.06
PGD40-8              0.36  10.27   12.4  13.62  52.76  57.02    54.65  52.14
PGD40-16                0   1.15    1.9   2.25  14.18  17.96     23.8  17.58
black-box PGD10-4   66.07  70.47  69.76  67.83  83.69  83.78    83.85  84.08
black-box PGD10-8    43.7  49.77  48.25  46.53  68.88   69.4    69.03  69.48
"""

experiment = Experiment(
    "rethinking-table-3",
    "SVHN: clean accuracy and under FGSM, PGD and transferred attacks",
    "R Table 3",
    table("Accuracy on SVHN (R Table 3)", "svhn", _PAPER),
    notes=NOTES,
)
