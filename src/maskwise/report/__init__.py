"""Writes an HTML page from the files of a study or of a pre-training run: ``write_report(folder)``.
``summary_of`` reads the verdicts.

This package only reads files (docs/files.md). It needs no model, no tokenizer and no torch, so a
page can be made on a different machine, or years later. The page contains the code of its charts
(about 0.9 MB), and its security policy forbids access to the network.
"""

from __future__ import annotations

from maskwise.report.page import write_report
from maskwise.report.reading import summary_of
from maskwise.report.tables import compare_studies, write_comparison

__all__ = ["compare_studies", "summary_of", "write_comparison", "write_report"]
