"""A study whose runs learn their own masking policy before they train under it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskwise.errors import MaskwiseError
from maskwise.learning.scorer import PolicyModel
from maskwise.recipe import read_recipe
from maskwise.study.plan import make_run, task_contents
from maskwise.text import Prepared
from tiny import learning_study, maskwise, read_lines

WORLD = "factworld(people=40, facts=('work',), friends=false, fillers=1, biographies=2, seed='run')"
COMPARED = """learning:
  method: supervised
  supervised: {training: {steps: 30, learning_rate: 1.0e-2}}
  policy: {settings: {hidden_size: 8}}
study:
  seeds: 2
  arms:
    random: {}
    learned: {masking.policy: learned}
    spans: {masking.policy: "learned(take='top-1')"}
"""
RECIPE = learning_study(WORLD, WORLD, rest=COMPARED)


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("learning") / "recipe.yaml"
    path.write_text(RECIPE)
    return path


@pytest.fixture(scope="module")
def finished(recipe: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, "--out", out, "--jobs", 1) == 0
    return out


def test_a_run_learns_its_policy_between_its_tokenizer_and_its_text(recipe: Path) -> None:
    plan = read_recipe(str(recipe))
    contents = task_contents(plan)
    kinds = [stage.kind for stage in make_run(plan, "learned", 0, contents=contents).chain]
    assert kinds == ["prepare", "learn", "prepare", "pretrain", "prepare"][: len(kinds)] and len(kinds) >= 4
    first, learn, text, training, *_ = make_run(plan, "learned", 0, contents=contents).chain
    assert learn.needs == (first.name,) and text.needs == (first.name, learn.name)
    assert training.needs == (text.name,)
    random = make_run(plan, "random", 0, contents=contents)
    assert random.chain[0] == first and all(stage.kind != "learn" for stage in random.stages)
    # The policy is one for all arms that use it, another with another seed, and the same at every rate of fine-tuning.
    spans = make_run(plan, "spans", 0, contents=contents)
    assert learn in spans.chain and text not in spans.chain[:1]
    assert learn not in make_run(plan, "learned", 1, contents=contents).chain
    rate = {"finetune.learning_rate": 1e-3}
    assert learn in make_run(plan, "learned", 0, contents=contents, more=rate).chain


def test_after_a_stage_of_training_the_policy_is_learned_for_its_checkpoint(recipe: Path) -> None:
    plan = read_recipe(str(recipe), ["intermediate.training.steps=3", "study.arms.learned=null",
                                     "study.arms.late={intermediate.masking.policy: learned}"])  # fmt: skip
    chain = make_run(plan, "late", 0, contents={}).chain
    text, training, learn, scored, last = chain[:5]
    assert [stage.kind for stage in chain[:5]] == ["prepare", "pretrain", "learn", "prepare", "pretrain"]
    assert learn.needs == (text.name, training.name) and scored.needs == (text.name, learn.name)
    assert last.needs == (scored.name, training.name)


def test_the_text_is_masked_by_what_the_run_learned(finished: Path, recipe: Path) -> None:
    plan = read_recipe(str(recipe))
    run = make_run(plan, "learned", 0, contents=task_contents(plan))
    stages = finished / "stages"
    learned = next(stage for stage in run.chain if stage.kind == "learn")
    assert PolicyModel.from_pretrained(learned.folder(stages) / "policy").config.head == "spans"
    assert (learned.result(stages) or {})["held_out"]
    data = Prepared.open(run.prepared.folder(stages) / "data")
    weights = data.training.pieces.columns["learned"]
    assert weights.std() > 0
    records = read_lines(finished / "records.jsonl")
    assert {record["arm"] for record in records if record["kind"] == "score"} >= {
        "random",
        "learned",
        "spans",
    }
    assert not [record for record in records if record["kind"] == "failure"]
    samples = json.loads((finished / "samples.json").read_text())
    assert set(samples) == {"random", "learned", "spans"}


def test_a_second_run_does_nothing(finished: Path, recipe: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")}
    assert before and maskwise("study", recipe, "--out", finished, "--jobs", 1) == 0
    assert before == {path: path.stat().st_mtime_ns for path in finished.rglob("done.json")}


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (["learning=null"], "learns no policy; .* or name a policy that is learned already"),
        (["tasks=[]", "evaluation.masks=[token, whole-word]"], "learning needs a task"),
    ],
)
def test_what_cannot_be_learned_is_refused(recipe: Path, changes: list[str], text: str) -> None:
    with pytest.raises(MaskwiseError, match=text):
        make_run(read_recipe(str(recipe), changes), "learned", 0, contents={})
