"""The contract of every registered policy, corruption, budget mode and schedule, on awkward rows.

Nothing here knows a member by name, but for ``masking_tools`` (arguments) and the sets below (what
a member is free to do). A new line in a registry is tested by this file as it is.
"""

from __future__ import annotations

import importlib
import itertools
import pickle
import random
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from masking_tools import (
    AWKWARD,
    CLS,
    CORRUPTION_SPECS,
    EXAMPLES,
    FIRST,
    LAYERS,
    MASK,
    PAD,
    POLICY_BUDGETS,
    POLICY_SPECS,
    SEP,
    WORDS,
    masker,
    padded,
    per_row,
    random_rows,
    row,
    tokenizer,
)
from maskwise.base.errors import MaskwiseError, PlugInError
from maskwise.masking import IGNORE, SCHEDULES, contract, schedules
from maskwise.masking.corruptions import Bert, PermuteSentences
from maskwise.masking.corruptions.base import Corruption, Edit, Masked, Moving, labels_in_place
from maskwise.masking.policies import POLICIES, Mixture, Policy, UnitKind
from maskwise.masking.policies.base import units_by
from maskwise.masking.schedules import constant
from maskwise.masking.select import BUDGETS
from maskwise.masking.units import Units, runs
from maskwise.testing import check_corruption, check_policy

KEEPING = [name for name in CORRUPTION_SPECS if masker("token", name).corruption.keeps_length]
MOVING = {"permute-sentences"}  # the text that is left may change places

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

NAMED = AWKWARD | {f"random {i}": one for i, one in enumerate(random_rows(4, seed=3))}
ROWS = list(NAMED.values())
WHOLE = padded(ROWS)


def pairs() -> list[tuple[str, str, str]]:
    """Policies with each budget, and with each corruption.

    A corruption gets what was chosen, and not the budget, so the product of all three has no more.
    """
    turns = itertools.cycle(CORRUPTION_SPECS)
    found = [(policy, budget, next(turns)) for policy, budget in POLICY_BUDGETS]
    first = dict(reversed(POLICY_BUDGETS))
    found += [(policy, first[policy], each) for policy in first for each in CORRUPTION_SPECS]
    return sorted({*found})


@pytest.mark.parametrize(("policy", "budget", "corruption"), pairs())
def test_awkward_rows(policy: str, budget: str, corruption: str) -> None:
    made = masker(policy, corruption, budget=budget, ratio=0.3, seed=5)
    out = contract.check_masks(made, NAMED, policy)
    contract.check_shown(out, ROWS, made, corruption, moves_text=corruption in MOVING)
    contract.check_packing(made, ROWS, policy)


@each_policy
@each_corruption
def test_tensors_are_masked_as_arrays_are(policy: str, corruption: str) -> None:
    made, batch = masker(policy, corruption, ratio=0.3, seed=5), padded(ROWS)
    out = made(batch, epoch=2)
    for name, value in WHOLE.items():
        assert torch.equal(batch[name], value), "the input was changed"
    arrays = made(contract.padded(ROWS, PAD), epoch=2)
    assert per_row(out, ROWS) == per_row(arrays, ROWS)


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
    maker = masker(policy, budget=budget, ratio=ratio, seed=seed)
    contract.check_units(maker, contract.padded(made, PAD), policy)


@each_corruption
@few
@given(made=rows, ratio=st.sampled_from([0.0, 0.2, 1.0]))
def test_any_rows(corruption: str, made: list, ratio: float) -> None:
    maker = masker("span", corruption, ratio=ratio)
    out = maker(padded(made), epoch=0)
    contract.check_shown(out, made, maker, corruption, moves_text=corruption in MOVING)


@each_policy
@each_corruption
def test_masks_differ_between_examples_and_epochs_and_survive_pickling(
    policy: str, corruption: str
) -> None:
    made = masker(policy, corruption, ratio=schedules.uniform(0.2, 0.6), fill="random", seed=1)
    one = random_rows(1, words=20)[0]
    contract.check_draws(made, one, policy, least=7)
    here, there = (
        each([one], step=3, total_steps=9) for each in (made, pickle.loads(pickle.dumps(made)))
    )
    assert per_row(here, [one]) == per_row(there, [one])
    assert isinstance(made.describe()["policy"], str)


