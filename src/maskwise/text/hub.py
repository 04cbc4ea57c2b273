"""Data sets of the library `datasets`: saved in a folder, or on the Hugging Face hub.

Code that comes with a data set is never run.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from maskwise.errors import MaskwiseError, first_line
from maskwise.text.readers import Fields, Record, numbered_rows, wanted


def saved_dataset(path: Path, fields: Fields) -> Callable[[], Iterable[Record]]:
    """Open a folder that `Dataset.save_to_disk` wrote (of several splits: train)."""
    import datasets

    try:
        loaded = datasets.load_from_disk(str(path))
    except Exception as error:
        # Arrow, JSON and version errors have no common base
        raise MaskwiseError(f"cannot load the data set saved in {path}: {error}") from error
    if isinstance(loaded, datasets.DatasetDict):
        if "train" not in loaded:
            allowed = ", ".join(str(path / split) for split in loaded)
            raise MaskwiseError(f"{path} holds several splits, none called train", allowed=allowed)
        loaded = loaded["train"]
    rows = loaded.select_columns(wanted(loaded.column_names, fields, str(path)))
    return lambda: numbered_rows(rows, path.name)


def hub_dataset(source: str, fields: Fields) -> Callable[[], Iterable[Record]]:
    """Return the records of "hf:NAME[:CONFIG[:SPLIT]]", which is loaded when it is first read."""
    name, config, split = hub_parts(source)

    def records() -> Iterator[Record]:
        loaded = load_hub(source, name, config, split=split)
        columns = wanted(loaded.column_names, fields, source)
        return numbered_rows(loaded.select_columns(columns), name)

    return records


def hub_parts(source: str) -> tuple[str, str, str]:
    """Split "hf:NAME:CONFIG:SPLIT"; the split is "train" by default."""
    name, config, split, *rest = [*source.removeprefix("hf:").split(":"), "", ""]
    if not name or any(rest):
        allowed = "hf:NAME, hf:NAME:CONFIG:SPLIT"
        raise MaskwiseError("malformed data set name", got=source, allowed=allowed)
    return name, config, split or "train"


def load_hub(source: str, name: str, config: str, **how: object) -> Any:
    """Load a data set from the hub, or raise one line that says why not."""
    import datasets

    try:
        return datasets.load_dataset(name, config or None, **how)
    except Exception as error:
        # Network, hub, builder and format errors have no common base.
        raise MaskwiseError(f"cannot load data set {source!r}: {first_line(error)}") from error
