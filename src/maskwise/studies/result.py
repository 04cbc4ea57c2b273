"""A study in Python: run it, and get its verdicts, the table of measurements, the page and models.

A result is read from the folder of a study, so that a study that ran on another machine, or from
the command line, gives the same object. Verdicts are computed anew, by today's rules.
"""

from __future__ import annotations

import html
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, cast

from maskwise.base.errors import (
    MaskwiseError,
    finite_number,
    items_of,
    require_known,
    tidied_warnings,
    visible,
    whole_number,
)
from maskwise.base.folders import OutputFolder, manifest_hashes, read_json, read_lines
from maskwise.base.printing import note
from maskwise.base.signals import resumable
from maskwise.jobs.pools import require_one_process
from maskwise.recipe.yamls import Plain
from maskwise.results.estimates import aligned_cells, failure_lines, loss_table, summary_lines
from maskwise.results.files import Contrast, Record, Study, Summary
from maskwise.results.measurements import measurements, table_of
from maskwise.results.usual import STEPS, USUAL_ARM
from maskwise.studies.inputs import (
    ROWS,
    AnyRecipe,
    Overrides,
    kept_if_begun,
    overrides_of,
    task_specs,
    text_source,
)

if TYPE_CHECKING:
    from pandas import DataFrame

    from maskwise.jobs.pools import Executor
    from maskwise.studies.adapt import NextStep


