"""What needs no other module, so that it is answered at once: the version, and which commands there are."""

import sys
from collections.abc import Sequence
from textwrap import wrap

import equipoise
from equipoise.cli.console import columns

COMMANDS = {
    "train": "Train a network and evaluate it.",
    "evaluate": "Accuracy of a model, clean and under attacks.",
    "audit": "Find out whether a model is robust or its gradients are masked: a verdict, sign by sign.",
    "score": "Measure how robust a model is, in a sense that is spelt out: what is near, what counts, how radii are "
    "weighed.",
    "verify": "Check a record: infer every claim again from the stored images, on the CPU in float32.",
    "merge": "Put the records of all shards of an evaluation together.",
    "report": "One HTML file that compares runs.",
    "study": "Run one of the papers' small experiments: its figures, with the numbers that make their point.",
    "experiments": "List the papers' tables and figures that can be reproduced: what they need, how long they take.",
    "reproduce": "Compute a table or figure of a paper, at any scale, with the paper's numbers beside ours.",
    "doctor": "Show what this installation computes with: processor, kernels, threads, devices, extras, caches.",
}
"""The commands in the order of the help, each with the first sentence of its own help."""


def answer(argv: Sequence[str]) -> None:
    """Answer what names no command, and exit: `--version`, `--help` and the empty command line. Return otherwise."""
    if not argv:
        print(overview(), file=sys.stderr)
        sys.exit(2)
    if argv[0] in ("--version", "-V"):
        print(f"equipoise {equipoise.__version__}")
        sys.exit(0)
    if argv[0] in ("--help", "-h", "--help-all"):
        print(overview())
        sys.exit(0)


def overview() -> str:
    """The commands, a line or two for each, and where to go from there."""
    room = columns()
    indent = 2 + max(map(len, COMMANDS)) + 2
    listed = (
        "\n".join(wrap(text, room, initial_indent=f"  {name:<{indent - 2}}", subsequent_indent=" " * indent))
        for name, text in COMMANDS.items()
    )
    return "\n".join(
        [
            "usage: equipoise COMMAND ...",
            "",
            *wrap("Train robust classifiers, and measure honestly how robust any classifier is.", room),
            "",
            "commands:",
            *listed,
            "",
            "equipoise COMMAND --help      the usual options of a command",
            "equipoise COMMAND --help-all  all of them",
            "equipoise --version           the version of equipoise",
            "",
            "Example: equipoise train udp --data digits --eps 0.15 --steps 10 --out runs/udp",
        ]
    )
