"""Does a command that is killed again and again resume to the result of an uninterrupted one?

    python benchmarks/kills.py [--share 0.1] [--ways single,ranks] [--seed 1] 2> kills.log

Each way is a tiny command. It runs once without interruption. Then it is started, killed (SIGKILL)
at a random moment, started again by the same command, and so on until it ends by itself; then the
next run begins, until there were enough kills. One moment in eight is before the first file is
written, the others lie between this file and the end. A finished run must have the same files as
the uninterrupted one, and in them the same weights, metrics, records and results, but for times. No
process may outlive a kill. What is killed, in turn:

    all            every process
    main           the process that the user started
    worker         a worker of ``maskwise.jobs.pools``, or one of two that it has started to train:
                   the command must go on without a new start
    rank 0, rank 1 one of two processes that train together: the other must end, too

It prints a line for each way: the kills of each kind, what they interrupted, and what was wrong;
the log has a line for each kill. Imports take seconds, so most ways start copies of this process,
which has imported everything; ``single`` and ``torchrun`` start new processes.

    python benchmarks/kills.py --signals 10 [--ways pretrain,study] [--seed 1] 2> signals.log

sends signals that ask a command to end, instead: to each command of ``ASKED_COMMANDS``, each of
SIGTERM, SIGUSR1 and Ctrl-C at ten random moments from the beginning of ``main`` to the usual end,
in turn to the command and to all of its processes. The command must exit with 128 + the number of
the signal (or 0 if it ended before), within five seconds, in few words, without temporary files,
and without a process that outlives it.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from importlib import import_module
from itertools import cycle, product
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, NamedTuple

from command import run

from maskwise.base.errors import require_known

FORK = multiprocessing.get_context("fork")
PATIENCE = 1200.0
"""How many seconds any event may take."""
TINY = [
    *("tokenizer.vocab_size=400", "corpus.length=32", "model.settings.hidden_size=32"),
    "model.settings.intermediate_size=48",
]
TRAINING = [
    *(
        "training.batch_size=8",
        "training.precision=no",
        "training.steps=24",
        "training.log_every=1",
    ),
    *("training.eval_every=6", "evaluation.rows=16"),
]
QUICK = ["pretrain", "quick-start", "corpus.limit=100", "corpus.held_out=0.1", *TINY, *TRAINING]
SUPERVISED = "learning.supervised.training"


class Way(NamedTuple):
    """A command, how often it is killed, and what is killed in turn.

    ``new`` starts a new process each time, and no copy of this process.
    """

    kills: int
    victims: Sequence[str]
    command: Sequence[str]
    new: bool = False
    ranks: int = 1


TUNING = ["--task", "ud-pos(train_rows=40)", "--runs", "2"]
RESUMED = ["--json", "--out", "OUT"]
ASKED_COMMANDS = {
    "pretrain": [*QUICK, *RESUMED],
    "stream": [
        *QUICK[:2],
        *("corpus.source=SHARDS", "corpus.stream=true", "corpus.shuffle=0.01", *TINY, *TRAINING),
        *("training.workers=1", *RESUMED),
    ],
    "study": [
        *("study", *QUICK[1:], "study.seeds=1", "finetune.steps=8"),
        *("study.arms={a: {}, b: {masking.ratio: 0.3}}", "study.contrasts=null"),
        *("tasks=[ud-pos(train_rows=100)]", "study.baseline=null", "study.gate=null"),
        *("finetune.max_length=32", "--jobs", "2", *RESUMED),
    ],
    "learn": [
        *("learn", "learn-supervised", "corpus.limit=100", f"{SUPERVISED}.steps=24"),
        *(f"{SUPERVISED}.batch_size=8", f"{SUPERVISED}.eval_every=6", *RESUMED),
    ],
    "finetune": ["finetune", "bundled:encoder", *TUNING, "precision=no", "steps=8", *RESUMED],
    "adapt": [
        *("adapt", "bundled:encoder", "SHARDS/0.jsonl", *TUNING, "training.precision=no"),
        *("--steps", "4", "finetune.steps=4", "--jobs", "2", *RESUMED),
    ],
    "annotate": [
        *("annotate", "SHARDS", "--with", "words,salient", "--jobs", "2", "--out", "OUT"),
    ],
    "check": ["check", "SHARDS/0.jsonl", "--json"],
    "evaluate": [
        *("evaluate", "bundled:encoder", "--text", "SHARDS/1.jsonl", "--json"),
        *("--with", "heldout"),
    ],
    "export": [
        *("export", "SHARDS", "policy=salient", "--tokenizer", "bundled:encoder"),
        *("--max-length", "48", "--epochs", "0-5", "--out", "OUT"),
    ],
    "inspect": [
        "inspect",
        "SHARDS/2.jsonl",
        "--policy",
        "token,salient",
        "--html",
        "OUT/page.html",
    ],
    "report": ["report", "STUDY", "--html", "OUT/page.html"],
    "convert": ["convert", "OLD", "OUT", "--json"],
    "change": ["change", "bundled:encoder", "OUT", "--with", "trim-tokens('SHARDS/0.jsonl')"],
    "new": ["new", "SHARDS/0.jsonl", "ud-pos", "--out", "OUT/new.yaml"],
    "generate": [
        *("generate", "bundled:encoder", "--prompt", "The [MASK*100]", "--json"),
    ],
}
"""Commands that signals end. STUDY is the folder of the uninterrupted study."""
NUMBERS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
PROMPT = 5.0
"""Seconds from a signal to the end of a command, in which a tiny model also saves its state."""
LONGEST = 30.0
"""A signal comes at most so many seconds after the beginning of a command."""

OF_THE_PROCESS = ("speed", "started", "probe_share", "made")
"""Names of times that do not contain the word seconds, and of what a process found made already."""

WAYS = {
    "single": Way(8, ["all"], [*QUICK, "training.save_every=5"], new=True),
    "saving": Way(17, ["all"], [*QUICK, "training.save_every=1", "training.keep=1"]),
    "stream": Way(
        20,
        ["all", "main", "worker"],
        [
            *QUICK[:2],
            *("corpus.source=SHARDS", "corpus.stream=true", "corpus.shuffle=0.01"),
            *(*TINY, *TRAINING, "training.workers=1", "training.save_every=3"),
        ],
    ),
    "ranks": Way(15, ["rank 0", "rank 1", "all"], [*QUICK, "training.save_every=5"], ranks=2),
    "torchrun": Way(
        5, ["rank 0", "rank 1", "all"], [*QUICK, "training.save_every=5"], new=True, ranks=2
    ),
    "study": Way(
        15,
        ["main", "worker", "all"],
        [
            *("study", *QUICK[1:], "training.save_every=5", "study.seeds=1", "finetune.steps=8"),
            *("study.arms={a: {}, b: {masking.ratio: 0.3}}", "study.contrasts=null"),
            "tasks=[ud-pos(train_rows=100)]",
            *("study.baseline=null", "study.gate=null", "finetune.max_length=32", "--jobs", "2"),
        ],
    ),
    "processes": Way(
        5,
        ["main", "worker", "all"],
        [
            *("study", *QUICK[1:], "training.save_every=5", "study.seeds=1", "tasks=[]"),
            *("study.arms={a: {}, b: {masking.ratio: 0.3}}", "study.contrasts=null"),
            *("study.baseline=null", "study.gate=null", "--jobs", "1", "--processes", "2"),
        ],
    ),
    "supervised": Way(
        5,
        ["all"],
        [
            *("learn", "learn-supervised", "corpus.limit=100", f"{SUPERVISED}.steps=24"),
            *(f"{SUPERVISED}.batch_size=8", f"{SUPERVISED}.log_every=1"),
            *(f"{SUPERVISED}.save_every=2", f"{SUPERVISED}.eval_every=6"),
        ],
    ),
    "meta": Way(
        5,
        ["all"],
        [
            *("learn", "learn-meta", "corpus.limit=100", "learning.meta.steps=8"),
            *("learning.meta.batch_size=8", "learning.meta.eval_every=2"),
        ],
    ),
    "several": Way(
        10,
        ["all"],
        [
            *("pretrain", "mometas", "corpus.limit=100", "corpus.held_out=0.1", *TINY, *TRAINING),
            *("sampler=uniform", "phases.1.sampler=mometas(every=8, rows=4)"),
            # Most kills shall not fall into the annotation of the text.
            *("training.steps=120", "phases.1.training.steps=120", "training.save_every=3"),
        ],
    ),
    "finetune": Way(10, ["all"], ASKED_COMMANDS["finetune"]),
    "adapt": Way(10, ["main", "worker", "all"], ASKED_COMMANDS["adapt"]),
    "export": Way(10, ["all"], [*ASKED_COMMANDS["export"], "--json"]),
    "convert": Way(10, ["all"], ASKED_COMMANDS["convert"]),
}


# Processes


def preload() -> None:
    """Import what commands import, so that copies of this process start at once."""
    names = ["studies.run", "studies.single", "studies.adapt", "learning.lesson", "report.page"]
    names += ["masks.export", "models.convert"]
    for name in (*(f"maskwise.{name}" for name in names), "transformers.models.modernbert"):
        import_module(name)


class Command:
    """A command that runs in a session of its own.

    Attributes:
        mark: what the environment of the processes that it starts contains.
        log: the file with what it says.
    """

    def __init__(self, way: Way, inputs: Path, out: Path):
        self.mark = f"MASKWISE_KILLS={os.getpid()}-{time.monotonic_ns()}"
        self.log = out.with_name(f"{out.name}.txt")
        places = {"SHARDS": inputs, "OLD": inputs.with_name("old"), "OUT": out}
        places["STUDY"] = out.with_name("study-whole")
        words = [*way.command]
        for name, place in places.items():
            words = [word.replace(name, str(place)) for word in words]
        self.process = FORK.Process(target=self._run, args=(way, words))
        self.process.start()
        self.pid = self.process.pid or 0

    def _run(self, way: Way, words: list[str]) -> None:
        os.setsid()
        name, _, value = self.mark.partition("=")
        os.environ[name] = value
        said = os.open(self.log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for stream in (1, 2):
            os.dup2(said, stream)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        if way.new:
            launcher = [sys.executable, "-m"]
            if way.ranks > 1:
                launcher += ["torch.distributed.run", "--standalone"]
                launcher += ["--nproc-per-node", str(way.ranks), "-m"]
            os.execv(sys.executable, [*launcher, "maskwise", *words])
        os._exit(ranks_of(way.ranks, words) if way.ranks > 1 else called(words))

    def living(self) -> dict[int, str]:
        """Return what each living process of the command is."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError, IndexError):
                environment = (folder / "environ").read_text(errors="replace").split("\0")
                state, parent, _, session = (
                    (folder / "stat").read_text().rpartition(")")[2].split()[:4]
                )
                # The environment of a copy of this process is not seen from outside.
                ours = self.mark in environment or int(session) == self.pid
                if not ours or state == "Z":
                    continue
                what = "other"
                if int(folder.name) == self.pid:
                    what = "main"
                elif b"maskwise.jobs.pools" in (folder / "cmdline").read_bytes():
                    what = "worker"
                elif int(parent) == self.pid:
                    what = "rank"
                found[int(folder.name)] = what
        # The launcher starts the ranks in their order.
        ranks = sorted(pid for pid, what in found.items() if what == "rank")
        return found | {pid: f"rank {number}" for number, pid in enumerate(ranks)}

    def kill(self, victim: str) -> bool:
        """Kill the processes that ``victim`` names, and return whether there was one."""
        killed = False
        while chosen := [pid for pid, what in self.living().items() if victim in ("all", what)]:
            for pid in chosen if victim == "all" else chosen[:1]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed = True
            # A process may have started another one before it was killed.
            if victim != "all":
                break
        return killed

    def ended(self) -> bool:
        return all_ended([self.process])

    def end(self) -> str:
        """Wait until all processes have ended, and return what is wrong with that."""
        self.process.join(PATIENCE)
        if not self.ended():
            return "does not end"
        if not wait_for(lambda: not self.living(), PATIENCE):
            return f"outlived by {sorted(self.living().values())}"
        return ""


