"""Masked diffusion: weights against enumeration, published formulas by hand, invariances, visits,
refusals.
"""

from __future__ import annotations

import math
from itertools import combinations, permutations
from typing import Any

import numpy as np
import pytest
import torch

import maskwise as mw
from masking_tools import FIRST, MASK, line, masker, packed, padded, random_rows, row, vocabulary
from maskwise.base.errors import MaskwiseError
from maskwise.masking import IGNORE, Masker, Noising
from maskwise.masking.diffusion import Rates, even_draws, noised, reached
from maskwise.masking.draws import Draws
from maskwise.masking.policies import policy
from maskwise.masking.schedules import schedule
from maskwise.masking.units import Units
from maskwise.objectives import MaskedDiffusion
from training_tools import Language, model, tokenizer

L = 7
COVERING = [
    "uniform(0, 1)",
    "cosine-rates",
    "bell",
    "bell(0.3, 0.1)",
    "beta(3, 2)",
    "beta(0.7, 0.7)",
]
RANGES = ["uniform(0.3, 0.8)", "clipped(uniform(0, 1), 0.2, 0.7)", "then(uniform(0, 1), 0.5, bell)"]
DISTRIBUTIONS = COVERING + RANGES


@pytest.fixture(scope="module")
def losses() -> np.ndarray:
    """(2^L, L) float64: −log p(token i | what a set of masked tokens leaves), for a model without
    any structure.
    """
    return np.random.default_rng(0).gamma(2.0, size=(1 << L, L))


def over_orders(losses: np.ndarray, weight: list[float] | None = None) -> float:
    """The mean autoregressive loss over all orders; with weights, over the orders of weighted
    sampling.

    An order says which token is masked first: with k masked, the last of them is predicted from
    what is still visible.
    """
    tokens = range(L if weight is None else len(weight))
    total = 0.0
    for order in permutations(tokens):
        probability, masked, loss = 1.0, 0, 0.0
        for place, token in enumerate(order):
            rest = order[place:]
            probability *= (
                1 / len(rest) if weight is None else weight[token] / sum(weight[i] for i in rest)
            )
            masked |= 1 << token
            loss += losses[masked, token]
        total += probability * loss
    return total


def test_the_mean_over_masks_and_rates_is_the_mean_over_orders(losses: np.ndarray) -> None:
    wanted = over_orders(losses)
    each = {n: [sum(1 << i for i in s) for s in combinations(range(L), n)] for n in range(1, L + 1)}
    u = (np.arange(400_000) + 0.5) / 400_000
    for name in DISTRIBUTIONS:
        rates = Rates(schedule(name), 10, 100)
        # How often each number of tokens is masked, counted from evenly spaced draws.
        number = rates.number(rates.draw(u), np.full(len(u), L))
        share = np.bincount(number, minlength=L + 1)[1:] / len(u)
        weight = rates.number_weight(np.arange(1, L + 1), np.full(L, L))
        mean = sum(
            share[k - 1] * weight[k - 1] * losses[s, i] / len(each[k])
            for k in each
            for s in each[k]
            for i in range(L)
            if s >> i & 1
        )
        assert mean == pytest.approx(wanted, rel=1e-4), name


def drawn(
    name: str, losses: np.ndarray, *, budget: str, count: int = 20_000, **more: Any
) -> np.ndarray:
    """(count,) the loss of as many rows of L tokens, in nats a row."""
    noising = Noising(vocabulary(), ratio=name, budget=budget, seed=3, **more)
    rows = {
        "input_ids": torch.full((count, L), FIRST),
        "example_id": torch.arange(count),
        "weight": torch.arange(L).expand(count, L) % 3 + 0.5,
    }
    batch = noising(rows, epoch=0, step=10, total_steps=100)
    masked = (batch.labels != IGNORE).numpy()
    assert batch.counted == count * L and batch.loss_weight is not None
    assert (batch.input_ids.numpy() == np.where(masked, MASK, FIRST)).all()
    number = (masked << np.arange(L)).sum(1)
    return (losses[number] * batch.loss_weight.numpy() * masked).sum(1)


@pytest.mark.parametrize("budget", ["exact", "bernoulli"])
@pytest.mark.parametrize("name", DISTRIBUTIONS)
def test_every_distribution_estimates_the_same_bound(
    name: str, budget: str, losses: np.ndarray
) -> None:
    values = drawn(name, losses, budget=budget)
    z = (values.mean() - over_orders(losses)) / (values.std(ddof=1) / math.sqrt(len(values)))
    assert abs(z) < 3, f"{name}, {budget}: {values.mean():.4f}, z {z:.2f}"


