"""Experiments as values: what a plan computes, at which scale, and when a number counts as reproduced."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import binomtest

import equipoise
from equipoise import methods
from equipoise.core.errors import EquipoiseError
from equipoise.generators import auto_encoder
from equipoise.losses import objectives
from equipoise.reproduce import (
    Cell,
    Evaluated,
    Experiment,
    Net,
    Setting,
    StudyTask,
    Table,
    Training,
    call,
    clean,
    experiment,
    found,
    names,
    number,
    robust,
    trade_off,
)
from equipoise.reproduce.running import code_version, key
from equipoise.results.findings import Findings, Number, Study
from equipoise.results.provenance import provenance
from equipoise.results.records import AttackRecord, Evaluation
from equipoise.training import Recipe

pytestmark = pytest.mark.unchecked

UDP = call(methods.udp, eps=0.2, step_size=0.02, steps=10)


def training(seed: int = 0, epochs: int = 10) -> Training:
    return Training(UDP, Net("mlp", {"widths": [16]}), "digits", Recipe(epochs=epochs, seed=seed))


def record(clean: list[bool], *attacked: tuple[str, float, list[bool]]) -> Evaluation:
    results = [AttackRecord("clean", "", 0.0, clean), *(AttackRecord(a, "linf", e, right) for a, e, right in attacked)]
    return Evaluation("somewhere", {"name": "digits"}, results, provenance(0, "cpu"))


def table(*cells: Cell) -> Experiment:
    return Experiment("toy", "A toy.", "nowhere", lambda variant: [Table("toy", cells)])


def test_a_plan_holds_each_task_once_after_what_it_needs():
    one = Evaluated(training(), ["pgd"], [0.1])
    other = Evaluated(training(), ["pgd"], [0.1], "l2")
    cells = [Cell("a", "clean", [one], clean), Cell("a", "pgd", [one], robust(0.1)), Cell("a", "l2", [other], clean)]
    tasks = table(*cells).plan().tasks()
    assert tasks == [training(), one, other]
    assert table(*cells).plan().datasets() == ["digits"]


def test_a_scale_shortens_epochs_samples_and_seeds_together():
    tasks = [Evaluated(replace(training(seed, 40), data="mnist"), ["pgd"], [0.1], examples=1000) for seed in range(5)]
    plan = table(Cell("a", "clean", tasks, clean)).plan(0.2)
    first, second = plan.tasks()
    assert isinstance(first, Training) and isinstance(second, Evaluated)
    assert (first.recipe.epochs, first.samples, second.examples, second.of) == (8, None, 200, first)
    tiny, few = table(Cell("a", "clean", tasks, clean)).plan(0.01).tasks()
    assert isinstance(tiny, Training) and isinstance(few, Evaluated)
    assert (tiny.recipe.epochs, tiny.samples, few.examples) == (1, 24_000, 10)  # 0.4 epochs
    more = table(Cell("a", "clean", tasks, clean)).plan(0.04).tasks()[0]  # 1.6 epochs are 2, of all samples
    assert isinstance(more, Training) and (more.recipe.epochs, more.samples) == (2, None)
    whole = table(Cell("a", "clean", tasks, clean)).plan(1.0).tasks()
    assert [t.recipe.seed for t in whole if isinstance(t, Training)] == [0, 1, 2, 3, 4]
    assert table(Cell("a", "s", [StudyTask("theorem")], clean)).plan(0.01).tasks() == [StudyTask("theorem", quick=True)]


def test_a_number_of_seeds_may_be_asked_for_and_some_datasets_only():
    def cell(data: str, column: str) -> Cell:
        tasks = [Evaluated(replace(training(seed), data=data), ["pgd"], [0.1]) for seed in range(3)]
        return Cell("a", column, tasks, clean)

    both = table(cell("mnist", "mnist"), cell("svhn", "svhn"))
    seeds = {t.recipe.seed for t in both.plan(0.1, seeds=2).tasks() if isinstance(t, Training)}
    assert seeds == {0, 1} and both.plan(seeds=2).seeds == 2
    plan = both.plan(only=["mnist"])
    (part,) = plan.parts
    assert isinstance(part, Table) and [one.column for one in part.cells] == ["mnist"]
    assert plan.datasets() == ["mnist"] and both.plan().datasets() == ["mnist", "svhn"]


def test_a_number_of_test_samples_may_be_asked_for_apart_from_the_scale():
    mnist = replace(training(0, 40), data="mnist")
    tasks = [Evaluated(mnist, ["pgd"], [0.1], examples=1000), Evaluated(mnist, ["pgd"], [0.2], examples=300)]
    cells = [Cell("a", str(place), [task], clean) for place, task in enumerate(tasks)]
    plan = table(*cells).plan(0.5, examples=200)
    assert [t.examples for t in plan.tasks() if isinstance(t, Evaluated)] == [200, 150]
    assert [t.recipe.epochs for t in plan.tasks() if isinstance(t, Training)] == [20] and plan.examples == 200


def test_a_key_is_that_of_everything_that_decides_the_result():
    setting = Setting(Path("anywhere"))
    base = key(training(), setting)
    assert base == key(training(), Setting(Path("elsewhere"), command="another"))
    assert base == key(replace(training(), recipe=replace(training().recipe, checkpoint_minutes=1.0)), setting)
    others = [
        training(1),
        training(epochs=11),
        replace(training(), method=call(methods.udp, eps=0.3, step_size=0.02, steps=10)),
        replace(training(), method=call(methods.udp, eps=0.2, step_size=0.02, steps=10, mode="eval")),
        replace(training(), net=Net("mlp", {"widths": [17]})),
        replace(training(), samples=100),
    ]
    of = [Evaluated(one, ["pgd"], [0.1]) for one in (training(), training(1))]
    more = [*of, replace(of[0], eps=[0.2]), replace(of[0], norm="l2"), replace(of[0], proxies=[training(2)])]
    assert len({base, *(key(task, setting) for task in [*others, *more])}) == 1 + len(others) + len(more)


def test_the_code_version_is_that_of_all_that_computes_and_of_nothing_that_presents(tmp_path, monkeypatch):
    monkeypatch.setattr(equipoise, "__file__", str(tmp_path / "__init__.py"))
    versions = []
    counted = (
        "__init__.py",
        "kernels/native/layers.c",
        "kernels/native/simd.h",
        "reproduce/tasks.py",
        "reproduce/running.py",
    )
    for name in (*counted, "reproduce/studies/lms5.py", "reproduce/papers/t.py"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
        versions.append(code_version.__wrapped__())
    assert len(set(versions)) == 6 and versions[-1] == versions[-2]


@pytest.mark.filterwarnings("ignore:dataset .* samples are training samples")
def test_another_dataset_of_the_same_name_has_another_key(tmp_path):
    x, y = np.random.default_rng(0).random((40, 1, 8, 8), np.float32), np.arange(40) % 10
    np.savez(tmp_path / "digits.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    elsewhere = Setting(tmp_path, sources={"digits": str(tmp_path / "digits.npz")})
    assert key(training(), elsewhere) != key(training(), Setting(tmp_path))
    assert elsewhere.dataset("digits").shape == (1, 8, 8)


def test_calls_are_words():
    entm = call(methods.standard, loss=call(objectives.regularised, entropy_weight=2.0))
    assert str(entm()) == str(methods.standard(loss=objectives.regularised(2.0)))
    assert str(entm) == "standard(loss=regularised(entropy_weight=2))"


@pytest.mark.parametrize(("seeds", "over"), [(1, "samples"), (2, "seeds and samples")])
def test_with_one_seed_or_two_that_agree_the_interval_is_that_of_the_samples(seeds, over):
    """Wilson's, against scipy; two networks on the same samples are not twice as many samples."""
    right = [True] * 70 + [False] * 30
    cell = Cell("a", "clean", [training()] * seeds, clean, paper=75.0)
    out = found(cell, [record(right)] * seeds)
    expected = binomtest(70, 100).proportion_ci(method="wilson")
    assert out.mean == pytest.approx(70) and out.interval == pytest.approx([100 * bound for bound in expected])
    assert (out.n, out.seeds, out.over) == (100, seeds, over)
    assert out.agreement == "undecided"


