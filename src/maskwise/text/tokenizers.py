"""Load tokenizers, train new tokenizers (WordPiece, BPE, letters), and convert ESM's tokenizer.

A backend is a ``Tokenizer`` of the library ``tokenizers``, which returns character offsets.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from heapq import heappop, heappush
from pathlib import Path
from string import ascii_uppercase
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Literal

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

from maskwise.base.constants import ONLY_RESIDUES
from maskwise.base.errors import MaskwiseError, first_line, require_known, whole_number
from maskwise.base.folders import FASTA, left_out, not_to_copy
from maskwise.models.starts import TEMPLATES, TOKENIZER_FILES, find_start
from maskwise.text.documents import BATCH_CHARACTERS, batches
from maskwise.text.opening import valid_texts
from maskwise.text.source import ending_of
from maskwise.text.words import (
    ROLES,
    classify,
    codes_of,
    is_white,
    no_offsets,
    text_id,
    word_starts,
)

if TYPE_CHECKING:
    # Importing transformers takes two seconds, and reading documents does not need it.
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
# WordPiece replaces longer words with [UNK].
LONGEST_WORD = 100
# First code point of a private Unicode plane, to which letters inside words are moved in training.
INSIDE = 0xF0000
# The letters of DNA as it is read, with N for a nucleotide that was not.
READ_NUCLEOTIDES = frozenset("ACGTN")
# No amino acid has the letter J.
NO_RESIDUE = "J"
# Protein tokenizers have about 30 tokens; text tokenizers have thousands.
MOST_PROTEIN_TOKENS = 256
# More text does not improve a vocabulary, but needs more memory and time.
SAMPLE_CHARACTERS = 1 << 24
# Ids are limited, because some tables have an entry for each id up to the largest, and because the
# library tokenizers reserves memory for all tokens of a new vocabulary, and ends the process if
# there is too little.
MOST_TOKENS = 1 << 24
WORDS = "bundled:tokenizer"
LETTERS = "letter"
"""Default tokenizers: ``WORDS``, the tokenizer of the bundled encoder, for text; ``LETTERS``, with
a token for each capital letter, for FASTA files."""


def has_tokenizer(folder: Path) -> bool:
    """Return whether a folder has files of a tokenizer."""
    return any(map(any, map(folder.glob, TOKENIZER_FILES)))


def load_tokenizer(
    name_or_path: str, *, needs_mask: bool = True, needs_words: bool = True
) -> PreTrainedTokenizerFast:
    """Load a tokenizer from a folder or the hub, without running code that comes with it.

    Args:
        name_or_path: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        needs_mask: whether to reject a tokenizer without a mask token, such as T5's, or without a
            padding token. Otherwise, a tokenizer without a padding token pads with its end token.
        needs_words: whether to reject a slow tokenizer, which has no character offsets.

    Raises:
        MaskwiseError: the tokenizer is not found, is damaged, needs custom code, is slow, has no
            mask or padding token, or has ids of 2²⁴ or more.
    """
    where = find_start(name_or_path)
    folder = Path(where)
    name = f"tokenizer {str(name_or_path)!r}"
    if folder.is_dir() and not has_tokenizer(folder):
        raise MaskwiseError(
            f"there is no tokenizer in {str(name_or_path)!r}",
            do="save one there: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)",
        )
    try:
        tokenizer: Any = _loaded(where)
        largest = max([*tokenizer.get_vocab().values(), *tokenizer("")["input_ids"]], default=0)
    except Exception as error:
        # Hub errors, JSON errors and errors about missing packages have no common base class.
        raise MaskwiseError(
            f"cannot load {name}",
            got=first_line(error),
            do="give a folder written by save_pretrained, or a name on the hub (the network must "
            "be reachable)",
        ) from error
    links = not_to_copy(folder, TEMPLATES)
    if links:
        # It would be saved with the tokenizer.
        tokenizer.chat_template = None
        for line in left_out(links):
            warnings.warn(line, stacklevel=2)
    if is_esm(tokenizer):
        tokenizer = fast_esm(tokenizer)
    if largest >= MOST_TOKENS:
        raise MaskwiseError(
            f"{name} has a token id that is too large",
            got=largest,
            allowed=f"< {MOST_TOKENS:,}",
        )
    if needs_words and not tokenizer.is_fast:
        raise MaskwiseError(
            f"{name} is slow: it has no character offsets, by which words are found",
            do=no_offsets(),
        )
    if needs_mask:
        require_mask(tokenizer, name)
    elif tokenizer.pad_token is None:
        # Most decoders have no padding token, and attention hides padding in any case.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def require_mask(tokenizer: PreTrainedTokenizerBase, name: str) -> None:
    """Raise an error if a tokenizer has no mask token or no padding token."""
    for kind in ("mask", "pad"):
        if getattr(tokenizer, f"{kind}_token_id") is None:
            raise MaskwiseError(
                f"{name} has no {kind} token",
                do=f'add one: tokenizer.add_special_tokens({{"{kind}_token": "[{kind.upper()}]"}})',
            )


def _loaded(where: str) -> Any:
    """Load a tokenizer with transformers, or raise any error.

    ``AutoTokenizer`` reads the tokenizer of some families of models, such as ModernBERT, by the
    class of the family, and so cannot read one that exists only in Python. Such a tokenizer is
    read by the class that its configuration names.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast
    from transformers.models.auto.tokenization_auto import (
        get_tokenizer_config,
        tokenizer_class_from_name,
    )

    try:
        return AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except Exception:
        # A hub that cannot be reached is not asked twice.
        config = get_tokenizer_config(where) if Path(where).is_dir() else {}
        own: Any = tokenizer_class_from_name(config.get("tokenizer_class") or "")
        if own is None or issubclass(own, PreTrainedTokenizerFast) or "auto_map" in config:
            raise
    return own.from_pretrained(where)