def test_weights_are_those_of_weighted_orders(losses: np.ndarray) -> None:
    """Which tokens go first is the policy's; the rate, and the weight of every token, follow
    exactly.
    """
    wanted = over_orders(losses, weight=[i % 3 + 0.5 for i in range(L)])
    assert abs(wanted - over_orders(losses)) > 0.1
    for name in ("uniform(0, 1)", "bell"):
        values = drawn(name, losses, budget="bernoulli", policy="weighted(units='token')")
        z = (values.mean() - wanted) / (values.std(ddof=1) / math.sqrt(len(values)))
        assert abs(z) < 3, (name, z)


def test_rates_come_as_often_as_their_density_says() -> None:
    u = (np.arange(400_000) + 0.5) / 400_000
    for name in DISTRIBUTIONS:
        rates = Rates(schedule(name), 10, 100)
        t = np.sort(rates.draw(u))
        edges = np.linspace(0, 1, 21)[1:-1]
        seen = np.searchsorted(t, edges) / len(t)
        middle = (np.arange(200_000) + 0.5) / 200_000
        said = np.searchsorted(edges, middle)
        mass = np.bincount(said, rates.density(middle), 20).cumsum()[:-1] / len(middle)
        assert np.abs(seen - mass).max() < 2e-3, name
        assert rates.weight(t).max() <= 1.001 / (0.1 * t[0]) and rates.complete


def test_the_published_formulas_by_hand() -> None:
    """MDLM, equation 10 with its log-linear schedule, and LLaDA, equation 3: −1/(t·L) Σ masked log
    p.
    """
    noising, rows = (
        Noising(tokenizer(), budget="bernoulli", seed=5),
        Language(6).line(torch.arange(6)),
    )
    batch = noising(rows, epoch=0)
    net = model("bert").eval()
    with torch.no_grad():
        log_p = net(
            input_ids=batch.input_ids, attention_mask=batch.attention_mask
        ).logits.log_softmax(-1)
        outcome = MaskedDiffusion(net)(batch)
    mdlm = llada = 0.0
    for b in range(6):
        t, ids = float(batch.ratio[b]), batch.input_ids[b]
        masked = (ids == tokenizer().mask_token_id).nonzero().flatten().tolist()
        nats = -sum(float(log_p[b, i, rows["input_ids"][b, i]]) for i in masked)
        alpha, slope = 1 - t, -1.0  # α(t) = 1 − t
        mdlm += slope / (1 - alpha) * -nats
        llada += nats / t
    assert float(outcome.total) == pytest.approx(mdlm, rel=1e-5) == pytest.approx(llada, rel=1e-5)
    assert int(outcome.divisor) == int(batch.line.eligible.sum())


@pytest.mark.parametrize(("rows_of_batch", "least"), [(8, 5), (32, 12)])
def test_low_discrepancy_lowers_the_variance_of_a_batch(rows_of_batch: int, least: float) -> None:
    """A loss that grows with the rate, 64 tokens a row: the variance over 400 batches is 6.7 and
    14.8 times lower.
    """
    batches, tokens = 400, 64
    count = batches * rows_of_batch
    noising = Noising(vocabulary(), seed=1)
    rows = {"input_ids": torch.full((count, tokens), FIRST), "example_id": torch.arange(count)}
    variance = []
    for place in (None, np.arange(count)):
        batch = noising(rows, epoch=0, place=place)
        loss = 2 + 3 * batch.ratio
        variance.append(float(loss.view(batches, -1).mean(1).var()))
    factor = variance[0] / variance[1]
    assert factor > least


def test_places_are_uniform_for_every_row_and_the_same_on_any_number_of_ranks() -> None:
    place = np.arange(512)
    every = np.stack([even_draws(place, place * 0, seed=seed, epoch=0) for seed in range(300)])
    assert every.min() > 0 and every.max() < 1
    assert np.abs(np.sort(every, 0) - (np.arange(300)[:, None] + 0.5) / 300).max() < 0.12
    part = place[3::4]
    assert (even_draws(part, part * 0, seed=7, epoch=0) == every[7][part]).all()


def test_masks_do_not_depend_on_batch_order_or_layout() -> None:
    rows = random_rows(9, seed=2)
    for more in ({"budget": "bernoulli"}, {"budget": "bernoulli", "policy": "whole-word"}, {}):
        noising = Noising(vocabulary(), seed=4, **more)
        whole = noising(padded(rows), epoch=1)
        some = noising(padded([rows[8], rows[1]]), epoch=1)
        dense = noising(packed(rows, width=90), epoch=1)
        for part, b, i in ((some, 0, 8), (some, 1, 1), (dense, 0, 0)):
            n = len(rows[i]["input_ids"])
            for name in ("input_ids", "loss_weight"):
                assert torch.equal(part[name][b, :n], whole[name][i, :n])
        assert dense.targets == whole.targets


