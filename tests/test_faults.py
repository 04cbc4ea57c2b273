"""What can go wrong while a model trains: signals, damaged files, a full disk, losses that are not
finite, two runs.
"""

from __future__ import annotations

import math
import os
import re
import resource
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from maskwise.base.errors import MaskwiseError
from maskwise.base.folders import claim, damage, write_folder
from maskwise.base.signals import Asked
from maskwise.masking import Masker
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Document, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, loop, train
from maskwise.training import checkpoint as states_file
from maskwise.training import log as log_file
from maskwise.training.ranks import Ranks
from processes import forked, two_ranks, wait_for
from test_training import DATA, Unmasked, lines, run, same, settings
from tiny import read_lines
from training_tools import model, tokenizer

HOW: dict[str, Any] = {"log_every": 3, "save_every": 3}


def states(folder: Path) -> list[int]:
    return [int(path.name[5:]) for path in sorted((folder / "resume").glob("step-*"))]


# --- signals


def trained(
    folder: Path | None,
    *,
    stop: int = 0,
    number: int = signal.SIGTERM,
    **more: Any,
) -> tuple[Any, dict[str, Any]]:
    """Train, and get a signal in the evaluation of the step ``stop``."""
    asked: list[int] = []

    def evaluate(done: int, _: Ranks) -> list[dict[str, Any]]:
        asked.append(done)
        if done == stop:
            signal.raise_signal(number)
        return [{"masks": "token", "loss": 1.0}]

    chosen = settings(**{**HOW, "eval_every": 1, **more})
    objective = MaskedLanguageModelling(model("bert"))
    source = MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), chosen)
    done = train(objective, source, chosen, folder=folder, evaluate=evaluate)
    return objective.model, {**done, "evaluated": asked}


