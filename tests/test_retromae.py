"""RetroMAE: a decoder that sees few words learns from the vector of a text."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import gelu, layer_norm

from maskwise.base.errors import MaskwiseError
from maskwise.masking import MaskedBatch, Masker
from maskwise.masking.settings import MaskingSettings
from maskwise.objectives import objective, objective_class, retromae
from test_several import Documents
from training_tools import CLS, SEP, model, tokenizer


def batch() -> MaskedBatch:
    """Masked rows of different lengths."""
    masker = Masker(tokenizer(), ratio=0.3, seed=0)
    rows = Documents(16)
    return masker([rows[number] for number in range(4)], step=1, total_steps=10)


def test_the_losses_of_a_batch_are_those_of_the_formula(monkeypatch: pytest.MonkeyPatch) -> None:
    """Token by token: attention from the tokens that are seen, and the logits of transformers."""
    drawn: list[torch.Tensor] = []

    def recorded(*given: Any) -> torch.Tensor:
        drawn.append(visible(*given))
        return drawn[-1].clone()

    visible = retromae.seen_by_decoder
    monkeypatch.setattr(retromae, "seen_by_decoder", recorded)
    torch.manual_seed(3)
    net = model("bert").eval()
    trained = objective("retromae(masked=0.6)", net).eval()
    # A new head gives all tokens about the same logits, whatever it reads.
    for layer in (net.get_input_embeddings(), net.cls.predictions.transform.dense):
        layer.weight.data *= 20
    given = batch()
    loss = trained(given)
    (seen,) = drawn

    present = given["attention_mask"]
    labels = given["labels"]
    inputs = {"input_ids": given["input_ids"], "attention_mask": present}
    out = net(**inputs, output_hidden_states=True)
    originals = torch.where(labels >= 0, labels, given["input_ids"])
    width, heads = 16, net.config.num_attention_heads
    size = width // heads
    place = [
        [
            (math.sin, math.cos)[unit % 2](at / 10000 ** ((unit - unit % 2) / width))
            for unit in range(width)
        ]
        for at in range(labels.shape[1])
    ]
    place = torch.tensor(place)
    words = net.get_input_embeddings().weight
    encoder, decoder = [], []
    for row in range(len(labels)):
        vector = out.hidden_states[-1][row, 0]
        length = int(present[row].sum())
        for i in range(length):
            if labels[row, i] >= 0:
                encoder.append(-out.logits[row, i].log_softmax(-1)[labels[row, i]])
            if int(originals[row, i]) in (CLS, SEP):
                continue
            near = [0] + [j for j in range(1, length) if seen[row, i, j]]
            assert i not in near[1:]
            read = torch.stack(
                [
                    vector if j == 0 else layer_norm(words[originals[row, j]], (width,)) + place[j]
                    for j in near
                ]
            )
            keys, values = trained.key_value(read).split(width, dim=-1)
            query = trained.query(vector + place[i])
            mixed = torch.cat(
                [
                    (keys[:, part] @ query[part] / math.sqrt(size)).softmax(0) @ values[:, part]
                    for part in (slice(h * size, (h + 1) * size) for h in range(heads))
                ]
            )
            first, second = trained.norms
            state = vector + place[i] + trained.out(mixed)
            state = layer_norm(state, (width,), first.weight, first.bias)
            state = state + trained.back(gelu(trained.wide(state)))
            state = layer_norm(state, (width,), second.weight, second.bias)
            decoder.append(-net.cls(state).log_softmax(-1)[originals[row, i]])
    assert len(encoder) == given.targets > 8 and len(decoder) == given.tokens
    targets, tokens = len(encoder), len(decoder)
    expected = sum(encoder) + targets / tokens * sum(decoder)
    assert loss.divisor == targets
    torch.testing.assert_close(loss.total, expected, rtol=1e-5, atol=1e-3)


def test_a_decoder_that_sees_no_word_depends_on_the_vector_alone() -> None:
    seen = retromae.seen_by_decoder(2, 5, 1.0, torch.device("cpu"))
    assert not seen.any()
    every = retromae.seen_by_decoder(2, 5, 0.0, torch.device("cpu"))
    assert (every == ~torch.eye(5, dtype=torch.bool)).all()
    few = retromae.seen_by_decoder(8, 40, 0.7, torch.device("cpu")).double().mean()
    assert abs(float(few) - 0.3 * 39 / 40) < 0.02


def test_what_it_cannot_learn_from_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MaskwiseError, match="masked of objective retromae"):
        objective("retromae(masked=1.5)", model("bert"))
    kind = objective_class("retromae")
    with pytest.raises(MaskwiseError, match="retromae needs a target at every masked token"):
        kind.check(kind.value_of(MaskingSettings(predict=0.5)))
