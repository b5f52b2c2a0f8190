"""Small experiments that show an idea, each one command: the papers' figures with the numbers that make their point."""

from equipoise.studies.options import Options, Tell

__all__ = ["Options", "Tell"]
