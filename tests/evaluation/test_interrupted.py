"""An evaluation that is stopped within a block goes on from there; a finished record is not replaced unasked."""

import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from equipoise.attacks import Chain, apgd, fab, pgd, square
from equipoise.core.errors import EquipoiseError
from equipoise.core.locks import locked
from equipoise.data import Dataset, Split
from equipoise.evaluation import evaluate_dataset, suite
from equipoise.results.records import Evaluation, digest, load, save

pytestmark = pytest.mark.unchecked

EPS = 0.05
CALLS: Counter[str] = Counter()


@pytest.fixture(autouse=True, scope="module")
def stepwise() -> Iterator[None]:
    """PyTorch reports every step, at which these tests stop; the kernels take many at once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EQUIPOISE_NATIVE", "0")
        yield


@dataclass(frozen=True)
class Counted:
    """An attack that counts how often it is called."""

    name: str
    attack: Any

    @property
    def geometry(self) -> Any:
        return self.attack.geometry

    def settings(self) -> dict[str, Any]:
        return self.attack.settings()

    def __call__(self, *args: Any, **options: Any) -> Any:
        CALLS[self.name] += 1
        return self.attack(*args, **options)


def problem() -> tuple[nn.Module, Dataset]:
    """Three classes of which some samples lie near a border, and a layer that draws from the global generator."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.rand(3, 9, generator=g) - 0.5)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = torch.rand(24, 1, 3, 3, generator=g)
    split = Split(x, net(x).argmax(1))
    return net.eval(), Dataset("toy", split, split, ("a", "b", "c"), sha256="5" * 64)


def attacks() -> list[tuple[str, Any]]:
    parts = {
        "apgd": apgd(EPS, steps=4),
        "fab": fab(EPS, steps=3),
        "square": square(EPS, queries=20),
    }
    chain = Chain(tuple((name, Counted(name, attack)) for name, attack in parts.items()))
    return [("first", Counted("first", pgd(EPS, steps=3))), ("chain", chain)]


def run(out: Path, **options: Any) -> Evaluation:
    net, data = problem()
    usual: dict[str, Any] = {"target": "net", "examples": 0, "batch_size": 12, "seed": 3, "images": True}
    given = options.pop("attacks", None) or attacks()
    return evaluate_dataset(net, data, given, out=out, **usual | options)


def stop_at(words: str, error: type[BaseException] = KeyboardInterrupt) -> Callable[[str, int, int], None]:
    def progress(what: str, done: int, total: int) -> None:
        if words in what:
            raise error

    return progress


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Evaluation:
    return run(tmp_path_factory.mktemp("whole") / "aa.json")


STOPS = {
    "first linf 0.05: step 2": ("nothing was finished yet", {"first": 3, "apgd": 2, "fab": 2, "square": 2}),
    "apgd, step 1": (
        "1 finished attack on unfinished blocks is kept",
        {"first": 2, "apgd": 3, "fab": 2, "square": 2},
    ),
    "square, query 7": (
        "3 finished attacks on unfinished blocks are kept",
        {"first": 2, "apgd": 2, "fab": 2, "square": 3},
    ),
}


@pytest.mark.parametrize("where", STOPS)
def test_what_is_finished_within_a_block_is_kept(tmp_path: Path, whole: Evaluation, where: str) -> None:
    told, calls = STOPS[where]
    CALLS.clear()
    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path / "aa.json", progress=stop_at(where))
    assert stopped.value.__notes__ == [told] and not (tmp_path / "aa.json").exists()
    again = run(tmp_path / "aa.json", resume=True)
    assert calls == CALLS, "what had been finished is not computed again"
    assert digest(again) == digest(whole) and again.images["sha256"] == whole.images["sha256"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["aa.images.npz", "aa.json"]


def test_a_crash_keeps_as_much_and_blocks_are_told_apart(tmp_path: Path, whole: Evaluation) -> None:
    seen: list[str] = []

    def progress(what: str, done: int, total: int) -> None:
        seen.append(what)
        if sum("fab, step 1 of 3" in one for one in seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt) as stopped:
        run(tmp_path / "aa.json", progress=progress)
    assert stopped.value.__notes__ == ["1 of 2 blocks and 2 finished attacks on unfinished blocks are kept"]
    with pytest.raises(MemoryError):
        run(tmp_path / "aa.json", resume=True, progress=stop_at("square, query 3", MemoryError))
    CALLS.clear()
    assert digest(run(tmp_path / "aa.json", resume=True)) == digest(whole)
    assert CALLS == {"square": 1}


@pytest.mark.parametrize("harm", ["cut", "bit", "moved", "other seed"])
def test_a_damaged_part_is_computed_again(tmp_path: Path, whole: Evaluation, harm: str) -> None:
    out = tmp_path / "aa.json"
    with pytest.raises(KeyboardInterrupt):
        run(out, progress=stop_at("square, query 7"))
    part = Path(f"{out}.partial") / "block-000000.1.0.pt"
    content = bytearray(part.read_bytes())
    if harm == "cut":
        part.write_bytes(content[:-100])
    elif harm == "bit":
        content[-200] ^= 1
        part.write_bytes(content)
    elif harm == "moved":
        shutil.copy(part.with_name("block-000000.1.1.pt"), part)
    else:
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "other.json", seed=4, progress=stop_at("square, query 7"))
        shutil.copy(tmp_path / "other.json.partial" / part.name, part)
    CALLS.clear()
    assert digest(run(out, resume=True)) == digest(whole)
    assert CALLS == {"first": 1, "apgd": 2, "fab": 1, "square": 2}


