"""What training spends, by a stated formula: the common scale of arms that differ in ratio, length or model.

    FLOPs = 6 · body · tokens + 6 · head · targets

Two FLOPs for every weight and token forward, four backward: two for the gradient of what comes in, two for that of
the weight. A frozen encoder runs forward only, and a vocabulary matrix that is tied to it costs 4 a target. ``body``: weights of the encoder without its embeddings,
which are looked up. ``head``: weights of the prediction head with its vocabulary matrix, also where that is tied to
the embeddings; it runs on gathered targets only, so a higher ratio costs more. Left out: attention scores (2·L·H a
token and layer, some per cent at the lengths used here), padding, the optimiser, evaluation.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers import AutoModelForMaskedLM

SAMPLED_STEPS = 32
"""Steps, evenly over a run, whose batches are masked to see what a run will spend."""


def flops(tokens: float, targets: float, network: Any, *, frozen: bool = False) -> int:
    """Of a training on so many tokens and targets; ``frozen``: of the heads alone."""
    body, head = weights(network)
    if not frozen:
        return int(6 * (body * tokens + head * targets))
    return int(2 * body * tokens + (6 * head - 2 * _tied(network)) * targets)


def _tied(network: Any) -> int:
    """Weights of the vocabulary matrix, if it is the encoder's."""
    out = network.get_output_embeddings()
    tied = out is not None and any(out.weight is p for p in network.base_model.parameters())
    return out.weight.numel() if tied else 0


def weights(network: Any) -> tuple[int, int]:
    """(body, head): how many weights work for every token, and for every target."""
    inner = network.base_model
    looked_up = sum(p.numel() for m in inner.modules() if isinstance(m, nn.Embedding) for p in m.parameters())
    of_body = {id(p) for p in inner.parameters()}
    head = sum(p.numel() for p in network.parameters() if id(p) not in of_body) + _tied(network)
    return sum(p.numel() for p in inner.parameters()) - looked_up, head


def empty_model(config: Any) -> Any:
    """A model without memory, to count the weights of."""
    with torch.device("meta"):
        return AutoModelForMaskedLM.from_config(config)


def per_step(source: Any, network: Any) -> dict[str, float]:
    """Means over a run of what a step spends: ``steps`` (one), ``tokens``, ``targets``, ``flops``.

    Args:
        source: a ``MaskedSource``: the very batches that steps will have, masked at their ratio.
        network: the model, or an empty one.
    """
    steps = source.settings.steps
    count = min(steps, SAMPLED_STEPS)
    tokens = targets = 0.0
    for number in range(count):
        step = (2 * number + 1) * steps // (2 * count)
        batches = source.batches(step, rank=0, ranks=1, device=torch.device("cpu"))
        tokens += source.facts(batches)["tokens"] / count
        targets += sum(int((batch.labels >= 0).sum()) for batch in batches) / count
    spent = flops(tokens, targets, network, frozen=source.settings.freeze == "encoder")
    return {"steps": 1, "tokens": tokens, "targets": targets, "flops": spent}
