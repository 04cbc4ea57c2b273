"""Samples of the texts of a recipe, from which its rows and targets are counted."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from maskwise.recipe import Recipe
from maskwise.studies.checks import text_of
from maskwise.studies.rehearsal import SHARES, Rehearsal, TextPart
from maskwise.studies.stages import prepare_stage
from maskwise.studies.work import annotated, write_rows
from maskwise.text import Prepared, Rows
from maskwise.text.settings import CorpusSettings


class TextSample(NamedTuple):
    """A prepared sample of a recipe's text.

    Attributes:
        data: the rows.
        part: the part of the text that they were made from. Of a stream, this is all that is known.
        held_out_rows: the number of held-out rows of the whole text.
    """

    data: Prepared
    part: TextPart
    held_out_rows: int

    @property
    def rows(self) -> Rows:
        """The training rows of the sample, even if its text is a stream."""
        assert isinstance(self.data.training, Rows)
        return self.data.training


class Samples:
    """Prepares samples of a recipe's text for all training phases, as a rehearsal does.

    Phases with the same tokenizer, row length and layout share a sample.

    Args:
        link: the recipe of the training phase whose text is counted.
        folder: the folder for the samples.
    """

    def __init__(self, link: Recipe, folder: Path):
        self.link = link.unlearned()
        self.rehearsal = Rehearsal(folder)
        self.prepared: dict[tuple[object, ...], TextSample] = {}

    @property
    def first(self) -> TextSample:
        """The sample of ``link``. Its text is counted for a few seconds at most."""
        return self.of(self.link)

    def of(self, link: Recipe) -> TextSample:
        """Return a sample of a training phase's text, prepared as its rows."""
        link = link.unlearned()
        key = text_of(link)
        if key not in self.prepared:
            text = prepare_stage(link)
            self.rehearsal.whole[text.name] = text
            part = self.rehearsal.part_of_stage(text)
            data = self.rehearsal.prepared(text.name)
            rows = self.rehearsal.held_out_rows(text.name)
            if link.corpus.stream:
                data = self._rows(link.corpus, data, part.characters)
                rows = len(data.held_out)
                # The rows of the whole text are unknown.
                known = part.counts._replace(
                    documents=part.documents, characters=part.characters, whole=False
                )
                part = part._replace(limit=None, counts=known)
            self.prepared[key] = TextSample(data, part, round(rows))
        return self.prepared[key]

    def _rows(self, corpus: CorpusSettings, data: Prepared, characters: int) -> Prepared:
        """Prepare the beginning of a stream as rows, which training would make while it runs."""
        folder = self.rehearsal.store.own / f"rows-{len(self.prepared)}"
        some = corpus.documents().beginning(characters)
        held_out = max(SHARES[0], corpus.held_out)
        return write_rows(
            folder / "rows",
            some,
            data.tokenizer,
            corpus.model_copy(update={"held_out": held_out}),
            layers=annotated(some, corpus, folder / "layers"),
            origins=data.origins,
        )