@dataclass(frozen=True, eq=False)
class StudyResult:
    """A finished or unfinished study.

    Attributes:
        folder: the study's folder.
        study: the content of study.json: the recipe, the arms, the seeds, the machine.
        records: what was measured, as lines of records.jsonl.
        summary: the verdicts and the numbers behind them, as in summary.json.

    >>> result = StudyResult.read("runs/quick-start")  # doctest: +SKIP
    >>> print(result)  # doctest: +SKIP
    >>> result.to_dataframe().groupby(["arm", "outcome"]).value.mean()  # doctest: +SKIP
    """

    folder: Path
    study: Study = field(repr=False)
    records: list[Record] = field(repr=False)
    summary: Summary = field(repr=False)

    @classmethod
    def read(cls, folder: str | Path) -> StudyResult:
        """Read the folder of a study; that of ``maskwise adapt`` gives an `Adapted`.

        Raises:
            MaskwiseError: the folder is no study, or has no records that can be judged yet.
        """
        from maskwise.report.reading import read_folder, summary_of

        folder = Path(folder)
        if not (folder / "study.json").is_file():
            what = "this folder holds no study" if folder.is_dir() else "there is no such folder"
            raise MaskwiseError(what, got=str(folder), do="give the folder `out` of a study")
        summary = summary_of(folder)
        records = cast(list[Record], list(read_lines(folder / "records.jsonl")))
        result = StudyResult(folder, read_folder(folder, summary).study, records, summary)
        return _adapted(result) if (folder / "adapt.yaml").is_file() else result

    @property
    def headline(self) -> str:
        """The answer of the study in one or two sentences."""
        return self.summary["headline"]

    @property
    def contrasts(self) -> list[Contrast]:
        """The rows of the primary contrasts: difference, interval, p value, verdict and flags."""
        return [row for row in self.summary["contrasts"] if row["primary"]]

    @property
    def verdicts(self) -> dict[tuple[str, str], str]:
        """The verdict of each primary contrast, keyed by (arm, baseline): "decided", "open", "no
        difference that matters" or "not comparable". A pair that is also a gate, at default
        settings, has that of the contrast; `contrasts` has both.
        """
        return {(row["arm"], row["baseline"]): str(row["verdict"]) for row in self.contrasts}

    @property
    def failures(self) -> list[Record]:
        """The failed runs, with their errors."""
        return [line for line in self.records if line["kind"] == "failure"]

    def to_dataframe(self) -> DataFrame:
        """Return one row for each number that was measured (`measurements.Measurement`).

        Columns are arm, seed, kind, measure, value, metric, unit, higher_is_better, split, ratio,
        chance, items, item_error, role and outcome. Runs of a gate are rows, too; ``role == ""``
        selects the compared runs.
        """
        tasks = cast(dict[str, Any], self.study["tasks"])
        return table_of(measurements(cast(list[Any], self.records), tasks))

    def page(self) -> Path:
        """Write the page of the study anew, and return its path (report.html)."""
        from maskwise.report import write_report

        return write_report(self.folder)

    @cached_property
    def best_arm(self) -> str:
        """The trained arm with the best mean of the primary outcome, decided or not.

        Raises:
            MaskwiseError: no arm has a result, not all planned seeds have run, or the outcome
                cannot compare all arms.
        """
        # Imported here because scipy, which plans and workers do not need, takes a second.
        from maskwise.report.reading import read_outcomes

        table = read_outcomes(self.folder)
        pending = self.study.get("pending")
        if pending:
            raise MaskwiseError(
                "arms are compared when all planned seeds have run",
                got=f"without {', '.join(map(str, pending))}",
                do="run these seeds, or name an arm: save_best(folder, arm=…)",
            )
        outcome = self.contrasts[0]["outcome"] if self.contrasts else ""
        means = table.means(outcome) if table and outcome in table.scales else {}
        if table is None or not means:
            raise MaskwiseError("no arm has a result", got=self.headline)
        first, *others = means
        if any(table.incomparable(first, arm, outcome) for arm in others):
            raise MaskwiseError(
                "no arm is the best one, because their losses are not comparable",
                got=outcome,
                do="name an arm: save_best(folder, arm=…), or compare them on tasks",
            )
        return max(means, key=means.__getitem__)

    def save_best(self, folder: str | Path, *, arm: str | None = None) -> Path:
        """Save the checkpoint of `best_arm`, that of its first finished run, for transformers.

        The model card in the folder names the study, the arm and the seed, and so does a line of
        the log.

        Args:
            folder: where to save it.
            arm: another arm than the best one.

        Returns:
            The folder.

        Raises:
            MaskwiseError: there is no such arm, no run of the arm has a checkpoint, or the folder
                has other files; or see `best_arm`.
        """
        # Imported here because reading a study needs no torch.
        from maskwise.studies.checkpoints import needed_run, origin_of, save_model

        folder = Path(folder)
        # A model that was saved before is replaced.
        known = "config.json" in manifest_hashes(folder)
        saved = OutputFolder(folder, "save_best", "save_best", known=known, keeps=False)
        saved.require()
        if arm is not None:
            require_known("arm", arm, self.study["arms"])
        chosen = arm or self.best_arm
        seed, checkpoint = needed_run(self.folder, chosen)
        of = origin_of(self.study["name"], chosen, seed)
        with saved.used({"save_best": True}):
            save_model(checkpoint, folder, of=of)
        note([f"{folder} has the model of arm {chosen}, seed {seed}"])
        return folder

    def __str__(self) -> str:
        lines = [*summary_lines(self.summary), *failure_lines(self.failures)]
        return "\n".join(
            [*lines, *map("  ".join, aligned_cells(loss_table(self.summary["losses"])))]
        )

    def _repr_html_(self) -> str:
        """Show the verdicts in a notebook."""
        rows = []
        for row in self.contrasts:
            cells = (row["arm"], row["baseline"], row["verdict"], row["sentence"])
            rows.append("".join(f"<td>{_escaped(str(cell))}</td>" for cell in cells))
        titles = "".join(f"<th>{title}</th>" for title in ("arm", "against", "verdict", ""))
        body = "".join(f"<tr>{cells}</tr>" for cells in rows)
        losses = "".join(
            f"<tr>{''.join(f'<td>{_escaped(cell)}</td>' for cell in line)}</tr>"
            for line in loss_table(self.summary["losses"])
        )
        page = self.folder / "report.html"
        lines = [*self.summary["advice"], *failure_lines(self.failures)]
        more = [f"<li>{_escaped(line)}</li>" for line in lines]
        return (
            f"<p><b>{_escaped(self.headline)}</b></p>"
            f"<table><thead><tr>{titles}</tr></thead><tbody>{body}</tbody></table>"
            f"<ul>{''.join(more)}</ul>"
            f"{losses and f'<table><tbody>{losses}</tbody></table>'}"
            f"<p>{_escaped(str(page))}</p>"
        )


