"""Training on a GPU: speed beside ``Trainer``, MFU, memory, waits of the host, and where time goes.

    python benchmarks/gpu.py --out DIR [--seconds 330] [--commit TEXT] [--smoke] [--try NAMES]

The benchmark needs only this repository (``PYTHONPATH=src``; nothing is installed), because the
weights of its models are random and its texts are bundled. results/gpu/README.md has the commands
for a machine without a network.

Parts run in the order of their worth. Each has a budget of seconds, after which it is interrupted,
and none is started after ``--seconds``, so the benchmark ends in time. Each line of DIR/gpu.jsonl
is written as soon as it is measured; a part without a result says why in ``error`` or ``left_out``,
and the last line names these parts. With ``--smoke``, every part runs on any machine, with tiny
models and without a compiler.

maskwise and ``Trainer`` train the same weights on the same documents, in bfloat16. Attention
dropout is off, because torch's attention kernel for documents of different lengths does not support
it. maskwise trains on packed rows with attention within documents. ``Trainer`` pads documents: as
it is by default; grouped by length; and, where transformers finds a kernel for documents of
different lengths (flash_attn), on packed lines that maskwise's ``PackedCollator`` makes. Each side
runs with and without ``torch.compile``. Smaller last batches are dropped, so that nothing compiles
again for them.

The two shapes whose figures the documentation promises are timed in three rounds, which follow each
other in one run, so that compilation is paid once; ``spread`` is their range over their median.
Tokens are counted in the batches that were timed: tokens of text, without padding and without
special tokens. A trace follows the rounds of compiled maskwise (``gpu_trace.py``).

A model of two layers is so small that the host, which launches kernels, may limit it. It runs
uncompiled, compiled, and compiled with each block as a CUDA graph (``mode="reduce-overhead"``),
which only this benchmark does. A graph is recorded for each shape of its inputs, so the offsets of
documents are lengthened to a multiple of ``BUCKET``.

With ``--try``, variants of the step are measured instead (``gpu_variants.py``), each beside the
plain step: compiled, with a residual stream in bf16. Both have the same weights at first, and train
on the same batches, which are on the device already. They take turns of ``TURN`` steps, ``PAIRS``
times. ``gain_ms`` is the median of what the variant saves in a step, ``gain_range`` its range over
the pairs, and ``computed_gain_ms`` what kernel times and bytes let expect. The plain step beside
itself shows the noise. A trace of each follows in a line of its own.

MFU (model FLOPs utilisation) is the FLOP/s spent on tokens of text, relative to a maximum. There
are two maxima: the FLOP/s of the data sheet, and of a large matrix product on this machine. Padding
and recomputation do not count. ``mfu_…`` is by the formula of ``maskwise.models.flops``, which
counts attention in each document; ``mfu_…_of_weights`` leaves out attention, as
6 · weights · tokens does.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from functools import cached_property, partial
from pathlib import Path
from statistics import mean, median
from typing import Any, NamedTuple
from unittest.mock import patch

import gpu_trace
import torch
import train
from figures import Figures, spread, surroundings
from gpu_variants import (
    VARIANTS,
    CudaGraphs,
    FewShapes,
    Trial,
    Variant,
    changed_blocks,
    new_profiler,
    side_by_side,
)
from timing import Clock, relative, time_trainer
from torch.utils.benchmark import Timer
from transformers import DataCollatorForLanguageModeling, Trainer
from transformers.utils import is_flash_attn_2_available

from maskwise.base.constants import UPOS
from maskwise.base.devices import best_device, fast_bf16, measured_rate, peak_memory, peak_rate
from maskwise.hf.packed_collator import PackedCollator
from maskwise.masking import MaskedBatch, Masker
from maskwise.models.attention import HAS_GROUPED_VARLEN
from maskwise.models.flops import Flops
from maskwise.objectives import MaskedLanguageModelling, objective, objective_class
from maskwise.samplers import sampler
from maskwise.text import Rows, read_documents, split, train_tokenizer
from maskwise.training import MaskedSource
from maskwise.training import train as train_ours
from maskwise.training.several import Probe, SamplerLearner, SeveralObjectives, SeveralSources

OBJECTIVES = ("mlm", "emlm", "atd", "dtd", "cse")
LENGTHS = (128, 1024, 512)
FAMILIES = ("bert", "modernbert")
PROMISED = (("bert", 128), ("modernbert", 1024))
ROUNDS = 3
"""Number of rounds for the promised shapes. Other shapes have one."""
ATTENTION_DROPOUT = {"bert": "attention_probs_dropout_prob", "modernbert": "attention_dropout"}
SMALL = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "vocab_size": 512,
}
BATCH = 65_536
"""Tokens per step. If a side runs out of memory, this number is halved, and its line shows it."""
COPIED = 1 << 30
"""Number of bytes that are copied to measure the memory bandwidth."""
LITTLE = "small, packed"
"""The name of the shape that is timed with and without CUDA graphs."""
PAIRS = 7
"""Number of times that a variant and the plain step take turns."""
TURN = 8
"""Number of steps in a turn."""
TRACED = 4
"""Number of steps in a trace."""
SYNCHRONISES = "called a synchronizing CUDA operation"
"""Torch's warning of a wait. Another warning only says that this check is a prototype."""
LEAST = 5.0
"""With fewer seconds left, no part is started."""
AFTER = 10.0
"""Seconds after the end at which the process ends itself, even inside a part."""
SHOWN = (
    "card",
    "ms_per_step",
    "spread",
    "tokens_per_second",
    "mfu_data_sheet",
    "mfu_measured",
    "memory_gib",
    "waits_in_a_step",
    "gain_ms",
    "gain_range",
    "error",
    "left_out",
)
"""Figures that are printed, in addition to their lines in gpu.jsonl."""


