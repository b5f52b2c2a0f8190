"""The command line: `equipoise train`, `evaluate` and `report`. It parses, calls and prints."""

from equipoise.cli.main import main

__all__ = ["main"]
