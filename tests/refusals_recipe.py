"""Mistakes in recipes: in files, in dicts and in overrides."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from maskwise.recipe import parse_value, read_recipe
from maskwise.studies.checks import check_inputs
from refusals import Refusal
from tiny import write_inputs

Call = Callable[[Path], object]


def small(override: str) -> Call:
    """Read the recipe of ``tiny`` with an override."""
    return lambda folder: read_recipe(write_inputs(folder), [override])


def shipped(*overrides: Any, name: str = "decay") -> Call:
    return lambda folder: read_recipe(name, overrides)


def text(written: str, *overrides: str) -> Call:
    """Read a file own.yaml."""

    def read(folder: Path) -> None:
        (folder / "own.yaml").write_text(written)
        read_recipe(folder / "own.yaml", overrides)

    return read


def settings(given: dict[str, Any], *overrides: str) -> Call:
    return lambda folder: read_recipe(given, overrides)


def decay(given: dict[str, Any], *overrides: str) -> Call:
    return settings({"extends": "decay", **given}, *overrides)


def file_with_a_mistake(folder: Path, *overrides: str) -> None:
    """The mistake is the file's, whatever the overrides are."""
    recipe = "extends: decay\ntraining.steps: -1\n"
    text(recipe, "training.warmup=0.1", "name=x", *overrides)(folder)


def of_texts(folder: Path) -> None:
    (folder / "news.txt").write_text("Paris: rain: none\n")
    read_recipe(folder / "news.txt")


def points(*grid: object, **search: object) -> dict[str, Any]:
    arms = {"a": {}, "b": {"masking.ratio": 0.3}}
    return {"study": {"arms": arms, "search": {"grid": grid[0] if grid else {}, **search}}}


def three_arms(setting: str, *overrides: str) -> Call:
    study = {"arms": {"a": {}, "b": {}, "c": {}}, "gate": ["c", "b"], "baseline": "b"}
    removed = {"gate": ["study.arms.c=null"], "baseline": ["study.arms.b=null", "study.gate=null"]}
    return decay({"study": study}, *removed[setting], *overrides)


def deep_aliases() -> str:
    lines = ["a0: &a0 1"]
    for block in range(1, 5):
        lines.append(f"a{block}: &a{block} " + "{x: " * 150 + f"*a{block - 1}" + "}" * 150)
    return "\n".join(lines)


def circle() -> dict[str, object]:
    found: dict[str, object] = {"extends": "decay"}
    found["study"] = found
    return found


