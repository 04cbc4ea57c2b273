"""The range of a study's time before anything was run or rehearsed."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from maskwise.recipe import read_recipe
from maskwise.studies import dry_run, estimate
from maskwise.studies.estimate import Range, estimates
from maskwise.studies.plan import make_plan
from maskwise.studies.rehearsal import Rehearsal
from tiny import write_inputs

SMALL = ["study.seeds=1", "study.arms={a: {}}"]


@pytest.fixture(autouse=True)
def recipe(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path / "in")


def ranges(recipe: Path, *overrides: str) -> dict[str, Range]:
    """Return the range of the longest stage of each kind."""
    plan = make_plan(read_recipe(recipe, [*SMALL, *overrides]))
    found = estimates([plan], Rehearsal(recipe.parent / "none").counts_of)
    kinds = {stage.name: stage.kind for stage in plan.stages()}
    return {kinds[name]: found[name] for name in sorted(found, key=found.__getitem__)}


def test_a_new_study_has_a_range_of_at_most_a_factor_of_six(recipe):
    asked = read_recipe(recipe, [*SMALL])
    found = dry_run(asked, recipe.parent / "none", jobs=1)
    assert found["unknown"] and found["seconds"] is None
    assert 8.0 < found["least_seconds"] < found["most_seconds"] < 6 * found["least_seconds"]
    for kind, (least, most) in ranges(recipe).items():
        assert 0 < least < most < 6 * least or kind == "choose"


def test_work_takes_its_time_twice_if_it_is_done_twice(recipe):
    small = ("finetune.steps=10", "finetune.seeds=1", "evaluation.rows=8")
    once = ranges(recipe, "training.steps=40", *small)
    twice = ranges(recipe, "training.steps=80", "finetune.steps=10", "finetune.seeds=2")
    assert twice["pretrain"].least == pytest.approx(2 * once["pretrain"].least)
    assert twice["finetune"].most == pytest.approx(2 * once["finetune"].most)
    rows = ranges(recipe, "evaluation.rows=16")
    assert rows["evaluate"].least == pytest.approx(2 * once["evaluate"].least)
    wider = ranges(recipe, "training.steps=40", "training.batch_size=16")
    narrow = ranges(recipe, "training.steps=40", "training.batch_size=8")
    # A step of twice the tokens is less than twice as long, because large products are faster.
    assert wider["pretrain"].least == pytest.approx(2**0.75 * narrow["pretrain"].least)


def test_nothing_bounds_what_was_never_recorded(recipe, monkeypatch):
    measured = ranges(recipe, "evaluation.measures=[pseudo-perplexity(4)]")["evaluate"]
    assert 0 < measured.least < measured.most == math.inf
    start = ("model={pretrained: bundled:encoder}", "tokenizer={}", "training.steps=4")
    taught = "study.arms={a: {objective: {b: {objective: \"distil('bundled:encoder')\"}}}}"
    for arms, bounded in ((SMALL[1], True), (taught, False)):
        training = ranges(recipe, *start, arms)["pretrain"]
        assert 0 < training.least < training.most and (training.most < math.inf) == bounded
    # Evaluations after every step take longer than the steps.
    often = ranges(recipe, "training.eval_every=1", "evaluation.rows=256")["pretrain"]
    assert 0 < often.least < often.most == math.inf
    monkeypatch.setattr(estimate, "cards_here", lambda: ["0"])
    found = ranges(recipe)
    assert found["pretrain"] == found["finetune"] == (0, math.inf)
    assert found["prepare"].most < math.inf
    planned = dry_run(read_recipe(recipe, [*SMALL]), recipe.parent / "none", jobs=1)
    assert planned["most_seconds"] is None and planned["least_seconds"] >= 8


def test_no_model_is_built_for_an_estimate(recipe, monkeypatch):
    def refuse(*_: object, **more: object) -> None:
        raise AssertionError("built or measured")

    monkeypatch.setattr("maskwise.models.loading.build_model", refuse)
    monkeypatch.setattr("maskwise.studies.rehearsal.run_stage", refuse)
    assert ranges(recipe)["pretrain"].least > 0
