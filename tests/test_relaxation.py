"""Relaxed masks: inclusion probabilities and their derivatives, straight-through, the loss,
probabilities of orders.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import T5Config, T5ForConditionalGeneration

import training_tools as tools
from maskwise import Masker
from maskwise.base.errors import MaskwiseError
from maskwise.learning.relaxation import RelaxedDenoising, choose, inclusion
from maskwise.masking import Line, gather
from maskwise.masking.draws import Draws
from maskwise.masking.vocabulary import Vocabulary
from maskwise.models.families import decoder_inputs
from maskwise.objectives import MaskedLanguageModelling

F64 = torch.float64


def text_batch(rows: int = 4, seed: int = 0) -> Line:
    language = tools.Language(rows, seed=seed)
    columns = language.line(torch.arange(rows))
    columns["attention_mask"] = torch.ones_like(columns["input_ids"])
    columns["attention_mask"][-1, -4:] = 0
    return gather(columns, Vocabulary.of(tools.tokenizer()))


def keys_of(line: Line, step: int = 0) -> Draws:
    return Draws(line.example_id, seed=0, epoch=None, step=step)


def flat(*rows: list[tuple[float, int]]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logit, length) pairs of every piece → logits, lengths, pieces."""
    logit = torch.tensor([logit for row in rows for logit, _ in row], dtype=F64)
    length = torch.tensor([length for row in rows for _, length in row])
    piece = torch.tensor([number for number, row in enumerate(rows) for _ in row])
    return logit, length, piece


