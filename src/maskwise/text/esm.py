"""ESM's tokenizer with character offsets.

Words and layers are aligned with tokens by character offsets, which transformers' slow tokenizer
for ESM-1b and ESM-2 does not have.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast


def is_esm(tokenizer: object) -> bool:
    return type(tokenizer).__name__ == "EsmTokenizer"


def fast_esm(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerFast:
    """Convert ESM's tokenizer.

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
