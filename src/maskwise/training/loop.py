"""The loop. Pre-training, intermediate pre-training and fine-tuning are this function with another objective.

    for step in look_ahead(source):         # its batches were masked while the device worked on the last ones
        engine.update(step)                 # every target of all ranks and micro-batches weighs the same
        what learns from the losses learns  # a policy's weights, a sampler: on all ranks alike
        log; now and then evaluate, and save a state to go on from

Everything random is a function of (seed, step, rank), so a run that was stopped goes on bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypedDict

from maskwise.objectives import Objective, Outcome
from maskwise.training.data import Source, look_ahead
from maskwise.training.engine import Engine, agreement
from maskwise.training.learners import Learner, Point, restore, states
from maskwise.training.log import Log
from maskwise.training.settings import TrainingSettings

Evaluate = Callable[[int], Sequence[Mapping[str, object]]]


class Training(TypedDict):
    """What a training was: ``loss`` is the mean of the last window that had targets, in nats a target."""

    steps: int
    seconds: float
    loss: float | None
    resumed_at: int
    tokens: int
    targets: int


def train(
    objective: Objective, source: Source, settings: TrainingSettings, *, folder: Path | None = None,
    learners: Mapping[str, Learner] = MappingProxyType({}), evaluate: Evaluate | None = None,
    title: str = "training", quiet: bool = False,
) -> Training:  # fmt: skip
    """Train an objective; call it again with the same arguments, and it goes on where it was stopped.

    Args:
        objective: a module that turns a batch into (sum of losses, number of targets).
        source: gives the batches of a step.
        settings: see ``TrainingSettings``.
        folder: where ``metrics.jsonl`` and states to resume from go; None keeps nothing.
        learners: by name, what learns from the losses.
        evaluate: called with the number of updates done; its dicts become lines of metrics, and one that says
            ``enough`` ends the training.
        title: what the progress bar says.
        quiet: no progress bar.

    Raises:
        MaskwiseError: a batch size that ranks and micro-batches do not divide; a loss or gradient that is not
            finite; a folder with states of another run, or that cannot be written.
    """
    engine = Engine(objective, settings, folder)
    place = {"rank": engine.rank, "ranks": engine.ranks, "device": engine.device}
    log = Log(engine, source, learners, title=title, quiet=quiet)
    agree, steps = agreement(engine.accelerator), settings.steps

    def observe(batch: Any, outcome: Outcome) -> None:
        for learner in learners.values():
            learner.observe(batch, outcome)

    def learn(done: int) -> None:
        for learner in learners.values():
            learner.after(Point(done, steps, agree, objective, source))

    if engine.start:
        restore(learners, engine.learned)
    else:
        learn(0)
    done, enough = engine.start, False
    with log:
        for step in look_ahead(source, range(engine.start, steps), **place):
            update, done = engine.update(step, observe), step.number + 1
            learn(done)
            log.add(update, step.facts)
            if done % settings.log_every == 0 or done == steps:
                log.line(done)
            if evaluate and (done == steps or _due(done, settings.eval_every)):
                with engine.evaluating():
                    for line in evaluate(done):
                        log.evaluation(done, line)
                        enough = enough or bool(line.get("enough"))
            if folder and _due(done, settings.save_every) and done < steps:
                engine.save(done, log.so_far(), states(learners))
            log.progress.advance()
            if enough:
                break
    engine.finish()
    total = log.so_far()
    return {
        "steps": done, "seconds": total.seconds, "loss": total.loss, "resumed_at": engine.start,
        "tokens": total.tokens, "targets": total.targets,
    }  # fmt: skip


def _due(done: int, every: int) -> bool:
    return bool(every) and done % every == 0
