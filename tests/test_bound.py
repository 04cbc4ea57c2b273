"""The bound of masked diffusion on texts whose entropy is known, in a training, and in ``maskwise
evaluate``.
"""

from __future__ import annotations

import copy
import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.measures.heldout import bound_rows
from maskwise.evaluation.scoring import Bound, HeldOut
from maskwise.masking.batch import IGNORE
from maskwise.objectives import MaskedLanguageModelling
from maskwise.recipe import read_recipe
from maskwise.studies import run_study
from maskwise.text import Rows, read_pieces, tokenise
from maskwise.text.documents import Document
from tiny import maskwise, read_lines, write_inputs
from training_tools import FIRST, model, tokenizer

STATES = 4
STEP = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.1, 0.7, 0.1], [0.25] * 4, [0.05, 0.05, 0.1, 0.8]])
"""Of a Markov source over w0 … w3: the probability of each state behind each."""
START = np.linalg.matrix_power(STEP, 200)[0]
ENTROPY = -(START[:, None] * STEP * np.log(STEP)).sum()
"""Nats for each token but the first of a text."""


def sample(count: int, length: int, *, seed: int) -> list[str]:
    draw = np.random.default_rng(seed)
    state = draw.choice(STATES, size=count, p=START)
    texts = [state]
    for _ in range(length - 1):
        state = (draw.random(count)[:, None] > STEP[state].cumsum(1)).sum(1).clip(max=STATES - 1)
        texts.append(state)
    return [" ".join(f"w{s}" for s in text) for text in np.stack(texts, 1).tolist()]


def rows_of(texts: list[str], length: int = 26) -> Rows:
    documents = [Document(str(number), text) for number, text in enumerate(texts)]
    pieces = read_pieces(tokenise(documents, tokenizer()), tokenizer=tokenizer(), length=length)
    return Rows.of(pieces, "document")


def nats_of(texts: list[str]) -> float:
    """−log p of the texts under the source."""
    total = 0.0
    for text in texts:
        states = [int(word[1:]) for word in text.split()]
        total -= math.log(START[states[0]]) + sum(math.log(STEP[a, b]) for a, b in pairwise(states))
    return total


class Source(nn.Module):
    """Knows the source: the exact probability of a masked token, from the nearest visible ones on
    both sides.
    """

    def __init__(self) -> None:
        super().__init__()
        self.nothing = nn.Parameter(torch.zeros(1))
        self.power = [np.linalg.matrix_power(STEP, n) for n in range(64)]

    def token_losses(self, batch: Any) -> tuple[Tensor, Tensor]:
        where = (batch["labels"] != IGNORE).nonzero()
        losses = []
        for row, column in where.tolist():
            ids = batch["input_ids"][row].numpy() - FIRST
            visible = [i for i in range(len(ids)) if 0 <= ids[i] < STATES]
            left = max((i for i in visible if i < column), default=None)
            right = min((i for i in visible if i > column), default=None)
            p = START if left is None else self.power[column - left][ids[left]]
            if right is not None:
                p = p * self.power[right - column][:, ids[right]]
            losses.append(-math.log(p[int(batch["labels"][row, column]) - FIRST] / p.sum()))
        return torch.tensor(losses), where


def test_the_bound_of_the_source_itself_is_its_entropy() -> None:
    """A model that is never wrong about probabilities has the bound −log p: the chain rule holds in
    every order.
    """
    texts = sample(60, 20, seed=1)
    rows = rows_of(texts)
    bound = Bound(rows, tokenizer(), torch.arange(len(rows)), draws=6)
    text = bound(Source())  # type: ignore[arg-type]
    exact = nats_of(texts)
    assert text.tokens == 60 * 20 and text.never_masked == 0
    assert abs(text.nats - exact) < 3 * text.error < 0.15 * exact
    assert exact / text.tokens == pytest.approx(ENTROPY + (FIRST_NATS - ENTROPY) / 20, rel=0.1)


FIRST_NATS = -(START * np.log(START)).sum()