def called(words: list[str], **variables: str) -> int:
    """Run a command in this copy of the process, and return its exit code."""
    os.environ.update(variables)
    gc.freeze()
    try:
        import_module("maskwise.cli").main(words)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 0
    finally:
        sys.stdout.flush()
    return 1


def ranks_of(count: int, words: list[str]) -> int:
    """Run a command in copies of this process, the ranks. As torchrun, end all if one fails."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    ranks = []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
        own |= {"LOCAL_WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        ranks.append(FORK.Process(target=lambda own: os._exit(called(words, **own)), args=(own,)))
        ranks[-1].start()
    wait_for(lambda: any(rank.exitcode for rank in ranks) or all_ended(ranks), PATIENCE)
    failed = not all_ended(ranks) or any(rank.exitcode for rank in ranks)
    for rank in ranks:
        rank.terminate()
    # torchrun gives them as much time.
    wait_for(lambda: all_ended(ranks), 30.0)
    for rank in ranks:
        rank.kill()
        rank.join()
    return int(failed)


def all_ended(processes: Sequence[ForkProcess]) -> bool:
    return all(process.exitcode is not None for process in processes)


def wait_for(event: Callable[[], object], seconds: float) -> bool:
    """Wait at most so many seconds until an event, and return whether there was one."""
    end = time.monotonic() + seconds
    while not (found := bool(event())) and time.monotonic() < end:
        time.sleep(0.005)
    return found


# Folders


def touched(out: Path) -> list[tuple[str, int]]:
    """Return all files of a folder, with the times of their last changes."""
    found = []
    for folder, _, names in os.walk(out):
        for name in names:
            with suppress(OSError):
                found.append((name, os.stat(os.path.join(folder, name)).st_mtime_ns))
    return sorted(found)


def interrupted(out: Path) -> str:
    """Return what a run was doing, by the files that it left."""
    stages = list(out.rglob("stage.json"))
    kinds = set()
    for path in stages:
        if not path.with_name("done.json").exists():
            kinds |= {json.loads(path.read_text())["kind"]}
    if not stages and not (out / "stages").exists():
        return "begin"
    partial = sorted(path for path in out.rglob("*.partial*"))
    if partial:
        path = partial[0].relative_to(out)
        return "saving" if "resume" in path.parts else "writing"
    lines = [line for path in out.rglob("metrics.jsonl") for line in lines_of(path)]
    if "prepare" in kinds or not (stages or lines):
        return "prepare"
    if kinds & {"pretrain", "learn"}:
        ends = [line["step"] for line in lines if line["kind"] == "train"]
        if ends and ends[-1] % 6 == 0 and lines[-1]["kind"] == "train":
            return "evaluation"
        return "training"
    return "+".join(sorted(kinds)) or "end"


def lines_of(path: Path) -> list[Any]:
    """Return the whole lines of a file."""
    found = []
    for line in path.read_text().splitlines():
        with suppress(json.JSONDecodeError):
            found.append(json.loads(line))
    return found


def timeless(value: Any) -> Any:
    """Return a JSON value without times and speeds."""
    if isinstance(value, dict):
        kept = {k: v for k, v in value.items() if "seconds" not in k and k not in OF_THE_PROCESS}
        return {key: timeless(item) for key, item in kept.items()}
    if isinstance(value, list):
        return [timeless(item) for item in value]
    return value


def results(out: Path) -> dict[str, Any]:
    """Return the content of all files of a finished run but locks, without times.

    Some files have the path of the folder, which differs from run to run.
    """
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.is_dir() or name.endswith(".lock"):
            continue
        content = path.read_bytes().replace(str(out).encode(), b"OUT")
        if name == "report.html":
            # A page is made from the other files, and has the times of the run.
            found[name] = None
        elif path.suffix == ".json":
            found[name] = timeless(json.loads(content))
        elif path.suffix == ".jsonl":
            found[name] = [timeless(json.loads(line)) for line in content.splitlines()]
        else:
            found[name] = sha256(content).hexdigest()
    return found


# Signals


def handles_signals(pid: int) -> bool:
    """Return whether a process has a handler for SIGTERM, as commands have."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("SigCgt"):
                return bool(int(line.split()[1], 16) & 1 << signal.SIGTERM - 1)
    return False


