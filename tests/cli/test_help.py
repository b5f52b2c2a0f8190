"""Help of a length that is read, and options that are those of the functions they are made from."""

import inspect
import re
from typing import Annotated, Literal

import pytest

from equipoise.attacks import gradient as attacks
from equipoise.cli import main, method_options
from equipoise.cli.help import command_help
from equipoise.cli.method_options import METHODS, build_method, choice_of, parameters, summary
from equipoise.cli.options import options_of
from equipoise.cli.parsing import parse
from equipoise.cli.requests import REQUESTS
from equipoise.losses.objectives import Objective, cross_entropy
from equipoise.losses.terms import Method, as_method
from equipoise.training import Recipe, methods
from equipoise.training.methods import variations

PAGES = [(name, None) for name in REQUESTS] + [("train", name) for name in METHODS]
REPLACED = {"loss": "entropy_weight", "layer": "latent", "box": None}
"""Parameters that are objects, and options from which they are made; another box of data is for Python."""


@pytest.fixture(autouse=True)
def eighty_columns(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")


@pytest.mark.parametrize(("command", "method"), PAGES)
def test_the_help_is_short_and_the_long_one_says_everything(command, method):
    short, full = command_help(command, method, False), command_help(command, method, True)
    assert len(short.splitlines()) <= 60
    assert all(len(line) <= 80 for text in (short, full) for line in text.splitlines())
    assert "None" not in full and "MISSING" not in full and "`" not in full and "╭" not in full
    if command != "train" or method is not None:
        options = options_of(REQUESTS[command]) + (options_of(choice_of(method)) if method else [])
        for option in options:
            name = option.flag if option.positional else option.flag.lstrip("-")
            assert re.search(rf"^  (--(\[no-\])?)?{name}\b", full, re.MULTILINE), option.flag
            assert option.help, f"{option.flag} has no help"


@pytest.mark.parametrize("method", METHODS)
def test_what_is_required_comes_first(method):
    text = command_help("train", method, False)
    first = re.search(r"^  (--[a-z-]+)", text, re.MULTILINE)
    required = [option.flag for option in options_of(choice_of(method)) if option.required]
    if required:
        assert first is not None and first[1] == required[0] == "--eps"
        assert all(f"{flag} " in text.splitlines()[0] for flag in required)


def test_groups_are_named_by_what_they_set():
    titles = re.findall(r"^(\S.*):$", command_help("train", "udp", True), re.MULTILINE)
    assert titles == [
        "required",
        "perturbation",
        "method udp",
        "data and network",
        "training",
        "computation and output",
    ]


@pytest.mark.parametrize("words", ["train udp --help", "train --help-all udp", "evaluate -h", "score x --help-all"])
def test_help_is_asked_for_anywhere(words, capsys):
    with pytest.raises(SystemExit) as stop:
        main(words.split())
    assert stop.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: equipoise {words.split()[0]} ")


@pytest.mark.parametrize("name", METHODS)
def test_every_parameter_of_every_method_can_be_typed(name):
    typed = {option.name for option in options_of(choice_of(name))}
    for parameter in inspect.signature(METHODS[name]).parameters.values():
        if parameter.kind is not parameter.VAR_KEYWORD:
            option = REPLACED.get(parameter.name, parameter.name)
            assert option is None or option in typed, parameter.name


def test_every_function_is_a_method_and_every_field_of_a_recipe_an_option():
    own = {name for name in methods.__all__ if getattr(methods, name).__module__ != variations.__name__}
    assert {function.__name__ for function in METHODS.values()} == own - {"entm", "label_smoothing"}
    fields = set(Recipe.__dataclass_fields__)
    assert fields <= {option.name for option in options_of(REQUESTS["train"])}


@pytest.mark.parametrize("name", METHODS)
def test_no_option_of_a_method_is_one_of_training_too(name):
    own, shared = ({option.name for option in options_of(kind)} for kind in (choice_of(name), REQUESTS["train"]))
    assert own.isdisjoint(shared)


def test_a_new_function_is_a_new_method(monkeypatch):
    def sharpened_at(
        eps: float,
        rate: Annotated[float, "Rate of the sharpening."],
        kind: Literal["a", "b"] = "a",
        loss: Objective = cross_entropy,
        **options: object,
    ) -> Method:
        """`L(x)`: a sharpened loss (Nobody 2031). Not a method of anyone's."""
        assert rate == 0.25 and kind == "b"
        return as_method(loss @ attacks.fgsm(eps, **options))

    def takes(function, option):
        return option in ("norm", "mode")

    monkeypatch.setattr(method_options, "_takes", takes)
    monkeypatch.setitem(METHODS, "sharpened", sharpened_at)
    assert summary("sharpened") == "L(x): a sharpened loss"
    page = " ".join(command_help("train", "sharpened", False).split())
    assert "usage: equipoise train sharpened --eps NUMBER --rate NUMBER [OPTIONS]" in page
    assert "--rate NUMBER Rate of the sharpening." in page and "--kind {a,b}" in page
    chosen = parse(["train", "sharpened", "--eps", "8/255", "--rate", "1/4", "--kind", "b", "--norm", "l2"]).method
    assert parameters(chosen) == {
        "name": "sharpened",
        "eps": 8 / 255,
        "rate": 0.25,
        "kind": "b",
        "entropy_weight": 0.0,
        "smoothing": 0.0,
        "norm": "l2",
        "mode": "eval",
    }
    assert build_method(chosen).terms[0].at.geometry.norm == "l2"
    choice_of.cache_clear()
