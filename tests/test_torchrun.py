"""Processes that train one model together: those of torchrun, and those that a stage starts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest

import maskwise as mw
from maskwise import cli
from maskwise.base.errors import MaskwiseError, OtherProcessFailed
from maskwise.jobs import pools, torchrun
from maskwise.jobs.pools import Failure, LocalPool
from maskwise.jobs.torchrun import launch
from processes import PATIENCE, launched, runs, wait_for, worker_of_ranks, worker_task, workers
from tiny import load_json, maskwise, read_lines, records_of, start, write_inputs

# Processes that a stage starts
# ------------------------------------------------------------------------------------------------


@pytest.mark.process
def test_processes_do_a_task_together_and_end_if_one_fails(tmp_path: Path, recwarn) -> None:
    rank, first = launch(2, worker_of_ranks, tmp_path, "both")
    assert rank == "0"
    for what, said, passing in (("fails", "only here", False), ("dies", "exit code 7", True)):
        with pytest.raises(Failure, match=said) as caught:
            launch(2, worker_of_ranks, tmp_path, what)
        assert caught.value.passing is passing
    launch(2, worker_of_ranks, tmp_path, "warns")
    assert [str(each.message) for each in recwarn] == ["rows are truncated"], "of the first one"
    for what in ("both", "fails", "dies", "warns"):
        assert [(tmp_path / f"{what}-{number}").read_text() for number in (0, 1)] == ["2", "2"]
    wait_for(lambda: not runs(first))
    for begun in tmp_path.glob("*-begun"):
        wait_for(lambda begun=begun: not runs(int(begun.read_text())))


def test_what_died_is_the_cause_of_what_failed_after_it(monkeypatch) -> None:
    """A lost connection was the error of a stage, which was not tried again."""
    workers: list[Stand] = []

    class Stand:
        """Stands in for a process. The first one fails, and the second one has died before."""

        def __init__(self, environment: dict[str, str]):
            self.died = bool(workers)
            self.process = Mock(**{"poll.return_value": -signal.SIGKILL if self.died else None})
            self.pipe, self.theirs = multiprocessing.Pipe()
            workers.append(self)

        def send(self, task: bytes) -> None:
            if not self.died:
                self.theirs.send_bytes(pools.answer(task))

        def receive(self) -> bytes:
            if self.died:
                raise Failure("the worker process died (exit code -9)", passing=True)
            return self.pipe.recv_bytes()

    monkeypatch.setattr(torchrun, "Worker", Stand)
    with pytest.raises(Failure, match="exit code -9") as caught:
        launch(2, worker_task, "raise")
    assert caught.value.passing and len(workers) == 2


@pytest.mark.process
def test_processes_of_two_tasks_at_once_do_not_meet(tmp_path: Path) -> None:
    """Each has a port of its own."""
    with ThreadPoolExecutor(2) as threads:
        folders = [tmp_path / name for name in "ab"]
        for folder in folders:
            folder.mkdir()
        both = [threads.submit(launch, 2, worker_of_ranks, folder, "both") for folder in folders]
        assert [future.result(PATIENCE)[0] for future in both] == ["0", "0"]
    ports = [{(folder / f"both-{rank}-port").read_text() for rank in (0, 1)} for folder in folders]
    assert len(ports[0]) == len(ports[1]) == 1 and ports[0] != ports[1]


@pytest.mark.process
@pytest.mark.parametrize("victim", ["worker", "pool"])
def test_processes_end_with_the_one_that_has_started_them(victim, tmp_path: Path) -> None:
    pool = LocalPool(jobs=1, processes=2)
    future = pool.submit(launch, 2, worker_of_ranks, tmp_path, "waits")
    begun = [tmp_path / f"waits-{rank}-begun" for rank in (0, 1)]
    wait_for(lambda: all(path.exists() for path in begun))
    if victim == "worker":
        pool.workers[0].process.kill()
        with pytest.raises(Failure, match="exit code -9"):
            future.result(PATIENCE)
    closing = threading.Thread(target=pool.close)
    closing.start()
    for path in begun:
        wait_for(lambda path=path: not runs(int(path.read_text())))
    closing.join(PATIENCE)
    assert not closing.is_alive()


def test_each_task_of_a_local_pool_has_cards_of_its_own(monkeypatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1,2,3,4")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 5)
    seen = []
    both_work = threading.Barrier(2)

    class Stand:
        """Stands in for a process. It answers when both have a task."""

        process = Mock(**{"poll.return_value": None})

        def __init__(self, environment: dict[str, str]):
            seen.append(environment["CUDA_VISIBLE_DEVICES"])

        def send(self, task: bytes) -> None:
            self.task = task

        def receive(self) -> bytes:
            both_work.wait(PATIENCE)
            return pools.answer(self.task)

    monkeypatch.setattr(pools, "Worker", Stand)
    with LocalPool(jobs=None, gpu=True, processes=2) as pool:
        assert pool.places == 2
        tasks = [pool.submit(len, "a") for _ in range(2)]
        assert [task.result(PATIENCE) for task in tasks] == [1, 1]
    assert sorted(seen) == ["0,1", "2,3"]
    for ask in (lambda: LocalPool(jobs=1, gpu=True, processes=6), lambda: launch(6, len, "a")):
        with pytest.raises(MaskwiseError, match="processes=6, 5 GPUs"):
            ask()


# Commands under torchrun
# ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "call",
    [
        lambda out: mw.study("quick-start", out=out, texts=["a text"]),
        lambda out: mw.adapt("bundled:encoder", ["a text"], out=out),
        lambda out: mw.finetune("bundled:encoder", {"a": [{"text": "b", "label": 1}]}, out=out),
    ],
    ids=["study", "adapt", "finetune"],
)
def test_torchrun_is_refused_where_stages_start_processes(call, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(MaskwiseError, match=r"WORLD_SIZE=2.*processes=2"):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["pretrain", "learn"])
def test_processes_are_refused_where_torchrun_has_started_them(
    command, tmp_path, monkeypatch, capfd
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    recipe = {"pretrain": "quick-start", "learn": "learn-supervised"}[command]
    assert maskwise(command, recipe, "--processes", 4, "--out", tmp_path / "out") == 2
    said = capfd.readouterr().err
    assert said.count("\n") == 1 and "--processes 4, WORLD_SIZE=2" in said
    assert not (tmp_path / "out").exists()


def test_a_batch_that_cannot_be_divided_is_refused_before_a_study(tmp_path: Path, capfd) -> None:
    recipe = write_inputs(tmp_path)
    asked = ("study", recipe, "--processes", 3, "--out", tmp_path / "out")
    for more in ((), ("--dry-run",)):
        assert maskwise(*asked, *more) == 2
        said = capfd.readouterr().err
        assert said.count("\n") == 1 and "8 for 1 × 3" in said
    assert not (tmp_path / "out").exists()


def fails(folder: Path, errors: list[Exception], first: int) -> tuple[str, int, str]:
    """Run a command that fails on both ranks; on rank ``first``, before the other.

    Returns:
        The error that Python would print with its traceback, the exit code, and what is printed.
    """
    rank = int(os.environ["RANK"])

    def app(**given: Any) -> None:
        if rank != first:
            wait_for((folder / "failed").exists)
        raise errors[rank]

    told = cli.fails_first

    def tells(*, quotes: bool) -> bool:
        answer = told(quotes=quotes)
        (folder / "failed").touch()
        return answer

    cli.app, cli.fails_first = app, tells  # type: ignore[assignment]
    crashed = code = ""
    try:
        cli.main(["pretrain"])
    except SystemExit as end:
        code = end.code
    except Exception as error:
        crashed = repr(error)
    return crashed, code, sys.stderr.getvalue()  # type: ignore[attr-defined, return-value]


BUG, GONE, BAD = ValueError("a bug"), RuntimeError("a peer has gone"), MaskwiseError("bad input")


@pytest.mark.parametrize(
    "errors, first, tells",
    [
        ([BUG, BUG], 0, 0),
        ([BUG, BUG], 1, 1),
        ([GONE, BUG], 1, 1),
    ],
    ids=["alike", "alike-but-later", "a-consequence"],
)
def test_one_rank_prints_the_traceback(errors, first, tells, tmp_path: Path) -> None:
    """All of them did."""
    said = launched(2, fails, tmp_path, errors, first)
    assert said[tells] == (repr(errors[tells]), "", "")
    crashed, code, line = said[1 - tells]
    assert not crashed and code == 1 and line.count("\n") == 1
    assert str(errors[1 - tells]) in line


@pytest.mark.parametrize("error", [BAD, MemoryError("9 GB")], ids=["input", "memory"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_rank_that_fails_first_says_why(error, first, tmp_path: Path) -> None:
    """The first one said it, so what another one lacked was not said."""
    said = launched(2, fails, tmp_path, [error, error], first)
    assert [code for _, code, _ in said] == [2, 2]
    assert str(error) in said[first][2] and not said[1 - first][2]


def test_what_quotes_another_rank_does_not_hide_its_traceback(tmp_path: Path) -> None:
    errors = [OtherProcessFailed("process 1 failed", got=repr(BUG)), BUG]
    said = launched(2, fails, tmp_path, errors, 0)
    assert said == [("", 2, ""), (repr(BUG), "", "")]


# Whole studies, which train models
# ------------------------------------------------------------------------------------------------

SLOW = pytest.mark.slow
RATES = ("hidden_dropout_prob", "attention_probs_dropout_prob")
SMALL = {
    "study.seeds": 1,
    "training.steps": 20,
    # Dropout differs between processes.
    **{f"model.settings.{rate}": 0.0 for rate in RATES},
}


def losses(out: Path) -> list[float]:
    return [line["value"] for line in records_of(out, "heldout")]


def trainings(out: Path) -> dict[str, Any]:
    return {path.parent.name: load_json(path) for path in out.glob("stages/pretrain-*/done.json")}


def processes(out: Path) -> list[int]:
    return [result.get("processes", 1) for result in trainings(out).values()]


@SLOW
@pytest.mark.process
def test_two_processes_train_the_models_of_a_study_as_one_does(tmp_path: Path) -> None:
    """Two stages at once, with two processes each."""
    recipe = str(write_inputs(tmp_path / "inputs"))
    one = mw.study(recipe, out=tmp_path / "one", overrides=SMALL, jobs=2)
    two = mw.study(recipe, out=tmp_path / "two", overrides=SMALL, jobs=2, processes=2)
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), abs=1e-5)
    assert trainings(tmp_path / "one").keys() == trainings(tmp_path / "two").keys()
    assert processes(tmp_path / "one") == [1, 1] and processes(tmp_path / "two") == [2, 2]
    assert [row["verdict"] for row in two.contrasts] == [row["verdict"] for row in one.contrasts]
    others = [load_json(path) for path in (tmp_path / "two").glob("stages/*-*/done.json")]
    assert sum("processes" in each for each in others) == 2, "other stages need one process"
    # The number of processes is no part of a study.
    before = (tmp_path / "two" / "records.jsonl").read_bytes()
    again = mw.study(recipe, out=tmp_path / "two", overrides=SMALL)
    assert str(again) == str(two) and (tmp_path / "two" / "records.jsonl").read_bytes() == before


@SLOW
@pytest.mark.process
def test_a_training_that_fails_in_all_processes_leaves_the_other_runs(tmp_path: Path) -> None:
    recipe = str(write_inputs(tmp_path / "inputs"))
    bad = {"study.arms.bad": {"training.learning_rate": 1e30, "training.clip": 0}, "tasks": []}
    result = mw.study(recipe, out=tmp_path / "out", overrides=SMALL | bad, processes=2)
    [failure] = result.failures
    assert failure["arm"] == "bad" and "not finite" in failure["error"]
    trained = {line["arm"] for line in records_of(tmp_path / "out", "heldout")}
    assert trained == {"token-15", "words-30"} and processes(tmp_path / "out") == [2, 2]


LONG = ("study.seeds=1", "training.steps=200", "training.save_every=150", "tasks=[]", "--jobs", 1)


def trained_steps(out: Path) -> list[list[int]]:
    found = []
    for path in sorted(out.glob("stages/pretrain-*/metrics.jsonl")):
        lines = [line for line in read_lines(path) if line["kind"] == "train"]
        found.append([line["step"] for line in lines])
    return found


def begun(out: Path) -> None:
    """Wait until a model trains."""
    wait_for(lambda: any(len(steps) > 5 for steps in trained_steps(out)))


@SLOW
@pytest.mark.process
def test_a_study_that_is_told_to_end_goes_on_with_another_number_of_processes(
    tmp_path: Path,
) -> None:
    recipe, out = write_inputs(tmp_path / "inputs"), tmp_path / "out"
    asked = ("study", recipe, *LONG, "--json", "--out", out)
    run = start(*asked, "--processes", 2)
    begun(out)
    [worker] = workers(run.pid)
    ranks = workers(worker)
    assert len(ranks) == 2
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 143 and err.count("ended by SIGTERM; finished stages") == 1, err
    assert not any(map(runs, ranks))
    [state] = out.glob("stages/pretrain-*/resume/step-*")
    assert state.name != "step-00000150" and not list(out.rglob("*.partial"))
    run = start(*asked)
    said, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    assert not json.loads(said)["failures"]
    assert trained_steps(out) == [list(range(5, 201, 5))] * 2 and processes(out) == [1, 1]


@SLOW
@pytest.mark.process
def test_a_killed_process_ends_the_other_and_the_stage_is_tried_again(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path / "inputs")
    asked = ("study", recipe, *LONG, "training.save_every=5", "--processes", 2, "--out")
    assert maskwise(*asked, tmp_path / "whole") == 0
    run = start(*asked, tmp_path / "out")
    begun(tmp_path / "out")
    [worker] = workers(run.pid)
    killed, other = workers(worker)
    os.kill(killed, signal.SIGKILL)
    wait_for(lambda: not runs(other))
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    assert "exit code -9); trying again (1 of 2)" in err
    assert losses(tmp_path / "out") == losses(tmp_path / "whole")
    assert processes(tmp_path / "out") == [2, 2]


@SLOW
@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGUSR1, signal.SIGKILL])
def test_pretrain_starts_two_processes_and_resumes(number, tmp_path: Path) -> None:
    """Ctrl-C and signals of Slurm reach the command, or all of its processes."""
    recipe, out = write_inputs(tmp_path / "inputs"), tmp_path / "out"
    asked = ("pretrain", recipe, "training.steps=200", "training.save_every=150", "--processes", 2)
    run = start(*asked, "--out", out)
    wait_for(lambda: any(len(read_lines(path)) > 5 for path in out.rglob("metrics.jsonl")))
    ranks = workers(run.pid)
    if number == signal.SIGKILL:
        os.kill(ranks[1], number)
        _, err = run.communicate(timeout=PATIENCE)
        assert run.returncode == 2 and err.count("\n") == 1
        assert "exit code -9); the same call resumes" in err
    else:
        os.killpg(run.pid, number)
        _, err = run.communicate(timeout=PATIENCE)
        assert run.returncode == 128 + number, err
        assert list(out.rglob("resume/step-*")), "a state was saved"
    assert len(ranks) == 2 and not any(map(runs, ranks))
    assert maskwise(*asked, "--out", out) == 0
    assert load_json(out / "done.json")["processes"] == 2
    steps = [line["step"] for line in read_lines(out / "metrics.jsonl") if line["kind"] == "train"]
    assert steps == list(range(5, 201, 5))


@SLOW
@pytest.mark.process
@pytest.mark.parametrize("where", ["ray", "submitit"])
def test_stages_elsewhere_start_two_processes(where, tmp_path: Path, monkeypatch) -> None:
    recipe = str(write_inputs(tmp_path / "inputs"))
    given: dict[str, Any] = {"overrides": SMALL | {"tasks": []}, "processes": 2}
    if where == "ray":
        pytest.importorskip("ray")
        monkeypatch.setenv("RAY_ADDRESS", "local")
        given["engine"] = "ray"
    else:
        submitit = pytest.importorskip("submitit")
        given["executor"] = submitit.AutoExecutor(tmp_path / "logs", cluster="local")
        given["executor"].update_parameters(timeout_min=10)
        given["jobs"] = 2
    result = mw.study(recipe, out=tmp_path / "out", **given)
    assert not result.failures and processes(tmp_path / "out") == [2, 2]


def test_a_stage_on_ray_asks_for_all_its_cores_and_cards(monkeypatch) -> None:
    asked = []

    def remote(**options: Any) -> Callable[..., Any]:
        asked.append((options["num_cpus"], options["num_gpus"]))
        return lambda function: SimpleNamespace(remote=function)

    # Two nodes with four GPUs each.
    node = {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0}}
    ray = SimpleNamespace(
        is_initialized=lambda: True,
        cluster_resources=lambda: {"CPU": 16.0, "GPU": 8.0},
        nodes=lambda: [node, node],
        remote=remote,
    )
    monkeypatch.setattr(pools, "_quiet_ray", lambda: ray)
    assert pools.RayPool(jobs=None, gpu=True, processes=4).places == 2
    assert asked == [(4, 4)]
    with pytest.raises(MaskwiseError, match="processes=8, at most 4 GPU"):
        pools.RayPool(jobs=None, gpu=True, processes=8)
