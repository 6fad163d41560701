"""One self-contained page about runs and files, and the same figures for papers."""

from espalier.analysis.report.page import render, write_report
from espalier.analysis.report.runs import ReportRun, open_runs

__all__ = ["ReportRun", "open_runs", "render", "write_report"]
