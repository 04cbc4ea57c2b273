"""Recipes: every one works, mistakes name the nearest right thing, and are found before any
work.
"""

from __future__ import annotations

import json
import tracemalloc
from itertools import chain
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
import torch
import yaml
from pydantic import ValidationError

from invented import write_worlds
from maskwise.base import devices
from maskwise.base.constants import REFERENCE
from maskwise.base.effects import Settings
from maskwise.base.errors import MaskwiseError
from maskwise.masking.settings import MaskingSettings
from maskwise.models.starts import resolve_start
from maskwise.objectives import ObjectiveSettings
from maskwise.recipe import (
    Recipe,
    parse_value,
    read_recipe,
    recipe_of_text,
    shipped,
)
from maskwise.recipe.applies import value_at
from maskwise.recipe.described import settings_of_group
from maskwise.recipe.explained import groups_in
from maskwise.studies.checks import check_inputs
from maskwise.studies.plan import make_plan
from maskwise.studies.pretraining import pretrain
from maskwise.studies.stages import prepare_stage
from maskwise.studies.store import StageStore
from maskwise.studies.work import run_stage
from maskwise.text import Prepared
from maskwise.text.settings import TokenizerSettings
from maskwise.training import TrainingSettings
from maskwise.verdict.statistics import can_decide
from tiny import SMALLER, find_recipe, write_inputs

BENCH_RECIPES = sorted(path.stem for path in find_recipe("transfer").parent.glob("*.yaml"))
# These read files that their first lines say how to make, as test_scripts and test_trex do.
WITH_PLACES = (
    *("trivia-own", "format-and-policy-trivia"),
    *("trex-names", "trex-content", "trex-nouns", "trex-transfer"),
)
NEED_FILES = (
    *(
        "learn-trivia",
        "corpus-and-policy",
        "false-answers",
        "false-answers-pilot",
        "corpus-rates",
        "how-long",
    ),
    *("new-words", "new-words-minilm", "own-text", "replay"),
    *("retrieval-pretraining", "decoder-to-encoder"),
    *WITH_PLACES,
)


@pytest.fixture
def recipe(tmp_path):
    return write_inputs(tmp_path)


@pytest.fixture(scope="module")
def files_of_worlds(tmp_path_factory):
    folder = tmp_path_factory.mktemp("worlds")
    for name in BENCH_RECIPES:
        write_worlds(folder, find_recipe(name), 0)
    # Other recipes read files of this repository.
    (folder / "benchmarks").symlink_to(find_recipe("transfer").parents[1])
    return folder


@pytest.fixture
def worlds(files_of_worlds, monkeypatch):
    """A working folder with the invented worlds that recipes of experiments read."""
    monkeypatch.chdir(files_of_worlds)


@pytest.mark.usefixtures("worlds")
@pytest.mark.parametrize("name", sorted({*BENCH_RECIPES} - {*WITH_PLACES}))
def test_recipes_of_experiments_are_read_by_path(name):
    assert read_recipe(find_recipe(name)).name == name


def once(train):
    """Train one tokenizer for equal settings and texts."""
    found = {}

    def tokenizer(settings, documents):
        some = [*documents]
        key = settings.model_dump_json(), *(document.id for document in some)
        if key not in found:
            found[key] = train(settings, some)
        return found[key]

    return tokenizer


LONG = ("clm-detour", "continual", "intermediate", "mometas", "ptw", "ratios")
"""Shipped recipes that take seconds, and use nothing that the others do not use."""


