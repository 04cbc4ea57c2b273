"""Fine-tuning that is asked for again, and rates that diverge."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import pytest

import maskwise
from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import read_lines
from maskwise.models.starts import resolve_start
from maskwise.studies.single import run_finetune
from maskwise.studies.stages import finetune_alone
from maskwise.tasks import FinetuneSettings, evaluate_tasks, finetuning, load_task
from maskwise.training.engine import Engine
from maskwise.training.log import NotFinite

# Most tests count the calls of what would train.
pytestmark = pytest.mark.usefixtures("small_encoder")

TASKS = ["banking77(train_rows=20)", "trivia(train_rows=20)"]


class Tuner:
    """Stands in for ``finetuning.finetune``: counts its calls, and diverges at high rates or on one
    task.
    """

    def __init__(self, *, most: float = math.inf, fails: str = "", after: float = math.inf):
        self.calls: list[tuple[str, float]] = []
        self.seeds: list[int] = []
        self.most = most
        self.fails = fails
        self.after = after

    def __call__(
        self, checkpoint: object, task: Any, *, settings: Any, seed: int, **_: object
    ) -> Any:
        if task.name == self.fails or len(self.calls) >= self.after:
            raise KeyboardInterrupt
        self.calls.append((task.name, settings.learning_rate))
        self.seeds.append(seed)
        if settings.learning_rate > self.most:
            raise NotFinite("the loss is not finite at step 3", got=math.nan)
        score = {"dev": 0.5, "score": seed / 8, "majority": 0.1, "lost_words": 0}
        return score | {"others": {}, "notes": [], "items": [[0.5, 1.0]], "counts": None}


@pytest.fixture
def again(monkeypatch, tmp_path):
    """Fine-tune in one folder, with a tuner and settings."""

    def finetuned(tuner: Tuner, *overrides: str, seeds: int = 2, processes: int = 1) -> list[Any]:
        monkeypatch.setattr(finetuning, "finetune", tuner)
        given = {"seeds": seeds, "processes": processes, "out": tmp_path}
        return run_finetune("bundled:encoder", TASKS, ["steps=2", *overrides], **given)

    return finetuned


@pytest.mark.parametrize(
    ("overrides", "seeds", "calls"),
    [((), 2, 0), ((), 3, 2)],
)
def test_only_another_fine_tuning_is_trained_again(overrides, seeds, calls, again):
    first, other = Tuner(), Tuner()
    records = again(first)
    assert len(first.calls) == 4
    assert (again(other, *overrides, seeds=seeds) == records) == (not calls)
    assert len(other.calls) == calls


def test_rows_are_added_to_an_earlier_fine_tuning(tmp_path, monkeypatch):
    """Only a folder that had rows already was known as one of a fine-tuning."""
    monkeypatch.setattr(finetuning, "finetune", Tuner())
    given = {"out": tmp_path, "runs": 1, "overrides": {"steps": 2}}
    maskwise.finetune("bundled:encoder", TASKS[:1], **given)
    rows = [{"text": f"a text {n}", "label": n % 2} for n in range(40)]
    [record] = maskwise.finetune("bundled:encoder", {"mine": rows}, **given)
    assert record["task"] == "mine"
    assert [line["task"] for line in lines(tmp_path)] == ["banking77", "mine"]
    # The folder of a fine-tuning is not that of a study.
    (tmp_path / "data").rename(tmp_path / "moved")
    with pytest.raises(MaskwiseError, match="another call; got maskwise finetune bundled:encoder"):
        maskwise.study("quick-start", texts=["a"] * 9, out=tmp_path)


def test_scores_of_other_settings_or_rows_are_refused_and_stay(again, tmp_path):
    """They were overwritten."""
    again(Tuner())
    before = lines(tmp_path)
    with pytest.raises(MaskwiseError, match="scores of task banking77 with other settings"):
        again(Tuner(), "max_length=32")
    monkey = ["banking77(train_rows=30)"]
    with pytest.raises(MaskwiseError, match="scores of task banking77 with other settings"):
        run_finetune("bundled:encoder", monkey, ["steps=2"], seeds=2, out=tmp_path)
    assert lines(tmp_path) == before and again(Tuner(after=0)) == before


def test_a_model_is_the_same_wherever_it_lies(tmp_path, monkeypatch):
    """It was another one if its folder was moved, and the same if its weights were others."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetuning, "finetune", Tuner())
    shutil.copytree(resolve_start("bundled:encoder"), "m")
    given = {"overrides": ["steps=2"], "seeds": 1, "out": Path("out")}
    records = run_finetune("m", TASKS[:1], **given)
    Path("m").rename("moved")
    for spelt in ("moved", "moved/", "./moved", str(tmp_path / "moved"), "bundled:encoder"):
        [record] = run_finetune(spelt, TASKS[:1], **given)
        assert record == records[0] | {"model": spelt}
    (Path("moved") / "config.json").write_text("{}")
    with pytest.raises(MaskwiseError, match="maskwise finetune m, with other values of model"):
        run_finetune("moved", TASKS[:1], **given)


