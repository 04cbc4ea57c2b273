"""What ``MaskingTrainer`` refuses: rows that shall share rows, and cannot."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn
from transformers import TrainingArguments

import maskwise as mw
from refusals import Refusal
from training_tools import bart, model, tokenizer


class Own(nn.Module):
    def forward(self, input_ids: Any, attention_mask: Any = None) -> Any:
        return nn.functional.one_hot(input_ids).float()


def built(net: Callable[[], Any], *, corruption: str = "bert", **more: Any) -> Any:
    """A call that builds a trainer in an empty folder, with ``packing`` and settings or not."""

    def build(folder: Path, *, packing: bool = True) -> None:
        args = TrainingArguments(str(folder), report_to="none", use_cpu=True, **more)
        masker = mw.Masker(tokenizer(), ratio=0.3, corruption=corruption)
        mw.MaskingTrainer(net(), args, masker=masker, packing=packing)

    return build


def unpacked(build: Any) -> Callable[[Path], None]:
    return lambda folder: build(folder, packing=False)


def flexible() -> Any:
    net = model("bert")
    net.set_attn_implementation("flex_attention")
    return net


GROUPED = {"train_sampling_strategy": "group_by_length"}
DEBERTA = built(lambda: model("deberta-v2"))
BART = built(bart, corruption="infill")
OWN = built(Own)
BY_LENGTH = built(lambda: model("bert"), **GROUPED)
ROWS = [
    Refusal("packing-family", DEBERTA, ("packing", "deberta-v2", "bert"), unpacked(DEBERTA)),
    Refusal("packing-decoder", BART, ("packing", "bart"), unpacked(BART)),
    Refusal("packing-own-model", OWN, ("packing", "Own"), unpacked(OWN)),
    Refusal("packing-lengths", BY_LENGTH, ("packing", "group_by_length"), unpacked(BY_LENGTH)),
    Refusal(
        "packing-attention",
        built(flexible),
        ("packing", "flex_attention", "sdpa"),
        built(lambda: model("bert")),
    ),
]