DEEP = "[" * 500 + "]" * 500
TWICE = {"masking": {"ratio": 0.2}, "masking.ratio": 0.3}
POINTS_TWICE = {"training.steps": [5, 6], "training": {"steps": [7, 8]}}
NO_NUMBERS = ("9" * 5000, "!!timestamp x", "!!float x", "!!int ''", "!!bool x")
OTHER_ARMS = 'study.arms={"a": {"masking.ratio": 0.15}, "b": {}}'
OWN_MASKING = {
    "objective": {"mlm": {"masking": {"ratio": 0.3}}},
    "masking.ratio": 0.4,
    "study": {"arms": {"a": {}, "b": {"training.warmup": 0.2}}},
}
# Reads of a small recipe, by their override.
SMALL: dict[str, tuple[str, ...]] = {
    "training.step=5": ("training", "'step'", "did you mean 'steps'"),
    "masking.policy=whole-wrod": ("did you mean 'whole-word'",),
    "masking.policy=span(q=1)": ("span", "'q'"),
    "masking.ratio=1.5": ("masking.ratio", "1.5"),
    "masking.corruption=t5": ("t5", "length"),
    "masking.corruption=replace(target='detect')": ("0 and 1", "mlm"),
    "evaluation.masks=[word]": ("evaluation.masks", "word", "whole-word"),
    "study.baseline=tokn-15": ("study", "tokn-15", "did you mean 'token-15'"),
    "study.seeds=[1, 1]": ("study.seeds", "[1, 1]"),
    "study.arms.no-pretraining.masking.ratio=0.2": ("no-pretraining",),
    "study.arms.x.masking.rato=0.2": ("arm 'x'", "rato", "'ratio'"),
    "study.arms.x.tasks=[banking77]": ("'x'", "tasks"),
    "study.arms.x.training.seed=4": ("'x'", "training.seed"),
    "name.first=x": ("name.first", "name is a value"),
    "steps": ("steps", "key=value"),
    "training.precision=bf61": ("training.precision", "'bf61'", "auto, no, bf16", "'bf16'?"),
    "training.steps=many": ("training.steps", "'many'", "a whole number"),
    "training.steps=-1": ("training.steps", "got -1", "≥ 0"),
    "training.steps=": ("training.steps", "nothing", "a whole number"),
    "phases=[{training.steps: null}]": ("training.steps=1000",),
    "training=null": ("training", "accumulate"),
    "corpus.held_out=0.9": ("corpus.held_out", "0.9", "< 0.5"),
    "study.seeds=some": ("study.seeds", "'some'", "a whole number or a list"),
    "study.seeds=[1, x]": ("study.seeds.1", "'x'", "a whole number"),
    "corpus=3": ("corpus", "got 3", "source"),
    "tokenizer.lowercase=maybe": ("tokenizer.lowercase", "'maybe'", "true or false"),
    "training.betas=[0.9]": ("training.betas.1",),
    "objective={atd: {objctive: mlm}}": ("objctive", "did you mean 'objective'"),
    "study.arms=3": ("study.arms", "got 3", "{name: value}"),
    "study.arms.x.training.steps=no": ("arm 'x'", "training.steps", "'no'"),
}
# Reads of the recipe decay, by their override.
DECAY: dict[str, tuple[str, ...]] = {
    # The override that is wrong is named, and not the recipe.
    "masking.ratio=2": ("override masking.ratio", "2.0"),
    "training.stepz=5": ("override training.stepz=5", "'stepz'"),
    "study.arms.x={masking.ratio: 2}": ("override study.arms.x={masking.ratio: 2}", "arm 'x'"),
    "phases=[{masking.ratio: 2}]": ("override phases.0", "masking.ratio"),
    "phases.0.masking.ratio=2": ("override phases.0.masking.ratio=2",),
    "study.baseline=x": ("override study.baseline=x",),
    "training={stepz: 9}": ("override training={stepz: 9}", "'stepz'"),
    # A value in the place of a group.
    **{f"study={value}": ("override study", "arms") for value in ("abc", "[1]", "null", "3")},
    "training={steps: 5, steps: 6}": ("override training", "'steps'", "line 1"),
    "training={steps: 5, [}": ("override training",),
    "training=[a, b: c: d]": ("override training",),
    f"study={{arms: {DEEP}}}": ("deep",),
    # Truth is no number, and what is allowed is what may stand in its place.
    **{
        f"{key}={value}": (value.title(), "number")
        for key, value in {
            "training.steps": "true",
            "training.patience": "false",
            "masking.ratio": "true",
            "study.seeds": "false",
            "study.margin": "true",
            "objective.mlm.masking.ratio": "false",
            "study.arms.15 %.masking.ratio": "true",
            "training.warmup": "false",
        }.items()
    },
    "evaluation.ratios=[true]": ("[True]", "a number"),
    "study.seeds=[true]": ("[True]", "a whole number"),
    "corpus.source=true": ("True", "text or settings"),
    "corpus.source={a.txt: true}": ("True", "a number"),
    "corpus.source=[true]": ("True", "a file"),
    "training.betas=true": ("True", "a list"),
    "training.betas=[true, 0.9]": ("True", "a number"),
    "training.lengths=true": ("True", "a number or a list of numbers"),
    "training.lengths=[true]": ("True", "a number"),
    "study.interim_looks=true": ("True", "a whole number or a list of whole numbers"),
    # A word for off: the number that turns it off.
    **{
        f"training.clip={word}": ("training.clip", "0 turns this off")
        for word in ("false", "null", "off", "none")
    },
    "training.save_every=off": ("training.save_every", "0 turns this off"),
    "finetune.eval_every=none": ("finetune.eval_every", "0 turns this off"),
    # Values that cannot be read.
    **{f"training.seed={value}": ("training.seed", "a whole number") for value in NO_NUMBERS},
    "study.contrasts=[[15 %, 30 %], [30 %, 15 %]]": ("[15 %, 30 %]", "[30 %, 15 %]"),
    **{
        f"study.contrasts=[{pair}]": ("[arm, baseline]", "study.secondary")
        for pair in (
            "{arm: own, baseline: random, tasks: [topics]}",
            "[own, random, topics]",
            "own:random",
        )
    },
}
# Reads of a file own.yaml, by its text.
TEXTS: dict[str, tuple[str, ...]] = {
    "training: [": ("own.yaml", "YAML"),
    "training: {steps: 5}\ncorpus: {source: x}\ntraining: {seed: 1}": (
        "own.yaml",
        "line 3",
        "'training'",
        "line 1",
    ),
    "training:\n\tsteps: 10": ("own.yaml", "tabs", "spaces"),
    "": ("own.yaml", "shipped recipe"),
    "# only a comment": ("own.yaml", "no settings"),
    "- a\n- b": ("own.yaml", "recipe"),
    "training:\n  stepz: 3": ("own.yaml", "did you mean 'steps'"),
    "int: 3": ("own.yaml", "'int'"),
    "training: 3": ("own.yaml", "training"),
    "study: {arms: {a: [1]}}": ("own.yaml", "study.arms.a"),
    "study: {arms: 5}": ("own.yaml", "study.arms"),
    "study: [a]": ("own.yaml", "study"),
    "extends: decay\nstudy: abc": ("own.yaml", "study", "'abc'"),
    "evaluation: {masks: [whole-word]}\nstudy: {arms: {a: {}}}": ("arm 'a'",),
    "extends: decay\nstudy: {arms: {'': , b: {}}}": ("study.arms", "name"),
    "extends: decay\nstudy: {arms: {' ': , b: {}}}": ("study.arms", "name"),
    f"study: {{arms: {DEEP}}}": ("own.yaml", "deep"),
    "training: &t {steps: 5, x: *t}\n": ("own.yaml", "deep"),
    "extends: decay\nstudy: &all {arms: *all}\n": ("own.yaml", "deep"),
    deep_aliases(): ("own.yaml", "deep"),
    # An empty section kept the arms of the extended recipe and dropped what compares them.
    **{
        f"extends: decay\n{section}:\n": ("own.yaml", section, "nothing")
        for section in ("study", "training", "masking")
    },
    **{
        f"extends: decay\ntraining: {{seed: {value}}}\n": ("own.yaml", "line 2")
        for value in (*NO_NUMBERS, "9" * 400)
    },
}
# Reads of the recipe decay with these settings above it: the setting that is written twice.
WRITTEN_TWICE: list[tuple[dict[str, Any], str]] = [
    ({"masking.ratio": 0.3, "masking": {"ratio": 0.2}}, "masking.ratio"),
    (TWICE, "masking.ratio"),
    ({"masking.ratio": 0.3, "masking": None}, "masking"),
    ({"masking": None, "masking.ratio": 0.3}, "masking.ratio"),
    ({"phases.1.training.steps": 3, "phases": [{}, {}]}, "phases"),
    ({"phases": [{}, {"training.steps": 3, "training": {"steps": 4}}]}, "training.steps"),
    ({"study.arms.a": {"masking.ratio": 0.3, "masking": {"ratio": 0.2}}}, "masking.ratio"),
    ({"study.search.grid": POINTS_TWICE}, "study.search.grid: training.steps"),
    ({"tasks": ["sst2"], "tasks.0": "pos"}, "tasks"),
    ({"objective.emlm": "emlm", "objective": {"mlm": None}}, "objective"),
]
# Reads of settings without a base, with an override of a part of a value.
PARTS: list[tuple[dict[str, Any], str, str]] = [
    ({"study": {"arms": {"a": "span"}}}, "study.arms.a.masking.ratio=.3", "a is a value"),
    ({"study": {"arms": {"a": [1]}}}, "study.arms.a.masking.ratio=.3", "no such entry"),
    ({"phases": ["span", {}]}, "phases.0.masking.ratio=.3", "0 is a value"),
    ({"corpus": {"source": "a.txt"}}, "corpus.source.b=2", "source is a value"),
    ({"corpus": {"source": ["a.txt", "b.txt"]}}, "corpus.source.b=2", "no such entry"),
    (
        {"study": {"search": {"grid": [{"masking.ratio": 0.2}, {}]}}},
        "study.search.grid.masking.ratio=[0.3, 0.4]",
        "no such entry",
    ),
]
# Reads of a shipped recipe, of which an override leaves out, or adds, an arm.
ARMS: list[tuple[str, str, tuple[str, ...]]] = [
    ("ptw", "study.arms.words-15=null", ("[ptw-faithful, words-15]", "study.contrasts=null")),
    ("ratios", "study.arms={a: {}, constant-30: {}}", ("[constant-15, constant-30]",)),
    ("continual", "study.arms=words-30,token-15", ("[token-15, token-30]", "'token-30'")),
    ("decay", "study.arms.rare={}", ("study.arms.rare", "study.contrasts=", "[[rare, 30 %]]")),
    ("continual", "study.arms.words-3=null", ("study.arms", "did you mean 'words-30'")),
    ("continual", "study.arms=token-15,new", ("study.arms", "new", "to add an arm")),
    ("continual", "study.baseline=words-3", ("study.baseline", "words-3", "token-15")),
    ("general-encoder", "study.arms.token-30=null", ("no arm is left",)),
]
# Calls without quotes, with the text that needs them.
CALLS = {
    "{masking.ratio: linear(0.45, 0.15)}": "linear(0.45, 0.15)",
    "{masking: {ratio: linear(0.45, 0.15), policy: span}}": "linear(0.45, 0.15)",
    "{masking: {policy: mix(a(1, 2), b), ratio: 0.3}}": "mix(a(1, 2), b)",
    "{corpus.layers: [pos, spans(a, b)]}": "spans(a, b)",
}
NO_VALUES = ({1, 2}, object(), np.datetime64("2026-01-01"), dict)
KEEP, MORE = "study.arms=15 %,30 %", ("study.contrasts=null", "study.gate=null")
DOTTED: list[dict[str, Any]] = [{}, {"masking.ratio": 0.3}, {"masking": {"ratio": 0.3}}]


