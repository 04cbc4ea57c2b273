"""Recipes of which no plan can be made, and outcomes, numbers and engines that are none."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path

import maskwise as mw
from maskwise.jobs.pools import open_pool
from maskwise.recipe import read_recipe
from maskwise.results.measurements import measurements
from maskwise.studies import make_plan
from maskwise.studies.checks import check_inputs
from maskwise.verdict.statistics import sign_flip_test
from refusals import Refusal, cases
from test_several_objectives import OWN_PART, TWO_OBJECTIVES
from tiny import write_inputs
from training_tools import tokenizer

TASK = "tasks=[banking77]"
BOTH = "finetune={epochs: 3, steps: 9}"
OPTIMIZER = "phases=[{}, {training: {optimizer: adamw, muon_learning_rate: 0.1}}]"
TWICE = [("objective", {"mlm": None, "rtd": None}), *OWN_PART.items()]


def planned(overrides: tuple[str, ...], folder: Path) -> object:
    return make_plan(read_recipe(write_inputs(folder), overrides))


def checked(overrides: tuple[str, ...], folder: Path) -> object:
    return check_inputs(read_recipe(write_inputs(folder), overrides))


def shipped(name: str, *overrides: str) -> object:
    return read_recipe(name, overrides)


PLANS: list[tuple[tuple[str, ...], str]] = [
    (("training.patience=2", "training.eval_every=0"), "training.eval_every"),
    (("training.patience=0",), "patience"),
    (("training.patience=2", "study.equal_by=targets"), "equal compute"),
    (("training.patience=2", "objective=clm", "evaluation.masks=[]"), "got clm"),
    (("training.patience=2", "objective={tsdae: {}}"), "got tsdae"),
    (("sampler=mometas",), "sampler"),
    # These are not measured, which is known before any work.
    *(
        ((f"study.outcome={outcome}",), "study.outcome")
        for outcome in ("heldout:token@0.2", "' '", "heldout:token sentinels")
    ),
]
ROWS = [
    *(
        Refusal(f"a plan with {' '.join(overrides)}", partial(planned, overrides), (fact,))
        for overrides, fact in PLANS
    ),
    *(
        Refusal(f"study.secondary={names}", partial(checked, (f"study.secondary={names}",)), facts)
        for names, facts in {
            "[nothing]": ("nothing",),
            "[task]": ("study.secondary", "task"),
        }.items()
    ),
    *cases(
        "an objective that is written twice",
        lambda order: read_recipe({**TWO_OBJECTIVES, **dict(TWICE[::order])}),
        *(1, -1),
        facts=["objective", "written twice"],
    ),
    Refusal(
        "steps and epochs",
        lambda _: shipped("decay", TASK, BOTH),
        ("finetune.epochs", "finetune.steps=null"),
        lambda _: shipped("decay", TASK, BOTH, "finetune.steps=null"),
    ),
    Refusal(
        "a checkpoint and an architecture",
        lambda _: shipped("decay", "model={pretrained: x, architecture: bert}"),
        ("model.pretrained=null",),
    ),
    Refusal(
        "a rate of another optimizer in a phase",
        lambda _: shipped("decay", OPTIMIZER),
        ("training.muon_learning_rate", "training.optimizer"),
    ),
    Refusal(
        "masking of an objective that masks nothing in a phase",
        lambda _: shipped("decay", "phases=[{objective: clm, masking.ratio: 0.2}, {}]"),
        ("masking.ratio",),
    ),
    Refusal(
        "visits that went",
        lambda _: mw.Masker(tokenizer(), visits="coverage"),
        ("visits", "coverage", "complement"),
        lambda _: mw.Masker(tokenizer(), visits="complement"),
    ),
    *cases(
        "an objective of a recipe",
        partial(shipped, "quick-start"),
        ("objective=mlm()", "name"),
        ("objective=cse", "cse", "alone"),
    ),
    # It was the current folder.
    *cases(
        "a text without a name",
        lambda source: read_recipe({"extends": "quick-start", "corpus": {"source": source}}),
        *("", " ", ["a.txt", ""], {"a.txt": 1, " ": 2}),
        facts=["corpus", "source", "allowed: a file"],
    ),
    *cases(
        "lines of an earlier version",
        lambda line: measurements([{"arm": "a", "seed": 0, **line}]),
        *({"kind": "score", "task": "t"}, {"kind": "heldout", "masks": "token"}),
        facts=["earlier version"],
    ),
    *cases("differences", sign_flip_test, ([1.0, math.nan], "nan")),
    *cases(
        "an engine",
        lambda engine: open_pool(engine=engine),
        ("rai", "'rai'", "local, ray"),
        (object(), "submit(function"),
        (Path, "submit(function"),
        (7, "submit(function"),
    ),
]
