"""Pictures and tables from records: one HTML file that needs nothing else."""

from equipoise.report.report import page, report

__all__ = ["page", "report"]
