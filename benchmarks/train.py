"""The time of a training step on a CPU, in maskwise and in transformers' ``Trainer``.

    python benchmarks/train.py [--sizes tiny,small] [--texts full] > train.json

gpu.py makes the same comparison on a GPU. The contestants train the same weights in turn, with
AdamW and dropout, on all cores or on those of ``OMP_NUM_THREADS``. Both run in single precision,
and also in bfloat16 if that is faster on the hardware. There are two kinds of text. In *full* rows,
all contestants train on documents that are joined without padding. In *varied* rows, ``Trainer``
pads documents of any length, and maskwise packs documents, with attention within documents.

Times are of a step, after the first steps of a run, and medians over rounds: wall seconds, and
processor seconds of all threads. All contestants train once in each round. The ratio of a line is
between the two contestants of its precision, and "best_over_best" is between the better precision
of each. The machine must be idle, because other processes slow down the faster contestant more.
Three figures show whether the machine was idle: load averages, the time of a fixed piece of work
between rounds, and the spread of each figure over rounds.

Rates are tokens of text per second, without padding. MFU is as in ``training.log``: the FLOPs of a
step (forward and backward matrix products, attention within documents, the head on the targets
only) per second, divided by the FLOP/s of a square matrix product in the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property, partial
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from command import run
from figures import Figures, spread, surroundings
from timing import Clock, in_rounds, relative, time_trainer
from transformers import DataCollatorForLanguageModeling

from maskwise.base.devices import best_device, fast_bf16, measured_rate, peak_memory
from maskwise.masking import Masker
from maskwise.models.flops import Flops
from maskwise.models.loading import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PEER, OURS = "transformers.Trainer", "maskwise"
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
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
TEXTS = ("full", "varied")


def bench_train(
    shapes: Sequence[Shape] = SHAPES,
    *,
    texts: Sequence[str] = TEXTS,
    rounds: int = 3,
    vocabulary: int = 8192,
    documents: int = 2000,
) -> Figures:
    """Time all contestants on all shapes and kinds of text.

    Args:
        shapes: the models and batches.
        texts: some of ``TEXTS``.
        rounds: the number of times that each contestant is timed.
        vocabulary: the vocabulary size of the tokenizer.
        documents: the number of documents of the bundled Wikipedia.

    Returns:
        A dict with "contestants" (the figures of ``Contest.line`` for each shape, text and
        contestant), "best_over_best" (those of ``Contest.best`` for each shape and text),
        "matmul_flops" (FLOP/s for each precision), and "noise" (see ``figures.noise_of``).
    """
    found = list(read_documents("bundled:wikipedia", limit=documents))
    tokenizer = train_tokenizer((document.text for document in found), vocab_size=vocabulary)
    precisions = ("fp32", "bf16") if fast_bf16() else ("fp32",)
    rates = {name: measured_rate(best_device(), DTYPES[name]) for name in precisions}
    names = [f"{side} {precision}" for precision in precisions for side in (OURS, PEER)]
    contests = []
    turns = []
    for shape in shapes:
        for text in texts:
            contest = Contest(shape, text, found, tokenizer)
            contests.append(contest)
            turns += [partial(contest.time, name) for name in names]
    noise = in_rounds(turns, rounds)
    return {
        "vocabulary": len(tokenizer),
        "contestants": [contest.line(name, rates) for contest in contests for name in names],
        "best_over_best": [contest.best() for contest in contests],
        "matmul_flops": rates,
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

    Attributes:
        wall, processor: the seconds per step in each round, keyed by contestant.
        facts: the last loss and the peak memory, keyed by contestant.
    """

    def __init__(
        self,
        shape: Shape,
        text: str,
        documents: Sequence[Any],
        tokenizer: PreTrainedTokenizerFast,
    ):
        self.shape, self.text, self.tokenizer = shape, text, tokenizer
        pieces = read_pieces(
            tokenise(documents, tokenizer), tokenizer=tokenizer, length=shape.length
        )
        ours, theirs = ("joined", "joined") if text == "full" else ("packed", "document")
        self.rows = {OURS: Rows.of(pieces, ours), PEER: Rows.of(pieces, theirs)}
        self.wall: dict[str, list[float]] = {}
        self.processor: dict[str, list[float]] = {}
        self.facts: dict[str, Figures] = {}

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
        side, precision = name.split()
        clock = Clock(WARM, WARM + self.shape.steps)
        if clock.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        train_side = self._ours if side == OURS else self._theirs
        loss = train_side(clock, precision)
        self.wall.setdefault(name, []).append(clock.seconds_per_step)
        self.processor.setdefault(name, []).append(clock.processor / self.shape.steps)
        self.facts[name] = {
            "loss": round(loss, 3),
            "memory_gib": round(peak_memory(clock.device) / 2**30, 3),
        }

    def _ours(self, clock: Clock, precision: str) -> float:
        source = self.source(clock.last)
        changed = {"precision": "bf16" if precision == "bf16" else "no"}
        settings = source.settings.model_copy(update=changed)
        objective = MaskedLanguageModelling(self.model())
        loss = train(objective, source, settings, learners={"clock": clock})["loss"]
        assert loss is not None
        return loss

    def _theirs(self, clock: Clock, precision: str) -> float:
        """Train with ``Trainer`` and its usual settings for speed: fused AdamW and, on a GPU,
        loader processes and pinned memory.
        """
        on_cpu = clock.device.type == "cpu"
        return time_trainer(
            clock,
            self.model(),
            self.texts,
            DataCollatorForLanguageModeling(self.tokenizer, mlm_probability=RATIO),
            batch_size=self.shape.batch_size,
            use_cpu=on_cpu,
            bf16=precision == "bf16",
            dataloader_pin_memory=not on_cpu,
            dataloader_num_workers=0 if on_cpu else 4,
            dataloader_persistent_workers=not on_cpu,
        )

    def tokens(self, name: str) -> float:
        """Return the mean number of tokens of text in a step of a contestant."""
        rows = self.rows[OURS]
        mean = rows.tokens / len(rows)
        if name.startswith(PEER):
            mean = sum(len(text["input_ids"]) for text in self.texts) / len(self.texts)
        return self.shape.batch_size * mean

    @cached_property
    def texts(self) -> list[dict[str, list[int]]]:
        """The rows that ``Trainer`` reads, each once: as many as it needs, from all of the text.

        The first rows would be shorter than the mean, because the first documents are.
        """
        rows = self.rows[PEER]
        count = min(len(rows), self.shape.batch_size * (WARM + self.shape.steps))
        return examples_of(rows, range(0, len(rows), len(rows) // count)[:count])

    def rates(self, name: str, seconds: dict[str, list[float]]) -> list[float]:
        """Return the tokens of text per second of ``seconds`` in each round."""
        return [self.tokens(name) / each for each in seconds[name]]

    def relative(self, ours: str, theirs: str) -> Figures:
        """Return the rate of a contestant relative to another's: median and range over rounds."""
        line = {}
        for prefix, seconds in (("", self.wall), ("processor_", self.processor)):
            middle, ends = relative(self.rates(ours, seconds), self.rates(theirs, seconds))
            line[f"{prefix}ours_over_it"] = middle
            line[f"{prefix}ours_over_it_range"] = ends
        return line

    def line(self, name: str, matmul_flops: Mapping[str, float]) -> Figures:
        """Return the figures of a contestant: medians over rounds, and maskwise relative to it."""
        side, precision = name.split()
        rates = self.rates(name, self.wall)
        seconds = median(self.wall[name])
        line = {
            **self.title,
            "name": side,
            "precision": precision,
            "ms_per_step": round(1000 * seconds, 2),
            "processor_ms_per_step": round(1000 * median(self.processor[name]), 2),
            "spread": spread(self.wall[name]),
            "rounds": len(rates),
            "tokens_per_second": round(median(rates)),
            **self.facts[name],
            **self.relative(f"{OURS} {precision}", name),
        }
        if side == OURS:
            line["mfu"] = round(self.flops / seconds / matmul_flops[precision], 4)
        return line

    def best(self) -> Figures:
        """Return the ratio of the two sides, each in the precision of its lower median time."""
        quickest = sorted(self.wall, key=lambda name: median(self.wall[name]))
        ours = next(name for name in quickest if name.startswith(OURS))
        theirs = next(name for name in quickest if name.startswith(PEER))
        return {**self.title, "ours": ours, "theirs": theirs, **self.relative(ours, theirs)}

    @property
    def title(self) -> Figures:
        batch = f"{self.shape.batch_size} × {self.shape.length}"
        return {"size": self.shape.name, "batch": batch, "text": self.text}

    @cached_property
    def flops(self) -> float:
        """FLOPs of a training step of maskwise, the mean over four steps."""
        steps = 4
        work = Flops(MaskedLanguageModelling(self.model()))
        flops = 0
        for step in range(steps):
            for batch in self.source(1000).batches(step, rank=0, ranks=1):
                flops += work.trained(batch.tokens, batch.targets, batch.lengths)
        return flops / steps


def examples_of(rows: Rows, which: Sequence[int]) -> list[dict[str, list[int]]]:
    """Return rows as ``Trainer`` reads them: lists of ids without padding."""
    laid = rows.line(which).columns()
    return [
        {"input_ids": ids[show].tolist()}
        for ids, show in zip(laid["input_ids"], laid["attention_mask"] > 0)
    ]


def main(rounds: int = 3, sizes: str = "tiny,mini,small", texts: str = ",".join(TEXTS)) -> Figures:
    shapes = [shape for shape in SHAPES if shape.name.split()[0] in sizes.split(",")]
    return bench_train(shapes, texts=texts.split(","), rounds=rounds)


if __name__ == "__main__":
    run(main, __doc__)