@pytest.mark.usefixtures("worlds")
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[pytest.mark.slow] * (name not in shipped() or name in LONG))
        for name in [*shipped(), *BENCH_RECIPES]
        if name not in NEED_FILES
    ],
)
def test_every_recipe_trains(name, tmp_path, monkeypatch):
    """Each arm for two steps on a little of its own corpus; the tokenizer and the model made
    small. Arms that differ in a later phase only are one.
    """
    file = find_recipe(name)
    whole = read_recipe(file)
    try:
        resolve_start(whole.model.pretrained or "")
    # what the wheel of a start of ours, or another package, would bring
    except MaskwiseError as missing:
        pytest.skip(str(missing))
    if name in BENCH_RECIPES:
        # The inputs of the first seed are checked.
        write_worlds(Path.cwd(), file, whole.study.first_seed)
    with monkeypatch.context() as patch:
        # Samplers of several arms need rows of the same text.
        patch.setattr(TokenizerSettings, "tokenizer", once(TokenizerSettings.tokenizer))
        check_inputs(whole)
    small = [
        "corpus.limit=40",
        "corpus.held_out=0.4",  # samplers probe 96 rows
        "training.steps=2",
        "training.log_every=1",
        "training.save_every=0",
        "training.eval_every=0",
        "training.batch_size=8",
        "evaluation.rows=4",
    ]
    if not whole.model.pretrained and whole.model.settings.get("num_hidden_layers", 2) <= 4:
        small.append("tokenizer.vocab_size=300")
    if whole.training.compile:
        small += SMALLER
    recipe = read_recipe(file, small)
    # Muon takes most of the time: one arm is enough
    quick = read_recipe(file, [*small, "training.optimizer=adamw"])
    trained: list[Recipe] = []
    for number, arm in enumerate(recipe.study.arms or [None]):
        one = (quick if number else recipe).arm(arm, seed=0) if arm else recipe
        one = one.model_copy(update={"phases": None}).links()[0]
        # One that learns has a stage more: tests/test_study_learning.py
        if one.learns or one in trained:
            continue
        trained.append(one)
        prepared = prepare_stage(one)
        run_stage(prepared, StageStore(tmp_path))
        data = Prepared.open(StageStore(tmp_path).folder(prepared) / "data")
        found = pretrain(data, one, folder=tmp_path / f"arm {arm}")
        masks = {line["masks"].split()[0] for line in found["heldout"]}
        assert found["steps"] == 2 and masks == set(one.evaluation.masks)
        assert all(torch.isfinite(torch.tensor(line["loss"])) for line in found["heldout"])


OWN_ARMS = {"a": {"masking.ratio": 0.15}, "b": {"masking.ratio": 0.3}}


@pytest.mark.usefixtures("worlds")
@pytest.mark.parametrize("base", ["transfer", "learn-meta-full", "mometas-claim"])
def test_other_arms_drop_every_setting_that_names_arms(base: str, tmp_path: Path) -> None:
    """On the command line, and in a recipe that extends another."""
    path = str(find_recipe(base))
    file = tmp_path / "own.yaml"
    file.write_text(yaml.safe_dump({"extends": path, "study": {"arms": OWN_ARMS}}))
    named = ("baseline", "contrasts", "gate")
    for recipe in (read_recipe(file), read_recipe(path, [f"study.arms={json.dumps(OWN_ARMS)}"])):
        study = recipe.study
        assert [getattr(study, name) for name in named] == [None, None, None]
        assert not study.search or not study.search.own
        assert study.pairs == [("b", "a")]


def test_overrides_reach_their_places(recipe):
    found = read_recipe(
        recipe,
        [
            "training.steps=7",
            "training.learning_rate=1e-3",
            "masking.ratio=linear(0.30, 0.15)",
            "tasks=[]",
            "study.arms.token-15.model.settings.hidden_size=8",
            "tokenizer.name=null",
            "name=two words",
        ],
    )
    assert found.training.steps == 7 and found.training.learning_rate == 1e-3 and found.tasks == ()
    assert found.masking.ratio == "linear(0.30, 0.15)" and found.name == "two words"
    arm = found.arm("token-15", seed=3)
    assert arm.training.seed == 3 and arm.model.settings["hidden_size"] == 8
    # an arm changes only the keys that it names
    assert arm.model.settings["num_hidden_layers"] == 2
    words = found.arm("words-30", seed=0).masking
    assert (words.policy, words.ratio, words.corruption) == ("whole-word", 0.3, "bert")


