"""The experiments of R and F: their numbers against each other and another transcription, their protocol against R's
Table 5 and F's text, and what they measure against closed forms.
"""

import warnings
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from equipoise import methods
from equipoise.attacks import published_margin_attack
from equipoise.core.errors import EquipoiseWarning
from equipoise.core.rng import Streams
from equipoise.data import load
from equipoise.generators import auto_encoder
from equipoise.losses import objectives
from equipoise.losses.terms import as_method
from equipoise.reproduce import (
    Cell,
    Chart,
    DataManifold,
    Evaluated,
    MeasureTask,
    Net,
    Part,
    Setting,
    Table,
    Task,
    Training,
    Variant,
    call,
    experiment,
    measures,
    names,
    number,
)
from equipoise.reproduce.experiment import cells
from equipoise.reproduce.published import rounding, table_values
from equipoise.reproduce.running import key, result_in, run
from equipoise.results.findings import Findings, Number, Study
from equipoise.training import Recipe
from equipoise.training.penalties import radial_weights

pytestmark = pytest.mark.unchecked

OURS = [name for name in names() if name.startswith(("rethinking", "framework"))]


@cache
def parts_of(name: str, variant: Variant = "corrected") -> Sequence[Part]:
    return experiment(name).plan(1.0, variant).parts


@cache
def tasks_of(name: str, variant: Variant = "corrected") -> Sequence[Task]:
    return experiment(name).plan(1.0, variant).tasks()


def numbers(name: str) -> dict[tuple[str, str], float | None]:
    """The paper's numbers of an experiment of tables, by row and column."""
    tables = [part for part in parts_of(name) if isinstance(part, Table)]
    return {(cell.row, cell.column): cell.paper for table in tables for cell in table.cells}


def every_cell(name: str) -> Iterator[Cell]:
    for part in parts_of(name):
        yield from cells(part)


def silent(what: str, share: float) -> None:
    pass


# Completeness.


def test_every_table_and_figure_of_both_papers_is_there():
    tables = [f"rethinking-table-{n}" for n in (1, 2, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13)]  # 5 is of training settings
    figures = [f"rethinking-figure-{n}" for n in range(1, 7)]
    framework = [f"framework-table-{n}" for n in range(1, 6)] + [f"framework-figure-{n}" for n in (3, 4)]
    assert sorted(OURS) == sorted([*tables, *figures, *framework])


# The papers' numbers.


def test_a_table_as_printed():
    found = list(table_values("\n      A  No_B\nx y  1.25  74\nz  -  0.5\n"))
    assert found == [("x y", "A", 1.25, 0.005), ("x y", "No B", 74.0, 0.005), ("z", "No B", 0.5, 0.005)]
    assert rounding("0.1919") == 0.00005


def test_the_numbers_of_r_table_9_are_those_of_another_transcription():
    """Rounded to a decimal: clean, then PGD10, 20, 40, each with eps 32/255 and 48/255."""
    rounded = {
        "Normal": (99.2, 26.0, 2.4, 20.4, 1.1, 19.0, 1.0),
        "EntM": (99.1, 32.7, 3.1, 23.3, 1.3, 19.9, 0.9),
        "ADP": (99.4, 57.5, 17.1, 43.8, 7.3, 39.1, 4.5),
        "PAT": (98.5, 94.2, 89.8, 93.9, 88.6, 93.5, 88.4),
        "PAT-EntM": (98.0, 94.1, 90.7, 93.9, 89.8, 93.9, 89.6),
        "TRADES": (97.8, 94.3, 90.6, 94.2, 90.5, 94.2, 90.5),
    }
    rows = ("Clean", "PGD10-32", "PGD10-48", "PGD20-32", "PGD20-48", "PGD40-32", "PGD40-48")
    mine = numbers("rethinking-table-9")
    for name, values in rounded.items():
        for row, value in zip(rows, values, strict=True):
            assert mine[row, name] == pytest.approx(value, abs=0.051)


