"""Claims: the difference of two numbers, sample by sample and seed by seed, and whether it exceeds what is claimed."""

import json
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from equipoise import methods
from equipoise import reproduce as experiments
from equipoise.cli import main
from equipoise.report.reproduction import page
from equipoise.reproduce import (
    Cell,
    Claim,
    Claims,
    Evaluated,
    Experiment,
    MeasureTask,
    Net,
    Setting,
    Table,
    Training,
    call,
    clean,
    difference,
    experiment,
    names,
    number,
    outcome,
    reproduction,
    sweep,
)
from equipoise.results.findings import Findings, Number, Study
from equipoise.results.provenance import provenance
from equipoise.results.records import AttackRecord, Evaluation
from equipoise.results.reproduction import ClaimOutcome, ClaimsOutcome, Reproduction
from equipoise.training import Recipe

pytestmark = [
    pytest.mark.unchecked,
    pytest.mark.filterwarnings("ignore::equipoise.core.errors.EquipoiseWarning"),  # so little trains nothing
]


def evaluated(seed: int = 0, epochs: int = 100) -> Evaluated:
    recipe = Recipe(epochs=epochs, batch_size=50, seed=seed)
    return Evaluated(
        Training(call(methods.standard), Net("mlp", {"widths": [8]}), "digits", recipe), ["clean"], examples=359
    )


def measured(values: list[float], name: str = "margin") -> Study:
    return Study("s", "?", "", Findings([Number(name, values, "samples")], []), {})


def record(right: list[bool]) -> Evaluation:
    results = [AttackRecord("clean", "", 0.0, right)]
    return Evaluation("somewhere", {"name": "digits"}, results, provenance(0, "cpu"))


def cell(row: str, read=number("margin"), seeds: int = 1, scale: float = 1.0) -> Cell:
    return Cell(row, "margin", [evaluated(seed) for seed in range(seeds)], read, scale=scale)


def verdict(low: float, high: float, by: float = 0.0) -> str | None:
    claim = Claim("A is larger.", "nowhere", cell("A"), cell("B"), by)
    gap = difference(claim, [(measured([1.0, 2.0]), measured([0.0, 0.0]))], [])
    gap = replace(gap, mean=(low + high) / 2, interval=(low, high))
    return ClaimOutcome("A is larger.", "nowhere", "A", "B", gap, by).verdict


def test_it_holds_where_the_whole_interval_lies_above():
    assert verdict(0.1, 0.4) == "holds" and verdict(-0.1, 0.4) == "undecided" and verdict(-0.4, -0.1) == "fails"
    assert verdict(0.1, 0.4, by=0.2) == "undecided" and verdict(-1.0, -0.5, by=-2.0) == "holds"


def test_samples_are_paired():
    """Student's interval of the differences, which is far narrower than that of two independent means."""
    rng = np.random.default_rng(0)
    other = rng.normal(0, 10, 200)
    own = other + rng.normal(0.3, 0.5, 200)
    claim = Claim("A is larger.", "nowhere", cell("A"), cell("B"))
    gap = difference(claim, [(measured(own.tolist()), measured(other.tolist()))], ["one", "other"])
    expected = stats.t.interval(0.95, 199, (own - other).mean(), stats.sem(own - other))
    assert gap.mean == pytest.approx((own - other).mean()) and gap.interval == pytest.approx(expected, rel=1e-4)
    assert (gap.n, gap.seeds, gap.over, list(gap.folders)) == (200, 1, "samples", ["one", "other"])


def test_differences_of_accuracies_may_be_negative():
    """All of them in {0, 1}: what would pass for a share of successes has Student's interval too."""
    claim = Claim("A is right more often.", "nowhere", cell("A", clean, scale=100), cell("B", clean, scale=100))
    right, wrong = [True, True, True, False], [False, True, False, False]
    gap = difference(claim, [(record(right), record(wrong))], [])
    low, high = stats.t.interval(0.95, 3, 0.5, stats.sem([1, 0, 1, 0]))
    assert gap.mean == 50 and gap.interval == pytest.approx((100 * low, 100 * high), rel=1e-4) and low < 0
    assert difference(claim, [(record(wrong), record(right))], []).mean == -50


