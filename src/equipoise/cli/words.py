"""From words to the values of options, and sentences about those that cannot be read."""

import re
from collections import deque
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Any

from equipoise.cli.options import FORMERLY, RENAMED, Option, flag_of, with_new_flags
from equipoise.core.errors import EquipoiseError, require

FLAG = re.compile(r"--|-[A-Za-z]$")  # -1, -inf and - are values
HELP = {"-h": False, "--help": False, "--help-all": True}
"""The words that ask for help, and whether for all of it."""
_TRUTH = {"True": True, "False": False, "None": None}


def by_flag(options: Sequence[Option], command: str) -> dict[str, Option]:
    """The options by what may be typed: `--no-flag` for what can be switched off, and the command's old flags."""
    flags = {option.flag: option for option in options if not option.positional}
    flags |= {f"--no-{flag[2:]}": option for flag, option in flags.items() if option.kind is bool}
    renamed = {flag_of(old): flag_of(RENAMED[old]) for old in FORMERLY.get(command, ())}
    return flags | {old: flags[new] for old, new in renamed.items() if new in flags}


def read(words: Sequence[str], options: Sequence[Option], command: str, method: str | None) -> dict[str, Any]:
    """The values of options by the names of their fields; the last one counts where several are typed, as when a run is
    resumed with another one than it was begun with.
    """
    flags, values, remaining = by_flag(options, command), {}, deque(words)
    command = command if method is None else f"{command} {method}"
    positionals, loose = [option for option in options if option.positional], []
    while remaining:
        word = remaining.popleft()
        if not FLAG.match(word):
            loose.append(word)
            continue
        flag, equals, joined = word.partition("=")
        flag = flag.replace("_", "-")
        if flag not in flags:
            raise _unknown_option(flag, [option.flag for option in flags.values()], command)
        option = flags[flag]
        if option.kind is bool:
            require(not equals or joined in _TRUTH, f"{flag} takes no value: leave {joined!r:.80} out.")
            switch = joined if equals else "True"
            if not equals and option.default is None and remaining and remaining[0] in _TRUTH:  # as it was typed once
                switch = remaining.popleft()
            values[option.name] = not _TRUTH[switch] if flag.startswith("--no-") else _TRUTH[switch]
            continue
        texts = [joined] if equals else []
        while not equals and remaining and not FLAG.match(remaining[0]) and (option.many or not texts):
            texts.append(remaining.popleft())
        require(option.many or len(texts) == 1, f"{flag} needs a value: {option.expected}.")
        try:
            converted = tuple(map(option.value_of, texts))
        except EquipoiseError as error:
            if not (option.many and positionals) or loose:
                raise
            early = f"{positionals[0].flag} comes before {flag}, see: equipoise {command} --help"
            raise EquipoiseError(f"{str(error).rstrip('.')}; {early}") from error
        values[option.name] = converted if option.many else converted[0]
    values |= _positionals(loose, positionals, command)
    greedy = [option.flag for option in options if option.many and values.get(option.name)]
    for option in options:
        early = f" before {greedy[0]}" if option.positional and greedy else ""
        require(
            option.name in values or not option.required,
            f"{command} needs {option.flag}{early}, see: equipoise {command} --help",
        )
    return values


def _positionals(words: list[str], options: Sequence[Option], command: str) -> dict[str, Any]:
    """The values that are typed without a flag."""
    if not options:
        require(not words, f"{command} takes no {words[0]!r}: all its options begin with --." if words else "")
        return {}
    *single, last = options
    values = {option.name: option.value_of(word) for option, word in zip(single, words, strict=False)}
    remaining = words[len(single) :]
    if last.many:
        return values | ({last.name: tuple(map(last.value_of, remaining))} if remaining or not single else {})
    require(len(remaining) <= 1, f"{command} takes one {last.flag}, not {' and '.join(map(repr, words[:3]))}.")
    return values | ({last.name: last.value_of(remaining[0])} if remaining else {})


def _unknown_option(flag: str, flags: Sequence[str], command: str) -> EquipoiseError:
    names = {known.lstrip("-"): known for known in (*HELP, *flags)}
    near = get_close_matches(flag.lstrip("-"), names, n=1)
    meant = f"did you mean {names[near[0]]}? To" if near else "to"
    return EquipoiseError(f"{command} has no option {flag[:80]}: {meant} list all: equipoise {command} --help-all")


def require_once(words: Sequence[str]) -> None:
    """Raise `EquipoiseError` for an option that is typed twice, be it under an old name or with `--no-`."""
    flags = [word.partition("=")[0].replace("_", "-") for word in with_new_flags(words) if FLAG.match(word)]
    switches = [flag.replace("--no-", "--", 1) for flag in flags]
    for flag in switches:
        require(switches.count(flag) == 1, f"{flag} is given twice: give it once.")


def renamed(words: Sequence[str]) -> list[str]:
    """Return a sentence for each old flag of a command line that has been understood."""
    old, new = ([word.partition("=")[0] for word in line] for line in (words, with_new_flags(words)))
    return [f"{flag} has been renamed: write {today}." for flag, today in zip(old, new, strict=True) if flag != today]
