"""ESM's tokenizer with character offsets, and a warning of DNA that a protein model reads.

Words, layers and texts on a page are found by the offsets of tokens, and transformers has the
tokenizer of ESM-1b and ESM-2 in Python alone, without offsets.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


NUCLEOTIDES = frozenset("ACGTN")
# Letters of amino acids that stand for no nucleotide; no amino acid has the letter J.
RESIDUES_ALONE = frozenset("EFILPQ")
NO_RESIDUE = "J"
# Tokenizers of proteins have about 30 tokens, those of text thousands.
MOST_TOKENS = 256


def is_esm(tokenizer: object) -> bool:
    return type(tokenizer).__name__ == "EsmTokenizer"


def fast_esm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Convert ESM's tokenizer.

    The ids of residues are the same. Each character that is no residue becomes an unknown token of
    its own.
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
    """Return a warning if all texts are DNA and the tokens are amino acids.

    The letters of DNA are amino acids, too, so the tokenizer knows all of them.
    """
    for text in texts:
        # Most texts end the search at once.
        if not text or not NUCLEOTIDES.issuperset(text.upper()):
            return None
    tokens = tokenizer.get_vocab()
    if len(tokens) > MOST_TOKENS or NO_RESIDUE in tokens or not RESIDUES_ALONE.issubset(tokens):
        return None
    return (
        "these sequences have only the letters A, C, G, T and N, as DNA, and the tokenizer reads "
        "them as amino acids: translate them, or take a model of DNA"
    )
