"""Write the masks of named epochs to files (``maskwise export``), for trainers without maskwise.

A folder has one Parquet file or one folder of ``datasets`` for each epoch, with the same rows in
the same order, and ``masks.json``, which says how they were made. Masks are equal to those of a
``Masker`` with the same settings, on the rows of ``maskwise.encode(…, split=True)``. The text is
read once and never held in memory.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

# With ``learning``, the annotator ``learned`` is known.
import maskwise.learning  # noqa: F401
from maskwise import __version__
from maskwise.annotate.kept import Store
from maskwise.annotate.registry import annotators
from maskwise.annotate.run import open_corpus
from maskwise.base.errors import MaskwiseError, require_known, whole_number
from maskwise.base.folders import (
    OutputFolder,
    fill_folder,
    in_utf8,
    read_json,
    refuse_damaged,
    remove,
    sweep,
    write_folder,
    write_json,
)
from maskwise.base.printing import note
from maskwise.masking import IGNORE, Masker
from maskwise.masking.moment import Lists, Moment, refuse_steps
from maskwise.masking.settings import Masking
from maskwise.text import require_documents
from maskwise.text.documents import BATCH_CHARACTERS, Document, Documents, batches, field_note
from maskwise.text.encoding import LONGEST_MODEL, encode
from maskwise.text.layers import token_layers
from maskwise.text.pieces import tokenizer_key
from maskwise.text.tokenizers import load_tokenizer
from maskwise.text.words import word_rule

if TYPE_CHECKING:
    import pyarrow

FORMS = ("parquet", "datasets")
FACTS = "masks.json"
PART = "part.json"
MADE_BY_RULE = {"sentence": "sentences", "pos": "pos", "salient": "salient"}
"""Annotators that need nothing but the text, by the layers that policies ask for."""


def export_masks(
    texts: str | Documents,
    out: Path,
    *,
    tokenizer: str,
    masking: Masking,
    epochs: Sequence[int] = (0,),
    seed: int = 0,
    step: int | None = None,
    total_steps: int | None = None,
    max_length: int | None = None,
    layers: Iterable[str] = (),
    words: str = "auto",
    form: str = "parquet",
    text_field: str = "text",
    text_per: str = "auto",
    limit: int | None = None,
) -> dict[str, Any]:
    """Mask a text for some epochs, and write the rows.

    Args:
        texts: the text, as for ``annotate_corpus``.
        out: the folder to write. Epochs that an earlier export of the same masks wrote there are
            kept, and not made again.
        tokenizer: the name of the tokenizer.
        masking: the settings of the masker.
        epochs: the numbers of the epochs.
        seed: the seed of the masker.
        step, total_steps: as for ``Masker.at``.
        max_length: the number of tokens in a row; by default that of the tokenizer. Longer texts
            become several rows.
        layers: names of annotators. Those that a policy asks for, and that need only the text, are
            added.
        words: what a word is, as for ``maskwise.encode``.
        form: ``parquet`` or ``datasets``.
        text_field, text_per, limit: as for ``annotate_corpus``.

    Returns:
        The facts of ``masks.json``.

    Raises:
        MaskwiseError: an input cannot be read, the masks cannot be known, or ``out`` has other
            files, or masks of another text or of other settings.
    """
    require_known("format", form, FORMS)
    folder = OutputFolder(out, "export", f"maskwise export {texts}")
    folder.require()
    if not epochs:
        raise MaskwiseError("no epoch is given", do="--epochs 0-2, for example")
    loaded = load_tokenizer(tokenizer, needs_mask=False, needs_words=word_rule(words) == "auto")
    masker = Masker.of(loaded, masking, seed=seed)
    refuse_steps([masker], step=step, total_steps=total_steps)
    moments = {}
    for epoch in epochs:
        moments[epoch] = masker.at(epoch=epoch, step=step, total_steps=total_steps)
    if max_length is None and loaded.model_max_length > LONGEST_MODEL:
        raise MaskwiseError(
            f"the tokenizer {tokenizer!r} does not say how long a row may be",
            do="give --max-length 512, for example",
        )
    if max_length is None:
        max_length = loaded.model_max_length
    max_length = whole_number("max_length", max_length, least=1)
    needed = [
        *masking.policy.layers(),
        *masking.corruption.layers(),
        *filter(None, [masking.keep]),
    ]
    usual = [MADE_BY_RULE[layer] for layer in needed if layer in MADE_BY_RULE]
    given = list(dict.fromkeys(layers))
    asked = list(dict.fromkeys([*given, *masking.policy.annotators(), *usual]))
    makers = annotators(asked)
    # Those that are given come first.
    for spec, maker in zip(given, makers):
        written = token_layers(maker.layers)
        if not {*written} & {*needed}:
            raise MaskwiseError(
                f"the annotator {spec} has no effect, because the masking reads none of its layers",
                got=f"layers {', '.join(written)}",
                allowed=f"layers {', '.join(needed)}" if needed else "no annotator",
                do="leave it out",
            )
    found = {"word_ids", *(layer for maker in makers for layer in token_layers(maker.layers))}
    missing = [layer for layer in needed if layer not in found]
    if missing:
        raise MaskwiseError(
            f"the masking reads the layer {missing[0]!r}, which no annotator adds",
            got=f"layers {', '.join(sorted(found))}",
            do="name its annotator: --with NAME, or annotate the text first (maskwise annotate), "
            """and give --with 'stored("FOLDER")'""",
        )
    documents = copy(open_corpus(texts, text_field=text_field, text_per=text_per, limit=limit))
    # Each text of the user gets its rows, as by ``encode``.
    documents.keep_repeated = True
    require_documents(documents)
    note(field_note(documents, text_field))
    for number, maker in enumerate(makers):
        if isinstance(maker, Store):
            makers[number] = maker.of(document.text for document in documents)

    def encoded(part: Sequence[Document]) -> list[dict[str, Any]]:
        plain = [document.text for document in part]
        return encode(loaded, plain, max_length=max_length, split=True, layers=makers, words=words)

    facts: dict[str, Any] = {
        "version": __version__,
        "text": str(texts),
        "text_field": text_field,
        "text_per": text_per,
        "limit": limit,
        "tokenizer": tokenizer,
        "max_length": max_length,
        "words": words,
        "with": [*map(str, asked)],
        "masking": masker.describe(),
        "step": step,
        "total_steps": total_steps,
        "form": form,
    }
    settings = json.dumps(facts)
    with folder.used(json.loads(settings)):
        before = read_json(out / FACTS) or {}
        if before:
            refuse_damaged(out)
        known = {**before.get("epochs", {})}
        new = {epoch: moments[epoch] for epoch in moments if str(epoch) not in known}
        # What has the same name may have other content by now.
        read = [tokenizer_key(loaded), *(getattr(maker, "version", "") for maker in makers)]
        made = _Parts(folder.work / "parts", f"{settings} {read}", new)
        made.make(documents, encoded)
        facts |= {"documents": made.count("documents"), "rows": made.count("rows")}
        facts["rows_sha256"] = made.digest
        if before and made.digest != before["rows_sha256"]:
            remove(made.folder)
            raise MaskwiseError(
                f"{out} has masks of epochs {', '.join(before['epochs'])}, which were made of "
                "other rows: the text, the tokenizer or an annotator has changed",
                do="give a new folder",
            )

        def fill(part: Path) -> None:
            for epoch in new:
                path = part / _file(epoch)
                made.join(path)
                if form == "datasets":
                    _save_data_set(path, part / path.stem)
                    path = path.with_suffix("")
                counts = {name: made.count(f"{name} {epoch}") for name in ("tokens", "targets")}
                known[str(epoch)] = {"file": path.name, **counts}
            facts["epochs"] = {name: known[name] for name in sorted(known, key=int)}
            write_json(part / FACTS, facts)

        fill_folder(out, fill, adds=True)
        remove(made.folder)
    facts["skipped"] = dict(documents.skipped)
    return facts


class _Parts:
    """The masks of a text in parts, from which an interrupted export goes on.

    Args:
        folder: the folder of the parts. Each has a file for each epoch, and ``PART``.
        settings: what decides the masks.
        moments: the maskers of the epochs.
    """

    def __init__(self, folder: Path, settings: str, moments: Mapping[int, Moment]):
        self.folder = folder
        self.settings = settings
        self.moments = moments
        self.facts: list[dict[str, Any]] = []

    def make(self, documents: Documents, encoded: Any) -> None:
        """Make the parts that are missing."""
        sweep(self.folder)
        for number, batch in enumerate(batches(documents, BATCH_CHARACTERS, measure=_characters)):
            place = self.folder / f"{number:06d}"
            key = hashlib.sha256(f"{self.settings} {[*self.moments]}".encode())
            for document in batch:
                key.update(hashlib.sha256(in_utf8(document.text)).digest())
            facts = read_json(place / PART) or {}
            if facts.get("key") != key.hexdigest():
                facts = {"key": key.hexdigest(), "documents": len(batch)}
                write_folder(place, partial(self._fill, encoded(batch), facts))
            self.facts.append(facts)

    def _fill(self, rows: Sequence[dict[str, Any]], facts: dict[str, Any], place: Path) -> None:
        digest = hashlib.sha256()
        for row in rows:
            for name in sorted(row):
                digest.update(np.asarray(row[name]).tobytes())
        facts |= {"rows": len(rows), "sha256": digest.hexdigest()}
        for epoch, moment in self.moments.items():
            columns = _columns(moment(rows))
            _write([_table(columns)], place / _file(epoch))
            facts[f"tokens {epoch}"] = sum(map(len, columns["input_ids"]))
            targets = (len(labels) - labels.count(IGNORE) for labels in columns["labels"])
            facts[f"targets {epoch}"] = sum(targets)
        write_json(place / PART, facts)

    def count(self, name: str) -> int:
        return sum(facts[name] for facts in self.facts)

    @property
    def digest(self) -> str:
        """A hash of all rows."""
        return hashlib.sha256(
            " ".join(facts["sha256"] for facts in self.facts).encode()
        ).hexdigest()

    def join(self, path: Path) -> None:
        """Write the file of an epoch from its parts."""
        from pyarrow.parquet import read_table

        parts = (self.folder / f"{number:06d}" / path.name for number in range(len(self.facts)))
        _write(map(read_table, parts), path)


def _file(epoch: int) -> str:
    return f"epoch-{epoch}.parquet"


def _characters(document: Document) -> int:
    return len(document.text)


def _columns(rows: Sequence[dict[str, list[int]]]) -> Lists:
    return {name: [row[name] for row in rows] for name in rows[0]}


def _table(columns: Lists) -> pyarrow.Table:
    """Return a table of lists. Ids and labels have 32 bits, and flags 8 bits."""
    import pyarrow

    ids = pyarrow.list_(pyarrow.int32())
    flags = pyarrow.list_(pyarrow.int8())
    kinds = {"attention_mask": flags, "token_type_ids": flags}
    arrays = {name: pyarrow.array(values, kinds.get(name, ids)) for name, values in columns.items()}
    return pyarrow.table(arrays)


def _write(tables: Iterable[pyarrow.Table], path: Path) -> None:
    """Write tables to a file, each as a group of rows."""
    from pyarrow.parquet import ParquetWriter

    with ExitStack() as stack:
        writer: Any = None
        for table in tables:
            if writer is None:
                made = ParquetWriter(path, table.schema, compression="zstd")
                writer = stack.enter_context(made)
            writer.write_table(table)


def _save_data_set(path: Path, folder: Path) -> None:
    """Turn a Parquet file into a folder that ``datasets.load_from_disk`` reads."""
    from datasets import Dataset, disable_progress_bars, enable_progress_bars

    cache = folder.with_suffix(".cache")
    disable_progress_bars()
    try:
        data: Any = Dataset.from_parquet(str(path), cache_dir=str(cache))
        data.save_to_disk(folder)
    finally:
        enable_progress_bars()
    del data
    shutil.rmtree(cache)
    path.unlink()
