"""Extend the vocabulary of a pre-trained tokenizer with the words of a domain.

A word that the tokenizer cuts into pieces becomes one token. All other words keep their pieces, so
what the model has learned about them stays as it is:

    WordPiece         The word is an added token that matches whole words only. In the vocabulary of
                      the model, it would also become the beginning of longer words.
    byte-level BPE    The word, with the space before it, enters the vocabulary, and words of the
                      vocabulary are no longer merged (``ignore_merges``). An added token would
                      leave the space before the word as a token of its own.
    Unigram           The word enters the vocabulary with the score of its pieces. Longer words
                      that were cut into the same pieces begin with the new token now; they are cut
                      at the same places.

Words are chosen greedily by the number of pieces that they save in the training text. A new word
does not change the pieces of the other words, so the numbers stay the same after each choice, and
the order is that of a sort.
"""

from __future__ import annotations

import copy
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tokenizers import AddedToken, Tokenizer

from maskwise.base.errors import MaskwiseError, shortened
from maskwise.masking.segments import changes, owners
from maskwise.text.documents import Document
from maskwise.text.pieces import tokenise
from maskwise.text.words import classify, words_in

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

FEWEST_DOCUMENTS = 5
"""A word that is chosen from the text occurs in at least this many documents."""
MARGIN = 1e-4
"""The score of a new Unigram token is that of its pieces plus this for each piece, so that it is
preferred, also to a new token that is the beginning of it."""
SPACES = "\u2581 "
"""The characters for the space before a word: that of Unigram, and that of byte-level BPE when it
is decoded."""


class NewWord(NamedTuple):
    """A word that becomes a token.

    Attributes:
        text: the word, in lower case if the tokenizer lowercases.
        pieces: the ids of the tokens into which the tokenizer cuts it.
        documents, times: the numbers of documents with the word, and of its occurrences.
    """

    text: str
    pieces: tuple[int, ...]
    documents: int = 0
    times: int = 0

    @property
    def saved(self) -> int:
        """The number of pieces that the word saves in the text."""
        return self.times * (len(self.pieces) - 1)


class Extended(NamedTuple):
    """A tokenizer with new words.

    Attributes:
        tokenizer: the tokenizer, which also has all tokens of the old one, with the same ids.
        pieces: for each new id, the ids of the tokens into which the word was cut before.
    """

    tokenizer: PreTrainedTokenizerFast
    pieces: dict[int, tuple[int, ...]]


# The words
# -------------------------------------------------------------------------------------------


def count_words(documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast) -> list[NewWord]:
    """Count the words of a text that a tokenizer cuts into two or more pieces.

    For byte-level BPE, a word behind a space and the same word behind a bracket are two tokens,
    which are counted separately.

    Raises:
        MaskwiseError: the tokenizer cannot be extended.
    """
    require_extensible(tokenizer)
    unknown = tokenizer.unk_token_id
    # For the pieces of a word, its token in the vocabulary; None if it cannot be one.
    entries: dict[tuple[int, ...], str | None] = {}
    texts: dict[str, str] = {}
    times = Counter[str]()
    documents_with = Counter[str]()
    for batch in tokenise(documents, tokenizer):
        words = batch.columns["word_ids"]
        begins = np.flatnonzero(changes(words, owners(batch.lengths)))
        sizes = np.diff(begins, append=len(words))
        several = (sizes > 1) & (words[begins] >= 0)
        document = owners(batch.lengths)[begins[several]]
        ids = batch.columns["input_ids"].tolist()
        last = -1
        seen = set[str]()
        runs = zip(begins[several].tolist(), sizes[several].tolist(), document.tolist())
        for begin, size, number in runs:
            if number != last:
                documents_with.update(seen)
                seen = set()
                last = number
            pieces = tuple(ids[begin : begin + size])
            if pieces not in entries:
                entry, text = _entry_of(pieces, tokenizer)
                is_whole = unknown not in pieces and _is_whole(entry, tokenizer)
                entries[pieces] = entry if is_whole else None
                texts[entry] = text
            found = entries[pieces]
            if found is not None:
                times[found] += 1
                seen.add(found)
        documents_with.update(seen)
    # Unigram may cut a word differently before a comma, so the pieces are those of the word alone.
    alone = _ids_of((texts[entry].replace("\u2581", " ") for entry in times), tokenizer)
    return [
        NewWord(texts[entry].lstrip(SPACES), (*pieces,), documents_with[entry], times[entry])
        for entry, pieces in zip(times, alone)
        if len(pieces) > 1
    ]


