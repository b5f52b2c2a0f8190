"""The weight of the entropy against accuracy."""

import pytest

from equipoise.data import load
from equipoise.reproduce.studies import Options
from equipoise.reproduce.studies.entropy_weight import _numbers, _verdict, run
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
    found = {(m, k): rows if (m, k) == ("PAT-EntM", "PGD-40") else [row[:1] * 2 for row in rows]
             for m in ("EntM", "PAT-EntM") for k in ("clean", "PGD-40")}  # fmt: skip
    verdict = _verdict(_numbers(found, (0, 2)))
    assert (
        "PGD-40 accuracy, PAT-EntM +20.0%, higher" in verdict
        and "clean accuracy, EntM +0.0%, not told apart" in verdict
    )
