"""U's and T's experiments against the papers: numbers, counts and protocols, written down here a second time."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise import methods
from equipoise.attacks.ascent import Ascent
from equipoise.attacks.spaces import Latent
from equipoise.attacks.steps import Constant, Fixed, Gaussian, Triangular, UniformUpTo, Zero
from equipoise.core.rng import Streams
from equipoise.data import Dataset, Split
from equipoise.models import as_predictive
from equipoise.nets import build, count_parameters
from equipoise.reproduce import (
    Cell,
    Chart,
    Evaluated,
    MeasureTask,
    Net,
    PublishedValue,
    Setting,
    StudyTask,
    Table,
    Training,
    call,
    experiment,
    measures,
    names,
    number,
)
from equipoise.reproduce.experiment import Claims, cells
from equipoise.reproduce.running import key, result_in, run
from equipoise.reproduce.studies import STUDIES
from equipoise.reproduce.tasks import datasets
from equipoise.training import Recipe, training_split


def all_cells(name: str, variant: str = "corrected") -> list[Cell]:
    parts = experiment(name).plan(1.0, variant).parts
    return [cell for part in parts if not isinstance(part, Claims) for cell in cells(part)]


def trainings(name: str, variant: str = "corrected") -> list[Training]:
    return [task for task in experiment(name).plan(1.0, variant).tasks() if isinstance(task, Training)]


def ascent(training: Training) -> Ascent:
    return next(place for place in training.method().perturbations if isinstance(place, Ascent))


def of_eps(found: list[Training], eps: float, method: str) -> Training:
    return next(t for t in found if t.method.function.endswith(f":{method}") and ascent(t).geometry.eps == eps)


TABLES = {
    "udp-table-1": 64, "udp-table-2": 40, "udp-table-3": 15, "udp-table-4": 7, "udp-table-5": 5,
    "uta-table-1-mnist": 32, "uta-table-1-fashion-mnist": 32, "uta-table-1-svhn": 40, "uta-table-2": 32,
}  # fmt: skip
FIGURES = [f"udp-figure-{n}" for n in (2, 3, 4, 5, *range(8, 16))] + [f"uta-figure-{n}" for n in range(1, 14)]


def test_every_table_and_figure_is_there():
    assert {name for name in names() if name.startswith(("udp-", "uta-"))} == {*TABLES, *FIGURES}


@pytest.mark.parametrize("name", TABLES)
def test_a_table_has_all_its_cells_each_of_three_seeds(name):
    found = all_cells(name)
    assert len(found) == TABLES[name]
    assert sum(cell.paper is None for cell in found) == (name == "udp-table-2")  # an entry that is not legible
    for cell in found:
        assert len(cell.tasks) == 3
        of = [task.of if isinstance(task, Evaluated) else task.of[0] for task in cell.tasks]
        assert [one.recipe.seed for one in of] == [0, 1, 2] and len({repr(one.method) for one in of}) == 1


def test_a_figure_shows_something():
    for name in FIGURES:
        for part in experiment(name).plan().parts:
            if isinstance(part, PublishedValue) and isinstance(part.task, StudyTask):
                entry = STUDIES[part.task.name]
                letter, number = name[1].upper(), name.rpartition("-")[2]
                assert number in entry.source and {"D": "U", "T": "T"}[letter] in entry.source
                assert not part.task.data or "data" in entry.takes
            assert not isinstance(part, Table)
            assert not isinstance(part, Chart) or all(len(line.points) >= 1 for line in part.lines)


U_TABLE_2 = """PGD(.2) 78.9 | 73.9 69.3 58.3 | 2.8; TRADES(.2) 82.1 | 77.1 70.6 55.1 | 5.6;
UDPR(.5) 84.8 | 72.5 60.9 40.0 | 34.1; UDP-PGD(.5) 82.3 | 74.9 66.8 49.6 | 27.5;
PGD(.2) 78.9: 75.5 73.5 67.9 | -; TRADES(.2) 82.1: 79.7 76.5 68.7 | 44.0;
UDPR(.5) 84.8: 78.6 72.8 62.3 | 59.4; UDP-PGD(.3) 84.2: 80.2 75.6 65.4 | 53.7"""
T_MNIST = """PGD .1: 97.3 93.6 61.7 49.4; .2: 92.7 89.4 75.8 50.1; .3: 64.4 60.8 53.0 41.6; .4: 27.4 26.4 25.1 24.0;
UTA .1: 97.2 92.5 55.4 49.5; .2: 96.9 94.3 75.9 50.3; .3: 95.6 93.1 79.8 52.0; .4: 93.8 90.6 76.8 53.0"""
T_FASHION = """PGD .1: 79.6 75.1 44.6 41.2; .2: 75.3 73.1 66.9 40.4; .3: 70.7 68.7 63.8 51.5; .4: 32.7 31.7 29.5 26.5;
UTA .1: 82.3 71.9 44.1 43.9; .2: 81.3 77.1 62.9 42.5; .3: 78.9 75.3 67.9 47.1; .4: 76.2 72.7 65.6 56.3"""
T_LATENT = """LS-PGD .1: 27.9 22.7 18.9 18.9; .2: 11.3 11.3 11.3 11.3; .3: 11.3 11.3 11.3 11.3;
.4: 11.3 11.3 11.3 11.3; LS-UTA .1: 94.1 64.6 49.6 49.6; .2: 93.5 66.0 49.6 49.6; .3: 93.8 65.6 49.6 49.6;
.4: 93.2 67.0 49.5 49.5"""


def written(text: str) -> list[float | None]:
    """The numbers of a table in reading order, without the names and eps of the rows; `-` is none."""
    rows = [re.split(r"[|():\s]+", row.strip()) for row in text.split(";")]
    after = [[word for word in row if not word[0].isalpha()][1:] for row in rows]
    return [None if word == "-" else float(word) for row in after for word in row]


@pytest.mark.parametrize(
    ("name", "text"),
    [("udp-table-2", U_TABLE_2), ("uta-table-1-mnist", T_MNIST), ("uta-table-1-fashion-mnist", T_FASHION),
     ("uta-table-2", T_LATENT)],
)  # fmt: skip
def test_the_numbers_are_the_papers(name, text):
    mine = [None if cell.paper is None else round(cell.paper, 1) for cell in all_cells(name)]
    assert mine == written(text)
    rounded = [0.005 if cell.paper == 72.72 else 0.05 for cell in all_cells(name)]
    assert [cell.deviation for cell in all_cells(name)] == rounded


def test_u_table_1_is_consistent():
    """Twice a trade-off less the robust accuracy is the clean accuracy, whatever the ball: an error of the copy would
    show in the rows with one eps in both halves.
    """
    found = {}
    for part in experiment("udp-table-1").plan().parts:
        assert isinstance(part, Table)
        for cell in part.cells:
            found.setdefault((part.title.split(" on ")[1], cell.row, cell.column), []).append(cell)
    implied = {}
    for (data, row, _), both in found.items():
        if len(both) == 2:
            implied.setdefault((data, row), []).append(2 * both[1].paper - both[0].paper)
    assert len(implied) == 4
    for values in implied.values():
        assert len(values) == 4 and np.ptp(values) < 0.9
    stated = [cell.deviation for cell in all_cells("udp-table-1")]
    assert min(stated) == 0.05 and max(stated) == 2.5  # U prints ± 0.0 once, and ± 2.5 once


def test_where_autoattack_is_read():
    for name, balls in {
        "udp-table-1": {("linf", 0.01), ("linf", 0.03), ("l2", 0.5), ("l2", 1.0)},
        "udp-table-2": {("linf", 0.05), ("linf", 0.1), ("linf", 0.2), ("l2", 1.5)},
        "udp-table-3": {("linf", 0.01), ("linf", 0.03), ("l2", 0.5), ("l2", 1.0)},
        "uta-table-1-mnist": {("linf", 0.05), ("linf", 0.1), ("linf", 0.2), ("linf", 0.3)},
        "uta-table-1-svhn": {("linf", 0.005), ("linf", 0.01), ("linf", 0.02), ("linf", 0.04)},
        "uta-table-2": {("linf", 0.05), ("linf", 0.1), ("linf", 0.2), ("linf", 0.3)},
    }.items():
        tasks = [task for task in experiment(name).plan().tasks() if isinstance(task, Evaluated)]
        assert {(task.norm, eps) for task in tasks for eps in task.eps} == balls
        for task in tasks:
            assert list(task.attacks) == ["autoattack"] and task.weights == "last"
            assert task.examples == (26_032 if task.data == "svhn" else 10_000)


def test_u_table_2_is_trained_as_the_paper_says():
    """App. F.1.1, and the eps, alpha and K of the authors' runs."""
    found = trainings("udp-table-2")
    assert len(found) == 5 * 3
    for one in found:
        recipe = one.recipe
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.lr) == (100, 256, "adam", 1e-3)
        assert (recipe.schedule, recipe.patience, recipe.ema, recipe.augment) == ("constant", 0, 0.0, "none")
        assert (one.net, one.data, one.samples) == (Net("lenet"), "fashion-mnist", None)
    y = torch.arange(60_000) % 10
    whole = Split(torch.zeros(60_000, 1), y)
    data = Dataset("like fashion-mnist", whole, whole[:100], tuple("0123456789"), "")
    assert [len(part) for part in training_split(data, found[0].recipe)] == [55_000, 5_000]
    settings = {("pgd_at", 0.2): (0.015, 20), ("trades", 0.2): (0.015, 20), ("udpr", 0.5): (0.025, 20),
                ("udp", 0.5): (0.025, 20), ("udp", 0.3): (0.015, 25)}  # fmt: skip
    for (method, eps), (alpha, most) in settings.items():
        climb = ascent(of_eps(found, eps, method))
        assert climb.step_size == Constant(alpha) and climb.geometry.norm == "linf" and climb.mode == "eval"
        assert climb.steps == (UniformUpTo(most) if method in ("udp", "udpr") else Fixed(most))
    plain = "(cross-entropy)"
    sums = {str(one.method()).partition(" @ ")[0] for one in found}
    assert sums == {plain, f"{plain} + {plain}", f"{plain} + (KL(soft-cross-entropy))"}


