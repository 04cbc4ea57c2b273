"""POS-weighted masking: its law against enumeration, its averages against a recomputation, its
state in the loop.
"""

from __future__ import annotations

import math
import statistics
from itertools import permutations, product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from masking_tools import padded, row, vocabulary
from maskwise.base.constants import UPOS
from maskwise.base.errors import MaskwiseError
from maskwise.masking import Masker, MaskingCollator
from maskwise.masking.policies import GroupWeighted
from maskwise.masking.policies.online import UNKNOWN
from maskwise.objectives import MaskedLanguageModelling
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.learners import GroupLearner, Learner, standardised
from maskwise.training.ranks import Ranks
from processes import two_ranks
from training_tools import Language, model, tokenizer


class Tagged(Language):
    """The language of training_tools with three "parts of speech": even, odd and, for every fifth
    word, none.
    """

    def line(self, rows: Tensor) -> dict[str, Tensor]:
        pos = torch.where(self.word_ids[rows] < 0, -1, self.ids[rows] % 2)
        return {**super().line(rows), "pos": torch.where(self.ids[rows] % 5 == 0, -1, pos)}


DATA = Tagged(40)


# --- the averages


def by_hand(
    steps: list[list[tuple[int, float]]], groups: int, m: float, *, corrected: bool
) -> list[float]:
    """Weights from every step's (group, loss) pairs, in plain Python, from the formulas of the
    paper.
    """
    s, n = [0.0] * groups, [0] * groups
    for step in steps:
        for g in range(groups):
            mine = [loss for group, loss in step if group == g]
            if mine:
                s[g] = m * s[g] + (1 - m) * statistics.fmean(mine)
                n[g] += 1
    value = [s[g] / (1 - m ** n[g]) if corrected and n[g] else s[g] for g in range(groups)]
    seen = [g for g in range(groups) if n[g] or not corrected]
    if len(seen) < 2 or statistics.stdev(value[g] for g in seen) == 0:
        return [0.5] * groups
    mean, sd = statistics.fmean(value[g] for g in seen), statistics.stdev(value[g] for g in seen)
    return [
        1 / (1 + math.exp(-2 * (value[g] - mean) / sd)) if g in seen else 0.5 for g in range(groups)
    ]


def test_weights_are_even_until_two_groups_differ() -> None:
    everyone = torch.ones(3, dtype=torch.bool)
    assert standardised(torch.tensor([1.0, 1.0, 1.0]), everyone).tolist() == [UNKNOWN] * 3
    third = 1 / 3 + torch.tensor([0.0, 1e-16, -1e-16], dtype=torch.float64)
    assert standardised(third, everyone).tolist() == [UNKNOWN] * 3, "rounding is no spread"
    assert (
        standardised(torch.tensor([3.0, 0.0]), torch.tensor([True, False])).tolist()
        == [UNKNOWN] * 2
    )
    z = 2**-0.5
    expected = [1 / (1 + math.exp(2 * z)), 1 / (1 + math.exp(-2 * z)), UNKNOWN]
    found = standardised(torch.tensor([1.0, 5.0, 9.0]).double(), torch.tensor([True, True, False]))
    assert found.tolist() == pytest.approx(expected)


def test_half_life_is_in_updates() -> None:
    running = GroupLearner(GroupWeighted("x", 2, half_life_steps=7))
    for loss in [1.0] * 50 + [0.0] * 7:
        running.update(torch.tensor([[loss, 2.0], [1.0, 1.0]], dtype=torch.float64), 1000)
    assert float(running.losses()[0]) == pytest.approx(0.5, abs=0.005)
    assert GroupLearner(GroupWeighted("x")).kept(1000) == pytest.approx(0.5 ** (1 / 50)), (
        "a twentieth of the run"
    )
    assert GroupLearner(GroupWeighted("x", faithful=True)).kept(10) == 0.999


# --- the law of selection


