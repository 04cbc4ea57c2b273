"""Training with several objectives: a sampler draws one for each step, and may learn from losses.

All objectives share one model, but each has its own masking settings and its own source of batches,
which may have another layout (packed rows, or one text per row) and another order. Schedules use
the step of the run, not the number of steps of the objective.

A *probe* measures the losses of all objectives on a set of held-out rows. The rows are masked only
once, so that losses before and after several updates are measured on the same tokens. The rows
depend on the seed of the run. (The released code of MOMETAS draws new rows and masks for every
probe. The noise of this choice is larger than the change of the loss.) A probe has two halves. How
well the halves agree shows how much noise is in the sampler's reward
(``samplers.base.reliability``).

If a sampler learns, each of its probes costs a forward pass of 64 rows per objective (96 rows for
``cse``), and the log includes this cost. If a sampler does not learn, probes are made only to show
the losses of all objectives, and only if there are enough rows. Their cost is counted as
evaluation.
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

from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.masking import MaskedBatch
from maskwise.masking.draws import fold, permutation
from maskwise.models.flops import Flops
from maskwise.models.weights import check_finite
from maskwise.objectives.base import Loss, Objective, as_scalar
from maskwise.samplers import Sampler
from maskwise.samplers.base import reliability
from maskwise.training.checkpoint import restore, states
from maskwise.training.data import MaskedSource, Rows
from maskwise.training.learners import Facts, Learner, Learners, Progress
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows

PROBE_SEED = 0x9208


class SeveralObjectives(Objective):
    """Several objectives for one model. ``MaskedBatch.objective`` selects one.

    Args:
        objectives: the objectives by name. They share one ``model`` and have separate heads.
    """

    def __init__(self, objectives: Mapping[str, Objective]):
        super().__init__()
        self.model = next(iter(objectives.values())).model
        self.names = tuple(objectives)
        self.members = nn.ModuleList(objectives.values())

    def named(self, name: str) -> Objective:
        """Return the objective with this name."""
        return self.members[self.names.index(name)]  # type: ignore[return-value]

    def forward(self, batch: MaskedBatch) -> Loss:
        return self.named(batch.objective)(batch)

    def heads(self) -> TensorDict:
        """Return the parameters outside the model, keyed by ``objective.name``.

        Checkpoints of the model do not include these parameters.
        """
        of_model = set(self.model.parameters())
        heads = {}
        for name in self.names:
            for key, value in self.named(name).named_parameters():
                if value not in of_model:
                    heads[f"{name}.{key}"] = value.detach()
        return heads

    def load_heads(self, file: Path) -> None:
        """Load the heads that an earlier run saved for objectives with the same names."""
        saved = load_file(file)
        check_finite(saved, file)
        for name, value in self.heads().items():
            # If an objective is new, or if its head has another size, the head keeps its initial
            # weights.
            if name in saved and saved[name].shape == value.shape:
                value.copy_(saved[name])


class SeveralSources:
    """Makes the batches of each step for the objective that the sampler draws.

    Args:
        sources: the source of batches of each objective, by name.
        sampler: a sampler with the same objectives in the same order.
        settings: the training settings, for the number of steps.

    Attributes:
        untaught: copies of the maskers, whose policies never learn. Probes use these copies. A
            resumed run makes its probe again, and thus gets the same masks.
    """

    def __init__(
        self, sources: Mapping[str, MaskedSource], sampler: Sampler, settings: TrainingSettings
    ):
        self.sources = sources
        self.sampler = sampler
        self.settings = settings
        self.untaught = deepcopy({name: source.masker for name, source in sources.items()})
        # All sources return the same statistics.
        first = next(iter(sources.values()))
        self.facts = first.facts
        self.summarise = first.summarise

    def ahead(self, step: int) -> bool:
        """Return whether the batches of ``step`` may be made during the step before it.

        They may not if a masking policy learns, or if a probe before ``step`` updates the sampler.
        """
        every = self.sampler.every
        after_probe = every > 0 and step % every == 0
        return not after_probe and all(each.ahead(step) for each in self.sources.values())

    def batches(self, step: int, *, rank: int, ranks: int) -> list[MaskedBatch]:
        """Return the micro-batches of ``step``. All of them, on all ranks, are for one
        objective.
        """
        drawn = self.sampler.draw(step, self.settings.steps)
        batches = self.sources[drawn].batches(
            step,
            rank=rank,
            ranks=ranks,
        )
        for batch in batches:
            batch.objective = drawn
        return batches

    def learners(self) -> Learners:
        """Return the learners of all masking policies. Each learns only from batches of its
        objective.
        """
        learners = {}
        for objective, source in self.sources.items():
            for name, learner in source.learners().items():
                learner.objective = objective
                learners[f"{objective} {name}"] = learner
        return learners

    def streams(self) -> dict[str, StreamedRows]:
        """Return the streams by name. Objectives may share a stream."""
        streams: dict[str, StreamedRows] = {}
        for source in self.sources.values():
            streams |= source.streams()
        return streams


def probe_rows(wanted: int, *, ranks: int, twins: bool) -> int:
    """Return the number of rows in the probe of an objective, over all ranks.

    Both halves of a probe need the same number of rows on every rank, so ``wanted`` is rounded up.

    Args:
        wanted: the wanted number of rows.
        ranks: the number of ranks.
        twins: whether the objective reads half of the rows twice. If True, each half has an even
            number of rows on every rank, at least four.
    """
    least = 2 if twins else 1
    unit = 2 * least * ranks
    return max(math.ceil(wanted / unit), least) * unit


class Probe:
    """Measures the losses of all objectives on two halves of held-out rows.

    Args:
        objective: the objectives of all objectives.
        source: the source of training batches, for the maskers.
        held_out: the held-out rows of each objective. (With training rows, an objective could gain
            by memorising them.) Without the rows in ``skip``, there must be at least ``sizes``
            rows.
        sizes: the number of rows in the probe of each objective, over all ranks, from
            ``probe_rows``.
        skip: for each objective, the indices of the held-out rows that are reserved for
            evaluations.
        fresh: whether every probe uses new rows and new masks, from policies as they are now, and
            no dropout for ``cse``, as in the released code of MOMETAS.
        rank, ranks: this rank and the number of ranks. Each rank measures a part of the rows.

    Attributes:
        flops: the FLOPs of the last probe on this rank.
    """

    def __init__(
        self,
        objective: SeveralObjectives,
        source: SeveralSources,
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
            self.maskers = {name: each.masker for name, each in source.sources.items()}
        self.sizes = sizes
        # Schedules are evaluated at the middle step of the run.
        self.total_steps = source.settings.steps
        self.fresh = fresh
        self.rank = rank
        self.ranks = ranks
        self.rows: TensorDict = {}
        # The sampler expects losses in the order of its objectives.
        for name in source.sources:
            free = torch.ones(len(held_out[name]), dtype=torch.bool)
            free[list(skip.get(name, ()))] = False
            numbers = free.nonzero().view(-1)
            seed = fold(source.settings.seed, PROBE_SEED)
            self.rows[name] = numbers[permutation(len(numbers), seed=seed, epoch=0)]
        self.batches = {} if fresh else {name: self._batches(name, 0) for name in self.rows}
        self.flops = 0
        self.work = {name: Flops(objective.named(name)) for name in self.rows}

    def __call__(self, turn: int) -> Tensor:
        """(2, 4, K) on the device: the four sums of ``_counted`` for both halves and all K
        objectives.

        The sums are over the rows of this rank.

        Args:
            turn: the index of the probe in the run. It has an effect only if probes are ``fresh``.
        """
        if not self.fresh:
            turn = 0
        sums = []
        self.flops = 0
        # Restore only the random generator of the host. Every training step seeds that of the
        # device.
        with self.objective.judging(), torch.random.fork_rng(devices=()):
            for name in self.rows:
                batches = self.batches.get(name) or self._batches(name, turn)
                # Dropout of ``cse`` and samples of ``rtd`` must be the same in every probe.
                torch.manual_seed(fold(PROBE_SEED, turn))
                objective = self.objective.named(name)
                dropout = objective.without_dropout() if self.fresh else nullcontext()
                with dropout:
                    halves = [_counted(half, objective(half)) for half in batches]
                sums.append(torch.stack(halves))
                for half in batches:
                    work = self.work[name]
                    self.flops += work.forward(half.tokens, half.targets, half.lengths)
        return torch.stack(sums, 2)

    def _batches(self, name: str, turn: int) -> list[MaskedBatch]:
        """Return the masked batches of the two halves of an objective's probe."""
        rows = self.rows[name]
        if self.fresh:
            rows = rows.roll(-(fold(PROBE_SEED, turn) % len(rows)))
        chosen = rows[: self.sizes[name]]
        device = next(self.objective.parameters()).device
        middle = self.total_steps // 2
        halves = []
        for half in (chosen[::2], chosen[1::2]):
            line = self.held_out[name].line(half[self.rank :: self.ranks])
            batch = self.maskers[name](
                line,
                step=middle,
                total_steps=self.total_steps,
                epoch=turn,
            )
            halves.append(batch.to(device))
        return halves