def test_as_published_all_steps_are_alpha():
    """The scripts of the authors' runs do not ask for the schedule that their code has."""
    for name in ("udp-table-1", "udp-table-2", "udp-table-3"):
        found = [one for one in trainings(name, "as published") if "standard" not in one.method.function]
        assert found and all(isinstance(ascent(one).step_size, Constant) for one in found)


@pytest.mark.parametrize("name", ["udp-table-1", "udp-table-2", "udp-table-5", "udp-figure-4"])
def test_as_published_trades_starts_at_the_sample_and_nothing_else_of_table_2_differs(name):
    for variant, start in (("as published", Zero()), ("corrected", Gaussian(0.001))):
        found = [one for one in trainings(name, variant) if "trades" in one.method.function]
        assert found and {ascent(one).start for one in found} == {start}
    if name == "udp-table-2":
        published, corrected = trainings(name, "as published"), trainings(name)
        differ = [one for one, other in zip(published, corrected, strict=True) if one != other]
        assert {one.method.function.partition(":")[2] for one in differ} == {"trades"}


def test_trades_leaves_the_sample_it_starts_at():
    """Where the divergence has no slope the sign of a gradient's rounding errors must still be a direction."""
    model, x = build("lenet", (1, 28, 28), seed=3), torch.rand(32, 1, 28, 28)
    published = next(one for one in trainings("udp-table-2", "as published") if "trades" in one.method.function)
    moved = ascent(published).perturb(
        as_predictive(model), x, torch.zeros(32, dtype=torch.long), Streams.of(0, torch.arange(32))
    )
    assert ((moved - x).flatten(1).abs().amax(1) > 0.1).float().mean() > 0.6, "but for those whose errors cancel"


