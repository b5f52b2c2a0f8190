"""Claims of the four papers that no table of theirs tests, each put to the test on the papers' own networks."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from equipoise import attacks
from equipoise.reproduce import measures, measures_claims
from equipoise.reproduce.experiment import (
    Cell,
    Chart,
    Claim,
    Claims,
    Part,
    Read,
    Table,
    Variant,
    clean,
    number,
    robust,
    trade_off,
)
from equipoise.reproduce.papers import framework, rethinking, udp
from equipoise.reproduce.published import experiments
from equipoise.reproduce.recipes import ADAM, SEEDS, above, curve, evaluated, measured, named
from equipoise.reproduce.tasks import Call, MeasureTask, Net, Task, Training, call
from equipoise.training import methods

DATA = "fashion-mnist"
BEST = ("standard", "PGD (eps 0.2)", "TRADES (eps 0.2)", "UDPR (eps 0.5)", "UDP-PGD (eps 0.3)", "UDP-PGD (eps 0.5)")
"""The methods of U Table 2, with the eps that U selected for each."""
RADII = udp.RADII[DATA]
_AT = 0.1  # eps of tests, the middle one of U Table 2
Column = tuple[Callable[[str], Sequence[Task]], Read, float]
"""Of a column its tasks by row, how they are read, and the factor to the table's unit."""
_SUBSET = 1000  # samples of what takes minutes a network


def best(row: str) -> list[Training]:
    """The trainings of U Table 2 and standard ones, by row."""
    return udp.trainings(DATA, *named(row), "corrected")


def trained(method: Call, net: Net) -> list[Training]:
    """The same recipe with another method or network, seed by seed."""
    return [Training(method, net, DATA, replace(ADAM, seed=seed)) for seed in SEEDS]


def autoattacked(trainings: Sequence[Training]) -> list[Task]:
    """Their accuracies, clean and under AutoAttack."""
    return [evaluated(one, ["autoattack"], [_AT]) for one in trainings]


def table(title: str, rows: Sequence[str], columns: Mapping[str, Column], unit: str = "%") -> Table:
    """A table without published numbers."""
    cells = [
        Cell(row, column, tasks(row), read, scale=scale)
        for row in rows
        for column, (tasks, read, scale) in columns.items()
    ]
    return Table(title, cells, unit=unit)


def margins(variant: Variant) -> list[Part]:
    """The distance to the boundary, and whether perturbations follow the distance to another class."""
    question = "How far is the boundary from the samples?"

    def distances(row: str) -> list[MeasureTask]:
        return [measured(call(measures_claims.margins), [one], question, _SUBSET) for one in best(row)]

    names = (measures_claims.LINF, measures_claims.L2, measures_claims.CERTIFIED)
    columns = {name: (distances, number(name), 1.0) for name in names}
    distance = table(
        "Mean distance to the boundary, in pixels of [0, 1]; misclassified samples have 0", BEST, columns, ""
    )
    claims = [
        claim
        for name in names
        for row in ("UDPR (eps 0.5)", "UDP-PGD (eps 0.5)")
        for claim in above(distance, f"{row} has a larger {name}", "U, title and Sec. 3", name, row, "standard",
                           "PGD (eps 0.2)", "TRADES (eps 0.2)", unit="pixels")
    ]  # fmt: skip
    return [distance, Claims("Are the margins larger?", claims), Claims("Do moves follow the data?", follows())]


def follows() -> list[Claim]:
    """UDP moves samples further where the other class is further away; PGD moves all of them alike."""
    climb = {"eps": 0.5, "step_size": 0.025, "steps": 20}
    question = "Do perturbations move samples further where the other class is further away?"

    def correlation(row: str, attack: Callable[..., Any]) -> Cell:
        function = call(measures_claims.moves, attack=call(attack, **climb))
        tasks = [measured(function, [one], question) for one in best("UDP-PGD (eps 0.5)")]
        return Cell(row, "rank correlation", tasks, number(measures_claims.FOLLOWS), scale=1.0)

    own = correlation("UDP's moves", attacks.udp)
    pgd = correlation("PGD's moves", attacks.pgd)
    source = "U, Sec. 3 and Fig 1"
    return [
        Claim("UDP moves a sample further where the nearest sample of another class is further away", source, own,
              unit="of a rank correlation"),
        Claim("UDP's moves follow that distance more closely than PGD's", source, own, pgd,
              unit="of a rank correlation"),
    ]  # fmt: skip


