"""Training on several arms: a sampler says whose batch comes next, and learns from probes of all of them.

An arm is an objective with its masking, over the one shared model. Every arm has its own source, so it reads
its own rows (packed blocks, or a text a row) in its own order; at each step one of them gives the batch. The
step is the run's, not the arm's: schedules run over all of training.

A probe is held-out rows, masked once: the same examples and the same masks before and after. (MOMETAS as
released measures fresh examples with fresh masks each time; that noise is larger than the change.) Its cost: a
forward pass of half a batch for each arm, every ``sampler.every`` steps; it is logged. Rules are probed too, where
there is room for it, so that a study can show what each did to every objective; that is evaluation, and no cost.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.masking import MaskedBatch
from maskwise.masking.batch import AnnotatedBatch
from maskwise.objectives import Objective, Outcome
from maskwise.objectives.base import counted
from maskwise.samplers import Sampler
from maskwise.training.data import MaskedSource, Rows
from maskwise.training.learners import Learner, Point, meet
from maskwise.training.settings import TrainingSettings
from maskwise.training.stream import StreamedRows

PROBE_SEED = 0x9208


@dataclass
class ArmBatch:
    """A batch, and the arm it was made for. As a mapping it is the batch."""

    arm: str
    batch: MaskedBatch

    def keys(self) -> Iterator[str]:
        return self.batch.keys()

    def __getitem__(self, name: str) -> Tensor:
        return self.batch[name]

    @property
    def source(self) -> AnnotatedBatch:
        return self.batch.source

    @property
    def tokens(self) -> int:
        return self.batch.tokens

    @property
    def counted(self) -> int | None:
        return self.batch.counted


class Arms(Objective):
    """The losses of whichever arm a batch is for.

    Args:
        arms: by name; all have the same ``model``. Their heads are theirs, so an arm may stand here twice, with
            another policy or ratio, and share or not share its head as it was built.
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

    def forward(self, batch: ArmBatch) -> Outcome:
        return self.arm(batch.arm)(batch.batch)

    def heads(self) -> dict[str, Tensor]:
        """What is not the model's, by arm: what drops out when a checkpoint becomes an ordinary encoder."""
        own = {id(p) for p in self.model.parameters()}
        return {
            f"{name}.{key}": value.detach()
            for name, member in zip(self.names, self.members, strict=True)
            for key, value in member.named_parameters()
            if id(value) not in own
        }


class ArmsSource:
    """Batches of whichever arm is drawn.

    Args:
        sources: by arm.
        sampler: over the same arms.
        settings: for the number of steps.
    """

    def __init__(self, sources: Mapping[str, MaskedSource], sampler: Sampler, settings: TrainingSettings):
        assert tuple(sources) == sampler.arms
        self.sources, self.sampler, self.settings = sources, sampler, settings
        self.untaught = deepcopy({arm: source.masker for arm, source in sources.items()})
        """The maskers as they are before any policy learns. Probes mask with them: a run that was stopped makes its
        probe anew, and must find the same masks."""

    @property
    def ahead(self) -> int:
        """One step, or none where the sampler or a policy learns."""
        return 0 if self.sampler.every or self.learners() else 1

    def batches(self, step: int, *, rank: int, ranks: int) -> list[ArmBatch]:
        """The micro-batches of ``step``, all of one arm, the same arm on every rank."""
        arm = self.sampler.draw(step, self.settings.steps)
        made = self.sources[arm].batches(step, rank=rank, ranks=ranks)
        return [ArmBatch(arm, batch) for batch in made]

    def learners(self) -> dict[str, Learner]:
        """The policies that learn, each from the batches of its own arm."""
        return {
            f"{arm} {name}": OfArm(learner, arm)
            for arm, source in self.sources.items()
            for name, learner in source.learners().items()
        }

    def places(self) -> dict[str, Learner]:
        """What remembers where streams stand; arms that read the same rows share one."""
        return {name: place for source in self.sources.values() for name, place in source.places().items()}

    def facts(self, batches: Sequence[ArmBatch]) -> dict[str, float]:
        """Those of the masking, over all arms."""
        source = next(iter(self.sources.values()))
        return source.facts([one.batch for one in batches])

    def summarise(self, sums: Mapping[str, float]) -> dict[str, float]:
        return next(iter(self.sources.values())).summarise(sums)


class OfArm:
    """A learner that sees the batches of one arm only."""

    def __init__(self, learner: Learner, arm: str):
        self.learner, self.arm = learner, arm

    def observe(self, batch: ArmBatch, outcome: Outcome) -> None:
        if batch.arm == self.arm:
            self.learner.observe(batch.batch, outcome)

    def meet(self, objective: Arms) -> None:
        meet({self.arm: self.learner}, objective.arm(self.arm))

    def after(self, now: Point) -> None:
        self.learner.after(now)

    def facts(self) -> Mapping[str, object]:
        return {f"{self.arm} {name}": value for name, value in self.learner.facts().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)


