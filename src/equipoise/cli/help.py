"""What `--help` and `--help-all` print."""

import inspect
from dataclasses import replace
from pathlib import Path
from textwrap import shorten, wrap
from typing import Any

from equipoise.cli.console import columns
from equipoise.cli.method_options import METHODS, choice_of, summary
from equipoise.cli.options import Option, options_of
from equipoise.cli.requests import REQUESTS, Train

_GROUPS = {
    "perturbation": """
        attacks eps norm also combine steps step_size step_schedule restarts noise tau latent uncertainty transfer_from
        mode perturb_every remember adaptive_eps
    """,
    "data and network": """
        data data_root download synthetic examples corruptions corruptions_root net width widths members joint_loss
        dropout_samples dropout_loss gp_inducing_points normalize init weights checkpoint net_option labels consistency
        teacher teacher_weight teacher_temperature
    """,
    "training": """
        epochs batch_size optimizer lr momentum nesterov weight_decay schedule milestones decay lr_peak ema awp
        awp_warmup augment channels_last validation valid_examples valid_eps valid_steps patience
    """,
    "computation and output": """
        out config resume overwrite evaluate_examples images robustbench fail_under junit sarif save_images json latex
        csv markdown checkpoint_minutes tensorboard batch_size seed seeds device devices precision processes workers
        address shard
    """,
}
"""What options set, by their names in the order of the help; all others set what the method or the command is."""

_RARE = """
    step_schedule uncertainty noise softness crossing scores clean generator_lr generator_steps generator
    diversity_weight width widths joint_loss dropout_samples dropout_loss gp_inducing_points net_option normalize
    momentum nesterov milestones decay lr_peak ema awp awp_warmup channels_last validation valid_examples valid_eps
    valid_steps checkpoint_minutes tensorboard evaluate_examples train.precision train.members transfer_from
    corruptions_root expected_clean_accuracy robustbench shard address reuse certificate also combine perturb_every
    remember adaptive_eps teacher teacher_weight teacher_temperature labels consistency junit sarif save_images config
"""
"""Options that only `--help-all` shows."""

_METAVARS = {float: "NUMBER", int: "N", str: "TEXT", Path: "PATH"}
_COLUMN = 26  # where the help of an option begins


def command_help(command: str, method: str | None, everything: bool) -> str:
    """The help of a command, or of one method of `train`: all options with all there is to say, or the usual ones."""
    if command == "train" and method is None:
        return _train_help()
    kind = REQUESTS[command]
    options = options_of(kind) if method is None else [*options_of(choice_of(method)), *options_of(kind)]
    doc = inspect.cleandoc((kind if method is None else METHODS[method]).__doc__ or "")
    doc = f"{summary(method)}." if method and not everything else doc
    name = f"{command} {method or ''}".strip()
    own = f"method {method}" if method else command
    required = sorted((option for option in options if option.required), key=lambda option: not option.positional)
    titles = [title for title in _GROUPS if title != "training" or method]
    groups = {"required": required} | {title: [] for title in ("perturbation", own, *titles)}
    for option in options:
        if not option.required:
            groups[next((title for title in titles if option.name in _GROUPS[title].split()), own)].append(option)
    usage = "".join(f"{_left(option)} " for option in required)
    lines = [f"usage: equipoise {name} {usage}{'[OPTIONS]' if options else ''}".rstrip(), "", *_paragraphs(doc)]
    for title, members in groups.items():
        order = _GROUPS.get(title, "").split()
        shown = [option for option in members if everything or option.required or not _is_rare(option, command)]
        shown.sort(key=lambda option, order=order: order.index(option.name) if option.name in order else 0)
        if shown:
            lines += ["", f"{title}:", *(line for option in shown for line in _described(option, everything))]
    if options:
        lines += ["", "A value in brackets is the default."]
    if options and not everything:
        lines += [f"All options, in full: equipoise {name} --help-all"]
    return "\n".join(lines)


def _is_rare(option: Option, command: str) -> bool:
    return not {option.name, f"{command}.{option.name}"}.isdisjoint(_RARE.split())


def _train_help() -> str:
    """The methods, and the options that all of them share."""
    width = columns()
    indent = 2 + max(map(len, METHODS)) + 2
    lines = ["usage: equipoise train METHOD [OPTIONS]", "", *_paragraphs(Train.__doc__ or ""), "", "methods:"]
    lines += [f"  {name:<{indent - 2}}{_briefly(summary(name), width - indent)}" for name in METHODS]
    lines += _within("With the entropy or label smoothing in the loss: METHOD-entm, METHOD-ls, entm, ls.", width, 2)
    lines += ["", "options of every method:", *_within(" ".join(o.flag for o in options_of(Train)), width, 2)]
    return "\n".join([*lines, "", "help of one method: equipoise train METHOD --help"])


def _briefly(text: str, width: int) -> str:
    if len(text) > width and ": " in text:  # the words behind a formula
        text = text.partition(": ")[2]
    return shorten(text, width, placeholder=" ...")


def _paragraphs(doc: str) -> list[str]:
    """A docstring, wrapped; an example is a line of its own."""
    lines: list[str] = []
    for paragraph in doc.strip().split("\n\n"):
        text = " ".join(paragraph.replace("`", "").split())
        start, _, command = text.partition("Example: ")
        lines += [*([""] if lines else []), *(["Example:", f"  {command}"] if not start else wrap(text, columns()))]
    return lines


def _described(option: Option, everything: bool) -> list[str]:
    """The lines of an option: how it is typed, then its help, or the first sentence of it, its choices and default."""
    left = f"  {_left(option)}"
    text = option.help.replace("`", "")
    text = text if everything or not text else f"{text.partition('. ')[0].rstrip('.')}."
    if option.choices and "{" not in left:
        text += f" One of {', '.join(option.choices)}."
    default = _default(option)
    lines = wrap(f"{text} [{default}]" if default else text, columns() - _COLUMN, break_on_hyphens=False) or [""]
    if len(left) < _COLUMN:
        lines[0] = f"{left:<{_COLUMN}}{lines[0]}"
        return [lines[0], *(" " * _COLUMN + line for line in lines[1:])]
    return [left, *(" " * _COLUMN + line for line in lines)]


def _left(option: Option) -> str:
    """How an option is typed."""
    if option.positional:
        return f"{option.flag} ..." if option.many else option.flag
    if option.kind is bool:
        return option.flag if option.default is False else f"--[no-]{option.flag[2:]}"
    return f"{option.flag} {_metavar(option)}"


def _metavar(option: Option) -> str:
    choices = f"{{{','.join(option.choices)}}}"
    if option.choices:
        return choices if len(choices) <= 20 else "NAME"
    name = _METAVARS[option.kind]
    return f"{name} ..." if option.many else name


def _default(option: Option) -> str:
    """The default, if it says something."""
    value: Any = option.default
    if option.required or value is None or value is False or value == ():
        return ""
    if option.many:
        texts = [_default(replace(option, many=False, default=item)) for item in value]
        return " ".join(texts) if len(texts) < 5 else f"{len(texts)} of them"
    return "yes" if value is True else f"{value:g}" if isinstance(value, float) else str(value)


def _within(text: str, width: int, indent: int) -> list[str]:
    blank = " " * indent
    return wrap(text, width, initial_indent=blank, subsequent_indent=blank, break_on_hyphens=False)
