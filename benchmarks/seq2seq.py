"""What a step of denoising costs: our loop beside transformers' ``Seq2SeqTrainer`` at its best, on
the same tiny BART or T5.

All train with AdamW, in bfloat16, or in single precision where the processor only emulates it: the
peer on batches of similar length, ours on such batches and on packed rows, whose documents are read
and written each by itself. Each contestant is a process with one thread. They take turns, one step
at a time, so that whatever else the machine does slows all of them. Each trains for an epoch first,
so that start-up does not count, and then for three that are measured one by one: every document is
seen equally often, whichever order a loop takes. The cost is the process's processor time. The peer
is given examples that are masked already and pays for no masking; ours masks anew at every step.
Rates are tokens that are no padding, of encoder and decoder together.

    python benchmarks/seq2seq.py [--model t5] [--out RECORD.json]
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
    TrainerCallback,
    TrainerState,
)

from maskwise.bench import surroundings
from maskwise.devices import fast_bf16
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.masking.policies.base import Learner, Point
from maskwise.models import new_config, new_model
from maskwise.objectives import Denoising
from maskwise.objectives.base import Outcome, trained
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.weights import decoder_weights, encoder_weights, head_weights

PEER = "transformers.Seq2SeqTrainer"
OURS, PACKED = "maskwise", "maskwise, packed rows"
CONTESTANTS = (OURS, PACKED, PEER)
TINY = {
    "bart": {
        "d_model": 128,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 512,
        "decoder_ffn_dim": 512,
    },
    "t5": {"d_model": 128, "d_kv": 32, "num_layers": 2, "num_heads": 4, "d_ff": 512},
}
FORMATS = {"spans": "infill(target='spans')", "full text": "infill"}
LENGTH, BATCH_SIZE = 128, 32
DOCUMENTS = 80
MOST_SECONDS = 240.0
"""Of a format; after this time only epochs that are complete count, at least one."""
WARM = 1
"""Epochs before the first that is measured."""


class Noise:
    """How busy the machine is with other work: the time of a fixed product of matrices.

    On a quiet machine it always takes the same time.
    """

    def __init__(self) -> None:
        self.matrix = torch.ones(1024, 1024)
        self.load_before = os.getloadavg()[0]
        self.seconds: list[float] = []
        # The first product is slower on any machine.
        self.matrix.matmul(self.matrix)

    def probe(self) -> None:
        """Time the product once, by the wall clock."""
        began = time.perf_counter()
        self.matrix.matmul(self.matrix)
        self.seconds.append(time.perf_counter() - began)

    def report(self) -> dict[str, object]:
        """Load averages of the last minute, times of the probe, and their spread."""
        return {
            "load_before": round(self.load_before, 2),
            "load_after": round(os.getloadavg()[0], 2),
            "probe_milliseconds": [round(1000 * seconds, 2) for seconds in self.seconds],
            "probe_spread": spread(self.seconds),
        }


def spread(values: Sequence[float]) -> float:
    """The range of repeated measurements relative to their median."""
    return round((max(values) - min(values)) / median(values), 3)


class Runner:
    """Waits for its turn before every step, and says what the process has spent.

    Args:
        line: to the process that gives the turns.
    """

    def __init__(self, line: Connection):
        self.line = line

    def step_done(self, tokens: int) -> None:
        """Report all tokens so far, and wait."""
        self.line.send((time.process_time(), tokens))
        self.line.recv()


class OurRunner(Learner):
    """A runner for our loop, which also counts the tokens of each step."""

    def __init__(self, runner: Runner):
        self.runner = runner
        self.tokens: list[int] = []

    def observe(self, batch: MaskedBatch, outcome: Outcome) -> None:
        assert batch.attention_mask is not None
        read = int(batch.attention_mask.sum())
        self.tokens.append(read + int((batch.labels != IGNORE).sum()))

    def after(self, now: Point) -> None:
        # Called once before the first step, too.
        self.runner.step_done(sum(self.tokens))


class PeerRunner(TrainerCallback):
    """A runner for ``Trainer``."""

    def __init__(self, runner: Runner, tokens: int, per_epoch: int):
        self.runner = runner
        self.tokens = tokens
        self.per_epoch = per_epoch

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Right at the ends of epochs, which are all that is looked at.
        self.runner.step_done(self.tokens * state.global_step // self.per_epoch)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        # Right at the ends of epochs, which are all that is looked at.
        self.runner.step_done(self.tokens * state.global_step // self.per_epoch)


@dataclass
class Contest:
    """What all contestants share: a family, its data, and what it writes.

    Attributes:
        family: a key of ``TINY``.
        wanted: a key of ``FORMATS``.
    """

    family: str
    wanted: str
    epochs: int

    def __post_init__(self) -> None:
        texts = list(read_documents("bundled:wikipedia", limit=DOCUMENTS))
        self.tokenizer = train_tokenizer((text.text for text in texts), vocab_size=2048)
        pieces = read_pieces(
            tokenise(texts, self.tokenizer), tokenizer=self.tokenizer, length=LENGTH
        )
        self.rows = {
            OURS: Rows.of(pieces, "document"),
            PACKED: Rows.of(pieces, "packed"),
        }
        self.masker = Masker(
            self.tokenizer, policy="span", ratio=0.3, corruption=FORMATS[self.wanted]
        )

    def model(self) -> Any:
        fields = TINY[self.family]
        config = new_config(self.family, self.tokenizer, LENGTH, kind="encoder-decoder", **fields)
        return new_model(config, seed=0)

    def examples(self) -> list[dict[str, list[int]]]:
        """What the peer trains on: inputs and labels without padding, in whole batches."""
        rows = self.rows[OURS]
        count = len(rows) // BATCH_SIZE * BATCH_SIZE
        batch = self.masker(rows.batch(range(count)), epoch=0)
        assert batch.attention_mask is not None
        examples = []
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels):
            shown = ids[mask.bool()].tolist()
            examples.append({"input_ids": shown, "labels": labels[labels >= 0].tolist()})
        return examples

    def ours(self, who: str, runner: Runner) -> None:
        """Train with our loop."""
        rows = self.rows[who]
        per_epoch = len(rows) // BATCH_SIZE
        steps = self.epochs * per_epoch
        runner.line.send(per_epoch)
        settings = TrainingSettings(
            steps=steps,
            batch_size=BATCH_SIZE,
            group_by_length=rows.layout == "document",
            log_every=steps,
        )
        turns = OurRunner(runner)
        objective = Denoising(self.model())
        source = MaskedSource(rows, self.masker, settings)
        train(objective, source, settings, learners={"turns": turns}, quiet=True)

    def peer(self, runner: Runner) -> None:
        """Train with transformers' loop."""
        network = self.model()
        examples = self.examples()
        per_epoch = len(examples) // BATCH_SIZE
        steps = self.epochs * per_epoch
        runner.line.send(per_epoch)
        tokens = sum(len(row["input_ids"]) + len(row["labels"]) for row in examples)
        with tempfile.TemporaryDirectory() as folder:
            arguments = Seq2SeqTrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=BATCH_SIZE,
                report_to="none",
                save_strategy="no",
                logging_steps=steps,
                disable_tqdm=True,
                use_cpu=True,
                dataloader_pin_memory=False,
                bf16=fast_bf16(),
                train_sampling_strategy="group_by_length",
            )
            trainer = Seq2SeqTrainer(
                network,
                arguments,
                data_collator=DataCollatorForSeq2Seq(self.tokenizer, model=network),
                train_dataset=examples,
            )
            trainer.pop_callback(PrinterCallback)
            trainer.add_callback(PeerRunner(runner, tokens, per_epoch))
            trainer.train()