@pytest.mark.parametrize("budget", ["exact", "bernoulli"])
def test_the_second_visit_masks_what_the_first_left(budget: str, losses: np.ndarray) -> None:
    noising = Noising(vocabulary(), ratio="beta(2, 1)", visits="complement", budget=budget, seed=3)
    rows = {"input_ids": torch.full((20_000, L), FIRST), "example_id": torch.arange(20_000)}
    first, second = (noising(rows, epoch=epoch) for epoch in (6, 7))
    assert (first.selected ^ second.selected).all() and first.loss_weight is not None
    assert not torch.equal(first.selected, noising(rows, epoch=8).selected)
    values = []
    for batch in (first, second):
        number = (batch.selected.numpy() << np.arange(L)).sum(1)
        values.append((losses[number] * batch.loss_weight.numpy() * batch.selected.numpy()).sum(1))
    both = np.mean(values, axis=0)
    assert abs(both.mean() - over_orders(losses)) < 3 * both.std() / math.sqrt(len(both))


def test_complements_need_one_distribution_of_rates() -> None:
    """With another distribution in the second visit, the weighted loss was .29 instead of .5."""
    for changing in ("then(uniform(0, 0.5), 0.5, uniform(0.5, 1))", "warm-up(uniform(0, 1))"):
        with pytest.raises(MaskwiseError, match="same distribution of rates"):
            Noising(vocabulary(), ratio=changing, visits="complement")
        assert Noising(vocabulary(), ratio=changing).ratio.varies
    assert Noising(vocabulary(), ratio="linear(0.3, 0.1)", visits="complement").ratio.varies


@pytest.mark.parametrize("name", ["token", "whole-word", "span", "salient", "weighted"])
def test_complement_by_enumeration(name: str) -> None:
    rows = padded(random_rows(7, words=11))
    made = masker(name, ratio=0.3, visits="complement", fill="random", seed=2)
    first, second = (made(rows, epoch=epoch) for epoch in (4, 5))
    units = first.choice.units
    every = torch.from_numpy(
        units.spread(np.ones(len(units.piece), bool)).reshape(units.line.shape)
    )
    assert torch.equal(first.selected ^ second.selected, every)
    share = first.selected.sum() / len(first.line.eligible_at)
    assert float(share) == pytest.approx(0.3, abs=0.1)


def test_visits_refuse_the_settings_that_they_cannot_keep() -> None:
    for setting, value in (
        ("budget", "exact"),
        ("budget", "bernoulli"),
        ("fill", "skip-row"),
        ("min_targets", 2),
    ):
        more: dict[str, Any] = {setting: value}
        with pytest.raises(MaskwiseError) as caught:
            Masker(vocabulary(), policy="whole-word", ratio=0.25, visits="complement", **more)
        assert (
            caught.value.got == value
            and "complement" in caught.value.what
            and setting in caught.value.what
        )
        assert masker("whole-word", ratio=0.25, **more).masking.visits == "random"
    # the only word of a row is longer than any budget
    rows = padded([row([9], example_id=n) for n in range(64)])
    for epoch in range(4):
        batch = masker("whole-word", ratio=0.25, visits="complement")(rows, epoch=epoch)
        assert set(batch.line.count(batch.choice.tokens).tolist()) <= {0, 9}


def test_rates_of_units_with_weights_keep_the_share_of_the_row() -> None:
    batch = line(2, 50)
    weight = np.random.default_rng(1).gamma(0.5, size=100)
    weight[[3, 60, 61]] = 0
    for may_fill in (False, True):
        units = Units.single(batch).weighted(weight)
        if may_fill:
            units = units.filled()
        share = np.array([0.2, 0.93])
        got, slope = reached(units, share)
        alive_P = [((weight > 0) | may_fill)[part].sum() for part in (slice(50), slice(50, 100))]
        assert got.reshape(2, 50).sum(1) / alive_P == pytest.approx(share, abs=1e-9)
        assert slope.reshape(2, 50).sum(1) / alive_P == pytest.approx([1, 1], abs=1e-9)
        later, _ = reached(units, share + 1e-6)
        assert (later - got) / 1e-6 == pytest.approx(slope, abs=1e-3)
        assert (got[[3, 60, 61]] == 0).all() or may_fill


