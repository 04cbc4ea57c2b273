"""policy × schedule × corruption → masked batches. The object that people import.

It holds no random state: a mask is a function of (seed, epoch, example id, ratio and weights in force). It works in
numpy, on the host, and costs O(B·L) memory; torch tensors are taken and given here and nowhere deeper.
"""

from __future__ import annotations

from dataclasses import replace

from maskwise.errors import MaskwiseError, whole_number
from maskwise.keys import Array, Keys, Purpose
from maskwise.masking import corruptions, policies, schedules
from maskwise.masking.batch import IGNORE, AnnotatedBatch, MaskedBatch
from maskwise.masking.corruptions import Corruption
from maskwise.masking.gather import Pieces, Rows, device_of, gather
from maskwise.masking.laying import lay_out, some_labels
from maskwise.masking.policies import Moment, Policy
from maskwise.masking.schedules import Schedule
from maskwise.masking.select import Selection, require_known, select
from maskwise.masking.visits import check_visits, kept_visible, revisited
from maskwise.masking.vocabulary import Tokenizer, Vocabulary
from maskwise.specs import Call

MOST_TARGETS = 2**31 - 1
"""The largest ``min_targets``; no piece has more tokens."""


class Masker:
    """Masks batches of rows.

    Args:
        tokenizer: a Hugging Face tokenizer, or a ``Vocabulary``.
        policy: what may be masked together: a name such as ``"whole-word"``, or a ``Policy``.
        ratio: how much: a number, a schedule, its name, or a function of (step, total steps).
        budget: ``expected`` (even inclusion, at most one unit over), ``exact`` (never over) or ``bernoulli``.
        corruption: how it is shown and what must be produced.
        seed: any integer.
        fill: what becomes of a budget that units of positive weight cannot use: ``none``, ``random``, ``skip-row``.
        min_targets: the least budget of a document piece while eligible × ratio ≥ 0.5, where visits are ``random``.
        predict: the loss is taken on at most this share of each piece's *eligible* tokens, a random part of what is
            corrupted (of all, where labels say what was done): a number or a schedule. Where lengths are kept.
        keep: a layer whose tokens (those with a number ≥ 0) are never masked, such as the prompts of pairs.
        visits: how a row's masks in different epochs hang together: ``random``, ``complement``, ``coverage``. The last
            two take ``budget="expected"``, and ``fill`` none or random.

    Raises:
        MaskwiseError: an unknown name, a ratio outside 0 to 1, a tokenizer without what the corruption shows.

    >>> from maskwise.text import train_tokenizer
    >>> tokenizer = train_tokenizer(["the cat sat on the mat"], vocab_size=80)
    >>> masker = Masker(tokenizer, policy="token", ratio=0.5, corruption="mask-only")
    >>> batch = masker([{"input_ids": tokenizer("the cat sat")["input_ids"], "example_id": 0}], epoch=0)
    >>> batch.targets == int((batch.input_ids == tokenizer.mask_token_id).sum())
    True
    """

    places = False  # whether it is told the place of each row in the order of the epoch

    def __init__(
        self, tokenizer: Tokenizer, *, policy: Policy | str | Call = "token",
        ratio: Schedule | float | str | Call = 0.15, budget: str = "expected",
        corruption: Corruption | str | Call = "bert", seed: int = 0, fill: str = "none",
        min_targets: int = 1, predict: Schedule | float | str | Call = 1.0, keep: str | None = None,
        visits: str = "random",
    ):  # fmt: skip
        self.vocabulary = tokenizer if isinstance(tokenizer, Vocabulary) else Vocabulary.of(tokenizer)
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
            raise MaskwiseError("budget bernoulli draws each unit by itself", got=self.policy, do="take budget exact")
        self.corruption.check(self.vocabulary)
        if (self.predict.varies or self.predict(0) < 1) and not self.corruption.keeps_length:
            what = "predict needs labels that stand where the tokens do"
            raise MaskwiseError(what, got=f"corruption {self.corruption}", do="leave predict at 1.0")
        self._check()

    def _check(self) -> None:
        """Refuse settings that do not go together."""
        check_visits(self)

    def __call__(
        self, rows: Rows | Pieces | AnnotatedBatch, *,
        step: int = 0, total_steps: int | None = None, epoch: int | None = None, place: Array | None = None,
    ) -> MaskedBatch:  # fmt: skip
        """Mask rows.

        Args:
            rows: a list of dicts with ``input_ids``, ``example_id`` and layers; or one dict of (B, L) tensors
                (packed rows: ``example_id`` (B, L), one id per document piece); or ``Pieces``.
            step: the optimiser step the batch is for: where the schedule stands.
            total_steps: how many there will be; needed by schedules that change.
            epoch: the pass over the data; None mixes the step into the key.
            place: (B,) the place of each row in the order of the epoch, which masked diffusion asks for.

        Returns:
            A batch on the device of the rows. A packed row that has grown past its plan loses the end of its text, but
            not its last special token. The masks of its pieces are what they would be alone.

        Raises:
            MaskwiseError: missing or misshapen layers, ids outside the vocabulary, weights that are no weights.
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

    def choose(self, batch: AnnotatedBatch, keys: Keys, moment: Moment) -> tuple[Selection, Array, Array | None]:
        """The first two choices alone: selection, ratios (P,) and, in masked diffusion, loss weights (T,)."""
        if self.visits != "random":
            return revisited(self, batch, moment)
        ratio = self.ratio.rows(keys.per_piece(Purpose.RATIO), moment.step, moment.total_steps)
        ratio = self.policy.ratios(ratio, keys, moment)
        units = self.policy.units(batch, keys, replace(moment, ratio=ratio))
        choice = select(units, ratio, keys, budget=self.budget, fill=self.fill, min_targets=self.min_targets)
        return choice, ratio, None

    def describe(self) -> dict[str, str | int]:
        """The choices as plain values, for cards and reports."""
        more = {"keep": self.keep or "random", "visits": self.visits}  # where they differ from what is usual
        return {
            "policy": str(self.policy), "ratio": str(self.ratio), "budget": self.budget,
            "corruption": str(self.corruption), "fill": self.fill, "min_targets": self.min_targets,
            "seed": self.seed, "predict": str(self.predict), **{n: v for n, v in more.items() if v != "random"},
        }  # fmt: skip

    def __repr__(self) -> str:
        return f"Masker({', '.join(f'{name}={value}' for name, value in self.describe().items())})"
