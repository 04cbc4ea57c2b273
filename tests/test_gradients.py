"""Meta-gradients against autograd through the gradients, which is checked against the whole
objective, and against all possible choices.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import training_tools as tools
from maskwise.learning.gradients import (
    InnerStep,
    Losses,
    LossFunction,
    MetaGradient,
    Parameters,
    meta_gradient,
    values_of,
)
from maskwise.learning.relaxation import RelaxedChoice, RelaxedDenoising, choose, inclusion
from maskwise.masking import Line, gather
from maskwise.masking.draws import Draws
from maskwise.masking.vocabulary import Vocabulary
from maskwise.objectives import Denoising, MaskedLanguageModelling

VOCABULARY = Vocabulary.of(tools.tokenizer())
MASK = tools.tokenizer().mask_token_id


class Table(nn.Module):
    """A policy of one logit for each kind of token."""

    def __init__(self, *, seed: int = 0):
        super().__init__()
        self.table = nn.Embedding(45, 1)
        with torch.no_grad():
            noise = torch.randn(
                45, 1, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
            )
            self.table.weight.copy_(noise)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return self.table(input_ids).squeeze(-1)


def batch_of(rows: int, seed: int) -> Line:
    columns = tools.Language(rows, seed=seed).line(torch.arange(rows))
    columns["attention_mask"] = torch.ones_like(columns["input_ids"])
    columns["attention_mask"][-1, -4:] = 0
    return gather(columns, VOCABULARY)


def question(kind: str, rows: int, seed: int) -> dict[str, Tensor]:
    """A batch of the task: one word of a row is asked for."""
    ids = tools.Language(rows, seed=100 + seed).ids[:, :8].clone()
    if kind == "bart":
        return {
            "input_ids": ids,
            "attention_mask": torch.ones_like(ids),
            "labels": ids[:, 3:6].clone(),
        }
    labels = torch.full_like(ids, -100)
    labels[:, 3], ids[:, 3] = ids[:, 3], MASK
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}


def exact(theta: Parameters, steps: list[InnerStep], outer: LossFunction) -> MetaGradient:
    """Autograd through the gradients. Fused attention has no second derivative."""
    now = {name: value.requires_grad_() for name, value in theta.items()}
    masks, inner = [], []
    with sdpa_kernel(SDPBackend.MATH):
        for step in steps:
            mask = None if step.mask is None else step.mask.detach().requires_grad_()
            masks.append(mask)
            loss = step.loss(now, mask)
            inner.append(float(loss.detach()))
            slopes = slopes_of(loss, [*now.values()], create_graph=True)
            values = zip(now.items(), slopes, strict=True)
            now = {name: value - step.rate * slope for (name, value), slope in values}
        total = outer(now, None)
        gradients = iter(slopes_of(total, [mask for mask in masks if mask is not None]))
    of_masks = [None if mask is None else next(gradients) for mask in masks]
    return MetaGradient(float(total.detach()), inner, of_masks)


def slopes_of(loss: Tensor, wanted: list[Tensor], **how: bool) -> tuple[Tensor, ...]:
    return torch.autograd.grad(loss, wanted, allow_unused=True, materialize_grads=True, **how)


@dataclass
class Problem:
    """One bilevel objective of a tiny model: pairs of inner steps (masked text, then the task), and
    an outer loss.
    """

    losses: Losses
    policy: nn.Module
    batches: list[Line]
    choices: list[RelaxedChoice]
    tasks: list[dict[str, Tensor]]
    outer: dict[str, Tensor]
    rates: tuple[float, float]
    smooth: bool = True

    @classmethod
    def of(
        cls,
        kind: str = "bert",
        *,
        rows: int = 3,
        inner: int = 1,
        rates: tuple[float, float] = (0.5, 0.3),
        same: bool = True,
        smooth: bool = True,
        dtype: torch.dtype = torch.float64,
    ) -> Problem:
        model = (tools.tiny_bart() if kind == "bart" else tools.model(kind).eval()).to(dtype)
        task = Denoising(model) if kind == "bart" else MaskedLanguageModelling(model)
        policy = Table().to(dtype)
        batches = [batch_of(rows, seed) for seed in range(inner)]
        choices = []
        for number, batch in enumerate(batches):
            draws = Draws(batch.example_id, seed=number, epoch=None)
            choices.append(choose(batch, policy(batch.tensor(batch.input_ids), None), 0.3, draws))
        tasks = [question(kind, rows, seed) for seed in range(inner)]
        outer = tasks[-1] if same else question(kind, rows + 1, 50)
        losses = Losses(RelaxedDenoising(model, MASK), task)
        return cls(losses, policy, batches, choices, tasks, outer, rates, smooth)

    def steps(self) -> list[InnerStep]:
        steps = []
        for batch, choice, task in zip(self.batches, self.choices, self.tasks, strict=True):
            inputs = {
                name: batch.tensor(getattr(batch, name)) for name in ("input_ids", "attention_mask")
            }
            logit_U = choice.unit_logits(self.policy(inputs["input_ids"], inputs["attention_mask"]))
            mask = choice.mask(logit_U)
            if self.smooth:
                sizes = (choice.length_U, choice.piece_U, choice.budget_P)
                mask = choice.spread(inclusion(logit_U, *sizes))
            steps.append(InnerStep(self.losses.of(inputs, choice.budget), self.rates[0], mask))
            steps.append(InnerStep(self.losses.of(task), self.rates[1]))
        return steps

    def gradient(self, method: Any = meta_gradient) -> tuple[MetaGradient, Tensor]:
        """What the method returns, and the gradient of the policy's table."""
        self.policy.zero_grad()
        steps, theta = self.steps(), values_of(self.losses)
        result = method(theta, steps, self.losses.of(self.outer))
        result.surrogate(steps).backward()
        return result, self.policy.table.weight.grad.flatten().clone()

    def value(self) -> float:
        """The outer loss, found by training as one would without any meta-gradient."""
        theta = {name: value.requires_grad_() for name, value in values_of(self.losses).items()}
        for step in self.steps():
            mask = None if step.mask is None else step.mask.detach()
            slope = slopes_of(step.loss(theta, mask), [*theta.values()])
            theta = {
                name: (value - step.rate * g).detach().requires_grad_()
                for (name, value), g in zip(theta.items(), slope, strict=True)
            }
        return float(self.losses.of(self.outer)(theta, None).detach())