@each_policy
@pytest.mark.parametrize("fill", ["none", "random", "skip-row"])
def test_fill(policy: str, fill: str) -> None:
    made = masker(policy, budget="expected", fill=fill, ratio=0.6)
    out = made(padded(ROWS), epoch=0)
    contract.check_shown(out, ROWS, made, policy)
    assert out.choice is not None
    if fill != "random" and out.choice.units.weight is not None:
        assert (out.choice.units.weight[out.choice.chosen] > 0).all(), (
            "what weighs nothing only fills"
        )


@each_policy
def test_check_policy_passes(policy: str) -> None:
    check_policy(POLICY_SPECS[policy], layers=LAYERS)


@each_corruption
def test_check_corruption_passes(corruption: str) -> None:
    check_corruption(corruption, moves_text=corruption in MOVING)


GENERATOR = np.random.default_rng(0)


def owned(line: Any, unit_T: np.ndarray) -> Units:
    """Units of tokens with the same number ≥ 0 in ``unit_T``, in the piece of their first token."""
    tokens = np.flatnonzero(unit_T >= 0)
    names, first, unit = np.unique(unit_T[tokens], return_index=True, return_inverse=True)
    piece = line.piece[tokens[first]]
    return Units.of_tokens(line, tokens, unit, piece, np.arange(len(names)))


def twice(line: Any) -> Units:
    units = Units.single(line)
    tokens = np.repeat(units.tokens, 2)
    unit = np.arange(len(tokens))
    return Units.of_tokens(line, tokens, unit, line.piece[tokens], unit)


def emptied(line: Any) -> Units:
    units = Units.single(line)
    tokens = units.tokens[1:]
    return Units.of_tokens(line, tokens, np.arange(len(tokens)) + 1, units.piece, units.number)


def backwards(line: Any) -> Units:
    units = units_by(line, "word")
    for name in ("piece", "number", "start", "length"):
        setattr(units, name, getattr(units, name)[::-1])
    return units


def too_few(line: Any) -> Units:
    units = units_by(line, "word")
    units.length = units.length[:1]
    return units


def small_floats(line: Any) -> Units:
    units = units_by(line, "word")
    units.weight = np.ones(len(units.piece), np.float32)
    return units


def all_alike(line: Any) -> Units:
    units = Units.single(line)
    units.number = np.zeros_like(units.number)
    return units


def numbered(line: Any, change: Callable[[Any], Any], weight: float | None = None) -> Units:
    units = units_by(line, "word")
    units.number = change(units.number)
    return units if weight is None else units.weighted(np.full(len(units.number), weight))


def written_into(line: Any) -> Units:
    line.layers["word_ids"][:] = 0
    return units_by(line, "word")


def filled(line: Any, when: Any) -> Units:
    when.ratio.fill(0.5)
    return units_by(line, "word")


def seeded(seed: Callable[[int], object], units: Units) -> Any:
    seed(7)
    return np.ones(len(units.piece))


def by_word(weights: Callable[[Any, Any], Any]) -> Callable[[Any, Any, Any], Units]:
    """A mistake in the weights of words."""

    def cut(line: Any, draws: Any, when: Any) -> Units:
        units = units_by(line, "word")
        return units.weighted(weights(units, when))

    return cut