class Part(NamedTuple):
    """A part of the benchmark: its name, its function, and the most seconds that it may take."""

    name: str
    function: Callable[[], Figures]
    seconds: float


class Side(NamedTuple):
    """A contestant.

    Attributes:
        name: "maskwise" or "transformers.Trainer".
        rows: for ``Trainer``: "as it is", "grouped by length" or "packed".
        compiled: whether it runs with ``torch.compile``.
        more: further training settings of maskwise, as (name, value) pairs.
        graphs: for compiled maskwise: whether blocks run as CUDA graphs.
    """

    name: str
    rows: str = ""
    compiled: bool = False
    more: tuple[tuple[str, Any], ...] = ()
    graphs: bool = False

    def __str__(self) -> str:
        parts = [self.name, self.rows, *(f"{name} {value}" for name, value in self.more)]
        if self.compiled:
            parts.append("compiled")
        if self.graphs:
            parts.append("CUDA graphs")
        return ", ".join(part for part in parts if part)

    @property
    def is_ours(self) -> bool:
        return self.name == train.OURS


OURS = Side(train.OURS)
HALVED = (("residual", "bf16"),)
PEERS = tuple(Side(train.PEER, rows) for rows in ("grouped by length", "as it is", "packed"))


class TimeUp(BaseException):
    """The budget of a part has run out. Libraries must not handle this as an error."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument(
        "--seconds", type=float, default=330, help="the time of the whole benchmark"
    )
    parser.add_argument("--commit", default="", help="the commit of this code, for the record")
    parser.add_argument("--only", default="", help="run only parts whose names contain this text")
    parser.add_argument("--smoke", action="store_true", help="run every part with tiny models")
    parser.add_argument(
        "--try",
        dest="tries",
        default="",
        metavar="NAMES",
        help=f"measure only these variants of the step, of {','.join(VARIANTS)}",
    )
    parser.add_argument("--traces", type=Path, help="the folder for traces; by default, --out")
    given = parser.parse_args()
    tries = [name for name in given.tries.split(",") if name]
    unknown = sorted({*tries} - {*VARIANTS})
    if unknown:
        parser.error(f"--try has the names {', '.join(VARIANTS)}, not {', '.join(unknown)}")
    if not (given.smoke or torch.cuda.is_available()):
        sys.exit("there is no GPU here; --smoke runs every part in miniature")
    bench(
        given.out,
        seconds=given.seconds,
        smoke=given.smoke,
        commit=given.commit,
        only=given.only,
        tries=tries,
        traces=given.traces,
    )


def bench(
    out: Path,
    *,
    seconds: float,
    smoke: bool,
    commit: str = "",
    only: str = "",
    tries: Sequence[str] = (),
    traces: Path | None = None,
) -> list[Figures]:
    """Run parts while there is time, the most important parts first.

    Args:
        out: the folder for gpu.jsonl and the traces.
        seconds: the time of the whole benchmark. No part runs longer.
        smoke: whether to run each part with tiny models.
        commit: the commit of the code, for the record; by default, what git says.
        only: run only parts whose names contain this text, and "machine".
        tries: names of variants of the step; if there are some, only these are measured.
        traces: the folder for the traces; None for ``out``.

    Returns:
        The lines of gpu.jsonl. The line of a failed part has the key "error"; of an interrupted
        part, or one that was not started, "left_out".
    """
    began = time.perf_counter()
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(smoke=smoke, commit=commit)
    # Without a GPU, blocks are traced but not compiled, because compiling for a CPU takes minutes.
    traced = patch.object(torch, "compile", partial(torch.compile, backend="eager"))
    lines: list[Figures] = []
    traces = traces or out
    traces.mkdir(parents=True, exist_ok=True)
    all_parts = bench.trials_of(tries, traces) if tries else bench.parts(traces)
    parts = [part for part in all_parts if only in part.name or part.name == "machine"]
    with (
        side_by_side() if tries else nullcontext(),
        (out / "gpu.jsonl").open("w", encoding="utf-8") as file,
        traced if smoke else nullcontext(),
    ):

        def write(line: Figures) -> None:
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            shown = {key: line[key] for key in SHOWN if line.get(key) is not None}
            sys.stdout.write(f"{time.perf_counter() - began:5.0f} s  {line['part']}: {shown}\n")
            sys.stdout.flush()

        def give_up(names: Sequence[str]) -> None:
            for name in names:
                write({"part": name, "left_out": "the process was stopped at the end of its time"})
            write(last_line(lines, time.perf_counter() - began))
            os._exit(3)

        for number, part in enumerate(parts):
            line: Figures = {"part": part.name}
            free_memory()
            start = time.perf_counter()
            left = seconds - (start - began)
            if left < min(LEAST, part.seconds):
                line["left_out"] = "no time"
            else:
                allowed = min(part.seconds, left)
                # A kernel or a compiler that never returns to Python would outlast the budget.
                names = [each.name for each in parts[number:]]
                watch = threading.Timer(left + AFTER, give_up, [names])
                watch.daemon = True
                watch.start()
                try:
                    with budget(allowed):
                        line |= part.function()
                except TimeUp:
                    line["left_out"] = f"interrupted after {allowed:.0f} s, the time of this part"
                # If a part fails on an unknown machine, the other parts must still run.
                except Exception as error:
                    line["error"] = f"{type(error).__name__}: {error}"[:2000]
                finally:
                    watch.cancel()
            line["seconds"] = round(time.perf_counter() - start, 1)
            write(line)
        write(last_line(lines, time.perf_counter() - began))
    return lines


def last_line(lines: Sequence[Figures], seconds: float) -> Figures:
    """Return the line that says which parts have no result, and the ratios to the peers."""
    missing = {}
    for line in lines:
        reason = line.get("error") or line.get("left_out")
        if reason:
            missing[line["part"]] = reason[:200]
    return {
        "part": "end",
        "seconds": round(seconds, 1),
        "without_result": missing,
        "ratios": ratios(lines),
    }


def ratios(lines: Sequence[Figures]) -> list[Figures]:
    """Compare the fastest run of maskwise with every peer on each shape, by tokens per second.

    ``ratio_range`` has the lowest rate of maskwise over the highest of the peer, and the reverse.
    The first peer of a shape is the fastest.
    """
    timed = [line for line in lines if line.get("tokens_per_second") and "side" in line]
    compared = []
    for shape in dict.fromkeys(line["size"] for line in timed):
        here = [line for line in timed if line["size"] == shape]
        ours = [line for line in here if line["side"] == train.OURS]
        theirs = [line for line in here if line["side"] != train.OURS]
        theirs.sort(key=lambda line: -line["tokens_per_second"])
        if not ours:
            continue
        best = max(ours, key=lambda line: line["tokens_per_second"])
        for line in theirs:
            compared.append(
                {
                    "size": shape,
                    "ours": best["name"],
                    "peer": line["name"],
                    "ratio": round(best["tokens_per_second"] / line["tokens_per_second"], 3),
                    "ratio_range": [
                        round(min(best["rates"]) / max(line["rates"]), 3),
                        round(max(best["rates"]) / min(line["rates"]), 3),
                    ],
                }
            )
    return compared


@contextmanager
def budget(seconds: float) -> Iterator[None]:
    """A context that raises ``TimeUp`` after ``seconds``, in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def up(*_: object) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, up)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def free_memory() -> None:
    """Free the memory of earlier parts, also of reference cycles, and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Bench:
    """The parts of the benchmark, which share texts, a tokenizer and the FLOP/s of the card.

    Args:
        smoke: whether to use models with two small layers, short rows and few steps.
        commit: the commit of the code, for the record.
    """

    def __init__(self, *, smoke: bool, commit: str = ""):
        self.smoke = smoke
        self.commit = commit or git_commit()
        self.device = best_device()
        self.on_card = self.device.type == "cuda"
        self.dtype = torch.bfloat16 if fast_bf16() else torch.float32
        self.rate = measured_rate(self.device, self.dtype)
        self.card = torch.cuda.get_device_name() if self.on_card else self.device.type
        self.sheet = peak_rate(self.device, self.precision)
        self.documents = list(read_documents("bundled:wikipedia", limit=60 if smoke else 2000))
        texts = (document.text for document in self.documents)
        self.tokenizer = train_tokenizer(texts, vocab_size=300 if smoke else 8192)
        self.contests: dict[str, Contest] = {}
        self.trials: dict[tuple[str, str], Trial] = {}

    def parts(self, out: Path) -> Iterator[Part]:
        """Yield the parts, most important first."""
        yield Part("machine", self.machine, 20)
        promised = [self.shape(*each) for each in PROMISED]
        peers = PEERS if has_ragged_peer() or self.smoke else PEERS[:-1]
        # What was promised, with a trace, beside the peers that need no compilation.
        for shape in promised:
            for more in ((), HALVED):
                yield self.timing(shape, OURS._replace(compiled=True, more=more), 75, trace=out)
            for peer in PEERS:
                yield self.timing(shape, peer, 45)
        yield Part("several objectives", self.several, 60)
        for shape in promised:
            yield self.timing(shape, PEERS[1]._replace(compiled=True), 160)
        for shape in promised:
            yield self.timing(shape, OURS, 40)
        yield Part("waits", partial(self.waits, "token", 0), 20)
        yield Part("waits, pos-weighted", partial(self.waits, "pos-weighted", 0), 20)
        late = partial(self.waits, "pos-weighted", 1)
        yield Part("waits, pos-weighted, one step late", late, 20)
        compiled = OURS._replace(compiled=True)
        for side in (compiled, compiled._replace(graphs=True), OURS):
            yield self.timing(self.little(), side, 40)
        # Each batch of grouped rows is of another length.
        for shape in promised:
            for peer in peers:
                if peer.rows != "as it is":
                    yield self.timing(shape, peer._replace(compiled=True), 100)
        if self.smoke:
            return
        for family in FAMILIES:
            for length in LENGTHS:
                if (family, length) not in PROMISED:
                    shape = self.shape(family, length)
                    yield self.timing(shape, OURS._replace(compiled=True), 60)
                    yield self.timing(shape, PEERS[0], 40)

    def trials_of(self, names: Sequence[str], traces: Path) -> Iterator[Part]:
        """Yield the parts that measure variants of the step, in the order of ``names``."""
        yield Part("machine", self.machine, 20)
        begun = set()
        for name in names:
            kind = VARIANTS[name]
            for family, length in PROMISED:
                if family not in kind.computed:
                    continue
                shape = self.shape(family, length)
                for each in (Variant, kind):
                    if (shape.name, each) not in begun:
                        begun.add((shape.name, each))
                        title = f"{shape.name}: {each.name}"
                        yield Part(title, partial(self.tried, shape, each), 90)
                        seen = partial(self.seen, shape, each, traces)
                        yield Part(f"{title}, trace", seen, 30)

    def timing(
        self, shape: train.Shape, side: Side, seconds: float, *, trace: Path | None = None
    ) -> Part:
        """Return the part that times a side on a shape."""
        return Part(f"{shape.name}: {side}", partial(self.timed, shape, side, trace), seconds)

    @property
    def precision(self) -> str:
        return "bf16" if self.dtype == torch.bfloat16 else "fp32"

    def shape(self, family: str, length: int) -> train.Shape:
        """Return a base model and its batch shape; with ``smoke``, a model of two small layers."""
        fields = {
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "vocab_size": 30528,
        }
        if family == "modernbert":
            fields |= {"num_hidden_layers": 22, "intermediate_size": 1152, "vocab_size": 50368}
        fields[ATTENTION_DROPOUT[family]] = 0.0
        name = f"{family}-base, {length}"
        if self.smoke:
            return train.Shape(name, family, fields | SMALL, batch_size=4, length=32, steps=2)
        return train.Shape(name, family, fields, BATCH // length, length, steps=16)

    def little(self) -> train.Shape:
        """Return a model of two layers and its batch shape."""
        fields = {
            "hidden_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 512,
            ATTENTION_DROPOUT["bert"]: 0.0,
        }
        if self.smoke:
            return train.Shape(LITTLE, "bert", fields | SMALL, batch_size=4, length=32, steps=2)
        return train.Shape(LITTLE, "bert", fields, batch_size=32, length=128, steps=100)

    def contest(self, shape: train.Shape) -> Contest:
        """Return the contest of all sides for a shape, from a cache."""
        key = f"{shape.name}, {shape.batch_size}"
        if key not in self.contests:
            made = Contest(shape, "varied", self.documents, self.tokenizer)
            columns = made.rows[train.OURS].pieces.columns
            # Arbitrary parts of speech are enough, because the cost does not depend on the tags.
            columns["pos"] = columns["word_ids"] % len(UPOS)
            self.contests[key] = made
        return self.contests[key]

    # Parts

    def machine(self) -> Figures:
        """Return the card, versions, FLOP/s, bandwidth, and features that this torch lacks."""
        lacks = []
        if not HAS_GROUPED_VARLEN:
            lacks.append("varlen_attn with grouped heads")
        if not has_ragged_peer():
            lacks.append("a kernel of transformers for documents of different lengths (flash_attn)")
        size = COPIED >> (14 if self.smoke else 0)
        there = torch.empty(size, dtype=torch.uint8, device=self.device)
        into = torch.empty_like(there)
        names = {"into": into, "there": there}
        copying = Timer("into.copy_(there)", globals=names).timeit(5).median
        return {
            **surroundings(),
            "commit": self.commit,
            "card": self.card,
            "state": state_of_card(),
            "cuda": torch.version.cuda,
            "precision": self.precision,
            "matmul_flops": self.rate,
            "data_sheet_flops": self.sheet,
            "copied_bytes_per_second": round(2 * size / copying),
            "lacks": lacks,
        }

    def timed(self, shape: train.Shape, side: Side, trace: Path | None = None) -> Figures:
        """Return the figures of a side: time, tokens of text per second, MFU, memory, last loss."""
        if side.rows == "packed" and not has_ragged_peer():
            return {"left_out": "transformers finds no kernel for documents (flash_attn) here"}
        contest = self.contest(shape)
        rounds = ROUNDS if _is_promised(shape) or shape.name == LITTLE else 1
        try:
            laps = contest.run(side, self, rounds, traced=bool(trace))
        except torch.OutOfMemoryError:
            laps = None
        if laps is None:
            # In the except block, the traceback would keep the tensors of the failed step alive.
            free_memory()
            return self.timed(shape._replace(batch_size=shape.batch_size // 2), side, trace)
        rates = [tokens / seconds for tokens, seconds in zip(laps.tokens, laps.seconds)]
        rate = median(rates)
        line = {
            "size": shape.name,
            "batch": f"{shape.batch_size} × {shape.length}",
            "name": str(side),
            "side": side.name,
            "precision": self.precision,
            "ms_per_step": round(1000 * median(laps.seconds) / laps.steps, 2),
            "rounds": len(rates),
            "steps_in_a_round": laps.steps,
            "rates": [round(each) for each in rates],
            "spread": spread(rates),
            "tokens_per_second": round(rate),
            "positions_per_second": round(median(laps.positions) / median(laps.seconds)),
            "loss": round(laps.loss, 3),
            "memory_gib": round(peak_memory(self.device) / 2**30, 3),
        }
        # The FLOPs per token of text are the same for all sides. FLOPs for padding and recomputing
        # are not counted.
        for end, flops in zip(("", "_of_weights"), contest.flops_per_token):
            line[f"mfu_measured{end}"] = round(flops * rate / self.rate, 4)
            if self.sheet:
                line[f"mfu_data_sheet{end}"] = round(flops * rate / self.sheet, 4)
        if trace and laps.profiler is not None:
            words = [shape.architecture, *(str(value) for _, value in side.more)]
            line["trace"] = self.traced(trace, shape, "-".join(words), laps.profiler)
        return line

    def trial(self, shape: train.Shape, kind: type[Variant]) -> Trial:
        """Return a model that trains by a variant. It is kept until ``seen`` has traced it, and
        the plain one until the end.
        """
        key = (shape.name, kind.name)
        if key not in self.trials:
            contest = self.contest(shape)
            settings = contest.source(2 if self.smoke else TURN).settings
            changed = {"compile": True, **dict(HALVED)}
            self.trials[key] = Trial(
                kind(),
                MaskedLanguageModelling(contest.model()),
                contest.source(settings.steps),
                settings.model_copy(update=changed),
                backend="eager" if self.smoke else "inductor",
            )
        return self.trials[key]

    def tried(self, shape: train.Shape, kind: type[Variant]) -> Figures:
        """Return the figures of a variant beside the plain step, in turn."""
        missing = kind().missing()
        if missing:
            return {"left_out": missing}
        plain, trial = sides = (self.trial(shape, Variant), self.trial(shape, kind))
        turns = []
        for number in range(2 if self.smoke else PAIRS):
            turn = [0.0, 0.0]
            # Each side begins in turn, because the card is warmer for the second one.
            for place in (0, 1) if number % 2 else (1, 0):
                turn[place] = 1000 * sides[place].round()
            turns.append(turn)
        plain_ms, ms = zip(*turns)
        gains = [one - other for one, other in turns]
        ratio, ratio_range = relative(ms, plain_ms)
        line = {
            "size": shape.name,
            "batch": f"{shape.batch_size} × {shape.length}",
            "name": kind.name,
            "precision": self.precision,
            **dict(HALVED),
            "seconds_to_compile": round(trial.seconds, 1),
            "steps_in_a_turn": len(trial.steps),
            "ms_of_turns": [[round(each, 3) for each in turn] for turn in turns],
            "ms_per_step": round(median(ms), 2),
            "plain_ms_per_step": round(median(plain_ms), 2),
            "gain_ms": round(median(gains), 2),
            "gain_range": [round(min(gains), 2), round(max(gains), 2)],
            "computed_gain_ms": kind.computed.get(shape.architecture),
            "over_plain": ratio,
            "over_plain_range": ratio_range,
            "losses": trial.losses,
            "plain_losses": plain.losses,
            "norms": trial.norms,
            "plain_norms": plain.norms,
            "memory_gib": round(trial.memory / 2**30, 3),
            "plain_memory_gib": round(plain.memory / 2**30, 3),
        }
        flops, _ = self.contest(shape).flops_per_token
        for end, taken in (("", ms), ("_of_plain", plain_ms)):
            rate = 1000 * trial.tokens / len(trial.steps) / median(taken)
            line[f"tokens_per_second{end}"] = round(rate)
            line[f"mfu_measured{end}"] = round(flops * rate / self.rate, 4)
            if self.sheet:
                line[f"mfu_data_sheet{end}"] = round(flops * rate / self.sheet, 4)
        return line

    def seen(self, shape: train.Shape, kind: type[Variant], traces: Path) -> Figures:
        """Return the summary of a trace of a variant that has been measured, and forget it."""
        key = (shape.name, kind.name)
        if key not in self.trials:
            return {"left_out": "the variant was not measured"}
        trial = self.trials[key] if kind is Variant else self.trials.pop(key)
        name = f"{shape.architecture}-{kind.name}"
        found = self.traced(traces, shape, name, trial.profiled(TRACED))
        if kind is not Variant:
            trial.close()
        return found

    def traced(self, out: Path, shape: train.Shape, name: str, profiler: Any) -> Figures:
        """Write the trace of some steps, and return its summary by class of kernel."""
        path = out / f"trace-{name}.json.gz"
        profiler.export_chrome_trace(str(path))
        summary = gpu_trace.summarise(
            gpu_trace.read(path),
            steps=TRACED,
            vocabulary=shape.fields["vocab_size"],
            on_card=self.on_card,
        )
        return {"file": path.name, "bytes": path.stat().st_size, **summary}

    def waits(self, policy: str, lag: int, steps: int = 6) -> Figures:
        """Return the number of times that the CPU waits for the GPU in a step, and the step time.

        Torch warns of each wait.
        """
        shape = self.shape("bert", 128)
        contest = self.contest(shape)
        rows = contest.rows[train.OURS]
        settings = contest.source(2 * steps).settings.model_copy(update={"lag": lag})
        source = MaskedSource(rows, Masker(self.tokenizer, policy=policy, ratio=0.3), settings)
        watch = Watched(steps, 2 * steps - 1)
        learners = {**source.learners(), "watch": watch}
        model = MaskedLanguageModelling(contest.model())
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                train_ours(model, source, settings, learners=learners)
            finally:
                watch.warn("default")
        waits = [f"{w.filename}:{w.lineno}" for w in caught if SYNCHRONISES in str(w.message)]
        seconds = watch.seconds_per_step
        return {
            "waits_in_a_step": len(waits) / (steps - 1) if self.on_card else None,
            "waits_at": sorted(set(waits)),
            "ms_per_step": round(1000 * seconds, 2),
            "tokens_per_second": round(contest.tokens(train.OURS) / seconds),
        }

    def several(self) -> Figures:
        """Return the time of each step of MOMETAS with five objectives, and of each one alone."""
        contest = self.contest(self.shape("bert", 128))
        # Every objective accepts rows of one document. The probe uses held-out rows.
        pieces = contest.rows[train.PEER].pieces
        shown, held_out = split(pieces, held_out=0.2, layout="document")
        steps = 6 if self.smoke else 30
        every = steps // 3
        settings = contest.source(steps).settings
        alone = {}
        for name in OBJECTIVES:
            few = settings.model_copy(update={"steps": 3 if self.smoke else 9})
            steps_alone = Steps()
            made = objective(name, contest.model())
            learners = {"clock": steps_alone}
            train_ours(made, self._source_of(name, shown, few), few, learners=learners)
            alone[name] = round(median(steps_alone.milliseconds()[2:]), 2)
            del made
            free_memory()
        model = contest.model()
        several = SeveralObjectives({name: objective(name, model) for name in OBJECTIVES})
        sources = {name: self._source_of(name, shown, settings) for name in OBJECTIVES}
        size = 8 if self.smoke else 64
        chooser = sampler(f"mometas(every={every}, rows={size})", list(OBJECTIVES), steps=steps)
        batches = SeveralSources(sources, chooser, settings)

        def probe() -> Probe:
            return Probe(
                several,
                batches,
                dict.fromkeys(OBJECTIVES, held_out),
                sizes=dict.fromkeys(OBJECTIVES, size),
                skip={},
            )

        learner = SamplerLearner(chooser, probe)
        each = Steps()
        learners = {**batches.learners(), "sampler": learner, "clock": each}
        train_ours(several, batches, settings, learners=learners)
        taken = each.milliseconds()
        # The first step of each objective chooses kernels. A step that ends with a probe has its
        # time, and so has the next one, because no batch was made ahead for it.
        seen = set[str]()
        outside = []
        of_these = []
        for number, (name, milliseconds) in enumerate(zip(each.drawn, taken), start=1):
            if name in seen and number % every and (number - 1) % every:
                outside.append(milliseconds)
                of_these.append(alone[name])
            seen.add(name)
        return {
            "objectives": list(OBJECTIVES),
            "rows": len(shown) + len(held_out),
            "ms_per_step": round(mean(taken[1:]), 2),
            "ms_of_each_step": list(zip(each.drawn, [round(ms, 1) for ms in taken])),
            "probe_every": every,
            "ms_alone": alone,
            "ms_outside_probes": round(mean(outside), 2) if outside else None,
            "outside_over_alone": round(mean(outside) / mean(of_these), 3) if outside else None,
            "probe_losses": dict(learner.facts())["probe_losses"],
            "memory_gib": round(peak_memory(self.device) / 2**30, 3),
        }

    def _source_of(self, name: str, rows: Rows, settings: Any) -> MaskedSource:
        # Words replace salient spans here, because the cost does not depend on the spans.
        masking = {"policy": "guided(layer=word_ids)"} if name == "emlm" else {}
        masker = objective_class(name).maker(self.tokenizer, seed=0, length=rows.length, **masking)
        return MaskedSource(rows, masker, settings)


def _is_promised(shape: train.Shape) -> bool:
    return any(shape.name == f"{family}-base, {length}" for family, length in PROMISED)


def has_ragged_peer() -> bool:
    """Return whether transformers has a kernel for documents of different lengths here."""
    return torch.cuda.is_available() and is_flash_attn_2_available()


def git_commit() -> str:
    """Return the commit of this repository, or "unknown" outside a repository."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "--short=10", "HEAD"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    return found.stdout.strip()


