"""R Figure 2: accuracy against the number of steps, on CIFAR-10 and CIFAR-100."""

from equipoise.reproduce import measures_rf as measures
from equipoise.reproduce.experiment import Cell, Chart, Experiment, Line, Part, Variant, number
from equipoise.reproduce.rethinking import SEEDS, TRAINED, training
from equipoise.reproduce.tasks import TEST_SIZES, Measured, call

_SMOOTHINGS = tuple(tenths / 10 for tenths in range(11))
_LINES = {
    "PAT": ("PAT", (0.0,)),
    "PAT-EntM": ("PAT-EntM", (0.0,)),
    "PAT-EntM, adaptive": ("PAT-EntM", _SMOOTHINGS),
    "TRADES": ("TRADES", (0.0,)),
}
_QUESTION = "Does the accuracy settle as the attack takes more steps?"

# At the most steps, on CIFAR-10 with eps = 8/255 (R, Sec. 5.2.2).
_PAPER = {("cifar10", 8, "PAT-EntM, adaptive"): 45.05, ("cifar10", 8, "TRADES"): 45.21}


def _line(line: str, data: str, k: int) -> Line:
    name, smoothings = _LINES[line]
    function = call(measures.accuracy_by_steps, eps=k / 255, smoothings=smoothings)
    tasks = [Measured(function, [training(name, data, seed)], _QUESTION, "last", TEST_SIZES[data]) for seed in SEEDS]
    last = measures.STEPS[-1]
    points = [
        (
            float(steps),
            Cell(
                line,
                f"{steps} steps",
                tasks,
                number(f"k = {steps}"),
                _PAPER.get((data, k, line)) if steps == last else None,
                0.005,
            ),
        )
        for steps in measures.STEPS
    ]
    return Line(line, points)


def _parts(variant: Variant) -> list[Part]:
    return [
        Chart(f"Accuracy against steps, {data}, eps {k}/255 (R Fig 2)", "steps of the attack", "accuracy in %",
              [_line(line, data, k) for line in _LINES])
        for data in ("cifar10", "cifar100")
        for k in (8, 16)
    ]  # fmt: skip


experiment = Experiment(
    "rethinking-figure-2",
    "CIFAR-10 and CIFAR-100: accuracy under PGD of more and more steps, and under the adaptive attack",
    "R Fig 2",
    _parts,
    notes=TRAINED
    + "The attack starts as all of R's do, 5 times at Gaussian noise of .005. Of the adaptive attacks that one counts "
    "whose smoothing leaves the fewest of all samples, as in R. The accuracies that R gives there, 45.05 and 45.21, "
    "are read as those after the most steps; that of TRADES as one under the attack that does not adapt.",
)