def probe_rows(batch_size: int, *, ranks: int = 1, twins: bool = False) -> int:
    """Rows of a probe, over all ranks: half a batch, and one for each rank at the least.

    With ``twins`` (an objective of that kind is among the arms) every rank has as many, an even number ≥ 4.
    """
    half, even = max(batch_size // 4 * 2, 2, ranks), 2 * ranks
    return max(half // even * even, 2 * even) if twins else half


class Probe:
    """The losses of all arms on held-out rows.

    Args:
        objective: the arms.
        sources: by arm; what is trained on.
        maskers: by arm; those of ``sources`` if not said. See ``ArmsSource.untaught``.
        held_out: by arm, rows that are never trained on.
        size: rows of each arm, over all ranks.
        skip: by arm, the numbers of held-out rows that judge the model, and so are not used here.
        total_steps: of the run: masks are those of its middle.
        fresh: other rows and other masks each time, as in the released code.
        rank, ranks: each rank measures its share of the rows.

    Raises:
        MaskwiseError: fewer rows than ``size``, or documents that are in the training data too.
    """

    def __init__(
        self, objective: Arms, sources: Mapping[str, MaskedSource], held_out: Mapping[str, Rows], *, size: int,
        skip: Mapping[str, Iterable[int]], total_steps: int, fresh: bool = False, rank: int = 0, ranks: int = 1,
        maskers: Mapping[str, Any] | None = None,
    ):  # fmt: skip
        self.objective, self.sources, self.held_out = objective, sources, held_out
        self.maskers = maskers or {arm: source.masker for arm, source in sources.items()}
        self.size, self.total_steps, self.fresh = size, total_steps, fresh
        self.rank, self.ranks = rank, ranks
        self.rows = {arm: _others(len(held_out[arm]), skip.get(arm, ())) for arm in sources}
        for arm, rows in self.rows.items():
            check_enough(arm, len(rows), of=len(held_out[arm]), size=size)
            check_disjoint(arm, sources[arm].rows, held_out[arm])
        self.batches = {} if fresh else {arm: self._batch(arm, 0) for arm in sources}

    def __call__(self, turn: int) -> Tensor:
        """(3, K) float64: each arm's sum of losses, targets and tokens, of this rank's rows; in evaluation mode.

        Args:
            turn: which probe of the run; it only matters for fresh ones.
        """
        device = next(self.objective.parameters()).device
        found = []
        training = self.objective.training
        self.objective.eval()
        with torch.no_grad(), torch.random.fork_rng(devices=[] if device.type == "cpu" else [device]):
            for arm in self.sources:
                # Dropout (cse) and replacements (rtd) are drawn alike, before and after.
                torch.manual_seed(fold(PROBE_SEED, turn if self.fresh else 0))
                batch = self._batch(arm, turn) if self.fresh else self.batches[arm]
                outcome = self.objective.arm(arm)(batch)
                found.append(_counted(batch, outcome))
        self.objective.train(training)
        return torch.stack(found, 1)

    def _batch(self, arm: str, turn: int) -> MaskedBatch:
        rows = self.rows[arm]
        start = fold(PROBE_SEED, turn) % len(rows) if self.fresh else 0
        chosen = rows.roll(-start)[: self.size][self.rank :: self.ranks]
        columns = self.held_out[arm].batch(chosen)
        middle = {"step": self.total_steps // 2, "total_steps": self.total_steps}
        return self.maskers[arm](columns, **middle, epoch=turn)


class SamplerLearner:
    """Teaches a sampler from probes, every ``sampler.every`` updates (``training.learners.Learner``).

    Args:
        sampler: that learns, or follows a rule.
        probe: makes a ``Probe`` once the model is where it trains; None: none is wanted.
        watched_every: updates between two probes of a rule, which learns nothing from them; 0 for none.
    """

    kept = ("before", "trained", "probed", "clock")

    def __init__(self, sampler: Sampler, probe: Callable[[], Probe] | None, *, watched_every: int = 0):
        self.sampler, self._make = sampler, probe
        self._probe: Probe | None = None
        self.every = (sampler.every or watched_every) if probe else 0
        # Losses, targets, tokens, steps, by arm: of this step, since the last line, of the run, and of its probes.
        self.seen, self.window, self.trained, self.probed = torch.zeros(4, 4, len(sampler.arms)).double()
        self.before = torch.full_like(self.seen[0], torch.nan)
        # The step of the last probe; seconds spent on probes.
        self.clock = torch.zeros(2, dtype=torch.float64)
        self.notes: list[str] = []
        self.step: tuple[int, int | None] = (0, None)

    def observe(self, batch: ArmBatch, outcome: Outcome) -> None:
        arm, counted = self.sampler.arms.index(batch.arm), _counted(batch, outcome)
        self.seen = self.seen.to(counted.device)  # sums stay there until a line or a probe asks for them
        self.seen[:3, arm] += counted
        self.seen[3, arm] = 1  # one step, in however many micro-batches

    def after(self, now: Point) -> None:
        self.step = (now.done, now.total_steps)
        # Every rank draws the same arm, so steps are not added up.
        both = torch.cat([now.agree(self.seen[:3]), self.seen[3:]])
        self.window, self.trained = self.window.to(both.device) + both, self.trained.to(both.device) + both
        self.seen = torch.zeros_like(both)
        if not self.every or now.done % self.every:
            return
        assert self._make is not None
        began = time.perf_counter()
        self._probe = self._probe or self._make()
        probed = now.agree(self._probe(now.done // self.every)).cpu()
        losses = probed[0] / probed[1].clamp(min=1)
        if self.sampler.every:
            if now.done:
                self.sampler.update(self.before, losses)
                # A line of metrics may cover several updates; each thing is said once.
                self.notes += [note for note in self.sampler.notes if note not in self.notes]
            self.probed = self.probed + torch.cat([probed, torch.ones_like(probed[:1])])
            self.clock[1] += time.perf_counter() - began
        self.before, self.clock[0] = losses, now.done

    def facts(self) -> Mapping[str, object]:
        """By arm: ``probabilities``, and since the last line ``arm_losses`` and ``arm_steps``; then ``probe_losses``,
        the ``probe_step`` they are of, ``probe_seconds`` so far (of samplers that learn), and ``notes``."""
        names, (total, targets, _, steps) = self.sampler.arms, self.window.cpu()
        found: dict[str, object] = {
            "probabilities": _named(names, self.sampler.probabilities(*self.step)),
            "arm_losses": _named(names, total / targets),
            "arm_steps": {arm: int(n) for arm, n in zip(names, steps.tolist(), strict=True)},
        }
        if self.every:
            found |= {"probe_losses": _named(names, self.before), "probe_step": int(self.clock[0])}
        if self.every and self.sampler.every:
            found["probe_seconds"] = round(float(self.clock[1]), 3)
        if self.notes:
            found["notes"] = self.notes
        self.window, self.notes = torch.zeros_like(self.window), []
        return found

    def spent(self) -> dict[str, dict[str, Any]]:
        """By arm, over all ranks: ``steps``, ``tokens`` and ``targets`` of the run, and of the probes that taught."""
        names = ("probe_targets", "probe_tokens", "probes")
        found: dict[str, dict[str, Any]] = {}
        for arm, run, probe in zip(
            self.sampler.arms, self.trained.cpu().T.long(), self.probed.T.long(), strict=True
        ):
            mine = zip(("targets", "tokens", "steps"), run[1:].tolist(), strict=True)
            found[arm] = {**dict(mine), **dict(zip(names, probe[1:].tolist(), strict=True))}
        return found

    def state_dict(self) -> dict[str, Tensor]:
        mine = {name: getattr(self, name) for name in self.kept}
        return {**mine, **{f"sampler.{name}": t for name, t in self.sampler.state_dict().items()}}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        for name in self.kept:
            setattr(self, name, state[name])
        theirs = {name.partition(".")[2]: t for name, t in state.items() if name.startswith("sampler.")}
        self.sampler.load_state_dict(theirs)


def _counted(batch: Any, outcome: Outcome) -> Tensor:
    """(3,) float64: losses, targets, and tokens of the text that were read."""
    tokens = counted(batch.tokens, outcome.loss).double()
    return torch.stack([outcome.loss.detach().double(), outcome.targets.double(), tokens])


def check_enough(arm: str, free: int, *, of: int, size: int) -> None:
    """
    Raises:
        MaskwiseError: fewer rows are ``free``, ``of`` those that are held out, than a probe has.
    """
    if free < size:
        raise MaskwiseError(
            f"the probe of arm {arm!r} has too few held-out rows", got=f"{free} of {of}: others judge the model",
            allowed=f"≥ {size}", do="raise corpus.held_out, or lower evaluation.rows",
        )  # fmt: skip


def check_disjoint(arm: str, training: Rows | StreamedRows, held_out: Rows) -> None:
    """
    Raises:
        MaskwiseError: a document in both.
    """
    both = np.intersect1d(training.documents, held_out.documents)
    if len(both):
        what = f"the probe of arm {arm!r} and its training data share documents"
        raise MaskwiseError(what, got=f"{len(both)}", do="give the probe text of its own")


def _others(count: int, taken: Iterable[int]) -> Tensor:
    free = torch.ones(count, dtype=torch.bool)
    free[torch.as_tensor(list(taken), dtype=torch.int64)] = False
    return free.nonzero().view(-1)


def _named(names: Iterable[str], values: Tensor) -> dict[str, float]:
    return {name: round(v, 6) for name, v in zip(names, values.tolist(), strict=True) if v == v}
