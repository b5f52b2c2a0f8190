"""Certified accuracy of an evaluation: a closed form, in records, in parts, and where it contradicts an attack."""

import json
from dataclasses import replace

import pytest
import torch
from torch import nn

from equipoise import attacks
from equipoise.certified import certified
from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import Shard, evaluate_dataset, merge, on_balls, suite, verify_record
from equipoise.evaluation.proofs import balls_of, check_proofs
from equipoise.geometry import Ball
from equipoise.models import Ensemble
from equipoise.results.outcomes import CertifiedResult
from equipoise.results.records import digest, from_json, load, save, to_json

BALLS = (0.01, 0.05)


X = torch.rand(40, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def network() -> nn.Module:
    """All three classes are about as common among the samples."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 3)).eval().requires_grad_(False)
    net[3].bias -= net(X).mean(0)
    return net


def data() -> Dataset:
    x = X.clone()
    y = network()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    split = Split(x, y)
    return Dataset("noise", split, split, ("a", "b", "c"), "0" * 64)


def record_of(net: nn.Module | None = None, method: str | None = "crown", **options):
    pgd = suite(["fgsm", "pgd"], eps=BALLS, steps=5)
    return evaluate_dataset(net or network(), data(), pgd, target="m", examples=0, certified=method, **options)


def test_of_a_linear_model_it_is_the_closed_form():
    """The margin of a linear model falls by `eps ‖w_y - w_j‖₁`, where the box is not in the way."""
    net, x = nn.Linear(8, 3).requires_grad_(False), 0.3 + 0.4 * torch.rand(50, 8)
    y = net(x).argmax(1)
    y[:5] = (y[:5] + 1) % 3
    (found,) = on_balls(net, x, y, [Ball("linf", 0.1)])
    gaps = net(x).gather(1, y[:, None]) - net(x) - 0.1 * (net.weight[y][:, None] - net.weight).abs().sum(2)
    worst = gaps.scatter(1, y[:, None], torch.inf).amin(1)
    assert torch.allclose(torch.tensor(found.margin), worst, atol=1e-5)
    assert found.correct == (worst > 0).tolist() and 0 < found.accuracy < 1 and found.n == 50
    assert found.interval[0] < found.accuracy < found.interval[1] and not any(found.correct[:5])


def test_a_record_has_it_in_every_ball_of_its_attacks(tmp_path):
    record, test = record_of(out=tmp_path / "r.json"), data().test
    assert [(r.method, r.norm, r.eps) for r in record.certified] == [("crown", "linf", eps) for eps in BALLS]
    for result in record.certified:
        assert result.correct == certified(network(), test.x, test.y, Ball("linf", result.eps)).tolist()
        attacked = [r for r in record.results if r.eps == result.eps]
        assert record.results[0].accuracy >= min(r.accuracy for r in attacked) >= result.accuracy
    assert [r.attack for r in record.by_ball] == [
        "clean", *(["fgsm", "pgd", "worst case", "certified (crown)"] * 2)
    ]  # fmt: skip
    assert [r.eps for r in record.by_ball[4::4]] == list(BALLS)
    assert str(record).count("certified (crown)") == 2 and "certified and attacked" not in str(record.flags)
    assert 0 < record.certified[1].accuracy < record.certified[0].accuracy
    saved = load(tmp_path / "r.json")
    assert saved == from_json(to_json(record)) and digest(record) == digest(saved)
    assert record_of(out=tmp_path / "r.json").provenance == record.provenance, "answered from the record"
    with pytest.raises(EquipoiseError, match="certified"):
        record_of(out=tmp_path / "r.json", method="ibp")


def test_a_record_without_it_is_as_before():
    without, entry = record_of(method=None), to_json(record_of())
    assert "certified" not in to_json(without) and not without.certified
    assert (
        entry["certified"][0].keys()
        == {"method", "norm", "eps", "correct", "margin", "n", "accuracy", "interval"}
        | {"rates"} & entry["certified"][0].keys()
    )
    assert not from_json(to_json(without)).certified
    for damage, message in (
        ({"correct": [True]}, "lacks an outcome for every sample"),
        ({"eps": "0.1"}, r"certified\[0\].eps: expected number"),
    ):
        damaged = json.loads(json.dumps(entry))
        damaged["certified"][0] |= damage
        with pytest.raises(EquipoiseError, match=message):
            from_json(damaged)


def test_parts_make_the_whole(tmp_path):
    whole = record_of(out=tmp_path / "whole.json", batch_size=8)
    files = [tmp_path / f"{i}.json" for i in (1, 2)]
    for i, file in enumerate(files, 1):
        record_of(out=file, batch_size=8, shard=Shard(i, 2))
    assert digest(merge(files, tmp_path / "merged.json")) == digest(whole)
    record_of(method="ibp", out=files[1], batch_size=8, shard=Shard(2, 2), overwrite=True)
    with pytest.raises(EquipoiseError, match=r"is of another evaluation .*: other certificates"):
        merge(files, tmp_path / "other.json")


def test_an_interrupted_evaluation_goes_on(tmp_path, monkeypatch):
    whole, calls = record_of(batch_size=8), []

    def stop_at_third(*args):
        calls.append(args)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return on_balls(*args)

    monkeypatch.setattr("equipoise.evaluation.runs.on_balls", stop_at_third)
    with pytest.raises(KeyboardInterrupt):
        record_of(out=tmp_path / "r.json", batch_size=8)
    monkeypatch.setattr("equipoise.evaluation.runs.on_balls", on_balls)
    assert digest(record_of(out=tmp_path / "r.json", batch_size=8, resume=True)) == digest(whole)


def test_a_sample_that_is_both_proven_and_fooled_is_a_fault():
    record = record_of()
    assert check_proofs(record.results, record.certified) == []
    proof = record.certified[1]
    attack = next(r for r in record.results if r.attack == "pgd" and r.eps == proof.eps)
    fooled = [i for i, correct in enumerate(attack.correct) if not correct and record.results[0].correct[i]]
    assert fooled, "PGD fools some"
    false = replace(proof, correct=[c or i in fooled[:2] for i, c in enumerate(proof.correct)])
    flags = check_proofs(record.results, [false])
    (by_pgd,) = [flag for flag in flags if "by pgd" in flag.figure]
    where = "certified (crown) at linf eps 0.05"
    figure = f"2 of 40 samples are {where} and fooled by pgd: {fooled[0]}, {fooled[1]}; this cannot be"
    assert str(by_pgd).startswith(f"certified and attacked: {figure}")
    assert not any("worst case" in flag.figure for flag in flags)
    everything = CertifiedResult("crown", "linf", 0.3, [True] * 40, [1.0] * 40)
    (misclassified,) = check_proofs(record.results, [everything])
    assert "6 of 40" in misclassified.figure and "fooled by clean: 0, 7, 14, 21, 28, ..." in misclassified.figure


def test_the_flag_is_in_the_record(monkeypatch):
    def unsound(model, x, y, balls, method):
        return [CertifiedResult(method, b.norm, b.eps, [True] * len(x), [1.0] * len(x)) for b in balls]

    monkeypatch.setattr("equipoise.evaluation.runs.on_balls", unsound)
    assert {flag.name for flag in record_of().flags} >= {"certified and attacked"}


def test_a_verification_proves_it_again(tmp_path):
    path, test = tmp_path / "r.json", data().test
    record = record_of(out=path, images=True)
    found = verify_record(path, network(), test.x, test.y)
    plain = verify_record(save(tmp_path / "plain.json", replace(record, certified=())), network(), test.x, test.y)
    assert found.mismatches == [] and found.claims == plain.claims + 80
    low, high = record.certified
    weak = min(range(40), key=lambda i: high.margin[i])
    margin = [1.0 if i == weak else m for i, m in enumerate(high.margin)]
    false = replace(high, correct=[c or i == weak for i, c in enumerate(high.correct)], margin=margin)
    save(path, replace(record, certified=[low, false]))
    mismatches = verify_record(path, network(), test.x, test.y).mismatches
    assert any(m.startswith(f"certified (crown) at linf eps 0.05, sample {weak}: the margin is at") for m in mismatches)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: record_of(method="crwn"), "did you mean 'crown'"),
        (lambda: record_of(net=Ensemble([network(), network()])), "cannot bound a Ensemble"),
        (lambda: record_of(net=nn.Sequential(network(), nn.Softplus())), "a Softplus layer at '1'"),
        (
            lambda: evaluate_dataset(network(), data(), [], target="m", certified="ibp"),
            "in the balls of the attacks: give an attack",
        ),
    ],
)
def test_refuses_what_cannot_be_certified_before_it_attacks(make, message, monkeypatch):
    monkeypatch.setattr("equipoise.evaluation.runs.evaluate_block", lambda *_, **__: pytest.fail("it attacked"))
    with pytest.raises(EquipoiseError, match=message):
        make()


def test_balls_are_named_once():
    named = [("a", attacks.pgd(0.1)), ("b", attacks.fgsm(0.1)), ("c", attacks.pgd(0.1, norm="l2"))]
    assert balls_of(named) == [Ball("linf", 0.1), Ball("l2", 0.1)]
