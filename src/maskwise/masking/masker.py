"""The masker: it chooses tokens of each row, replaces them, and returns a masked batch.

Terms of this package:

- A *piece* is one document, or one part of a document, in a row. A packed row has several pieces.
- An *eligible* token is a token that may be masked: not padding, not special and not [UNK].
- A *unit* is a group of tokens that are masked together, such as a word. A *masking policy* cuts
  each piece into units. A unit with a larger *masking weight* is more likely to be masked.
- The *ratio* is the share of a piece's eligible tokens to mask; a *schedule* sets the ratio of each
  step. The *budget* is the resulting number of tokens.
- A *corruption* replaces the selected tokens and sets the labels.
- A *draw* is a pseudo-random number computed by hashing (seed, epoch, example id, purpose, index).
  The *purpose* is what the draw decides; draws with different purposes are independent.
- A *layer* is an array of one number per token, such as the number of the token's word.

A masker has no random state: a mask depends only on the seed, the epoch, the example id, the ratio
and the weights. Masking runs in numpy on the host, in O(B·L) memory for B rows of L tokens. Only
the rows and the result are tensors.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from pydantic import (
    BaseModel,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    field_validator,
    model_serializer,
)

from maskwise.arrays import whole
from maskwise.draws import Array, Draws, Purpose
from maskwise.effects import Weights
from maskwise.errors import MaskwiseError, require_known, whole_number
from maskwise.masking import corruptions, policies, schedules
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.corruptions import Corruption, Masked
from maskwise.masking.gather import Rows, common_number, device_of, gather
from maskwise.masking.line import Line
from maskwise.masking.policies import Policy, UnitKind, When
from maskwise.masking.schedules import Schedule
from maskwise.masking.select import BUDGETS, FILLS, Choice, select, stretch
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Tokenizer, Vocabulary
from maskwise.segments import first_within
from maskwise.specs import Call

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor
    from transformers import PreTrainedTokenizerBase

DESCRIBED = ("policy", "ratio", "budget", "corruption", "fill", "min_targets", "seed", "predict")
MOST_TARGETS = 2**31 - 1
"""The largest ``min_targets``. No piece has more tokens."""

# How the masks of a row in different epochs depend on each other, for a ratio of r:
#
# ``random``: each epoch draws a new mask.
# ``complement``: epochs form pairs. The second epoch of a pair masks the units that the first epoch
# left visible. Its ratio is thus 1 − r.
# ``coverage``: the ratio is 1/n, and n epochs form a round. Each round sorts the units of a piece
# in a new random order, and each epoch of the round masks the next share of this order. A round
# thus masks every unit once.
#
# With ``complement``, both epochs of a pair use the same draws. With ``coverage``, all epochs of a
# round use the same draws. Units are not split, so an epoch may mask one unit more or one unit less
# than the ratio asks for, and may mask nothing in a short piece. If a policy learns its weights
# during training, the random order changes between epochs, and the modes hold only approximately.
#
# Source: masked diffusion models of 2025 for ``complement``; ``coverage`` is from this library.
VISITS = ("random", "complement", "coverage")


class Masker:
    """Mask batches of rows.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        policy: the masking policy: a name such as ``"whole-word"``, or a ``Policy``.
        ratio: the share of eligible tokens to mask: a number, a schedule, the name of a schedule,
            or a function of (step, total steps).
        budget: ``expected`` (the ratio is met on average, and a piece exceeds its budget by at most
            one unit), ``exact`` (no piece exceeds its budget) or ``bernoulli`` (each unit is masked
            independently of the others, without a budget).
        corruption: how selected tokens are replaced, and which labels the model must predict.
        seed: any integer.
        fill: what to do if the policy gives positive weights to too few units to use the whole
            budget: ``none`` (mask fewer tokens), ``random`` (also mask units of weight 0) or
            ``skip-row`` (mask nothing in this piece).
        min_targets: the minimum budget of a piece, in tokens. Pieces whose eligible tokens × ratio
            are below 0.5 have no minimum. Other ``visits`` than ``random`` have no minimum.
        predict: the largest share of each piece's eligible tokens that get a loss, as a number or a
            schedule. The tokens that get a loss are drawn from the corrupted tokens. If the model
            predicts whether each token was replaced, they are drawn from all tokens. A value below
            1 needs a corruption that keeps the length of the text.
        exclude: tokens, as the vocabulary writes them, that are never masked and never used as
            random replacements, such as ``["<gap>"]``. Special tokens, [UNK] and the wildcards of
            proteins and DNA (such as X, B and Z) never are.
        keep: the name of a layer. Tokens with a number ≥ 0 in this layer are never masked. For
            example, the layer ``prompt`` marks the tokens of prompts.
        visits: how the masks of a row in different epochs depend on each other: ``random``,
            ``complement`` or ``coverage``. The last two need ``budget="expected"`` and a ``fill``
            of ``none`` or ``random``, and ``coverage`` needs a ratio of 1/n.

    Raises:
        MaskwiseError: a name is unknown, a ratio is outside 0 to 1, the tokenizer lacks the
            special tokens of the corruption, or an argument is given that has no effect beside the
            others, such as a ratio with a policy that has its own.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"], vocab_size=80)
    >>> masker = Masker(tokenizer, policy="token", ratio=0.5, corruption="mask-only")
    >>> ids = tokenizer("the cat sat")["input_ids"]
    >>> batch = masker([{"input_ids": ids, "example_id": 0}], epoch=0)
    >>> batch.targets == int((batch.input_ids == tokenizer.mask_token_id).sum())
    True
    """

    places = False
    """Whether ``__call__`` needs its argument ``place``."""

    @staticmethod
    def unused(chosen: Policy | str | Call, budget: str, fill: str) -> dict[str, str]:
        """Return the arguments without effect beside this policy, budget and fill, and why.

        >>> [*Masker.unused("ul2", "exact", "none")]
        ['ratio', 'fill']
        >>> [*Masker.unused("whole-word", "bernoulli", "none")]
        ['min_targets', 'fill']
        """
        made = policies.policy(chosen)
        found = {}
        if made.has_ratio:
            found["ratio"] = f"has no effect, because policy {chosen} has its own ratio"
        independent = budget == "bernoulli"
        # Adding words to reach the minimum would distort the probabilities of all words.
        words = independent and made.unit_kind is not UnitKind.TOKEN
        if words:
            found["min_targets"] = (
                "has no effect with budget bernoulli, unless the policy masks single tokens"
            )
        if not made.has_zero_weights:
            found["fill"] = f"has no effect, because policy {chosen} can mask every unit"
        elif words or (independent and fill == "skip-row"):
            found["fill"] = "has no effect, because budget bernoulli has no budget to use"
        return found

    @classmethod
    def used(cls, settings: Mapping[str, Any]) -> dict[str, Any]:
        """Leave out the arguments that would be refused. Arms have settings in common with others.

        >>> Masker.used({"policy": "ul2", "ratio": 0.3, "fill": "random"})
        {'policy': 'ul2'}
        """
        names = ("policy", "budget", "fill")
        unused = cls.unused(*(settings.get(name, cls.usual[name]) for name in names))
        return {name: value for name, value in settings.items() if name not in unused}

    usual: ClassVar[Mapping[str, Any]] = {
        "policy": "token",
        "ratio": 0.15,
        "budget": "expected",
        "fill": "none",
    }
    """Default values of the arguments on which ``unused`` depends, and of the ratio."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        policy: Policy | str | Call = "token",
        ratio: Schedule | float | str | Call = 0.15,
        budget: str = "expected",
        corruption: Corruption | str | Call = "bert",
        seed: int = 0,
        fill: str = "none",
        min_targets: int = 1,
        predict: Schedule | float | str | Call = 1.0,
        keep: str | None = None,
        visits: str = "random",
        exclude: Sequence[str] = (),
    ):
        self.vocabulary = Vocabulary.of(tokenizer)
        if exclude != ():
            self.vocabulary = self.vocabulary.without(exclude)
        self.exclude = tuple(exclude)
        self.policy = policies.policy(policy)
        self.ratio = schedules.schedule(ratio)
        self.predict = schedules.schedule(predict)
        self.corruption = corruptions.corruption(corruption)
        self.seed = whole_number("seed", seed)
        self.min_targets = whole_number("min_targets", min_targets, least=0, most=MOST_TARGETS)
        self.budget = budget
        self.fill = fill
        self.visits = visits
        self.keep = keep
        for name, known in _KNOWN.items():
            require_known(name, getattr(self, name), known)
        if keep is not None and not isinstance(keep, str):
            raise MaskwiseError("keep must be the name of an annotation layer", got=repr(keep))
        if budget == "bernoulli" and self.policy.splits_budget:
            raise MaskwiseError(
                "budget bernoulli has no budget to split, but this policy splits one between units",
                got=self.policy,
                do="use budget exact or expected",
            )
        self.corruption.check(self.vocabulary)
        if not (self.predict.always(1) or self.corruption.keeps_length):
            raise MaskwiseError(
                "predict needs a corruption that keeps lengths",
                got=self.corruption,
                do="leave predict at 1.0",
            )
        self._check()
        unused = self.unused(self.policy, budget, fill)
        if "ratio" in unused and self.ratio != schedules.schedule(self.usual["ratio"]):
            raise MaskwiseError(f"ratio {unused['ratio']}", got=ratio, do="leave ratio out")
        # A minimum of 0 asks for nothing.
        if "min_targets" in unused and min_targets > 1:
            why = unused["min_targets"]
            raise MaskwiseError(f"min_targets {why}", got=min_targets, do="leave min_targets out")
        if "fill" in unused and fill != self.usual["fill"]:
            raise MaskwiseError(f"fill {unused['fill']}", got=fill, do="leave fill out")

    def _check(self) -> None:
        """Raise if ``visits`` fixes which units are masked, and another setting may change them."""
        if self.visits == "random":
            return
        if self.policy.needs_ratio:
            raise MaskwiseError(
                f"visits: {self.visits} needs a policy whose units do not depend on the ratio",
                got=f"policy {self.policy}",
                do="use visits: random",
            )
        possible = {"budget": ("expected",), "fill": ("none", "random"), "min_targets": (0, 1)}
        for setting, values in possible.items():
            value = getattr(self, setting)
            if value not in values:
                raise MaskwiseError(
                    f"visits: {self.visits} does not allow this {setting}",
                    got=value,
                    allowed=values,
                )
        if self.visits == "coverage":
            share = self.ratio(0, 1)
            whole = share > 0 and abs(share * round(1 / share) - 1) < 0.02
            if self.ratio.varies or self.ratio.random or not whole:
                raise MaskwiseError(
                    "visits: coverage needs one ratio 1/n for all steps and rows",
                    got=self.ratio,
                    do="set ratio to 1 divided by a whole number, such as 0.25 or 0.2",
                )

    def __call__(
        self,
        rows: Rows | Line,
        *,
        step: int = 0,
        total_steps: int | None = None,
        epoch: int | None = None,
        place: ArrayLike | Tensor | None = None,
    ) -> MaskedBatch:
        """Mask rows.

        Args:
            rows: a list of dicts, one per row, with ``input_ids``, ``example_id`` and layers; or
                one dict of (B, L) columns; or a ``Line``. Columns may be lists (also of rows of
                different lengths), numpy arrays, or tensors on any device. In packed rows,
                ``example_id`` has the shape (B, L), with the id of each token's piece.
            step: the number of the optimiser step, from which schedules compute the ratio.
            total_steps: the number of steps in the run. Schedules that change need this number. At
                later steps, they keep their last value.
            epoch: the number of the pass over the data. If None, masks depend on the step instead.
            place: (B,) the position of each row in the order of the epoch. Only masked diffusion
                needs these positions.

        Returns:
            A batch on the device of the rows. The mask of a piece does not depend on other pieces.
            If the corruption makes a packed row longer than planned, the end of the row's text is
            cut off, but the last special token is kept.

        Raises:
            MaskwiseError: a layer is missing or has the wrong shape, an id is outside the
                vocabulary, or a weight is not a finite number ≥ 0.
        """
        step = whole_number("step", step, least=0)
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, least=0)
        if epoch is not None:
            epoch = whole_number("epoch", epoch, least=0)
        line = gather(rows, self.vocabulary)
        place_B = None
        if place is not None:
            place_B = whole("place", place, shape=line.shape[:1], least=0)
        # The pieces of a prepared text have no such columns.
        if isinstance(rows, Mapping | list):
            _require_same(rows, step=step, epoch=epoch)
        when = When(
            step,
            total_steps,
            epoch,
            min_targets=self.min_targets,
            place=place_B,
        )
        shown, choice = self.corrupted(line, when)
        return shown.batch(choice, self.vocabulary.pad).to(device_of(rows))

    def corrupted(self, line: Line, when: When) -> tuple[Masked, Choice]:
        """Select tokens of a line and corrupt them, as numpy arrays."""
        if self.keep is not None:
            kept = line.layer(self.keep) >= 0
            line = replace(line, eligible=line.eligible & ~kept)
        draws = Draws(
            line.example_id,
            seed=self.seed,
            epoch=when.epoch,
            step=when.step,
        )
        choice = self.choose(line, draws, when)
        shown = self.corruption.corrupt(line, choice, draws, self.vocabulary)
        if line.silent is not None:
            self._silence(shown, line)
        share = self.predict(when.step, when.total_steps)
        if share < 1:
            # In replaced-token detection, unselected tokens are targets too, with the label 0.
            candidate = shown.labels != IGNORE
            if not self.corruption.detects:
                candidate &= choice.tokens
            shown.labels = some_labels(shown.labels, candidate, line, share, draws)
        return shown, choice

    def _silence(self, shown: Masked, line: Line) -> None:
        """Remove the labels of tokens that the user's rows exclude (labels of −100, a loss_mask).

        These tokens are never selected. They have labels only if other tokens have labels, too.
        """
        asks = self.corruption.detects or self.corruption.writes == "full"
        if self.corruption.keeps_length:
            shown.labels[line.silent] = IGNORE
        elif asks and (line.content & ~line.predicted).any():
            raise MaskwiseError(
                "labels of −100 (or a loss_mask) in the rows cannot be left out of the targets of "
                "this corruption",
                got=f"corruption {self.corruption}",
                do="remove the column labels or loss_mask, or use a corruption with target='spans'",
            )

    def choose(self, line: Line, draws: Draws, when: When) -> Choice:
        """Select the units to mask. The tokens stay unchanged."""
        if self.visits == "coverage":
            return self._coverage(line, when)
        draws, second = self.paired(line, draws, when)
        draw_P = draws.per_piece(Purpose.RATIO)
        ratio_P = self.ratio.rows(draw_P, when.step, when.total_steps)
        ratio_P = self.policy.ratios(ratio_P, draws, when)
        units = self.cut(line, draws, replace(when, ratio=ratio_P))
        if self.visits == "random":
            return select(
                units,
                ratio_P,
                draws,
                budget=self.budget,
                fill=self.fill,
                min_targets=self.min_targets,
            )
        if second:
            return stretch(units, draws, ratio_P, np.ones_like(ratio_P))
        return stretch(units, draws, np.zeros_like(ratio_P), ratio_P)

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        """Cut a line into the policy's units."""
        units = self.policy.cut(line, draws, when)
        # ``filled`` replaces weights of 0 by a tiny weight, so that these units can be selected.
        return units.filled() if self.fill == "random" else units

    def _coverage(self, line: Line, when: When) -> Choice:
        """Select the units that this epoch masks with ``visits: coverage``."""
        # The number of epochs in a round, which masks every unit once.
        epochs = round(1 / self.ratio(0, 1))
        number, part = divmod(self._epoch(when), epochs)
        draws = Draws(line.example_id, seed=self.seed, epoch=number)
        units = self.cut(line, draws, when)
        low_P = np.full(line.pieces, part / epochs)
        high_P = np.full(line.pieces, (part + 1) / epochs)
        return stretch(units, draws, low_P, high_P)

    def _epoch(self, when: When) -> int:
        """Return the epoch, or raise ``MaskwiseError`` if it is unknown."""
        if when.epoch is None:
            raise MaskwiseError(
                f"visits: {self.visits} needs the epoch",
                do="pass epoch=…; a mix of sources has no common epochs, so use visits: random",
            )
        return when.epoch

    def paired(self, line: Line, draws: Draws, when: When) -> tuple[Draws, bool]:
        """Return the draws to use, and whether this is the second epoch of a ``complement`` pair.

        With other values of ``visits``, ``draws`` is returned unchanged.
        """
        if self.visits != "complement":
            return draws, False
        epoch = self._epoch(when)
        # Both epochs of a pair get the same draws and therefore sort the units in the same order.
        draws = Draws(line.example_id, seed=self.seed, epoch=epoch // 2)
        return draws, epoch % 2 == 1

    @property
    def needs_total(self) -> bool:
        """Whether a setting changes over training, so that calls need ``total_steps``."""
        return any(part.needs_total for part in (self.ratio, self.predict, self.policy))

    def describe(self) -> dict[str, str | int]:
        """Return the settings as plain values, for model cards and reports."""
        names = [*DESCRIBED]
        if self.keep is not None:
            names.append("keep")
        if self.visits != "random":
            names.append("visits")
        if self.exclude:
            names.append("exclude")
        shown = {}
        for name in names:
            value = getattr(self, name)
            shown[name] = value if isinstance(value, int) else str(value)
        return shown

    def __repr__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.describe().items()]
        return f"Masker({', '.join(settings)})"