def state_of_card() -> str | None:
    """Return what nvidia-smi says of the card's driver, clocks, power and temperature."""
    asked = "name,driver_version,memory.total,clocks.sm,clocks.mem,power.limit,temperature.gpu"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()


# Contests
# -------------------------------------------------------------------------------------------


class Contest(train.Contest):
    """A contest of ``train.py``, in which a run has several rounds and counts its own tokens."""

    def run(self, side: Side, bench: Bench, rounds: int, *, traced: bool) -> Laps:
        """Train a side once, and return its clock.

        Args:
            side: the side.
            bench: the benchmark.
            rounds: the number of rounds of ``shape.steps`` steps.
            traced: whether to trace some steps after the last round.
        """
        # A round is at most an epoch, because grouped rows begin with the longest.
        per_epoch = len(self.rows[train.PEER]) // self.shape.batch_size
        steps = max(1, min(self.shape.steps, per_epoch))
        laps = Laps(train.WARM, steps, rounds, traced=traced and side.is_ours, graphs=side.graphs)
        if bench.on_card:
            torch.cuda.reset_peak_memory_stats()
        laps.loss = self._train_ours(laps, side) if side.is_ours else self._peer(laps, side, bench)
        return laps

    def _train_ours(self, laps: Laps, side: Side) -> float:
        source = self.source(laps.end)
        changed = {"compile": side.compiled, **dict(side.more)}
        settings = source.settings.model_copy(update=changed)
        if side.graphs:
            source = FewShapes(source.rows, source.masker, source.settings)
        model = MaskedLanguageModelling(self.model())
        graphs = changed_blocks(**CudaGraphs.options)
        with graphs if side.graphs else nullcontext():
            loss = train_ours(model, source, settings, learners={"clock": laps})["loss"]
        assert loss is not None
        return loss

    def _peer(self, laps: Laps, side: Side, bench: Bench) -> float:
        """Train with ``Trainer`` and its usual settings for speed: fused AdamW and, on a GPU,
        loader processes and pinned memory.
        """
        rows = self.rows[train.PEER]
        model = self.model()
        texts = train.examples_of(rows, range(len(rows)))
        collator: Any = DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=train.RATIO)
        if side.rows == "packed":
            model.set_attn_implementation("flash_attention_2")
            collator = PackedCollator(Masker(self.tokenizer, ratio=train.RATIO), model=model)
        grouped = "group_by_length" if side.rows == "grouped by length" else "random"

        class Counting(Trainer):
            """A trainer that counts the tokens of its batches."""

            def training_step(self, model: Any, inputs: Any, *given: Any, **named: Any) -> Any:
                laps.count(inputs)
                return super().training_step(model, inputs, *given, **named)

        # In miniature, nothing is compiled.
        backend = {"torch_compile_backend": "eager"} if side.compiled and bench.smoke else {}
        return time_trainer(
            laps,
            model,
            texts,
            collator,
            batch_size=self.shape.batch_size,
            loop=Counting,
            use_cpu=not bench.on_card,
            bf16=bench.dtype == torch.bfloat16,
            dataloader_pin_memory=bench.on_card,
            dataloader_num_workers=4 if bench.on_card else 0,
            dataloader_persistent_workers=bench.on_card,
            # A smaller last batch would make a compiled model compile again.
            dataloader_drop_last=True,
            train_sampling_strategy=grouped,
            torch_compile=side.compiled,
            **backend,
        )

    @cached_property
    def flops_per_token(self) -> tuple[float, float]:
        """The FLOPs of a training step per token of text: all, and without attention."""
        work = Flops(MaskedLanguageModelling(self.model()))
        tokens = every = of_weights = 0
        for step in range(4):
            for batch in self.source(1000).batches(step, rank=0, ranks=1):
                tokens += batch.tokens
                every += work.trained(batch.tokens, batch.targets, batch.lengths)
                of_weights += work.trained(batch.tokens, batch.targets)
        return every / tokens, of_weights / tokens


