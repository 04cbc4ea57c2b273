"""Training with several arms: a sampler draws an arm for each batch, and learns from probes.

An arm is an objective with its masking; all arms share one model. Each arm has its own source, with
its own layout (packed blocks, or one text per row) and order. Schedules follow the step of the run,
not of the arm.

A probe is a set of held-out rows that are masked only once: the losses before and after several
updates are thus measured on the same examples and masks. Each run selects different rows. (The
released code of MOMETAS draws new examples and masks each time, which adds more noise than the loss
changes.) A probe is measured in two halves, whose agreement estimates the noise in the reward
(``samplers.base.reliability``). Its cost is logged: a forward pass of 64 rows for each arm (96 for
``cse``) every ``sampler.every`` steps. Rules are also probed if there are enough rows, to show
their effect on every objective; this counts as evaluation, not as a training cost.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Mapping
from contextlib import nullcontext
from copy import deepcopy
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from maskwise.devices import TensorDict, Tensors
from maskwise.errors import MaskwiseError
from maskwise.keys import fold, permutation
from maskwise.masking import MaskedBatch
from maskwise.masking.policies.base import Facts, Learner, Learners, Point
from maskwise.objectives import Objective, Outcome
from maskwise.objectives.base import counted
from maskwise.samplers import Sampler
from maskwise.samplers.base import reliability
from maskwise.training.checkpoint import restore, states
from maskwise.training.data import MaskedSource, Rows
from maskwise.training.settings import TrainingSettings
from maskwise.weights import check_finite

PROBE_SEED = 0x9208


class Arms(Objective):
    """Several objectives over one model; each batch is scored by its own arm's objective.

    Args:
        arms: the objectives, keyed by name; all share one ``model`` and have separate heads.
    """

    def __init__(self, arms: Mapping[str, Objective]):
        super().__init__()
        self.model = next(iter(arms.values())).model
        self.names = tuple(arms)
        self.members = nn.ModuleList(arms.values())

    def arm(self, name: str) -> Objective:
        """The objective of an arm."""
        return self.members[self.names.index(name)]  # type: ignore[return-value]

    def forward(self, batch: MaskedBatch) -> Outcome:
        return self.arm(batch.arm)(batch)

    def heads(self) -> TensorDict:
        """The heads' parameters, keyed by arm and name; the model's checkpoint does not include
        them."""
        of_model = set(self.model.parameters())
        heads = {}
        for name in self.names:
            for key, value in self.arm(name).named_parameters():
                if value not in of_model:
                    heads[f"{name}.{key}"] = value.detach()
        return heads

    def load_heads(self, file: Path) -> None:
        """Load heads that an earlier run saved for arms with the same names."""
        saved = load_file(file)
        check_finite(saved, file)
        for name, value in self.heads().items():
            # New arms, and heads with a different size, keep their initial weights.
            if name in saved and saved[name].shape == value.shape:
                value.copy_(saved[name])


class ArmsSource:
    """Makes batches for the arm that the sampler draws at each step.

    Args:
        sources: the source of each arm.
        sampler: a sampler of the same arms.
        settings: the settings, which have the number of steps.

    Attributes:
        untaught: copies of the maskers, made before any policy learned. Probes use these copies,
            because a resumed run builds its probe again and needs the same masks.
    """

    def __init__(
        self, sources: Mapping[str, MaskedSource], sampler: Sampler, settings: TrainingSettings
    ):
        self.sources = sources
        self.sampler = sampler
        self.settings = settings
        self.untaught = deepcopy({arm: source.masker for arm, source in sources.items()})
        # All sources have the same kinds of facts.
        first = next(iter(sources.values()))
        self.facts = first.facts
        self.summarise = first.summarise

    @property
    def ahead(self) -> int:
        """1, or 0 if the sampler or a policy learns."""
        return 0 if self.sampler.every or self.learners() else 1

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """The micro-batches for ``step``, all for one arm, which is the same on every rank."""
        arm = self.sampler.draw(step, self.settings.steps)
        batches = self.sources[arm].batches(
            step,
            rank=rank,
            ranks=ranks,
        )
        for batch in batches:
            batch.arm = arm
        return batches

    def learners(self) -> Learners:
        """The policies that learn, each from its own arm's batches."""
        learners = {}
        for arm, source in self.sources.items():
            for name, learner in source.learners().items():
                learner.arm = arm
                learners[f"{arm} {name}"] = learner
        return learners

    def places(self) -> Learners:
        """The streams, whose positions are saved; arms with the same rows share a stream."""
        streams: Learners = {}
        for source in self.sources.values():
            streams |= source.places()
        return streams