def two_groups(words: int, count: int) -> dict[str, Tensor]:
    """(count, words) rows of one-token words whose groups are 0 and 1 in turn."""
    return {
        "input_ids": torch.randint(
            5, 60, (count, words), generator=torch.Generator().manual_seed(0)
        ),
        "example_id": torch.arange(count),
        "word_ids": torch.arange(words).expand(count, words).clone(),
        "pos": (torch.arange(words) % 2).expand(count, words).clone(),
    }


def with_weights(weights: tuple[float, ...], **more: Any) -> GroupWeighted:
    made = GroupWeighted("pos", len(weights), **more)
    made.weights.current = np.array(weights)
    return made


def included(made: GroupWeighted, rows: dict[str, Tensor], ratio: float) -> Tensor:
    """(L,): how often each token is chosen."""
    masker = Masker(vocabulary(), policy=made, ratio=ratio, budget="exact", corruption="mask-only")
    return masker(rows, epoch=0).selected.double().mean(0)


def enumerated(weights: list[float], budget: int, *, faithful: bool) -> list[float]:
    """Inclusion probabilities of one-token words: over all orders and, if faithful, all
    acceptances.
    """
    n, total = len(weights), [0.0] * len(weights)
    for order in permutations(range(n)):
        if faithful:
            for luck in product([True, False], repeat=n):
                p = math.prod(
                    w if yes else 1 - w for w, yes in zip(weights, luck, strict=True)
                ) / math.factorial(n)
                for word in [word for word in order if luck[word]][:budget]:
                    total[word] += p
        else:
            p, left = 1.0, sum(weights)
            for word in order:
                p, left = p * weights[word] / left, left - weights[word]
            for word in order[:budget]:
                total[word] += p
    return total


@pytest.mark.parametrize("faithful", [True, False])
def test_selection_equals_its_enumeration(faithful: bool) -> None:
    made, count = with_weights((0.88, 0.12), faithful=faithful), 60_000
    found = included(made, two_groups(6, count), ratio=1 / 3)
    expected = torch.tensor(enumerated([0.88, 0.12] * 3, 2, faithful=faithful))
    assert (found - expected).abs().max() < 4.5 * 0.5 / count**0.5
    other = torch.tensor(enumerated([0.88, 0.12] * 3, 2, faithful=not faithful))
    assert (found - other).abs().max() > 0.02, "the two laws can be told apart"


@pytest.mark.parametrize(
    ("faithful", "often", "seldom"), [(True, 0.530, 0.070), (False, 0.509, 0.091)]
)
def test_published_case_in_long_rows(faithful: bool, often: float, seldom: float) -> None:
    """methods, section 1.2: half of the words at .88, half at .12, ratio .30."""
    found = included(
        with_weights((0.88, 0.12), faithful=faithful), two_groups(400, 1500), ratio=0.30
    )
    assert float(found[0::2].mean()) == pytest.approx(often, abs=0.002)
    assert float(found[1::2].mean()) == pytest.approx(seldom, abs=0.002)


# --- in the loop


class Recorder(Learner):
    """Keeps every (group, loss) pair that the loop saw."""

    def __init__(self) -> None:
        self.steps: list[list[tuple[int, float]]] = [[]]

    def observe(self, batch: Any, outcome: Any) -> None:
        group = batch.line.tensor(batch.line.layer("pos"))[outcome.where.unbind(1)].tolist()
        self.steps[-1] += zip(group, outcome.each.tolist(), strict=True)

    def after(self, now: Any) -> None:
        if now.done:
            self.steps.append([])


def run(
    folder: Path | None = None,
    *,
    spec: str = "group-weighted(pos, 2)",
    stop: int | None = None,
    learners: dict[str, Any] | None = None,
    **more: Any,
) -> tuple[Any, GroupWeighted]:
    """Twelve steps of a tiny model with POS-weighted masking under a falling ratio."""
    plain = {
        "steps": 12,
        "batch_size": 8,
        "log_every": 2,
        "precision": "no",
        "learning_rate": 3e-3,
        "eval_every": 1,
    }
    settings = TrainingSettings(**{**plain, **more})
    masker = Masker(
        tokenizer(),
        policy=spec,
        ratio="linear(0.4, 0.2)",
        budget="expected",
        corruption="mask-only",
    )
    objective, source = MaskedLanguageModelling(model("bert")), MaskedSource(DATA, masker, settings)

    def evaluate(step: int, _: Ranks) -> list[dict[str, Any]]:
        if step == stop:
            raise KeyboardInterrupt
        return []

    train(
        objective,
        source,
        settings,
        folder=folder,
        evaluate=evaluate,
        learners={**source.learners(), **(learners or {})},
    )
    return objective.model, masker.policy


