"""A mkdocs hook that makes the pages of the site which are no Markdown in docs/.

Reports of the gallery are made from benchmarks/results: verdicts are recomputed from study.json and
records.jsonl by the current rules. benchmarks/RESULTS.md and the notebooks become pages.
"""

from __future__ import annotations

import json
import re
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

from maskwise.report import write_report

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"
NOTEBOOKS = ROOT / "docs" / "notebooks"
LINK = re.compile(r"\(gallery/([\w-]+)\.html\)")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made, and the figures of the results."""
    gallery = [*dict.fromkeys(LINK.findall((ROOT / "docs/index.md").read_text(encoding="utf-8")))]
    made = {f"gallery/{name}.html": page_of(RESULTS / name) for name in gallery}
    results = (BENCHMARKS / "RESULTS.md").read_text(encoding="utf-8")
    # It has nearly as many words as the other pages together, so a search would find little else.
    made["results.md"] = "---\nsearch: {boost: 0.5}\n---\n" + for_site(results, gallery)
    made |= {f"notebooks/{path.stem}.md": notebook(path) for path in NOTEBOOKS.glob("*.ipynb")}
    for name, content in made.items():
        files.append(File.generated(config, name, content=content))
    for figure in RESULTS.glob("*.svg"):
        files.append(File.generated(config, f"results/{figure.name}", abs_src_path=str(figure)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links to files of the repository into links to pages that are made of them."""
    if page.is_homepage:
        page.meta["hide"] = ["toc"]  # its place is for the picture
    markdown = re.sub(r"\]\(\.\./benchmarks/RESULTS\.md", "](results.md", markdown)
    return re.sub(r"\]\((notebooks/\w+)\.ipynb\)", r"](\1.md)", markdown)


def page_of(folder: Path) -> str:
    """Return the page for a folder of results."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name)
        for file in ("study.json", "records.jsonl"):
            shutil.copy(folder / file, copy / file)
        return write_report(copy).read_text(encoding="utf-8")


def for_site(results: str, gallery: list[str]) -> str:
    """Return RESULTS.md with links that lead somewhere on the site; the others become text."""

    def link(match: re.Match[str]) -> str:
        text, path = match.groups()
        folder, _, name = path.partition("results/")
        if path.startswith(("http", "#")) or path.endswith(".svg"):
            return match[0]
        if path.startswith("../docs/"):
            return f"[{text}]({path.removeprefix('../docs/')})"
        return f"[{text}](gallery/{name}.html)" if not folder and name in gallery else text

    return re.sub(r"(?<!!)\[([^]]*)\]\(([^)]+)\)", link, results)


def notebook(path: Path) -> str:
    """Return a notebook as Markdown: its text, its code and what that printed."""
    return "\n\n".join(_cells(path)) + "\n"


def _cells(path: Path) -> Iterator[str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    for number, cell in enumerate(cells):
        source = "".join(cell["source"])
        yield source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```"
        if not number:
            yield f"To run it: [{path.name}]({path.name})."
        for output in cell.get("outputs", ()):
            if text := "".join(output.get("text", ())):
                yield f"```text\n{text.rstrip()}\n```"
