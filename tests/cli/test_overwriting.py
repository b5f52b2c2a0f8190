"""Studies and reports replace nothing unasked; an empty path is refused everywhere."""

from pathlib import Path

import numpy as np
import pytest

from equipoise.cli import main
from equipoise.cli.parsing import parse
from equipoise.reproduce.studies import STUDIES, Entry
from equipoise.results.findings import Findings, Number


def test_a_study_is_answered_or_kept(tmp_path, monkeypatch, capsys):
    ran = []

    def run(options, tell):
        ran.append(options.seed)
        return Findings((Number("one", (float(options.seed),), "seeds"),), (), verdict="seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(STUDIES, "toy", Entry("toy", "Is it?", "nowhere", run))
    assert main(["study", "toy", "--out", "s"]) == 0
    content = {file.name: file.read_bytes() for file in Path("s").iterdir()}
    capsys.readouterr()
    assert main(["study", "toy", "--out", "s"]) == 0
    assert "finished before: s" in capsys.readouterr().out and ran == [0]
    assert main(["study", "toy", "--out", "s", "--seed", "3"]) == 2
    assert "study.json already holds another result (--seed: 0 before, 3 now)" in capsys.readouterr().err
    assert content == {file.name: file.read_bytes() for file in Path("s").iterdir()} and ran == [0]
    assert main(["study", "toy", "--out", "s", "--seed", "3", "--overwrite"]) == 0 and ran == [0, 3]


def test_a_report_is_written_again_only_if_asked(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert (
        main(["train", "standard", "--data", "digits", "--epochs", "1", "--evaluate-examples", "0", "--out", "r"]) == 0
    )
    assert main(["report", "r", "--out", "page.html"]) == 0
    content = Path("page.html").read_bytes()
    assert main(["report", "r", "--out", "page.html"]) == 0, "the same page once more"
    assert main(["evaluate", "r", "--attacks", "clean", "--examples", "20"]) == 0
    capsys.readouterr()
    assert main(["report", "r", "--out", "page.html"]) == 2
    assert "page.html exists already, with other content: add --overwrite to replace it" in capsys.readouterr().err
    assert Path("page.html").read_bytes() == content
    assert main(["report", "r", "--out", "page.html", "--overwrite"]) == 0
    assert Path("page.html").read_bytes() != content


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("report /dev/zero", "cannot read /dev/zero: it is not a plain file"),
        ("verify /dev/zero", "cannot read /dev/zero: it is not a plain file"),
        ("merge /dev/zero --out whole.json", "cannot read /dev/zero: it is not a plain file"),
        ("score torch.nn:Flatten --data my.npz --score manifold --manifold /dev/zero", "it is not a plain file"),
        ("evaluate torch.nn:Flatten --data my.npz --checkpoint /dev/zero", "it is not a plain file"),
        ("score torch.nn:Flatten --data my.npz --out deep.json", "deep.json exists, and does not say which request"),
        ("audit torch.nn:Flatten --data my.npz --eps 0.1 --out deep.html", "would replace deep.json, which is no"),
        (
            "evaluate torch.nn:Flatten --data my.npz --eps 0.1 --out deep.json",
            "deep.json exists and is not a readable record",
        ),
        ("report run/deep.json", "deep.json is not JSON"),
    ],
)
def test_files_without_an_end_or_a_bottom_are_refused(tmp_path, monkeypatch, capsys, command, message):
    monkeypatch.chdir(tmp_path)
    Path("run").mkdir()
    Path("run", "run.json").write_text("{}")
    for place in (Path("deep.json"), Path("run", "deep.json")):
        place.write_text("[" * 100_000)
    pixels, labels = np.full((2, 2), 0.3, np.float32) + np.eye(2, dtype=np.float32) / 2, np.arange(2)
    np.savez("my.npz", x_train=pixels, y_train=labels, x_test=pixels, y_test=labels)
    assert main(command.split()) == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    "command", ["train standard", "evaluate a", "audit a", "score a", "merge a", "report a", "study due", "reproduce a"]
)
def test_an_empty_path_is_refused(command, capsys):
    assert main([*command.split(), "--out", ""]) == 2
    assert capsys.readouterr() == ("", "error: --out: expected a path, got an empty text.\n")


@pytest.mark.parametrize("flag", ["--seed", "--batch-size", "--examples"])
def test_a_number_of_more_than_64_bits_is_refused(flag, capsys):
    for large in (2**63, -(2**64), 10**30):
        assert main(["evaluate", "a", f"{flag}={large}"]) == 2
        assert f"{flag} = {'-' * (large < 0)}" in (said := capsys.readouterr().err) and ": expected an integer" in said
    assert parse(["evaluate", "a", f"{flag}={2**63 - 1}"])
