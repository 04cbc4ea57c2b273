"""Policies: what each offers and chooses, against enumeration, published laws and hand-worked
rows.
"""

from __future__ import annotations

import re
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import Tensor

from masking_tools import (
    CORRUPTION_SPECS,
    POLICY_SPECS,
    masker,
    packed,
    padded,
    random_rows,
    row,
    vocabulary,
)
from maskwise.base.errors import MaskwiseError
from maskwise.masking import CORRUPTIONS, IGNORE, POLICIES, Line, Masker, Noising, gather
from maskwise.masking.corruptions import corruption
from maskwise.masking.draws import Draws
from maskwise.masking.policies import (
    Mixture,
    Policy,
    Span,
    UnitKind,
    When,
    policy,
)
from maskwise.masking.policies.base import units_by


def single_words(count: int, words: int) -> dict[str, Tensor]:
    """(count, words) rows of one-token words, without special tokens."""
    return {
        "input_ids": torch.randint(
            5, 60, (count, words), generator=torch.Generator().manual_seed(0)
        ),
        "example_id": torch.arange(count),
        "word_ids": torch.arange(words).expand(count, words).clone(),
    }


def chosen(
    spec: Any,
    rows: Any,
    *,
    ratio: Any = 0.15,
    budget: str = "expected",
    epoch: int = 0,
    **more: Any,
) -> Tensor:
    """(B, L) bool: what a policy chooses."""
    moment = {name: more.pop(name) for name in ("step", "total_steps") if name in more}
    made = Masker(
        vocabulary(), policy=spec, ratio=ratio, budget=budget, corruption="mask-only", **more
    )
    return made(rows, epoch=epoch, **moment).selected


def units_of(spec: Any, rows: Any, *, ratio: float = 0.15) -> tuple[Line, Any, Draws]:
    line = gather(rows, vocabulary())
    draws = Draws(line.example_id, seed=0, epoch=0)
    share = np.full(len(line.begin), ratio)
    return line, policy(spec).cut(line, draws, When(0, 10, 0, share)), draws


def runs(mask: Tensor) -> Tensor:
    """(B,): how many runs of True each row has."""
    start = mask.clone()
    start[:, 1:] &= ~mask[:, :-1]
    return start.sum(1)


# Every policy: the same masks however the rows are laid out


@pytest.mark.parametrize("budget", ["exact", "expected"])
@pytest.mark.parametrize("spec", ["token", "span", "span(over='token')", "t5-span", "phrase"])
def test_every_place_is_masked_equally_often(spec: str, budget: str) -> None:
    """One-token words: places are alike, so the first, the middle and the last must be."""
    rows = single_words(12_000, 40)
    rows["phrase"] = torch.full((12_000, 40), -1)
    share = chosen(spec, rows, budget=budget).double().mean(0)
    # Five standard deviations of one place, and a closer look at the ends together.
    assert (share - share.mean()).abs().max() < 5 * (0.15 * 0.85 / 12_000) ** 0.5
    ends = torch.cat((share[:3], share[-3:])).mean()
    assert abs(ends - share[10:30].mean()) < 0.007


# Spans


def test_offered_span_lengths_are_the_truncated_geometric() -> None:
    """SpanBERT: P(n) ∝ .2 · .8ⁿ⁻¹ up to 10, mean 3.80 (3.797); the first six of 64 words are never
    cut.
    """
    _, units, _ = units_of("span", single_words(20_000, 64))
    seen = np.bincount(units.length[units.number < 6], minlength=11)[1:]
    share = 0.2 * 0.8 ** np.arange(10)
    share /= share.sum()
    assert np.allclose(Span().lengths(), share) and abs(share @ np.arange(1, 11) - 3.797) < 1e-3
    assert chisquare(seen, share * seen.sum()).pvalue > 1e-3
    assert (np.bincount(units.piece, units.length) == 64).all()
    poisson = Span(poisson=3.0, max_words=20).lengths()
    assert abs(float(poisson @ np.arange(1.0, 21.0)) - 3 / (1 - 0.049787)) < 1e-4
    _, units, _ = units_of("span(poisson=3.0, min_words=2, max_words=5)", single_words(50, 64))
    assert set(units.length[units.number < 8].tolist()) == {2, 3, 4, 5}


def test_spans_are_whole_words_and_leave_unknown_ones() -> None:
    rows = padded([row([1, 3, 2, 1, 4, 2, 1, 1, 3], unknown=[5], example_id=i) for i in range(300)])
    batch, units, _ = units_of("span", rows)
    spread = torch.full(batch.shape, -1)
    spread.view(-1)[units.tokens] = torch.from_numpy(units.unit)
    for word in range(9):
        unit = spread[rows["word_ids"] == word].view(300, -1)
        assert (unit == unit[:, :1]).all() and ((unit == -1).all() == (word == 2))


