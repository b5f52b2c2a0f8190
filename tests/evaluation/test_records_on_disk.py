"""Evaluations that are stopped, divided and checked: resume, shards, images, audit; and attacks in a row."""

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.attacks import Chain, apgd, apgd_t, autoattack, cascade, fab, square
from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import (
    Shard,
    evaluate,
    evaluate_batches,
    evaluate_dataset,
    merge,
    read_points,
    suite,
    verify_record,
)
from equipoise.results.records import Evaluation, digest, load, save

pytestmark = pytest.mark.unchecked


def problem(classes: int = 5, seed: int = 0) -> tuple[nn.Module, Dataset]:
    """A small trained net and the data it was trained on."""
    g = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(classes, 1, 6, 6, generator=g)
    y = torch.randint(classes, (260,), generator=g)
    x = (prototypes[y] + 0.25 * torch.randn(260, 1, 6, 6, generator=g)).clamp(0, 1)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(nn.Flatten(), nn.Linear(36, 48), nn.ReLU(), nn.Linear(48, classes))
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(40):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()
    names = tuple(str(c) for c in range(classes))
    data = Dataset("prototypes", Split(x[:180], y[:180]), Split(x[180:], y[180:]), names, sha256="5" * 64)
    return net.eval(), data


def small(eps: float = 0.15, norm: str = "linf", targets: int = 3) -> Chain:
    return Chain(
        (
            ("apgd-ce", apgd(eps, norm, steps=8)),
            ("apgd-t", apgd_t(eps, norm, steps=8, targets=targets)),
            ("fab-t", fab(eps, norm, steps=8, targets=targets)),
            ("square", square(eps, norm, queries=40)),
        )
    )


ATTACKS = [("pgd", suite(["pgd6"], [0.12])[0][1]), ("small", small())]


def run(out: Path, **options) -> Evaluation:
    net, data = problem()
    return evaluate_dataset(
        net, data, ATTACKS, target="net", examples=0, batch_size=16, seed=3, out=out, images=True, **options
    )


class Killed(Exception):
    pass


def stop_after(blocks: int):
    def progress(what: str, done: int, total: int) -> None:
        if what == "clean" and done >= total * blocks / 5:
            raise Killed

    return progress


@pytest.fixture
def whole(tmp_path) -> Path:
    run(tmp_path / "whole.json")
    return tmp_path / "whole.json"


def test_a_killed_evaluation_continues_to_the_same_record(tmp_path, whole):
    out = tmp_path / "aa.json"
    with pytest.raises(Killed):
        run(out, progress=stop_after(3))
    left = sorted(file.name for file in Path(f"{out}.partial").glob("*.json"))
    assert not out.exists() and left == [
        "block-000000.json",
        "block-000001.json",
        "block-000002.json",
        "evaluation.json",
    ]
    seen = []
    again = run(out, resume=True, progress=lambda what, done, total: seen.append((what, done / total)))
    assert seen[0][1] == pytest.approx(3 / 5) and seen[-1][1] == 1  # only two blocks were left to do
    assert digest(again) == digest(load(whole)) == digest(load(out)) and not Path(f"{out}.partial").exists()
    assert again.images["sha256"] == load(whole).images["sha256"]


def test_shards_merge_to_the_record_of_one(tmp_path, whole):
    parts = [tmp_path / f"{i}.json" for i in (1, 2, 3)]
    for i, part in enumerate(parts, 1):
        run(part, shard=Shard(i, 3))
    for order in (parts, parts[::-1]):
        together = merge(order, tmp_path / "together.json")
        assert digest(together) == digest(load(whole))
        assert together.images["sha256"] == load(whole).images["sha256"]
    assert load(parts[0]).results[0].n == 32 and load(parts[0]).data["shard"] == "1/3"


