"""Results print as a line or a small table, with the same content in a notebook."""

import torch
from torch import nn

from equipoise import attacks, evaluate
from equipoise.results.provenance import provenance
from equipoise.results.records import AttackRecord, CorruptionResult, Evaluation
from equipoise.scores import Radii, Sampled, Score, UniformOnBall


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 3)).eval()


X = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))


def test_an_attack_prints_as_a_line() -> None:
    result = attacks.fgsm(0.3)(net(), X, net()(X).argmax(1))
    fooled = int(result.success.sum())
    assert fooled > 0
    line = repr(result)
    assert line.startswith(f"AttackResult(samples: 12, fooled: {fooled}, median distance: 0.3, ") and "\n" not in line
    assert f"<td>{fooled}</td>" in result._repr_html_()
    none = attacks.fgsm(0.0)(net(), X, net()(X).argmax(1))
    assert "fooled: 0" in repr(none) and "median distance" not in repr(none)


def test_an_accuracy_prints_with_its_interval() -> None:
    clean, robust = evaluate(net(), X, net()(X).argmax(1), [("fgsm", attacks.fgsm(0.01))])
    low, high = robust.interval
    assert repr(robust) == (
        f"AttackRecord(attack: fgsm, norm: linf, eps: 0.01, samples: 12, accuracy: {robust.accuracy:.1%}, "
        f"95 % interval: {low:.1%} to {high:.1%})"
    )
    assert "accuracy: 100.0%" in repr(clean)


def test_an_evaluation_prints_as_a_table() -> None:
    results = [AttackRecord(name, "linf", 0.1, [True, False]) for name in ("clean", "<pgd>")]
    fog = CorruptionResult("fog", [True, True], [0, 1])
    record = Evaluation("net", {}, results, provenance(0, "cpu"), corruptions=[fog])
    name, header, *rows = repr(record).splitlines()
    assert name == "Evaluation" and header.split()[:3] == ["attack", "norm", "eps"]
    assert [row.split()[0] for row in rows] == ["clean", "<pgd>", "fog"] and "50.0%" in rows[0]
    assert "<td>&lt;pgd&gt;</td>" in record._repr_html_() and record._repr_html_().count("<tr>") == 4


def test_a_score_prints_as_a_line() -> None:
    estimate = Score(Sampled(UniformOnBall("linf", samples=4)), Radii(high=0.2, count=2))(net(), X[:5], seed=0)
    assert repr(estimate).startswith("Estimate(score: ") and "samples: 5" in repr(estimate)
