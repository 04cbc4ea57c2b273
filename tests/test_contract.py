"""The contract of every registered policy, corruption, budget mode and schedule, on awkward rows.

Nothing here knows a member by name, but for ``masking_tools`` (arguments) and the sets below (what
a member is free to do). A new line in a registry is tested by this file as it is.
"""

from __future__ import annotations

import importlib
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masking_tools import (
    AWKWARD,
    CLS,
    CORRUPTION_SPECS,
    FIRST,
    PAD,
    POLICY_BUDGETS,
    POLICY_SPECS,
    SEP,
    UNK,
    WORDS,
    masker,
    packed,
    padded,
    per_row,
    random_rows,
    row,
    vocabulary,
)
from maskwise.draws import Draws
from maskwise.errors import MaskwiseError
from maskwise.masking import IGNORE, SCHEDULES, gather, schedules
from maskwise.masking.policies import POLICIES, When
from maskwise.masking.select import BUDGETS

KEEPING = [name for name in CORRUPTION_SPECS if masker("token", name).corruption.keeps_length]
MOVING = {"permute-sentences"}  # the text that is left may change places
ADDING = {"insert"}  # random tokens that stand for nothing

each_policy = pytest.mark.parametrize("policy", POLICY_SPECS)
each_corruption = pytest.mark.parametrize("corruption", CORRUPTION_SPECS)
each_budget = pytest.mark.parametrize(("policy", "budget"), POLICY_BUDGETS)

words = st.lists(st.sampled_from([0, 1, 1, 1, 2, 3, 5]), max_size=14)
rows = st.lists(
    st.tuples(words, st.sets(st.integers(0, 12), max_size=2), st.booleans()), min_size=1, max_size=4
).map(
    lambda made: [
        row(w, unknown=sorted(u), framed=f, example_id=7 * i + len(w))
        for i, (w, u, f) in enumerate(made)
    ]
)
few = settings(
    max_examples=6, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck)
)

ROWS = list(AWKWARD.values()) + random_rows(4, seed=3)
WHOLE = padded(ROWS)


def some_rows(*order: int) -> tuple[list[int], list[dict], list]:
    """Some of the rows, and the batches that they can be: padded, as lists, padded left."""
    some = [ROWS[i] for i in order]
    return [*order], some, [padded(some, width=44), some, padded(some, width=41, left=True)]


# Tensors are made once, because hundreds of tests read them.
COMPOSED = [some_rows(*reversed(range(len(ROWS)))), some_rows(3), some_rows(0, 8)]


def eligible(one: dict) -> torch.Tensor:
    return torch.tensor([i >= FIRST for i in one["input_ids"]], dtype=torch.bool)


@each_budget
@each_corruption
def test_awkward_rows(policy: str, budget: str, corruption: str) -> None:
    made, batch = masker(policy, corruption, budget=budget, ratio=0.3, seed=5), padded(ROWS)
    out = made(batch, epoch=2)
    for name, value in WHOLE.items():
        assert torch.equal(batch[name], value), "the input was changed"
    check_shown(out, batch, corruption)
    again = made(batch, epoch=2)
    assert torch.equal(out.input_ids, again.input_ids) and torch.equal(out.labels, again.labels)
    # Any batch composition gives the same masks.
    whole = per_row(out, ROWS)
    for order, some, batches in COMPOSED:
        expected = [whole[i] for i in order]
        for each in batches:
            assert per_row(made(each, epoch=2), some) == expected


def check_shown(out, batch, corruption: str) -> None:
    """What holds for the output of any corruption of the (B, L) ``batch``."""
    ids, shown, selected = batch["input_ids"], out.input_ids, out.selected
    assert not (selected & (ids < FIRST)).any(), "special, padding or unknown tokens were chosen"
    assert not (selected & (batch["attention_mask"] == 0)).any()
    attention = batch["attention_mask"] if out.attention_mask is None else out.attention_mask
    assert ((shown >= 0) & (shown < vocabulary().size)).all()
    for b in range(len(ids)):
        real = ids[b][batch["attention_mask"][b] == 1]
        left = shown[b][attention[b] == 1]
        chosen = selected[b][batch["attention_mask"][b] == 1]
        for special in (CLS, SEP, UNK):
            assert (left == special).sum() == (real == special).sum(), (
                "special tokens were added, lost or drawn"
            )
        assert PAD not in left.tolist()
        if not chosen.any():
            assert left.tolist() == real.tolist() and (out.labels[b] == IGNORE).all()
            continue
        if corruption not in MOVING:
            assert is_subsequence(real[~chosen].tolist(), left.tolist()), (
                "tokens that were not chosen were touched"
            )
    if corruption in KEEPING and corruption not in MOVING:
        kept = ~selected
        assert torch.equal(shown[kept], ids[kept])
        changed = shown[shown != ids]
        ordinary = (changed >= FIRST) & (changed < FIRST + WORDS)
        assert (ordinary | (changed == vocabulary().mask)).all(), (
            "random replacements are ordinary tokens"
        )
        assert torch.equal(out.labels != IGNORE, selected)
        assert torch.equal(torch.where(selected, out.labels, shown), ids), "labels restore the text"