def _escaped(text: str) -> str:
    return html.escape(visible(text))


@resumable(note)
@tidied_warnings()
def study(
    recipe: AnyRecipe = "quick-start",
    *,
    out: str | Path,
    texts: object = None,
    tasks: object = None,
    overrides: Overrides = (),
    seeds: Sequence[int] | None = None,
    jobs: int | None = None,
    processes: int = 1,
    engine: str = "local",
    executor: Executor | None = None,
) -> StudyResult:
    """Run all arms of a recipe with all seeds, and judge them (``maskwise study``).

    The same call resumes a study that was interrupted, and trains nothing again if it is finished.

    Args:
        recipe: the name of a shipped recipe, the path of a file, the settings as a dict (with
            ``extends`` for those of another recipe), or a recipe.
        out: the folder of the study.
        texts: the corpus, in place of the recipe's: the path of a file or another source, texts,
            dicts with the key "text", a data frame, or a dataset. What is no file is written to
            ``out``/data.
        tasks: the tasks, in place of the recipe's: specs, or labelled rows keyed by the name of
            their task, which may be keyed by split: ``{"topics": {"train": …, "test": …}}``.
        overrides: further settings to change.
        seeds: the seeds to run, if not all; there are no verdicts until all seeds have run.
        jobs: how many stages run in parallel; by default one for each GPU, or core, or for
            ``processes`` of them, or as many as the executor has workers.
        processes: how many processes train each model together, each on a GPU or core of its own.
        engine: where stages run: "local" or "ray".
        executor: what runs the stages instead: an object with ``submit(function, *arguments)``,
            such as a pool of ``concurrent.futures`` or an executor of submitit. It is not closed.

    Raises:
        MaskwiseError: the recipe or an input is invalid, an override has no effect, or ``out`` has
            other files or another study.

    >>> result = study({"extends": "quick-start"}, out="runs/demo")  # doctest: +SKIP
    >>> print(result)  # doctest: +SKIP
    >>> result.to_dataframe()  # doctest: +SKIP
    """
    from maskwise.recipe import read_recipe
    from maskwise.studies.checks import folder_of_study
    from maskwise.studies.plan import require_arms
    from maskwise.studies.run import run_study
    from maskwise.studies.unread import read_by_study, read_used

    require_one_process()
    processes = whole_number("processes", processes, least=1)
    if isinstance(seeds, int):
        raise MaskwiseError(
            "seeds are a list of seeds",
            got=seeds,
            do=f"for a number of runs, overrides={{'study.seeds': {seeds}}}",
        )
    if seeds is not None:
        seeds = [*items_of("seeds", seeds, of="whole numbers")]
    if jobs is not None:
        whole_number("jobs", jobs, least=1)
    out = Path(out)
    with kept_if_begun(folder_of_study(out, block=seeds is not None)):
        changes = overrides_of(overrides, texts, tasks, out)
        read = partial(read_recipe, recipe)
        # Without arms, no setting has an effect in a study.
        require_arms(read(changes))
        whole = read_used(read, changes, content=read_by_study, command="study")
        run_study(
            whole,
            out,
            jobs=jobs,
            engine=engine,
            executor=executor,
            processes=processes,
            seeds=seeds,
        )
    return StudyResult.read(out)


@dataclass(frozen=True)
class Check:
    """What a recipe would train, how long it takes, and what it can decide.

    Attributes:
        record: all facts, as `maskwise check --json` prints them.
    """

    record: Plain = field(repr=False)

    @property
    def doubts(self) -> list[str]:
        """Warnings about the recipe and its files, with what to do."""
        from maskwise.studies.forecast import problems_and_notes

        problems, _ = problems_and_notes(self.record)
        return [": ".join(each.values()) for each in problems]

    @property
    def notes(self) -> list[str]:
        """What else is worth knowing, such as rows that were left out."""
        from maskwise.studies.forecast import problems_and_notes

        return problems_and_notes(self.record)[1]

    @property
    def seconds(self) -> float | None:
        """How long the work takes; None if the time of some work is unknown."""
        return self.record["seconds"]

    def __str__(self) -> str:
        from maskwise.studies.forecast import lines_of

        lines = [f"{name}: {line}" for name, line in lines_of(self.record)]
        lines += [f"? {doubt}" for doubt in self.doubts]
        return "\n".join([*lines, *(f"· {note}" for note in self.notes)])