def training_eps(variant: Variant) -> list[Part]:
    """Clean and robust accuracy against the eps of training, and its selection by validation."""
    names = ("PGD", "TRADES", "UDPR", "UDP-PGD")

    def tasks(name: str) -> dict[float, list[Task]]:
        return {eps: autoattacked(udp.trainings(DATA, name, eps, "corrected")) for eps in RADII}

    by_name = {name: tasks(name) for name in names}
    charts = [
        Chart(f"Clean accuracy on {DATA}", "eps of training", "clean accuracy, %",
              [curve(name, by_eps) for name, by_eps in by_name.items()]),
        Chart(f"Accuracy under AutoAttack, eps {_AT}", "eps of training", "robust accuracy, %",
              [curve(name, by_eps, robust(_AT)) for name, by_eps in by_name.items()]),
    ]  # fmt: skip
    lines = {line.name: dict(line.points) for line in charts[0].lines}
    superior = [
        Claim(f"UDP's clean accuracy is higher than that of {other} at eps {eps:g}", "U Sec. 5.1",
              lines["UDP-PGD"][eps], lines[other][eps])
        for other in ("PGD", "TRADES")
        for eps in RADII
    ]  # fmt: skip
    return [*charts, Claims("Is UDP's clean accuracy consistently superior?", superior), *selection(names)]


def selection(names: Sequence[str]) -> list[Part]:
    """Whether validation finds the eps of training that serves best."""
    question = "Which eps of training does validation select?"
    function = call(measures_claims.selected, radii=RADII, eps=_AT)

    def chosen(name: str) -> list[MeasureTask]:
        of = zip(*(udp.trainings(DATA, name, eps, "corrected") for eps in RADII), strict=True)
        return [measured(function, list(networks), question, _SUBSET, courses=True) for networks in of]

    reads = {
        measures_claims.CHOSEN: (chosen, number(measures_claims.CHOSEN), 1.0),
        measures_claims.SELECTED: (chosen, number(measures_claims.SELECTED), 100.0),
        measures_claims.BEST: (chosen, number(measures_claims.BEST), 100.0),
    }
    result = table("The eps of training that validation selects", names, reads)
    claims = [
        Claim(f"Validation selects an eps of {name} within 2 points of the best", "this library",
              result.at(name, measures_claims.SELECTED), result.at(name, measures_claims.BEST), by=-2.0)
        for name in names
    ]  # fmt: skip
    return [result, Claims("Does validation find a good eps?", claims)]


def uncertainties(variant: Variant) -> list[Part]:
    """Which uncertainty to maximise: of one network, or of an ensemble."""
    climb = {"eps": 0.3, "step_size": 0.015, "steps": 25}
    kinds = {
        "entropy, one network": (Net("lenet"), "entropy"),
        "margin, one network": (Net("lenet"), "margin"),
        "entropy, five networks": (Net("lenet", members=5), "entropy"),
        "mutual information, five networks": (Net("lenet", members=5), "mutual_information"),
        "variance, five networks": (Net("lenet", members=5), "variance"),
    }

    def tasks(row: str) -> list[Task]:
        net, uncertainty = kinds[row]
        return autoattacked(trained(call(methods.udp, uncertainty=uncertainty, **climb), net))

    result = accuracy_table("UDP by other uncertainties", list(kinds), tasks)
    own, *others = "mutual information, five networks", "entropy, five networks", "entropy, one network"
    statement = "Mutual information of five networks is a better uncertainty"
    claims = above(result, statement, "U Sec. 3 (epistemic)", "mean of both", own, *others)
    return [result, Claims("Is epistemic uncertainty the better one?", claims)]


