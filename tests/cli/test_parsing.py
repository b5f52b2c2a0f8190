"""What is mistyped is one sentence with what was probably meant; what has been renamed still works."""

import json
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import pytest

from equipoise.cli import commands, main
from equipoise.cli.options import RENAMED, flag_of, with_new_flags
from equipoise.cli.parsing import parse
from equipoise.cli.recorded import answered, as_data, from_data
from equipoise.cli.requests import Audit, Evaluate, Train
from equipoise.cli.resuming import continued
from equipoise.core.errors import EquipoiseError
from equipoise.results.records import Run, load, save


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("train udp --eps 0.1 --epoch 3", "train udp has no option --epoch: did you mean --epochs? To list all: "),
        ("train --epoch 3 udp --eps 0.1", "train udp has no option --epoch: did you mean --epochs?"),
        ("train udp --eps 0.1 --epohcs=3", "train udp has no option --epohcs: did you mean --epochs?"),
        ("train udp --step 3", "did you mean --steps?"),
        ("train standard --eps 0.1", "train standard has no option --eps"),
        ("train ls-udp", "train ls-udp needs --latent, see: equipoise train ls-udp --help"),
        ("train ls-udp --eps 0.1", "train ls-udp needs --latent"),
        ("train", "train needs a method; to list them: equipoise train --help"),
        ("train --epochs 3", "train needs a method"),
        ("train --widths 3 4 --epochs", "train needs a method"),
        ("train udp pgd --eps 0.1", "train udp takes no 'pgd': all its options begin with --."),
        ("train udp --eps", "--eps needs a value: a number or a fraction, such as 8/255."),
        ("train udp --eps 0.1 --optimizer lion", "unknown --optimizer 'lion': choose one of adam, sgd."),
        ("train udp --eps 0.1 --norm l3", "unknown --norm 'l3': did you mean 'l"),
        ("train udp --eps 0.1 --epochs 2.5", "--epochs = '2.5': expected an integer >= 0."),
        ("train udp --eps 0.1 --normalize=3", "--normalize takes no value: leave '3' out."),
        (f"train udp --eps 0.1 --seed {2**63}", f"--seed = {2**63}: expected an integer of at most {2**63 - 1}."),
        ("train udp --eps 0.1 --seed -1", "--seed = -1: expected an integer >= 0."),
        ("evaluate x --seed -1", "--seed = -1: expected an integer >= 0."),
        ("evaluate x --seed １", "--seed = '１': expected an integer >= 0."),
        ("evaluate x --examples 1_0", "--examples = '1_0': expected an integer >= 0."),
        ("evaluate x --eps 1_0", "--eps: expected a number or a fraction such as 8/255, got '1_0'."),
        ("audit x --eps ８/255", "--eps: expected a number or a fraction such as 8/255, got '８/255'."),
        ("train udp --eps 0.1 --eps 0.2", "--eps is given twice: give it once."),
        ("train udp --eps=0.1 --epochs 3 --nesterov --no-nesterov", "--nesterov is given twice: give it once."),
        ("train udp --eps 0.1 --limit 3 --examples 4", "--examples is given twice: give it once."),
        ("evaluate x --batch-size 3 --batch_size 4", "--batch-size is given twice: give it once."),
        ("evaluate --eps 0.1 x", "got 'x'; TARGET comes before --eps, see: equipoise evaluate --help"),
        ("evaluate x --limit 3", "evaluate has no option --limit: "),
        ("train udp --eps 0.1 --halvings 3", "train udp has no option --halvings: "),
        ("train udp --eps 0.1 --hours=3", "train udp has no option --hours: "),
        ("train udp --hlep", "train udp has no option --hlep: did you mean --help? To list all: "),
        ("train udp --hlep-all", "train udp has no option --hlep-all: did you mean --help-all? To list all: "),
        ("train udp --xyzzy", "train udp has no option --xyzzy: to list all: equipoise train udp --help-all"),
        ("evaluate", "evaluate needs TARGET, see: equipoise evaluate --help"),
        ("evaluate --attacks pgd x", "evaluate needs TARGET before --attacks, see: equipoise evaluate --help"),
        ("evaluate x y", "evaluate takes one TARGET, not 'x' and 'y'."),
        ("evaluate x --atacks pgd", "evaluate has no option --atacks: did you mean --attacks?"),
        ("evaluate x --data-root", "--data-root needs a value: a path."),
        ("evaluate x --out=", "--out: expected a path, got an empty text."),
        ("study due --seeds 0", "--seeds = 0: expected an integer >= 1."),
        ("evaluate x --restarts 0", "--restarts = 0: expected an integer >= 1."),
        ("evaluate x --attacks pgd fgsm pgd", "--attacks has pgd twice: name every attack once."),
        ("report x -o y", "report has no option -o"),
        ("experiments udp-table-1", "experiments takes no 'udp-table-1'"),
        ("--epochs 3", "unknown command '--epochs'"),
    ],
)
def test_what_is_mistyped_is_one_sentence(here, capsys, words, message):
    assert main(words.split(" ")) == 2
    said = capsys.readouterr()
    assert said.out == "" and said.err.startswith("error: ") and said.err.count("\n") == 1
    assert message in said.err and "╭" not in said.err