def probe_rows(wanted: int, *, ranks: int = 1, twins: bool = False) -> int:
    """The number of rows in an arm's probe over all ranks: ``wanted``, rounded up so that its two
    halves are equal on every rank.

    With ``twins`` (an objective that reads half of the rows twice), each half has an even number of
    rows on every rank, at least four.
    """
    least = 2 if twins else 1
    unit = 2 * least * ranks
    return max(math.ceil(wanted / unit), least) * unit


class Probe:
    """The losses of all arms on two halves of held-out rows.

    Args:
        objective: the arms.
        source: the training data of the arms, with a sampler of the same arms.
        held_out: for each arm, rows that are never trained on: a probe on training text would
            reward memorisation. There are at least as many free rows as in ``sizes``.
        sizes: for each arm, the number of rows over all ranks (``probe_rows``).
        skip: for each arm, the indices of held-out rows that are reserved for evaluating the model.
        fresh: whether to use new rows and masks each time, the current policies, and no dropout for
            ``cse``, as the released code does.
        rank, ranks: this rank and the number of ranks; each rank measures its share of the rows.
    """

    def __init__(
        self,
        objective: Arms,
        source: ArmsSource,
        held_out: Mapping[str, Rows],
        *,
        sizes: Mapping[str, int],
        skip: Mapping[str, Iterable[int]],
        fresh: bool = False,
        rank: int = 0,
        ranks: int = 1,
    ):
        self.objective = objective
        self.held_out = held_out
        self.maskers = source.untaught
        if fresh:
            self.maskers = {arm: each.masker for arm, each in source.sources.items()}
        self.sizes = sizes
        # Masks have the ratio of the middle step.
        self.total_steps = source.settings.steps
        self.fresh = fresh
        self.rank = rank
        self.ranks = ranks
        self.rows: TensorDict = {}
        # The sampler expects losses in the order of its arms.
        for arm in source.sources:
            free = torch.ones(len(held_out[arm]), dtype=torch.bool)
            free[list(skip.get(arm, ()))] = False
            numbers = free.nonzero().view(-1)
            seed = fold(source.settings.seed, PROBE_SEED)
            self.rows[arm] = numbers[permutation(len(numbers), seed=seed, epoch=0)]
        self.batches = {} if fresh else {arm: self._batches(arm, 0) for arm in self.rows}

    def __call__(self, turn: int) -> Tensor:
        """(2, 4, K) on the device: for each half, the sums (``_counted``) over this rank's rows.

        Args:
            turn: the index of the probe within the run; ignored unless probes are ``fresh``.
        """
        if not self.fresh:
            turn = 0
        sums = []
        # Only the host's generator is restored: every training step seeds the device's generator.
        with self.objective.judging(), torch.random.fork_rng(devices=()):
            for arm in self.rows:
                batches = self.batches.get(arm) or self._batches(arm, turn)
                # Dropout in ``cse`` and replacements in ``rtd`` must be the same in all probes.
                torch.manual_seed(fold(PROBE_SEED, turn))
                objective = self.objective.arm(arm)
                dropout = objective.without_dropout() if self.fresh else nullcontext()
                with dropout:
                    halves = [_counted(half, objective(half)) for half in batches]
                sums.append(torch.stack(halves))
        return torch.stack(sums, 2)

    def _batches(self, arm: str, turn: int) -> list[MaskedBatch]:
        """The two halves of an arm's probe."""
        rows = self.rows[arm]
        if self.fresh:
            rows = rows.roll(-(fold(PROBE_SEED, turn) % len(rows)))
        chosen = rows[: self.sizes[arm]]
        device = next(self.objective.parameters()).device
        middle = self.total_steps // 2
        halves = []
        for half in (chosen[::2], chosen[1::2]):
            pieces = self.held_out[arm].batch(half[self.rank :: self.ranks])
            batch = self.maskers[arm](
                pieces,
                step=middle,
                total_steps=self.total_steps,
                epoch=turn,
            )
            halves.append(batch.to(device))
        return halves


