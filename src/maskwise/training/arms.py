"""Training on several arms: a sampler says whose batch comes next, and learns from probes of all of them.

An arm is an objective with its masking, over the one shared model. Every arm has its own source, so it reads
its own rows (packed blocks, or a text a row) in its own order; at each step one of them gives the batch. The
step is the run's, not the arm's: schedules run over all of training.

A probe is held-out rows, masked once: the same examples and the same masks before and after. (MOMETAS as
released measures fresh examples with fresh masks each time; that noise is larger than the change.) Its cost: a
forward pass of half a batch for each arm, every ``sampler.every`` steps; it is logged.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from maskwise.errors import MaskwiseError
from maskwise.keys import fold
from maskwise.masking import MaskedBatch
from maskwise.objectives import ArmBatch, Arms, Outcome
from maskwise.samplers import Sampler
from maskwise.training.learners import Agree, Learner
from maskwise.training.settings import TrainingSettings
from maskwise.training.source import Blocks, MaskedSource, load_rows

PROBE_SEED = 0x9208


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

    def batches(self, step: int, *, rank: int, ranks: int, device: torch.device) -> list[ArmBatch]:
        """The micro-batches of ``step``, all of one arm, the same arm on every rank."""
        arm = self.sampler.draw(step, self.settings.steps)
        made = self.sources[arm].batches(step, rank=rank, ranks=ranks, device=device)
        return [ArmBatch(arm, batch) for batch in made]

    def learners(self) -> dict[str, Learner]:
        """The policies that learn, each from the batches of its own arm."""
        return {
            f"{arm} {name}": OfArm(learner, arm)
            for arm, source in self.sources.items()
            for name, learner in source.learners().items()
        }

    def facts(self, batches: list[ArmBatch]) -> dict[str, float]:
        """Those of the masking, over all arms."""
        source = next(iter(self.sources.values()))
        return source.facts([one.batch for one in batches])

    def summarise(self, sums: Mapping[str, float]) -> dict[str, Any]:
        return next(iter(self.sources.values())).summarise(sums)


class OfArm:
    """A learner that sees the batches of one arm only."""

    def __init__(self, learner: Learner, arm: str):
        self.learner, self.arm = learner, arm

    def observe(self, batch: ArmBatch, outcome: Outcome) -> None:
        if batch.arm == self.arm:
            self.learner.observe(batch.batch, outcome)

    def after(self, done: int, total_steps: int, agree: Agree) -> None:
        self.learner.after(done, total_steps, agree)

    def facts(self) -> dict[str, Any]:
        return {f"{self.arm} {name}": value for name, value in self.learner.facts().items()}

    def state_dict(self) -> dict[str, Tensor]:
        return self.learner.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.learner.load_state_dict(state)


class Probe:
    """The losses of all arms on held-out rows.

    Args:
        objective: the arms.
        sources: by arm; for their maskers.
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
        self, objective: Arms, sources: Mapping[str, MaskedSource], held_out: Mapping[str, Blocks], *, size: int,
        skip: Mapping[str, Iterable[int]], total_steps: int, fresh: bool = False, rank: int = 0, ranks: int = 1,
    ):  # fmt: skip
        self.objective, self.sources, self.held_out = objective, sources, held_out
        self.size, self.total_steps, self.fresh = size, total_steps, fresh
        self.rank, self.ranks = rank, ranks
        self.rows = {arm: _others(len(held_out[arm]), skip.get(arm, ())) for arm in sources}
        for arm, rows in self.rows.items():
            if len(rows) < size:
                raise MaskwiseError(
                    f"the probe of arm {arm!r} has too few held-out rows", got=f"{len(rows)}",
                    allowed=f"{size}: half a batch", do="a larger corpus.held_out, or fewer evaluation.rows",
                )  # fmt: skip
            check_disjoint(arm, sources[arm].blocks, held_out[arm])
        self.batches = {} if fresh else {arm: self._batch(arm, 0) for arm in sources}

    def __call__(self, turn: int) -> Tensor:
        """(2, K) float64: each arm's sum of losses and number of targets, of this rank's rows; in evaluation mode.

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
                found.append(torch.stack([outcome.loss.double(), outcome.targets.double()]))
        self.objective.train(training)
        return torch.stack(found, 1)

    def _batch(self, arm: str, turn: int) -> MaskedBatch:
        rows = self.rows[arm]
        start = fold(PROBE_SEED, turn) % len(rows) if self.fresh else 0
        chosen = rows.roll(-start)[: self.size][self.rank :: self.ranks]
        device = next(self.objective.parameters()).device
        columns = load_rows(self.held_out[arm], chosen, device)
        middle = {"step": self.total_steps // 2, "total_steps": self.total_steps}
        return self.sources[arm].masker(columns, **middle, epoch=turn)


class SamplerLearner:
    """Teaches a sampler from probes, every ``sampler.every`` updates (``training.learners.Learner``).

    Args:
        sampler: that learns.
        probe: makes a ``Probe`` once the model is where it trains; None for samplers that need none.
    """

    def __init__(self, sampler: Sampler, probe: Callable[[], Probe] | None):
        self.sampler, self._make = sampler, probe
        self._probe: Probe | None = None
        self.before = torch.full((len(sampler.arms),), torch.nan, dtype=torch.float64)
        self.sums = torch.zeros(3, len(sampler.arms), dtype=torch.float64)  # losses, targets, steps
        self.when: tuple[int, int | None] = (0, None)
        self.seconds = 0.0
        self.notes: list[str] = []

    def observe(self, batch: ArmBatch, outcome: Outcome) -> None:
        one = torch.stack([outcome.loss.detach().double(), outcome.targets.double(), torch.ones(()).double()])
        self.sums[:, self.sampler.arms.index(batch.arm)] += one.cpu()

    def after(self, done: int, total_steps: int, agree: Agree) -> None:
        self.when = (done, total_steps)
        if self._make is None or not self.sampler.every or done % self.sampler.every:
            return
        began = time.perf_counter()
        self._probe = self._probe or self._make()
        total, targets = agree(self._probe(done // self.sampler.every)).cpu()
        now = total / targets.clamp(min=1)
        if done:
            self.sampler.update(self.before, now)
            self.notes = self.sampler.notes
        self.before = now
        self.seconds += time.perf_counter() - began

    def facts(self) -> dict[str, Any]:
        """By arm: ``probabilities``, and since the last line ``arm_losses`` and ``arm_steps``; then
        ``probe_losses``, ``probe_seconds`` so far, and ``notes``."""
        names, (total, targets, steps) = self.sampler.arms, self.sums
        found: dict[str, Any] = {
            "probabilities": _named(names, self.sampler.probabilities(*self.when)),
            "arm_losses": _named(names, total / targets),
            "arm_steps": {arm: int(n) for arm, n in zip(names, steps.tolist(), strict=True)},
        }
        if self._make is not None and self.sampler.every:
            found |= {"probe_losses": _named(names, self.before), "probe_seconds": round(self.seconds, 3)}
        if self.notes:
            found["notes"] = self.notes
        self.sums, self.notes = torch.zeros_like(self.sums), []
        return found

    def state_dict(self) -> dict[str, Tensor]:
        return {"before": self.before, **self.sampler.state_dict()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        self.before = state["before"]
        self.sampler.load_state_dict({name: tensor for name, tensor in state.items() if name != "before"})


def check_disjoint(arm: str, training: Any, held_out: Any) -> None:
    """
    Raises:
        MaskwiseError: a document in both.
    """
    both = set(training.columns["documents"].tolist()) & set(held_out.columns["documents"].tolist())
    if both:
        what = f"the probe of arm {arm!r} and its training data share documents"
        raise MaskwiseError(what, got=f"{len(both)}", do="give the probe text of its own")


def _others(count: int, taken: Iterable[int]) -> Tensor:
    free = torch.ones(count, dtype=torch.bool)
    free[torch.as_tensor(list(taken), dtype=torch.int64)] = False
    return free.nonzero().view(-1)


def _named(names: Iterable[str], values: Tensor) -> dict[str, float]:
    return {name: round(v, 6) for name, v in zip(names, values.tolist(), strict=True) if v == v}
