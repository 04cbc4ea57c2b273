"""Show a masked batch in a notebook: its first rows as text, with the targets in colour."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from maskwise.masking.batch import IGNORE, MaskedBatch

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 8
"""Rows to show."""
TOKENS = 128
"""Tokens of each row to show."""
HIDDEN = "background: #0b5d8f; color: #fff; border-radius: 3px; padding: 0 .25em"


def html_of(batch: MaskedBatch) -> str:
    """The first rows of a batch as HTML; a tooltip on a coloured token shows the target.

    For encoder–decoders it shows inputs and labels.

    >>> from maskwise import Masker, encode
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = Masker(tokenizer, ratio=0.5, corruption="mask-only")
    >>> batch = masker(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> html_of(batch).count("[MASK]") == batch.targets
    True
    """
    names: dict[int, str] = {}
    pad = None
    if batch.vocabulary is not None:
        pad = batch.vocabulary.pad
        names = {number: name for name, number in batch.vocabulary.by_name.items()}

    def words(ids_L: Tensor, labels_L: Tensor | None = None) -> str:
        parts = []
        for place, token in enumerate(ids_L[:TOKENS].tolist()):
            wanted = IGNORE if labels_L is None else int(labels_L[place])
            if (token == pad or token < 0) and wanted < 0:
                continue
            # Tokens such as <s> would otherwise be read as HTML.
            text = escape(names.get(token, str(token)))
            if wanted >= 0:
                tip = escape(f"to find: {names.get(wanted, wanted)}")
                text = f'<mark style="{HIDDEN}" title="{tip}">{text}</mark>'
            parts.append(text)
        if len(ids_L) > TOKENS:
            parts.append("…")
        return " ".join(parts)

    lines = []
    for inputs_L, labels_L in zip(batch.input_ids[:ROWS], batch.labels[:ROWS]):
        if batch.writes:
            lines.append(
                f"<p><small>reads</small> {words(inputs_L)}<br><small>writes</small> "
                f"{words(labels_L)}</p>"
            )
        else:
            lines.append(f"<p>{words(inputs_L, labels_L)}</p>")
    more = len(batch.input_ids) - ROWS
    if more > 0:
        lines.append(f"<p><small>and {more:,} more rows</small></p>")
    return f"<div><p><b>{escape(repr(batch))}</b></p>{''.join(lines)}</div>"
