"""Trackers, such as TensorBoard, trackio and Weights & Biases: what each is told of a training.

The trackers are those of the package Accelerate, which a program can add to
(``accelerate.tracking.register_tracker_class``). Only the first rank has trackers.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from maskwise.base.errors import MaskwiseError, first_line, require_known
from maskwise.base.printing import LOGGER

if TYPE_CHECKING:
    from accelerate.tracking import GeneralTracker

PROJECT = "maskwise"
"""The project, or experiment, of all runs."""

WORDS: dict[str, dict[str, str]] = {
    "wandb": {"group": "{group}", "name": "{name}", "id": "{id}", "resume": "allow"},
    # It has no word for an id, and continues the run of the same name.
    "trackio": {"group": "{group}", "name": "{name}, {id:.8}", "resume": "allow"},
    "mlflow": {"run_name": "{group}/{name}, {id:.8}"},
    "clearml": {"task_name": "{group}/{name}, {id:.8}"},
}
"""The arguments, by tracker, that say the study, the run and its id. Another tracker has only one
word, which it takes as the name of a run: TensorBoard and Aim, for example."""
ONE_WORD = "{group}/{name}"


@dataclass(frozen=True)
class Tracked:
    """A training, as trackers show it.

    Attributes:
        group: the study.
        name: the arm and seed.
        id: what the run keeps when it is resumed, and no other run has.
        config: its settings, keyed by dotted names.
        folder: where trackers write that have no place of their own.
    """

    group: str
    name: str
    id: str
    config: Mapping[str, object]
    folder: Path


def id_of(folder: Path, *words: str) -> str:
    """Return an id of a run that keeps its folder and these words."""
    return hashlib.sha256(json.dumps([str(folder.resolve()), *words]).encode()).hexdigest()[:16]


_CURRENT: ContextVar[Tracked | None] = ContextVar("tracked", default=None)


@contextmanager
def tracked_as(run: Tracked | None) -> Iterator[None]:
    """A context in which a training is shown under these words."""
    token = _CURRENT.set(run)
    try:
        yield
    finally:
        _CURRENT.reset(token)


def tracked_now() -> Tracked | None:
    """Return the words of the training that runs now; None if nobody has said them."""
    return _CURRENT.get()


def require_trackers(names: Iterable[str]) -> None:
    """Raise an error if Accelerate does not know a tracker, or the tracker is not installed."""
    for name in names:
        from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers
        from accelerate.utils import LoggerType

        require_known("tracker", name, ["all", *LOGGER_TYPE_TO_CLASS])
        missing = {*map(str, LoggerType)} - {"all", *map(str, get_available_trackers())}
        if name in missing:
            do = f"pip install {name.replace('_', '-')}"
            raise MaskwiseError(f"the tracker {name} is not installed", do=do)


def start_trackers(names: Iterable[str], run: Tracked, *, new: bool) -> list[GeneralTracker]:
    """Start trackers.

    Args:
        names: the names of trackers, or "all" for those that are installed.
        run: what they are told.
        new: whether to store the settings of the run. One that is resumed has stored them.

    Raises:
        MaskwiseError: a tracker does not start.
    """
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, filter_trackers

    run.folder.mkdir(parents=True, exist_ok=True)
    # A name may be that of a folder.
    words = {key: str(value).replace("/", "-") for key, value in asdict(run).items()}
    told = {"study": run.group, "run": run.name, "run_id": run.id}
    config = {name: _plain(value) for name, value in {**told, **run.config}.items()}
    started = []
    for name in map(str, filter_trackers([*names], run.folder)):
        kind = LOGGER_TYPE_TO_CLASS[name]
        project = PROJECT if name in WORDS else ONE_WORD.format(**words)
        places = [run.folder] if kind.requires_logging_directory else []
        more = {key: word.format(**words) for key, word in WORDS.get(name, {}).items()}
        try:
            tracker = kind(project, *places, **more)
            # Otherwise, Accelerate would ask all ranks which of them is the first.
            tracker.main_process_only = False
            tracker.start()
            # trackio forgets the settings of a run that is continued; TensorBoard adds them again.
            if new or name in WORDS:
                tracker.store_init_configuration(config)
        except Exception as error:
            # Each library has errors of its own, such as for a missing login.
            raise MaskwiseError(
                f"the tracker {name} does not start",
                got=first_line(error),
                do=f"see the documentation of {name}, or remove it from training.trackers",
            ) from error
        started.append(tracker)
    return started


def track_scores(
    names: Iterable[str], run: Tracked, numbers: Mapping[str, float], step: int, *, new: bool
) -> None:
    """Add numbers to a run whose training has ended. Without a connection, only a line is lost.

    Args:
        names, run, new: as for ``start_trackers``.
        numbers: the numbers, keyed by name.
        step: the step under which trackers show them.
    """
    from accelerate.state import PartialState
    from accelerate.utils import clear_environment

    # Accelerate's trackers ask for its state. One process reports, also of those of torchrun.
    trained_here = bool(PartialState._shared_state)
    if not trained_here:
        with clear_environment():
            PartialState(cpu=True)
    try:
        trackers = start_trackers(names, run, new=new)
        track(trackers, numbers, step)
        finish_trackers(trackers)
    except MaskwiseError as error:
        LOGGER.warning("the scores of %s are not tracked: %s", run.name, error)
    finally:
        if not trained_here:
            PartialState._reset_state()


def track(trackers: Iterable[GeneralTracker], numbers: Mapping[str, float], step: int) -> None:
    """Send numbers to trackers."""
    for tracker in trackers:
        tracker.log(dict(numbers), step=step)


def finish_trackers(trackers: Iterable[GeneralTracker]) -> None:
    """Close trackers. Some upload only then."""
    for tracker in trackers:
        tracker.finish()


def _plain(value: object) -> object:
    """Return a setting as trackers accept it: no list, no mapping and no None."""
    return value if isinstance(value, bool | int | float | str) else str(value)
