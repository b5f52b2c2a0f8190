"""From the words of a command line to a request."""

import math
from collections.abc import Mapping, Sequence

from equipoise.cli.help import command_help
from equipoise.cli.method_options import METHODS, choice_of, parameters, spelled_out
from equipoise.cli.options import Option, options_of
from equipoise.cli.requests import REQUESTS, Audit, Command, Evaluate, Train
from equipoise.cli.variations import Variation
from equipoise.cli.words import FLAG, HELP, by_flag, read
from equipoise.core.errors import require, unknown
from equipoise.core.schedules import Schedule
from equipoise.data.reading import Reading
from equipoise.training import Recipe


def parse(argv: Sequence[str]) -> Command:
    """The request of a command line.

    Raises `EquipoiseError` for whatever cannot be understood, with the nearest name if one is mistyped. Prints the help
    and exits with 0 if it is asked for.
    """
    words = spelled_out(argv)
    command, *rest = words
    if command == "data" and rest[:1] == ["check"]:  # the one thing that is done with data alone
        del rest[0]
    if command not in REQUESTS:
        raise unknown("command", command, REQUESTS)
    kind = REQUESTS[command]
    options, method = options_of(kind), None
    if kind is Train:
        index = _index_of_method(rest, by_flag(options, command))
        if index is not None:
            method = rest.pop(index)
            options = [*options_of(choice_of(method)), *options]
    asked = [word for word in rest if word in HELP]
    if asked:
        print(command_help(command, method, any(HELP[word] for word in asked)))
        raise SystemExit(0)
    require(kind is not Train or method is not None, "train needs a method; to list them: equipoise train --help")
    values = read(rest, options, command, method)
    if kind is Train:
        assert method is not None
        recipe = {f: values.pop(f) for f in _names(Recipe) & values.keys()}
        own = {f: values.pop(f) for f in _names(choice_of(method)) & values.keys()}
        varied = {f: values.pop(f) for f in _names(Variation) & values.keys()}
        made = {"recipe": Recipe(**recipe), "variation": Variation(**varied)}
        values |= {"method": choice_of(method)(**own), **made}
    return kind(**values)  # pyright: ignore[reportReturnType]


def _names(kind: type) -> set[str]:
    return {option.name for option in options_of(kind)}


def first_word(words: Sequence[str], method: str) -> int | None:
    """The index of the first word of a `train` command that is neither a flag of this method nor a value."""
    options = [*options_of(choice_of(method)), *options_of(Train)]
    return _first_word(words, by_flag(options, "train"))


def _first_word(words: Sequence[str], flags: Mapping[str, Option]) -> int | None:
    values_left = 0.0
    for index, word in enumerate(words):
        flag, equals, _ = word.partition("=")
        if FLAG.match(word):
            option = flags.get(flag.replace("_", "-"))
            no_value = bool(equals) or word in HELP or (option is not None and option.kind is bool)
            values_left = 0 if no_value else math.inf if option is not None and option.many else 1
        elif values_left and not (values_left == math.inf and word in METHODS):
            values_left -= 1
        else:
            return index
    return None


def _index_of_method(words: Sequence[str], flags: Mapping[str, Option]) -> int | None:
    """The index of the method in a `train` command. Raises `EquipoiseError` for a word in its place that is none."""
    index = _first_word(words, flags)
    if index is not None and words[index] not in METHODS:
        raise unknown("method", words[index], METHODS)
    return index


def questions(options: Command) -> list[str]:
    """Return a question for each typed radius that is of another norm's size, or of another range of pixels."""
    if isinstance(options, Train):
        method = parameters(options.method)
        eps = getattr(options.method, "eps", 0.0)
        largest = max((value for _, value in eps.points), default=0.0) if isinstance(eps, Schedule) else eps
        typed = [(method["norm"], largest)] if "norm" in method and "latent" not in method else []
    elif isinstance(options, Evaluate):
        typed = [(options.norm or "linf", eps) for eps in options.eps]
    elif isinstance(options, Audit) and options.eps is not None:
        typed = [(options.norm or "linf", options.eps)]
    else:
        typed = []
    if isinstance(options, Reading) and (options.box or options.feature_scale):  # the radius is in units of their own
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
