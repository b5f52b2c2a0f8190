"""What needs no other module, so that it is answered at once: the version, and which commands there are."""

import sys
from collections.abc import Sequence
from textwrap import wrap

import equipoise
from equipoise.cli.console import columns

COMMANDS = {
    "train": "Train a network and evaluate it.",
    "evaluate": "Evaluate a model: its accuracy, clean and under attacks.",
    "audit": "Test a model for gradient masking: a verdict, and the measurement behind every indicator.",
    "score": "Compute a robustness score: expected agreement of predictions near a sample, integrated over radii.",
    "verify": "Re-check every claim of a record: re-run the model on the stored images, on the CPU in float32.",
    "merge": "Merge the records of all shards of an evaluation.",
    "report": "Write one HTML page that compares runs.",
    "table": "Tabulate accuracies: a row per model, a column per attack and radius, over seeds their mean.",
    "predict": "Predict single inputs: the class, how uncertain it is, and the radius that it withstands.",
    "export": "Export a trained model for other programs, and check the file against PyTorch.",
    "study": "Run one of the papers' small experiments and write its figures and key numbers.",
    "experiments": "List the papers' tables and figures that can be reproduced, the data they need and their cost.",
    "reproduce": "Reproduce a table or figure of a paper, at any scale, and compare it with the published values.",
    "models": "List the trained models that come with equipoise, with their accuracy, clean and attacked.",
    "push": "Write a run as the folder that a model hub expects; nothing is sent anywhere.",
    "doctor": "Describe this installation: processor, kernels, threads, devices, extras, caches.",
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
