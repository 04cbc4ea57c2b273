"""Calls whose tasks the processes of torchrun run: each a task of its own, or one task together."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import maskwise as mw
from maskwise import cli, jobs, torchrun
from maskwise.constants import ranks_here
from maskwise.errors import MaskwiseError, OtherProcessFailed
from maskwise.jobs import Failure
from maskwise.printing import LOGGER
from maskwise.torchrun import led, rank_pool, ranks_together
from processes import PATIENCE, launched, runs, wait_for, worker_of_ranks
from tiny import load_json, maskwise, read_lines, records_of, write_inputs


def called(work: Callable[..., Any], *arguments: Any) -> Any:
    """What a call gives on this rank: its result, or the error."""
    jobs.PATIENCE_SECONDS = torchrun.PATIENCE_SECONDS = 5.0
    try:
        return led(work)(*arguments)
    except (MaskwiseError, SystemExit) as error:
        return repr(error)


def result_of(pool: Any, future: Any) -> Any:
    wait_for(lambda: pool.ended([future], timeout=0.1))
    return future.result()


def works(folder: Path) -> dict[str, Any]:
    """Tasks of one process and of all, one after the other, as a study has them."""
    assert ranks_here() == 1 and ranks_together() == 2, "the first rank seems to be alone"
    found: dict[str, Any] = {}
    pool = rank_pool()
    assert pool is not None and pool.places == 2
    with pool:
        alone = [pool.submit(worker_of_ranks, folder, "alone") for _ in range(3)]
        both = pool.submit_together(worker_of_ranks, folder, "both")
        assert pool.places == 0, "nothing else begins before all ranks have trained"
        found["both"] = result_of(pool, both)[0]
        assert all(future.done() for future in alone)
        found["alone"] = [future.result()[0] for future in alone]
        found["processes"] = len({future.result()[1] for future in alone})
        for what in ("fails", "dies"):
            with pytest.raises(Failure) as caught:
                result_of(pool, pool.submit_together(worker_of_ranks, folder, what))
            found[what] = caught.value.error, caught.value.passing
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            for _ in range(2):
                result_of(pool, pool.submit_together(worker_of_ranks, folder, "warns"))
        found["warned"] = [str(each.message) for each in warned]
        found["after"] = result_of(pool, pool.submit_together(worker_of_ranks, folder, "after"))[0]
    return found


@pytest.mark.slow
@pytest.mark.process
def test_ranks_run_tasks_of_their_own_and_together_and_none_waits_for_one_that_fails(
    tmp_path: Path,
) -> None:
    one, other = launched(2, called, works, tmp_path)
    assert one == other, "every rank gets the result"
    assert one["both"] == "0" and one["after"] == "0" and one["alone"] == ["alone"] * 3
    assert one["processes"] == 2, "a process runs several tasks"
    assert one["warned"] == ["rows are truncated"], "though one rank ends a second later"
    for what in ("both", "fails", "dies", "warns", "after"):
        assert [(tmp_path / f"{what}-{rank}").read_text() for rank in (0, 1)] == ["2", "2"]
    assert (tmp_path / "alone-alone").read_text() == ""
    assert "only here" in one["fails"][0] and one["fails"][1] is False
    assert "exit code 7" in one["dies"][0] and one["dies"][1] is True
    for begun in tmp_path.glob("*-begun"):
        wait_for(lambda begun=begun: not runs(int(begun.read_text())))


def refuses(folder: Path) -> None:
    for options in ({"jobs": 3}, {"engine": "ray"}):
        with pytest.raises(MaskwiseError):
            rank_pool(**options)
    raise MaskwiseError("a file is missing", got=str(folder), do="give another")


def is_interrupted(folder: Path) -> None:
    pool = rank_pool()
    assert pool is not None
    with pool:
        future = pool.submit_together(worker_of_ranks, folder, "waits")
        wait_for(lambda: all((folder / f"waits-{rank}-begun").exists() for rank in (0, 1)))
        assert not pool.ended([future], timeout=0)
        sys.exit(143)


@pytest.mark.process
def test_a_call_ends_on_all_ranks_as_on_the_first(tmp_path: Path) -> None:
    said = launched(2, called, refuses, tmp_path)
    assert len({*said}) == 1 and str(tmp_path) in said[0]
    assert launched(2, called, is_interrupted, tmp_path) == ["SystemExit(143)"] * 2
    for rank in (0, 1):
        begun = tmp_path / f"waits-{rank}-begun"
        wait_for(lambda begun=begun: not runs(int(begun.read_text())))


def fails(folder: Path, command: str, errors: list[Exception], first: int) -> tuple[str, int, str]:
    """Run a command that fails on both ranks; on rank ``first``, before the other.

    Returns:
        The error that Python would print with its traceback, the exit code, and what is printed.
    """
    rank = int(os.environ["RANK"])

    def app(**given: Any) -> None:
        if command == "pretrain" and rank != first:
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
        cli.main([command])
    except SystemExit as end:
        code = end.code
    except Exception as error:
        crashed = repr(error)
    return crashed, code, sys.stderr.getvalue()  # type: ignore[attr-defined, return-value]


BUG, GONE, BAD = ValueError("a bug"), RuntimeError("a peer has gone"), MaskwiseError("bad input")


@pytest.mark.parametrize(
    "command, errors, first, tells",
    [
        ("pretrain", [BUG, BUG], 0, 0),
        ("pretrain", [BUG, BUG], 1, 1),
        ("pretrain", [GONE, BUG], 1, 1),
        ("study", [BUG, BUG], 0, 0),
    ],
    ids=["alike", "alike-but-later", "a-consequence", "led"],
)
def test_one_rank_prints_the_traceback(command, errors, first, tells, tmp_path: Path) -> None:
    """All of them did."""
    said = launched(2, fails, tmp_path, command, errors, first)
    assert said[tells] == (repr(errors[tells]), "", "")
    crashed, code, line = said[1 - tells]
    assert not crashed and code == 1 and line.count("\n") == 1
    assert str(errors[1 - tells]) in line


@pytest.mark.parametrize("error", [BAD, MemoryError("9 GB")], ids=["input", "memory"])
@pytest.mark.parametrize("first", [0, 1])
def test_the_rank_that_fails_first_says_why(error, first, tmp_path: Path) -> None:
    """The first one said it, so what another one lacked was not said."""
    said = launched(2, fails, tmp_path, "pretrain", [error, error], first)
    assert [code for _, code, _ in said] == [2, 2]
    assert str(error) in said[first][2] and not said[1 - first][2]


def test_what_quotes_another_rank_does_not_hide_its_traceback(tmp_path: Path) -> None:
    errors = [OtherProcessFailed("process 1 failed", got=repr(BUG)), BUG]
    said = launched(2, fails, tmp_path, "pretrain", errors, 0)
    assert said == [("", 2, ""), (repr(BUG), "", "")]


def twice(folder: Path) -> list[Any]:
    """A script that calls two functions, one after the other."""
    first = called(works, folder)
    return [first["both"], called(lambda: ranks_together()), ranks_here()]


@pytest.mark.process
@pytest.mark.slow
def test_a_script_calls_several_functions(tmp_path: Path) -> None:
    assert launched(2, twice, tmp_path) == [["0", 2, 2]] * 2


# Whole commands, which train models
# ------------------------------------------------------------------------------------------------

SMALL = {"training.steps": 20, "study.seeds": 1}
SLOW = pytest.mark.slow


def studied(recipe: Path, out: Path, changes: dict[str, Any]) -> tuple[str, list[str]]:
    result = mw.study(str(recipe), out=out, overrides=SMALL | changes)
    return str(result), [str(failure["error"]) for failure in result.failures]


@SLOW
@pytest.mark.process
def test_a_training_that_fails_on_all_ranks_leaves_the_other_runs(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path / "inputs")
    bad = {"study.arms.bad": {"training.learning_rate": 1e30, "training.clip": 0}}
    said = launched(2, studied, recipe, tmp_path / "out", {"tasks": [], **bad})
    assert said[0] == said[1] and len(said[0][1]) == 1 and "not finite" in said[0][1][0]
    trained = {line["arm"] for line in records_of(tmp_path / "out", "heldout")}
    assert trained == {"token-15", "words-30"}
    # Without torchrun, the study is found as torchrun has left it: only the failed run is repeated.
    done = sorted((tmp_path / "out").glob("stages/*/done.json"))
    before = [path.read_bytes() for path in done]
    assert [load_json(path).get("processes") for path in done if "pretrain" in str(path)] == [2, 2]
    alone = studied(recipe, tmp_path / "out", {"tasks": [], **bad})
    assert alone == said[0] and [path.read_bytes() for path in done] == before


def adapted(folder: Path, out: Path) -> list[Any]:
    checkpoint = next((folder / "study").glob("stages/pretrain-*/checkpoint"))
    options: dict[str, Any] = {"overrides": ["finetune.steps=2", "finetune.max_length=32"]}
    tasks = [str(folder / "inputs" / "task.jsonl")]
    result = mw.adapt(
        checkpoint,
        str(folder / "inputs" / "corpus.jsonl"),
        out=out,
        tasks=tasks,
        keep="none",
        steps=2,
        runs=1,
        **options,
    )
    said: list[str] = []
    monitor = logging.Handler()
    monitor.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    LOGGER.addHandler(monitor)
    records = mw.finetune(
        checkpoint, tasks, out=out / "judged", runs=3, overrides=["max_length=32", "steps=2"]
    )
    LOGGER.removeHandler(monitor)
    return [result.answer, str(result.model), records, [line[:13] for line in said]]


@SLOW
@pytest.mark.process
def test_adapt_and_finetune_give_what_they_give_without_torchrun(tmp_path: Path) -> None:
    recipe = write_inputs(tmp_path / "inputs")
    studied(recipe, tmp_path / "study", {"tasks": []})
    one, other = launched(2, adapted, tmp_path, tmp_path / "two")
    assert one[:3] == other[:3]
    assert "0 of 3 stages" in one[3] and not other[3], "only the first rank shows progress"
    answer, _, records, _ = adapted(tmp_path, tmp_path / "one")
    assert one[0] == answer and Path(one[1]).is_dir() and len(records[0]["fine_tuning"]) == 3
    kept = ("score", "fine_tuning", "dev", "test_items", "made_of")
    assert [one[2][0][key] for key in kept] == [records[0][key] for key in kept]


@SLOW
@pytest.mark.process
def test_a_study_under_torchrun_that_is_told_to_end_goes_on(tmp_path: Path) -> None:
    """Two arms, one seed: trained by two ranks together, and measured by one rank each."""
    recipe, out = write_inputs(tmp_path / "inputs"), tmp_path / "out"
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", "2", "-m", "maskwise", "study", str(recipe)]
    command += ["study.seeds=1", "training.steps=200", "training.save_every=150", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(
            [*command, "--out", str(out)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def trained() -> list[list[int]]:
        found = []
        for path in sorted(out.glob("stages/pretrain-*/metrics.jsonl")):
            lines = [line for line in read_lines(path) if line["kind"] == "train"]
            found.append([line["step"] for line in lines])
        return found

    run = start()
    wait_for(lambda: any(len(steps) > 5 for steps in trained()))
    run.send_signal(signal.SIGTERM)
    _, err = run.communicate(timeout=PATIENCE)
    assert run.returncode and err.count("ended by SIGTERM; finished stages") == 1, err
    [state] = out.glob("stages/pretrain-*/resume/step-*")
    assert state.name != "step-00000150" and not list(out.rglob("*.partial"))
    run = start()
    said, err = run.communicate(timeout=PATIENCE)
    assert run.returncode == 0, err
    summary = json.loads(said)
    assert {row["arm"] for row in summary["contrasts"]} == {"words-30"}
    assert trained() == [list(range(5, 201, 5))] * 2
    assert (out / "report.html").is_file() and not summary["failures"]
    finetuned = [load_json(path) for path in out.glob("stages/finetune-*/done.json")]
    assert finetuned and not any("processes" in each for each in finetuned)
    # A finished study is only read, also by one process.
    before = (out / "records.jsonl").read_bytes()
    assert maskwise(*command[8:-1], "--out", out) == 0
    assert (out / "records.jsonl").read_bytes() == before
