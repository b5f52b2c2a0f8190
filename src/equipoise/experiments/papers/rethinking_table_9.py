"""R Table 9: MNIST, clean accuracy and PGD with more and more steps."""

from equipoise import methods, objectives
from equipoise.experiments.experiment import Cell, Experiment, Part, Table, Variant, clean, robust
from equipoise.experiments.tasks import Call, Evaluated, Net, Training, call
from equipoise.training import Recipe

_ENTM = call(objectives.regularised, entropy_weight=2.0)
_BALL = {"eps": 48 / 255, "step_size": 6 / 255, "steps": 10}
_STEPS, _RADII = (10, 20, 40), (32, 48)
_SEEDS = range(3)

# Clean accuracy, then PGD10, PGD20, PGD40, each with eps 32/255 and 48/255, in percent.
_ROWS: dict[str, tuple[Call, tuple[float, ...]]] = {
    "Normal": (call(methods.standard), (99.2, 26.0, 2.4, 20.4, 1.1, 19.0, 1.0)),
    "EntM": (call(methods.standard, loss=_ENTM), (99.1, 32.7, 3.1, 23.3, 1.3, 19.9, 0.9)),
    "ADP": (call(methods.adp), (99.4, 57.5, 17.1, 43.8, 7.3, 39.1, 4.5)),
    "PAT": (call(methods.pat, **_BALL), (98.5, 94.2, 89.8, 93.9, 88.6, 93.5, 88.4)),
    "PAT-EntM": (call(methods.pat, loss=_ENTM, **_BALL), (98.0, 94.1, 90.7, 93.9, 89.8, 93.9, 89.6)),
    "TRADES": (
        call(methods.trades, beta=3.0, divergence="here||clean", **_BALL),
        (97.8, 94.3, 90.6, 94.2, 90.5, 94.2, 90.5),
    ),
}


def _recipe(seed: int) -> Recipe:
    return Recipe(
        epochs=40, batch_size=128, optimizer="sgd", nesterov=False, lr=0.01, weight_decay=1e-4, schedule="multistep",
        milestones=(0.5,), seed=seed,
    )  # fmt: skip


def _cells(row: str, method: Call, paper: tuple[float, ...]) -> list[Cell]:
    net = Net("cnn4", members=3, together=True) if row == "ADP" else Net("cnn4")
    attacks = [f"pgd{steps}-{k}" for steps in _STEPS for k in _RADII]
    tasks = [
        Evaluated(Training(method, net, "mnist", _recipe(seed)), attacks, examples=10_000, weights="last")
        for seed in _SEEDS
    ]
    columns = [("clean", clean)]
    columns += [(f"PGD{s}-{k}", robust(k / 255, attack=f"pgd{s}-{k}")) for s in _STEPS for k in _RADII]
    return [
        Cell(row, column, tasks, read, number, deviation=0.05)
        for (column, read), number in zip(columns, paper, strict=True)
    ]


def _parts(variant: Variant) -> list[Part]:
    cells = [cell for row, (method, paper) in _ROWS.items() for cell in _cells(row, method, paper)]
    return [Table("Accuracy on MNIST, clean and under PGD (R Table 9)", cells)]


experiment = Experiment(
    "rethinking-table-9",
    "Accuracy on MNIST, clean and under PGD with more and more steps",
    "R Table 9",
    _parts,
    notes="R says 40 epochs of SGD with momentum .9 and a learning rate of .01; the tenth after half of them is ours.",
)
