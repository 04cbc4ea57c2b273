"""What the loop does where it cannot simply go on: another run in its folder, a signal, a loss that is not finite."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from signal import SIGTERM
from typing import Any

from maskwise.constants import rank_here
from maskwise.errors import MaskwiseError
from maskwise.folders import claim
from maskwise.signals import CODES, Asked
from maskwise.training.data import Source, Step, look_ahead
from maskwise.training.engine import Engine, leave
from maskwise.training.learners import Learner, restore, states
from maskwise.training.log import Log, NotFinite

LOCK = ".training.lock"
"""In the folder of a run: held while it trains. The lock of a process that died is free."""

MOST_REWINDS = 10
"""How often a run may go back; where this is not enough, its settings are wrong."""


class Steps:
    """The steps of a training, which may be told to go on with another one: ``next``.

    Args:
        source: of the batches.
        first, last: the first step, and the one behind the last.
        place: as for ``look_ahead``.
    """

    def __init__(self, source: Source, first: int, last: int, **place: Any):
        self.source, self.next, self.last, self.place = source, first, last, place

    def __iter__(self) -> Iterator[Step]:
        while self.next < self.last:
            for step in look_ahead(self.source, range(self.next, self.last), **self.place):
                self.next = step.number + 1
                yield step
                if self.next != step.number + 1:
                    break


def alone(folder: Path | None) -> AbstractContextManager[None]:
    """Keep other runs out of a folder. The first rank does it for all."""
    if folder is None or rank_here():
        return nullcontext()
    return claim(folder, "another run trains into", lock=LOCK, stays=False)


def stop(engine: Engine, log: Log, learners: Mapping[str, Learner], asked: Asked, done: int) -> None:
    """Save a state, say so, and end the program, as a signal asked for.

    Raises:
        SystemExit: 128 + the signal's number.
        NotFinite: what would be saved is worth nothing.
    """
    number = asked.number or SIGTERM  # another rank's
    asked.served, name = True, CODES[128 + number]
    if engine.states:
        log.read(done)
        engine.save(done, log.so_far(), states(learners))
        engine.wait()
        where = f"{name}: saved the state of step {done} in {engine.states.folder}"
        engine.say(f"{where}; the same call goes on from it")
    else:
        engine.say(f"{name}: ended at step {done}; nothing is saved, because training.save_every is 0")
    engine.finish()
    engine.wrapped = None
    leave()
    raise SystemExit(128 + number)


def rewind(engine: Engine, log: Log, learners: Mapping[str, Learner], error: NotFinite) -> int:
    """Go back to the last state; returns the step to go on with, which is the one behind the error.

    Raises:
        MaskwiseError: it was not asked for, there is no state, or it has been done too often.
    """
    if engine.settings.on_nan != "rewind":
        raise error
    if log.totals.rewinds >= MOST_REWINDS:
        raise MaskwiseError(f"{error}; training went back {MOST_REWINDS} times already")
    to = engine.rewind()
    if not to:
        raise MaskwiseError(f"{error}; there is no state to go back to yet")
    restore(learners, engine.learned)
    log.rewound(error.step, to)
    on = f"back to the state of step {to}, and on with step {error.step + 1}"
    engine.say(f"the loss or gradient is not finite at step {error.step}: {on}")
    return error.step
