"""The masker: it chooses tokens of each row, replaces them, and returns a masked batch.

Terms of this package:

- A *piece* is one document, or one part of a document, in a row. A packed row has several pieces.
- An *eligible* token is a token that may be masked: not padding, not special and not [UNK].
- A *unit* is a group of tokens that are masked together, such as a word. A *masking policy* cuts
  each piece into units. A unit with a larger *masking weight* is more likely to be masked.
- The *ratio* is the share of the tokens in a piece's units to mask; a *schedule* sets the ratio of
  each step. Most policies put all eligible tokens into units. The *budget* is the resulting number
  of tokens.
- A *corruption* replaces the selected tokens and sets the labels.
- A *draw* is a pseudo-random number computed by hashing (seed, epoch, example id, purpose, index)
  in ``maskwise.masking.draws``. The *purpose* is what the draw decides; draws with different
  purposes are independent. The index is the number of the unit (``Units.number``) or the place of
  the token.
- A *layer* is an array of one number per token, such as the number of the token's word.

A masker has no random state: a mask depends only on the seed, the epoch, the example id, the ratio
and the weights. Masking runs in numpy on the host, in O(B·L) memory for B rows of L tokens. Only
the rows and the result are tensors.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np

from maskwise.base.errors import MaskwiseError, whole_number
from maskwise.base.specs import Call
from maskwise.masking.arrays import whole_numbers
from maskwise.masking.batch import IGNORE, MaskedBatch
from maskwise.masking.corruptions import Corruption, Masked
from maskwise.masking.corruptions.base import corrupt_by
from maskwise.masking.draws import Array, Draws, Purpose
from maskwise.masking.gather import UserRows, common_number, device_of, gather
from maskwise.masking.line import Line
from maskwise.masking.moment import Moment, mapped
from maskwise.masking.policies import Policy, When
from maskwise.masking.policies.base import checked_moment, cut_by, ratios_by
from maskwise.masking.schedules import FunctionSchedule, Schedule
from maskwise.masking.segments import first_within
from maskwise.masking.select import Choice, expected_ratios, select, stretch
from maskwise.masking.settings import Masking
from maskwise.masking.units import Units
from maskwise.masking.vocabulary import Tokenizer, Vocabulary

if TYPE_CHECKING:
    from numpy.typing import ArrayLike
    from torch import Tensor


DESCRIBED = ("policy", "ratio", "budget", "corruption", "fill", "min_targets", "seed", "predict")

WRONG_BY = 1.5
"""The factor between the wanted and the expected ratio from which on the masker warns."""
MANY_UNITS = 100
"""The number of units in a batch from which on the two ratios are compared."""


class Masker:
    """Mask batches of rows.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        policy: the masking policy: a name such as ``"whole-word"``, or a ``Policy``.
        ratio: the share of the tokens in units to mask: a number, a schedule, the name of a
            schedule, or a function of (step, total steps).
        budget: ``expected`` (the budget is met on average, and a piece exceeds it by at most one
            unit), ``exact`` (no piece exceeds its budget) or ``bernoulli`` (each unit is masked
            independently of the others, without a budget).
        corruption: how selected tokens are replaced, and which labels the model must predict.
        seed: any integer.
        fill: what to do if the policy gives positive weights to too few units to use the whole
            budget: ``none`` (mask fewer tokens), ``random`` (also mask units of weight 0) or
            ``skip-row`` (mask nothing in this piece).
        min_targets: the minimum budget of a piece, in tokens. Pieces whose eligible tokens × ratio
            are below 0.5 have no minimum. Other ``visits`` than ``random`` have no minimum. The
            minimum of 1 masks more than the ratio in short pieces: of four tokens, at a ratio of
            0.15, a share of 0.25. With 0, the ratio is met on average.
        predict: the largest share of each piece's eligible tokens that get a loss, as a number or a
            schedule. The tokens that get a loss are drawn from the corrupted tokens. If the model
            predicts whether each token was replaced, they are drawn from all tokens. A value below
            1 needs a corruption that keeps the length of the text, with labels that no decoder
            writes.
        exclude: tokens, as the vocabulary writes them, that are never masked and never used as
            random replacements, such as ``["<gap>"]``. Special tokens, [UNK], the wildcards of
            proteins and DNA (such as X, B and Z) and BERT's ``[unused17]`` never are.
        keep: the name of a layer. Tokens with a number ≥ 0 in this layer are never masked. For
            example, the layer ``prompt`` marks the tokens of prompts.
        visits: how the masks of a row in different epochs depend on each other: ``random``
            or ``complement``, in which every second epoch masks what the epoch before left visible
            (only approximately if the ratio changes over the steps). ``complement`` needs
            ``budget="expected"`` and a ``fill`` of ``none`` or ``random``.

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

    values: ClassVar[type[Masking]] = Masking
    """The class of the parsed settings."""

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
        masking = Masking.of(
            policy=policy,
            ratio=ratio,
            budget=budget,
            corruption=corruption,
            fill=fill,
            min_targets=min_targets,
            predict=predict,
            keep=keep,
            visits=visits,
            exclude=exclude,
        )
        self._set(tokenizer, masking, seed)

    @classmethod
    def of(cls, tokenizer: Tokenizer, masking: Masking, *, seed: int = 0) -> Self:
        """Build a masker from settings that are parsed already."""
        masker = cls.__new__(cls)
        masker._set(tokenizer, masking, seed)
        return masker

    def _set(self, tokenizer: Tokenizer, masking: Masking, seed: int) -> None:
        self.vocabulary = Vocabulary.of(tokenizer)
        if masking.exclude != ():
            self.vocabulary = self.vocabulary.without(masking.exclude)
        masking.corruption.check(self.vocabulary)
        self.masking = masking
        self.seed = whole_number("seed", seed)
        self.is_checked = False
        self.warned_of_weights = False
        self._warned_of_total = False

    @property
    def policy(self) -> Policy:
        return self.masking.policy

    @property
    def ratio(self) -> Schedule:
        return self.masking.ratio

    @property
    def corruption(self) -> Corruption:
        return self.masking.corruption

    @property
    def needs_total(self) -> bool:
        """Whether a setting changes over training, so that calls need ``total_steps``."""
        return self.masking.needs_total

    def __call__(
        self,
        rows: UserRows | Line,
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
        _, total_steps, epoch = checked_moment(step, total_steps, epoch)
        self.warn_of_total(total_steps, stacklevel=3)
        line = gather(rows, self.vocabulary)
        place_B = None
        if place is not None:
            place_B = whole_numbers("place", place, shape=line.shape[:1], least=0)
        # A line has no such columns.
        if not isinstance(rows, Line):
            _require_same(rows, step=step, epoch=epoch)
        when = When(
            step,
            total_steps,
            epoch,
            min_targets=self.masking.min_targets,
            place=place_B,
        )
        shown, choice = self.corrupted(line, when)
        return shown.batch(choice, self.vocabulary.pad).to(device_of(rows))

    def at(
        self,
        *,
        epoch: int | None = None,
        step: int | None = None,
        total_steps: int | None = None,
    ) -> Moment:
        """Return a function that masks rows for one moment, for ``dataset.with_transform``.

        The function takes columns, or a list of rows, and returns the same kind, with the inputs of
        a model and its labels as lists. Masks are equal to those of a call of the masker.

        Args:
            epoch: the number of the pass over the data. If None, masks depend on the step instead.
            step, total_steps: the step and the number of steps in the run; needed only if the
                masking changes over training.

        Raises:
            MaskwiseError: neither epoch nor step is given, the masking changes over training and
                the step is unknown, the policy learns during the run, or the masker is for masked
                diffusion.

        >>> from maskwise import encode
        >>> from maskwise.text import train_tokenizer
        >>> tokenizer = train_tokenizer(["the cat sat on the mat"] * 3, vocab_size=80)
        >>> rows = encode(tokenizer, ["the cat sat", "on the mat"])
        >>> masked = Masker(tokenizer, ratio=0.5).at(epoch=0)(rows)
        >>> [*masked[0]], len(masked[0]["labels"]) == len(rows[0]["input_ids"])
        (['input_ids', 'attention_mask', 'labels'], True)
        """
        return Moment(self, epoch=epoch, step=step, total_steps=total_steps)

    def map(
        self,
        data: Any,
        *,
        epoch: int,
        step: int | None = None,
        total_steps: int | None = None,
    ) -> Any:
        """Return a data set with the masks of one epoch, for any trainer.

        Args:
            data: a ``datasets.Dataset`` or ``IterableDataset`` with token ids, a list of rows, or a
                dict of columns.
            epoch, step, total_steps: as for ``at``.

        Returns:
            The same kind of data: ``input_ids``, ``attention_mask``, ``labels`` and, if the rows
            have them, ``token_type_ids`` and ``position_ids``. Rows keep their order and are not
            padded.

        Raises:
            MaskwiseError: as for ``at``; or the data set has no token ids or several splits.
        """
        return mapped(data, self.at(epoch=epoch, step=step, total_steps=total_steps))

    def corrupted(self, line: Line, when: When) -> tuple[Masked, Choice]:
        """Select tokens of a line and corrupt them, as numpy arrays."""
        if self.masking.keep is not None:
            kept = line.layer(self.masking.keep) >= 0
            line = replace(line, eligible=line.eligible & ~kept, kept=kept)
        draws = Draws(
            line.example_id,
            seed=self.seed,
            epoch=when.epoch,
            step=when.step,
        )
        # The arrays may be the user's own.
        with line.read_only() as line:
            choice = self.choose(line, draws, when)
            with refused_writes("corruption", self.corruption):
                shown = corrupt_by(self.corruption, line, choice, draws, self.vocabulary)
        if not self.is_checked:
            from maskwise.masking.contract import at_first_use  # which masks, too

            self.is_checked = at_first_use(self, line)
        if line.silent is not None:
            self._silence(shown, line)
        share = self.masking.predict(when.step, when.total_steps)
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
        whole = self.corruption.writes == "full"
        if self.corruption.keeps_length and not whole:
            shown.labels[line.silent] = IGNORE
        # A decoder writes its whole text, and reads a label of −100 as padding.
        elif (whole or self.corruption.detects) and (line.content & ~line.predicted).any():
            instead = "another corruption, such as infill(target='spans')"
            if self.corruption.detects:
                instead = "replace(target='detect')"
            elif "spans" in self.corruption.targets:
                instead = "target='spans'"
            raise MaskwiseError(
                "labels of −100 (or a loss_mask) in the rows cannot be left out of the targets of "
                "this corruption",
                got=f"corruption {self.corruption}",
                do=f"remove the column labels or loss_mask, or use {instead}",
            )

    def choose(self, line: Line, draws: Draws, when: When) -> Choice:
        """Select the units to mask. The tokens stay unchanged."""
        draws, second = self.paired(line, draws, when)
        draw_P = draws.per_piece(Purpose.RATIO)
        ratio_P = self.ratio.rows(draw_P, when.step, when.total_steps)
        ratio_P = ratios_by(self.policy, ratio_P, draws, when)
        units = self.cut(line, draws, replace(when, ratio=ratio_P))
        if self.masking.visits == "random":
            self._warn_of_weights(units, ratio_P)
            return select(
                units,
                ratio_P,
                draws,
                budget=self.masking.budget,
                fill=self.masking.fill,
                min_targets=self.masking.min_targets,
            )
        if second:
            return stretch(units, draws, ratio_P, np.ones_like(ratio_P))
        return stretch(units, draws, np.zeros_like(ratio_P), ratio_P)

    def warn_of_total(self, total_steps: int | None, *, stacklevel: int) -> None:
        """Warn once if a function of (step, total steps) gets 0 as the total."""
        if total_steps is not None or self._warned_of_total:
            return
        # The shares of a mixture may be functions, too.
        parts = [*self.masking.changing, *getattr(self.policy, "shares", ())]
        functions = [each for each in parts if isinstance(each, FunctionSchedule)]
        if functions:
            self._warned_of_total = True
            warnings.warn(
                f"total_steps is not given, so {functions[0]} gets 0 as the total number of steps; "
                "pass total_steps (any number if the function does not read it)",
                stacklevel=stacklevel,
            )

    def _warn_of_weights(self, units: Units, ratio_P: Array) -> None:
        """Warn once if the weights of units change how much ``bernoulli`` masks."""
        if self.masking.budget != "bernoulli" or units.weight is None or self.policy.scales_ratio:
            return
        # The mean weight of few units may be far from 1 by chance.
        if self.warned_of_weights or len(units.piece) < MANY_UNITS:
            return
        wanted, expected = expected_ratios(units, ratio_P)
        if wanted / WRONG_BY <= expected <= wanted * WRONG_BY:
            return
        self.warned_of_weights = True
        warnings.warn(
            f"policy {self.policy}: the ratio is {expected:.2g} instead of {wanted:.2g}, because "
            "budget bernoulli masks a unit with probability ratio × weight; divide the weights by "
            "their mean, use budget expected, or, if this is meant, set scales_ratio = True in the "
            "policy",
            stacklevel=5,
        )

    def cut(self, line: Line, draws: Draws, when: When) -> Units:
        """Cut a line into the policy's units."""
        with refused_writes("policy", self.policy):
            units = cut_by(self.policy, line, draws, when)
        # ``filled`` replaces weights of 0 by a tiny weight, so that these units can be selected.
        return units.filled() if self.masking.fill == "random" else units

    def _epoch(self, when: When) -> int:
        """Return the epoch, or raise ``MaskwiseError`` if it is unknown."""
        if when.epoch is None:
            raise MaskwiseError(
                f"visits: {self.masking.visits} needs the epoch",
                do="pass epoch=…; a mix of sources has no common epochs, so use visits: random",
            )
        return when.epoch

    def paired(self, line: Line, draws: Draws, when: When) -> tuple[Draws, bool]:
        """Return the draws to use, and whether this is the second epoch of a ``complement`` pair.

        With other values of ``visits``, ``draws`` is returned unchanged.
        """
        if self.masking.visits != "complement":
            return draws, False
        epoch = self._epoch(when)
        # Both epochs of a pair get the same draws and therefore sort the units in the same order.
        draws = Draws(line.example_id, seed=self.seed, epoch=epoch // 2)
        return draws, epoch % 2 == 1

    def describe(self) -> dict[str, str | int]:
        """Return the settings as plain values, for model cards and reports."""
        names = [*DESCRIBED]
        if self.masking.keep is not None:
            names.append("keep")
        if self.masking.visits != "random":
            names.append("visits")
        if self.masking.ends != "none":
            names.append("ends")
        if self.masking.exclude:
            names.append("exclude")
        shown = {}
        for name in names:
            value = self.seed if name == "seed" else getattr(self.masking, name)
            shown[name] = value if isinstance(value, int) else str(value)
        return shown

    def __repr__(self) -> str:
        settings = [f"{name}={value}" for name, value in self.describe().items()]
        return f"{type(self).__name__}({', '.join(settings)})"


@contextmanager
def refused_writes(kind: str, member: Policy | Corruption) -> Iterator[None]:
    """Name the policy or the corruption that writes into an array of its line."""
    try:
        yield
    except ValueError as error:
        if isinstance(error, MaskwiseError) or "read-only" not in str(error):
            raise
        raise MaskwiseError(
            f"{kind} {member} writes into an array that it must not change",
            got=str(error),
            do="write into a copy, such as line.input_ids.copy()",
        ) from error


def _require_same(rows: UserRows, **given: int | None) -> None:
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