def test_as_published_the_resnet_is_the_authors():
    """Raw shortcuts and no last batch-norm; He initialisation on SVHN and with augmentation; the peak in the middle."""
    he = Net("preact-resnet18-udp", {"init": "he-fan-out"})
    for name in ("udp-table-1", "udp-table-3", "udp-table-4", "udp-figure-4"):
        for one in trainings(name, "as published"):
            assert one.net == (he if one.data == "svhn" or name == "udp-table-3" else Net("preact-resnet18-udp"))
            lower = one.data == "cifar10" and one.method.function.endswith(":udpr")
            assert (one.recipe.lr, one.recipe.lr_peak) == (0.14 if lower else 0.15, 0.5)
            assert replace(one.recipe, lr=0.15).learning_rate(0.5) == 0.15
        assert {one.recipe.lr_peak for one in trainings(name)} == {0.4}
    for one in trainings("udp-table-5", "as published"):
        assert one.net == Net("preact-resnet18-udp") and (one.recipe.lr, one.recipe.lr_peak) == (0.05, 0.5)
    model = build(he.name, (3, 32, 32), **he.options)
    assert count_parameters(model) == 11_171_146


def test_the_cyclic_learning_rate_is_one_triangle_and_fig_9_decays_by_15():
    """Andriushchenko & Flammarion (2020), to whom T refers; T App. B.2."""
    for name in ("udp-figure-14", "uta-figure-3", "uta-figure-9"):
        for one in trainings(name):
            assert one.recipe.augment == "crop-flip"
            if one.recipe.schedule == "multistep":
                assert [one.recipe.learning_rate(t / 200) for t in (59, 60, 120, 160)] == pytest.approx(
                    [0.1, 0.1 / 15, 0.1 / 15**2, 0.1 / 15**3]
                )
            else:
                assert [one.recipe.learning_rate(t) for t in (0, 0.4, 0.7, 1)] == pytest.approx(
                    [0, one.recipe.lr, one.recipe.lr / 2, 0]
                )


