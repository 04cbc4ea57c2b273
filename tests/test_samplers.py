"""Samplers: the published update by its check values and by autograd, and the rules."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from benchmarks.sampler_regret import play as regret_game

from maskwise.samplers import (
    SAMPLERS,
    LossProportional,
    Mometas,
    MometasPlus,
    Sampler,
    Sequential,
    sampler,
)
from maskwise.samplers.base import reliability
from maskwise.samplers.mometas import RECENT, gains, reinforce_gradient

OBJECTIVES = ["mlm", "emlm", "atd", "cse"]
SPECS = {
    **{name: name for name in SAMPLERS},
    "shares": "shares(4, 2, 1, 1)",
}
each = pytest.mark.parametrize("name", SPECS)


def made(name: str, *, seed: int = 0) -> Sampler:
    return sampler(SPECS[name], OBJECTIVES, seed=seed)


# --- the contract of every sampler


@each
def test_draws_are_a_function_of_seed_and_step_and_follow_the_probabilities(name: str) -> None:
    one, other, third = made(name), made(name), made(name, seed=1)
    draws = [one.draw(step, 4000) for step in range(4000)]
    assert draws[::-1] == [other.draw(step, 4000) for step in reversed(range(4000))]
    expected = torch.stack([one.probabilities(step, 4000) for step in range(4000)]).mean(0)
    share = torch.tensor(
        [draws.count(objective) / 4000 for objective in OBJECTIVES], dtype=torch.float64
    )
    assert (share - expected).abs().max() < 4 * 0.5 / 4000**0.5
    varied = bool((made(name).probabilities(0, 4000) < 1).all())
    assert (draws != [third.draw(step, 4000) for step in range(4000)]) == varied


@each
def test_what_was_learnt_survives(name: str) -> None:
    one, again = made(name), made(name)
    for step in range(30):
        one.draw(step, 100)
    one.update([4.0, 0.6, 0.5, 2.0], [3.6, 0.57, 0.45, 2.1])
    for step in range(30, 45):
        one.draw(step, 100)
    again.load_state_dict({name: tensor.clone() for name, tensor in one.state_dict().items()})
    for both in (one, again):
        both.update({"mlm": 3.6, "emlm": 0.57, "atd": 0.45, "cse": 2.1}, [3.5, 0.5, 0.44, 1.9])
    assert torch.equal(one.probabilities(45, 100), again.probabilities(45, 100))
    assert [one.draw(s, 100) for s in range(45, 80)] == [again.draw(s, 100) for s in range(45, 80)]


# --- the published update


def test_check_values() -> None:
    """methods, section 2.2."""
    one = Mometas(["a", "b", "c", "d"])
    assert one.logits.tolist() == [1.0] * 4
    one.rollout = {
        step: "abcd"[objective] for step, objective in enumerate([0, 0, 1, 2, 0, 3, 1, 0])
    }
    a, b = [4.0, 0.60, 0.50, 2.0], [3.6, 0.57, 0.4995, 2.2]
    r = gains(torch.tensor(a).double(), torch.tensor(b).double())
    assert r.tolist() == pytest.approx([0.1, 0.05, 0, -0.1], abs=1e-5)
    assert torch.equal(one.update(a, b), one.logits) and one.notes == []
    assert (one.logits - 1).tolist() == pytest.approx([0.01, 0, -0.005, -0.005], abs=1e-6)
    assert not one.rollout


@pytest.mark.parametrize(("reward", "entropy"), [(1.5, 0.0), (-0.7, 2.0), (0.0, 0.3)])
def test_the_gradient_is_autograds(reward: float, entropy: float) -> None:
    logits = torch.tensor([-3.0, 0.2, 1.0, 2.5], dtype=torch.float64, requires_grad=True)
    count = torch.tensor([0.0, 7.0, 1.0, 3.0], dtype=torch.float64)
    log_p = torch.log_softmax(logits, 0)
    loss = -reward * (count * log_p).sum() + entropy * (log_p.exp() * log_p).sum()
    (expected,) = torch.autograd.grad(loss, logits)
    torch.testing.assert_close(
        reinforce_gradient(logits.detach(), count, reward, entropy), expected
    )


def test_gains_are_bounded_and_still_below_a_thousandth() -> None:
    before = torch.tensor([1.0, 1.0, 1.0, 1e-9, 2.0], dtype=torch.float64)
    after = torch.tensor([0.9991, 9.0, 0.5, 1e-9, 1.0], dtype=torch.float64)
    assert gains(before, after).tolist() == pytest.approx([0, -1, 0.5, 0, 0.5], abs=1e-5)


@pytest.mark.parametrize("kind", [Mometas, MometasPlus])
def test_losses_that_are_no_numbers_are_said_and_left_out(kind: type[Any]) -> None:
    one, clean = (kind(["a", "b", "c"], seed=3) for _ in range(2))
    for turn, (before, after) in enumerate([(math.nan, 1.0), (1.0, math.inf), (math.nan, 1.0)]):
        for step in range(50 * turn, 50 * turn + 50):
            assert one.draw(step) == clean.draw(step)
        left = 1.0 + turn / 4
        burst = [2.0, before, 1.0], [left, after, 1.0]
        # What metrics record is what training uses.
        assert one.reward(*burst) == pytest.approx(1 - left / 2, abs=1e-5)
        one.update(*burst)
        clean.update([2.0, 1.0, 1.0], [left, 1.0, 1.0])
    assert [note.split(":")[0] for note in one.notes] == ["b"] and "not finite" in one.notes[0]
    assert torch.equal(one.logits, clean.logits)
    one.rollout = dict.fromkeys(range(10), "a")
    one.update([2.0, 1.0, 1.0], [1.9, 1.2, 1.0])
    assert one.notes == []


def test_short_runs_have_shorter_rollouts_and_the_old_constants_a_name() -> None:
    """The fixed point is softmax(q / entropy), and q is ten times smaller for rollouts that are."""
    short, long = (sampler("mometas", OBJECTIVES, steps=steps) for steps in (600, 50_000))
    assert (short.every, short.entropy, short.lr) == (
        10,
        pytest.approx(0.2),
        pytest.approx(0.1 * 10**0.5),
    )
    assert (long.every, long.entropy, long.lr) == (100, 2.0, 0.1)
    for old in (sampler("mometas(published=True)", OBJECTIVES, steps=600), Mometas(OBJECTIVES)):
        assert (old.every, old.entropy, old.lr, old.rows) == (100, 2.0, 0.1, 64)
    faithful = sampler("mometas(faithful=True)", OBJECTIVES, steps=600)
    assert (faithful.every, faithful.rows, faithful.probed_rows(twins=True)) == (100, 128, 128)
    plus = sampler("mometas-plus", OBJECTIVES, steps=600)
    assert (plus.every, plus.memory, plus.probed_rows(twins=True)) == (10, 15, 96)
    assert sampler("loss-proportional", OBJECTIVES, steps=300).every == 5


@pytest.mark.filterwarnings("error")
def test_reliability_is_what_two_halves_agree_on() -> None:
    draws = torch.Generator().manual_seed(0)
    signal, noise = torch.randn(4000, 1, generator=draws), torch.randn(4000, 2, generator=draws)
    for size, expected in ((0.0, 1.0), (1.0, 2 / 3), (2.0, 1 / 3), (50.0, 0.0)):
        assert reliability((signal + size * noise).double()) == pytest.approx(expected, abs=0.04)
    for few in (noise[:0], noise[:1], noise[:6], torch.ones(40, 2)):
        assert reliability(few) is None


# --- the rules


def test_round_robin_blocks_and_thirds() -> None:
    assert [Sequential([*"abc"]).draw(s) for s in range(7)] == list("abcabca")
    assert [Sequential([*"abc"], 2).draw(s) for s in range(7)] == list("aabbcca")
    assert [Sequential([*"abc"], None).draw(s, 7) for s in range(7)] == list("aaabbcc")


def test_hand_set_and_annealed_shares() -> None:
    assert sampler("shares(2, 1, 1, 0)", OBJECTIVES).probabilities().tolist() == [
        0.5,
        0.25,
        0.25,
        0,
    ]
    annealed = sampler('shares(0.5, "linear(0, 0.5)")', OBJECTIVES[:2])
    assert annealed.probabilities(0, 101).tolist() == [1, 0]
    assert annealed.probabilities(100, 100).tolist() == [0.5, 0.5]


def test_loss_over_chance() -> None:
    one = LossProportional(["mlm", "atd"], chance={"mlm": math.log(1000), "atd": math.log(2)})
    assert one.probabilities().tolist() == [0.5, 0.5]
    one.update([9, 9], [math.log(1000) / 2, math.log(2)])
    assert one.probabilities().tolist() == pytest.approx([1 / 3, 2 / 3])
    one.update([1, 1], [math.inf, 1.0])
    assert one.notes == ["mlm: the probe loss is not finite; not drawn"]
    assert one.probabilities().tolist() == [0, 1]
    one.update([1, 1], [math.inf, math.nan])
    assert one.notes == [
        f"{name}: the probe loss is not finite; its share stays" for name in ("mlm", "atd")
    ]
    assert one.probabilities().tolist() == [0, 1]


# --- bandits: the total relative gain of 100 steps of each objective; a shared reward with noise


def test_mometas_plus_is_even_while_it_knows_nothing() -> None:
    """Five objectives without a difference, at the noise of real rewards; it was .50 with constants
    of before.
    """
    largest = [
        regret_game("mometas-plus", "no effect", noise=0.6, rollouts=rollouts, seed=seed)[1]
        for rollouts, games in ((12, 4), (60, 6))
        for seed in range(games)
    ]
    assert sum(largest) / len(largest) < 0.3


def test_mometas_plus_compares_rewards_with_their_recent_mean() -> None:
    """After five rollouts half of the mean is new."""
    made = sampler("mometas-plus(every=1)", ["a", "b"])
    levels = []
    for rollout, gain in enumerate([0.1, *[0.3] * RECENT]):
        made.rollout = {rollout: "ab"[rollout % 2]}
        made.update(before={"a": 1.0, "b": 1.0}, after={"a": 1 - gain, "b": 1.0})
        levels.append(made.state_dict()["level"].tolist())
    # the reward, and the shares of the objectives
    assert levels[0] == pytest.approx([0.1, 1, 0], abs=1e-5)
    new = 1 - 0.5 ** (1 / RECENT)
    assert levels[1] == pytest.approx([0.1 + new * 0.2, 1 - new, new], abs=1e-5)
    assert levels[RECENT][0] == pytest.approx(0.2, abs=1e-5)


# --- what is refused