def test_equal_differences_are_not_certain():
    """Ten samples that both get right may still differ in a quarter of others; of distances nothing is known."""
    both = Claim("A is right more often.", "nowhere", cell("A", clean, scale=100), cell("B", clean, scale=100), by=-2.0)
    gap = difference(both, [(record([True] * 10), record([True] * 10))], [])
    assert gap.mean == 0 and gap.interval == pytest.approx((-100 * (1 - 0.025**0.1), 100 * (1 - 0.025**0.1)))
    assert stats.binomtest(0, 10).proportion_ci(method="exact").high == pytest.approx(1 - 0.025**0.1)
    alike = Claim("A is larger.", "nowhere", cell("A"), cell("B"))
    assert difference(alike, [(measured([0.0, 0.0]), measured([0.0, 0.0]))], []).interval is None


def test_with_three_seeds_the_interval_is_over_them():
    claim = Claim("A is larger.", "nowhere", cell("A", seeds=3), cell("B", seeds=3))
    pairs = [(measured([2.0 + seed] * 5), measured([1.0] * 5)) for seed in range(3)]
    gap = difference(claim, pairs, [])
    assert gap.seeds == 3 and gap.interval == pytest.approx(
        stats.t.interval(0.95, 2, 2.0, stats.sem([1, 2, 3])), rel=1e-4
    )


def test_with_part_of_the_test_set_the_interval_covers_the_samples_too():
    """Networks that agree on the same samples say nothing of others, be it in a measurement or in an evaluation."""
    of = replace(evaluated().of, data="mnist")
    tasks = [MeasureTask(call(methods.standard), [of], "?", examples=100) for _ in range(3)]
    own, other = (replace(cell(row), tasks=tasks) for row in "AB")
    values = [1.0, -1.0, 2.0, -1.5, 0.5]
    gap = difference(Claim("A is larger.", "nowhere", own, other), [(measured(values), measured([0.0] * 5))] * 3, [])
    expected = stats.t.interval(0.95, 4, np.mean(values), stats.sem(values))
    assert gap.interval == pytest.approx(expected, rel=1e-4) and gap.over == "seeds and samples"


def test_a_number_alone_is_compared_with_zero_and_unlike_numbers_by_their_means():
    alone = Claim("A is positive.", "nowhere", cell("A"))
    assert difference(alone, [(measured([1.0, 3.0]), None)], []).mean == 2
    unlike = Claim("A is larger.", "nowhere", cell("A"), cell("B"))
    gap = difference(unlike, [(measured([1.0, 3.0]), measured([1.0]))], [])
    assert (gap.mean, gap.interval) == (1, None)
    assert ClaimOutcome("A is larger.", "nowhere", "A", "B", gap, 0.0).verdict == "undecided"


def parts(variant: str) -> list:
    own, other = (Cell(f"seed {seed}", "clean", [evaluated(seed)], clean) for seed in range(2))
    claims = [
        Claim("Seed 0 is better", "T Sec. 0", own, other),
        Claim("Seed 0 is hardly worse", "T", own, other, -99.0),
    ]
    return [Table("Accuracy", [own, other]), Claims("Which seed is better?", claims)]


TOY = Experiment("toy", "Seeds", "nowhere", parts)


def test_a_plan_computes_what_its_claims_need_and_shortens_it():
    only_claims = Experiment("toy", "Seeds", "nowhere", lambda variant: parts(variant)[1:])
    assert len(only_claims.plan().tasks()) == len(only_claims.plan(only=["digits"]).tasks()) == 4
    (claims,) = only_claims.plan(0.1).parts
    assert isinstance(claims, Claims)
    for claim in claims.claims:
        assert claim.smaller is not None
        assert {task.of.recipe.epochs for one in (claim.larger, claim.smaller) for task in one.tasks} == {10}