def accuracy_table(title: str, rows: Sequence[str], tasks: Callable[[str], Sequence[Task]]) -> Table:
    """Clean accuracy, accuracy under AutoAttack, and their mean."""
    reads = {"clean": clean, f"AutoAttack, eps {_AT}": robust(_AT), "mean of both": trade_off(_AT)}
    return table(f"{title}: accuracy on {DATA}", rows, {name: (tasks, read, 100.0) for name, read in reads.items()})


def calibration(variant: Variant) -> list[Part]:
    """Calibration and detection of another dataset, clean and attacked."""
    question = "Does a network know what it does not know?"
    function = call(measures_claims.uncertainties, eps=_AT)

    def tasks(row: str) -> list[MeasureTask]:
        return [measured(function, [one], question, 2 * _SUBSET, target="mnist") for one in best(row)]

    m = measures_claims
    columns = {
        name: (tasks, number(name), scale)
        for name, scale in ((m.ECE, 100.0), (m.NLL, 1.0), (m.AUROC, 100.0), (m.ATTACKED_ECE, 100.0),
                            (m.ATTACKED_NLL, 1.0), (m.ATTACKED_AUROC, 100.0))
    }  # fmt: skip
    result = table("Calibration error, likelihood in nats, and detection of MNIST by the entropy", BEST, columns)
    rows = ("UDP-PGD (eps 0.3)", "UDPR (eps 0.5)")
    claims = [
        Claim(f"{row} is better calibrated than {other} under attack", "U App. A.4",
              result.at(other, m.ATTACKED_NLL), result.at(row, m.ATTACKED_NLL), unit="nats")
        for row in rows
        for other in ("standard", "PGD (eps 0.2)")
    ]  # fmt: skip
    return [result, Claims("Does training on uncertain points improve uncertainty?", claims)]


def trades_with_udp(variant: Variant) -> list[Part]:
    """TRADES' divergence at the points of UDP."""
    rows = "TRADES (eps 0.2)", "UDP-PGD (eps 0.3)", "UDPR (eps 0.5)"
    combined = {
        f"UDP and TRADES (eps {eps:g})": call(methods.udp_trades, eps=eps, step_size=0.015 if eps < 0.5 else 0.025,
                                              steps=20)
        for eps in (0.2, 0.3, 0.5)
    }  # fmt: skip

    def tasks(row: str) -> list[Task]:
        return autoattacked(trained(combined[row], Net("lenet")) if row in combined else best(row))

    result = accuracy_table("UDP and TRADES together", [*rows, *combined], tasks)
    claims = [
        claim
        for name in combined
        for claim in above(result, f"{name} has a better trade-off", "U App. A.3, future work", "mean of both", name,
                           *rows)
    ]  # fmt: skip
    return [result, Claims("Is the combination better than its parts?", claims)]