def train_tokenizer(
    texts: Iterable[str],
    *,
    kind: Literal["wordpiece", "bpe", "letter", "k-mer"] = "wordpiece",
    vocab_size: int = 2048,
    lowercase: bool = True,
    k: int = 3,
) -> PreTrainedTokenizerFast:
    """Train a tokenizer like BERT's (WordPiece) or GPT-2's (byte-level BPE), or for letters.

    The tokenizer encodes a text as [CLS] … [SEP]. Training is deterministic. If a corpus has more
    than `SAMPLE_CHARACTERS` characters, only a sample is used: the texts with the smallest hashes.
    Words are cut after 100 characters, because training time is quadratic in the word length.

    Args:
        texts: the corpus.
        kind: "wordpiece" has an alphabet of the commonest characters (a twelfth of the vocabulary,
            but usually at least 100), and encodes other characters as [UNK]. "bpe" merges bytes.
            "letter" has a token for each letter, and "k-mer" for each part of ``k`` letters.
        vocab_size: the maximum number of tokens, including special tokens.
        lowercase: whether the tokenizer lowercases texts.
        k: the number of letters per token, for "k-mer".

    Raises:
        MaskwiseError: the kind is unknown, the vocabulary is too small for its alphabet or has more
            than 2²⁴ tokens, ``k`` is not valid, or there is no text or one that is no valid string.

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
    require_known("kind of tokenizer", kind, train)
    vocab_size = whole_number("vocab_size", vocab_size, least=1, most=MOST_TOKENS)
    # The alphabet of byte-level BPE is all 256 bytes.
    least = {"wordpiece": 64, "bpe": len(SPECIAL_TOKENS) + 256}.get(kind, len(SPECIAL_TOKENS) + 1)
    if vocab_size < least:
        raise MaskwiseError(
            f"vocab_size is too small for {kind}",
            got=vocab_size,
            allowed=f"≥ {least}",
        )
    whole_number("k", k, least=1)
    corpus = _sample(valid_texts(texts))
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


def _sample(texts: Iterable[str]) -> list[str]:
    """Return the texts with the smallest hashes, up to `SAMPLE_CHARACTERS`, in corpus order."""
    # Hashes are negated, so that `heappop` removes the text with the largest hash.
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
    """A tokenizer from a tokenizer.json, with those methods of transformers that masking needs.

    Its purpose is to avoid the import of transformers, which takes two seconds.
    """

    is_fast = True
    model_max_length = sys.maxsize

    def __init__(self, backend: Tokenizer, names: Mapping[str, str]):
        backend.no_truncation()
        backend.no_padding()
        # If a text contains the name of a special token, the name is plain text.
        backend.encode_special_tokens = True
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
        """Read a folder from ``save_pretrained``; return None if only transformers can read it."""
        names = {}
        # The library tokenizers raises plain `Exception`s, so all exceptions are caught.
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
            # If the file names no such token, a tokenizer class in transformers may define one.
            if getattr(made, f"{role}_token_id") is None:
                return None
        if largest >= MOST_TOKENS:
            return None
        return made

    def get_vocab(self) -> dict[str, int]:
        return self.backend.get_vocab(with_added_tokens=True)

    def __call__(
        self, texts: list[str], *, add_special_tokens: bool = True, **settings: object
    ) -> SimpleNamespace:
        encode = self.backend.encode_batch
        return SimpleNamespace(encodings=encode(texts, add_special_tokens=add_special_tokens))

    def decode(self, ids: list[int], **settings: object) -> str:
        return self.backend.decode(ids, skip_special_tokens=False)

    def convert_ids_to_tokens(self, number: int) -> str | None:
        return self.backend.id_to_token(number)


def usual_tokenizer(text: str) -> str:
    """Return the tokenizer to use for a text or a file: ``LETTERS`` for FASTA, else ``WORDS``."""
    if ending_of(Path(text)) in FASTA:
        return LETTERS
    return WORDS


def light_tokenizer(name: str, *, needs_words: bool = True) -> Any:
    """Load a tokenizer, if possible without importing transformers.

    ``needs_words`` is that of `load_tokenizer`.
    """
    if name == LETTERS:
        roles = {"pad": "[PAD]", "unk": "[UNK]", "mask": "[MASK]"}
        return LightTokenizer(letter_backend([*ascii_uppercase], 64, lowercase=False), roles)
    tokenizer = LightTokenizer.read(Path(find_start(name)))
    if tokenizer is None:
        return load_tokenizer(name, needs_mask=False, needs_words=needs_words)
    if name == WORDS:
        # T5's corruption needs tokens that the bundled tokenizer does not have.
        sentinels = [f"<extra_id_{number}>" for number in range(100)]
        tokenizer.backend.add_special_tokens(sentinels)
    return tokenizer


# Backends
# -------------------------------------------------------------------------------------------


SPACES = str.maketrans("\n\t\r", "   ")


def wordpiece_backend(corpus: list[str], vocab_size: int, lowercase: bool) -> Tokenizer:
    """Train WordPiece with the BPE trainer, which is deterministic.

    The library's WordPiece trainer breaks ties in the order of a randomly seeded hash map, so two
    runs return different vocabularies. WordPiece training is the same as BPE training on words in
    which a letter inside the word differs from the same letter at the start. Letters inside words
    are therefore moved to a private Unicode plane, and moved back after training. Characters beyond
    the basic plane, such as emoji, become [UNK].
    """
    normalizer = normalizers.BertNormalizer(lowercase=lowercase)
    # A text has few distinct words, and each is normalised once.
    normalized = cache(normalizer.normalize_str)

    # The moved text is computed twice, because storing it would take four bytes per character.
    def moved() -> Iterator[str]:
        for texts in batches(corpus, BATCH_CHARACTERS):
            # The normaliser turns these characters into spaces, and reads no character beyond them.
            words = " ".join(texts).translate(SPACES).split(" ")
            yield _moved_inside(" ".join(map(normalized, words)))

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

    Words are cut after every `LONGEST_WORD` letters. All letters after a cut are inside a word.
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
    """Return the ``count`` commonest characters except the space. Code points break ties."""
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
    # Long words were cut only for training.
    backend.pre_tokenizer = split_bytes
    return backend


def letter_backend(corpus: list[str], vocab_size: int, lowercase: bool, k: int = 1) -> Tokenizer:
    """Train a tokenizer that cuts the text between spaces into parts of k letters.

    The vocabulary has the commonest parts in the corpus. All other parts become [UNK].
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
    """Convert ESM's tokenizer to a fast tokenizer, because transformers has only a slow one.

    Amino acids keep their ids. Any other character becomes one unknown token.
    """
    from transformers import PreTrainedTokenizerFast

    backend = Tokenizer(models.WordLevel(tokenizer.get_vocab(), unk_token=tokenizer.unk_token))
    characters = pre_tokenizers.Split(Regex("."), "isolated")
    backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), characters])
    # Decoded amino acids are written without spaces between them.
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
    """Return a warning if all texts look like DNA but the tokens are amino acids, else None.

    DNA has no unknown tokens then, because A, C, G, T and N are also letters of amino acids.
    """
    tokens = tokenizer.get_vocab()
    if len(tokens) > MOST_PROTEIN_TOKENS or NO_RESIDUE in tokens:
        return None
    if not ONLY_RESIDUES.issubset(tokens):
        return None
    if not all(text and READ_NUCLEOTIDES.issuperset(text.upper()) for text in texts):
        return None
    return (
        "these sequences have only the letters A, C, G, T and N, like DNA, but the tokenizer reads "
        "them as amino acids: translate them, or use a DNA model"
    )