def signalled(folder: Path | None, step: int, number: int, **more: Any) -> object:
    """The exit code of a training that gets a signal."""
    with pytest.raises(SystemExit) as end:
        trained(folder, stop=step, number=number, **more)
    return end.value.code


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_saves_a_state_at_the_end_of_the_step(
    number: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """After every step in turn, also between two lines of metrics and after the last: it goes on
    bit for bit.
    """
    before = signal.getsignal(number)
    whole, facts = trained(tmp_path / "whole")
    for step in range(1, 13) if number == signal.SIGTERM else (4,):
        folder = tmp_path / str(step)
        assert signalled(folder, step, number) == 128 + number
        assert states(folder)[-1] == step
        said = capsys.readouterr().err
        assert (
            f"{signal.Signals(number).name}: saved the state of step {step} in {folder}/resume"
            in said
        )
        assert said.count("\n") == 1
        resumed, again = trained(folder)
        assert again["resumed_at"] == step and same(whole, resumed), step
        assert again["evaluated"] == ([12] if step == 12 else list(range(step + 1, 13)))
        assert lines(folder) == lines(tmp_path / "whole"), step
        for name in ("loss", "tokens", "targets"):
            assert again[name] == facts[name]
    assert signal.getsignal(number) == before


def test_a_signal_saves_a_state_although_none_is_saved_otherwise(tmp_path: Path) -> None:
    """A job on a cluster reached its time limit, and its run began again."""
    whole, facts = trained(tmp_path / "whole", save_every=0)
    assert not (tmp_path / "whole" / "resume").exists()
    cut = tmp_path / "cut"
    assert signalled(cut, 2, signal.SIGTERM, save_every=0) == 143
    assert states(cut) == [2]
    resumed, again = trained(cut, save_every=0)
    assert again["resumed_at"] == 2 and same(whole, resumed)
    assert lines(cut) == lines(tmp_path / "whole") and again["loss"] == facts["loss"]


def test_a_signal_ends_a_training_that_may_save_no_state(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert signalled(None, step=2, number=signal.SIGTERM) == 143
    assert "SIGTERM: ended at step 2 without a state" in capsys.readouterr().err


def test_a_signal_while_a_state_is_written_leaves_whole_states(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, _ = trained(tmp_path / "whole")

    def kill_and_write(folder: Path, fill: Callable[[Path], object]) -> None:
        def interrupted(target: Path) -> None:
            fill(target)
            os.kill(os.getpid(), signal.SIGTERM)

        write_folder(folder, interrupted if folder.name.endswith("6") else fill)

    monkeypatch.setattr(states_file, "write_folder", kill_and_write)
    with pytest.raises(SystemExit) as end:
        trained(tmp_path / "cut")
    # The training goes on while the state of step 6 is written, by how many steps is not known.
    assert end.value.code == 143 and states(tmp_path / "cut")[0] >= 3
    assert all(damage(path) is None for path in (tmp_path / "cut" / "resume").iterdir())
    monkeypatch.undo()
    assert same(whole, trained(tmp_path / "cut")[0]) and lines(tmp_path / "cut") == lines(
        tmp_path / "whole"
    )


def test_a_signal_that_nobody_served_comes_again() -> None:
    heard: list[int] = []
    before = signal.signal(signal.SIGUSR1, lambda number, frame: heard.append(number))
    try:
        with Asked() as asked:
            signal.raise_signal(signal.SIGUSR1)
            assert asked.number == signal.SIGUSR1 and not heard
        assert heard == [signal.SIGUSR1]
    finally:
        signal.signal(signal.SIGUSR1, before)


# --- states


@pytest.mark.parametrize("keep", [1, 3])
def test_the_newest_whole_states_are_kept(keep: int, tmp_path: Path) -> None:
    run(tmp_path, save_every=2, eval_every=0, keep=keep)
    assert states(tmp_path) == [2, 4, 6, 8, 10][-keep:]
    for path in (tmp_path / "resume").glob("step-*"):
        (path / "state.json").unlink()
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, save_every=2, keep=keep, stop=5)
    assert states(tmp_path) == [2, 4][-keep:]
    assert run(tmp_path, save_every=2, keep=keep)[1]["resumed_at"] == 4


class Clock:
    """In place of the module ``time``: every batch takes 100 seconds, but not while a state is
    saved, because a thread makes the next batch at the same time.
    """

    def __init__(self) -> None:
        self.now = 0.0
        self.stands = threading.Lock()

    def monotonic(self) -> float:
        return self.now


class Slow(Masker):
    clock = Clock()

    def __call__(self, rows: Any, **more: Any) -> Any:
        with Slow.clock.stands:
            Slow.clock.now += 100.0
        return super().__call__(rows, **more)


def slowly(folder: Path, saving: float, **more: Any) -> Any:
    """Train without ``save_every``, where saving a state takes so many seconds."""

    def save(states: states_file.States, *given: Any) -> None:
        with Slow.clock.stands:
            plain(states, *given)
            states.wait()

    def write(folder: Path, fill: Callable[[Path], object]) -> None:
        Slow.clock.now += saving
        write_folder(folder, fill)

    plain = states_file.States.save
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Slow, "clock", Clock())
        patch.setattr(states_file, "time", Slow.clock)
        patch.setattr(states_file, "write_folder", write)
        patch.setattr(states_file.States, "save", save)
        masker = Slow(tokenizer(), policy="whole-word", ratio="linear(0.4, 0.2)", seed=3)
        return run(folder, masker=masker, **{"steps": 30, "eval_every": 0, "keep": 9, **more})


@pytest.mark.parametrize(
    ("saving", "saved"), [(0.0, [6, 12, 18, 24]), (9.0, [6, 15, 24]), (20.0, [6, 26])]
)
def test_states_are_saved_by_the_clock_and_change_nothing(
    saving: float, saved: list[int], tmp_path: Path
) -> None:
    """Every ten minutes, and in a hundredth of the time."""
    whole, _ = slowly(tmp_path / "none", saving, save_every=0)
    assert not (tmp_path / "none" / "resume").exists()
    timed, _ = slowly(tmp_path / "timed", saving)
    assert states(tmp_path / "timed") == saved
    assert same(whole, timed) and lines(tmp_path / "none") == lines(tmp_path / "timed")


def test_a_run_that_is_killed_goes_on_from_the_state_of_the_clock(tmp_path: Path) -> None:
    whole, _ = slowly(tmp_path / "whole", 0.0)
    with pytest.raises(KeyboardInterrupt):
        slowly(tmp_path / "cut", 0.0, eval_every=1, stop=9)
    assert states(tmp_path / "cut") == [6]
    resumed, facts = slowly(tmp_path / "cut", 0.0)
    assert facts["resumed_at"] == 6 and same(whole, resumed)


def test_training_goes_on_while_a_state_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of step 3 is not written before step 5 is done, and holds the weights of step 3."""
    whole, _ = run(tmp_path / "whole", **HOW)
    go_on, writing = threading.Event(), []

    def late(folder: Path, fill: Callable[[Path], object]) -> None:
        writing.append(folder.name)
        assert len(writing) == 1, "one at a time"
        assert go_on.wait(60)
        write_folder(folder, fill)
        writing.remove(folder.name)

    class Watched(Masker):
        def __call__(self, rows: Any, *, step: int = 0, **more: Any) -> Any:
            if step == 5:
                go_on.set()
            return super().__call__(rows, step=step, **more)

    monkeypatch.setattr(states_file, "write_folder", late)
    watched = Watched(tokenizer(), policy="whole-word", ratio="linear(0.4, 0.2)", seed=3)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "cut", stop=8, masker=watched, **HOW)
    assert states(tmp_path / "cut") == [3, 6]  # the end waits for what is being written
    monkeypatch.undo()
    (tmp_path / "cut" / "resume" / "step-00000006" / "model.safetensors").unlink()
    resumed, facts = run(tmp_path / "cut", **HOW)
    assert facts["resumed_at"] == 3 and same(whole, resumed)


FILES = ("model.safetensors", "optimizers.safetensors", "state.json", "manifest.json")


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("how", ["cut", "flipped", "gone"])
def test_damaged_files_of_a_state_are_seen(
    how: str, file: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, stop=7, **HOW)
    path = tmp_path / "resume" / "step-00000006" / file
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0x40
    path.write_bytes(content[: len(content) // 2] if how == "cut" else content)
    if how == "gone":
        path.unlink()
    assert run(tmp_path, **HOW)[1]["resumed_at"] == 3
    said = capsys.readouterr().err
    assert re.search(
        r"skipping .*step-00000006: (\S+ is (damaged|missing)|no readable manifest)", said
    )


# --- not finite


class Poisonous(Masker):
    """A masker of whose batches some spoil the loss."""

    poisoned: tuple[int, ...] = ()

    def __call__(self, rows: Any, *, step: int = 0, **more: Any) -> Any:
        batch = super().__call__(rows, step=step, **more)
        batch.objective = "spoiled" if step in self.poisoned else ""  # a field, which copies keep
        return batch


class Spoiled(MaskedLanguageModelling):
    def forward(self, batch: Any) -> Any:
        outcome = super().forward(batch)
        return outcome._replace(total=outcome.total * math.nan) if batch.objective else outcome


def poisoned(
    folder: Path | None, spoiled: tuple[int, ...], **more: Any
) -> tuple[Any, dict[str, Any]]:
    """Train; the loss of the batches of some steps (counted from 0) is not finite."""
    masker = Poisonous(tokenizer(), ratio=0.3)
    masker.poisoned = spoiled
    chosen = settings(**{"log_every": 4, **more})
    objective = Spoiled(model("bert", hidden_dropout_prob=0.1))
    found = train(objective, MaskedSource(DATA, masker, chosen), chosen, folder=folder)
    return objective.model, found


def without(left_out: tuple[int, ...], **more: Any) -> tuple[Any, dict[str, Any]]:
    """Model and facts of a training in which some steps have no target, and so change nothing."""
    chosen = settings(**{"log_every": 4, **more})
    objective = MaskedLanguageModelling(model("bert", hidden_dropout_prob=0.1))
    source = MaskedSource(DATA, Unmasked(lambda step: step in left_out), chosen)
    return objective.model, train(objective, source, chosen)


@pytest.mark.parametrize("kept", [True, False])
def test_stop_names_the_step_and_what_to_lower(kept: bool, tmp_path: Path) -> None:
    """Also where it is seen some steps later."""
    with pytest.raises(MaskwiseError) as error:
        poisoned(tmp_path if kept else None, (5,), save_every=4 * kept)
    found = (error.value.what, str(error.value.got))
    assert found == ("the loss is not finite at step 6", "nan")
    advice = "lower the learning rate (0.00175 at this step), or set training.on_nan: skip"
    assert error.value.do == advice and states(tmp_path) == [4] * kept


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_skip_leaves_updates_out_and_counts_them(optimizer: str, tmp_path: Path) -> None:
    found, done = poisoned(tmp_path, (0, 5, 6), on_nan="skip", optimizer=optimizer)
    other, facts = without((0, 5, 6), optimizer=optimizer)
    assert same(found, other)
    assert [done[name] for name in ("loss", "targets")] == [
        facts[name] for name in ("loss", "targets")
    ]
    skipped = [line["skipped"] for line in read_lines(tmp_path / "metrics.jsonl")]
    assert skipped == [1, 3, 3] and math.isfinite(done["loss"])
    plain, spared = (
        poisoned(None, (), on_nan=how, optimizer=optimizer)[0] for how in ("stop", "skip")
    )
    assert same(plain, spared)


def test_a_model_that_gives_nothing_finite_any_more_is_not_skipped_for_ever(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(log_file, "MOST_SKIPPED", 3)
    poisoned(None, (1, 2, 3, 5, 6, 7), on_nan="skip")
    with pytest.raises(MaskwiseError, match="not finite at step 8, after 3 updates") as error:
        poisoned(None, (4, 5, 6, 7), on_nan="skip")
    # What is set already is no advice.
    assert "skip" not in str(error.value.do)


# --- two runs in one folder


def test_two_runs_in_one_folder_are_refused_and_a_dead_one_s_lock_is_taken_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("maskwise.base.folders.RELEASE_SECONDS", 0.1)

    def hold() -> None:
        with claim(tmp_path / loop.LOCK, "another run is training here"):
            (tmp_path / "held").touch()
            signal.pause()

    holder = os.fork()
    if not holder:
        hold()
        os._exit(0)
    try:
        wait_for((tmp_path / "held").exists)
        with pytest.raises(
            MaskwiseError,
            match=rf"^another run is training in {tmp_path}; got process {holder} on ",
        ):
            run(tmp_path)
        assert not (tmp_path / "metrics.jsonl").exists()
    finally:
        os.kill(holder, signal.SIGKILL)
        os.waitpid(holder, 0)
    assert run(tmp_path)[1]["steps"] == 12


# --- a full disk


def on_a_full_disk(folder: Path, size: int, more: dict[str, Any]) -> str:
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))
    try:
        run(folder, **more)
    except MaskwiseError as error:
        return str(error)
    return "written"


@pytest.mark.parametrize(
    "size",
    [700, *(pytest.param(size, marks=pytest.mark.slow) for size in (0, 100, 1400))],
)
def test_metrics_on_a_full_disk_are_one_line(size: int, tmp_path: Path) -> None:
    """The limit is met in the middle of a line, which a resumed run drops."""
    said = forked(on_a_full_disk, tmp_path, size, {"eval_every": 0, "log_every": 1})()
    assert re.fullmatch("cannot write .*metrics.jsonl; got File too large.*", said)
    assert run(tmp_path, log_every=1)[1]["steps"] == 12 and len(lines(tmp_path)) == 24


def columns_on_a_full_disk(folder: Path) -> str:
    """The columns of a short text fit in a file's buffer, which is written when it is closed."""
    tokenizer = train_tokenizer(["the cat sat on the mat"] * 9, vocab_size=64)
    tokens = list(tokenise([Document("a", "the cat sat " * 20)], tokenizer))
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, resource.RLIM_INFINITY))
    try:
        read_pieces(tokens, tokenizer=tokenizer, length=16, out=folder / "pieces")
    except MaskwiseError as error:
        return str(error)
    return "written"