@pytest.mark.parametrize(
    "spec", ["group-weighted(pos, 2)", "group-weighted(pos, 2, faithful=True)"]
)
def test_the_loop_teaches_what_its_losses_say(spec: str, tmp_path: Path) -> None:
    recorder = Recorder()
    _, learnt = run(tmp_path, spec=spec, learners={"recorder": recorder}, accumulate=2)
    faithful = "faithful" in spec
    m = 0.999 if faithful else 0.5 ** (1 / max(1, 12 / 20))
    steps = [[(g, loss) for g, loss in step if g >= 0] for step in recorder.steps[:12]]
    assert any(g < 0 for step in recorder.steps for g, _ in step), (
        "tokens of no group are among the targets"
    )
    expected = by_hand(steps, 2, m, corrected=not faithful)
    assert learnt.weights.current.tolist() == pytest.approx(expected, abs=1e-6)
    assert expected[0] != expected[1]


@pytest.mark.parametrize("spec", ["group-weighted(pos, 2)", "type-weighted(every=4)"])
def test_a_stopped_run_keeps_what_it_learnt(spec: str, tmp_path: Path) -> None:
    whole, learnt = run(tmp_path / "whole", spec=spec, save_every=2)
    for stop in (3, 6, 11):
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / str(stop), spec=spec, save_every=2, stop=stop)
        again, same = run(tmp_path / str(stop), spec=spec, save_every=2)
        assert np.array_equal(learnt.weights.current, same.weights.current), stop
        for a, b in zip(whole.parameters(), again.parameters(), strict=True):
            assert torch.equal(a, b)
    for name in ("whole", "11"):
        assert (tmp_path / name / "metrics.jsonl").read_text().count('weights": {"') == 6


def rank_of_two(folder: Path) -> None:
    _, learnt = run(folder, steps=3, accumulate=2)
    mine = torch.from_numpy(learnt.weights.current)
    gathered = [torch.empty_like(mine) for _ in range(2)]
    dist.all_gather(gathered, mine)
    assert torch.equal(*gathered), gathered
    if dist.get_rank() == 0:
        (folder / "weights.txt").write_text(" ".join(map(repr, mine.tolist())))


def test_two_ranks_learn_the_same_and_as_one(tmp_path: Path) -> None:
    two_ranks(rank_of_two, tmp_path)
    two = [float(word) for word in (tmp_path / "weights.txt").read_text().split()]
    _, learnt = run(steps=3)
    assert two == pytest.approx(learnt.weights.current.tolist(), abs=1e-4) and two[0] != two[1]


# --- what is refused


def test_a_group_without_a_name_is_refused() -> None:
    rows = padded([row([1, 2, 3, 1])])
    rows["pos"] = torch.where(rows["word_ids"] >= 0, len(UPOS), -1)
    with pytest.raises(MaskwiseError, match="too large in layer 'pos'; got 17"):
        Masker(vocabulary(), policy="pos-weighted")(rows)


def test_a_learning_policy_needs_tokens_in_their_places() -> None:
    masker = Masker(tokenizer(), policy="group-weighted(pos, 2)", corruption="delete")
    with pytest.raises(MaskwiseError, match="needs a corruption that keeps the length of a text"):
        MaskedSource(DATA, masker, TrainingSettings(batch_size=8)).learners()
    assert Masker(tokenizer(), policy="token").policy.learns is False


def test_a_collator_says_that_it_cannot_teach() -> None:
    with pytest.warns(
        UserWarning, match="learns its weights from losses, but a collator gets no losses"
    ):
        MaskingCollator(Masker(vocabulary(), policy="pos-weighted"))