@pytest.mark.parametrize(
    ("tokens", "ratio", "mean", "noise", "spans"),
    [(40, 0.15, 3.0, 6, 2), (60, 0.5, 3.0, 30, 10), (20, 0.9, 3.0, 18, 2)],
)
def test_t5_spans_use_the_budget_to_the_token(
    tokens: int, ratio: float, mean: float, noise: int, spans: int
) -> None:
    """round(n / 3) spans that do not touch; opened inside a span, the ring shows one more."""
    rows = single_words(3000, tokens)
    for budget in ("exact", "expected", "bernoulli"):
        mask = chosen(f"t5-span(mean_span={mean})", rows, ratio=ratio, budget=budget)
        assert (mask.sum(1) == noise).all()
        more = runs(mask) - spans
        both = mask[:, 0] & mask[:, -1]
        assert not more[~both].any() and set(more[both].tolist()) <= {0, 1}


def test_t5_segmentations_are_uniform() -> None:
    """All ways to cut 4 noise and 5 other tokens into 2 pieces each, and to open the ring, are
    alike.
    """
    mask = chosen("t5-span(mean_span=2.0)", single_words(30_000, 9), ratio=4 / 9)
    law: dict[tuple[bool, ...], float] = {}
    for a, b, start in ((a, b, s) for a in (1, 2, 3) for b in (1, 2, 3, 4) for s in range(9)):
        ring = [False] * b + [True] * a + [False] * (5 - b) + [True] * (4 - a)
        seen = tuple(ring[start:] + ring[:start])
        law[seen] = law.get(seen, 0) + 1 / 108
    count = dict.fromkeys(law, 0)
    for seen in map(tuple, mask.tolist()):
        count[seen] += 1  # a mask outside the law is a KeyError
    assert chisquare(list(count.values()), [30_000 * p for p in law.values()]).pvalue > 1e-3


# Layers, weights, frequencies


def marked_rows(count: int) -> dict[str, Tensor]:
    """30 one-token words; "salient" marks words 3 to 5, 10, and 20 to 21, by the number of the next
    word.
    """
    rows = single_words(count, 30)
    rows["salient"] = torch.full((count, 30), -1)
    for places in ((3, 4, 5), (10,), (20, 21)):
        rows["salient"][:, list(places)] = places[-1] + 1
    return rows


def test_salient_spans_and_what_fills_the_rest() -> None:
    rows = marked_rows(400)
    inside = rows["salient"][0] >= 0
    mask = chosen("salient", rows, ratio=0.15)
    assert not mask[:, ~inside].any()
    for a, b in ((3, 4), (4, 5), (20, 21)):
        assert torch.equal(mask[:, a], mask[:, b])
    assert abs(float(mask.sum(1).double().mean()) - 4.5) < 0.15
    # Six marked tokens and a budget of nine: the rest is left, filled evenly, or the row is
    # skipped.
    assert (chosen("salient", rows, ratio=0.3).sum(1) == 6).all()
    filled = chosen("salient", rows, ratio=0.3, fill="random")
    assert (filled.sum(1) == 9).all() and filled[:, inside].all()
    share = filled[:, ~inside].double().mean(0)
    assert (share - 3 / 24).abs().max() < 5 * (0.125 * 0.875 / 400) ** 0.5
    assert not chosen("salient", rows, ratio=0.3, fill="skip-row").any()
    # Only marked tokens: the ratio is a share of them.
    marked = chosen("salient(rest='none')", rows, ratio=0.5)
    assert not marked[:, ~inside].any()
    assert abs(float(marked.sum(1).double().mean()) - 3) < 0.15
    # Phrases and other units are of one weight.
    _, units, _ = units_of("span-layer('salient', rest='token', rest_weight=1.0)", rows)
    assert units.weight is None and np.bincount(units.piece).tolist() == [27] * 400


def test_weights_are_powers_of_scores_and_of_counts() -> None:
    rows = single_words(1, 5)
    rows["score"] = torch.tensor([[0.0, 1.0, 2.0, 3.0, 4.0]])
    for power in (1.0, 2.0, -1.0):
        _, units, _ = units_of(f"weighted('score', power={power})", rows)
        assert units.weight.tolist() == [0.0, *(n**power for n in (1.0, 2.0, 3.0, 4.0))]
    rows["frequency"] = torch.arange(18, 23)[None]
    _, units, _ = units_of("frequency(floor=20)", rows)
    assert units.weight.tolist() == pytest.approx([n**-0.5 for n in (20, 20, 20, 21, 22)])


