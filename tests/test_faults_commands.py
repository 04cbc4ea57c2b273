"""Commands that are told to end, and what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from filelock import Timeout

from maskwise.base.folders import damage, locked, write_json
from maskwise.studies import work
from maskwise.tasks import finetuning
from maskwise.training.engine import Engine
from processes import PATIENCE, wait_for
from test_supervised import recipe as learning
from tiny import load_json, maskwise, read_lines, start, write_inputs

LONG = ("training.steps=400", "training.log_every=2", "training.save_every=200")
"""A state in the middle only, so that what is gone on from is what the signal saved."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_what_to_do_about_numbers_that_are_not_finite_can_change_when_a_run_goes_on(
    recipe, tmp_path, capfd
):
    out = tmp_path / "out"
    hot = (
        "training.steps=10",
        "training.learning_rate=1e30",
        "training.clip=0",
        "training.decay=constant",
    )
    assert maskwise("pretrain", recipe, *hot, "--out", out) == 2
    said = capfd.readouterr().err
    assert "is not finite at step" in said and "set training.on_nan: skip" in said
    # Every update is skipped. Without this check, the useless model was saved.
    assert maskwise("pretrain", recipe, *hot, "training.on_nan=skip", "--out", out) == 2
    assert "a held-out loss is not finite at step 10; got nan" in capfd.readouterr().err
    assert not (out / "checkpoint").exists()


@pytest.mark.parametrize("arguments", [("list", "policies"), ("list", "recipes", "--json")])
def test_figures_that_cannot_be_printed_are_one_line(arguments, monkeypatch, capfd):
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert maskwise(*arguments) == 2
    said = capfd.readouterr().err
    assert said == "maskwise: the output could not be written: No space left on device\n"


def metrics(out: Path) -> list[dict[str, Any]]:
    """The lines of all training runs in a folder, so far."""
    found = []
    # A temporary folder may vanish while it is listed.
    with suppress(FileNotFoundError):
        for path in out.rglob("metrics.jsonl"):
            found += read_lines(path)
    return found


class Killed(BaseException):
    """The process ends at once."""


def count_updates(patch: pytest.MonkeyPatch) -> list[int]:
    """The numbers of the steps that are trained from now on."""
    numbers: list[int] = []
    update = Engine.update

    def counted(self: Engine, step: Any, *rest: Any, **more: Any) -> Any:
        numbers.append(step.number)
        return update(self, step, *rest, **more)

    patch.setattr(Engine, "update", counted)
    return numbers


