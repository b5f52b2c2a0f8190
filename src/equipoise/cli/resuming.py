"""`train --resume --out r` and `train --config r/run.json`: with the options that a run was started with, and those
that are typed over them.
"""

from collections.abc import Sequence
from pathlib import Path

from equipoise.cli.method_options import spelled_out
from equipoise.cli.options import with_new_flags
from equipoise.cli.words import HELP
from equipoise.core.errors import require
from equipoise.results.records import Run, load


def continued(argv: Sequence[str]) -> list[str]:
    """The command line with the words of the run that it resumes or repeats before its own, which count where both say
    something.

    Others are returned as they are. Raises `EquipoiseError` for a run that cannot be found or was trained otherwise.
    """
    words = list(argv)
    if words[:1] != ["train"] or not HELP.keys().isdisjoint(words):
        return words
    if any(word == "--config" or word.startswith("--config=") for word in words):
        return _repeated(words)
    if "--resume" not in words:
        return words
    named = len(words) > 1 and not words[1].startswith("-")
    out = _value(words, "--out")
    require(named or bool(out), "--resume needs the run that it continues: add --out, such as --out runs/udp-digits-0.")
    record = Path(out, "run.json")
    if not (out and record.is_file()):
        require(named, f"there is no run in {out} to resume: start it without --resume.")
        return words
    run = load(record)
    begun = with_new_flags(["train", *run.words])[1:] if isinstance(run, Run) else []
    if not begun:
        require(named, f"{out} does not say with which options it was started: give them all again, the method first.")
        return words
    typed = spelled_out(words)[1:]
    if named:
        require(typed[0] == begun[0], f"cannot resume {out}: it was started with method = {begun[0]}, not {typed[0]}.")
        typed = typed[1:]
    return ["train", *begun, *typed]


def _repeated(words: list[str]) -> list[str]:
    """The command line with the words of the run whose record `--config` names in place of that option."""
    require("--resume" not in words, "--config and --resume exclude each other: --resume has the run's own options.")
    typed = list(words)
    config = next(number for number, word in enumerate(typed) if word.partition("=")[0] == "--config")
    record = Path(_value(words, "--config") or ".")
    record = record / "run.json" if record.is_dir() else record
    del typed[config : config + 1 + (typed[config] == "--config")]
    run = load(record)
    require(
        isinstance(run, Run) and bool(run.words),
        f"{record} does not say with which options a run was started: give that of a run of `equipoise train`.",
    )
    assert isinstance(run, Run)
    begun, typed = with_new_flags(["train", *run.words])[1:], spelled_out(typed)[1:]
    if typed and not typed[0].startswith("-"):
        require(typed[0] == begun[0], f"{record} is of a run with method = {begun[0]}, not {typed[0]}: leave it out.")
        typed = typed[1:]
    return ["train", *begun, *typed]


def lasting(argv: Sequence[str]) -> list[str]:
    """The words of a `train` command that belong to the run itself: all but where it is, and how it is begun."""
    kept, remaining = [], iter(spelled_out(argv)[1:])
    for word in remaining:
        if word == "--out":
            next(remaining, None)
        elif word not in ("--resume", "--overwrite") and not word.startswith("--out="):
            kept.append(word)
    return kept


def _value(words: Sequence[str], flag: str) -> str:
    """What is typed last behind a flag; empty if nothing is."""
    value = ""
    for word, following in zip(words, [*words[1:], ""], strict=True):
        if word == flag:
            value = following
        elif word.startswith(f"{flag}="):
            value = word.removeprefix(f"{flag}=")
    return value
