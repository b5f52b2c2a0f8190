import errno
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from equipoise.core.errors import EquipoiseError
from equipoise.core.files import write_atomically
from equipoise.results.records import (
    AttackRecord,
    Evaluation,
    Provenance,
    ResultWarning,
    Run,
    digest,
    from_json,
    load,
    save,
    to_json,
)
from equipoise.results.statistics import wilson

PROVENANCE = Provenance(
    "equipoise train udp", 3, {"torch": "2.13.0"}, "abc123+", "a processor", 2, "2025-01-02T03:04:05Z"
)
RESULT = AttackRecord(
    "pgd",
    "linf",
    0.1,
    [True, False, True],
    [None, 0.1, None],
    [4, 2, 7],
    {"steps": 20},
    [None, "pgd", None],
    [None, 3, None],
    [20, 20, 20],
    60,
    1,
    2,
    0.5,
)
EVALUATION = Evaluation(
    "runs/udp",
    {"name": "digits", "split": "test"},
    [RESULT],
    PROVENANCE,
    "last",
    ["eps is large"],
    index=[4, 5, 6],
    flags=[ResultWarning("a", "b", "c")],
)
RUN = Run(
    {"name": "udp"},
    {"epochs": 2},
    {"name": "mlp"},
    {"name": "digits"},
    PROVENANCE,
    "finished",
    {"epoch": 1},
    {"epoch": 2},
    ["alarm"],
)


def test_result_figures():
    assert (RESULT.n, RESULT.accuracy) == (3, pytest.approx(2 / 3))
    assert RESULT.interval == wilson(2, 3)


@pytest.mark.parametrize("record", [EVALUATION, RUN], ids=["evaluation", "run"])
def test_round_trip(record, tmp_path):
    path = save(tmp_path / "new" / "record.json", record)
    again = load(path)
    assert type(again) is type(record)
    assert again == record
    written = json.loads(path.read_bytes())
    assert written.pop("digest", None) == (digest(record) if isinstance(record, Evaluation) else None)
    assert to_json(again) == written


@given(
    correct=st.lists(st.booleans(), min_size=1, max_size=20),
    text=st.text(max_size=20),
    number=st.floats(0, 1e6),
    count=st.integers(0, 10**9),
    warnings=st.lists(st.text(max_size=20), max_size=3),
)
def test_any_evaluation_survives_json(correct, text, number, count, warnings):
    result = AttackRecord(
        text,
        "l2",
        number,
        correct,
        [None] * len(correct),
        [1] * len(correct),
        {text: number},
        [text] * len(correct),
        [None] * len(correct),
        [count] * len(correct),
        count,
        count,
        0,
        number,
    )
    record = Evaluation(
        text, {"name": text, "samples": count}, [result], PROVENANCE, "best", warnings, [], {}, index=[]
    )
    assert from_json(json.loads(json.dumps(to_json(record)))) == record


def test_evaluations_carry_their_figures():
    (entry,) = to_json(EVALUATION)["results"]
    assert entry["n"] == 3
    assert entry["accuracy"] == pytest.approx(2 / 3)
    assert entry["interval"] == list(wilson(2, 3))


@pytest.mark.unchecked
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", "x.json is not JSON"),
        (b"\xff\xfe", "x.json is not JSON"),
        (b"[]", "x.json is not the record of a run, of an evaluation or of scores: its kind is not named"),
        (b'{"kind": "cake", "schema": 1}', "its kind is 'cake'"),
        (b'{"kind": "run", "schema": 99}', "has schema 99, this version reads schema 1"),
        (b'{"kind": "run", "schema": 1}', "x.json is damaged: it lacks the field method"),
        (json.dumps({**to_json(RUN), "flavour": "mint"}).encode(), "damaged: flavour is no field"),
        (
            json.dumps({k: v for k, v in to_json(EVALUATION).items() if k != "results"}).encode(),
            "x.json is damaged: it lacks the field results",
        ),
    ],
)
def test_load_refuses(content, message, tmp_path):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(EquipoiseError, match=message):
        load(tmp_path / "x.json")


def test_load_names_a_missing_file(tmp_path):
    with pytest.raises(EquipoiseError, match=r"cannot read .*nothing\.json: No such file"):
        load(tmp_path / "nothing.json")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_a_failed_write_leaves_the_old_file_alone(step, tmp_path, monkeypatch):
    path = write_atomically(tmp_path / "a.json", b"old")

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(*{"fsync": (os, "fsync", full), "replace": (Path, "replace", full)}[step])
    with pytest.raises(EquipoiseError, match=r"cannot write .*a\.json: No space left on device; free some space"):
        write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_replaces_and_leaves_nothing_else(tmp_path):
    path = write_atomically(tmp_path / "deep" / "er" / "a.json", b"old")
    assert write_atomically(path, b"new").read_bytes() == b"new"
    assert list(path.parent.iterdir()) == [path]


def test_a_place_that_cannot_hold_a_file_is_refused(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(EquipoiseError, match=r"cannot write .*choose another place with --out"):
        write_atomically(tmp_path / "file" / "a.json", b"new")


def test_writing_through_a_link_keeps_the_link(tmp_path):
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    link.symlink_to(target)
    write_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_what_is_no_plain_file_is_left_alone(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(EquipoiseError, match="not a plain file"):
        write_atomically(tmp_path / "pipe", b"new")
    assert (tmp_path / "pipe").is_fifo()
