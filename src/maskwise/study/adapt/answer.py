"""Say what an adaptation has found, and what to do next."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from maskwise.errors import duration, option, shell_words
from maskwise.recipe import Recipe
from maskwise.recipe.yamls import Plain
from maskwise.study.adapt.draft import new_head_words
from maskwise.study.adapt.forgotten import forgotten_of, forgotten_words
from maskwise.study.adapt.request import NEW_WORDS, OTHER_TEXT, Request
from maskwise.training.best import best_at
from maskwise.training.parts import parts_of
from maskwise.verdict.words import guessed_sentence

ANSWERS = {
    ("decided", "arm"): "Yes, further training helps.",
    ("decided", "baseline"): "No, further training hurts.",
    ("no difference that matters", None): "No, it makes no difference that matters.",
}
"""What is said first, keyed by ``_finding``."""
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


def answers(out: Path, result: Plain, recipe: Recipe) -> Plain:
    """Return what a finished adaptation says: ``answer``, ``helps`` and ``forgotten``.

    Args:
        out: the folder of the study.
        result: its summary, with ``seconds`` and, if runs choose their weights, ``best``.
        recipe: its recipe.
    """
    forgotten = forgotten_of(out)
    shown = guessed_sentence(result.get("guessed", ())).strip()
    parts = (answer_of(result, recipe), shown, forgotten_words(forgotten))
    return {
        "answer": " ".join(filter(None, parts)),
        "helps": arm_that_helps(result),
        "forgotten": forgotten,
    }


def answer_of(result: Plain, recipe: Recipe) -> str:
    """Return the answer in words: whether further training helps, how much, and at what cost."""
    row = _primary(result)
    if row is None:
        return "Nothing was compared."
    found = ""
    if row["arm"] in result.get("best", ()):
        found = f"{row['arm']} was {best_at(**result['best'][row['arm']])}"
    if row["verdict"] == "not comparable":
        return f"{row['sentence']} {found and f'{found}.'}".rstrip()
    answer = ANSWERS.get(_finding(row), "These runs cannot tell:")
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
    # The first words of the answer say already that the result is open.
    sentence = row["sentence"].removeprefix("Open: ")
    said = f"{answer} {sentence} {cost}; the study took {duration(result['seconds'])}."
    for flag in row.get("flags", ()):
        if flag["code"] == "overlap" and not flag["facts"].get("minor"):
            said += f" But {flag['sentence']}: the arms may have memorised them."
    for other in result["contrasts"]:
        if other["primary"] and other["arm"] == f"{row['arm']}{NEW_WORDS}":
            said += f" New words: {other['sentence']}"
    return f"{said} {_whose_text(result, row)}".rstrip()


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
        said = TEXT_ANSWERS.get(_finding(other))
        if said is None:
            said = "Whether it is your text, these runs cannot tell:"
        return f"{said} {other['sentence'].removeprefix('Open: ')}"
    if _finding(row) != ("decided", "arm"):
        return ""
    return NO_CONTROL.format(control=option("control", "TEXT"))


def next_of(result: Plain, recipe: Recipe, request: Request) -> str:
    """Return advice on what to do next, with a complete command."""
    row = _primary(result)
    model = request.model
    if result["failures"] or row is None:
        again = request.command()
        return f"Next: fix the errors, then repeat the failed work by this command: {again}"
    verdict = row["verdict"]
    least = request.least_runs
    if verdict == "open" and row["n"] < least:
        used = recipe.study.seed_list
        more = (*used, *range(max(used) + 1, max(used) + 1 + least - len(used)))
        seeds = len(more) if more == (*range(len(more)),) else more
        enough = request.command(seeds=seeds, time=None)
        return f"Next: add runs, because a decision needs at least {least}: {enough}"
    if verdict in ("decided", "no difference that matters"):
        keep = f"keep {model}"
        if arm_that_helps(result):
            model = str(request.out / "model")
            keep = f"use {model} in place of {request.model}"
        if not request.tasks:
            return f"Next: {keep}."
        words = ["maskwise", "finetune", model]
        for task in request.tasks:
            words += ["--task", task]
        return f"Next: {keep}: {shell_words(words)}"
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
    return f"Next: keep {model} for now; {why}: {request.command(*changes, **options)}"


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