class SamplerLearner(Learner):
    """Updates a sampler from probes, every ``sampler.every`` updates of the model.

    Args:
        sampler: the sampler.
        probe: a function that makes a ``Probe``. It is called when the model is on its device. None
            for no probes.
        watched_every: the number of updates between probes if the sampler does not learn; 0 for no
            probes.
    """

    may_wait = False
    kept = ("before", "line_sums", "run_sums", "probe_sums", "probe_flops", "clock", "rewards")

    def __init__(
        self, sampler: Sampler, probe: Callable[[], Probe] | None, *, watched_every: int = 0
    ):
        self.sampler = sampler
        self.every = (sampler.every or watched_every) if probe else 0
        self._make = probe
        self._probe: Probe | None = None
        count = len(sampler.objectives)
        # Each is (5, K): the four sums of ``_counted`` and the number of steps, for each
        # objective. They are sums since the last line of metrics, since the start of the run, and
        # over probes.
        self.line_sums, self.run_sums, self.probe_sums = torch.zeros(3, 5, count).double()
        # The FLOPs of all probes, over all ranks; 0 if the sampler does not learn.
        self.probe_flops = torch.zeros(1).double()
        # For each micro-batch since the last ``offer`` of sums: the index of its objective, and its
        # four sums on the device.
        self.seen: list[tuple[int, Tensor]] = []
        self.steps = torch.zeros(1, count).double()
        # (3, K): the losses of the last probe, on all of its rows and on each half.
        self.before = torch.full(
            (3, count),
            torch.nan,
            dtype=torch.float64,
        )
        # (T, 2): the rewards of T rollouts (steps between two probes), measured on each half.
        self.rewards = torch.zeros(0, 2).double()
        # The step of the last probe, the seconds spent in probes, and the seconds of the run.
        self.clock = torch.zeros(3).double()
        self._since: float | None = None
        self.notes: list[str] = []
        self.now = Progress(0, 0)

    def observe(self, batch: MaskedBatch, loss: Loss) -> None:
        self.seen.append((self.sampler.objectives.index(batch.objective), _counted(batch, loss)))

    def offer(self, now: Progress) -> Tensor | None:
        if self.seen:
            # All micro-batches of a step have the same objective, so count one step.
            self.steps[0, self.seen[-1][0]] += 1
        parts = []
        if now.closing and self.seen:
            places, sums = zip(*self.seen)
            by_objective = torch.zeros_like(self.line_sums[:4])
            by_objective.index_add_(1, torch.tensor(places), torch.stack(sums, 1).cpu().double())
            parts.append(by_objective.flatten())
            self.seen = []
        if self._probes(now):
            assert self._make is not None
            began = time.perf_counter()
            # The model was not on its device before the first call.
            self._probe = self._probe or self._make()
            parts.append(self._probe(now.done // self.every).flatten().cpu().double())
            parts.append(torch.tensor([self._probe.flops]).double())
            self._add_probing(began)
        return torch.cat(parts) if parts else None

    def _probes(self, now: Progress) -> bool:
        return self.every > 0 and now.done % self.every == 0

    def _add_probing(self, began: float) -> None:
        """Count the time since ``began`` as time of probes, if the sampler learns."""
        if self.sampler.every:
            self.clock[1] += time.perf_counter() - began

    def after(self, now: Progress) -> None:
        self.now = now
        sums = now.sums
        if self._probes(now):
            assert sums is not None
            count = 8 * len(self.sampler.objectives)
            probed, flops = sums[-count - 1 :].split([count, 1])
            sums = sums[: -count - 1]
            self._learn(now, probed.view(2, 4, -1), flops)
        if sums is not None and len(sums):
            # All ranks draw the same objective, so steps are not summed over ranks.
            new = torch.cat([sums.view(4, -1), self.steps])
            self.line_sums = self.line_sums + new
            self.run_sums = self.run_sums + new
            self.steps = torch.zeros_like(self.steps)
        tick = time.perf_counter()
        # At the first call, no time has passed yet.
        self.clock[2] += tick - (self._since or tick)
        self._since = tick

    def _learn(self, now: Progress, halves: Tensor, flops: Tensor) -> None:
        """Learn from a probe: the four sums of both halves and all objectives, (2, 4, K)."""
        began = time.perf_counter()
        probed = halves.sum(0)
        sums = torch.cat([probed[None], halves])
        losses = sums[:, 0] / sums[:, 1].clamp(min=1)
        if self.sampler.every:
            if now.done:
                self._teach(losses)
            self.probe_sums = self.probe_sums + torch.cat([probed, torch.ones_like(probed[:1])])
            self.probe_flops = self.probe_flops + flops
            self._add_probing(began)
        self.before = losses
        self.clock[0] = now.done

    def _teach(self, losses: Tensor) -> None:
        """Update the sampler with new losses, (3, K), and record the rewards on the two halves."""
        sampler = self.sampler
        rewards = [sampler.reward(a, b) for a, b in zip(self.before[1:], losses[1:])]
        # If a sampler has no logits, its rewards are None.
        if None not in rewards:
            self.rewards = torch.cat([self.rewards, self.rewards.new_tensor([rewards])])
        sampler.update(self.before[0], losses[0])
        # There may be several updates of the sampler between two lines of metrics, which repeat
        # their notes.
        self.notes = list(dict.fromkeys(self.notes + sampler.notes))

    def facts(self) -> Facts:
        """Return the fields of a line of metrics that docs/files.md lists for samplers."""
        total, divisor, _, _, steps = self.line_sums
        # Log the probabilities of the next step. After the last step, there is none, and schedules
        # may have reached 0 for all objectives, so log the last step's probabilities again.
        step = min(self.now.done, self.now.total_steps - 1)
        probabilities = self.sampler.probabilities(step, self.now.total_steps)
        found: dict[str, object] = {
            "probabilities": self._named(probabilities),
            "objective_losses": self._named(total / divisor),
            "objective_steps": dict(zip(self.sampler.objectives, steps.long().tolist())),
        }
        if self.every:
            found["probe_losses"] = self._named(self.before[0])
            found["probe_step"] = int(self.clock[0])
            if self.sampler.every:
                _, probing, running = self.clock.tolist()
                found["updates"] = self._updates()
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

    def _updates(self) -> int:
        """Return how often the sampler was updated before a step that it chose."""
        probes = int(self.probe_sums[4, 0])
        # The first probe has nothing to compare with. After the last one, no step may follow.
        of_no_use = 1 + int(self.clock[0] == self.now.done)
        return max(0, probes - of_no_use)

    def _named(self, values: Tensor) -> dict[str, float]:
        """Return the values that are not NaN, by objective."""
        named = zip(
            self.sampler.objectives,
            values.tolist(),
            strict=True,
        )
        return {name: round(value, 6) for name, value in named if value == value}

    def spent(self) -> dict[str, dict[str, int]]:
        """Return the numbers of ``steps``, ``tokens`` and ``targets`` of each objective, over all
        ranks.

        Probes have separate numbers, which are 0 if the sampler does not learn.
        """
        names = ("targets", "tokens", "steps", "probe_targets", "probe_tokens", "probes")
        counts_K = torch.cat([self.run_sums[2:], self.probe_sums[2:]]).T.long().tolist()
        spent = {}
        for name, counts in zip(self.sampler.objectives, counts_K):
            spent[name] = dict(zip(names, counts))
        return spent

    def state_dict(self) -> TensorDict:
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


def _counted(batch: MaskedBatch, loss: Loss) -> Tensor:
    """(4,) on the device: the sum of losses, its divisor, and the numbers of targets and tokens.

    These numbers are below 2²⁴, so they are exact in single precision.
    """
    total = loss.total.detach()
    counts = (loss.divisor, as_scalar(batch.targets, total), as_scalar(batch.tokens, total))
    return torch.stack([total, *(count.to(total.dtype) for count in counts)])


def check_enough(name: str, free: int, *, of: int, size: int) -> None:
    """Raise ``MaskwiseError`` if a probe needs more held-out rows than are ``free``."""
    if free < size:
        raise MaskwiseError(
            f"there are too few held-out rows to measure the loss of objective {name!r}",
            got=f"{free} of {of}; the other rows are reserved for evaluation",
            allowed=f"≥ {size}",
            do="raise corpus.held_out, or lower evaluation.rows",
        )
