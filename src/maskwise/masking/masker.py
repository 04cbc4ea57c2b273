"""policy × schedule × corruption → masked batches. The object that people import.

It holds no random state: a mask is a function of (seed, epoch, example id, ratio and weights in
force). It works in numpy, on the host, and costs O(B·L) memory; torch tensors are taken and given
here and nowhere deeper.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from maskwise.errors import MaskwiseError, whole_number
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking import corruptions, policies, schedules
from maskwise.masking.batch import IGNORE, AnnotatedBatch, MaskedBatch
from maskwise.masking.corruptions import Corrupted, Corruption
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.masking.policies import Moment, Policy
from maskwise.masking.schedules import Schedule
from maskwise.masking.select import Selection, require_known, select
from maskwise.masking.visits import check_visits, kept_visible, revisited
from maskwise.masking.vocabulary import Tokenizer, Vocabulary
from maskwise.segments import first_within, rank_within
from maskwise.specs import Call

MOST_TARGETS = 2**31 - 1
"""The largest ``min_targets``; no piece has more tokens."""


class Masker:
    """Masks batches of rows.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        policy: what may be masked together: a name such as ``"whole-word"``, or a ``Policy``.
        ratio: how much: a number, a schedule, its name, or a function of (step, total steps).
        budget: ``expected`` (even inclusion, at most one unit over), ``exact`` (never over) or
            ``bernoulli``.
        corruption: how it is shown and what must be produced.
        seed: any integer.
        fill: what becomes of a budget that units of positive weight cannot use: ``none``,
            ``random``, ``skip-row``.
        min_targets: the least budget of a document piece while eligible × ratio ≥ 0.5, where visits
            are ``random``.
        predict: the loss is taken on at most this share of each piece's *eligible* tokens, a random
            part of what is
            corrupted (of all, where labels say what was done): a number or a schedule. Where
                lengths are kept.
        keep: a layer whose tokens (those with a number ≥ 0) are never masked, such as the prompts
            of pairs.
        visits: how a row's masks in different epochs hang together: ``random``, ``complement``,
            ``coverage``. The last two take ``budget="expected"``, and ``fill`` none or random.

    Raises:
        MaskwiseError: an unknown name, a ratio outside 0 to 1, a tokenizer without what the
            corruption shows.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"], vocab_size=80)
    >>> masker = Masker(tokenizer, policy="token", ratio=0.5, corruption="mask-only")
    >>> batch = masker([{"input_ids": tokenizer("the cat sat")["input_ids"], "example_id": 0}], epoch=0)
    >>> batch.targets == int((batch.input_ids == tokenizer.mask_token_id).sum())
    True
    """

    places = False  # whether it is told the place of each row in the order of the epoch

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
    ):
        self.vocabulary = (
            tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
        )
        self.policy = policies.policy(policy)
        self.ratio, self.predict = schedules.schedule(ratio), schedules.schedule(predict)
        self.corruption = corruptions.corruption(corruption)
        self.budget, self.fill, self.keep, self.visits = budget, fill, keep, visits
        self.seed = whole_number("seed", seed)
        self.min_targets = whole_number("min_targets", min_targets, least=0, most=MOST_TARGETS)
        if keep is not None and not isinstance(keep, str):
            raise MaskwiseError("keep is the name of a layer", got=repr(keep))
        for setting in ("budget", "fill", "visits"):
            require_known(setting, getattr(self, setting))
        if budget == "bernoulli" and self.policy.splits_budget:
            raise MaskwiseError(
                "budget bernoulli draws each unit by itself",
                got=self.policy,
                do="take budget exact",
            )
        self.corruption.check(self.vocabulary)
        if (self.predict.varies or self.predict(0) < 1) and not self.corruption.keeps_length:
            what = "predict needs labels that stand where the tokens do"
            raise MaskwiseError(
                what, got=f"corruption {self.corruption}", do="leave predict at 1.0"
            )
        self._check()

    def _check(self) -> None:
        """Refuse settings that do not go together."""
        check_visits(self)

    def __call__(
        self,
        rows: Rows | Pieces | AnnotatedBatch,
        *,
        step: int = 0,
        total_steps: int | None = None,
        epoch: int | None = None,
        place: Array | None = None,
    ) -> MaskedBatch:
        """Mask rows.

        Args:
            rows: a list of dicts with ``input_ids``, ``example_id`` and layers; or one dict of (B,
                L) tensors (packed rows: ``example_id`` (B, L), one id per document piece); or
                ``Pieces``.
            step: the optimiser step the batch is for: where the schedule stands.
            total_steps: how many there will be; needed by schedules that change.
            epoch: the pass over the data; None mixes the step into the key.
            place: (B,) the place of each row in the order of the epoch, which masked diffusion asks
                for.

        Returns:
            A batch on the device of the rows. A packed row that has grown past its plan loses the
            end of its text, but not its last special token. The masks of its pieces are what they
            would be alone.

        Raises:
            MaskwiseError: missing or misshapen layers, ids outside the vocabulary, weights that are
                no weights.
        """
        step = whole_number("step", step, least=0)
        if total_steps is not None:
            total_steps = whole_number("total_steps", total_steps, least=0)
        if epoch is not None:
            epoch = whole_number("epoch", epoch, least=0)
        batch, device = kept_visible(gather(rows, self.vocabulary), self.keep), device_of(rows)
        moment = Moment(step, total_steps, epoch, min_targets=self.min_targets, place=place)
        keys = Keys(batch.example_id, seed=self.seed, epoch=epoch, step=step)
        choice, ratio_P, weight_T = self.choose(batch, keys, moment)
        shown = self.corruption.corrupt(batch, choice.tokens, choice.units, keys, self.vocabulary)
        share = self.predict(step, total_steps)
        if share < 1:
            candidate = shown.labels != IGNORE if self.corruption.detects else choice.tokens
            shown.labels = some_labels(shown.labels, candidate, batch, share, keys)
        masked = lay_out(batch, shown, choice, ratio_P, weight_T, self.vocabulary.pad)
        masked.vocabulary = self.vocabulary
        return masked if device is None else masked.to(device)

    def choose(
        self, batch: AnnotatedBatch, keys: Keys, moment: Moment
    ) -> tuple[Selection, Array, Array | None]:
        """The first two choices alone: selection, ratios (P,) and, in masked diffusion, loss
        weights (T,).
        """
        if self.visits != "random":
            return revisited(self, batch, moment)
        ratio = self.ratio.rows(keys.per_piece(Purpose.RATIO), moment.step, moment.total_steps)
        ratio = self.policy.ratios(ratio, keys, moment)
        units = self.policy.cut(batch, keys, replace(moment, ratio=ratio))
        choice = select(
            units, ratio, keys, budget=self.budget, fill=self.fill, min_targets=self.min_targets
        )
        return choice, ratio, None

    def describe(self) -> dict[str, str | int]:
        """The choices as plain values, for cards and reports."""
        # where they differ from what is usual
        more = {"keep": self.keep or "random", "visits": self.visits}
        return {
            "policy": str(self.policy),
            "ratio": str(self.ratio),
            "budget": self.budget,
            "corruption": str(self.corruption),
            "fill": self.fill,
            "min_targets": self.min_targets,
            "seed": self.seed,
            "predict": str(self.predict),
            **{n: v for n, v in more.items() if v != "random"},
        }

    def __repr__(self) -> str:
        return f"Masker({', '.join(f'{name}={value}' for name, value in self.describe().items())})"


def some_labels(
    labels: Array, candidate: Array, batch: AnnotatedBatch, share: float, keys: Keys
) -> Array:
    """Labels (T,) with −100 but at a random ``share`` of each piece's *eligible* tokens, all of
    them candidates.

    Pieces with fewer candidates than that keep all; a piece with a candidate keeps at least one
    while share > 0. Keys of its own settle which ones, so the mask itself is the same with or
    without. This is the ablation of Ankner et al. 2023 (arXiv 2305.15096, section 4): corrupt at
    p(t), take the loss on a share that does not change.
    """
    at = np.flatnonzero(candidate & (labels != IGNORE))
    every = np.arange(len(batch.begin))
    rounding_P = keys.uniform(Purpose.PREDICT, every, np.full(len(every), -1, np.int32))
    wanted_P = np.maximum((batch.eligible_P * share + rounding_P).astype(np.int64), 1) * (share > 0)
    asked = at[first_within(batch.piece[at], batch.draw(keys, Purpose.PREDICT, at), wanted_P)]
    kept = np.full_like(labels, IGNORE)
    kept[asked] = labels[asked]
    return kept


def lay_out(
    batch: AnnotatedBatch,
    shown: Corrupted,
    choice: Selection,
    ratio_P: Array,
    weight_T: Array | None,
    pad: int,
) -> MaskedBatch:
    """Rows of what is shown and what must be produced; ``weight_T`` multiplies the loss of each
    token (diffusion).
    """
    ratio = torch.from_numpy(ratio_P)
    if shown.lengths is not None:
        return _laid_anew(batch, shown, choice, ratio, pad)

    def rows(line: Array) -> Tensor:
        return torch.from_numpy(line.reshape(batch.shape))

    weight, counted = None, None
    if weight_T is not None:
        weight, counted = rows(weight_T), len(batch.eligible_at)
    attention = None if batch.attention_mask is None else rows(batch.attention_mask)
    extras = {name: rows(value) for name, value in batch.extras.items()}
    targets = int(np.count_nonzero(shown.labels != IGNORE))
    return MaskedBatch(
        rows(shown.input_ids),
        rows(shown.labels),
        attention,
        batch,
        ratio,
        extras,
        weight,
        choice,
        targets=targets,
        counted=counted,
    )


def _laid_anew(
    batch: AnnotatedBatch,
    shown: Corrupted,
    choice: Selection,
    ratio: Tensor,
    pad: int,
) -> MaskedBatch:
    """Each row is its pieces one after the other, as long as they are now; and so are its targets."""
    assert shown.lengths is not None
    every = np.arange(len(batch.begin))

    def in_rows(lengths_P: Array) -> tuple[Array, Array]:
        """The tokens of each row (B,), and the piece of each token (N,)."""
        return np.bincount(batch.row, lengths_P, batch.shape[0]).astype(np.int64), np.repeat(
            every, lengths_P
        )

    length_B, piece = in_rows(shown.lengths)
    columns = {"input_ids": shown.input_ids, "piece": piece, **shown.extras}
    if shown.label_lengths is None:
        columns["labels"] = shown.labels
    cut = 0
    if batch.plan is not None and int(length_B.max(initial=0)) > batch.plan:
        # What stands behind the plan goes, but for a special token that closes the row: it takes
        # the last place.
        rank, closed_B = rank_within(length_B), ~shown.text.take(length_B.cumsum() - 1)
        kept = rank < np.repeat(batch.plan - closed_B, length_B)
        kept |= rank == np.repeat(np.where(closed_B, length_B - 1, -1), length_B)
        cut = len(kept) - int(kept.sum())
        columns = {name: values[kept] for name, values in columns.items()}
        length_B = np.minimum(length_B, batch.plan)
    fills = {"input_ids": pad, "piece": -1, "labels": IGNORE}
    laid = {name: _padded(values, length_B, fills.get(name, 0)) for name, values in columns.items()}
    piece = laid.pop("piece")
    of_label = None
    if shown.label_lengths is not None:
        label_B, of_target = in_rows(shown.label_lengths)
        laid["labels"] = _padded(shown.labels, label_B, IGNORE)
        of_label = _padded(of_target, label_B, -1)
    tensors = {name: torch.from_numpy(values) for name, values in laid.items()}
    return MaskedBatch(
        tensors.pop("input_ids"),
        tensors.pop("labels"),
        torch.from_numpy((piece >= 0).astype(np.int64)),
        batch,
        ratio,
        tensors,
        None,
        choice,
        piece,
        cut,
        writes=of_label is not None,
        laid_labels=of_label,
        targets=int(np.count_nonzero(laid["labels"] != IGNORE)),
    )


def _padded(line: Array, length_B: Array, fill: int) -> Array:
    """(N,) numbers to (B, W), the next ``length_B`` of them in each row, padded at the end."""
    laid = np.full((len(length_B), int(length_B.max(initial=0))), fill, line.dtype)
    laid[np.arange(laid.shape[1]) < length_B[:, None]] = line
    return laid
