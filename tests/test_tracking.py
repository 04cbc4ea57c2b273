"""Trackers: a study is a group, and each arm and seed a run of its own, which keeps its id."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml
from accelerate import tracking
from accelerate.utils import LoggerType

from maskwise.recipe import read_recipe
from maskwise.studies import make_plan
from maskwise.training.tracking import require_trackers
from tiny import interrupt, maskwise, records_of, write_inputs

SHORT = ("training.steps=8", "training.log_every=2", "training.save_every=2")


class Fake(tracking.GeneralTracker):
    """A tracker that remembers what it is told, by any name."""

    name = "fake"
    requires_logging_directory = False
    made: ClassVar[list[Fake]] = []

    def __init__(self, project: str, *places: Path, **words: Any):
        super().__init__()
        self.project, self.places, self.words = project, places, words
        self.config: dict[str, Any] = {}
        self.lines: list[tuple[int, dict[str, float]]] = []
        self.finished = 0
        self.made.append(self)

    @property
    def tracker(self) -> Fake:
        return self

    def store_init_configuration(self, values: dict[str, Any]) -> None:
        self.config = values

    def log(self, values: dict[str, Any], step: int | None = None, **more: Any) -> None:
        assert step is not None and not self.finished
        self.lines.append((step, values))

    def finish(self) -> None:
        self.finished += 1

    def sent(self, beginning: str) -> dict[str, float]:
        """The last number under each name with a beginning."""
        return {
            name: value
            for _, line in self.lines
            for name, value in line.items()
            if name.startswith(beginning)
        }


@pytest.fixture(autouse=True)
def made(monkeypatch: pytest.MonkeyPatch) -> list[Fake]:
    """What is tracked by ``fake``, which a program has added, and as by Weights & Biases."""
    monkeypatch.setattr(Fake, "made", [])
    for name in ("fake", "wandb"):
        monkeypatch.setitem(tracking.LOGGER_TYPE_TO_CLASS, name, Fake)
    monkeypatch.setattr(tracking, "_available_trackers", [LoggerType("wandb")])
    return Fake.made


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    return write_inputs(tmp_path / "inputs")


@pytest.fixture
def taskless(recipe: Path) -> Path:
    """A recipe without tasks."""
    settings = yaml.safe_load(recipe.read_text())
    del settings["tasks"], settings["finetune"]
    recipe.write_text(yaml.safe_dump(settings))
    return recipe


def test_each_arm_and_seed_of_a_study_is_a_run_with_its_settings_and_scores(
    recipe: Path, tmp_path: Path, made: list[Fake]
) -> None:
    """All were one project without names, and differed in nothing but the seed."""
    out = tmp_path / "out"
    short = (*SHORT, "finetune.seeds=1", "finetune.steps=1", "training.trackers=[wandb]")
    assert maskwise("study", recipe, *short, "--out", out) == 0
    assert {(each.project, each.words["group"]) for each in made} == {("maskwise", "recipe, out")}
    assert all(each.finished == 1 and each.words["resume"] == "allow" for each in made)
    runs: dict[str, list[Fake]] = {}
    for each in made:
        runs.setdefault(each.words["name"], []).append(each)
    names = [f"{arm}, seed {seed}" for arm in ("token-15", "words-30") for seed in (0, 1)]
    assert {*names} < {*runs}
    ids = {name: {each.words["id"] for each in runs[name]} for name in runs}
    assert all(map(len, ids.values())) and len(set.union(*ids.values())) == len(runs)
    scores = records_of(out, "task") + records_of(out, "heldout")
    for name in names:
        trained, measured = runs[name]
        assert trained.config["masking.ratio"] == (0.15 if "token" in name else 0.3)
        assert trained.config["training.seed"] == int(name[-1])
        assert trained.config["tasks"] and trained.config["run_id"] == trained.words["id"]
        assert all(isinstance(value, bool | int | float | str) for value in trained.config.values())
        assert [step for step, line in trained.lines if "train/loss" in line] == [2, 4, 6, 8]
        assert {step for step, _ in measured.lines} == {9}
        assert measured.config == trained.config
        own = [line["value"] for line in scores if f"{line['arm']}, seed {line['seed']}" == name]
        assert sorted(measured.sent("score/").values()) == sorted(own)
        assert {"score/task", "score/heldout/token/0.15"} <= measured.sent("score/").keys()
    # A finished study tells nothing again.
    count = len(made)
    assert maskwise("study", recipe, *short, "--out", out) == 0
    assert len(made) == count


def test_a_resumed_run_keeps_its_id_and_another_folder_has_another(
    taskless: Path, tmp_path: Path, made: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ("pretrain", taskless, *SHORT, "training.trackers=[wandb]")
    with monkeypatch.context() as patch:
        interrupt(patch, 5)
        assert maskwise(*command, "--out", tmp_path / "one") == 130
    monkeypatch.chdir(tmp_path)
    assert maskwise(*command, "--out", "one") == 0
    assert maskwise(*command, "--out", "two") == 0
    cut, resumed, other = made
    assert cut.words == resumed.words != other.words
    assert cut.words["name"] == other.words["name"] == "recipe, seed 0"
    assert cut.config == resumed.config
    assert [step for step, line in resumed.lines if "train/loss" in line][-1] == 8
    assert [each.finished for each in made] == [1, 1, 1]


def test_phases_and_shared_trainings_have_names_of_their_own(
    recipe: Path, tmp_path: Path, made: list[Fake]
) -> None:
    arms = "study.arms={a: {}, b: {finetune.steps: 3}, c: {phases: [{training.steps: 4}, {}]}}"
    plan = make_plan(read_recipe(recipe, [arms, "study.seeds=1"]))
    told = {}
    for run in plan.runs:
        for stage in run.tracked_stages:
            one = run.tracked(tmp_path, stage)
            told[one.name] = one.id
    phases = ["c, seed 0, pretrain 1 of 2", "c, seed 0, pretrain 2 of 2"]
    assert [*told] == ["a, seed 0", "b, seed 0", *phases]
    assert len({*told.values()}) == 4


def test_a_tracker_with_one_word_gets_all_in_it(
    taskless: Path, tmp_path: Path, made: list[Fake], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The name may be that of a folder, from which no arm leads out."""
    monkeypatch.setattr(Fake, "requires_logging_directory", True)
    more = ("training.trackers=[fake]", "study.arms={}", "name=../a")
    assert maskwise("pretrain", taskless, *SHORT, *more, "--out", tmp_path / "out") == 0
    [one] = made
    assert one.project == "..-a, out/..-a, seed 0" and one.words == {}
    assert one.places == (tmp_path / "out" / "trackers",)


def test_a_tracker_that_does_not_start_is_said_in_one_line(
    taskless: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def start(self: Fake) -> None:
        raise RuntimeError("no API key")

    monkeypatch.setattr(Fake, "start", start)
    more = ("training.trackers=[fake]",)
    assert maskwise("pretrain", taskless, *SHORT, *more, "--out", tmp_path / "out") == 2
    assert "fake does not start; got no API key" in capsys.readouterr().err


def test_a_study_whose_scores_are_not_tracked_has_its_verdict(
    taskless: Path, tmp_path: Path, made: list[Fake], monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def start(self: Fake) -> None:
        if len(made) > 2:
            raise RuntimeError("no connection")

    monkeypatch.setattr(Fake, "start", start)
    more = ("training.trackers=[fake]", "study.seeds=1")
    assert maskwise("study", taskless, *SHORT, *more, "--out", tmp_path / "out") == 0
    assert "no connection" in capsys.readouterr().err


def test_trackers_that_are_there_may_be_named() -> None:
    require_trackers(["all", "wandb", "fake"])