MISTAKES: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "special tokens": (lambda line, *_: owned(line, np.arange(len(line.input_ids))), "not be mask"),
    "two units": (lambda line, *_: twice(line), "in two units"),
    "two documents": (lambda line, *_: owned(line, np.where(line.eligible, 0, -1)), "another doc"),
    "no tokens": (lambda line, *_: emptied(line), "no tokens"),
    "backwards": (lambda line, *_: backwards(line), "order of the text"),
    "shapes": (lambda line, *_: too_few(line), "length must have"),
    "small floats": (lambda line, *_: small_floats(line), "float64"),
    "equal numbers": (lambda line, *_: all_alike(line), "same number"),
    # All units got one draw.
    "high numbers": (lambda line, *_: numbered(line, lambda n: n << 32), "number of a unit"),
    # Such numbers swamped the sort keys of weights.
    "hashed numbers": (
        lambda line, *_: numbered(line, lambda n: n * 0x9E3779B1 % 2**31, 2.0),
        "number of a unit",
    ),
    "negative numbers": (lambda line, *_: numbered(line, lambda n: -n), "number of a unit"),
    "writing": (lambda line, *_: written_into(line), "must not change"),
    "writing ratios": (lambda line, _, when: filled(line, when), "must not change"),
    "a layer": (lambda line, *_: runs(line, line.layer("pos")), r"layers\(\) does not name"),
    "a list": (lambda line, *_: line.eligible_at.tolist(), "list"),
    "the first": (
        by_word(lambda units, _: units.length / units.length[0]),
        r"\(no content\).*IndexError",
    ),
    "a generator": (by_word(lambda units, _: GENERATOR.random(len(units.piece))), "second call"),
    "the batch": (by_word(lambda units, _: np.arange(len(units.piece)) + 1), "differently"),
    "the mean": (by_word(lambda units, _: units.length / sum(units.length)), "differently"),
    "infinity": (by_word(lambda units, _: units.length * np.inf), "not a finite number"),
    "the ratio": (by_word(lambda units, when: units.length ** when.ratio.mean()), "needs_ratio"),
    "the end": (
        by_word(lambda units, when: units.length ** (when.step / (when.total_steps or 1))),
        "needs_total",
    ),
    "no weight": (by_word(lambda units, _: units.length > 1), "has_zero_weights"),
    "the text": (
        by_word(lambda units, _: units.line.input_ids[units.start] % 5 + 1),
        "reads_text",
    ),
    "a seed": (by_word(lambda units, _: seeded(random.seed, units)), "all code of the process"),
    "a seed of numpy": (
        by_word(lambda units, _: seeded(np.random.seed, units)),
        "all code of the process",
    ),
    "a seed of torch": (
        by_word(lambda units, _: seeded(torch.manual_seed, units)),
        "all code of the process",
    ),
}


@dataclass(frozen=True)
class Mistaken(Policy):
    """Whole words, with a mistake."""

    mistake: str

    unit_kind = UnitKind.WORD
    has_zero_weights = False
    reads_text = False

    def layers(self) -> tuple[str, ...]:
        return ("word_ids",)

    def cut(self, line: Any, draws: Any, when: Any) -> Any:
        return MISTAKES[self.mistake][0](line, draws, when)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_check_policy_names_the_mistake(mistake: str) -> None:
    with pytest.raises(MaskwiseError, match=MISTAKES[mistake][1]) as error:
        check_policy(Mistaken(mistake))
    assert "Mistaken" in str(error.value) and "\n" not in str(error.value)


class Unequal(Policy):
    """No dataclass."""

    unit_kind = UnitKind.TOKEN

    def cut(self, line: Any, draws: Any, when: Any) -> Units:
        return Units.single(line)


@dataclass(frozen=True)
class Unsendable(Unequal):
    """A field that cannot be pickled."""

    function: Any = field(default=lambda: 0)


@dataclass(frozen=True)
class Undeclared(Unequal):
    unit_kind = "token"  # type: ignore[assignment]


@dataclass(frozen=True)
class Listed(Unequal):
    def layers(self) -> Any:
        return ["word_ids"]


@dataclass(frozen=True)
class Doubling(Unequal):
    def ratios(self, ratio_P: Any, draws: Any, when: Any) -> Any:
        return ratio_P * 4


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (Unequal, "copy"),
        (Unsendable, "processes"),
        (Undeclared, "unit_kind"),
        (Listed, r"layers\(\)"),
        (Doubling, r"ratios\(\)"),
    ],
)
def test_check_policy_names_what_is_declared_wrongly(kind: type[Policy], word: str) -> None:
    with pytest.raises(MaskwiseError, match=word) as error:
        check_policy(kind())
    assert kind.__name__ in str(error.value)


@dataclass(frozen=True)
class Deep(Policy):
    """Tokens by scores in a layer that maskwise does not know."""

    unit_kind = UnitKind.TOKEN

    def layers(self) -> tuple[str, ...]:
        return ("depth",)

    def cut(self, line: Any, draws: Any, when: Any) -> Units:
        depth = line.layer("depth", scores=True)
        assert depth[line.content].max(initial=0) < 1e9
        return Units.single(line).weighted(depth[line.eligible_at])


