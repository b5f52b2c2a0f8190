"""The last line of a command, which suggests the next one, and the warnings before it."""

from pathlib import Path
from typing import Any

import pytest

from equipoise.cli.console import suggest
from equipoise.cli.evaluating import show
from equipoise.cli.following import after_evaluation, to_evaluate
from equipoise.cli.requests import Audit
from equipoise.results.records import AttackRecord, Evaluation, Provenance

pytestmark = pytest.mark.unchecked


def evaluation(settings=None, n=1000, **changes: Any):
    results = [
        AttackRecord(name, "linf", eps, [i < n // 2 for i in range(n)], settings=settings or {})
        for name, eps in (("clean", 0.0), ("pgd", 0.1))
    ]
    fields: dict[str, Any] = {"target": "nets:make", "data": {"name": "digits", "n": n}, "results": results}
    return Evaluation(**fields | {"provenance": Provenance("", 0, {}, None, "cpu", 1, "")} | changes)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The working directory, with one run in it."""
    monkeypatch.chdir(tmp_path)
    Path("runs/udp").mkdir(parents=True)
    for name in ("run", "evaluation", "e"):
        Path(f"runs/udp/{name}.json").write_text("{}")


def test_words_are_quoted(capsys):
    suggest("report", Path("my run"), "--out", "report.html")
    assert capsys.readouterr().out == "next: equipoise report 'my run' --out report.html\n"


@pytest.mark.parametrize(
    ("out", "changes", "expected"),
    [
        ("e.json", {"images": {"file": "e.npz"}}, "verify e.json"),
        ("e.json", {}, "report e.json --out report.html"),
        ("runs/udp/evaluation.json", {"target": "runs/udp"}, "report runs/udp --out report.html"),
        ("runs/udp/e.json", {"target": "runs/udp"}, "report runs/udp runs/udp/e.json --out report.html"),
        ("e.json", {"target": "runs/udp"}, "report runs/udp e.json --out report.html"),
        (
            "e-pgd-2of3.json",
            {"data": {"name": "digits", "n": 1000, "shard": "2/3"}},
            "merge e-pgd-1of3.json e-pgd-2of3.json e-pgd-3of3.json",
        ),
    ],
)
def test_after_an_evaluation(out, changes, expected, folder, capsys):
    after_evaluation(Path(out), evaluation(**changes))
    assert capsys.readouterr().out == f"next: equipoise {expected}\n"


def test_after_an_audit_the_same_model_is_attacked_in_earnest(folder, capsys):
    own = Audit("nets:make", data="digits", checkpoint=Path("w.pt"), net_option=("width=3",))
    to_evaluate(own, "l2", 8 / 255)
    assert capsys.readouterr().out == (
        "next: equipoise evaluate nets:make --data digits --checkpoint w.pt --net-option width=3 --norm l2 --eps 8/255 "
        "--attacks autoattack\n"
    )
    to_evaluate(Audit("runs/udp", weights="last"), None, None)
    assert capsys.readouterr().out == "next: equipoise evaluate runs/udp --weights last --attacks autoattack\n"
    Path("runs/udp/evaluation-autoattack-linf-0.1.json").write_text("{}")
    to_evaluate(Audit("runs/udp"), None, None)
    assert capsys.readouterr().out == "next: equipoise report runs/udp --out report.html\n"


@pytest.mark.parametrize(
    ("settings", "n", "notes"),
    [
        (None, 1000, ["note: PGD alone may miss what stronger attacks find, so evaluate with --attacks autoattack"]),
        (None, 100, ["note: PGD alone", "note: n = 100 samples leave an interval 19 points wide, so evaluate on more"]),
        ({"parts": [{"name": "apgd-ce"}, {"name": "square"}]}, 1000, []),
    ],
)
def test_what_is_too_weak_for_a_claim_is_said(settings, n, notes, capsys):
    show(evaluation(settings, n))
    said = [line for line in capsys.readouterr().out.splitlines() if line.startswith("note:")]
    assert len(said) == len(notes) and all(line.startswith(note) for line, note in zip(said, notes, strict=True))
