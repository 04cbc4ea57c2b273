"""A mkdocs hook that builds the pages of docs/gallery.md from benchmarks/results.

Verdicts are recomputed from study.json and records.jsonl by the current rules.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from maskwise.report import write_report

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
LINK = re.compile(r"\(gallery/([\w-]+)\.html\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages to which the gallery links."""
    text = (ROOT / "docs" / "gallery.md").read_text(encoding="utf-8")
    for name in dict.fromkeys(LINK.findall(text)):
        files.append(
            File.generated(config, f"gallery/{name}.html", content=page_of(RESULTS / name))
        )
    return files


def page_of(folder: Path) -> str:
    """Return the page for a folder of results."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in ("study.json", "records.jsonl"):
            shutil.copy(folder / file, copy / file)
        return write_report(copy).read_text(encoding="utf-8")
