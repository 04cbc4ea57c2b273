"""Tokenizers, and documents → tokens with their words.

Tokens go through the Rust tokenizer in batches, and each batch once through the word layer. Nothing
in a corpus is a control token: "[MASK]" written in a text is text. A tokenizer file may carry
truncation and padding from a former life (sentence encoders cut at 128 tokens); here a private copy
without either is used.

Cost: nearly all of it is the Rust tokenizer's; the word layer adds about a sixth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from heapq import heappop, heappush
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray
from tokenizers import (
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from maskwise.errors import MaskwiseError, first_line, unknown_name
from maskwise.segments import rank_within
from maskwise.starts import TOKENIZER_FILES, find_start
from maskwise.text.documents import Document, batches, source_of
from maskwise.text.layers import Layered, align
from maskwise.text.words import (
    classify,
    flat_offsets,
    is_white,
    number_words,
    place_tokens,
    text_id,
    tokenizing,
    word_starts,
)

if TYPE_CHECKING:  # transformers takes two seconds: reading documents does not wait for it
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

    from maskwise.keys import Array

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
_INSIDE = 0xF0000  # a private plane, for letters inside a word
_BATCH_CHARACTERS = 1 << 20  # a batch of novels is cut shorter than a batch of tweets
SAMPLE_CHARACTERS = 1 << 24  # a vocabulary does not get better with more; memory and minutes grow
MOST_TOKENS = 1 << 24
LONGEST_WORD = 100  # WordPiece makes [UNK] of a longer one


class Tokens(NamedTuple):
    """One document of n tokens, without special tokens.

    Attributes:
        word_ids: (n,) the running number of each token's word, −1 for none; None where a slow
            tokenizer cannot tell.
        layers: other layers, (n,) each, which are carried into the pieces.
        source: the number of the corpus that the document is from.
    """

    document_id: str
    input_ids: NDArray[np.int32]  # (n,)
    word_ids: NDArray[np.int32] | None
    layers: Mapping[str, Array] = MappingProxyType({})
    source: int = 0

    def columns(self) -> dict[str, Array]:
        """Everything that is known of each token, by name."""
        words = {} if self.word_ids is None else {"word_ids": self.word_ids}
        return {"input_ids": self.input_ids, **words, **self.layers}


def load_tokenizer(
    name_or_path: str, *, needs_mask: bool = True, needs_words: bool = True
) -> PreTrainedTokenizerFast:
    """A fast tokenizer from a folder or the Hugging Face hub. Code that comes with it is never run.

    Args:
        name_or_path: as for ``starts.find_start``.
        needs_mask: refuse a tokenizer without a mask token (T5's have none) or a padding token.
        needs_words: refuse a slow tokenizer, which has no character offsets: without words only
            single tokens can be masked.

    Raises:
        MaskwiseError: a tokenizer that is not found, is damaged, cannot be read without its own
            code, is slow, has no mask token, or has ids of 2²⁴ and more.
    """
    from transformers import AutoTokenizer

    where = find_start(name_or_path)
    folder = Path(where)
    if folder.is_dir() and not any(file for kind in TOKENIZER_FILES for file in folder.glob(kind)):
        got = ", ".join(sorted(path.name for path in folder.iterdir())[:3]) or "an empty folder"
        do = "give a folder to which a tokenizer was saved too, or name one"
        raise MaskwiseError(f"there is no tokenizer in {str(name_or_path)!r}", got=got, do=do)
    try:
        tokenizer: Any = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
        largest = max([*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]], default=0)
    except Exception as error:  # the hub, JSON, missing extras: no common base
        do = (
            "give a folder written by save_pretrained, or a name on the hub (the network must "
            "be reachable)"
        )
        raise MaskwiseError(
            f"cannot load tokenizer {str(name_or_path)!r}", got=first_line(error), do=do
        ) from error
    if largest >= MOST_TOKENS:  # tables are as long as the largest id
        what = f"tokenizer {str(name_or_path)!r} has too large a token id"
        raise MaskwiseError(what, got=largest, allowed=f"< {MOST_TOKENS:,}")
    if needs_words and not getattr(tokenizer, "is_fast", False):
        do = "convert it to a tokenizer.json; words are found by character offsets"
        raise MaskwiseError(f"tokenizer {str(name_or_path)!r} is slow: it has no offsets", do=do)
    if needs_mask and tokenizer.mask_token_id is None:
        do = 'add one: tokenizer.add_special_tokens({"mask_token": "[MASK]"})'
        raise MaskwiseError(f"tokenizer {str(name_or_path)!r} has no mask token", do=do)
    if needs_mask and tokenizer.pad_token_id is None:
        do = 'add one: tokenizer.add_special_tokens({"pad_token": "[PAD]"})'
        raise MaskwiseError(f"tokenizer {str(name_or_path)!r} has no padding token", do=do)
    return tokenizer


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["wordpiece", "bpe", "letter", "k-mer"] = "wordpiece",
    vocab_size: int = 2048,
    lowercase: bool = True,
    k: int = 3,
) -> PreTrainedTokenizerFast:
    """A tokenizer of our own: BERT's (WordPiece) or GPT-2's (byte-level BPE), framed as [CLS] …
    [SEP]; or one for text without words, whose tokens are letters, or k letters each.

    The same texts give the same tokenizer. A WordPiece vocabulary keeps only the commonest
    characters, a twelfth of itself or 100, since a rare character becomes [UNK] either way (with
    the trainer's defaults, 843 of 2,048 entries were single characters).

    Of more than `SAMPLE_CHARACTERS` characters a sample of so many is taken (the hash of a text
    says whether it is in) and held in memory. A word counts in parts of `LONGEST_WORD` characters,
    since the trainer's time grows with the square of a word.

    >>> train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64).tokenize("The mat")
    ['the', 'mat']

    Raises:
        MaskwiseError: for an unknown kind, a vocabulary too small for its alphabet, or no text.
    """
    from transformers import PreTrainedTokenizerFast

    if kind not in (kinds := ("wordpiece", "bpe", "letter", "k-mer")):
        raise unknown_name("kind of tokenizer", kind, kinds)
    least = {"wordpiece": 64, "bpe": len(SPECIAL_TOKENS) + 256}.get(kind, len(SPECIAL_TOKENS) + 1)
    if vocab_size < least:
        raise MaskwiseError(
            f"vocab_size is too small for {kind}", got=vocab_size, allowed=f"≥ {least}"
        )
    corpus = _sample(texts)
    if not any(text.strip() for text in corpus):
        raise MaskwiseError(
            "no text to train a tokenizer on", do="check the corpus and its text field"
        )
    if kind in ("letter", "k-mer"):
        backend = _letters(
            corpus, vocab_size, lowercase, k if kind == "k-mer" else 1, SPECIAL_TOKENS
        )
    else:
        backend = (_wordpiece if kind == "wordpiece" else _bpe)(corpus, vocab_size, lowercase)
    frame = [(token, backend.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    template, pair = "[CLS] $A [SEP]", "[CLS] $A [SEP] $B:1 [SEP]:1"
    backend.post_processor = processors.TemplateProcessing(
        single=template, pair=pair, special_tokens=frame
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
    """Every document's tokens and words, in order, without special tokens and uncut.

    Args:
        documents: (id, text) pairs.
        tokenizer: a fast tokenizer. A slow one has no character offsets, so its tokens come without
            words.
        batch_size: at most so many documents go through the tokenizer together.
        layers: an annotator or a store of annotations: its layers are laid on the tokens
            (`layers.align`).
        places: add the layers "start" and "end", the visible characters of the document that each
            token covers.
        words: how words are found: auto, spaces, token (each is a word, also with a slow tokenizer)
            or regex:PATTERN.

    Raises:
        MaskwiseError: layers for a slow tokenizer.
    """
    if not getattr(tokenizer, "is_fast", False):
        if layers is not None:
            what = "layers need a fast tokenizer, for its character offsets"
            raise MaskwiseError(
                what, got=type(tokenizer).__name__, do="convert it to a tokenizer.json"
            )
        if words not in ("auto", "token"):
            what = f"corpus.words: {words} needs a fast tokenizer, for its character offsets"
            raise MaskwiseError(
                what,
                got=type(tokenizer).__name__,
                do="take token, or convert it to a tokenizer.json",
            )
        yield from _without_words(documents, tokenizer, numbered=words == "token")
        return
    backend = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True  # a special token's name in a text is text
    for batch in batches(
        documents, _BATCH_CHARACTERS, measure=lambda each: len(each.text), most=batch_size
    ):
        texts = [document.text for document in batch]
        with tokenizing():
            encodings = backend.encode_batch(texts, add_special_tokens=False)
        offsets, lengths = flat_offsets(encodings)
        placed = place_tokens(texts, offsets, lengths, special=np.zeros(len(offsets), dtype=bool))
        columns: dict[str, Array] = {"word_ids": number_words(placed)}
        if words == "token":
            columns["word_ids"] = rank_within(lengths).astype(np.int32)
        elif words != "auto":
            none = np.zeros(len(offsets), dtype=bool)
            columns["word_ids"] = number_words(
                place_tokens(texts, offsets, lengths, special=none, rule=words)
            )
        if layers is not None:
            columns |= align(layers.annotate(texts), layers.layers, placed, columns["word_ids"])
        if places:
            base = np.repeat(placed.base, lengths)
            columns |= {"start": placed.first - base, "end": placed.last + 1 - base}
        ends = np.cumsum(lengths).tolist()
        for document, encoding, start, end in zip(batch, encodings, [0, *ends], ends):
            ids = np.array(encoding.ids, dtype=np.int32)
            word_ids, *rest = (column[start:end] for column in columns.values())
            yield Tokens(
                document.id, ids, word_ids, dict(zip([*columns][1:], rest)), source_of(document)
            )


def _without_words(
    documents: Iterable[Document], tokenizer: PreTrainedTokenizerBase, *, numbered: bool
) -> Iterator[Tokens]:
    for document in documents:
        ids = tokenizer(document.text, add_special_tokens=False, truncation=False, verbose=False)[
            "input_ids"
        ]
        words = np.arange(len(ids), dtype=np.int32) if numbered else None
        yield Tokens(document.id, np.array(ids, dtype=np.int32), words, source=source_of(document))


def _wordpiece(corpus: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """A WordPiece tokenizer, trained by BPE.

    The library's own WordPiece trainer numbers "##a", "##b", … in the order of a randomly seeded
    hash map and breaks ties by these numbers: no two runs agree. Its BPE trainer is deterministic,
    and WordPiece training is BPE on words in which a letter inside is another letter than one at
    the start. So letters inside are moved to a private plane, and back when the vocabulary is read.
    (Characters beyond the basic plane, such as emoji, become [UNK].)
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)

    def moved() -> Iterator[str]:  # made twice: held in memory, it is four bytes a character
        for texts in batches(corpus, _BATCH_CHARACTERS):
            yield _move_inside_letters(normalizer.normalize_str("\n".join(texts)))

    alphabet = _commonest_characters(
        moved(), count=max(vocab_size // 12, min(100, vocab_size // 2))
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(moved(), trainer)
    back = {ord(letter): ord(letter) - _INSIDE for letter in alphabet if ord(letter) >= _INSIDE}
    pieces = {
        ("##" if ord(token[0]) >= _INSIDE else "") + token.translate(back): number
        for token, number in bpe.get_vocab().items()
    }
    backend = Tokenizer(models.WordPiece(pieces, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def _move_inside_letters(text: str) -> str:
    """The words of a text with a space before each and the letters inside at `_INSIDE` + their code
    point.

    The parts of a word that is longer than `LONGEST_WORD` stand apart, but begin with a letter from
    inside.
    """
    codes = np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32)
    kinds = classify(text)
    starts = word_starts(kinds)
    moved = np.where(starts, codes, codes + _INSIDE)
    place = np.arange(len(codes))
    cuts = starts | (
        (place - np.maximum.accumulate(np.where(starts, place, 0))) % LONGEST_WORD == 0
    )
    spaced = np.full(len(codes) + int(cuts.sum()), ord(" "), dtype=np.uint32)
    nothing = is_white(kinds) | (codes > 0xFFFF)
    spaced[place + np.cumsum(cuts)] = np.where(nothing, ord(" "), moved)
    return spaced.tobytes().decode("utf-32-le")


def _bpe(corpus: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    backend = Tokenizer(models.BPE())
    steps = [normalizers.NFC(), *([normalizers.Lowercase()] if lowercase else [])]
    backend.normalizer = normalizers.Sequence(steps)
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    parts = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split_bytes, parts])
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    backend.train_from_iterator(corpus, trainer)
    backend.pre_tokenizer = split_bytes
    return backend


def _letters(
    corpus: Iterable[str], vocab_size: int, lowercase: bool, k: int, special: Iterable[str]
) -> Tokenizer:
    """A tokenizer that cuts what stands between spaces into parts of k letters, the last of them
    perhaps shorter.

    Its vocabulary are the commonest parts of the corpus; others are [UNK].

    Args:
        special: the special tokens, [UNK] among them; they come first.
    """
    counts: Counter[str] = Counter()
    for text in corpus:
        for word in (text.lower() if lowercase else text).split():
            counts.update(word if k == 1 else (word[i : i + k] for i in range(0, len(word), k)))
    names = list(special)
    common = sorted(counts.items(), key=lambda item: (-item[1], item[0]))[: vocab_size - len(names)]
    names += [part for part, _ in common]
    backend = Tokenizer(
        models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
    )
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    parts = pre_tokenizers.Split(Regex(f".{{1,{k}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), parts])
    backend.decoder = decoders.Fuse()
    backend.add_special_tokens(list(special))
    return backend


def _sample(texts: Iterable[str]) -> list[str]:
    """All texts of a small corpus; of a large one those with the smallest hashes, in their order."""
    kept: list[tuple[int, int, str]] = []  # a heap: the largest hash first
    size, limit = 0, 1 << 63
    for place, text in enumerate(texts):
        number = text_id(text)
        if number < limit:
            heappush(kept, (-number, place, text))
            size += len(text)
        while size > SAMPLE_CHARACTERS and len(kept) > 1:
            largest, _, dropped = heappop(kept)
            limit, size = -largest, size - len(dropped)
    return [text for _, text in sorted((place, text) for _, place, text in kept)]


def _commonest_characters(texts: Iterable[str], *, count: int) -> list[str]:
    """The `count` commonest characters but the space; ties by code point."""
    total = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        codes, times = np.unique(
            np.frombuffer(text.encode("utf-32-le"), dtype=np.uint32), return_counts=True
        )
        total[codes] += times
    total[ord(" ")] = 0
    order = np.argsort(-total, kind="stable")[:count]
    return [chr(code) for code in order if total[code]]
