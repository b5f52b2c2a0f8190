"""From the words of a command line to a request."""

import math
import re
from collections import deque
from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from equipoise.cli.help import command_help
from equipoise.cli.method_options import METHODS, choice_of, parameters, spelled_out
from equipoise.cli.options import FORMERLY, RENAMED, Option, flag_of, options_of, with_new_flags
from equipoise.cli.requests import REQUESTS, Audit, Command, Evaluate, Train
from equipoise.core.errors import EquipoiseError, require, unknown
from equipoise.training import Recipe

_FLAG = re.compile(r"--|-[A-Za-z]$")  # -1, -inf and - are values
_HELP = {"-h": False, "--help": False, "--help-all": True}
_TRUTH = {"True": True, "False": False, "None": None}


def parse(argv: Sequence[str]) -> Command:
    """The request of a command line.

    Raises `EquipoiseError` for whatever cannot be understood, with the nearest name if one is mistyped. Prints the help
    and exits with 0 if it is asked for.
    """
    words = spelled_out(argv)
    command, *rest = words
    if command not in REQUESTS:
        raise unknown("command", command, REQUESTS)
    kind = REQUESTS[command]
    options, method = options_of(kind), None
    if kind is Train:
        index = _index_of_method(rest, _by_flag(options, command))
        if index is not None:
            method = rest.pop(index)
            options = [*options_of(choice_of(method)), *options]
    asked = [word for word in rest if word in _HELP]
    if asked:
        print(command_help(command, method, any(_HELP[word] for word in asked)))
        raise SystemExit(0)
    require(kind is not Train or method is not None, "train needs a method; to list them: equipoise train --help")
    values = _read(rest, options, command, method)
    if kind is Train:
        assert method is not None
        recipe = {f: values.pop(f) for f in _names(Recipe) & values.keys()}
        own = {f: values.pop(f) for f in _names(choice_of(method)) & values.keys()}
        values |= {"method": choice_of(method)(**own), "recipe": Recipe(**recipe)}
    return kind(**values)  # pyright: ignore[reportReturnType]


def _names(kind: type) -> set[str]:
    return {option.name for option in options_of(kind)}


def _index_of_method(words: Sequence[str], flags: Mapping[str, Option]) -> int | None:
    """The index of the first word of a `train` command that is neither a flag nor a value. Raises `EquipoiseError` if
    it is no method.
    """
    values_left = 0.0
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if _FLAG.match(word):
            option = flags.get(flag.replace("_", "-"))
            no_value = bool(equals) or word in _HELP or (option is not None and option.kind is bool)
            values_left = 0 if no_value else math.inf if option is not None and option.many else 1
        elif values_left and not (values_left == math.inf and word in METHODS):
            values_left -= 1
        elif word in METHODS:
            return index
        else:
            raise unknown("method", word, METHODS)
    return None


def _by_flag(options: Sequence[Option], command: str) -> dict[str, Option]:
    """The options by what may be typed: `--no-flag` for what can be switched off, and the command's old flags."""
    flags = {option.flag: option for option in options if not option.positional}
    flags |= {f"--no-{flag[2:]}": option for flag, option in flags.items() if option.kind is bool}
    renamed = {flag_of(old): flag_of(RENAMED[old]) for old in FORMERLY.get(command, ())}
    return flags | {old: flags[new] for old, new in renamed.items() if new in flags}


def _read(words: Sequence[str], options: Sequence[Option], command: str, method: str | None) -> dict[str, Any]:
    """The values of options by the names of their fields; the last one counts where several are typed, as when a run is
    resumed with another one than it was begun with.
    """
    flags, values, remaining = _by_flag(options, command), {}, deque(words)
    command = command if method is None else f"{command} {method}"
    positionals, loose = [option for option in options if option.positional], []
    while remaining:
        word = remaining.popleft()
        if not _FLAG.match(word):
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
        while not equals and remaining and not _FLAG.match(remaining[0]) and (option.many or not texts):
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
    (option,) = options
    if option.many:
        return {option.name: tuple(map(option.value_of, words))}
    require(len(words) <= 1, f"{command} takes one {option.flag}, not {' and '.join(map(repr, words[:3]))}.")
    return {option.name: option.value_of(words[0])} if words else {}


def _unknown_option(flag: str, flags: Sequence[str], command: str) -> EquipoiseError:
    names = {known.lstrip("-"): known for known in (*_HELP, *flags)}
    near = get_close_matches(flag.lstrip("-"), names, n=1)
    meant = f"did you mean {names[near[0]]}? To" if near else "to"
    return EquipoiseError(f"{command} has no option {flag[:80]}: {meant} list all: equipoise {command} --help-all")


def require_once(words: Sequence[str]) -> None:
    """Raise `EquipoiseError` for an option that is typed twice, be it under an old name or with `--no-`."""
    flags = [word.partition("=")[0].replace("_", "-") for word in with_new_flags(words) if _FLAG.match(word)]
    switches = [flag.replace("--no-", "--", 1) for flag in flags]
    for flag in switches:
        require(switches.count(flag) == 1, f"{flag} is given twice: give it once.")


def renamed(words: Sequence[str]) -> list[str]:
    """Return a sentence for each old flag of a command line that has been understood."""
    old, new = ([word.partition("=")[0] for word in line] for line in (words, with_new_flags(words)))
    return [f"{flag} has been renamed: write {today}." for flag, today in zip(old, new, strict=True) if flag != today]


def questions(options: Command) -> list[str]:
    """Return a question for each typed radius that is of another norm's size, or of another range of pixels."""
    if isinstance(options, Train):
        method = parameters(options.method)
        typed = [(method["norm"], method["eps"])] if "norm" in method and "latent" not in method else []
    elif isinstance(options, Evaluate):
        typed = [(options.norm or "linf", eps) for eps in options.eps]
    elif isinstance(options, Audit) and options.eps is not None:
        typed = [(options.norm or "linf", options.eps)]
    else:
        typed = []
    return [question for norm, eps in dict.fromkeys(typed) if (question := _question(norm, eps))]


_LARGEST_LINF_LEVEL = 16
"""Radii of up to this many of 255 grey levels are usual in linf, and tiny in l2 and l1."""


def _question(norm: str, eps: float) -> str:
    level = eps * 255
    in_levels = 0.5 < level < _LARGEST_LINF_LEVEL + 0.5 and math.isclose(level, round(level), rel_tol=1e-6)
    if norm != "linf" and in_levels:
        usual = "0.25 to 1 for CIFAR-10 and 1 to 2 for MNIST" if norm == "l2" else "5 to 12 for CIFAR-10"
        return (
            f"eps = {round(level)}/255 is a radius as used in linf; in {norm} it changes one pixel of an image by "
            f"{round(level)} grey levels and no other (usual are {usual}): is --norm linf meant?"
        )
    if norm == "linf" and 1 <= eps < math.inf:
        meant = f": is {eps:g}/255 meant?" if eps == round(eps) and eps < 255 else "."
        return f"eps = {eps:g} in linf lets every pixel of [0, 1] become anything{meant}"
    return ""