def rows() -> list[Refusal]:
    found = [Refusal(f"small: {over}", small(over), facts) for over, facts in SMALL.items()]
    found += [Refusal(f"decay: {over[:60]}", shipped(over), DECAY[over]) for over in DECAY]
    found += [
        Refusal(f"text {n}: {written[:40]!r}", text(written), TEXTS[written])
        for n, written in enumerate(TEXTS)
    ]
    found += [
        Refusal(f"written twice: {n}", decay(given), (f"{name} is written twice",))
        for n, (given, name) in enumerate(WRITTEN_TWICE[:8])
    ]
    found += [
        Refusal(f"apart from its group: {whole}", settings(given), (f"write {whole} once",))
        for given, whole in (WRITTEN_TWICE[1], *WRITTEN_TWICE[8:])
    ]
    found += [
        Refusal(
            f"part of a value: {over} of {given}",
            settings(given, over),
            (over.partition("=")[0], said),
        )
        for given, over, said in PARTS
    ]
    found += [
        Refusal(f"arms: {name} {over}", shipped(over, name=name), facts)
        for name, over, facts in ARMS
    ]
    for written, call in CALLS.items():
        study = f"extends: decay\nstudy: {{arms: {{a: {{}}, b: {written}}}}}\n"
        for kind, read in (
            ("text", text(study)),
            ("override", shipped(f"study.arms.b={written}")),
        ):
            found.append(Refusal(f"a call without quotes, {kind}: {written}", read, (f'"{call}"',)))
    for value in NO_VALUES:
        arms = {"a": {}, "b": {"training.steps": value}}
        name = f"no value: {type(value).__name__}"
        facts = ("study.arms.b.training.steps", "value")
        found.append(Refusal(name, settings({"extends": "decay", "study": {"arms": arms}}), facts))
    for n, changes in enumerate(DOTTED):
        given = {"study": {"arms": {"1.5": changes, "b": {}}}}
        found.append(Refusal(f"a dot in an arm: {n}", settings(given), ("names of arms", "dots")))
    for arms in (["a", "b"], "a, b", None):
        for n, study in enumerate(({"study": {"arms": arms}}, {"study.arms": arms})):
            facts = ("study.arms", "settings")
            found.append(Refusal(f"arms that are no settings: {arms} {n}", decay(study), facts))
    for search, facts in (
        ("3", ("study.search", "3")),
        ("{grid: {}, own: null}", ("study.search.own",)),
        ("{grid: {}, own: [a]}", ("study.search.own",)),
    ):
        written = f"extends: decay\nstudy: {{search: {search}}}\n"
        found.append(Refusal(f"no search: {search}", text(written, OTHER_ARMS), facts))
    for setting in ("gate", "baseline"):
        unset = f"study.{setting}=null"
        call = three_arms(setting)
        found.append(Refusal(f"an arm of {setting}", call, (unset,), three_arms(setting, unset)))
    for key in ("training.steps=1000", "training.betas=[0.9,0.98]", "tasks=[]"):
        name = key.partition("=")[0]
        advised = shipped(key)
        found.append(Refusal(f"null: {name}", shipped(f"{name}=null"), (f"{key}",), advised))
    for grid in ([{}, {}], {"training.learning_rate": [1e-3, 1e-3]}):
        found.append(Refusal(f"no choice: {grid}", decay(points(grid)), ("choice",)))
    for name, value, facts in (
        ("corruption", "bert", ("Bert", "every selected token", "mask-only")),
        ("budget", "expected", ("bernoulli, exact",)),
        ("corruption", "infill", ("infill", "mask-only")),
    ):
        given = {"objective": "diffusion", "masking": {name: value}}
        found.append(Refusal(f"diffusion: {value}", settings(given), facts))
    return found


