"""What lies on disk while an evaluation runs and when its parts are put together, damaged, mixed up or missing."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from equipoise.core.errors import EquipoiseError
from equipoise.data import Dataset, Split
from equipoise.evaluation import Shard, evaluate_dataset, merge, runs, suite
from equipoise.evaluation.interop import robustbench
from equipoise.evaluation.journal import Journal
from equipoise.results.records import AttackRecord, Evaluation, Provenance, ResultWarning, digest, load, save

pytestmark = pytest.mark.unchecked

BLOCKS = 4


def problem() -> tuple[nn.Module, Dataset]:
    """A linear model and samples that it classifies without an error, some of them near a border."""
    g = torch.Generator().manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(9, 3))
    with torch.no_grad():
        net[1].weight.copy_(torch.rand(3, 9, generator=g) - 0.5)
        net[1].bias.copy_(-net[1].weight.sum(1) / 2)
    x = torch.rand(3 * BLOCKS, 1, 3, 3, generator=g)
    split = Split(x, net(x).argmax(1))
    return net.eval(), Dataset("toy", split, split, ("a", "b", "c"), sha256="5" * 64)


def run(out: Path, eps: float = 0.1, **options) -> Evaluation:
    net, data = problem()
    asked = {"target": "net", "examples": 0, "batch_size": 3, "seed": 3, "images": True} | options
    return evaluate_dataset(net, data, suite(["fgsm", "pgd3"], [eps]), out=out, **asked)


class Killed(Exception):
    pass


def test_a_block_in_which_no_attack_succeeded_is_resumed(tmp_path):
    whole = run(tmp_path / "whole.json", eps=1e-6)
    assert whole.results[0].accuracy == whole.results[-1].accuracy == 1
    left_behind(tmp_path / "aa.json", eps=1e-6)
    resumed = run(tmp_path / "aa.json", eps=1e-6, resume=True)
    assert digest(resumed) == digest(whole) and resumed.images["sha256"] == whole.images["sha256"]


def test_images_missing_from_a_block_of_an_earlier_version_are_computed(tmp_path, monkeypatch):
    """Earlier versions saved none for a block in which no attack succeeded."""
    whole = run(tmp_path / "whole.json", eps=1e-6)
    with monkeypatch.context() as earlier:
        write = Journal.write
        earlier.setattr(Journal, "write", lambda journal, n, block: write(journal, n, replace(block, points=[])))
        left_behind(tmp_path / "aa.json", eps=1e-6)
    resumed = run(tmp_path / "aa.json", eps=1e-6, resume=True)
    assert digest(resumed) == digest(whole) and resumed.images["sha256"] == whole.images["sha256"]


@pytest.fixture
def whole(tmp_path) -> Evaluation:
    return run(tmp_path / "whole.json")


@pytest.fixture
def partial(tmp_path) -> Path:
    """The folder of an evaluation that was killed before its last block."""
    return left_behind(tmp_path / "aa.json")


def left_behind(out: Path, **options) -> Path:
    def progress(what: str, done: int, total: int) -> None:
        if what == "clean" and done >= total * (BLOCKS - 1) / BLOCKS:
            raise Killed

    with pytest.raises(Killed):
        run(out, progress=progress, **options)
    return Path(f"{out}.partial")


def computed(monkeypatch) -> list[int]:
    """The first rows of all blocks that are computed from now on."""
    seen, usual = [], runs.evaluate_block

    def watched(*args, index, **options):
        seen.append(int(index[0]))
        return usual(*args, index=index, **options)

    monkeypatch.setattr(runs, "evaluate_block", watched)
    return seen


def edit(file: Path, change) -> None:
    data = json.loads(file.read_text())
    change(data)
    file.write_text(json.dumps(data))


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def one_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(bytes(content))


DAMAGE = {
    "cut": ("json", cut),
    "empty": ("json", lambda f: f.write_bytes(b"")),
    "a list": ("json", lambda f: f.write_text("[]")),
    "other text": ("json", lambda f: f.write_bytes(b"\xff\xfe")),
    "lacks a part": ("json", lambda f: f.write_text("{}")),
    "other outcome": ("json", lambda f: edit(f, lambda d: d["results"][0]["prediction"].__setitem__(0, 2))),
    "unknown field": ("json", lambda f: edit(f, lambda d: d["results"][0].update(strange=1))),
    "images cut": ("npz", cut),
    "images empty": ("npz", lambda f: f.write_bytes(b"")),
    "images missing": ("npz", Path.unlink),
    "images changed": ("npz", one_bit),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_block_is_computed_again(tmp_path, whole, partial, monkeypatch, damage):
    kind, harm = DAMAGE[damage]
    file = partial / f"block-000001.{kind}"
    assert file.is_file()
    harm(file)
    seen = computed(monkeypatch)
    again = run(tmp_path / "aa.json", resume=True)
    assert seen == [3, 9] and digest(again) == digest(whole) and again.images["sha256"] == whole.images["sha256"]


def test_swapped_and_foreign_blocks_are_computed_again(tmp_path, whole, partial, monkeypatch):
    for kind in ("json", "npz"):
        one, two = partial / f"block-000000.{kind}", partial / f"block-000001.{kind}"
        content = one.read_bytes()
        one.write_bytes(two.read_bytes())
        two.write_bytes(content)
    other = left_behind(tmp_path / "other.json", eps=0.02)
    for kind in ("json", "npz"):
        (partial / f"block-000002.{kind}").unlink()
        if (other / f"block-000002.{kind}").is_file():
            shutil.copy(other / f"block-000002.{kind}", partial)
    seen = computed(monkeypatch)
    assert digest(run(tmp_path / "aa.json", resume=True)) == digest(whole) and seen == [0, 3, 6, 9]


def test_blocks_without_a_header_are_of_nobody_knows_what(tmp_path, partial):
    (partial / "evaluation.json").unlink()
    for message, resume in (("continue it with --resume", False), ("evaluation.json is missing, which says", True)):
        with pytest.raises(EquipoiseError, match=message):
            run(tmp_path / "aa.json", resume=resume)
    (partial / "evaluation.json").write_text("[1]")
    with pytest.raises(EquipoiseError, match=r"evaluation.json is damaged: remove .* and evaluate anew"):
        run(tmp_path / "aa.json", resume=True)


def test_a_header_alone_is_no_unfinished_evaluation(tmp_path, whole, partial):
    for file in partial.glob("block-*"):
        file.unlink()
    (partial / "block-000000.npz").write_bytes(b"left behind")
    (partial / "evaluation.json").write_text('{"seed": 9}')
    assert digest(run(tmp_path / "aa.json")) == digest(whole)


def test_what_was_finished_counts_as_done_at_the_start_alone(tmp_path, partial):
    (partial / "block-000001.json").unlink()
    seen = []
    run(tmp_path / "aa.json", resume=True, progress=lambda what, done, total: seen.append(done / total))
    assert seen[0] == 0.5 and seen[-1] == 1
    steps = np.diff(seen)
    assert (steps >= 0).all() and steps.max() < 0.2  # no leap over the block that had been finished


@pytest.fixture
def halves(tmp_path) -> list[Path]:
    paths = [tmp_path / "1.json", tmp_path / "2.json"]
    for i, path in enumerate(paths, 1):
        run(path, shard=Shard(i, 2))
    return paths


def _provenance(**values):
    return lambda r: replace(r, provenance=replace(r.provenance, **values))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda r: replace(r, weights="last"), r"2.json is of another evaluation than .*1.json: other weights"),
        (lambda r: replace(r, model={"sha256": "0"}), r"other model\."),
        (_provenance(versions={"torch": "1.0"}), r"other versions\."),
        (_provenance(threads=77), r"other threads\."),
        (_provenance(device="an abacus"), r"other device\."),
        (lambda r: replace(r, index=[0, *r.index[1:]]), r"sample 0 is in two of the shards"),
        (lambda r: replace(r, index=[99, *r.index[1:]]), r"the shards hold 12 samples, the evaluation has 12: they w"),
        (lambda r: replace(r, index=r.index[1:]), r"2.json is damaged: its index does not hold one position per"),
        (lambda r: replace(r, index=["a", *r.index[1:]]), r"2.json is damaged: index\[0\]: expected integer, got text"),
        (lambda r: replace(r, data={**r.data, "shard": 2}), r"2.json is damaged: its shard is 2; expected i/n, such"),
        (lambda r: replace(r, images={}), r"2.json: made without images, the other shards with: evaluate them alike"),
        (lambda r: replace(r, images={"file": "no.npz"}), r"says that its images are in no.npz, which is not beside"),
        (
            lambda r: replace(r, images={**r.images, "sha256": "0"}),
            r"2.images.npz was changed since .*: its SHA-256",
        ),
    ],
)
def test_merge_refuses_parts_that_do_not_fit(tmp_path, halves, change, message):
    save(halves[1], change(load(halves[1])))
    with pytest.raises(EquipoiseError, match=message):
        merge(halves, tmp_path / "out.json")
    assert not (tmp_path / "out.json").exists()


def test_a_merge_that_was_stopped_before_its_record_is_done_again(tmp_path, halves):
    out, images = tmp_path / "out.json", tmp_path / "out.images.npz"
    merge(halves, out)
    record, pictures = out.read_bytes(), images.read_bytes()
    out.unlink()
    merge(halves, out)
    assert (out.read_bytes(), images.read_bytes()) == (record, pictures)
    out.unlink()
    images.write_bytes(pictures + b"x")
    with pytest.raises(
        EquipoiseError, match=r"out.images.npz, where the adversarial images would be written, is of an"
    ):
        merge(halves, out)
    assert images.read_bytes() == pictures + b"x" and not out.exists()


def test_shards_of_a_number_that_nobody_has_are_missing_at_once(tmp_path, halves):
    for number, path in enumerate(halves, 1):
        record = load(path)
        save(path, replace(record, data={**record.data, "shard": f"{number}/{10**17}"}))
    with pytest.raises(EquipoiseError, match=r"shards 3, 4, .*, 22, \.\.\. of 100000000000000000 are missing\."):
        merge(halves, tmp_path / "out.json")


@pytest.mark.parametrize("out", ["1.json", "../here/2.json", "1.txt", "2.images.npz"])
def test_merge_refuses_to_overwrite_its_parts(tmp_path, halves, out):
    (tmp_path.parent / "here").unlink(missing_ok=True)
    (tmp_path.parent / "here").symlink_to(tmp_path)
    before = {path: path.read_bytes() for path in tmp_path.iterdir()}
    with pytest.raises(EquipoiseError, match=r"would overwrite .*, a part of it: choose another place with --out"):
        merge(halves, tmp_path / out)
    assert before == {path: path.read_bytes() for path in tmp_path.iterdir()}


def test_merge_unites_the_flags_and_names_the_command(tmp_path, halves):
    both, late = ResultWarning("both", "1", "look"), ResultWarning("late", "2", "look")
    for path, flags in zip(halves, ([both], [both, late]), strict=True):
        record = load(path)
        save(path, replace(record, flags=[*flags, *record.flags]))
    named = merge(halves, tmp_path / "out.json", "equipoise evaluate all")
    assert [flag for flag in named.flags if flag in (both, late)] == [both, late]
    assert load(tmp_path / "out.json").provenance.command == "equipoise evaluate all"
    before = (tmp_path / "out.json").read_bytes()
    assert merge(halves, tmp_path / "out.json").provenance == named.provenance
    assert (tmp_path / "out.json").read_bytes() == before, "a record of the same parts stays as it is"
    assert merge(halves, tmp_path / "new.json").provenance.command == load(halves[0]).provenance.command


def test_a_robustbench_entry_is_of_one_ball():
    def result(attack: str, norm: str, eps: float, right: int) -> AttackRecord:
        return AttackRecord(attack, norm, eps, [True] * right + [False] * (8 - right))

    results = [
        result("clean", "l2", 0.0, 8),
        result("autoattack", "l2", 0.5, 5),
        result("autoattack", "linf", 0.03, 4),
        result("autoattack", "linf", 0.5, 1),
        result("worst case", "linf", 0.5, 0),
    ]
    made = Provenance("equipoise evaluate", 5, {}, None, "cpu", 1, "")
    entry = robustbench(Evaluation("net", {"name": "toy"}, results, made))
    assert (entry["threat_model"], entry["eps"]) == ("L2", 0.5)
    assert entry["external"] == entry["autoattack_acc"] == "62.50" and entry["attacks"] == ["autoattack"]
