"""``maskwise evaluate``: any checkpoint with a masked-language-model head, on any text and any sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from transformers.utils import logging

from maskwise.errors import MaskwiseError, unknown_name
from maskwise.evaluation.evaluate import evaluate, load_sets
from maskwise.evaluation.settings import EvaluationSettings
from maskwise.models import load_model, most_tokens
from maskwise.text import Rows, load_tokenizer, read_documents, read_pieces, require_documents, tokenise
from maskwise.training.machine import best_device

MEASURES = ("heldout", "pseudo-perplexity", "cloze", "pairs")
PERPLEXITY_ROWS = 32
"""Rows for the pseudo-perplexity if it is not said how many."""
LONGEST = 128
"""Tokens of a row of the text, if the model can take as many."""


@dataclass(frozen=True)
class _Text:
    tokenizer: Any
    held_out: Rows | None
    training: None = None


def settings_of(measures: Sequence[str]) -> EvaluationSettings:
    """Settings from words: ``pairs:FILE``, ``cloze:FILE``, ``pseudo-perplexity`` or ``pseudo-perplexity:ROWS``,
    ``heldout``."""
    asked: dict[str, list[str]] = {name: [] for name in MEASURES}
    for measure in measures:
        name, _, spec = measure.partition(":")
        if name not in asked:
            raise unknown_name("measure", name, MEASURES)
        if name in ("cloze", "pairs") and not spec:
            raise MaskwiseError(f"{name} needs a file", do=f"say {name}:FILE, or pairs:bundled:pairs")
        asked[name].append(spec)
    rows = next(iter(asked["pseudo-perplexity"]), "0") or str(PERPLEXITY_ROWS)
    if not rows.isdigit():
        raise MaskwiseError("pseudo-perplexity:ROWS takes a number of rows", got=rows)
    return EvaluationSettings(
        pseudo_perplexity=int(rows), cloze=tuple(asked["cloze"]), pairs=tuple(asked["pairs"])
    )


def evaluate_checkpoint(
    model: str, measures: Sequence[str], *, text: str | None = None, text_field: str = "text"
) -> list[dict[str, Any]]:
    """The records of a checkpoint.

    Args:
        model: a folder or hub id. measures: see ``settings_of``.
        text: a corpus that the model was not trained on, for held-out loss and pseudo-perplexity.

    Raises:
        MaskwiseError: nothing to measure, or anything of it that cannot be read.
    """
    settings = settings_of(measures)
    load_sets(settings)  # a bad file is said before a model is loaded
    on_text = settings.pseudo_perplexity or any(measure == "heldout" for measure in measures)
    if on_text and text is None:
        raise MaskwiseError("held-out loss and pseudo-perplexity need a text", do="give --text FILE")
    if not measures and text is None:
        raise MaskwiseError("nothing to measure", do="give --with pairs:bundled:pairs, or --text FILE")
    logging.disable_progress_bar()
    network: Any = load_model(model)
    network.to(best_device())
    tokenizer = load_tokenizer(model)
    held_out = None
    if text is not None:
        documents = require_documents(read_documents(text, text_field=text_field))
        length = min(LONGEST, most_tokens(network.config))
        pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
        held_out = Rows.of(pieces, "document")
    return evaluate(network, _Text(tokenizer, held_out), settings)