ROWS = [
    *rows(),
    Refusal("file: an override", small("masking.ratio=2"), ("override masking.ratio", "2.0")),
    Refusal("dict: an override", decay({}, "masking.ratio=2"), ("override masking.ratio", "2.0")),
    # The others are right; or each is wrong, and one is named after the other.
    Refusal(
        "one of three overrides",
        shipped("name=x", "masking.ratio=2", "training.steps=9"),
        ("override masking.ratio",),
    ),
    Refusal(
        "two overrides",
        shipped("masking.ratio=2", "training.steps=-1"),
        ("override masking.ratio",),
    ),
    Refusal(
        "two that are wrong beside others",
        shipped("evaluation.ratio=0.2", "training.lengths=[1]"),
        ("overrides evaluation.ratio=0.2 training.lengths=[1]",),
    ),
    Refusal(
        "looks beyond the seeds",
        shipped("study.seeds=3", "study.interim_looks=[5, 9]"),
        ("override study.interim_looks=[5, 9]",),
    ),
    Refusal(
        "a mistake of the file, with overrides",
        file_with_a_mistake,
        ("own.yaml", "training.steps", "got -1"),
        lambda folder: file_with_a_mistake(folder, "training.steps=3"),
    ),
    Refusal(
        "null: a part of a gate",
        shipped("study.gate.contrast=null"),
        ("leave out all of study.gate",),
    ),
    Refusal(
        "null: ratios",
        shipped("evaluation.ratios=null"),
        ("evaluation.ratios=[0.15,0.4]",),
        shipped("evaluation.ratios=[0.15,0.4]"),
    ),
    Refusal(
        "an arm without a base, twice",
        settings({"study": {"arms": {"a": TWICE, "b": {}}}}),
        ("study.arms.a: masking.ratio is written twice",),
    ),
    Refusal(
        "points without a base, twice",
        settings(points([{"training.steps": 5, "training": {"steps": 6}}, {}])),
        ("training.steps is written twice",),
    ),
    # The new arm was dropped.
    Refusal(
        "an arm that a later override leaves out",
        shipped("study.arms.40={masking.ratio: 0.4}", KEEP, *MORE),
        ("study.arms", "'40'"),
    ),
    Refusal(
        "a setting of an arm that is left out",
        shipped(KEEP, "study.arms.45 → 15 %.masking.ratio=0.4", *MORE),
        ("'45 → 15 %'",),
    ),
    Refusal(
        "a phase that is none",
        shipped("phases=[3, {}]", "phases.1.training.steps=5"),
        ("phases.0", "got 3"),
    ),
    # The library tokenizers reserves memory for all tokens, and ended the process.
    Refusal(
        "a large vocabulary",
        shipped("tokenizer.name=null", "tokenizer.vocab_size=10000000000000"),
        ("tokenizer.vocab_size", "16777216"),
    ),
    Refusal(
        "masking that every objective has itself",
        decay(OWN_MASKING),
        ("masking.ratio",),
        decay(OWN_MASKING, "objective={mlm: {masking: {ratio: 0.3}}, other: mlm}"),
    ),
    Refusal(
        "a tracker that is none",
        lambda folder: check_inputs(
            read_recipe("decay", ["study.arms={a: {training.trackers: [foo]}, b: {}}", "tasks=[]"])
        ),
        ("training.trackers", "'foo'"),
    ),
    Refusal("a file of texts", of_texts, ("maskwise new", "news.txt")),
    Refusal("a dict in itself", lambda folder: read_recipe(circle()), ("deep",)),
    Refusal("deep values", lambda folder: parse_value(DEEP), ("deep",)),
    Refusal("no override", shipped("training.steps=3", 5), ("key=value", "5")),
    Refusal(
        "the architecture of a checkpoint",
        shipped("model.pretrained=bundled:encoder", "model.architecture=bert"),
        ("model.architecture", "model.pretrained=null"),
        shipped("model.pretrained=null", "model.architecture=bert"),
    ),
    Refusal(
        "truth beside a number",
        decay({"corpus.source": {"bundled:wikipedia": True, "a.txt": 2}}),
        ("corpus.source", "a number"),
    ),
    Refusal("an experiment by its name", shipped(name="transfer"), ("recipe", "transfer")),
]
