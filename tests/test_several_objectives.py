"""Recipes with several objectives: what they may say, what becomes of a training, and what is
refused.
"""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForMaskedLM

from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.scoring import evenly_spaced
from maskwise.models.loading import new_config, new_model
from maskwise.recipe import Recipe, read_recipe, recipe_of_text
from maskwise.studies.checks import check_inputs
from maskwise.studies.pretraining import learning
from maskwise.studies.probed import judged_rows, rows_with
from maskwise.studies.single import run_pretrain
from maskwise.studies.stages import prepare_stage, pretrain_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Prepared
from tiny import maskwise, read_lines, write_inputs


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A tiny recipe with four objectives."""
    file = write_inputs(tmp_path)
    raw = yaml.safe_load(file.read_text())
    raw |= {
        "objective": {
            "mlm": None,
            "low": {"objective": "mlm", "masking": {"ratio": 0.15}},
            "atd": None,
            "cse": "cse(temperature=0.1)",
        },
        "sampler": "mometas(every=8, rows=4)",
        "masking": {"ratio": 0.3, "corruption": "mask-only"},
    }
    raw["training"]["steps"] = 20
    raw["evaluation"]["rows"] = 8
    file.write_text(yaml.safe_dump(raw))
    return file


def prepared(recipe: Recipe, folder: Path) -> Prepared:
    """The text of a recipe."""
    stage = prepare_stage(recipe)
    run_stage(stage, StageStore(folder))
    return Prepared.open(StageStore(folder).folder(stage) / "data")


def test_a_training_on_several_objectives_leaves_an_ordinary_encoder(
    path: Path, tmp_path: Path
) -> None:
    done = run_pretrain(read_recipe(path), tmp_path / "out")
    checkpoint = Path(done["checkpoint"])
    AutoModelForMaskedLM.from_pretrained(checkpoint)
    heads = load_file(checkpoint / "heads.safetensors")
    names = {f"{arm}.head.{kind}" for arm in ("atd", "cse") for kind in ("weight", "bias")}
    assert set(heads) == names
    assert "mometas(every=8, rows=4)" in (checkpoint / "README.md").read_text()
    lines = read_lines(tmp_path / "out" / "metrics.jsonl")
    first, *_, last = trained = [line for line in lines if line["kind"] == "train"]
    assert sum(sum(line["objective_steps"].values()) for line in trained) == 20
    assert set(last["probe_losses"]) == {"mlm", "low", "atd", "cse"} and last["probe_seconds"] > 0
    assert first["probabilities"] != last["probabilities"]


def test_short_forms_and_names_of_stages(path: Path) -> None:
    recipe = read_recipe(path)
    plain = {name: (arm.objective, arm.masking) for name, arm in recipe.objectives.items()}
    assert plain == {
        "mlm": ("mlm", {}),
        "low": ("mlm", {"ratio": 0.15}),
        "atd": ("atd", {}),
        "cse": ("cse(temperature=0.1)", {}),
    }
    other = read_recipe(path, ["sampler=uniform"])
    names = {pretrain_stage(one, prepare_stage(one)).name for one in (recipe, other)}
    assert len(names) == 2
    # What a dict of objectives and the settings of a training do not say: shares go by order,
    # probes avoid these rows.
    turned = recipe.model_copy(update={"objective": dict(reversed(recipe.objectives.items()))})
    judged = read_recipe(path, ["evaluation.rows=4"])
    names |= {pretrain_stage(one, prepare_stage(one)).name for one in (turned, judged)}
    assert len(names) == 4
    rule = read_recipe(path, ["evaluation.rows=4", "sampler=uniform"])
    assert pretrain_stage(rule, prepare_stage(rule)).name in names  # has no probe


def test_a_recipe_adds_an_objective(path: Path, tmp_path: Path) -> None:
    child = tmp_path / "child.yaml"
    child.write_text(f"extends: {path}\nobjective.warm: cse(temperature=0.05)\n")
    added = {*read_recipe(child).objectives} - {*read_recipe(path).objectives}
    assert added == {"warm"}


@pytest.mark.parametrize("masking", ["masking.ratio: 0.3", "masking: {ratio: 0.3}"])
def test_settings_of_one_of_several_objectives_may_be_dotted(masking: str, tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(f"objective: {{mlm: , emlm: {{{masking}}}}}\n")
    assert read_recipe(file).objectives["emlm"].masking == {"ratio": 0.3}


@pytest.mark.parametrize(
    ("over", "text"),
    [
        (
            ["objective.emlm="],
            "policy guided needs the annotation layer 'salient', which this corpus does not have",
        ),
        (
            ["training.batch_size=7", "sampler=single(cse)"],
            "so training.batch_size must be even and large; got 7 rows per micro-batch; ",
        ),
        (
            ["training.batch_size=2"],
            "objective 'cse': cse reads half of the rows twice, so training.batch_size must be",
        ),
        (
            ["training.accumulate=4", "training.batch_size=8"],
            "got 2 rows per micro-batch; allowed: an even number of 4",
        ),
    ],
)
def test_what_ends_before_training_with_one_line(
    path: Path, over: list[str], text: str, tmp_path: Path, capsys: Any
) -> None:
    assert maskwise("pretrain", path, *over, "--out", tmp_path / "out") == 2
    assert text in " ".join(capsys.readouterr().err.split())


def test_what_is_no_mistake_is_not_refused(path: Path) -> None:
    """rtd takes 80/10/10: the generator's words stand at all of its targets."""
    more = ["objective.rtd={masking: {corruption: bert}}"]
    assert check_inputs(read_recipe(path, more)) == []
    assert check_inputs(read_recipe(path, ["objective.rtd=", "masking.policy=token"])) == []