def test_check_policy_with_layers_and_rows_of_ones_own() -> None:
    check_policy(Deep())
    check_policy(Deep(), layers={"depth": lambda word: word / 3})
    with pytest.raises(MaskwiseError, match="not a finite number"):
        check_policy(Deep(), layers={"depth": lambda word: word - 1.0})
    tools = tokenizer()
    own = [
        {"input_ids": one["input_ids"], "depth": torch.arange(len(one["input_ids"]))}
        for one in ROWS
    ]
    check_policy(Deep(), tokenizer=tools, rows=own)
    with pytest.raises(MaskwiseError, match="'depth' is missing"):
        check_policy(Deep(), tokenizer=tools, rows=[{"input_ids": [CLS, FIRST, SEP]}])
    with pytest.raises(MaskwiseError, match="tokenizer"):
        check_policy(Deep(), rows=own)
    with pytest.raises(MaskwiseError, match="no rows"):
        check_policy(Deep(), tokenizer=tools, rows=[])


def replaced(line: Any, choice: Any, new: Any, target: str = "spans") -> Masked:
    ids = line.input_ids.copy()
    ids[choice.tokens] = new
    return Masked(ids, labels_in_place(choice, target))


def overwritten(line: Any, choice: Any) -> Masked:
    shown = replaced(line, choice, FIRST)
    shown.input_ids[line.content] = FIRST
    return shown


def always(line: Any, choice: Any) -> Masked:
    shown = replaced(line, choice, FIRST)
    shown.labels = np.where(line.content, line.input_ids, IGNORE)
    return shown


def wrong_labels(line: Any, choice: Any) -> Masked:
    shown = replaced(line, choice, FIRST)
    return replace(shown, labels=np.where(choice.tokens, shown.input_ids, IGNORE))


def shorter(line: Any, choice: Any) -> Masked:
    edit = Edit(line, line.present & ~choice.tokens)
    return edit.shown(edit(line.input_ids), edit(np.full_like(line.input_ids, IGNORE)))


WRONG: dict[str, tuple[Callable[[Any, Any, Any], Any], str]] = {
    "other tokens": (
        lambda line, choice, _: overwritten(line, choice),
        "not chosen|without chosen",
    ),
    "special tokens": (lambda line, choice, _: replaced(line, choice, SEP), "special tokens"),
    "padding": (lambda line, choice, _: replaced(line, choice, PAD), "padding"),
    "further targets": (lambda line, choice, _: always(line, choice), "targets"),
    "labels": (lambda line, choice, _: wrong_labels(line, choice), "labels"),
    "lengths": (lambda line, choice, _: shorter(line, choice), "keeps_length"),
    "the mask": (lambda line, choice, known: replaced(line, choice, known.mask), "shows_mask"),
    "a generator": (
        lambda line, choice, _: replaced(line, choice, FIRST + GENERATOR.integers(WORDS)),
        "second call",
    ),
    "the batch": (
        lambda line, choice, _: replaced(line, choice, FIRST + np.arange(choice.tokens.sum()) % 9),
        "differently",
    ),
    "writing": (lambda line, choice, _: line.input_ids.fill(MASK), "must not change"),
    "nothing": (lambda line, choice, _: None, "Masked"),
}


@dataclass(frozen=True)
class Wrong(Corruption):
    """Replaces tokens, with a mistake."""

    mistake: str

    shows_mask = False

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Masked:
        return WRONG[self.mistake][0](line, choice, vocabulary)


@pytest.mark.parametrize("mistake", WRONG)
def test_check_corruption_names_the_mistake(mistake: str) -> None:
    with pytest.raises(MaskwiseError, match=WRONG[mistake][1]) as error:
        check_corruption(Wrong(mistake))
    assert "Wrong" in str(error.value) and "\n" not in str(error.value)


@dataclass(frozen=True)
class Unwritten(Corruption):
    """Deletes tokens, and promises a text that it does not give."""

    shows_mask = False
    keeps_length = False
    target = "spans"

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Masked:
        return shorter(line, choice)


