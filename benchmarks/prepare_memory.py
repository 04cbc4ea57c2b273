"""Does preparing a corpus need memory that grows with it? Peak anonymous memory of preparing texts
of two sizes.

    python benchmarks/prepare_memory.py [SMALL_MB LARGE_MB]   # default: 2 20; the claim: 20 200

Each size is prepared in a process of its own, as a study does it: documents of distinct words are
read from JSON lines, a tokenizer is trained, tokens are cut into pieces and written, and both sides
are planned. A thread reads the anonymous memory of the process and its children (RssAnon of /proc)
every 20 ms; memory-mapped pages are not counted.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np

MEGABYTE = 1 << 20


def write_text(path: Path, megabytes: float, *, seed: int = 0) -> None:
    """Distinct articles of about 2,000 letters; words follow Zipf's law over half a million made-up
    ones.
    """
    letters = (
        np.random.default_rng(0)
        .integers(97, 123, size=(1 << 19, 7), dtype=np.uint8)
        .view("S7")[:, 0]
    )
    rank = np.arange(1, len(letters) + 1)
    share = np.cumsum(1 / rank) / (1 / rank).sum()
    draw, size = np.random.default_rng([0, seed]), 0
    with path.open("wb") as file:
        while size < megabytes * MEGABYTE:
            words = letters[np.searchsorted(share, draw.random(250))]
            size += file.write(b'{"text": "' + b" ".join(words.tolist()) + b'"}\n')


def prepare(corpus: Path, folder: Path) -> dict[str, float]:
    """Prepare a corpus; the peak of its anonymous memory in MB and the seconds it took."""
    import torch  # noqa: F401  a study has it loaded

    from maskwise.text import Prepared, read_documents, tokenise, train_tokenizer

    peak, done = [0], threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peak[0] = max(peak[0], _anonymous())

    began, base = time.process_time(), _anonymous()
    threading.Thread(target=watch, daemon=True).start()
    documents = read_documents(corpus)
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=8192)
    tokens = tokenise(documents, tokenizer)
    data = Prepared.make(folder, tokens, tokenizer, length=128, layout="packed", held_out=0.02)
    done.set()
    facts = {
        "peak_mb": peak[0] / MEGABYTE,
        "before_mb": base / MEGABYTE,
        "seconds": time.process_time() - began,
    }
    return facts | {"tokens": data.training.pieces.counts["tokens"], "rows": len(data.training)}


def _anonymous() -> int:
    """Bytes of anonymous memory of this process and its children.

    A child that still bears our command line is between fork and exec: its pages are ours, and
    would count twice.
    """
    ours = Path("/proc/self/cmdline").read_bytes()
    children = Path("/proc/self/task").glob("*/children")
    pids = ["self", *(pid for file in children for pid in file.read_text().split())]
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


def main(*sizes: str) -> None:
    """Prepare each size in a process of its own and print what it took."""
    with tempfile.TemporaryDirectory() as scratch:
        for size in sizes or ("2", "20"):
            corpus = Path(scratch) / f"{size}.jsonl"
            write_text(corpus, int(size))
            command = [sys.executable, __file__, "--one", str(corpus), str(Path(scratch) / size)]
            facts = json.loads(
                subprocess.run(command, check=True, capture_output=True, text=True).stdout
            )
            line = ", ".join(f"{name} {value:,.1f}" for name, value in facts.items())
            print(f"{size} MB: {line}", flush=True)  # noqa: T201
            corpus.unlink()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(json.dumps(prepare(Path(sys.argv[2]), Path(sys.argv[3]))))  # noqa: T201
    else:
        main(*sys.argv[1:])
