"""Say what an adaptation has found, and what to do next."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from maskwise.base.errors import duration, option
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.studies.adapt.draft import new_head_words
from maskwise.studies.adapt.forgotten import forgotten_of, forgotten_words
from maskwise.studies.adapt.request import (
    NEW_WORDS,
    OTHER_TEXT,
    STUDENT,
    TRIMMED,
    Request,
    invocation_of,
)
from maskwise.studies.adapt.student import student_words
from maskwise.training.best import best_at
from maskwise.training.parts import parts_of
from maskwise.verdict.sentences import guessed_sentence, is_reason

MOST_SENTENCES = 4
ANSWERS = {
    ("decided", "arm"): "Yes, further training helps:",
    ("decided", "baseline"): "No, further training hurts:",
    ("no difference that matters", None): "No:",
}
"""What stands before the verdict, keyed by ``_finding``."""
TEXT_ANSWERS = {
    ("decided", "arm"): "It was your text:",
    ("decided", "baseline"): "The other text is better than yours:",
    ("no difference that matters", None): "Your text makes no difference that matters:",
}
"""What is said about the contrast between the text and a control, keyed by ``_finding``."""
NO_CONTROL = (
    "This does not show that your text was needed: the same training on other text may help as "
    "much ({control} tests it)."
)


class NextStep(NamedTuple):
    """What to do next: advice, and its work as a command and in Python ("" without work)."""

    advice: str
    command: str = ""
    python: str = ""


def answers(out: Path, result: Plain, recipe: Recipe) -> Plain:
    """Return what a finished adaptation says: ``answer``, ``details``, ``helps`` and ``forgotten``.

    Args:
        out: the folder of the study.
        result: its summary, with ``seconds`` and, if runs choose their weights, ``best``.
        recipe: its recipe.
    """
    forgotten = forgotten_of(out)
    said = {"forgotten": forgotten_words(forgotten), "student": student_words(out)}
    sentences = [*answer_sentences(result, recipe, **said)]
    row = _primary(result)
    details = sentences[MOST_SENTENCES:]
    if row is not None:
        details += [row["sentence"], *(f"{flag['sentence']}." for flag in _overlaps(row))]
    return {
        "answer": " ".join(sentences[:MOST_SENTENCES]),
        "details": details,
        "helps": arm_that_helps(result),
        "forgotten": forgotten,
    }


def answer_sentences(
    result: Plain, recipe: Recipe, *, forgotten: str = "", student: str = ""
) -> Iterator[str]:
    """Yield the answer, the most important sentence first: whether further training helps, what
    speaks against it, what else was asked, what was forgotten, and the cost.

    Args:
        result, recipe: as for ``answers``.
        forgotten: the sentence about general text, if it was measured.
        student: the sentence about the size and the speed of a student, if there is one.
    """
    row = _primary(result)
    if row is None:
        yield "Nothing was compared."
        return
    # It begins with the name of an arm, or with a word.
    brief = row["brief"]
    if _finding(row) in ANSWERS and not brief.startswith(row["arm"]):
        brief = brief[0].lower() + brief[1:]
    yield f"{ANSWERS.get(_finding(row), '')} {brief}".lstrip()
    guessed = guessed_sentence(result.get("guessed", ()))
    others = [_overlap(row), guessed.strip(), *_of_changes(result, row), student]
    others.append(_whose_text(result, row))
    yield from filter(None, [*others, row["outlook"], forgotten, _cost(result, row, recipe)])


def _overlap(row: Plain) -> str:
    """Return a sentence about test items that stand in the corpus; "" if this does not matter."""
    for flag in _overlaps(row):
        tasks = " and ".join(flag["facts"]["tasks"])
        return f"But the corpus has much of some test items of {tasks}, which may be memorised."
    return ""


def _overlaps(row: Plain) -> list[Plain]:
    """List the flag of test items that stand in the corpus, if this matters."""
    flags = [flag for flag in row.get("flags", ()) if flag["code"] == "overlap"]
    return [flag for flag in flags if not flag["facts"].get("minor")]


def _of_changes(result: Plain, row: Plain) -> Iterator[str]:
    """Yield a sentence on each arm whose model was changed."""
    asked = {
        TRIMMED: "Fewer tokens, without training",
        f"{row['arm']}{NEW_WORDS}": "New words",
        STUDENT: "The student",
    }
    for other in result["contrasts"]:
        if other["primary"] and other["arm"] in asked:
            yield f"{asked[other['arm']]}: {other['brief']}"


def _cost(result: Plain, row: Plain, recipe: Recipe) -> str:
    """Return a sentence about the steps of a run, those after which it was best, and the time."""
    found = ""
    if row["arm"] in result.get("best", ()):
        found = f"{row['arm']} was {best_at(**result['best'][row['arm']])}"
    training = recipe.arm(row["arm"], seed=0).links()[-1].training
    steps = training.steps
    cost = f"Training takes {steps:,} steps per run"
    if training.lengths is not None:
        more = sum(part.steps for part in parts_of(training)) - steps
        cost += f" and {more:,} for decays at shorter lengths"
        cost += f", and {found}" if found else ""
    elif found:
        cost = f"Training takes at most {steps:,} steps per run, and {found}"
    head = new_head_words(recipe)
    if head:
        cost += f" and starts with {head}, once for all runs"
    return f"{cost}; the study took {duration(result['seconds'])}."


def _whose_text(result: Plain, row: Plain) -> str:
    """Return what is known about the question whether the text itself helped.

    Args:
        row: the contrast with the unchanged model.
    """
    for other in result["contrasts"]:
        if not other["primary"] or other.get("baseline") != f"{row['arm']}{OTHER_TEXT}":
            continue
        if any(flag["code"] == "not-asked" for flag in other["flags"]):
            return "Whether it is your text was not tested, because no help is shown."
        said = TEXT_ANSWERS.get(_finding(other), "Whether it is your text:")
        return f"{said} {other['brief']}"
    if _finding(row) != ("decided", "arm"):
        return ""
    return NO_CONTROL.format(control=option("control", "TEXT"))


def next_of(result: Plain, recipe: Recipe, request: Request) -> NextStep:
    """Return what to do next, with a complete command."""
    row = _primary(result)
    model = request.model
    if result["failures"] or row is None:
        return NextStep("Fix the errors, then repeat the failed work.", *request.invocation())
    verdict = row["verdict"]
    least = request.least_runs
    if verdict == "open" and row["n"] < least:
        used = recipe.study.seed_list
        more = (*used, *range(max(used) + 1, max(used) + 1 + least - len(used)))
        seeds = len(more) if more == (*range(len(more)),) else more
        why = f"Add runs, because a decision needs at least {least}."
        return NextStep(why, *request.invocation(seeds=seeds, time=None))
    if verdict in ("decided", "no difference that matters"):
        keep = f"Keep {model}."
        if arm_that_helps(result):
            model = str(request.out / "model")
            keep = f"Weigh {model} against {request.model}: {row['reason']}."
            if is_reason(row["worth"]):
                keep = f"Use {model} in place of {request.model}: {row['reason']}."
        if not request.tasks:
            return NextStep(keep)
        tuned = request.out.with_name(f"{request.out.name}-finetune")
        return NextStep(keep, *invocation_of("finetune", model, tasks=[*request.tasks], out=tuned))
    changes = []
    # The new study writes to a new folder, so the results of this study are kept.
    # It takes longer, so the limit of this study would refuse it.
    options: dict[str, Any] = {"out": request.out.with_name(f"{request.out.name}-2"), "time": None}
    if verdict == "not comparable" and request.tasks:
        why = "fine-tuning learned nothing; try other learning rates"
        changes.append("finetune.search_rate=true")
    elif row["runs_to_decide"]:
        # The study gets new seeds: to test the same runs again would inflate the error rate.
        first = max(recipe.study.seed_list) + 1
        why = "a study of other runs finds a difference as large as the margin (probability 0.8)"
        options["seeds"] = (*range(first, first + row["runs_to_decide"]),)
    else:
        why = "more steps may show more"
        options["steps"] = 2 * recipe.training.steps
    return NextStep(f"Keep {model} for now; {why}.", *request.invocation(*changes, **options))


def arm_that_helps(result: Plain) -> str | None:
    """Return the arm that is decided to be better than the unchanged model, by more than does not
    matter; None if none is.
    """
    row = _primary(result)
    if row is None or _finding(row) != ("decided", "arm"):
        return None
    return row["arm"]


def _finding(row: Plain) -> tuple[str, str | None]:
    """Return a verdict, and which side is better; a lead within the margin does not matter."""
    if "equivalence" in row:
        return "no difference that matters", None
    return row["verdict"], row["better"]


def _primary(result: Plain) -> Plain | None:
    """Return a primary contrast, preferably on the tasks; None if there is no primary contrast."""
    rows = [row for row in result["contrasts"] if row["primary"]]
    return min(rows, key=lambda row: row["outcome"] != "tasks", default=None)
