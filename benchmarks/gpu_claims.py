"""The time-variant paper's claims as published, on a GPU: which ratio, and which words.

    python benchmarks/gpu_claims.py --out DIR [--before DIR] [--seconds 420] [--jobs 16] [--smoke]

Two studies (benchmarks/PLAN.md, D10) with 5 M weights, BERT's 80/10/10 and 24 seeds each:

- published-decay: constant 15 and 30 %, the published cosine decay, 30 to 15 % in a straight line;
- published-words: whole words equally often, and by the running loss of their part of speech.

Before them, published-pilot chooses the rate that both use (``choice``).

They are ordinary studies: ``maskwise study`` runs many small stages at once on the card, ``--jobs``
processes side by side. So DIR/published-decay and DIR/published-words have the records that
``maskwise report`` and ledger.py judge. A study that does not end in time is stopped, and the seeds
that all arms have finished are recorded; ``--before DIR`` (the results of an earlier call, on this
or another machine) continues with the other seeds. Nothing is judged before all seeds have run.

DIR/claims.jsonl has a line for each step, written at once: what ran, how long, which seeds are
complete, and what did not run and why. DIR/pilot.json has the chosen rate and the losses that chose
it. The folder ``--work`` has the stages, which are not needed afterwards.

The parts of speech were found beforehand (benchmarks/layers), because spaCy is not needed then.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import mean
from typing import Any

from maskwise.base.folders import read_json, read_lines, write_json
from maskwise.recipe import read_recipe
from maskwise.studies.design import Design
from maskwise.studies.store import StageStore

ROOT = Path(__file__).resolve().parent.parent
RECIPES = ROOT / "benchmarks" / "recipes"
PILOT, STUDIES = "published-pilot", ("published-decay", "published-words")
RATES = ("training.learning_rate", "training.muon_learning_rate")
KEPT = ("study.json", "records.jsonl", "timings.jsonl", "summary.json")
"""The files of a study that the record keeps."""
COLLECTING = 25.0
"""Seconds that are reserved to write the records of a study that was stopped."""
FLOOR = 0.3
"""If constant 15 % gains fewer nats than this beyond word frequencies, nothing can be compared."""
LEAST = 45.0
"""With fewer seconds left, no study is started: nothing would be complete."""
SMALL = (
    "corpus.limit=60",
    "corpus.held_out=0.2",
    "evaluation.rows=16",
    "training.steps=4",
    "training.log_every=2",
    "model.settings.hidden_size=16",
    "model.settings.num_hidden_layers=1",
    "model.settings.intermediate_size=24",
    "model.settings.layer_types=[full_attention]",
    "model.settings.num_attention_heads=2",
)
"""Changes of all recipes with ``--smoke``."""
SMALL_TASKS = ("finetune.seeds=1", "finetune.epochs=0.1", "study.seeds=[900, 901]")

Line = dict[str, Any]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu-claims")))
    parser.add_argument("--work", type=Path, default=Path("runs/gpu-claims-work"))
    parser.add_argument("--before", type=Path, help="the results of an earlier call")
    parser.add_argument("--seconds", type=float, default=420)
    parser.add_argument("--jobs", type=int, default=16, help="processes side by side on the card")
    parser.add_argument("--only", choices=STUDIES, help="run only this study")
    parser.add_argument("--smoke", action="store_true", help="miniatures, on any machine")
    given = parser.parse_args()
    claims = Claims(
        given.out,
        given.work,
        seconds=given.seconds,
        jobs=given.jobs,
        smoke=given.smoke,
    )
    return claims.run(given.before, only=given.only)


class Claims:
    """A call of this script.

    Args:
        out: the folder for results, which come back from the machine.
        work: the folder of the studies with their stages.
        seconds: the time of the whole call.
        jobs: the number of processes side by side.
        smoke: whether to run miniatures.
    """

    def __init__(self, out: Path, work: Path, *, seconds: float, jobs: int, smoke: bool):
        self.out, self.work, self.jobs, self.smoke = out, work, jobs, smoke
        self.end = time.monotonic() + seconds
        self.began = time.monotonic()

    @property
    def left(self) -> float:
        """The number of seconds that are left."""
        return self.end - time.monotonic()

    def run(self, before: Path | None, *, only: str | None = None) -> int:
        """Run what is missing; return 0 if everything is complete, and 3 otherwise."""
        self.out.mkdir(parents=True, exist_ok=True)
        if before is not None:
            self._take_over(before)
        complete = True
        with side_by_side():
            pilot = self.pilot()
            for name in STUDIES:
                if only not in (None, name):
                    continue
                reason = None
                if pilot is None:
                    reason = "the pilot has chosen no rate"
                elif pilot["gain_at_15"] < FLOOR and not self.smoke:
                    reason = f"constant 15 % learns less than {FLOOR} nats beyond word frequencies"
                if pilot is None or reason:
                    self._write({"study": name, "left_out": reason})
                    complete = False
                else:
                    complete &= self.study(name, pilot["rates"])
        return 0 if complete else 3

    def _take_over(self, before: Path) -> None:
        """Copy the results of an earlier call. A study here continues them."""
        for name in (PILOT, *STUDIES):
            for file in KEPT:
                found = before / name / file
                if found.is_file() and not (self.work / name / file).exists():
                    (self.work / name).mkdir(parents=True, exist_ok=True)
                    shutil.copy(found, self.work / name / file)
        if (before / "pilot.json").is_file():
            shutil.copy(before / "pilot.json", self.out / "pilot.json")

    # The pilot

    def pilot(self) -> Line | None:
        """Return the result of ``choice``; None if the pilot did not end."""
        known = read_json(self.out / "pilot.json")
        if known:
            return known
        if not self.study(PILOT, {}):
            return None
        chosen = choice(self.work / PILOT)
        write_json(self.out / "pilot.json", chosen)
        self._write({"study": PILOT, **chosen})
        return chosen

    # The studies

    def study(self, name: str, rates: Mapping[str, float]) -> bool:
        """Run the missing seeds of a study while there is time; return whether it is complete."""
        changes = [f"{key}={rate}" for key, rate in rates.items()]
        if self.smoke:
            changes += SMALL
            changes += SMALL_TASKS if name != PILOT else ["study.seeds=[1000]"]
        file = str(RECIPES / f"{name}.yaml")
        recipe = read_recipe(file, changes)
        folder = self.work / name
        seeds = list(recipe.study.seed_list)
        recorded = recorded_seeds(folder)
        missing = [seed for seed in seeds if seed not in recorded]
        line: Line = {"study": name, "seeds": len(seeds), "recorded_before": len(recorded)}
        began = time.monotonic()
        if missing and self.left < min(LEAST, 3 * COLLECTING):
            line["left_out"] = "no time"
        elif missing:
            command = [sys.executable, "-m", "maskwise", "study", file, *changes]
            command += ["--out", str(folder), "--jobs", str(self.jobs)]
            log = self.out / f"{name}.log"
            rest = ",".join(map(str, missing))
            code = called([*command, "--only-seeds", rest], log, seconds=self.left - COLLECTING)
            if code is None:
                # The study was stopped: record the seeds that all arms have finished.
                done = finished_seeds(recipe, folder, missing)
                line["stopped"] = f"after {time.monotonic() - began:.0f} s"
                if done:
                    these = ",".join(map(str, done))
                    code = called(
                        [*command, "--only-seeds", these], log, seconds=max(10.0, self.left)
                    )
            if code:
                line["error"] = f"exit code {code}: {last_words(log)}"
        for each in KEPT:
            if (folder / each).is_file():
                (self.out / name).mkdir(exist_ok=True)
                shutil.copy(folder / each, self.out / name / each)
        recorded = recorded_seeds(folder)
        line["recorded"] = sorted(recorded)
        line["complete"] = set(seeds) <= recorded
        line["seconds"] = round(time.monotonic() - began, 1)
        self._write(line)
        return line["complete"]

    def _write(self, line: Line) -> None:
        text = json.dumps(line)
        with (self.out / "claims.jsonl").open("a", encoding="utf-8") as file:
            file.write(text + "\n")
        sys.stdout.write(f"{time.monotonic() - self.began:5.0f} s  {text[:600]}\n")
        sys.stdout.flush()


def choice(pilot: Path) -> Line:
    """Return the rate that the pilot chooses, and the losses that chose it.

    The rule: the lowest held-out loss on tokens at 15 %, the mean over both ratios and all seeds.
    ``gain_at_15`` says how far constant 15 % is below word frequencies at this rate, in nats.
    """
    study = read_json(pilot / "study.json") or {}
    losses: dict[str, dict[str, list[float]]] = {}
    # A gain is the loss of word frequencies minus that of the model.
    gains: dict[str, list[float]] = {}
    for record in read_lines(pilot / "records.jsonl"):
        if record["kind"] == "heldout" and record["arm"] in study["arms"]:
            ratio, _, rate = record["arm"].partition(", ")
            is_loss = record["split"] == "test"
            if is_loss:
                losses.setdefault(rate, {}).setdefault(ratio, []).append(round(record["value"], 4))
            if ratio == "15":
                gains.setdefault(rate, []).append(record["value"] * (-1 if is_loss else 1))
    means = {}
    for rate, by_ratio in losses.items():
        means[rate] = round(mean(mean(each) for each in by_ratio.values()), 4)
    best = min(means, key=lambda rate: means[rate])
    overrides = study["arms"][f"15, {best}"]["overrides"]
    return {
        "chosen": best,
        "rates": {key: overrides[key] for key in RATES},
        "gain_at_15": round(2 * mean(gains[best]), 4),
        "means": means,
        "losses": losses,
    }


def recorded_seeds(folder: Path) -> set[int]:
    """Return the seeds of which the records of a study have a run of every arm, and no failure."""
    study = read_json(folder / "study.json")
    if not study or not (folder / "records.jsonl").is_file():
        return set()
    arms = defaultdict[int, set[str]](set)
    failed = set()
    for record in read_lines(folder / "records.jsonl"):
        if record["kind"] == "failure":
            failed.add(record["seed"])
        elif record["kind"] == "cost" and "role" not in record:
            arms[record["seed"]].add(record["arm"])
    return {seed for seed in study["seeds"] if arms[seed] >= study["arms"].keys()} - failed


def finished_seeds(recipe: Any, folder: Path, seeds: Sequence[int]) -> list[int]:
    """Return those of ``seeds`` whose stages have all ended, in all arms."""
    design = Design(recipe, StageStore(folder / "stages"), seeds=seeds)
    for _ in design.plans():
        pass
    unfinished = set()
    for run in design.runs:
        if any(StageStore(folder / "stages").result(stage) is None for stage in run.stages):
            unfinished.add(run.seed)
    return [seed for seed in seeds if seed not in unfinished]


def called(command: Sequence[str], log: Path, *, seconds: float) -> int | None:
    """Run a command, and append its output to ``log``.

    Returns:
        Its exit code, or None if it was stopped after ``seconds``, with all processes that it had
        started.
    """
    folders = [ROOT / "src", ROOT / "packages" / "maskwise-data" / "src"]
    path = os.pathsep.join([*map(str, folders), os.environ.get("PYTHONPATH", "")])
    # One thread each: the processes share the cores.
    environment = os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("a", encoding="utf-8") as output:
        process = subprocess.Popen(
            command,
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            return process.wait(timeout=max(1.0, seconds))
        except subprocess.TimeoutExpired:
            return None
        finally:
            stop(process)


def stop(process: subprocess.Popen[bytes]) -> None:
    """End a process and all processes of its session."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, number)
        except ProcessLookupError:
            return
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:
            continue


def last_words(log: Path) -> str:
    """Return the end of a log, on one line."""
    return " ".join(log.read_text(encoding="utf-8", errors="replace").split())[-600:]


@contextmanager
def side_by_side() -> Iterator[None]:
    """A context in which the kernels of several processes run on a card at the same time (MPS).

    Without NVIDIA's control program, processes take turns on the card, which is slower.
    """
    program = shutil.which("nvidia-cuda-mps-control")
    if program is None:
        yield
        return
    subprocess.run([program, "-d"], check=False, capture_output=True, timeout=20)
    try:
        yield
    finally:
        subprocess.run([program], input=b"quit\n", check=False, capture_output=True, timeout=60)


if __name__ == "__main__":
    sys.exit(main())