def test_with_two_seeds_the_noise_of_training_counts():
    """Student's over two, which is wide: t of one degree is 12.7."""
    records = [record([True] * k + [False] * (10_000 - k)) for k in (8_000, 8_010)]
    out = found(Cell("a", "clean", [training()] * 2, clean, paper=80.05), records)
    half = 12.706204736432095 * 0.05
    assert out.interval == pytest.approx((80.05 - half, 80.05 + half), abs=0.2)
    apart = [record([True] * k + [False] * (10_000 - k)) for k in (7_900, 8_100)]
    assert found(Cell("a", "clean", [training()] * 2, clean, paper=80.0), apart).agreement == "undecided"


def test_with_part_of_the_test_set_the_interval_covers_the_samples_too():
    """Three networks that are right on the same samples say nothing of others."""
    tasks = [Evaluated(replace(training(seed), data="mnist"), ["clean"], examples=50) for seed in range(3)]
    records = [record([True] * 40 + [False] * 10)] * 3
    out = found(Cell("a", "clean", tasks, clean), records)
    expected = binomtest(40, 50).proportion_ci(method="wilson")
    assert out.interval == pytest.approx([100 * end for end in expected]) and out.over == "seeds and samples"
    spread = [record([True] * k + [False] * (50 - k)) for k in (30, 40, 50)]
    out = found(Cell("a", "clean", tasks, clean), spread)
    half = 4.302652729749464 * 20 / 3**0.5
    assert out.interval == pytest.approx((80 - half, 100)), "the wider one"
    whole = [replace(task, examples=10_000) for task in tasks]
    out = found(Cell("a", "clean", whole, clean), records)
    assert out.interval == pytest.approx((80, 80)) and out.over == "seeds"