def test_evaluate_tells_the_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "held_out.txt"
    file.write_text("\n\n".join(sample(80, 20, seed=3)))
    model("bert").save_pretrained(tmp_path / "model")
    tokenizer().save_pretrained(tmp_path / "model")
    command = ["evaluate", tmp_path / "model", "--with", "bound(12)", "--text", file]
    assert maskwise(*command, "--json") == 0
    records = {line.get("metric"): line for line in json.loads(capsys.readouterr().out)}
    nats, bits = records["nats per token"], records["bits per token"]
    texts = file.read_text().split("\n\n")
    assert nats["value"] > nats_of(texts) / nats["items"] - 3 * nats["item_error"]
    assert bits["value"] == pytest.approx(nats["value"] / math.log(2))
    size = sum(len(text.encode()) for text in texts)
    assert records["bits per byte"]["value"] * size == pytest.approx(bits["value"] * bits["items"])
    assert maskwise(*command) == 0 and "bound bits per byte" in capsys.readouterr().out


def test_a_single_text_has_a_bound_without_an_error() -> None:
    """``--json`` printed NaN, which is no JSON."""
    rows = rows_of(sample(1, 20, seed=3))
    objective = MaskedLanguageModelling(model("bert").eval())
    bound = Bound(rows, tokenizer(), torch.arange(1))
    [line] = HeldOut(rows, {}, None, bound=bound)(objective)
    for record in (line, *[row.line() for row in bound_rows(bound(objective), 30)]):
        assert not {"error", "item_error"} & record.keys() and json.dumps(record, allow_nan=False)


@pytest.mark.parametrize("odd", ["nobody", "[unused1]", "[MASK]"])
def test_no_figure_per_byte_where_the_text_holds_tokens_that_are_never_masked(odd: str) -> None:
    """Only [UNK] counted: half of a protein were X, and its bits per byte were half."""
    names = copy.deepcopy(tokenizer())
    names.add_tokens(["[unused1]"])
    documents = [Document("1", f"w1 w2 {odd} w3"), Document("2", "w0 w0 w1")]
    held_out = Rows.of(read_pieces(tokenise(documents, names), tokenizer=names, length=26))
    bound = Bound(held_out, names, torch.arange(len(held_out)), draws=2)
    text = bound.of([np.ones(pieces) for pieces in bound.sizes()])
    assert text.never_masked == 1 and text.tokens == 6
    rows = bound_rows(text, 30)
    assert [row.metric for row in rows] == ["nats per token", "bits per token"]
    assert "no value per byte" in str(rows[0].facts["skipped"])
    # Without a size, no value per byte is expected.
    assert "byte" not in str(bound_rows(text, 0)[0].facts["skipped"])


def test_a_text_without_tokens_that_can_be_masked_has_no_bound() -> None:
    with pytest.raises(MaskwiseError, match=r"got 3 tokens such as \[UNK\]"):
        Bound(rows_of(["nobody knows this"]), tokenizer(), torch.arange(1))


def test_a_study_compares_arms_by_the_bound(tmp_path: Path) -> None:
    arms = "{uniform: {}, bell: {masking.ratio: bell}, words: {masking.policy: whole-word}}"
    overrides = ["tasks=[]", "training.steps=10", "training.eval_every=5", "objective=diffusion"]
    overrides += ["evaluation.ratios=[0.15]", f"study.arms={arms}", "masking.budget=bernoulli"]
    recipe = read_recipe(str(write_inputs(tmp_path)), overrides)
    masks = recipe.arm("words", seed=0).links()[0].evaluation.masks
    assert masks == ("token", "whole-word", "diffusion")
    assert recipe.arm("bell", seed=0).masking.ratio == "bell"
    result = run_study(recipe, tmp_path / "study", jobs=1)
    files = (tmp_path / "study").rglob("metrics.jsonl")
    curves = [line["masks"] for file in files for line in read_lines(file) if "masks" in line]
    assert "diffusion" in curves
    primary = [row for row in result["contrasts"] if row["primary"]]
    assert {row["outcome"] for row in primary} == {"heldout:diffusion"} and not result["failures"]
    reasons = {flag["code"] for row in primary for flag in row["flags"]}
    # The bound is over random orders, whatever an arm masks.
    assert "different-units" not in reasons
