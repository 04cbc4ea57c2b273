"""Policies that the model teaches while it trains, on a text of which half of the types cannot be
learned.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.masking.policies import POLICIES, Token, policy
from maskwise.objectives import Loss
from maskwise.samplers import sampler
from maskwise.training import TrainingSettings
from maskwise.training.data import MaskedSource, learners_of
from maskwise.training.learners import Learner, Progress, learner_of
from maskwise.training.loop import LATE, Exchange, restore, states
from maskwise.training.several import SeveralSources
from training_tools import FIRST, Language, tokenizer

ARGUMENTS = {
    "group-weighted": "group-weighted(pos)",
    "learned": "learned(F)",
    "mixture": "mixture(token, span)",
    "span-layer": "span-layer(pos)",
    "guided": "guided(pos)",
}
MADE = {name: policy(ARGUMENTS.get(name, name)) for name in POLICIES}


def taught(spec: str, losses: Callable[[Tensor], Tensor]) -> tuple[Any, Any]:
    """A masker whose policy has seen a batch twice, and the batch; every second answer is right."""
    masker = Masker(tokenizer(), policy=spec, corruption="mask-only", ratio=0.5)
    learner = learners_of(masker)["policy"]
    batch = masker(Language(4).line(torch.arange(4)), epoch=0)
    truth = batch.labels[batch.labels >= 0]
    right = torch.arange(batch.targets) % 2 == 0
    outcome = Loss.of(losses(truth), batch.where)._replace(right=right)
    for done in (1, 2):
        learner.observe(batch, outcome)
        now = Progress(done, 10)
        learner.after(now._replace(sums=learner.offer(now)))
    return masker, batch


def test_a_question_about_the_next_batch_starts_no_learner() -> None:
    """A learner that sets its weights in ``start`` had lost what it learned, before each batch."""
    began: list[int] = []

    class Own(Learner):
        def start(self, vocabulary: Any) -> None:
            began.append(vocabulary.size)

    class Learns(Token):
        def learner(self) -> Learner:
            return Own()

    settings = TrainingSettings(batch_size=4)
    source = MaskedSource(Language(8), Masker(tokenizer(), policy=Learns()), settings)
    plain = MaskedSource(Language(8), Masker(tokenizer()), settings)
    assert not source.ahead(1) and not began and plain.ahead(1)
    several = SeveralSources(
        {"a": plain, "b": source}, sampler("uniform", ["a", "b"], seed=0, steps=9), settings
    )
    assert not several.ahead(1) and not began
    assert source.learners() and len(began) == 1


def test_weights_by_hand() -> None:
    masker, batch = taught("type-weighted(every=2)", torch.ones_like)
    truth = batch.labels[batch.labels >= 0]
    kind = int(truth[0])
    asked, good = 2 * int((truth == kind).sum()), 2 * int((truth[::2] == kind).sum())
    weights = masker.policy.weights.current
    assert float(weights[kind]) == pytest.approx(0.2 + 0.8 * (1 - (good + 1) / (asked + 2)))
    never = next(i for i in range(FIRST, 45) if i not in truth.tolist())
    assert float(weights[never]) == 1
    units = masker.policy.cut(batch.line, None, None)
    assert np.array_equal(units.weight, weights[batch.line.input_ids[units.tokens]])
    other = policy("type-weighted(every=2)")
    assert other.weights.current is None, "another policy of the same name knows nothing"


def test_a_policy_of_another_package_makes_its_learner() -> None:
    class Mine(Token):
        def learner(self) -> Learner:
            return Learner()

    class Forgetful(Token):
        learns = True

    assert type(learner_of(Mine())) is Learner and Mine().learns
    assert learner_of(Token()) is None and not Token().learns
    with pytest.raises(MaskwiseError, match="has no learner"):
        learner_of(Forgetful())
    learning = [name for name, made in MADE.items() if made.learns]
    assert learning == [name for name, made in MADE.items() if learner_of(made) is not None]
    assert learning == ["group-weighted", "pos-weighted", "type-weighted"]


def test_what_two_ranks_have_seen_survives_a_stop_between_two_updates_of_the_weights() -> None:
    def learners() -> list[Any]:
        maskers = [
            Masker(tokenizer(), policy="type-weighted(every=4)", corruption="mask-only")
            for _ in range(2)
        ]
        return [learners_of(masker)["policy"] for masker in maskers]

    def step(pair: list[Any], done: int) -> None:
        for rank, learner in enumerate(pair):
            batch = Masker(tokenizer(), ratio=0.5)(
                Language(8).line(torch.arange(4) + 4 * rank), epoch=done
            )
            right = torch.arange(batch.targets) % (rank + 2) == 0
            losses = torch.ones(batch.targets)
            learner.observe(
                batch,
                Loss(losses.sum(), torch.tensor(batch.targets), losses, batch.where, right),
            )
        now = Progress(done, 10, closing=done == 2)
        offered = [learner.offer(now) for learner in pair]
        both = None if offered[0] is None else sum(offered)
        for learner in pair:
            learner.after(now._replace(sums=both))

    whole, stopped = learners(), learners()
    for done in (1, 2, 3, 4):
        step(whole, done)
    for done in (1, 2):
        step(stopped, done)
    state = stopped[0].state_dict()  # that of the first rank is saved, and all of them read it
    stopped = learners()
    for learner in stopped:
        learner.load_state_dict(state)
    for done in (3, 4):
        step(stopped, done)
    weights = [learner.policy.weights.current for learner in (*whole, *stopped)]
    assert (weights[0] < 1).any() and all(
        np.array_equal(weights[0], other) for other in weights[1:]
    )


class Offering(Learner):
    """Offers numbers, and keeps what has arrived."""

    def __init__(self, every: int, values: int):
        self.every = every
        self.values = values
        self.arrived: list[float | None] = []

    def offer(self, now: Progress) -> Tensor | None:
        due = now.done % self.every == 0
        return torch.full((self.values,), float(now.done)) if due else None

    def after(self, now: Progress) -> None:
        self.arrived.append(None if now.sums is None else float(now.sums.mean()))


class Ranks:
    """Three ranks that have seen the same."""

    exchanges = 0

    def __call__(self, own: Tensor) -> Tensor:
        return self.start(own)()

    def start(self, own: Tensor) -> Callable[[], Tensor]:
        self.exchanges += 1
        return lambda: 3 * own


@pytest.mark.parametrize("late", [False, True])
def test_one_exchange_serves_all_learners_at_once_or_a_step_late(late: bool) -> None:
    ranks = Ranks()
    learners = {"a": Offering(1, 4), "b": Offering(2, 3), "c": Offering(2, 1)}
    exchange = Exchange(ranks, late=late)
    for done in range(5):
        if done == 3:  # a run that was stopped here
            state = states({LATE: exchange})
            exchange = Exchange(ranks, late=late)
            restore({LATE: exchange}, state)
        exchange.update(learners, Progress(done, 5))
    assert ranks.exchanges == 5
    own = {
        "a": [0.0, 3.0, 6.0, 9.0, 12.0],
        "b": [0.0, None, 6.0, None, 12.0],
        "c": [0.0, None, 6.0, None, 12.0],
    }
    for name, expected in own.items():
        assert learners[name].arrived == ([None, *expected[:-1]] if late else expected)
