"""The time of a denoising step of a tiny model, in maskwise and transformers' ``Seq2SeqTrainer``.

    python benchmarks/seq2seq.py [--model t5] [--out RECORD.json]

There are three contestants: ``Seq2SeqTrainer`` with batches of similar length, maskwise with such
batches, and maskwise with packed rows and attention within documents. All train the same BART or T5
with AdamW, in bfloat16, or in single precision if the processor only emulates bfloat16. They train
in turn, in one process with one thread. In a round, a contestant trains for an untimed epoch and
then for a timed epoch. Each document is therefore used equally often. Times are processor times.
``Seq2SeqTrainer`` gets examples that are already masked, whereas maskwise masks the rows of every
step. Rates count the tokens of encoder and decoder, without padding.
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch
from command import run
from figures import Figures, spread, surroundings
from timing import Clock, in_rounds, relative, sample_text, time_trainer
from transformers import DataCollatorForSeq2Seq, Seq2SeqTrainer, Seq2SeqTrainingArguments

from maskwise.base.devices import fast_bf16
from maskwise.masking import IGNORE, MaskedBatch, Masker
from maskwise.models.flops import (
    Flops,
    decoder_attention,
    decoder_weights,
    encoder_attention,
    encoder_weights,
    head_weights,
)
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import Denoising
from maskwise.text import Rows
from maskwise.training import MaskedSource, TrainingSettings, train

PEER = "transformers.Seq2SeqTrainer"
LAYOUTS = {"maskwise": "document", "maskwise, packed rows": "packed", PEER: "document"}
"""Contestants → the layout of their rows."""
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
Family = Literal["bart", "t5"]


class Contest:
    """The contestants on one model family and one format of targets.

    Args:
        family: the model family, a key of ``TINY``.
        wanted: the format of the targets, a key of ``FORMATS``.

    Attributes:
        seconds: the processor seconds per step in each round, keyed by contestant.
    """

    def __init__(self, family: str, wanted: str):
        self.family = family
        self.wanted = wanted
        self.tokenizer, pieces = sample_text(DOCUMENTS, vocabulary=2048, length=LENGTH)
        self.rows = {who: Rows.of(pieces, layout) for who, layout in LAYOUTS.items()}
        self.masker = Masker(self.tokenizer, policy="span", ratio=0.3, corruption=FORMATS[wanted])
        self.seconds = {who: [] for who in LAYOUTS}

    def model(self) -> Any:
        fields = TINY[self.family]
        config = new_config(self.family, self.tokenizer, LENGTH, kind="encoder-decoder", **fields)
        return new_model(config, seed=0)

    def epoch(self, who: str) -> int:
        """Return the number of steps in an epoch of a contestant."""
        return len(self.rows[who]) // BATCH_SIZE

    def masked(self, who: str) -> MaskedBatch:
        """Return the rows from which a contestant's batches are drawn, masked once.

        maskwise draws from all rows; rows that fill no batch belong to the next epoch.
        ``Seq2SeqTrainer`` gets as many rows as an epoch has.
        """
        rows = self.rows[who]
        count = self.epoch(who) * BATCH_SIZE if who == PEER else len(rows)
        return self.masker(rows.line(range(count)), epoch=0)

    def work(self, who: str) -> tuple[float, float]:
        """Return the mean numbers of encoder and decoder tokens in a step."""
        batch = self.masked(who)
        steps = len(batch.labels) / BATCH_SIZE
        written = int((batch.labels != IGNORE).sum())
        return int(batch.attention_mask.sum()) / steps, written / steps

    def time(self, who: str) -> None:
        """Train a contestant for two epochs, and store the time per step in the second epoch."""
        epoch = self.epoch(who)
        clock = Clock(epoch, 2 * epoch)
        self.train(who, self.model(), clock)
        self.seconds[who].append(clock.processor / epoch)

    def train(self, who: str, network: Any, clock: Clock) -> None:
        """Train for ``clock.last`` steps, with maskwise or with transformers."""
        if who == PEER:
            self._peer(network, clock)
            return
        rows = self.rows[who]
        settings = TrainingSettings(
            steps=clock.last,
            batch_size=BATCH_SIZE,
            group_by_length=rows.layout == "document",
            log_every=clock.last,
        )
        source = MaskedSource(rows, self.masker, settings)
        train(Denoising(network), source, settings, learners={"clock": clock})

    def _peer(self, network: Any, clock: Clock) -> None:
        batch = self.masked(PEER)
        examples = []
        for ids, mask, labels in zip(batch.input_ids, batch.attention_mask, batch.labels):
            shown = ids[mask.bool()].tolist()
            examples.append({"input_ids": shown, "labels": labels[labels >= 0].tolist()})
        time_trainer(
            clock,
            network,
            examples,
            DataCollatorForSeq2Seq(self.tokenizer, model=network),
            batch_size=BATCH_SIZE,
            loop=Seq2SeqTrainer,
            settings=Seq2SeqTrainingArguments,
            use_cpu=True,
            dataloader_pin_memory=False,
            bf16=fast_bf16(),
            train_sampling_strategy="group_by_length",
        )

    def lines(self) -> list[Figures]:
        """Return the figures of all contestants."""
        rates = {}
        for who, rounds in self.seconds.items():
            tokens = sum(self.work(who))
            rates[who] = [tokens / seconds for seconds in rounds]
        lines = []
        for who, own in rates.items():
            ratio, ends = relative(own, rates[PEER])
            line = {
                "model": self.family,
                "format": self.wanted,
                "name": who,
                "ms_per_step": round(1000 * median(self.seconds[who]), 1),
                "tokens_per_second": round(median(own)),
                "repetitions": len(own),
                "spread": spread(own),
                "rate_over_peer": ratio,
                "rate_over_peer_range": ends,
            }
            lines.append(line)
        return lines

    def flops(self) -> Figures:
        """Return the tokens of a step on rows of single documents, and the FLOPs of each half."""
        read, written = self.work(PEER)
        network = self.model()
        writes, crossed = decoder_weights(network)
        epoch = self.epoch(PEER)
        lengths = self.masked(PEER).lengths
        encoder = encoder_weights(network) * read
        encoder += encoder_attention(network.config, lengths.read) / epoch
        decoder = writes * written + crossed * read
        decoder += decoder_attention(network.config, lengths) / epoch
        whole = Flops(Denoising(network)).trained(epoch * read, epoch * written, lengths)
        return {
            "model": self.family,
            "format": self.wanted,
            "read": round(read),
            "written": round(written),
            "encoder_flops": round(6 * encoder),
            "decoder_flops": round(6 * decoder),
            "head_flops": round(6 * sum(head_weights(network)) * written),
            "flops": round(whole / epoch),
        }


def bench_seq2seq(family: str, *, rounds: int = 3) -> Figures:
    """Time all contestants on both formats of targets.

    Returns:
        A dict with "contestants", "formats" and "noise" (``noise_of``). "contestants" has a
        dict for each format and contestant: ``ms_per_step``, ``tokens_per_second`` (encoder and
        decoder, without padding), ``spread`` over rounds, and ``rate_over_peer`` with its range.
        "formats" has the encoder and decoder tokens of a step, and the FLOPs of each half.
    """
    torch.set_num_threads(1)
    contests = [Contest(family, wanted) for wanted in FORMATS]
    noise = in_rounds(
        [partial(contest.time, who) for contest in contests for who in LAYOUTS], rounds
    )
    return {
        "batch": f"{BATCH_SIZE} x {LENGTH}",
        "contestants": [line for contest in contests for line in contest.lines()],
        "formats": [contest.flops() for contest in contests],
        "precision": "bf16" if fast_bf16() else "float32",
        "noise": noise,
        "hardware": surroundings(),
    }


def main(model: Family = "bart", rounds: int = 3, out: Path | None = None) -> Figures | None:
    result = bench_seq2seq(model, rounds=rounds)
    if out is None:
        return result
    out.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    run(main, __doc__)