def is_subsequence(short: list[int], long: list[int]) -> bool:
    rest = iter(long)
    return all(token in rest for token in short)


@each_budget
@few
@given(
    made=rows,
    ratio=st.sampled_from([0.0, 0.02, 0.15, 0.5, 0.97, 1.0]),
    seed=st.integers(0, 1 << 70),
)
def test_whole_units_within_the_budget(
    policy: str, budget: str, made: list, ratio: float, seed: int
) -> None:
    maker, batch = (
        masker(policy, budget=budget, ratio=ratio, seed=seed),
        gather(padded(made), vocabulary()),
    )
    draws = Draws(batch.example_id, seed=seed, epoch=0)
    selection = maker.choose(batch, draws, When())
    ratio_P = selection.ratio_P
    units, chosen = selection.units, selection.tokens
    assert not (chosen & ~batch.eligible).any() and batch.eligible[units.tokens].all()
    length = units.length
    unit = units.unit
    taken = np.bincount(unit, chosen[units.tokens], len(length))
    assert ((taken == 0) | (taken == length)).all(), "half a unit"
    assert (batch.piece[units.tokens] == units.piece[unit]).all() and (length > 0).all()
    assert len(set(zip(units.piece.tolist(), units.number.tolist(), strict=True))) == len(length), (
        "one number twice"
    )
    pieces = len(made)
    usable = np.bincount(
        units.piece, length if units.weight is None else length * (units.weight > 0), pieces
    )
    longest = np.zeros(pieces, np.int64)
    np.maximum.at(longest, units.piece, length)
    count = batch.count(chosen)
    if budget != "bernoulli":
        assert selection.budget is not None
        exact_P = units.tokens_P * ratio_P
        assert ((np.abs(selection.budget - exact_P) < 1) | (selection.budget == 1)).all()
        if budget == "exact":
            assert (count <= selection.budget).all()
        else:
            assert ((count - longest < selection.budget) | (count == 0)).all(), (
                "more than one unit over"
            )
            assert ((count + longest > np.minimum(selection.budget, usable)) | (count == 0)).all()
    if ratio == 0:
        assert not chosen.any()
    if ratio == 1 and (units.weight is None or budget != "bernoulli"):
        assert (count == usable).all(), "at ratio 1 all that may be chosen is"


@each_budget
@pytest.mark.parametrize("corruption", KEEPING)
def test_packed_like_padded(policy: str, budget: str, corruption: str) -> None:
    made = masker(policy, corruption, budget=budget, ratio=0.3, seed=9)
    some = [one for one in ROWS if len(one["input_ids"]) and eligible(one).any()]
    alone, blocks = made(padded(some), epoch=1), packed(some, width=50)
    together = made(blocks, epoch=1)
    for b, one in enumerate(some):
        here = (blocks["example_id"] == one["example_id"]) & (blocks["attention_mask"] == 1)
        n = len(one["input_ids"])
        assert together.input_ids[here].tolist() == alone.input_ids[b, :n].tolist()
        # only the text is whose: frames belong to no document in a block
        text = torch.tensor(one["word_ids"]) >= 0
        assert together.labels[here][text].tolist() == alone.labels[b, :n][text].tolist()
        assert together.selected[here].tolist() == alone.selected[b, :n].tolist()


@each_budget
@pytest.mark.parametrize("corruption", sorted(set(CORRUPTION_SPECS) - set(KEEPING)))
def test_packed_rows_are_their_pieces_one_after_the_other(
    policy: str, budget: str, corruption: str
) -> None:
    """Where lengths change, a packed row and its targets are those of its documents alone, in their
    order.
    """
    made = masker(policy, corruption, budget=budget, ratio=0.3, seed=9)
    some = [one for one in ROWS if len(one["input_ids"]) and eligible(one).any()]
    alone = per_row(made(padded(some), epoch=1), some)
    blocks = packed(some, width=50)
    line = gather(blocks, vocabulary())
    line.plan = None  # rows may grow
    together = made(line, epoch=1)
    here = {one["example_id"]: pair for one, pair in zip(some, alone, strict=True)}
    segments = together.segment_ids
    assert torch.equal(segments >= 0, together.attention_mask.bool())
    for b in range(len(blocks["input_ids"])):
        written: list[int] = []
        for number, name in enumerate(line.example_id[line.row == b].tolist()):
            inputs, labels = here[name]
            assert together.input_ids[b][segments[b] == number].tolist() == inputs
            written += labels
        assert together.labels[b][together.labels[b] != IGNORE].tolist() == written


