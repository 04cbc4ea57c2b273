"""A text that is ready to be trained on: a folder with all that was made of it before the first
step.

Of a corpus these are its pieces and the plans of both sides (rows.py). Of a stream (stream.py) they
are the tokenizer, held-out text and the frequencies of tokens, all from its beginning: no more than
64 million characters are read.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.numpy import load_file, save_file

from maskwise import folders
from maskwise.errors import MaskwiseError
from maskwise.text.documents import Document
from maskwise.text.layers import Layered
from maskwise.text.pieces import Pieces, read_pieces
from maskwise.text.rows import Rows, split
from maskwise.text.settings import CorpusSettings
from maskwise.text.shards import BEGINNING, Shard
from maskwise.text.stream import BlockMaker, Stream, documents_of
from maskwise.text.tokenizers import SAMPLE_CHARACTERS, Tokens, load_tokenizer, tokenise

# torch and transformers take two seconds: reading documents does not wait for them
if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SIDES = ("training", "held_out")
STREAM, COUNTS = "stream.json", "counts.safetensors"

MOST_CHARACTERS = 1 << 26
"""At most so much of a stream is read before training, each source of a mix having its part."""
HELD_OUT_CHARACTERS = 1 << 20
"""So much of what is held out of a stream is kept to judge models by; the rest is only never
trained on.
"""
COUNTED_CHARACTERS = 1 << 22
"""In so much of a stream tokens are counted."""

LiveLayers = Callable[[Sequence[str]], Layered]
"""From the names of annotators to what makes their layers of any text."""


@dataclass(eq=False)
class Prepared:
    """A tokenizer, text to be trained on, and held-out text; each in rows of the same length and
    layout.
    """

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
        """Write the folder of a corpus, window by window; a folder of that name is replaced.

        Raises:
            MaskwiseError: what `read_pieces` and `split` refuse, or a folder that cannot be
                written.
        """

        def fill(partial: Path) -> None:
            pieces = read_pieces(
                tokens, tokenizer=tokenizer, length=length, out=partial / "pieces.arrow"
            )
            for name, rows in zip(SIDES, split(pieces, held_out=held_out, layout=layout)):
                rows.save(partial / f"{name}.arrow")
            folders.write_folder(partial / "tokenizer", tokenizer.save_pretrained)

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
    ) -> dict[str, Any]:
        """Write the folder of a stream, of whose text only the beginning is read; a folder of that
        name is replaced.

        Returns:
            ``read_characters`` (of the beginning), ``held_out_rows``, ``skipped``.

        Raises:
            MaskwiseError: nothing to train on, or nothing held out, in that beginning; a folder
                that cannot be written.
        """
        maker = _maker(corpus, tokenizer, layers)
        begun = _Beginning(corpus, maker)

        def fill(partial: Path) -> None:
            held = tokenise(begun.held_out, tokenizer, layers=layers)
            pieces = read_pieces(
                held, tokenizer=tokenizer, length=corpus.length, out=partial / "pieces.arrow"
            )
            Rows.of(pieces, corpus.row_layout).save(partial / f"{SIDES[1]}.arrow")
            counts = np.zeros(len(tokenizer), np.int64)
            for tokens in tokenise(begun.training, tokenizer):
                counts += np.bincount(tokens.input_ids, minlength=len(counts))
            save_file({"counts": counts}, partial / COUNTS)
            (partial / STREAM).write_text(json.dumps(corpus.model_dump(mode="json")))
            folders.write_folder(partial / "tokenizer", tokenizer.save_pretrained)

        folders.write_folder(folder, fill)
        held_out = len(cls.open(folder).held_out)
        return {
            "read_characters": begun.characters,
            "held_out_rows": held_out,
            "skipped": dict(begun.skipped),
        }

    @classmethod
    def open(cls, folder: Path, *, live: LiveLayers | None = None) -> Prepared:
        """Open the folder, memory-mapped. A process checks it against its manifest once.

        Args:
            live: makes the layers of a stream that has any.

        Raises:
            MaskwiseError: a folder that is damaged; prepare the corpus again. A stream whose files
                are gone.
        """
        if wrong := _damage(
            folder, (folder / folders.MANIFEST).stat().st_mtime_ns if folder.is_dir() else 0
        ):
            do = "run the same command again: it is prepared anew"
            raise MaskwiseError(f"the prepared text in {folder} is damaged", got=wrong, do=do)
        tokenizer = load_tokenizer(str(folder / "tokenizer"), needs_words=False)
        pieces = Pieces.load(folder / "pieces.arrow", tokenizer=tokenizer)
        held_out = Rows.load(folder / f"{SIDES[1]}.arrow", pieces)
        training: Rows | Stream
        if (folder / STREAM).is_file():
            corpus = CorpusSettings(**(folders.read_json(folder / STREAM) or {}))
            layers = live(corpus.annotators) if live and corpus.annotators else None
            counts = load_file(folder / COUNTS)["counts"]
            maker = _maker(corpus, tokenizer, layers)
            training = Stream(corpus.shards(), maker, corpus.shuffle, corpus.repeat, counts)
        else:
            training = Rows.load(folder / f"{SIDES[0]}.arrow", pieces)
        return cls(tokenizer, training, held_out)


def first_characters(
    documents: Iterable[Document], most: int = SAMPLE_CHARACTERS
) -> Iterator[Document]:
    """The first documents, until they have ``most`` characters together: what a stream's tokenizer
    is trained on.
    """
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


class _Beginning:
    """What is taken from the beginning of a stream: of each source of a mix its part.

    Attributes:
        held_out, training: documents of both sides. characters: read. skipped: what was left out,
            by the reason.
    """

    def __init__(self, corpus: CorpusSettings, maker: BlockMaker):
        self.held_out: list[Document] = []
        self.training: list[Document] = []
        self.characters = 0
        self.skipped = Counter[str]()
        sources = corpus.shards()
        for shards in sources.values():
            self._read(shards, maker, 1 / len(sources))
        if not self.held_out or not self.training:
            side = "held-out" if self.training else "training"
            what = (
                f"corpus.held_out={corpus.held_out} leaves the {side} side of the stream's "
                f"beginning empty"
            )
            got = f"{self.characters:,} characters"
            raise MaskwiseError(what, got=got, do="give more text, or take another share")

    def _read(self, shards: Sequence[Shard], maker: BlockMaker, share: float) -> None:
        held = counted = read = 0
        for shard in shards:
            for chunk, _ in shard.chunks(BEGINNING, 1 << 20):
                documents = documents_of(chunk, maker.fields)
                for document in documents:
                    size = len(document.text)
                    read += size
                    if maker.holds_out(document):
                        if held < share * HELD_OUT_CHARACTERS:
                            self.held_out.append(document)
                            held += size
                    elif counted < share * COUNTED_CHARACTERS:
                        self.training.append(document)
                        counted += size
                self.skipped.update(documents.skipped)
                enough = (
                    held >= share * HELD_OUT_CHARACTERS and counted >= share * COUNTED_CHARACTERS
                )
                if enough or read >= share * MOST_CHARACTERS:
                    self.characters += read
                    return
        self.characters += read


@cache
def _damage(folder: Path, _written: int) -> str | None:
    return folders.damage(folder)
