"""Whether `verify_record` notices every changed field, with the digest made to fit, and refuses damaged records."""

import copy
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import Shard, Verification, evaluate_dataset, suite, verify_record
from equipoise.models import MonteCarloDropout
from equipoise.results.records import ResultWarning, digest, from_json, load

CLASSES, N = 4, 24
X = torch.rand(2 * N, 1, 4, 4, generator=torch.Generator().manual_seed(1))


def net() -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, CLASSES))
    weight = 4 * (torch.rand(CLASSES, 16, generator=torch.Generator().manual_seed(0)) - 0.5)
    with torch.no_grad():
        model[1].weight.copy_(weight)
        model[1].bias.copy_(-weight.mean(1) * 8)
    return model.eval()


def labels() -> torch.Tensor:
    """The classes that the model predicts, but for every sixth sample."""
    with torch.no_grad():
        y = net()(X).argmax(1)
    y[::6] = (y[::6] + 1) % CLASSES
    return y


Y = labels()
DATA = Dataset("noise", Split(X[:N], Y[:N]), Split(X[N:], Y[N:]), tuple("abcd"), sha256="5" * 64)
ATTACKS = suite(["apgd-ce5", "square30"], [0.06])


@pytest.fixture(scope="module")
def honest(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("honest") / "r.json"
    record = evaluate_dataset(net(), DATA, ATTACKS, target="net", examples=0, batch_size=9, out=out, images=True)
    assert {None, "clean", "apgd-ce5"} <= set(record.results[1].winner)  # each case of a sample is there
    assert 0 < record.results[-1].accuracy < record.results[0].accuracy < 1
    return out


def changed(honest: Path, tmp_path: Path, change: Callable[[dict], object]) -> Path:
    """The record with a change, its digest and its figures made to fit."""
    data = json.loads(honest.read_text())
    change(data)
    try:
        record = from_json(data)
        data["digest"] = digest(record)  # pyright: ignore[reportArgumentType]
    except EquipoiseError:
        pass  # so damaged that it has none
    (tmp_path / "r.json").write_text(json.dumps(data))
    (tmp_path / "r.images.npz").write_bytes(honest.with_name("r.images.npz").read_bytes())
    return tmp_path / "r.json"


def verified(path: Path) -> Verification:
    return verify_record(path, net(), DATA.test.x, DATA.test.y)


def test_an_honest_record_holds(honest):
    found = verified(honest)
    assert found.mismatches == [] and found.unchecked == 0 and found.claims > N


def row(data: dict, state: str) -> int:
    """A sample that is `right`, `wrong` without an attack, or `fooled`."""
    winners = data["results"][1]["winner"]
    return next(i for i, w in enumerate(winners) if {None: "right", "clean": "wrong"}.get(w, "fooled") == state)


def at(field: str, state: str, value: object, entry: int = 1):
    def change(data: dict) -> None:
        data["results"][entry][field][row(data, state)] = value

    return change


def put(*path: object, to: object):
    def change(data: dict) -> None:
        *way, last = path
        for key in way:
            data = data[key]  # pyright: ignore[reportArgumentType]
        data[last] = to  # pyright: ignore[reportArgumentType]

    return change


def everywhere(**values: object):
    """Change the ball of all attacks, in entries alone."""

    def change(data: dict) -> None:
        for entry in data["results"][1:]:
            entry.update(values)

    return change


LIES = {
    "eps of one": (put("results", 1, "eps", to=0.1), "its settings are of linf eps 0.06"),
    "eps of all": (everywhere(eps=0.1), "its settings are of linf eps 0.06"),
    "norm of all": (everywhere(norm="l2"), "its settings are of linf eps 0.06"),
    "eps in settings": (put("results", 1, "settings", "geometry", "eps", to=0.3), "its settings are of linf eps 0.3"),
    "box": (put("results", 1, "settings", "geometry", "box", to={"low": -5, "high": 5}), "2 different boxes"),
    "an attack removed": (lambda d: d["results"].pop(1), "its results are"),
    "an attack added": (lambda d: d["results"].insert(2, d["results"][2]), "holds the images of 2 attacks"),
    "worst case removed": (lambda d: d["results"].pop(3), "its results are"),
    "worst case elsewhere": (lambda d: d["results"].insert(1, d["results"].pop(3)), "its results are"),
    "all attacks removed": (lambda d: d.update(results=d["results"][:1]), "holds the images of 2 attacks"),
    "name": (put("results", 1, "attack", to="autoattack"), "its winner cannot be"),
    "winner": (at("winner", "fooled", "square"), "its winner cannot be, as it is fooled"),
    "winner none": (at("winner", "fooled", None), "its winner cannot be, as it is fooled"),
    "winner of right": (at("winner", "right", "apgd-ce5"), "its winner cannot be, as it is still right"),
    "winner of wrong": (at("winner", "wrong", "apgd-ce5"), "its winner cannot be, as it is wrong without"),
    "winner of clean": (at("winner", "wrong", None, 0), "clean: its winner cannot be"),
    "iteration": (at("iteration", "fooled", None), "its iteration cannot be, as it is fooled"),
    "iteration of right": (at("iteration", "right", 3), "its iteration cannot be, as it is still right"),
    "distance of right": (at("distance", "right", 0.01), "its distance cannot be, as it is still right"),
    "distance of wrong": (at("distance", "wrong", 0.01), "its distance cannot be, as it is wrong without"),
    "distance of fooled": (at("distance", "fooled", 0.01), "recorded is 0.01"),
    "no distance": (at("distance", "fooled", None), "its distance cannot be, as it is fooled"),
    "prediction of wrong": (at("prediction", "wrong", 9), "its prediction cannot be, as it is wrong without"),
    "prediction of fooled": (at("prediction", "fooled", 9), "recorded is 9"),
    "wrong made right": (at("correct", "wrong", True), "its correct cannot be, as it is wrong without"),
    "fooled made right": (at("correct", "fooled", True), "an image is stored although the record says"),
    "right made fooled": (at("correct", "right", False), "a success without a stored image"),
    "queries": (at("queries", "fooled", 0), "its queries cannot be, as it is fooled"),
    "queries of wrong": (at("queries", "wrong", 2), "its queries cannot be, as it is wrong without"),
    "evaluations": (put("results", 1, "evaluations", to=7), "its evaluations cannot be"),
    "evaluations of clean": (put("results", 0, "evaluations", to=7), "clean: its evaluations cannot be"),
    "NaN": (put("results", 1, "nan_gradients", to=-1), "its nan_gradients cannot be"),
    "zero": (put("results", 1, "zero_gradients", to=-1), "its zero_gradients cannot be"),
    "refused": (put("results", 1, "settings", "refused", to=1), "its warnings are"),
    "worst correct": (at("correct", "right", False, 3), "not the worst of the attacks above it, in its correct"),
    "worst distance": (at("distance", "fooled", 1e-4, 3), "not the worst of the attacks above it, in its distance"),
    "worst winner": (at("winner", "fooled", "x", 3), "not the worst of the attacks above it, in its winner"),
    "worst prediction": (at("prediction", "fooled", 7, 3), "not the worst of the attacks above it, in its prediction"),
    "worst queries": (at("queries", "right", 7, 3), "not the worst of the attacks above it, in its queries"),
    "worst attacks": (put("results", 3, "settings", to={}), "not the worst of the attacks above it, in its settings"),
    "accuracy": (put("results", 1, "accuracy", to=0.9), "n, accuracy and interval are"),
    "warnings": (put("warnings", to=["all is well"]), "its warnings are"),
    "parameters": (put("model", "parameters", to=1), "the model has 68 parameters, not 1"),
    "images": (put("images", "sha256", to="0"), "r.images.npz was changed"),
}


@pytest.mark.parametrize("lie", LIES)
def test_every_change_is_noticed_although_the_digest_fits(lie, honest, tmp_path):
    change, message = LIES[lie]
    found = verified(changed(honest, tmp_path, change)).mismatches
    assert any(message in mismatch for mismatch in found), found
    assert not any("digest" in mismatch for mismatch in found)


def test_the_digest_covers_the_seed_but_not_where_it_ran(honest):
    record = load(honest)
    other = replace(record, provenance=replace(record.provenance, seed=9))
    elsewhere = replace(record, provenance=replace(record.provenance, device="x", date="y", command="z"))
    assert digest(other) != digest(record) == digest(elsewhere)


def test_a_flag_that_follows_from_the_results_may_not_be_removed(honest, tmp_path, monkeypatch):
    flag = ResultWarning("black box beats white box", "1 of 24", "look")
    monkeypatch.setattr(sys.modules["equipoise.evaluation.consistency"], "check_results", lambda results: [flag])
    assert verified(honest).mismatches == ["the flag 'black box beats white box' is missing: 1 of 24."]


DAMAGES = {
    "n text": (put("data", "n", to="x"), "r.json is damaged: data.n is not the number of samples (24)"),
    "n gone": (lambda d: d["data"].pop("n"), "or data.sha256 is no text"),
    "n": (put("data", "n", to=23), "or data.sha256 is no text"),
    "sha gone": (lambda d: d["data"].pop("sha256"), "or data.sha256 is no text"),
    "data": (put("data", to=None), "r.json is damaged: data: expected table, got null."),
    "model": (put("model", to=None), "model: expected table, got null"),
    "results": (put("results", to=[]), "it has no results"),
    "clean removed": (lambda d: d["results"].pop(0), "its first result, and no other"),
    "correct": (
        put("results", 1, "correct", to=["yes"] * N),
        "results[1].correct[0]: expected true or false, got text",
    ),
    "correct null": (put("results", 1, "correct", to=None), "results[1].correct: expected list, got null"),
    "correct short": (
        lambda d: d["results"][1]["correct"].pop(),
        "results[1]: distance of apgd-ce5 is not of every sample",
    ),
    "distance": (at("distance", "fooled", "a"), "expected number or null, got text"),
    "distance none": (put("results", 1, "distance", to=[]), "result 2 (apgd-ce5) lacks distance"),
    "winner": (at("winner", "right", 3), "expected text or null, got integer"),
    "winner none": (put("results", 0, "winner", to=[]), "result 1 (clean) lacks winner"),
    "prediction": (at("prediction", "right", 3.5), "expected integer, got number"),
    "prediction short": (lambda d: d["results"][1]["prediction"].pop(), "prediction of apgd-ce5 is not of every"),
    "queries": (at("queries", "right", None), "expected integer, got null"),
    "eps text": (put("results", 1, "eps", to="0.1"), "results[1].eps: expected number, got text"),
    "eps null": (put("results", 1, "eps", to=None), "results[1].eps: expected number, got null"),
    "eps NaN": (put("results", 1, "eps", to=float("nan")), "results[1].eps: expected number >= 0"),
    "eps negative": (put("results", 1, "eps", to=-1), "results[1].eps: expected number >= 0"),
    "settings": (put("results", 1, "settings", to="x"), "results[1].settings: expected table, got text"),
    "geometry": (put("results", 1, "settings", "geometry", to="x"), "names no ball and box"),
    "box": (put("results", 1, "settings", "geometry", "box", to={"low": 3, "high": 1}), "names no ball and box"),
    "index big": (put("index", to=list(range(1000, 1000 + N))), "its index is not one increasing place"),
    "index text": (put("index", to=["a"] * N), "index[0]: expected integer, got text"),
    "index permuted": (put("index", to=list(range(N))[::-1]), "its index is not one increasing place"),
    "index short": (put("index", to=[0]), "its index is not one increasing place"),
    "images path": (put("images", "file", to="/etc/passwd"), "its images need the name of a file beside it"),
    "images no sha": (lambda d: d["images"].pop("sha256"), "its images need"),
    "images no file": (lambda d: d["images"].pop("file"), "its images need"),
    "images nameless": (put("images", "file", to=""), "its images need the name of a file beside it"),
    "images text": (put("images", to="x"), "images: expected table, got text"),
    "command": (put("provenance", "command", to=None), "provenance.command: expected text, got null"),
    "provenance": (put("provenance", to=None), "provenance: expected table, got null"),
}


@pytest.mark.unchecked
@pytest.mark.parametrize("damage", DAMAGES)
def test_refuses_damaged_records_by_a_sentence(damage, honest, tmp_path):
    change, message = DAMAGES[damage]
    with pytest.raises(EquipoiseError) as refused:
        verified(changed(honest, tmp_path, change))
    assert message in str(refused.value) and "\n" not in str(refused.value)


def arrays(honest: Path) -> dict[str, np.ndarray]:
    with np.load(honest.with_name("r.images.npz")) as stored:
        return dict(stored)


IMAGES = {
    "key missing": (lambda a: a.pop("0.x"), "has not both rows and images of attack 0"),
    "attack missing": (lambda a: (a.pop("0.x"), a.pop("0.rows")), "has not both rows and images of attack 0"),
    "rows as int32": (lambda a: a.update({"0.rows": a["0.rows"].astype(np.int32)}), "rows of attack 0 are not incr"),
    "rows reversed": (lambda a: a.update({"0.rows": a["0.rows"][::-1]}), "rows of attack 0 are not increasing"),
    "rows negative": (lambda a: a.update({"0.rows": a["0.rows"] - 99}), "rows of attack 0 are not increasing"),
    "rows beyond": (lambda a: a.update({"0.rows": a["0.rows"] + 99}), "or of samples that are not among the 24"),
    "x as integers": (lambda a: a.update({"0.x": a["0.x"].astype(np.int64)}), "images of attack 0 are int64"),
    "x short": (lambda a: a.update({"0.x": a["0.x"][1:]}), "images of attack 0 are float32 of shape"),
    "x of other shape": (lambda a: a.update({"0.x": a["0.x"][..., 1:]}), "holds images of shape (1, 4, 3)"),
}


@pytest.mark.parametrize("damage", IMAGES)
def test_refuses_damaged_images_by_a_sentence(damage, honest, tmp_path):
    change, message = IMAGES[damage]
    path, stored = changed(honest, tmp_path, lambda d: None), arrays(honest)
    change(stored)
    np.savez(tmp_path / "r.images.npz", **stored)  # pyright: ignore[reportArgumentType]
    with pytest.raises(EquipoiseError) as refused:
        verified(path)
    assert message in str(refused.value)


@pytest.mark.parametrize("content", ["empty", "array", "text"])
def test_refuses_files_that_hold_no_images(content, honest, tmp_path):
    path, file = changed(honest, tmp_path, lambda d: None), tmp_path / "r.images.npz"
    file.write_bytes(b"" if content == "empty" else b"hello")
    if content == "array":
        with file.open("wb") as opened:
            np.save(opened, np.zeros(3))
    with pytest.raises(EquipoiseError, match=r"cannot read the stored images .*r.images.npz"):
        verified(path)


def test_the_model_of_the_caller_stays_as_it_is(tmp_path):
    model = net().double().train()
    data = replace(DATA, train=Split(X[:N].double(), Y[:N]), test=Split(X[N:].double(), Y[N:]))
    evaluate_dataset(model, data, ATTACKS, target="net", examples=0, out=tmp_path / "r.json", images=True)
    before = copy.deepcopy(model.state_dict())
    assert verify_record(tmp_path / "r.json", model, DATA.test.x, DATA.test.y).mismatches == []
    assert model.training and all(value.dtype == torch.float64 for value in model.state_dict().values())
    assert all(value.equal(before[name]) for name, value in model.state_dict().items())


def test_a_shard_holds_on_its_samples(tmp_path):
    record = evaluate_dataset(
        net(),
        DATA,
        ATTACKS,
        target="n",
        examples=0,
        batch_size=5,
        out=tmp_path / "r.json",
        images=True,
        shard=Shard(2, 2),
    )
    rows = torch.tensor(record.index)
    assert verify_record(tmp_path / "r.json", net(), DATA.test.x[rows], DATA.test.y[rows]).mismatches == []


def test_a_model_that_says_something_else_at_every_call_is_only_checked_for_consistency(honest, tmp_path):
    noisy = net()
    noisy.register_forward_hook(lambda module, args, logits: logits + 0.1 * torch.randn_like(logits))
    with pytest.raises(EquipoiseError, match=r"r.json is consistent, but it is about a randomised model"):
        verify_record(honest, noisy, DATA.test.x, DATA.test.y)
    path = changed(honest, tmp_path, at("queries", "fooled", 0))
    found = verify_record(path, noisy, DATA.test.x, DATA.test.y)
    assert found.claims == 0 and any("queries" in mismatch for mismatch in found.mismatches)


def test_attacks_in_any_order_keep_their_images(tmp_path):
    """Results are grouped by ball; so are the images."""
    first, second = suite(["pgd5"], [0.06, 0.1])
    mixed = [first, second, ("fgsm", suite(["fgsm"], [0.06])[0][1])]
    record = evaluate_dataset(net(), DATA, mixed, target="net", examples=0, out=tmp_path / "r.json", images=True)
    assert [(r.attack, r.eps) for r in record.results[1:]][:2] == [("pgd5", 0.06), ("fgsm", 0.06)]
    assert verify_record(tmp_path / "r.json", net(), DATA.test.x, DATA.test.y).mismatches == []


def test_a_model_drawn_from_the_seed_is_inferred_again(tmp_path):
    """Monte Carlo dropout: its record holds, as a whole and as a shard, and with another seed it does not."""
    flatten, linear = net()
    model = MonteCarloDropout(nn.Sequential(flatten, nn.Dropout(0.2), linear).eval(), 2)
    attacks = suite(["pgd5"], [0.2])
    for shard in (Shard(1, 1), Shard(2, 2)):
        out = tmp_path / f"{shard.number}.json"
        record = evaluate_dataset(
            model, DATA, attacks, target="net", examples=0, batch_size=5, out=out, images=True, shard=shard, seed=3
        )
        rows = torch.tensor(record.index)
        found = verify_record(out, model, DATA.test.x[rows], DATA.test.y[rows])
        assert found.mismatches == [] and found.claims > len(rows)
        assert any(flag.name == "randomised model" for flag in record.flags)
    data = json.loads(out.read_text())
    data["provenance"]["seed"] = 4
    data["digest"] = digest(from_json(data))
    out.write_text(json.dumps(data))
    assert len(verify_record(out, model, DATA.test.x[rows], DATA.test.y[rows]).mismatches) > 0


@pytest.mark.parametrize(
    ("command", "target"),
    [
        ("equipoise evaluate net:make --eps 8/255", "net:make"),
        ('equipoise evaluate "net', None),
        ("equipoise evaluate --help", None),
        ("equipoise evaluate net:make --bogus 3", None),
        ("equipoise train udp", None),
        ("", None),
    ],
)
def test_a_command_that_names_no_options_is_left_aside(command, target, honest, capsys):
    from equipoise.cli.verifying import _request_of

    record = load(honest)
    typed = _request_of(replace(record, provenance=replace(record.provenance, command=command)), honest)
    assert (typed and typed.target) == target and capsys.readouterr() == ("", "")