@each_corruption
@few
@given(made=rows, ratio=st.sampled_from([0.0, 0.2, 1.0]))
def test_any_rows(corruption: str, made: list, ratio: float) -> None:
    batch = padded(made)
    out = masker("span", corruption, ratio=ratio)(batch, epoch=0)
    check_shown(out, batch, corruption)


@each_policy
@each_corruption
def test_masks_differ_between_examples_and_epochs_and_survive_pickling(
    policy: str, corruption: str
) -> None:
    made = masker(policy, corruption, ratio=schedules.uniform(0.2, 0.6), fill="random", seed=1)
    one = random_rows(1, words=20)[0]
    same_text = padded([one | {"example_id": i} for i in range(8)])
    first, other, copied = (
        m(same_text, epoch=e)
        for m, e in ((made, 0), (made, 1), (pickle.loads(pickle.dumps(made)), 0))
    )
    assert torch.equal(first.input_ids, copied.input_ids) and torch.equal(
        first.labels, copied.labels
    )
    assert len({tuple(x.tolist()) for x in first.selected}) > 3
    assert not torch.equal(first.selected, other.selected)
    assert isinstance(made.describe()["policy"], str)


@each_policy
@pytest.mark.parametrize("fill", ["none", "random", "skip-row"])
def test_fill(policy: str, fill: str) -> None:
    made = masker(policy, budget="expected", fill=fill, ratio=0.6)
    out = made(padded(ROWS), epoch=0)
    check_shown(out, padded(ROWS), "bert")
    assert out.choice is not None
    if fill != "random" and out.choice.units.weight is not None:
        assert (out.choice.units.weight[out.choice.chosen] > 0).all(), (
            "what weighs nothing only fills"
        )


ARGUMENTS = {
    "linear": (0.3, 0.15),
    "cosine": (0.3, 0.15),
    "step": (0.3, 0.1),
    "piecewise": (0, 0.3, 1, 0.1),
    "warm-up": (0.2,),
    "then": (0.3, 0.4, "uniform(0.1, 0.2)"),
    "scaled": ("cosine-decay(0.15)", 0.5),
    "clipped": ("linear-ascend(0.15)", 0.05, 0.2),
    "beta": (2, 8),
    "mixture": (0.1, 0.5, 0.3, 0.5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules(name: str) -> None:
    made = SCHEDULES[name](*ARGUMENTS.get(name, ()))
    assert schedules.schedule(str(made)) == made, "the name of a schedule makes it again"
    copied = pickle.loads(pickle.dumps(made))
    draw = np.random.default_rng(0).random(50)
    for step in (0, 1, 499, 500, 999, 1000, 5000):
        assert 0 <= made(step, 1000) <= 1 and copied(step, 1000) == made(step, 1000)
        ratio_P = made.rows(draw, step, 1000)
        assert ((ratio_P >= 0) & (ratio_P <= 1)).all() and ratio_P.dtype == np.float64
    assert made(5000, 1000) == made(1000, 1000)
    if made.varies:
        with pytest.raises(MaskwiseError, match="total_steps"):
            made(3)
    else:
        assert made(3) == made(0, 10)


def test_the_policy_of_the_page_keeps_the_contract(tmp_path, monkeypatch) -> None:
    """docs/plug-ins.md followed to the letter: its class in a module, its name, and the checks of
    this file.
    """
    page = (Path(__file__).parent.parent / "docs" / "plug-ins.md").read_text(encoding="utf-8")
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if "(Policy)" in block
    ]
    (name, written) = re.findall(r'maskwise\.policies"\]\n([a-z-]+) = "\w+:(\w+)"', page)[0]
    (tmp_path / "a_policy_of_ones_own.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        POLICIES, name, getattr(importlib.import_module("a_policy_of_ones_own"), written)
    )
    assert masker(name, ratio=1.0)(padded(ROWS), epoch=0).targets > 0
    for budget in BUDGETS:
        for corruption in ("bert", "delete", "t5"):
            test_awkward_rows(name, budget, corruption)
        test_packed_like_padded(name, budget, "bert")
        test_whole_units_within_the_budget(name, budget)
    test_masks_differ_between_examples_and_epochs_and_survive_pickling(name, "bert")
    for ratio in (0.15, 0.5):  # the same units as the policy that ships
        own, shipped = (
            masker(each, ratio=ratio)(padded(ROWS), epoch=3) for each in (name, "sentence")
        )
        assert torch.equal(own.input_ids, shipped.input_ids) and torch.equal(
            own.labels, shipped.labels
        )
