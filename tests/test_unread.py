"""A setting that a user gives on the command line is used, or refused in one line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from maskwise.base.errors import MaskwiseError
from maskwise.recipe import Recipe, read_recipe
from maskwise.studies.adapt import Request
from maskwise.studies.adapt.draft import Texts, draft_of
from maskwise.studies.single import inputs_of_policy, with_own_seed
from maskwise.studies.unread import read_by_study, read_used
from tiny import maskwise, read_lines, write_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_inputs(folder)
    return folder


def said(*arguments: Any, capfd: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = maskwise(*arguments)
    return code, capfd.readouterr().err


@pytest.mark.parametrize(
    ("command", "key", "value"),
    [
        # Both arms have a ratio.
        ("study", "masking.ratio", "0.5"),
        ("check", "masking.ratio", "0.5"),
        ("study", "learning.task", "banking77"),
        ("pretrain", "finetune.epochs", "7"),
        ("pretrain", "study.seeds", "3"),
        ("pretrain", "study.margin", "0.5"),
        ("pretrain", "evaluation.measures", "pseudo-perplexity(50)"),
    ],
)
def test_what_a_command_does_not_read_is_refused(
    command: str, key: str, value: str, inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    recipe = inputs / "recipe.yaml"
    if command in ("study", "check"):
        whole = yaml.safe_load(recipe.read_text())
        whole["study"]["arms"]["token-15"] = {"masking.ratio": 0.15}
        recipe = inputs / "ratios.yaml"
        recipe.write_text(yaml.safe_dump(whole))
    out = inputs / f"out-{command}"
    where = [] if command == "check" else ["--out", out]
    code, text = said(command, recipe, f"{key}={value}", *where, capfd=capfd)
    assert code == 2 and not out.exists()
    assert f"{key} has no effect" in text and f"got {value}" in text


def test_a_study_names_the_setting_of_its_seeds(
    inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """It advised a seed of an arm, which no arm can have."""
    recipe, out = inputs / "recipe.yaml", inputs / "out-seed"
    code, text = said("study", recipe, "training.seed=4", "--out", out, capfd=capfd)
    assert code == 2 and not out.exists()
    assert "training.seed has no effect" in text and "study.seeds=[4, " in text
    assert "study.arms" not in text


@pytest.mark.parametrize(
    "setting",
    [
        "training.steps=5",
        "training.save_every=5",
        "masking.ratio=0.4",
        "study.seeds=3",
        "evaluation.rows=9",
    ],
)
def test_learn_refuses_settings_of_other_commands(
    setting: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    code, text = said("learn", "learn-supervised", setting, "--out", tmp_path / "out", capfd=capfd)
    assert code == 2 and "has no effect in maskwise learn" in text
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("rates", [[0.01], [0.3, 0.01], [0.3, 0.02]])
def test_learn_accepts_what_is_restated_or_replaced(rates: list[float]) -> None:
    """The recipe has a rate of 0.01. Of two values of a setting, the last one counts."""
    recipe = read_used(
        lambda overrides: read_recipe("learn-meta", overrides),
        [f"learning.meta.learning_rate={rate}" for rate in rates],
        content=lambda each: inputs_of_policy(with_own_seed(each)),
        command="learn",
    )
    assert recipe.learning is not None and recipe.learning.meta.learning_rate == rates[-1]


@pytest.mark.parametrize(
    "settings",
    [
        # One arm keeps the policy of the recipe.
        ["masking.ratio=0.5"],
        ["training.steps=7", "study.seeds=1", "evaluation.rows=8", "finetune.epochs=2"],
        # It restates the value of the recipe.
        ["training.log_every=7", "training.workers=1", "study.cache=elsewhere"],
        ["study.arms.words-30.masking.ratio=0.25"],
        ["phases=[{}, {masking.ratio: 0.2}]", "phases.1.training.log_every=5"],
        ["phases=[{}, {masking.ratio: 0.3}]", "phases.1.training.save_every=5"],
        pytest.param(
            ["model={pretrained: bundled:encoder}", "tokenizer={name: bundled:encoder}"],
            marks=pytest.mark.slow,
        ),
    ],
)
def test_what_a_study_reads_is_accepted(settings: list[str], inputs: Path, tmp_path: Path) -> None:
    command = ["study", inputs / "recipe.yaml", *settings, "--out", tmp_path, "--dry-run"]
    assert maskwise(*command) == 0


RATES = {"training.learning_rate": [0.001, 0.002]}
GATE = "study.gate=[words-30, token-15]"


@pytest.mark.parametrize(
    ("use", "override", "grid"),
    [
        (GATE, "training.learning_rate=0.003", RATES),
        ("study.equal_by=targets", "training.batch_size=16", {"training.batch_size": [4, 8]}),
        # Only Muon has this rate, and no point of the grid uses Muon.
        (GATE, "training.muon_learning_rate=0.03", {"training.optimizer": ["adamw"], **RATES}),
    ],
)
def test_what_arms_use_outside_of_the_grid_is_accepted(
    use: str, override: str, grid: dict[str, list[Any]], inputs: Path
) -> None:
    """The runs of a gate, and the budget of matched arms, have the settings in the recipe."""
    search = f"study.search={json.dumps({'grid': grid})}"
    given = ["tasks=[]", "study.seeds=7", "training.optimizer=muon", search]

    def used(*more: str) -> Recipe:
        def read(overrides: Sequence[str]) -> Recipe:
            return read_recipe(inputs / "recipe.yaml", [*given, *more, *overrides])

        return read_used(read, [override], content=read_by_study, command="study")

    with pytest.raises(MaskwiseError, match=r"has no effect|needs training"):
        used()
    assert used(use).training


def test_adapt_refuses_what_its_arms_set(inputs: Path) -> None:
    def recipe(*overrides: str) -> Any:
        task = (str(inputs / "task.jsonl"),)
        text = str(inputs / "corpus.jsonl")
        request = Request("bundled:encoder", text, inputs / "out", task, overrides=overrides)
        return draft_of(request, Texts(request.texts, request.out)).recipe

    assert recipe("training.batch_size=4").training.batch_size == 4
    with pytest.raises(MaskwiseError, match=r"masking\.ratio has no effect in maskwise adapt"):
        recipe("masking.ratio=0.5")


def test_finetune_refuses_a_rate_that_its_optimiser_has_not(
    inputs: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    command = ["finetune", "bundled:encoder", "--task", inputs / "task.jsonl", "--runs", 1]
    given = ["finetune.steps=1", "muon_learning_rate=0.1", "--out", inputs / "tuned"]
    code, text = said(*command, *given, capfd=capfd)
    assert code == 2 and "muon_learning_rate needs" in text and not (inputs / "tuned").exists()


@pytest.mark.slow
def test_an_arm_with_other_settings_is_another_study(
    inputs: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The records of the arm were replaced without a word."""
    out = tmp_path / "out"
    short = [
        "training.steps=2",
        "tasks=[]",
        "study.seeds=1",
        "training.save_every=0",
    ]
    command = ["study", inputs / "recipe.yaml", *short, "--out", out]
    assert maskwise(*command) == 0
    before = read_lines(out / "records.jsonl")
    code, text = said(*command, "study.arms.words-30.masking.ratio=0.2", capfd=capfd)
    assert code == 2 and "different study" in text and "words-30" in text
    assert read_lines(out / "records.jsonl") == before
    # A further arm is compared in the same study.
    assert maskwise(*command, "study.arms.more={masking.ratio: 0.2}", "study.contrasts=null") == 0
    arms = json.loads((out / "study.json").read_text())["arms"]
    assert {*arms} >= {"token-15", "words-30", "more"}
