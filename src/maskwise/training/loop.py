"""The loop. Pre-training, intermediate pre-training and fine-tuning are this function with another
objective.

    for step in look_ahead(source):         # its batches were masked while the device worked on the last ones
        engine.update(step)                 # every target of all ranks and micro-batches weighs the same
        what learns from the losses learns  # a policy's weights, a sampler: on all ranks alike
        log; now and then evaluate, and save a state to go on from

Everything random is a function of (seed, step, rank), so a run that was stopped goes on bit for
bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from pathlib import Path
from signal import SIGTERM
from types import MappingProxyType
from typing import Any, TypedDict

from maskwise.constants import rank_here
from maskwise.folders import claim
from maskwise.objectives import Objective, Outcome
from maskwise.signals import CODES, Asked
from maskwise.training.data import Source, look_ahead
from maskwise.training.engine import Engine, agreement, leave
from maskwise.training.learners import Learner, Point, restore, states
from maskwise.training.log import Evaluate, Log
from maskwise.training.settings import TrainingSettings

LOCK = ".training.lock"
"""In the folder of a run: held while it trains. The lock of a process that died is free."""


class Training(TypedDict):
    """What a training was: ``loss`` is the mean of the last window that had targets, in nats a
    target.
    """

    steps: int
    seconds: float
    loss: float | None
    resumed_at: int
    tokens: int
    targets: int


def train(
    objective: Objective,
    source: Source,
    settings: TrainingSettings,
    *,
    folder: Path | None = None,
    learners: Mapping[str, Learner] = MappingProxyType({}),
    evaluate: Evaluate | None = None,
    title: str = "training",
    quiet: bool = False,
) -> Training:
    """Train an objective; call it again with the same arguments, and it goes on where it was
    stopped.

    Args:
        objective: a module that turns a batch into (sum of losses, number of targets).
        source: gives the batches of a step.
        settings: see ``TrainingSettings``.
        folder: where ``metrics.jsonl`` and states to resume from go; None keeps nothing.
        learners: by name, what learns from the losses.
        evaluate: called with the number of updates done; its dicts become lines of metrics, and one
            that says ``enough`` ends the training.
        title: what the progress bar says.
        quiet: no progress bar.

    Raises:
        MaskwiseError: a batch size that ranks and micro-batches do not divide; a loss or gradient
            that is not finite; a folder with states of another run, in which another process
            trains, or that cannot be written.
        SystemExit: after SIGTERM or SIGUSR1, with a state saved; see ``signals``.
    """
    steps = settings.steps
    with (
        alone(folder),
        Asked() as asked,
        closing(Engine(objective, settings, folder)) as engine,
        Log(engine, source, learners, title=title, quiet=quiet) as log,
    ):
        agree = agreement(engine.accelerator)
        for learner in learners.values():
            learner.meet(objective)

        def observe(batch: Any, outcome: Outcome) -> None:
            for learner in learners.values():
                learner.observe(batch, outcome)

        def learn(done: int) -> None:
            for learner in learners.values():
                learner.after(Point(done, steps, agree))

        if engine.start:
            restore(learners, engine.learned)
        else:
            learn(0)
        done, judged, enough = engine.start, -1, False
        left = range(engine.start, steps)
        for step in look_ahead(
            source, left, rank=engine.rank, ranks=engine.ranks, device=engine.device
        ):
            update = engine.update(step, observe, asked=bool(asked.number))
            done = step.number + 1
            learn(done)
            log.add(update, step)
            if done % settings.log_every == 0 or done == steps:
                log.line(done)
            elif engine.states and _due(done, settings.save_every):
                log.read(done)
            if evaluate and (done == steps or _due(done, settings.eval_every)):
                enough, judged = log.judged(done, evaluate), done
            if asked.number if engine.ranks == 1 else update.asked:
                stop(engine, log, learners, asked, done)
            if engine.states and _due(done, settings.save_every) and done < steps:
                engine.save(done, log.so_far(), states(learners))
            log.progress.advance()
            if enough:
                break
        if evaluate and not enough and judged != steps:
            # A signal came at the last step, whose state is judged again.
            log.judged(steps, evaluate, write=engine.start != steps)
        engine.finish()
        total = log.so_far()
    return {
        "steps": done,
        "seconds": total.seconds,
        "loss": total.loss,
        "resumed_at": engine.start,
        "tokens": total.tokens,
        "targets": total.targets,
    }


def _due(done: int, every: int) -> bool:
    return bool(every) and done % every == 0


def alone(folder: Path | None) -> AbstractContextManager[None]:
    """Keep other runs out of a folder. The first rank does it for all."""
    if folder is None or rank_here():
        return nullcontext()
    return claim(folder, "another run trains into", lock=LOCK, stays=False)


def stop(
    engine: Engine, log: Log, learners: Mapping[str, Learner], asked: Asked, done: int
) -> None:
    """Save a state, report it, and end the program, as a signal asked for.

    Raises:
        SystemExit: 128 + the signal's number.
        MaskwiseError: a loss or gradient since the last line is not finite: the state would be
            worthless.
    """
    number = asked.number or SIGTERM  # another rank's
    asked.served = True
    name = CODES[128 + number]
    if engine.states:
        log.read(done)
        engine.save(done, log.so_far(), states(learners))
        engine.wait()
        where = f"{name}: saved the state of step {done} in {engine.states.folder}"
        engine.say(f"{where}; the same call goes on from it")
    else:
        engine.say(
            f"{name}: ended at step {done}; nothing is saved, because training.save_every is 0"
        )
    engine.finish()
    engine.wrapped = None
    leave()
    raise SystemExit(128 + number)