@dataclass
class Answers:
    """How a command has answered to signals.

    Attributes:
        whole: the seconds of a run without a signal.
        codes: how often each signal had which exit code.
        states: how many runs said that they saved a state.
        longest: the longest time from a signal to the end of the command, in seconds.
        wrong: what was wrong, and in which run.
    """

    whole: float
    codes: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    states: int = 0
    longest: float = 0.0
    wrong: list[str] = field(default_factory=list)


def ask(name: str, turn: int, number: int, folder: Path, seed: int, answers: Answers) -> None:
    """Start a command, send a signal to it at a random moment, and look how it ends."""
    out = folder / f"{name}-{turn}-{number}"
    to_all = turn % 2
    command = Command(Way(0, (), ASKED_COMMANDS[name]), folder / "shards", out)
    # Signals have their effect from the beginning of ``main``.
    wait_for(lambda: handles_signals(command.pid) or command.ended(), PATIENCE)
    moment = random.Random(f"{seed}-{name}-{turn}-{number}").uniform(0, answers.whole)
    wait_for(command.ended, moment)
    at = time.monotonic()
    if not command.ended():
        with suppress(ProcessLookupError):
            (os.killpg if to_all else os.kill)(command.pid, number)
    command.process.join(PATIENCE)
    seconds = time.monotonic() - at
    fault = command.end()
    code, said = command.process.exitcode or 0, command.log.read_text()
    title = signal.Signals(number).name
    answers.codes[title][code] += 1
    answers.states += "saved the state" in said
    if code:
        answers.longest = max(seconds, answers.longest)
        if seconds > PROMPT:
            fault += f" {seconds:.1f} s"
    if code not in (0, 128 + number):
        fault += f" exit code {code}"
    too_much = r"Traceback|Exception ignored" + "|^maskwise: |failed" * (code != 0)
    if re.search(too_much, said, re.MULTILINE):
        fault += " says too much"
    if partial := [path.name for path in out.rglob("*.partial*")]:
        fault += f" leaves {partial[:2]}"
    if fault:
        answers.wrong.append(f"{title}, turn {turn}: {fault.strip()}")
        log(f"{name}, {answers.wrong[-1]}: {said}")
        command.kill("all")
    victim = "all processes" if to_all else "the command"
    log(f"{name} turn {turn}: {title} to {victim}, exit code {code} after {seconds:.2f} s: {said}")
    shutil.rmtree(out, ignore_errors=True)