@tidied_warnings()
def check(
    recipe: AnyRecipe,
    *,
    texts: object = None,
    tasks: object = None,
    overrides: Overrides = (),
    out: str | Path | None = None,
    spread: str | float | None = None,
    detect: float | None = None,
    timing: bool = True,
    rehearse: bool = False,
) -> Check:
    """Say what a recipe would train and decide, without training (``maskwise check``).

    Nothing is written. A recipe without arms is checked as one training (``maskwise pretrain``).

    Args:
        recipe, texts, tasks, overrides: as for `study`.
        out: the folder of the study, whose finished stages count.
        spread: the standard deviation of paired differences, in points or nats, or the folder of a
            finished study with the same arms; by default, that of the study in ``out``.
        detect: a difference in points or nats: how many runs detect it?
        timing: whether to run stages with little text and few steps, unless their time is known.
        rehearse: whether to run every stage so, and to raise the first error.

    Raises:
        MaskwiseError: a study of this recipe would be refused, or a stage fails in a rehearsal.

    >>> print(check("quick-start", timing=False).record["training"]["steps"])
    450
    """
    from maskwise.recipe import read_recipe
    from maskwise.studies import forecast
    from maskwise.studies.unread import read_by_pretraining, read_by_study, read_used

    with TemporaryDirectory(prefix="maskwise-") as folder, _without_path(folder):
        changes = overrides_of(overrides, texts, tasks, Path(folder))
        alone = not read_recipe(recipe, changes).study.arms
        whole = read_used(
            partial(read_recipe, recipe),
            changes,
            content=read_by_pretraining if alone else read_by_study,
            command="pretrain" if alone else "study",
        )
        place = None if out is None else Path(out)
        record = forecast.check(
            whole, out=place, spread=spread, detect=detect, timing=timing, rehearse=rehearse
        )
    return Check(_without(record, f"{folder}/{ROWS}/"))


@contextmanager
def _without_path(folder: str) -> Iterator[None]:
    """Leave the path of a temporary folder out of errors: the user gave rows, and no file."""
    try:
        yield
    except MaskwiseError as error:
        parts = _without(dict(vars(error)), f"{folder}/{ROWS}/")
        raise MaskwiseError(
            parts["what"], got=parts["got"], allowed=parts["allowed"], do=parts["do"]
        ) from None


def _without(value: Any, path: str) -> Any:
    """Return a value with a path left out of all its texts."""
    if isinstance(value, str):
        return value.replace(path, "")
    if isinstance(value, dict):
        return {key: _without(each, path) for key, each in value.items()}
    if isinstance(value, list):
        return [_without(each, path) for each in value]
    return value


@dataclass(frozen=True, eq=False)
class Adapted(StudyResult):
    """A study that trained an encoder further, and the adapted model.

    Attributes:
        answer: whether further training helped, how much, and at what cost, in at most four
            sentences.
        details: further sentences.
        helps: the arm that is decided to be better than the unchanged model, by more than does not
            matter; None if none is.
        arm: the arm of the adapted model; None if no run has finished.
        model: the folder of the adapted model for transformers, whether or not it is better; None
            if no run has finished.
        sentence_model: the folder of the same model for sentence-transformers.
        next_step: what to do next: `advice`, and its work as a `command` and in `python` ("" if
            there is none).
        forgotten: how the loss on general text (or the retrieval of it) changed from the start, for
            each arm: mean, interval and margin; estimates that are not tested.
    """

    answer: str = field(repr=False)
    details: list[str] = field(repr=False)
    helps: str | None
    arm: str | None
    model: Path | None
    sentence_model: Path | None
    next_step: NextStep = field(repr=False)
    forgotten: list[dict[str, Any]] = field(repr=False)

    @cached_property
    def best_arm(self) -> str:
        """The arm of the adapted model. The arm of a control is trained on other text.

        Raises:
            MaskwiseError: no run has finished.
        """
        if self.arm is None:
            raise MaskwiseError("no arm has a result yet", got=str(self.folder))
        return self.arm

    def __str__(self) -> str:
        lines = [self.answer, *([f"Model: {self.model}"] if self.model else [])]
        step = self.next_step
        return "\n".join([*lines, *([f"Next: {step.advice}"] if step.advice else []), step.python])

    def _repr_html_(self) -> str:
        """Show the answer in a notebook, with the verdicts folded."""
        step = self.next_step
        further = "".join(f"<p>{_escaped(sentence)}</p>" for sentence in self.details)
        return (
            f"<p><b>{_escaped(self.answer)}</b></p><p>{_escaped(f'Model: {self.model}')}</p>"
            f"<p>{_escaped(f'Next: {step.advice}')}</p>"
            f"{step.python and f'<pre>{html.escape(step.python)}</pre>'}"
            f"<details><summary>Details</summary>{further}{super()._repr_html_()}</details>"
        )