def test_as_published_batch_norm_is_in_train_mode():
    for name in ("udp-table-1", "udp-table-3", "udp-table-5", "udp-figure-14", "uta-figure-9"):
        for variant, mode in (("as published", "train"), ("corrected", "eval")):
            perturbed = [one for one in trainings(name, variant) if "standard" not in one.method.function]
            assert {ascent(one).mode for one in perturbed} == {mode}


@pytest.mark.parametrize("name", ["udp-table-1", "udp-table-3", "udp-table-4", "udp-figure-4"])
def test_resnets_of_u_are_trained_as_the_paper_says(name):
    """App. F.1.2, and Andriushchenko & Flammarion (2020) for what it refers to."""
    for one in trainings(name):
        recipe = one.recipe
        assert (recipe.epochs, recipe.batch_size, recipe.optimizer, recipe.lr) == (60, 256, "sgd", 0.15)
        assert (recipe.nesterov, recipe.momentum, recipe.weight_decay) == (True, 0.9, 5e-4)
        assert recipe.schedule == "triangular"
        assert recipe.augment == ("crop-flip" if name == "udp-table-3" else "none")
        assert one.net == Net("preact-resnet18") and one.data in ("cifar10", "svhn")


def test_climbs_of_u_on_cifar10_and_svhn():
    """eps, alpha, K of the authors' runs."""
    known = {
        ("udp-table-1", "cifar10"): {("udpr", 0.05, 0.002, 25), ("udp", 0.06, 0.002, 30), ("udp", 0.04, 0.001, 40),
                                     ("pgd_at", 0.02, 0.001, 20), ("pgd_at", 0.01, 0.001, 10),
                                     ("trades", 0.03, 0.001, 30), ("trades", 0.02, 0.001, 20)},
        ("udp-table-1", "svhn"): {("udpr", 0.05, 0.002, 25), ("udp", 0.04, 0.002, 20), ("pgd_at", 0.02, 0.002, 10),
                                  ("pgd_at", 0.04, 0.002, 20), ("trades", 0.05, 0.002, 25)},
        ("udp-table-3", "cifar10"): {("pgd_at", 0.03, 0.006, 10), ("udpr", 0.05, 0.01, 10), ("udp", 0.08, 0.01, 20)},
    }  # fmt: skip
    for (name, data), expected in known.items():
        found = set()
        for one in trainings(name):
            climb = ascent(one)
            assert isinstance(climb.step_size, Constant)
            if one.data == data:
                name_of = one.method.function.partition(":")[2]
                found.add((name_of, climb.geometry.eps, climb.step_size.size, climb.steps.most))
        assert found == expected


def test_u_table_4_uses_the_networks_of_table_1():
    known = {repr(one) for one in trainings("udp-table-1")}
    assert sum(repr(one) not in known for one in trainings("udp-table-4")) == 3  # the baseline
    assert experiment("udp-table-4").plan().datasets() == ["cifar10", "cifar100"]


@pytest.mark.parametrize(("variant", "eps"), [("corrected", 0.2), ("as published", 2.0)])
def test_u_table_5_trains_on_2500_samples_in_the_last_convolutions_space(variant, eps):
    for one in trainings("udp-table-5", variant):
        assert one.samples is not None
        assert one.samples - round(one.samples * one.recipe.validation) == 2_500
        assert (one.recipe.epochs, one.recipe.lr, one.recipe.schedule) == (100, 0.05, "triangular")
        if "standard" not in one.method.function:
            climb = ascent(one)
            assert (climb.geometry.eps, climb.step_size, climb.steps.most) == (eps, Constant(0.01), 20)
            assert climb.space == Latent("block8")