def _require_same(rows: Rows, **given: int | None) -> None:
    """Raise ``MaskwiseError`` if rows have another step or epoch than the masker is called with."""
    for name, value in given.items():
        found = common_number(rows, name)
        if found is not None and found != value:
            raise MaskwiseError(
                f"the rows have another {name} than the masker is called with",
                got=f"{found} in the column {name!r}, {value} in the call",
                do=f"pass {name}={found}, or use MaskingCollator, which reads the column",
            )


def some_labels(labels: Array, candidate: Array, line: Line, share: float, draws: Draws) -> Array:
    """Keep the labels of some candidates, and set all other labels to ``IGNORE``.

    In each piece, the number of kept labels is ``share`` × the number of eligible tokens, rounded
    at random, and at least one if share > 0. A piece with fewer candidates keeps all of them.

    Source: an ablation of Ankner et al. 2023 (arXiv 2305.15096, section 4). The share of corrupted
    tokens changes with the step, and the share of tokens with a loss is constant.

    Args:
        labels: (T,) int64, the label of each of the line's T tokens.
        candidate: (T,) bool, the tokens whose labels may be kept.
        line: the text that was corrupted.
        share: the share of eligible tokens, 0 to 1.
        draws: the random draws for the pieces of the line.
    """
    at = np.flatnonzero(candidate)
    pieces = np.arange(line.pieces)
    # No other decision uses draws of ``Purpose.PREDICT``, so the mask does not depend on
    # ``predict``.
    rounding_P = draws.uniform(Purpose.PREDICT, pieces, -1)
    wanted_P = (line.eligible_P * share + rounding_P).astype(np.int64)
    wanted_P = np.maximum(wanted_P, 1) * (share > 0)
    draw = line.draw(draws, Purpose.PREDICT, at)
    asked = at[first_within(line.piece[at], draw, wanted_P)]
    kept = np.full_like(labels, IGNORE)
    kept[asked] = labels[asked]
    return kept


