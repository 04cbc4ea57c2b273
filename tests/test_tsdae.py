"""The denoising auto-encoder for sentences: what it sees, what it writes, and that the sentence
vector is used.
"""

from __future__ import annotations

import torch
from transformers import BertConfig, BertForMaskedLM

from maskwise import encode
from maskwise.objectives import objective
from maskwise.text import train_tokenizer

TEXTS = [
    "the red cat sat on the mat",
    "a blue dog ran in the park",
    "the green bird flew over a house",
    "a fish swam in the sea",
]


def setup(spec: str = "tsdae"):  # type: ignore[no-untyped-def]
    torch.manual_seed(0)
    tokenizer = train_tokenizer(TEXTS * 4, vocab_size=120)
    size = {
        "hidden_size": 32,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
    }
    network = BertForMaskedLM(
        BertConfig(vocab_size=len(tokenizer), max_position_embeddings=32, **size)
    )
    one = objective(spec, network)
    batch = one.maker(tokenizer, seed=0)(encode(tokenizer, TEXTS), step=0, total_steps=10)
    return one, batch, tokenizer


def test_most_tokens_are_deleted_and_the_whole_text_is_written() -> None:
    one, batch, tokenizer = setup()
    left = (batch.attention_mask.sum(1) - 2).tolist()
    whole = [len(row["input_ids"]) - 2 for row in encode(tokenizer, TEXTS)]
    assert sum(left) < 0.7 * sum(whole)
    for row, text in zip(batch.labels, TEXTS):
        assert (
            tokenizer.decode(
                [token for token in row.tolist() if token >= 0], skip_special_tokens=True
            )
            == text
        )
    outcome = one(batch)
    assert int(outcome.divisor) == int((batch.labels >= 0).sum())
    outcome.total.backward()
    assert all(
        p.grad is not None
        for name, p in one.named_parameters()
        if "cls." not in name and p.requires_grad
    )


def test_no_token_is_told_itself() -> None:
    """Another last token changes no logits before it: only its own term of the loss."""
    one, batch, _ = setup()
    one.eval()
    with torch.no_grad():
        before = one(batch).total
        last = int((batch.labels[0] >= 0).nonzero().max())
        terms = []
        for token in range(5, 9):
            batch.labels[0, last] = token
            terms.append(float(one(batch).total - before))
    assert len(set(terms)) == 4 and max(map(abs, terms)) < 5
