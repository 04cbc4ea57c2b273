"""Tokenizer backends: trained WordPiece, BPE and letter tokenizers, and ESM's tokenizer.

Backends are objects of the library ``tokenizers``, which gives character offsets.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

import numpy as np
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

from maskwise.text.documents import batches
from maskwise.text.words import classify, codes_of, is_white, word_starts

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# The limit is in characters, so a batch holds fewer novels than tweets.
BATCH_CHARACTERS = 1 << 20
# WordPiece replaces longer words with [UNK].
LONGEST_WORD = 100
# A private Unicode plane, for letters inside a word.
INSIDE = 0xF0000
NUCLEOTIDES = frozenset("ACGTN")
# Letters that stand for amino acids but not for nucleotides. No amino acid has the letter J.
ONLY_RESIDUES = frozenset("EFILPQ")
NO_RESIDUE = "J"
# Protein tokenizers have about 30 tokens; text tokenizers have thousands.
MOST_PROTEIN_TOKENS = 256


def wordpiece_backend(corpus: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train WordPiece with the BPE trainer.

    The library's own WordPiece trainer breaks ties in the order of a randomly seeded hash map, so
    no two runs agree. The BPE trainer is deterministic, and WordPiece training is BPE on words in
    which a letter inside the word differs from the same letter at the start. Letters inside words
    are therefore moved to a private Unicode plane, and moved back when the vocabulary is read.
    (Characters beyond the basic plane, such as emoji, become [UNK].)
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)

    # The moved text is generated twice; keeping it would take four bytes of memory per character.
    def moved() -> Iterator[str]:
        for texts in batches(corpus, BATCH_CHARACTERS):
            yield _moved_inside(normalizer.normalize_str("\n".join(texts)))

    size = max(vocab_size // 12, min(100, vocab_size // 2))
    alphabet = _commonest_characters(moved(), size)
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    bpe.train_from_iterator(moved(), _bpe_trainer(vocab_size, alphabet))
    back = {ord(letter): ord(letter) - INSIDE for letter in alphabet if ord(letter) >= INSIDE}
    vocabulary = {}
    for token, number in bpe.get_vocab().items():
        prefix = ""
        if ord(token[0]) >= INSIDE:
            prefix = "##"
        vocabulary[prefix + token.translate(back)] = number
    backend = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece(prefix="##")
    backend.add_special_tokens(list(SPECIAL_TOKENS))
    return backend


def _moved_inside(text: str) -> str:
    """Put a space before each word, and move letters inside words to `INSIDE` + their code point.

    Words are also cut after every `LONGEST_WORD` letters; later parts begin with a moved letter.
    """
    codes = codes_of(text)
    kinds = classify(text)
    starts = word_starts(kinds)
    moved = np.where(starts, codes, codes + INSIDE)
    place = np.arange(len(codes))
    since_start = place - np.maximum.accumulate(np.where(starts, place, 0))
    cuts = starts | (since_start % LONGEST_WORD == 0)
    spaced = np.full(len(codes) + int(cuts.sum()), ord(" "), dtype=np.uint32)
    left_out = is_white(kinds) | (codes > 0xFFFF)
    spaced[place + cuts.cumsum()] = np.where(left_out, ord(" "), moved)
    return spaced.tobytes().decode("utf-32-le")


def _commonest_characters(texts: Iterable[str], count: int) -> list[str]:
    """Return the commonest characters except the space; ties are broken by code point."""
    total = np.zeros(0x110000, dtype=np.int64)
    for text in texts:
        codes, times = np.unique(codes_of(text), return_counts=True)
        total[codes] += times
    total[ord(" ")] = 0
    order = np.argsort(-total, kind="stable")[:count]
    return list(map(chr, order[total[order] > 0]))


def _bpe_trainer(vocab_size: int, alphabet: list[str]) -> trainers.BpeTrainer:
    return trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=alphabet,
        limit_alphabet=len(alphabet),
        show_progress=False,
    )


def bpe_backend(corpus: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train a byte-level BPE tokenizer like GPT-2's."""
    backend = Tokenizer(models.BPE())
    steps: list[normalizers.Normalizer] = [normalizers.NFC(), normalizers.Lowercase()]
    if not lowercase:
        steps.pop()
    backend.normalizer = normalizers.Sequence(steps)
    split_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False)
    parts = pre_tokenizers.Split(Regex(f".{{1,{LONGEST_WORD}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([split_bytes, parts])
    backend.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    backend.train_from_iterator(corpus, _bpe_trainer(vocab_size, alphabet))
    # Long words are cut only while the tokenizer is being trained.
    backend.pre_tokenizer = split_bytes
    return backend


def letter_backend(corpus: list[str], vocab_size: int, lowercase: bool, k: int = 1) -> Tokenizer:
    """Train a tokenizer that cuts every run of characters between spaces into parts of k letters.

    The vocabulary has the commonest parts in the corpus; all other parts become [UNK].
    """
    backend = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    if lowercase:
        backend.normalizer = normalizers.Lowercase()
    parts = pre_tokenizers.Split(Regex(f".{{1,{k}}}"), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), parts])
    backend.decoder = decoders.Fuse()
    trainer = trainers.WordLevelTrainer(
        vocab_size=vocab_size, special_tokens=list(SPECIAL_TOKENS), show_progress=False
    )
    backend.train_from_iterator(corpus, trainer)
    return backend


def is_esm(tokenizer: object) -> bool:
    return type(tokenizer).__name__ == "EsmTokenizer"


def fast_esm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Convert ESM's tokenizer, because transformers has only a slow version, without offsets.

    Residues keep their ids. Any other character becomes one unknown token.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(tokenizer.get_vocab(), unk_token=tokenizer.unk_token))
    characters = pre_tokenizers.Split(Regex("."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), characters])
    # Residues are written without spaces between them.
    backend.decoder = decoders.Fuse()
    cls = tokenizer.cls_token
    eos = tokenizer.eos_token
    backend.post_processor = processors.TemplateProcessing(
        single=f"{cls} $A {eos}",
        pair=f"{cls} $A {eos} $B {eos}",
        special_tokens=[(cls, tokenizer.cls_token_id), (eos, tokenizer.eos_token_id)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        **tokenizer.special_tokens_map,
    )


def dna_note(tokenizer: PreTrainedTokenizerBase, texts: Iterable[str]) -> str | None:
    """Return a warning if all texts look like DNA and the tokens are amino acids.

    All nucleotide letters are also amino acid letters, so no token is unknown.
    """
    tokens = tokenizer.get_vocab()
    if len(tokens) > MOST_PROTEIN_TOKENS or NO_RESIDUE in tokens:
        return None
    if not ONLY_RESIDUES.issubset(tokens):
        return None
    if not all(text and NUCLEOTIDES.issuperset(text.upper()) for text in texts):
        return None
    return (
        "these sequences have only the letters A, C, G, T and N, like DNA, but the tokenizer reads "
        "them as amino acids: translate them, or use a DNA model"
    )
