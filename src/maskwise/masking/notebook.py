"""A masked batch as notebooks show it: its first rows in words, with what is hidden in colour."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:
    from maskwise.masking.batch import MaskedBatch

ROWS, TOKENS = 8, 128
"""So much of a batch is shown."""
HIDDEN = "background: #0b5d8f; color: #fff; border-radius: 3px; padding: 0 .25em"


def html_of(batch: MaskedBatch) -> str:
    """The first rows of a batch as HTML; a word in colour must be produced, and the tip says which
    one it is.

    Of encoder–decoders both sides are shown. Every token is escaped.

    >>> from maskwise import Masker, encode
    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
    >>> masker = Masker(tokenizer, ratio=0.5, corruption="mask-only")
    >>> batch = masker(encode(tokenizer, ["the cat sat on the mat"]), epoch=0)
    >>> html_of(batch).count("[MASK]") == batch.targets
    True
    """
    names = (
        {}
        if batch.vocabulary is None
        else {i: name for name, i in batch.vocabulary.by_name.items()}
    )
    pad = None if batch.vocabulary is None else batch.vocabulary.pad

    def words(ids_L: Tensor, labels_L: Tensor | None = None) -> str:
        parts = []
        for place, token in enumerate(ids_L[:TOKENS].tolist()):
            # −100 where nothing is to be found
            wanted = -1 if labels_L is None else int(labels_L[place])
            if (token == pad or token < 0) and wanted < 0:
                continue
            text = escape(names.get(token, str(token)))
            if wanted >= 0:
                tip = escape(f"to find: {names.get(wanted, wanted)}")
                text = f'<mark style="{HIDDEN}" title="{tip}">{text}</mark>'
            parts.append(text)
        return " ".join(parts) + (" …" if len(ids_L) > TOKENS else "")

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
    end = f"<p><small>and {more:,} more rows</small></p>" if more > 0 else ""
    return f"<div><p><b>{escape(repr(batch))}</b></p>{''.join(lines)}{end}</div>"