def test_what_is_resolved_can_be_read_again(recipe, tmp_path):
    found = read_recipe(recipe)
    (tmp_path / "again.yaml").write_text(found.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == found


@pytest.mark.parametrize(
    "text, value",
    [
        ("3", 3),
        ("1e-3", 1e-3),
        ("true", True),
        ("False", False),
        ("yes", "yes"),
        ("n", "n"),
        ("null", None),
        ("", None),
        ("a b", "a b"),
        ("span(p=0.2)", "span(p=0.2)"),
        ("[a, b]", ["a", "b"]),
        ("{a: 1}", {"a": 1}),
        # Not as in YAML 1.1: no octal numbers, no base of 60 and no dates.
        ("010", "010"),
        ("1:30", "1:30"),
        ("1:30.5", "1:30.5"),
        ("2024-01-01", "2024-01-01"),
        ("{15:30: 0x1F}", {"15:30": 31}),
        ("[0, -3, .5, 1., 1.5e3, 1_000]", [0, -3, 0.5, 1.0, 1500.0, 1000]),
        # A path may begin with the seed.
        ("{seed}.txt", "{seed}.txt"),
        ("{seed}/{seed}", "{seed}/{seed}"),
    ],
)
def test_values_of_overrides(text, value):
    assert parse_value(text) == value and type(parse_value(text)) is type(value)


def test_a_dotted_name_changes_a_part_of_the_grid_of_another_recipe(tmp_path):
    """Who writes the grid replaces it; a part of it, or of a grid of the same file, is added."""
    arms = "study.arms: {a: {}, b: {masking.policy: span}}\n"
    grid = "study.search.grid: {training.learning_rate: [1.0e-3], masking.ratio: [0.2, 0.3]}\n"
    (tmp_path / "base.yaml").write_text(arms + grid)
    own = tmp_path / "own.yaml"
    rates, ratios = (2e-3, 4e-3), (0.2, 0.3)
    for written, found in {
        "study.search.grid.training.learning_rate: [2.0e-3, 4.0e-3]": (rates, ratios),
        "study.search.grid: {training.learning_rate: [2.0e-3, 4.0e-3]}": (rates, None),
        "study: {search: {grid: {training: {learning_rate: [2.0e-3, 4.0e-3]}}}}": (rates, None),
    }.items():
        own.write_text(f"extends: base.yaml\n{written}\n")
        search = read_recipe(own).study.search
        assert (search.grid["training.learning_rate"], search.grid.get("masking.ratio")) == found
        # Without a base, both forms are the grid.
        own.write_text(f"{arms}{written}\n")
        assert [*read_recipe(own).study.search.grid] == ["training.learning_rate"]


@pytest.mark.parametrize("override", ["phases=null", "phases=[{}]", "phases=[{}, {}]"])
def test_an_override_may_leave_out_phases_of_the_file(override, tmp_path):
    path = tmp_path / "three.yaml"
    path.write_text("phases: [{}, {masking.ratio: 0.3}, {masking.policy: span}]\n")
    phases = read_recipe(path, [override]).phases
    assert phases in (None, ({},), ({}, {}))


def test_an_override_changes_one_point_of_a_grid():
    grid = [{"masking.ratio": 0.2}, {"masking.ratio": 0.3}]
    arms = {"a": {}, "b": {"masking.policy": "span"}}
    study = {"arms": arms, "search": {"grid": grid, "own": {"b": grid}}}
    search = read_recipe(
        {"study": study},
        ["study.search.grid.1.masking.ratio=0.4", "study.search.own.b.0.masking.ratio=0.1"],
    ).study.search
    assert search.grid == ({"masking.ratio": 0.2}, {"masking.ratio": 0.4})
    assert search.own["b"] == ({"masking.ratio": 0.1}, {"masking.ratio": 0.3})


def test_null_is_a_default_or_one_clear_line():
    """No key is silently ignored, and no parser of a value meets None."""
    base = read_recipe("decay").model_dump(mode="json")
    base["study"] |= {
        "gate": ["45 → 15 %", "no-pretraining"],
        "search": {"grid": {"training.warmup": [0.1, 0.2]}},
    }
    optional = {"learning", "study.gate", "study.search"}
    wrong = {}
    for key in settings_of_group(Recipe):
        means_default = key.default == "null" or key.name in optional
        try:
            read_recipe(base, [f"{key.name}=null"])
            said = "" if means_default else "accepted"
        except MaskwiseError as error:
            said = str(error)
            clear = f"{key.name}; got nothing; allowed" in said and "\n" not in said
            said = "" if clear and not means_default else said
        if said:
            wrong[key.name] = said
    assert wrong == {}


def test_a_gate_that_is_a_pair_takes_further_settings():
    recipe = read_recipe("decay", ["study.gate.closes=[[45 → 15 %, 30 %]]"])
    assert recipe.study.gate.contrast == ("45 → 15 %", "no-pretraining")
    assert recipe.study.closed == [("45 → 15 %", "30 %")]


ARMS_OF_A_FILE = {"a": {"masking.ratio": 0.2}, "b": {"masking": {"ratio": 0.4}}}


@pytest.mark.parametrize(
    "spelled",
    [
        {"study": {"arms": ARMS_OF_A_FILE}},
        {"study.arms": ARMS_OF_A_FILE},
        {f"study.arms.{name}": arm for name, arm in ARMS_OF_A_FILE.items()},
        {"study": {f"arms.{name}": arm for name, arm in ARMS_OF_A_FILE.items()}},
        {"study.arms.a.masking.ratio": 0.2, "study.arms.b.masking.ratio": 0.4},
        {
            "study.arms": {"a": {}},
            "study.arms.a.masking.ratio": 0.2,
            "study.arms.b": {"masking.ratio": 0.4},
        },
    ],
)
def test_arms_of_a_file_replace_those_of_its_base_however_they_are_written(spelled, tmp_path):
    """They were dropped, and the study compared the arms of the quick start."""
    (tmp_path / "own.yaml").write_text(yaml.safe_dump({"extends": "decay", **spelled}))
    for source in (tmp_path / "own.yaml", {"extends": "decay", **spelled}):
        recipe = read_recipe(source)
        assert [recipe.arm(name, seed=0).masking.ratio for name in recipe.study.arms] == [0.2, 0.4]
        assert recipe.study.pairs == [("b", "a")] and recipe.study.gate is None


@pytest.mark.parametrize("name", ["true", "null", "1e-4", "on", "010"])
def test_an_arm_is_called_as_a_file_writes_its_name(name, tmp_path):
    """An arm true was called True, and 1e-4 was 0.0001, whose dot was refused."""
    path = tmp_path / "names.yaml"
    path.write_text(f"study: {{arms: {{{name}: , other: {{masking.ratio: 0.3}}}}}}\n")
    read = read_recipe(path)
    assert [*read.study.arms] == [name, "other"]
    path.write_text(read.to_yaml())
    assert [*read_recipe(path).study.arms] == [name, "other"]


def test_overrides_that_go_together_are_read_together():
    """They were read, and then refused, because each was put into the value of another."""
    more = ["study.contrasts=null", "study.gate=null"]
    keep, add = "study.arms=15 %,30 %", "study.arms.40={masking.ratio: 0.4}"
    assert [*read_recipe("decay", [keep, add, *more]).study.arms] == ["15 %", "30 %", "40"]
    gate = ["study.gate=[30 %, 15 %]", "study.gate.closes=[]"]
    study = read_recipe("decay", gate).study
    assert study.gate.contrast == ("30 %", "15 %") and study.closed == []
    file = read_recipe({"extends": "decay", "study": {"gate": {"closes": []}}}).study
    assert file.gate.contrast == ("45 → 15 %", "no-pretraining") and file.closed == []


def test_settings_in_a_group_leave_the_others_of_the_group():
    """``training={steps: 900}`` reset the learning rate, the optimizer and others."""
    base = read_recipe("decay")
    longer = read_recipe("decay", ["training={steps: 900}"])
    assert longer.training == base.training.model_copy(update={"steps": 900})
    assert longer == read_recipe("decay", ["training.steps=900"])
    two = read_recipe("decay", ["study={seeds: 8, gate: {closes: []}}"]).study
    assert two.gate.contrast == base.study.gate.contrast and two.closed == []
    assert (two.seeds, two.arms, two.outcome) == (8, base.study.arms, base.study.outcome)
    ratio = "study.arms={a: {training.warmup: 0.2}, b: {}}"
    arm = read_recipe("decay", [ratio, "study.arms.a.training={steps: 9}"]).arm("a", seed=0)
    assert (arm.training.steps, arm.training.warmup) == (9, 0.2)
    # Settings of another architecture are of no use to a new one.
    assert read_recipe("decay", ["model={architecture: bert}"]).model.settings == {}
    named = read_recipe("decay", ["objective={a: mlm}", "objective={b: mlm, cse: {}}"])
    assert [*named.objectives] == ["b", "cse"]
    # The last value counts, wherever an earlier one was.
    last = ["training.warmup=0.2", "training={}", "training.warmup=0.3", "training.steps=5"]
    assert read_recipe("decay", last).training.warmup == 0.3


def test_words_for_truth_are_words_where_words_are_meant(recipe, tmp_path):
    """YAML 1.1 reads no, off and on as truth values."""
    settings = [
        "training.precision=no",
        "tokenizer.lowercase=off",
        "model.settings.is_decoder=no",
        "name=on",
    ]
    found = read_recipe(recipe, [*settings, "study.arms={on: {training.precision: no}, off: {}}"])
    assert (found.training.precision, found.tokenizer.lowercase, found.name) == ("no", False, "on")
    assert found.model.settings["is_decoder"] is False and list(found.study.arms) == ["on", "off"]
    (tmp_path / "again.yaml").write_text(found.to_yaml(), encoding="utf-8")
    assert read_recipe(tmp_path / "again.yaml") == found


def test_one_corpus_is_one_stage_however_it_is_spelled(recipe, monkeypatch):
    monkeypatch.chdir(recipe.parent)
    spelled = ("corpus.jsonl", "./corpus.jsonl", "x/..//corpus.jsonl")
    assert (
        len(
            {prepare_stage(read_recipe(recipe, [f"corpus.source={path}"])).name for path in spelled}
        )
        == 1
    )
    assert read_recipe(recipe, ["corpus.source=hf:a//b"]).corpus.source == "hf:a//b"


TWO = "study.arms={a: {masking.ratio: 0.2}, b: {}}"
OWN = "study.arms={own: {}, salient: {masking.policy: salient}}"


@pytest.mark.parametrize(
    ("name", "overrides", "pairs"),
    [
        ("ratios", [TWO], [("b", "a")]),
        ("ratios", [TWO, "study.baseline=b"], [("a", "b")]),
        ("ratios", ["study.contrasts=[[b, a]]", TWO], [("b", "a")]),
        ("mmbert", ["study.arms=constant-30, mmbert"], [("constant-30", "mmbert")]),
        ("mmbert", ["study.arms=[mmbert, by-size]"], [("by-size", "mmbert")]),
        (
            "intermediate",
            ["study.arms=own,random", "study.contrasts=[[random, own]]"],
            [("random", "own")],
        ),
        (
            "learn-meta",
            ["study.arms.news={}", "study.contrasts=null"],
            [(arm, "random") for arm in ("salient", "oracle", "meta", "news")],
        ),
        (
            "decay",
            ["study.arms.15 %=null", "study.contrasts=null"],
            [("45 → 15 %", REFERENCE), ("45 → 15 %", "30 %")],
        ),
    ],
)
def test_arms_are_replaced_or_chosen(name, overrides, pairs):
    study = read_recipe(name, overrides).study
    assert study.pairs == pairs
    # A held-out loss may not suit other arms.
    assert read_recipe("decay").study.outcome == "heldout:token@0.15"
    assert read_recipe("decay", [TWO]).study.outcome is None


def test_every_shipped_comparison_has_enough_runs_for_a_verdict() -> None:
    for name in shipped():
        study = read_recipe(name).study
        # One run of each arm: recipes that train a model or learn a policy.
        if study.seeds != 1:
            # A gate costs no share of the error rate.
            questions = len(study.pairs) - bool(study.gate)
            assert can_decide(study.seeds, max(1, questions)), name


@pytest.mark.parametrize("name", shipped())
def test_every_arm_that_nothing_names_can_be_left_out(name: str) -> None:
    study = read_recipe(name).study
    named = {study.baseline, *chain(*study.pairs)}
    for arm in study.arms:
        override = f"study.arms.{arm}=null"
        if len(study.arms) > 1 and arm not in named:
            left = read_recipe(name, [override]).study
            assert [*left.arms] == [other for other in study.arms if other != arm]
            assert left.pairs == study.pairs
        elif study.contrasts and arm in named:
            with pytest.raises(MaskwiseError, match=r"names '|no arm is left"):
                read_recipe(name, [override])


def test_arms_are_given_to_a_recipe_without_a_study():
    settings = read_recipe("decay").model_dump(mode="json")
    del settings["study"]
    arms = "study.arms={a: {}, b: {masking.ratio: 0.3}}"
    assert list(read_recipe(settings, [arms]).study.arms) == ["a", "b"]


def _is_refused_before_it_is_built(path, text):
    path.write_text(text)
    tracemalloc.start()
    with pytest.raises(MaskwiseError, match="too many values; allowed: at most 100,000"):
        read_recipe(path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 10_000_000


@pytest.mark.parametrize("inner", ["[{}]", "{{a: {0}, b: {0}, c: {0}, d: {0}}}", "{{<<: [{}]}}"])
def test_aliases_that_expand_enormously_are_refused_before_they_are_built(inner, tmp_path):
    lines = ["a0: &a0 {key: 1, other: 2}"]
    for level in range(1, 12):
        aliases = ", ".join([f"*a{level - 1}"] * 9)
        if "{0}" in inner:
            aliases = f"*a{level - 1}"
        lines.append(f"a{level}: &a{level} {inner.format(aliases)}")
    _is_refused_before_it_is_built(tmp_path / "r.yaml", "\n".join(lines))


def test_keys_that_expand_enormously_are_refused_before_they_are_built(tmp_path):
    lines = ["? &a0 [x, x]\n: 0"]
    for level in range(1, 25):
        lines.append(f"? &a{level} [*a{level - 1}, *a{level - 1}]\n: 0")
    _is_refused_before_it_is_built(tmp_path / "r.yaml", "\n".join(lines))


def test_an_arm_that_changes_nothing_may_be_left_empty(recipe):
    plain = yaml.safe_load(recipe.read_text())
    plain["study"]["arms"]["token-15"] = None
    recipe.write_text(yaml.safe_dump(plain))
    assert read_recipe(recipe).study.arms["token-15"] == {}


@pytest.mark.parametrize(
    ("changes", "kinds", "policies"),
    [
        ({"masking": {"policy": "whole-word"}}, ("whole-word",), ["whole-word"]),
        ({"objective": "clm"}, ("next-token",), []),
        ({"objective": {"clm": {}}}, ("next-token",), []),
        (
            {"objective": {"mlm": {"masking": {"policy": "whole-word"}}, "cse": {}}},
            ("whole-word",),
            ["whole-word"],
        ),
        (
            {"objective": {"a": {"objective": "mlm", "masking": {"policy": "span"}}, "mlm": {}}},
            ("token",),
            ["token"],
        ),
    ],
)
def test_a_training_is_judged_on_the_masks_that_it_predicts(changes, kinds, policies):
    recipe = Recipe.model_validate(changes)
    assert (recipe.judged_on(), [*recipe.masked_by]) == (kinds, policies)


def test_an_arm_has_its_own_masking_beside_masked_diffusion(tmp_path, monkeypatch):
    """What masked diffusion had put into the recipe stayed in arms and phases of other
    objectives.
    """
    monkeypatch.chdir(tmp_path)
    base = ["study.contrasts=null", "study.baseline=null"]
    recipe = read_recipe("diffusion", [*base, "study.arms={rates: {}, words: {objective: mlm}}"])
    rates, words = (recipe.arm(name, seed=0).links()[0].masking for name in ("rates", "words"))
    assert str(rates.ratio) == "uniform(0, 1)" and rates.corruption == "mask-only"
    assert (words.ratio, words.budget, words.min_targets) == (0.15, "expected", 1)
    assert words.corruption == "mask-only"  # as the quick start says, which the recipe extends
    Path("again.yaml").write_text(recipe.to_yaml())
    again = read_recipe("again.yaml")
    found = [again.arm(name, seed=0).links()[0].masking for name in ("rates", "words")]
    assert found == [rates, words]
    fixed = read_recipe("diffusion", ["study={}", "phases=[{}, {objective: mlm}]"])
    first, second = fixed.links()
    assert (first.masking.budget, second.masking.budget) == ("exact", "expected")


def test_all_classes_of_settings_refuse_truth():
    """Those of objectives and of Python, too, which the reading of recipes did not reach."""
    classes = {Recipe}
    for _ in range(4):
        fields = chain.from_iterable(kind.model_fields.values() for kind in classes)
        classes |= {*chain.from_iterable(groups_in(field.annotation) for field in fields)}
    assert len(classes) > 10 and all(issubclass(kind, Settings) for kind in classes)
    for kind, name in ((TrainingSettings, "steps"), (MaskingSettings, "predict")):
        with pytest.raises(ValidationError, match="this is not a number"):
            kind(**{name: True})


def test_masking_beside_an_objective_that_has_its_own_is_for_arms_without():
    arms = {"a": {}, "b": {"training.warmup": 0.2}}
    own = {"mlm": {"masking": {"ratio": 0.3}}}
    base = {"extends": "decay", "masking.ratio": 0.4, "study": {"arms": arms}}
    arms["b"]["objective"] = "mlm"
    read_recipe({**base, "objective": own, "study": {"arms": arms}})


DIFFUSES = {"phases": [{}, {"objective": "diffusion", "masking.corruption": "mask-only"}]}
STUDIES_WITH_DIFFUSION = {
    "phase of an arm": {"study": {"arms": {"a": {}, "b": DIFFUSES}}},
    "grid": {
        "study": {
            "arms": {"a": {}, "b": {}},
            "search": {"grid": {"objective": ["mlm", "diffusion"]}},
        }
    },
    "phase": {"study": {"arms": {"a": {}, "b": {"training.warmup": 0.2}}}, **DIFFUSES},
    "arm": {"study": {"arms": {"a": {}, "b": {"objective": "diffusion"}}}},
}


@pytest.mark.parametrize("name", STUDIES_WITH_DIFFUSION)
def test_an_arm_that_ends_with_diffusion_is_measured_by_its_masks(name):
    """Without tasks, such a study trained everything, and then had no outcome."""
    own = {"extends": "decay", "tasks": [], **STUDIES_WITH_DIFFUSION[name]}
    recipe = read_recipe(own)
    for run in make_plan(recipe).runs:
        masks = run.evaluated.what["evaluation"]["masks"]
        assert masks == ["token", "whole-word", "diffusion"]
    # What is written is the same recipe: masking defaults are those of each objective.
    assert read_recipe(recipe) == recipe
    again = Recipe.model_validate(yaml.safe_load(recipe.to_yaml()))
    for arm in recipe.study.arms:
        for point in recipe.study.points_of(arm):
            links = [each.arm(arm, seed=0, more=point).links() for each in (recipe, again)]
            assert links[0] == links[1]


def test_a_recipe_of_diffusion_can_be_read_again():
    for settings in ([], ["masking={budget: exact, corruption: mask-only}"]):
        recipe = read_recipe("diffusion", settings)
        again = read_recipe(recipe)
        assert again == recipe
        assert again.links()[0].masking.ratio == "uniform(0, 1)"


def test_masked_diffusion_keeps_the_defaults_that_the_user_wrote():
    """``masking.ratio: 0.15`` and ``uniform(0, 1)`` were the same training."""
    arms = {"fixed": {"masking.ratio": 0.15}, "drawn": {"masking.ratio": "uniform(0, 1)"}}
    recipe = Recipe.model_validate({"objective": "diffusion", "study": {"arms": {**arms, "a": {}}}})
    ratios = {"fixed": 0.15, "drawn": "uniform(0, 1)", "a": "uniform(0, 1)"}
    for name, ratio in ratios.items():
        arm = recipe.arm(name, seed=0)
        [link] = arm.links()
        assert link.masking.ratio == ratio
        # A recipe from complete settings, as in a stage, trains with the same settings.
        again = Recipe.model_validate(link.model_dump(mode="json"))
        said = Recipe.model_validate(yaml.safe_load(arm.to_yaml()))
        for same in (link, again, again.links()[0], said):
            settings = same.masking_of(ObjectiveSettings(objective="diffusion"))
            assert settings.model_dump() == link.masking.model_dump()
        assert bool(link.remarks()) == (name == "fixed")


def test_masked_diffusion_among_other_objectives_keeps_its_own_settings():
    mixed = {"mlm": {}, "diffusion": {}, "own": {"objective": "diffusion"}}
    mixed["own"]["masking"] = {"ratio": 0.15}
    recipe = Recipe.model_validate({"objective": mixed})
    again = Recipe.model_validate(recipe.model_dump(mode="json"))
    for same in (recipe, again):
        arms = same.objectives.values()
        settings = [same.masking_of(arm) for arm in arms]
        assert [each.ratio for each in settings] == [0.15, "uniform(0, 1)", 0.15]
        assert [each.budget for each in settings] == ["expected", "exact", "exact"]


def test_only_arms_masked_by_a_learned_policy_learn_one():
    """Where the recipe itself was masked by it, every arm learned a policy in every run."""
    arms = "study.arms={meta: {}, random: {masking.policy: token}}"
    more = ["masking.policy=learned", arms, "study.contrasts=null", "study.baseline=null"]
    recipe = read_recipe("learn-meta", more)
    assert [recipe.arm(name, seed=0).learns for name in ("meta", "random")] == [True, False]


def test_groups_that_share_an_anchor_are_changed_one_by_one(tmp_path):
    path = tmp_path / "anchors.yaml"
    path.write_text(
        "extends: decay\nstudy:\n  arms:\n    a: &same {masking: {ratio: 0.3}}\n"
        "    b: {<<: *same, training: {steps: 900}}\n"
    )
    recipe = read_recipe(path, ["study.arms.a.masking.ratio=0.15"])
    assert [recipe.arm(name, seed=0).masking.ratio for name in "ab"] == [0.15, 0.3]


@pytest.mark.parametrize("bf16", [1e12, 1e11])
def test_bf16_that_the_processor_emulates_is_warned_of(bf16, monkeypatch):
    monkeypatch.setattr(devices, "best_device", lambda: torch.device("cpu"))
    monkeypatch.setattr(
        devices, "matmul_rate", lambda _, precision: {"no": 1e12}.get(precision, bf16)
    )
    notes = check_inputs(read_recipe("decay", ["training.precision=bf16"]))
    assert any("10 times as long" in note for note in notes) == (bf16 < 1e12)


def test_a_checkpoint_replaces_the_new_model_of_an_earlier_layer(tmp_path):
    """The quick start has settings of a new model, which a checkpoint cannot have."""
    new = read_recipe("decay").model
    start = "model.pretrained=bundled:encoder"
    assert new.settings and read_recipe("decay", [start]).model.settings == {}
    path = tmp_path / "arms.yaml"
    path.write_text("extends: decay\nmodel: {pretrained: bundled:encoder}\n")
    assert read_recipe(path).model.settings == {}
    arms = "study.arms={new: {}, start: {model.pretrained: bundled:encoder}}"
    recipe = read_recipe("decay", [arms, "study.contrasts=null", "study.baseline=null"])
    assert recipe.arm("new", seed=0).model == new
    assert recipe.arm("start", seed=0).model.settings == {}
    # What the same layer says stays.
    said = read_recipe("decay", [start, "model.settings={mlp_dropout: 0.1}"])
    assert said.model.settings == {"mlp_dropout": 0.1}


def test_the_layers_that_masking_reads_are_those_of_all_its_parts() -> None:
    settings = ["objective=denoise", "model={architecture: bart}"]
    masking = "masking={policy: salient, corruption: permute-sentences, keep: prompt}"
    found = read_recipe("decay", [*settings, masking]).layers_read
    objectives = "{mlm: {masking: {keep: one}}, rtd: {masking: {keep: two}}}"
    of_several = read_recipe("decay", [f"objective={objectives}"]).layers_read
    assert of_several["masking.keep names"] == ("one", "two")
    read = {layer for layers in found.values() for layer in layers}
    assert read >= {"salient", "sentence", "prompt"}


BERT = {"architecture": "bert", "settings": {"hidden_size": 32, "num_attention_heads": 2}}
ARMS_OF_TWO = {"baseline": None, "contrasts": None, "gate": None}


@pytest.mark.parametrize("layer", ["file", "override", "arm"])
def test_another_architecture_drops_settings_that_it_does_not_have(layer, tmp_path):
    """The quick start's layer_types were refused, which the user never wrote."""
    arms = {"a": {}, "b": {"model": BERT} if layer == "arm" else {}}
    given = {"extends": "decay", "study": {**ARMS_OF_TWO, "arms": arms}}
    overrides = ["model.architecture=bert"] if layer == "override" else []
    if layer == "file":
        given["model"] = BERT
    read = read_recipe(given, overrides)
    model = read.arm("b", seed=0).model
    size = 128 if layer == "override" else 32
    assert (model.architecture, model.settings["hidden_size"]) == ("bert", size)
    assert model.settings["num_hidden_layers"] == 2 and "layer_types" not in model.settings
    assert ("layer_types" in read.arm("a", seed=0).model.settings) == (layer == "arm")
    # A setting of the same layer stays, and is refused when the model is built.
    if layer == "override":
        kept = read_recipe(given, [*overrides, "model.settings.layer_types=[full_attention]"])
        assert kept.model.settings["layer_types"] == ["full_attention"]


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("training.steps", np.int64(30), 30),
        ("training.learning_rate", np.float32(0.5), 0.5),
        ("training.group_by_length", np.bool_(True), True),
        ("masking.ratio", np.float64(0.25), 0.25),
        ("model.settings.hidden_size", np.int64(64), 64),
        ("corpus.source", Path("bundled:wikipedia"), "bundled:wikipedia"),
        ("training.betas", np.array([0.5, 0.75]), (0.5, 0.75)),
    ],
)
def test_values_of_numpy_are_numbers_in_arms_and_phases(key, value, expected):
    """They were accepted, and ended in a traceback when the arm was made."""
    arms = MappingProxyType({"a": {}, "b": MappingProxyType({key: value})})
    given = {"extends": "decay", "study": {**ARMS_OF_TWO, "arms": arms}}
    read = read_recipe(given)
    found = value_at(read.arm("b", seed=0).model_dump(), key)
    assert found == expected and type(found) is type(expected)
    assert recipe_of_text(read.to_yaml(), name="x", origin="x") == read
    if not key.startswith("model"):
        phases = {"extends": "decay", "phases": [{}, {key: value}]}
        assert value_at(read_recipe(phases).links()[1].model_dump(), key) == expected


