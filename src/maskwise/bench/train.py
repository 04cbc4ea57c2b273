"""What a training step costs: our loop beside the Hugging Face ``Trainer``, and what POS-weighted masking adds.

All train the same small model on the same rows for the same number of steps, one thread, float32, in turn, several
times; the cost of a step is the difference between a longer and a shorter run, so that start-up does not count.
Processor time, medians over the rounds: on a small machine they differ by up to a tenth from run to run, so a
difference below that is noise. The peer masks with ``DataCollatorForLanguageModeling`` in its loader and runs
its head on every position; ours masks whole words on the device and runs the head on the targets.
"""

from __future__ import annotations

import gc
import tempfile
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from rich.console import RenderableType
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

from maskwise.annotate.registry import annotator
from maskwise.bench.timing import processor_seconds, surroundings
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PEER = "transformers.Trainer"
TINY: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 336,
}
OURS = {"whole words": "whole-word", "POS-weighted": "pos-weighted"}


def bench_train(
    *, rounds: int = 5, steps: int = 40, batch_size: int = 32, length: int = 64
) -> dict[str, Any]:
    """
    Args:
        rounds: how often each contestant is timed.
        steps: that are timed, after as many that are not.

    Returns:
        "contestants": dicts with ``ms_per_step``, ``tokens_per_second`` and ``rate_over_peer``; "pos_weighted_adds":
        the share of a step; "hardware".
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        tokenizer, corpus = _rows(length)
        calls: dict[str, Callable[[int], None]] = {
            name: partial(_ours, policy, tokenizer, corpus, batch_size) for name, policy in OURS.items()
        }
        calls[PEER] = partial(_peer, tokenizer, corpus, batch_size)
        found: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(rounds):
            for name, call in calls.items():
                short, long = (_seconds(call, count) for count in (steps, 2 * steps))
                found[name].append((long - short) / steps)
    finally:
        torch.set_num_threads(threads)
    seconds = {name: median(values) for name, values in found.items()}
    return {
        "batch": f"{batch_size} x {length}",
        "contestants": [
            {
                "name": name, "ms_per_step": round(1000 * value, 2),
                "tokens_per_second": round(batch_size * length / value),
                "rate_over_peer": round(seconds[PEER] / value, 3),
            }
            for name, value in seconds.items()
        ],
        "pos_weighted_adds": round(seconds["POS-weighted"] / seconds["whole words"] - 1, 4),
        "hardware": surroundings(["torch", "transformers", "accelerate"]),
    }  # fmt: skip


def _rows(length: int) -> tuple[Any, Rows]:
    documents = list(read_documents("bundled:wikipedia", limit=400))
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=2048)
    tokens = tokenise(documents, tokenizer, layers=annotator("pos"))
    return tokenizer, Rows.of(read_pieces(tokens, tokenizer=tokenizer, length=length), "document")


def _model(tokenizer: PreTrainedTokenizerBase, length: int) -> Any:
    return new_model(new_config("bert", tokenizer, length, **TINY), seed=0)


def _ours(policy: str, tokenizer: PreTrainedTokenizerBase, corpus: Rows, batch_size: int, steps: int) -> None:
    settings = TrainingSettings(steps=steps, batch_size=batch_size, precision="no", log_every=steps)
    masker = Masker(tokenizer, policy=policy, ratio=0.15, budget="expected")
    source = MaskedSource(corpus, masker, settings)
    objective = MaskedLanguageModelling(_model(tokenizer, corpus.length))
    train(objective, source, settings, learners=source.learners(), quiet=True)


def _peer(tokenizer: PreTrainedTokenizerBase, corpus: Rows, batch_size: int, steps: int) -> None:
    laid = corpus.batch(range(len(corpus))).laid_out()
    rows = [{"input_ids": ids[show].tolist()} for ids, show in zip(laid["input_ids"], laid["attention_mask"])]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=batch_size, report_to="none", save_strategy="no",
            logging_steps=steps, disable_tqdm=True, use_cpu=True, dataloader_pin_memory=False,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=0.15)
        trainer = Trainer(
            _model(tokenizer, corpus.length), arguments, data_collator=collator, train_dataset=rows
        )
        trainer.pop_callback(PrinterCallback)
        trainer.train()


def _seconds(call: Callable[[int], None], steps: int) -> float:
    gc.collect()
    return processor_seconds(partial(call, steps))


def render_train(result: dict[str, Any]) -> RenderableType:
    """One table; the last line says what POS-weighted masking adds."""
    added = f"POS-weighted masking adds {100 * result['pos_weighted_adds']:.1f} % to a step"
    table = Table("contestant", "ms a step", "tokens a second", f"× {PEER}", caption=added)
    for row in result["contestants"]:
        cells = (f"{row['ms_per_step']:.1f}", f"{row['tokens_per_second']:,}", f"{row['rate_over_peer']:.2f}")
        table.add_row(row["name"], *cells)
    return table