def test_progress_rises_within_an_attack_and_names_its_part(tmp_path: Path) -> None:
    seen: list[tuple[str, float]] = []
    run(tmp_path / "aa.json", progress=lambda what, done, total: seen.append((what, done / total)))
    shares = [share for _, share in seen]
    assert shares == sorted(shares) and shares[-1] == 1
    assert {"first linf 0.05: step 1 of 3", "chain linf 0.05: square, query 19 of 20"} <= {what for what, _ in seen}
    inside = [share for what, share in seen if what.startswith("chain linf 0.05: ")]
    assert len({share for share in inside if share < 0.5}) > 4, "it moves while a composite attack runs"


def test_time_of_all_sittings_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr("equipoise.evaluation.journal.time.monotonic", lambda: now[0])

    def progress(what: str, done: int, total: int) -> None:
        now[0] += 1000.0 * ("apgd, step 1" in what)
        if "square, query 7" in what:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "aa.json", progress=progress)
    again = run(tmp_path / "aa.json", resume=True)
    assert 1000 <= again.results[2].seconds < 1100 and again.results[1].seconds < 100


def test_a_finished_record_answers_the_same_request(tmp_path: Path, whole: Evaluation) -> None:
    out = tmp_path / "aa.json"
    run(out)
    content = out.read_bytes()
    CALLS.clear()
    for options in ({}, {"resume": True}, {"batch_size": 24}):
        assert run(out, **options) == load(out)
    assert not CALLS and out.read_bytes() == content and digest(load(out)) == digest(whole)


OTHER = {
    "seed": ({"seed": 4}, r"seed: 3 before, 4 now"),
    "target": ({"target": "it"}, r"target: net before, it now"),
    "samples": ({"examples": 12}, r"data, n: 24 before, 12 now"),
    "images": ({"images": False}, r"images: True before, False now"),
    "steps": (
        {"attacks": [("first", pgd(EPS, steps=2)), attacks()[1]]},
        r"attacks, first linf 0\.05, steps, most: 3 before, 2 now",
    ),
    "radius": ({"attacks": suite(["pgd2"], [0.1])}, r"pgd2 linf 0\.1: absent before, present now"),
}


@pytest.mark.parametrize("what", OTHER)
def test_another_request_does_not_replace_a_record(tmp_path: Path, what: str) -> None:
    out = tmp_path / "aa.json"
    run(out)
    content = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    options, message = OTHER[what]
    for resume in (False, True):
        with pytest.raises(EquipoiseError, match=rf"aa.json already holds another result \(.*{message}.*--overwrite"):
            run(out, resume=resume, **options)
    assert content == {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    assert digest(run(out, overwrite=True, **options)) == digest(load(out))
    assert out.read_bytes() != content["aa.json"]


def test_files_that_are_no_records_are_not_replaced_either(tmp_path: Path) -> None:
    out = tmp_path / "aa.json"
    out.write_text("my notes")
    with pytest.raises(EquipoiseError, match=r"aa.json exists and is not a readable record"):
        run(out)
    (tmp_path / "bb.images.npz").write_text("mine")
    with pytest.raises(EquipoiseError, match=r"bb.images.npz, where the adversarial images would be written"):
        run(tmp_path / "bb.json")
    assert out.read_text() == "my notes" and (tmp_path / "bb.images.npz").read_text() == "mine"


def test_overwriting_that_was_stopped_is_continued_by_resume_alone(tmp_path: Path) -> None:
    out = tmp_path / "aa.json"
    old = run(out, seed=9)
    with pytest.raises(KeyboardInterrupt):
        run(out, overwrite=True, progress=stop_at("square, query 7"))
    assert digest(load(out)) == digest(old), "the old record stays until the new one is finished"
    CALLS.clear()
    assert run(out, resume=True).provenance.seed == 3
    assert CALLS["first"] == 1


def test_overwrite_starts_anew_where_something_else_was_left_unfinished(tmp_path: Path, whole: Evaluation) -> None:
    out = tmp_path / "aa.json"
    with pytest.raises(KeyboardInterrupt):
        run(out, seed=9, progress=stop_at("square, query 7"))
    with pytest.raises(EquipoiseError, match="an unfinished evaluation lies in"):
        run(out)
    assert digest(run(out, overwrite=True)) == digest(whole)


def test_two_evaluations_do_not_write_one_record(tmp_path: Path) -> None:
    out = tmp_path / "aa.json"
    with locked(out), pytest.raises(EquipoiseError, match=r"aa.json is in use by process \d+"):
        run(out)
    run(out)


def test_a_record_of_a_run_is_not_taken_for_an_evaluation(tmp_path: Path) -> None:
    out = tmp_path / "aa.json"
    record = run(out)
    other = replace(record, results=[replace(r, settings={}) for r in record.results])
    save(out, other)
    with pytest.raises(EquipoiseError, match="already holds another result"):
        run(out)
