"""What a user asks of ``maskwise adapt``, and how it is asked: as a command, and in Python."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.base.errors import MaskwiseError, option, shell_words
from maskwise.results.usual import STEPS, USUAL_ARM
from maskwise.verdict import statistics
from maskwise.verdict.statistics import ALPHA

PAIRS = "title-to-text"
"""The name of the task that is made from the text if the user gives none."""
GENERAL_TEXT, PASSAGES = "general text", "general-text"
"""The names of the measure and of the task on general text."""
GENERAL_MASKS = {GENERAL_TEXT: "token", f"{GENERAL_TEXT}, words": "whole-word"}
"""The measures on general text, with the masks of each."""
NEW_WORDS = "-new-words"
STUDENT = "student"
"""The name of the arm with fewer layers, and of the folder of its model."""
TRIMMED = "trimmed"
"""The arm that has fewer tokens, and is not trained."""
OTHER_TEXT = "-other-text"
"""The end of the name of an arm that is trained on other text."""


class Invocation(NamedTuple):
    """The same work as a command, and in Python."""

    command: str
    python: str


def invocation_of(
    function: str, *places: str, overrides: Sequence[str] = (), **given: object
) -> Invocation:
    """Return a command of maskwise, and the call of its function in Python.

    >>> asked = invocation_of("adapt", "my model", "a.txt", tasks=["b 1.csv"], seeds=(6, 7))
    >>> asked.command
    "maskwise adapt 'my model' a.txt --task 'b 1.csv' --seeds 6-7"
    >>> print(asked.python)
    import maskwise as mw
    <BLANKLINE>
    mw.adapt(
        'my model',
        'a.txt',
        tasks=['b 1.csv'],
        seeds=range(6, 8),
    )

    Args:
        function: the name of both.
        places: the arguments without a name.
        overrides: settings, as key=value.
        given: the options, keyed as in Python.
    """
    words: list[object] = ["maskwise", function, *places, *overrides]
    lines = [repr(place) for place in places]
    for name, value in given.items():
        said = repr(str(value) if isinstance(value, Path) else value)
        flag = f"--{name.replace('_', '-')}"
        if name == "tasks":
            assert isinstance(value, list)
            for task in value:
                words += ["--task", task]
        elif name == "seeds":
            assert isinstance(value, tuple)
            words += [flag, _seeds_words(value)]
            said = f"range({value[0]}, {value[-1] + 1})" if _is_range(value) else said
        elif isinstance(value, tuple):
            words += [flag, ",".join(map(str, value))]
        else:
            words += [flag, value]
        lines.append(f"{name}={said}")
    if overrides:
        lines.append(f"overrides={[*overrides]!r}")
    call = "".join(f"    {line},\n" for line in lines)
    return Invocation(shell_words(words), f"import maskwise as mw\n\nmw.{function}(\n{call})")


@dataclass(frozen=True)
class Request:
    """What a user asks of ``maskwise adapt``.

    Attributes:
        model: a folder, a hub id, ``bundled:encoder`` or ``package:NAME``.
        texts: a corpus, as for ``read_documents``.
        out: the folder of the study.
        tasks: files with labelled rows; if empty, a task of titles and texts is made from documents
            that are held out from training.
        arms: names in ``usual.ARMS``. The first arm is compared with the unchanged model.
        policy: the folder of a learned masking policy, for an additional arm ``learned``.
        new_words: the number of words of the text that become tokens in an additional arm, which is
            compared with the first arm.
        trim_tokens: the number of tokens that all arms keep, the most frequent ones of the text;
            an additional arm is not trained, and both are compared with the unchanged model.
        student_layers: the number of layers of a student of the model, in an additional arm, which
            is compared with the unchanged model.
        control: another corpus, on which an additional arm is trained in the same way as the first,
            which is compared with it.
        keep: general text, for what the arms forget of it: a corpus, ``OFF`` for none, or None for
            ``GENERAL`` if the text is English.
        replay: the share of general text in the training rows of an additional arm.
        steps: the number of further training steps.
        patience: the number of evaluations without a lower loss of dev documents after which a run
            ends; its best state is then evaluated. None to train all steps.
        lengths: shares of the steps after which training also ends, with a decay of the learning
            rate; each run keeps the length with the lowest loss of dev documents. None for all
            steps only.
        head_steps: the number of steps that train a new head first; None for the smaller of
            ``steps`` and ``STEPS``.
        seeds: the number of runs of each arm, or their seeds; 0 for ``least_runs``.
        overrides: ``key=value`` settings, except those in ``OPTIONS``.
        time: the time limit, such as "2h"; None for no limit.
        jobs: the number of stages that run in parallel; None for the number of GPUs or cores,
            divided by ``processes``.
        processes: the number of processes that train each model together.
    """

    model: str
    texts: str
    out: Path
    tasks: tuple[str, ...] = ()
    arms: tuple[str, ...] = (USUAL_ARM,)
    policy: str | None = None
    new_words: int | None = None
    trim_tokens: int | None = None
    student_layers: int | None = None
    control: str | None = None
    keep: str | None = None
    replay: float | None = None
    steps: int = STEPS
    patience: int | None = None
    lengths: tuple[float, ...] | None = None
    head_steps: int | None = None
    seeds: int | tuple[int, ...] = 0
    overrides: tuple[str, ...] = ()
    time: str | None = None
    jobs: int | None = None
    processes: int = 1

    def __post_init__(self) -> None:
        if self.seeds == 0:
            object.__setattr__(self, "seeds", self.least_runs)

    @property
    def chooses(self) -> bool:
        """Whether each run chooses its weights on held-out documents."""
        return self.patience is not None or self.lengths is not None

    @property
    def extended(self) -> str | None:
        """The name of the arm with new words; None without it."""
        return None if self.new_words is None else f"{self.arms[0]}{NEW_WORDS}"

    @property
    def controlled(self) -> str | None:
        """The name of the arm that is trained on other text; None without it."""
        return None if self.control is None else f"{self.arms[0]}{OTHER_TEXT}"

    @property
    def replayed(self) -> str | None:
        """The name of the arm that is also trained on general text; None without it."""
        return None if self.replay is None else f"{self.arms[0]}-replay"

    @property
    def apart(self) -> list[int]:
        """The changes of the model that are asked for, which have a question each."""
        changes = (self.new_words, self.trim_tokens, self.student_layers)
        return [change for change in changes if change is not None]

    @property
    def least_runs(self) -> int:
        """The least number of runs of each arm with which every question can be decided.

        Questions that are tested one after the other do not lower each other's level. What changes
        of the model are worth does not depend on another answer, so all questions are then one
        family, to which other text adds one more.
        """
        questions = 1
        if self.apart:
            questions += len(self.apart) + (self.control is not None)
        return statistics.fewest_runs(ALPHA / questions)

    @property
    def runs(self) -> int:
        """The number of runs of each arm."""
        return self.seeds if isinstance(self.seeds, int) else len(self.seeds)

    def invocation(self, *overrides: str, **changes: Any) -> Invocation:
        """Return how to ask for this, with more overrides and changed attributes."""
        asked = replace(self, **changes)
        # The first three are arguments.
        usual = {field.name: field.default for field in fields(Request)[3:]}
        usual |= {"seeds": asked.least_runs, "overrides": asked.overrides}
        given: dict[str, Any] = {}
        for name, default in usual.items():
            value = getattr(asked, name)
            if value != default:
                of_number = name == "seeds" and isinstance(value, int)
                given["runs" if of_number else name] = [*value] if name == "tasks" else value
        given |= {"overrides": (*asked.overrides, *overrides), "out": asked.out}
        return invocation_of("adapt", asked.model, asked.texts, **given)


def refuse_both(runs: int | None, seeds: object) -> None:
    """Raise an error if both a number of runs and their seeds are given."""
    if runs is not None and seeds is not None:
        raise MaskwiseError(
            "seeds are those of all runs, so a number of runs has no effect beside them",
            got=f"{runs} runs, and seeds {seeds}",
            do="give one of the two",
        )


def _seeds_words(seeds: Sequence[int]) -> str:
    """Return seeds as the option ``--seeds`` has them, such as 6-35 or 3,9."""
    return f"{seeds[0]}-{seeds[-1]}" if _is_range(seeds) else ",".join(map(str, seeds))


def _is_range(seeds: Sequence[int]) -> bool:
    return [*seeds] == [*range(seeds[0], seeds[-1] + 1)]


def time_limit(text: str) -> float:
    """Convert a duration such as 2h, 90m or 1h30m to seconds; a bare number means minutes."""
    import pandas as pd

    try:
        seconds = pd.Timedelta(f"{text}m" if text.isdecimal() else text).total_seconds()
    except ValueError:
        seconds = 0.0
    # Written with ``not``, this also rejects NaT, for which all comparisons are false.
    if not seconds >= 60:
        raise MaskwiseError(
            f"{option('time')} must be a duration",
            got=repr(text),
            allowed="a minute or more, such as 2h, 90m or 1h30m",
        )
    return seconds