def test_prompts_stay_visible() -> None:
    rows = random_rows(5, seed=3)
    for one in rows:
        one["prompt"] = [0 if i < 6 else -1 for i in range(len(one["input_ids"]))]
    for made in (
        Noising(vocabulary(), keep="prompt", ratio="uniform(0.5, 1)"),
        masker(keep="prompt", ratio=0.6),
    ):
        batch = made(rows, epoch=0)
        assert batch.targets and (batch.labels[:, :6] == IGNORE).all()
        assert torch.equal(batch.input_ids[:, :6], padded(rows)["input_ids"][:, :6])
    with pytest.raises(MaskwiseError, match="'prompt'"):
        Noising(vocabulary(), keep="prompt")(random_rows(2), epoch=0)


def test_corrupt_is_for_trainers_of_others() -> None:
    """Its masks are those of ``Noising``, over the tokens that count."""
    ids = torch.randint(FIRST, 60, (400, 30))
    counts = torch.ones_like(ids)
    counts[:, :5] = 0
    rows = {"input_ids": ids, "example_id": torch.arange(400), "special_tokens_mask": 1 - counts}
    for budget, place in (("bernoulli", None), ("exact", torch.arange(400))):
        batch = Noising(vocabulary(), budget=budget, seed=1)(rows, epoch=0, place=place)
        names = {"seed": 1, "epoch": 0, "budget": budget, "example_id": rows["example_id"]}
        noisy, mask, rate = mw.corrupt(ids, counts, MASK, place=place, **names)
        assert torch.equal(noisy, batch.input_ids) and torch.equal(mask, batch.selected)
        assert torch.equal(rate, batch.ratio.float()[:, None].expand(ids.shape))
    # A row that is all prompt adds 0 to a loss that is divided by the rate.
    counts[0] = 0
    _, mask, rate = mw.corrupt(ids, counts, MASK, epoch=0, budget="exact")
    assert not mask[0].any() and (rate[0] > 0).all()
    with pytest.warns(UserWarning, match="the same mask each time"):
        whole = mw.corrupt(ids[:9], counts[:9], 3)[0]
    part = mw.corrupt(ids[7:9], counts[7:9], 3, step=0)[0]
    assert torch.equal(whole[7:], part), "a mask is a function of the row"
    with pytest.raises(MaskwiseError, match=r"'loss_mask'.*\(400, 29\).*\(400, 30\)"):
        mw.corrupt(ids, counts[:, :-1], 3)
    # Silently, these would give tokens that are no whole numbers, or another token.
    for tokens, mask in ((ids, 1.5), (ids.float(), 3), (ids.short(), 70_000)):
        with pytest.raises(MaskwiseError, match=r"input_ids|mask_token_id"):
            mw.corrupt(tokens, counts, mask)


def test_what_is_no_likelihood_is_said() -> None:
    def remark(**settings: Any) -> str | None:
        return MaskedDiffusion.check(MaskedDiffusion.own_masking(settings))

    assert remark() is None and remark(ratio="bell") is None
    assert remark(policy="span(over='token')", budget="bernoulli") is None
    assert "not a bound" in str(remark(policy="whole-word", budget="bernoulli"))
    assert "not a bound" in str(remark(ratio="constant(0.3)"))
    assert "not a bound" in str(remark(ratio=0.3))
    assert all(policy(name).reads_text for name in ("salient", "frequency", "whole-word", "span"))
    with pytest.raises(MaskwiseError, match="weights"):
        Noising(vocabulary(), policy="weighted(units='token')")([row([1, 2, 1])], epoch=0)
    with pytest.raises(MaskwiseError, match="epoch"):
        Masker(vocabulary(), visits="complement")([row([1, 2, 1])])
    for name in ("t5-span", "mixture(token, t5-span)", "learned('x', explore=0.5)"):
        with pytest.raises(MaskwiseError, match=r"visits: complement .* depend on the ratio"):
            Masker(vocabulary(), policy=name, visits="complement")


def test_a_fixed_rate_is_masked_language_modelling() -> None:
    """Number drawn and weight L/n: over the eligible tokens, the mean of the masked ones of each
    row.
    """
    batch = Noising(vocabulary(), ratio=0.3)(padded(random_rows(6)), epoch=0)
    eligible, masked = batch.line.eligible_P, batch.line.count(batch.choice.tokens)
    assert (masked == np.ceil(0.3 * eligible - 1e-9)).all()
    weights = (batch.loss_weight.numpy() * batch.selected.numpy()).sum(1)
    assert weights == pytest.approx(eligible)
    units, keys = Units.single(batch.line), Draws(np.arange(6), seed=0, epoch=0)
    rates = Rates(schedule(0.3))
    noise = noised(units, rates, np.full(6, 0.3), keys, exact=False, second=False)
    assert noise.loss_weight.max() == pytest.approx(1 / 0.3)
