"""R Figure 1: accuracy against eps, on CIFAR-10 and CIFAR-100."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Chart, Experiment, Line, Part, Variant, number
from equipoise.reproduce.rethinking import SEEDS, TRAINED, training
from equipoise.reproduce.tasks import TEST_SIZES, Measured, call

_METHODS = ("PAT", "PAT-EntM", "TRADES")
_QUESTION = "Does the accuracy fall to 0 as the ball grows?"


def _line(name: str, data: str) -> Line:
    tasks = [
        Measured(call(measures.accuracy_by_eps), [training(name, data, seed)], _QUESTION, "last", TEST_SIZES[data])
        for seed in SEEDS
    ]
    last = measures.RADII[-1]
    points = [
        (float(k), Cell(name, f"{k}/255", tasks, number(f"k = {k}"), 0.0 if k == last else None, 0.1))
        for k in measures.RADII
    ]
    return Line(name, points)


def _parts(variant: Variant) -> list[Part]:
    return [
        Chart(f"Accuracy against eps, {data} (R Fig 1)", "eps, in 1/255", "accuracy in %",
              [_line(name, data) for name in _METHODS])
        for data in ("cifar10", "cifar100")
    ]  # fmt: skip


experiment = Experiment(
    "rethinking-figure-1",
    "CIFAR-10 and CIFAR-100: accuracy under PGD of k steps of 2/255 with eps = k/255",
    "R Fig 1",
    _parts,
    notes=TRAINED
    + "The attack starts as all of R's do, 5 times at Gaussian noise of .005. Of k in [10, 150] every tenth is taken. "
    "R gives no numbers but that all accuracies are 0 in the end.",
)
