"""A folder of prepared text: everything that is computed from a corpus before the first step.

For a corpus, the folder has the tokenizer, the pieces, and the rows of the training and held-out
sides (rows.py). For a stream (stream.py), it has the tokenizer, the held-out rows and token counts,
all from the beginning of the stream.
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
"""Maximum number of characters of a stream that are read before training, the same number from
each source."""
HELD_OUT_CHARACTERS = 1 << 20
"""Number of held-out characters of a stream that are kept for evaluation; the remaining held-out
text is just not trained on."""
COUNTED_CHARACTERS = 1 << 22
"""Number of characters of a stream in which tokens are counted."""

LiveLayers = Callable[[Sequence[str]], Layered]
"""A function that takes the names of annotators and builds an annotator for any text."""


@dataclass(eq=False)
class Prepared:
    """A tokenizer, and training and held-out text in rows of the same length and layout."""

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
        """Write a corpus's folder, window by window, and open it; an old folder is replaced.

        Raises:
            MaskwiseError: `read_pieces` or `split` refuses the corpus, or the folder cannot be
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
        """Write a stream's folder; only the beginning of the stream is read.

        Returns:
            A dict with ``read_characters`` (in the beginning), ``held_out_rows`` and ``skipped``.

        Raises:
            MaskwiseError: the beginning has no training text or no held-out text, or the folder
                cannot be written.
        """
        training, held_out, facts = _read_beginning(corpus, _maker(corpus, tokenizer, layers))

        def fill(partial: Path) -> None:
            held = tokenise(held_out, tokenizer, layers=layers)
            pieces = read_pieces(
                held, tokenizer=tokenizer, length=corpus.length, out=partial / PIECES
            )
            Rows.of(pieces, corpus.row_layout).save(partial / HELD_OUT)
            # The output bias is initialised from the token frequencies.
            counts = np.zeros(len(tokenizer), np.int64)
            for tokens in tokenise(training, tokenizer):
                counts += np.bincount(tokens.columns["input_ids"], minlength=len(counts))
            stream = {"corpus": corpus.model_dump(mode="json"), "counts": counts.tolist()}
            (partial / STREAM).write_text(json.dumps(stream))
            folders.write_folder(partial / TOKENIZER, tokenizer.save_pretrained)

        folders.write_folder(folder, fill)
        return {**facts, "held_out_rows": len(cls.open(folder).held_out)}

    @classmethod
    def open(cls, folder: Path, *, live: LiveLayers | None = None) -> Prepared:
        """Open the folder, memory-mapped. Each process checks it against its manifest only once.

        Args:
            folder: the folder that `make` or `begin` wrote.
            live: a function that builds the annotator for a stream with layers.

        Raises:
            MaskwiseError: the folder is damaged, or a stream's files are missing.
        """
        # The result of the check is cached together with the time when the folder was written, so a
        # folder that is written again is also checked again.
        manifest = folder / folders.MANIFEST
        wrong = _damage(folder, manifest.stat().st_mtime_ns if manifest.exists() else 0)
        if wrong:
            raise MaskwiseError(
                f"the prepared text in {folder} is damaged",
                got=wrong,
                do="run the same command again, which prepares it again",
            )
        tokenizer = load_tokenizer(str(folder / TOKENIZER))
        pieces = Pieces.load(folder / PIECES, tokenizer=tokenizer)
        held_out = Rows.load(folder / HELD_OUT, pieces)
        # Instead of training rows, a stream's folder has the settings for reading the stream.
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
    """Read every source until its shares of the training and held-out sides are full.

    Returns:
        The training documents, the held-out documents, and the facts about what was read.
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
                # Documents beyond the limit on their side are dropped.
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
                do="give more text, or use a different share",
            )
    return training, held_out, {"read_characters": read, "skipped": dict(skipped)}


@cache
def _damage(folder: Path, _written: int) -> str | None:
    return folders.damage(folder)
