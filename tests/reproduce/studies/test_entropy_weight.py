"""The weight of the entropy against accuracy."""

import pytest

from equipoise.data import load
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.design import Case
from equipoise.reproduce.studies.entropy_weight import EntropyWeight, run
from equipoise.reproduce.studies.images import accuracy, images, recipe, train
from equipoise.results.findings import Lines
from equipoise.training.methods import entm

pytestmark = pytest.mark.unchecked


def test_quick_run() -> None:
    found = run(Options(quick=True, limit=200, seeds=1, seed=3), lambda what, share: None)
    values = {n.name: list(n.values) for n in found.numbers}
    assert len(values) == 2 * 2 * 2 + 4 and all(isinstance(panel, Lines) for panel in found.pictures[0].panels)
    data = images(load("digits").limit(200, 3))
    model = train(entm(2.0), data, recipe(data, 20, 3, lr=2e-3, batch_size=64))
    assert values["clean accuracy, EntM, lambda 2"] == [accuracy(model, data.test)]
    assert found.verdict.startswith("From lambda 0 to 2: clean accuracy, EntM ")


def test_the_verdict_follows_the_numbers() -> None:
    rows = [[0.5, 0.7], [0.5, 0.71], [0.51, 0.7]]
    study = EntropyWeight(Options(quick=True, seeds=3))
    for name in ("EntM", "PAT-EntM"):
        for seed, row in enumerate(rows):
            for weight, value in zip((0, 2), row, strict=True):
                robust = value if name == "PAT-EntM" else row[0]
                study.results[Case(name, weight, seed)] = {"clean": row[0], "PGD-40": robust}
    verdict = study._conclude()
    assert (
        "PGD-40 accuracy, PAT-EntM +20.0%, higher" in verdict
        and "clean accuracy, EntM +0.0%, not told apart" in verdict
    )