def contestant(line: Connection, who: str, family: str, wanted: str, epochs: int) -> None:
    """The work of a process: train, one step at a turn."""
    torch.set_num_threads(1)
    contest = Contest(family, wanted, epochs)
    runner = Runner(line)
    if who == PEER:
        contest.peer(runner)
    else:
        contest.ours(who, runner)
    # After the last step, where its turn would be.
    line.send(None)


class Turns:
    """A process of a contestant, as the one that gives the turns sees it."""

    def __init__(self, who: str, family: str, wanted: str, epochs: int):
        context = multiprocessing.get_context("spawn")
        self.line, other = context.Pipe()
        self.process = context.Process(
            target=contestant, args=(other, who, family, wanted, epochs), daemon=True
        )
        self.process.start()
        other.close()
        self.per_epoch = int(self.line.recv())
        self.after: list[tuple[float, int]] = [self.line.recv()]
        self.done = False

    def turn(self) -> None:
        """Let it make one step, if it has one left."""
        if self.done:
            return
        self.line.send(None)
        answer = self.line.recv()
        if answer is None:
            self.done = True
        else:
            self.after.append(answer)

    def measured(self) -> list[tuple[float, int]]:
        """Processor seconds of a step, and tokens a second, of each epoch that was completed."""
        marks = self.after[WARM * self.per_epoch :: self.per_epoch]
        figures = []
        for before, now in pairwise(marks):
            seconds = now[0] - before[0]
            figures.append((seconds / self.per_epoch, round((now[1] - before[1]) / seconds)))
        return figures

    def end(self) -> None:
        """End the process, also one that waits for a turn."""
        self.process.terminate()
        self.process.join()


