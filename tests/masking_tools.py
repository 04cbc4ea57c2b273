"""What the masking tests share: a small tokenizer with every special token, and rows with every
layer.

A new policy or corruption is tested by the contract suite as soon as it is in its table. One that
needs arguments gets them from ``POLICY_SPECS``/``CORRUPTION_SPECS``, one that needs a layer from
``row``.
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

from maskwise.masking import (
    CORRUPTIONS,
    POLICIES,
    Line,
    Masker,
    Vocabulary,
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


def masker(policy: str = "token", corruption: str = "bert", **more: Any) -> Masker:
    """A masker over the small vocabulary, with the arguments that members need."""
    settings = {
        "policy": POLICY_SPECS.get(policy, policy),
        "corruption": CORRUPTION_SPECS.get(corruption, corruption),
        **more,
    }
    # Tests give all policies the same settings, as arms do.
    return Masker(vocabulary(), **Masking.used(settings))


def row(
    words: Sequence[int], *, example_id: int = 0, unknown: Sequence[int] = (), framed: bool = True
) -> dict[str, Any]:
    """One row of words with the given numbers of pieces, and every layer over it.

    Args:
        words: pieces of each word; 0 puts a [SEP] there.
        unknown: places (among the content tokens) that are [UNK].
        framed: [CLS] before and [SEP] after.
    """
    rng = np.random.default_rng([abs(example_id), *words])
    ids: list[int] = []
    word_ids: list[int] = []
    for number, pieces in enumerate(words):
        ids += rng.integers(FIRST, FIRST + WORDS, pieces).tolist() if pieces else [SEP]
        word_ids += [number] * pieces if pieces else [-1]
    for place in unknown:
        if place < len(ids) and ids[place] != SEP:
            ids[place] = UNK
    if framed:
        ids, word_ids = [CLS, *ids, SEP], [-1, *word_ids, -1]
    word = np.array(word_ids, dtype=np.int64)
    inside = word >= 0
    return {
        "input_ids": ids,
        "example_id": example_id,
        "word_ids": word_ids,
        "salient": np.where(inside & (word % 5 == 1), word // 5, -1).tolist(),
        "phrase": np.where(inside & (word % 7 > 3), word // 7, -1).tolist(),
        "sentence": np.where(inside, word // 6, -1).tolist(),
        "pos": np.where(inside & (word % 6 != 2), word % 17, -1).tolist(),
        "weight": np.where(inside, (word * 7 % 4) / 2, 0.0).tolist(),
        "informativeness": np.where(inside, (word * 5 % 7) / 3, 0.0).tolist(),
        "difference": np.where(inside, (word * 3 % 5) ** 2 / 2, 0.0).tolist(),
        "learned F": np.where(inside, (word * 11 % 6) / 2.5, 0.0).tolist(),
        "learned F_span": np.where(inside & (word % 4 > 1), word // 4, -1).tolist(),
        "learned F_score": np.where(
            inside & (word % 4 > 1), 1 / (1 + word // 4 * 5 % 3), 0.0
        ).tolist(),
        "frequency": np.where(inside, 1.0 + word * 13 % 50, 0.0).tolist(),
    }


def random_rows(
    count: int, *, seed: int = 0, words: int = 12, most: int = 4
) -> list[dict[str, Any]]:
    """Rows of ``words`` words of one to ``most`` pieces."""
    rng = np.random.default_rng(seed)
    return [
        row(rng.integers(1, most + 1, words).tolist(), example_id=1000 * seed + i)
        for i in range(count)
    ]


def line(count: int, width: int) -> Line:
    """``count`` rows of ``width`` ordinary tokens, without special tokens."""
    every = np.ones(count * width, bool)
    ids = np.full(count * width, FIRST + 4)
    begin = np.arange(count) * width
    return Line((count, width), ids, None, every, every, begin, np.arange(count))


AWKWARD = {
    "an ordinary row": row([1, 3, 2, 1, 1, 4, 1, 2], example_id=1),
    "no content": row([], example_id=2),
    "nothing at all": row([], example_id=3, framed=False),
    "one token": row([1], example_id=4),
    "one token, no frame": row([1], example_id=5, framed=False),
    "one long word": row([12], example_id=6),
    "only unknown": row([1, 1], unknown=[0, 1], example_id=7),
    "unknown inside a word": row([3, 3, 1], unknown=[1], example_id=8),
    "specials in the middle": row([2, 1, 0, 3, 1, 0, 0, 1], example_id=9),
    "all special": row([0, 0, 0], example_id=10),
    "short words": row([1] * 15, example_id=11),
    "a high id": row([2, 2, 1, 1], example_id=(1 << 62) + 5),
    "a negative id": row([2, 2, 1, 1], example_id=-7),
}
"""Rows that break careless code, by what is odd about them."""


def padded(
    rows: Sequence[dict[str, Any]], *, width: int | None = None, left: bool = False
) -> dict[str, Tensor]:
    """Rows as one dict of (B, L) tensors with an attention mask; padding right or left."""
    width = max(len(r["input_ids"]) for r in rows) if width is None else width
    out: dict[str, Tensor] = {"example_id": torch.tensor([r["example_id"] for r in rows])}
    for name in rows[0].keys() - {"example_id"}:
        fill = PAD if name == "input_ids" else -1
        out[name] = torch.tensor([_pad(r[name], width, fill, left) for r in rows]).view(
            len(rows), width
        )
    out["input_ids"] = out["input_ids"].long()
    out["attention_mask"] = torch.tensor(
        [_pad([1] * len(r["input_ids"]), width, 0, left) for r in rows]
    ).view(len(rows), width)
    return out


def _pad(values: list[Any], width: int, fill: int, left: bool) -> list[Any]:
    more = [fill] * (width - len(values))
    return more + values if left else values + more


def packed(rows: Sequence[dict[str, Any]], *, width: int) -> dict[str, Tensor]:
    """Rows one behind the other in blocks of ``width`` tokens (none is cut), with an example id per
    token.
    """
    blocks: list[dict[str, list[Any]]] = []
    for one in rows:
        n = len(one["input_ids"])
        if not blocks or len(blocks[-1]["input_ids"]) + n > width:
            blocks.append({name: [] for name in one})
        for name, value in one.items():
            blocks[-1][name] += [value] * n if name == "example_id" else value
    fill = {"input_ids": PAD, "example_id": 0}
    out = {
        name: torch.tensor(
            [_pad(block[name], width, fill.get(name, -1), False) for block in blocks]
        )
        for name in rows[0]
    }
    out["attention_mask"] = torch.tensor(
        [_pad([1] * len(b["input_ids"]), width, 0, False) for b in blocks]
    )
    return out


def per_row(batch: Any, rows: Sequence[dict[str, Any]]) -> list[tuple[list[int], list[int]]]:
    """(inputs, labels) of each row of a masked batch without padding, whatever the layout was."""
    inputs, labels = batch.input_ids.tolist(), batch.labels.tolist()
    attention = None if batch.attention_mask is None else batch.attention_mask.tolist()
    out = []
    for b in range(len(rows)):
        kept = [i for i, a in zip(inputs[b], attention[b]) if a] if attention else inputs[b]
        out.append((kept, [label for label in labels[b] if label != -100]))
    return out
