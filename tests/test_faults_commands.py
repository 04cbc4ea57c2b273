"""Commands that are told to end, and what they say."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from maskwise.folders import damage
from processes import PATIENCE, wait_for
from tiny import maskwise, read_lines, start, write_inputs

LONG = ("training.steps=400", "training.log_every=2", "training.save_every=200")
"""A state in the middle only, so that what is gone on from is what the signal saved."""


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_inputs(tmp_path_factory.mktemp("inputs"))


def test_what_to_do_about_numbers_that_are_not_finite_can_change_when_a_run_goes_on(
    recipe: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
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
    assert maskwise("pretrain", recipe, *hot, "training.on_nan=skip", "--out", out) == 0
    assert "a different recipe" not in capfd.readouterr().err


@pytest.mark.parametrize("arguments", [("list", "policies"), ("list", "recipes", "--json")])
def test_figures_that_cannot_be_printed_are_one_line(
    arguments: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stdout", full)
        assert maskwise(*arguments) == 2
    said = capfd.readouterr().err
    assert said == "maskwise: the output could not be written: No space left on device\n"


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_a_run_that_is_told_to_end_saves_and_goes_on_bit_for_bit(
    number: int, code: int, recipe: Path, tmp_path: Path
) -> None:
    arguments = ("pretrain", recipe, *LONG)
    assert maskwise(*arguments, "--out", tmp_path / "whole", "--json") == 0
    out = tmp_path / "cut"
    run = start(*arguments, "--out", out)
    wait_for(
        lambda: (out / "metrics.jsonl").is_file() and len(read_lines(out / "metrics.jsonl")) > 5
    )
    os.kill(run.pid, number)
    _, err = run.communicate(timeout=PATIENCE)
    name = signal.Signals(number).name
    assert run.returncode == code and "Traceback" not in err
    assert f"{name}: saved the state of step " in err
    assert f"ended by {name}; finished stages and saved states are kept" in err
    assert list((out / "resume").iterdir()) and not list(out.rglob("*.partial"))
    assert maskwise(*arguments, "--out", out, "--json") == 0
    for file in ("model.safetensors", "manifest.json"):
        assert (out / "checkpoint" / file).read_bytes() == (
            tmp_path / "whole" / "checkpoint" / file
        ).read_bytes()


@pytest.mark.slow
@pytest.mark.process
@pytest.mark.parametrize("everybody", [True, False], ids=["the group", "the study"])
def test_a_study_that_is_told_to_end_saves_its_stage_and_goes_on(
    everybody: bool, recipe: Path, tmp_path: Path
) -> None:
    """Slurm signals every process of a job; a process manager only the first."""
    arguments = ("study", recipe, *LONG, "study.seeds=1", "--jobs", 1)
    assert maskwise(*arguments, "--out", tmp_path / "whole", "--json") == 0
    out = tmp_path / "cut"
    study = start(*arguments, "--out", out)
    wait_for(
        lambda: any(
            len(path.read_bytes()) > 500 for path in out.glob("stages/pretrain-*/metrics.jsonl")
        )
    )
    (os.killpg if everybody else os.kill)(study.pid, signal.SIGTERM)
    _, err = study.communicate(timeout=PATIENCE)
    assert study.returncode == 143 and "Traceback" not in err, err
    assert err.count("SIGTERM") == 1
    assert "ended by SIGTERM; finished stages and saved states are kept" in err
    assert list(out.glob("stages/pretrain-*/resume/step-*")) and not list(out.rglob("*.partial"))
    assert maskwise(*arguments, "--out", out, "--json") == 0
    assert (out / "records.jsonl").read_bytes() == (
        tmp_path / "whole" / "records.jsonl"
    ).read_bytes()


def torchrun(*arguments: Any) -> subprocess.Popen[str]:
    launcher = [
        sys.executable,
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc-per-node",
        "2",
    ]
    command = [*launcher, "-m", "maskwise.cli", *map(str, arguments)]
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, start_new_session=True, **pipes
    )


@pytest.mark.slow
@pytest.mark.process
def test_ranks_that_are_told_to_end_save_at_the_same_step(recipe: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ("pretrain", recipe, *LONG, "--out", out)
    run = torchrun(*arguments)
    wait_for(
        lambda: (out / "metrics.jsonl").is_file() and len(read_lines(out / "metrics.jsonl")) > 5
    )
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode and err.count("SIGTERM: saved the state of step ") == 1, err
    [state] = (out / "resume").iterdir()
    step = int(state.name[5:])
    assert damage(state) is None and 0 < step < 400 and step != 200
    run = torchrun(*arguments)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    trained = [
        line["step"] for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"
    ]
    assert trained == list(range(2, 401, 2))