DIFFER = {  # which the notes of the experiments name: all others that two tables share are the same
    (1, 6): {("FGSM4", "PAT"), ("FGSM4", "TRADES"), ("PGD10-8", "LS")},
    (2, 7): {("FGSM4", "EntM"), ("FGSM4", "LS"), ("FGSM4", "ADP")},
    (3, 8): set(),
    (6, 12): {("PGD10-4", "PAT-EntM")},
    (7, 13): {("PGD10-4", "PAT-EntM"), ("PGD20-16", "TRADES")},
}


@pytest.mark.parametrize(("one", "other"), DIFFER)
def test_tables_of_r_that_share_numbers_agree(one, other):
    a, b = numbers(f"rethinking-table-{one}"), numbers(f"rethinking-table-{other}")
    shared = a.keys() & b.keys()
    assert len(shared) >= 60 - 20 * (other >= 12)
    assert {place for place in shared if a[place] != b[place]} == DIFFER[one, other]


def test_the_columns_of_f_table_3_have_their_printed_means():
    mine = numbers("framework-table-3")
    for name in ("No Reg.", "HEIN", "Ours"):
        column = [value for (row, column), value in mine.items() if column == name and row != "average"]
        assert len(column) == 15
        printed_mean = mine["average", name]
        assert printed_mean is not None
        assert np.mean([v for v in column if v is not None]) == pytest.approx(printed_mean, abs=0.06)


def test_the_shares_of_f_table_2_sum_to_100():
    mine = numbers("framework-table-2")
    for data in ("MNIST", "CIFAR-10", "SVHN", "F-MNIST"):
        for name in ("No Reg.", "HEIN", "Ours"):
            assert sum(mine[data, f"{name}, {a}"] or 0 for a in ("BG", "FGSM", "PGD")) == pytest.approx(100, abs=0.02)


def test_the_numbers_of_f_are_those_of_another_transcription():
    one, four, five = (numbers(f"framework-table-{n}") for n in (1, 4, 5))
    methods = ("No Reg.", "HEIN", "Ours")
    assert [one["MNIST", name] for name in methods] == [99.45, 98.98, 98.74]
    assert [one["F-MNIST", name] for name in methods] == [93.72, 93.30, 93.29]
    assert [four[row, column] for row in ("STUTZ", "Ours") for column in ("accuracy in %", "R4")] == [
        92.11, 0.280, 94.04, 0.286,
    ]  # fmt: skip
    assert [five[row, f"trained for {column}"] for column in ("R2", "R4") for row in ("R2", "R4")] == [
        1.060, 0.285, 0.471, 0.286,
    ]  # fmt: skip


@pytest.mark.parametrize("name", OURS)
def test_a_number_counts_as_reproduced_within_its_rounding(name):
    for cell in every_cell(name):
        if cell.paper is not None:
            assert 0 < cell.deviation <= max(0.5, 0.5 * abs(cell.paper)), cell


# The protocol.


def trainings(name: str, variant: Variant = "corrected") -> list[Training]:
    return [task for task in tasks_of(name, variant) if isinstance(task, Training)]


R_TABLE_5 = {  # epochs, weight decay, learning rate, decay epochs, batch size
    "mnist": (40, 1e-4, 0.1, (20,), 128),  # .01 as it is printed
    "without": (200, 1e-4, 0.1, (100, 150), 64),
    "with": (120, 1e-4, 0.1, (60, 84, 100), 64),
}