def _is_whole(entry: str, tokenizer: PreTrainedTokenizerFast) -> bool:
    """Return whether a token is a whole word, and not the end of what the tokenizer takes for one,
    such as "free" in "sugar-free" for Unigram.
    """
    model = tokenizer.backend_tokenizer.model
    if type(model).__name__ == "Unigram":
        return entry.startswith("\u2581")
    prefix = getattr(model, "continuing_subword_prefix", None)
    return not (prefix and entry.startswith(prefix))


def candidate_words(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast
) -> list[NewWord]:
    """Return the words of a text that may become tokens.

    They consist of letters, have two or more pieces, and occur in five or more documents.

    Raises:
        MaskwiseError: the tokenizer cannot be extended.
    """
    return [
        word
        for word in count_words(documents, tokenizer)
        if word.documents >= FEWEST_DOCUMENTS and word.text.isalpha()
    ]


def choose_words(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast, number: int
) -> list[NewWord]:
    """Choose the candidates that save the most pieces in a text, at most ``number`` of them.

    Raises:
        MaskwiseError: there is no candidate, or the tokenizer cannot be extended.
    """
    chosen = candidate_words(documents, tokenizer)
    if not chosen:
        raise MaskwiseError(
            "new-tokens: no word of the training text qualifies",
            got=0,
            allowed=f"words of letters, in ≥ {FEWEST_DOCUMENTS} documents, that the tokenizer "
            "cuts into 2 or more pieces",
            do="give more text, a file with words, or leave out new-tokens",
        )
    # Equal words differ in the space before them, and therefore in their pieces.
    chosen.sort(key=lambda word: (-word.saved, word.text, word.pieces))
    return chosen[:number]


def given_words(words: Sequence[str], tokenizer: PreTrainedTokenizerFast) -> list[NewWord]:
    """Return the words of a user's list, with their pieces.

    Raises:
        MaskwiseError: a word is a token already, or the tokenizer cannot be extended.
    """
    require_extensible(tokenizer)
    for word, ids in zip(words, _ids_of((f" {word}" for word in words), tokenizer)):
        why = ""
        if tokenizer.unk_token_id in ids:
            why = "the tokenizer does not know its letters"
        elif len(ids) == 1:
            why = "it is a token already"
        if why:
            raise MaskwiseError(
                f"new-tokens: {word!r} cannot become a token",
                got=why,
                do="remove it from the file",
            )
    # For byte-level BPE, a word has two forms: with and without a space before it.
    texts = chain.from_iterable((f" {word}", word) for word in words)
    return count_words((Document("", text) for text in texts), tokenizer)


