"""The time of a training step on a CPU, in maskwise and in transformers' ``Trainer``.

    python benchmarks/train.py > train.json

gpu.py makes the same comparison on a GPU. The contestants train the same weights in turn, with
AdamW and dropout, on all cores. ``Trainer`` runs in single precision, and also in bfloat16 if that
is faster on the hardware. maskwise runs with its default precision. There are two kinds of text. In
*full* rows, all contestants train on documents that are joined without padding. In *varied* rows,
``Trainer`` pads documents of any length, and maskwise packs documents, with attention within
documents.

Times are wall times of a step, after the first steps of a run, and medians over rounds. All
contestants train once in each round. The machine must be idle, because other processes slow down
the faster contestant more. Three figures show whether the machine was idle: load averages, the time
of a fixed piece of work between rounds, and the spread of each figure over rounds.

Rates are tokens of text per second, without padding. MFU is as in ``training.log``: the FLOPs of a
step (forward and backward matrix products, attention within documents, the head on the targets
only) per second, divided by the FLOP/s of a square matrix product in the same run.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from command import run
from timing import Clock, in_rounds, relative, time_trainer
from transformers import DataCollatorForLanguageModeling

from maskwise.bench import Figures, spread, surroundings
from maskwise.devices import best_device, fast_bf16, measured_rate, peak_memory
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.data import look_ahead
from maskwise.training.log import Meter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PEER, OURS = "transformers.Trainer", "maskwise"
RATIO, WARM = 0.15, 2
"""Share of masked tokens, and number of untimed steps, in which torch chooses kernels and allocates
memory.
"""


class Shape(NamedTuple):
    """A model and the shape of its batches.

    Attributes:
        name: the name of the model size.
        architecture: the model type of transformers.
        fields: fields of the model's configuration.
        batch_size: the number of rows in a batch.
        length: the number of tokens in a row.
        steps: the number of timed steps.
    """

    name: str
    architecture: str
    fields: Figures
    batch_size: int
    length: int
    steps: int


def bert(name: str, layers: int, width: int, steps: int) -> Shape:
    fields = {
        "hidden_size": width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // 64,
        "intermediate_size": 4 * width,
    }
    return Shape(f"{name} ({layers} × {width})", "bert", fields, 32, 128, steps)


SHAPES = (bert("tiny", 2, 128, 10), bert("mini", 4, 256, 5), bert("small", 4, 512, 3))


def bench_train(
    shapes: Sequence[Shape] = SHAPES,
    *,
    rounds: int = 3,
    vocabulary: int = 8192,
    documents: int = 2000,
) -> Figures:
    """Time all contestants on all shapes and both kinds of text.

    Args:
        shapes: the models and batches.
        rounds: the number of times that each contestant is timed.
        vocabulary: the vocabulary size of the tokenizer.
        documents: the number of documents of the bundled Wikipedia.

    Returns:
        A dict with "contestants" (the figures of ``Contest.line`` for each shape, text and
        contestant), "matmul_flops" (FLOP/s), and "noise" (see ``maskwise.bench.noise_of``).
    """
    found = list(read_documents("bundled:wikipedia", limit=documents))
    tokenizer = train_tokenizer((document.text for document in found), vocab_size=vocabulary)
    rate = measured_rate(best_device(), torch.bfloat16 if fast_bf16() else torch.float32)
    names = [OURS, f"{PEER} fp32"]
    if fast_bf16():
        names.append(f"{PEER} bf16")
    contests = []
    turns = []
    for shape in shapes:
        for text in ("full", "varied"):
            contest = Contest(shape, text, found, tokenizer, rate)
            contests.append(contest)
            turns += [partial(contest.time, name) for name in names]
    noise = in_rounds(turns, rounds)
    return {
        "vocabulary": len(tokenizer),
        "contestants": [contest.line(name) for contest in contests for name in names],
        "matmul_flops": rate,
        "noise": noise,
        "hardware": surroundings(),
    }


class Contest:
    """A contest on one shape and kind of text, in which all contestants train the same weights.

    Args:
        shape: the model and its batches.
        text: "full" rows of joined text, or "varied" rows of documents.
        documents: the documents.
        tokenizer: the tokenizer.
        rate: the FLOP/s of a matrix product.

    Attributes:
        seconds: the seconds per step in each round, keyed by contestant.
        facts: the last loss and the peak memory, keyed by contestant.
    """

    def __init__(
        self,
        shape: Shape,
        text: str,
        documents: Sequence[Any],
        tokenizer: PreTrainedTokenizerFast,
        rate: float,
    ):
        self.shape, self.text, self.tokenizer, self.rate = shape, text, tokenizer, rate
        pieces = read_pieces(
            tokenise(documents, tokenizer), tokenizer=tokenizer, length=shape.length
        )
        ours, theirs = ("joined", "joined") if text == "full" else ("packed", "document")
        self.rows = {OURS: Rows.of(pieces, ours), PEER: Rows.of(pieces, theirs)}
        self.seconds = {}
        self.facts = {}

    def model(self) -> Any:
        """Return the untrained model, with the same weights for all contestants."""
        config = new_config(
            self.shape.architecture, self.tokenizer, self.rows[PEER].length, **self.shape.fields
        )
        return new_model(config, seed=0)

    def source(self, steps: int) -> MaskedSource:
        settings = TrainingSettings(
            steps=steps, batch_size=self.shape.batch_size, log_every=steps, learning_rate=5e-5
        )
        return MaskedSource(self.rows[OURS], Masker(self.tokenizer, ratio=RATIO), settings)

    def time(self, name: str) -> None:
        """Train a contestant once, and store its seconds per step."""
        clock = Clock(WARM, WARM + self.shape.steps)
        if clock.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        loss = self._ours(clock, name) if name.startswith(OURS) else self._theirs(clock, name)
        self.seconds.setdefault(name, []).append(clock.seconds_per_step)
        self.facts[name] = {
            "loss": round(loss, 3),
            "memory_gib": round(peak_memory(clock.device) / 2**30, 3),
        }

    def _ours(self, clock: Clock, name: str) -> float:
        source = self.source(clock.last)
        settings = source.settings.model_copy(update={"compile": name.endswith("compiled")})
        objective = MaskedLanguageModelling(self.model())
        loss = train(objective, source, settings, learners={"clock": clock}, quiet=True)["loss"]
        assert loss is not None
        return loss

    def _theirs(self, clock: Clock, name: str) -> float:
        """Train with ``Trainer`` and its usual settings for speed: fused AdamW and, on a GPU,
        loader processes and pinned memory.
        """
        rows, size = self.rows[PEER], self.shape.batch_size
        laid = rows.batch(range(min(len(rows), size * clock.last))).laid_out()
        texts = [
            {"input_ids": ids[show].tolist()}
            for ids, show in zip(laid["input_ids"], laid["attention_mask"] > 0)
        ]
        on_cpu = clock.device.type == "cpu"
        return time_trainer(
            clock,
            self.model(),
            texts,
            DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=RATIO),
            batch_size=size,
            use_cpu=on_cpu,
            bf16="bf16" in name,
            dataloader_pin_memory=not on_cpu,
            dataloader_num_workers=0 if on_cpu else 4,
            dataloader_persistent_workers=not on_cpu,
            torch_compile=name.endswith("compiled"),
        )

    def tokens(self, name: str) -> float:
        """Return the mean number of tokens of text in a step of a contestant."""
        rows = self.rows[name.split()[0]]
        return self.shape.batch_size * rows.tokens / len(rows)

    def rates(self, name: str) -> list[float]:
        """Return the tokens of text per second in each round."""
        return [self.tokens(name) / seconds for seconds in self.seconds[name]]

    def line(self, name: str) -> Figures:
        """Return the figures of a contestant: medians over rounds, and maskwise relative to it."""
        rates = self.rates(name)
        seconds = median(self.seconds[name])
        line = {
            "size": self.shape.name,
            "batch": f"{self.shape.batch_size} × {self.shape.length}",
            "text": self.text,
            "name": name,
            "ms_per_step": round(1000 * seconds, 2),
            "spread": spread(self.seconds[name]),
            "rounds": len(rates),
            "tokens_per_second": round(median(rates)),
            **self.facts[name],
        }
        if name.startswith(OURS):
            line["mfu"] = round(self.flops / seconds / self.rate, 4)
        if OURS in self.seconds:
            line["ours_over_it"], line["ours_over_it_range"] = relative(self.rates(OURS), rates)
        return line

    @cached_property
    def flops(self) -> float:
        """FLOPs of a training step of maskwise, the mean over four steps."""
        steps = 4
        source = self.source(1000)
        objective = MaskedLanguageModelling(self.model())
        meter = Meter(objective, best_device(), "no", ranks=1, frozen=False, known=False)
        # The meter counts FLOPs only if it has a FLOP/s of the device.
        meter.rate = self.rate
        for step in look_ahead(source, range(steps)):
            meter.add(step)
        return meter.flops / steps


def main(rounds: int = 3) -> Figures:
    return bench_train(rounds=rounds)


if __name__ == "__main__":
    run(main, __doc__)