def test_an_array_is_a_list_in_a_grid():
    search = {"grid": {"training.steps": np.arange(10, 40, 10)}}
    study = {**ARMS_OF_TWO, "arms": {"a": {}, "b": {}}, "search": search}
    points = read_recipe({"extends": "decay", "study": study}).study.points_of("b")
    assert points == [{"training.steps": steps} for steps in (10, 20, 30)]


def test_brackets_that_close_nothing_are_texts():
    for text in ("[(, )]", "{a: (, b: )}", '{a: "linear(0.45", 0.15): }', "[f(, )]", "[f(a), b]"):
        assert parse_value(text)


def test_texts_that_are_no_numbers_are_written_with_quotes():
    """Arms such as 1e-4 were read back as numbers, and no is a boolean of YAML 1.1."""
    names = ("1e-4", "no", "010", "1:30", "2024-01-01", "null", "0x1f", "1_000", "~", "a b")
    arms = {name: {"training.steps": 9 + number} for number, name in enumerate(names)}
    study = {**ARMS_OF_TWO, "arms": arms, "contrasts": [["no", "1e-4"]]}
    read = read_recipe({"extends": "decay", "name": "1e5", "study": study})
    assert recipe_of_text(read.to_yaml(), name="x", origin="x") == read
    assert [*yaml.safe_load(read.to_yaml())["study"]["arms"]] == [*names]