def test_merge_refuses_what_does_not_belong_together(tmp_path, whole):
    one, two = tmp_path / "1.json", tmp_path / "2.json"
    run(one, shard=Shard(1, 2))
    run(two, shard=Shard(2, 2))
    for paths, message in (
        ([], r"nothing to merge"),
        ([whole], r"whole.json is not the record of a shard: expected what evaluate --shard i/n wrote"),
        ([one], r"shards 2 of 2 are missing"),
        ([one, two, two], r"a shard is given twice"),
    ):
        with pytest.raises(EquipoiseError, match=message):
            merge(paths, tmp_path / "out.json")
    other = load(two)
    save(two, replace(other, provenance=replace(other.provenance, seed=9)))
    with pytest.raises(EquipoiseError, match=r"2.json is of another evaluation than .*1.json: other seed"):
        merge([one, two], tmp_path / "out.json")
    for text in ("3/2", "0/2", "2", "a/b"):
        with pytest.raises(EquipoiseError, match=r"expected i/n with i from 1 to n, such as 1/4"):
            Shard.parse(text)
    with pytest.raises(EquipoiseError, match=r"shard 6/6 is empty: the samples make 5 blocks"):
        run(tmp_path / "6.json", shard=Shard(6, 6))


def test_refuses_to_continue_something_else(tmp_path):
    out = tmp_path / "aa.json"
    with pytest.raises(Killed):
        run(out, progress=stop_after(1))
    with pytest.raises(
        EquipoiseError, match=r"an unfinished evaluation lies in .*aa.json.partial: continue it with --re"
    ):
        run(out)
    net, data = problem()
    with pytest.raises(EquipoiseError, match=r"is of another evaluation, with other seed, batch_size: give the same"):
        evaluate_dataset(
            net, data, ATTACKS, target="net", examples=0, batch_size=8, seed=4, out=out, images=True, resume=True
        )
    with torch.no_grad():
        net[1].bias += 1
    with pytest.raises(EquipoiseError, match=r"is of another evaluation, with other model"):
        evaluate_dataset(
            net, data, ATTACKS, target="net", examples=0, batch_size=16, seed=3, out=out, images=True, resume=True
        )
    (tmp_path / "aa.json.partial" / "evaluation.json").write_text("{")
    with pytest.raises(EquipoiseError, match=r"evaluation.json is damaged: remove .* and evaluate anew"):
        run(out, resume=True)
    with pytest.raises(EquipoiseError, match=r"give out: images and unfinished blocks lie beside the record"):
        evaluate_dataset(net, data, ATTACKS, target="net", images=True)


def test_an_honest_record_holds(whole):
    net, data = problem()
    found = verify_record(whole, net, data.test.x, data.test.y)
    record = load(whole)
    stored = sum(
        before and not now
        for r in record.results[1:]
        for before, now in zip(record.results[0].correct, r.correct, strict=True)
    )
    assert found.mismatches == [] and found.unchecked == 0 and found.claims == 80 + stored
    assert 20 < stored < 160


def _change(path: Path, change) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


def _fooled(data: dict) -> int:
    return next(i for i, w in enumerate(data["results"][2]["winner"]) if w not in (None, "clean"))


def _tampered(entry: int, field: str, value):
    def change(data: dict) -> None:
        row = _fooled(data)
        data["results"][entry][field][row] = value(data["results"][entry][field][row])

    return change


@pytest.mark.parametrize(
    "change, message",
    [
        (
            _tampered(2, "prediction", lambda p: (p + 1) % 5),
            r"small, linf eps 0.15, sample \d+: class \d, recorded",
        ),
        (_tampered(2, "distance", lambda d: d / 2), r"sample \d+: distance 0\.\d+, recorded is 0\.0"),
        (_tampered(2, "correct", lambda c: True), r"sample \d+: an image is stored although the record says"),
        (
            _tampered(0, "prediction", lambda p: (p + 1) % 5),
            r"clean, sample \d+: class \d is predicted",
        ),
        (_tampered(0, "correct", lambda c: False), r"clean, sample \d+"),
        (lambda data: data["results"][2].update(accuracy=0.99), r"n, accuracy and interval are .*0.99"),
        (lambda data: data["results"][2]["settings"].update(eps=9), r"the record was changed: its digest is"),
        (_tampered(2, "queries", lambda q: q + 1), r"the record was changed: its digest is"),
        (lambda data: data["images"].update(sha256="0"), r"whole.images.npz was changed: its SHA-256 is"),
        (
            lambda data: data["results"][2]["correct"].__setitem__(_right(data), False),
            r"a success without a stored image",
        ),
    ],
)
def test_a_changed_record_does_not_hold(whole, change, message):
    net, data = problem()
    _change(whole, change)
    found = verify_record(whole, net, data.test.x, data.test.y)
    assert any(re.search(message, m) for m in found.mismatches), found.mismatches