@pytest.mark.parametrize("command", ["pretrain", "learn", "study"])
def test_a_training_that_is_killed_before_its_result_is_written_is_not_begun_anew(
    command, recipe, tmp_path, monkeypatch
):
    """Its states were removed too early, so it trained from the first step."""
    arguments = [command, recipe]
    if command == "learn":
        (tmp_path / "inputs").mkdir()
        arguments = learning(tmp_path / "inputs")
    if command == "study":
        arguments += ["tasks=[]", "study.seeds=1", "study.arms={token-15: {}}"]
    out = tmp_path / "out"

    def kill(path: Path, value: object) -> None:
        if path.name == "done.json" and (path.parent / "metrics.jsonl").exists():
            raise Killed
        write_json(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(work, "write_json", kill)
        whole = count_updates(patch)
        with pytest.raises(Killed):
            maskwise(*arguments, "--out", out, "--json")
    rest = count_updates(monkeypatch)
    assert maskwise(*arguments, "--out", out, "--json") == 0
    saved = 10 if command == "learn" else 35
    assert len(whole) == whole[-1] + 1 and rest == list(range(saved, len(whole)))
    assert not list(out.rglob("resume")) and not list(out.rglob("*.partial"))


@pytest.mark.parametrize("command", ["pretrain", "learn"])
def test_the_stage_of_a_single_run_is_locked_while_it_trains(
    command, recipe, tmp_path, monkeypatch
):
    arguments = [command, recipe, "training.steps=2"]
    if command == "learn":
        (tmp_path / "inputs").mkdir()
        arguments = learning(tmp_path / "inputs")
    out = tmp_path / "out"
    update = Engine.update
    free = []

    def watched(*given: Any, **more: Any) -> Any:
        try:
            locked(out / ".lock", wait=0).release()
            free.append(True)
        except Timeout:
            free.append(False)
        return update(*given, **more)

    monkeypatch.setattr(Engine, "update", watched)
    assert maskwise(*arguments, "--out", out, "--json") == 0
    assert free and not any(free)


def test_a_stage_of_fine_tuning_goes_on_with_the_next_seed(recipe, tmp_path, monkeypatch):
    arguments = ["study", recipe, "training.steps=5", "study.seeds=1", "finetune.seeds=3"]
    arguments += ["study.arms={token-15: {}}", "finetune.search_rate=true", "--json"]
    whole, out = tmp_path / "whole", tmp_path / "out"
    assert maskwise(*arguments, "--out", whole) == 0
    finetune = finetuning.finetune
    seeds: list[int] = []

    def killed(*given: Any, seed: int, **more: Any) -> Any:
        if len(seeds) == 5:
            raise Killed
        seeds.append(seed)
        return finetune(*given, seed=seed, **more)

    def counted(*given: Any, seed: int, **more: Any) -> Any:
        seeds.append(seed)
        return finetune(*given, seed=seed, **more)

    monkeypatch.setattr(finetuning, "finetune", killed)
    with pytest.raises(Killed):
        maskwise(*arguments, "--out", out)
    monkeypatch.setattr(finetuning, "finetune", counted)
    assert maskwise(*arguments, "--out", out) == 0
    assert seeds[:6] == [finetuning.TRIAL_SEED] * 3 + [0, 1, 2]
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()
    names = [
        {str(path.relative_to(folder)) for path in folder.rglob("*")} for folder in (whole, out)
    ]
    assert names[0] == names[1]


def test_a_verdict_that_was_seen_is_remembered_even_after_a_kill(recipe, tmp_path, monkeypatch):
    """The files of results were removed before the verdict was noted."""
    arguments = ["study", recipe, "training.steps=2", "tasks=[]", "--json"]
    out = tmp_path / "out"
    assert maskwise(*arguments, "study.seeds=1", "--out", out) == 0
    unlink = Path.unlink

    def killed(path: Path, **more: Any) -> None:
        unlink(path, **more)
        if path.name == "summary.json":
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "unlink", killed)
        with pytest.raises(Killed):
            maskwise(*arguments, "--out", out)
    assert not (out / "summary.json").exists()
    assert maskwise(*arguments, "--out", out) == 0
    [look] = load_json(out / "study.json")["looked"]
    assert look["runs"] == 1 and look["seeds"] == [0]


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_run_that_is_told_to_end_saves_and_goes_on_bit_for_bit(number, code, recipe, tmp_path):
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert maskwise("pretrain", recipe, *LONG, "--out", whole, "--json") == 0
    run = start("pretrain", recipe, *LONG, "--out", out)
    wait_for(lambda: len(metrics(out)) > 5)
    os.kill(run.pid, number)
    _, err = run.communicate(timeout=PATIENCE)
    name = signal.Signals(number).name
    assert run.returncode == code and "Traceback" not in err
    assert f"{name}: saved the state of step " in err
    assert f"ended by {name}; finished stages and saved states are kept" in err
    assert list((out / "resume").iterdir()) and not list(out.rglob("*.partial"))
    assert maskwise("pretrain", recipe, *LONG, "--out", out, "--json") == 0
    for file in ("checkpoint/model.safetensors", "checkpoint/manifest.json"):
        assert (out / file).read_bytes() == (whole / file).read_bytes()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("send", [os.killpg, os.kill], ids=["the group", "the study"])
def test_a_study_that_is_told_to_end_saves_its_stage_and_goes_on(send, recipe, tmp_path):
    """Slurm signals every process of a job; a process manager only the first."""
    arguments = ("study", recipe, *LONG, "study.seeds=1", "--jobs", 1)
    whole, out = tmp_path / "whole", tmp_path / "cut"
    assert maskwise(*arguments, "--out", whole, "--json") == 0
    study = start(*arguments, "--out", out)
    wait_for(lambda: len(metrics(out)) > 2)
    send(study.pid, signal.SIGTERM)
    _, err = study.communicate(timeout=PATIENCE)
    assert study.returncode == 143 and "Traceback" not in err, err
    assert err.count("SIGTERM") == 1
    assert "ended by SIGTERM; finished stages and saved states are kept" in err
    assert list(out.glob("stages/pretrain-*/resume/step-*")) and not list(out.rglob("*.partial"))
    assert maskwise(*arguments, "--out", out, "--json") == 0
    assert (out / "records.jsonl").read_bytes() == (whole / "records.jsonl").read_bytes()


@pytest.mark.slow
@pytest.mark.process
def test_ranks_that_are_told_to_end_save_at_the_same_step(recipe, tmp_path):
    out = tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "maskwise", "pretrain", str(recipe), *LONG]
    command += ["--out", str(out)]
    torchrun = partial(subprocess.Popen[str], command, stderr=subprocess.PIPE, text=True)
    run = torchrun(start_new_session=True)
    wait_for(lambda: len(metrics(out)) > 5)
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode and err.count("SIGTERM: saved the state of step ") == 1, err
    [state] = (out / "resume").iterdir()
    step = int(state.name[5:])
    assert damage(state) is None and 0 < step < 400 and step != 200
    run = torchrun(start_new_session=True)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    trained = [line["step"] for line in metrics(out) if line["kind"] == "train"]
    assert trained == list(range(2, 401, 2))
