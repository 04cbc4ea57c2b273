"""The study of a request: its recipe, its plan, and its run."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from maskwise.base.errors import MaskwiseError, duration, option
from maskwise.base.signals import temporary_folder
from maskwise.jobs.pools import require_one_process
from maskwise.recipe.described import with_schema
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.answer import answers, next_of
from maskwise.studies.adapt.draft import RECIPE, Texts, cut_rows, draft_of
from maskwise.studies.adapt.request import PAIRS, Request, time_limit
from maskwise.studies.adapt.saved import save_best
from maskwise.studies.adapt.student import save_student
from maskwise.studies.checks import folder_of_study
from maskwise.studies.forecast import (
    check,
    dry_run,
    first_of,
    range_words,
    require_trainable_arm,
)
from maskwise.studies.from_files import Draft
from maskwise.studies.inputs import kept_if_begun, settled
from maskwise.studies.records import has_results
from maskwise.studies.run import run_study
from maskwise.studies.stages import ROWS
from maskwise.studies.text_sample import Samples

if TYPE_CHECKING:
    from maskwise.jobs.pools import Executor

LEAST_STEPS = 100
"""With fewer steps, further training has little effect."""


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
        self.request = replace(request, tasks=settled(request.tasks, request.out))
        self._limit = None if request.time is None else time_limit(request.time)
        self._used = has_results(request.out)
        self._checked = False
        self._temporary = temporary_folder()
        self._folder = self._temporary.__enter__()
        # A plan writes nothing for good.
        self._texts = Texts(request.texts, (self._folder if dry_run else request.out) / ROWS)
        self._kept = kept_if_begun(folder_of_study(request.out))

    def __enter__(self) -> Adaptation:
        self._kept.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        """Remove the temporary files, and those of a study that has not begun."""
        self._temporary.__exit__(*error)
        self._kept.__exit__(*error)

    @cached_property
    def draft(self) -> Draft:
        """The recipe that is run, with comments."""
        return draft_of(self.request, self._texts)

    def plan(self, tell: Callable[[Plain], object] = lambda record: None, **asked: Any) -> Plain:
        """Return the plan of the study.

        Args:
            tell: as for ``forecast.check``.
            asked: further arguments of ``forecast.check``, such as ``detect``.

        Returns:
            The record of ``forecast.check``; ``max_length``; ``cut``: the share of truncated rows
            by task; ``held_out``: the share of documents that are held out; ``made_task``: the
            task that is made of them, or None; ``limit``: if the study takes longer than the time
            that the user gave, what keeps it (``_fewer_steps``), else None.
        """
        recipe = self.draft.recipe
        samples = Samples(first_of(recipe), self._folder)
        limit = math.inf if self._limit is None else self._limit
        asked |= {"out": self.request.out, "samples": samples, "limit": limit, **self._where}
        plan = check(recipe, tell=tell, **asked)
        self._checked = True
        plan["max_length"] = recipe.finetune.max_length
        plan["cut"] = cut_rows(recipe)
        plan["held_out"] = recipe.corpus.held_out
        plan["made_task"] = None if self.request.tasks else PAIRS
        plan["limit"] = self._fewer_steps(plan) if plan["least_seconds"] > limit else None
        return plan

    @property
    def _where(self) -> dict[str, Any]:
        return {"jobs": self.request.jobs, "processes": self.request.processes}

    def _fewer_steps(self, plan: Plain) -> Plain:
        """Find the largest number of steps with which the study keeps the limit.

        It surely does if something bounds the time of all stages; otherwise it may.

        Args:
            plan: the plan with the steps that the user asks for.

        Returns:
            ``steps`` and ``seconds`` of the study; those of the fewest steps if none keeps it.
            ``bounded``: whether the seconds are the most that it takes, and not the least.
        """
        assert self._limit is not None

        def planned(steps: int) -> Plain:
            recipe = draft_of(replace(self.request, steps=steps), self._texts).recipe
            # It is a different study, so stages of this one's folder are not its own.
            return dry_run(recipe, self._folder / "fewer", **self._where)

        steps = self.request.steps
        least = min(LEAST_STEPS, steps)
        shortest = planned(least)
        bounded = None not in (plan["most_seconds"], shortest["most_seconds"])

        def seconds_of(plan: Plain) -> float:
            most = plan["most_seconds"] if bounded else plan["least_seconds"]
            return math.inf if most is None else float(most)

        seconds, fewest = seconds_of(plan), seconds_of(shortest)
        if fewest > self._limit:
            return {"steps": least, "seconds": fewest, "bounded": bounded}
        while seconds > self._limit:
            # Interpolate, because the time is roughly linear in the number of steps.
            share = (self._limit - fewest) / (seconds - fewest)
            steps = least + 10 * int(share * (steps - least) / 10)
            seconds = fewest if steps == least else seconds_of(planned(steps))
        return {"steps": steps, "seconds": seconds, "bounded": bounded}

    def over_time(self, plan: Plain) -> MaskwiseError | None:
        """Return the error of a plan that takes longer than the time that the user gave; None of
        another.
        """
        fewer = plan["limit"]
        if self._limit is None or fewer is None:
            return None
        steps, takes = option("steps", fewer["steps"]), duration(fewer["seconds"])
        if fewer["seconds"] > self._limit:
            # The next rehearsal may differ a little.
            enough = option("time", f"{math.ceil(1.2 * fewer['seconds'] / 60)}m")
            may = "may take" if fewer["bounded"] else "takes at least"
            do = f"even {steps} {may} {takes}: give it, and {enough}"
        elif fewer["bounded"]:
            do = f"set {steps}, the most that keep it ({takes}), or allow more"
        else:
            do = f"set {steps}, the most that may keep it (at least {takes}), or allow more"
        return MaskwiseError(
            f"the study takes longer than {option('time')}",
            got=range_words(plan),
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
            files=with_schema(RECIPE, self.draft.text),
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
            save_student(request.out, request.model, recipe.corpus.length)
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