def test_claims_are_printed_recorded_and_shown(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for place in (experiments, outcome):
        monkeypatch.setattr(place, "experiment", lambda name: TOY)
    assert main(shlex.split("reproduce toy --scale 0.02 --workers 1 --out out")) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Which seed is better?" in said and "Of 2 claims that were put to the test 1 hold, 0 fail" in said
    result = reproduction(Path("out"))
    assert [claim.verdict for claim in result.claims][1] == "holds"
    kept = json.loads(Path("out/reproduction.json").read_text())
    (claims,) = [part["claims"] for part in kept["parts"] if "claims" in part]
    assert [claim["verdict"] for claim in claims][1] == "holds" and claims[0]["difference"]["n"] == 10
    html = page(result)
    assert "Seed 0 is better" in html and "holds" in html and "above -99" in html


def test_before_anything_is_computed_no_claim_is_judged():
    claim = Claim("A is larger.", "nowhere", cell("A"), cell("B"))
    outcomes = [ClaimsOutcome("c", [ClaimOutcome("A", "n", "A", "B", difference(claim, [], []), 0.0)])]
    result = Reproduction("toy", "Seeds", "nowhere", 1.0, "corrected", outcomes, [])
    assert result.claims[0].verdict is None and "None of its 1 claims is put to the test yet" in result.verdict


CLAIMS = {name: [part for part in experiment(name).plan().parts if isinstance(part, Claims)] for name in names()}


@pytest.mark.parametrize("name", [name for name, parts in CLAIMS.items() if parts])
def test_both_sides_of_a_claim_have_the_same_seeds(name):
    for claim in (claim for part in CLAIMS[name] for claim in part.claims):
        own, other = claim.larger, claim.larger if claim.smaller is None else claim.smaller
        assert len(own.tasks) == len(other.tasks) > 0 and own.scale == other.scale, claim.statement


def with_epochs(path: Path, accuracies: list[float], schedule: str = "constant", column: str = "clean") -> Reproduction:
    """A record of one training whose validation accuracies are those of its epochs."""
    recipe = Recipe(epochs=2, batch_size=50, schedule=schedule)
    of = Training(call(methods.standard), Net("mlp", {"widths": [8]}), "digits", recipe)
    task = Evaluated(of, ["clean"], examples=40)
    table = Table("Accuracy", [Cell("a", column, [task], clean, 90.0)])
    one = Experiment("toy", "Noise", "nowhere", lambda variant: [table])
    setting = Setting(path)
    sweep.sweep(one.plan(), setting, workers=1)
    lines = [json.dumps({"epoch": i + 1, "valid_clean": value, "valid_pgd": 0.0}) for i, value in enumerate(accuracies)]
    (setting.folder_of(task.of) / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(outcome, "experiment", lambda name: one)
        return reproduction(path)


def test_the_spread_over_the_last_epochs_stands_for_the_noise_of_another_training(tmp_path):
    still, moving = [0.5] * 15 + [0.9] * 5, [0.5] * 15 + [0.80, 0.84, 0.88, 0.84, 0.80]
    (plain,) = with_epochs(tmp_path / "still", still).outcomes
    (wide,) = with_epochs(tmp_path / "moving", moving).outcomes
    assert plain.over == wide.over == "samples and epochs" and plain.mean == wide.mean
    noise = 100 * 1.959964 * np.std([0.80, 0.84, 0.88, 0.84, 0.80], ddof=1)
    for end, wider in zip(plain.interval, wide.interval, strict=True):
        assert abs(wider - wide.mean) == pytest.approx(np.hypot(end - plain.mean, noise), rel=1e-5)


def test_the_noise_of_clean_accuracy_is_its_own_whatever_the_column_is_called(tmp_path):
    (result,) = with_epochs(tmp_path, [0.5] * 15 + [0.80, 0.84, 0.88, 0.84, 0.80], column="eps of training").outcomes
    (named,) = with_epochs(tmp_path, [0.5] * 15 + [0.80, 0.84, 0.88, 0.84, 0.80]).outcomes
    assert result.interval == named.interval and result.over == "samples and epochs"


def test_there_is_none_of_few_epochs_or_of_a_changing_learning_rate(tmp_path):
    for epochs, schedule in ((16, "constant"), (20, "multistep")):
        result = with_epochs(tmp_path / schedule, [0.5] * epochs, schedule)
        assert result.outcomes[0].over == "samples" and "1 are of one training" in result.verdict
