"""Several phases of training: one chain of stages, shared as far as arms agree, and never hurt by a
stop.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import file_hash
from maskwise.masking.draws import fold
from maskwise.models.starts import resolve_start
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies import dry_run, make_plan, run_stage
from maskwise.studies.design import Design
from maskwise.studies.single import run_pretrain
from maskwise.studies.store import StageStore
from tiny import check_refused, compare, interrupt, load_json, write_inputs

SMALL = [
    "tasks=[]",
    "study.seeds=1",
    "training.steps=10",
    "training.eval_every=0",
    "training.log_every=2",
    "training.save_every=2",
    "model.settings.max_position_embeddings=64",
]
PHASES = [
    {"masking.ratio": 0.3},
    {"training": {"steps": 6, "decay": "constant"}, "training.batch_size": 4},
    {"corpus.length": 64, "training.steps": 4, "masking.ratio": 0.1},
]
THREE = f"phases={json.dumps(PHASES)}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_every_phase_differs_from_the_recipe_in_its_own_settings(recipe):
    whole = read_recipe(recipe, [*SMALL, THREE])
    links = whole.arm("token-15", seed=5).links()
    assert [link.masking.ratio for link in links] == [0.3, 0.15, 0.1]
    assert [link.training.steps for link in links] == [10, 6, 4]
    assert [link.training.batch_size for link in links] == [8, 4, 8]
    assert [link.corpus.length for link in links] == [32, 32, 64]
    assert [link.training.seed for link in links] == [5, fold(5, 1), fold(5, 2)]
    assert all(link.phases is None and link.links() == (link,) for link in links)
    again = Recipe.model_validate(json.loads(whole.model_dump_json()))
    assert again == whole


def test_arms_change_a_phase_all_phases_or_the_list(recipe):
    arms = {
        "plain": {},
        "last": {"phases.2.masking.ratio": 0.5},
        "nested": {"phases": {2: {"masking.ratio": 0.5}}},
        "whole": {"phases": [{}, {"training.steps": 3}]},
        "none": {"phases": "none"},
        "policy": {"masking.policy": "whole-word"},
    }
    read = read_recipe(recipe, [*SMALL, THREE, f"study.arms={json.dumps(arms)}"])
    links = {name: read.arm(name, seed=0).links() for name in arms}
    assert [len(links[name]) for name in arms] == [3, 3, 3, 2, 1, 3]
    assert links["last"] == links["nested"] and links["last"][:2] == links["plain"][:2]
    assert links["last"][2].masking.ratio == 0.5 and links["whole"][1].training.steps == 3
    assert {link.masking.policy for link in links["policy"]} == {"whole-word"}
    onward = read_recipe(
        recipe, [*SMALL, THREE, "phases.0.training.steps=2", "phases.1={masking.ratio: 0.2}"]
    )
    assert [link.training.steps for link in onward.links()] == [2, 10, 4]


def test_arms_that_differ_in_the_third_phase_share_the_first_two(recipe, tmp_path):
    arms = "study.arms={a: {}, b: {phases.2.masking.ratio: 0.5}}"
    read = read_recipe(recipe, [*SMALL, THREE, arms])
    plan = make_plan(read)
    a, b = (run.trainings for run in plan.runs[:2])
    assert len(a) == len(b) == 3 and a[:2] == b[:2] and a[2] != b[2]
    assert [stage.needs[1:] for stage in a] == [(), (a[0].name,), (a[1].name,)]
    kinds = [stage.kind for stage in plan.stages()]
    assert kinds.count("pretrain") == 4 and kinds.count("prepare") == 2  # rows of 32 and of 64
    planned = dry_run(read, tmp_path / "out")["phases"]
    assert [(p["phase"], p["arms"], p["tokens"], p["to_do"], p["runs"]) for p in planned] == [
        (0, ["a", "b"], 10 * 8 * 32, 1, 1),
        (1, ["a", "b"], 6 * 4 * 32, 1, 1),
        (2, ["a"], 4 * 8 * 64, 1, 1),
        (2, ["b"], 4 * 8 * 64, 1, 1),
    ]


def test_only_the_first_phase_is_matched(recipe, tmp_path):
    arms = "study.arms={a: {}, b: {phases.0.masking.ratio: 0.6}}"
    search = "study.search={grid: {phases.1.training.learning_rate: [0.001, 0.005]}, by: held-out}"
    more = [*SMALL, THREE, search, arms, "study.equal_by=targets"]
    design = Design(read_recipe(recipe, more), StageStore(tmp_path), forecast=True)
    for plan in design.plans():
        if plan.purpose == "texts":
            for stage in plan.stages():
                run_stage(stage, StageStore(tmp_path))
    steps = {}
    for run in design.runs:
        links = run.recipe.links()
        steps[run.arm] = [link.training.steps for link in links]
    assert steps == {"a": [10, 6, 4], "b": [5, 6, 4]}
    tried = {run.recipe.links()[1].training.learning_rate for run in design.others}
    assert tried == {0.001, 0.005}


def trained(recipe: Recipe, out: Path) -> dict[str, str]:
    """The hashes of the weights after each phase."""
    run_pretrain(recipe, out)
    return {
        str(path.relative_to(out)): file_hash(path)
        for path in sorted(out.glob("**/checkpoint/*.safetensors"))
    }


def test_stopped_in_its_second_phase_a_run_ends_as_one_that_was_not(recipe, tmp_path, monkeypatch):
    read = read_recipe(recipe, [*SMALL, THREE])
    whole = trained(read, tmp_path / "whole")
    assert [name.split("/")[0] for name in whole] == ["checkpoint", "phase-0", "phase-1"]
    interrupt(monkeypatch, 5, batch_size=4)
    out = tmp_path / "stopped"
    with pytest.raises(KeyboardInterrupt):
        trained(read, out)
    first = out / "phase-0" / "checkpoint" / "model.safetensors"
    made = first.stat().st_mtime_ns
    assert list(out.glob("phase-1/resume/step-*"))
    assert trained(read, out) == whole and first.stat().st_mtime_ns == made
    assert load_json(out / "done.json")["steps"] == 4


def test_a_run_does_not_go_on_when_the_text_of_a_later_phase_has_changed(tmp_path, recipe):
    text = tmp_path / "second.txt"
    text.write_text("\n\n".join(f"the cat number {i} sat on the mat" for i in range(300)))
    read = read_recipe(recipe, [*SMALL, f"phases=[{{}}, {{corpus.source: {text}}}]"])
    run_pretrain(read, tmp_path / "run")
    text.write_text("\n\n".join(f"the dog number {i} lay on the rug" for i in range(300)))
    with pytest.raises(MaskwiseError, match=r"other values of phases\.1\.corpus_content"):
        run_pretrain(read, tmp_path / "run")


PHASED = [
    pytest.param("modernbert", marks=pytest.mark.slow),
    pytest.param("mmbert", marks=pytest.mark.slow),
    "gpt-bert",
    "clm-detour",
]


@pytest.mark.parametrize("name", PHASED)
def test_recipes_that_follow_papers_run_to_their_end(name, tmp_path):
    """Two steps of every phase, on a little text."""
    whole = read_recipe(name)
    try:
        resolve_start(whole.model.pretrained or "")
    except MaskwiseError as missing:
        pytest.skip(str(missing))
    small = [
        "corpus.limit=150",
        "corpus.held_out=0.2",
        "evaluation.rows=4",
        "training.optimizer=adamw",
        "training.eval_every=0",
    ]
    if whole.tokenizer_name is None:
        small.append("tokenizer.vocab_size=300")
    short = [f"{key}=2" for key in whole.settings_of("training.steps")]
    short += [f"{key}=3" for key in whole.settings_of("training.batch_size")]
    recipe = read_recipe(name, small + short)
    assert run_pretrain(recipe, tmp_path)["steps"] == 2
    assert len([*tmp_path.glob("phase-*/checkpoint"), tmp_path / "checkpoint"]) == len(
        whole.links()
    )


@pytest.mark.parametrize(
    "override, said",
    [
        ("phases=[]", "phases: the list is empty; allowed: ≥ 1 phase"),
        ("phases=3", "phases; got 3; allowed: a list"),
        ("phases=[{}, 3]", "phases.1; got 3; allowed: settings of the form {name: value}"),
        ("phases=[{}, {training.stepz: 3}]", "did you mean 'steps'"),
        ("phases=[{}, {training.steps: -1}]", "phases.1: training.steps; got -1; allowed: ≥ 0"),
        ("phases=[{}, {tokenizer.vocab_size: 99}]", "phases.1 cannot change tokenizer.vocab_size"),
        ("phases=[{}, {model.architecture: bert}]", "phases.1 cannot change model.architecture"),
        ("phases=[{training.seed: 3}]", "phases.0 cannot change training.seed"),
        ("phases=[{}, {evaluation.rows: 3}]", "phases.1 cannot change evaluation.rows"),
        (
            "phases=[{}, {corpus.length: 64}]",
            "phases.1.corpus.length exceeds the number of positions of the new model",
        ),
        ("phases=[{}, {objective: denoise, masking.corruption: t5}]", "trains an encoder-decoder"),
        (
            "phases=[{objective: denoise, masking.corruption: t5}]",
            "all phases must train the model of the first phase, an encoder",
        ),
        ("phases=[{}, {objective: rtd}]", "objective: this objective cannot be trained alone"),
        ("study.arms.x.phases.0.masking.ratio=0.4", "allowed: a list"),
    ],
)
def test_bad_phases_are_refused_when_they_are_read(recipe, override, said, tmp_path, capfd):
    check_refused(recipe, override, said, tmp_path / "out")


@pytest.mark.parametrize(
    "override, said",
    [
        (
            "study.arms={a: {phases.3.training.steps: 3}}",
            "the list has no such entry (the first entry is 0); got 3; allowed: [0, 1, 2]",
        ),
        (
            "study.arms={a: {phases.last.training.steps: 3}}",
            "first entry is 0); got last; allowed: [0, 1, 2]",
        ),
        ("study.arms={a: {phases: []}}", "arm 'a': phases: the list is empty"),
    ],
)
def test_phases_and_what_does_not_go_with_them(recipe, override, said):
    with pytest.raises(MaskwiseError) as caught:
        read_recipe(recipe, [*SMALL, THREE, override])
    assert said in str(caught.value) and "\n" not in str(caught.value)


def test_a_phase_longer_than_the_model_is_refused_before_any_work(recipe, tmp_path):
    three = [*SMALL, THREE, "model.settings.max_position_embeddings=63"]
    with pytest.raises(
        MaskwiseError, match=r"phases\.2\.corpus\.length is more than the model's positions; got 64"
    ):
        compare(recipe, three, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_phase_of_an_arm_may_change_nothing():
    recipe = Recipe(study={"arms": {"a": {}, "b": {"phases": [{"masking.ratio": 0.3}, None]}}})
    assert [link.masking.ratio for link in recipe.arm("b", seed=0).links()] == [0.3, 0.15]