@resumable(note)
@tidied_warnings()
def adapt(
    model: str | Path,
    texts: object,
    *,
    out: str | Path,
    tasks: object = None,
    arms: str | Sequence[str] = (USUAL_ARM,),
    policy: str | Path | None = None,
    new_words: int | None = None,
    trim_tokens: int | None = None,
    student_layers: int | None = None,
    control: object = None,
    keep: object = None,
    replay: float | None = None,
    steps: int = STEPS,
    patience: int | None = None,
    lengths: Sequence[float] | None = None,
    head_steps: int | None = None,
    runs: int | None = None,
    seeds: Sequence[int] | None = None,
    overrides: Overrides = (),
    time: str | None = None,
    jobs: int | None = None,
    processes: int = 1,
    executor: Executor | None = None,
) -> Adapted:
    """Train an encoder further on your text, and test whether this helps (``maskwise adapt``).

    The same call resumes a run that was interrupted.

    Args:
        model: an encoder: a folder, a hub id, "bundled:encoder" or "package:NAME".
        texts, tasks: as for `study`. Without tasks, one is made of the titles of the texts.
        out: the folder of the study. ``out``/adapt.yaml is the recipe that is run.
        arms: ways to train, of "words-30", "token-15", "token-30", "token-40" and "tsdae".
        policy: the folder of a policy from ``learn``, for an additional arm.
        new_words: the number of words of the text that become tokens in an additional arm, which is
            compared with the first.
        trim_tokens: the number of tokens that all arms keep, the most frequent ones of the texts.
            An additional arm is not trained. Both are compared with the unchanged model.
        student_layers: the number of layers of a smaller model, which learns from the model in an
            additional arm (``objective: distil``) and is compared with it. It is saved in
            ``out``/student.
        control: other texts, as for `study`. An additional arm is trained on them in the same way
            as the first, so that the study can tell whether it is your texts that help.
        keep: general texts, as for `study`, for what the arms forget of them; "none" for none. By
            default, bundled:wikipedia if the texts are English.
        replay: the share of the general texts in the training rows of an additional arm.
        steps: steps of further training.
        patience: evaluations (of 20) without a lower loss of held-out text after which a run ends;
            its best state is evaluated. None to train all steps.
        lengths: shares of the steps, such as (0.25, 0.5, 1), after which training also ends, with a
            decay of the learning rate; each run keeps the length with the lowest loss of held-out
            text. None for all steps only.
        head_steps: steps that train a new head first, once for all runs, if the model has none;
            None for ``steps``, at most 600.
        runs: runs of each arm; None for the least that can decide, 6, or more with more
            questions (``new_words``, ``trim_tokens``, ``student_layers``).
        seeds: the seeds of the runs, in place of ``runs``.
        overrides: further settings of the recipe to change.
        time: a time limit such as "90m". If the study would take longer on this machine, nothing is
            run.
        jobs, processes, executor: as for `study`.

    Raises:
        MaskwiseError: an input is invalid, the study takes longer than ``time``, or ``out`` has
            other files or another study.

    >>> adapted = adapt("bundled:encoder", "my_texts.txt", out="runs/a")  # doctest: +SKIP
    >>> adapted.helps, adapted.model  # doctest: +SKIP
    """
    from maskwise.studies.adapt import Adaptation, NextStep, Request, refuse_both
    from maskwise.studies.checks import folder_of_study

    require_one_process()
    steps = whole_number("steps", steps, least=1)
    processes = whole_number("processes", processes, least=1)
    counts = {"runs": runs, "patience": patience, "head_steps": head_steps, "jobs": jobs}
    counts |= {"new_words": new_words, "trim_tokens": trim_tokens}
    counts |= {"student_layers": student_layers}
    for name, count in counts.items():
        if count is not None:
            whole_number(name, count, least=1)
    if replay is not None:
        finite_number("replay", replay)
    if time is not None and not isinstance(time, str):
        raise MaskwiseError("time is a text", got=time, allowed="such as '2h', '90m' or '1h30m'")
    arms = (*items_of("arms", arms, of=f"names, such as {USUAL_ARM!r}", single=True),)
    if not arms:
        raise MaskwiseError("arms is not valid", got=repr(arms), allowed="a list")
    if lengths is not None:
        lengths = (*items_of("lengths", lengths, of="shares, such as (0.25, 0.5, 1)"),)
    if policy is not None and not str(policy):
        raise MaskwiseError("policy is not valid", got="''", allowed="the folder of a policy")
    refuse_both(runs, seeds)
    of_runs: int | tuple[int, ...] = runs or 0
    if isinstance(seeds, int):
        raise MaskwiseError("seeds are a list of seeds", got=seeds, do=f"runs={seeds}")
    if seeds is not None:
        seeds = (*items_of("seeds", seeds, of="whole numbers"),)
    out = Path(out)
    with kept_if_begun(folder_of_study(out)):
        sources: dict[str, str] = {}
        for name, given in (("texts", texts), ("control", control), ("keep", keep)):
            if given is not None or name == "texts":
                sources[name] = text_source(given, out, name=name)
        request = Request(
            model=str(model),
            texts=sources["texts"],
            out=out,
            tasks=() if tasks is None else (*task_specs(tasks, out),),
            arms=arms,
            policy=None if policy is None else str(policy),
            new_words=new_words,
            trim_tokens=trim_tokens,
            student_layers=student_layers,
            control=sources.get("control"),
            keep=sources.get("keep"),
            replay=replay,
            steps=steps,
            patience=patience,
            lengths=lengths,
            head_steps=head_steps,
            seeds=of_runs if seeds is None else seeds,
            overrides=(*overrides_of(overrides, None, None, out),),
            time=time,
            jobs=jobs,
            processes=processes,
        )
        with Adaptation(request) as adaptation:
            if time is not None and (over := adaptation.over_time(adaptation.plan())):
                raise over
            found = adaptation.run(executor)
    adapted = StudyResult.read(out)
    assert isinstance(adapted, Adapted)
    return replace(adapted, next_step=NextStep(**found["next"]))


def _adapted(result: StudyResult) -> Adapted:
    """Return the result of ``adapt`` from that of its study."""
    from maskwise.recipe import read_recipe
    from maskwise.studies.adapt import ADAPTED, NextStep, answers, saved_folders
    from maskwise.studies.records import chosen_steps, recorded

    best = chosen_steps(result.records)
    facts: Plain = {**result.summary, "seconds": result.study["seconds"], "best": best}
    found = answers(result.folder, facts, read_recipe(recorded(result.study["recipe"])))
    saved = read_json(result.folder / ADAPTED) or {}
    step = saved.get("next")
    folders = [*saved_folders(result.folder, saved), None, None]
    return Adapted(
        result.folder,
        result.study,
        result.records,
        result.summary,
        answer=found["answer"],
        details=found["details"],
        helps=found["helps"],
        arm=saved.get("arm"),
        model=folders[0],
        sentence_model=folders[1],
        next_step=NextStep(**step) if isinstance(step, dict) else NextStep(""),
        forgotten=found["forgotten"],
    )