def contest_of(
    family: str, wanted: str, *, repetitions: int, noise: Noise, say: Callable[[str], None]
) -> list[dict[str, Any]]:
    """The figures of all contestants in one format."""
    epochs = WARM + repetitions
    processes = {who: Turns(who, family, wanted, epochs) for who in CONTESTANTS}
    longest = max(process.per_epoch for process in processes.values())
    began = time.perf_counter()
    said = 0.0
    steps = 0
    while not all(process.done for process in processes.values()):
        for process in processes.values():
            process.turn()
        if steps % 20 == 0:
            noise.probe()
        steps += 1
        seconds = time.perf_counter() - began
        if seconds > MOST_SECONDS and steps > 2 * longest:
            say(f"{family}, {wanted}: the machine is busy, so fewer epochs were measured")
            break
        if seconds > said + 30:
            said = seconds
            say(f"{family}, {wanted}: {steps} turns, {seconds:.0f} s")
    every = {who: process.measured() for who, process in processes.items()}
    complete = min(map(len, every.values()))
    measured = {who: epochs[:complete] for who, epochs in every.items()}
    for process in processes.values():
        process.end()
    rates = {who: [rate for _, rate in epochs] for who, epochs in measured.items()}
    lines = []
    for who, figures in measured.items():
        ratios = [own / other for own, other in zip(rates[who], rates[PEER], strict=True)]
        lines.append(
            {
                "model": family,
                "format": wanted,
                "name": who,
                "ms_per_step": round(1000 * median(seconds for seconds, _ in figures), 1),
                "tokens_per_second": round(median(rates[who])),
                "repetitions": complete,
                "spread": spread(rates[who]),
                "rate_over_peer": round(median(ratios), 3),
                "rate_over_peer_range": [round(min(ratios), 3), round(max(ratios), 3)],
            }
        )
    return lines


def work_of(family: str, wanted: str) -> dict[str, Any]:
    """Tokens of a step on rows of documents, and the FLOPs of each half."""
    contest = Contest(family, wanted, WARM)
    examples = contest.examples()
    batches = len(examples) / BATCH_SIZE
    read = sum(len(row["input_ids"]) for row in examples) / batches
    written = sum(len(row["labels"]) for row in examples) / batches
    network = contest.model()
    writes, crossed = decoder_weights(network)
    return {
        "model": family,
        "format": wanted,
        "read": round(read),
        "written": round(written),
        "encoder_flops": round(6 * encoder_weights(network) * read),
        "decoder_flops": round(6 * (writes * written + crossed * read)),
        "head_flops": round(6 * sum(head_weights(network)) * written),
        "flops": trained(Denoising(network).work(read, written)),
    }


def bench_seq2seq(
    family: str, *, repetitions: int = 3, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """
    Returns:
        "contestants": a dict for each format and loop, with ``ms_per_step``, ``tokens_per_second``
        (encoder and decoder, without padding), its ``spread`` over repetitions, and
        ``rate_over_peer`` with its range; "formats": tokens read and written in a step, and the
        FLOPs of each half; "noise" of the machine (``Noise.report``).
    """
    torch.set_num_threads(1)
    noise = Noise()
    lines = []
    for wanted in FORMATS:
        lines += contest_of(family, wanted, repetitions=repetitions, noise=noise, say=say)
    return {
        "batch": f"{BATCH_SIZE} x {LENGTH}",
        "contestants": lines,
        "formats": [work_of(family, wanted) for wanted in FORMATS],
        "precision": "bf16" if fast_bf16() else "float32",
        "noise": noise.report(),
        "hardware": surroundings(["torch", "transformers", "accelerate"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--model", choices=TINY, default="bart")
    parser.add_argument("--out", type=Path, help="file for the record, as JSON")
    given = parser.parse_args()
    console = Console(stderr=True, soft_wrap=True)
    result = bench_seq2seq(given.model, say=console.print)
    if given.out:
        given.out.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("targets", "contestant", "ms a step", "tokens a second", "±", f"× {PEER}")
    for row in result["contestants"]:
        least, most = row["rate_over_peer_range"]
        table.add_row(
            row["format"],
            row["name"],
            f"{row['ms_per_step']:.1f}",
            f"{row['tokens_per_second']:,}",
            f"{row['spread']:.1%}",
            f"{row['rate_over_peer']:.2f} ({least:.2f} to {most:.2f})",
        )
    Console().print(table)
    noise = result["noise"]
    load = f"load average {noise['load_before']} before, {noise['load_after']} after"
    console.print(f"{load}; a fixed product of matrices varied by {noise['probe_spread']:.1%}")


if __name__ == "__main__":
    main()
