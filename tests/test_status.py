"""What ``maskwise status`` says of a study, and which checkpoints it removes."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import UNFINISHED, USED
from maskwise.recipe import read_recipe
from maskwise.studies import Stage, make_plan, run_study
from maskwise.studies.costs import Forecast
from maskwise.studies.records import read_plan
from maskwise.studies.status import drop_checkpoints, status_of
from maskwise.studies.store import StageStore
from tiny import load_json, maskwise, read_lines, write_inputs

ARMS = "study.arms={a: {}, b: {masking.ratio: 0.3}}"


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(scope="module")
def finished(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("study") / "out"
    assert maskwise("study", recipe, ARMS, "study.seeds=1", "--out", out, "--jobs", 1) == 0
    return out


@pytest.fixture
def out(finished, tmp_path, monkeypatch):
    """Return a finished study on a machine that has stored no rates."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return shutil.copytree(finished, tmp_path / "out")


def stages_of(out: Path, kind: str) -> list[Path]:
    return sorted((out / "stages").glob(f"{kind}-*"))


def status(out: Path, capsys: Any) -> tuple[dict[str, Any], str]:
    capsys.readouterr()
    assert maskwise("status", out, "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert maskwise("status", out) == 0
    return found, capsys.readouterr().out


def test_a_finished_study(recipe, finished, capsys):
    found, said = status(finished, capsys)
    plan = make_plan(read_recipe(recipe, [ARMS, "study.seeds=1"]))
    assert {stage["name"] for stage in found["stages"]} == {s.name for s in plan.stages()}
    total = len(plan.stages())
    assert found["counts"] == {"finished": total, "running": 0, "failed": 0, "left": 0}
    assert found["planned_all"] and found["pending"] == [] and found["seconds_left"] == 0
    seconds = {line["stage"]: line["seconds"] for line in read_lines(finished / "timings.jsonl")}
    assert found["seconds_done"] == pytest.approx(sum(seconds.values()), abs=0.1)
    assert f"{total} of {total} stages are finished" in said and "finished" in said.splitlines()[0]


def test_running_failed_and_left_stages(out, capsys):
    running, left = stages_of(out, "pretrain")
    (failed,) = stages_of(out, "overlap")
    for folder in (running, left, failed):
        (folder / "done.json").unlink()
    (left / "metrics.jsonl").unlink()
    steps = load_json(running / "stage.json")["what"]["training"]["steps"]
    half = {"kind": "train", "step": steps / 2, "seconds": 7.0}
    (running / "metrics.jsonl").write_text(json.dumps(half))
    error = "Traceback\n  …\nmaskwise.training.log.NotFinite: the disk is gone\n"
    (failed / "error.txt").write_text(error)
    (out / UNFINISHED).mkdir()
    with (
        (running / ".lock").open("w") as lock,
        (out / UNFINISHED / f".pc-1{USED}").open("w") as use,
    ):
        fcntl.flock(lock, fcntl.LOCK_EX)
        fcntl.flock(use, fcntl.LOCK_EX)
        found, said = status(out, capsys)
    by_name = {stage["name"]: stage for stage in found["stages"]}
    states = [by_name[folder.name]["state"] for folder in (running, left, failed)]
    assert states == ["running", "left", "failed"] and found["processes"] == ["pc-1"]
    assert by_name[running.name]["share"] == 0.5
    assert by_name[failed.name]["error"] == "the disk is gone"
    # The time of the training that has not begun is unknown, because no training is finished.
    assert found["seconds_left"] is None
    assert "running (pc-1)" in said and ", 50%" in said and "the disk is gone" in said
    (running / "done.json").write_text(json.dumps({"seconds": 40.0}))
    found, said = status(out, capsys)
    assert found["seconds_left"] == 40.0 and "stopped" in said and "40 s of work" in said
    assert not found["processes"]


def test_what_is_left_is_forecast_from_finished_stages_then_from_stored_rates(out, capsys):
    """A training of twice the steps counted as one that was finished."""
    names = [folder.name for folder in stages_of(out, "pretrain")]
    plan = out / "stages" / "plan.json"
    planned = load_json(plan)
    longer = planned["stages"].pop(names[1])
    steps = longer["what"]["training"]["steps"]
    longer["what"]["training"]["steps"] = 2 * steps
    planned["stages"]["pretrain-longer"] = longer
    plan.write_text(json.dumps(planned))
    assert status(out, capsys)[0]["seconds_left"] is None
    stages = {name: Stage.from_dict(facts) for name, facts in _fields(planned)}
    forecast = Forecast(stages, StageStore(out / "stages"))
    forecast.keep("pretrain-longer", {"start": 4.0, "step": 0.5, "judge": 0.0})
    assert status(out, capsys)[0]["seconds_left"] == 4.0 + steps


@pytest.mark.parametrize("saved", [0, 10])
def test_steps_after_the_last_saved_state_are_left_again(saved, out, capsys):
    """A training that was killed shortly before its end was said to be nearly done."""
    killed, _ = stages_of(out, "pretrain")
    (killed / "done.json").unlink()
    steps = load_json(killed / "stage.json")["what"]["training"]["steps"]
    last = {"kind": "train", "step": steps - 1, "seconds": 2.0 * (steps - 1)}
    (killed / "metrics.jsonl").write_text(json.dumps(last))
    whole = status(out, capsys)[0]["seconds_left"]
    finished = [load_json(path / "done.json") for path in stages_of(out, "pretrain")[1:]]
    assert whole == round(finished[0]["seconds"], 1)
    if saved:
        (killed / "resume" / f"step-{saved:08d}").mkdir(parents=True)
        (killed / "resume" / ".step-00000039.partial").mkdir()
        assert status(out, capsys)[0]["seconds_left"] == 2.0 * (steps - saved)


def facts_of_stage(**changes: object) -> dict[str, object]:
    known = {"kind": "pretrain", "what": {"training": {"steps": 9}}, "needs": [], "how": {}}
    return known | {"work": "training", "run": "a, seed 0"} | changes


@pytest.mark.parametrize(
    "plan",
    [
        {},
        {"stages": [], "all": True},
        {"stages": {"pretrain-1": facts_of_stage()}},
        {"stages": {"pretrain-1": {}}, "all": True},
        {"stages": {"dance-1": facts_of_stage(kind="dance")}, "all": True},
        {"stages": {"pretrain-1": facts_of_stage(needs=None)}, "all": True},
    ],
)
def test_a_damaged_plan_is_one_line(plan, tmp_path, capfd):
    (tmp_path / "stages").mkdir()
    (tmp_path / "study.json").write_text("{}")
    (tmp_path / "stages" / "plan.json").write_text(json.dumps(plan))
    assert maskwise("status", tmp_path) == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert "stages/plan.json" in line
    # A study that is repeated writes a list of its own.
    assert read_plan(tmp_path) is None


@pytest.mark.parametrize(
    "line", ['{"kind": "train"}', "[1]", "7", "{}", '{"kind": "train", "step": null}']
)
def test_damaged_files_of_a_stage_are_not_read(line, tmp_path, capsys):
    stages = {f"pretrain-{n}": facts_of_stage() for n in (1, 2, 3)}
    for name in stages:
        (tmp_path / "stages" / name).mkdir(parents=True)
    (tmp_path / "study.json").write_text("{}")
    plan = {"stages": stages, "all": True}
    (tmp_path / "stages" / "plan.json").write_text(json.dumps(plan))
    (tmp_path / "stages/pretrain-1/metrics.jsonl").write_text(f"{line}\n")
    (tmp_path / "stages/pretrain-2/done.json").write_text('{"seconds": "9"}')
    (tmp_path / "stages/pretrain-3/error.txt").write_bytes(b"no room \xff")
    found, _ = status(tmp_path, capsys)
    assert [stage["state"] for stage in found["stages"]] == ["left", "left", "failed"]
    assert found["stages"][2]["error"].startswith("no room")


def _fields(planned: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    for name, facts in planned["stages"].items():
        yield name, {key: facts[key] for key in ("kind", "what", "needs", "how")}


def test_the_stages_of_all_blocks_are_listed(recipe, tmp_path):
    out = tmp_path / "out"
    read = read_recipe(recipe, [ARMS, "study.seeds=2", "tasks=[]"])
    run_study(read, out, jobs=1, seeds=[0])
    found = status_of(out)
    assert found["pending"] == [1]
    with pytest.raises(MaskwiseError, match="has not run all that it plans"):
        drop_checkpoints(out)
    run_study(read, out, jobs=1, seeds=[1])
    found = status_of(out)
    assert {stage["name"] for stage in found["stages"]} == {
        s.name for s in make_plan(read).stages()
    }
    assert not found["pending"] and found["counts"]["finished"] == len(found["stages"])


def test_dropped_checkpoints_are_trained_again_only_if_a_stage_needs_them(recipe, out, capsys):
    study = ("study", recipe, ARMS, "study.seeds=1", "--out", out, "--jobs", 1)
    records = (out / "records.jsonl").read_bytes()
    trained = stages_of(out, "pretrain")
    capsys.readouterr()
    assert maskwise("status", out, "--drop-checkpoints", "--dry-run") == 0
    said = capsys.readouterr().out
    assert all(f"would remove stages/{folder.name}/checkpoint" in said for folder in trained)
    assert all((folder / "checkpoint").is_dir() for folder in trained)
    assert maskwise("status", out, "--drop-checkpoints", "--json") == 0
    dropped = json.loads(capsys.readouterr().out)
    assert len(dropped["removed"]) == 2 and dropped["bytes"] > 1000 and not dropped["kept"]
    assert not any((folder / "checkpoint").exists() for folder in trained)
    # The study is still finished, and its page complete.
    assert maskwise(*study) == 0 and (out / "records.jsonl").read_bytes() == records
    assert not any((folder / "checkpoint").exists() for folder in trained)
    (task,) = [
        folder
        for folder in stages_of(out, "finetune")
        if trained[0].name in load_json(folder / "stage.json")["needs"]
    ]
    (task / "done.json").unlink()
    assert maskwise(*study) == 0 and (out / "records.jsonl").read_bytes() == records
    assert [(folder / "checkpoint").exists() for folder in trained] == [True, False]


def test_bytes_that_two_checkpoints_share_are_counted_once(out):
    """With training.lengths, the checkpoint of the chosen length was counted twice."""
    first, second = (folder / "checkpoint" for folder in stages_of(out, "pretrain"))
    shutil.rmtree(second)
    shutil.copytree(first, second, copy_function=os.link)
    found = drop_checkpoints(out, dry_run=True)
    files = [path for path in first.rglob("*") if path.is_file()]
    assert len(found["removed"]) == 2
    assert found["bytes"] == sum(path.stat().st_size for path in files) > 0


def test_what_is_needed_shared_or_in_use_is_kept(out, tmp_path):
    needed, other = stages_of(out, "pretrain")
    for folder in stages_of(out, "evaluate"):
        if needed.name in load_json(folder / "stage.json")["needs"]:
            (folder / "done.json").unlink()
    shared = tmp_path / "shared"
    shared.mkdir()
    other.rename(shared / other.name)
    study = load_json(out / "study.json")
    (out / "study.json").write_text(json.dumps(study | {"shared_stages": str(shared)}))
    (out / UNFINISHED).mkdir()
    with (out / UNFINISHED / f".pc-1{USED}").open("w") as use:
        fcntl.flock(use, fcntl.LOCK_EX)
        with pytest.raises(MaskwiseError, match=r"is in use.*got pc-1"):
            drop_checkpoints(out)
    found = drop_checkpoints(out)
    assert found["removed"] == [] and set(found["kept"]) == {needed.name, other.name}
    assert "evaluate-" in found["kept"][needed.name] and "share" in found["kept"][other.name]
    assert (needed / "checkpoint").is_dir() and (shared / other.name / "checkpoint").is_dir()
    (out / "adapt.yaml").write_text("")
    with pytest.raises(MaskwiseError, match="maskwise adapt has not saved its model"):
        drop_checkpoints(out)


def test_another_folder_and_an_option_without_effect_are_refused(out, tmp_path, capfd):
    for arguments in ((tmp_path / "none",), (tmp_path,), (out, "--dry-run")):
        assert maskwise("status", *arguments) == 2
        assert len(capfd.readouterr().err.splitlines()) == 1
    assert not (tmp_path / "none").exists()


def test_a_checkpoint_stays_that_a_stage_of_another_study_needs(out):
    """Another study may have set study.cache to this folder."""
    [first, second] = stages_of(out, "pretrain")
    other = out / "stages" / "finetune-ffffffffffffffff"
    other.mkdir()
    needs = [stages_of(out, "prepare")[0].name, first.name]
    stage = {"kind": "finetune", "what": {}, "needs": needs, "how": {}}
    other.joinpath("stage.json").write_text(json.dumps(stage))
    name = Stage.from_dict(stage).name
    other.rename(other.with_name(name))
    found = drop_checkpoints(out)
    assert found["kept"] == {first.name: f"{name}, which this study does not plan, needs it"}
    assert (first / "checkpoint").is_dir() and not (second / "checkpoint").is_dir()


@pytest.mark.slow
def test_a_finished_study_that_is_run_again_is_not_unfinished_meanwhile(recipe, out, monkeypatch):
    """A verdict that was seen counts as a look, whatever happens to the next call."""

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    whole = read_recipe(recipe, [ARMS, "study.seeds=1"])
    monkeypatch.setattr("maskwise.studies.run.execute", stopped)
    with pytest.raises(KeyboardInterrupt):
        run_study(whole, out)
    assert load_json(out / "study.json")["pending"] == []
    monkeypatch.undo()
    run_study(read_recipe(recipe, [ARMS, "study.seeds=2"]), out, jobs=1)
    assert [look["runs"] for look in load_json(out / "study.json")["looked"]] == [1]


def test_an_arm_that_was_removed_is_no_longer_counted(recipe, out, capsys):
    """A study that had ended without its failed arm was said to have failed and left stages."""
    _, other = stages_of(out, "pretrain")
    plan = make_plan(read_recipe(recipe, [ARMS, "study.seeds=1"]))
    (kept,) = {run.arm for run in plan.runs if run.pretrained and run.pretrained.name != other.name}
    (other / "done.json").unlink()
    (other / "error.txt").write_text("no")
    assert status(out, capsys)[0]["counts"]["failed"] == 1
    fewer = "study.arms={a: {}}" if kept == "a" else "study.arms={b: {masking.ratio: 0.3}}"
    asked = [recipe, fewer, "study.seeds=1", "--out", out, "--jobs", 1]
    assert maskwise("study", *asked) == 0
    found, said = status(out, capsys)
    assert found["counts"]["failed"] == found["counts"]["left"] == 0 and "stopped" not in said
    listed = {stage["name"] for stage in found["stages"]}
    assert listed == {stage.name for stage in make_plan(read_recipe(recipe, asked[1:3])).stages()}


def test_a_folder_that_does_not_exist_is_said_to_be_none(tmp_path, capfd):
    assert maskwise("status", tmp_path / "nowhere") == 2
    [line] = capfd.readouterr().err.splitlines()
    assert "there is no such folder; got" in line