def lines(folder: Path) -> list[dict[str, Any]]:
    return [*read_lines(folder / "records.jsonl")]


@pytest.mark.parametrize("after", range(8))
def test_finished_runs_are_kept_wherever_it_stops(after, again, tmp_path):
    """Started again, it trained from seed 0, and more seeds emptied the file of records."""
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(after=after), seeds=4)
    kept = [seed for line in lines(tmp_path) for seed in line["fine_tuning"]]
    assert len(kept) == after
    rest = Tuner()
    records = again(rest, seeds=4)
    assert len(rest.calls) == 8 - after
    assert [record["fine_tuning"] for record in records] == [[0, 1 / 8, 2 / 8, 3 / 8]] * 2
    assert lines(tmp_path) == records


@pytest.mark.parametrize("after", range(4))
def test_more_seeds_are_added_to_those_that_are_there(after, again, tmp_path):
    before = again(Tuner(), seeds=3)
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(after=after), seeds=5)
    assert [len(line["fine_tuning"]) for line in lines(tmp_path)] == [
        3 + min(after, 2),
        3 + max(after - 2, 0),
    ]
    rest = Tuner()
    records = again(rest, seeds=5)
    assert rest.seeds == ([3, 4] * 2)[after:] and lines(tmp_path) == records
    # Fewer seeds are read, and the others stay.
    assert again(Tuner(after=0), seeds=3) == before and lines(tmp_path) == records


def test_other_tasks_and_searched_rates_stay(again, tmp_path, monkeypatch):
    again(Tuner())
    tuner = Tuner()
    monkeypatch.setattr(finetuning, "finetune", tuner)
    arguments = ["steps=2", "learning_rate=1e-3", "search_rate=true"]

    def searched(seeds: int) -> Any:
        spec = "ud-pos(train_rows=20)"
        return run_finetune("bundled:encoder", [spec], arguments, seeds=seeds, out=tmp_path)

    searched(1)
    assert len(tuner.calls) == 4 and len(lines(tmp_path)) == 3
    searched(2)
    # The search has its own seed, and does not run again.
    assert len(tuner.calls) == 5 and tuner.seeds[-1] == 1
    with pytest.raises(MaskwiseError, match="bundled:encoder, with other values of model"):
        run_finetune("bundled:seq2seq", TASKS, [], seeds=1, out=tmp_path)


def test_a_stopped_fine_tuning_goes_on_with_the_tasks_that_are_left(
    again,
):
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(fails="trivia"))
    rest = Tuner()
    records = again(rest)
    assert {name for name, _ in rest.calls} == {"trivia"}
    assert [record["task"] for record in records] == ["banking77", "trivia"]


@pytest.mark.parametrize("search", [(), ("search_rate=true",)])
def test_several_processes_show_progress_and_find_what_one_finds(search, again, tmp_path, capfd):
    """They showed none."""
    search = ("learning_rate=1e-3", *search)
    alone = again(Tuner(most=2e-3), *search, seeds=3)
    capfd.readouterr()
    shutil.rmtree(tmp_path)
    # The pool of the tests runs them in this process.
    tuner = Tuner(most=2e-3)
    assert again(tuner, *search, seeds=3, processes=2) == alone
    trials = [finetuning.TRIAL_SEED] * 6 if len(search) > 1 else []
    assert f"0 of {6 + len(trials)} stages" in capfd.readouterr().err
    assert sorted(tuner.seeds) == [0, 0, 1, 1, 2, 2, *trials], "records are made of the results"


def test_a_run_that_fails_in_a_process_leaves_the_others(again):
    with pytest.raises(MaskwiseError, match="banking77, seed 0: the loss is not finite"):
        again(Tuner(most=0), seeds=2, processes=2)
    with pytest.raises(MaskwiseError, match="trivia, seed 0"):
        again(Fails("trivia"), processes=2)
    rest = Tuner()
    again(rest, processes=2)
    assert {name for name, _ in rest.calls} == {"trivia"}


class Fails(Tuner):
    """Fails on one task."""

    def __init__(self, task: str):
        super().__init__()
        self.task = task

    def __call__(self, checkpoint: object, task: Any, **more: Any) -> Any:
        if task.name == self.task:
            raise MaskwiseError("a file is damaged")
        return super().__call__(checkpoint, task, **more)