def test_u_figure_5_goes_from_width_2_to_12():
    udp, standard = experiment("udp-figure-5").plan().parts[0].lines
    assert [x for x, _ in udp.points] == [2, 4, 6, 8, 10, 12] and [x for x, _ in standard.points] == [1]
    assert [cell.tasks[0].of.net.options for _, cell in udp.points[:1]] == [{"width": 2}]
    assert {ascent(cell.tasks[0].of).geometry.eps for _, cell in udp.points} == {0.1}


def test_the_perceptron_of_t_is_leaky_as_published_and_only_it():
    published, corrected = (trainings("uta-figure-2", variant) for variant in ("as published", "corrected"))
    leaky = [one for one in published if one.net.options]
    assert all((one.data, one.net) == ("mnist", Net("mlp", {"negative_slope": 0.01})) for one in leaky)
    assert len(leaky) == sum(one.data == "mnist" for one in corrected) == 24
    assert not any(one.net.options for one in corrected)
    known = {repr(one) for one in published}
    assert all(repr(one) in known for one in trainings("uta-table-1-mnist", "as published"))


def test_u_figures_4_and_12_share_their_networks_with_the_tables():
    figure = {repr(one) for one in trainings("udp-figure-12")}
    assert {repr(one) for one in trainings("udp-figure-4")} < figure
    assert {repr(one) for name in ("udp-table-1", "udp-table-2") for one in trainings(name)} < figure


@pytest.mark.parametrize(
    ("name", "net", "radii"),
    [
        ("uta-table-1-mnist", "mlp", {0.1, 0.2, 0.3, 0.4}),
        ("uta-table-1-fashion-mnist", "lenet", {0.1, 0.2, 0.3, 0.4}),
        ("uta-table-1-svhn", "lenet-wide", {0.01, 0.04, 0.08, 0.12, 0.16}),
    ],
)
def test_t_table_1_is_trained_as_the_paper_says(name, net, radii):
    """T Sec. 5.1 and App. B.1."""
    found = trainings(name)
    assert len(found) == 2 * 3 * len(radii) and {ascent(one).geometry.eps for one in found} == radii
    for one in found:
        climb = ascent(one)
        eps, steps = climb.geometry.eps, climb.steps
        assert (one.net, one.recipe.epochs, one.recipe.optimizer, one.recipe.lr) == (Net(net), 100, "adam", 1e-3)
        assert isinstance(steps, Fixed)
        if net == "lenet-wide":
            assert climb.step_size == Triangular(0.005, eps / 5)
        else:
            assert climb.step_size == Constant(0.01) and steps.most * 0.01 == pytest.approx(eps)


def test_t_table_2_perturbs_the_120_numbers_after_the_first_linear_layer():
    for one in trainings("uta-table-2"):
        climb = ascent(one)
        assert climb.space == Latent("fc1") and isinstance(climb.steps, Fixed)
        assert climb.step_size == Triangular(0.005, climb.geometry.eps / 5)
        assert one.net == Net("lenet", members=5 if "uta" in one.method.function else 1)


def test_overfitting_is_followed_with_the_papers_attacks():
    """FGSM with eps .2 and PGD-20 with eps .2 (U Fig 13); PGD-10 with eps 8/255 and steps of a quarter (T Fig 9)."""
    for name, eps, steps in (("udp-figure-13", 0.2, 20), ("uta-figure-4", 0.2, 20), ("uta-figure-9", 8 / 255, 10)):
        followed = [part.task for part in experiment(name).plan().parts if isinstance(part, PublishedValue)][:2]
        for task in followed:
            assert isinstance(task, MeasureTask) and task.courses and len(task.of) == 3
            for one in task.of:
                assert (one.recipe.valid_eps, one.recipe.valid_steps) == (eps, steps)
                climb = ascent(one)
                assert (climb.geometry.eps, climb.steps.most, climb.step_size) == (eps, 1, Constant(eps))


def test_fast_training_is_tested_with_50_steps_and_10_restarts():
    tasks = [task for task in experiment("udp-figure-14").plan().tasks() if isinstance(task, Evaluated)]
    assert len(tasks) == 5 * 5 * 3
    for task in tasks:
        assert (list(task.attacks), task.restarts, len(task.eps)) == (["pgd50"], 10, 1)
        assert ascent(task.of).geometry.eps == task.eps[0] and task.of.recipe.schedule == "cyclic"
        uncertain = task.of.method.function.endswith(":udp")
        assert (task.of.net.dropout_samples, task.of.recipe.lr) == ((5, 0.1) if uncertain else (0, 0.2))


