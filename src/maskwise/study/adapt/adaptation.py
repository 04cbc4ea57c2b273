"""The study of a request: its recipe, its plan, and its run."""

from __future__ import annotations

import math
import re
import tempfile
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from maskwise.errors import MaskwiseError, duration, option
from maskwise.jobs import require_one_process
from maskwise.recipe.described import schema_line
from maskwise.recipe.yamls import Plain
from maskwise.signals import LEFT
from maskwise.study.adapt.answer import answers, next_of
from maskwise.study.adapt.draft import RECIPE, Texts, cut_rows, draft_of
from maskwise.study.adapt.request import PAIRS, Request
from maskwise.study.adapt.saved import save_best
from maskwise.study.adapt.smaller import smaller_plan
from maskwise.study.checks import folder_of_study
from maskwise.study.forecast import check, dry_run, first_of, require_trainable_arm
from maskwise.study.from_files import Draft
from maskwise.study.inputs import kept_if_begun
from maskwise.study.records import has_results
from maskwise.study.run import run_study
from maskwise.study.stages import ROWS
from maskwise.study.timing import Samples

if TYPE_CHECKING:
    from maskwise.jobs import Executor


class Adaptation:
    """The study of a request.

    Use it as a context manager, because it keeps files in a temporary folder.

    Args:
        request: what the user asks.
        dry_run: whether the study will be planned only, so that no file is written.

    Raises:
        MaskwiseError: the request is invalid.
    """

    def __init__(self, request: Request, *, dry_run: bool = False):
        require_one_process()
        self.request = request
        self._seconds = request.seconds
        self._used = has_results(request.out)
        self._checked = False
        self._temporary = tempfile.TemporaryDirectory(prefix="maskwise-")
        self._folder = Path(self._temporary.name)
        LEFT.add(self._folder)
        # A plan writes nothing for good.
        self._texts = Texts(request.texts, (self._folder if dry_run else request.out) / ROWS)
        self._kept = kept_if_begun(folder_of_study(request.out))

    def __enter__(self) -> Adaptation:
        self._kept.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Remove the temporary files, and those of a study that has not begun."""
        self._temporary.cleanup()
        self._kept.__exit__(*error)

    @cached_property
    def draft(self) -> Draft:
        """The recipe that is run, with comments."""
        return self._draft_of(self.request)

    def _draft_of(self, request: Request) -> Draft:
        return draft_of(request, self._texts)

    def plan(self, *, tell: Callable[[str], object] = lambda line: None, **asked: Any) -> Plain:
        """Return the plan of the study, and a smaller one if it exceeds the time limit.

        Args:
            tell: called with a line if the search for a smaller plan begins.
            asked: further arguments of ``forecast.check``, such as ``detect``.

        Returns:
            The record of ``forecast.check``; ``max_length``; ``cut``: the share of truncated rows
            by task; ``held_out``: the share of documents that are held out; ``made_task``: the
            task that is made of them, or None. ``smaller``: a smaller plan with its ``command``,
            ``seconds`` (None if unknown) and ``contrasts``, and whether it ``fits``.
        """
        request = self.request
        recipe = self.draft.recipe
        samples = Samples(first_of(recipe), self._folder)
        where: dict[str, Any] = {"jobs": request.jobs, "processes": request.processes}
        plan = check(recipe, out=request.out, samples=samples, **where, **asked)
        self._checked = True
        plan["max_length"] = recipe.finetune.max_length
        plan["cut"] = cut_rows(recipe)
        plan["held_out"] = recipe.corpus.held_out
        plan["made_task"] = None if request.tasks else PAIRS
        if (plan["seconds"] or 0.0) <= self._seconds:
            return plan
        tell("Looking for a smaller plan …")
        # A smaller plan is a different study, which needs a folder of its own.
        out = request.out
        if self._used:
            out = out.with_name(f"{out.name}-smaller")
        plans: dict[Request, Plain] = {}

        def seconds_of(smaller: Request) -> float:
            if smaller not in plans:
                changed = self._draft_of(smaller).recipe
                timed = samples if asked.get("timing", True) else None
                plans[smaller] = dry_run(changed, out, samples=timed, **where)
            seconds: float | None = plans[smaller]["seconds"]
            return math.inf if seconds is None else seconds

        smaller, fits = smaller_plan(recipe, request, seconds_of, self._seconds)
        seconds = seconds_of(smaller)
        options: dict[str, Any] = {"out": out}
        known = math.isfinite(seconds)
        if not fits and known:
            options["time"] = f"{math.ceil(seconds / 60) + 1}m"
        plan["smaller"] = {
            "steps": smaller.steps,
            "seeds": smaller.seeds,
            "tasks": smaller.tasks,
            "overrides": tuple(set_ for set_ in smaller.overrides if set_ not in request.overrides),
            "decides": smaller.runs >= smaller.least_runs,
            "seconds": seconds if known else None,
            "fits": fits,
            "contrasts": plans[smaller]["contrasts"],
            "command": smaller.invocation(**options).command,
        }
        return plan

    def require_time(self, plan: Plain) -> None:
        """Raise ``MaskwiseError`` if a plan takes longer than the limit that the user gave, or an
        unknown time.
        """
        if self.request.time is not None and plan["seconds"] is None:
            why = [
                f" ({plan['untimed'][kind]})" for kind in plan["unknown"] if kind in plan["untimed"]
            ]
            do = f"remove {option('time')}"
            if len(why) < len(plan["unknown"]):
                do = f"run this again, which measures what is left, or {do}"
            raise MaskwiseError(
                f"the study may take longer than {option('time')}, because the time of "
                f"{' and '.join(plan['unknown'])} is unknown{why[0] if why else ''}",
                got=self.request.time,
                do=do,
            )
        if self.request.time is None or "smaller" not in plan:
            return
        do = f"allow more time, or remove {option('time')}"
        if plan["smaller"]["fits"]:
            smaller = ", ".join(_changes(self.request, plan["smaller"]))
            do = f"use the smaller plan ({smaller}), or remove {option('time')}"
        raise MaskwiseError(
            f"the study takes longer than {option('time')}",
            got=duration(plan["seconds"]),
            allowed=self.request.time,
            do=do,
        )

    def run(self, executor: Executor | None = None) -> Plain:
        """Write the recipe, run the study, and save the adapted model.

        Args:
            executor: as for ``run_study``.

        Returns:
            The result of ``run_study``, and ``answer``, ``details``, ``forgotten`` (a list of
            ``Forgotten``), ``next`` (as in ``NextStep``), ``adapted`` (``Saved``, or None),
            ``kept`` (a sentence about it), ``folders``, ``helps`` (the arm that is decided to be
            better, or None) and ``held_out``.

        Raises:
            MaskwiseError: no arm can be trained, or ``run_study`` raises an error.
        """
        from maskwise.report import write_report

        request = self.request
        recipe = self.draft.recipe
        if not self._checked and not self._used:
            require_trainable_arm(recipe, Samples(first_of(recipe), self._folder))
        result = run_study(
            recipe,
            request.out,
            jobs=request.jobs,
            processes=request.processes,
            executor=executor,
            files={RECIPE: schema_line() + self.draft.text},
            call=f"maskwise adapt {request.model} {request.texts}",
        )
        next_step = next_of(result, recipe, request)._asdict()
        saved = None
        kept = "No run has finished, so there is no adapted model."
        # Other processes that run this study save the same model.
        with folder_of_study(request.out).alone():
            try:
                saved = save_best(request.out, result, next_step=next_step)
            except MaskwiseError as error:
                # The user may have deleted the checkpoints. The answer does not need them.
                kept = f"There is no adapted model: {error}."
            if saved:
                kept = saved["sentence"]
            # The page names the folders of the adapted model and the next step.
            write_report(request.out)
        return result | {
            **answers(request.out, result, recipe),
            "next": next_step,
            "adapted": saved,
            "folders": saved["folders"] if saved else [],
            "kept": kept,
            "held_out": recipe.corpus.held_out,
        }


def _changes(request: Request, smaller: Plain) -> Iterator[str]:
    """Yield the arguments with which a smaller plan is asked for, and the request was not."""
    for name in ("steps", "seeds"):
        if smaller[name] != getattr(request, name):
            yield f"{name}={smaller[name]!r}"
    yield from smaller["overrides"]
    # All tasks have the same limit. In Python, their files are not known to the user.
    limits = re.findall(r"\btest_rows=(\d+)", " ".join({*smaller["tasks"]} - {*request.tasks}))
    if limits:
        yield f"test_rows={limits[0]} in the tasks"