def differences(problem: Problem, entries: list[int], h: float = 1e-4) -> Tensor:
    """Central differences of the whole objective: masks, thresholds and inner steps are made anew
    each time.
    """
    table, slopes = problem.policy.table.weight, []
    for entry in entries:
        values = []
        for sign in (1, -1):
            with torch.no_grad():
                table[entry] += sign * h
            values.append(problem.value())
            with torch.no_grad():
                table[entry] -= sign * h
        slopes.append((values[0] - values[1]) / (2 * h))
    return torch.tensor(slopes, dtype=torch.float64)


def relative_error(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


def cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b / (a.norm() * b.norm()))


CASES = {
    "bert": {},
    "three inner steps": {"inner": 3, "rows": 2},
    "one row": {"rows": 1},
    "bart, two inner steps": {"kind": "bart", "inner": 2, "same": False},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_exact_is_the_slope_of_the_whole_objective(case: dict) -> None:
    problem = Problem.of(**case)
    result, gradient = problem.gradient(exact)
    assert result.outer == pytest.approx(problem.value(), rel=1e-12)
    used = [int(i) for i in gradient.abs().argsort(descending=True)[:6]]
    assert relative_error(gradient[used], differences(problem, used)) < 1e-5


@pytest.mark.parametrize("second", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize(
    "case", [{}, {"inner": 2}, {"inner": 3, "same": False}, {"kind": "bart"}], ids=str
)
def test_finite_differences_agree_with_exact(case: dict, second: float) -> None:
    problem = Problem.of(**case, rates=(0.5, second), smooth=second == 0.1)
    whole, right = problem.gradient(exact)
    approximate, near = problem.gradient()
    assert cosine(near, right) > 0.99999
    assert float(near.norm() / right.norm()) == pytest.approx(1, abs=1e-3)
    assert approximate.outer == pytest.approx(whole.outer, rel=1e-12)
    assert approximate.inner == pytest.approx(whole.inner, rel=1e-12)


@pytest.mark.parametrize("case", [{}, {"inner": 2, "same": False}, {"kind": "bart"}], ids=str)
def test_finite_differences_in_single_precision(case: dict) -> None:
    right = Problem.of(**case, smooth=False).gradient(exact)[1]
    near = Problem.of(**case, smooth=False, dtype=torch.float32).gradient()[1].double()
    assert cosine(near, right) > 0.999
    assert float(near.norm() / right.norm()) == pytest.approx(1, abs=1e-2)


def test_steps_of_size_zero_give_no_gradient_at_all() -> None:
    _, gradient = Problem.of(rates=(0.0, 0.5), inner=2).gradient()
    assert torch.equal(gradient, torch.zeros_like(gradient))


def test_an_outer_loss_without_slope_gives_zero() -> None:
    problem = Problem.of()
    steps, theta = problem.steps(), values_of(problem.losses)
    flat = meta_gradient(
        theta, steps, lambda theta, mask: 0.0 * theta[next(iter(theta))].sum() + 2.0
    )
    assert flat.outer == 2.0 and not flat.masks[0].any()


def test_an_outer_loss_with_an_infinite_slope_is_no_traceback() -> None:
    problem = Problem.of()
    steps, theta = problem.steps(), values_of(problem.losses)
    name = next(iter(theta))

    def root(theta: Parameters, mask: Tensor | None) -> Tensor:
        total = theta[name].sum()
        return (total - total.detach()).sqrt() + 2.0

    steep = meta_gradient(theta, steps, root)
    assert steep.outer == 2.0 and not steep.masks[0].any()


# --- all selections
# ----------------------------------------------------------------------------

LENGTHS = (1, 2, 1, 3, 1, 2)
BUDGET = 4
WHOLE = sum(LENGTHS)


def probabilities(logit_U: Tensor) -> dict[tuple[bool, ...], Tensor]:
    """The probability of every selection, summed over all 720 orders in which six units can be
    tried.
    """
    weight, total = logit_U.exp(), {}
    for order in itertools.permutations(range(len(LENGTHS))):
        probability, left, chosen, rest = (
            torch.ones((), dtype=logit_U.dtype),
            BUDGET,
            [False] * 6,
            weight.sum(),
        )
        for unit in order:
            probability, rest = probability * weight[unit] / rest, rest - weight[unit]
            if LENGTHS[unit] <= left:
                chosen[unit], left = True, left - LENGTHS[unit]
        total[tuple(chosen)] = total.get(tuple(chosen), 0) + probability
    return total


LOGIT = torch.tensor([0.4, -0.3, 0.9, 0.2, -0.6, 0.1], dtype=torch.float64, requires_grad=True)


def test_straight_through_points_where_the_gradient_over_all_selections_does() -> None:
    """The gradient of the expected outer loss, by the enumeration of all selections."""
    table = probabilities(LOGIT)
    assert float(sum(table.values()).detach()) == pytest.approx(1, abs=1e-12)
    model = tools.model("bert").eval().double()
    losses = Losses(RelaxedDenoising(model, MASK), MaskedLanguageModelling(model))
    word_ids = torch.arange(len(LENGTHS)).repeat_interleave(torch.tensor(LENGTHS)).unsqueeze(0)
    columns = {"input_ids": word_ids + 5, "word_ids": word_ids, "example_id": torch.zeros(1).long()}
    line = gather(columns, VOCABULARY)
    draws = Draws(line.example_id, seed=0, epoch=None)
    choice = choose(line, LOGIT.detach()[word_ids], BUDGET / WHOLE, draws)
    inputs = {"input_ids": word_ids + 5, "attention_mask": torch.ones_like(word_ids)}
    loss = losses.of(inputs, torch.tensor(float(BUDGET)))
    outer, theta = losses.of(question("bert", 2, 3)), values_of(losses)
    expected = torch.zeros(())
    straight = torch.zeros(6, dtype=torch.float64)
    for selection, probability in table.items():
        mask = replace(choice, chosen_U=torch.tensor(selection)).mask(LOGIT)
        result = exact(theta, [InnerStep(loss, 0.5, mask)], outer)
        expected = expected + probability * result.outer
        slope = torch.autograd.grad(mask, LOGIT, result.masks[0], retain_graph=True)[0]
        straight += float(probability.detach()) * slope
    assert cosine(straight, torch.autograd.grad(expected, LOGIT)[0]) > 0.5
