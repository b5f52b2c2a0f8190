"""Pictures and tables from records: one HTML file that needs nothing else."""

from equipoise.report.report import report

__all__ = ["report"]
