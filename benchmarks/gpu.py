"""Training on a GPU: speed relative to ``Trainer``, MFU, memory, synchronisations, and a trace.

    python benchmarks/gpu.py [--out DIR] [--seconds 500] [--smoke]

The benchmark takes less than ten minutes. It needs only this repository, because the weights of its
models are random and its texts are bundled. Each figure is appended to DIR/gpu.jsonl as soon as it
is measured. An interrupted run therefore loses only its unfinished part. With ``--smoke``, each
part runs on any machine, with tiny models.

On a machine without a network, missing packages can be installed from 5 MB of wheels (Python 3.12):

    python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \\
        --platform manylinux_2_28_x86_64 --platform manylinux2014_x86_64 --implementation cp \\
        annotated-types datasets dill loky multiprocess pydantic pydantic-core typing-inspection

Copy ``.whl`` to the machine, and run there:

    python3 -m pip install -q --no-index --no-deps --no-compile --target /tmp/site .whl/*.whl &&
    export PYTHONPATH=/tmp/site:src PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 &&
    python3 benchmarks/gpu.py --out DIR

Versions of torch below 2.13 lack some features, which are not measured. The first line of gpu.jsonl
lists the missing features.

maskwise and ``Trainer`` train the same weights on the same documents, in bfloat16. Attention
dropout is off, because torch's attention kernel for documents of different lengths does not support
it. maskwise trains on packed rows with attention within documents. ``Trainer`` pads documents. MFU
(model FLOPs utilisation) is the FLOP/s spent on tokens of text, relative to a maximum. There are
two maxima: the FLOP/s of the data sheet, and of a large matrix product on this machine.
"""

from __future__ import annotations

import argparse
import gc
import inspect
import json
import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
import train
from timing import Clock
from torch.nn.attention import varlen
from torch.profiler import ProfilerActivity, profile
from torch.utils.benchmark import Timer

from maskwise.bench import Figures, surroundings
from maskwise.constants import UPOS
from maskwise.devices import best_device, fast_bf16, measured_rate, peak_memory
from maskwise.masking import Masker
from maskwise.objectives import MaskedLanguageModelling, objective, objective_class
from maskwise.samplers import sampler
from maskwise.text import read_documents, split, train_tokenizer
from maskwise.training import MaskedSource
from maskwise.training import train as train_ours
from maskwise.training.arms import Arms, ArmsSource, Probe, SamplerLearner

DATA_SHEET = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "B200": 2250e12}
"""Dense bfloat16 FLOP/s of SXM cards, keyed by a part of the card's name."""

