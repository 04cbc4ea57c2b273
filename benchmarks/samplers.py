"""What a sampler that learns costs, and how fast the batches of the arms are made.

**Overhead**: a probe of all arms, over the hundred training steps between two probes, for a model
of MiniLM's size and a tiny one; with probes of half a batch, as ours are, and of a whole one. Rows
are the bundled Wikipedia's.

**Batches**: tokens per second of one core, from tensors to what each objective reads, 64 rows at
once.

What samplers gain is measured by sampler_regret.py.

    python benchmarks/samplers.py > samplers.json
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from statistics import mean
from typing import Any

import torch
from rich.console import Console
from timing import processor_seconds
from torch import Tensor

from maskwise.bench import in_turn, surroundings
from maskwise.models import new_config, new_model
from maskwise.objectives import OBJECTIVES, objective, objective_class
from maskwise.samplers import sampler
from maskwise.text import read_documents, read_pieces, split, tokenise, train_tokenizer
from maskwise.training import MaskedSource, TrainingSettings
from maskwise.training.arms import Arms, ArmsSource, Probe

ARMS = {"mlm": {}, "mlm-40": {"ratio": 0.4}, "atd": {}, "dtd": {}, "cse": {}}
SIZES: dict[str, dict[str, Any]] = {
    "tiny (2 x 128)": {
        "hidden_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "intermediate_size": 336,
    },
    "MiniLM's (6 x 384)": {
        "hidden_size": 384,
        "num_hidden_layers": 6,
        "num_attention_heads": 12,
        "intermediate_size": 1536,
    },
}
EVERY = 100  # training steps between two probes
PREPARED_ROWS = 64


def bench_samplers(*, batch_size: int = 16, length: int = 128, steps: int = 12) -> dict[str, Any]:
    """
    Args:
        batch_size, length: of the training batches.
        steps: training steps of each arm that are timed, and probes.

    Returns:
        "overhead", "batches": lists of dicts; "hardware".
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        data = _rows(length)
        return {
            "overhead": [_overhead(name, data, batch_size, length, steps) for name in SIZES],
            "batches": _batches(data, PREPARED_ROWS, length),
            "hardware": surroundings(["torch", "transformers"]),
        }
    finally:
        torch.set_num_threads(threads)


def _rows(length: int) -> tuple[Any, Any, Any]:
    documents = list(read_documents("bundled:wikipedia", limit=600))
    tokenizer = train_tokenizer((document.text for document in documents), vocab_size=2048)
    pieces = read_pieces(tokenise(documents, tokenizer), tokenizer=tokenizer, length=length)
    return tokenizer, *split(pieces, held_out=0.2, layout="document")


def _maker(arm: str, tokenizer: Any, length: int) -> Any:
    kind = objective_class(arm.partition("-")[0])
    return kind.maker(tokenizer, seed=0, length=length, **kind.settings({}, ARMS.get(arm, {})))


def _overhead(
    size: str, data: tuple[Any, Any, Any], batch_size: int, length: int, steps: int
) -> dict[str, Any]:
    tokenizer, training, held_out = data
    settings = TrainingSettings(steps=steps * len(ARMS), batch_size=batch_size)
    model = new_model(new_config("bert", tokenizer, length, **SIZES[size]), seed=0)
    arms = Arms({name: objective(name.partition("-")[0], model) for name in ARMS})
    sources = {
        name: MaskedSource(training, _maker(name, tokenizer, length), settings) for name in ARMS
    }
    chooser = sampler("sequential", list(ARMS))
    source = ArmsSource(sources, chooser, settings)
    optimizer = torch.optim.AdamW(arms.parameters(), lr=1e-4)

    def train(step: int) -> None:
        (batch,) = source.batches(step, rank=0, ranks=1)
        loss, targets, *_ = arms(batch)
        (loss / targets).backward()
        optimizer.step()
        optimizer.zero_grad()

    def probe(rows: int) -> Callable[[], Tensor]:
        made = Probe(
            arms,
            source,
            dict.fromkeys(ARMS, held_out),
            sizes=dict.fromkeys(ARMS, rows),
            skip={},
        )
        return lambda: made(0)

    half, whole = probe(batch_size // 2), probe(batch_size)
    arms.train()
    for step in range(len(ARMS)):  # every arm once, untimed
        train(step)
    step_seconds = mean(
        processor_seconds(partial(train, step)) for step in range(steps * len(ARMS))
    )
    halves, wholes = (mean(processor_seconds(one) for _ in range(steps)) for one in (half, whole))
    return {
        "model": size,
        "batch": f"{batch_size} x {length}",
        "arms": len(ARMS),
        "every": EVERY,
        "step_ms": round(1000 * step_seconds, 2),
        "probe_ms": round(1000 * halves, 2),
        "overhead": round(halves / (EVERY * step_seconds), 5),
        "overhead_equal_batch": round(wholes / (EVERY * step_seconds), 5),
    }


def _batches(data: tuple[Any, Any, Any], batch_size: int, length: int) -> list[dict[str, Any]]:
    tokenizer, training, _ = data
    rows = torch.arange(batch_size)
    columns = [training.tensors((rows + start * batch_size) % len(training)) for start in range(20)]
    for one in columns:  # every fifth word stands for what is salient; emlm masks half of that
        one["salient"] = torch.where(one["word_ids"] % 5 == 0, one["word_ids"], -1)
    makers = {name: _maker(name, tokenizer, length) for name in OBJECTIVES}
    tokens = mean(int(one["attention_mask"].sum()) for one in columns)

    def checked(name: str, number: int, batch: Any) -> None:
        assert len(batch.input_ids) == batch_size

    def call(maker: Any, number: int) -> Any:
        return maker(columns[number % 20], epoch=number)

    calls: dict[str, Callable[[int], Any]] = {
        name: partial(call, maker) for name, maker in makers.items()
    }
    found = in_turn(calls, batches=60, check=checked)
    return [
        {"arm": name, "ms": round(1000 * seconds, 3), "tokens_per_second": round(tokens / seconds)}
        for name, seconds in found.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--steps", type=int, default=12, help="training steps of each arm that are timed"
    )
    given = parser.parse_args()
    result = {"bench": "samplers", **bench_samplers(steps=given.steps)}
    Console().print_json(data=result)


if __name__ == "__main__":
    main()