class Laps(Clock):
    """A clock with several rounds in a run, after which a profiler may run for some steps.

    Args:
        warm: the number of updates before the first round.
        steps: the number of updates in a round.
        rounds: the number of rounds.
        traced: whether to trace ``TRACED`` updates after the last round.
        graphs: whether the run uses CUDA graphs, which must know where a step begins.

    Attributes:
        seconds, tokens, positions: the wall time of each round, its tokens of text, and its
            positions, which include padding.
        loss: the last loss.
        end: the number of updates in the whole run.
        profiler: the profiler, after it has run.
    """

    def __init__(
        self, warm: int, steps: int, rounds: int, *, traced: bool = False, graphs: bool = False
    ):
        super().__init__(warm, warm + rounds * steps)
        self.steps = steps
        self.marks = [warm + number * steps for number in range(rounds + 1)]
        # ``time_trainer`` trains until ``last``.
        self.end = self.last + (1 + TRACED if traced else 0)
        self.is_traced = traced
        self.graphs = graphs
        self.profiler: Any = None
        self.seconds: list[float] = []
        self.tokens: list[int] = []
        self.positions: list[int] = []
        self.loss = 0.0
        self._counted: list[Any] = []
        self._places = 0
        self._began = 0.0

    def observe(self, batch: MaskedBatch, outcome: Any) -> None:
        self._counted.append(batch.tokens)
        self._places += batch.input_ids.numel()

    def count(self, inputs: Any) -> None:
        """Count the tokens of a batch of ``Trainer``, without waiting for the device."""
        ids = inputs["input_ids"]
        self._places += ids.numel()
        ends = inputs.get("cu_seq_lens_q")
        if ends is not None:
            self._counted.append(ids.numel() - 2 * (len(ends) - 1))
            return
        show = inputs.get("attention_mask")
        tokens = ids.numel() if show is None else show.sum()
        # Each row has a special token at both ends.
        self._counted.append(tokens - 2 * len(ids))

    def tick(self, done: int) -> None:
        if self.graphs:
            torch.compiler.cudagraph_mark_step_begin()
        if done in self.marks:
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            now = time.perf_counter()
            if done != self.marks[0]:
                self.seconds.append(now - self._began)
                self.tokens.append(int(sum(self._counted)))
                self.positions.append(self._places)
            self._counted = []
            self._places = 0
            self._began = time.perf_counter()
        if not self.is_traced:
            return
        if done == self.last + 1:
            self._trace()
        elif done == self.end:
            if self.device.type != "cpu":
                torch.accelerator.synchronize()
            self.profiler.stop()

    def _trace(self) -> None:
        if self.device.type == "cuda":
            torch.accelerator.synchronize()
        self.profiler = new_profiler(self.device)
        self.profiler.start()


