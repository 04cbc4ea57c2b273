"""Write HTML pages from the files of a study or a pre-training run.

``write_report(folder)`` writes the page, and ``summary_of(folder)`` returns the verdicts. Both
judge the records by the rules of the day. The package reads files only (docs/files.md) and needs no
model, tokenizer or torch, so a page can be written on another machine, or years later. The page
contains the code of its charts (about 0.9 MB), and its security policy forbids access to the
network.
"""

from __future__ import annotations

from maskwise.report.page import write_report
from maskwise.report.reading import changes_of, summary_of
from maskwise.report.tables import compare_studies, write_comparison

__all__ = ["changes_of", "compare_studies", "summary_of", "write_comparison", "write_report"]
