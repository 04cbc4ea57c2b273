"""Tokenizers, and documents → tokens with their words.

The Rust tokenizer tokenises texts in batches, and the words of a whole batch are numbered at once.
Nothing in a corpus is a control token: "[MASK]" written in a text is text. If a tokenizer file sets
truncation and padding (sentence encoders cut at 128 tokens), both are switched off in a copy.

Cost: almost only the Rust tokenizer's time; finding words adds about a sixth.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from string import ascii_uppercase
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from tokenizers import Tokenizer, processors

from maskwise.errors import MaskwiseError, first_line, unknown_name, whole_number
from maskwise.segments import rank_within
from maskwise.starts import TOKENIZER_FILES, find_start
from maskwise.text.backends import (
    BATCH_CHARACTERS,
    SPECIAL_TOKENS,
    bpe_backend,
    fast_esm,
    is_esm,
    letter_backend,
    wordpiece_backend,
)
from maskwise.text.documents import Document, batches
from maskwise.text.layers import Layered, align
from maskwise.text.pieces import Tokens
from maskwise.text.readers import FASTA_ENDINGS, known_ending
from maskwise.text.words import (
    flat_offsets,
    number_words,
    place_tokens,
    text_id,
    tokenizing,
)

if TYPE_CHECKING:
    # Importing transformers takes two seconds, and reading documents does not need it.
    from transformers import PreTrainedTokenizerFast

# With more text, a vocabulary does not get better, but training it takes more memory and time.
SAMPLE_CHARACTERS = 1 << 24
# A limit on ids, because tables are as long as the largest id.
MOST_TOKENS = 1 << 24
WORDS = "bundled:tokenizer"
LETTERS = "letter"
"""The tokenizers that are used if none is named: the bundled encoder's tokenizer, or a tokenizer
with a token for each capital letter."""
ROLES = ("unk", "bos", "eos", "pad", "mask", "cls", "sep")


def load_tokenizer(name_or_path: str, *, needs_mask: bool = True) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or the hub, without running code that comes with it.

    Args:
        name_or_path: as for ``starts.find_start``.
        needs_mask: whether to refuse a tokenizer without a mask token (T5's have none) or without a
            padding token.

    Raises:
        MaskwiseError: the tokenizer is not found, is damaged, cannot be read without its own code,
            is slow, has no mask or padding token, or has ids of 2²⁴ or more.
    """
    from transformers import AutoTokenizer

    where = find_start(name_or_path)
    folder = Path(where)
    name = f"tokenizer {str(name_or_path)!r}"
    if folder.is_dir() and not any(map(any, map(folder.glob, TOKENIZER_FILES))):
        raise MaskwiseError(
            f"there is no tokenizer in {str(name_or_path)!r}",
            do="save one there: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)",
        )
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        largest = max([*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]], default=0)
    except Exception as error:
        # Hub errors, JSON errors and errors about missing packages have no common base class.
        raise MaskwiseError(
            f"cannot load {name}",
            got=first_line(error),
            do="give a folder written by save_pretrained, or a name on the hub (the network must "
            "be reachable)",
        ) from error
    if is_esm(tokenizer):
        tokenizer = fast_esm(tokenizer)
    if largest >= MOST_TOKENS:
        raise MaskwiseError(
            f"{name} has a token id that is too large",
            got=largest,
            allowed=f"< {MOST_TOKENS:,}",
        )
    # A slow tokenizer has no character offsets, by which words and layers are found.
    if not tokenizer.is_fast:
        raise MaskwiseError(
            f"{name} is slow: it has no offsets",
            do="convert it to a tokenizer.json; words are found by character offsets",
        )
    if needs_mask:
        for kind in ("mask", "pad"):
            if getattr(tokenizer, f"{kind}_token_id") is None:
                raise MaskwiseError(
                    f"{name} has no {kind} token",
                    do="add one: tokenizer.add_special_tokens("
                    f'{{"{kind}_token": "[{kind.upper()}]"}})',
                )
    return tokenizer


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["wordpiece", "bpe", "letter", "k-mer"] = "wordpiece",
    vocab_size: int = 2048,
    lowercase: bool = True,
    k: int = 3,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer like BERT's (WordPiece) or GPT-2's (byte-level BPE), or for letters.

    Rows are framed as [CLS] … [SEP]. The same texts give the same tokenizer. A corpus of more than
    `SAMPLE_CHARACTERS` characters is sampled, by the hashes of its texts. Words are cut into parts
    of 100 characters, because the training time is quadratic in the length of a word.

    Args:
        texts: the corpus.
        kind: "wordpiece" keeps only the commonest characters, a twelfth of the vocabulary or 100,
            because rare characters are [UNK] either way. "letter" makes each letter a token,
            "k-mer" each part of ``k`` letters.
        vocab_size: the maximum number of tokens, including special tokens.
        lowercase: whether texts are lowercased.
        k: the number of letters per token, for "k-mer".

    Raises:
        MaskwiseError: the kind is unknown, the vocabulary is too small for its alphabet, ``k`` is
            not valid, or there is no text.

    >>> train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64).tokenize("The mat")
    ['the', 'mat']
    """
    from transformers import PreTrainedTokenizerFast

    train: dict[str, Callable[[list[str], int, bool], Tokenizer]] = {
        "wordpiece": wordpiece_backend,
        "bpe": bpe_backend,
        "letter": letter_backend,
        "k-mer": partial(letter_backend, k=k),
    }
    if kind not in train:
        raise unknown_name("kind of tokenizer", kind, train)
    # Bytes are the alphabet of BPE.
    least = {"wordpiece": 64, "bpe": len(SPECIAL_TOKENS) + 256}.get(kind, len(SPECIAL_TOKENS) + 1)
    if vocab_size < least:
        raise MaskwiseError(
            f"vocab_size is too small for {kind}",
            got=vocab_size,
            allowed=f"≥ {least}",
        )
    whole_number("k", k, least=1)
    corpus = _sample(texts)
    if not any(map(str.strip, corpus)):
        raise MaskwiseError(
            "no text to train a tokenizer on",
            do="check the corpus and its text field",
        )
    backend = train[kind](corpus, vocab_size, lowercase)
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    names = ("pad_token", "unk_token", "cls_token", "sep_token", "mask_token")
    return PreTrainedTokenizerFast(tokenizer_object=backend, **dict(zip(names, SPECIAL_TOKENS)))


def tokenise(
    documents: Iterable[Document],
    tokenizer: PreTrainedTokenizerFast,
    *,
    batch_size: int = 256,
    layers: Layered | None = None,
    places: bool = False,
    words: str = "auto",
) -> Iterator[Tokens]:
    """Yield the tokens and words of documents, a batch at a time, without special tokens.

    Args:
        documents: names and texts.
        tokenizer: a fast tokenizer.
        batch_size: the maximum number of documents that go through the tokenizer together.
        layers: an annotator or a store of annotations, whose layers are aligned with the tokens.
        places: whether to add the layers "start" and "end", the visible characters of the document
            that each token covers.
        words: the word rule: auto, spaces, token (each token is a word) or regex:PATTERN.
    """
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    # A special token's name that occurs in a text is plain text.
    backend.encode_special_tokens = True
    for batch in batches(
        documents, BATCH_CHARACTERS, measure=lambda document: len(document.text), most=batch_size
    ):
        texts = [document.text for document in batch]
        with tokenizing():
            encodings = backend.encode_batch(texts, add_special_tokens=False)
        ids = chain.from_iterable(encoding.ids for encoding in encodings)
        offsets, lengths = flat_offsets(encodings)
        # Layers are aligned by BERT's rule, whatever the word rule is.
        placed = place_tokens(texts, offsets, lengths)
        if words == "token":
            word_ids = rank_within(lengths).astype(np.int32)
        elif words == "auto":
            word_ids = number_words(placed)
        else:
            word_ids = number_words(place_tokens(texts, offsets, lengths, rule=words))
        columns = {"input_ids": np.fromiter(ids, np.int32), "word_ids": word_ids}
        if layers is not None:
            columns |= align(layers.annotate(texts), layers.layers, placed, word_ids)
        if places:
            base = placed.base.repeat(lengths)
            columns |= {"start": placed.first - base, "end": placed.last + 1 - base}
        yield Tokens(batch, lengths, columns)


def _sample(texts: Iterable[str]) -> list[str]:
    """Return all texts of a small corpus, else the texts with the smallest hashes, in order."""
    # Hashes are negated, because a heap's first item is its smallest.
    kept: list[tuple[int, int, str]] = []
    size = 0
    limit = 1 << 63
    for place, text in enumerate(texts):
        number = text_id(text)
        if number < limit:
            heappush(kept, (-number, place, text))
            size += len(text)
        while size > SAMPLE_CHARACTERS and len(kept) > 1:
            largest, _, dropped = heappop(kept)
            limit = -largest
            size -= len(dropped)
    kept.sort(key=lambda item: item[1])
    return [text for _, _, text in kept]


class LightTokenizer:
    """A tokenizer.json with the part of transformers' interface that masking needs.

    Using this class avoids importing transformers, which takes two seconds.
    """

    is_fast = True
    model_max_length = sys.maxsize

    def __init__(self, backend: Tokenizer, names: Mapping[str, str]):
        backend.no_truncation()
        backend.no_padding()
        self.backend = backend
        self.added_tokens_decoder = backend.get_added_tokens_decoder()
        added = self.added_tokens_decoder.items()
        self.all_special_ids = [number for number, token in added if token.special]
        self.unk_token = names.get("unk")
        for role in ROLES:
            number = backend.token_to_id(names.get(role, ""))
            setattr(self, f"{role}_token_id", number)

    @classmethod
    def read(cls, folder: Path) -> LightTokenizer | None:
        """Read what ``save_pretrained`` wrote; None if reading fails or needs transformers."""
        names = {}
        # The library tokenizers raises no exception narrower than Exception.
        try:
            config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
            for role in ROLES:
                name = config.get(f"{role}_token")
                # Older versions of transformers write an object with the settings of the token.
                if isinstance(name, dict):
                    name = name["content"]
                if name:
                    names[role] = name
            made = cls(Tokenizer.from_file(str(folder / "tokenizer.json")), names)
            framing = made([""]).encodings[0].ids
            largest = max([*made.get_vocab().values(), *framing])
        except Exception:
            return None
        for role in ("unk", "pad", "mask"):
            # If the file names no token for a role, the tokenizer's class may define the token.
            if getattr(made, f"{role}_token_id") is None:
                return None
        if largest >= MOST_TOKENS:
            return None
        return made

    def get_vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def __call__(self, texts: list[str], **settings: object) -> SimpleNamespace:
        return SimpleNamespace(encodings=self.backend.encode_batch(texts))

    def decode(self, ids: list[int], **settings: object) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def convert_ids_to_tokens(self, number: int) -> str | None:
        return self.backend.id_to_token(number)


def usual_tokenizer(text: str) -> str:
    """Return the tokenizer to use for a text or a file: ``LETTERS`` for FASTA, else ``WORDS``."""
    if known_ending(Path(text)) in FASTA_ENDINGS:
        return LETTERS
    return WORDS


def light_tokenizer(name: str) -> Any:
    """Load a tokenizer without transformers if possible."""
    if name == LETTERS:
        roles = {"pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
        return LightTokenizer(letter_backend([*ascii_uppercase], 64, lowercase=False), roles)
    tokenizer = LightTokenizer.read(Path(find_start(name)))
    if tokenizer is None:
        return load_tokenizer(name, needs_mask=False)
    if name == WORDS:
        # T5's and UL2's corruptions need tokens that the bundled tokenizer does not have.
        sentinels = [f"<extra_id_{number}>" for number in range(100)]
        tokenizer.backend.add_special_tokens([*sentinels, "[R]", "[S]", "[X]"])
    return tokenizer
