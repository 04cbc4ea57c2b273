"""What a step of denoising costs: our loop beside transformers' ``Seq2SeqTrainer`` at its best, on
the same tiny BART.

All train with AdamW, in bfloat16, or in single precision where the processor only emulates it: the
peer on batches of similar length, ours on such batches and on packed rows, whose documents are read
and written each by itself. One thread, in turn, several times. The cost of a step is that of a
second epoch: the difference between a run of two epochs and one of one, so that start-up does not
count and both loops see every document equally often, whichever order each of them takes. Processor
time, medians over the rounds. The peer is given examples that are masked already and pays for no
masking; ours masks anew at every step. Rates are tokens that are no padding, of encoder and decoder
together; a step of packed rows has more of them.

    python benchmarks/seq2seq.py [--json]
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from timing import seconds_per_step
from transformers import (
    DataCollatorForSeq2Seq,
    PrinterCallback,
    Seq2SeqTrainer,
    Seq2SeqTrainingArguments,
)

from maskwise.bench import surroundings
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import Denoising
from maskwise.objectives.base import trained
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.engine import fast_bf16
from maskwise.weights import decoder_weights, encoder_weights, head_weights

PEER = "transformers.Seq2SeqTrainer"
OURS, PACKED = "maskwise", "maskwise, packed rows"
TINY = {
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 512,
    "decoder_ffn_dim": 512,
}
FORMATS = {"spans": "infill(target='spans')", "full text": "infill"}


def bench_seq2seq(
    *, rounds: int = 3, documents: int = 140, batch_size: int = 32, length: int = 128
) -> dict[str, Any]:
    """
    Returns:
        "contestants": a dict for each format and loop, with ``ms_per_step``, ``tokens_per_second``
        (encoder and decoder, without padding) and ``rate_over_peer``; "formats": tokens read and
        written in a step, and the FLOPs of each half.
    """
    torch.set_num_threads(1)
    texts = list(read_documents("bundled:wikipedia", limit=documents))
    tokenizer = train_tokenizer((text.text for text in texts), vocab_size=2048)
    pieces = read_pieces(tokenise(texts, tokenizer), tokenizer=tokenizer, length=length)
    corpus, packed = Rows.of(pieces, "document"), Rows.of(pieces, "packed")
    contestants, formats = [], {}
    for name, corruption in FORMATS.items():
        masker = Masker(tokenizer, policy="span", ratio=0.3, corruption=corruption)
        examples = masked_examples(corpus, masker)
        read, written = (
            batch_size * mean(len(row[key]) for row in examples) for key in ("input_ids", "labels")
        )
        calls = {
            OURS: partial(ours, tokenizer, corpus, masker, batch_size),
            PACKED: partial(ours, tokenizer, packed, masker, batch_size),
            PEER: partial(peer, tokenizer, length, examples, batch_size),
        }
        seconds, _ = seconds_per_step(calls, steps=len(corpus) // batch_size, rounds=rounds)
        network = model(tokenizer, length)
        writes, crossed = decoder_weights(network)
        formats[name] = {
            "read": round(read),
            "written": round(written),
            "encoder_flops": round(6 * encoder_weights(network) * read),
            "decoder_flops": round(6 * (writes * written + crossed * read)),
            "head_flops": round(6 * sum(head_weights(network)) * written),
            "flops": trained(Denoising(network).work(read, written)),
        }
        documents_a_row = {PACKED: len(corpus) / len(packed)}
        rates = {
            who: (read + written) * documents_a_row.get(who, 1) / spent
            for who, spent in seconds.items()
        }
        contestants += [
            {
                "format": name,
                "name": who,
                "ms_per_step": round(1000 * seconds[who], 1),
                "tokens_per_second": round(rate),
                "rate_over_peer": round(rate / rates[PEER], 3),
            }
            for who, rate in rates.items()
        ]
    hardware = surroundings(["torch", "transformers", "accelerate"])
    return {
        "batch": f"{batch_size} x {length}",
        "contestants": contestants,
        "formats": formats,
        "precision": "bf16" if fast_bf16() else "float32",
        "hardware": hardware,
    }


def model(tokenizer: Any, length: int) -> Any:
    return new_model(new_config("bart", tokenizer, length, kind="encoder-decoder", **TINY), seed=0)


def masked_examples(corpus: Rows, masker: Masker) -> list[dict[str, list[int]]]:
    """What the peer trains on: inputs and labels without padding."""
    batch = masker(corpus.batch(range(len(corpus))), epoch=0)
    inputs = [ids[mask.bool()].tolist() for ids, mask in zip(batch.input_ids, batch.attention_mask)]
    return [
        {"input_ids": ids, "labels": row[row >= 0].tolist()}
        for ids, row in zip(inputs, batch.labels)
    ]


def ours(tokenizer: Any, corpus: Rows, masker: Masker, batch_size: int, steps: int) -> None:
    grouped = corpus.layout == "document"
    settings = TrainingSettings(
        steps=steps, batch_size=batch_size, group_by_length=grouped, log_every=steps
    )
    train(
        Denoising(model(tokenizer, corpus.length)),
        MaskedSource(corpus, masker, settings),
        settings,
        quiet=True,
    )


def peer(
    tokenizer: Any, length: int, examples: list[dict[str, list[int]]], batch_size: int, steps: int
) -> None:
    network = model(tokenizer, length)
    with tempfile.TemporaryDirectory() as folder:
        arguments = Seq2SeqTrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            report_to="none",
            save_strategy="no",
            logging_steps=steps,
            disable_tqdm=True,
            use_cpu=True,
            dataloader_pin_memory=False,
            bf16=fast_bf16(),
            train_sampling_strategy="group_by_length",
        )
        collator = DataCollatorForSeq2Seq(tokenizer, model=network)
        trainer = Seq2SeqTrainer(network, arguments, data_collator=collator, train_dataset=examples)
        trainer.pop_callback(PrinterCallback)
        trainer.train()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--json", action="store_true")
    result = bench_seq2seq()
    if parser.parse_args().json:
        Console().print_json(data=result)
        return
    table = Table("targets", "contestant", "ms a step", "tokens a second", f"× {PEER}")
    for row in result["contestants"]:
        cells = (
            f"{row['ms_per_step']:.1f}",
            f"{row['tokens_per_second']:,}",
            f"{row['rate_over_peer']:.2f}",
        )
        table.add_row(row["format"], row["name"], *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