@pytest.mark.parametrize("name", [name for name in OURS if name.startswith("rethinking")])
def test_trainings_of_r_are_those_of_its_table_5(name):
    found = trainings(name)
    assert found and {one.recipe.seed for one in found} == {0, 1, 2}
    for one in found:
        method = one.method.function.partition(":")[2]
        kind = "mnist" if one.data == "mnist" else "with" if method in ("pat", "trades") else "without"
        epochs, decay, lr, at, size = R_TABLE_5[kind]
        r = one.recipe
        assert (r.epochs, r.weight_decay, r.lr, r.batch_size) == (epochs, decay, lr, size)
        assert (r.optimizer, r.momentum, r.nesterov, r.schedule, r.patience) == ("sgd", 0.9, False, "multistep", 0)
        for epoch in at:  # a tenth at the beginning of that epoch, which counts the finished ones
            assert r.learning_rate(epoch / epochs) == pytest.approx(r.learning_rate((epoch - 0.5) / epochs) / 10)
        assert r.learning_rate(1 - 1e-9) == pytest.approx(lr / 10 ** len(at))
        assert (r.augment == "crop-flip") == (one.data in ("cifar10", "cifar100"))
        ball = one.method.options
        if kind == "with":
            assert (ball["eps"], ball["step_size"], ball["steps"]) == (8 / 255, 2 / 255, 7)
        elif method in ("pat", "trades"):
            assert (ball["eps"], ball["step_size"], ball["steps"]) == (48 / 255, 6 / 255, 10)
        assert one.net.members == (3 if method == "adp" else 1)


def test_methods_of_r_are_the_sums_of_its_equations():
    """R, Eqs. 2 to 6, with lambda = 2, alpha = .5, beta = 3 and gamma by the number of classes."""
    ball = {"eps": 8 / 255, "step_size": 2 / 255, "steps": 7}
    entm, ls = objectives.regularised(2.0), objectives.regularised(smoothing=0.74)
    expected = [
        objectives.cross_entropy, methods.entm(2.0), methods.label_smoothing(0.74), methods.adp(2.0, 0.5),
        methods.pat(**ball), methods.pat(loss=entm, **ball), methods.pat(loss=ls, **ball),
        methods.trades(beta=3.0, divergence="here||clean", **ball),
    ]  # fmt: skip
    found = {str(one.method()) for one in trainings("rethinking-table-1")}
    assert found == {str(as_method(one)) for one in expected}
    assert str(methods.label_smoothing(0.84)) in {str(one.method()) for one in trainings("rethinking-table-2")}
    both = {str(one.method()) for one in trainings("rethinking-table-12")} - found
    assert both == {str(methods.trades(beta=3.0, divergence="here||clean", loss=entm, **ball))}
    wide = {(one.data, str(one.method())) for one in trainings("rethinking-table-11")}
    for data, weight in (("cifar10", 1.0), ("cifar100", 0.5)):  # R, App. D
        assert (data, str(methods.pat(loss=objectives.regularised(weight), **ball))) in wide


def test_attacks_of_r_are_those_its_tables_name():
    for cell in every_cell("rethinking-table-1"):
        for task in cell.tasks:
            assert isinstance(task, Evaluated)
            assert (task.examples, task.weights) == (10_000, "last")
            wanted = cell.row.removeprefix("black-box ").lower().replace("fgsm", "fgsm-")
            assert list(task.attacks) == [wanted]
            if not cell.row.startswith("black-box"):
                assert task.proxies == ()
                continue
            (proxy,) = task.proxies  # another network than the one under test
            adversarial = cell.column.startswith(("PAT", "TRADES"))
            assert proxy.method.function.endswith(":pat" if adversarial else ":standard") and "loss" not in (
                proxy.method.options
            )
            assert proxy.recipe.seed != task.of.recipe.seed


def test_networks_of_r_are_those_of_its_appendix():
    assert {one.net.name for one in trainings("rethinking-table-9")} == {"cnn4"}
    assert {one.net.name for one in trainings("rethinking-table-3")} == {"resnet18"}
    wide = {(one.net.name, *one.net.options.values()) for one in trainings("rethinking-table-11")}
    assert wide == {("wide-resnet", 34, 10)}


def test_trainings_are_shared_between_experiments_of_r():
    """Their content is the same, so that one sweep's serve another."""
    of_one, of_six = (set(map(repr, trainings(f"rethinking-table-{n}"))) for n in (1, 6))
    assert of_one == of_six


