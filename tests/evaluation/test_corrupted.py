"""Accuracy on corrupted images: as counted by hand, in records, in parts, and what an audit makes of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.corruptions import CORRUPTIONS, Published, corrupt
from equipoise.data import Dataset, Split
from equipoise.evaluation import Corruptions, Shard, evaluate_dataset, merge, on_corruptions, verify_record
from equipoise.evaluation.runs import evaluation_key
from equipoise.results.records import CorruptionResult, MeanResult, digest, from_json, load, save, to_json
from equipoise.results.statistics import wilson

FEW = ("fog", "impulse_noise", "canny_edges")


def model(classes: int = 3) -> nn.Module:
    net = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, classes))
    weight = torch.rand(classes, 28 * 28, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        net[1].weight.copy_(weight)
        net[1].bias.zero_()
    return net.eval()


def data(n: int = 30) -> Dataset:
    """Bright squares on black, with the labels that the model gives most of them."""
    generator = torch.Generator().manual_seed(1)
    x = torch.zeros(n, 1, 28, 28)
    x[..., 8:20, 8:20] = torch.rand(n, 1, 12, 12, generator=generator).round()
    y = model()(x).argmax(1)
    y[::7] = (y[::7] + 1) % 3
    split = Split(x, y)
    return Dataset("squares", split, split, ("a", "b", "c"), "0" * 64)


def published(test: Split, names=FEW) -> Published:
    """The test set with its pixels mirrored, as if it were a corruption."""
    images = {name: (test.x.flip(3 if k else 2) * 255).to(torch.uint8) for k, name in enumerate(names)}
    return Published(images, test.y, {name: f"{k}" * 64 for k, name in enumerate(names)})


def test_accuracy_is_that_of_the_corrupted_images():
    net, test = model(), data().test
    found = on_corruptions(net, test.x, test.y, seed=5, batch_size=7)
    assert [r.corruption for r in found] == list(CORRUPTIONS)
    for result in found:
        expected = net(corrupt(test.x, result.corruption, 5)).argmax(1)
        assert result.prediction == expected.tolist() and result.correct == (expected == test.y).tolist()
        assert result.n == 30 and result.accuracy == float((expected == test.y).double().mean())
        assert result.interval == wilson(int((expected == test.y).sum()), 30) and result.source == ""
    mean = MeanResult(found)
    assert mean.n == 30 and mean.accuracy == pytest.approx(np.mean([r.accuracy for r in found]))
    low, high = mean.interval
    assert low < mean.accuracy < high and high - low > 0.1
    assert len({r.accuracy for r in found}) > 3


def test_the_mean_of_one_corruption_is_its_own():
    one = CorruptionResult("fog", [True] * 7 + [False] * 3, [0] * 10)
    assert (MeanResult([one]).accuracy, MeanResult([one]).interval) == (one.accuracy, pytest.approx(one.interval))
    assert MeanResult([replace(one, correct=[True] * 10)] * 15).interval == wilson(10, 10)


def test_a_record_holds_them_and_one_without_stays_as_it_was(tmp_path):
    record = evaluate_dataset(model(), data(), [], target="m", out=tmp_path / "r.json", corruptions=Corruptions(FEW))
    assert [r.corruption for r in record.corruptions] == list(FEW) and len(record.results) == 1
    written = json.loads((tmp_path / "r.json").read_text())
    assert [r["accuracy"] for r in written["corruptions"]] == [r.accuracy for r in record.corruptions]
    assert written["corrupted"] == {
        "n": 30,
        "accuracy": record.corrupted.accuracy,
        "interval": list(record.corrupted.interval),
    }
    again = load(tmp_path / "r.json")
    assert digest(again) == digest(record) and again.corrupted.accuracy == record.corrupted.accuracy
    plain = evaluate_dataset(model(), data(), [], target="m")
    assert plain.corrupted is None and not {"corruptions", "corrupted"} & set(to_json(plain))
    old = to_json(plain)
    assert digest(from_json(old)) == digest(plain) and from_json(old).corruptions == ()


def test_shards_and_a_resumed_evaluation_lead_to_the_same_record(tmp_path, monkeypatch):
    how = {"target": "m", "batch_size": 4, "corruptions": Corruptions(FEW), "examples": 26}
    whole = evaluate_dataset(model(), data(), [], out=tmp_path / "whole.json", **how)
    for number in (1, 2, 3):
        evaluate_dataset(model(), data(), [], out=tmp_path / f"{number}.json", shard=Shard(number, 3), **how)
    merged = merge([tmp_path / f"{n}.json" for n in (2, 3, 1)], tmp_path / "merged.json")
    assert digest(merged) == digest(whole)

    from equipoise.evaluation import runs

    original, calls = runs.on_corruptions, []

    def interrupted(*args, **options):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return original(*args, **options)

    monkeypatch.setattr(runs, "on_corruptions", interrupted)
    with pytest.raises(KeyboardInterrupt):
        evaluate_dataset(model(), data(), [], out=tmp_path / "resumed.json", **how)
    resumed = evaluate_dataset(model(), data(), [], out=tmp_path / "resumed.json", resume=True, **how)
    assert digest(resumed) == digest(whole) and len(calls) == 4 + 7 - 3


def test_published_images_belong_to_the_same_samples(tmp_path):
    everything = data()
    given = published(everything.test)
    record = evaluate_dataset(
        model(), everything, [], target="m", examples=12, out=tmp_path / "r.json", corruptions=Corruptions(FEW, given)
    )
    test = everything.test.limit(12)
    for k, result in enumerate(record.corruptions):
        assert result.prediction == model()(test.x.flip(3 if k else 2)).argmax(1).tolist()
        assert result.source == f"{k}" * 64
    assert digest(record) == digest(load(tmp_path / "r.json"))
    checked = verify_record(
        tmp_path / "r.json", model(), test.x, test.y, corruptions=Corruptions(FEW, given).of(everything, 12)
    )
    assert (checked.claims, checked.mismatches) == (4 * 12, [])


def test_an_audit_infers_them_again(tmp_path):
    path, test = tmp_path / "r.json", data().test
    record = evaluate_dataset(model(), data(), [], target="m", out=path, seed=3, corruptions=Corruptions(FEW))
    found = verify_record(path, model(), test.x, test.y)
    assert (found.claims, found.mismatches) == (4 * 30, [])
    fog = record.corruptions[0]
    false = replace(fog, correct=[not fog.correct[0], *fog.correct[1:]])
    save(path, replace(record, corruptions=[false, *record.corruptions[1:]]))
    (mismatch,) = verify_record(path, model(), test.x, test.y).mismatches
    assert mismatch.startswith(
        f"fog, sample 0: class {fog.prediction[0]} is predicted, recorded is {fog.prediction[0]}"
    )
    save(path, record)
    for key, name in (("corruptions", "fog"), ("corrupted", "mean of the corruptions")):
        written = json.loads(path.read_text())
        entry = written[key] if key == "corrupted" else written[key][0]
        entry["accuracy"] += 0.01
        (tmp_path / "changed.json").write_text(json.dumps(written))
        (mismatch,) = verify_record(tmp_path / "changed.json", model(), test.x, test.y).mismatches
        assert mismatch == f"{name}: its n, accuracy and interval do not follow from its outcomes."


def test_refuses_to_audit_without_the_published_images(tmp_path):
    path, everything = tmp_path / "r.json", data()
    given = published(everything.test)
    evaluate_dataset(model(), everything, [], target="m", out=path, corruptions=Corruptions(FEW, given))
    test = everything.test
    with pytest.raises(EquipoiseError, match=r"is about published images of fog, .*: give their folder with --corr"):
        verify_record(path, model(), test.x, test.y)
    others = replace(given, sha256={name: "f" * 64 for name in FEW})
    with pytest.raises(EquipoiseError, match=r"is about other images of fog \(SHA-256 000"):
        verify_record(path, model(), test.x, test.y, corruptions=Corruptions(FEW, others))


def test_refuses_published_images_of_another_test_set():
    everything = data()
    given = Corruptions(FEW, published(everything.test))
    other = Split(everything.test.x, (everything.test.y + 1) % 3)
    with pytest.raises(EquipoiseError, match=r"the published corruptions are not of the test set of squares"):
        evaluate_dataset(model(), replace(everything, test=other), [], target="m", corruptions=given)


@pytest.mark.unchecked
def test_refuses_what_is_no_image_and_damaged_records(tmp_path):
    x, y = torch.rand(9, 4), torch.arange(9) % 3
    features = Dataset("features", Split(x, y), Split(x, y), ("a", "b", "c"), "0" * 64)
    with pytest.raises(EquipoiseError, match=r"corruptions need images .* got shape \(9, 4\)"):
        evaluate_dataset(nn.Linear(4, 3), features, [], target="m", corruptions=Corruptions(FEW))
    with pytest.raises(EquipoiseError, match="unknown corruption 'snow'"):
        Corruptions(("snow",))
    record = to_json(evaluate_dataset(model(), data(), [], target="m", corruptions=Corruptions(FEW)))
    record["corruptions"][1]["correct"] = [True]
    with pytest.raises(EquipoiseError, match=r"is damaged: \w+ lacks an outcome for every sample"):
        from_json(record)
    record["corruptions"] = 3
    with pytest.raises(EquipoiseError, match=r"is damaged: corruptions: expected list, got integer"):
        from_json(record)


def test_what_an_evaluation_is_of_says_which():
    from equipoise.results.provenance import provenance

    origin = provenance(0, torch.device("cpu"), "")
    without = evaluation_key(model(), data(), [], origin, target="m")
    of_some = evaluation_key(model(), data(), [], origin, target="m", corruptions=Corruptions(("fog",)))
    assert "corruptions" not in without and of_some == without | {"corruptions": {"fog": ""}}
