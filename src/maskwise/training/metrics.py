"""``metrics.jsonl``: one JSON line per logged step (docs/files.md says which fields)."""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any


class Metrics:
    """Lines of JSON in a file.

    Args:
        path: the file; None writes nothing.
        keep_until: lines of later steps are dropped first. On resuming from a state they will be written
            again; a fresh run (0) starts with an empty file.
    """

    def __init__(self, path: Path | None, *, keep_until: int = 0):
        self.file = None
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = (
            [line for line in _whole_lines(path) if line.get("step", 0) <= keep_until] if keep_until else []
        )
        temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
        temporary.write_text("".join(json.dumps(line) + "\n" for line in kept))
        temporary.rename(path)
        self.file = path.open("a")

    def write(self, line: dict[str, Any]) -> None:
        if self.file:
            self.file.write(json.dumps(line) + "\n")
            self.file.flush()

    def close(self) -> None:
        if self.file:
            self.file.close()


def _whole_lines(path: Path) -> Iterator[dict[str, Any]]:
    """Every line that is whole: the last one may have been cut off with the power."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with contextlib.suppress(ValueError):
            yield json.loads(line)