def test_other_weights_are_another_stage(tmp_path):
    (tmp_path / "more").mkdir()
    task = load_task(TASKS[0])
    made = []
    for weights in ("1", "1", "2"):
        (tmp_path / "weights").write_text(weights)
        # Results may be in the folder of the checkpoint.
        (tmp_path / "more" / f"{len(made)}").touch()
        settings = FinetuneSettings(seeds=1 + len(made))
        made.append(finetune_alone(str(tmp_path), task, TASKS[0], settings).name)
    assert made[0] == made[1] != made[2]


def test_a_trial_of_other_settings_is_not_used(again, tmp_path):
    """Before the first record, only the folders of the runs know their settings."""
    search = ("learning_rate=1e-3", "search_rate=true")
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(after=2), *search)
    rest, other = Tuner(after=1), Tuner()
    with pytest.raises(KeyboardInterrupt):
        again(rest, *search)
    assert [rate for _, rate in rest.calls] == [0.003]
    again(other, *search, "batch_size=8")
    assert [rate for _, rate in other.calls[:3]] == [0.00033, 0.001, 0.003]


def test_a_rate_that_diverged_is_not_tried_again(again):
    """That it diverges is the result of its trial."""
    search = ("learning_rate=1e-3", "search_rate=true")
    with pytest.raises(KeyboardInterrupt):
        again(Tuner(most=2e-3, after=3), *search)
    rest = Tuner(most=2e-3)
    records = again(rest, *search)
    assert rest.seeds[:2] == [0, 1] and "learning rate 0.003 diverged" in records[0]["notes"][0]


def test_rates_of_which_all_diverge_are_one_line(again):
    with pytest.raises(MaskwiseError, match="every learning rate that was tried on task banking77"):
        again(Tuner(most=0), "learning_rate=1e-3", "search_rate=true")


def test_from_python_with_rows(tmp_path, monkeypatch):
    tuner = Tuner()
    monkeypatch.setattr(finetuning, "finetune", tuner)
    rows = [{"text": f"{'red' if n % 2 else 'blue'} {n}", "label": "ab"[n % 2]} for n in range(40)]
    given = {"out": tmp_path, "overrides": {"steps": 2}}
    first = maskwise.finetune("bundled:encoder", {"colours": rows}, runs=1, **given)
    more = maskwise.finetune("bundled:encoder", {"colours": rows}, runs=2, **given)
    assert [line["task"] for line in first] == ["colours"] and tuner.seeds == [0, 1]
    assert lines(tmp_path) == more


@pytest.mark.parametrize("eval_every", [0, 2])
def test_a_run_goes_on_within_its_training(eval_every, tmp_path, monkeypatch):
    """A run of hours began again; the best weights on dev are in its states."""
    task = "ud-pos(train_rows=40, test_rows=20)"
    given = [[task], ["steps=7", "batch_size=8", f"eval_every={eval_every}"]]

    def weights(out: Path) -> bytes:
        return (out / "ud-pos" / "seed-0" / "checkpoint" / "model.safetensors").read_bytes()

    whole, parted = tmp_path / "whole", tmp_path / "parted"
    [record] = run_finetune("bundled:encoder", *given, seeds=1, out=whole)
    train, begun = finetuning.train, []

    def interrupted(*arguments: Any, **options: Any) -> Any:
        begun.append(train(*arguments, **options))
        if len(begun) == 1:
            raise KeyboardInterrupt
        return begun[-1]

    monkeypatch.setattr(finetuning, "train", interrupted)
    monkeypatch.setattr(Engine, "is_due", lambda engine: True)
    with pytest.raises(KeyboardInterrupt):
        run_finetune("bundled:encoder", *given, seeds=1, out=parted)
    assert [*parted.glob("ud-pos/seed-0/resume/step-*")]
    [again] = run_finetune("bundled:encoder", *given, seeds=1, out=parted)
    assert [done["resumed_at"] for done in begun] == [0, 6]
    assert weights(parted) == weights(whole)
    assert again["score"] == record["score"] and again["dev"] == record["dev"]
    assert not [*parted.glob("**/resume")]


@pytest.mark.parametrize("most", [2e-3, 5e-4, 0])
def test_a_rate_that_diverges_loses_unless_every_rate_does(monkeypatch, most):
    tuner = Tuner(most=most)
    monkeypatch.setattr(finetuning, "finetune", tuner)
    settings = FinetuneSettings(learning_rate=1e-3, search_rate=True, seeds=1)
    if not most:
        with pytest.raises(NotFinite):
            evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
        return
    (record,) = evaluate_tasks("bundled:encoder", TASKS[:1], settings=settings)
    assert tuner.calls[-1][1] <= most and all(float(rate) <= most for rate in record["tried"])
    assert any("0.003" in note for note in record["notes"])
