"""The vocabulary: tables that say which token ids are special and which may be masked.

The tables are read once from a tokenizer. The collator of transformers has no such tables. It asks
the tokenizer about every row, which takes most of the collator's time.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property
from string import ascii_uppercase
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from maskwise.base.constants import ONLY_RESIDUES
from maskwise.base.errors import MaskwiseError, did_you_mean
from maskwise.masking.draws import Array

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Tokenizer: TypeAlias = "PreTrainedTokenizerBase | Vocabulary"
"""The types from which a masker reads its vocabulary."""


ALPHABET = frozenset(ascii_uppercase)
RESIDUES = frozenset("ACDEFGHIKLMNPQRSTVWY")
"""The letters of the twenty amino acids."""
RARE = frozenset("XBZUO")
"""The other letters of ESM's alphabet."""
NUCLEOTIDES = frozenset("ACGTU")
ANY_NUCLEOTIDE = frozenset("RYSWKMBDHVN")
"""Letters for one of several nucleotides (IUPAC)."""
SIGNS = frozenset(("", ".", "-", "*", "|", "~", "<null_1>"))
"""Gaps, ends and fillers in vocabularies of sequences."""


# Places that vocabularies keep for tokens to come, as BERT's ``[unused17]``. No text has them.
_SPARE = re.compile(r"\[unused_?\d+\]|<unused_?\d+>|madeupword\d+")
# Names such as ``<gap>``, which are no letters of a sequence.
_BRACKETED = re.compile(r"<.+>|\[.+\]")
# Unigram tokenizers, such as mT5's, write a space before the sentinels, as before words.
_SENTINEL = re.compile(r"\u2581?<extra_id_(\d+)>")


def wildcards(names: Iterable[str], added: Container[str] = ()) -> set[str]:
    """Return the tokens of a sequence with a letter that stands for no certain one.

    The tokens must be single letters or k-mers, in upper or lower case. In proteins, X (any amino
    acid), B, J and Z (one of two), the rare U and O, and signs such as gaps and ESM's ``<null_1>``
    are not certain; in DNA, N and the other letters for several nucleotides. In any other
    vocabulary, such as the letters of a text, there are none. Capitals are of proteins if they
    include E, F, I, L, P and Q, also all 26, because single capitals are rarely a text. Lower-case
    letters are of proteins if they include all twenty amino acids and no o, which nearly all texts
    have; or if they are ESM's alphabet. Names such as ``<gap>`` decide nothing, and are ordinary
    tokens.

    Args:
        names: the tokens of the vocabulary that may be masked.
        added: those that were added later. They do not decide either whether it is of sequences.

    Source: the nomenclature of IUPAC-IUB (1983, 1985).

    >>> sorted(wildcards([*"ACDEFGHIKLMNPQRSTVWYXBZ", "-"])), wildcards("acgtn")
    (['-', 'B', 'X', 'Z'], {'n'})
    >>> wildcards(["ACG", "TNN", "T"]), wildcards("abcdefghijklmnopqrstuvwxyz")
    ({'TNN'}, set())
    >>> sorted(wildcards([*"ACGTN", "<gap>", "motif", "Y"], added={"motif", "Y"}))
    ['N', 'Y']
    """
    # Unigram tokenizers write a space before each letter.
    bare = {name: name.removeprefix("\u2581") for name in names}
    tokens = [
        token
        for name, token in bare.items()
        if name not in added and token not in SIGNS and not _BRACKETED.fullmatch(token)
    ]
    lengths = [*map(len, tokens)]
    longest = max(lengths, default=0)
    # Most tokens of k letters are k-mers. Only the ends of sequences are shorter.
    if 2 * lengths.count(longest) < len(lengths):
        return set()
    written = set("".join(tokens)) - SIGNS
    letters = {letter.upper() for letter in written}
    if not letters <= ALPHABET:
        return set()
    lower = written != letters
    if letters >= (RESIDUES if lower else ONLY_RESIDUES):
        known = RESIDUES
    elif set("ACG") <= letters <= NUCLEOTIDES | ANY_NUCLEOTIDE:
        known = NUCLEOTIDES
    else:
        return set()
    # Texts have an "o", and proteins hardly ever (pyrrolysine), but the alphabet of ESM has it.
    if lower and known is RESIDUES and "O" in letters and letters != RESIDUES | RARE:
        return set()
    found = {name for name, token in bare.items() if token in SIGNS}
    for name, token in bare.items():
        written = {*token.upper()}
        # Longer tokens, and those with other signs, are added or bracketed names.
        if len(token) <= longest and known < known | written <= ALPHABET | SIGNS:
            found.add(name)
    return found