def test_every_rank_has_twins_enough(path: Path) -> None:
    """Six rows are enough for one process (its probe has four), twelve for two, and eight not for
    four.
    """
    for ranks, rows in ((1, 6), (2, 12), (2, 8), (4, 16)):
        given = [f"training.batch_size={rows}", "corpus.held_out=0.4", "evaluation.rows=1"]
        check_inputs(read_recipe(path, given), ranks)
    with pytest.raises(
        MaskwiseError, match="got 2 rows per micro-batch; allowed: an even number of 4"
    ):
        check_inputs(read_recipe(path), 4)


def test_too_little_text_for_probes_is_said_before_training(
    path: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.studies.pretraining.train", None)
    assert maskwise("pretrain", path, "evaluation.rows=100", "--out", tmp_path / "out") == 2
    said = " ".join(capsys.readouterr().err.split())
    assert (
        "there are too few held-out rows to measure the loss of objective 'atd'; got 0 of " in said
    )
    assert "raise corpus.held_out" in said and "or lower evaluation.rows" in said


@pytest.mark.parametrize("tokenizer", [[], ["tokenizer.name=bundled:tokenizer"]])
def test_what_training_would_refuse_the_check_refuses(
    tokenizer: list[str], path: Path, tmp_path: Path
) -> None:
    """The plan counts the held-out rows of every objective as training does."""
    recipe = read_recipe(path, tokenizer)
    data = prepared(recipe, tmp_path)
    network = new_model(new_config("bert", data.tokenizer, 32, **recipe.model.settings), seed=0)
    refused = []
    for rows in range(1, 160, 12):
        changed = read_recipe(path, [*tokenizer, f"evaluation.rows={rows}"])
        said = []
        for ask in (check_inputs, partial(learning, network, data)):
            try:
                ask(changed)
                said.append("")
            except MaskwiseError as error:
                said.append(str(error))
        assert said[0] == said[1], rows
        refused.append(bool(said[0]))
    assert any(refused) and not all(refused)
    # A sampler that measures nothing needs no rows.
    check_inputs(read_recipe(path, [*tokenizer, "evaluation.rows=160", "sampler=uniform"]))


def test_new_heads_depend_on_the_seed_alone(path: Path, tmp_path: Path) -> None:
    """A model that was only loaded draws no random numbers, so its heads were whatever the process
    had drawn before.
    """
    recipe = read_recipe(path)
    data = prepared(recipe, tmp_path)
    network = new_model(new_config("bert", data.tokenizer, 32, **recipe.model.settings), seed=0)
    found = []
    for ambient, seed in ((1, 0), (2, 0), (2, 1)):
        torch.manual_seed(ambient)
        found.append(learning(network, data, recipe.seeded(seed)).heads()["atd.head.weight"])
    assert torch.equal(found[0], found[1]) and not torch.equal(found[1], found[2])


def test_probes_keep_away_from_the_rows_that_judge_in_any_layout(
    path: Path, tmp_path: Path
) -> None:
    recipe = read_recipe(path)
    packed = prepared(recipe, tmp_path).held_out
    alone = packed.laid("document")
    judged = evenly_spaced(3, of=len(packed))
    assert rows_with(packed, packed, 3) == judged.tolist()
    taken = rows_with(alone, packed, 3)
    pieces = set(packed.line(judged).example_id.tolist())
    assert set(alone.line(taken).example_id.tolist()) == pieces and 0 < len(taken) < len(alone)


@pytest.mark.parametrize("family", ["bert", "distilbert"])
def test_rows_that_judge_are_those_of_evaluation_in_its_layout(
    family: str, path: Path, tmp_path: Path
) -> None:
    """A family that keeps no documents apart is judged on single documents, and pseudo-perplexity
    always is.
    """
    recipe = read_recipe(path, ["evaluation.measures=pseudo-perplexity(2)", "evaluation.rows=3"])
    data = prepared(recipe, tmp_path)
    shape = (
        {"dim": 16, "n_layers": 1, "n_heads": 2, "hidden_dim": 24} if family == "distilbert" else {}
    )
    network = new_model(
        new_config(family, data.tokenizer, 32, **(shape or recipe.model.settings)), seed=0
    )
    (judged, count), (alone, few) = judged_rows(recipe, data.held_out, network.config)
    assert (count, few, alone.layout) == (3, 2, "document")
    assert judged.layout == ("packed" if family == "bert" else "document")


def test_chance_is_that_of_half_a_probe(path: Path, tmp_path: Path) -> None:
    """32 rows, of ``cse`` 48: of a half 12 rows are read twice, so that a twin is one of 23."""
    recipe = read_recipe(
        path, ["sampler=loss-proportional(rows=32)", "corpus.held_out=0.49", "evaluation.rows=2"]
    )
    data = prepared(recipe, tmp_path)
    network = new_model(new_config("bert", data.tokenizer, 32, **recipe.model.settings), seed=0)
    chooser = learning(network, data, recipe).learners["sampler"].sampler
    words = math.log(len(data.tokenizer))
    chance = dict(zip(chooser.objectives, chooser.chance.tolist(), strict=True))
    assert chance == pytest.approx(
        {"mlm": words, "low": words, "atd": math.log(2), "cse": math.log(23)}
    )


def test_a_name_replaces_several_objectives_and_several_replace_a_name(path: Path) -> None:
    arms = "study.arms={one: {objective: clm, sampler: uniform}, two: {objective: {rtd: , cse: }}}"
    recipe = read_recipe(path, [arms])
    assert recipe.arm("one", seed=0).only.objective == "clm"
    assert [*recipe.arm("two", seed=0).objectives] == ["rtd", "cse"]
    # With a single objective, the sampler of the file has nothing to choose from.
    single = read_recipe(path, ["objective=mlm"])
    [link] = single.links()
    assert (link.sampler, link.objectives) == ("uniform", {})
    single = read_recipe(path, ["objective=mlm", "sampler=uniform", arms])
    assert [*single.arm("two", seed=0).objectives] == ["rtd", "cse"]
    with pytest.raises(MaskwiseError, match="no objective is named"):
        read_recipe("quick-start", ["objective={}"])


TWO_OBJECTIVES: dict[str, Any] = {
    "extends": "quick-start",
    "objective": {"mlm": None, "rtd": None},
    "study": {"arms": {"a": {}, "b": {}}, "baseline": None, "contrasts": None, "gate": None},
}
OWN_PART = {"objective.rtd.masking.ratio": 0.3}
DOTTED = {"mlm-0.4": {"objective": "mlm", "masking": {"ratio": 0.4}}, "mlm": None}
LAYERS = [
    ({}, {"mlm": {}, "rtd": {}}),
    ({"objective": {"mlm": None, "atd": None}}, {"mlm": {}, "atd": {}}),
    ({"objective": {"mlm": None}}, {"mlm": {}}),
    (OWN_PART, {"mlm": {}, "rtd": {"ratio": 0.3}}),
    ({"objective.rtd": {"masking": {"ratio": 0.3}}}, {"mlm": {}, "rtd": {"ratio": 0.3}}),
    ({"objective": DOTTED}, {"mlm-0.4": {"ratio": 0.4}, "mlm": {}}),
    ({"objective": DOTTED["mlm-0.4"]["objective"]}, {}),
]


def objectives_of(recipe: Recipe) -> list[dict[str, Any]]:
    """The masking of every objective, by name, in each phase of arm b."""
    links = recipe.arm("b", seed=0).links()
    return [{name: each.masking for name, each in link.objectives.items()} for link in links]


@pytest.mark.parametrize(("own", "expected"), LAYERS)
def test_objectives_of_a_layer_replace_those_before_it(own, expected, tmp_path):
    """In an arm, a phase and a recipe that extends another, the union was trained."""
    read = read_recipe(
        {**TWO_OBJECTIVES, "study": {**TWO_OBJECTIVES["study"], "arms": {"a": {}, "b": own}}}
    )
    assert objectives_of(read) == [expected]
    assert objectives_of(recipe_of_text(read.to_yaml(), name="x", origin="x")) == [expected]
    read = read_recipe({**TWO_OBJECTIVES, "phases": [{}, own]})
    assert objectives_of(read) == [{"mlm": {}, "rtd": {}}, expected]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(TWO_OBJECTIVES))
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": "base.yaml", **own}))
    assert objectives_of(read_recipe(tmp_path / "own.yaml")) == [expected]


