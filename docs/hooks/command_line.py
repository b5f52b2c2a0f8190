"""Writes the reference of the command line when the documentation is built, from the commands' own help."""

import os
from typing import Any

PAGE = "command-line.md"
COLUMNS = "76"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """The page with the help of every command below what is written there."""
    return f"{markdown}\n{reference()}" if page.file.src_uri == PAGE else markdown


def reference() -> str:
    """A section for each command, with all of its options; of `train`, with those of UDP as an example."""
    os.environ["COLUMNS"] = COLUMNS
    from equipoise.cli.help import command_help
    from equipoise.cli.overview import COMMANDS

    sections = [f"## {command}\n\n{_block(command_help(command, None, True))}" for command in COMMANDS]
    udp = f"### train udp\n\n{_block(command_help('train', 'udp', True))}"
    return "\n\n".join([sections[0], udp, *sections[1:]])


def _block(text: str) -> str:
    return f"```text\n{text}\n```"