def _right(data: dict) -> int:
    return data["results"][2]["correct"].index(True)


def test_a_changed_image_does_not_hold(whole):
    net, data = problem()
    record = load(whole)
    images = whole.with_name(record.images["file"])
    points = read_points(images)
    points[1]["x"][0] = data.test.x[points[1]["rows"][0]].numpy()
    arrays = {f"{i}.{name}": array for i, kept in enumerate(points) for name, array in kept.items()}
    np.savez(images, **arrays)
    found = verify_record(whole, net, data.test.x, data.test.y)
    assert any("its image does not fool the model, the model is right there" in m for m in found.mismatches)
    images.unlink()
    with pytest.raises(EquipoiseError, match=r"says that its images are in whole.images.npz, which is not beside it"):
        verify_record(whole, net, data.test.x, data.test.y)


def test_audit_refuses_other_weights_and_samples(whole):
    net, data = problem()
    with pytest.raises(EquipoiseError, match=r"is about 80 samples, here are 79: give the same data and shard"):
        verify_record(whole, net, data.test.x[1:], data.test.y[1:])
    with torch.no_grad():
        net[1].bias[0] += 1
    with pytest.raises(EquipoiseError, match=r"these are not the weights that .*whole.json is about"):
        verify_record(whole, net, data.test.x, data.test.y)


def test_without_images_successes_are_counted_as_unchecked(tmp_path):
    net, data = problem()
    evaluate_dataset(net, data, ATTACKS, target="net", examples=0, out=tmp_path / "a.json")
    found = verify_record(tmp_path / "a.json", net, data.test.x, data.test.y)
    assert found.mismatches == [] and found.claims == 80 and found.unchecked > 20


def test_a_row_says_who_won_when_and_at_what_cost():
    net, data = problem()
    x, y = data.test.x, data.test.y.clone()
    y[::9] = (y[::9] + 1) % 5
    clean, result = evaluate(net, x, y, [("small", small())], batch_size=80)
    alone = evaluate(net, x, y, [("apgd-ce", apgd(0.15, steps=8))], batch_size=80)[1]
    for row in range(80):
        if not clean.correct[row]:
            assert (result.winner[row], result.iteration[row], result.queries[row]) == ("clean", 0, 1)
        elif not alone.correct[row]:
            assert result.winner[row] == "apgd-ce" and result.iteration[row] == alone.iteration[row] <= 8
            assert result.queries[row] == alone.queries[row]
        else:
            assert result.winner[row] != "apgd-ce" and result.queries[row] > alone.queries[row]
    assert {"apgd-ce", "clean", None} <= set(result.winner) and result.evaluations == sum(result.queries) - sum(
        q for q, right in zip(result.queries, clean.correct, strict=True) if not right
    ) - sum(clean.correct)
    assert [p["name"] for p in result.settings["parts"]] == ["apgd-ce", "apgd-t", "fab-t", "square"]


def test_batches_that_arrive_one_by_one():
    net, data = problem()
    x, y = data.test.x, data.test.y
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=32)
    streamed, whole = (
        evaluate_batches(net, loader, ATTACKS, seed=1),
        evaluate(net, x, y, ATTACKS, seed=1, batch_size=32),
    )
    for a, b in zip(streamed, whole, strict=True):
        assert replace(a, seconds=0) == replace(b, seconds=0)


def test_refuses_batches_that_are_none():
    net, data = problem()
    with pytest.raises(EquipoiseError, match=r"there is no batch to evaluate on: the loader is empty"):
        evaluate_batches(net, [], ATTACKS)
    with pytest.raises(EquipoiseError, match=r"a batch is a Tensor: expected a pair of tensors \(x, y\)"):
        evaluate_batches(net, [data.test.x], ATTACKS)