def test_the_learning_rate_on_mnist_is_printed_or_corrected():
    for variant, lr in (("as published", 0.01), ("corrected", 0.1)):
        assert {(one.recipe.lr, one.recipe.epochs) for one in trainings("rethinking-table-9", variant)} == {(lr, 40)}


def test_training_for_r2_is_printed_or_corrected():
    def of(variant: Variant) -> dict[str, object]:
        (found,) = {repr(one.method): one.method for one in trainings("framework-table-1", variant)
                    if one.method.function.endswith(":r2")}.values()  # fmt: skip
        return dict(found.options)

    assert of("as published") == {
        "weight": 0.1, "softness": 0.0, "halvings": 0, "crossing": 1.0, "scores": "probabilities", "clean": "live",
    }  # fmt: skip
    assert of("corrected") == {"weight": 0.1}


@pytest.mark.parametrize("name", ["framework-table-2", "framework-figure-4", "framework-table-5"])
def test_r2_is_scored_in_the_papers_norms_as_published(name):
    """FGSM and PGD in a Linf ball of .3, PGD with 40 steps of .01, distances in L2."""
    for variant, options in (("as published", {"published": True}), ("corrected", {})):
        found = [t for t in tasks_of(name, variant) if isinstance(t, MeasureTask) and "r2_score" in t.function.function]
        assert found and all(task.function.options == options for task in found)
    attack = published_margin_attack()
    assert attack.geometry.norm == "l2" and attack.names == ("fgsm", "pgd", "bg")
    fast, slow, bg = (part.settings() for _, part in attack.parts)
    for one, steps, size in ((fast, 1, 0.3), (slow, 40, 0.01)):
        climb = one["parts"][0]["of"]
        assert (climb["geometry"]["norm"], climb["geometry"]["eps"]) == ("linf", 0.3)
        assert (climb["steps"]["most"], climb["step_size"]["size"]) == (steps, size)
    assert bg["geometry"]["norm"] == "l2"


def test_networks_of_f_are_one_for_all_but_cifar_10():
    """F, Sec. 6; the manifold's sigma, and the numbers of points in training and scoring, of Sec. 7."""
    nets = {(one.data, one.net.name) for one in trainings("framework-table-1")}
    assert nets == {("cifar10", "resnet20"), *((d, "small-cnn") for d in ("mnist", "svhn", "fashion-mnist"))}
    along = [one for one in trainings("framework-table-4") if one.method.function.endswith(":r4")]
    assert along and all((one.method.options["samples"], one.method.options["sigma"]) == (10, 0.06) for one in along)
    scores = [t for t in tasks_of("framework-table-4") if isinstance(t, MeasureTask)]
    assert scores and all(t.function.options == {"samples": 200, "sigma": 0.06} for t in scores)
    assert len({repr(t.manifold) for t in scores} | {repr(one.manifold) for one in along}) == 1


_FOUND: dict[str, Study] = {}


def measured(task: MeasureTask) -> Study:
    """What a measurement finds of as many linear networks, on ten samples; once for each function and its options."""
    function = replace(task.function, options={k: LESS.get(k, v) for k, v in task.function.options.items()})
    if (word := f"{function} {len(task.of)}") not in _FOUND:
        data = load("digits")
        data = replace(data, test=data.test.limit(10))
        torch.manual_seed(0)
        models = [nn.Sequential(nn.Flatten(), nn.Linear(64, 10)) for _ in task.of]
        more = {"manifold": auto_encoder(data.shape, 4, 8)} if task.manifold else {}
        _FOUND[word] = Study("s", "?", "", function(models, data, silent, **more), {})
    return _FOUND[word]


LESS = {"samples": 5}
CURVES = ("rethinking-figure-1", "rethinking-figure-2")
MEASURING = [n for n in OURS if n not in CURVES and any(isinstance(task, MeasureTask) for task in tasks_of(n))]


