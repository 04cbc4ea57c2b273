"""Does memory grow with the size of a stream? The peak memory of training on two streams.

    python benchmarks/stream_memory.py [SMALL_MB LARGE_MB]   # default: 2 20; documentation: 20 2000

Each stream has four shards of JSON lines with distinct documents, and is read in a new process. The
process prepares the stream (tokenizer, held-out text) and reads all masked batches of an epoch
without training. Then the process trains BERT (2 × 128) for up to 200 steps at the beginning, in
the middle and at the end of the stream. Each of these trainings resumes from a saved state with a
new reader, and the seconds until its first batch are measured. Every 20 ms, a thread reads the
anonymous memory of the process and its workers (RssAnon in /proc), which excludes pages of files.
"""

from __future__ import annotations

import gc
import json
import multiprocessing
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from command import run
from transformers import BertConfig, BertForMaskedLM

from maskwise.masking import Masker
from maskwise.objectives import objective
from maskwise.text import Prepared
from maskwise.text.documents import first_characters
from maskwise.text.settings import CorpusSettings, TokenizerSettings
from maskwise.text.tokenizers import SAMPLE_CHARACTERS
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.stream import StreamedRows

MEGABYTE = 1 << 20
SHARDS, LENGTH, BATCH, STEPS = 4, 128, 32, 200


def write_text(path: Path, megabytes: float, *, seed: int) -> None:
    """Write distinct articles of about 2,000 letters, made from half a million different random
    words with Zipf's frequencies.
    """
    alphabet = np.random.default_rng(0).integers(97, 123, size=(1 << 19, 7), dtype=np.uint8)
    letters = alphabet.view("S7")[:, 0]
    share = np.cumsum(1 / np.arange(1, len(letters) + 1))
    share /= share[-1]
    draw = np.random.default_rng([0, seed])
    size = 0
    with path.open("wb") as file:
        while size < megabytes * MEGABYTE:
            words = letters[np.searchsorted(share, draw.random(250))]
            size += file.write(b'{"text": "' + b" ".join(words.tolist()) + b'"}\n')


class Watch:
    """Records the peak anonymous memory of this process and its children, in megabytes per part."""

    def __init__(self) -> None:
        self.peaks = {}
        self.part = "begin"
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while True:
            part = self.part
            now = round(anonymous() / MEGABYTE, 1)
            self.peaks[part] = max(self.peaks.get(part, 0.0), now)
            time.sleep(0.02)

    @contextmanager
    def during(self, part: str) -> Iterator[None]:
        """Record the peak in this context under the name ``part``."""
        gc.collect()
        self.part = part
        yield
        self.part = "between"


def anonymous() -> int:
    """Return the bytes of anonymous memory of this process and its children.

    A child process that has the same command line as this process is still between fork and exec.
    It shares the pages of this process, so its memory is not counted.
    """
    ours = Path("/proc/self/cmdline").read_bytes()
    pids = ["self"]
    for file in Path("/proc/self/task").glob("*/children"):
        pids += file.read_text().split()
    total = 0
    for pid in pids:
        try:
            if pid != "self" and Path(f"/proc/{pid}/cmdline").read_bytes() == ours:
                continue
            lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) << 10 for line in lines if line.startswith("RssAnon"))
    return total


def measure(folder: Path, out: Path, workers: int) -> dict[str, Any]:
    """Run all parts on one stream, and return the peaks and times."""
    torch.set_num_threads(1)
    watch = Watch()
    corpus = CorpusSettings(source=str(folder), stream=True, length=LENGTH)
    with watch.during("prepare"):
        settings = TokenizerSettings(vocab_size=8192)
        tokenizer = settings.tokenizer(first_characters(corpus.documents(), SAMPLE_CHARACTERS))
        Prepared.begin(out, corpus, tokenizer)
        data = Prepared.open(out)
    masker = Masker(data.tokenizer)
    how = TrainingSettings(steps=10**9, batch_size=BATCH, workers=workers)
    states = []
    with watch.during("drain"), closing(StreamedRows(data.training, how)) as rows:
        source = MaskedSource(rows, masker, how)
        step = tokens = epoch = 0
        while not epoch:
            if step % 50 == 0:
                states.append((step, rows.position(step)))
            [batch] = source.batches(step, rank=0, ranks=1)
            _, epoch = rows.draw(step)
            if not epoch:
                tokens += batch.tokens
                step += 1
    middle = states[len(states) // 2]
    facts = {"steps": step, "tokens": tokens}
    del source, batch
    steps = min(STEPS, max(1, step // 4))
    few = how.model_copy(update={"steps": steps, "precision": "no", "log_every": 50})
    config = BertConfig(
        vocab_size=len(data.tokenizer),
        hidden_size=128,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=512,
        max_position_embeddings=LENGTH,
    )
    places = {"start": states[0], "middle": middle, "end": states[-5:][0]}
    for part, (at, state) in places.items():
        with watch.during(part), closing(StreamedRows(data.training, few)) as rows:
            # This training counts steps from 0, unlike the saved state.
            began = time.perf_counter()
            rows.resume(state | {"step": 0})
            source = MaskedSource(rows, masker, few)
            source.batches(0, rank=0, ranks=1)
            facts[f"{part}_first_batch_seconds"] = round(time.perf_counter() - began, 2)
            torch.manual_seed(0)
            done = train(objective("mlm", BertForMaskedLM(config)), source, few)
            facts[f"{part}_step"] = at
            facts[f"{part}_loss"] = round(done["loss"] or 0.0, 3)
    return {**facts, "peak_mb": dict(watch.peaks)}


def main(megabytes: Annotated[list[int] | None, typer.Argument()] = None, workers: int = 1) -> None:
    """Run all parts on a stream of each size, in new processes, and print the figures."""
    peaks = []
    for size in megabytes or [2, 20]:
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "texts"
            folder.mkdir()
            for shard in range(SHARDS):
                write_text(folder / f"{shard}.jsonl", size / SHARDS, seed=shard)
            with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
                facts = pool.submit(measure, folder, Path(scratch) / "data", workers).result()
        peaks.append(facts["peak_mb"])
        sys.stdout.write(f"{size} MB, {workers} workers: {json.dumps(facts)}\n")
        sys.stdout.flush()
    small, large = peaks[0], peaks[-1]
    more = {part: round(large[part] - small[part], 1) for part in small if part in large}
    sys.stdout.write(
        f"megabytes that the last size takes more than the first: {json.dumps(more)}\n"
    )


if __name__ == "__main__":
    run(main, __doc__)