class OfOnesOwn(Policy):
    """Words whose weights are their lengths times a factor."""

    unit_kind = UnitKind.WORD

    def __init__(self, factor: float):
        self.factor = factor

    def cut(self, batch: Any, keys: Any, moment: Any) -> Any:
        words = units_by(batch, "word")
        return words.weighted(words.length * self.factor)


def test_bad_weights_are_refused() -> None:
    """They would mask nothing, or anything, and nobody would know."""
    rows = padded(random_rows(2))
    for bad in (float("nan"), -1.0, float("inf")):
        rows["weight"][1, 3] = bad
        for spec in ("weighted", OfOnesOwn(bad)):
            with pytest.raises(MaskwiseError, match="not a finite number ≥ 0"):
                chosen(spec, rows)
    rows["weight"][1, 3] = 1.0
    rows["weight"][:, 0] = float("nan")
    assert chosen("weighted", rows).any(), "the weight of a special token does not matter"


# Mixtures


def test_mixtures_follow_their_schedules() -> None:
    """Salient spans first, random later: the share of rows drawn is the share in force."""
    rows = marked_rows(6000)
    inside = rows["salient"][0] >= 0
    spec = "mixture(salient, token, shares=(linear(1, 0), linear(0, 1)))"
    made = policy(spec)
    assert isinstance(made, Mixture) and made.layers() == ("salient", "word_ids")
    draws = Draws(rows["example_id"].numpy(), seed=0, epoch=0)
    for step in (0, 25, 50, 100):
        mask = chosen(spec, rows, ratio=0.2, step=step, total_steps=100)
        salient = made.drawn(draws, When(step, 100, 0)) == 0
        assert abs(salient.mean() - (1 - step / 100)) < 0.02
        assert not mask[salient][:, ~inside].any()
    text = 'mixture("salient", "token", shares=("linear(1,0)", "linear(0,1)"))'
    assert str(policy(text)) == str(made)


def test_a_row_is_masked_as_its_member_alone_would() -> None:
    rows = padded(random_rows(40, seed=9, words=20))
    made = policy("mixture(span, token, whole-word)")
    draws = Draws(rows["example_id"].numpy(), seed=0, epoch=0)
    drawn = made.drawn(draws, When(0, 1, 0))
    assert set(drawn.tolist()) == {0, 1, 2}
    for budget in ("exact", "expected"):
        mixed = chosen(made, rows, budget=budget)
        for index, name in enumerate(("span", "token", "whole-word")):
            alone = chosen(name, rows, budget=budget)
            assert torch.equal(mixed[drawn == index], alone[drawn == index])


def test_members_may_bring_their_own_ratios() -> None:
    rows = single_words(3000, 40)
    batch = masker(
        'mixture("t5-span(ratio=0.5)", "t5-span(ratio=0.25)", token)', "mask-only", ratio=0.1
    )(rows, epoch=0)
    ratios, counts = batch.ratio.unique(return_counts=True)
    assert ratios.tolist() == [0.1, 0.25, 0.5] and (counts > 900).all()
    assert torch.equal(batch.selected.sum(1).double(), batch.ratio * 40)


# Prediction decoupled from corruption


def test_predict_takes_a_fixed_share_of_the_row() -> None:
    """Ankner's ablation: corrupt at p(t), take the loss on 10 % of the row."""
    rows = single_words(2000, 50)
    plain = masker("token", "bert", ratio="linear(0.4, 0.04)")
    some = masker("token", "bert", ratio="linear(0.4, 0.04)", predict=0.1)
    for step, targets in ((0, 5), (50, 5), (100, 2)):
        a, b = (m(rows, step=step, total_steps=100, epoch=0) for m in (plain, some))
        assert torch.equal(a.input_ids, b.input_ids)
        kept = b.labels != IGNORE
        assert torch.equal(b.labels[kept], a.labels[kept]) and (kept.sum(1) == targets).all()
    assert some.describe()["predict"] == "constant(0.1)"
    with pytest.raises(MaskwiseError, match="predict needs"):
        masker("token", "t5", predict=0.5)
    assert (masker("token", "bert", predict=0.0)(rows, epoch=0).labels == IGNORE).all()