MOVED: dict[str, tuple[Callable[[Any, Any], Any], str | None]] = {
    "nothing": (lambda line, shown: shown, None),
    # These ended in a traceback, or the model lost an input.
    "no text": (lambda line, shown: replace(shown, text=np.zeros(0, bool)), "text must have"),
    "no extras": (lambda line, shown: replace(shown, extras={}), "extras.*token_type_ids"),
    "extras that stay": (
        lambda line, shown: replace(shown, extras=dict(line.extras)),
        "token_type_ids must have",
    ),
    "lengths": (
        lambda line, shown: replace(shown, lengths=shown.lengths * 1.0),
        ": lengths must have.*float64",
    ),
    "negative lengths": (
        lambda line, shown: replace(shown, lengths=shown.lengths - 100),
        "lengths are negative",
    ),
    "lengths of labels": (
        lambda line, shown: replace(shown, label_lengths=shown.lengths.tolist()),
        "label_lengths must have.*list",
    ),
    "text without ends": (
        lambda line, shown: replace(shown, text=np.ones_like(shown.text)),
        "end of a packed row",
    ),
}


@dataclass(frozen=True)
class Longer(Moving):
    """Inserts a mask token before each chosen token, with a mistake."""

    mistake: str

    target = "detect"

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Masked:
        edit = Edit(line, line.present, choice.tokens)
        labels = np.where(line.content, 0, IGNORE)
        shown = edit.shown(edit(line.input_ids, vocabulary.mask), edit(labels, 1))
        return MOVED[self.mistake][0](line, shown)


@pytest.mark.parametrize("mistake", MOVED)
def test_check_corruption_names_what_was_not_moved(mistake: str) -> None:
    said = MOVED[mistake][1]
    if said is None:
        check_corruption(Longer(mistake))
        return
    with pytest.raises(MaskwiseError, match=said) as error:
        check_corruption(Longer(mistake))
    assert "Longer" in str(error.value) and "\n" not in str(error.value)


def test_check_corruption_compares_what_a_decoder_writes() -> None:
    with pytest.raises(MaskwiseError, match="label_lengths"):
        check_corruption(Unwritten())


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


USED: dict[type, list[int]] = {}


@dataclass(frozen=True)
class Counted(Policy):
    """Whole words; counts its calls."""

    wrong: bool = False

    unit_kind = UnitKind.WORD

    def layers(self) -> tuple[str, ...]:
        return ("word_ids",)

    def cut(self, line: Any, draws: Any, when: Any) -> Units:
        calls = USED.setdefault(type(self), [])
        calls.append(line.pieces)
        units = units_by(line, "word")
        # Of the whole batch, so that a document is masked in another way beside others.
        return units.weighted(units.length * (1 + len(units.length) * self.wrong))


@dataclass(frozen=True)
class Drawn(Bert):
    """Draws replacements without its draws."""

    def corrupt(self, line: Any, choice: Any, draws: Any, vocabulary: Any) -> Masked:
        shown = super().corrupt(line, choice, draws, vocabulary)
        at = np.flatnonzero(choice.tokens)
        shown.input_ids[at] = GENERATOR.choice(vocabulary.ordinary, len(at))
        return shown


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine and a process that have used no member of another package."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(contract, "_known", set())
    USED.clear()
    return tmp_path / "maskwise"


