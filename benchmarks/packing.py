"""The time of training on short texts in ``MaskingTrainer``: padded, and with ``packing=True``.

    python benchmarks/packing.py > packing.json

Both train the bundled encoder on the same rows, real questions to a bank (banking77), in the same
order and with the same masks, in turn: processor seconds of all threads, for the same text. The
ratio of a pair is packed over padded, so below 1, packing is faster. ``padded_again`` is a second
padded training of each pair, and its ratio to the first shows what chance does.
"""

from __future__ import annotations

import time
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

from command import run
from figures import surroundings
from transformers import PrinterCallback, TrainingArguments

import maskwise as mw
from maskwise.text import read_documents
from maskwise.text.source import bundled_path


def main(pairs: int = 5, steps: int = 12, rows: int = 32) -> dict[str, Any]:
    texts = [document.text for document in read_documents(bundled_path("banking77"))]
    _, tokenizer = mw.load("bundled:encoder")
    data = mw.encode(tokenizer, texts[: steps * rows], max_length=128)
    tokens = sum(len(row["input_ids"]) for row in data)
    read: dict[str, int] = {}

    def trained(name: str, *, packing: bool) -> float:
        """The processor seconds of a training, without the time to build it."""
        model, _ = mw.load("bundled:encoder")
        read[name] = 0

        def add(_module: object, _ids: object, named: dict[str, Any]) -> None:
            read[name] += named["input_ids"].numel()

        model.base_model.register_forward_pre_hook(add, with_kwargs=True)
        with TemporaryDirectory() as folder:
            quiet: dict[str, Any] = {"report_to": "none", "disable_tqdm": True, "use_cpu": True}
            args = TrainingArguments(
                folder,
                max_steps=steps,
                per_device_train_batch_size=rows,
                save_strategy="no",
                **quiet,
            )
            masker = mw.Masker(tokenizer, ratio="linear(0.30, 0.15)")
            trainer = mw.MaskingTrainer(
                model, args, masker=masker, train_dataset=data, packing=packing
            )
            trainer.pop_callback(PrinterCallback)
            start = time.process_time()
            trainer.train()
            return time.process_time() - start

    seconds: dict[str, list[float]] = {"padded": [], "packed": [], "padded_again": []}
    # The first training of a process is slower.
    trained("warm", packing=True)
    for _ in range(pairs):
        for name, found in seconds.items():
            found.append(trained(name, packing=name == "packed"))
    ratios = {
        name: [one / other for one, other in zip(seconds[name], seconds["padded"], strict=True)]
        for name in ("packed", "padded_again")
    }
    return {
        **surroundings(),
        "rows": len(data),
        "tokens": tokens,
        "tokens_read": read,
        "seconds": seconds,
        "ratios": ratios,
        "median": {name: median(each) for name, each in ratios.items()},
    }


if __name__ == "__main__":
    run(main, __doc__)