@pytest.mark.parametrize("name", MEASURING)
def test_what_is_read_is_what_is_measured(name):
    """Every measurement gives the numbers that its cells ask for."""
    for cell in every_cell(name):
        if isinstance(cell.tasks[0], MeasureTask):
            assert len(cell.read(measured(cell.tasks[0]))) >= 1


def test_curves_are_read_where_they_are_measured():
    """R, Sec. 5.2.2: k in [10, 150] and in [8, 256]; the numbers' names are tested below."""
    for name, abscissas in zip(CURVES, (range(10, 151, 10), (8, 16, 32, 64, 128, 256)), strict=True):
        study = Study("s", "?", "", Findings([Number(f"k = {k}", [float(k)]) for k in abscissas], []), {})
        for chart in parts_of(name):
            assert isinstance(chart, Chart)
            for line in chart.lines:
                assert [x for x, _ in line.points] == list(abscissas)
                assert all(list(cell.read(study)) == [x] for x, cell in line.points)


# What is measured.


class Linear(nn.Module):
    """Logits `W x` of two features."""

    def __init__(self, weight: list[list[float]]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return x.flatten(1) @ self.weight.T


@pytest.fixture
def plane():
    """Two classes parted by the diagonal of the unit square, and a network that parts them so."""
    base = load("digits")
    x = torch.tensor([[0.6, 0.4], [0.3, 0.7], [0.5, 0.45], [0.2, 0.8], [0.9, 0.2], [0.4, 0.5]])
    y = (x[:, 1] > x[:, 0]).long()
    split = type(base.train)(x, y)
    data = replace(base, name="plane", train=split, test=split, classes=("right", "left"))
    return Linear([[3.0, 0.0], [0.0, 3.0]]), data


def by_name(findings) -> dict[str, np.ndarray]:
    return {one.name: np.asarray(one.values) for one in findings.numbers}


def test_of_a_linear_network_the_jacobian_analysis_is_known(plane):
    """M = 3|x1 - x2|, both singular values are 3, and the distance to the boundary is |x1 - x2|/sqrt 2."""
    model, data = plane
    found = by_name(measures.jacobian_analysis([model], data, silent))
    gaps = (data.test.x[:, 0] - data.test.x[:, 1]).abs().numpy()
    assert found[measures.MARGIN] == pytest.approx(3 * gaps, rel=1e-5)
    assert found[measures.NORM] == pytest.approx(np.full(6, 3.0), rel=1e-3)
    assert found[measures.RATIO] == pytest.approx(gaps, rel=2e-3)
    assert found[measures.RELATED] == pytest.approx([1.0], abs=1e-3)
    assert (found[measures.BENT] < 1e-4).all()
    assert found[measures.ACCURACY].tolist() == [float(gap / 2**0.5 > 0.5) for gap in gaps]


def test_of_a_linear_network_r2_is_the_distance_to_the_boundary(plane):
    model, data = plane
    found = by_name(measures.r2_score([model], data, silent))
    gaps = (data.test.x[:, 0] - data.test.x[:, 1]).abs().numpy()
    assert found["R2"] == pytest.approx(gaps / 2**0.5, rel=1e-3)
    won = np.stack([found[measures.nearest_by(name)] for name in ("fgsm", "pgd", "bg")])
    assert won.shape == (3, 6) and (won.sum(0) == 1).all()


def test_accuracy_by_eps_of_a_linear_network(plane):
    """In Linf a sample withstands eps up to half of |x1 - x2|."""
    model, data = plane
    gaps = (data.test.x[:, 0] - data.test.x[:, 1]).abs().numpy()
    found = by_name(measures.accuracy_by_eps([model], data, silent, radii=(10, 40)))
    for k in (10, 40):
        assert found[f"k = {k}"].tolist() == [float(gap / 2 > k / 255) for gap in gaps]
    steps = by_name(measures.accuracy_by_steps([model], data, silent, eps=30 / 255, steps=(8,), smoothings=(0.0, 1.0)))
    assert steps["k = 8"].tolist() == [float(gap / 2 > 30 / 255) for gap in gaps]


class Hidden(nn.Module):
    """Predicts class 0 but where the first feature is above .5, by logits without a slope."""

    def forward(self, x: Tensor) -> Tensor:
        side = (x[:, 0] > 0.5).to(x.dtype)
        return 5 * torch.stack([1 - side, side], 1) + 0 * x


def test_random_points_fool_what_gradients_do_not(plane):
    """A step function has no gradient: PGD cannot leave its start, random points cross it where it is in reach."""
    _, data = plane
    x, y = torch.tensor([[0.45, 0.5], [0.1, 0.5], [0.9, 0.5], [0.3, 0.5]]), torch.tensor([0, 0, 0, 1])
    split = type(data.test)(x, y)
    data = replace(data, train=split, test=split)
    found = by_name(measures.behind_pgd([Hidden()], data, silent, k=25, steps=2, draws=200))
    assert found[measures.PGD_FAILS].tolist() == [1, 1, 0, 0]
    assert found[measures.RANDOM_SUCCEEDS].tolist() == [1, 0, 0, 0]  # 25/255 is .098


def test_r4_is_the_mean_of_f_with_the_points_distances_as_radii():
    """Against the weights of the training's term, on the points that the score draws."""
    data = load("digits")
    data = replace(data, test=data.test.limit(12))
    torch.manual_seed(0)
    model, manifold = nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), auto_encoder(data.shape, 4, 8)
    (value,) = [one for one in measures.r4_score([model], data, silent, manifold=manifold, samples=6, sigma=0.5).numbers
                if one.name == "R4"]  # fmt: skip
    assert len(value.values) == 12 and all(0 <= v < np.inf for v in value.values)
    near = manifold.sample(data.test.x, 500, 0.5, Streams.of(3, torch.arange(12)))
    distance = torch.linalg.vector_norm((near - data.test.x).flatten(2), dim=2)
    agree = torch.stack([model(points).argmax(1) for points in near]) == model(data.test.x).argmax(1)
    expected = (radial_weights(distance, distance) * agree).sum(0).mean()
    assert np.mean(value.values) == pytest.approx(float(expected), abs=0.03)