def test_on_a_terminal_the_command_to_type_is_a_line_of_its_own(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    assert main(["train", "udp", "--eps", "0.1", "--epoch", "3"]) == 2
    *sentence, command = capsys.readouterr().err.splitlines()
    assert command == "  equipoise train udp --help-all"
    assert " ".join(sentence) == "error: train udp has no option --epoch: did you mean --epochs? To list all:"


@pytest.mark.parametrize("typed", ["--batch-size 8", "--batch_size 8", "--batch-size=8", "--batch_size=8"])
def test_a_flag_may_be_written_in_several_ways(typed):
    assert parse(["evaluate", "x", *typed.split()]).batch_size == 8


def test_switches_and_values():
    command = parse(
        ["train", "udp", "--eps", "1", "--no-nesterov", "--normalize", "--no-tensorboard", "--widths", "--out", "-"]
    )
    assert isinstance(command, Train)
    assert (command.recipe.nesterov, command.normalize, command.recipe.tensorboard) == (False, True, False)
    assert (command.widths, command.out) == ((), Path("-"))
    for words, value in (("--channels-last", True), ("--no-channels-last", False), ("--channels-last False", False)):
        assert parse(["train", "standard", *words.split()]).recipe.channels_last is value
    assert parse(["evaluate", "x", "--no-images"]).images is False
    assert parse(["evaluate", "x", "--eps", "-0.5", "-inf"]).eps == (-0.5, -float("inf"))
    assert parse(["evaluate", "x", "--seed", "1", "--seed", "2"]).seed == 2, "as of a run that is resumed otherwise"
    assert parse(["train", "--widths", "3", "4", "udp", "--eps", "1"]).widths == (3, 4)
    assert parse(["train", "--data", "udp", "udp", "--eps", "1"]).data == "udp"
    assert parse(["train", "udp", "--eps", "1", "--data", "udp"]).data == "udp"


OLD = {
    "train udp --eps 0.1 --together --members 2": ("joint_loss", True),
    "train udp --eps 0.1 --inducing 3": ("gp_inducing_points", 3),
    "train udp --eps 0.1 --limit=30": ("examples", 30),
    "evaluate x --reported 0.9": ("expected_clean_accuracy", 0.9),
    "audit x --minutes 2": ("time_budget", 2.0),
    "study due --limit 30": ("examples", 30),
    "reproduce x --only mnist": ("select", ("mnist",)),
}


@pytest.mark.parametrize("line", OLD)
def test_old_spellings_work_with_a_warning(monkeypatch, capsys, line):
    seen = []
    monkeypatch.setattr(commands, "run", lambda options, command: seen.append((options, command)) or 0)
    assert main(line.split()) == 0
    ((options, command),) = seen
    name, value = OLD[line]
    assert getattr(options, name) == value and flag_of(name) in command
    err = capsys.readouterr().err
    assert err.startswith("warning: --") and err.endswith(f" has been renamed: write {flag_of(name)}.\n")
    assert err.count("\n") == 1


def test_what_is_refused_warns_of_nothing(capsys):
    assert main(["train", "udp", "--eps", "0.1", "--limit", "x"]) == 2
    assert capsys.readouterr().err == "error: --examples = 'x': expected an integer >= 1.\n"


@pytest.mark.parametrize(
    ("line", "name", "value"),
    [
        ("train hein --directions 2", "directions", 2),
        ("train r4 --codes 5", "codes", 5),
        ("train r2 --halvings 0", "halvings", 0),
    ],
)
def test_old_spellings_of_methods(line, name, value):
    new = with_new_flags(line.split())
    assert new[2] == flag_of(RENAMED[name]) and getattr(parse(new).method, name) == value


def test_records_with_old_names_are_read_and_answer(here):
    old = as_data(Evaluate("x", expected_clean_accuracy=0.9))
    old["reported"] = old.pop("expected_clean_accuracy")
    assert from_data(Evaluate, old, "aa.json") == Evaluate("x", expected_clean_accuracy=0.9)
    request = Audit("x", eps=0.1, time_budget=3.0)
    data = as_data(request)
    data["minutes"] = data.pop("time_budget")
    record = {"provenance": {"options": data}, "verdict": "robust"}
    Path("audit.json").write_text(json.dumps(record))
    Path("audit.html").write_text("page")
    assert answered(Path("audit.json"), Path("audit.html"), request, {}, False) == record
    with pytest.raises(EquipoiseError, match=r"--time-budget: 3 before, 4 now"):
        answered(Path("audit.json"), Path("audit.html"), replace(request, time_budget=4.0), {}, False)


def test_a_run_of_old_words_resumes_without_a_warning(here):
    assert (
        main(
            [
                "train",
                "udp",
                "--eps",
                "0.1",
                "--epochs",
                "1",
                "--examples",
                "100",
                "--evaluate-examples",
                "0",
                "--out",
                "r",
            ]
        )
        == 0
    )
    run = load("r/run.json")
    assert isinstance(run, Run)
    words = ["--limit" if word == "--examples" else word for word in run.words]
    save(Path("r/run.json"), replace(run, words=words))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        line = continued(["train", "--resume", "--out", "r", "--epochs", "2"])
    assert "--limit" not in line and "--examples" in line
    assert main(shlex.split("train --resume --out r --epochs 2")) == 0
    assert load("r/run.json").recipe["epochs"] == 2