def test_a_policy_is_checked_at_its_first_use_in_a_process_and_on_a_machine(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def calls() -> int:
        USED[Counted] = []
        masker(Counted())(padded(ROWS), epoch=0)
        return len(USED[Counted])

    # Too few tokens tell nothing.
    masker(Counted())([AWKWARD["one token"]], epoch=0)
    assert USED[Counted] == [1]
    assert calls() > 50
    assert [calls(), calls()] == [1, 1]
    assert [file.name[:8] for file in unknown.iterdir()] == ["contract"]
    monkeypatch.setattr(contract, "_known", set())
    assert calls() == 1, "another process knows the verdict"
    monkeypatch.setattr(contract, "_known", set())
    monkeypatch.setattr(contract, "hash_of_code", lambda _: "other code")
    assert calls() > 50


@pytest.mark.parametrize(
    "settings",
    [
        {"policy": Counted(wrong=True)},
        {"policy": Mixture((POLICIES["token"](), Counted(wrong=True)), (constant(1.0),) * 2)},
        {"corruption": Drawn()},
        {"corruption": PermuteSentences(inner=Drawn())},
    ],
    ids=["policy", "in a mixture", "corruption", "inside another"],
)
def test_what_breaks_the_contract_is_refused_at_its_first_use(
    unknown: Path, settings: dict[str, Any]
) -> None:
    for _ in range(2):
        with pytest.raises(PlugInError, match=r"(Counted|Drawn)\(.*differently"):
            masker(**settings)(padded(ROWS), epoch=0)
    assert not unknown.is_dir() or not list(unknown.iterdir())


def of_a_function() -> type[Counted]:
    @dataclass(frozen=True)
    class Made(Counted):
        """As the one above."""

    return Made


@dataclass(frozen=True)
class Outer(Counted):
    """Has another policy as an argument."""

    inner: Policy = field(default_factory=Counted)


@pytest.mark.parametrize("kind", ["of a function", "of a program"])
def test_a_class_whose_changes_cannot_be_seen_is_checked_in_each_process(
    unknown: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: Any = Counted
    if kind == "of a function":
        made = of_a_function()
    else:
        monkeypatch.setattr(Counted, "__module__", "__main__")
    # A program in a file has a source, too.
    monkeypatch.setattr(contract, "_has_source", lambda kind: True)
    masker(made())(padded(ROWS), epoch=0)
    assert len(USED[made]) > 50
    assert not unknown.is_dir(), "no verdict is kept"


def test_one_document_tells_nothing_of_others(unknown: Path) -> None:
    long = EXAMPLES.row([1] * 40, example_id=1)
    masker(Counted(wrong=True))([long], epoch=0)
    assert not unknown.is_dir()
    with pytest.raises(PlugInError, match="differently"):
        masker(Counted(wrong=True))(padded(ROWS), epoch=0)


def test_the_verdict_of_a_corruption_counts_the_code_of_its_parts(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed = []
    monkeypatch.setattr(contract, "hash_of_code", lambda kind: hashed.append(kind) or "code")
    outer = Outer(inner=Counted())
    masker(outer)(padded(ROWS), epoch=0)
    assert hashed == [Outer, Counted]


def test_what_is_typed_at_a_prompt_is_checked_each_time(unknown: Path) -> None:
    made: dict[str, Any] = {"Counted": Counted, "__name__": "__main__"}
    exec("class Typed(Counted): pass", made)
    for _ in range(2):
        masker(made["Typed"]())(padded(ROWS), epoch=0)
        contract._known.clear()
    assert min(len(calls) for calls in USED.values()) > 100
    assert not unknown.is_dir()


@pytest.mark.parametrize("without_words", [True, False])
def test_rows_of_ones_own_need_no_words(without_words: bool) -> None:
    rows = [
        {name: each for name, each in row.items() if name != "word_ids" or not without_words}
        for row in random_rows(4)
    ]
    check_corruption("replace", tokenizer=tokenizer(), rows=rows)


def test_the_policy_of_the_page_keeps_the_contract(tmp_path, monkeypatch) -> None:
    """docs/plug-ins.md followed to the letter: its class in a module, its name, and the checks of
    this file.
    """
    page = (Path(__file__).parent.parent / "docs" / "plug-ins.md").read_text(encoding="utf-8")
    (name, written) = re.findall(r'maskwise\.policies"\]\n([a-z-]+) = "\w+:(\w+)"', page)[0]
    (code,) = [
        block
        for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL)
        if f"class {written}(Policy)" in block
    ]
    (tmp_path / "a_policy_of_ones_own.py").write_text(code, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(
        POLICIES, name, getattr(importlib.import_module("a_policy_of_ones_own"), written)
    )
    assert masker(name, ratio=1.0)(padded(ROWS), epoch=0).targets > 0
    check_policy(name)
    for budget in BUDGETS:
        for corruption in ("bert", "delete", "t5"):
            test_awkward_rows(name, budget, corruption)
        test_whole_units_within_the_budget(name, budget)
    test_masks_differ_between_examples_and_epochs_and_survive_pickling(name, "bert")
    for ratio in (0.15, 0.5):  # the same units as the policy that ships
        own, shipped = (
            masker(each, ratio=ratio)(padded(ROWS), epoch=3) for each in (name, "sentence")
        )
        assert torch.equal(own.input_ids, shipped.input_ids) and torch.equal(
            own.labels, shipped.labels
        )