def test_corruptions_are_averaged_sample_by_sample():
    data = load("digits")
    data = replace(data, test=data.test.limit(20))
    torch.manual_seed(0)
    found = by_name(measures.corrupted([nn.Sequential(nn.Flatten(), nn.Linear(64, 10))], data, silent))
    average = found.pop(measures.AVERAGE)
    assert len(found) == 15 and average == pytest.approx(np.mean(list(found.values()), 0))


def test_a_manifold_is_a_task_that_a_training_needs(tmp_path):
    manifold = DataManifold("digits", Recipe(epochs=2), codes=2, width=2, samples=200)
    one = Training(call(methods.r4), Net("mlp", {"widths": [8]}), "digits", Recipe(epochs=4), 200, manifold)
    measured = MeasureTask(call(measures.r4_score, samples=4), [one], "?", "last", 10, manifold=manifold)
    assert one.needs == (manifold,) and measured.needs == (one, manifold)
    half = measured.scaled(0.5)
    assert half.manifold == half.of[0].manifold == manifold.scaled(0.5)
    assert (half.of[0].recipe.epochs, manifold.scaled(0.5).recipe.epochs) == (2, 1)
    setting = Setting(tmp_path)
    other = replace(one, manifold=replace(manifold, codes=3))
    assert len({key(task, setting) for task in (manifold, one, other, replace(one, manifold=None))}) == 4
    few = manifold.scaled(0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", EquipoiseWarning)  # so small a network learns nothing in two epochs
        for task in (manifold, few, half.of[0], half):
            run(task, setting, silent)
    error = number("squared error of a pixel")(result_in(manifold, setting.folder_of(manifold)))
    assert len(error) == 1 and 0 < error[0] < 1
    assert len(number("R4")(result_in(half, setting.folder_of(half)))) == 10