def pad_has_role(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the padding token is also another special token, such as the end of a text."""
    roles = ("bos", "eos", "cls", "sep", "unk", "mask")
    others = [getattr(tokenizer, f"{role}_token_id") for role in roles]
    return tokenizer.pad_token_id in others


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """Tables over the V token ids.

    Attributes:
        size: V, the largest id plus one. Rows with larger ids cause an error.
        mask, pad, bos, eos: ids of special tokens; None if the tokenizer has no such token. A mask
            token that is also the padding, the unknown or another special token counts as none.
        content: (V,) bool, False for special tokens and for ids without a token. Masking never
            selects or moves special tokens, and never uses them as random replacements.
        eligible: (V,) bool, the ids that may be masked, and that may replace a masked token at
            random: all content ids except [UNK], which is useless as a target, the ``wildcards`` of
            proteins and DNA, and spare tokens that no text has, such as BERT's ``[unused17]``.
        sentinels: the ids of T5's sentinels (``<extra_id_0>``, ``<extra_id_1>``, …; in mT5, a
            space is before the name), ordered by the number in their names.
        by_name: a dict from each token to its id.
        pad_has_role: whether the padding token is also another special token, such as the
            end-of-sequence token or [UNK]. Then only an ``attention_mask`` shows what is padding.
    """

    size: int
    mask: int | None
    pad: int
    content: Array
    eligible: Array
    sentinels: tuple[int, ...] = ()
    bos: int | None = None
    eos: int | None = None
    by_name: dict[str, int] = field(default_factory=dict, repr=False)
    pad_has_role: bool = False

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> Vocabulary:
        """Read the tables of a Hugging Face tokenizer, fast or slow.

        Raises:
            MaskwiseError: the argument is not a tokenizer, or the tokenizer has no padding token or
                no ordinary token.
        """
        if isinstance(tokenizer, Vocabulary):
            return tokenizer
        if isinstance(tokenizer, type) or not hasattr(tokenizer, "all_special_ids"):
            raise MaskwiseError(
                "a masker needs a tokenizer",
                got=repr(tokenizer),
                allowed="a transformers tokenizer, or a Vocabulary",
                do="load a tokenizer with transformers.AutoTokenizer.from_pretrained(NAME)",
            )
        by_name = tokenizer.get_vocab()
        size = max(by_name.values()) + 1
        sentinels = []
        for name, number in by_name.items():
            found = _SENTINEL.fullmatch(name)
            if found:
                # Of two with the same number, the one that was added to the tokenizer comes last.
                sentinels.append((int(found[1]), name.startswith("<"), number))
        sentinel_ids = tuple({number: each for number, _, each in sorted(sentinels)}.values())
        special = {*tokenizer.all_special_ids, *(each for _, _, each in sentinels)}
        # ``all_special_ids`` lacks reserved tokens such as ``[unused1]``. Only the table of added
        # tokens marks them as special.
        added = set()
        for number, token in tokenizer.added_tokens_decoder.items():
            added.add(token.content)
            if token.special:
                special.add(number)
        unknown = tokenizer.unk_token_id
        bos = tokenizer.bos_token_id
        eos = tokenizer.eos_token_id
        pad = tokenizer.pad_token_id
        mask = tokenizer.mask_token_id
        first = bos if tokenizer.cls_token_id is None else tokenizer.cls_token_id
        last = eos if tokenizer.sep_token_id is None else tokenizer.sep_token_id
        # A model cannot tell such a mask from padding, an unknown word or the end of a text.
        if mask in (pad, unknown, bos, eos, first, last):
            mask = None
        # [UNK] replaces a word of the text, so it is content. In tokenizers of the GPT-2 family,
        # one token is bos, eos and unk. This token stays special.
        if unknown not in (bos, eos, pad):
            special.discard(unknown)
        content = np.zeros(size, bool)
        content[list(by_name.values())] = True
        # An added token may have an id above all ids of the vocabulary.
        numbers = np.array([*special], np.int64)
        content[numbers[numbers < size]] = False
        eligible = content.copy()
        if unknown is not None:
            eligible[unknown] = False
        names = {name for name, number in by_name.items() if eligible[number]}
        spare = {name for name in names if _SPARE.fullmatch(name)}
        names -= spare
        # In some tokenizers, all letters are added tokens.
        without_text = spare | (wildcards(names, added) or wildcards(names))
        eligible[[by_name[name] for name in without_text]] = False
        if not eligible.any():
            raise MaskwiseError(
                "the tokenizer has no ordinary token",
                got=f"{size} ids, all special",
            )
        if pad is None:
            raise MaskwiseError("the tokenizer has no padding token", do="set tokenizer.pad_token")
        return cls(
            size=size,
            mask=mask,
            pad=pad,
            content=content,
            eligible=eligible,
            sentinels=sentinel_ids,
            bos=first,
            eos=last,
            by_name=by_name,
            pad_has_role=pad_has_role(tokenizer),
        )

    def without(self, names: Iterable[str]) -> Vocabulary:
        """Return this vocabulary with further tokens that are not eligible.

        Raises:
            MaskwiseError: a name is not in the vocabulary, or no eligible token is left.
        """
        eligible = self.eligible.copy()
        for name in names:
            if not isinstance(name, str) or name not in self.by_name:
                near = did_you_mean(name, list(self.by_name)) if len(self.by_name) < 1000 else None
                raise MaskwiseError(
                    "exclude names a token that the tokenizer does not have",
                    got=repr(name),
                    do=near or "give tokens as tokenizer.get_vocab() writes them",
                )
            eligible[self.by_name[name]] = False
        if not eligible.any():
            raise MaskwiseError("exclude leaves no token to mask", got=names)
        return replace(self, eligible=eligible)

    @cached_property
    def ordinary(self) -> Array:
        """(N,) int64: the eligible ids in ascending order, from which replacements are drawn."""
        return np.flatnonzero(self.eligible)

    @cached_property
    def kind(self) -> Array:
        """(V,) uint8: 2 for eligible ids, 1 for content ids that are not eligible, otherwise 0."""
        return self.content.astype(np.uint8) + self.eligible

    @cached_property
    def sentinel(self) -> Array:
        """(S,) int64: ``sentinels`` as an array."""
        return np.array(self.sentinels, np.int64)

    def require_mask(self) -> int:
        """Return the id of the mask token.

        Raises:
            MaskwiseError: the tokenizer has no mask token of its own.
        """
        if self.mask is None:
            do = (
                "use a masked-language-model tokenizer, or "
                "tokenizer.add_special_tokens({'mask_token': '[MASK]'})"
            )
            if self.sentinels:
                do += (
                    "; or, for an encoder–decoder, policy='t5-span' with corruption='t5', which "
                    "needs only sentinels"
                )
            raise MaskwiseError("the tokenizer has no mask token of its own", do=do)
        return self.mask