def _small_version(chain: Chain) -> Chain:
    """The chain with budgets cut to size."""

    def cut(attack):
        budget = {"queries": 60} if hasattr(attack, "queries") else {"steps": 10}
        return replace(attack, **budget)

    return Chain(tuple((name, cut(attack)) for name, attack in chain.parts))


@pytest.mark.parametrize("seed", range(6))
def test_the_cascade_fools_whatever_the_standard_sequence_does(seed):
    net, data = problem(seed=seed)
    norm, eps = [("linf", 0.12), ("l2", 0.7)][seed % 2]
    x, y = data.test.x, data.test.y
    right = net(x).argmax(1) == y
    standard, ours = (_small_version(make(eps, norm))(net, x[right], y[right]) for make in (autoattack, cascade))
    assert (ours.success | ~standard.success).all() and standard.success.any() and not ours.success.all()


def test_fewer_classes_are_said_in_the_record():
    net, data = problem(classes=3)
    (_, result) = evaluate(net, data.test.x, data.test.y, [("small", small(targets=9))])
    assert result.settings["notes"] == [
        "apgd-t: 2 targets instead of 9, the model has 3 classes",
        "apgd-t: margin instead of targeted dlr, the model has 3 classes",
        "fab-t: 2 targets instead of 9, the model has 3 classes",
    ]
    assert 0 < result.accuracy < 1
    two, data = problem(classes=2)
    assert (
        evaluate(two, data.test.x, data.test.y, [("small", small(targets=9))])[1]
        .settings["notes"][0]
        .startswith("apgd-t: 1 targets instead of 9")
    )


def test_refuses_chains_that_make_no_sense():
    with pytest.raises(EquipoiseError, match=r"a chain of no attacks proves nothing"):
        Chain(())
    with pytest.raises(EquipoiseError, match=r"the attacks of a chain must share one ball, these have 2"):
        Chain((("a", apgd(0.1)), ("b", apgd(0.2))))
    with pytest.raises(EquipoiseError, match=r"unknown version 'standart'"):
        autoattack(0.1, version="standart")
    net, data = problem()
    with pytest.raises(EquipoiseError, match=r"needs the labels y: give the true classes"):
        small()(net, data.test.x)
    with pytest.raises(EquipoiseError, match=r"steps: not for autoattack, whose budget is the published one"):
        suite(["autoattack"], [0.1], steps=5)
    with pytest.raises(EquipoiseError, match=r"attack 'autoattack5': autoattack has a budget of its own; leave"):
        suite(["autoattack5"], [0.1])


def test_names_with_published_budgets():
    named = {
        name: attack.settings() for name, attack in suite(["apgd-ce20", "square300", "fab-t7", "autoattack"], [0.1])
    }
    assert named["apgd-ce20"]["steps"]["most"] == 20 and named["square300"]["queries"] == 300
    assert named["fab-t7"]["steps"] == 7
    parts = named["autoattack"]["parts"]
    assert [p["name"] for p in parts] == ["apgd-ce", "apgd-t", "fab-t", "square"]
    assert (parts[0]["steps"]["most"], parts[1]["num_targets"], parts[2]["targets"], parts[3]["queries"]) == (
        100,
        9,
        9,
        5000,
    )
    sparse = autoattack(8.0, "l1").settings()["parts"]
    assert (sparse[0]["restarts"], sparse[1]["num_targets"], sparse[2]["targets"]) == (5, 5, 9)
    random = autoattack(0.1, version="rand").settings()["parts"]
    assert [(p["name"], p["eot_samples"], p["resample"]) for p in random] == [
        ("apgd-ce", 20, True),
        ("apgd-dlr", 20, True),
    ]
    plus = autoattack(0.1, version="plus").settings()["parts"]
    assert [(p["name"], p["restarts"]) for p in plus] == [
        ("apgd-ce", 5),
        ("apgd-dlr", 5),
        ("fab-t", 5),
        ("square", 1),
        ("apgd-t", 1),
    ]
