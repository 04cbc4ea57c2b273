"""Every key of a recipe changes what it declares that it changes.

The fast tests compare declarations with the names of stages: a stage is found by its name, so a key
that is missing in a name would reuse weights of other settings, and a key too many would train
again for nothing. The slow tests compare them with the weights of trainings of two steps.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import Tensor

from invented import world
from maskwise.base.effects import UNNAMED
from maskwise.base.errors import MaskwiseError
from maskwise.evaluation.evaluate import MEASURES
from maskwise.evaluation.measures.cloze import Cloze
from maskwise.recipe import Recipe, read_recipe
from maskwise.recipe.described import declared
from maskwise.studies import run_stage
from maskwise.studies.plan import make_run, task_contents
from maskwise.studies.store import StageStore
from maskwise.tasks import load_task, task_record
from maskwise.text import load_tokenizer
from tiny import WORDS, read_lines, write_inputs, write_lines


class Case(NamedTuple):
    """A value that differs from that of the base recipe, and what the base recipe needs for it."""

    value: str
    base: tuple[str, ...] = ()


SHORT: dict[str, dict[str, Any]] = {
    "training": {"steps": 2, "save_every": 0, "eval_every": 0, "precision": "no"},
    "finetune": {"steps": 2, "seeds": 1, "max_length": 32},
    "evaluation": {"rows": 4},
    # All settings of masking can act on words.
    "masking": {"policy": "whole-word", "ratio": 0.3},
    "study": {"seeds": 1, "arms": {"run": {}}},
}
"""Sections of all base recipes."""

ARMS = ("study.arms={run: {}, more: {masking.ratio: 0.4}}",)
SEVERAL = ("objective={mlm: , x: {objective: atd}}",)
STREAM = ("corpus.stream=true", "corpus.shuffle=0.001")
MIX = ("corpus.source=['{here}/corpus.jsonl', '{here}/small.jsonl']",)
SEARCH = (*ARMS, "study.search={grid: {training.learning_rate: [1.0e-3, 2.0e-3]}}")
START = ("model={pretrained: bundled:encoder}", "tokenizer={}")
WORLD = world("factworld(people=12)")
LEARN_ANY = (
    *("tasks=[]", *WORLD.settings),
    "masking.policy=learned",
    f"learning.task={WORLD.task()}",
)
LEARN = (*LEARN_ANY, "learning.supervised.training={steps: 2, save_every: 0}")
META = (
    *LEARN_ANY,
    "learning.method=meta",
    "learning.meta={steps: 2, eval_every: 1, batch_size: 4, dev_examples: 4, warm: 1}",
)

FAST = (*META, "learning.meta.learning_rate=0.5")
QUESTIONS = "learning.task={here}/questions.jsonl"
OF_BERT = (
    "learning.policy={architecture: bert, settings: {hidden_size: 16, num_hidden_layers: 2, "
    "num_attention_heads: 2, intermediate_size: 32}}"
)
"""A policy whose layers have matrices, which the light one has not."""

TRAINING = {
    "steps": Case("3"),
    "batch_size": Case("4"),
    "accumulate": Case("2"),
    "group_by_length": Case("true", ("corpus.layout=document",)),
    "optimizer": Case("muon"),
    "learning_rate": Case("1e-3"),
    "muon_learning_rate": Case("0.1", ("training.optimizer=muon",)),
    "betas": Case("[0.5, 0.6]"),
    "weight_decay": Case("0.5"),
    "warmup": Case("1.0"),
    "decay": Case("constant"),
    "decay_share": Case("0.5"),
    "lag": Case("1", ("masking.policy=pos-weighted", "corpus.layers=[pos]", "training.steps=3")),
    "freeze": Case("encoder"),
    "clip": Case("0.01"),
    "precision": Case("bf16"),
    "residual": Case("bf16", ("training.precision=bf16",)),
    "activation_checkpointing": Case("true"),
    "compile": Case("true"),
    "shard": Case("true"),
    "log_every": Case("1"),
    "eval_every": Case("1"),
    "patience": Case("1", ("training.eval_every=1", "training.learning_rate=2.0")),
    "lengths": Case("[0.5, 1]", ("training.decay=wsd", "training.learning_rate=0.5")),
    "save_every": Case("1"),
    "keep": Case("1", ("training.save_every=1",)),
    "on_nan": Case("skip"),
    "workers": Case("0", STREAM),
    "trackers": Case("[all]"),
}


def of_policy(case: Case) -> Case:
    """The same case for the training of a policy."""
    base = [text for text in case.base if text.startswith("training.")]
    return Case(case.value, (*LEARN, OF_BERT, *(f"learning.supervised.{text}" for text in base)))


REFUSED = {
    "learning.meta.seed": "3",
    "learning.supervised.training.seed": "3",
    "learning.supervised.training.freeze": "encoder",
    "learning.supervised.training.group_by_length": "true",
    "learning.supervised.training.lag": "1",
    "learning.supervised.training.patience": "1",
    "learning.supervised.training.lengths": "[0.5, 1]",
    "learning.supervised.training.workers": "3",
}
"""Keys of the settings of Python classes that no recipe can set, with a value."""

CASES = {
    "name": Case("other"),
    "description": Case("a question"),
    "corpus.source": Case("{here}/other.jsonl"),
    "corpus.temperature": Case("5", MIX),
    "corpus.tokens": Case("bundled:encoder", START),
    "corpus.text_field": Case("body"),
    "corpus.text_per": Case("line", ("corpus.source={here}/lines.txt",)),
    "corpus.limit": Case("30"),
    "corpus.length": Case("16"),
    "corpus.layout": Case("document"),
    "corpus.attention": Case("row"),
    "corpus.held_out": Case("0.4"),
    "corpus.group_field": Case("id"),
    "corpus.stream": Case("true"),
    "corpus.shuffle": Case("0", STREAM),
    "corpus.repeat": Case("false", STREAM),
    "corpus.words": Case("token"),
    "corpus.layers": Case("[pos]"),
    "tokenizer.name": Case("bundled:encoder"),
    "tokenizer.kind": Case("letter"),
    "tokenizer.k": Case("2", ("tokenizer.kind=k-mer", "tokenizer.vocab_size=2000")),
    "tokenizer.vocab_size": Case("100"),
    "tokenizer.lowercase": Case("false"),
    "tokenizer.sentinels": Case("4"),
    "tokenizer.replaces": Case("true", (START[0], "tokenizer={name: bundled:tokenizer}")),
    "model.pretrained": Case("bundled:encoder", START[1:]),
    "model.changes": Case("new-tokens(3)", START),
    "model.architecture": Case("roberta"),
    "model.settings": Case("{hidden_size: 24}"),
    "model.unigram_bias": Case("false"),
    "model.adapter": Case("lora(rank=2)"),
    "model.attention_dropout": Case("0.5"),
    "masking.policy": Case("token"),
    "masking.ratio": Case("0.5"),
    "masking.budget": Case("exact"),
    "masking.fill": Case("random", (*WORLD.settings, "masking.policy=salient")),
    "masking.corruption": Case("mask-only"),
    "masking.min_targets": Case("9"),
    "masking.predict": Case("0.1"),
    "masking.keep": Case("prompt", ("corpus.layers=[\"prompt(until='.')\"]",)),
    "masking.visits": Case("complement"),
    "masking.ends": Case("token", ("objective=diffusion", "masking.policy=token")),
    "masking.exclude": Case("[ba]"),
    "objective": Case("clm"),
    "objective.NAME.objective": Case("dtd", SEVERAL),
    "objective.NAME.masking": Case("{ratio: 0.5}", ("objective={x: {objective: mlm}}",)),
    "sampler": Case("shares(0, 1)", SEVERAL),
    **{f"training.{name}": case for name, case in TRAINING.items()},
    "training.seed": Case("3"),
    "phases": Case("[{}, {masking.ratio: 0.5}]"),
    "evaluation.ratios": Case("0.3"),
    "evaluation.masks": Case("[whole-word]"),
    "evaluation.rows": Case("8"),
    "evaluation.measures": Case("own-cloze"),
    "tasks": Case("[\"{here}/task.jsonl(kind='sequence-classification')\", trivia]"),
    "finetune.epochs": Case("1", ("finetune.steps=null",)),
    "finetune.steps": Case("3"),
    "finetune.batch_size": Case("4"),
    "finetune.learning_rate": Case("1e-2"),
    "finetune.search_rate": Case("true"),
    "finetune.muon_learning_rate": Case("0.1", ("finetune.optimizer=muon",)),
    "finetune.optimizer": Case("muon"),
    "finetune.warmup": Case("1.0"),
    "finetune.eval_every": Case("1"),
    "finetune.weight_decay": Case("0.5"),
    "finetune.precision": Case("bf16"),
    "finetune.max_length": Case("6"),
    "finetune.seeds": Case("2"),
    "learning.method": Case("meta", LEARN_ANY),
    "learning.task": Case(world("factworld(people=14)").task(), LEARN),
    "learning.policy.architecture": Case("bert", LEARN),
    "learning.policy.pretrained": Case("bundled:encoder", LEARN),
    "learning.policy.settings": Case("{hidden_size: 24}", LEARN),
    "learning.policy.head": Case("tokens", LEARN),
    "learning.policy.length": Case("12", LEARN),
    "learning.policy.longest": Case("1", (*LEARN, QUESTIONS)),
    **{
        f"learning.supervised.training.{name}": of_policy(case)
        for name, case in TRAINING.items()
        if f"learning.supervised.training.{name}" not in REFUSED
    },
    "learning.meta.steps": Case("3", META),
    "learning.meta.tries": Case("2", META),
    "learning.meta.batch_size": Case("6", META),
    "learning.meta.warm": Case("3", META),
    "learning.meta.inner_steps": Case("2", META),
    "learning.meta.mask_rate": Case("0.1", META),
    "learning.meta.task_rate": Case("0.5", META),
    "learning.meta.units": Case("token", META),
    "learning.meta.ratio": Case("0.5", META),
    "learning.meta.temperature": Case("3", META),
    "learning.meta.learning_rate": Case("0.1", META),
    "learning.meta.clip": Case("1e-6", META),
    "learning.meta.average": Case("0.0", FAST),
    "learning.meta.reset_every": Case("0", META),
    "learning.meta.eval_every": Case("2", META),
    "learning.meta.dev_examples": Case("1", (*FAST, QUESTIONS)),
    "learning.meta.patience": Case("1", META),
    "learning.meta.worse": Case("1.00001", (*META, QUESTIONS, "learning.meta.steps=6")),
    "study.arms": Case("{run: {masking.ratio: 0.5}}"),
    "study.baseline": Case("more", ARMS),
    "study.seeds": Case("2"),
    "study.contrasts": Case("[[run, more]]", ARMS),
    "study.outcome": Case("tasks", ARMS),
    "study.equal_by": Case("targets", ARMS),
    "study.interim_looks": Case("[2, 3]", (*ARMS, "study.seeds=3")),
    "study.margin": Case("0.1", ARMS),
    "study.secondary": Case("[task]"),
    "study.gate.contrast": Case(
        "[more, most]",
        (*ARMS, "study.arms.most={masking.ratio: 0.5}", "study.gate={contrast: [more, run]}"),
    ),
    "study.gate.closes": Case("[]", (*ARMS, "study.gate={contrast: [more, run]}")),
    "study.search.grid": Case("{training.learning_rate: [3.0e-3, 4.0e-3]}", SEARCH),
    "study.search.by": Case("held-out", SEARCH),
    "study.search.own": Case("{run: {training.warmup: [1.0, 0.9]}}", SEARCH),
    "study.cache": Case("{here}/stages", ARMS),
}  # fmt: skip
"""For every key, a value that has an effect."""

DECIDED_LATER = {"study.equal_by", "study.search.by"}
"""Keys that change steps or settings by results, so no name changes before the study runs."""

CAUTIOUS = {"corpus.repeat", "corpus.layers"}
"""Keys in the names of stages that change no weight alone, but that the prepared text holds. A
stream that ends is read again, or the run fails; and a layer needs a policy that reads it."""


ROUNDED = 0.02
"""The largest difference of weights after two steps at a rate of 5e-3 that counts as rounding: an
update of Adam has the size of the rate, also where a gradient is nearly 0."""


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    recipe = yaml.safe_load((folder / "recipe.yaml").read_text())
    (folder / "recipe.yaml").write_text(yaml.safe_dump(recipe | SHORT))
    lines = read_lines(folder / "corpus.jsonl")
    # Another field, so that ``text_field`` finds other texts.
    for line, other in zip(lines, reversed(lines), strict=True):
        line["body"] = other["text"][:200]
        # And ids, for ``tokens``.
        line["input_ids"] = [*map(ord, other["text"][:200])]
    write_lines(folder / "corpus.jsonl", lines)
    write_lines(folder / "other.jsonl", lines[10:])
    write_lines(folder / "small.jsonl", [{"text": line["body"]} for line in lines[:20]])
    (folder / "lines.txt").write_text(
        "\n\n".join(line["text"].replace(". ", ".\n") for line in lines)
    )
    # Some answers have two words.
    rows = []
    for number, splits in enumerate(("train", "train", "dev", "test") * 6):
        asked, answer, more = WORDS[number : number + 3]
        answer += f" {more}" if number % 2 else ""
        text = f"the {asked} is {answer} of all towns."
        rows.append({"question": f"{asked}?", "context": text, "answer": answer, "split": splits})
    write_lines(folder / "questions.jsonl", rows)
    facts = [{"masked_sentences": ["Bada [MASK] bafe."], "obj_label": "kefe"}]
    write_lines(folder / "cloze.jsonl", facts)
    with patch.dict(MEASURES, {"own-cloze": partial(Cloze.read, folder / "cloze.jsonl")}):
        yield folder


def recipe_of(here: Path, key: str, *, changed: bool) -> Recipe:
    """The base recipe of a key, or this recipe with the key changed."""
    case = CASES[key]
    overrides = [*case.base]
    if changed:
        overrides.append(f"{key.replace('NAME', 'x')}={case.value}")
    overrides = [text.replace("{here}", str(here)) for text in overrides]
    return read_recipe(here / "recipe.yaml", overrides)


class Names(NamedTuple):
    """The names of the stages of the runs of a study, by what they make."""

    trained: frozenset[str]
    finetuned: frozenset[str]
    evaluated: frozenset[str]


def names_of(recipe: Recipe) -> Names:
    contents = task_contents(recipe)
    search = recipe.study.search
    points = [{}] if search is None else search.points_of("run")
    # ``maskwise pretrain`` uses the seed of the recipe, and a study its own seeds.
    seed = recipe.training.seed
    runs = [make_run(recipe, "run", seed, contents=contents, more=point) for point in points]
    trained = [stage for run in runs for stage in run.chain if stage.kind in ("pretrain", "learn")]
    return Names(
        frozenset(stage.name for stage in trained),
        frozenset(stage.name for run in runs for stage in run.tasks.values()),
        frozenset(run.evaluated.name for run in runs if run.evaluated),
    )


def test_every_key_declares_what_it_changes_and_is_tested() -> None:
    changes = declared()
    assert [key for key, effect in changes.items() if effect is None] == []
    assert changes.keys() == CASES.keys() | {*REFUSED}


@pytest.mark.parametrize("key", REFUSED)
def test_a_key_that_no_recipe_can_use_is_refused(key: str, here: Path) -> None:
    base = META if "meta" in key else LEARN
    with pytest.raises(MaskwiseError, match=rf"{key} has no effect .*remove {key}") as error:
        read_recipe(here / "recipe.yaml", [*base, f"{key}={REFUSED[key]}"])
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("key", sorted(CASES))
def test_the_names_of_stages_have_what_changes_their_weights(key: str, here: Path) -> None:
    effect = declared()[key]
    base, changed = (recipe_of(here, key, changed=change) for change in (False, True))
    assert base != changed
    before, after = names_of(base), names_of(changed)
    if key.startswith("finetune."):
        assert before.trained == after.trained
        assert before.finetuned.isdisjoint(after.finetuned)
    elif effect in UNNAMED or key in DECIDED_LATER:
        assert before.trained == after.trained
        assert before.finetuned <= after.finetuned
        # Other measurements of the same weights are other results.
        assert before.evaluated.isdisjoint(after.evaluated) == key.startswith("evaluation.")
    else:
        assert before.trained != after.trained
        if before.finetuned and not key.startswith("study."):
            assert before.finetuned.isdisjoint(after.finetuned)


# Weights


def tensors_in(folder: Path) -> dict[str, Tensor]:
    """The weights of all models below a folder, keyed by file and name."""
    found = {}
    for path in sorted(folder.rglob("model.safetensors")):
        for name, tensor in load_file(path).items():
            found[f"{path.relative_to(folder)} {name}"] = tensor
    assert found
    return found


def trained_weights(key: str, recipe: Recipe, out: Path) -> dict[str, Tensor]:
    """The weights that a key is about: of the fine-tuned models, the policy or the checkpoint."""
    search = recipe.study.search
    point = search.points_of("run")[0] if search else {}
    run = make_run(recipe, "run", recipe.training.seed, contents={}, more=point, evaluated=False)
    chain = list(run.chain)
    if key.startswith("learning."):
        chain = chain[: 1 + [stage.kind for stage in chain].index("learn")]
    for stage in chain:
        run_stage(stage, StageStore(out))
    last = StageStore(out).folder(chain[-1])
    if key.startswith("learning.meta."):
        # In two steps, often no policy is better than the first one, which is then kept. So these
        # are also the losses and gains of all updates.
        numbers: dict[str, list[float]] = {}
        for path in sorted(last.rglob("metrics.jsonl")):
            for line in read_lines(path):
                for name, value in line.items():
                    if isinstance(value, int | float) and name != "seconds":
                        numbers.setdefault(f"{path.relative_to(last)} {name}", []).append(value)
        weights = tensors_in(last / "policy")
        return weights | {name: torch.tensor(values) for name, values in numbers.items()}
    if not key.startswith("finetune."):
        return tensors_in(last / ("policy" if chain[-1].kind == "learn" else "checkpoint"))
    task_record(
        last / "checkpoint",
        load_task(recipe.tasks[0]),
        tokenizer=load_tokenizer(str(StageStore(out).folder(chain[0]) / "data" / "tokenizer")),
        settings=recipe.finetune,
        seeds=range(recipe.finetune.seeds),
        folder=out / "finetuned",
    )
    return tensors_in(out / "finetuned")


@pytest.fixture(scope="module")
def base_weights(here: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A function that trains the base recipe of a key, once for all keys with this recipe."""
    known: dict[tuple[object, ...], dict[str, Tensor]] = {}

    def train(key: str) -> dict[str, Tensor]:
        kind = key.partition(".")[0]
        kind = "learning.meta" if key.startswith("learning.meta.") else kind
        of = (CASES[key].base, kind if kind.startswith(("finetune", "learning")) else "")
        if of not in known:
            recipe = recipe_of(here, key, changed=False)
            known[of] = trained_weights(key, recipe, tmp_path_factory.mktemp("base"))
        return known[of]

    return train


@pytest.mark.slow
@pytest.mark.parametrize("key", sorted(CASES.keys() - DECIDED_LATER))
def test_weights_differ_exactly_where_a_key_declares_it(
    key: str, here: Path, base_weights: Any, tmp_path: Path
) -> None:
    effect = declared()[key]
    before = base_weights(key)
    after = trained_weights(key, recipe_of(here, key, changed=True), tmp_path)
    same = before.keys() == after.keys() and all(
        torch.equal(before[name], after[name]) for name in before
    )
    if effect == "rounding":
        assert before.keys() == after.keys()
        for name, tensor in before.items():
            torch.testing.assert_close(after[name], tensor, rtol=0, atol=ROUNDED)
    else:
        assert same == (effect in UNNAMED or key in CAUTIOUS)
