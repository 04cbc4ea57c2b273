"""A folder of prepared text: everything that is computed from a corpus before the first step.

For a corpus it has the tokenizer, the pieces and the rows of both sides (rows.py). For a stream
(stream.py) it has the tokenizer, the held-out rows and counts of tokens, all from the beginning of
the stream.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from maskwise import folders
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import Layered
from maskwise.text.pieces import Pieces, Tokens, read_pieces
from maskwise.text.rows import Rows, split
from maskwise.text.settings import CorpusSettings
from maskwise.text.stream import BlockMaker, Stream, read_shards
from maskwise.text.tokenizers import SAMPLE_CHARACTERS, load_tokenizer, tokenise

# Both torch and transformers take seconds to import, and reading documents needs neither.
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

TRAINING = "training"
HELD_OUT = "held_out"
PIECES = "pieces"
TOKENIZER = "tokenizer"
STREAM = "stream.json"

MOST_CHARACTERS = 1 << 26
"""Most characters of a stream that are read before training, in equal shares for the sources."""
HELD_OUT_CHARACTERS = 1 << 20
"""Held-out characters of a stream that are kept for evaluation; the rest is just not trained on."""
COUNTED_CHARACTERS = 1 << 22
"""Characters of a stream in which tokens are counted."""

LiveLayers = Callable[[Sequence[str]], Layered]
"""A function that builds an annotator for any text from the names of annotators."""


@dataclass(eq=False)
class Prepared:
    """A tokenizer, training text and held-out text, in rows of the same length and layout."""

    tokenizer: PreTrainedTokenizerFast
    training: Rows | Stream
    held_out: Rows

    @classmethod
    def make(
        cls,
        folder: Path,
        tokens: Iterable[Tokens],
        tokenizer: PreTrainedTokenizerBase,
        *,
        length: int,
        layout: str,
        held_out: float,
    ) -> Prepared:
        """Write the folder of a corpus, window by window, and open it; an old folder is replaced.

        Raises:
            MaskwiseError: what `read_pieces` and `split` refuse, or a folder that cannot be
                written.
        """

        def fill(partial: Path) -> None:
            pieces = read_pieces(tokens, tokenizer=tokenizer, length=length, out=partial / PIECES)
            training, held = split(pieces, held_out=held_out, layout=layout)
            training.save(partial / TRAINING)
            held.save(partial / HELD_OUT)
            folders.write_folder(partial / TOKENIZER, tokenizer.save_pretrained)

        folders.write_folder(folder, fill)
        return cls.open(folder)

    @classmethod
    def begin(
        cls,
        folder: Path,
        corpus: CorpusSettings,
        tokenizer: PreTrainedTokenizerFast,
        *,
        layers: Layered | None = None,
    ) -> dict[str, object]:
        """Write the folder of a stream; only the beginning of the stream is read.

        Returns:
            ``read_characters`` (of the beginning), ``held_out_rows``, ``skipped``.

        Raises:
            MaskwiseError: no training text or no held-out text in the beginning; a folder that
                cannot be written.
        """
        training, held_out, facts = _read_beginning(corpus, _maker(corpus, tokenizer, layers))

        def fill(partial: Path) -> None:
            held = tokenise(held_out, tokenizer, layers=layers)
            pieces = read_pieces(
                held, tokenizer=tokenizer, length=corpus.length, out=partial / PIECES
            )
            Rows.of(pieces, corpus.row_layout).save(partial / HELD_OUT)
            # The output bias is initialised with the frequencies of tokens.
            counts = np.zeros(len(tokenizer), np.int64)
            for tokens in tokenise(training, tokenizer):
                counts += np.bincount(tokens.input_ids, minlength=len(counts))
            stream = {"corpus": corpus.model_dump(mode="json"), "counts": counts.tolist()}
            (partial / STREAM).write_text(json.dumps(stream))
            folders.write_folder(partial / TOKENIZER, tokenizer.save_pretrained)

        folders.write_folder(folder, fill)
        return {**facts, "held_out_rows": len(cls.open(folder).held_out)}

    @classmethod
    def open(cls, folder: Path, *, live: LiveLayers | None = None) -> Prepared:
        """Open the folder, memory-mapped. Each process checks it against its manifest only once.

        Args:
            folder: what `make` or `begin` wrote.
            live: builds the annotator of a stream with layers.

        Raises:
            MaskwiseError: the folder is damaged, or the files of a stream are missing.
        """
        # The check is cached with the time of writing, so a folder that is written again is checked
        # again.
        manifest = folder / folders.MANIFEST
        wrong = _damage(folder, manifest.stat().st_mtime_ns if manifest.exists() else 0)
        if wrong:
            raise MaskwiseError(
                f"the prepared text in {folder} is damaged",
                got=wrong,
                do="run the same command again, which prepares it again",
            )
        tokenizer = load_tokenizer(str(folder / TOKENIZER), needs_words=False)
        pieces = Pieces.load(folder / PIECES, tokenizer=tokenizer)
        held_out = Rows.load(folder / HELD_OUT, pieces)
        # Instead of training rows, a stream has the settings with which it is read.
        stream = folders.read_json(folder / STREAM)
        if stream is None:
            return cls(tokenizer, Rows.load(folder / TRAINING, pieces), held_out)
        corpus = CorpusSettings(**stream["corpus"])
        layers = live(corpus.annotators) if live and corpus.annotators else None
        training = Stream(
            corpus.shards(),
            _maker(corpus, tokenizer, layers),
            corpus.shuffle,
            corpus.repeat,
            np.array(stream["counts"]),
        )
        return cls(tokenizer, training, held_out)


def first_characters(
    documents: Iterable[Document], most: int = SAMPLE_CHARACTERS
) -> Iterator[Document]:
    """Yield documents until they have ``most`` characters in total."""
    total = 0
    for document in documents:
        yield document
        total += len(document.text)
        if total >= most:
            return


def _maker(
    corpus: CorpusSettings, tokenizer: PreTrainedTokenizerFast, layers: Layered | None
) -> BlockMaker:
    return BlockMaker(
        tokenizer, corpus.length, corpus.row_layout, corpus.held_out, corpus.record_fields, layers
    )


def _read_beginning(
    corpus: CorpusSettings, maker: BlockMaker
) -> tuple[list[Document], list[Document], dict[str, object]]:
    """Read every source until its share of both sides is full.

    Returns:
        Documents of the training and of the held-out side, and what was read for them.
    """
    training = []
    held_out = []
    read = 0
    skipped = Counter[str]()
    sources = corpus.shards()
    most_held = HELD_OUT_CHARACTERS / len(sources)
    most_counted = COUNTED_CHARACTERS / len(sources)
    for name, shards in sources.items():
        held = counted = characters = 0
        documents = read_shards(shards, maker.fields, name=name)
        for document in documents:
            size = len(document.text)
            characters += size
            if maker.holds_out(document):
                # Documents beyond the limits of their side are dropped.
                if held < most_held:
                    held_out.append(document)
                    held += size
            elif counted < most_counted:
                training.append(document)
                counted += size
            both_full = held >= most_held and counted >= most_counted
            if both_full or characters >= MOST_CHARACTERS / len(sources):
                break
        read += characters
        skipped.update(documents.skipped)
    for side, kept in (("training", training), ("held-out", held_out)):
        if not kept:
            raise MaskwiseError(
                f"corpus.held_out={corpus.held_out} leaves the {side} side of the stream's "
                "beginning empty",
                got=f"{read:,} characters",
                do="give more text, or use another share",
            )
    return training, held_out, {"read_characters": read, "skipped": dict(skipped)}


@cache
def _damage(folder: Path, _written: int) -> str | None:
    return folders.damage(folder)
