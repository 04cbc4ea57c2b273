"""The training loop, for pre-training, intermediate pre-training and fine-tuning.

    for step in look_ahead(source):         # batches were masked during the previous step
        engine.update(step)                 # all targets on all ranks have the same weight
        learners learn                      # masking policies and samplers, on all ranks
        log; at intervals, evaluate and save a training state

All random numbers depend only on the seed, the step and the rank. A resumed run therefore continues
bit for bit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, closing, nullcontext
from functools import partial
from pathlib import Path
from signal import SIGTERM
from types import MappingProxyType
from typing import NoReturn, TypedDict

import torch

from maskwise.base.constants import rank_here
from maskwise.base.devices import TensorDict, Tensors
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import claim
from maskwise.base.signals import CODES, Asked, AskedToLeave
from maskwise.objectives.base import Loss, Objective
from maskwise.training.checkpoint import restore, states
from maskwise.training.data import AnyBatch, Source, look_ahead
from maskwise.training.engine import Agreement, Engine, leave
from maskwise.training.learners import Learner, Learners, Progress
from maskwise.training.log import Evaluate, Log
from maskwise.training.parts import TrainingPart
from maskwise.training.settings import TrainingSettings
from maskwise.training.several import SeveralObjectives
from maskwise.training.stream import StreamedRows

LOCK = ".training.lock"
"""The name of the lock file in the folder of a run. The lock ends when the process ends."""

LATE = "late sums"
"""The name of the ``Exchange`` in a training state."""


class Training(TypedDict):
    """The summary of a training run.

    ``loss`` is the loss in the last line of metrics whose steps had targets, in nats. ``seconds``,
    ``tokens``, ``targets`` and ``flops`` are totals of the whole run, including the part before it
    was resumed. ``flops`` does not include probes and evaluations. ``skipped`` is the number of
    updates that were not finite.
    """

    steps: int
    seconds: float
    loss: float | None
    resumed_at: int
    tokens: int
    targets: int
    flops: int
    skipped: int


def train(
    objective: Objective,
    source: Source,
    settings: TrainingSettings,
    *,
    folder: Path | None = None,
    learners: Mapping[str, Learner] = MappingProxyType({}),
    streams: Mapping[str, StreamedRows] = MappingProxyType({}),
    evaluate: Evaluate | None = None,
    part: TrainingPart | None = None,
    title: str = "training",
) -> Training:
    """Train an objective. To resume an interrupted run, repeat the call.

    Args:
        objective: a module that computes the ``Loss`` of a batch.
        source: the source of the batches.
        settings: the training settings.
        folder: the folder for ``metrics.jsonl`` and training states; if None, no file is written.
        learners: the learners of masking policies and samplers that learn from losses, by name.
        streams: the streams that ``source`` reads, by name. All ranks then share the work, and a
            resumed run continues at their positions.
        evaluate: a function that evaluates the model. It is called with the number of updates and
            the ``Ranks``, and returns lines of metrics. If a line has a true value ``enough``, the
            run ends.
        part: the part of the training that is run; None for all of it. If it begins after other
            steps, ``folder`` has their state.
        title: the title of the progress bar.

    Returns:
        The summary of the run.

    Raises:
        MaskwiseError: the batch size is not a multiple of ranks × micro-batches; a loss or gradient
            is not finite; or the folder has states of a different run, is in use by another
            process, or cannot be written.
        AskedToLeave: the process received SIGTERM or SIGUSR1, or Ctrl-C in a command. A training
            state was saved, if there is a folder.
    """
    if not (isinstance(objective, Objective) and isinstance(settings, TrainingSettings)):
        raise MaskwiseError(
            "train needs an Objective, a source of batches, and TrainingSettings",
            got=f"{type(objective).__name__} and {type(settings).__name__}",
        )
    steps = settings.steps
    with (
        alone_in(folder),
        Asked() as asked,
        closing(Engine(objective, settings, folder, part)) as engine,
        Log(engine, source, learners, streams.values(), title=title) as log,
    ):
        exchange = Exchange(Agreement(engine.accelerator), late=settings.lag > 0)
        kept: Learners = {**learners, LATE: exchange}

        def observe(batch: AnyBatch, loss: Loss) -> None:
            # With several objectives, a masking policy learns only from its own objective.
            for learner in learners.values():
                if not learner.objective or learner.objective == batch.objective:
                    learner.observe(batch, loss)

        def gradients() -> None:
            for learner in learners.values():
                learner.gradients()

        def save(done: int, *, judged: bool = True) -> None:
            positions = {}
            if engine.first:
                positions = {name: stream.position(done) for name, stream in streams.items()}
            engine.save(done, log.so_far(), states(kept), positions, judged=judged)

        def learn(done: int, *, closing: bool = False) -> None:
            exchange.update(learners, Progress(done, steps, closing))

        def judge(done: int) -> bool:
            """Evaluate the model. Return whether the run ends."""
            assert evaluate
            try:
                enough = log.evaluated(done, evaluate)
            except AskedToLeave:
                # When the run is resumed, the evaluation begins again.
                stop(engine, log, partial(save, judged=False), asked, done)
            for learner in learners.values():
                learner.evaluated()
            return enough

        for learner in learners.values():
            if isinstance(objective, SeveralObjectives) and learner.objective:
                learner.configure(objective.named(learner.objective))
            else:
                learner.configure(objective)
        share_streams(streams, engine)
        if engine.start:
            restore(kept, engine.learned)
        else:
            # Samplers need losses before the first step, to compare later losses with.
            learn(0)
        done = engine.start
        enough = bool(evaluate) and not engine.judged and judge(done)
        end = engine.start if enough else engine.end
        # Of a stable part, the state is kept, and the weights are not judged.
        leaves = part is not None and not part.falls
        left = range(engine.start, end)
        for step in look_ahead(
            source,
            left,
            rank=engine.rank,
            ranks=engine.ranks,
            device=engine.device,
            summed=partial(engine.summed, ahead=True),
            told=lambda: {"asked": bool(asked.number), "due": engine.is_due()},
        ):
            update = engine.update(step, observe, gradients)
            done = step.number + 1
            if engine.states:
                asked.hold()
            last = done == end
            writes = last or done % settings.log_every == 0
            every = settings.save_every
            saves = step.sums["due"] > 0 if every is None else every > 0 and done % every == 0
            saves = engine.states is not None and (saves or (last and leaves))
            judges = settings.eval_every > 0 and done % settings.eval_every == 0
            judges = judges or (last and not leaves)
            # All ranks must save and stop at the same steps, so what they are told is summed
            # together with the targets.
            stopped = asked.number if engine.ranks == 1 else step.sums["asked"]
            closes = bool(writes or saves or judges or stopped)
            learn(done, closing=closes)
            log.add(update, step)
            if writes:
                log.line(done)
            elif saves:
                log.read(done)
            if evaluate and judges:
                enough = judge(done)
            log.progress.advance()
            if enough:
                # From a state of this step, a repeated call would train on.
                if not writes:
                    log.line(done)
                break
            # A single process may also stop after a signal that came during the evaluation.
            if stopped or (closes and engine.ranks == 1 and asked.number):
                stop(engine, log, save, asked, done)
            if saves and (leaves or not last):
                save(done)
        if evaluate and engine.start == end and engine.judged and not leaves:
            # A signal stopped the run at its last step, and it is resumed only for this evaluation.
            log.evaluated_again(end, evaluate)
            for learner in learners.values():
                learner.evaluated()
        engine.wait()
        total = log.so_far()
    return {
        "steps": done,
        "seconds": total.seconds,
        "loss": total.loss,
        "resumed_at": engine.start,
        "tokens": total.tokens,
        "targets": total.targets,
        "flops": total.flops,
        "skipped": total.skipped,
    }


class Exchange(Learner):
    """Sums the tensors that learners offer over all ranks, in one exchange, and lets them learn.

    Args:
        agree: a function that sums tensors over ranks.
        late: whether learners that may wait get the sums one update later. The sums then arrive
            during the next update, and the host does not wait for the device.
    """

    def __init__(self, agree: Agreement, *, late: bool = False):
        self.agree = agree
        self.late = late
        self.pending: Callable[[], TensorDict] = dict

    def update(self, learners: Mapping[str, Learner], now: Progress) -> None:
        """Sum what the learners offer, and call ``after`` of every learner with its sums."""
        at_once = {}
        later = {}
        for name, learner in learners.items():
            local = learner.offer(now)
            if local is not None and self.late and learner.may_wait:
                later[name] = local
            elif local is not None:
                at_once[name] = local
        arriving = self._started(later)
        sums = self.pending() | self._started(at_once)()
        self.pending = arriving
        for name, learner in learners.items():
            learner.after(now._replace(sums=sums.get(name)))

    def _started(self, offered: Tensors) -> Callable[[], TensorDict]:
        if not offered:
            return dict
        flat = [local.flatten() for local in offered.values()]
        if len({local.device for local in flat}) > 1:
            flat = [local.cpu() for local in flat]
        arrived = self.agree.start(torch.cat(flat))

        def parts() -> TensorDict:
            line = arrived()
            sums = {}
            for name, local in offered.items():
                sums[name] = line[: local.numel()].view(local.shape)
                line = line[local.numel() :]
            return sums

        return parts

    def state_dict(self) -> TensorDict:
        """Return the sums that learners did not get yet."""
        return self.pending()

    def load_state_dict(self, state: Tensors) -> None:
        self.pending = partial(dict, state)


def alone_in(folder: Path | None) -> AbstractContextManager[None]:
    """A context in which no other run can use the folder. Only the first rank locks the folder."""
    if folder is None or rank_here():
        return nullcontext()
    return claim(folder / LOCK, f"another run is training in {folder}", stays=False)


def share_streams(streams: Mapping[str, StreamedRows], engine: Engine) -> None:
    """Share the work of streams among all ranks, and continue at the positions of a state.

    Raises:
        MaskwiseError: a shard has changed, on any rank.
    """
    failure = None
    for name, stream in streams.items():
        stream.share(engine.batch_ranks())
        if not engine.start:
            continue
        try:
            stream.resume(engine.streams[name])
        except MaskwiseError as error:
            failure = error
    # Shards may have changed on some machines only.
    engine.summed({}, failure)


def stop(
    engine: Engine,
    log: Log,
    save: Callable[[int], None],
    asked: Asked,
    done: int,
) -> NoReturn:
    """Save a training state after a signal, and end the program.

    Raises:
        AskedToLeave: always, with the code 128 + the number of the signal.
        MaskwiseError: a loss or gradient since the last line of metrics is not finite.
    """
    # Another rank may have received the signal.
    number = asked.number or SIGTERM
    asked.served = True
    if engine.states:
        log.read(done)
        save(done)
        engine.wait()
        where = (
            f"saved the state of step {done} in {engine.states.folder}; the same call resumes it"
        )
    else:
        where = f"ended at step {done} without a state"
    if asked.said:
        engine.say(f"{CODES[128 + number]}: {where}")
    engine.wait()
    engine.wrapped = None
    leave()
    raise AskedToLeave(128 + number)
