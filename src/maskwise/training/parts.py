"""The parts of a training that is ended at several lengths (``training.lengths``).

    steps   0 ──── stable ──── b ──── stable ──── c ──── stable, then decay ──── N
                               └ decay ─ N/4       └ decay ─ N/2

The learning rate stays high (after the warm-up), and for each length, a short decay branches off
from it. So the longest length is the training as it would be without the others, and each of the
others costs only its decay. Every part is a training of its own, which begins with the state of an
earlier part and is resumed like any other.

Source: Hägele et al. 2024, arXiv 2405.18392: decays from one stable run, in place of a run for each
length.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import NamedTuple

from maskwise.base.constants import rank_here
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import linked, writing
from maskwise.training.checkpoint import RESUME, State, States
from maskwise.training.rates import falling_share
from maskwise.training.settings import TrainingSettings

STATE_FOLDER = "state"
"""The subfolder of a run with the state with which other parts begin."""


class TrainingPart(NamedTuple):
    """A part of a training of ``training.steps`` steps.

    Attributes:
        begin: the number of updates before this part.
        steps: the number of updates in this part.
        falls: whether the learning rate falls to 0 at the end. If not, other parts begin with the
            state at the end.
    """

    begin: int
    steps: int
    falls: bool

    @property
    def end(self) -> int:
        """The number of updates after this part."""
        return self.begin + self.steps


def parts_of(settings: TrainingSettings) -> list[TrainingPart]:
    """List the parts of a training with ``lengths``, each after the part with which it begins.

    A part that begins at step n > 0 begins with the state of the part that ends at n.

    >>> how = TrainingSettings(steps=1200, decay="wsd", lengths=(0.25, 0.5, 1))
    >>> [(part.begin, part.end) for part in parts_of(how) if part.falls]
    [(270, 300), (540, 600), (540, 1200)]
    >>> [(part.begin, part.end) for part in parts_of(how) if not part.falls]
    [(0, 270), (270, 540)]
    """
    assert settings.lengths is not None, "only a training with lengths has parts"
    share = falling_share(settings.decay, settings.decay_share)
    parts: list[TrainingPart] = []
    begin = 0
    # Recipes refuse lengths that are the same number of steps, so no part is empty.
    for end in settings.ends:
        # The last length decays at the end of its own part.
        if end < settings.steps:
            stable = int(end * (1 - share))
            if stable > begin:
                parts.append(TrainingPart(begin, stable - begin, falls=False))
                begin = stable
        parts.append(TrainingPart(begin, end - begin, falls=True))
    return parts


def begin_with(state: Path, folder: Path, *, step: int) -> State:
    """Put the state that a part begins with where a run is resumed from, unless it has begun.

    The first rank does this before all ranks choose a state together (``Engine``).

    Args:
        state: the folder ``STATE_FOLDER`` of the part before.
        folder: the folder of the run.
        step: the number of updates before the part.

    Returns:
        The state, whose totals are those of the parts before.

    Raises:
        MaskwiseError: the state is missing or damaged.
    """
    states = States(state, keep=1)
    first = rank_here() == 0
    found = states.newest(lambda line: None) if first else states.read(step)
    states.close()
    if found is None:
        raise MaskwiseError(
            "the state that a part of a training begins with is missing or damaged",
            got=str(state),
            do=f"remove {state.parent}, and run the same command again",
        )
    if first and not any((folder / RESUME).glob("step-*")):
        link(states.path(found.step), folder / RESUME / states.path(found.step).name)
    return found


def leave_state(folder: Path, end: int) -> None:
    """Keep the state after ``end`` updates, which other parts begin with, on the first rank."""
    if rank_here() > 0:
        return
    name = f"step-{end:08d}"
    link(folder / RESUME / name, folder / STATE_FOLDER / name)


def link(source: Path, target: Path) -> None:
    """Copy a folder without its bytes, if the file system has links. Its files never change."""
    partial = target.with_name(f".{target.name}.partial")
    with writing(target):
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(source, partial, copy_function=linked)
        partial.rename(target)