ARMS = ("mlm", "emlm", "atd", "dtd", "cse")
LENGTHS = (128, 1024, 512)
FAMILIES = ("bert", "modernbert")
PROMISED = (("bert", 128), ("modernbert", 1024))
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
SYNCHRONISES = "called a synchronizing CUDA operation"
"""Torch's warning of a wait. Another warning only says that this check is a prototype."""
SHOWN = (
    "card",
    "ms_per_step",
    "tokens_per_second",
    "mfu_data_sheet",
    "mfu_measured",
    "memory_gib",
    "waits_in_a_step",
    "error",
    "left_out",
)
"""Figures that are printed, in addition to their lines in gpu.jsonl."""
Part = tuple[str, Callable[[], Figures]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", "runs/gpu")))
    parser.add_argument(
        "--seconds", type=float, default=500, help="time after which no part is started"
    )
    parser.add_argument("--smoke", action="store_true", help="run every part with tiny models")
    given = parser.parse_args()
    if not (given.smoke or torch.cuda.is_available()):
        sys.exit("there is no GPU here; --smoke runs every part in miniature")
    bench(given.out, seconds=given.seconds, smoke=given.smoke)


def bench(out: Path, *, seconds: float, smoke: bool) -> list[Figures]:
    """Run parts while there is time, the most important parts first.

    Args:
        out: the folder for gpu.jsonl and the trace.
        seconds: the time after which no part is started.
        smoke: whether to run each part with tiny models.

    Returns:
        The lines of gpu.jsonl. The line of a failed part has the key "error".
    """
    out.mkdir(parents=True, exist_ok=True)
    bench = Bench(smoke=smoke)
    # Without a GPU, blocks are traced but not compiled, because compiling for a CPU takes minutes.
    traced = patch.object(torch, "compile", partial(torch.compile, backend="eager"))
    lines = []
    began = time.perf_counter()
    with (
        (out / "gpu.jsonl").open("w", encoding="utf-8") as file,
        traced if smoke else nullcontext(),
    ):
        for name, part in bench.parts(out):
            line = {"part": name}
            free_memory()
            start = time.perf_counter()
            if start - began > seconds:
                line["left_out"] = "no time"
            else:
                try:
                    line |= part()
                # If a part fails on an unknown machine, the other parts must still run.
                except Exception as error:
                    line["error"] = f"{type(error).__name__}: {error}"[:2000]
            line["seconds"] = round(time.perf_counter() - start, 1)
            lines.append(line)
            file.write(json.dumps(line) + "\n")
            file.flush()
            shown = {key: line[key] for key in SHOWN if line.get(key) is not None}
            sys.stdout.write(f"{time.perf_counter() - began:5.0f} s  {name}: {shown}\n")
            sys.stdout.flush()
    return lines


def free_memory() -> None:
    """Free the memory of earlier parts, also of reference cycles, and reset the peak."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


class Bench:
    """The parts of the benchmark, which share texts, a tokenizer and the FLOP/s of the card.

    Args:
        smoke: whether to use models with two small layers, short rows and one step.
    """

    def __init__(self, *, smoke: bool):
        self.smoke = smoke
        self.device = best_device()
        self.dtype = torch.bfloat16 if fast_bf16() else torch.float32
        self.rate = measured_rate(self.device, self.dtype)
        self.card = self.device.type
        if torch.cuda.is_available():
            self.card = torch.cuda.get_device_name()
        known = [rate for part, rate in DATA_SHEET.items() if part in self.card]
        self.sheet = known[0] if known else None
        self.documents = list(read_documents("bundled:wikipedia", limit=60 if smoke else 2000))
        texts = (document.text for document in self.documents)
        self.tokenizer = train_tokenizer(texts, vocab_size=300 if smoke else 8192)
        self.contests = {}

    def parts(self, out: Path) -> Iterator[Part]:
        """Yield the name and the function of each part, most important first."""
        yield "machine", self.machine
        yield "waits", partial(self.waits, "token", 0)
        # The documentation promises the figures of these shapes. Compilation takes minutes, so
        # everything that needs none comes first.
        yield from self.contestants(PROMISED)
        yield "waits, pos-weighted", partial(self.waits, "pos-weighted", 0)
        yield "waits, pos-weighted, one step late", partial(self.waits, "pos-weighted", 1)
        yield "several objectives", self.several
        yield from self.contestants(PROMISED, " compiled")
        yield "trace", partial(self.trace, out)
        if not self.smoke:
            shapes = [(family, length) for family in FAMILIES for length in LENGTHS]
            others = [each for each in shapes if each not in PROMISED]
            for end in ("", " compiled"):
                yield from self.contestants(others, end)

    def contestants(self, shapes: Sequence[tuple[str, int]], end: str = "") -> Iterator[Part]:
        """Yield a part for each model and side; ``end`` is "" or " compiled"."""
        for family, length in shapes:
            shape = self.shape(family, length)
            for side in (train.OURS, f"{train.PEER} {self.precision}"):
                if side == train.OURS or not (self.smoke and end):
                    yield f"{shape.name}: {side}{end}", partial(self.timed, shape, side + end)

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
            return train.Shape(name, family, fields | SMALL, batch_size=4, length=32, steps=1)
        return train.Shape(name, family, fields, BATCH // length, length, steps=20)

    def contest(self, shape: train.Shape) -> train.Contest:
        """Return the contest of both sides for a shape, from a cache."""
        key = f"{shape.name}, {shape.batch_size}"
        if key not in self.contests:
            made = train.Contest(shape, "varied", self.documents, self.tokenizer, self.rate)
            columns = made.rows[train.OURS].pieces.columns
            # Arbitrary parts of speech are enough, because the cost does not depend on the tags.
            columns["pos"] = columns["word_ids"] % len(UPOS)
            self.contests[key] = made
        return self.contests[key]

    # Parts

    def machine(self) -> Figures:
        """Return the card, versions, FLOP/s, bandwidth, and features that this torch lacks."""
        lacks = []
        if "enable_gqa" not in inspect.signature(varlen.varlen_attn).parameters:
            lacks.append("varlen_attn with grouped heads")
        size = COPIED >> (14 if self.smoke else 0)
        there = torch.empty(size, dtype=torch.uint8, device=self.device)
        into = torch.empty_like(there)
        names = {"into": into, "there": there}
        copying = Timer("into.copy_(there)", globals=names).timeit(5).median
        return {
            **surroundings(),
            "card": self.card,
            "cuda": torch.version.cuda,
            "precision": self.precision,
            "matmul_flops": self.rate,
            "data_sheet_flops": self.sheet,
            "copied_bytes_per_second": round(2 * size / copying),
            "torch_lacks": lacks,
        }

    def timed(self, shape: train.Shape, name: str) -> Figures:
        """Return time, tokens of text per second, MFU, memory and the last loss of a side."""
        contest = self.contest(shape)
        try:
            contest.time(name)
            fits = True
        except torch.OutOfMemoryError:
            fits = False
        if not fits:
            # In the except block, the traceback would keep the tensors of the failed step alive.
            free_memory()
            return self.timed(shape._replace(batch_size=shape.batch_size // 2), name)
        line = contest.line(name)
        for key in ("mfu", "ours_over_it", "ours_over_it_range"):
            line.pop(key, None)
        # The FLOPs per token of text are the same for both sides. FLOPs for padding and recomputing
        # are not counted.
        flops = contest.flops / contest.tokens(train.OURS) * line["tokens_per_second"]
        line["mfu_measured"] = round(flops / self.rate, 4)
        line["mfu_data_sheet"] = round(flops / self.sheet, 4) if self.sheet else None
        return line

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
            train_ours(model, source, settings, learners=learners, quiet=True)
        waits = [f"{w.filename}:{w.lineno}" for w in caught if SYNCHRONISES in str(w.message)]
        on_card = self.device.type == "cuda"
        seconds = watch.seconds_per_step
        return {
            "waits_in_a_step": len(waits) / (steps - 1) if on_card else None,
            "waits_at": sorted(set(waits)),
            "ms_per_step": round(1000 * seconds, 2),
            "tokens_per_second": round(contest.tokens(train.OURS) / seconds),
        }

    def several(self) -> Figures:
        """Return the step time and the last probe losses of MOMETAS with five objectives."""
        contest = self.contest(self.shape("bert", 128))
        # Every objective accepts rows of one document. The probe uses held-out rows.
        pieces = contest.rows[train.PEER].pieces
        shown, held_out = split(pieces, held_out=0.2, layout="document")
        steps = 6 if self.smoke else 30
        settings = contest.source(steps).settings
        model = contest.model()
        arms = Arms({name: objective(name, model) for name in ARMS})
        sources = {}
        for name in ARMS:
            # Words replace salient spans here, because the cost does not depend on the spans.
            masking = {"policy": "guided(layer=word_ids)"} if name == "emlm" else {}
            kind = objective_class(name)
            masker = kind.maker(self.tokenizer, seed=0, length=shown.length, **masking)
            sources[name] = MaskedSource(shown, masker, settings)
        size = 8 if self.smoke else 64
        chooser = sampler(f"mometas(every={steps // 3}, rows={size})", list(ARMS), steps=steps)
        batches = ArmsSource(sources, chooser, settings)

        def probe() -> Probe:
            return Probe(
                arms,
                batches,
                dict.fromkeys(ARMS, held_out),
                sizes=dict.fromkeys(ARMS, size),
                skip={},
            )

        clock = Clock(1, steps)
        learner = SamplerLearner(chooser, probe)
        learners = {**batches.learners(), "sampler": learner, "clock": clock}
        train_ours(arms, batches, settings, learners=learners, quiet=True)
        return {
            "objectives": list(ARMS),
            "rows": len(shown) + len(held_out),
            "ms_per_step": round(1000 * clock.seconds_per_step, 2),
            "probe_losses": dict(learner.facts())["probe_losses"],
            "memory_gib": round(peak_memory(self.device) / 2**30, 3),
        }

    def trace(self, out: Path) -> Figures:
        """Write a trace of some steps of compiled ModernBERT, and return the shares of kernels."""
        shape = self.shape("modernbert", 1024)
        contest = self.contest(shape)
        steps = 2 if self.smoke else 12
        source = contest.source(steps)
        settings = source.settings.model_copy(update={"compile": True})
        activities = [ProfilerActivity.CPU]
        if self.device.type == "cuda":
            activities.append(ProfilerActivity.CUDA)
        profiler = profile(activities=activities)
        watch = Traced(profiler, max(1, steps - 4))
        model = MaskedLanguageModelling(contest.model())
        train_ours(model, source, settings, learners={"trace": watch}, quiet=True)
        profiler.stop()
        path = out / "trace.json.gz"
        profiler.export_chrome_trace(str(path))
        on_card = self.device.type == "cuda"
        order = "self_device_time_total" if on_card else "self_cpu_time_total"
        events = profiler.key_averages()
        spent = {event.key[:80]: getattr(event, order) for event in events}
        most = sorted(spent, key=lambda name: -spent[name])[:25]
        total = max(1, sum(spent.values()))
        return {
            "file": path.name,
            "bytes": path.stat().st_size,
            "shares": {name: round(spent[name] / total, 4) for name in most},
        }


class Watched(Clock):
    """A clock that also makes torch warn of each synchronisation between its start and stop."""

    def tick(self, done: int) -> None:
        if done == self.last:
            self._warn("default")
        super().tick(done)
        if done == self.warm:
            self._warn("warn")

    def _warn(self, mode: str) -> None:
        if self.device.type == "cuda":
            torch.cuda.set_sync_debug_mode(mode)


class Traced(Clock):
    """Starts a profiler after the first steps, in which torch compiles.

    Args:
        profiler: the profiler.
        first: the number of updates before the profiler starts.
    """

    def __init__(self, profiler: profile, first: int):
        super().__init__(first, first)
        self.profiler = profiler

    def tick(self, done: int) -> None:
        if done == self.warm:
            self.profiler.start()


if __name__ == "__main__":
    main()