@pytest.fixture
def setting(tmp_path) -> Setting:
    """Digits, and a dataset of two classes of the same shape."""
    rng = np.random.default_rng(0)
    x, y = rng.random((120, 1, 8, 8), np.float32), np.arange(120) % 2
    x[:, 0, 0, 0] = y  # all there is to see
    np.savez(tmp_path / "other.npz", x_train=x, y_train=y, x_test=x[:60], y_test=y[:60])
    return Setting(tmp_path / "tasks", sources={"other": str(tmp_path / "other.npz")})


@pytest.fixture
def short() -> Training:
    net, recipe = Net("mlp", {"widths": [32]}), Recipe(epochs=2, batch_size=16, lr=0.01, seed=1)
    return Training(call(methods.standard), net, "digits", recipe, samples=400)


@pytest.mark.filterwarnings("ignore:dataset .* samples are training samples")
def test_a_measurement_is_given_another_dataset_and_the_course_of_the_training(setting, short):
    transfer = MeasureTask(call(measures.transfer, layer="input"), [short], "?", "last", 50, samples=40, target="other")
    course = MeasureTask(call(measures.course, strong="PGD-10"), [short], "?", "last", courses=True)
    for task in (short, transfer, course):
        run(task, setting, lambda what, share: None)
    right = number(measures.TRANSFER)(result_in(transfer, setting.folder_of(transfer)))
    assert len(right) == 50 and np.mean(right) > 0.9  # the first pixel says it
    lines = (setting.folder_of(short) / "metrics.jsonl").read_text().splitlines()
    last = json.loads(lines[-1])
    assert len(lines) == 2
    assert number("PGD-10 accuracy at the end")(result_in(course, setting.folder_of(course))) == [last["valid_pgd"]]
    assert number("clean accuracy at the end")(result_in(course, setting.folder_of(course))) == [last["valid_clean"]]


@pytest.mark.filterwarnings("ignore:dataset .* samples are training samples")
def test_the_target_is_data_of_the_measurement(setting, short, tmp_path):
    task = MeasureTask(call(measures.transfer, layer="fc1"), [short], "?", samples=50_000, target="other")
    assert datasets(task) == ["digits", "other"] and datasets(short) == ["digits"]
    assert task.scaled(0.01).samples == 500 and task.scaled(0.001).samples == 200
    other = np.load(tmp_path / "other.npz")
    np.savez(tmp_path / "changed.npz", **{name: other[name][::-1] for name in other.files})
    changed = replace(setting, sources={"other": str(tmp_path / "changed.npz")})
    assert key(short, changed) == key(short, setting) and key(task, changed) != key(task, setting)


@pytest.mark.filterwarnings("ignore:dataset .* samples are training samples")
def test_features_that_say_nothing_transfer_nothing(setting):
    """The classifier on a constant feature guesses one class: half of the samples of two."""

    class Nothing(nn.Sequential):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(0 * x)

    model = nn.Sequential(Nothing(nn.Flatten()), nn.Linear(64, 10))
    data = setting.dataset("other")
    found = measures.transfer([model], data, lambda what, share: None, target=data, layer="0")
    assert np.mean(found.numbers[0].values) == 0.5


def test_the_course_is_the_mean_and_the_largest_fall_that_of_each_training():
    def epoch(step: int, pgd: float) -> dict[str, float]:
        return {"step": step, "valid_clean": 1.0, "valid_fgsm": 0.8, "valid_pgd": pgd}

    one = [epoch(10, 0.5), epoch(20, 0.7), epoch(30, 0.1)]
    two = [epoch(10, 0.3), epoch(20, 0.3), epoch(30, 0.5)]
    whole = Split(torch.zeros(2, 1), torch.arange(2))
    data = Dataset("toy", whole, whole, ("a", "b"), "")
    found = measures.course([], data, lambda what, share: None, courses=[one, two], strong="PGD-20")
    values = {number.name: list(number.values) for number in found.numbers}
    assert values["largest fall of PGD-20 accuracy"] == pytest.approx([0.6, 0.0])
    lines = found.pictures[0].panels[0]
    assert lines.x.tolist() == [10, 20, 30]
    assert lines.series[2].y.tolist() == pytest.approx([0.4, 0.5, 0.3])