class Steps(Clock):
    """The time of each step, as the device sees it, without waiting for it.

    Attributes:
        drawn: the objective of each step; empty if the run has only one.
    """

    def __init__(self) -> None:
        super().__init__(0, 0)
        self.drawn: list[str] = []
        self._marks: list[Any] = []

    def observe(self, batch: MaskedBatch, outcome: Any) -> None:
        self.drawn.append(batch.objective)

    def tick(self, done: int) -> None:
        if self.device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        mark = torch.cuda.Event(enable_timing=True)
        mark.record()
        self._marks.append(mark)

    def milliseconds(self) -> list[float]:
        """Return the time of each step. The host waits for the last one."""
        found = []
        if self.device.type == "cuda":
            self._marks[-1].synchronize()
        for before, after in zip(self._marks, self._marks[1:]):
            if self.device.type == "cuda":
                found.append(before.elapsed_time(after))
            else:
                found.append(1000 * (after - before))
        return found


class Watched(Clock):
    """A clock that also makes torch warn of each synchronisation between its start and stop."""

    def tick(self, done: int) -> None:
        if done == self.last:
            self.warn("default")
        super().tick(done)
        if done == self.warm:
            self.warn("warn")

    def warn(self, mode: str) -> None:
        """Set what torch does when the host waits: "warn" or "default"."""
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)


if __name__ == "__main__":
    main()