def test_predictions_do_not_depend_on_the_layout() -> None:
    rows = random_rows(8, seed=5, words=15)
    made = masker("whole-word", "bert", ratio=0.5, predict="linear(0.1, 0.3)")
    alone = [made(padded([r]), epoch=0, step=3, total_steps=9).labels[0].tolist() for r in rows]
    together = made(padded(rows), epoch=0, step=3, total_steps=9).labels.tolist()
    assert [x[: len(y)] for x, y in zip(together, alone)] == alone
    blocks = made(packed(rows, width=120), epoch=0, step=3, total_steps=9).labels
    assert blocks[blocks != IGNORE].tolist() == [x for y in alone for x in y if x != IGNORE]


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("token", "token"),
        ("guided", "token"),
        ("weighted(units='token')", "token"),
        ("frequency(units='token')", "token"),
        ("whole-word", "whole-word"),
        ("weighted", "whole-word"),
        ("pos-weighted", "whole-word"),
        ("informative", "whole-word"),
        ("span", "span"),
        ("span(over='token')", "token span"),
        ("t5-span", "token span"),
        ("salient", "span-layer"),
        ("weighted(units='phrase')", "span-layer"),
        ("mixture(whole-word, informative)", "whole-word"),
        ("mixture(whole-word, token)", "mixture"),
    ],
)
def test_the_kind_of_units_follows_from_the_arguments(spec: str, kind: str) -> None:
    assert policy(spec).unit_kind == kind


@pytest.mark.parametrize("spec", [*POLICY_SPECS.values(), "mixture(token, guided)"])
def test_policies_of_single_tokens_cut_single_tokens_and_others_never_say_so(spec: str) -> None:
    """Budget ``bernoulli`` with ``min_targets``, and masked diffusion, rely on it at every step."""
    made = policy(spec)
    for step in (0, 5, 10):
        line, units, draws = units_of(made, padded(random_rows(5)))
        now = When(step, 10, epoch=0, ratio=np.full(line.pieces, 0.2))
        units = made.cut(line, draws, now)
        assert units.by_token == (made.unit_kind is UnitKind.TOKEN)
        assert not units.by_token or set(units.length.tolist()) == {1}


def test_a_mixture_of_single_tokens_keeps_the_minimum_and_fits_masked_diffusion() -> None:
    rows = random_rows(40)
    for spec in ("token", "mixture(token, guided)"):
        more: dict[str, Any] = {"ratio": 0.05, "budget": "bernoulli", "min_targets": 4}
        made = Masker(vocabulary(), policy=spec, corruption="mask-only", **more)
        batch = made(rows, epoch=0)
        offered_P = batch.choice.units.tokens_P
        floor_P = np.minimum(offered_P, 4) * (offered_P * 0.05 >= 0.5)
        chosen_P = batch.line.count(batch.choice.tokens)
        assert floor_P.any() and (chosen_P >= floor_P).all()
    noisy = Noising(vocabulary(), policy="mixture(token, token)")(rows, epoch=0)
    plain = Noising(vocabulary())(rows, epoch=0)
    assert noisy.targets == plain.targets and noisy.loss_weight is not None
    weights = (batch.loss_weight[batch.selected].sort().values for batch in (noisy, plain))
    assert torch.equal(*weights)


def numeric(table: Any, make: Any, specs: dict[str, str]) -> list[tuple[str, str]]:
    """The arguments of all members that are numbers."""
    found = []
    for name in table:
        for each in fields(make(specs[name])):
            if each.init and re.search(r"float|int\b", str(each.type)):
                found.append((specs[name], each.name))
    return found


@pytest.mark.parametrize(
    ("spec", "name"),
    numeric(POLICIES, policy, POLICY_SPECS) + numeric(CORRUPTIONS, corruption, CORRUPTION_SPECS),
)
def test_arguments_that_are_numbers_are_finite_numbers(spec: str, name: str) -> None:
    known = spec in CORRUPTION_SPECS.values()
    made: Any = corruption(spec) if known else policy(spec)
    for bad in (float("nan"), float("inf"), "0.5", True):
        with pytest.raises(MaskwiseError) as caught:
            replace(made, **{name: bad})
        assert name in caught.value.what and "\n" not in str(caught.value)


def test_a_learned_span_and_the_word_behind_it_are_two_units() -> None:
    """Whatever the numbers of both: here the span is number 1, as is the next word."""
    one = row([1, 1, 1])
    one |= {"learned F_span": [-1, 1, -1, -1, -1], "learned F_score": [0.0, 0.5, 0.0, 0.0, 0.0]}
    line = gather([one], vocabulary())
    units = policy("learned('F', take='spans')").cut(
        line, Draws(line.example_id, seed=0, epoch=0), When()
    )
    assert units.length.tolist() == [1, 1, 1]
