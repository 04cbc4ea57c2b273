"""One HTML page from the files of a study or of a pre-training run: ``write_report(folder)``;
``summary_of`` reads the verdicts.

This room reads files only (docs/files.md): no model, no tokenizer, no torch, so a page can be made
on another machine and years later. It may import ``maskwise.errors`` and its own files. The page
carries its charts' code with it (about 0.9 MB) and forbids itself the network.
"""

from __future__ import annotations

from maskwise.report.page import write_report
from maskwise.report.reading import summary_of
from maskwise.report.tables import compare_studies, write_comparison

__all__ = ["compare_studies", "summary_of", "write_comparison", "write_report"]