def test_short_columns_on_a_full_disk_are_not_lost_in_silence(tmp_path: Path) -> None:
    said = forked(columns_on_a_full_disk, tmp_path)()
    assert said.startswith(f"cannot write {tmp_path / 'pieces'}; got File too large")


# --- another number of processes


def on_two_ranks(folder: Path, stop: int | None) -> None:
    how = {
        "dropout": 0.0,
        "masker": Masker(tokenizer(), ratio=0.3),
        "log_every": 2,
        "save_every": 2,
    }
    try:
        run(folder, stop=stop, **how)
    except KeyboardInterrupt:
        assert stop


@pytest.mark.slow
def test_from_two_processes_to_one_and_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    how: dict[str, Any] = {
        "dropout": 0.0,
        "masker": Masker(tokenizer(), ratio=0.3),
        "log_every": 2,
        "save_every": 2,
    }
    run(tmp_path / "one", **how)
    two_ranks(on_two_ranks, tmp_path / "moved", 5)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "moved", stop=9, **how)
    assert (
        "with processes 1 (was 2): results differ by rounding and dropout"
        in capsys.readouterr().err
    )
    two_ranks(on_two_ranks, tmp_path / "moved", None)
    one, moved = lines(tmp_path / "one"), lines(tmp_path / "moved")
    for a, b in zip(one, moved, strict=True):
        # counts, which the masks make, are the same; losses are, to rounding
        for key, value in a.items():
            assert value == (
                pytest.approx(b[key], rel=1e-4) if isinstance(value, float) else b[key]
            ), (
                key,
                a,
                b,
            )


def signalled_rank(folder: Path) -> None:
    """Rank 1 alone gets the signal; both end at the same step."""

    def evaluate(done: int, _: Ranks) -> list[dict[str, Any]]:
        if done == 4 and torch.distributed.get_rank():
            signal.raise_signal(signal.SIGTERM)
        return []

    chosen = settings(**{**HOW, "eval_every": 1})
    objective = MaskedLanguageModelling(model("bert"))
    source = MaskedSource(DATA, Masker(tokenizer(), ratio=0.3), chosen)
    loop.leave = lambda: None  # the test does it
    with pytest.raises(SystemExit) as end:
        train(objective, source, chosen, folder=folder, evaluate=evaluate)
    assert end.value.code == 143


@pytest.mark.slow
def test_all_ranks_end_at_the_same_step(tmp_path: Path) -> None:
    two_ranks(signalled_rank, tmp_path)
    # The signal comes after step 4; at most two steps are made ahead of it.
    first, last = states(tmp_path)
    assert first == 3 and last in (5, 6)
    assert trained(tmp_path)[1]["resumed_at"] == last