def ask_all(names: Sequence[str], times: int, folder: Path, seed: int, end: float) -> None:
    """Send signals to commands in turn, at most until a time, and print a line for each command."""
    write_shards(folder / "shards")
    found = {}
    for name in names:
        began = time.monotonic()
        command = Command(
            Way(0, (), ASKED_COMMANDS[name]), folder / "shards", folder / f"{name}-whole"
        )
        # A report needs a finished study.
        if not wait_for(command.ended, LONGEST) and "report" not in names:
            command.kill("all")
        fault = command.end()
        found[name] = Answers(min(time.monotonic() - began, LONGEST))
        assert not fault and command.process.exitcode in (0, -signal.SIGKILL), (
            command.log.read_text()
        )
        log(f"{name} takes {found[name].whole:.1f} s")
    for turn in range(times):
        for name, number in product(names, NUMBERS):
            if time.monotonic() < end:
                ask(name, turn, number, folder, seed, found[name])
    for name, answers in found.items():
        line = {
            "command": name,
            "codes": answers.codes,
            "states_saved": answers.states,
            "seconds_whole": round(answers.whole, 1),
            "seconds_longest": round(answers.longest, 2),
            "wrong": answers.wrong,
        }
        sys.stdout.write(json.dumps(line) + "\n")


# Runs