_MAKERS: dict[str, Callable[..., object]] = {
    "policy": policies.policy,
    "ratio": schedules.schedule,
    "predict": schedules.schedule,
    "corruption": corruptions.corruption,
}
_KNOWN = {"budget": BUDGETS, "fill": FILLS, "visits": VISITS}


class MaskingSettings(BaseModel, extra="forbid", frozen=True):
    """The masking settings of a recipe.

    >>> MaskingSettings(policy="whole-word", ratio="linear(0.30, 0.15)").corruption
    'bert'
    """

    policy: Weights[str] = "token"
    """The masking policy: which tokens are masked together, and how likely. A name from ``list
    policies``."""
    ratio: Weights[str | float] = 0.15
    """The share of eligible tokens that is masked: a number, or a schedule such as ``linear(0.30,
    0.15)``."""
    budget: Weights[str] = "expected"
    """How closely masks follow the ratio. The budget of a text is ratio × tokens. ``expected``
    masks the budget on average, and exceeds it by at most one unit (such as a word). ``exact``
    never exceeds the budget and skips units that do not fit. ``bernoulli`` masks each unit
    independently, with probability ratio × weight."""
    fill: Weights[str] = "none"
    """What to do if the policy offers too few units, such as salient spans, to use the whole
    budget. ``none`` masks fewer tokens, ``random`` also masks other units, and ``skip-row`` masks
    nothing in this text."""
    corruption: Weights[str] = "bert"
    """How masked tokens are replaced, and what the model predicts: a name from ``list
    corruptions``."""
    min_targets: Weights[int] = Field(1, ge=0, le=MOST_TARGETS)
    """The minimum number of tokens to mask in a text. Texts whose ratio × tokens is below 0.5 have
    no minimum."""
    predict: Weights[str | float] = 1.0
    """The largest share of each row's tokens that get a loss: a number or a schedule."""
    keep: Weights[str | None] = None
    """The name of an annotation layer, such as ``prompt``. Tokens that this layer marks are never
    masked."""
    visits: Weights[str] = "random"
    """How the masks of a text in different epochs depend on each other. With ``random``, every
    epoch draws a new mask. With ``complement``, every second epoch masks the units that the epoch
    before left visible. With ``coverage`` and a ratio of 1/n, n epochs mask every unit once."""
    exclude: Weights[tuple[str, ...]] = ()
    """Tokens that are never masked in training and never used as random replacements, as the
    tokenizer writes them. Special tokens, unknown tokens and the wildcards of proteins and DNA
    (such as X, B, Z and gaps) never are, in training and in evaluations."""

    @field_validator(*_MAKERS, *_KNOWN)
    @classmethod
    def _valid(cls, value: str | float, info: ValidationInfo) -> str | float:
        name = str(info.field_name)
        if name in _MAKERS:
            _MAKERS[name](value)
        else:
            require_known(name, str(value), _KNOWN[name])
        return value

    @model_serializer(mode="wrap")
    def _without_new_defaults(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        # The names of stages are hashes of these values, and must stay as they were before this
        # setting existed.
        values: dict[str, Any] = dump(self)
        if not self.exclude:
            values.pop("exclude", None)
        return values

    def masker(self, tokenizer: PreTrainedTokenizerBase, *, seed: int) -> Masker:
        """Build a masker with these settings."""
        return Masker(tokenizer, **Masker.used(self.model_dump()), seed=seed)
