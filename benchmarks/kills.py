"""Kill trainings at random moments, again and again, and see that nothing is lost and nothing is
left behind.

    python benchmarks/kills.py --kills 200

Every training is ``maskwise pretrain`` of a tiny recipe, text included. It is killed (SIGKILL)
after a random share of the time that it takes, started again by the same command, and so on until
it finishes. Then its checkpoint must be that of an uninterrupted run to the bit, its metrics must
have the same losses, and no half-written file, state or lock may be left. It is done in four ways
in turn:

    plain   one process, states now and then
    saving  a state after every step, so that one is being written at almost any moment
    ranks   two processes, of which one is killed, or both
    stream  the text is read from three shards while it is trained on, and tokenised by a worker,
    which must end too

A run is a copy of this process, which has imported everything: no time goes into imports. About
four seconds a kill on two cores.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import socket
import sys
import tempfile
import time
from pathlib import Path

import maskwise.study.single  # noqa: F401 (what the copies need)
from maskwise.cli import main
from maskwise.folders import damage

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from tiny import read_lines, write_inputs, write_lines

SEEDS = "training.steps=120", "training.log_every=1", "training.eval_every=60"
WAYS = {
    "plain": ("training.save_every=20", "training.keep=2"),
    "saving": ("training.save_every=1", "training.keep=1"),
    "ranks": ("training.save_every=10", "training.keep=3"),
    "stream": (
        "training.save_every=5",
        "corpus.stream=true",
        "corpus.shuffle=0.004",
        "training.workers=1",
    ),
}


def started(arguments: list[str], ranks: int) -> list[int]:
    """Copies of this process that run a command; their numbers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    pids = []
    for rank in range(ranks):
        pid = os.fork()
        if not pid:
            if ranks > 1:
                os.environ |= {
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "WORLD_SIZE": str(ranks),
                }
                os.environ |= {
                    "LOCAL_WORLD_SIZE": str(ranks),
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                }
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            try:
                main(arguments)
            except SystemExit as end:
                os._exit(end.code if isinstance(end.code, int) else 1)
            finally:
                # a rank whose peer is dead raises errors, and must not tidy up what is the parent's
                os._exit(1)
        pids.append(pid)
    return pids


def ended(pids: list[int]) -> bool:
    """Wait for all; whether all of them finished."""
    codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
    return not any(codes)


def losses(out: Path) -> list[tuple[object, ...]]:
    """What metrics say, without times."""
    return [
        (line["kind"], line["step"], line.get("loss")) for line in read_lines(out / "metrics.jsonl")
    ]


def write_shards(inputs: Path) -> Path:
    """The texts in three files."""
    (inputs / "texts").mkdir()
    texts = read_lines(inputs / "corpus.jsonl")
    for number in range(3):
        write_lines(inputs / "texts" / f"{number}.jsonl", texts[20 * number :][:20])
    return inputs / "texts"


def workers_left() -> int:
    """How many workers outlive the processes that they worked for, a few seconds after these are
    gone.
    """
    for _ in range(50):
        left = 0
        for path in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                ours = f"MASKWISE_KILLS={os.getpid()}".encode() in (path / "environ").read_bytes()
                left += ours and b"maskwise.jobs" in (path / "cmdline").read_bytes()
        if not left:
            return 0
        time.sleep(0.2)
    return left


def check(out: Path, whole: Path) -> list[str]:
    """What is wrong with a finished run."""
    wrong = []
    if damage(out / "checkpoint") or any(
        (out / "checkpoint" / name).read_bytes() != (whole / "checkpoint" / name).read_bytes()
        for name in ("model.safetensors", "manifest.json")
    ):
        wrong.append("another checkpoint")
    if losses(out) != losses(whole):
        wrong.append("other metrics")
    known = {str(path.relative_to(whole)) for path in whole.rglob("*")}
    found = {str(path.relative_to(out)) for path in out.rglob("*")}
    return wrong + [f"left behind: {name}" for name in sorted(found - known)]


def trial(way: str, folder: Path, kills: int, draw: random.Random) -> dict[str, object]:
    """Finish runs of one way until there were enough kills."""
    inputs, ranks = write_inputs(folder / "inputs"), 2 if way == "ranks" else 1
    command = ["pretrain", str(inputs), *SEEDS, *WAYS[way], "--json", "--out"]
    if way == "stream":
        command.insert(2, f"corpus.source={write_shards(inputs.parent)}")
    began = time.perf_counter()
    assert ended(started([*command, str(folder / "whole")], ranks)), "the uninterrupted run failed"
    seconds = time.perf_counter() - began
    killed, runs, wrong, starts = 0, 0, list[str](), 0
    while killed < kills or starts:
        out = folder / f"run-{runs}"
        pids, starts = started([*command, str(out)], ranks), starts + 1
        if killed < kills:
            time.sleep(draw.uniform(0.0, 0.7 * seconds))
            victims = [draw.choice(pids)] if ranks > 1 and draw.random() < 0.5 else pids
            for pid in victims:
                os.kill(pid, signal.SIGKILL)
            if victims != pids:  # torchrun ends the others a moment later
                time.sleep(draw.uniform(0.0, 0.3))
                for pid in set(pids) - set(victims):
                    os.kill(pid, signal.SIGKILL)
            killed += 1
            if not ended(pids):
                continue
        elif not ended(pids):
            wrong.append(f"run {runs} does not go on")
            break
        wrong += [f"run {runs}: {what}" for what in check(out, folder / "whole")]
        if left := workers_left():
            wrong.append(f"run {runs}: {left} workers outlive it")
        runs, starts = runs + 1, 0
    return {
        "way": way,
        "kills": killed,
        "runs": runs,
        "seconds_whole": round(seconds, 1),
        "wrong": wrong,
    }


def run() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS))
    asked = parser.parse_args()
    os.environ["MASKWISE_KILLS"] = str(os.getpid())  # by which our workers are told
    draw, bad = random.Random(asked.seed), False
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        for number, way in enumerate(asked.ways):
            share = asked.kills // len(asked.ways) + (number < asked.kills % len(asked.ways))
            result = trial(way, Path(folder) / way, share, draw)
            sys.stdout.write(f"{json.dumps(result)}\n")
            sys.stdout.flush()
            bad = bad or bool(result["wrong"])
    return int(bad)


if __name__ == "__main__":
    sys.exit(run())