def entropy_maximisation(variant: Variant) -> list[Part]:
    """Whether EntM's gain is more than a scale of logits, and whether it reduces robust overfitting (R, on MNIST)."""
    rows = ("PAT", "PAT-EntM", "PAT-LS", "TRADES", "TRADES-EntM")
    eps = 48 / 255

    def attacked(row: str) -> list[Task]:
        return [evaluated(rethinking.training(row, "mnist", seed), ["autoattack"], [eps]) for seed in SEEDS]

    def tempered(row: str) -> list[Task]:
        function = call(measures_claims.rescaled, eps=eps, step_size=8 / 255, steps=40)
        question = "Does accuracy under PGD depend on the scale of the logits?"
        return [measured(function, [rethinking.training(row, "mnist", seed)], question, _SUBSET) for seed in SEEDS]

    def course(row: str) -> list[Task]:
        question = "Does accuracy under an attack fall while the network trains?"
        of = [rethinking.training(row, "mnist", seed) for seed in SEEDS]
        return [measured(call(measures.course, strong="PGD"), [one], question, courses=True) for one in of]

    columns: dict[str, Column] = {
        "clean": (attacked, clean, 100.0),
        "AutoAttack": (attacked, robust(eps), 100.0),
    }
    for factor in (0.1, 1.0, 10.0, 100.0):
        name = measures_claims.scaled_by(factor)
        columns[f"PGD, {name}"] = (tempered, number(name), 100.0)
    fall = "largest fall of PGD accuracy"
    columns[fall] = (course, number(fall), 100.0)
    result = table("Accuracy on MNIST, eps 48/255", rows, columns)
    gain = [
        claim
        for own, other in (("PAT-EntM", "PAT"), ("PAT-LS", "PAT"), ("TRADES-EntM", "TRADES"), ("PAT-EntM", "TRADES"))
        for column in ("clean", "AutoAttack")
        for claim in above(result, f"{own} has more {column} accuracy", "R Sec. 5.2", column, own, other)
    ]
    overfits = [Claim("The robust accuracy of PAT-EntM falls less while it trains than that of PAT",
                      "R Sec. 1 (regularises AT)", result.at("PAT", fall), result.at("PAT-EntM", fall))]  # fmt: skip
    return [result, Claims("Is the gain more than a scale of logits?", gain), Claims("Robust overfitting", overfits)]


def robustness_scores(variant: Variant) -> list[Part]:
    """Scores of F that it defines and does not measure, of its trainings and of adversarial ones on its network."""
    adversarial = {
        "PGD (eps 0.1)": call(methods.pgd_at, eps=0.1, step_size=0.02, steps=10),
        "TRADES (eps 0.1)": call(methods.trades, eps=0.1, step_size=0.02, steps=10),
        "UDP (eps 0.2)": call(methods.udp, eps=0.2, step_size=0.02, steps=20),
    }
    rows = ("No Reg.", "HEIN", "Ours", "R4", *adversarial)
    question = "How robust are networks by the scores that F defines?"

    def of(row: str, seed: int) -> Training:
        if row not in adversarial:
            return framework.training(row, DATA, "corrected", seed)
        return Training(adversarial[row], Net("small-cnn"), DATA, framework.recipe(DATA, seed))

    def scored(row: str) -> list[Task]:
        function, along = call(measures_claims.scores), framework.manifold(DATA)
        return [measured(function, [of(row, seed)], question, _SUBSET, manifold=along) for seed in SEEDS]

    def accuracy(row: str) -> list[Task]:
        return [evaluated(of(row, seed)) for seed in SEEDS]

    names = ("R1", "R2", "R2 by BG alone", "label-aware R2", "on-manifold worst case")
    columns: dict[str, Column] = {name: (scored, number(name), 1.0) for name in names}
    columns["accuracy"] = (accuracy, lambda record: [100 * value for value in clean(record)], 1.0)
    result = table(f"Scores on {DATA}", rows, columns, "")
    by_bg = [
        Claim(f"R2 of {row} by BG alone is larger than that of the nearest attack, and so wrong", "F Sec. 6, Table 2",
              result.at(row, "R2 by BG alone"), result.at(row, "R2"), unit="pixels")
        for row in rows
    ]  # fmt: skip
    trained = above(result, "Training for R2 gives a larger R2", "F Sec. 7, Table 5", "R2", "Ours", "No Reg.", "HEIN",
                    *adversarial, unit="pixels")  # fmt: skip
    return [result, Claims("Is R2 measured well enough?", by_bg), Claims("Does training for R2 help most?", trained)]


EXPERIMENTS = experiments(
    "claims",
    {
        "margins": margins,
        "training-eps": training_eps,
        "uncertainties": uncertainties,
        "calibration": calibration,
        "trades-with-udp": trades_with_udp,
        "entropy-maximisation": entropy_maximisation,
        "robustness-scores": robustness_scores,
    },
)
