"""Options are stored as data: what was typed comes back as it was, and what nobody could have typed is refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.cli.parsing import parse
from equipoise.cli.recorded import as_data, from_data
from equipoise.cli.requests import Audit, Evaluate, Score
from equipoise.core.errors import EquipoiseError

FULL = Evaluate(
    "runs/a",
    attacks=("pgd", "square10"),
    eps=(0.5, float("inf")),
    norm="l2",
    steps=3,
    step_size=0.25,
    data_root=Path("here"),
    net_option=("width=3",),
    images=False,
    transfer_from=(Path("b"), Path("c")),
    expected_clean_accuracy=1.0,
    out=Path("é x.json"),
)


@pytest.mark.parametrize("options", [Evaluate("net:make"), FULL, Audit("runs/a", eps=0.1), Score("runs/a")])
def test_options_come_back_as_they_were(options):
    data = json.loads(json.dumps(as_data(options)))
    assert from_data(type(options), data, "aa.json") == options


def test_options_of_every_command_are_json():
    for line in (
        "train udp --data digits --eps 8/255",
        "train hein --data digits",
        "verify aa.json",
        "merge a.json b.json",
        "study due",
        "reproduce udp-table-1 --data mnist=a.npz",
        "report runs/a",
        "experiments",
    ):
        options = parse(line.split())
        data = as_data(options)
        assert json.loads(json.dumps(data)) == data and data["command"] == line.split()[0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"command": "train"}, "its options are not those of equipoise evaluate"),
        ({"strange": 1}, "strange is no field that this version of equipoise knows"),
        ({"eps": "0.1"}, "eps: expected list, got text"),
        ({"eps": [True]}, r"eps\[0\]: expected number, got true or false"),
        ({"norm": "l3"}, "norm: invalid enum value 'l3'"),
        ({"target": None}, "target: expected text, got null"),
        ({"images": 1}, "images: expected true or false, got integer"),
        ({"data_root": 3}, "data_root: expected Path, got int"),
    ],
)
def test_options_that_nobody_typed_are_refused(change, message):
    with pytest.raises(EquipoiseError, match=f"aa.json is damaged: {message}"):
        from_data(Evaluate, as_data(FULL) | change, "aa.json")


def test_options_that_are_missing_have_their_defaults():
    assert from_data(Evaluate, {"command": "evaluate", "target": "a"}, "aa.json") == replace(Evaluate("a"))