def test_with_three_seeds_it_is_students():
    records = [record([True] * k + [False] * (10 - k)) for k in (6, 7, 8)]
    out = found(Cell("a", "clean", [training()] * 3, clean, paper=94.0), records)
    half = 4.302652729749464 * 10 / 3**0.5  # t of 2 degrees times s / sqrt(n), s = 10 points
    assert out.mean == pytest.approx(70) and out.interval == pytest.approx((70 - half, 70 + half))
    assert out.over == "seeds" and out.agreement == "undecided"
    assert found(Cell("a", "clean", [training()] * 3, clean, paper=97.0), records).agreement == "differs"
    same = [record([True] * 70 + [False] * 30)] * 3
    assert found(Cell("a", "clean", [training()] * 3, clean, paper=71.0), same).agreement == "agrees"
    apart = found(
        Cell("a", "clean", [training()] * 3, clean), [record([True] * k + [False] * (10 - k)) for k in (0, 9, 9)]
    )
    assert apart.interval == (0, 100), "shares end there"
    stated = Cell("a", "clean", [training()] * 3, clean, paper=97.0, deviation=25.0)
    assert found(stated, records).agreement == "undecided"
    assert found(Cell("a", "clean", [training()] * 3, clean), records).agreement is None


def test_one_setting_changed_is_a_deviation_of_every_training():
    one = experiment("rethinking-table-9").plan(0.1, changes={"lr": 0.05})
    trained = [task for task in one.tasks() if isinstance(task, Training)]
    assert trained and {task.recipe.lr for task in trained} == {0.05}
    plain = [task for task in experiment("rethinking-table-9").plan(0.1).tasks() if isinstance(task, Training)]
    assert [replace(task.recipe, lr=0.1) for task in trained] == [task.recipe for task in plain]
    assert one.changes == {"lr": 0.05}
    soft = experiment("framework-table-1").plan(0.1, changes={"method.softness": 0.5})
    of = {t.method.function.partition(":")[2]: t.method.options for t in soft.tasks() if isinstance(t, Training)}
    assert of["r2"]["softness"] == 0.5 and not any("softness" in options for n, options in of.items() if n != "r2")


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("rethinking-table-9", {"lrr": 0.1}, "setting 'lrr'.*did you mean 'lr'"),
        ("rethinking-table-9", {"lr": "fast"}, "lr = 'fast': expected a number"),
        ("rethinking-table-9", {"epochs": 1.5}, "epochs = 1.5: expected an integer"),
        ("rethinking-table-9", {"lr": -0.1}, "lr = -0.1 trains nothing"),
        ("rethinking-table-9", {"seed": 3}, "setting 'seed'"),
        ("framework-table-1", {"method.softness": -1.0}, "softness = -1.0"),
        ("udp-figure-9", {"lr": 0.1}, "trains no network by a recipe"),
    ],
)
def test_settings_that_cannot_be_changed(name, changes, message):
    with pytest.raises(EquipoiseError, match=message):
        experiment(name).plan(0.1, changes=changes)