def read_words(path: Path) -> tuple[str, ...]:
    """Read a file with one word a line.

    Raises:
        MaskwiseError: the file cannot be read, has no word, or has a line that is not one word.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise MaskwiseError(
            f"new-tokens: cannot read {path}", got=reason, do="give a number, or a file of words"
        ) from None
    words: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        word = line.strip()
        if not word:
            continue
        starts, ends = words_in(classify(word))
        if starts.tolist() != [0] or ends.tolist() != [len(word)]:
            raise MaskwiseError(
                f"new-tokens: line {number} of {path} is not one word",
                got=shortened(word),
                allowed="letters and digits, one word a line",
            )
        if word in words:
            raise MaskwiseError(
                f"new-tokens: line {number} of {path} repeats line {words[word]}",
                got=word,
                do="remove one of them",
            )
        words[word] = number
    if not words:
        raise MaskwiseError(f"new-tokens: {path} has no words", allowed="one word a line")
    return (*words,)


def _entry_of(pieces: Iterable[int], tokenizer: PreTrainedTokenizerFast) -> tuple[str, str]:
    """Return the token that the pieces form, as in the vocabulary and as text."""
    model = tokenizer.backend_tokenizer.model
    tokens = tokenizer.convert_ids_to_tokens([*pieces])
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    entry = tokens[0] + "".join(token.removeprefix(prefix) for token in tokens[1:])
    if type(model).__name__ != "BPE":
        return entry, entry
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    byte_of = {char: byte for byte, char in bytes_to_unicode().items()}
    # Tokens that were added to a byte-level vocabulary are plain text.
    if not byte_of.keys() >= set(entry):
        return entry, entry
    return entry, bytes(map(byte_of.__getitem__, entry)).decode("utf-8", "replace")


# The tokenizer
# -------------------------------------------------------------------------------------------


def require_extensible(tokenizer: PreTrainedTokenizerFast, *, what: str = "new-tokens") -> None:
    """Raise ``MaskwiseError`` unless the tokens of a tokenizer can be changed, by ``what``."""
    do = f"leave out {what}, or start from a model with another tokenizer"
    if not tokenizer.is_fast:
        raise MaskwiseError(
            f"{what}: the tokens of this tokenizer cannot be changed",
            got=f"{type(tokenizer).__name__}, which runs in Python",
            do=do,
        )
    backend = tokenizer.backend_tokenizer
    kind = type(backend.model).__name__
    if kind == "BPE" and "ByteLevel" not in str(backend.pre_tokenizer):
        kind = "BPE without byte-level words"
    if kind not in ("WordPiece", "BPE", "Unigram"):
        raise MaskwiseError(
            f"{what}: the tokens of this tokenizer cannot be changed",
            got=kind,
            allowed="WordPiece, byte-level BPE, Unigram",
            do=do,
        )


def extend(tokenizer: PreTrainedTokenizerFast, words: Sequence[NewWord]) -> Extended:
    """Return a copy of a tokenizer in which words are tokens. Their ids are the next ones.

    Raises:
        MaskwiseError: the tokenizer cannot be extended, or cuts a new word still.
    """
    require_extensible(tokenizer)
    first = max(tokenizer.get_vocab().values()) + 1
    entries = [_entry_of(word.pieces, tokenizer) for word in words]
    if type(tokenizer.backend_tokenizer.model).__name__ == "WordPiece":
        longer = copy.deepcopy(tokenizer)
        tokens = [AddedToken(text, single_word=True, normalized=True) for _, text in entries]
        longer.add_tokens(tokens)
    else:
        longer = _with_entries(tokenizer, [entry for entry, _ in entries], words)
    pieces = {}
    texts = [text.replace("\u2581", " ") for _, text in entries]
    for number, (word, found) in enumerate(zip(words, _ids_of(texts, longer)), first):
        if found != [number]:
            raise MaskwiseError(
                f"new-tokens: the tokenizer cannot have {word.text!r} as a token",
                got=tokenizer.tokenize(word.text),
                do="remove this word from the file",
            )
        pieces[number] = word.pieces
    return Extended(longer, pieces)


def _ids_of(texts: Iterable[str], tokenizer: PreTrainedTokenizerFast) -> Iterator[list[int]]:
    """Yield the tokens of each text, as in a corpus."""
    for batch in tokenise((Document("", text) for text in texts), tokenizer):
        ids = batch.columns["input_ids"].tolist()
        end = 0
        for size in batch.lengths.tolist():
            yield ids[end : end + size]
            end += size


def _with_entries(
    tokenizer: PreTrainedTokenizerFast, entries: Sequence[str], words: Sequence[NewWord]
) -> PreTrainedTokenizerFast:
    """Return a copy of a BPE or Unigram tokenizer with more entries in the vocabulary."""
    plain: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    # Ids of added tokens that are not in the vocabulary of the model follow its last id, and would
    # move. So they become a part of it.
    outside = {token["content"]: token["id"] for token in plain["added_tokens"]}
    first = max(tokenizer.get_vocab().values()) + 1
    if model["type"] == "BPE":
        model["vocab"] |= outside
        model["vocab"] |= {entry: first + number for number, entry in enumerate(entries)}
        model["ignore_merges"] = True
    else:
        scores: list[list[Any]] = model["vocab"]
        lowest = min(score for _, score in scores)
        known = {entry for entry, _ in scores}
        by_id = {number: content for content, number in outside.items()}
        while len(scores) < first:
            content = by_id.get(len(scores), f"\ue000{len(scores)}")
            scores.append([content, lowest])
        for entry, word in zip(entries, words):
            if entry in known:
                raise MaskwiseError(f"new-tokens: {word.text!r} is a token already")
            score = sum(scores[piece][1] for piece in word.pieces)
            scores.append([entry, score + MARGIN * len(word.pieces)])
    return of_json(plain, tokenizer)


def of_json(plain: dict[str, Any], tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """Return a tokenizer of the ``tokenizers`` library, with the settings of another one."""
    from transformers import PreTrainedTokenizerFast

    # The classes of some families build the tokenizer anew from its vocabulary, without the
    # settings of its file.
    kept = ("model_max_length", "padding_side", "truncation_side", "model_input_names")
    settings = {name: getattr(tokenizer, name) for name in kept}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(plain)),
        **settings,
        **tokenizer.special_tokens_map,
    )


def saved_share(
    documents: Iterable[Document], before: PreTrainedTokenizerFast, after: PreTrainedTokenizerFast
) -> float:
    """Return by which share a text has fewer tokens with another tokenizer."""
    texts = [*documents]
    counts = []
    for tokenizer in (before, after):
        lengths = (int(batch.lengths.sum()) for batch in tokenise(texts, tokenizer))
        counts.append(sum(lengths))
    return 1 - counts[1] / max(1, counts[0])
