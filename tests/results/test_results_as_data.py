"""Results as data: frames, CSV, LaTeX and plots hold the numbers of the records, recomputed here by hand."""

import csv
import io
import math
import sys

import numpy as np
import pytest
import torch

import equipoise as eq
from equipoise.core.tables import as_latex
from equipoise.results.findings import Findings, Number
from equipoise.results.provenance import provenance
from equipoise.results.records import (
    AttackRecord,
    CorruptionResult,
    Evaluation,
    Run,
    ScoreCurve,
    ScoreResult,
    Scores,
)
from equipoise.results.reproduction import Outcome, Reproduction, TableOutcome

CORRECT = [True] * 3 + [False]
RESULTS = [AttackRecord("clean", "linf", 0.0, [True] * 4)]
RESULTS += [AttackRecord("pgd", "linf", eps, c) for eps, c in ((0.2, [False] * 4), (0.1, CORRECT))]
RECORD = Evaluation("net", {}, RESULTS, provenance(0, "cpu"), corruptions=[CorruptionResult("fog", CORRECT, [0] * 4)])


def wilson(k: int, n: int) -> tuple[float, float]:
    """The two roots of n (k/n - p)² = z² p (1 - p)."""
    z = 1.959963984540054
    roots = np.roots([n + z * z, -2 * k - z * z, k * k / n])
    return tuple(sorted(float(root) for root in roots))  # pyright: ignore[reportReturnType]


def test_an_evaluation_is_a_frame_of_its_accuracies():
    frame = RECORD.to_frame()
    assert list(frame["attack"]) == ["clean", "pgd", "pgd", "fog"] and list(frame["n"]) == [4] * 4
    assert list(frame["accuracy"]) == [1.0, 0.0, 0.75, 0.75]
    assert tuple(frame.loc[2, ["low", "high"]]) == pytest.approx(wilson(3, 4))
    assert frame["eps"].isna().tolist() == [False, False, False, True]


def test_csv_is_read_back_by_any_reader(tmp_path):
    text = RECORD.to_csv(tmp_path / "a.csv")
    rows = list(csv.DictReader(io.StringIO(text)))
    assert (tmp_path / "a.csv").read_text() == text and len(rows) == 4
    assert float(rows[2]["high"]) == pytest.approx(wilson(3, 4)[1]) and rows[3]["norm"] == ""


def test_latex_escapes_what_it_must():
    text = as_latex(("a_b", "n"), [("50 % & ~x^", "1.5")])
    assert text.splitlines()[0] == r"\begin{tabular}{rr}"
    assert r"a\_b & n \\" in text and r"50 \% \& \textasciitilde{}x\textasciicircum{} & 1.5 \\" in text
    assert "75.0\\%" in RECORD.to_latex() and "| 75.0% |" in RECORD.to_markdown()


def test_what_evaluate_returns_is_a_list_and_a_table():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    x = torch.rand(12, 1, 4, 4)
    results = eq.evaluate(net, x, net(x).argmax(1), [("fgsm", eq.attacks.fgsm(0.1))])
    assert isinstance(results, list) and results[0].accuracy == 1.0
    assert repr(results).splitlines()[0] == "Results" and results._repr_html_().count("<tr>") == 3
    assert list(results.to_frame()["accuracy"]) == [result.accuracy for result in results]
    samples = results[1].to_frame()
    assert samples["correct"].tolist() == list(results[1].correct) and len(samples) == 12
    attacked = eq.attacks.fgsm(0.1)(net, x, net(x).argmax(1))
    assert attacked.to_frame()["success"].tolist() == attacked.success.tolist()


def test_a_plot_shows_every_attack_from_the_clean_accuracy_on():
    axes = RECORD.plot().axes[0]
    (line,) = axes.lines
    assert line.get_xdata().tolist() == [0.0, 0.1, 0.2] and line.get_ydata().tolist() == [100.0, 75.0, 0.0]
    assert line.get_label() == "pgd"
    assert RECORD.plot()._repr_png_().startswith(b"\x89PNG")
    with pytest.raises(eq.EquipoiseError, match="there is no attack to draw"):
        Evaluation("net", {}, RESULTS[:1], provenance(0, "cpu")).plot()


def test_images_are_drawn_with_what_the_model_sees():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(16, 3)).eval()
    x = torch.rand(3, 1, 4, 4)
    result = eq.attacks.fgsm(0.5)(net, x, net(x).argmax(1))
    drawing = result.plot(["ape", "bee", "cat"])
    seen = [axes.images[0].get_array() for axes in drawing.axes]
    assert np.allclose(np.stack(seen), result.x[:, 0].numpy(), atol=1e-6)
    assert drawing.axes[0].get_title().split(",")[0] == ["ape", "bee", "cat"][int(result.prediction[0])]
    with pytest.raises(eq.EquipoiseError, match="are not images"):
        eq.attacks.fgsm(0.1)(net, x.flatten(1), net(x).argmax(1)).plot()


def test_a_run_and_scores_print_in_a_few_lines():
    run = Run({"name": "udp"}, {}, {"name": "mlp"}, {"name": "digits"}, provenance(0, "cpu"), best={"epoch": 7.0})
    assert repr(run) == "Run(method: udp, net: mlp, data: digits, status: running, best epoch: 7)"
    curve = ScoreCurve([0.0], [1.0], [[0.9], [1.0]])
    score = ScoreResult(0.5, 2, curve, {"H": "", "G": "", "radii": ""}, interval=(0.25, 0.75))
    scores = Scores("net", {}, {"r2": score}, provenance(0, "cpu"))
    assert repr(scores) == "Scores(score: r2, value: 0.5, 95 % interval: 0.25 to 0.75, samples: 2)"
    assert scores.to_frame().loc[0, "high"] == 0.75 and math.isnan(run.to_frame().loc[1, "epoch"])


def test_findings_and_reproductions_are_short_and_are_numbers():
    number = Number("distance", (1.0, 3.0))
    findings = Findings((number,), ())
    assert repr(findings).startswith("Findings(measured: distance, mean: 2, 95 % interval: -10.71 to 14.71, n: 2 seeds")
    assert findings.to_frame().loc[0, ["mean", "n"]].tolist() == [2.0, 2]
    outcome = Outcome("udp", "pgd", 70.0, 0.05, 69.0, (68.0, 70.0), 100, 1, "samples", [])
    table = TableOutcome("Table 1", "method", "%", [outcome])
    reproduction = Reproduction("udp-table-1", "T", "U", 1.0, "corrected", [table], [])
    assert repr(reproduction).startswith("Reproduction(experiment: udp-table-1, verdict: ")
    assert reproduction.to_frame().loc[0, ["row", "mean", "low", "high"]].tolist() == ["udp", 69.0, 68.0, 70.0]


def test_without_pandas_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(eq.EquipoiseError, match=r"pip install 'equipoise\[frames\]'"):
        RECORD.to_frame()


def test_without_matplotlib_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(eq.EquipoiseError, match=r"pip install 'equipoise\[report\]'"):
        RECORD.plot()