class SamplerLearner(Learner):
    """Updates a sampler from probes, every ``sampler.every`` updates of the model.

    Args:
        sampler: a sampler that learns or follows a rule.
        probe: a function that makes a ``Probe`` once the model is on its device; None for no
            probes.
        watched_every: the number of updates between two probes of a rule; 0 for no probes.
    """

    kept = ("before", "line_sums", "run_sums", "probe_sums", "clock", "rewards")

    def __init__(
        self, sampler: Sampler, probe: Callable[[], Probe] | None, *, watched_every: int = 0
    ):
        self.sampler = sampler
        self.every = (sampler.every or watched_every) if probe else 0
        self._make = probe
        self._probe: Probe | None = None
        count = len(sampler.arms)
        # Each arm's ``_counted`` and steps: since the last line, over the run, and over its probes.
        self.line_sums, self.run_sums, self.probe_sums = torch.zeros(3, 5, count).double()
        # The arm and the sums of each micro-batch since the last ``_take_in``, on the device.
        self.seen: list[tuple[int, Tensor]] = []
        self.steps = torch.zeros(1, count).double()
        # (3, K): the latest losses on the whole probe and on its halves.
        self.before = torch.full(
            (3, count),
            torch.nan,
            dtype=torch.float64,
        )
        # (T, 2): the reward of each rollout on each half.
        self.rewards = torch.zeros(0, 2).double()
        # The step of the last probe; the seconds spent on probes, and on the whole run.
        self.clock = torch.zeros(3).double()
        self._since: float | None = None
        self.notes: list[str] = []
        self.now = Point(0, 0, torch.clone)

    def observe(self, batch: MaskedBatch, outcome: Outcome) -> None:
        self.seen.append((self.sampler.arms.index(batch.arm), _counted(batch, outcome)))

    def after(self, now: Point) -> None:
        self.now = now
        if self.seen:
            # All micro-batches of a step have the same arm, and count as one step.
            self.steps[0, self.seen[-1][0]] += 1
        if self.every and now.done % self.every == 0:
            self._learn(now)
        tick = time.perf_counter()
        # The first call starts the clock.
        self.clock[2] += tick - (self._since or tick)
        self._since = tick

    def _take_in(self) -> None:
        """Add all ranks' counts to the sums; waits for the device. Every rank calls this."""
        if not self.seen:
            return
        arms, sums = zip(*self.seen)
        by_arm = torch.zeros_like(self.line_sums[:4])
        by_arm.index_add_(1, torch.tensor(arms), torch.stack(sums, 1).cpu().double())
        # Every rank draws the same arm, so steps are not summed over ranks.
        new = torch.cat([self.now.agree(by_arm), self.steps])
        self.line_sums = self.line_sums + new
        self.run_sums = self.run_sums + new
        self.seen = []
        self.steps = torch.zeros_like(self.steps)

    def _learn(self, now: Point) -> None:
        assert self._make is not None
        began = time.perf_counter()
        # The probe is built here, because the model was not on its device earlier.
        self._probe = self._probe or self._make()
        halves = now.agree(self._probe(now.done // self.every))
        probed = halves.sum(0)
        sums = torch.cat([probed[None], halves])
        losses = sums[:, 0] / sums[:, 1].clamp(min=1)
        if self.sampler.every:
            if now.done:
                self._teach(losses)
            self.probe_sums = self.probe_sums + torch.cat([probed, torch.ones_like(probed[:1])])
            self.clock[1] += time.perf_counter() - began
        self.before = losses
        self.clock[0] = now.done

    def _teach(self, losses: Tensor) -> None:
        """Update the sampler, and record the rewards on the two halves."""
        sampler = self.sampler
        rewards = [sampler.reward(a, b) for a, b in zip(self.before[1:], losses[1:])]
        # Rules have no reward.
        if None not in rewards:
            self.rewards = torch.cat([self.rewards, self.rewards.new_tensor([rewards])])
        sampler.update(self.before[0], losses[0])
        # A line of metrics may cover several sampler updates; each note appears once.
        self.notes = list(dict.fromkeys([*self.notes, *sampler.notes]))

    def facts(self) -> Facts:
        """The sampler's fields for a line of metrics; docs/files.md describes them."""
        self._take_in()
        total, divisor, _, _, steps = self.line_sums
        # Use the next step's probabilities; after the last step, schedules may have ended at 0.
        step = min(self.now.done, self.now.total_steps - 1)
        probabilities = self.sampler.probabilities(step, self.now.total_steps)
        found: dict[str, object] = {
            "probabilities": self._named(probabilities),
            "arm_losses": self._named(total / divisor),
            "arm_steps": dict(zip(self.sampler.arms, steps.long().tolist())),
        }
        if self.every:
            found["probe_losses"] = self._named(self.before[0])
            found["probe_step"] = int(self.clock[0])
            if self.sampler.every:
                _, probing, running = self.clock.tolist()
                found["probe_seconds"] = round(probing, 3)
                if running > 0:
                    found["probe_share"] = round(min(1.0, probing / running), 4)
                trust = reliability(self.rewards)
                if trust is not None:
                    found["reliability"] = round(trust, 3)
        if self.notes:
            found["notes"] = self.notes
        self.line_sums = torch.zeros_like(self.line_sums)
        self.notes = []
        return found

    def _named(self, values: Tensor) -> dict[str, float]:
        """Return the values keyed by arm, without NaN."""
        named = zip(
            self.sampler.arms,
            values.tolist(),
            strict=True,
        )
        return {name: round(value, 6) for name, value in named if value == value}

    def spent(self) -> dict[str, dict[str, int]]:
        """For each arm, over all ranks: ``steps``, ``tokens`` and ``targets`` in the run, and the
        same counts for the probes that the sampler learned from.
        """
        self._take_in()
        names = ("targets", "tokens", "steps", "probe_targets", "probe_tokens", "probes")
        counts_K = torch.cat([self.run_sums[2:], self.probe_sums[2:]]).T.long().tolist()
        spent = {}
        for arm, counts in zip(self.sampler.arms, counts_K):
            spent[arm] = dict(zip(names, counts))
        return spent

    def state_dict(self) -> TensorDict:
        self._take_in()
        state = states({"sampler": self.sampler})
        for name in self.kept:
            state[name] = getattr(self, name)
        return state

    def load_state_dict(self, state: Tensors) -> None:
        self.seen = []
        self.steps = torch.zeros_like(self.steps)
        restore({"sampler": self.sampler}, state)
        for name in self.kept:
            setattr(self, name, state[name])


def _counted(batch: MaskedBatch, outcome: Outcome) -> Tensor:
    """(4,) on the device: the sum of losses, its divisor, and the numbers of targets and tokens.

    The last three are whole numbers below 2²⁴, so they are exact in single precision.
    """
    loss = outcome.loss.detach()
    counts = (outcome.targets, counted(batch.targets, loss), counted(batch.tokens, loss))
    return torch.stack([loss, *(count.to(loss.dtype) for count in counts)])


def check_enough(arm: str, free: int, *, of: int, size: int) -> None:
    """Raise if a probe needs more held-out rows than are ``free``."""
    if free < size:
        raise MaskwiseError(
            f"the probe of arm {arm!r} has too few held-out rows",
            got=f"{free} of {of}: the other rows are for evaluation",
            allowed=f"≥ {size}",
            do="raise corpus.held_out, or lower evaluation.rows",
        )