def test_points_of_a_search_replace_objectives():
    points = [{"mlm": None, "atd": None}, {"mlm": None, "rtd": None}]
    study = {**TWO_OBJECTIVES["study"], "search": {"grid": {"objective": points}}}
    study["arms"] = {"a": {}, "b": OWN_PART}
    read = read_recipe({**TWO_OBJECTIVES, "study": study})
    found = [read.arm("b", seed=0, more=point).objectives for point in read.study.points_of("b")]
    assert [*map(list, found)] == [["mlm", "atd"], ["mlm", "rtd"]]


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["b.objective.rtd.masking.ratio=.2"], {"mlm": None, "rtd": 0.2}),
        (
            ["b.objective.rtd.masking={}", "b.objective.rtd.masking.ratio=.2"],
            {"mlm": None, "rtd": 0.2},
        ),
        (
            ["b.objective.rtd.masking.ratio=.1", "b.objective.rtd={masking: {ratio: .2}}"],
            {"mlm": None, "rtd": 0.2},
        ),
        (
            ["b.objective={mlm: , atd: }", "b.objective.atd.masking.ratio=.2"],
            {"mlm": None, "atd": 0.2},
        ),
        (
            ["b.objective.rtd.masking.ratio=.1", "b.objective={mlm: , atd: }"],
            {"mlm": None, "atd": None},
        ),
        (["b.phases.1.objective.rtd.masking.ratio=.2"], {"mlm": None, "rtd": 0.2}),
        (
            ["b={phases: [{}, {}]}", "b.phases.1.objective.rtd.masking.ratio=.2"],
            {"mlm": None, "rtd": 0.2},
        ),
    ],
)
def test_overrides_change_a_part_of_the_objectives(overrides, expected):
    """Of an arm, or of a phase of an arm, also if only the recipe names the objectives."""
    given = [f"study.arms.{text}" for text in overrides]
    first, last = objectives_of(read_recipe({**TWO_OBJECTIVES, "phases": [{}, {}]}, given))
    assert {name: masking.get("ratio") for name, masking in last.items()} == expected
    phase_only = any(".phases.1." in text for text in overrides)
    assert first == ({"mlm": {}, "rtd": {}} if phase_only else last)


def test_an_arm_may_be_called_objective():
    arms = {"a": {}, "objective": {"masking": {"ratio": 0.3}}}
    read = read_recipe(
        {**TWO_OBJECTIVES, "study": {**TWO_OBJECTIVES["study"], "arms": arms}},
        ["study.arms.objective.masking.policy=whole-word"],
    )
    masking = read.arm("objective", seed=0).masking
    assert (masking.ratio, masking.policy) == (0.3, "whole-word")