def trial(name: str, way: Way, kills: int, folder: Path, seed: int, end: float) -> dict[str, Any]:
    """Finish runs of one way until there were enough kills, or until a time."""

    def enough() -> bool:
        return killed.total() >= kills or time.monotonic() > end

    draw = random.Random(f"{seed}-{name}")
    inputs = write_shards(folder / "shards")
    if "OUT" not in way.command:
        way = way._replace(command=[*way.command, *RESUMED])
    began = time.monotonic()
    command = Command(way, inputs, folder / "whole")
    assert wait_for(lambda: touched(folder / "whole") or command.ended(), PATIENCE)
    first = time.monotonic() - began
    assert not command.end() and command.process.exitcode == 0, command.log.read_text()
    rest = time.monotonic() - began - first
    expected = results(folder / "whole")
    killed, places, wrong = Counter[str](), Counter[str](), list[str]()
    victims = cycle(way.victims)
    runs = starts = 0
    spent = 0.0  # seconds of this run after its first file
    while not enough() or (folder / f"run-{runs}").exists():
        out = folder / f"run-{runs}"
        spent = spent if out.exists() else 0.0
        began, fresh = time.monotonic(), not out.exists()
        command, starts, hit = Command(way, inputs, out), starts + 1, ""
        # A command goes on after a worker was killed, and may be killed again.
        while not enough() and hit in ("", "worker"):
            victim = next(victims)
            early = draw.random() < 1 / 8
            moment = draw.uniform(0, first if early else max(rest - spent, rest / 8))
            if not struck(command, out, victim, moment, early):
                break
            place = interrupted(out)
            # The next start prepares the text again, from the beginning.
            if not early and place != "prepare":
                spent += moment
            hit = victim
            killed[victim] += 1
            places[place] += 1
            log(f"{name} run {runs}: killed {victim} in {place}")
        if fault := command.end():
            wrong.append(f"run {runs}: {fault}")
            command.kill("all")
        code = command.process.exitcode
        if code == 0:
            found = results(out)
            names = sorted({*expected, *found})
            changed = [each for each in names if expected.get(each) != found.get(each)]
            wrong += [f"run {runs}: another {each}" for each in changed]
            log(f"{name} run {runs}: finished, {len(names)} files, {len(changed)} differ")
            if fresh and not hit:
                # The machine was busier before.
                rest = min(rest, time.monotonic() - began - first)
        elif hit in ("", "worker"):
            wrong.append(f"run {runs}: exit code {code}")
            log(f"{name} run {runs}: exit code {code}: {command.log.read_text()}")
        else:
            continue
        runs += 1
    return {
        "way": name,
        "kills": dict(killed),
        "in": dict(places),
        "runs": runs,
        "starts": starts,
        "seconds_whole": round(first + rest, 1),
        "files": len(expected),
        "wrong": wrong,
    }


