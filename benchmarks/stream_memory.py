"""Does a stream need memory that grows with it? Peak anonymous memory of training on streams of two
sizes.

    python benchmarks/stream_memory.py [SMALL_MB LARGE_MB]   # default: 2 20; the claim: 20 2000

Each size is read in a process of its own, from four shards of JSON lines with distinct documents.
The process prepares the stream (tokenizer, held-out text), drains an epoch of masked batches into a
model that computes nothing, and then trains a real model (BERT, 2 × 128) for 200 steps at the
beginning, in the middle and at the end. Each of the three goes on from a saved state in a new
reader; the seconds until its first batch are measured. A thread reads the anonymous memory of the
process and its workers (RssAnon of /proc) every 20 ms; pages of files are not counted.
"""

from __future__ import annotations

import gc
import json
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import closing, contextmanager
from pathlib import Path

from prepare_memory import MEGABYTE, _anonymous, write_text

SHARDS, LENGTH, BATCH, STEPS = 4, 128, 32, 200


class Watch:
    """The peak of the anonymous memory of this process and its children, part by part, in
    megabytes.
    """

    def __init__(self) -> None:
        self.peaks: dict[str, float] = {}
        self.part, self.done = "begin", threading.Event()
        threading.Thread(target=self._look, daemon=True).start()

    def _look(self) -> None:
        while not self.done.wait(0.02):
            part, now = self.part, _anonymous() / MEGABYTE
            self.peaks[part] = max(self.peaks.get(part, 0.0), round(now, 1))

    @contextmanager
    def during(self, part: str):
        """Whatever happens here belongs to this part."""
        gc.collect()
        self.part = part
        yield
        self.part = "between"


def measure(folder: Path, out: Path, workers: int) -> dict[str, object]:
    """All parts for one stream."""
    import torch
    from transformers import BertConfig, BertForMaskedLM

    from maskwise.masking import Masker
    from maskwise.masking.policies.base import Point
    from maskwise.objectives import objective
    from maskwise.text import Prepared
    from maskwise.text.settings import CorpusSettings, TokenizerSettings, first_characters
    from maskwise.training import MaskedSource, TrainingSettings, train
    from maskwise.training.stream import StreamedRows

    torch.set_num_threads(1)
    watch, facts = Watch(), dict[str, object]()
    corpus = CorpusSettings(source=str(folder), stream=True, length=LENGTH)
    with watch.during("prepare"):
        began = time.perf_counter()
        settings = TokenizerSettings(vocab_size=8192)
        tokenizer = settings.tokenizer(first_characters(corpus.documents()))
        Prepared.begin(out / "data", corpus, tokenizer)
        data = Prepared.open(out / "data")
        facts["prepare_seconds"] = round(time.perf_counter() - began, 1)
    how = TrainingSettings(steps=10**9, batch_size=BATCH, workers=workers)
    states: list[tuple[int, dict[str, torch.Tensor]]] = []
    with watch.during("drain"), closing(StreamedRows(data.training, how)) as rows:
        source = MaskedSource(rows, Masker(data.tokenizer), how)
        began, step, tokens, epoch = time.perf_counter(), 0, 0, 0
        while True:
            rows.after(Point(step, how.steps, lambda sums: sums))
            if step % 50 == 0:
                states.append((step, rows.state_dict()))
            [batch] = source.batches(step, rank=0, ranks=1)
            _, epoch = rows.draw(step)
            if epoch:
                break
            tokens, step = tokens + batch.tokens, step + 1
        seconds = time.perf_counter() - began
    facts |= {
        "steps": step,
        "tokens": tokens,
        "drain_seconds": round(seconds, 1),
        "tokens_per_second": round(tokens / seconds),
    }
    facts["state_bytes"] = len(states[len(states) // 2][1]["place"])
    del source, batch
    few = how.model_copy(
        update={"steps": min(STEPS, max(1, step // 4)), "precision": "no", "log_every": 50}
    )
    for part, (at, state) in {
        "start": states[0],
        "middle": states[len(states) // 2],
        "end": states[-5:][0],
    }.items():
        with watch.during(part), closing(StreamedRows(data.training, few)) as rows:
            # The training here counts its steps from 0.
            text = json.loads(state["place"].numpy().tobytes()) | {"step": 0}
            began = time.perf_counter()
            rows.load_state_dict(
                {"place": torch.frombuffer(bytearray(json.dumps(text).encode()), dtype=torch.uint8)}
            )
            source = MaskedSource(rows, Masker(data.tokenizer), few)
            source.batches(0, rank=0, ranks=1)
            facts[f"{part}_first_batch_seconds"] = round(time.perf_counter() - began, 2)
            torch.manual_seed(0)
            config = BertConfig(
                vocab_size=len(data.tokenizer),
                hidden_size=128,
                num_hidden_layers=2,
                num_attention_heads=2,
                intermediate_size=512,
                max_position_embeddings=LENGTH,
            )
            done = train(objective("mlm", BertForMaskedLM(config)), source, few, quiet=True)
            facts[f"{part}_step"], facts[f"{part}_loss"] = at, round(done["loss"] or 0.0, 3)
    watch.done.set()
    return {**facts, "peak_mb": watch.peaks}


def main(*sizes: str) -> None:
    """Read each size in a process of its own and print what it took."""
    workers = next((int(size[10:]) for size in sizes if size.startswith("--workers=")), 1)
    peaks = []
    with tempfile.TemporaryDirectory() as scratch:
        for size in [size for size in sizes if size.isdecimal()] or ("2", "20"):
            folder = Path(scratch) / size
            folder.mkdir()
            for shard in range(SHARDS):
                write_text(folder / f"{shard}.jsonl", int(size) / SHARDS, seed=shard)
            command = [
                sys.executable,
                __file__,
                "--one",
                str(folder),
                str(Path(scratch) / "out"),
                str(workers),
            ]
            done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
            facts = json.loads(done.stdout.splitlines()[-1])
            peaks.append(facts["peak_mb"])
            sys.stdout.write(f"{size} MB, {workers} workers: {json.dumps(facts)}\n")
            sys.stdout.flush()
            for path in folder.iterdir():
                path.unlink()
    more = {
        part: round(peaks[-1][part] - peaks[0][part], 1) for part in peaks[0] if part in peaks[-1]
    }
    sys.stdout.write(
        f"the last size takes so many megabytes more than the first: {json.dumps(more)}\n"
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        result = measure(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
        sys.stdout.write(f"{json.dumps(result)}\n")
    else:
        main(*sys.argv[1:])
