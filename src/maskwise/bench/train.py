"""What a training step costs: our loop beside transformers' ``Trainer`` as people run it, on the same models and text.

Both train BERT of one size from the same weights with AdamW and dropout on all cores, in turn, several times. The peer
runs in single precision, and in bfloat16 where the processor multiplies it natively; ours at its default. Two kinds of
text: *full* rows, and *varied* ones, where the peer pads documents of any length and ours packs them and reads each by
itself. Wall-clock time of one step is the difference between a longer and a shorter run, so that start-up does not
count; medians over the rounds. So the machine has to be quiet: neighbours cost the faster contestant more.

Rates are tokens of the text, without padding. The share of the hardware is the FLOPs of a step (the weights' matrix
products forward and backward, with the head on the targets alone) over the rate of a square matrix product that
is measured in the same run.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from rich.console import Console, RenderableType
from rich.progress import track
from rich.table import Table
from transformers import DataCollatorForLanguageModeling, PrinterCallback, Trainer, TrainingArguments

from maskwise.bench.timing import seconds_per_step, surroundings
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.objectives.base import trained
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.engine import best_device, fast_bf16
from maskwise.training.speed import measured_rate

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

PEER, OURS = "transformers.Trainer", "maskwise"
SIZES: dict[str, tuple[int, int, int]] = {"tiny": (2, 128, 10), "mini": (4, 256, 5), "small": (4, 512, 2)}
"""Layers, width, and steps that are timed."""
RATIO = 0.15


def bench_train(
    *, rounds: int = 2, batch_size: int = 32, length: int = 128, sizes: Sequence[str] = tuple(SIZES),
    vocabulary: int = 8192, documents: int = 2000,
) -> dict[str, Any]:  # fmt: skip
    """
    Args:
        rounds: how often each contestant is timed.
        sizes: of ``SIZES``.
        documents: of the bundled Wikipedia.

    Returns:
        "contestants": for each size, text and contestant its ``ms_per_step``, ``tokens_per_second``, the last
        ``loss``, its time per token over ours (``ours_over_it``), and for ours ``share_of_matmul``; "matmul_flops": a
        second.
    """
    found = list(read_documents("bundled:wikipedia", limit=documents))
    tokenizer = train_tokenizer((document.text for document in found), vocab_size=vocabulary)
    pieces = read_pieces(tokenise(found, tokenizer), tokenizer=tokenizer, length=length)
    rate = measured_rate(best_device(), torch.bfloat16 if fast_bf16() else torch.float32)
    contestants = []
    # Joined rows are full, and both read them as one text.
    texts = {"full": ("joined", "joined"), "varied": ("packed", "document")}
    contests = [(size, text) for size in sizes for text in texts]
    for size, text in track(contests, "timing models", console=Console(stderr=True)):
        ours, theirs = texts[text]
        rows = {OURS: Rows.of(pieces, ours), PEER: Rows.of(pieces, theirs)}
        contestants += _contest(size, text, rows, tokenizer, batch_size, rounds, rate)
    return {
        "batch": f"{batch_size} x {length}", "vocabulary": len(tokenizer), "contestants": contestants,
        "matmul_flops": rate, "hardware": surroundings(["torch", "transformers", "accelerate"]),
    }  # fmt: skip


def _contest(
    size: str, text: str, rows: dict[str, Rows], tokenizer: PreTrainedTokenizerBase, batch_size: int,
    rounds: int, rate: float,
) -> list[dict[str, Any]]:  # fmt: skip
    """The lines of one size and text."""
    layers, width, steps = SIZES[size]

    def model() -> Any:
        fields: dict[str, Any] = {
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": width // 64,
        }
        config = new_config("bert", tokenizer, rows[PEER].length, **fields, intermediate_size=4 * width)
        return new_model(config, seed=0)

    calls: dict[str, Callable[[int], float]] = {
        OURS: partial(_ours, model, tokenizer, rows[OURS], batch_size)
    }
    for precision in ("fp32", "bf16") if fast_bf16() else ("fp32",):
        calls[f"{PEER} {precision}"] = partial(
            _peer, model, tokenizer, rows[PEER], batch_size, precision == "bf16"
        )
    per_step, losses = seconds_per_step(calls, steps=steps, rounds=rounds, clock=time.perf_counter)
    tokens = {name: batch_size * rows[name.split()[0]].tokens / len(rows[name.split()[0]]) for name in calls}
    per_token = {name: per_step[name] / tokens[name] for name in calls}
    work = MaskedLanguageModelling(model()).work(tokens[OURS], RATIO * tokens[OURS])
    lines = []
    for name in calls:
        line = {
            "size": f"{size} ({layers} × {width})", "text": text, "name": name,
            "ms_per_step": round(1000 * per_step[name], 1), "tokens_per_second": round(1 / per_token[name]),
            "loss": round(losses[name], 3), "ours_over_it": round(per_token[name] / per_token[OURS], 2),
        }  # fmt: skip
        if name == OURS:
            line["share_of_matmul"] = round(trained(work) / per_step[name] / rate, 3)
        lines.append(line)
    return lines


def _ours(
    model: Callable[[], Any], tokenizer: PreTrainedTokenizerBase, rows: Rows, batch_size: int, steps: int
) -> float:
    settings = TrainingSettings(steps=steps, batch_size=batch_size, log_every=steps, learning_rate=5e-5)
    source = MaskedSource(rows, Masker(tokenizer, ratio=RATIO), settings)
    loss = train(MaskedLanguageModelling(model()), source, settings, quiet=True)["loss"]
    assert loss is not None
    return loss


def _peer(
    model: Callable[[], Any],
    tokenizer: PreTrainedTokenizerBase,
    rows: Rows,
    batch_size: int,
    bf16: bool,
    steps: int,
) -> float:
    laid = rows.batch(range(min(len(rows), batch_size * steps))).laid_out()
    texts = [
        {"input_ids": ids[show].tolist()} for ids, show in zip(laid["input_ids"], laid["attention_mask"])
    ]
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, per_device_train_batch_size=batch_size, report_to="none", save_strategy="no",
            logging_steps=steps, disable_tqdm=True, use_cpu=best_device().type == "cpu", bf16=bf16,
            dataloader_pin_memory=False,
        )  # fmt: skip
        collator = DataCollatorForLanguageModeling(tokenizer, mlm_probability=RATIO)
        trainer = Trainer(model(), arguments, data_collator=collator, train_dataset=texts)
        trainer.pop_callback(PrinterCallback)
        return float(trainer.train().training_loss)


def render_train(result: dict[str, Any]) -> RenderableType:
    """One table; the last line says what the hardware does."""
    rate = result["matmul_flops"] / 1e12
    caption = f"{result['batch']} tokens; a matrix product does {rate:.2f} TFLOP/s here"
    columns = ("model", "text", "contestant", "ms a step", "tokens a second", "ours is × faster", "loss")
    table = Table(*columns, caption=caption)
    for row in result["contestants"]:
        cells = (f"{row['ms_per_step']:.1f}", f"{row['tokens_per_second']:,}", f"{row['ours_over_it']:.2f}")
        table.add_row(row["size"], row["text"], row["name"], *cells, f"{row['loss']:.2f}")
    return table