def test_a_generator_takes_as_many_steps_in_a_shorter_training():
    """At a tenth of the epochs ten for each of the classifier's; below one epoch more, as samples are left out."""
    (one,) = [t for t in experiment("framework-table-1").plan(seeds=1, only=["mnist"]).tasks()
              if isinstance(t, Training) and t.method.function.endswith(":r2")]  # fmt: skip
    assert "generator_steps" not in one.method.options
    tenth = one.scaled(0.1)
    assert (tenth.recipe.epochs, tenth.method.options["generator_steps"]) == (3, 10)
    tiny = one.scaled(0.01)
    assert tiny.recipe.epochs == 1 and tiny.samples == 18_000 and tiny.method.options["generator_steps"] == 100
    ((_, penalty),) = tenth.method().penalties
    assert penalty.auxiliary_network.steps == 10


def test_what_is_read_from_an_evaluation():
    one = record([True, True, False], ("pgd", 0.1, [True, False, False]), ("square", 0.1, [False, True, False]),
                 ("pgd", 0.2, [False, False, False]))  # fmt: skip
    assert clean(one) == [1, 1, 0]
    assert robust(0.1, attack="square")(one) == [0, 1, 0]
    assert robust(0.2)(one) == [0, 0, 0]
    assert trade_off(0.1, attack="pgd")(one) == [1, 0.5, 0]


def test_what_is_read_from_a_study():
    study = Study("s", "?", "", Findings([Number("flips", [1.0, 2.0])], []), {})
    assert number("flips")(study) == [1.0, 2.0]


REFUSED = [
    (lambda: table().plan(0.0), r"scale 0: expected a share in \(0, 1\], such as 0.1"),
    (lambda: table().plan(1.5), r"scale 1.5: expected a share"),
    (lambda: table().plan(seeds=0), r"seeds = 0: expected at least one training"),
    (lambda: table().plan(examples=0), r"examples = 0: expected at least one test sample"),
    (
        lambda: table(Cell("a", "c", [Evaluated(training(), ["pgd"], [0.1])], clean)).plan(only=["mnist"]),
        r"toy needs no data of the name mnist: it needs digits",
    ),
    (lambda: experiment("udp-table-99"), r"unknown experiment 'udp-table-99'"),
    (lambda: call(objectives.regularised, entropy=2.0), r"regularised takes no argument entropy: it takes entropy_w"),
    (lambda: call(lambda: None), r"has no name to import it by"),
    (lambda: robust(0.3)(record([True])), r"the record holds no result of an attack in linf with eps 0.3"),
    (
        lambda: number("flip")(Study("s", "?", "", Findings([Number("flips", [1.0])], []), {})),
        r"there is no number 'flip': there are 'flips'",
    ),
    (
        lambda: key(replace(training(), method=call(methods.udp, eps=object())), Setting(Path())),
        r"cannot be written down as the argument of a task",
    ),
]


@pytest.mark.parametrize(("act", "message"), REFUSED)
def test_what_is_refused(act, message):
    with pytest.raises(EquipoiseError, match=message):
        act()


@pytest.mark.parametrize("name", names())
def test_every_experiment_can_be_planned(name):
    """Its methods can be built, its tasks written down, and every cell has a place of its own."""
    one = experiment(name)
    assert one.name == name and one.title and one.source
    for variant in ("as published", "corrected"):
        plan = one.plan(0.01, variant)
        tasks = plan.tasks()
        assert tasks
        for task in tasks:
            if isinstance(task, Training):
                task.method(*([auto_encoder((1, 28, 28))] if task.manifold else []))
        for part in plan.parts:
            if isinstance(part, Table):
                places = [(cell.row, cell.column) for cell in part.cells]
                assert len(set(places)) == len(places)
    assert one.quirks or one.plan(1.0, "as published").tasks() == one.plan(1.0, "corrected").tasks()
