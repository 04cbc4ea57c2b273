"""Training on several arms: a sampler says whose batch comes next, and learns from probes of all of
them.

An arm is an objective with its masking, over the one shared model. Every arm has its own source, so
it reads its own rows (packed blocks, or a text a row) in its own order; at each step one of them
gives the batch. The step is the run's, not the arm's: schedules run over all of training.

A probe is held-out rows, masked once: the same examples and the same masks before and after; other
rows for every run. (MOMETAS as released measures fresh examples with fresh masks each time; that
noise is larger than the change.) It is measured in two halves, whose agreement says how much of the
reward is no chance (``samplers.base.reliability``). Its
cost: a forward pass of 64 rows for each arm (of 48 pairs for ``cse``), every ``sampler.every``
    steps; it is logged.
Rules are probed too, where there is room for it, so that a study can show what each did to every
objective; that is evaluation, and no cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.families import check_finite
from maskwise.keys import fold, permutation
from maskwise.masking import MaskedBatch
from maskwise.objectives import Objective, Outcome
from maskwise.objectives.base import counted
from maskwise.samplers import Sampler
from maskwise.samplers.base import reliability
from maskwise.training.data import MaskedSource, Rows
from maskwise.training.learners import Learner, Point
from maskwise.training.settings import TrainingSettings

PROBE_SEED = 0x9208


class Arms(Objective):
    """The losses of whichever arm a batch is for.

    Args:
        arms: by name; all have the same ``model``. Their heads are theirs, so an arm may stand here
            twice, with another policy or ratio, and share or not share its head as it was built.
    """

    def __init__(self, arms: Mapping[str, Objective]):
        super().__init__()
        self.model = next(iter(arms.values())).model
        assert all(arm.model is self.model for arm in arms.values())
        self.names = tuple(arms)
        self.members = nn.ModuleList(arms.values())

    def arm(self, name: str) -> Objective:
        """The objective of that name."""
        return self.members[self.names.index(name)]  # type: ignore[return-value]

    def forward(self, batch: MaskedBatch) -> Outcome:
        outcome: Outcome = self.arm(batch.arm)(batch)
        return outcome

    def heads(self) -> dict[str, Tensor]:
        """What is not the model's, by arm: what drops out when a checkpoint becomes an ordinary
        encoder.
        """
        own = {id(p) for p in self.model.parameters()}
        return {
            f"{name}.{key}": value.detach()
            for name, member in zip(self.names, self.members, strict=True)
            for key, value in member.named_parameters()
            if id(value) not in own
        }

    def go_on(self, file: Path) -> None:
        """Take over the heads that a training of arms of these names has left; new arms keep their
        new ones.
        """
        saved = load_file(file)
        check_finite(saved, file)
        for name, value in self.heads().items():
            if name in saved and saved[name].shape == value.shape:
                value.copy_(saved[name])


class ArmsSource:
    """Batches of whichever arm is drawn.

    Args:
        sources: by arm.
        sampler: over the same arms.
        settings: for the number of steps.
    """

    def __init__(
        self, sources: Mapping[str, MaskedSource], sampler: Sampler, settings: TrainingSettings
    ):
        assert tuple(sources) == sampler.arms
        self.sources, self.sampler, self.settings = sources, sampler, settings
        self.untaught = deepcopy({arm: source.masker for arm, source in sources.items()})
        """The maskers as they are before any policy learns. Probes mask with them: a run that was
        stopped makes its probe anew, and must find the same masks."""

    @property
    def ahead(self) -> int:
        """One step, or none where the sampler or a policy learns."""
        return 0 if self.sampler.every or self.learners() else 1

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """The micro-batches of ``step``, all of one arm, the same arm on every rank."""
        arm = self.sampler.draw(step, self.settings.steps)
        made = self.sources[arm].batches(step, rank=rank, ranks=ranks)
        for batch in made:
            batch.arm = arm
        return made

    def learners(self) -> dict[str, Learner]:
        """The policies that learn, each from the batches of its own arm."""
        return {
            f"{arm} {name}": ArmLearner(learner, arm)
            for arm, source in self.sources.items()
            for name, learner in source.learners().items()
        }

    def places(self) -> dict[str, Learner]:
        """What remembers where streams stand; arms that read the same rows share one."""
        return {
            name: place
            for source in self.sources.values()
            for name, place in source.places().items()
        }

    def facts(self, batches: Sequence[MaskedBatch]) -> dict[str, float]:
        """Those of the masking, over all arms."""
        return next(iter(self.sources.values())).facts(batches)

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return next(iter(self.sources.values())).summarise(sums)


class ArmLearner(Learner):
    """A learner that sees the batches of one arm only."""

    def __init__(self, learner: Learner, arm: str):
        self.learner, self.arm = learner, arm

    def observe(self, batch: MaskedBatch, outcome: Outcome) -> None:
        if batch.arm == self.arm:
            self.learner.observe(batch, outcome)

    def meet(self, objective: Arms) -> None:
        self.learner.meet(objective.arm(self.arm))

    def after(self, now: Point) -> None:
        self.learner.after(now)

    def facts(self) -> Mapping[str, object]:
        return {f"{self.arm} {name}": value for name, value in self.learner.facts().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)


def probe_rows(wanted: int, *, ranks: int = 1, twins: bool = False) -> int:
    """Rows of an arm's probe over all ranks: no fewer than are wanted, and two halves with as many
    on every rank.

    With ``twins`` (its objective reads half of the rows, each of them twice) every half has an even
    number on every rank, and four at least.
    """
    unit = (4 if twins else 2) * ranks
    return max(-(-wanted // unit), 2 if twins else 1) * unit


class Probe:
    """The losses of all arms on held-out rows, by halves, which tell how much of a difference is
    chance.

    Args:
        objective: the arms.
        sources: by arm; what is trained on.
        maskers: by arm; those of ``sources`` if not said. See ``ArmsSource.untaught``.
        held_out: by arm, rows that are never trained on.
        sizes: by arm, rows over all ranks (``probe_rows``).
        skip: by arm, the numbers of held-out rows that judge the model, and so are not used here.
        total_steps: of the run: masks are those of its middle.
        seed: of the run: every run has rows of its own.
        fresh: other rows and other masks each time, and no dropout for ``cse`` either, as in the
            released code.
        rank, ranks: each rank measures its share of the rows.

    Raises:
        MaskwiseError: fewer rows than an arm's size, or documents that are in the training data
            too.
    """

    def __init__(
        self,
        objective: Arms,
        sources: Mapping[str, MaskedSource],
        held_out: Mapping[str, Rows],
        *,
        sizes: Mapping[str, int],
        skip: Mapping[str, Iterable[int]],
        total_steps: int,
        seed: int = 0,
        fresh: bool = False,
        rank: int = 0,
        ranks: int = 1,
        maskers: Mapping[str, Any] | None = None,
    ):
        self.objective, self.sources, self.held_out = objective, sources, held_out
        self.maskers = maskers or {arm: source.masker for arm, source in sources.items()}
        self.sizes, self.total_steps, self.fresh = sizes, total_steps, fresh
        self.rank, self.ranks = rank, ranks
        self.rows: dict[str, Tensor] = {}
        for arm, source in sources.items():
            free = torch.ones(len(held_out[arm]), dtype=torch.bool)
            free[torch.as_tensor(list(skip.get(arm, ())), dtype=torch.int64)] = False
            rows = free.nonzero().view(-1)
            self.rows[arm] = rows[permutation(len(rows), seed=fold(seed, PROBE_SEED), epoch=0)]
            check_enough(arm, len(rows), of=len(held_out[arm]), size=sizes[arm])
            both = np.intersect1d(source.rows.documents, held_out[arm].documents)
            if len(both):
                what = f"the probe of arm {arm!r} and its training data share documents"
                raise MaskwiseError(what, got=f"{len(both)}", do="give the probe text of its own")
        self.batches = {} if fresh else {arm: self._batches(arm, 0) for arm in sources}

    def __call__(self, turn: int) -> Tensor:
        """(2, 4, K) on the device: of either half each arm's sums (``_counted``), of this rank's
        rows.

        Args:
            turn: which probe of the run; it only matters for fresh ones.
        """
        parts = []
        # What an accelerator draws from needs no care: every step of the training sets its seed.
        with self.objective.judging(), torch.random.fork_rng(devices=()):
            for arm in self.sources:
                # Dropout (cse) and replacements (rtd) are drawn alike, before and after.
                torch.manual_seed(fold(PROBE_SEED, turn if self.fresh else 0))
                halves = self._batches(arm, turn) if self.fresh else self.batches[arm]
                one = self.objective.arm(arm)
                with one.without_dropout() if self.fresh else nullcontext():
                    parts.append(torch.stack([_counted(half, one(half)) for half in halves]))
        return torch.stack(parts, 2)

    def _batches(self, arm: str, turn: int) -> list[MaskedBatch]:
        """The two halves of an arm's probe."""
        rows = self.rows[arm]
        start = fold(PROBE_SEED, turn) % len(rows) if self.fresh else 0
        chosen = rows.roll(-start)[: self.sizes[arm]]
        middle = {"step": self.total_steps // 2, "total_steps": self.total_steps}
        device = next(self.objective.parameters()).device
        return [
            self.maskers[arm](
                self.held_out[arm].batch(half[self.rank :: self.ranks]), **middle, epoch=turn
            ).to(device)
            for half in (chosen[::2], chosen[1::2])
        ]


class SamplerLearner(Learner):
    """Teaches a sampler from probes, every ``sampler.every`` updates
    (``training.learners.Learner``).

    Args:
        sampler: that learns, or follows a rule.
        probe: makes a ``Probe`` once the model is where it trains; None: none is wanted.
        watched_every: updates between two probes of a rule, which learns nothing from them; 0 for
            none.
    """

    kept = ("before", "line_sums", "run_sums", "probe_sums", "clock", "rewards")

    def __init__(
        self, sampler: Sampler, probe: Callable[[], Probe] | None, *, watched_every: int = 0
    ):
        self.sampler, self._make = sampler, probe
        self._probe: Probe | None = None
        self.every = (sampler.every or watched_every) if probe else 0
        # ``_counted`` and steps, by arm: since the last line, of the run, and of its probes.
        self.line_sums, self.run_sums, self.probe_sums = torch.zeros(
            3, 5, len(sampler.arms), dtype=torch.float64
        )
        # The arm and sums of each micro-batch that no rank has asked for yet; they stay on the
        # device. Steps, by arm.
        self.seen: list[tuple[int, Tensor]] = []
        self.steps = torch.zeros(1, len(sampler.arms), dtype=torch.float64)
        # (3, K): the latest losses on the probe, and on its halves.
        self.before = torch.full((3, len(sampler.arms)), torch.nan, dtype=torch.float64)
        # (T, 2): what each rollout gained on either half.
        self.rewards = torch.zeros(0, 2, dtype=torch.float64)
        # The step of the last probe; seconds spent on probes, and on the run with them.
        self.clock = torch.zeros(3, dtype=torch.float64)
        self._since: float | None = None
        self.notes: list[str] = []
        self.step: tuple[int, int | None] = (0, None)

    def observe(self, batch: MaskedBatch, outcome: Outcome) -> None:
        self.seen.append((self.sampler.arms.index(batch.arm), _counted(batch, outcome)))

    def after(self, now: Point) -> None:
        self.step, self.agree = (now.done, now.total_steps), now.agree
        if self.seen:  # one step, in however many micro-batches
            self.steps[0, self.seen[-1][0]] += 1
        if self.every and now.done % self.every == 0:
            self._learn(now)
        tick = time.perf_counter()
        self.clock[2] += tick - (self._since or tick)
        self._since = tick

    def _take_in(self) -> None:
        """Add up what all ranks have seen, for which the host waits for the device; every rank
        calls this.
        """
        if not self.seen:
            return
        own = torch.zeros_like(self.line_sums[:4])
        arms = torch.tensor([arm for arm, _ in self.seen])
        own.index_add_(1, arms, torch.stack([sums for _, sums in self.seen], 1).cpu().double())
        # Every rank draws the same arm, so steps are not added up.
        both = torch.cat([self.agree(own), self.steps])
        self.line_sums, self.run_sums = self.line_sums + both, self.run_sums + both
        self.seen, self.steps = [], torch.zeros_like(self.steps)

    def _learn(self, now: Point) -> None:
        assert self._make is not None
        began = time.perf_counter()
        self._probe = self._probe or self._make()
        halves = now.agree(self._probe(now.done // self.every))
        probed = halves.sum(0)
        sums = torch.cat([probed[None], halves])
        losses = sums[:, 0] / sums[:, 1].clamp(min=1)
        if self.sampler.every:
            if now.done:
                gained = [self.sampler.reward(a, b) for a, b in zip(self.before[1:], losses[1:])]
                if None not in gained:
                    self.rewards = torch.cat(
                        [self.rewards, torch.tensor([gained], dtype=torch.float64)]
                    )
                self.sampler.update(self.before[0], losses[0])
                # A line of metrics may cover several updates; each thing is said once.
                self.notes += [note for note in self.sampler.notes if note not in self.notes]
            self.probe_sums = self.probe_sums + torch.cat([probed, torch.ones_like(probed[:1])])
            self.clock[1] += time.perf_counter() - began
        self.before, self.clock[0] = losses, now.done

    def facts(self) -> Mapping[str, object]:
        """By arm: ``probabilities``, and since the last line ``arm_losses`` and ``arm_steps``; then
        ``probe_losses``, the ``probe_step`` they are of, and ``notes``; of samplers that learn
        ``probe_seconds`` so far, the share of the run that they are, and the ``reliability`` of the
        reward so far."""
        self._take_in()
        names, (total, divisor, _, _, steps) = self.sampler.arms, self.line_sums
        done, last = self.step
        # Of the step that comes next; behind the last there is none, and shares may have come to
        # nothing.
        step = done if last is None else min(done, last - 1)
        found: dict[str, object] = {
            "probabilities": _named(names, self.sampler.probabilities(step, last)),
            "arm_losses": _named(names, total / divisor),
            "arm_steps": {arm: int(n) for arm, n in zip(names, steps.tolist(), strict=True)},
        }
        if self.every:
            found |= {
                "probe_losses": _named(names, self.before[0]),
                "probe_step": int(self.clock[0]),
            }
        if self.every and self.sampler.every:
            found["probe_seconds"] = round(float(self.clock[1]), 3)
            if float(self.clock[2]) > 0:
                found["probe_share"] = round(min(1.0, float(self.clock[1] / self.clock[2])), 4)
            if (trust := reliability(self.rewards)) is not None:
                found["reliability"] = round(trust, 3)
        if self.notes:
            found["notes"] = self.notes
        self.line_sums, self.notes = torch.zeros_like(self.line_sums), []
        return found

    def spent(self) -> dict[str, dict[str, Any]]:
        """By arm, over all ranks: ``steps``, ``tokens`` and ``targets`` of the run, and of the
        probes that taught.
        """
        self._take_in()
        names = ("targets", "tokens", "steps", "probe_targets", "probe_tokens", "probes")
        counts = torch.cat([self.run_sums[2:], self.probe_sums[2:]]).T.long().tolist()
        return {
            arm: dict(zip(names, mine, strict=True))
            for arm, mine in zip(self.sampler.arms, counts, strict=True)
        }

    def state_dict(self) -> dict[str, Tensor]:
        self._take_in()
        mine = {name: getattr(self, name) for name in self.kept}
        return {**mine, **{f"sampler.{name}": t for name, t in self.sampler.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.seen, self.steps = [], torch.zeros_like(self.steps)
        for name in self.kept:
            # states of older versions have other sums
            setattr(self, name, state.get(name, getattr(self, name)))
        theirs = {
            name.partition(".")[2]: t for name, t in state.items() if name.startswith("sampler.")
        }
        self.sampler.load_state_dict(theirs)


def _counted(batch: MaskedBatch, outcome: Outcome) -> Tensor:
    """(4,) on the device: losses, what they are divided by, targets, and tokens of the text that
    were read.

    The last three are whole numbers below 2²⁴, which single precision holds.
    """
    loss = outcome.loss.detach()
    known = (counted(number, loss) for number in (batch.targets, batch.tokens))
    return torch.stack([loss, *(number.to(loss.dtype) for number in (outcome.targets, *known))])


def check_enough(arm: str, free: int, *, of: int, size: int) -> None:
    """
    Raises:
        MaskwiseError: fewer rows are ``free``, ``of`` those that are held out, than a probe has.
    """
    if free < size:
        raise MaskwiseError(
            f"the probe of arm {arm!r} has too few held-out rows",
            got=f"{free} of {of}: others judge the model",
            allowed=f"≥ {size}",
            do="raise corpus.held_out, or lower evaluation.rows",
        )


def _named(names: Iterable[str], values: Tensor) -> dict[str, float]:
    return {name: round(v, 6) for name, v in zip(names, values.tolist(), strict=True) if v == v}
