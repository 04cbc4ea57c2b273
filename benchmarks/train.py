"""What a training step costs: our loop beside transformers' ``Trainer`` as people run it, on the
same models and text.

    python benchmarks/train.py [--device cuda] > train.json

Both train from the same weights with AdamW and dropout on all cores or on one accelerator, in turn.
The peer runs in single precision, and in bfloat16 where the hardware trains faster in it; ours at
its default. Two kinds of text: *full* rows, and *varied* ones, where the peer pads documents of any
length and ours packs them and reads each alone. On an accelerator rows are full, and both are also
compiled. Wall-clock time of a step is taken inside a run, after its first steps; medians over the
rounds, of which each has all contestants. So the machine has to be quiet: neighbours cost the
faster contestant more. How quiet it was is said by load averages, by a fixed piece of work between
rounds, and by the spread of each figure. The whole ends within ten minutes.

Rates are tokens of the text, without padding. The share of the hardware (MFU) is that of
``training.log``: the FLOPs of a step (matrix products forward and backward, attention within
    documents, the head on the targets alone) over the
rate of a square matrix product that is measured in the same run.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from statistics import median
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from rich.console import Console
from rich.progress import track
from timing import Clock, time_trainer
from transformers import DataCollatorForLanguageModeling

from maskwise.bench import Noise, spread, surroundings
from maskwise.devices import best_device, fast_bf16, measured_rate, peak_memory
from maskwise.errors import MaskwiseError
from maskwise.masking import Masker
from maskwise.models import new_config, new_model
from maskwise.objectives import MaskedLanguageModelling
from maskwise.samplers import sampler
from maskwise.text import Rows, read_documents, read_pieces, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings, train
from maskwise.training.data import look_ahead
from maskwise.training.log import Meter

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PEER, OURS = "transformers.Trainer", "maskwise"
RATIO, WARM = 0.15, 2
"""The share of masked tokens; the steps before the clock starts (kernels are chosen, memory is
asked for).
"""


class Shape(NamedTuple):
    """A model and its batches.

    Attributes:
        fields: of the configuration.
        steps: that are timed.
    """

    name: str
    architecture: str
    fields: dict[str, Any]
    batch_size: int
    length: int
    steps: int


def _bert(name: str, layers: int, width: int, steps: int) -> Shape:
    fields = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64}
    return Shape(
        f"{name} ({layers} × {width})",
        "bert",
        {**fields, "intermediate_size": 4 * width},
        32,
        128,
        steps,
    )


def _base(architecture: str, length: int) -> Shape:
    fields: dict[str, Any] = {
        "hidden_size": 768,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "intermediate_size": 3072,
        "vocab_size": 30528,
    }
    if architecture == "modernbert":
        fields |= {"num_hidden_layers": 22, "intermediate_size": 1152, "vocab_size": 50368}
    return Shape(
        f"{architecture}-base, {length}", architecture, fields, 32768 // length, length, 20
    )


ON_CPU = (_bert("tiny", 2, 128, 10), _bert("mini", 4, 256, 5), _bert("small", 4, 512, 3))
ON_ACCELERATOR = tuple(
    _base(a, length) for length in (512, 128, 1024) for a in ("bert", "modernbert")
)
SECONDS = 540.0
"""No contestant starts later than this: the whole bench takes ten minutes at the most."""


def bench_train(
    *,
    device: str | None = None,
    shapes: Sequence[Shape] | None = None,
    rounds: int | None = None,
    vocabulary: int = 8192,
    documents: int = 2000,
    seconds: float = SECONDS,
) -> dict[str, Any]:
    """
    Args:
        device: "cpu" or "cuda"; None: the accelerator, if there is one. Ours runs on the best that
            there is.
        shapes: what is trained; those of the device if not said.
        rounds: how often each contestant is timed; on a CPU three times, on an accelerator once.
        documents: of the bundled Wikipedia.
        seconds: after which no contestant starts.

    Returns:
        "contestants": for each shape, text and contestant its ``ms_per_step`` (a median),
        ``spread`` (the range of the rounds over it), ``rounds``, ``tokens_per_second``,
        ``memory_gib``, the last ``loss``, its time per token over that of our fastest
        (``ours_over_it``), the least and most of it in a round (``ours_over_it_range``),
        and for ours its ``mfu``, and what masking (``masking_share``) and drawing an arm
        (``sampler_share``) take of a step's time, beside which they are done; "left_out":
        contestants for which no time was left; "matmul_flops": a second; "waits_in_a_step": how
        often the host waited for an accelerator in a step (None on a CPU); "noise": see
        ``maskwise.bench.Noise``.

    Raises:
        MaskwiseError: a device that is not there.
    """
    best, began = best_device(), time.perf_counter()
    if device not in (None, best.type):
        do = "leave --device out, or start it where there is one"
        raise MaskwiseError(
            "this bench runs on the best device that there is", got=device, allowed=best.type, do=do
        )
    accelerated = best.type != "cpu"
    shapes = shapes or (ON_ACCELERATOR if accelerated else ON_CPU)
    found = list(read_documents("bundled:wikipedia", limit=documents))
    tokenizer = train_tokenizer((document.text for document in found), vocab_size=vocabulary)
    rate = measured_rate(best, torch.bfloat16 if fast_bf16() else torch.float32)
    contests = [
        Contest(shape, text, found, tokenizer, rate)
        for shape in shapes
        for text in (("full",) if accelerated else ("full", "varied"))
    ]
    turns = [
        (contest, name)
        for compiled in (False, True)[: 1 + accelerated]
        for contest in contests
        for name in contestants(compiled=compiled)
    ]
    rounds = rounds or (1 if accelerated else 3)
    left_out = []
    noise = Noise()
    for number, (contest, name) in enumerate(
        track(turns * rounds, "timing models", console=Console(stderr=True))
    ):
        if number % len(turns) == 0:
            noise.probe()
        if time.perf_counter() - began > seconds:
            left_out.append(f"{contest.shape.name}, {contest.text}: {name}")
        else:
            contest.time(name)
    noise.probe()
    return {
        "vocabulary": len(tokenizer),
        "contestants": [line for contest in contests for line in contest.lines()],
        "left_out": left_out,
        "matmul_flops": rate,
        "waits_in_a_step": contests[0].waits() if accelerated else None,
        "noise": noise.report(),
        "hardware": surroundings(["torch", "transformers", "accelerate"])
        | {"device": _name_of(best)},
    }


def contestants(*, compiled: bool) -> Iterator[str]:
    """Ours, and the peer in every precision that is worth it here."""
    end = " compiled" if compiled else ""
    yield OURS + end
    for precision in ("fp32", "bf16") if fast_bf16() else ("fp32",):
        # nobody trains in single precision on a GPU
        if precision == "bf16" or best_device().type == "cpu":
            yield f"{PEER} {precision}{end}"


class Contest:
    """One shape and text: all contestants train the same weights on it, one after the other.

    Args:
        text: "full" rows, which both read as one text, or "varied" ones.
        rate: FLOPs per second of a matrix product.
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
        self.seconds: dict[str, list[float]] = {}
        self.facts: dict[str, dict[str, float]] = {}

    def model(self) -> Any:
        """A model with the weights that all begin with."""
        config = new_config(
            self.shape.architecture, self.tokenizer, self.rows[PEER].length, **self.shape.fields
        )
        return new_model(config, seed=0)

    def source(self, steps: int) -> tuple[MaskedSource, TrainingSettings]:
        settings = TrainingSettings(
            steps=steps, batch_size=self.shape.batch_size, log_every=steps, learning_rate=5e-5
        )
        return MaskedSource(
            self.rows[OURS], Masker(self.tokenizer, ratio=RATIO), settings
        ), settings

    def time(self, name: str) -> None:
        """Let a contestant train, and keep its time of a step."""
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
        source, settings = self.source(clock.last)
        settings = settings.model_copy(update={"compile": name.endswith("compiled")})
        objective = MaskedLanguageModelling(self.model())
        loss = train(objective, source, settings, learners={"clock": clock}, quiet=True)["loss"]
        assert loss is not None
        return loss

    def _theirs(self, clock: Clock, name: str) -> float:
        """``Trainer`` with what its users set for speed: fused AdamW, loading processes and pinned
        memory on a GPU.
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

    def lines(self) -> Iterator[dict[str, Any]]:
        """What was measured, contestant by contestant."""
        tokens = {
            side: self.shape.batch_size * rows.tokens / len(rows)
            for side, rows in self.rows.items()
        }
        per_step = {name: median(seconds) for name, seconds in self.seconds.items()}
        per_token = {name: seconds / tokens[name.split()[0]] for name, seconds in per_step.items()}
        fastest = self.fastest(per_token)
        for name, seconds in per_step.items():
            line = {
                "size": self.shape.name,
                "batch": f"{self.shape.batch_size} × {self.shape.length}",
                "text": self.text,
                "name": name,
                "ms_per_step": round(1000 * seconds, 2),
                "spread": spread(self.seconds[name]),
                "rounds": len(self.seconds[name]),
                "tokens_per_second": round(1 / per_token[name]),
                **self.facts[name],
                "ours_over_it": None,
                "ours_over_it_range": None,
            }
            if fastest:
                scale = tokens[OURS] / tokens[name.split()[0]]
                pairs = zip(self.seconds[name], self.seconds[fastest])
                ratios = [scale * its / ours for its, ours in pairs]
                line["ours_over_it"] = round(per_token[name] / per_token[fastest], 2)
                line["ours_over_it_range"] = [round(min(ratios), 2), round(max(ratios), 2)]
            yield line | (self._shares(seconds) if name.startswith(OURS) else {})

    @staticmethod
    def fastest(per_token: dict[str, float]) -> str | None:
        """The fastest of ours; None if none was timed."""
        ours = [name for name in per_token if name.startswith(OURS)]
        return min(ours, key=per_token.__getitem__, default=None)

    def _shares(self, seconds: float, steps: int = 4) -> dict[str, float]:
        """Shares of a step of ours: the hardware's multiplications, and what the host does beside
        it.
        """
        source, _ = self.source(1000)
        meter = Meter(
            MaskedLanguageModelling(self.model()),
            best_device(),
            "no",
            ranks=1,
            frozen=False,
            known=False,
        )
        meter.rate, began = self.rate, time.perf_counter()
        for number in range(steps):
            source.batches(number, rank=0, ranks=1)
        masking = (time.perf_counter() - began) / steps
        for step in look_ahead(source, range(steps)):
            meter.add(step)
        arms, began = sampler("mometas", ("mlm", "atd", "cse", "rtd"), seed=0), time.perf_counter()
        for number in range(100):
            arms.draw(number, 100)
        drawing = (time.perf_counter() - began) / 100
        return {
            "mfu": round(meter.flops / steps / seconds / self.rate, 4),
            "masking_share": round(masking / seconds, 4),
            "sampler_share": round(drawing / seconds, 5),
        }

    def waits(self, steps: int = 3) -> float:
        """How often the host waits for the accelerator in a step of ours, as torch warns of it."""
        source, settings = self.source(2 * steps)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            watch = _Watch(steps)
            train(
                MaskedLanguageModelling(self.model()),
                source,
                settings,
                learners={"watch": watch},
                quiet=True,
            )
        torch.cuda.set_sync_debug_mode("default")
        return sum("synchroniz" in str(warning.message) for warning in caught) / (steps - 1)


class _Watch(Clock):
    """Lets torch warn of every wait between two steps, without the log's at the end."""

    def __init__(self, steps: int):
        super().__init__(steps, 2 * steps - 1)

    def tick(self, done: int) -> None:
        if done in (self.warm, self.last):
            torch.cuda.set_sync_debug_mode("warn" if done == self.warm else "default")


def _name_of(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--device", help="cpu or cuda; without it, the GPU if there is one")
    arguments = parser.parse_args()
    try:
        result = bench_train(device=arguments.device)
    except MaskwiseError as error:
        sys.exit(str(error))
    sys.stdout.write(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
