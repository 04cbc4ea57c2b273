"""What the training tests share: tiny models of every architecture, and a language that is quickly
learnt.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoModelForMaskedLM,
    BartConfig,
    BartForConditionalGeneration,
    PreTrainedTokenizerFast,
)

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
CLS, SEP, FIRST, WORDS = 2, 3, 5, 40
LENGTH = 16

SMALL = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 32,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "vocab_size": FIRST + WORDS,
    "pad_token_id": 0,
    "bos_token_id": CLS,
    "cls_token_id": CLS,
    "eos_token_id": SEP,
    "sep_token_id": SEP,
}
MORE: dict[str, dict[str, Any]] = {
    "bert": {},
    "roberta": {},
    "xlm-roberta": {},
    "camembert": {},
    "mpnet": {},
    "deberta-v2": {},
    "nomic_bert": {},
    "eurobert": {"num_key_value_heads": 1},
    "esmc": {},
    "esm": {"mask_token_id": 4, "token_dropout": False, "position_embedding_type": "rotary"},
    "albert": {"embedding_size": 8, "num_hidden_groups": 1},
    "electra": {"embedding_size": 8},
    "distilbert": {
        "dim": 16,
        "n_layers": 2,
        "n_heads": 2,
        "hidden_dim": 24,
        "dropout": 0.0,
        "attention_dropout": 0.0,
    },
    "modernbert": {"layer_types": ["full_attention", "full_attention"], "initializer_range": 0.05},
}
ARCHITECTURES = list(MORE)
"""Every architecture with an adapter."""


def config(architecture: str, **fields: Any) -> Any:
    return AutoConfig.for_model(architecture, **{**SMALL, **MORE.get(architecture, {}), **fields})


def model(architecture: str, *, seed: int = 0, **fields: Any) -> Any:
    """A tiny random masked language model, without dropout."""
    torch.manual_seed(seed)
    made = AutoModelForMaskedLM.from_config(config(architecture, **fields))
    # Fresh biases are zero, which hides a bias that is left out.
    with torch.no_grad():
        for parameter in made.parameters():
            if parameter.ndim == 1:
                parameter.add_(torch.randn_like(parameter) * 0.05)
    return made


def spec_of(name: str, folder: Path, architecture: str = "bert") -> str:
    """An objective by its name, with what it needs: a deeper teacher in a folder, for distil."""
    if name != "distil":
        return name
    deeper: dict[str, Any] = {"num_hidden_layers": 3}
    if architecture == "modernbert":
        deeper["layer_types"] = ["full_attention"] * 3
    model(architecture, seed=1, **deeper).save_pretrained(folder)
    return f"distil({str(folder)!r})"


def funnel() -> Any:
    """A tiny Funnel, whose configuration has names of its own for the sizes."""
    sizes = {"block_sizes": [1, 1], "d_model": 16, "n_head": 2, "d_head": 8, "d_inner": 24}
    made = AutoConfig.for_model("funnel", vocab_size=FIRST + WORDS, num_decoder_layers=1, **sizes)
    return AutoModelForMaskedLM.from_config(made)


def bart(positions: int = 64) -> Any:
    """A tiny encoder–decoder without dropout."""
    config = BartConfig(
        vocab_size=FIRST + WORDS,
        d_model=16,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        max_position_embeddings=positions,
        dropout=0.0,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
    )
    torch.manual_seed(0)
    return BartForConditionalGeneration(config)


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    names = {name: i for i, name in enumerate(SPECIAL + [f"w{i}" for i in range(WORDS)])}
    made = Tokenizer(models.WordLevel(names, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    frame = [(name, names[name]) for name in ("[CLS]", "[SEP]")]
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=frame
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )


class Language:
    """Rows of a language in which every word comes twice, so that a masked one can be read off its
    neighbour.

    All words are equally frequent: the unigram loss is log(40) = 3.7 nats, a good model's a
    fraction.
    """

    layout = "document"

    def __init__(self, rows: int, *, seed: int = 0):
        generator = torch.Generator().manual_seed(seed)
        words = torch.randint(FIRST, FIRST + WORDS, (rows, (LENGTH - 2) // 2), generator=generator)
        frame = torch.full((rows, 1), CLS), torch.full((rows, 1), SEP)
        self.ids = torch.cat([frame[0], words.repeat_interleave(2, 1), frame[1]], 1)
        self.word_ids = torch.tensor([-1, *(i // 2 for i in range(LENGTH - 2)), -1]).expand(
            rows, -1
        )

    def __len__(self) -> int:
        return len(self.ids)

    def line(self, rows: Tensor) -> dict[str, Tensor]:
        return {"input_ids": self.ids[rows], "word_ids": self.word_ids[rows], "example_id": rows}

    def __getitem__(self, row: int) -> dict[str, Any]:
        """As a map-style dataset; lengths differ a little."""
        end = LENGTH - row % 3
        return {
            "input_ids": self.ids[row, :end].tolist(),
            "word_ids": self.word_ids[row, :end].tolist(),
            "example_id": row,
        }


def counts(language: Language) -> Tensor:
    return torch.bincount(language.ids.flatten(), minlength=FIRST + WORDS)


GEMMA = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 16,
    "query_pre_attn_scalar": 16,
    "sliding_window": 4,
}
"""Of T5Gemma's encoder or decoder; its window is shorter than documents."""


def tiny_bart() -> BartForConditionalGeneration:
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=45,
        max_position_embeddings=32,
        d_model=16,
        encoder_layers=1,
        decoder_layers=1,
        dropout=0.0,
        encoder_ffn_dim=24,
        decoder_ffn_dim=24,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        scale_embedding=True,
    )
    return BartForConditionalGeneration(config).eval()
