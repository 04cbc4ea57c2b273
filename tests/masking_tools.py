"""What the masking tests share: a small tokenizer with every special token, and rows with every
layer.

A new policy or corruption is tested by the contract suite as soon as it is in its table. One that
needs arguments gets them from ``POLICY_SPECS``/``CORRUPTION_SPECS``, one that needs a layer from
``LAYERS``. The rows are those of ``maskwise.testing``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer, models
from torch import Tensor
from transformers import PreTrainedTokenizerFast

from maskwise import testing
from maskwise.masking import (
    CORRUPTIONS,
    POLICIES,
    Line,
    Masker,
    Vocabulary,
    contract,
    policies,
)
from maskwise.masking.select import BUDGETS
from maskwise.masking.settings import Masking

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PAD, UNK, CLS, SEP, MASK = range(5)
FIRST = 5
"""The first ordinary id; ids from here to ``FIRST + WORDS`` are ordinary."""
WORDS = 60

POLICY_SPECS = {name: name for name in POLICIES} | {
    "mixture": "mixture(salient, token, span, shares=(0.3, 0.3, 0.4))",
    "group-weighted": "group-weighted(pos, 17)",
    "learned": "learned('F')",
    "learned-spans": "learned('F', take='spans')",
    "learned-one": "learned('F', take='top-2')",
    "learned-explore": "learned('F', explore=0.4)",
}
LAYERS = testing.LAYERS | {
    "learned F": lambda word: (word * 11 % 6) / 2.5,
    "learned F_span": lambda word: np.where(word % 4 > 1, word // 4, -1),
    "learned F_score": lambda word: np.where(word % 4 > 1, 1 / (1 + word // 4 * 5 % 3), 0.0),
}
"""Every layer of a row, computed from the numbers of its words."""
# Cut rows are as long as the batch is wide, so they are not the same in any batch: the one stated
# exception.
CORRUPTION_SPECS = {name: name for name in CORRUPTIONS}
POLICY_BUDGETS = [
    (name, budget)
    for name, spec in POLICY_SPECS.items()
    for budget in BUDGETS
    if budget != "bernoulli" or not policies.policy(spec).splits_budget
]
"""Every policy with each budget that it takes."""


@lru_cache(maxsize=1)
def tokenizer() -> PreTrainedTokenizerFast:
    """Sixty ordinary tokens behind five special ones; sentinels and mode tokens behind those."""
    names = SPECIAL + [f"w{i}" for i in range(WORDS)]
    made = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(
            models.WordLevel({name: i for i, name in enumerate(names)}, unk_token="[UNK]")
        ),
        pad_token="[PAD]",
        unk_token="[UNK]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        mask_token="[MASK]",
    )
    sentinels = [f"<extra_id_{i}>" for i in range(120)]
    made.add_special_tokens({"additional_special_tokens": [*sentinels, "[R]", "[S]", "[X]"]})
    return made


@lru_cache(maxsize=1)
def vocabulary() -> Vocabulary:
    return Vocabulary.of(tokenizer())


def masker(policy: Any = "token", corruption: str = "bert", **more: Any) -> Masker:
    """A masker over the small vocabulary, with the arguments that members need."""
    settings = {
        "policy": POLICY_SPECS.get(policy, policy),
        "corruption": CORRUPTION_SPECS.get(corruption, corruption),
        **more,
    }
    # Tests give all policies the same settings, as arms do.
    return Masker(vocabulary(), **Masking.used(settings))


EXAMPLES = testing.RowMaker(vocabulary(), LAYERS)


def row(words: Sequence[int], **more: Any) -> dict[str, Any]:
    """One row of words with the given numbers of tokens, and every layer over it."""
    return EXAMPLES.row(words, **more)


def random_rows(
    count: int, *, seed: int = 0, words: int = 12, most: int = 4
) -> list[dict[str, Any]]:
    """Rows of ``words`` words of one to ``most`` tokens."""
    return EXAMPLES.random(count, seed=seed, words=words, most=most)


def line(count: int, width: int) -> Line:
    """``count`` rows of ``width`` ordinary tokens, without special tokens."""
    every = np.ones(count * width, bool)
    ids = np.full(count * width, FIRST + 4)
    begin = np.arange(count) * width
    return Line((count, width), ids, None, every, every, begin, np.arange(count))


AWKWARD = EXAMPLES.awkward()
"""Rows that break careless code, by what is odd about them."""


def padded(rows: Sequence[dict[str, Any]], **more: Any) -> dict[str, Tensor]:
    """Rows as one dict of (B, L) tensors with an attention mask; padding right or left."""
    return tensors(contract.padded(rows, PAD, **more))


def packed(rows: Sequence[dict[str, Any]], *, width: int) -> dict[str, Tensor]:
    """Rows one behind the other in blocks of ``width`` tokens (none is cut), with an example id per
    token.
    """
    return tensors(contract.packed(rows, PAD, width=width))


def tensors(columns: dict[str, np.ndarray]) -> dict[str, Tensor]:
    """Columns as tensors, with floats as torch makes them from lists."""
    made = {name: torch.from_numpy(values) for name, values in columns.items()}
    return {name: each.float() if each.is_floating_point() else each for name, each in made.items()}


def per_row(batch: Any, rows: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(inputs, labels) of each row of a masked batch without padding, whatever the layout was."""
    return contract.per_row(batch, len(rows))