def struck(command: Command, out: Path, victim: str, seconds: float, early: bool) -> bool:
    """Kill a victim, unless the command ends before.

    Args:
        early: to count the seconds from now on, instead of from the next change of a file.
    """
    before = touched(out)
    if not early:
        wait_for(lambda: command.ended() or touched(out) != before, PATIENCE)
    wait_for(command.ended, seconds)
    killed = False
    while not command.ended() and not killed:
        killed = command.kill(victim)
    return killed


def write_shards(folder: Path) -> Path:
    """Write three files of texts, and an old checkpoint."""
    read_documents = import_module("maskwise.text.documents").read_documents
    folder.mkdir(parents=True)
    documents = list(read_documents("bundled:wikipedia", limit=100))
    for number in range(3):
        lines = [json.dumps({"text": document.text}) for document in documents[number::3]]
        (folder / f"{number}.jsonl").write_text("\n".join(lines) + "\n")
    start = import_module("maskwise.models.starts").resolve_start("bundled:encoder")
    old = Path(shutil.copytree(start, folder.with_name("old")))
    weights = import_module("safetensors.torch").load_file(old / "model.safetensors")
    import_module("torch").save(weights, old / "pytorch_model.bin")
    (old / "model.safetensors").unlink()
    return folder


def log(line: str) -> None:
    sys.stderr.write(f"{time.strftime('%H:%M:%S')} {line}\n")


def main(
    ways: str = "",
    share: float = 1.0,
    seed: int = 0,
    minutes: float = 600,
    signals: int = 0,
) -> None:
    """Kill the commands of all ways, and print a line for each.

    Args:
        ways: the names of ways, or of commands for signals, with commas between them; "" for all.
        share: the share of the kills of each way.
        seed: the seed of the moments.
        minutes: after so many minutes, no further kill or signal; killed runs are finished.
        signals: how often each signal is sent to each command; 0 for kills.
    """
    known = ASKED_COMMANDS if signals else WAYS
    ways = ways or ",".join(known)
    for name in ways.split(","):
        require_known("way", name, known)
    os.environ["OMP_NUM_THREADS"] = "1"  # read when torch is imported
    preload()
    end = time.monotonic() + 60 * minutes
    if signals:
        # A shell ignores Ctrl-C for what it starts in the background.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        with tempfile.TemporaryDirectory(prefix="signals-") as folder:
            ask_all(ways.split(","), signals, Path(folder), seed, end)
        return
    for name in ways.split(","):
        with tempfile.TemporaryDirectory(prefix="kills-") as folder:
            kills = max(1, round(share * WAYS[name].kills))
            result = trial(name, WAYS[name], kills, Path(folder), seed, end)
        sys.stdout.write(json.dumps(result) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    run(main, __doc__)