units = st.lists(st.tuples(st.floats(-20, 20), st.integers(1, 6)), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(rows=st.lists(units, min_size=1, max_size=4), share=st.floats(0.001, 0.999))
def test_the_expected_number_of_tokens_is_the_budget(rows, share) -> None:
    logit, length, piece = flat(*rows)
    whole = torch.zeros(len(rows), dtype=F64).index_add(0, piece, length.double())
    p = inclusion(logit, length, piece, share * whole)
    expected = torch.zeros(len(rows), dtype=F64).index_add(0, piece, length * p)
    torch.testing.assert_close(expected, share * whole, rtol=1e-12, atol=0)
    assert ((p >= 0) & (p <= 1)).all()


def test_the_borders_of_the_budget() -> None:
    logit, length, piece = flat([(0.0, 2), (3.0, 1)], [(1.0, 1), (-400.0, 3)], [(0.5, 2)])
    logit.requires_grad_()
    p = inclusion(logit, length, piece, torch.tensor([3.0, 0.0, 7.0]))
    assert p.tolist() == [1, 1, 0, 0, 1]
    assert torch.autograd.grad(p.sum(), logit)[0].tolist() == [0, 0, 0, 0, 0]


def test_first_and_second_derivatives_are_those_of_the_exact_solution() -> None:
    logit, length, piece = flat(
        [(0.0, 1), (0.7, 2), (-1.2, 3), (2.0, 1)], [(0.3, 2), (-0.4, 2), (1.0, 1)], [(0.1, 1)]
    )
    budget = torch.tensor([2.5, 1.2, 1.0], dtype=F64)
    inputs = (logit.requires_grad_(),)
    assert torch.autograd.gradcheck(lambda x: inclusion(x, length, piece, budget), inputs)
    assert torch.autograd.gradgradcheck(lambda x: inclusion(x, length, piece, budget), inputs)


def test_inclusion_is_that_of_the_race_at_its_stopping_time() -> None:
    """Many equal pieces of single tokens: the hard choice takes a unit about as often as the
    relaxation says.
    """
    rows, width = 4000, 12
    ids = torch.randint(5, 40, (rows, width), generator=torch.Generator().manual_seed(0))
    line = gather(
        {"input_ids": ids, "example_id": torch.arange(rows)}, Vocabulary.of(tools.tokenizer())
    )
    logit_BL = torch.linspace(-1.5, 1.5, width, dtype=F64).expand(rows, -1)
    choice = choose(line, logit_BL, 0.25, keys_of(line), units="token")
    drawn = choice.spread(choice.chosen_U.double()).mean(0)
    p = inclusion(choice.unit_logits(logit_BL), choice.length_U, choice.piece_U, choice.budget_P)
    asked = choice.spread(p)[0]
    assert choice.budget_P.eq(3).all() and abs(drawn.sum() - 3) < 1e-9
    # the race stops at a random time; the relaxation at the mean
    assert (drawn - asked).abs().max() < 0.035


def test_straight_through_shows_the_choice_and_moves_all_units() -> None:
    batch = text_batch()
    draw = torch.Generator().manual_seed(1)
    logit_BL = torch.randn(batch.shape, dtype=F64, generator=draw).requires_grad_()
    choice = choose(batch, logit_BL, 0.3, keys_of(batch))
    logit_U = choice.unit_logits(logit_BL)
    mask = choice.mask(logit_U)
    torch.testing.assert_close(mask.detach(), choice.hard().double(), atol=1e-15, rtol=0)
    assert 0 < mask.sum() <= choice.budget_P.sum()
    outside = torch.ones(mask.numel(), dtype=torch.bool)
    outside[choice.token_M] = False
    assert not mask.flatten()[outside].any()
    value = torch.randn(mask.shape, dtype=F64, generator=draw)
    hard = torch.autograd.grad((mask * value).sum(), logit_U, retain_graph=True)[0]
    assert (hard != 0).all() and not choice.chosen_U.all()  # also units that were not chosen
    shares = inclusion(logit_U, choice.length_U, choice.piece_U, choice.budget_P)
    smooth = torch.autograd.grad((choice.spread(shares) * value).sum(), logit_U)[0]
    assert torch.equal(hard, smooth)


def test_the_choice_is_that_of_the_masker() -> None:
    """The same units, weights and keys, as a policy by a layer of weights chooses them."""
    rows = tools.Language(3).line(torch.arange(3))
    logit_BL = torch.randn(3, tools.LENGTH, dtype=F64, generator=torch.Generator().manual_seed(1))
    line = gather(rows, Vocabulary.of(tools.tokenizer()))
    choice = choose(line, logit_BL, 0.3, keys_of(line, 5))
    # A word has two tokens, and its logit is their mean.
    logit_BL[:, 1:-1] = logit_BL[:, 1:-1].view(3, -1, 2).mean(-1).repeat_interleave(2, 1)
    rows["score"] = logit_BL.exp()
    policy = "weighted(layer='score', units='word')"
    masker = Masker(tools.tokenizer(), policy=policy, ratio=0.3, budget="exact", seed=0)
    assert torch.equal(masker(rows, step=5).selected, choice.hard() > 0)


def test_a_score_that_is_not_finite_is_refused() -> None:
    batch = text_batch()
    with pytest.raises(MaskwiseError, match="score of the policy is not finite"):
        choose(batch, torch.full(batch.shape, torch.nan), 0.3, keys_of(batch))


def masked(model: Any, mask_id: int, line: Line) -> tuple[Any, Tensor, Any, Tensor]:
    """The choice, its mask, the inputs and the relaxed loss under a hard mask."""
    choice = choose(line, torch.zeros(line.shape, dtype=F64), 0.3, keys_of(line))
    inputs = {name: line.tensor(getattr(line, name)) for name in ("input_ids", "attention_mask")}
    mask = choice.hard()
    loss = RelaxedDenoising(model, mask_id)(inputs, mask, choice.budget)
    return choice, mask, inputs, loss


@pytest.mark.parametrize("architecture", ["bert", "roberta", "electra", "distilbert", "modernbert"])
def test_the_loss_of_a_hard_mask_is_masked_language_modelling(architecture: str) -> None:
    model, mask_id = tools.model(architecture).eval(), tools.tokenizer().mask_token_id
    choice, mask, inputs, loss = masked(model, mask_id, text_batch())
    shown = torch.where(mask > 0, mask_id, inputs["input_ids"])
    labels = torch.where(mask > 0, inputs["input_ids"], -100)
    outcome = MaskedLanguageModelling(model)({**inputs, "input_ids": shown, "labels": labels})
    torch.testing.assert_close(loss * choice.budget, outcome.total, rtol=1e-5, atol=1e-5)


def tiny_t5() -> T5ForConditionalGeneration:
    torch.manual_seed(0)
    sizes = {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 1, "num_heads": 2}
    config = T5Config(vocab_size=45, dropout_rate=0.0, decoder_start_token_id=0, **sizes)
    return T5ForConditionalGeneration(config).eval()


@pytest.mark.parametrize("make", [tools.tiny_bart, tiny_t5])
def test_an_encoder_decoder_reads_one_mask_a_token_and_writes_the_text(make) -> None:
    model, mask_id = make(), 44
    choice, mask, inputs, loss = masked(model, mask_id, text_batch())
    ids, present = inputs["input_ids"], inputs["attention_mask"]
    logits = model(
        input_ids=torch.where(mask > 0, mask_id, ids),
        attention_mask=present,
        decoder_input_ids=decoder_inputs(model.config, ids.masked_fill(present == 0, -100)),
    ).logits
    own = -logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
    torch.testing.assert_close(loss, (mask * own).sum() / choice.budget_P.sum())
