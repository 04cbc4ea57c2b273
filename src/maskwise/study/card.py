"""The model card of a checkpoint: what it is, and how it was masked, in the hub's format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml

from maskwise import __version__
from maskwise.training import TrainingSettings


def model_card(
    *,
    masker: Mapping[str, Any],
    training: TrainingSettings,
    heldout: list[dict[str, Any]],
    data: int,
    **facts: Any,
) -> str:
    """Markdown with the choices, the seeds, the data and the held-out losses.

    Args:
        masker: ``Masker.describe()``.
        training: the settings of the run.
        heldout: the last evaluation.
        data: rows of the training text.
    """
    front = yaml.safe_dump(
        {"library_name": "transformers", "tags": ["fill-mask", "maskwise"]}, sort_keys=False
    )
    choices = "\n".join(f"| {name} | `{value}` |" for name, value in {**masker, **facts}.items())
    losses = "\n".join(
        f"- {line['masks']} masks at {line['ratio']:.0%}: {line['loss']:.3f} nats a target "
        f"(word frequencies alone: {line['unigram']:.3f})"
        for line in heldout
    )
    return f"""---
{front}---

# A masked language model made with maskwise {__version__}

| choice | value |
|---|---|
{choices}

Trained for {training.steps} steps of {training.batch_size} rows on {data:,} rows (seed {training.seed}).
It loads with `AutoModelForMaskedLM.from_pretrained` and `AutoTokenizer.from_pretrained`, without maskwise.

## Loss on held-out text, fixed masks

{losses or "not measured"}

## Training settings

```yaml
{yaml.safe_dump(training.model_dump(mode="json"), sort_keys=False)}```
"""
