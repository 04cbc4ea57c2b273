"""Fewer tokens: keep those that a text needs, and cut the rows of the others from the model.

A multilingual model spends half of its weights or more on tokens of many languages.
What is kept is tokenised as before, because each kind of tokenizer prefers, among the pieces of a
word, what it preferred before:

    WordPiece         The longest token at each place. Fewer tokens make no longer one.
    Unigram           The pieces with the highest sum of scores. Fewer tokens make no better sum.
    byte-level BPE    The merge with the lowest rank is made next. A token is made by merges inside
                      of it, whose results are kept with it; the other merges of the word come in
                      the order of before.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.base.printing import LOGGER
from maskwise.changes.base import Change, TrainingText, documents_for
from maskwise.masking.segments import changes, owners
from maskwise.models.loading import empty_model, keep_tokens
from maskwise.text.changed import ChangedTokens, Origins
from maskwise.text.documents import Document, read_documents
from maskwise.text.new_words import of_json, require_extensible
from maskwise.text.pieces import tokenise

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedTokenizerFast

    from maskwise.masking.draws import Array

WORD_BEGINS = "\u2581"
"""The character for the space before a word in a Unigram vocabulary."""


class TrimTokens(Change):
    """Keep the tokens that occur in a text, such as ``trim-tokens(texts.txt)``.

    Special tokens, bytes and single characters are always kept. A text whose tokens are all kept is
    tokenised as before, and the model computes the same for it.

    Args:
        text: a file or folder of texts, as for ``corpus.source``; by default, the documents of the
            corpus that are not held out. A number is that of ``most``.
        most: keep at most this many of the tokens that occur, the most frequent ones, beside those
            that are always kept; by default, all. Words of the others are cut into smaller pieces,
            which the model has not seen in their place, or are unknown if the vocabulary lacks one
            of their characters.

    Source: Abdaoui et al., Load What You Need: Smaller Versions of Multilingual BERT, 2020.
    """

    def __init__(self, text: str | int | None = None, most: int | None = None):
        if isinstance(text, int):
            if most is not None:
                raise MaskwiseError("trim-tokens has two numbers", got=f"{text}, most={most}")
            text, most = None, text
        self.most = None if most is None else whole_number("most", most, least=1)
        self.reads = () if text is None else (text,)

    def tokens(
        self, tokenizer: PreTrainedTokenizerFast, documents: TrainingText | None
    ) -> ChangedTokens:
        require_extensible(tokenizer, what="trim-tokens")
        if self.reads:
            LOGGER.info("counting the tokens of %s", *self.reads)
            documents = partial(read_documents, *self.reads)
        read = documents_for("trim-tokens", documents)
        counts, words = count_tokens(read(), tokenizer)
        occurring = np.flatnonzero(counts)
        if self.most is not None and len(occurring) > self.most:
            # Of equally frequent tokens, the lower id is kept.
            occurring = np.sort(
                occurring[np.argsort(-counts[occurring], kind="stable")][: self.most]
            )
        trimmed, ids = trim(tokenizer, occurring.tolist())
        pieces = int(counts.sum())
        fewer = counts if self.most is None else count_tokens(read(), trimmed)[0]
        shares = [pieces / words, int(fewer.sum()) / words]
        unknown = [
            int(found[of.unk_token_id]) if of.unk_token_id is not None else 0
            for found, of in ((counts, tokenizer), (fewer, trimmed))
        ]
        what = f"{len(ids):,} of {len(tokenizer):,} tokens are kept; {shares[1]:.2f} tokens a word"
        if self.most is not None:
            what += f" ({shares[0]:.2f} before); {unknown[1]:,} unknown ({unknown[0]:,} before)"
        facts = {"what": what, "tokens": [len(tokenizer), len(ids)], "words": words}
        facts |= {"pieces_per_word": shares, "unknown": unknown}
        return ChangedTokens(trimmed, Origins((*ids,)), facts)

    def check(
        self, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerFast
    ) -> PreTrainedConfig:
        require_extensible(tokenizer, what="trim-tokens")
        model = empty_model(config)
        keep_tokens(model, range(len(tokenizer)))
        return config


def count_tokens(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerFast
) -> tuple[Array, int]:
    """Count the tokens of a text.

    Returns:
        (V,) int64, how often each token occurs, without special tokens; and the number of words.
    """
    counts = np.zeros(max(tokenizer.get_vocab().values()) + 1, np.int64)
    words = 0
    for batch in tokenise(documents, tokenizer):
        counts += np.bincount(batch.columns["input_ids"], minlength=len(counts))
        word_ids = batch.columns["word_ids"]
        begins = changes(word_ids, owners(batch.lengths))
        words += int(np.count_nonzero(begins & (word_ids >= 0)))
    if not words:
        raise MaskwiseError("trim-tokens: there is no word in the text")
    return counts, words


def trim(
    tokenizer: PreTrainedTokenizerFast, kept: Iterable[int]
) -> tuple[PreTrainedTokenizerFast, list[int]]:
    """Return a tokenizer with fewer tokens, and for each of its ids, the id of before.

    Args:
        kept: ids of tokens to keep, beside special tokens, bytes and single characters.

    Raises:
        MaskwiseError: the tokenizer is not of a kind that can be trimmed.
    """
    require_extensible(tokenizer, what="trim-tokens")
    plain: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    model = plain["model"]
    entries = [token for token, _ in model["vocab"]] if isinstance(model["vocab"], list) else None
    ids_of: dict[str, int] = (
        {token: number for number, token in enumerate(entries)} if entries else model["vocab"]
    )
    names = {number: token for token, number in ids_of.items()}
    added = {token["content"]: token["id"] for token in plain["added_tokens"]}
    wanted = {names[number] for number in kept if number in names}
    wanted |= added.keys() & ids_of.keys()
    wanted |= {token for token in ids_of if _is_single(token, model)}
    around = [*_places_of_ids([plain["post_processor"], plain["padding"]])]
    wanted |= {names[where[at]] for where, at in around if where[at] in names}
    if model["type"] == "Unigram" and model["unk_id"] is not None:
        wanted.add(names[model["unk_id"]])
    elif model.get("unk_token") in ids_of:
        wanted.add(model["unk_token"])
    if model["type"] == "BPE":
        wanted |= set(_parts(wanted, model["merges"]))
    # Tokens outside the vocabulary of the model get the ids behind it when the tokenizer is read.
    order = sorted(ids_of[token] for token in wanted)
    order += sorted(number for token, number in added.items() if token not in ids_of)
    number_of = {before: after for after, before in enumerate(order)}
    if entries is not None:
        model["vocab"] = [model["vocab"][number] for number in order if number < len(entries)]
        model["unk_id"] = number_of.get(model["unk_id"])
    else:
        model["vocab"] = {names[number]: number_of[number] for number in order if number in names}
    if model["type"] == "BPE":
        model["merges"] = [
            merge for merge in model["merges"] if {*_pair(merge), "".join(_pair(merge))} <= wanted
        ]
    for token in plain["added_tokens"]:
        token["id"] = number_of[token["id"]]
    for where, at in around:
        where[at] = number_of[where[at]]
    made = of_json(plain, tokenizer)
    if len(made) != len(order):
        raise MaskwiseError(
            "trim-tokens: the ids of this tokenizer have gaps",
            got=f"{len(ids_of):,} tokens, and ids up to {max(ids_of.values()):,}",
            do="leave out trim-tokens",
        )
    return made, order


def _is_single(token: str, model: Mapping[str, Any]) -> bool:
    """Return whether a token is a character or a byte, also inside of a word."""
    if token.startswith("<0x") and token.endswith(">"):
        return True
    prefix = model.get("continuing_subword_prefix") or ""
    return len(token.removeprefix(prefix).removeprefix(WORD_BEGINS)) <= 1


def _pair(merge: str | list[str]) -> tuple[str, str]:
    """Return the tokens of a merge, which older files write as one text."""
    first, second = merge.split(" ") if isinstance(merge, str) else merge
    return first, second


def _parts(tokens: Iterable[str], merges: Iterable[str | list[str]]) -> Iterator[str]:
    """Yield the results of the merges by which BPE makes tokens from their characters."""
    ranks = {_pair(merge): rank for rank, merge in enumerate(merges)}
    last = len(ranks)
    for token in tokens:
        parts = [*token]
        while len(parts) > 1:
            pairs = [ranks.get(pair, last) for pair in pairwise(parts)]
            rank = min(pairs)
            if rank == last:
                break  # words of such a tokenizer may be tokens that no merge makes
            at = pairs.index(rank)
            parts[at : at + 2] = ["".join(parts[at : at + 2])]
            yield parts[at]


def _places_of_ids(part: Any) -> Iterator[tuple[Any, str | int]]:
    """Yield where the ids of tokens stand in what puts them around a text, or behind it.

    Each place is a list or a dict, and the index or key of the id in it.
    """
    if isinstance(part, list):
        for each in part:
            yield from _places_of_ids(each)
    elif isinstance(part, dict):
        for name, value in part.items():
            # A pair of a token and its id, in the post-processors of BERT and RoBERTa.
            if name in ("sep", "cls"):
                yield value, 1
            elif name == "ids":
                yield from ((value, number) for number in range(len(value)))
            elif name == "pad_id":
                yield part, name
            else:
                yield from _places_of_ids(value)
