"""One answer to what would happen: check, and the dry runs of other commands."""

from __future__ import annotations

import json
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from scipy.stats import chi2

from maskwise.base.errors import MaskwiseError
from maskwise.cli.terminal import print_check
from maskwise.recipe import read_recipe
from maskwise.studies import forecast
from maskwise.studies.checks import row_sizes
from maskwise.studies.forecast import check, doubts_of, lines_of, problems_and_notes
from maskwise.studies.prospects import recorded_spreads
from maskwise.studies.result import Check
from maskwise.text import train_tokenizer
from maskwise.verdict.statistics import power_of, runs_to_decide
from tiny import WORDS, maskwise, write_inputs, write_lines


@pytest.fixture(autouse=True)
def recipe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return write_inputs(tmp_path / "in")


@pytest.fixture
def said(capfd: pytest.CaptureFixture[str]) -> Any:
    def run(*arguments: Any) -> tuple[int, str, str]:
        capfd.readouterr()
        code = maskwise(*arguments)
        printed = capfd.readouterr()
        return code, printed.out, printed.err

    return run


def test_a_dry_run_is_a_check(recipe: Path, said: Any) -> None:
    assert maskwise("check", recipe, "--json") == 0  # to know the times
    _, checked, _ = said("check", recipe, "--out", "out", "--json")
    _, dry, _ = said("study", recipe, "--out", "out", "--dry-run", "--json")
    assert json.loads(checked) == json.loads(dry)
    _, checked, _ = said("check", recipe, "--out", "out")
    _, dry, _ = said("study", recipe, "--out", "out", "--dry-run")
    assert checked == dry and "targets per step" in dry and "rows × length" in dry
    assert not Path("out").exists()


