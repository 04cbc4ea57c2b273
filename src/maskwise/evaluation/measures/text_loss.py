"""The held-out loss on a text that the study does not train on, such as general text: a measure for
``evaluation.measures``, which shows what a model has forgotten.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, cast

from maskwise.base.constants import NATS
from maskwise.base.errors import MaskwiseError, finite_number, require_known, whole_number
from maskwise.evaluation.measure import Measure, hash_of_attributes
from maskwise.evaluation.scoring import HeldOut, fixed_maskers
from maskwise.evaluation.sets import evenly
from maskwise.models.families import most_tokens
from maskwise.objectives.denoising import predicting
from maskwise.results.measurements import Measurement
from maskwise.text import Rows, read_documents, read_pieces, require_documents, tokenise
from maskwise.text.documents import Document
from maskwise.text.rows import holds_out, is_dev

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase, PreTrainedTokenizerFast

DOCUMENTS, ROWS = 200, 128
"""Defaults: the number of documents, and the number of their rows that are masked."""
LOOKED_AT = 20_000
"""The maximum number of documents that are read."""
LONGEST, LONGEST_TEXT = 128, 4000
"""The maximum number of tokens of a row, and of characters of a document."""
MASKS = ("token", "whole-word")
"""The kinds of fixed masks."""
LEAST = 5
"""The minimum number of documents."""


@dataclass(frozen=True)
class TextLoss(Measure):
    """The loss on masked tokens of N documents, in nats per token.

    Attributes:
        name: the name of the measure.
        documents: (N,) the texts.
        ratio: the masking ratio.
        rows: the maximum number of rows.
        masks: the kind of fixed masks, as in ``evaluation.masks``.

    >>> text = TextLoss.read("bundled:wikipedia", documents=10)
    >>> text.name, len(text.documents)
    ('wikipedia', 10)
    """

    name: str
    documents: tuple[str, ...]
    ratio: float
    rows: int
    masks: str = "token"

    @classmethod
    def read(
        cls,
        source: str,
        name: str = "",
        text_field: str = "text",
        held_out: float = 0.0,
        of_verdict: bool = False,
        ratio: float = 0.15,
        documents: int = DOCUMENTS,
        rows: int = ROWS,
        masks: str = "token",
        text_per: str = "auto",
        group_field: str = "",
    ) -> TextLoss:
        """The loss on masked tokens of a text, such as general text, in nats per token.

        Args:
            source: the corpus, as for ``read_documents``.
            name: the name of the measure; by default, that of the corpus.
            text_field: the field with the text.
            held_out: the share of the documents that no arm trains on, as ``corpus.held_out``; 0 if
                the arms train on none of this corpus.
            of_verdict: whether to leave out held-out documents that choose the best state of a
                training (``rows.is_dev``).
            ratio: the masking ratio.
            documents: the maximum number of documents, which are evenly spaced.
            rows: the maximum number of rows.
            masks: the kind of fixed masks: "token" or "whole-word". A model that was trained with
                one kind becomes worse at the other, also on text that it trains on.
            text_per, group_field: the settings of the corpus of arms that train on this text, which
                decide with ``held_out`` what is held out.

        Raises:
            MaskwiseError: the corpus cannot be read or has too few documents, the kind of masks is
                unknown, or a number is not valid.
        """
        require_known("masks", masks, MASKS)
        if not 0 < finite_number("ratio of text-loss", ratio) < 1:
            raise MaskwiseError(
                "ratio of text-loss is not valid", got=ratio, allowed="above 0 and below 1"
            )
        whole_number("rows of text-loss", rows, least=1)
        whole_number("documents of text-loss", documents, least=1)
        finite_number("held_out of text-loss", held_out, least=0, most=1)
        read = require_documents(
            read_documents(
                source, text_field=text_field, text_per=text_per, group_field=group_field
            )
        )
        chosen: Iterable[Document] = read
        if held_out:
            chosen = (document for document in read if holds_out(document, held_out))
        if of_verdict:
            chosen = (document for document in chosen if not is_dev(document.place))
        found = [*islice(chosen, LOOKED_AT)]
        if len(found) < LEAST:
            raise MaskwiseError(
                f"too few documents of {source} to measure the loss on it",
                got=f"{len(found)} documents" + (" that are held out" if held_out else ""),
                allowed=f"≥ {LEAST}",
                do="give more text" + (", or raise corpus.held_out" if held_out else ""),
            )
        texts = tuple(document.text[:LONGEST_TEXT] for document in evenly(found, documents))
        name = name or source.removeprefix("bundled:")
        return cls(name, texts, ratio, rows, masks)

    def content(self) -> str:
        # Stages that measured single tokens keep their names.
        if self.masks == "token":
            facts = {name: value for name, value in vars(self).items() if name != "masks"}
            return hash_of_attributes(facts)
        return super().content()

    def texts(self) -> list[tuple[str, ...]]:
        return [(text,) for text in self.documents]

    def part(self, count: int) -> TextLoss:
        return replace(self, documents=(*evenly([*self.documents], count),))

    def measure(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        *,
        seed: int = 0,
        folder: Path | None = None,
    ) -> list[Measurement]:
        """Return one row with the loss.

        Raises:
            MaskwiseError: no token can be masked.
        """
        length = min(LONGEST, most_tokens(model.config))
        fast = cast("PreTrainedTokenizerFast", tokenizer)
        tokens = tokenise(read_documents([*self.documents]), fast)
        rows = Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=length), "document")
        objective = predicting(model)
        maskers = fixed_maskers(
            tokenizer, masks=[self.masks], ratio=self.ratio, kind=objective.kind, length=length
        )
        losses = HeldOut(
            rows.laid(objective.reads(rows.layout, model.config)),
            maskers,
            None,
            rows=self.rows,
        )(objective)
        if not losses:
            raise MaskwiseError(f"no token of {self.name} can be masked", do="give more text")
        (line,) = losses
        return [
            Measurement(
                measure=self.name,
                metric=NATS,
                unit=NATS,
                value=line["loss"],
                higher_is_better=False,
                items=line["targets"],
            )
        ]