def test_contrasts_that_no_loss_can_judge_are_named_before_they_are_trained(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Without tasks, arms with other units were trained and then called not comparable."""
    arms = {"one": {"masking.policy": "token"}, "two": {"masking.policy": "whole-word"}}
    alike = {"one": {"masking.ratio": 0.15}, "two": {"masking.ratio": 0.3}}

    def of(arms: dict[str, Any]) -> list[str]:
        return ["study.seeds=1", f"study.arms={json.dumps(arms)}", "study.contrasts=[[one, two]]"]

    def doubts(*overrides: str) -> list[str]:
        found = check(str(recipe), [*overrides, "study.gate=null"])["doubts"]
        return [doubt["what"] for doubt in found if "comparable" in doubt["what"]]

    [doubt] = doubts(*of(arms), "tasks=[]")
    assert doubt.startswith("one against two will not be comparable")
    assert doubts(*of(alike), "tasks=[]") == doubts(*of(arms)) == []
    few = ["tasks=[]", "study.gate=null", "training.steps=2", "training.eval_every=0"]
    assert maskwise("study", recipe, "--out", "out", *of(arms), *few) == 0
    printed = capfd.readouterr()
    assert "one against two will not be comparable" in printed.out + printed.err


def test_what_no_arm_can_do_is_refused(recipe: Path, said: Any) -> None:
    """An adaptation with its only arm untrainable had a time, and the exit code 0."""
    texts, labels = texts_and_labels()
    large = "training.batch_size=4096"
    adapt = ["adapt", "bundled:encoder", texts, "--task", labels, "--arms", "words-30"]
    commands = [
        ["check", recipe, large],
        ["study", recipe, large, "--dry-run"],
        ["check", "bundled:encoder", texts, labels, large],
        [*adapt, large, "--dry-run"],
        [*adapt, large, "--dry-run", "--json"],
        [*adapt, large, "--json", "--out", "a"],
    ]
    for command in commands:
        code, out, err = said(*command)
        line = err.strip().splitlines()[-1]
        assert (code, out) == (2, "") and "no arm can be trained" in line and "4096" in line
    assert not Path("a").exists(), "nothing was begun"
    # One arm of two is named, and the other one is planned.
    arms = {"small": {}, "large": {"training.batch_size": 4096}}
    found = check(str(recipe), [f"study.arms={json.dumps(arms)}"])
    [doubt] = [doubt["what"] for doubt in found["doubts"] if "trained" in doubt["what"]]
    assert doubt.startswith("arm large cannot be trained")
    assert found["arms"]["small"]["targets_per_step"] > 0


def texts_and_labels() -> tuple[str, str]:
    draw = random.Random(0)
    texts = [" ".join(draw.choices(WORDS, k=40)) + "." for _ in range(80)]
    Path("mine.txt").write_text("\n\n".join(texts))
    rows = [{"text": " ".join(draw.choices(WORDS, k=9)), "label": n % 2} for n in range(80)]
    write_lines(Path("labels.jsonl"), rows)
    return "mine.txt", "labels.jsonl"


@pytest.mark.usefixtures("small_encoder")
def test_a_model_with_files_is_an_adaptation(said: Any) -> None:
    texts, labels = texts_and_labels()
    few = ["corpus.length=32", "evaluation.rows=4"]
    code, checked, _ = said("check", "bundled:encoder", texts, labels, *few, "--json")
    assert code == 0
    command = ["adapt", "bundled:encoder", texts, *few, "--task", labels, "--dry-run", "--json"]
    _, dry, _ = said(*command)
    assert json.loads(checked) == json.loads(dry)
    assert json.loads(dry)["contrasts"][0]["baseline"] == "no-pretraining"
    code, _, line = said("check", "bundled:encoder")
    assert code == 2 and "maskwise check bundled:encoder TEXTS" in line


def test_files_are_checked_as_new_writes_them(said: Any) -> None:
    texts, labels = texts_and_labels()
    code, checked, _ = said("check", texts, labels, "training.steps=7", "--no-timing", "--json")
    assert code == 0
    assert maskwise("new", texts, labels) == 0
    facts = json.loads(checked)
    assert [*facts["tasks"]] == ["labels"] and facts["training"]["steps"] == 7
    Path("resolved.yaml").write_text(facts["recipe"])
    assert read_recipe("resolved.yaml") == read_recipe("mine.yaml", ["training.steps=7"])
    code, _, line = said("check", "quick-start", labels)
    assert code == 2 and "a recipe names its tasks itself" in line


REFUSED = [
    ["study.arms={}", "masking.policy=learned", "learning={task: banking77}"],
    ["training.seed=3"],
    ["corpus.source=nowhere.txt"],
    ["study.contrasts=[[words-30, nothing]]"],
    ["study.outcome=heldout:token@0.9"],
    ["finetune.max_length=4000"],
    ["masking.policy=salient"],
    ["model.settings.hidden_size=17"],
    ["study.search={grid: {training.learning_rate: [0.1, 0.2]}, by: dev}", "tasks=[]"],
    ["training.batch_size=9", "training.accumulate=2"],
    ["study.arms={}", "corpus.layers=[verbs]"],
]


@pytest.mark.parametrize("settings", REFUSED, ids=lambda settings: settings[-1])
def test_what_a_run_refuses_is_refused_with_the_same_line(
    settings: list[str], recipe: Path, said: Any
) -> None:
    command = "pretrain" if "study.arms={}" in settings else "study"
    code, _, line = said(command, recipe, *settings, "--out", "out")
    assert code == 2 and line.count("\n") == 1
    assert said("check", recipe, *settings) == (2, "", line)
    if command == "study":
        assert said(command, recipe, *settings, "--out", "out", "--dry-run") == (2, "", line)
    assert not Path("out").exists()


def test_one_training_may_have_a_seed(recipe: Path) -> None:
    facts = check(str(recipe), ["study.arms={}", "training.seed=3"], timing=False)
    assert facts["contrasts"] == [] and [*facts["arms"]] == ["recipe"]
    assert "seed: 3" in facts["recipe"]


def test_words_and_warnings_follow_from_the_facts(recipe: Path) -> None:
    facts = check(str(recipe), timing=False)
    found = json.loads(json.dumps(facts))
    assert [*lines_of(found)] == [*lines_of(facts)]
    assert doubts_of(found) == [doubt for doubt in facts["doubts"] if doubt in doubts_of(found)]
    found["corpus"] |= {"unknown": 0.5, "held_out_rows": 500}
    words = " ".join(doubt["what"] for doubt in doubts_of(found))
    assert "50.0% of the tokens are unknown" in words and "held-out loss" not in words


# How many runs a difference needs
# ----------------------------------------------------------------------------


ONE = ["tasks=[]", "study.contrasts=[[words-30, token-15]]", "study.outcome=heldout:token"]


@pytest.mark.parametrize(
    ("spread", "detect", "runs"),
    [
        # The table of docs/evidence.md: 10 runs find 1 SD with probability .80 (.798), and 7 find
        # 1.5 SDs with .90.
        (1.0, 1.0, 11),
        (2.0, 3.0, 7),
        (0.01, 0.03, 6),
        (1.0, 0.1, None),
    ],
)
def test_the_runs_that_detect_a_difference(
    spread: float, detect: float, runs: int | None, recipe: Path, said: Any
) -> None:
    command = ["check", recipe, *ONE, "--no-timing", "--spread", spread, "--detect", detect]
    code, printed, _ = said(*command, "--json")
    assert code == 0
    (contrast,) = json.loads(printed)["contrasts"]
    assert contrast["detect"] == {"difference": detect, "runs": runs}
    if runs is not None:
        assert power_of(spread, detect, runs) >= 0.8
        assert runs == 6 or power_of(spread, detect, runs - 1) < 0.8
    # What the planned runs detect has power .8, too.
    planned = max(contrast["runs"], contrast["fewest_runs"])
    assert power_of(spread, contrast["detectable_difference"], planned) == pytest.approx(0.8)
    _, printed, _ = said(*command)
    assert f"needs {runs or 'more than 300'} runs of each arm" in printed


def pilot(out: Path, differences: list[float], *, kind: str = "heldout") -> Path:
    """The records of a study whose arms differ by so much in each pair."""
    out.mkdir()
    lines: list[dict[str, Any]] = []
    for seed, difference in enumerate(differences):
        for arm, value in (("token-15", 0.5), ("words-30", 0.5 + difference)):
            line: dict[str, Any] = {"arm": arm, "seed": seed, "kind": kind}
            if kind == "heldout":
                line |= {"measure": "token", "ratio": 0.15, "value": value, "items": 900}
            else:
                line |= {"measure": "task", "metric": "accuracy", "value": value}
            lines.append(line)
    write_lines(out / "records.jsonl", lines)
    facts = {"policy": "token", "ratio": "constant(0.15)", "overrides": {}}
    study: dict[str, Any] = {"arms": {"token-15": facts, "words-30": facts}, "tasks": {}}
    study |= {"seeds": [*range(len(differences))], "baseline": "token-15"}
    study["contrasts"] = [["words-30", "token-15"]]
    if kind == "task":
        study["tasks"] = {"task": {"metric": "accuracy"}}
    write_lines(out / "study.json", [study])
    return out


@pytest.mark.parametrize(
    ("kind", "scale", "unit"), [("heldout", 1.0, "nats"), ("task", 100.0, "accuracy points")]
)
def test_the_spread_is_that_of_a_pilot(
    kind: str, scale: float, unit: str, recipe: Path, tmp_path: Path, said: Any
) -> None:
    differences = [0.010, 0.030, 0.020, 0.040]
    folder = pilot(tmp_path / "pilot", differences, kind=kind)
    sd = scale * float(np.std(differences, ddof=1))
    (spread,) = recorded_spreads(folder, [("words-30", "token-15")]).values()
    assert spread["sd"] == pytest.approx(sd) and spread["unit"] == unit
    assert spread["pairs"] == 4
    asked = ONE[1:] if kind == "task" else ONE
    command = ["check", recipe, *asked, "--no-timing", "--spread", folder]
    code, printed, _ = said(*command, "--detect", scale * 0.02, "--json")
    assert code == 0
    (contrast,) = json.loads(printed)["contrasts"]
    # A difference of 1.55 SDs, and of .9 times their upper limit, by which runs are planned.
    upper = sd * (3 / chi2.ppf(0.2, 3)) ** 0.5
    assert contrast["spread"]["upper"] == pytest.approx(upper)
    assert contrast["detect"]["runs"] == runs_to_decide(upper, scale * 0.02) == 12
    _, printed, _ = said(*command)
    assert f"{upper:.2g} {unit} (" in printed
    assert f"{sd:.2g}, from 4 pairs of runs in {folder})" in printed


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--detect", "1"], "which is unknown here"),
        (["--detect", "0", "--spread", "1"], "must be above 0"),
        (["--spread", "-1"], "--spread must be above 0"),
        (["--spread", "nan"], "--spread must be above 0"),
        (["--spread", "nowhere"], "or the folder of a finished study"),
        (["--spread", "pilot"], "no two pairs of finished runs"),
        (["--spread", "equal"], "equal, so their SD is 0; got words-30 against token-15"),
        (["--detect", "much"], "--detect"),
        (["--detect", "inf", "--spread", "1"], "must be above 0; got --detect inf"),
    ],
)
def test_a_plan_that_cannot_be_computed_is_one_line(
    options: list[str],
    words: str,
    recipe: Path,
    tmp_path: Path,
    said: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # Steps take minutes, so mistakes are found before any are timed.
    monkeypatch.delattr(forecast, "rehearse_stages")
    pilot(tmp_path / "pilot", [0.1])
    pilot(tmp_path / "equal", [0.0, 0.0, 0.0])
    code, printed, line = said("check", recipe, *ONE, *options)
    assert (code, printed, line.count("\n")) == (2, "", 1) and words in line
    if words == "which is unknown here":
        # It has one arm, so a spread would be refused.
        code, printed, line = said("check", "one-gpu", *options)
        assert (code, printed, line.count("\n")) == (2, "", 1) and "compares nothing" in line


def test_a_study_in_the_folder_is_a_pilot(recipe: Path, tmp_path: Path) -> None:
    """Its own records give the spread, and an unfinished study gives none."""
    from maskwise.studies.prospects import spreads_of

    read = read_recipe(recipe, ONE)
    assert spreads_of(read, tmp_path / "none", None) == {}
    folder = pilot(tmp_path / "out", [0.1, 0.2, 0.4])
    assert [*spreads_of(read, folder, None)] == [("words-30", "token-15")]
    records = (folder / "records.jsonl").read_text().splitlines()
    (folder / "records.jsonl").write_text("\n".join(records[:-1]) + "\n")
    assert spreads_of(read, folder, None) == {}
    with pytest.raises(MaskwiseError, match="lacks a seed"):
        spreads_of(read, folder, str(folder))


def test_the_command_and_python_divide_the_warnings_of_a_check_alike(
    recipe: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """The notes of a check had another mark in the command than in Python."""
    record = check(str(recipe), timing=False)
    record["notes"] = ["one note"]
    record["doubts"] = [{"what": "one fact", "do": ""}, {"what": "one doubt", "do": "act"}]
    made = Check(record)
    assert (made.doubts, made.notes) == (["one doubt: act"], ["one fact", "one note"])
    print_check(lambda tell: record, as_json=False)
    lines = capfd.readouterr().out.splitlines()
    assert {"? one doubt", "  → act", "· one fact", "· one note"} <= {*lines}
    assert {"? one doubt: act", "· one fact", "· one note"} <= {*str(made).splitlines()}


def test_rows_of_tasks_have_the_sizes_that_fine_tuning_reads() -> None:
    """An empty second text has a [SEP] of its own, which was not counted."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    texts = [("the cat",), ("the cat", "sat on"), ("",), ("a", "b", "c"), ("mat", "")]
    rows = [SimpleNamespace(texts=each) for each in texts]
    task: Any = SimpleNamespace(
        kind=SimpleNamespace(windows=False, pools=False), splits={"train": rows}, frozen=False
    )
    # [CLS] the cat [SEP], [CLS] [SEP], [CLS] the cat [SEP] sat on [SEP], [CLS] mat [SEP] [SEP]
    assert row_sizes(task, tokenizer) == [4, 2, 7, 4]


def test_the_plan_says_what_test_items_share_with_the_corpus(tmp_path: Path) -> None:
    """A formula of 13 words is a note; items that stand in the corpus are a problem."""
    formula = " ".join(f"f{number}" for number in range(13))

    def text(number: int, words: int) -> str:
        return " ".join(f"w{number}x{place}" for place in range(words))

    corpus = [{"text": f"{text(number, 40)} {formula}."} for number in range(60)]
    write_lines(tmp_path / "texts.jsonl", corpus)
    found = {}
    for name, items in {
        "formulas": [f"{text(100 + number, 20)} {formula}" for number in range(40)],
        "copies": [text(number, 20) for number in range(40)],
    }.items():
        rows = [
            {"text": item, "label": "ab"[number % 2], "split": split}
            for number, item in enumerate(items)
            for split in ("train", "test")[number // 20 :][:1]
        ]
        task = write_lines(tmp_path / f"{name}.jsonl", rows)
        changes = [f"corpus.source={tmp_path / 'texts.jsonl'}", f"tasks=['{task}']"]
        changes += ["corpus.held_out=0.1", "corpus.length=64", "finetune.max_length=64"]
        record = check(read_recipe(str(write_inputs(tmp_path)), changes), timing=False)
        facts = record["tasks"][name]["overlap"]
        problems, notes = problems_and_notes(record)
        said = [each["what"] for each in problems if "in a row" in each["what"]]
        assert len(said) == (name == "copies")
        assert any(formula in note for note in notes) == (name == "formulas")
        found[name] = facts["overlapping"], facts["covered"], facts["run_words"]
    assert found["formulas"] == (20, 0, 13)
    overlapping, covered, longest = found["copies"]
    # Some of the texts are held out, and not trained on.
    assert 10 < overlapping == covered <= 20 and longest == 20
